// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of gauges.
 */
#include "fake.h"

static const struct virtio_freehint_gauges *gauges_told(void)
{
	unsigned int i;

	for (i = 0; i < fake->nr_sent; i++)
		if (fake->sent[i] == &fake->fh.gauges)
			return &fake->sent[i]->request->gauges;
	return NULL;
}

/* Gauges go along with a hint, and say how long memory rests now. */
static void test_gauges_go_along(struct kunit *test)
{
	fake->stats.free = 77;
	fake->stats.stuck = 7;
	fake->config.min_age_ms = 2 * AGE_MS;
	config_changes();
	free_granules(1);
	pass(AGE);
	KUNIT_ASSERT_EQ(test, hints_sent(), 1);
	KUNIT_ASSERT_NOT_NULL(test, gauges_told());
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->free), vfh_bytes(77));
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->stuck), vfh_bytes(7));
	KUNIT_EXPECT_EQ(test, le32_to_cpu(gauges_told()->rest_ms), 2 * AGE_MS);
}

/* Messages other than hints may be unsupported, and are not sent again then. */
static void test_unsupported_gauges(struct kunit *test)
{
	unsigned int i;

	free_granules(1);
	pass(AGE);
	for (i = 0; is_hint(fake->sent[i]); i++)
		;
	answer_nth(i, 0, 5, 0);
	fake->sent[i]->answer->ack.result = cpu_to_le16(VIRTIO_FREEHINT_R_UNSUPPORTED);
	pass(0);
	answer_all(VIRTIO_FREEHINT_S_DISCARDED);
	KUNIT_EXPECT_EQ(test, fake->resets, 0);
	KUNIT_EXPECT_EQ(test, fake->nr_sent, 0);
	pass(2 * AGE);
	free_granules(1);
	pass(AGE);
	KUNIT_EXPECT_EQ(test, fake->nr_sent, hints_sent());
}

/* Each figure is where the device looks for it. */
static void test_gauges_say_what_is(struct kunit *test)
{
	fake->stats = (struct freehint_stats) {
		.free = 11, .pending = 12, .discarded = 13, .out = 14, .stuck = 15,
		.reused = 16,
	};
	free_granules(1);
	pass(AGE);
	KUNIT_ASSERT_NOT_NULL(test, gauges_told());
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->free), 11 << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->pending), 12 << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->hinted), 13 << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->in_flight), 14 << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->stuck), 15 << PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(gauges_told()->reused), 16 << PAGE_SHIFT);
}

/* A device that was reset while it had gauges gets new ones. */
static void test_gauges_after_a_reset(struct kunit *test)
{
	free_granules(1);
	pass(AGE);
	KUNIT_ASSERT_NOT_NULL(test, gauges_told());
	fake->broken = true;
	pass(0);
	fake->broken = false;
	fake->nr_sent = 0;
	fake->fh.is_reset = true;
	pass(0);
	pass(fake->fh.revive_at - fake->now);
	fake->fh.is_revived = true;
	pass(0);
	KUNIT_ASSERT_EQ(test, fake->fh.phase, VFH_UP);

	free_granules(1);
	pass(2 * AGE);
	KUNIT_EXPECT_NOT_NULL(test, gauges_told());
}

static struct kunit_case gauges_cases[] = {
	KUNIT_CASE(test_gauges_go_along),
	KUNIT_CASE(test_unsupported_gauges),
	KUNIT_CASE(test_gauges_say_what_is),
	KUNIT_CASE(test_gauges_after_a_reset),
	{ }
};

static struct kunit_suite gauges_suite = {
	.name = "freehint_gauges",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = gauges_cases,
};
kunit_test_suite(gauges_suite);
