// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of what is left alone, of waits, and of what ends.
 */
#include <linux/delay.h>
#include <linux/notifier.h>
#include <linux/oom.h>
#include <linux/page-isolation.h>
#include <linux/workqueue.h>

#include "client.h"

/* The number of blocks that make a burst. */
#define BURST_BLOCKS	(FH_BURST * G / MAX_ORDER_NR_PAGES)

/* No free memory is missed, up to the last section of each zone. */
static void test_rehint_finds_all(struct kunit *test)
{
	unsigned long pfn, missed = 0, found = 0;
	struct zone *zone;

	freehint_rehint();
	for_each_populated_zone(zone) {
		for (pfn = ALIGN(zone->zone_start_pfn, G);
		     pfn + G <= zone_end_pfn(zone); pfn += G) {
			if (!pfn_to_online_page(pfn) || !is_free(pfn))
				continue;
			found++;
			missed += state_of(pfn) != FH_DUE;
		}
	}
	KUNIT_EXPECT_GT(test, found, 64);
	KUNIT_EXPECT_EQ(test, missed, 0);
	settle(test);
}

/* A block of one zone is never found, and taken, under the lock of another. */
static void test_zones_are_apart(struct kunit *test)
{
	unsigned long pfn = free_block(test);
	struct zone *zone = page_zone(pfn_to_page(pfn)), *other;
	unsigned int others = 0;
	struct page *found;

	/* A small machine has memory in one zone only; zones without any will do. */
	for_each_zone(other) {
		if (other == zone)
			continue;
		spin_lock_irq(&other->lock);
		found = fh_find_buddy(other, pfn, ORDER);
		spin_unlock_irq(&other->lock);
		KUNIT_EXPECT_NULL(test, found);
		others++;
	}
	KUNIT_EXPECT_GT(test, others, 0);
	settle(test);
}

/* However much a zone has, the next batch is of another zone that has something. */
static void test_zones_take_turns(struct kunit *test)
{
	struct client *user = test->priv;
	struct zone *zone, *last = NULL;
	unsigned int zones = 0, turn;

	for_each_populated_zone(zone)
		zones++;
	if (zones < 2)
		kunit_skip(test, "all memory is in one zone; try movablecore=128M");

	freehint_rehint();
	for (turn = 0; turn < 4; turn++) {
		KUNIT_ASSERT_EQ(test, freehint_collect(user->batch, G, FREEHINT_NOW), 1);
		return_as(user->batch, FREEHINT_DISCARDED);
		KUNIT_EXPECT_PTR_NE(test, user->batch->zone, last);
		last = user->batch->zone;
	}
	settle(test);
}

#ifdef CONFIG_MEMORY_ISOLATION
/* Whoever isolates memory counts on its free pages staying where they are. */
static void test_isolated_is_left(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), end = pfn + MAX_ORDER_NR_PAGES;
	int mt = get_pageblock_migratetype(pfn_to_page(pfn));

	KUNIT_ASSERT_EQ(test, isolate(pfn, end, mt), 0);
	expect_left(test, pfn);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	/* It can be taken later, and no hook says when. */
	KUNIT_EXPECT_TRUE(test, freehint_worth_a_look());
	unisolate(pfn, end, mt);

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
}
#endif

/* The reserve for allocations that cannot wait is left alone. */
static void test_highatomic_is_left(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), i;
	int mt = get_pageblock_migratetype(pfn_to_page(pfn));

	for (i = pfn; i < pfn + MAX_ORDER_NR_PAGES; i += pageblock_nr_pages)
		set_type(pfn_to_page(i), MIGRATE_HIGHATOMIC);
	expect_left(test, pfn);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	for (i = pfn; i < pfn + MAX_ORDER_NR_PAGES; i += pageblock_nr_pages)
		set_type(pfn_to_page(i), mt);

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
}

