// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of the loop, pass by pass.
 */
#include <linux/pci.h>
#include <linux/virtio_config.h>

#include "fake.h"

/* Freed, at rest for more than the age, sent, answered, and back. */
static void test_a_hint(struct kunit *test)
{
	free_granules(7);
	pass(AGE / 8);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + AGE));
	pass(AGE / 4);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 7 * G);
	KUNIT_EXPECT_GT(test, fake->kicks, 0);

	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 7);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.verdict_bytes[VFH_DISCARDED],
			7 * G << PAGE_SHIFT);
}

#define EARLY	msecs_to_jiffies(AGE_MS / 4)
#define LONG	msecs_to_jiffies(8 * AGE_MS)

/* The device is lazy or not, and the guest has learned to let memory rest for long. */
static void learn(u32 lazy)
{
	fake->config.lazy = lazy;
	config_changes();
	fake->fh.pace.age_ms = 8 * AGE_MS;
}

static u16 hint_flags(void)
{
	return le16_to_cpu(fake->sent[first_hint()]->request->hdr.flags);
}

/* Memory is hinted lazily soon, and once more when it has settled. */
static void test_lazy(struct kunit *test)
{
	unsigned long settle_end;

	learn(1);
	free_granules(7);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + EARLY));
	pass(EARLY);
	KUNIT_EXPECT_EQ(test, fake->age_flags, FREEHINT_EARLY);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, hint_flags(), VIRTIO_FREEHINT_HINT_F_LAZY);
	answer_all(VIRTIO_FREEHINT_S_LAZY);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_LAZY], 7);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.verdict_bytes[VFH_LAZY],
			7 * G << PAGE_SHIFT);
	settle_end = fake->now + LONG;

	pass(EARLY);
	answer_all(0);
	/* What becomes lazy later does not delay that. */
	free_granules(3);
	pass(EARLY);
	answer_all(VIRTIO_FREEHINT_S_LAZY);
	pass(EARLY);
	answer_all(0);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, settle_end));
	pass(settle_end - 1 - fake->now);
	KUNIT_EXPECT_EQ(test, fake->settles, 0);
	pass(1);
	KUNIT_EXPECT_EQ(test, fake->settles, 1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + LONG));
	pass(LONG);
	KUNIT_EXPECT_EQ(test, fake->settles, 2);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, hint_flags(), 0);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 10);
	answer_all(0);

	/* There is nothing left to settle. */
	KUNIT_EXPECT_TRUE(test, time_after(fake->fh.next, fake->now + HZ * 3600));
}

/* Free granules, and expect one hint without the flag when they have rested that long. */
static void hint_once(struct kunit *test, unsigned int granules, unsigned long age)
{
	free_granules(granules);
	pass(age / 4 - 1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	pass(1);
	KUNIT_EXPECT_EQ(test, fake->age_flags, 0);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, hint_flags(), 0);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	pass(age);
	answer_all(0);
}

/* Without history, or without a lazy device, there is one hint without the flag. */
static void test_not_lazy(struct kunit *test)
{
	fake->config.lazy = 1;
	config_changes();
	hint_once(test, 7, AGE);

	learn(0);
	hint_once(test, 5, LONG);
	KUNIT_EXPECT_EQ(test, fake->settles, 0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 12);
}

/* The guest's own floor holds for lazy hints, too. */
static void test_early_age(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, fake->fh.config.early_ms, AGE_MS / 4);
	fake->config.min_age_ms = 40;
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->fh.config.early_ms, 20);
	fake->config.min_age_ms = 1;
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->fh.config.early_ms, 20);
	KUNIT_EXPECT_EQ(test, fake->fh.config.min_age_ms, 20);
}

/* If the device has dropped what was hinted lazily, there is no second hint. */
static void test_lazy_and_dropped(struct kunit *test)
{
	learn(1);
	free_granules(7);
	pass(EARLY);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 7);
	answer_all(0);
	pass(EARLY);
	pass(LONG);
	answer_all(0);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	KUNIT_EXPECT_TRUE(test, time_after(fake->fh.next, fake->now + HZ * 3600));
}

/* A host that is short of memory does not wait for the age that was learned. */
static void test_lazy_made_short(struct kunit *test)
{
	const unsigned long half = msecs_to_jiffies(AGE_MS / 2);

	learn(1);
	free_granules(7);
	pass(EARLY);
	answer_all(VIRTIO_FREEHINT_S_LAZY);
	fake->config.lazy = 0;
	fake->config.min_age_ms = AGE_MS / 2;
	config_changes();
	pass(half);
	KUNIT_EXPECT_EQ(test, fake->settles, 1);
	pass(half);
	KUNIT_EXPECT_EQ(test, fake->settles, 2);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, hint_flags(), 0);
}

