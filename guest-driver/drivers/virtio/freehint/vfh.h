/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Virtio free memory hint driver: what its files share. Section names are those of the
 * specification, see include/uapi/linux/virtio_freehint.h.
 */
#ifndef _VIRTIO_FREEHINT_VFH_H
#define _VIRTIO_FREEHINT_VFH_H

#include <linux/freehint.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/types.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <uapi/linux/virtio_freehint.h>

/* At 16 bytes per range, a hint takes a little more than a page. */
#define VFH_MAX_RANGES	256

/* Enough to keep the device busy while the driver handles answers. */
#define VFH_MAX_HINTS	8

struct vfh;
struct vfh_msg;

/**
 * struct vfh_source - where free memory comes from: mm/freehint/, if possible
 * @engine: see freehint_engine(); the same applies to the next ones
 * @refusal: see there
 * @start: see there
 * @stop: see there
 * @age: see there
 * @settle: see there; NULL if the source does not tell what may be wanted back soon
 * @collect: see there
 * @give_back: see freehint_return()
 * @lost: see there
 * @rehint: see there
 * @get_stats: see there
 * @worth_a_look: see there
 * @gather: see there; for a flush
 * @evacuate: see there; NULL if the source has no such thing
 * @get_load: see there; the same applies
 */
struct vfh_source {
	const char *(*engine)(void);
	enum freehint_refusal (*refusal)(unsigned int order);
	int (*start)(unsigned int order, void (*wake)(void *data), void *data);
	void (*stop)(void);
	bool (*age)(unsigned int flags);
	bool (*settle)(void);
	unsigned int (*collect)(struct freehint_batch *batch,
				unsigned long max_pages, unsigned int flags);
	void (*give_back)(struct freehint_batch *batch);
	void (*lost)(struct freehint_batch *batch);
	void (*rehint)(void);
	void (*get_stats)(struct freehint_stats *stats);
	bool (*worth_a_look)(void);
	void (*gather)(bool compact, unsigned long deadline);
	bool (*evacuate)(struct freehint_sweep *sweep);
	void (*get_load)(struct freehint_load *load);
};

/**
 * struct vfh_config - the device's configuration, in this CPU's byte order
 * @state: enum virtio_freehint_state
 * @epoch: rehint_epoch
 * @delay_ms: see struct virtio_freehint_config
 * @min_age_ms: see there
 * @early_ms: the same for lazy hints, so that a host that is short can have the memory
 * @lazy: see there; 0 without VIRTIO_FREEHINT_F_LAZY
 * @flush_id: see there; 0 without VIRTIO_FREEHINT_F_FLUSH
 * @flush_flags: see there
 * @flush_timeout_ms: see there
 */
struct vfh_config {
	u32 state;
	u32 epoch;
	u32 delay_ms;
	u32 min_age_ms;
	u32 early_ms;
	u32 lazy;
	u32 flush_id;
	u32 flush_flags;
	u32 flush_timeout_ms;
};

/**
 * struct vfh_port - how the loop accesses the device
 * @read_config: read the configuration; false if the device asks to be reset
 * @write_status: write enum virtio_freehint_driver_status
 * @send: make a message available; 0, or a negative error
 * @kick: notify the device of what was sent
 * @next: the next message that the device has used, and how much it wrote; or NULL,
 *	and a notification will announce the next
 * @is_broken: the queue cannot be used any more
 * @is_gone: the device is gone for good, and does not write to memory any more
 * @reset: begin to reset the device; sets &vfh.is_reset, and wakes the loop, when that
 *	is confirmed
 * @revive: begin to set up a device that was reset; sets &vfh.is_revived or
 *	&vfh.hopeless, and wakes the loop
 *
 * None of these waits for the device.
 */
