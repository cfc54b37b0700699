/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Virtio free memory hint driver: a fake device and a fake source of memory, for unit
 * tests that go pass by pass, with a clock that the test moves.
 */
#ifndef _VIRTIO_FREEHINT_TESTS_FAKE_H
#define _VIRTIO_FREEHINT_TESTS_FAKE_H

#include <kunit/test.h>
#include <linux/device.h>
#include <linux/jiffies.h>
#include <linux/slab.h>

#include "../vfh.h"

#define ORDER		9U
#define G		(1UL << ORDER)
#define AGE_MS		100
#define AGE		msecs_to_jiffies(AGE_MS)
#define LOOK		(msecs_to_jiffies(5000) / 8)
#define MAX_SENT	16

/**
 * struct fake - a device, and a source of memory
 * @fh: what is tested
 * @vdev: has a name for log messages
 * @now: the clock
 * @refusal: the source's refusal
 * @young: granules that were freed
 * @early: granules that are due, and may be wanted back soon
 * @due: granules that are due
 * @lazy: granules that came back as lazy, in this settle time
 * @lazy_long: the same, but in the previous settle time
 * @started: the source was started
 * @freed: tells that memory was freed
 * @rehints: calls of fake_rehint()
 * @ages: calls of fake_age()
 * @settles: calls of fake_settle()
 * @age_flags: flags of the last period
 * @flags: flags of the last collection
 * @outcomes: granules that came back, by outcome
 * @lost: granules that were given up
 * @stats: the source's figures
 * @look: the source is worth a look
 * @gathers: calls of fake_gather()
 * @start_error: error of a start of the source
 * @start_refusal: the source's refusal after that error
 * @config: the device's configuration
 * @needs_reset: the device asks to be reset
 * @status: the driver status that it was told
 * @sent: messages that it has, oldest first
 * @nr_sent: how many
 * @lens: how much it has written; 0 for a message that it has not used
 * @send_error: error of sending
 * @kicks: notifications of the device
 * @queue_uses: how often the queue was used in any way
 * @broken: the queue is broken
 * @gone: the device is gone
 * @resets: calls of fake_reset()
 * @revivals: calls of fake_revive()
 */
struct fake {
	struct vfh fh;
	struct virtio_device vdev;
	unsigned long now;
	enum freehint_refusal refusal;
	unsigned long young;
	unsigned long early;
	unsigned long due;
	unsigned long lazy;
	unsigned long lazy_long;
	bool started;
	void (*freed)(void *data);
	unsigned int rehints;
	unsigned int ages;
	unsigned int settles;
	unsigned int age_flags;
	unsigned int flags;
	unsigned long outcomes[FREEHINT_NR_OUTCOMES];
	unsigned long lost;
	struct freehint_stats stats;
	bool look;
	unsigned int gathers;
	int start_error;
	enum freehint_refusal start_refusal;
	struct vfh_config config;
	bool needs_reset;
	u32 status;
	struct vfh_msg *sent[MAX_SENT];
	unsigned int nr_sent;
	unsigned int lens[MAX_SENT];
	int send_error;
	unsigned int kicks;
	unsigned int queue_uses;
	bool broken;
	bool gone;
	unsigned int resets;
	unsigned int revivals;
};

/* The source's operations have no argument that points to it. */
static struct fake *fake;

static inline const char *fake_engine(void)
{
	return "fake";
}

static inline enum freehint_refusal fake_refusal(unsigned int order)
{
	return fake->refusal;
}

static inline int fake_start(unsigned int order, void (*wake)(void *data), void *data)
{
	if (!fake->start_error)
		fake->started = true;
	else
		fake->refusal = fake->start_refusal;
	fake->freed = wake;
	return fake->start_error;
}

static inline void fake_stop(void)
{
	fake->started = false;
}

static inline bool fake_age(unsigned int flags)
{
	fake->ages++;
	fake->age_flags = flags;
	fake->early += fake->young;
	fake->young = 0;
	if (!(flags & FREEHINT_EARLY)) {
		fake->due += fake->early;
		fake->early = 0;
	}
	return fake->early || fake->due;
}

