// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: off the free lists, and back.
 *
 * This is the only place where pages leave the allocator for the driver. States are
 * checked here against the free lists under zone->lock: a granule that is not wholly
 * free any more is forgotten, never taken.
 */
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/log2.h>
#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/sched.h>

#include <trace/events/freehint.h>

#include "../internal.h"
#include "compat.h"
#include "hooks.h"
#include "internal.h"

/* Granules that one lock hold of fh_find_free() looks at. */
#define FH_FIND_GRANULES	64UL

/*
 * Taking.
 */

/**
 * fh_find_buddy - the free block that covers a block
 * @zone: the zone
 * @pfn: first page of the block
 * @order: order of the block
 *
 * Context: zone->lock held.
 * Return: the head of the free block, or NULL if the block is not wholly free.
 */
struct page *fh_find_buddy(struct zone *zone, unsigned long pfn,
			   unsigned int order)
{
	lockdep_assert_held(&zone->lock);

	for (; order <= MAX_PAGE_ORDER; order++) {
		struct page *head = pfn_to_page(ALIGN_DOWN(pfn, 1UL << order));

		if (!PageBuddy(head))
			continue;
		/* A smaller block here means that none can cover it. */
		if (page_zone(head) != zone || buddy_order(head) < order)
			return NULL;
		return head;
	}
	return NULL;
}

/*
 * Is this the last block of its migratetype? Without it, the next allocation of that
 * type would claim a pageblock of another type for good, just because of a hint.
 */
static bool fh_last_of_kind(const struct fh_zone *fz, struct page *buddy, int mt)
{
	unsigned int order;

	for (order = fz->order; order < NR_PAGE_ORDERS; order++) {
		struct list_head *list = &fz->zone->free_area[order].free_list[mt];

		if (list_empty(list))
			continue;
		if (!list_is_singular(list) || list->next != &buddy->buddy_list)
			return false;
	}
	return true;
}

/*
 * The order of the largest block that ends with the granule at @pfn and is all due, in
 * the same state.
 */
static unsigned int fh_due_order(struct fh_zone *fz, unsigned long pfn, long max)
{
	unsigned long end = pfn + fh_granule_pages(fz);
	enum fh_state state = fh_state(fz, pfn);
	unsigned int order = fz->order;

	if (state == FH_SUSPECT)
		return order;
	while (order < MAX_PAGE_ORDER && IS_ALIGNED(end, 2UL << order) &&
	       (2L << (order - fz->order)) <= max) {
		unsigned long start = end - (2UL << order);

		for (; pfn > start; pfn -= fh_granule_pages(fz))
			if (fh_state(fz, pfn - fh_granule_pages(fz)) != state)
				return order;
		order++;
	}
	return order;
}

/*
 * Neighbours become one range, but not across sections: memory blocks, which come and
 * go as a whole, consist of whole sections. A suspect has a range of its own.
 */
static void fh_add_range(struct freehint_batch *batch, unsigned long pfn,
			 unsigned long nr_pages, bool joins)
{
	struct freehint_range *last = NULL;

	if (batch->nr_ranges)
		last = &batch->ranges[batch->nr_ranges - 1];
	if (joins && last && pfn + nr_pages == last->pfn &&
	    pfn_to_section_nr(pfn) == pfn_to_section_nr(last->pfn)) {
		last->pfn = pfn;
		last->nr_pages += nr_pages;
	} else {
		batch->ranges[batch->nr_ranges++] = (struct freehint_range) {
			.pfn = pfn,
			.nr_pages = nr_pages,
			.outcome = FREEHINT_RETRY,
		};
	}
	batch->nr_pages += nr_pages;
}

/**
 * struct fh_walk - a lock hold that takes granules
 * @fz: the zone
 * @cursor: where to go on: the zone's cursor for this kind of batch
 * @batch: where they go
 * @room: what the guard allows
 * @joins: the last range may be extended
 * @taken: granules taken
 */
struct fh_walk {
	struct fh_zone *fz;
	unsigned long *cursor;
	struct freehint_batch *batch;
	struct fh_room room;
	bool joins;
	long taken;
};

