// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, ranges and the watermark guard.
 */
#include <kunit/test.h>
#include <linux/sizes.h>

#include "fake.h"

static void expect_range(struct kunit *test, unsigned int i,
			 unsigned long granule, unsigned long nr)
{
	const struct freehint_hint *hint = ((struct fake *)test->priv)->hint;

	KUNIT_ASSERT_LT(test, i, hint->nr_ranges);
	KUNIT_EXPECT_EQ(test, hint->ranges[i].pfn, at(granule));
	KUNIT_EXPECT_EQ(test, hint->ranges[i].nr_pages, nr * GPAGES);
}

/* Neighbours are one range whatever blocks they are on the lists. */
static void test_coalesce(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 3, 6);
	free_granules(fake, 12, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 2);
	expect_range(test, 0, 3, 6);
	expect_range(test, 1, 12, 1);
	answer(fake, FREEHINT_DISCARDED, false);
}

static void test_coalesce_within_section(struct kunit *test)
{
	const unsigned long last = PAGES_PER_SECTION / GPAGES - 1;
	struct fake *fake = test->priv;

	free_granules(fake, last, 2);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 2);
	expect_range(test, 0, last, 1);
	expect_range(test, 1, last + 1, 1);
	answer(fake, FREEHINT_DISCARDED, false);
}

/*
 * A run is what one range could name: it goes on over the hints of a round, ends
 * with a section, and does not go on in the next round.
 */
static void test_runs(struct kunit *test)
{
	const unsigned long last = PAGES_PER_SECTION / GPAGES - 1;
	struct fake *fake = test->priv;

	free_granules(fake, 3, 6);
	free_granules(fake, last, 2);
	promote(fake);
	/* Room for no more than the first four. */
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], 32 * GPAGES);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_pages, 4 * GPAGES);
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->runs, 1);

	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], 1L << 24);
	KUNIT_ASSERT_TRUE(test, fh_fill(fake->fz, fake->hint));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 3);
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->runs, 3);

	free_granules(fake, 9, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->runs, 4);
}

/* A hint that is full leaves the rest for the next one, which goes on there. */
static void test_full_hint(struct kunit *test)
{
	struct fake *fake = test->priv;
	unsigned long i;

	for (i = 0; i < MAX_RANGES + 2; i++)
		free_granules(fake, 2 * i, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, MAX_RANGES);
	answer(fake, FREEHINT_DISCARDED, false);

	KUNIT_ASSERT_TRUE(test, fh_fill(fake->fz, fake->hint));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 2);
	expect_range(test, 0, 2 * MAX_RANGES, 1);
	answer(fake, FREEHINT_DISCARDED, false);
}

/* Part of a free block is hinted, the other part was before. */
static void test_half_a_block(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	free_granules(fake, 5, 1);
	promote(fake);

	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 1);
	expect_range(test, 0, 5, 1);
	KUNIT_EXPECT_EQ(test, fake->order[unit(at(4))], (s8)G);
	EXPECT_STATE(test, 4, FH_HINTED);
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->order[unit(at(4))], (s8)(G + 1));
}

/* A bit that lies is dropped, and counted. */
static void test_stale_bit(struct kunit *test)
{
	struct fake *fake = test->priv;

	spin_lock_irq(&fake->zone.lock);
	fh_note_free(fake->fz, at(4), G);
	spin_unlock_irq(&fake->zone.lock);
	promote(fake);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	EXPECT_STATE(test, 4, NOTHING);
	KUNIT_EXPECT_EQ(test, fake->fz->stale, 1);
}

/* What must stay where it is, is passed over and stays pending. */
static void test_untakeable(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	free_granules(fake, 6, 1);
	promote(fake);
	fake->locked = at(4);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_ranges, 1);
	expect_range(test, 0, 6, 1);
	EXPECT_STATE(test, 4, FH_AGED);
	answer(fake, FREEHINT_DISCARDED, false);
}

static void test_guard_watermark(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	promote(fake);

	fake->zone._watermark[WMARK_HIGH] =
		atomic_long_read(&fake->zone.vm_stat[NR_FREE_PAGES]);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	KUNIT_EXPECT_TRUE(test, fake->fz->guarded);

	fake->zone._watermark[WMARK_HIGH] -= 2 * GPAGES;
	KUNIT_EXPECT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
}

static void test_guard_terms(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct zone *zone = &fake->zone;
	long free = atomic_long_read(&zone->vm_stat[NR_FREE_PAGES]);

	free_granules(fake, 4, 1);
	promote(fake);

	zone->watermark_boost = free;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	zone->watermark_boost = 0;

	zone->nr_free_highatomic = free;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	zone->nr_free_highatomic = 0;

	atomic_long_set(&zone->vm_stat[NR_FREE_CMA_PAGES], free);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	atomic_long_set(&zone->vm_stat[NR_FREE_CMA_PAGES], 0);

	KUNIT_EXPECT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
}

