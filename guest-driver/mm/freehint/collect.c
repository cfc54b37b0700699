// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: from the free lists into hints, and back.
 *
 * This is the only place where pages leave the allocator for the device. What
 * the bitmaps say is checked here against the free lists under zone->lock: a
 * granule that is not wholly free any more is dropped, never acted on.
 */
#include <kunit/static_stub.h>
#include <linux/gfp.h>
#include <linux/list.h>
#include <linux/memory_hotplug.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/vmstat.h>

#include <trace/events/freehint.h>

#include "../internal.h"
#include "hooks.h"
#include "internal.h"

/* Most that the device holds of a zone, whatever its size. */
#define FH_MAX_INFLIGHT		(SZ_256M >> PAGE_SHIFT)

/* And of what it can spare, one in this many granules. */
#define FH_INFLIGHT_SHARE	8

/* A hint holds up to half of what may be in flight, so that two overlap. */
#define FH_MAX_HINT		(FH_MAX_INFLIGHT / 2)

/* Less than this share of it no device is given, but a granule. */
#define FH_MAX_SLOW		8U

/* Granules that a zone keeps on its lists at all times. */
#define FH_ZONE_RESERVE		8

/* Granules that the device may hold of what a zone keeps from higher classes. */
#define FH_MAX_BORROWED		8L

/*
 * Pages that a zone can spare, beyond what its allocations may come to depend
 * on. Free pages, exactly where the per-CPU drift could matter, without those
 * that not every allocation may use (free CMA pages and the highatomic reserve)
 * or can use at once (unaccepted memory), against the high watermark with its
 * boost. What is in flight is not free and so is on neither side.
 *
 * Pages that left since are gone when pressure comes: there is no recall, but
 * they are back within the time that the device takes for one hint.
 */
static long fh_headroom(struct zone *zone)
{
	long free = zone_page_state(zone, NR_FREE_PAGES);

	if (zone->percpu_drift_mark && free < (long)zone->percpu_drift_mark)
		free = zone_page_state_snapshot(zone, NR_FREE_PAGES);

	free -= zone_page_state(zone, NR_FREE_CMA_PAGES);
	free -= READ_ONCE(zone->nr_free_highatomic);
#ifdef CONFIG_UNACCEPTED_MEMORY
	free -= zone_page_state(zone, NR_UNACCEPTED);
#endif
	return free - high_wmark_pages(zone);
}

/* Pages that a zone keeps from all that can come from higher zones. */
static long fh_reserve(struct zone *zone)
{
	return zone->lowmem_reserve[MAX_NR_ZONES - 1];
}

/* Granules on the free lists, in one piece or in larger ones. */
static unsigned long fh_free_granules(struct fh_zone *fz)
{
	unsigned long nr = 0;
	unsigned int order;

	for (order = fz->order; order < NR_PAGE_ORDERS; order++)
		/* Moves with every allocation anyway. */
		nr += data_race(fz->zone->free_area[order].nr_free)
		      << (order - fz->order);
	return nr;
}

/**
 * fh_spare_granules - what a zone can spare, in whole granules
 * @fz: the zone
 *
 * Context: any. Return: less than 0 if it is short even of what it has to keep.
 */
long fh_spare_granules(struct fh_zone *fz)
{
	return min((fh_headroom(fz->zone) - fh_reserve(fz->zone)) >> fz->order,
		   (long)fh_free_granules(fz));
}

/**
 * fh_allowance - how many granules may be taken now
 * @fz: the zone
 *
 * Context: any; racy, as all watermark checks are. Return: 0 or less if none.
 */
