// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: counters and gauges.
 */
#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/mm.h>
#include <linux/vmstat.h>

#include "engine.h"

/* Free, but not in one piece of a granule. */
static unsigned long fh_stuck_pages(const struct fh_zone *fz)
{
	unsigned long free = zone_page_state(fz->zone, NR_FREE_PAGES);
	unsigned long granules = 0;
	unsigned int order;

	for (order = fz->order; order < NR_PAGE_ORDERS; order++)
		/* A gauge need not be exact. */
		granules += data_race(fz->zone->free_area[order].nr_free)
			    << (order - fz->order);
	return free - min(free, granules << fz->order);
}

static u64 fh_plane_bytes(const struct fh_zone *fz, enum fh_plane plane)
{
	/* Each figure is right by itself. */
	return fh_bytes(data_race(fz->nr[plane]) << fz->order);
}

/* While the engine does not run, nobody keeps track of states. */
static void fh_count_states(const struct fh_zone *fz,
			    struct freehint_stats *stats)
{
	stats->pending_bytes += fh_plane_bytes(fz, FH_YOUNG);
	stats->pending_bytes += fh_plane_bytes(fz, FH_AGED);
	stats->discarded_bytes += fh_plane_bytes(fz, FH_HINTED);
	stats->refused_bytes += fh_plane_bytes(fz, FH_HELD);
	stats->excluded_bytes += fh_plane_bytes(fz, FH_NEVER);
}

static void fh_count_zone(const struct fh_zone *fz, bool running,
			  struct freehint_stats *stats)
{
	if (running)
		fh_count_states(fz, stats);
	stats->stuck_bytes += fh_bytes(fh_stuck_pages(fz));
	stats->reused_bytes += fh_bytes(fz->reused_total << fz->order);
	stats->stale_granules += fz->stale;
}

/**
 * freehint_get_stats - counters and gauges
 * @dev: the device
 * @stats: filled; each figure for itself is right, taken together they may be a
 *	moment apart
 *
 * Context: process context.
 */
void freehint_get_stats(struct freehint_dev *dev, struct freehint_stats *stats)
{
	struct fh_engine *e = &fh_engine;
	struct fh_zone *fz;

	guard(mutex)(&e->lock);
	*stats = e->stats;
	stats->in_flight_bytes = fh_bytes(atomic_long_read(&e->in_flight));
	stats->age_ms = e->pace.age_ms;
	stats->granule = PAGE_SIZE << e->order;
	for_each_fh_zone(fz)
		fh_count_zone(fz, e->running, stats);
}
EXPORT_SYMBOL_GPL(freehint_get_stats);
