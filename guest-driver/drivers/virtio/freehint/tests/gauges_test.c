// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of gauges.
 */
#include "fake.h"

/* Other messages may be unsupported, and are not sent again. */
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

static struct kunit_case gauges_cases[] = {
	KUNIT_CASE(test_unsupported_gauges),
	{ }
};

static struct kunit_suite gauges_suite = {
	.name = "freehint_gauges",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = gauges_cases,
};
kunit_test_suite(gauges_suite);
