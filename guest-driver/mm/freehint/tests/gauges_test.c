// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, gauges.
 */
#include <kunit/test.h>
#include <linux/sizes.h>

#include "../engine.h"
#include "fake.h"

static struct freehint_gauges gauges_of(struct fake *fake, bool running)
{
	struct freehint_gauges gauges = { };

	fh_gauges_add_zone(&gauges, fake->fz, running);
	return gauges;
}

static void test_gauges_follow_states(struct kunit *test)
{
	const u64 granule = GPAGES << PAGE_SHIFT;
	struct fake *fake = test->priv;

	free_granules(fake, 4, 3);
	promote(fake);
	free_granules(fake, 20, 1);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).pending_bytes, 4 * granule);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).discarded_bytes, 0);

	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).pending_bytes, granule);
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).discarded_bytes, 3 * granule);
}

/* What the device declined is free, but neither pending nor discarded. */
static void test_gauges_leave_out_held(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DECLINED, false);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).pending_bytes, 0);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).discarded_bytes, 0);
}

/* While the engine does not run, its bitmaps say nothing. */
static void test_gauges_stopped(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, false).pending_bytes, 0);
}

static void test_gauges_stuck(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct free_area *area = fake->zone.free_area;

	area[MAX_PAGE_ORDER].nr_free = 2;
	area[G].nr_free = 1;
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES],
			(2 << MAX_PAGE_ORDER) + GPAGES + 100);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).stuck_bytes, 100 * PAGE_SIZE);

	/* The two are read a moment apart: never less than nothing. */
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], GPAGES);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).stuck_bytes, 0);
}

static void test_gauges_reused(struct kunit *test)
{
	struct fake *fake = test->priv;

	rotate(fake, true);
	free_granules(fake, 4, 2);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	alloc_pages_at(fake, at(4), UNIT_ORDER);
	KUNIT_EXPECT_EQ(test, gauges_of(fake, true).reused_bytes,
			(u64)GPAGES << PAGE_SHIFT);
}

/* Each gauge by itself, up or down, by a step or more. */
static void test_gauges_moved(struct kunit *test)
{
	const struct freehint_gauges old = { SZ_8M, SZ_8M, SZ_8M, SZ_8M, SZ_8M, SZ_8M };
	struct freehint_gauges now;
	unsigned int i;

	KUNIT_EXPECT_FALSE(test, fh_gauges_moved(&old, &old, SZ_2M));
	for (i = 0; i < sizeof(now) / sizeof(u64); i++) {
		u64 *gauge = (u64 *)&now + i;

		now = old;
		*gauge -= SZ_2M - 1;
		KUNIT_EXPECT_FALSE(test, fh_gauges_moved(&old, &now, SZ_2M));
		*gauge -= 1;
		KUNIT_EXPECT_TRUE(test, fh_gauges_moved(&old, &now, SZ_2M));
		*gauge += SZ_4M;
		KUNIT_EXPECT_TRUE(test, fh_gauges_moved(&old, &now, SZ_2M));
	}
}

static struct kunit_case freehint_gauges_cases[] = {
	KUNIT_CASE(test_gauges_follow_states),
	KUNIT_CASE(test_gauges_leave_out_held),
	KUNIT_CASE(test_gauges_stopped),
	KUNIT_CASE(test_gauges_stuck),
	KUNIT_CASE(test_gauges_reused),
	KUNIT_CASE(test_gauges_moved),
	{ }
};

static struct kunit_suite freehint_gauges_suite = {
	.name = "freehint_gauges",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_gauges_cases,
};

kunit_test_suite(freehint_gauges_suite);
