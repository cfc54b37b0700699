// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, states.
 */
#include <kunit/test.h>

#include "fake.h"

static void test_free_is_pending(struct kunit *test)
{
	struct fake *fake = test->priv;

	EXPECT_STATE(test, 4, NOTHING);
	free_granules(fake, 4, 1);
	EXPECT_STATE(test, 4, FH_YOUNG);
	EXPECT_STATE(test, 3, NOTHING);
	EXPECT_STATE(test, 5, NOTHING);
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_YOUNG], 1);
	KUNIT_EXPECT_EQ(test, fake->fz->burst, 1);
}

/* A granule that is put together from halves is pending once it is whole. */
static void test_merged_from_halves(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake_free(fake, at(4), G - 1);
	EXPECT_STATE(test, 4, NOTHING);

	fake_free(fake, at(4) + GPAGES / 2, G - 1);
	EXPECT_STATE(test, 4, FH_YOUNG);
}

/* Memory is hinted after one to two periods, not before. */
static void test_two_generations(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	promote(fake);
	EXPECT_STATE(test, 4, FH_AGED);
	free_granules(fake, 6, 1);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	EXPECT_STATE(test, 4, FH_INFLIGHT);
	EXPECT_STATE(test, 6, FH_YOUNG);
	KUNIT_EXPECT_EQ(test, fake->hint->nr_pages, GPAGES);
	answer(fake, FREEHINT_DISCARDED, false);
}

static void test_merge_keeps_state(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	EXPECT_STATE(test, 4, FH_HINTED);

	/* 4 and 5 are buddies: one free block now. */
	free_granules(fake, 5, 1);
	KUNIT_EXPECT_EQ(test, fake->order[unit(at(4))], (s8)(G + 1));
	EXPECT_STATE(test, 4, FH_HINTED);
	EXPECT_STATE(test, 5, FH_YOUNG);
}

static void test_split_keeps_state(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 2);
	promote(fake);
	alloc_pages_at(fake, at(5), G);
	EXPECT_STATE(test, 4, FH_AGED);
	EXPECT_STATE(test, 5, NOTHING);
}

/* A single page ends a granule's being free, and only that granule's. */
static void test_partial_alloc(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 2);
	alloc_pages_at(fake, at(4) + GPAGES / 2, G - 1);
	EXPECT_STATE(test, 4, NOTHING);
	EXPECT_STATE(test, 5, FH_YOUNG);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.spared, 1);
}

static void check_verdict(struct kunit *test, enum freehint_verdict verdict,
			  bool stale, enum fh_plane want)
{
	struct fake *fake = test->priv;

	free_granules(fake, 8, 2);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, verdict, stale);
	EXPECT_STATE(test, 8, want);
	EXPECT_STATE(test, 9, want);
	KUNIT_EXPECT_EQ(test, fake->fz->nr[want], 2);
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_INFLIGHT], 0);
	alloc_pages_at(fake, at(8), G + 1);
	EXPECT_STATE(test, 8, want == FH_NEVER ? FH_NEVER : NOTHING);
}

static void test_verdict_discarded(struct kunit *test)
{
	check_verdict(test, FREEHINT_DISCARDED, false, FH_HINTED);
}

static void test_verdict_declined(struct kunit *test)
{
	check_verdict(test, FREEHINT_DECLINED, false, FH_HELD);
}

static void test_verdict_failed(struct kunit *test)
{
	check_verdict(test, FREEHINT_FAILED, false, FH_HELD);
}

static void test_verdict_throttled(struct kunit *test)
{
	check_verdict(test, FREEHINT_THROTTLED, false, FH_AGED);
}

/* An answer under an epoch that is over is none, whatever it says. */
static void test_verdict_stale(struct kunit *test)
{
	enum freehint_verdict verdict;

	for (verdict = 0; verdict < FREEHINT_NR_VERDICTS; verdict++)
		check_verdict(test, verdict, true, FH_AGED);
}

/* Never outlives an allocation; freed again it is not pending. */
static void test_verdict_never(struct kunit *test)
{
	struct fake *fake = test->priv;

	check_verdict(test, FREEHINT_NEVER, false, FH_NEVER);
	free_granules(fake, 8, 2);
	EXPECT_STATE(test, 8, FH_NEVER);
	promote(fake);
	KUNIT_EXPECT_FALSE(test, fill(fake));
}

/* What the device declined is left alone until it says otherwise. */
static void test_held_is_not_hinted(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 8, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DECLINED, false);
	promote(fake);
	KUNIT_EXPECT_FALSE(test, fill(fake));
}