long fh_allowance(struct fh_zone *fz)
{
	long headroom = fh_headroom(fz->zone) >> fz->order;
	long reserve = fh_reserve(fz->zone) >> fz->order;
	long listed = fh_free_granules(fz);
	long in_flight, share;

	/* Only the engine's thread changes it. */
	in_flight = data_race(fz->nr[FH_INFLIGHT]);

	/*
	 * Much can be free, and little of it in whole granules. Who needs one then
	 * has to compact memory for what is away.
	 */
	share = (min(headroom - reserve, listed) + in_flight) / FH_INFLIGHT_SHARE;
	/*
	 * The reserve is there so that higher classes do not use up the zone, which
	 * a hint does not: it borrows. It can be larger than the zone.
	 */
	if (reserve)
		share = max(share, FH_MAX_BORROWED);
	share = min_t(long, share, FH_MAX_INFLIGHT >> fz->order) >> fz->slow;
	share = max(share, 1L);

	return min3(headroom, share - in_flight, listed - FH_ZONE_RESERVE);
}

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

	KUNIT_STATIC_STUB_REDIRECT(fh_find_buddy, zone, pfn, order);

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
 * Would this be the last block of its kind? The next allocation of that kind
 * would claim a pageblock of another for good, only because a hint was under
 * way.
 */
static bool fh_last_of_kind(struct fh_zone *fz, struct page *buddy, int mt)
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

/**
 * fh_take_block - take free memory off the free lists
 * @fz: the zone
 * @pfn: first page
 * @order: how much is wanted, at least the granule
 *
 * Context: zone->lock held.
 * Return: the order of what was taken, @order or less; -ENOENT if the granule is
 * not free; -EBUSY if it is free but must stay.
 */
int fh_take_block(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	struct zone *zone = fz->zone;
	struct page *page, *buddy;
	int mt;

	KUNIT_STATIC_STUB_REDIRECT(fh_take_block, fz, pfn, order);

	page = pfn_to_online_page(pfn);
	buddy = page ? fh_find_buddy(zone, pfn, fz->order) : NULL;
	if (!buddy)
		return -ENOENT;

	/*
	 * Whoever isolated a pageblock counts on its free pages staying where
	 * they are; offlining would BUG. The highatomic reserve is for those
	 * that can't wait.
	 */
	mt = get_pageblock_migratetype(buddy);
	if (is_migrate_isolate(mt) || is_migrate_highatomic(mt))
		return -EBUSY;

	order = min(order, buddy_order(buddy));
	if (buddy_order(buddy) == order && fh_last_of_kind(fz, buddy, mt))
		return -EBUSY;

	__freehint_take(zone, buddy, page, order);
	return order;
}

/* Pages with a memory error must not come back; there are hardly ever any. */
static bool fh_poisoned(unsigned long pfn, unsigned int order)
{
#ifdef CONFIG_MEMORY_FAILURE
	unsigned long end = pfn + (1UL << order);

	if (!atomic_long_read(&num_poisoned_pages))
		return false;
	for (; pfn < end; pfn++)
		if (PageHWPoison(pfn_to_page(pfn)))
			return true;
#endif
	return false;
}

static void fh_give_healthy(struct fh_zone *fz, unsigned long pfn,
			    unsigned int order)
{
	unsigned long end = pfn + (1UL << order);

	for (; pfn < end; pfn++)
		if (!PageHWPoison(pfn_to_page(pfn)))
			__freehint_give(fz->zone, pfn_to_page(pfn), 0);
}

/* Has the memory just been in use, so that it is likely to be so again? */
static bool fh_is_pending(struct fh_zone *fz, unsigned long pfn,
			  unsigned long end)
{
	return fh_any(fz, pfn, end, FH_YOUNG) || fh_any(fz, pfn, end, FH_AGED);
}

/*
 * A contiguous allocation looks for room from the bottom of its area up, and from
 * boot on others use that area from the top down. Blocks that come back in address
 * order, each to the tail, would turn this round: the bottom would be full first,
 * and every such allocation had to migrate or reclaim what is there. So a block goes
 * before the one below it, and is used before that.
 */
static void fh_spare_bottom(struct fh_zone *fz, unsigned long pfn)
{
	unsigned long start = ALIGN_DOWN(pfn, MAX_ORDER_NR_PAGES);
	unsigned long below = start - MAX_ORDER_NR_PAGES;
	struct page *block, *lower;

	block = fh_find_buddy(fz->zone, start, MAX_PAGE_ORDER);
	if (!block || !is_migrate_cma(get_pageblock_migratetype(block)))
		return;

	/* What is pending is near the head of the list, no place for a hinted one. */
	lower = pfn_to_online_page(below);
	if (!lower || fh_is_pending(fz, below, start))
		return;
	lower = fh_find_buddy(fz->zone, below, MAX_PAGE_ORDER);
	if (lower && is_migrate_cma(get_pageblock_migratetype(lower)))
		list_move_tail(&block->buddy_list, &lower->buddy_list);
}

