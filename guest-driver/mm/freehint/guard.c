// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: the guard. How much may be taken now? Racy, as all watermark checks
 * are.
 *
 * Under pressure, what is out is not recalled: it is back when the device has answered.
 * So no more is ever out than a zone can spare.
 */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/vmstat.h>

#include "internal.h"

/* The most that is out of a zone of any size. */
#define FH_MAX_OUT		(SZ_256M >> PAGE_SHIFT)

/* And at most one in this many of the granules that it can spare. */
#define FH_OUT_SHARE		8

/* Granules that a zone keeps on its lists at all times. */
#define FH_ZONE_RESERVE		8

/*
 * The most granules that are out of a zone that is above its high watermark, but below
 * its reserve: allocations that could use other zones do not get this memory, but the
 * zone's own users may soon need it.
 */
#define FH_BELOW_RESERVE	8

/*
 * A zone is short if less than one in this many of its pages can be spared. It gives
 * nothing for FH_YIELD after somebody had to wait for reclaim or compaction. If that
 * happens again once it gives something, this time doubles, up to FH_MAX_YIELD.
 */
#define FH_SHORT_SHARE		8
#define FH_YIELD		HZ
#define FH_MAX_YIELD		(8UL * HZ)

/* Free pages above the high watermark, exact where the per-CPU drift could matter. */
static long fh_headroom(struct zone *zone)
{
	long free = zone_page_state(zone, NR_FREE_PAGES);

	if (zone->percpu_drift_mark && free < (long)zone->percpu_drift_mark)
		free = zone_page_state_snapshot(zone, NR_FREE_PAGES);

	/* Most allocations may not use these, or not at once. */
	free -= READ_ONCE(zone->nr_free_highatomic);
#ifdef CONFIG_UNACCEPTED_MEMORY
	free -= zone_page_state(zone, NR_UNACCEPTED);
#endif
	return free - high_wmark_pages(zone);
}

/* Granules on the free lists, alone or in larger blocks. */
static unsigned long fh_listed(const struct fh_zone *fz)
{
	unsigned long nr = 0;
	unsigned int order;

	for (order = fz->order; order < NR_PAGE_ORDERS; order++)
		/* Changes with every allocation anyway. */
		nr += data_race(fz->zone->free_area[order].nr_free)
		      << (order - fz->order);
	return nr;
}

/**
 * fh_stuck_pages - how much of a zone is free, but not in whole granules
 * @fz: the zone
 *
 * Context: any, under RCU.
 */
unsigned long fh_stuck_pages(const struct fh_zone *fz)
{
	unsigned long free = zone_page_state(fz->zone, NR_FREE_PAGES);
	unsigned long listed = fh_listed(fz) << fz->order;

	return free - min(free, listed);
}

/*
 * How many granules may be taken from a zone with that many pages of headroom? Much can
 * be free, but little of it in whole granules: whoever needs one then has to compact
 * memory because of what is out.
 */
static long fh_allowance(const struct fh_zone *fz, long headroom)
{
	long reserve = fz->zone->lowmem_reserve[MAX_NR_ZONES - 1];
	/* Only this thread changes it. */
	long out = data_race(fz->nr[FH_OUT]);
	long listed = fh_listed(fz);
	long spare, share;

	spare = (headroom - reserve) >> fz->order;
	if (spare > 0) {
		share = (min(spare, listed) + out) / FH_OUT_SHARE;
		share = clamp_t(long, share, 1, FH_MAX_OUT >> fz->order);
	} else {
		spare = headroom >> fz->order;
		share = FH_BELOW_RESERVE;
	}
	return min3(spare, share - out, listed - FH_ZONE_RESERVE);
}

/**
 * fh_room - how many granules of a zone may be taken now
 * @fz: the zone
 *
 * Context: fh_topology held, or RCU.
 */
struct fh_room fh_room(const struct fh_zone *fz)
{
	long free_cma = zone_page_state(fz->zone, NR_FREE_CMA_PAGES);
	long headroom = fh_headroom(fz->zone);

	return (struct fh_room) {
		.cma = fh_allowance(fz, headroom),
		.other = fh_allowance(fz, headroom - free_cma),
	};
}

/**
 * fh_count_stalls - how often somebody had to wait for memory, in any zone, since boot
 *
 * Context: any. Return: direct reclaims and direct compactions.
 */
unsigned long fh_count_stalls(void)
{
	unsigned long nr = 0;
	int cpu, zid;

	for_each_online_cpu(cpu) {
		const unsigned long *event = per_cpu(vm_event_states, cpu).event;

		for (zid = 0; zid < MAX_NR_ZONES; zid++)
			/* Others go on counting; it only matters whether it changes. */
			nr += data_race(event[ALLOCSTALL_NORMAL - ZONE_NORMAL + zid]);
#ifdef CONFIG_COMPACTION
		/* The same. */
		nr += data_race(event[COMPACTSTALL]);
#endif
	}
	return nr;
}

static bool fh_is_short(const struct fh_zone *fz)
{
	long listed = fh_listed(fz) << fz->order;
	long spare = min(fh_headroom(fz->zone), listed);

	return spare < (long)zone_managed_pages(fz->zone) / FH_SHORT_SHARE;
}

static unsigned long fh_next_yield(const struct fh_zone *fz)
{
	if (time_before(jiffies, fz->yield_end + fz->yield))
		return min(2 * fz->yield, FH_MAX_YIELD);
	return FH_YIELD;
}

/**
 * fh_yields - does a zone give nothing for a while, because somebody waits for memory
 * @fz: the zone
 * @stalls: see fh_count_stalls()
 *
 * Waits are not counted by zone, so the zones that are short yield. A zone that has
 * yielded gives something before it yields again: lasting pressure makes hints rare,
 * but never ends them.
 *
 * Context: fh_topology held.
 */
bool fh_yields(struct fh_zone *fz, unsigned long stalls)
{
	bool moved = stalls != fz->stalls;

	fz->stalls = stalls;
	if (!fh_is_short(fz))
		return false;
	if (moved && !fz->yielded) {
		fz->yield = fh_next_yield(fz);
		fz->yield_end = jiffies + fz->yield;
		fz->yielded = true;
	}
	return time_before(jiffies, fz->yield_end);
}

/**
 * fh_can_give - can something be taken now that was left in the last period
 * @fz: the zone
 *
 * Context: any, under RCU.
 */
bool fh_can_give(const struct fh_zone *fz)
{
	unsigned int left = READ_ONCE(fz->left);
	struct fh_room room;

	if (!fh_nr_due(fz) || READ_ONCE(fz->leaving))
		return false;
	if (left & FH_LEFT_ISOLATED)
		return true;
	if (!(left & FH_LEFT_GUARDED) ||
	    time_before(jiffies, READ_ONCE(fz->yield_end)))
		return false;
	room = fh_room(fz);
	return (left & FH_LEFT_CMA && room.cma > 0) ||
	       (left & FH_LEFT_OTHER && room.other > 0);
}