static void test_wipe_spares_in_flight(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 4, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	free_granules(fake, 6, 1);

	spin_lock_irq(&fake->zone.lock);
	fh_wipe_chunk(fake->fz, 0);
	spin_unlock_irq(&fake->zone.lock);
	EXPECT_STATE(test, 4, FH_INFLIGHT);
	EXPECT_STATE(test, 6, NOTHING);
	KUNIT_EXPECT_EQ(test, fake->fz->nr[FH_YOUNG], 0);
	answer(fake, FREEHINT_DISCARDED, true);
	EXPECT_STATE(test, 4, FH_AGED);
}

/* Those who wait for a range see what is in flight in it, and nothing else. */
static void test_any_in_flight(struct kunit *test)
{
	const unsigned long last = PAGES_PER_SECTION / GPAGES - 1;
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	free_granules(fake, last + 3, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));

	spin_lock_irq(&fake->zone.lock);
	KUNIT_EXPECT_FALSE(test, fh_any(fz, at(0), at(last + 3), FH_INFLIGHT));
	KUNIT_EXPECT_TRUE(test, fh_any(fz, at(0), at(last + 3) + 1, FH_INFLIGHT));
	KUNIT_EXPECT_TRUE(test, fh_any(fz, at(last + 4) - 1, at(last + 4), FH_INFLIGHT));
	KUNIT_EXPECT_FALSE(test, fh_any(fz, at(last + 4), FAKE_END + 1, FH_INFLIGHT));
	KUNIT_EXPECT_FALSE(test, fh_any(fz, 0, at(0), FH_INFLIGHT));
	spin_unlock_irq(&fake->zone.lock);
	answer(fake, FREEHINT_DISCARDED, false);
}

/* Sections that are not tracked, below, above and gone, are no trouble. */
static void test_untracked(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	spin_lock_irq(&fake->zone.lock);
	KUNIT_EXPECT_EQ(test, fh_note_free(fz, FAKE_START - GPAGES, G), 0);
	KUNIT_EXPECT_EQ(test, fh_note_free(fz, FAKE_END, G), 0);
	fh_note_taken(fz, FAKE_END, G);
	spin_unlock_irq(&fake->zone.lock);

	free_granules(fake, 0, 1);
	fh_zone_del_section(fz, FAKE_SECTION);
	EXPECT_STATE(test, 0, NOTHING);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_YOUNG], 0);
	promote(fake);
	KUNIT_EXPECT_FALSE(test, fill(fake));
}

/* The next young granule, however often the walk lets go of the lock. */
static unsigned long next_young(struct fh_zone *fz, unsigned long pfn)
{
	while (!fh_next(fz, FH_YOUNG, &pfn) && pfn != FH_NO_PFN)
		;
	return pfn;
}

/* A zone grows at either end; what is known moves along. */
static void test_map_grows(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	free_granules(fake, 4, 1);
	KUNIT_ASSERT_EQ(test, fh_zone_add_section(fz, FAKE_SECTION - 5), 0);
	KUNIT_ASSERT_EQ(test, fh_zone_add_section(fz, FAKE_SECTION + 70), 0);
	EXPECT_STATE(test, 4, FH_YOUNG);

	spin_lock_irq(&fake->zone.lock);
	fh_note_free(fz, section_nr_to_pfn(FAKE_SECTION + 70), G);
	fh_note_free(fz, section_nr_to_pfn(FAKE_SECTION - 5), G);
	KUNIT_EXPECT_EQ(test, next_young(fz, 0),
			section_nr_to_pfn(FAKE_SECTION - 5));
	KUNIT_EXPECT_EQ(test, next_young(fz, FAKE_START), at(4));
	KUNIT_EXPECT_EQ(test, next_young(fz, at(5)),
			section_nr_to_pfn(FAKE_SECTION + 70));
	KUNIT_EXPECT_EQ(test,
			next_young(fz, section_nr_to_pfn(FAKE_SECTION + 70) + GPAGES),
			FH_NO_PFN);
	spin_unlock_irq(&fake->zone.lock);
}

static struct kunit_case freehint_state_cases[] = {
	KUNIT_CASE(test_free_is_pending),
	KUNIT_CASE(test_merged_from_halves),
	KUNIT_CASE(test_two_generations),
	KUNIT_CASE(test_merge_keeps_state),
	KUNIT_CASE(test_split_keeps_state),
	KUNIT_CASE(test_partial_alloc),
	KUNIT_CASE(test_verdict_discarded),
	KUNIT_CASE(test_verdict_declined),
	KUNIT_CASE(test_verdict_failed),
	KUNIT_CASE(test_verdict_throttled),
	KUNIT_CASE(test_verdict_stale),
	KUNIT_CASE(test_verdict_never),
	KUNIT_CASE(test_held_is_not_hinted),
	KUNIT_CASE(test_wipe_spares_in_flight),
	KUNIT_CASE(test_any_in_flight),
	KUNIT_CASE(test_untracked),
	KUNIT_CASE(test_map_grows),
	{ }
};

static struct kunit_suite freehint_state_suite = {
	.name = "freehint_state",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_state_cases,
};

kunit_test_suite(freehint_state_suite);
