// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of memory that is taken off the allocator's free lists,
 * and put back.
 */
#include "client.h"

static void test_freed_taken_and_back(struct kunit *test)
{
	struct client *user = test->priv;
	struct freehint_stats before, stats;
	unsigned long pfn = free_block(test);

	freehint_get_stats(&before);
	KUNIT_EXPECT_GT(test, user->woken, 0);
	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_OUT);
	KUNIT_EXPECT_FALSE(test, is_free(pfn));
	freehint_get_stats(&stats);
	KUNIT_EXPECT_EQ(test, stats.out, user->batch->nr_pages);
	/* Roughly, as others use memory, too. */
	KUNIT_EXPECT_LT(test, stats.free, before.free - stats.out / 2);

	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	freehint_get_stats(&stats);
	KUNIT_EXPECT_EQ(test, stats.out, 0);
	KUNIT_EXPECT_GE(test, stats.returned, MAX_ORDER_NR_PAGES);
}

/* Whole pageblocks are freed at once, and may be many granules. */
static void test_small_granules(struct kunit *test)
{
	const unsigned int order = ORDER - 3;
	unsigned long pfn, i;

	freehint_stop();
	KUNIT_ASSERT_EQ(test, freehint_start(order, wake, test->priv), 0);
	settle(test);
	pfn = free_block(test);
	for (i = pfn; i < pfn + MAX_ORDER_NR_PAGES; i += 1UL << order)
		KUNIT_EXPECT_EQ(test, state_of(i), FH_YOUNG);
	settle(test);
	for (i = pfn; i < pfn + MAX_ORDER_NR_PAGES; i += 1UL << order)
		KUNIT_EXPECT_EQ(test, state_of(i), FH_DISCARDED);
}

/* Is a block of the highest order first on its list, last, or in between? */
static void find_on_list(unsigned long pfn, bool *first, bool *last)
{
	struct page *page = pfn_to_page(pfn);
	struct zone *zone = page_zone(page);
	struct list_head *list;

	spin_lock_irq(&zone->lock);
	list = &zone->free_area[MAX_PAGE_ORDER].free_list[get_pageblock_migratetype(page)];
	*first = list_is_first(&page->buddy_list, list);
	*last = list_is_last(&page->buddy_list, list);
	spin_unlock_irq(&zone->lock);
}

/* Discarded memory is the last to be used again; lazy memory is the first. */
static void test_discarded_is_used_last(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);
	bool first, last;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
	find_on_list(pfn, &first, &last);
	KUNIT_EXPECT_TRUE(test, last);
	KUNIT_EXPECT_FALSE(test, first);

	pfn = free_block(test);
	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_LAZY);
	find_on_list(pfn, &first, &last);
	KUNIT_EXPECT_TRUE(test, first);
	KUNIT_EXPECT_FALSE(test, last);
	settle(test);
}

/* Ranges go down, do not touch, stay within a section, and are what was asked for. */
static void test_batches_are_in_order(struct kunit *test)
{
	struct client *user = test->priv;
	struct freehint_batch *batch = user->batch;
	unsigned long top = ULONG_MAX, pages;
	struct zone *zone = NULL;
	unsigned int i;

	freehint_rehint();
	while (freehint_collect(batch, 20 * G, FREEHINT_NOW)) {
		KUNIT_EXPECT_LE(test, batch->nr_pages, 20 * G);
		if (batch->zone != zone)
			top = ULONG_MAX;
		zone = batch->zone;
		for (pages = 0, i = 0; i < batch->nr_ranges; i++) {
			const struct freehint_range *range = &batch->ranges[i];
			unsigned long end = range->pfn + range->nr_pages;

			KUNIT_EXPECT_TRUE(test, IS_ALIGNED(range->pfn | range->nr_pages, G));
			KUNIT_EXPECT_LE(test, end, top);
			KUNIT_EXPECT_EQ(test, pfn_to_section_nr(range->pfn),
					pfn_to_section_nr(end - 1));
			KUNIT_EXPECT_PTR_EQ(test, page_zone(pfn_to_page(range->pfn)), zone);
			top = range->pfn;
			pages += range->nr_pages;
		}
		KUNIT_EXPECT_EQ(test, pages, batch->nr_pages);
		return_as(batch, FREEHINT_DISCARDED);
	}
	KUNIT_EXPECT_NE(test, top, ULONG_MAX);
}

static void test_retry_is_due_again(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_RETRY);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
}

/* The batch that has a page, and that alone is early, is left in &user.batch. */
static bool collect_early(struct kunit *test, unsigned long pfn)
{
	struct client *user = test->priv;

	freehint_age(FREEHINT_EARLY);
	freehint_age(FREEHINT_EARLY);
	while (freehint_collect(user->batch, ALL, 0)) {
		if (has(user->batch, pfn))
			return user->batch->early;
		return_as(user->batch, FREEHINT_DISCARDED);
	}
	return false;
}