struct vfh_port {
	bool (*read_config)(struct vfh *fh, struct vfh_config *config);
	void (*write_status)(struct vfh *fh, u32 status);
	int (*send)(struct vfh *fh, struct vfh_msg *msg, size_t size,
		    size_t nr_statuses);
	void (*kick)(struct vfh *fh);
	struct vfh_msg *(*next)(struct vfh *fh, unsigned int *len);
	bool (*is_broken)(struct vfh *fh);
	bool (*is_gone)(struct vfh *fh);
	void (*reset)(struct vfh *fh);
	void (*revive)(struct vfh *fh);
};

/**
 * struct vfh_msg - the buffers of one message
 * @list: of a hint, in &vfh.idle or &vfh.flight
 * @queued: the device has them
 * @refused: the device does not support this type of message
 * @cookie: the number of the hint
 * @lazy: the hint may be discarded lazily
 * @looks: how often the loop looked for the answer in vain
 * @batch: the memory in the hint
 * @request: header and what follows it, read by the device
 * @answer: ack and status bytes, written by the device
 *
 * Allocated when the device is probed: nothing is to be allocated while memory is out.
 */
struct vfh_msg {
	struct list_head list;
	bool queued;
	bool refused;
	u64 cookie;
	bool lazy;
	unsigned int looks;
	struct freehint_batch *batch;
	struct vfh_request {
		struct virtio_freehint_hdr hdr;
		union {
			DECLARE_FLEX_ARRAY(struct virtio_freehint_range, ranges);
			struct virtio_freehint_gauges gauges;
			struct virtio_freehint_flush_done flush_done;
		};
	} *request;
	struct vfh_answer {
		struct virtio_freehint_ack ack;
		u8 status[];
	} *answer;
};

/**
 * enum vfh_phase - whether the device can be used
 * @VFH_UP: it takes messages
 * @VFH_RESETTING: it was told to reset itself, but has not confirmed that
 * @VFH_DOWN: it has confirmed that, and is to be set up again at &vfh.revive_at
 * @VFH_REVIVING: it is being set up again
 * @VFH_HOPELESS: it will not be set up again
 */
enum vfh_phase {
	VFH_UP,
	VFH_RESETTING,
	VFH_DOWN,
	VFH_REVIVING,
	VFH_HOPELESS,
};

/* What became of a range, for the counters. */
enum vfh_verdict {
	VFH_DISCARDED,
	VFH_LAZY,
	VFH_DECLINED,
	VFH_THROTTLED,
	VFH_FAILED,
	VFH_NEVER,
	VFH_NR_VERDICTS,
};

/**
 * struct vfh_figures - the guest's memory at one time, in bytes, and how long it rests;
 *	see struct virtio_freehint_gauges
 */
struct vfh_figures {
	u64 free;
	u64 pending;
	u64 hinted;
	u64 in_flight;
	u64 stuck;
	u64 reused;
	u32 rest_ms;
};

/**
 * struct vfh_counters - counters since the driver was bound; in bytes if the name says so
 * @hints: hints sent
 * @ranges: ranges in them
 * @notifications: how often the device was told to look at the queue
 * @hinted_bytes: bytes in hints; the sum of the next three and of what is in flight
 * @verdict_bytes: these by enum vfh_verdict
 * @aborted_bytes: those of them without an answer, as the device was reset
 * @leaked_bytes: those of them that are not back, as the device was told to reset itself,
 *	but has not confirmed that
 * @timeouts: times that the device did not answer a hint in time
 * @resets: times that it was reset, for that or another fault
 * @unsent: hints that could not be sent
 * @flushes: flushes that have ended, with any result
 */
struct vfh_counters {
	u64 hints;
	u64 ranges;
	u64 notifications;
	u64 hinted_bytes;
	u64 verdict_bytes[VFH_NR_VERDICTS];
	u64 aborted_bytes;
	u64 leaked_bytes;
	u64 timeouts;
	u64 resets;
	u64 unsent;
	u64 flushes;
};

