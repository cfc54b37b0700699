// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests.
 *
 * They run the engine's own code on a zone that does not exist: a lock, a few
 * counters and, for the random sequences, a buddy allocator of a page of code
 * whose blocks stand in for the real free lists.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/prandom.h>

#include "hooks.h"
#include "internal.h"

/* Not at the start of the map, and not where the real zones would matter. */
#define FAKE_SECTION	1000UL
#define FAKE_SECTIONS	3UL
#define FAKE_START	section_nr_to_pfn(FAKE_SECTION)
#define FAKE_END	section_nr_to_pfn(FAKE_SECTION + FAKE_SECTIONS)

/* 2 MiB on 4 KiB pages; what matters is that there are smaller and larger. */
#define G		(MAX_PAGE_ORDER - 1)
#define GPAGES		BIT(G)

#define MAX_RANGES	8

/**
 * struct fake - what a test works with
 * @zone: has a lock and counters, and no pages
 * @fz: tracks it
 * @hint: room for MAX_RANGES ranges
 * @order: the fake allocator: order of the free block that starts at this unit
 *	of GPAGES / 2 pages; or a negative value
 * @locked: the block at this pfn may not be taken
 */
struct fake {
	struct zone zone;
	struct fh_zone *fz;
	struct freehint_hint *hint;
	s8 *order;
	unsigned long locked;
};

static unsigned long at(unsigned long granule)
{
	return FAKE_START + granule * GPAGES;
}

/*
 * The fake allocator.
 */

#define UNIT_ORDER	(G - 1)
#define UNITS		(FAKE_SECTIONS * PAGES_PER_SECTION >> UNIT_ORDER)
#define NO_BLOCK	(-1)

static unsigned long unit(unsigned long pfn)
{
	return (pfn - FAKE_START) >> UNIT_ORDER;
}

/* The free block that covers a pfn; its order is returned, or NO_BLOCK. */
static int fake_find(struct fake *fake, unsigned long pfn, unsigned long *head)
{
	int order;

	for (order = UNIT_ORDER; order <= MAX_PAGE_ORDER; order++) {
		*head = ALIGN_DOWN(pfn, 1UL << order);
		if (fake->order[unit(*head)] >= order)
			return fake->order[unit(*head)];
	}
	return NO_BLOCK;
}

/* Takes a part out of a free block; the rest stays free. */
static void fake_carve(struct fake *fake, unsigned long head, int high,
		       unsigned long pfn, int order)
{
	fake->order[unit(head)] = NO_BLOCK;
	while (high > order) {
		unsigned long rest = head + (1UL << --high);

		if (pfn >= rest)
			swap(rest, head);
		fake->order[unit(rest)] = high;
	}
}

static unsigned long fake_merge(struct fake *fake, unsigned long pfn, int *order)
{
	while (*order < MAX_PAGE_ORDER) {
		unsigned long buddy = pfn ^ (1UL << *order);

		if (fake->order[unit(buddy)] != *order)
			break;
		fake->order[unit(buddy)] = NO_BLOCK;
		pfn &= ~(1UL << *order);
		(*order)++;
	}
	fake->order[unit(pfn)] = *order;
	return pfn;
}

/* As __free_one_page() and its hook. */
static void fake_free(struct fake *fake, unsigned long pfn, int order)
{
	pfn = fake_merge(fake, pfn, &order);
	if (order >= (int)G)
		fh_note_free(fake->fz, pfn, order);
}

/* As expand() and its hook. Returns whether there was something to allocate. */
static bool fake_alloc(struct fake *fake, unsigned long pfn, int order)
{
	unsigned long head;
	int high = fake_find(fake, pfn, &head);

	if (high < order)
		return false;
	fake_carve(fake, head, high, pfn, order);
	if (high >= (int)G)
		fh_note_taken(fake->fz, pfn, order);
	return true;
}

static int fake_take_block(struct fh_zone *fz, unsigned long pfn,
			   unsigned int order)
{
	struct fake *fake = kunit_get_current_test()->priv;
	unsigned long head;
	int high = fake_find(fake, pfn, &head);

	if (high < (int)fz->order)
		return -ENOENT;
	if (pfn == fake->locked)
		return -EBUSY;
	order = min_t(int, order, high);
	fake_carve(fake, head, high, pfn, order);
	atomic_long_sub(BIT(order), &fake->zone.vm_stat[NR_FREE_PAGES]);
	return order;
}