#ifdef CONFIG_CMA
/* Turn a free block into one of a CMA area, as there is none here, or back. */
static void change_kind(unsigned long pfn, int mt)
{
	struct page *page = pfn_to_page(pfn);
	struct zone *zone = page_zone(page);
	long nr = mt == MIGRATE_CMA ? MAX_ORDER_NR_PAGES : -MAX_ORDER_NR_PAGES;
	unsigned long i;

	spin_lock_irq(&zone->lock);
	for (i = 0; i < MAX_ORDER_NR_PAGES; i += pageblock_nr_pages)
		set_type(pfn_to_page(pfn + i), mt);
	list_move(&page->buddy_list, &zone->free_area[MAX_PAGE_ORDER].free_list[mt]);
	__mod_zone_page_state(zone, NR_FREE_CMA_PAGES, nr);
	spin_unlock_irq(&zone->lock);
}

/* Otherwise, the next allocation would claim a pageblock of another kind for good. */
static void test_the_last_of_a_kind_stays(struct kunit *test)
{
	unsigned long pfn = free_block(test);
	int mt = get_pageblock_migratetype(pfn_to_page(pfn));

	change_kind(pfn, MIGRATE_CMA);
	/* One half of it can be taken, if the other one stays. */
	expect_left(test, pfn + G);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_DUE);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
	KUNIT_EXPECT_TRUE(test, is_free(pfn + G));
	change_kind(pfn, mt);
	settle(test);
}

/* A zone whose only memory to spare is in a CMA area gives that, and nothing else. */
static void test_cma_only(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, MAX_PAGE_ORDER);
	unsigned long pfns[2] = { free_block(test), page_to_pfn(page) };
	int mt = get_pageblock_migratetype(page);
	struct zone *zone = page_zone(page);
	struct client *user = test->priv;
	unsigned long high = zone->_watermark[WMARK_HIGH], taken = 0, i;

	__free_pages(page, MAX_PAGE_ORDER);
	for (i = 0; i < 2; i++)
		change_kind(pfns[i], MIGRATE_CMA);
	zone->_watermark[WMARK_HIGH] = zone_page_state(zone, NR_FREE_PAGES) -
				       MAX_ORDER_NR_PAGES;

	freehint_rehint();
	while (freehint_collect(user->batch, ALL, FREEHINT_NOW)) {
		for (i = 0; user->batch->zone == zone && i < user->batch->nr_ranges; i++) {
			unsigned long pfn = ALIGN_DOWN(user->batch->ranges[i].pfn,
						       MAX_ORDER_NR_PAGES);

			KUNIT_EXPECT_TRUE(test, pfn == pfns[0] || pfn == pfns[1]);
			taken += user->batch->ranges[i].nr_pages;
		}
		return_as(user->batch, FREEHINT_DISCARDED);
	}
	KUNIT_EXPECT_GE(test, taken, MAX_ORDER_NR_PAGES);

	zone->_watermark[WMARK_HIGH] = high;
	for (i = 0; i < 2; i++)
		change_kind(pfns[i], mt);
	settle(test);
}
#endif

/* Due memory of a zone that yields is looked at again, even if nothing is freed. */
static void test_who_yields_goes_on(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);
	struct zone *zone = page_zone(pfn_to_page(pfn));
	unsigned long high = zone->_watermark[WMARK_HIGH];
	bool goes_on = true;

	zone->_watermark[WMARK_HIGH] = zone_page_state(zone, NR_FREE_PAGES) -
				       8 * MAX_ORDER_NR_PAGES;
	count_vm_event(ALLOCSTALL_MOVABLE);
	while (state_of(pfn) != FH_DUE)
		goes_on = freehint_age(0);
	KUNIT_EXPECT_TRUE(test, goes_on);
	KUNIT_EXPECT_EQ(test, freehint_collect(user->batch, ALL, 0), 0);
	/* It is not to be waited for twice. */
	while (freehint_age(0) && !freehint_collect(user->batch, ALL, 0))
		msleep(100);
	/* The end of the block goes first, and what the zone gives may end there. */
	KUNIT_EXPECT_TRUE(test, has(user->batch, pfn + MAX_ORDER_NR_PAGES - G));
	return_as(user->batch, FREEHINT_DISCARDED);

	count_vm_events(ALLOCSTALL_MOVABLE, -1);
	zone->_watermark[WMARK_HIGH] = high;
	settle(test);
}