/* What settles keeps the delay between rounds, too, but is not left behind. */
static void test_lazy_leaves_the_device_alone(struct kunit *test)
{
	const unsigned long delay = 3 * LONG;
	unsigned long round_end;

	fake->config.delay_ms = 3 * 8 * AGE_MS;
	learn(1);
	fake->fh.round_end = fake->now - delay;
	free_granules(7);
	pass(EARLY);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	answer_all(VIRTIO_FREEHINT_S_LAZY);
	answer_all(0);
	round_end = fake->fh.round_end;
	pass(LONG);
	KUNIT_EXPECT_EQ(test, fake->settles, 0);
	pass(round_end + delay - fake->now);
	KUNIT_EXPECT_EQ(test, fake->settles, 1);
}

/* The thread runs late: the period has begun before. */
static void test_late_for_what_was_freed(struct kunit *test)
{
	fake->young = 7;
	fake->freed(&fake->fh);
	fake->fh.freed_at = fake->now;
	pass(AGE / 4 - 1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + 1));
	pass(1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

static void test_idle_is_not_woken(struct kunit *test)
{
	unsigned int ages;

	free_granules(7);
	pass(AGE);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	answer_all(0);
	pass(AGE);
	pass(AGE);
	answer_all(0);
	ages = fake->ages;
	KUNIT_EXPECT_TRUE(test, time_after(fake->fh.next, fake->now + HZ * 3600));
	pass(10 * HZ);
	KUNIT_EXPECT_EQ(test, fake->ages, ages);
}

/* Each status leads to an outcome; an unknown one follows its class. */
static void test_statuses(struct kunit *test)
{
	static const struct {
		u8 status;
		enum freehint_outcome outcome;
		enum vfh_verdict verdict;
	} cases[] = {
		{ 0x10, FREEHINT_DISCARDED, VFH_DISCARDED },
		{ 0x00, FREEHINT_REFUSED, VFH_DECLINED },
		{ 0x11, FREEHINT_REFUSED, VFH_DECLINED },
		{ 0x20, FREEHINT_REFUSED, VFH_DECLINED },
		{ 0x21, FREEHINT_RETRY, VFH_THROTTLED },
		{ 0x22, FREEHINT_REFUSED, VFH_DECLINED },
		{ 0x30, FREEHINT_REFUSED, VFH_FAILED },
		{ 0x3f, FREEHINT_REFUSED, VFH_DECLINED },
		{ 0x40, FREEHINT_SUSPECT, VFH_NEVER },
		{ 0x43, FREEHINT_SUSPECT, VFH_NEVER },
		{ 0x47, FREEHINT_SUSPECT, VFH_NEVER },
		{ 0x48, FREEHINT_SUSPECT, VFH_NEVER },
		{ 0xff, FREEHINT_SUSPECT, VFH_NEVER },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned long before = fake->outcomes[cases[i].outcome];
		u64 bytes = fake->fh.counters.verdict_bytes[cases[i].verdict];

		free_granules(1);
		pass(AGE);
		KUNIT_ASSERT_EQ_MSG(test, hints_sent(), 1, "status %#x", cases[i].status);
		answer_all(cases[i].status);
		KUNIT_EXPECT_EQ_MSG(test, fake->outcomes[cases[i].outcome], before + 1,
				    "status %#x", cases[i].status);
		KUNIT_EXPECT_EQ_MSG(test, fake->fh.counters.verdict_bytes[cases[i].verdict],
				    bytes + (G << PAGE_SHIFT), "status %#x",
				    cases[i].status);
		pass(2 * AGE);
		answer_all(0);
	}
}

/* Whatever is missing from an answer is "declined". */
static void test_short_answers(struct kunit *test)
{
	unsigned int n;

	free_granules(1);
	pass(AGE);
	n = first_hint();
	answer_nth(n, VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	fake->lens[n] = sizeof(struct virtio_freehint_ack);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_REFUSED], 1);

	pass(2 * AGE);
	free_granules(1);
	pass(AGE);
	n = first_hint();
	answer_nth(n, VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	fake->lens[n] = 3;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_REFUSED], 2);
	KUNIT_EXPECT_EQ(test, fake->resets, 0);
}

