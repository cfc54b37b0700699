// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: memory that is free, but on no free list or in no whole granule.
 *
 * An optional layer. After a burst, per-CPU lists hold up to an eighth of a zone, and
 * release it over half a minute. So they are drained at the end of the period in which
 * a burst began, so that what they hold ages with the rest, and at the end of a period
 * without one. A drain moves what was freed since the last one, so it moves each page
 * once at most.
 */
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/swap.h>

#include "../internal.h"
#include "hooks.h"
#include "internal.h"

static bool fh_drains = true;

/**
 * freehint_set_drain - let freehint_age() drain per-CPU lists, or not
 * @drain: whether it does
 *
 * Context: any.
 */
void freehint_set_drain(bool drain)
{
	WRITE_ONCE(fh_drains, drain);
}
EXPORT_SYMBOL_GPL(freehint_set_drain);

static unsigned long fh_pcp_granules(const struct fh_zone *fz)
{
	unsigned long pages = 0;
	int cpu;

	for_each_online_cpu(cpu)
		/* The CPUs go on using their lists. */
		pages += data_race(per_cpu_ptr(fz->zone->per_cpu_pageset, cpu)->count);
	return pages >> fz->order;
}

/**
 * fh_pcp_is_full - do the per-CPU lists of a zone hold a burst
 * @fz: the zone
 *
 * Context: any, under RCU.
 */
bool fh_pcp_is_full(const struct fh_zone *fz)
{
	return READ_ONCE(fh_drains) && !READ_ONCE(fz->leaving) &&
	       fh_pcp_granules(fz) >= FH_BURST;
}

/**
 * fh_drain_zone - drain a zone's per-CPU lists
 * @zone: the zone
 *
 * Holds the lock, with interrupts off, for a shorter time than drain_all_pages().
 *
 * Context: process context.
 */
void fh_drain_zone(struct zone *zone)
{
	int cpu;

	for_each_online_cpu(cpu)
		while (__freehint_drain_some(zone, cpu))
			cond_resched();
}

/**
 * fh_drain - drain a zone's per-CPU lists at the end of a period, if that is worth it
 * @fz: the zone
 * @full: whether somebody has found them full
 *
 * Context: fh_topology held. Return: whether there is more to do at the end of the next
 * period.
 */
bool fh_drain(struct fh_zone *fz, bool full)
{
	/* What is missed now is seen at the end of the next period. */
	unsigned long burst = READ_ONCE(fz->burst), freed = READ_ONCE(fz->freed);
	bool quiet = freed + READ_ONCE(fz->taken) < FH_BURST;
	unsigned long kept, irq;

	if (!READ_ONCE(fh_drains) || fz->leaving || !(burst || full))
		return false;
	/* In the middle of a burst. */
	if (!quiet && burst != freed)
		return burst >= FH_BURST;
	kept = fh_pcp_granules(fz);
	/* The pages that they keep may have left hardly a granule whole. */
	if (burst + kept >= FH_BURST && kept >= 4) {
		fh_drain_zone(fz->zone);
		fz->nr_drains++;
	}
	if (!quiet)
		return burst >= FH_BURST;
	spin_lock_irqsave(&fz->zone->lock, irq);
	fz->burst = 0;
	spin_unlock_irqrestore(&fz->zone->lock, irq);
	return false;
}

/**
 * freehint_gather - bring free memory to the free lists, for a flush
 * @compact: move memory in use, too, as far as time allows
 * @deadline: when that has to end, in jiffies
 *
 * Context: process context, in any thread but the one that returns batches, as it may
 * take long.
 */
void freehint_gather(bool compact, unsigned long deadline)
{
	struct zone *zone;

	if (compact) {
		/* Pages that wait on per-CPU lists for the LRU cannot be moved. */
		lru_add_drain_all();
		for_each_populated_zone(zone)
			compact_zone_until(zone, deadline);
	}
	get_online_mems();
	for_each_populated_zone(zone)
		fh_drain_zone(zone);
	put_online_mems();
}
EXPORT_SYMBOL_GPL(freehint_gather);