static inline bool fake_settle(void)
{
	fake->settles++;
	fake->due += fake->lazy_long;
	fake->lazy_long = fake->lazy;
	fake->lazy = 0;
	return fake->lazy_long;
}

static inline unsigned int fake_collect(struct freehint_batch *batch,
				 unsigned long max_pages, unsigned int flags)
{
	unsigned long *due = fake->early ? &fake->early : &fake->due;
	unsigned long granules = min(*due, max(max_pages / G, 1UL));

	fake->flags = flags;
	batch->nr_ranges = 0;
	batch->nr_pages = 0;
	batch->early = fake->early;
	batch->lost = false;
	if (!granules)
		return 0;
	*due -= granules;
	batch->nr_ranges = 1;
	batch->nr_pages = granules * G;
	batch->ranges[0].pfn = 16 * G;
	batch->ranges[0].nr_pages = granules * G;
	return 1;
}

static inline void fake_give_back(struct freehint_batch *batch)
{
	unsigned int i;

	for (i = 0; i < batch->nr_ranges; i++) {
		fake->outcomes[batch->ranges[i].outcome] += batch->ranges[i].nr_pages / G;
		if (batch->ranges[i].outcome == FREEHINT_LAZY)
			fake->lazy += batch->ranges[i].nr_pages / G;
	}
	if (batch->lost)
		fake->lost -= batch->nr_pages / G;
}

static inline void fake_lost(struct freehint_batch *batch)
{
	batch->lost = true;
	fake->lost += batch->nr_pages / G;
}

static inline void fake_rehint(void)
{
	fake->rehints++;
}

static inline void fake_get_stats(struct freehint_stats *stats)
{
	*stats = fake->stats;
}

static inline bool fake_worth_a_look(void)
{
	return fake->look;
}

static inline void fake_gather(bool compact, unsigned long deadline)
{
	fake->gathers++;
}

static const struct vfh_source fake_source = {
	.engine = fake_engine,
	.refusal = fake_refusal,
	.start = fake_start,
	.stop = fake_stop,
	.age = fake_age,
	.settle = fake_settle,
	.collect = fake_collect,
	.give_back = fake_give_back,
	.lost = fake_lost,
	.rehint = fake_rehint,
	.get_stats = fake_get_stats,
	.worth_a_look = fake_worth_a_look,
	.gather = fake_gather,
};

static inline bool fake_read_config(struct vfh *fh, struct vfh_config *config)
{
	*config = fake->config;
	return !fake->needs_reset;
}

static inline void fake_write_status(struct vfh *fh, u32 status)
{
	fake->status = status;
}

static inline int fake_send(struct vfh *fh, struct vfh_msg *msg, size_t size,
		     size_t nr_statuses)
{
	fake->queue_uses++;
	if (fake->send_error || fake->nr_sent == MAX_SENT)
		return fake->send_error ?: -ENOSPC;
	fake->lens[fake->nr_sent] = 0;
	fake->sent[fake->nr_sent++] = msg;
	return 0;
}

static inline void fake_kick(struct vfh *fh)
{
	fake->queue_uses++;
	fake->kicks++;
}

static inline struct vfh_msg *fake_next(struct vfh *fh, unsigned int *len)
{
	struct vfh_msg *msg;
	unsigned int i, j;

	fake->queue_uses++;
	for (i = 0; i < fake->nr_sent && !fake->lens[i]; i++)
		;
	if (i == fake->nr_sent)
		return NULL;
	msg = fake->sent[i];
	*len = fake->lens[i];
	for (j = i + 1; j < fake->nr_sent; j++) {
		fake->sent[j - 1] = fake->sent[j];
		fake->lens[j - 1] = fake->lens[j];
	}
	fake->nr_sent--;
	return msg;
}

static inline bool fake_is_broken(struct vfh *fh)
{
	fake->queue_uses++;
	return fake->broken;
}

static inline bool fake_is_gone(struct vfh *fh)
{
	return fake->gone;
}

static inline void fake_reset(struct vfh *fh)
{
	fake->resets++;
}

static inline void fake_revive(struct vfh *fh)
{
	fake->revivals++;
}