static bool is_free_page(unsigned long pfn)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	struct page *found;

	spin_lock_irq(&zone->lock);
	found = fh_find_buddy(zone, pfn, 0);
	spin_unlock_irq(&zone->lock);
	return found;
}

/* A page that fails while it is out does not come back; the rest of its range does. */
static void test_a_failed_page_stays_away(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), bad = pfn + G + 5;
	struct page *page = pfn_to_page(bad);
	struct zone *zone = page_zone(page);

	if (!IS_ENABLED(CONFIG_MEMORY_FAILURE))
		kunit_skip(test, "the kernel knows of no memory errors");
	KUNIT_ASSERT_TRUE(test, collect_with(test, bad));
	SetPageHWPoison(page);
	num_poisoned_pages_inc(bad);
	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_EXPECT_FALSE(test, is_free_page(bad));
	KUNIT_EXPECT_TRUE(test, is_free_page(bad - 1));
	KUNIT_EXPECT_TRUE(test, is_free_page(bad + 1));
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_UNKNOWN);

	ClearPageHWPoison(page);
	num_poisoned_pages_sub(bad, 1);
	spin_lock_irq(&zone->lock);
	__freehint_give(zone, page, 0, true);
	spin_unlock_irq(&zone->lock);
	freehint_rehint();
	settle(test);
}

/* Memory that is reused soon after it was discarded is counted. */
static void test_reuse_is_seen(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);
	struct freehint_stats before, after;
	struct page *page;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
	freehint_get_stats(&before);
	/* By now, all free memory is discarded. */
	page = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, MAX_PAGE_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, page);
	freehint_get_stats(&after);
	__free_pages(page, MAX_PAGE_ORDER);
	KUNIT_EXPECT_GE(test, after.reused, before.reused + MAX_ORDER_NR_PAGES);
	settle(test);
}

/* Also if it is reused in pieces. */
static void test_use_in_part_is_seen(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);
	struct freehint_stats before, after;
	struct page *pages[64];
	unsigned int i;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
	freehint_get_stats(&before);
	after = before;
	/* Until there is no smaller block left. */
	for (i = 0; i < ARRAY_SIZE(pages) && after.reused == before.reused; i++) {
		pages[i] = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, ORDER - 1);
		KUNIT_ASSERT_NOT_NULL(test, pages[i]);
		freehint_get_stats(&after);
	}
	while (i--)
		__free_pages(pages[i], ORDER - 1);
	KUNIT_EXPECT_GT(test, after.reused, before.reused);
	settle(test);
}

static void use_burst(struct kunit *test, struct page *blocks[], unsigned long not)
{
	unsigned int i;

	for (i = 0; i < BURST_BLOCKS; i++) {
		blocks[i] = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, MAX_PAGE_ORDER);
		KUNIT_ASSERT_NOT_NULL(test, blocks[i]);
		KUNIT_ASSERT_NE(test, page_to_pfn(blocks[i]), not);
	}
}

/* In a burst, due memory waits for what comes next, but not for ever. */
static void test_a_burst_is_put_off(struct kunit *test)
{
	struct client *user = test->priv;
	struct page *blocks[BURST_BLOCKS];
	unsigned long pfn, due = 0;
	unsigned int i, period;

	use_burst(test, blocks, 0);
	pfn = free_block(test);
	for (period = 0; period < 10; period++) {
		for (i = 0; i < BURST_BLOCKS; i++)
			__free_pages(blocks[i], MAX_PAGE_ORDER);
		freehint_age(0);
		due += state_of(pfn) == FH_DUE;
		if (freehint_collect(user->batch, ALL, 0) && has(user->batch, pfn))
			break;
		if (user->batch->nr_ranges)
			return_as(user->batch, FREEHINT_DISCARDED);
		use_burst(test, blocks, pfn);
	}
	KUNIT_EXPECT_TRUE(test, has(user->batch, pfn));
	KUNIT_EXPECT_GE(test, due, 2);
	KUNIT_EXPECT_LE(test, due, 4);
	return_as(user->batch, FREEHINT_DISCARDED);
	settle(test);
}