/**
 * struct vfh_reuse - evidence on the pace, in pages
 * @hinted: returned as discarded
 * @reused: see struct freehint_stats
 * @spared: see struct freehint_stats
 */
struct vfh_reuse {
	unsigned long hinted;
	unsigned long reused;
	unsigned long spared;
};

/**
 * struct vfh_pace - how long memory rests before it is hinted, or before it is hinted
 *	once more, if it was hinted lazily first; see pace.c
 * @min_ms: floor of @age_ms: what the device asks for, within the guest's bounds
 * @max_ms: ceiling of @age_ms
 * @age_ms: the current age
 * @lazy: memory is lazy meanwhile, so that a host that is short of memory has it
 * @burst: this many pages or more are a pattern
 * @reuse: evidence since the age last grew, or since the last window ended
 * @before: evidence in the window before that, if the age has not grown since
 * @unclaimed: pages hinted in these two windows for which no reuse was counted
 * @calm: the window before the current one was calm
 * @since: when @reuse was last emptied, in jiffies
 */
struct vfh_pace {
	unsigned int min_ms;
	unsigned int max_ms;
	unsigned int age_ms;
	bool lazy;
	unsigned long burst;
	struct vfh_reuse reuse;
	struct vfh_reuse before;
	unsigned long unclaimed;
	bool calm;
	unsigned long since;
};

/* How far a flush is; see flush.c. */
enum vfh_flush_stage {
	VFH_FLUSH_NONE = 0,
	VFH_FLUSH_GATHERING,
	VFH_FLUSH_HINTING,
};

/**
 * struct vfh_flush - the flush that is under way, and the answer to the last one
 * @stage: how far it is
 * @id: the device's number for it
 * @compact: memory in use is to be moved together first
 * @deadline: when it has to be answered, in jiffies
 * @compact_until: when that has to end, in jiffies
 * @gather: brings memory to the free lists; not in the loop, as it may take long
 * @gathered: @gather has ended
 * @held_up: mm gives nothing for a while
 * @rounds: how many rounds of hints there have been
 * @first: cookie of its first hint
 * @hinted: pages in its answered hints
 * @done: the message with the answer
 * @owed: the answer in @done has not been sent
 */
struct vfh_flush {
	enum vfh_flush_stage stage;
	u32 id;
	bool compact;
	unsigned long deadline;
	unsigned long compact_until;
	struct work_struct gather;
	bool gathered;
	bool held_up;
	unsigned int rounds;
	u64 first;
	unsigned long hinted;
	struct vfh_msg done;
	bool owed;
};

/**
 * struct vfh_load - what the guest has been doing, and whether there is something to do
 * @now: time, in ns
 * @cpus: how many CPUs there are
 * @sums: what they have been doing
 * @stuck: pages that are free in pieces that are too small for hints, now
 * @worth: that many of them are worth some work
 */
struct vfh_load {
	u64 now;
	unsigned int cpus;
	struct freehint_load sums;
	unsigned long stuck;
	unsigned long worth;
};

/**
 * struct vfh_compact - compaction of an idle guest; see compact.c
 * @work: moves pages
 * @works: @work is queued or runs, and what follows belongs to it
 * @sweep: how far it is
 * @credit: time that it may take, in ns; less than 0 if it has taken more
 * @rests: a sweep is over
 * @rest_end: the next one starts then, in ns
 * @rest: for how long the last one rested, in ns
 * @stuck: pages that were stuck when it was over
 * @last: at the last look
 * @gained: granules gained before this sweep
 * @spent: time taken, in ns
 */
struct vfh_compact {
	struct work_struct work;
	bool works;
	struct freehint_sweep sweep;
	s64 credit;
	bool rests;
	u64 rest_end;
	u64 rest;
	unsigned long stuck;
	struct vfh_load last;
	unsigned long gained;
	u64 spent;
};