static const struct vfh_port fake_port = {
	.read_config = fake_read_config,
	.write_status = fake_write_status,
	.send = fake_send,
	.kick = fake_kick,
	.next = fake_next,
	.is_broken = fake_is_broken,
	.is_gone = fake_is_gone,
	.reset = fake_reset,
	.revive = fake_revive,
};

/* A pass, this many jiffies later. */
static inline void pass(unsigned long later)
{
	fake->now += later;
	vfh_pass(&fake->fh, fake->now);
}

static inline void config_changes(void)
{
	set_bit(VFH_EVENT_CONFIG, &fake->fh.events);
	pass(0);
}

/* Granules are freed, and nobody is busy with others. */
static inline void free_granules(unsigned long nr)
{
	fake->young += nr;
	fake->freed(&fake->fh);
	fake->fh.freed_at = fake->now;
	pass(0);
}

static inline bool is_hint(const struct vfh_msg *msg)
{
	return msg->batch;
}

static inline unsigned int hints_sent(void)
{
	unsigned int i, nr = 0;

	for (i = 0; i < fake->nr_sent; i++)
		nr += is_hint(fake->sent[i]);
	return nr;
}

/* The device uses the nth message that it has. */
static inline void answer_nth(unsigned int n, u8 status, u32 epoch, u32 retry_ms)
{
	struct vfh_msg *msg = fake->sent[n];
	struct vfh_answer *answer = msg->answer;
	unsigned int i, nr = is_hint(msg) ? msg->batch->nr_ranges : 0;

	answer->ack = (struct virtio_freehint_ack) {
		.result = cpu_to_le16(VIRTIO_FREEHINT_R_DONE),
		.nstatus = cpu_to_le32(nr),
		.rehint_epoch = cpu_to_le32(epoch),
		.retry_after_ms = cpu_to_le32(retry_ms),
	};
	for (i = 0; i < nr; i++)
		answer->status[i] = status;
	fake->lens[n] = sizeof(answer->ack) + nr;
}

static inline void answer_all(u8 status)
{
	unsigned int i;

	for (i = 0; i < fake->nr_sent; i++)
		answer_nth(i, status, fake->config.epoch, 0);
	pass(0);
}

/* The first hint that the device has. */
static inline unsigned int first_hint(void)
{
	unsigned int i;

	for (i = 0; !is_hint(fake->sent[i]); i++)
		;
	return i;
}

static inline int fake_init(struct kunit *test)
{
	struct vfh *fh;
	unsigned int i;

	fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake);
	device_initialize(&fake->vdev.dev);
	dev_set_name(&fake->vdev.dev, "freehint-test");
	fake->config = (struct vfh_config) {
		.state = VIRTIO_FREEHINT_STATE_ACTIVE,
		.epoch = 5,
		.min_age_ms = AGE_MS,
	};

	fh = &fake->fh;
	fh->vdev = &fake->vdev;
	fh->source = &fake_source;
	fh->port = &fake_port;
	fh->granule = G << PAGE_SHIFT;
	fh->order = ORDER;
	fh->max_ranges = 4;
	fh->nr_hints = 3;
	vfh_init(fh);
	fake->now = fh->now;
	KUNIT_ASSERT_EQ(test, vfh_alloc_msgs(fh), 0);
	for (i = 0; i < 2; i++)
		pass(0);
	KUNIT_ASSERT_TRUE(test, fake->started);
	/* The round that a start leads to finds nothing. */
	pass(AGE);
	pass(AGE);
	for (i = 0; i < fake->nr_sent; i++)
		answer_nth(i, 0, 5, 0);
	pass(0);
	KUNIT_ASSERT_EQ(test, fake->nr_sent, 0);
	return 0;
}

static inline void fake_exit(struct kunit *test)
{
	timer_delete_sync(&fake->fh.look);
	vfh_flush_cancel(&fake->fh);
	vfh_free_msgs(&fake->fh);
	kfree_const(fake->vdev.dev.kobj.name);
}

#endif /* _VIRTIO_FREEHINT_TESTS_FAKE_H */