/* Take the granule at the cursor and those below it in its block, or skip it. */
static void fh_take_next(struct fh_walk *walk, long max)
{
	struct fh_zone *fz = walk->fz;
	unsigned long pfn = *walk->cursor, end = pfn + fh_granule_pages(fz);
	bool suspect = fh_state(fz, pfn) == FH_SUSPECT;
	struct page *buddy = NULL;
	unsigned int order;
	long *room;
	int mt;

	if (pfn_to_online_page(pfn))
		buddy = fh_find_buddy(fz->zone, pfn, fz->order);
	if (!buddy) {
		fh_event(fz, pfn, fz->order, FH_VANISHED);
		fz->vanished++;
		return;
	}

	/*
	 * Whoever isolated a pageblock expects its free pages to stay where they are;
	 * offlining would BUG. The highatomic reserve is for those that can't wait.
	 */
	mt = get_pageblock_migratetype(buddy);
	if (is_migrate_isolate(mt) || mt == MIGRATE_HIGHATOMIC) {
		fz->left |= FH_LEFT_ISOLATED;
		return;
	}

	room = is_migrate_cma(mt) ? &walk->room.cma : &walk->room.other;
	if (*room <= 0) {
		fz->left |= is_migrate_cma(mt) ? FH_LEFT_CMA : FH_LEFT_OTHER;
		return;
	}

	order = min(fh_due_order(fz, pfn, min(max, *room)), buddy_order(buddy));
	if (order == buddy_order(buddy) && fh_last_of_kind(fz, buddy, mt))
		return;

	pfn = end - (1UL << order);
	__freehint_take(fz->zone, buddy, pfn_to_page(pfn), order);
	fh_event(fz, pfn, order, FH_TAKE);
	trace_freehint_take(pfn, order);
	fh_add_range(walk->batch, pfn, 1UL << order, walk->joins && !suspect);
	walk->joins = !suspect;
	*walk->cursor = pfn;
	walk->room.cma -= 1L << (order - fz->order);
	walk->room.other -= 1L << (order - fz->order);
	walk->taken += 1L << (order - fz->order);
}

/* One lock hold. Returns whether the zone may have more to take. */
static bool fh_take_some(struct fh_walk *walk, long max)
{
	unsigned int looks = 2 * FH_HOLD_GRANULES;
	struct fh_zone *fz = walk->fz;

	while (looks-- && walk->taken < max &&
	       (walk->room.cma > 0 || walk->room.other > 0) &&
	       walk->batch->nr_ranges < walk->batch->max_ranges) {
		if (!fh_find_due(fz, walk->cursor, walk->batch->early))
			return *walk->cursor;
		fh_take_next(walk, max - walk->taken);
	}
	return true;
}

/**
 * fh_collect_zone - fill a batch with granules of a zone that are due
 * @fz: the zone; the walk goes on at its cursor for this kind of batch
 * @batch: an empty batch, early or not
 * @max_pages: take no more
 * @stalls: what the zone yields to, see fh_count_stalls(); NULL for nothing
 *
 * Takes by descending address, as what comes back goes to the tail of its list. So
 * memory at the bottom is used last, where contiguous allocations and compaction want
 * it free.
 *
 * Context: fh_topology held.
 * Return: true if there is something in the batch.
 */
bool fh_collect_zone(struct fh_zone *fz, struct freehint_batch *batch,
		     unsigned long max_pages, const unsigned long *stalls)
{
	struct fh_walk walk = {
		.fz = fz,
		.cursor = batch->early ? &fz->early_cursor : &fz->cursor,
		.batch = batch,
	};
	bool more = true;
	unsigned long irq;

	if (fz->leaving)
		return false;
	if (stalls && fh_yields(fz, *stalls)) {
		fz->left |= FH_LEFT_GUARDED;
		return false;
	}

	batch->zone = fz->zone;
	while (more && batch->nr_ranges < batch->max_ranges) {
		long max = min_t(long, (max_pages - batch->nr_pages) >> fz->order,
				 FH_HOLD_GRANULES);

		walk.room = fh_room(fz);
		walk.taken = 0;
		if (max <= 0)
			break;
		if (walk.room.cma <= 0 && walk.room.other <= 0) {
			fz->left |= FH_LEFT_GUARDED;
			break;
		}
		spin_lock_irqsave(&fz->zone->lock, irq);
		more = fh_take_some(&walk, max);
		spin_unlock_irqrestore(&fz->zone->lock, irq);
		cond_resched();
	}
	if (!batch->nr_ranges)
		return false;
	fz->progress = true;
	fz->yielded = false;
	return true;
}

/*
 * Giving back.
 */

/* Pages with a memory error must not come back; there is hardly ever one. */
static bool fh_has_poison(unsigned long pfn, unsigned long end)
{
#ifdef CONFIG_MEMORY_FAILURE
	if (!atomic_long_read(&num_poisoned_pages))
		return false;
	for (; pfn < end; pfn++)
		if (PageHWPoison(pfn_to_page(pfn)))
			return true;
#endif
	return false;
}

static void fh_give_healthy(struct fh_zone *fz, unsigned long pfn,
			    unsigned long end)
{
	for (; pfn < end; pfn++)
		if (!PageHWPoison(pfn_to_page(pfn)))
			__freehint_give(fz->zone, pfn_to_page(pfn), 0, true);
}

static void fh_give_block(struct fh_zone *fz, unsigned long pfn,
			  unsigned int order, enum fh_event event)
{
	fh_event(fz, pfn, order, event);
	/*
	 * As a rule, the host has not taken what is lazy. So it is used first, as if it
	 * had never been out: other memory may have to come from the host.
	 */
	__freehint_give(fz->zone, pfn_to_page(pfn), order, event != FH_LEND);
}

