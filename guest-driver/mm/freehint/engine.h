/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: the engine.
 *
 * One thread does all that concerns hints: it collects, submits, takes answers
 * and gives back (round.c, flight.c). It never waits for memory, for the device
 * or for the engine's mutex, so whoever waits for what is in flight waits for
 * the device alone. What the device, the guest's administrator and other parties
 * want, and starting and stopping, is decided under the mutex (control.c).
 */
#ifndef _MM_FREEHINT_ENGINE_H
#define _MM_FREEHINT_ENGINE_H

#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "internal.h"

/**
 * enum fh_flush_stage - how far a flush is
 * @FH_FLUSH_NONE: there is none
 * @FH_FLUSH_PREPARING: memory is brought to the free lists
 * @FH_FLUSH_HINTING: what is there is hinted
 */
enum fh_flush_stage {
	FH_FLUSH_NONE = 0,
	FH_FLUSH_PREPARING,
	FH_FLUSH_HINTING,
};

/**
 * struct fh_flush_request - what the device asks for
 * @id: the flush's number
 * @compact: move memory in use together first
 * @start: jiffies, when the driver learned of it
 * @deadline: jiffies by which it has to be answered
 */
struct fh_flush_request {
	u32 id;
	bool compact;
	unsigned long start;
	unsigned long deadline;
};

/**
 * struct fh_flush - the flush that is under way, see flush.c
 * @lock: protects @asked and @is_asked
 * @asked: the latest request
 * @is_asked: the thread has not seen it
 * @look: something has happened that the flush may depend on
 * @prepare: compacts and drains; not in the thread, as it may take long
 * @prepared: id of the last flush for which that is done
 * @compact_until: jiffies; moved to the present when the flush ends early
 * @expire: the deadline
 *
 * The rest is the thread's.
 *
 * @stage: how far it is
 * @request: what was asked for
 * @first: cookie of the first hint that is made for it
 * @rounds: how many rounds of hints it has had
 * @hinted: pages in answered hints of its own
 */
struct fh_flush {
	spinlock_t lock; /* for the request */
	struct fh_flush_request asked;
	bool is_asked;
	struct kthread_work look;
	struct work_struct prepare;
	u32 prepared;
	unsigned long compact_until;
	struct kthread_delayed_work expire;

	enum fh_flush_stage stage;
	struct fh_flush_request request;
	u64 first;
	unsigned int rounds;
	unsigned long hinted;
};

/**
 * struct fh_engine - the engine
 * @lock: who is registered, and whether the engine runs
 * @dev: the device, or NULL
 * @order: the granule
 * @active: the device wants hints
 * @allowed: so does the guest's administrator
 * @broken: the device is not to be talked to
 * @give_up: the driver says that the device is broken
 * @leaked: what is in @flight is accounted for as leaked
 * @status: as last told to the driver
 *
 * @running: the thread may submit; written under @lock
 * @worker: the thread
 * @tick: a period has ended
 * @reap: the device has answered, or something else makes a round go on
 * @abort: the device has been reset; everything in flight comes back
 * @watch: looks for the answer to the oldest hint, now and then
 * @kick: from under a zone lock to @tick
 * @recover: resets the device; not in the thread, as it may take long
 * @repace: the device's wishes for the pace have changed
 *
 * @idle: the thread's: hints that can be filled
 * @flight: the thread's: hints that the device has, oldest first
 * @round: the thread's: a round is under way
 * @round_end: the thread's: jiffies, when the last one ended
 * @pace: the thread's: how long memory rests
 * @asked_delay_ms: what the device asked for last; written under @lock
 * @asked_age_ms: the same
 * @delay_ms: least time between two rounds, within the guest's bounds
 * @min_age_ms: least time for which memory rests, within the guest's bounds
 * @pause_until: jiffies; nothing is submitted before
 * @stalls: how often somebody had to wait for memory, when last looked at
 * @overdue: cookie of the hint that the device is to be reset for, or 0
 * @in_flight: pages in @flight
 * @wait: woken whenever @in_flight falls
 * @stats: counters; written by the thread
 *
 * @flush: the flush that is under way, or none
 * @told: the gauges that the device was told last
 * @look: time to compare these with the present ones; does not wake a CPU
 * @tell: tell the device
 */