/* Early memory is in batches of its own, and these come first. */
static void test_early_is_apart(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);
	struct zone *zone = page_zone(pfn_to_page(pfn));

	freehint_age(FREEHINT_EARLY);
	freehint_age(FREEHINT_EARLY);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_EARLY);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_EARLY);
	spin_lock_irq(&zone->lock);
	fh_event(zone->freehint, pfn + G, ORDER, FH_FOUND);
	spin_unlock_irq(&zone->lock);

	KUNIT_ASSERT_GT(test, freehint_collect(user->batch, ALL, 0), 0);
	KUNIT_EXPECT_TRUE(test, user->batch->early);
	KUNIT_EXPECT_TRUE(test, has(user->batch, pfn));
	KUNIT_EXPECT_FALSE(test, has(user->batch, pfn + G));
	KUNIT_ASSERT_GT(test, freehint_collect(user->other, ALL, 0), 0);
	KUNIT_EXPECT_FALSE(test, user->other->early);
	KUNIT_EXPECT_TRUE(test, has(user->other, pfn + G));
	return_as(user->batch, FREEHINT_RETRY);
	return_as(user->other, FREEHINT_DISCARDED);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_EARLY);

	/* After a period that is not early, what was early is due like the rest. */
	freehint_age(0);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	settle(test);
}

/* What is lazy is due again after a whole settle time. */
static void test_lazy_settles(struct kunit *test)
{
	struct client *user = test->priv;
	struct freehint_stats before, stats;
	unsigned long pfn = free_block(test);

	freehint_get_stats(&before);
	KUNIT_ASSERT_TRUE(test, collect_early(test, pfn));
	return_as(user->batch, FREEHINT_LAZY);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_LAZY);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	freehint_get_stats(&stats);
	KUNIT_EXPECT_GE(test, stats.lazy, MAX_ORDER_NR_PAGES);
	KUNIT_EXPECT_GE(test, stats.discarded, stats.lazy);
	KUNIT_EXPECT_EQ(test, stats.returned, before.returned);

	KUNIT_EXPECT_TRUE(test, freehint_settle());
	KUNIT_EXPECT_EQ(test, freehint_collect(user->batch, ALL, 0), 0);
	KUNIT_EXPECT_FALSE(test, freehint_settle());
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	KUNIT_ASSERT_GT(test, freehint_collect(user->batch, ALL, 0), 0);
	KUNIT_EXPECT_TRUE(test, has(user->batch, pfn));
	KUNIT_EXPECT_FALSE(test, user->batch->early);
	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
	freehint_get_stats(&stats);
	KUNIT_EXPECT_GE(test, stats.returned, before.returned + MAX_ORDER_NR_PAGES);
}

/* If somebody waits for all free memory, lazy memory is due as well. */
static void test_lazy_when_hurried(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);

	KUNIT_ASSERT_TRUE(test, collect_early(test, pfn));
	return_as(user->batch, FREEHINT_LAZY);
	freehint_age(FREEHINT_NOW);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	settle(test);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
}

/* Refused memory stays so when it is used and freed, until a rehint. */
static void test_refused(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), again;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_REFUSED);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_REFUSED);
	expect_left(test, pfn);

	/* Found again by its state, whichever block that is. */
	again = page_to_pfn(alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER));
	__free_pages(pfn_to_page(again), MAX_PAGE_ORDER);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_REFUSED);

	freehint_rehint();
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	settle(test);
}

/* A range that is refused as a whole is offered again once, granule by granule. */
static void test_suspects_are_alone(struct kunit *test)
{
	struct client *user = test->priv;
	const struct freehint_range *range;
	unsigned long pfn = 0;
	unsigned int i;

	freehint_rehint();
	KUNIT_ASSERT_GT(test, freehint_collect(user->batch, 16 * G, FREEHINT_NOW), 0);
	for (i = 0; i < user->batch->nr_ranges; i++)
		if (user->batch->ranges[i].nr_pages > 2 * G)
			pfn = user->batch->ranges[i].pfn;
	KUNIT_ASSERT_NE(test, pfn, 0);
	return_as(user->batch, FREEHINT_SUSPECT);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_SUSPECT);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_SUSPECT);

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn + G));
	for (i = 0; i < user->batch->nr_ranges; i++) {
		range = &user->batch->ranges[i];
		if (range->pfn <= pfn + G && pfn + G < range->pfn + range->nr_pages)
			KUNIT_EXPECT_EQ(test, range->nr_pages, G);
	}
	return_as(user->batch, FREEHINT_SUSPECT);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_REFUSED);
	freehint_rehint();
	settle(test);
}

