/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: helpers for unit tests on the allocator's own memory. Each test
 * takes the place of the driver, as there can be only one user.
 */
#ifndef _MM_FREEHINT_TESTS_CLIENT_H
#define _MM_FREEHINT_TESTS_CLIENT_H

#include <kunit/test.h>
#include <linux/freehint.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>

#include "../../internal.h"
#include "../compat.h"
#include "../hooks.h"
#include "../internal.h"

#ifdef FH_ISOLATED_KEEPS_TYPE
static inline void set_type(struct page *page, int mt)
{
	init_pageblock_migratetype(page, mt, false);
}
#else
static inline void set_type(struct page *page, int mt)
{
	set_pageblock_migratetype(page, mt);
}
#endif

#ifdef CONFIG_MEMORY_ISOLATION
#ifdef FH_ISOLATED_KEEPS_TYPE
static inline int isolate(unsigned long pfn, unsigned long end, int mt)
{
	return start_isolate_page_range(pfn, end, PB_ISOLATE_MODE_OTHER);
}

static inline void unisolate(unsigned long pfn, unsigned long end, int mt)
{
	undo_isolate_page_range(pfn, end);
}
#else
static inline int isolate(unsigned long pfn, unsigned long end, int mt)
{
	return start_isolate_page_range(pfn, end, mt, 0, GFP_KERNEL);
}

static inline void unisolate(unsigned long pfn, unsigned long end, int mt)
{
	undo_isolate_page_range(pfn, end, mt);
}
#endif
#endif

#define ORDER	9U
#define G	(1UL << ORDER)
#define ALL	ULONG_MAX

struct client {
	unsigned int woken;
	struct freehint_batch *batch;
	struct freehint_batch *other;
};

static inline void wake(void *data)
{
	struct client *user = data;

	user->woken++;
}

static inline struct freehint_batch *new_batch(struct kunit *test, unsigned int ranges)
{
	struct freehint_batch *batch;

	batch = kunit_kzalloc(test, struct_size(batch, ranges, ranges), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, batch);
	batch->max_ranges = ranges;
	return batch;
}

static inline void return_as(struct freehint_batch *batch, enum freehint_outcome outcome)
{
	unsigned int i;

	for (i = 0; i < batch->nr_ranges; i++)
		batch->ranges[i].outcome = outcome;
	freehint_return(batch);
}

/* Discard all that is due, so that what becomes due next is the test's. */
static inline void settle(struct kunit *test)
{
	struct client *user = test->priv;
	bool progress = true;
	unsigned int rounds;

	for (rounds = 0; progress; rounds++) {
		/* Nobody frees that much meanwhile. */
		KUNIT_ASSERT_LT(test, rounds, 100);
		freehint_age(FREEHINT_NOW);
		progress = false;
		while (freehint_collect(user->batch, ALL, FREEHINT_NOW)) {
			return_as(user->batch, FREEHINT_DISCARDED);
			progress = true;
		}
	}
	/* And go on until nothing needs another period. */
	while (freehint_age(0))
		;
}

static inline int client_init(struct kunit *test)
{
	struct client *user = kunit_kzalloc(test, sizeof(*user), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, user);
	test->priv = user;
	user->batch = new_batch(test, 64);
	user->other = new_batch(test, 64);
	/* Drain them now, so that nobody does in the middle of a test. */
	drain_all_pages(NULL);
	KUNIT_ASSERT_EQ(test, freehint_start(ORDER, wake, user), 0);
	settle(test);
	return 0;
}

static inline void client_exit(struct kunit *test)
{
	freehint_stop();
}

static inline enum fh_state state_of(unsigned long pfn)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	enum fh_state state;
	unsigned long irq;

	spin_lock_irqsave(&zone->lock, irq);
	state = fh_state(zone->freehint, pfn);
	spin_unlock_irqrestore(&zone->lock, irq);
	return state;
}

static inline bool is_free(unsigned long pfn)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	unsigned long irq;
	bool found;

	spin_lock_irqsave(&zone->lock, irq);
	found = fh_find_buddy(zone, pfn, ORDER);
	spin_unlock_irqrestore(&zone->lock, irq);
	return found;
}

/* Allocate a block and free it: it is pending, and whole. */
static inline unsigned long free_block(struct kunit *test)
{
	/* Movable, as there is more of it: the last block of a kind is left alone. */
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_MOVABLE | __GFP_NOWARN,
					MAX_PAGE_ORDER);
	unsigned long pfn;

	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_UNKNOWN);
	__free_pages(page, MAX_PAGE_ORDER);
	KUNIT_ASSERT_EQ(test, state_of(pfn), FH_YOUNG);
	return pfn;
}

static inline bool has(const struct freehint_batch *batch, unsigned long pfn)
{
	unsigned int i;

	for (i = 0; i < batch->nr_ranges; i++)
		if (pfn >= batch->ranges[i].pfn &&
		    pfn < batch->ranges[i].pfn + batch->ranges[i].nr_pages)
			return true;
	return false;
}

/* Return batches until one has the page; that one is left in &user.batch. */
static inline bool collect_with(struct kunit *test, unsigned long pfn)
{
	struct client *user = test->priv;

	freehint_age(0);
	freehint_age(0);
	while (freehint_collect(user->batch, ALL, FREEHINT_NOW)) {
		if (has(user->batch, pfn))
			return true;
		return_as(user->batch, FREEHINT_DISCARDED);
	}
	return false;
}

/* A page is not taken. If it is, return it, as freehint_stop() needs it back. */
static inline void expect_left(struct kunit *test, unsigned long pfn)
{
	struct client *user = test->priv;
	bool taken = collect_with(test, pfn);

	KUNIT_EXPECT_FALSE(test, taken);
	if (taken)
		return_as(user->batch, FREEHINT_DISCARDED);
}

#endif /* _MM_FREEHINT_TESTS_CLIENT_H */