/**
 * fh_give_block - put a block back on the free lists
 * @fz: the zone
 * @pfn: first page
 * @order: the order that it was taken with, or a part of it
 *
 * The caller has set the state that the granules shall have when they are free.
 *
 * Context: zone->lock held, in a kernel thread.
 */
void fh_give_block(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	KUNIT_STATIC_STUB_REDIRECT(fh_give_block, fz, pfn, order);

	if (unlikely(fh_poisoned(pfn, order))) {
		fh_note_taken(fz, pfn, order);
		fh_give_healthy(fz, pfn, order);
		return;
	}
	__freehint_give(fz->zone, pfn_to_page(pfn), order);
	if (IS_ENABLED(CONFIG_CMA))
		fh_spare_bottom(fz, pfn);
	trace_freehint_give(pfn, order);
}

/* Granules that one lock hold of a resync looks at. */
#define FH_RESYNC_GRANULES	64UL

static void fh_resync_some(struct fh_zone *fz, unsigned long pfn,
			   unsigned long end)
{
	while (pfn < end) {
		struct page *page = pfn_to_online_page(pfn);

		if (page && fh_find_buddy(fz->zone, pfn, fz->order)) {
			fh_note_free(fz, pfn, fz->order);
			/* Free for who knows how long. */
			fh_move(fz, pfn, fz->order, FH_YOUNG, FH_AGED);
		}
		pfn += fh_granule_pages(fz);
	}
}

static void fh_resync_section(struct fh_zone *fz, unsigned long sec)
{
	const unsigned long step = min(FH_RESYNC_GRANULES << fz->order,
				       PAGES_PER_SECTION);
	unsigned long pfn = section_nr_to_pfn(fz->map->first + sec);
	unsigned long end = pfn + PAGES_PER_SECTION;
	unsigned long flags;

	spin_lock_irqsave(&fz->zone->lock, flags);
	fh_wipe_chunk(fz, sec);
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	for (; pfn < end; pfn += step) {
		spin_lock_irqsave(&fz->zone->lock, flags);
		fh_resync_some(fz, pfn, pfn + step);
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	}
}

/**
 * fh_resync - learn from the free lists what is free, and forget the rest
 * @fz: the zone
 *
 * When the hooks have not been watching, or when no earlier answer of the device
 * holds any more. What is in flight stays so.
 *
 * Context: process context.
 */
void fh_resync(struct fh_zone *fz)
{
	unsigned long sec, flags;

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->generation++;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	get_online_mems();
	for (sec = 0; sec < fz->map->nr; sec++)
		if (fz->map->chunk[sec])
			fh_resync_section(fz, sec);
	put_online_mems();

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->busy = true;
	fz->settling = true;
	fz->burst = 0;
	fz->freed = 0;
	fz->reuse = (struct fh_reuse) { };
	spin_unlock_irqrestore(&fz->zone->lock, flags);
}

/* The largest block at @pfn of which every granule has aged. */
static unsigned int fh_aged_order(struct fh_zone *fz, unsigned long pfn,
				  unsigned long max_pages)
{
	unsigned int order = fz->order;

	while (order < MAX_PAGE_ORDER && IS_ALIGNED(pfn, 2UL << order) &&
	       (2UL << order) <= max_pages &&
	       fh_test(fz, pfn, order + 1, FH_AGED))
		order++;
	return order;
}

/*
 * Neighbours become one range, though not beyond a section: memory blocks, which
 * come and go as a whole, start and end with one.
 */