/* Of what is kept from higher classes, which can be all that there is, a little. */
static void test_guard_lowmem_reserve(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct zone *zone = &fake->zone;

	free_granules(fake, 0, 64);
	promote(fake);
	atomic_long_set(&zone->vm_stat[NR_FREE_PAGES], 256 * GPAGES);
	zone->lowmem_reserve[MAX_NR_ZONES - 1] = 1024 * GPAGES;
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 8);
	KUNIT_EXPECT_TRUE(test, fake->fz->guarded);
	answer(fake, FREEHINT_DISCARDED, false);

	/* But none of what is below the watermark. */
	zone->_watermark[WMARK_HIGH] = 256 * GPAGES;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	zone->_watermark[WMARK_HIGH] -= 2 * GPAGES;
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 2);
	answer(fake, FREEHINT_DISCARDED, false);
}

/* At most an eighth of what is free above the guard is away at a time. */
static void test_guard_share(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 0, 64);
	promote(fake);
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], 64 * GPAGES);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 8);
	answer(fake, FREEHINT_DISCARDED, false);
}

/* So many granules are free in one piece, none of them next to another. */
static void set_whole(struct fake *fake, unsigned long granules)
{
	fake->zone.free_area[MAX_PAGE_ORDER].nr_free = 0;
	fake->zone.free_area[G].nr_free = granules;
}

/* Nor of what is free in whole granules, however much there is in smaller pieces. */
static void test_guard_share_of_whole(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 0, 64);
	promote(fake);
	set_whole(fake, 32);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 4);
	answer(fake, FREEHINT_DISCARDED, false);
}

/* However much is free, not more than 256 MiB are away at a time, in two hints. */
static void test_guard_cap(struct kunit *test)
{
	struct freehint_hint *second = fake_hint_alloc(test, MAX_RANGES);
	struct freehint_hint *third = fake_hint_alloc(test, MAX_RANGES);
	struct fake *fake = test->priv;

	free_granules(fake, 0, FAKE_SECTIONS * PAGES_PER_SECTION / GPAGES);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_ASSERT_TRUE(test, fh_fill(fake->fz, second));
	KUNIT_EXPECT_EQ(test, fake->hint->nr_pages, SZ_128M >> PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, second->nr_pages, SZ_128M >> PAGE_SHIFT);
	KUNIT_EXPECT_FALSE(test, fh_fill(fake->fz, third));
	KUNIT_EXPECT_TRUE(test, fake->fz->guarded);

	/* What is back makes room. */
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_TRUE(test, fh_fill(fake->fz, third));
	fh_give_back(third, true);
	fh_give_back(second, true);
}

/* A device that throttles is given half as much each time, and at last a granule. */
static void test_slow_device(struct kunit *test)
{
	struct fake *fake = test->priv;
	unsigned long in_flight = 8;

	free_granules(fake, 0, 64);
	promote(fake);
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], 64 * GPAGES);
	while (in_flight > 1) {
		KUNIT_ASSERT_TRUE(test, fill(fake));
		KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], in_flight);
		answer(fake, FREEHINT_THROTTLED, false);
		in_flight /= 2;
	}
	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 1);
	answer(fake, FREEHINT_DISCARDED, false);

	KUNIT_ASSERT_TRUE(test, fill(fake));
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 2);
	answer(fake, FREEHINT_DISCARDED, false);
}

static void test_guard_last_granules(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 0, 4);
	promote(fake);
	set_whole(fake, 8);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	set_whole(fake, 9);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
}

/*
 * The driver found the answer to be of the present epoch, and that epoch ended before
 * all of the memory was back: what comes back later is not known to be discarded.
 */
static void test_epoch_moves_while_giving_back(struct kunit *test)
{
	struct freehint_hint *second = fake_hint_alloc(test, MAX_RANGES);
	struct fake *fake = test->priv;
	unsigned long i;

	free_granules(fake, 0, 8);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	free_granules(fake, 8, 8);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fh_fill(fake->fz, second));
	answer(fake, FREEHINT_DISCARDED, false);
	for (i = 0; i < 8; i++)
		EXPECT_STATE(test, i, FH_HINTED);

	fh_resync(fake->fz);
	second->ranges[0].verdict = FREEHINT_DISCARDED;
	fh_give_back(second, false);
	for (i = 8; i < 16; i++)
		EXPECT_STATE(test, i, FH_AGED);
}

static struct kunit_case freehint_collect_cases[] = {
	KUNIT_CASE(test_coalesce),
	KUNIT_CASE(test_coalesce_within_section),
	KUNIT_CASE(test_runs),
	KUNIT_CASE(test_full_hint),
	KUNIT_CASE(test_half_a_block),
	KUNIT_CASE(test_stale_bit),
	KUNIT_CASE(test_untakeable),
	KUNIT_CASE(test_guard_watermark),
	KUNIT_CASE(test_guard_terms),
	KUNIT_CASE(test_guard_lowmem_reserve),
	KUNIT_CASE(test_guard_share),
	KUNIT_CASE(test_guard_share_of_whole),
	KUNIT_CASE(test_guard_cap),
	KUNIT_CASE(test_slow_device),
	KUNIT_CASE(test_guard_last_granules),
	KUNIT_CASE(test_epoch_moves_while_giving_back),
	{ }
};

static struct kunit_suite freehint_collect_suite = {
	.name = "freehint_collect",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_collect_cases,
};

kunit_test_suite(freehint_collect_suite);