/* An answer of another epoch claims nothing, whichever of the two is behind. */
static void test_stale_answers(struct kunit *test)
{
	free_granules(3);
	pass(AGE);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_DISCARDED, 6, 0);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 3);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 0);

	/* So the driver reads the configuration. */
	fake->config.epoch = 6;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->rehints, 1);

	free_granules(3);
	pass(2 * AGE);
	KUNIT_ASSERT_GE(test, hints_sent(), 1);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 0);
}

/* The epoch moves while a hint is out: all that was known is forgotten, once. */
static void test_epoch_moves(struct kunit *test)
{
	free_granules(3);
	pass(AGE);
	/* The first epoch that was read has not moved. */
	KUNIT_EXPECT_EQ(test, fake->rehints, 0);
	fake->config.epoch = 9;
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->rehints, 1);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_DISCARDED, 9, 0);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 3);
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->rehints, 1);
}

static void test_out_of_order(struct kunit *test)
{
	unsigned long most = SZ_128M >> PAGE_SHIFT;

	free_granules(3 * most / G);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 3);
	answer_nth(fake->nr_sent - 1 - !is_hint(fake->sent[fake->nr_sent - 1]),
		   VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], most / G);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 2 * most);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 3 * most / G);
}

/* A device that uses a message twice cannot be trusted. */
static void test_answered_twice(struct kunit *test)
{
	struct vfh_msg *msg;

	free_granules(3);
	pass(AGE);
	msg = fake->sent[first_hint()];
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	fake->sent[fake->nr_sent] = msg;
	fake->lens[fake->nr_sent++] = sizeof(msg->answer->ack) + 1;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 3);
	KUNIT_EXPECT_EQ(test, fake->resets, 1);
}

/* Without an answer, the device is reset after the timeout, and not before. */
static void let_time_out(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < 8; i++) {
		pass(LOOK);
		KUNIT_ASSERT_EQ(test, fake->fh.phase, VFH_UP);
		KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + LOOK));
	}
	pass(LOOK);
	KUNIT_ASSERT_EQ(test, fake->fh.phase, VFH_RESETTING);
}

static void confirm_reset(void)
{
	fake->nr_sent = 0;
	fake->fh.is_reset = true;
	pass(0);
}

static void come_back(struct kunit *test)
{
	unsigned long wait = fake->fh.revive_at - fake->now;

	KUNIT_EXPECT_EQ(test, fake->fh.next, fake->fh.revive_at);
	pass(wait - 1);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_DOWN);
	pass(1);
	KUNIT_ASSERT_EQ(test, fake->fh.phase, VFH_REVIVING);
	fake->fh.is_revived = true;
	pass(0);
	pass(0);
	KUNIT_ASSERT_EQ(test, fake->fh.phase, VFH_UP);
}

static void test_never_answered(struct kunit *test)
{
	free_granules(5);
	pass(AGE);
	let_time_out(test);
	KUNIT_EXPECT_EQ(test, fake->resets, 1);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.timeouts, 1);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 5 * G);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 0);

	confirm_reset();
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 5);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.aborted_bytes, 5 * G << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, fake->fh.status, VIRTIO_FREEHINT_DRIVER_FAILED);
	KUNIT_EXPECT_FALSE(test, fake->started);

	/* It comes back by itself, and memory is hinted again. */
	come_back(test);
	KUNIT_EXPECT_TRUE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
	free_granules(5);
	pass(AGE);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

/* Each time it stays down for longer, up to a minute. */
static void test_backoff(struct kunit *test)
{
	unsigned long last = 0;
	unsigned int i;

	for (i = 0; i < 9; i++) {
		free_granules(1);
		pass(AGE);
		let_time_out(test);
		confirm_reset();
		if (i < 5)
			KUNIT_EXPECT_GT(test, fake->fh.revive_at - fake->now, last);
		last = fake->fh.revive_at - fake->now;
		KUNIT_EXPECT_LE(test, last, 60 * HZ);
		come_back(test);
	}
	KUNIT_EXPECT_EQ(test, last, 60 * HZ);

	/* After a while without a fault, the backoff starts over. */
	pass(61 * HZ);
	free_granules(1);
	pass(AGE);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->fh.backoff, HZ);
}

/* The clock jumps: the device could not answer meanwhile, so that counts as one look. */
static void test_clock_jumps(struct kunit *test)
{
	free_granules(1);
	pass(AGE);
	pass(3600 * HZ);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_UP);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 1);
}