struct fh_engine {
	struct mutex lock; /* for what control decides */
	struct freehint_dev *dev;
	unsigned int order;
	bool active;
	bool allowed;
	bool broken;
	bool give_up;
	bool leaked;
	enum freehint_status status;

	bool running;
	struct kthread_worker *worker;
	struct kthread_delayed_work tick;
	struct kthread_work reap;
	struct kthread_work abort;
	struct kthread_delayed_work watch;
	struct irq_work kick;
	struct work_struct recover;
	struct kthread_work repace;

	struct list_head idle;
	struct list_head flight;
	bool round;
	unsigned long round_end;
	struct fh_pace pace;
	unsigned int asked_delay_ms;
	unsigned int asked_age_ms;
	unsigned int delay_ms;
	unsigned int min_age_ms;
	unsigned long pause_until;
	unsigned long stalls;
	u64 overdue;
	atomic_long_t in_flight;
	wait_queue_head_t wait;
	struct freehint_stats stats;

	struct fh_flush flush;
	struct freehint_gauges told;
	struct timer_list look;
	struct kthread_work tell;
};

extern struct fh_engine fh_engine;

static inline u64 fh_bytes(unsigned long pages)
{
	return (u64)pages << PAGE_SHIFT;
}

static inline u64 fh_plane_bytes(const struct fh_zone *fz, enum fh_plane plane)
{
	/* Racy, as all figures are that are only shown. */
	return fh_bytes(data_race(fz->nr[plane]) << fz->order);
}

/* round.c: periods and rounds */
extern bool fh_drain_allowed;
extern bool fh_adapts;
unsigned long fh_period(struct fh_engine *e);
void fh_next_period(struct fh_engine *e, unsigned long delay);
bool fh_may_submit(struct fh_engine *e);
void fh_promote(struct fh_zone *fz);
void fh_start_round(struct fh_engine *e);
bool fh_worth_another_round(const struct fh_engine *e);
void fh_pump(struct fh_engine *e);
void fh_tick(struct kthread_work *work);
void fh_repace(struct kthread_work *work);
void fh_kick(struct irq_work *work);
unsigned long fh_count_stalls(void);

/* flight.c: hints that the device has */
extern unsigned int fh_timeout_ms;
void fh_pause(struct fh_engine *e, unsigned long delay);
void fh_watch(struct fh_engine *e);
bool fh_wait_answers(struct fh_engine *e);
int fh_submit(struct fh_engine *e, struct freehint_hint *hint);
void fh_reap(struct kthread_work *work);
void fh_look_for_answer(struct kthread_work *work);
void fh_abort(struct kthread_work *work);
void fh_reset_device(struct fh_engine *e);
bool fh_wait_in_flight(struct fh_engine *e, unsigned int ms);
int fh_flight_init(void);

/* flush.c: all free memory at once */
void fh_flush_begin(struct fh_flush *flush, u64 first);
void fh_flush_count(struct fh_flush *flush, const struct freehint_hint *hint);
bool fh_flush_round_over(struct fh_flush *flush, bool progress);
bool fh_flush_goes_on(struct fh_engine *e, bool progress, bool pending);
void fh_flush_init(struct fh_engine *e);
void fh_flush_set_up(struct fh_engine *e);
void fh_flush_stop(struct fh_engine *e);
void fh_flush_tear_down(struct fh_engine *e);

/* Whatever its age, and whatever the device's wishes: it is hinted now. */
static inline bool fh_flushing(const struct fh_engine *e)
{
	return e->flush.stage == FH_FLUSH_HINTING;
}

/* gauges.c: what the device is told of the guest's memory */
void fh_gauges_add_zone(struct freehint_gauges *gauges,
			const struct fh_zone *fz, bool running);
bool fh_gauges_moved(const struct freehint_gauges *old,
		     const struct freehint_gauges *now, u64 step);
void fh_gauges_get(const struct fh_engine *e, struct freehint_gauges *gauges);
bool fh_gauges_send(struct fh_engine *e);
void fh_gauges_rest(struct fh_engine *e);
void fh_gauges_start(struct fh_engine *e);
void fh_gauges_stop(struct fh_engine *e);
void fh_gauges_init(struct fh_engine *e);
void fh_gauges_tell(struct kthread_work *work);

#endif /* _MM_FREEHINT_ENGINE_H */