static void expect_apart(struct kunit *test, unsigned long suspect,
			 unsigned long other)
{
	struct client *user = test->priv;
	struct zone *zone = page_zone(pfn_to_page(suspect));
	unsigned int i, seen = 0;

	KUNIT_ASSERT_TRUE(test, collect_with(test, suspect));
	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_ASSERT_TRUE(test, is_free(suspect));
	spin_lock_irq(&zone->lock);
	fh_event(zone->freehint, suspect, ORDER, FH_FORGET);
	fh_event(zone->freehint, suspect, ORDER, FH_SUSPECTED);
	fh_event(zone->freehint, other, ORDER, FH_FOUND);
	spin_unlock_irq(&zone->lock);

	KUNIT_ASSERT_TRUE(test, collect_with(test, suspect));
	for (i = 0; i < user->batch->nr_ranges; i++) {
		if (user->batch->ranges[i].pfn != suspect)
			continue;
		KUNIT_EXPECT_EQ(test, user->batch->ranges[i].nr_pages, G);
		seen++;
	}
	KUNIT_EXPECT_EQ(test, seen, 1);
	KUNIT_EXPECT_TRUE(test, has(user->batch, other));
	return_as(user->batch, FREEHINT_DISCARDED);
	freehint_rehint();
}

/* Nor does one join a neighbour that is just due, whichever of them comes first. */
static void test_a_suspect_beside_another(struct kunit *test)
{
	unsigned long pfn = free_block(test);

	expect_apart(test, pfn, pfn + G);
	expect_apart(test, pfn + G, pfn);
	settle(test);
}

/* A rehint leaves alone what is out; that comes back with the outcome it is given. */
static void test_rehint_while_out(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test);

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	freehint_rehint();
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_OUT);
	return_as(user->batch, FREEHINT_RETRY);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	settle(test);
}

/* Nobody waits for what is lost; it can still come back, even after a stop. */
static void test_lost_and_found(struct kunit *test)
{
	struct client *user = test->priv;
	struct freehint_stats stats;
	unsigned long pfn = free_block(test), before;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	freehint_lost(user->batch);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_LOST);
	freehint_get_stats(&stats);
	KUNIT_EXPECT_EQ(test, stats.out, 0);
	KUNIT_EXPECT_EQ(test, stats.lost, user->batch->nr_pages);

	before = jiffies;
	freehint_wait_range(pfn, pfn + G);
	KUNIT_EXPECT_LT(test, jiffies - before, HZ / 2);

	freehint_stop();
	return_as(user->batch, FREEHINT_RETRY);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	freehint_get_stats(&stats);
	KUNIT_EXPECT_EQ(test, stats.lost, 0);
	KUNIT_ASSERT_EQ(test, freehint_start(ORDER, wake, user), 0);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DUE);
	settle(test);
}

/* Waiting for a range that is out takes a while, but not for ever. */
static void test_waiting_is_bounded(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), before;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	before = jiffies;
	freehint_wait_range(pfn, pfn + G);
	KUNIT_EXPECT_GE(test, jiffies - before, HZ - 1);
	KUNIT_EXPECT_LT(test, jiffies - before, 5 * HZ);
	return_as(user->batch, FREEHINT_DISCARDED);
	before = jiffies;
	freehint_wait_range(pfn, pfn + G);
	KUNIT_EXPECT_LT(test, jiffies - before, HZ / 2);
}

/* The other half of a block stays free, and keeps its state. */
static void test_half_a_block(struct kunit *test)
{
	struct client *user = test->priv;
	unsigned long pfn = free_block(test), half;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_ASSERT_TRUE(test, is_free(pfn));

	/* One granule is due, its neighbour is not. */
	spin_lock_irq(&page_zone(pfn_to_page(pfn))->lock);
	fh_event(page_zone(pfn_to_page(pfn))->freehint, pfn + G, ORDER, FH_FOUND);
	spin_unlock_irq(&page_zone(pfn_to_page(pfn))->lock);

	half = pfn + G;
	KUNIT_ASSERT_TRUE(test, collect_with(test, half));
	KUNIT_EXPECT_FALSE(test, has(user->batch, pfn));
	KUNIT_EXPECT_FALSE(test, is_free(half));
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_DISCARDED);
	return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_EXPECT_TRUE(test, is_free(half));
}

/* A granule that is due but not free any more is forgotten, not taken. */
static void test_vanished(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER);
	struct freehint_stats before, after;
	unsigned long pfn;

	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);
	freehint_get_stats(&before);
	spin_lock_irq(&page_zone(page)->lock);
	fh_event(page_zone(page)->freehint, pfn, ORDER, FH_FOUND);
	spin_unlock_irq(&page_zone(page)->lock);

	expect_left(test, pfn);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_UNKNOWN);
	freehint_get_stats(&after);
	KUNIT_EXPECT_GE(test, after.vanished, before.vanished + G);
	__free_pages(page, MAX_PAGE_ORDER);
}