/* Give back a granule of a range that has a page with a memory error somewhere. */
static void fh_give_checked(struct fh_zone *fz, unsigned long pfn,
			    enum fh_event event)
{
	unsigned long end = pfn + fh_granule_pages(fz);

	if (!fh_has_poison(pfn, end)) {
		fh_give_block(fz, pfn, fz->order, event);
		return;
	}
	fh_event(fz, pfn, fz->order, FH_BROKEN);
	fh_give_healthy(fz, pfn, end);
}

static enum fh_event fh_back(enum freehint_outcome outcome, bool early)
{
	switch (outcome) {
	case FREEHINT_DISCARDED:
		return FH_DISCARD;
	case FREEHINT_REFUSED:
		return FH_REFUSE;
	case FREEHINT_SUSPECT:
		return FH_SUSPECTED;
	case FREEHINT_LAZY:
		return FH_LEND;
	default:
		return early ? FH_RETRY_EARLY : FH_RETRY;
	}
}

/* One lock hold; starts at the end of what is left of the range. */
static void fh_give_some(struct fh_zone *fz, unsigned long pfn,
			 unsigned long *end, enum fh_event event, bool poison)
{
	unsigned long stop = max(pfn, *end - min(*end, FH_HOLD_GRANULES << fz->order));

	while (*end > stop) {
		unsigned int order = min_t(unsigned int, MAX_PAGE_ORDER,
					   ilog2(*end - stop));

		order = min_t(unsigned int, order, __ffs(*end));
		if (unlikely(poison))
			order = fz->order;
		*end -= 1UL << order;
		if (unlikely(poison))
			fh_give_checked(fz, *end, event);
		else
			fh_give_block(fz, *end, order, event);
		trace_freehint_give(*end, order);
	}
}

/**
 * fh_return_range - put a range back on the free lists
 * @fz: its zone
 * @range: the range, with what became of it
 * @early: whether its batch was early
 *
 * Context: not in an interrupt, where a compaction that was interrupted could capture
 * the block, see task_capc().
 */
void fh_return_range(struct fh_zone *fz, const struct freehint_range *range,
		     bool early)
{
	enum fh_event event = fh_back(range->outcome, early);
	unsigned long end = range->pfn + range->nr_pages, irq;
	/* Not under the lock: it looks at each page. */
	bool poison = fh_has_poison(range->pfn, end);

	/* In a range of one granule, the refused granule is known. */
	if (event == FH_SUSPECTED && range->nr_pages == fh_granule_pages(fz))
		event = FH_REFUSE;

	while (end > range->pfn) {
		spin_lock_irqsave(&fz->zone->lock, irq);
		fh_give_some(fz, range->pfn, &end, event, poison);
		spin_unlock_irqrestore(&fz->zone->lock, irq);
		cond_resched();
	}
	if (event != FH_DISCARD)
		return;

	spin_lock_irqsave(&fz->zone->lock, irq);
	fz->returned += range->nr_pages >> fz->order;
	fz->soon_end = jiffies + FREEHINT_REUSE_WINDOW;
	spin_unlock_irqrestore(&fz->zone->lock, irq);
}

/*
 * Learning from the free lists what is free, where the hooks have not been watching, or
 * the states do not hold any more.
 */

static void fh_find_some(struct fh_zone *fz, unsigned long pfn,
			 unsigned long end)
{
	for (; pfn < end; pfn += fh_granule_pages(fz)) {
		enum fh_state state = fh_state(fz, pfn);

		if (state == FH_OUT || state == FH_LOST)
			continue;
		fh_event(fz, pfn, fz->order, FH_FORGET);
		if (pfn_to_online_page(pfn) &&
		    fh_find_buddy(fz->zone, pfn, fz->order))
			fh_event(fz, pfn, fz->order, FH_FOUND);
	}
}

/**
 * fh_find_free - forget the states of a zone, and look for what is free
 * @fz: the zone
 *
 * What is found is due: nobody knows how long it has been free. What is out stays so.
 *
 * Context: fh_topology held, so that no section goes meanwhile.
 */
void fh_find_free(struct fh_zone *fz)
{
	const unsigned long step = min(FH_FIND_GRANULES << fz->order,
				       PAGES_PER_SECTION);
	unsigned long sec, pfn, end, irq;

	for (sec = 0; sec < fz->map->nr; sec++) {
		if (!fz->map->states[sec])
			continue;
		pfn = section_nr_to_pfn(fz->map->first + sec);
		end = pfn + PAGES_PER_SECTION;
		for (; pfn < end; pfn += step) {
			spin_lock_irqsave(&fz->zone->lock, irq);
			fh_find_some(fz, pfn, pfn + step);
			spin_unlock_irqrestore(&fz->zone->lock, irq);
			cond_resched();
		}
	}
}