static void fake_give_block(struct fh_zone *fz, unsigned long pfn,
			    unsigned int order)
{
	struct fake *fake = kunit_get_current_test()->priv;

	atomic_long_add(BIT(order), &fake->zone.vm_stat[NR_FREE_PAGES]);
	fake_free(fake, pfn, order);
}

/*
 * Helpers. The lock is the fake zone's: nobody else is there.
 */

static void free_granules(struct fake *fake, unsigned long first, unsigned long nr)
{
	spin_lock_irq(&fake->zone.lock);
	while (nr--)
		fake_free(fake, at(first++), G);
	spin_unlock_irq(&fake->zone.lock);
}

static void alloc_pages_at(struct fake *fake, unsigned long pfn, int order)
{
	bool done;

	spin_lock_irq(&fake->zone.lock);
	done = fake_alloc(fake, pfn, order);
	spin_unlock_irq(&fake->zone.lock);
	KUNIT_ASSERT_TRUE(kunit_get_current_test(), done);
}

static void promote(struct fake *fake)
{
	unsigned long sec = 0;

	spin_lock_irq(&fake->zone.lock);
	while (fh_promote_some(fake->fz, &sec))
		;
	spin_unlock_irq(&fake->zone.lock);
}

static void rotate(struct fake *fake, bool all)
{
	unsigned long sec = 0;

	spin_lock_irq(&fake->zone.lock);
	while (fh_rotate_some(fake->fz, &sec, all))
		;
	fake->fz->window_end = jiffies + FH_WINDOW;
	spin_unlock_irq(&fake->zone.lock);
}

static bool fill(struct fake *fake)
{
	fake->fz->cursor = 0;
	return fh_fill(fake->fz, fake->hint);
}

static void answer(struct fake *fake, enum freehint_verdict verdict, bool stale)
{
	unsigned int i;

	for (i = 0; i < fake->hint->nr_ranges; i++)
		fake->hint->ranges[i].verdict = verdict;
	fh_give_back(fake->hint, stale);
}

/* The one state of a granule, FH_NR_PLANES for none, or -1 for several. */
static int state(struct fake *fake, unsigned long granule)
{
	int found = FH_NR_PLANES;
	enum fh_plane plane;

	spin_lock_irq(&fake->zone.lock);
	for (plane = 0; plane <= FH_NEVER; plane++)
		if (fh_test(fake->fz, at(granule), G, plane))
			found = found == FH_NR_PLANES ? (int)plane : -1;
	spin_unlock_irq(&fake->zone.lock);
	return found;
}

#define EXPECT_STATE(test, granule, want) \
	KUNIT_EXPECT_EQ(test, state((test)->priv, granule), (int)(want))
#define NOTHING FH_NR_PLANES

/*
 * States.
 */

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

	spin_lock_irq(&fake->zone.lock);
	fake_free(fake, at(4), G - 1);
	spin_unlock_irq(&fake->zone.lock);
	EXPECT_STATE(test, 4, NOTHING);

	spin_lock_irq(&fake->zone.lock);
	fake_free(fake, at(4) + GPAGES / 2, G - 1);
	spin_unlock_irq(&fake->zone.lock);
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
	KUNIT_EXPECT_EQ(test, fh_next(fz, FH_YOUNG, 0),
			section_nr_to_pfn(FAKE_SECTION - 5));
	KUNIT_EXPECT_EQ(test, fh_next(fz, FH_YOUNG, FAKE_START), at(4));
	KUNIT_EXPECT_EQ(test, fh_next(fz, FH_YOUNG, at(5)),
			section_nr_to_pfn(FAKE_SECTION + 70));
	KUNIT_EXPECT_EQ(test,
			fh_next(fz, FH_YOUNG,
				section_nr_to_pfn(FAKE_SECTION + 70) + GPAGES),
			FH_NO_PFN);
	spin_unlock_irq(&fake->zone.lock);
}