/* The first piece that is taken changes the state, as does the last that is freed. */
static void test_in_pieces(struct kunit *test)
{
	struct client *user = test->priv;
	struct page *page;
	unsigned long pfn = free_block(test), i;

	KUNIT_ASSERT_TRUE(test, collect_with(test, pfn));
	return_as(user->batch, FREEHINT_DISCARDED);

	page = alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);
	split_page(page, MAX_PAGE_ORDER);
	for (i = 0; i < MAX_ORDER_NR_PAGES - 1; i++)
		__free_page(page + i);
	drain_all_pages(NULL);
	/* The second granule still lacks its last page, but the first is whole. */
	KUNIT_EXPECT_TRUE(test, state_of(pfn) == FH_YOUNG || state_of(pfn) == FH_RESTING);
	KUNIT_EXPECT_EQ(test, state_of(pfn + G), FH_UNKNOWN);
	__free_page(page + MAX_ORDER_NR_PAGES - 1);
	drain_all_pages(NULL);
	KUNIT_EXPECT_TRUE(test, state_of(pfn + G) == FH_YOUNG ||
			  state_of(pfn + G) == FH_RESTING);
	settle(test);
}

/* There is only one user at a time. */
static void test_second_user(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, freehint_start(ORDER, wake, test->priv), -EBUSY);
}

static void test_refusals(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, freehint_refusal(pageblock_order), FREEHINT_CAN);
	KUNIT_EXPECT_EQ(test, freehint_refusal(pageblock_order + 1),
			FREEHINT_NO_GRANULE);
}

/* The guard: no more than a share of a zone is out; it gives again when some is back. */
static void test_share(struct kunit *test)
{
	struct client *user = test->priv;
	struct freehint_stats stats;
	struct zone *zone;

	freehint_rehint();
	KUNIT_ASSERT_GT(test, freehint_collect(user->batch, ALL, FREEHINT_NOW), 0);
	zone = user->batch->zone;
	/* The zone has the last turn, so the next batch may be of another zone. */
	while (freehint_collect(user->other, ALL, FREEHINT_NOW) &&
	       user->other->zone != zone)
		return_as(user->other, FREEHINT_RETRY);
	freehint_get_stats(&stats);
	KUNIT_EXPECT_LE(test, user->batch->nr_pages,
			(zone_managed_pages(zone) / 8) + G);
	return_as(user->batch, FREEHINT_DISCARDED);
	if (user->other->nr_ranges)
		return_as(user->other, FREEHINT_DISCARDED);
	settle(test);
}

/* With draining off, a burst keeps nobody awake: the periods end. */
static void test_rests_without_drains(struct kunit *test)
{
	struct client *user = test->priv;
	struct page *pages[8];
	unsigned int i, periods = 0;

	freehint_set_drain(false);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		pages[i] = alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER);
		KUNIT_ASSERT_NOT_NULL(test, pages[i]);
	}
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		__free_pages(pages[i], MAX_PAGE_ORDER);
	while (freehint_age(0) && periods++ < 20)
		while (freehint_collect(user->batch, ALL, FREEHINT_NOW))
			return_as(user->batch, FREEHINT_DISCARDED);
	KUNIT_EXPECT_LT(test, periods, 20);
	freehint_set_drain(true);
}

static struct kunit_case buddy_cases[] = {
	KUNIT_CASE(test_freed_taken_and_back),
	KUNIT_CASE(test_small_granules),
	KUNIT_CASE(test_discarded_is_used_last),
	KUNIT_CASE(test_batches_are_in_order),
	KUNIT_CASE(test_retry_is_due_again),
	KUNIT_CASE(test_early_is_apart),
	KUNIT_CASE(test_lazy_settles),
	KUNIT_CASE(test_lazy_when_hurried),
	KUNIT_CASE(test_refused),
	KUNIT_CASE(test_suspects_are_alone),
	KUNIT_CASE(test_a_suspect_beside_another),
	KUNIT_CASE(test_rehint_while_out),
	KUNIT_CASE(test_lost_and_found),
	KUNIT_CASE(test_waiting_is_bounded),
	KUNIT_CASE(test_half_a_block),
	KUNIT_CASE(test_vanished),
	KUNIT_CASE(test_in_pieces),
	KUNIT_CASE(test_second_user),
	KUNIT_CASE(test_refusals),
	KUNIT_CASE(test_share),
	KUNIT_CASE(test_rests_without_drains),
	{ }
};

static struct kunit_suite buddy_suite = {
	.name = "freehint_buddy",
	.init = client_init,
	.exit = client_exit,
	.test_cases = buddy_cases,
};
kunit_test_suite(buddy_suite);