/* Each hint has a timeout: a device that answers others does not get more time. */
static void test_slow_motion(struct kunit *test)
{
	unsigned long most = SZ_128M >> PAGE_SHIFT;
	unsigned int i;

	free_granules(3 * most / G);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 3);
	for (i = 0; i < 7; i++)
		pass(LOOK);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	pass(LOOK);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_UP);
	pass(LOOK);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_RESETTING);
}

/* An answer without a notification counts, too. */
static void test_late_answer(struct kunit *test)
{
	unsigned int i;

	free_granules(1);
	pass(AGE);
	for (i = 0; i < 8; i++)
		pass(LOOK);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	pass(LOOK);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_UP);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 1);
}

/* What does not come back is lost, until the reset is confirmed after all. */
static void test_late_reset(struct kunit *test)
{
	free_granules(5);
	pass(AGE);
	let_time_out(test);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + 10 * HZ));
	pass(10 * HZ - 1);
	KUNIT_EXPECT_EQ(test, fake->lost, 0);
	pass(1);
	KUNIT_EXPECT_EQ(test, fake->lost, 5);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.leaked_bytes, 5 * G << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
	pass(HZ);
	KUNIT_EXPECT_EQ(test, fake->lost, 5);

	confirm_reset();
	KUNIT_EXPECT_EQ(test, fake->lost, 0);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.leaked_bytes, 0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 5);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
	come_back(test);
}

static void test_gone(struct kunit *test)
{
	free_granules(5);
	pass(AGE);
	fake->gone = true;
	fake->broken = true;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 5);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
}

static u8 all_ones(struct virtio_device *vdev)
{
	return 0xff;
}

/* A real PCI device that is there, though all reads give ones, is not gone. */
static void test_gone_is_looked_at(struct kunit *test)
{
	static const struct virtio_config_ops config = { .get_status = all_ones };
	struct pci_dev *pdev = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, NULL);
	pci_channel_state_t state;

	fake->vdev.config = &config;
	/* Nor is one on another bus: there is no way to tell. */
	fake->vdev.dev.parent = &fake->vdev.dev;
	KUNIT_EXPECT_FALSE(test, vfh_virtio_port.is_gone(&fake->fh));
	if (!pdev)
		kunit_skip(test, "there is no device on PCI");
	fake->vdev.dev.parent = &pdev->dev;
	KUNIT_EXPECT_FALSE(test, vfh_virtio_port.is_gone(&fake->fh));
	state = pdev->error_state;
	pdev->error_state = pci_channel_io_perm_failure;
	KUNIT_EXPECT_TRUE(test, vfh_virtio_port.is_gone(&fake->fh));
	pdev->error_state = state;
	pci_dev_put(pdev);
	fake->vdev.dev.parent = NULL;
}

static void test_broken_queue(struct kunit *test)
{
	fake->broken = true;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->resets, 1);
	fake->broken = false;
	confirm_reset();
	come_back(test);
}

static void test_needs_reset(struct kunit *test)
{
	fake->needs_reset = true;
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->resets, 1);
	fake->needs_reset = false;
	confirm_reset();
	come_back(test);
	KUNIT_EXPECT_TRUE(test, fake->started);
}

/* A device that supports no hints will not support them after a reset either. */
static void test_unsupported(struct kunit *test)
{
	unsigned int n;

	free_granules(5);
	pass(AGE);
	n = first_hint();
	answer_nth(n, VIRTIO_FREEHINT_S_DISCARDED, 5, 0);
	fake->sent[n]->answer->ack.result = cpu_to_le16(VIRTIO_FREEHINT_R_UNSUPPORTED);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_REFUSED], 5);
	confirm_reset();
	pass(3600 * HZ);
	KUNIT_EXPECT_EQ(test, fake->fh.phase, VFH_HOPELESS);
	KUNIT_EXPECT_EQ(test, fake->revivals, 0);
}

/* If a hint cannot be sent, the device does not have the memory: it is due again. */
static void test_unsent(struct kunit *test)
{
	fake->send_error = -ENOSPC;
	free_granules(4);
	pass(AGE);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 4);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.unsent, 1);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.hints, 0);
	KUNIT_EXPECT_EQ(test, fake->fh.in_flight, 0);
	KUNIT_EXPECT_EQ(test, fake->resets, 0);
}