/*
 * Ranges.
 */

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

/*
 * The watermark guard.
 */

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

	zone->lowmem_reserve[MAX_NR_ZONES - 1] = free;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	zone->lowmem_reserve[MAX_NR_ZONES - 1] = 0;

	zone->nr_free_highatomic = free;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	zone->nr_free_highatomic = 0;

	atomic_long_set(&zone->vm_stat[NR_FREE_CMA_PAGES], free);
	KUNIT_EXPECT_FALSE(test, fill(fake));
	atomic_long_set(&zone->vm_stat[NR_FREE_CMA_PAGES], 0);

	KUNIT_EXPECT_TRUE(test, fill(fake));
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

static void test_guard_last_granules(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_granules(fake, 0, 4);
	promote(fake);
	fake->zone.free_area[MAX_PAGE_ORDER].nr_free = 0;
	fake->zone.free_area[G].nr_free = 8;
	KUNIT_EXPECT_FALSE(test, fill(fake));
	fake->zone.free_area[G].nr_free = 9;
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
}

/*
 * Reuse and pace.
 */

static void hint_and_reuse(struct kunit *test, unsigned long granule)
{
	struct fake *fake = test->priv;

	fake->fz->reuse = (struct fh_reuse) { };
	free_granules(fake, granule, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.hinted, 1);
}

static void test_reuse_window(struct kunit *test)
{
	struct fake *fake = test->priv;

	rotate(fake, true);
	hint_and_reuse(test, 4);
	alloc_pages_at(fake, at(4), G - 1);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);

	/* In the next window it still counts, in the one after it does not. */
	hint_and_reuse(test, 6);
	hint_and_reuse(test, 8);
	rotate(fake, false);
	alloc_pages_at(fake, at(6), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);
	rotate(fake, false);
	alloc_pages_at(fake, at(8), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);
}

/* The worker may be asleep while windows end. */
static void test_reuse_window_asleep(struct kunit *test)
{
	struct fake *fake = test->priv;

	rotate(fake, true);
	hint_and_reuse(test, 4);
	fake->fz->window_end = jiffies - FH_WINDOW / 2;
	alloc_pages_at(fake, at(4), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);

	hint_and_reuse(test, 6);
	fake->fz->window_end = jiffies - FH_WINDOW;
	alloc_pages_at(fake, at(6), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 0);
}

static void test_pace_bounds(struct kunit *test)
{
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	fh_pace_bounds(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	fh_pace_bounds(&pace, 8000, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 8000);
	fh_pace_bounds(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 5000);
}

/* A guest that wants everything back is left alone longer, up to a limit. */
static void test_pace_backs_off(struct kunit *test)
{
	const struct fh_reuse hot = { .hinted = 256, .reused = 200 };
	struct fh_pace pace = { };
	unsigned int age = 100;

	fh_pace_bounds(&pace, 100, 5000);
	while (age < 5000) {
		age = min(2 * age, 5000U);
		fh_pace_judge(&pace, &hot, 0);
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
	}
	fh_pace_judge(&pace, &hot, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 5000);
}

/* Evidence adds up over calls until there is enough of it. */
static void test_pace_needs_evidence(struct kunit *test)
{
	const struct fh_reuse some = { .hinted = FH_BURST / 2, .reused = FH_BURST / 2 };
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	fh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
}

static void test_pace_speeds_up(struct kunit *test)
{
	const struct fh_reuse none = { };
	struct fh_pace pace = { .age_ms = 3200 };
	unsigned long now = 0;

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &none, now + FH_WINDOW - 1);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	now += FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 1600);
	/* Two windows slept through. */
	now += 2 * FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 400);
	now += 1000 * FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
}

/* An age that spares a loop its memory stays, although nothing is reused. */
static void test_pace_holds(struct kunit *test)
{
	const struct fh_reuse spared = { .spared = 256 };
	struct fh_pace pace = { .age_ms = 3200 };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &spared, FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
}

/*
 * Random sequences.
 */

#define STEPS		20000
#define GRANULES	(UNITS / 2)

/**
 * struct model - the same rules, one granule at a time
 * @state: of each granule, NOTHING for none
 */