static void fh_add_range(struct freehint_hint *hint, unsigned long pfn,
			 unsigned long nr_pages)
{
	struct freehint_range *last = NULL;

	hint->nr_pages += nr_pages;
	if (hint->nr_ranges)
		last = &hint->ranges[hint->nr_ranges - 1];
	if (last && last->pfn + last->nr_pages == pfn &&
	    pfn_to_section_nr(last->pfn) == pfn_to_section_nr(pfn)) {
		last->nr_pages += nr_pages;
		return;
	}

	last = &hint->ranges[hint->nr_ranges++];
	last->pfn = pfn;
	last->nr_pages = nr_pages;
	last->verdict = FREEHINT_DECLINED;
}

/**
 * fh_rewind - a round begins
 * @fz: the zone
 *
 * Context: the engine's thread.
 */
void fh_rewind(struct fh_zone *fz)
{
	fz->cursor = 0;
	fz->run_end = FH_NO_PFN;
	fz->progress = false;
	fz->guarded = false;
}

/* No range goes on beyond a section, so no run does. */
static void fh_count_run(struct fh_zone *fz, unsigned long pfn,
			 unsigned int order)
{
	if (pfn != fz->run_end || !(pfn & ~PAGE_SECTION_MASK))
		fz->runs++;
	fz->run_end = pfn + (1UL << order);
}

/* Take, or skip, the aged granules at the cursor. Returns pages taken. */
static unsigned long fh_take_next(struct fh_zone *fz, struct freehint_hint *hint,
				  unsigned long max_pages)
{
	unsigned long pfn = fz->cursor;
	int order;

	order = fh_take_block(fz, pfn, fh_aged_order(fz, pfn, max_pages));
	if (order < 0) {
		fz->cursor = pfn + fh_granule_pages(fz);
		if (order == -ENOENT) {
			fh_drop(fz, pfn, fz->order, FH_AGED);
			fz->stale++;
		}
		return 0;
	}

	fh_move(fz, pfn, order, FH_AGED, FH_INFLIGHT);
	fh_add_range(hint, pfn, 1UL << order);
	fh_count_run(fz, pfn, order);
	trace_freehint_take(pfn, order);
	fz->cursor = pfn + (1UL << order);
	return 1UL << order;
}

/**
 * fh_fill_some - one lock hold of fh_fill()
 * @fz: the zone; the walk goes on at its cursor
 * @hint: has room for a range
 * @max_pages: take so many at most
 *
 * Context: zone->lock held, in the engine's thread.
 * Return: true if the zone may have more to offer.
 */
bool fh_fill_some(struct fh_zone *fz, struct freehint_hint *hint,
		  unsigned long max_pages)
{
	unsigned int looks = 2 * FH_HOLD_GRANULES;

	while (max_pages && looks-- && hint->nr_ranges < hint->max_ranges) {
		if (!fh_next(fz, FH_AGED, &fz->cursor))
			return fz->cursor != FH_NO_PFN;
		max_pages -= fh_take_next(fz, hint, max_pages);
	}
	return true;
}

/**
 * fh_fill - fill a hint with granules of a zone that have aged
 * @fz: the zone; the walk goes on at its cursor
 * @hint: an empty hint
 *
 * Context: the engine's thread.
 * Return: true if there is something in the hint.
 */
bool fh_fill(struct fh_zone *fz, struct freehint_hint *hint)
{
	const unsigned long max_hint = max(FH_MAX_HINT >> fz->slow,
					   fh_granule_pages(fz));
	unsigned long flags;
	bool more = true;

	hint->zone = fz->zone;
	/* What is taken after a resync has begun may still be of before. */
	hint->generation = data_race(fz->generation);
	hint->nr_ranges = 0;
	hint->nr_pages = 0;

	while (more && hint->nr_ranges < hint->max_ranges &&
	       hint->nr_pages + fh_granule_pages(fz) <= max_hint) {
		long room = (max_hint - hint->nr_pages) >> fz->order;
		long nr = min3(fh_allowance(fz), room, (long)FH_HOLD_GRANULES);

		if (nr <= 0) {
			fz->guarded = true;
			break;
		}
		spin_lock_irqsave(&fz->zone->lock, flags);
		more = fh_fill_some(fz, hint, (unsigned long)nr << fz->order);
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	}
	return hint->nr_ranges;
}

