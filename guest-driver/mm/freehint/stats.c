// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: counters, and what else the administrator is shown.
 */
#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/mm.h>

#include "engine.h"

/* While the engine does not run, nobody keeps track of states. */
static void fh_count_states(const struct fh_zone *fz,
			    struct freehint_stats *stats)
{
	stats->refused_bytes += fh_plane_bytes(fz, FH_HELD);
	stats->excluded_bytes += fh_plane_bytes(fz, FH_NEVER);
}

static void fh_count_zone(const struct fh_zone *fz, bool running,
			  struct freehint_stats *stats)
{
	if (running)
		fh_count_states(fz, stats);
	stats->runs += fz->runs;
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
	stats->age_ms = READ_ONCE(e->pace.age_ms);
	stats->granule = PAGE_SIZE << e->order;
	fh_gauges_get(e, &stats->gauges);
	for_each_fh_zone(fz)
		fh_count_zone(fz, e->running, stats);
}
EXPORT_SYMBOL_GPL(freehint_get_stats);