struct later {
	struct delayed_work work;
	struct freehint_batch *batch;
};

static void return_later(struct work_struct *work)
{
	struct later *later = container_of(to_delayed_work(work), struct later, work);

	return_as(later->batch, FREEHINT_RETRY);
}

/* Call the notifiers as out_of_memory() does; return how many pages came back. */
static unsigned long run_out_of_memory(void)
{
	/* The first in the chain, so that it leads to all others. */
	struct notifier_block first = { .priority = INT_MAX };
	struct notifier_block *nb;
	unsigned long freed = 0;

	register_oom_notifier(&first);
	for (nb = first.next; nb; nb = nb->next)
		nb->notifier_call(nb, 0, &freed);
	unregister_oom_notifier(&first);
	return freed;
}

/*
 * A guest that is out of memory waits for what is out, and reports what has come back,
 * so that nobody is killed. Then hints pause.
 */
static void test_out_of_memory(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), before;
	struct later later = { .batch = user->batch };
	struct freehint_stats stats;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	INIT_DELAYED_WORK_ONSTACK(&later.work, return_later);
	schedule_delayed_work(&later.work, HZ / 10);
	before = jiffies;
	KUNIT_EXPECT_EQ(test, run_out_of_memory(), user->batch->nr_pages);
	KUNIT_EXPECT_GE(test, jiffies - before, HZ / 10);
	/* It was woken, and did not wait for the next look. */
	KUNIT_EXPECT_LT(test, jiffies - before, HZ / 2);
	flush_delayed_work(&later.work);
	destroy_delayed_work_on_stack(&later.work);

	freehint_get_stats(&stats);
	KUNIT_EXPECT_TRUE(test, stats.paused);
	freehint_age(0);
	KUNIT_EXPECT_EQ(test, freehint_collect(user->batch, ALL, FREEHINT_NOW), 0);
	KUNIT_EXPECT_FALSE(test, freehint_worth_a_look());
	while (stats.paused) {
		msleep(100);
		freehint_get_stats(&stats);
	}
	KUNIT_EXPECT_GE(test, jiffies - before, 10 * HZ);
	KUNIT_EXPECT_TRUE(test, freehint_worth_a_look());
	KUNIT_EXPECT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
}

static struct kunit_case limits_cases[] = {
	KUNIT_CASE(test_rehint_finds_all),
	KUNIT_CASE(test_zones_are_apart),
	KUNIT_CASE(test_zones_take_turns),
#ifdef CONFIG_MEMORY_ISOLATION
	KUNIT_CASE(test_isolated_is_left),
#endif
	KUNIT_CASE(test_highatomic_is_left),
#ifdef CONFIG_CMA
	KUNIT_CASE(test_the_last_of_a_kind_stays),
	KUNIT_CASE(test_cma_only),
#endif
	KUNIT_CASE_SLOW(test_who_yields_goes_on),
	KUNIT_CASE(test_a_failed_page_stays_away),
	KUNIT_CASE(test_reuse_is_seen),
	KUNIT_CASE(test_use_in_part_is_seen),
	KUNIT_CASE(test_a_burst_is_put_off),
	KUNIT_CASE_SLOW(test_out_of_memory),
	{ }
};

static struct kunit_suite limits_suite = {
	.name = "freehint_limits",
	.init = client_init,
	.exit = client_exit,
	.test_cases = limits_cases,
};
kunit_test_suite(limits_suite);