/* A device that cannot handle all hints is left alone for a while, and given less. */
static void test_throttled(struct kunit *test)
{
	unsigned long most = SZ_128M >> PAGE_SHIFT;

	free_granules(4 * most / G);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 3);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_THROTTLED, 5, 500);
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], most / G);
	KUNIT_EXPECT_EQ(test, hints_sent(), 2);
	answer_all(VIRTIO_FREEHINT_S_THROTTLED);
	pass(0);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	pass(msecs_to_jiffies(500));
	KUNIT_EXPECT_GT(test, hints_sent(), 0);
	KUNIT_EXPECT_LE(test, fake->fh.in_flight, most / 2);
}

/* If the device asks for a retry some time later, nothing is offered before that. */
static void test_retry_is_obeyed(struct kunit *test)
{
	free_granules(1);
	pass(AGE);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_THROTTLED, 5, 500);
	pass(0);
	fake->due = 1;
	pass(msecs_to_jiffies(500) - 1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	pass(1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

/* The device may not keep the guest waiting for longer than a minute. */
static void test_retry_is_bounded(struct kunit *test)
{
	free_granules(1);
	pass(AGE);
	answer_nth(first_hint(), VIRTIO_FREEHINT_S_THROTTLED, 5, U32_MAX);
	pass(0);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.pause_end, fake->now + 60 * HZ));
}

/* Between the end of a round and the next, the device is left alone. */
static void test_delay(struct kunit *test)
{
	fake->config.delay_ms = 2000;
	config_changes();
	free_granules(1);
	pass(3 * HZ);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	answer_all(0);
	free_granules(1);
	pass(2 * HZ - 1);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	pass(HZ);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

/* A device that asks for a lower age is obeyed at once, whatever was learned. */
static void test_lower_age(struct kunit *test)
{
	fake->config.min_age_ms = 4000;
	config_changes();
	free_granules(1);
	pass(AGE);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	fake->config.min_age_ms = 20;
	config_changes();
	KUNIT_EXPECT_EQ(test, fake->fh.pace.age_ms, 20);
	pass(msecs_to_jiffies(20));
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

/* When told to stop, the loop sends nothing, and stops when nothing is out. */
static void test_waiting(struct kunit *test)
{
	free_granules(3);
	pass(AGE);
	fake->config.state = VIRTIO_FREEHINT_STATE_VETOED;
	config_changes();
	KUNIT_EXPECT_TRUE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->fh.status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
	fake->due += 3;
	pass(AGE);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
	answer_all(VIRTIO_FREEHINT_S_DECLINED);
	KUNIT_EXPECT_FALSE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_WAITING);

	fake->config.state = VIRTIO_FREEHINT_STATE_ACTIVE;
	config_changes();
	KUNIT_EXPECT_TRUE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
}

/* A device that does not answer is reset, even if hints are to stop anyway. */
static void test_waiting_and_hung(struct kunit *test)
{
	free_granules(3);
	pass(AGE);
	fake->fh.allowed = false;
	let_time_out(test);
	confirm_reset();
	KUNIT_EXPECT_FALSE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_RETRY], 3);
	come_back(test);
	KUNIT_EXPECT_FALSE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_OFF);
}

static void test_statuses_of_the_driver(struct kunit *test)
{
	fake->refusal = FREEHINT_NO_OTHER;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER);
	KUNIT_EXPECT_FALSE(test, fake->started);
	fake->refusal = FREEHINT_NO_POISONING;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_POISONING);
	fake->refusal = FREEHINT_CAN;
	fake->fh.allowed = false;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_OFF);
	fake->fh.allowed = true;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
	KUNIT_EXPECT_TRUE(test, fake->started);
}

/* Asleep, the loop does not touch the device, not even to read its configuration. */
static void test_asleep(struct kunit *test)
{
	fake->fh.asleep = true;
	fake->status = 77;
	pass(0);
	KUNIT_EXPECT_FALSE(test, fake->started);
	fake->needs_reset = true;
	config_changes();
	pass(HZ);
	KUNIT_EXPECT_EQ(test, fake->status, 77);
	KUNIT_EXPECT_EQ(test, fake->resets, 0);
}

/* Asleep, there is no queue: whatever wakes the loop then, it must not use it. */
static void test_asleep_without_a_queue(struct kunit *test)
{
	unsigned int uses;

	fake->fh.asleep = true;
	pass(0);
	KUNIT_EXPECT_FALSE(test, fake->started);
	uses = fake->queue_uses;
	/* The loop looks for the other reporter now and then. */
	fake->refusal = FREEHINT_NO_OTHER;
	pass(0);
	pass(5 * HZ);
	KUNIT_EXPECT_EQ(test, fake->queue_uses, uses);
}