/**
 * struct vfh - a device
 * @vdev: its virtio device
 * @vq: hintq; belongs to the loop
 * @source: where free memory comes from
 * @port: how the loop accesses the device
 * @granule: bytes; every range is a multiple of it
 * @order: the granule that the driver uses, as an order of pages
 * @max_ranges: most ranges in a hint
 * @nr_hints: most hints that the device can be given at a time
 *
 * @thread: runs the loop
 * @wait: the loop sleeps here
 * @events: VFH_EVENT_* bits that the loop has not seen
 * @followed_wait: woken when the loop has followed a wish
 * @wishes: counts the wishes below; under @lock
 * @followed: the last one that the loop has followed
 * @lock: for @wishes
 * @allowed: the guest's administrator allows hints
 * @asleep: the device is going away or to sleep, or the machine is going down
 *
 * The rest belongs to the loop; others read what they show.
 *
 * @now: time of this pass, in jiffies
 * @next: time of the next pass, in jiffies
 * @phase: whether the device can be used
 * @reset_work: resets it
 * @is_reset: it has confirmed that; written by @reset_work
 * @revive_work: sets it up again
 * @is_revived: it is set up again; written by @revive_work
 * @hopeless: it never will be; written by @revive_work, too
 * @reset_deadline: when what is out is lost, in jiffies
 * @is_lost: what is out is lost
 * @revive_at: when to set the device up again, in jiffies
 * @backoff: how long the device stays down next time, in jiffies
 * @up_since: when it came up, in jiffies
 * @config: as last read
 * @config_changed: the configuration may have changed since
 * @status: enum virtio_freehint_driver_status, as last told
 * @running: the source has been started
 * @idle: hints that can be filled
 * @flight: hints that the device has, oldest first
 * @in_flight: pages in these
 * @next_look: when to look for answers, in jiffies
 * @freed_at: when VFH_EVENT_FREED last happened, in jiffies
 * @period_runs: a period is under way
 * @period_end: when it is over, in jiffies
 * @settle_runs: something was hinted lazily, and is to be hinted once more
 * @settle_end: when the current settle time is over, in jiffies
 * @round: a round is under way: what is due is being hinted
 * @round_end: when the last round ended, in jiffies
 * @progress: something was hinted in this round
 * @pause_end: nothing is sent before this time, in jiffies
 * @slow: how many times the memory in flight is halved, as the device could not handle
 *	all that it was given
 * @catching_up: what is hinted was found by a start or a rehint, and nobody knows how long
 *	it has been free; that it is used one day says nothing about the pace
 * @pace: how long memory rests
 * @seen: sums of the source when the pace was last judged
 * @flush: the flush that is under way
 * @compact: compaction when the guest idles
 * @gauges: the message with the gauges
 * @told: the gauges that the device was told last
 * @look: timer: once per second, on a CPU that is awake
 * @looks: counts the timer's interrupts
 * @counters: shown in sysfs and debugfs
 * @baffled: the device gives answers of an unknown kind, and the log says so
 * @hints: the messages with hints
 */
struct vfh {
	struct virtio_device *vdev;
	struct virtqueue *vq;
	const struct vfh_source *source;
	const struct vfh_port *port;
	u64 granule;
	unsigned int order;
	unsigned int max_ranges;
	unsigned int nr_hints;

	struct task_struct *thread;
	wait_queue_head_t wait;
	unsigned long events;
	wait_queue_head_t followed_wait;
	unsigned long wishes;
	unsigned long followed;
	spinlock_t lock; /* for wishes */
	bool allowed;
	bool asleep;

