// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: what the device is told of the guest's memory.
 *
 * Gauges go along with hints, where they cost no notification of their own. What
 * changes without hints is looked at now and then, by a timer that does not wake
 * a CPU: an idle guest stays idle, and there is nothing to tell of it either.
 */
#include <linux/freehint.h>
#include <linux/jiffies.h>
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/vmstat.h>

#include <trace/events/freehint.h>

#include "engine.h"

/* Time between two looks, on a CPU that is awake. */
#define FH_GAUGES_PERIOD	(5 * HZ)

/* What moved by less than one in this many bytes of memory is not worth telling. */
#define FH_GAUGES_SHARE		128

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

/**
 * fh_gauges_add_zone - add a zone's part to gauges
 * @gauges: the gauges; what is free, or in flight, is not counted by zone
 * @fz: the zone
 * @running: the engine runs: else nobody keeps track of states
 *
 * Context: any.
 */
void fh_gauges_add_zone(struct freehint_gauges *gauges,
			const struct fh_zone *fz, bool running)
{
	if (running) {
		gauges->pending_bytes += fh_plane_bytes(fz, FH_YOUNG);
		gauges->pending_bytes += fh_plane_bytes(fz, FH_AGED);
		gauges->discarded_bytes += fh_plane_bytes(fz, FH_HINTED);
	}
	gauges->stuck_bytes += fh_bytes(fh_stuck_pages(fz));
	/* Not worth the lock. */
	gauges->reused_bytes += fh_bytes(data_race(fz->reused_total) << fz->order);
}

/**
 * fh_gauges_get - the present gauges
 * @e: the engine
 * @gauges: filled
 *
 * Context: any in which a device stays registered.
 */
void fh_gauges_get(const struct fh_engine *e, struct freehint_gauges *gauges)
{
	struct fh_zone *fz;

	*gauges = (struct freehint_gauges) {
		.free_bytes = fh_bytes(global_zone_page_state(NR_FREE_PAGES)),
		.in_flight_bytes = fh_bytes(atomic_long_read(&e->in_flight)),
	};
	for_each_fh_zone(fz)
		fh_gauges_add_zone(gauges, fz, READ_ONCE(e->running));
}

static bool fh_moved(u64 old, u64 now, u64 step)
{
	return abs_diff(old, now) >= step;
}

/**
 * fh_gauges_moved - are gauges worth telling
 * @old: what the device knows
 * @now: what is
 * @step: by how much one of them must differ, in bytes
 */
bool fh_gauges_moved(const struct freehint_gauges *old,
		     const struct freehint_gauges *now, u64 step)
{
	return fh_moved(old->free_bytes, now->free_bytes, step) ||
	       fh_moved(old->pending_bytes, now->pending_bytes, step) ||
	       fh_moved(old->discarded_bytes, now->discarded_bytes, step) ||
	       fh_moved(old->in_flight_bytes, now->in_flight_bytes, step) ||
	       fh_moved(old->stuck_bytes, now->stuck_bytes, step) ||
	       fh_moved(old->reused_bytes, now->reused_bytes, step);
}

/* No less than a granule, and no more than what an operator cares for. */
static u64 fh_gauges_step(const struct fh_engine *e)
{
	u64 share = fh_bytes(totalram_pages()) / FH_GAUGES_SHARE;

	return max_t(u64, min_t(u64, share, SZ_64M), PAGE_SIZE << e->order);
}

/**
 * fh_gauges_send - put the present gauges where the device will find them
 * @e: the engine
 *
 * Context: the engine's thread. Return: whether the device is to be told.
 */
bool fh_gauges_send(struct fh_engine *e)
{
	struct freehint_gauges gauges;

	fh_gauges_get(e, &gauges);
	if (!e->dev->ops->gauges(e->dev, &gauges))
		return false;
	trace_freehint_gauges(&gauges);
	e->told = gauges;
	return true;
}

/* There is something to tell, and no hint that it could go along with. In the thread. */
void fh_gauges_tell(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;

	if (READ_ONCE(e->running) && fh_gauges_send(e))
		e->dev->ops->kick(e->dev);
}

static bool fh_gauges_worth_telling(const struct fh_engine *e)
{
	struct freehint_gauges now;

	fh_gauges_get(e, &now);
	return fh_gauges_moved(&e->told, &now, fh_gauges_step(e));
}

/**
 * fh_gauges_rest - the engine has nothing more to do for now
 * @e: the engine
 *
 * What went along with the last hint is of the time when it was in flight. Nobody
 * may look again for as long as the guest is idle.
 *
 * Context: the engine's thread.
 */
void fh_gauges_rest(struct fh_engine *e)
{
	if (fh_gauges_worth_telling(e))
		fh_gauges_tell(&e->tell);
}

/* In the timer's interrupt, so that the thread is only woken for something. */
static void fh_gauges_look(struct timer_list *timer)
{
	struct fh_engine *e = container_of(timer, struct fh_engine, look);

	if (fh_gauges_worth_telling(e))
		kthread_queue_work(e->worker, &e->tell);
	if (fh_worth_another_round(e))
		kthread_queue_delayed_work(e->worker, &e->tick, 0);
	mod_timer(&e->look, jiffies + FH_GAUGES_PERIOD);
}

/**
 * fh_gauges_start - begin to look at the gauges
 * @e: the engine
 *
 * Context: control, the mutex held.
 */
void fh_gauges_start(struct fh_engine *e)
{
	mod_timer(&e->look, jiffies + FH_GAUGES_PERIOD);
}

/**
 * fh_gauges_stop - look at the gauges no more
 * @e: the engine
 *
 * Context: control, the mutex held.
 */
void fh_gauges_stop(struct fh_engine *e)
{
	timer_delete_sync(&e->look);
}

/**
 * fh_gauges_init - once
 * @e: the engine
 */
void __init fh_gauges_init(struct fh_engine *e)
{
	timer_setup(&e->look, fh_gauges_look, TIMER_DEFERRABLE);
}