struct model {
	u8 state[GRANULES];
};

static bool model_is_free(struct fake *fake, unsigned long granule)
{
	unsigned long head;

	return fake_find(fake, at(granule), &head) >= (int)G;
}

static void model_after_free(struct fake *fake, struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == NOTHING && model_is_free(fake, i))
			model->state[i] = FH_YOUNG;
}

static void model_after_alloc(struct fake *fake, struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] != FH_NEVER && model->state[i] != FH_INFLIGHT &&
		    !model_is_free(fake, i))
			model->state[i] = NOTHING;
}

static void model_promote(struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == FH_YOUNG)
			model->state[i] = FH_AGED;
}

/* For each range: free before, of age, in order, not joined, not twice. */
static void model_take(struct kunit *test, struct model *model)
{
	const struct freehint_hint *hint = ((struct fake *)test->priv)->hint;
	unsigned long pfn, last = 0;
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++) {
		const struct freehint_range *range = &hint->ranges[i];
		unsigned long end = range->pfn + range->nr_pages;

		KUNIT_ASSERT_GE(test, range->pfn, last);
		if (range->pfn == last)
			KUNIT_ASSERT_EQ(test, last % PAGES_PER_SECTION, 0);
		last = end;
		for (pfn = range->pfn; pfn < end; pfn += GPAGES) {
			u8 *s = &model->state[(pfn - FAKE_START) / GPAGES];

			KUNIT_ASSERT_EQ(test, *s, FH_AGED);
			*s = FH_INFLIGHT;
		}
	}
}

static void model_give(struct model *model, enum freehint_verdict verdict)
{
	static const u8 after[] = {
		[FREEHINT_DECLINED] = FH_HELD, [FREEHINT_THROTTLED] = FH_AGED,
		[FREEHINT_FAILED] = FH_HELD, [FREEHINT_NEVER] = FH_NEVER,
		[FREEHINT_DISCARDED] = FH_HINTED,
	};
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == FH_INFLIGHT)
			model->state[i] = after[verdict];
}

static void model_compare(struct kunit *test, struct model *model)
{
	struct fake *fake = test->priv;
	unsigned long count[FH_NEVER + 1] = { }, i;
	enum fh_plane plane;

	for (i = 0; i < GRANULES; i++) {
		KUNIT_ASSERT_EQ_MSG(test, state(fake, i), model->state[i],
				    "granule %lu", i);
		KUNIT_ASSERT_FALSE(test, model->state[i] == FH_INFLIGHT &&
				   model_is_free(fake, i));
		if (model->state[i] <= FH_NEVER)
			count[model->state[i]]++;
	}
	for (plane = 0; plane <= FH_NEVER; plane++)
		KUNIT_ASSERT_EQ(test, count[plane], fake->fz->nr[plane]);
}

static unsigned int random(struct rnd_state *rnd, unsigned int below)
{
	return prandom_u32_state(rnd) % below;
}

static void random_alloc(struct fake *fake, struct model *model,
			 struct rnd_state *rnd)
{
	int order = UNIT_ORDER + random(rnd, MAX_PAGE_ORDER - UNIT_ORDER + 1);
	unsigned long pfn = FAKE_START + ((unsigned long)random(rnd, UNITS) << UNIT_ORDER);

	spin_lock_irq(&fake->zone.lock);
	fake_alloc(fake, ALIGN_DOWN(pfn, 1UL << order), order);
	spin_unlock_irq(&fake->zone.lock);
	model_after_alloc(fake, model);
}

/* Frees one unit that is neither free nor in flight, if this is one. */
static void random_free(struct fake *fake, struct model *model,
			struct rnd_state *rnd)
{
	unsigned long pfn = FAKE_START + ((unsigned long)random(rnd, UNITS) << UNIT_ORDER);
	unsigned long head;

	if (fake_find(fake, pfn, &head) != NO_BLOCK ||
	    model->state[(pfn - FAKE_START) / GPAGES] == FH_INFLIGHT)
		return;
	spin_lock_irq(&fake->zone.lock);
	fake_free(fake, pfn, UNIT_ORDER);
	spin_unlock_irq(&fake->zone.lock);
	model_after_free(fake, model);
}

