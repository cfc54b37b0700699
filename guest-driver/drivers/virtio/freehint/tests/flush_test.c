// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of flushes.
 */
#include "fake.h"

static struct virtio_freehint_flush_done *flush_answer(void)
{
	unsigned int i;

	for (i = 0; i < fake->nr_sent; i++)
		if (fake->sent[i] == &fake->fh.flush.done)
			return &fake->sent[i]->request->flush_done;
	return NULL;
}

static void ask_flush(u32 id, u32 timeout_ms)
{
	fake->config.flush_id = id;
	fake->config.flush_timeout_ms = timeout_ms;
	config_changes();
}

static void gathered(void)
{
	flush_work(&fake->fh.flush.gather);
	pass(0);
}

static void test_flush(struct kunit *test)
{
	fake->young = 6;
	ask_flush(3, 1000);
	KUNIT_EXPECT_EQ(test, hints_sent(), 0);
	gathered();
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_EXPECT_EQ(test, fake->flags, FREEHINT_NOW);
	KUNIT_EXPECT_NULL(test, flush_answer());
	/* The next round finds what was freed since; the one after it, nothing. */
	fake->young = 2;
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	pass(0);
	KUNIT_EXPECT_NULL(test, flush_answer());
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	pass(0);
	KUNIT_ASSERT_NOT_NULL(test, flush_answer());
	KUNIT_EXPECT_EQ(test, le32_to_cpu(flush_answer()->id), 3);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(flush_answer()->result),
			VIRTIO_FREEHINT_FLUSH_DONE);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(flush_answer()->hinted), 8 * G << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.flushes, 1);
	answer_all(0);
	pass(HZ);
	KUNIT_EXPECT_NULL(test, flush_answer());
}

/* A hint from before the flush does not count for it, whenever it is answered. */
static void test_flush_counts_its_own(struct kunit *test)
{
	free_granules(4);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	fake->young = 6;
	ask_flush(3, 10000);
	gathered();
	KUNIT_ASSERT_EQ(test, hints_sent(), 2);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	pass(0);
	KUNIT_ASSERT_NOT_NULL(test, flush_answer());
	KUNIT_EXPECT_EQ(test, le64_to_cpu(flush_answer()->hinted), 6 * G << PAGE_SHIFT);
}

/* After an OOM, mm gives nothing for a while: the flush waits if it has time. */
static void test_flush_is_held_up(struct kunit *test)
{
	fake->stats.paused = true;
	fake->stats.pending = 6 * G;
	ask_flush(3, 10000);
	gathered();
	pass(HZ);
	KUNIT_EXPECT_NULL(test, flush_answer());
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + HZ));
	fake->stats.paused = false;
	fake->due = 6;
	pass(HZ);
	KUNIT_EXPECT_EQ(test, hints_sent(), 1);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	pass(0);
	answer_all(0);
	KUNIT_EXPECT_EQ(test, fake->fh.counters.flushes, 1);
}

static void test_flush_times_out(struct kunit *test)
{
	fake->young = 6;
	ask_flush(3, 1000);
	gathered();
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	pass(msecs_to_jiffies(1000) - 1);
	KUNIT_EXPECT_NULL(test, flush_answer());
	KUNIT_EXPECT_FALSE(test, time_after(fake->fh.next, fake->now + 1));
	pass(1);
	KUNIT_ASSERT_NOT_NULL(test, flush_answer());
	KUNIT_EXPECT_EQ(test, le32_to_cpu(flush_answer()->result),
			VIRTIO_FREEHINT_FLUSH_TIMEOUT);
}

static void test_flush_refused(struct kunit *test)
{
	fake->fh.allowed = false;
	pass(0);
	ask_flush(8, 1000);
	KUNIT_ASSERT_NOT_NULL(test, flush_answer());
	KUNIT_EXPECT_EQ(test, le32_to_cpu(flush_answer()->result),
			VIRTIO_FREEHINT_FLUSH_REFUSED);
}

/* There was no room for the answer; it is sent when there is. */
static void test_flush_answer_is_owed(struct kunit *test)
{
	fake->fh.allowed = false;
	pass(0);
	fake->send_error = -ENOSPC;
	ask_flush(8, 1000);
	KUNIT_EXPECT_NULL(test, flush_answer());
	fake->send_error = 0;
	pass(0);
	KUNIT_EXPECT_NOT_NULL(test, flush_answer());
}

/* Going to sleep takes the queue away: the answer is not sent any more. */
static void test_flush_answer_is_owed_asleep(struct kunit *test)
{
	unsigned int uses;

	fake->fh.allowed = false;
	pass(0);
	fake->send_error = -ENOSPC;
	ask_flush(8, 1000);
	fake->send_error = 0;
	fake->fh.asleep = true;
	uses = fake->queue_uses;
	pass(0);
	KUNIT_EXPECT_EQ(test, fake->queue_uses, uses);
}

/* A flush ends even if the guest is always busy. */
static void test_flush_of_a_busy_guest(struct kunit *test)
{
	unsigned int i;

	fake->young = 6;
	ask_flush(3, 60000);
	gathered();
	for (i = 0; i < 20 && !flush_answer(); i++) {
		fake->young = 6;
		answer_all(VIRTIO_FREEHINT_S_DISCARDED);
		pass(0);
	}
	KUNIT_EXPECT_NOT_NULL(test, flush_answer());
	KUNIT_EXPECT_LE(test, i, 8);
}

static struct kunit_case flush_cases[] = {
	KUNIT_CASE(test_flush),
	KUNIT_CASE(test_flush_counts_its_own),
	KUNIT_CASE(test_flush_is_held_up),
	KUNIT_CASE(test_flush_times_out),
	KUNIT_CASE(test_flush_refused),
	KUNIT_CASE(test_flush_answer_is_owed),
	KUNIT_CASE(test_flush_answer_is_owed_asleep),
	KUNIT_CASE(test_flush_of_a_busy_guest),
	{ }
};

static struct kunit_suite flush_suite = {
	.name = "freehint_flush",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = flush_cases,
};
kunit_test_suite(flush_suite);