/* What is out comes back before the loop sleeps. */
static void test_asleep_with_hints_in_flight(struct kunit *test)
{
	free_granules(3);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	fake->fh.asleep = true;
	pass(0);
	KUNIT_EXPECT_TRUE(test, fake->started);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_FALSE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->outcomes[FREEHINT_DISCARDED], 3);
}

/* If there is no memory for the start of the source, it is tried again later. */
static void test_start_fails(struct kunit *test)
{
	fake->fh.allowed = false;
	pass(0);
	fake->start_error = -ENOMEM;
	fake->fh.allowed = true;
	pass(0);
	KUNIT_EXPECT_FALSE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_NOT_READY);
	fake->start_error = 0;
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + 5 * HZ));
	/* And not before, whatever the device says. */
	config_changes();
	KUNIT_EXPECT_FALSE(test, fake->started);
	pass(5 * HZ);
	KUNIT_EXPECT_TRUE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
}

/* The source finds out only at its start that something else reports free memory. */
static void test_start_is_refused(struct kunit *test)
{
	fake->fh.allowed = false;
	pass(0);
	fake->start_error = -EBUSY;
	fake->start_refusal = FREEHINT_NO_OTHER;
	fake->fh.allowed = true;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER);
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + 5 * HZ));

	/* The source does not know how long that holds, and is asked again. */
	fake->refusal = FREEHINT_CAN;
	pass(5 * HZ);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER);
	fake->refusal = FREEHINT_CAN;
	fake->start_error = 0;
	pass(5 * HZ);
	KUNIT_EXPECT_TRUE(test, fake->started);
	KUNIT_EXPECT_EQ(test, fake->status, VIRTIO_FREEHINT_DRIVER_ACTIVE);
}

/* A look now and then finds what the hooks do not announce. */
static void test_look(struct kunit *test)
{
	fake->due = 2;
	fake->look = true;
	set_bit(VFH_EVENT_LOOK, &fake->fh.events);
	pass(0);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
}

static struct kunit_case loop_cases[] = {
	KUNIT_CASE(test_a_hint),
	KUNIT_CASE(test_lazy),
	KUNIT_CASE(test_not_lazy),
	KUNIT_CASE(test_early_age),
	KUNIT_CASE(test_lazy_and_dropped),
	KUNIT_CASE(test_lazy_made_short),
	KUNIT_CASE(test_lazy_leaves_the_device_alone),
	KUNIT_CASE(test_late_for_what_was_freed),
	KUNIT_CASE(test_idle_is_not_woken),
	KUNIT_CASE(test_statuses),
	KUNIT_CASE(test_short_answers),
	KUNIT_CASE(test_stale_answers),
	KUNIT_CASE(test_epoch_moves),
	KUNIT_CASE(test_out_of_order),
	KUNIT_CASE(test_answered_twice),
	KUNIT_CASE(test_never_answered),
	KUNIT_CASE(test_backoff),
	KUNIT_CASE(test_clock_jumps),
	KUNIT_CASE(test_slow_motion),
	KUNIT_CASE(test_late_answer),
	KUNIT_CASE(test_late_reset),
	KUNIT_CASE(test_gone),
	KUNIT_CASE(test_gone_is_looked_at),
	KUNIT_CASE(test_broken_queue),
	KUNIT_CASE(test_needs_reset),
	KUNIT_CASE(test_unsupported),
	KUNIT_CASE(test_unsent),
	KUNIT_CASE(test_throttled),
	KUNIT_CASE(test_retry_is_obeyed),
	KUNIT_CASE(test_retry_is_bounded),
	KUNIT_CASE(test_delay),
	KUNIT_CASE(test_lower_age),
	KUNIT_CASE(test_waiting),
	KUNIT_CASE(test_waiting_and_hung),
	KUNIT_CASE(test_statuses_of_the_driver),
	KUNIT_CASE(test_asleep),
	KUNIT_CASE(test_asleep_without_a_queue),
	KUNIT_CASE(test_asleep_with_hints_in_flight),
	KUNIT_CASE(test_start_fails),
	KUNIT_CASE(test_start_is_refused),
	KUNIT_CASE(test_look),
	{ }
};

static struct kunit_suite loop_suite = {
	.name = "freehint_loop",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = loop_cases,
};
kunit_test_suite(loop_suite);