static enum fh_plane fh_state_after(enum freehint_verdict verdict, bool stale)
{
	/* Said under an epoch that is over: no answer at all. */
	if (stale)
		return FH_AGED;

	switch (verdict) {
	case FREEHINT_DISCARDED:
		return FH_HINTED;
	case FREEHINT_THROTTLED:
		return FH_AGED;
	case FREEHINT_NEVER:
		return FH_NEVER;
	default:
		return FH_HELD;
	}
}

static void fh_give_some(struct fh_zone *fz, unsigned long *pfn,
			 unsigned long end, enum fh_plane to)
{
	unsigned long stop = min(end, *pfn + (FH_HOLD_GRANULES << fz->order));

	lockdep_assert_held(&fz->zone->lock);

	while (*pfn < stop) {
		unsigned int order = min_t(unsigned int, MAX_PAGE_ORDER,
					   ilog2(stop - *pfn));

		order = min_t(unsigned int, order, __ffs(*pfn | BIT(order)));
		fh_move(fz, *pfn, order, FH_INFLIGHT, to);
		if (to == FH_HINTED && !fz->settling)
			fh_mark_recent(fz, *pfn, order);
		fh_give_block(fz, *pfn, order);
		*pfn += 1UL << order;
	}
}

/*
 * A device has to answer within a time, and throttles what it does not get round
 * to, also a range of which it has discarded the larger part. So that there is
 * progress, however slow it is, less is in flight until it keeps up.
 */
static void fh_learn_speed(struct fh_zone *fz, const struct freehint_hint *hint)
{
	bool throttled = false;
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++)
		throttled |= hint->ranges[i].verdict == FREEHINT_THROTTLED;

	if (throttled)
		fz->slow = min(fz->slow + 1, FH_MAX_SLOW);
	else if (fz->slow)
		fz->slow--;
}

/**
 * fh_give_back - put what a hint took back on the free lists
 * @hint: the hint, which the device has let go of; its verdicts count
 * @stale: they do not
 *
 * Context: the engine's thread.
 */
void fh_give_back(struct freehint_hint *hint, bool stale)
{
	struct fh_zone *fz = hint->zone->freehint;
	unsigned long flags;
	unsigned int i;

	fh_learn_speed(fz, hint);
	for (i = 0; i < hint->nr_ranges; i++) {
		const struct freehint_range *range = &hint->ranges[i];
		enum fh_plane to = fh_state_after(range->verdict, stale);
		unsigned long end = range->pfn + range->nr_pages;
		unsigned long pfn = range->pfn;

		trace_freehint_range(hint->cookie, range);
		while (pfn < end) {
			spin_lock_irqsave(&fz->zone->lock, flags);
			/* A resync may have begun since the driver looked. */
			if (hint->generation != fz->generation)
				to = FH_AGED;
			fh_give_some(fz, &pfn, end, to);
			spin_unlock_irqrestore(&fz->zone->lock, flags);
			cond_resched();
		}
	}
}

/**
 * fh_pcp_pages - how many free pages the per-CPU lists of a zone hold
 * @zone: the zone
 *
 * Context: any; without locks, so good to tell a lot from little.
 */
unsigned long fh_pcp_pages(struct zone *zone)
{
	unsigned long nr = 0;
	int cpu;

	for_each_online_cpu(cpu)
		/* The lists' owners go on meanwhile. */
		nr += data_race(per_cpu_ptr(zone->per_cpu_pageset, cpu)->count);
	return nr;
}

/**
 * fh_drain_pcp - bring freed pages from the per-CPU lists to the free lists
 * @fz: the zone
 *
 * An eighth of the zone can be on these lists after a burst, and trickles back
 * over half a minute by itself. Only worth it for more than a few granules.
 *
 * Context: process context. Return: whether it was worth it.
 */
bool fh_drain_pcp(struct fh_zone *fz)
{
	if (fh_pcp_pages(fz->zone) < 4 * fh_granule_pages(fz))
		return false;
	drain_all_pages(fz->zone);
	return true;
}