	unsigned long now;
	unsigned long next;
	enum vfh_phase phase;
	struct work_struct reset_work;
	bool is_reset;
	struct work_struct revive_work;
	bool is_revived;
	bool hopeless;
	unsigned long reset_deadline;
	bool is_lost;
	unsigned long revive_at;
	unsigned long backoff;
	unsigned long up_since;
	struct vfh_config config;
	bool config_changed;
	u32 status;
	bool running;
	struct list_head idle;
	struct list_head flight;
	unsigned long in_flight;
	unsigned long next_look;
	unsigned long freed_at;
	bool period_runs;
	unsigned long period_end;
	bool settle_runs;
	unsigned long settle_end;
	bool round;
	unsigned long round_end;
	bool progress;
	unsigned long pause_end;
	unsigned int slow;
	bool catching_up;
	struct vfh_pace pace;
	struct vfh_reuse seen;
	struct vfh_flush flush;
	struct vfh_compact compact;
	struct vfh_msg gauges;
	struct vfh_figures told;
	struct timer_list look;
	unsigned int looks;
	struct vfh_counters counters;
	bool baffled;
	struct vfh_msg hints[VFH_MAX_HINTS];
};

/* Bits of &vfh.events. */
enum {
	VFH_EVENT_CONFIG,	/* the configuration may have changed */
	VFH_EVENT_FREED,	/* memory was freed, and no period is under way */
	VFH_EVENT_LOOK,		/* there may be something to do */
	VFH_EVENT_TELL,		/* there may be something to tell */
	VFH_EVENT_OTHER,	/* there is something else to look at */
};

static inline u64 vfh_bytes(unsigned long pages)
{
	return (u64)pages << PAGE_SHIFT;
}

/* Whoever sent the loop to sleep may take the queue away once nothing is in flight. */
static inline bool vfh_may_use_queue(const struct vfh *fh)
{
	return fh->phase == VFH_UP &&
	       !(READ_ONCE(fh->asleep) && list_empty(&fh->flight));
}

/* Make the next pass no later than @when. */
static inline void vfh_wait_until(struct vfh *fh, unsigned long when)
{
	if (time_before(when, fh->next))
		fh->next = when;
}

/* loop.c */
void vfh_init(struct vfh *fh);
void vfh_wake(struct vfh *fh, unsigned int event);
void vfh_wish(struct vfh *fh, bool *what, bool value);
void vfh_wake_up(struct vfh *fh);
void vfh_pass(struct vfh *fh, unsigned long now);
int vfh_thread(void *data);
void vfh_start_round(struct vfh *fh, unsigned int flags);
void vfh_hint_done(struct vfh *fh, struct vfh_msg *msg);

/* recover.c */
void vfh_recovery_init(struct vfh *fh);
void vfh_fail(struct vfh *fh, bool hopeless, const char *why);
void vfh_forget(struct vfh *fh);
void vfh_await_reset(struct vfh *fh);
void vfh_set_up_again(struct vfh *fh);
void vfh_expect_answer(struct vfh *fh, struct vfh_msg *msg);
void vfh_answered(struct vfh *fh);
void vfh_look_for_overdue(struct vfh *fh);

/* msg.c */
extern const struct vfh_port vfh_virtio_port;
int vfh_alloc_msgs(struct vfh *fh);
void vfh_free_msgs(struct vfh *fh);
void vfh_fill_hdr(struct vfh_msg *msg, u16 type, u16 flags, u32 nranges,
		  u64 cookie);
int vfh_send_hint(struct vfh *fh, struct vfh_msg *msg);
unsigned int vfh_read_answer(struct vfh *fh, struct vfh_msg *msg,
			     unsigned int len);
u16 vfh_result(const struct vfh_answer *answer, size_t len);
struct vfh_figures vfh_figures(const struct vfh *fh);
struct virtio_freehint_gauges vfh_le_gauges(const struct vfh_figures *figures);

/* main.c */
void vfh_bounds_changed(void);
void vfh_bound_config(struct vfh_config *config);

/* sysfs.c */
extern const struct attribute_group *vfh_groups[];
void vfh_debugfs_add(struct vfh *fh);
void vfh_debugfs_remove(struct vfh *fh);
void vfh_debugfs_init(void);
void vfh_debugfs_exit(void);

#include "layers.h"

#endif /* _VIRTIO_FREEHINT_VFH_H */