/* While a hint is out, allocations and frees go on around it. */
static void test_random(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct model *model = kunit_kzalloc(test, sizeof(*model), GFP_KERNEL);
	enum freehint_verdict verdict;
	struct rnd_state rnd;
	bool out = false;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, model);
	memset(model->state, NOTHING, sizeof(model->state));
	prandom_seed_state(&rnd, 20);

	for (i = 0; i < STEPS; i++) {
		switch (random(&rnd, 16)) {
		case 0:
			promote(fake);
			model_promote(model);
			break;
		case 1:
			if (out)
				break;
			out = fill(fake);
			model_take(test, model);
			break;
		case 2:
			if (!out)
				break;
			verdict = random(&rnd, 8);
			/* Not too many for good, or nothing is left to test. */
			if (verdict >= FREEHINT_NR_VERDICTS ||
			    (verdict == FREEHINT_NEVER && random(&rnd, 16)))
				verdict = FREEHINT_DISCARDED;
			answer(fake, verdict, false);
			model_give(model, verdict);
			out = false;
			break;
		case 3 ... 6:
			random_alloc(fake, model, &rnd);
			break;
		default:
			random_free(fake, model, &rnd);
		}
		if (i % 64 == 0)
			model_compare(test, model);
	}
	if (out)
		answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->stale, 0);
}

static int fake_init(struct kunit *test)
{
	struct fake *fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);
	unsigned long i;

	KUNIT_ASSERT_NOT_NULL(test, fake);
	test->priv = fake;

	spin_lock_init(&fake->zone.lock);
	fake->zone.zone_start_pfn = FAKE_START;
	fake->zone.spanned_pages = FAKE_END - FAKE_START;
	/* Plenty, so that the guard is out of the way unless it is tested. */
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], 1L << 24);
	fake->zone.free_area[MAX_PAGE_ORDER].nr_free = 1UL << 12;

	fake->order = kunit_kmalloc(test, UNITS, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake->order);
	memset(fake->order, NO_BLOCK, UNITS);

	fake->hint = kunit_kzalloc(test, struct_size(fake->hint, ranges, MAX_RANGES),
				   GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake->hint);
	fake->hint->max_ranges = MAX_RANGES;

	fake->fz = fh_zone_alloc(&fake->zone, G);
	KUNIT_ASSERT_NOT_NULL(test, fake->fz);
	fake->zone.freehint = fake->fz;
	for (i = 0; i < FAKE_SECTIONS; i++)
		KUNIT_ASSERT_EQ(test, fh_zone_add_section(fake->fz, FAKE_SECTION + i), 0);

	kunit_activate_static_stub(test, fh_take_block, fake_take_block);
	kunit_activate_static_stub(test, fh_give_block, fake_give_block);
	return 0;
}

static void fake_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	if (fake)
		fh_zone_free(fake->fz);
}

static struct kunit_case freehint_cases[] = {
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
	KUNIT_CASE(test_coalesce),
	KUNIT_CASE(test_coalesce_within_section),
	KUNIT_CASE(test_full_hint),
	KUNIT_CASE(test_half_a_block),
	KUNIT_CASE(test_stale_bit),
	KUNIT_CASE(test_untakeable),
	KUNIT_CASE(test_guard_watermark),
	KUNIT_CASE(test_guard_terms),
	KUNIT_CASE(test_guard_share),
	KUNIT_CASE(test_guard_last_granules),
	KUNIT_CASE(test_reuse_window),
	KUNIT_CASE(test_reuse_window_asleep),
	KUNIT_CASE(test_pace_bounds),
	KUNIT_CASE(test_pace_backs_off),
	KUNIT_CASE(test_pace_needs_evidence),
	KUNIT_CASE(test_pace_speeds_up),
	KUNIT_CASE(test_pace_holds),
	KUNIT_CASE_SLOW(test_random),
	{ }
};

static struct kunit_suite freehint_suite = {
	.name = "freehint",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_cases,
};
kunit_test_suite(freehint_suite);

MODULE_DESCRIPTION("KUnit tests of free memory hints");
MODULE_LICENSE("GPL");
