// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: what the driver calls, and waiting for what the driver has.
 */
#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/rculist.h>
#include <linux/vmstat.h>
#include <linux/wait.h>

#include "../page_reporting.h"
#include "hooks.h"
#include "internal.h"

/* The longest that others wait for what is out. */
#define FH_WAIT		HZ

/* After an OOM, free memory is left alone for this long. */
#define FH_OOM_PAUSE	(10 * HZ)

/* A burst keeps a zone from giving for at most this many periods. */
#define FH_MAX_PUT_OFF	3

/* Pages that the driver has: those that are expected back, and those that are not. */
static atomic_long_t fh_out;
static atomic_long_t fh_lost_pages;

/* Woken whenever fh_out falls. */
static DECLARE_WAIT_QUEUE_HEAD(fh_wait);

/* Nothing is collected before this time, in jiffies. */
static unsigned long fh_pause_end = INITIAL_JIFFIES;

static bool fh_paused(void)
{
	return time_before(jiffies, READ_ONCE(fh_pause_end));
}

/* Per-CPU lists were found to be full. */
static bool fh_pcp_full;

/**
 * freehint_engine - what keeps track of free memory
 *
 * Return: its name.
 *
 * Context: any.
 */
const char *freehint_engine(void)
{
	return "mm";
}
EXPORT_SYMBOL_GPL(freehint_engine);

/**
 * freehint_refusal - why mm does not offer free memory now, if it does not
 * @order: the granule, as an order of pages
 *
 * Context: any.
 */
enum freehint_refusal freehint_refusal(unsigned int order)
{
	if (order > pageblock_order)
		return FREEHINT_NO_GRANULE;
	if (page_poisoning_enabled())
		return FREEHINT_NO_POISONING;
	if (debug_pagealloc_enabled() || debug_guardpage_enabled() ||
	    IS_ENABLED(CONFIG_KMSAN))
		return FREEHINT_NO_DEBUGGING;
	if (page_reporting_registered())
		return FREEHINT_NO_OTHER;
	return FREEHINT_CAN;
}
EXPORT_SYMBOL_GPL(freehint_refusal);

/**
 * freehint_start - keep track of free memory
 * @order: the granule, as an order of pages
 * @wake: called when memory was freed and no period is under way: one is to start.
 *	In hard interrupt context, or with interrupts off.
 * @data: for @wake
 *
 * All that is free is due.
 *
 * Return: 0; -EBUSY if it has a user; -EINVAL if there is a freehint_refusal(); -ENOMEM.
 */
int freehint_start(unsigned int order, void (*wake)(void *data), void *data)
{
	int ret;

	if (freehint_refusal(order))
		return -EINVAL;
	if (static_key_enabled(&freehint_key))
		return -EBUSY;

	fh_wake_whom(wake, data);
	ret = fh_track(order);
	if (!ret)
		freehint_rehint();
	return ret;
}
EXPORT_SYMBOL_GPL(freehint_start);

/**
 * freehint_stop - do not keep track of free memory any more
 *
 * Batches that are out can be returned afterwards; what became of them is forgotten.
 * When this returns, wake() does not run and will not be called.
 */
void freehint_stop(void)
{
	fh_untrack();
	fh_wake_nobody();
}
EXPORT_SYMBOL_GPL(freehint_stop);

static void fh_zone_age(struct fh_zone *fz, enum fh_event event)
{
	unsigned long sec = 0, irq;
	bool more = true;

	while (more) {
		spin_lock_irqsave(&fz->zone->lock, irq);
		more = fh_age_some(fz, &sec, event);
		spin_unlock_irqrestore(&fz->zone->lock, irq);
		cond_resched();
	}
}

/*
 * One lock hold decides whether there is to be another period, and makes the hooks report
 * again. Memory that is due but could not be taken is no reason for a period:
 * freehint_worth_a_look() finds it.
 */
static bool fh_zone_goes_on(struct fh_zone *fz, bool now, bool drains)
{
	unsigned long irq;
	bool busy;

	/*
	 * While much is being freed, the next blocks are likely to be neighbours of those
	 * that are free: a little later they make one range, and fewer messages.
	 */
	if (!now && READ_ONCE(fz->freed) >= FH_BURST && fz->put_off < FH_MAX_PUT_OFF)
		fz->put_off++;
	else
		fz->put_off = 0;

	/* If only freehint_collect() looked at this, the periods would end. */
	if (!now && fh_nr_due(fz))
		fh_yields(fz, fh_count_stalls());

	spin_lock_irqsave(&fz->zone->lock, irq);
	busy = fh_nr_young(fz) || drains || fz->put_off ||
	       (fh_nr_due(fz) && (fz->progress || fh_is_yielding(fz)));
	fz->busy = busy;
	fz->freed = 0;
	fz->taken = 0;
	spin_unlock_irqrestore(&fz->zone->lock, irq);

	fz->nr_guarded += !!(fz->left & FH_LEFT_GUARDED);
	fz->left = 0;
	fz->progress = false;
	fz->cursor = fz->put_off ? 0 : FH_TOP;
	fz->early_cursor = fz->cursor;
	return busy;
}

/**
 * freehint_age - a period is over
 * @flags: FREEHINT_NOW: all that is pending or lazy is due; or 0: what has been pending
 *	for a whole period is due; or FREEHINT_EARLY: the same, but the guest may want it
 *	back soon
 *
 * What is due, and was not taken in the last period, can be taken again.
 *
 * Return: whether there is to be another period, even without wake().
 */
bool freehint_age(unsigned int flags)
{
	enum fh_event event = flags & FREEHINT_NOW ? FH_HURRY :
			      flags & FREEHINT_EARLY ? FH_PERIOD_EARLY : FH_PERIOD;
	bool full = xchg(&fh_pcp_full, false);
	struct fh_zone *fz;
	bool busy = false;

	guard(mutex)(&fh_topology);
	list_for_each_entry(fz, &fh_zones, list) {
		bool drains = fh_drain(fz, full);

		fh_zone_age(fz, event);
		busy |= fh_zone_goes_on(fz, flags & FREEHINT_NOW, drains);
	}
	return busy;
}
EXPORT_SYMBOL_GPL(freehint_age);

/**
 * freehint_settle - a settle time is over
 *
 * What has been lazy for a whole settle time is due, and can be taken.
 *
 * Return: whether anything is still lazy.
 */
bool freehint_settle(void)
{
	struct fh_zone *fz;
	bool more = false;

	guard(mutex)(&fh_topology);
	list_for_each_entry(fz, &fh_zones, list) {
		if (!fh_nr_lazy(fz))
			continue;
		fh_zone_age(fz, FH_SETTLE);
		fz->cursor = fz->put_off ? 0 : FH_TOP;
		more |= fh_nr_lazy(fz);
	}
	return more;
}
EXPORT_SYMBOL_GPL(freehint_settle);

/**
 * freehint_worth_a_look - is there something to do that wake() does not announce
 *
 * What was left because a zone was short of memory, or because somebody had isolated it,
 * can be taken some time later. And all that is freed may stay on per-CPU lists. So call
 * this about once per second, from a timer that need not wake a CPU.
 *
 * Context: any. Return: whether a period should end now.
 */
bool freehint_worth_a_look(void)
{
	struct fh_zone *fz;
	bool paused = fh_paused();
	bool worth = false;

	guard(rcu)();
	list_for_each_entry_rcu(fz, &fh_zones, list) {
		if (fh_pcp_is_full(fz)) {
			WRITE_ONCE(fh_pcp_full, true);
			worth = true;
		}
		worth |= !paused && fh_can_give(fz);
	}
	return worth;
}
EXPORT_SYMBOL_GPL(freehint_worth_a_look);

/* Is there something that is due, early or not? */
static bool fh_has_due(const struct fh_zone *fz, bool early)
{
	unsigned long nr_early = READ_ONCE(fz->nr[FH_EARLY]);

	return early ? nr_early && fz->early_cursor :
		       fh_nr_due(fz) > nr_early && fz->cursor;
}

/* Of the zones that have something due, the one whose last turn is the longest ago. */
static struct fh_zone *fh_whose_turn(u64 collection, bool early)
{
	struct fh_zone *fz, *next = NULL;

	list_for_each_entry(fz, &fh_zones, list)
		if (fh_has_due(fz, early) && fz->tried != collection &&
		    (!next || fz->turn < next->turn))
			next = fz;
	return next;
}

static void fh_collect(struct freehint_batch *batch, unsigned long max_pages,
		       const unsigned long *stalls)
{
	static u64 collection;
	struct fh_zone *fz;

	collection++;
	while ((fz = fh_whose_turn(collection, batch->early))) {
		fz->tried = collection;
		if (!fh_collect_zone(fz, batch,
				     max(max_pages, fh_granule_pages(fz)),
				     stalls))
			continue;
		fz->turn = collection;
		atomic_long_add(batch->nr_pages, &fh_out);
		break;
	}
}

/**
 * freehint_collect - take free memory that is due off the free lists
 * @batch: filled; belongs to the driver until freehint_return()
 * @max_pages: take no more than this, but at least a granule if there is one
 * @flags: FREEHINT_NOW: zones that are short of memory give, too; or 0
 *
 * A batch is of one zone; zones take turns. All of it is early, or none; early memory
 * comes first, as it is the least work.
 *
 * Return: how many ranges there are in the batch; 0 if there is nothing to take now.
 */
unsigned int freehint_collect(struct freehint_batch *batch,
			      unsigned long max_pages, unsigned int flags)
{
	unsigned long stalls = fh_count_stalls();
	const unsigned long *yields_to = flags & FREEHINT_NOW ? NULL : &stalls;
	struct fh_zone *fz;

	batch->nr_ranges = 0;
	batch->nr_pages = 0;
	batch->early = true;
	batch->lost = false;

	guard(mutex)(&fh_topology);
	if (fh_paused()) {
		list_for_each_entry(fz, &fh_zones, list)
			fz->left |= FH_LEFT_GUARDED;
		return 0;
	}
	fh_collect(batch, max_pages, yields_to);
	if (!batch->nr_ranges) {
		batch->early = false;
		fh_collect(batch, max_pages, yields_to);
	}
	return batch->nr_ranges;
}
EXPORT_SYMBOL_GPL(freehint_collect);

/**
 * freehint_return - put a batch back on the free lists
 * @batch: the batch, with what became of each range
 *
 * Context: a kernel thread.
 */
void freehint_return(struct freehint_batch *batch)
{
	atomic_long_t *count = batch->lost ? &fh_lost_pages : &fh_out;
	struct fh_zone untracked = {
		.zone = batch->zone,
		.order = freehint_order,
	};
	struct fh_zone *fz = batch->zone->freehint;
	unsigned int i;

	if (!fz)
		fz = &untracked;
	for (i = 0; i < batch->nr_ranges; i++)
		fh_return_range(fz, &batch->ranges[i], batch->early);
	atomic_long_sub(batch->nr_pages, count);
	wake_up_all(&fh_wait);
}
EXPORT_SYMBOL_GPL(freehint_return);

/**
 * freehint_lost - do not expect a batch back
 * @batch: the batch
 *
 * Nobody waits for it any more. It may still be returned; otherwise its pages are not
 * used again before the next boot of the guest.
 */
void freehint_lost(struct freehint_batch *batch)
{
	struct fh_zone *fz = batch->zone->freehint;
	unsigned long pfn, end, irq;
	unsigned int i;

	for (i = 0; fz && i < batch->nr_ranges; i++) {
		pfn = batch->ranges[i].pfn;
		end = pfn + batch->ranges[i].nr_pages;
		for (; pfn < end; pfn += fh_granule_pages(fz)) {
			spin_lock_irqsave(&fz->zone->lock, irq);
			fh_event(fz, pfn, fz->order, FH_LOSE);
			spin_unlock_irqrestore(&fz->zone->lock, irq);
		}
	}
	batch->lost = true;
	atomic_long_add(batch->nr_pages, &fh_lost_pages);
	atomic_long_sub(batch->nr_pages, &fh_out);
	wake_up_all(&fh_wait);
}
EXPORT_SYMBOL_GPL(freehint_lost);

/**
 * freehint_rehint - forget what became of memory
 *
 * All that is free is due again, whether it was discarded or refused. What is out stays
 * so.
 */
void freehint_rehint(void)
{
	struct fh_zone *fz;
	unsigned long irq;

	guard(mutex)(&fh_topology);
	list_for_each_entry(fz, &fh_zones, list) {
		fh_find_free(fz);
		fz->cursor = FH_TOP;
		fz->early_cursor = FH_TOP;
		spin_lock_irqsave(&fz->zone->lock, irq);
		fz->busy = true;
		fz->burst = 0;
		spin_unlock_irqrestore(&fz->zone->lock, irq);
	}
}
EXPORT_SYMBOL_GPL(freehint_rehint);

/**
 * freehint_get_stats - get the current figures
 * @stats: filled
 *
 * Context: any, in any thread. While nothing is tracked, most are 0.
 */
void freehint_get_stats(struct freehint_stats *stats)
{
	struct fh_zone *fz;

	*stats = (struct freehint_stats) {
		.free = global_zone_page_state(NR_FREE_PAGES),
		.out = atomic_long_read(&fh_out),
		.lost = atomic_long_read(&fh_lost_pages),
		.paused = fh_paused(),
	};
	guard(rcu)();
	list_for_each_entry_rcu(fz, &fh_zones, list) {
		unsigned int order = fz->order;

		/* Not worth the lock: each figure is what it was a moment ago. */
		stats->pending += (fh_nr_young(fz) + fh_nr_due(fz)) << order;
		stats->discarded += (READ_ONCE(fz->nr[FH_DISCARDED]) +
				     fh_nr_lazy(fz)) << order;
		stats->lazy += fh_nr_lazy(fz) << order;
		stats->refused += READ_ONCE(fz->nr[FH_REFUSED]) << order;
		stats->stuck += fh_stuck_pages(fz);
		stats->returned += READ_ONCE(fz->returned) << order;
		stats->reused += READ_ONCE(fz->reused) << order;
		stats->spared += READ_ONCE(fz->spared) << order;
		stats->vanished += READ_ONCE(fz->vanished) << order;
		stats->drains += READ_ONCE(fz->nr_drains);
		stats->guarded += READ_ONCE(fz->nr_guarded);
	}
}
EXPORT_SYMBOL_GPL(freehint_get_stats);

static bool fh_range_is_out(unsigned long pfn, unsigned long end)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	unsigned long irq;
	bool out;

	spin_lock_irqsave(&zone->lock, irq);
	out = zone->freehint && fh_any_out(zone->freehint, pfn, end);
	spin_unlock_irqrestore(&zone->lock, irq);
	return out;
}

void __freehint_wait_range(unsigned long start_pfn, unsigned long end_pfn)
{
	wait_event_timeout(fh_wait, !fh_range_is_out(start_pfn, end_pfn),
			   FH_WAIT);
}

static int fh_oom_notify(struct notifier_block *nb, unsigned long unused,
			 void *freed)
{
	long before = atomic_long_read(&fh_out);

	if (!static_key_enabled(&freehint_key))
		return NOTIFY_DONE;
	WRITE_ONCE(fh_pause_end, jiffies + FH_OOM_PAUSE);
	if (before && wait_event_timeout(fh_wait, !atomic_long_read(&fh_out),
					 FH_WAIT))
		*(unsigned long *)freed += before;
	return NOTIFY_OK;
}

static struct notifier_block fh_oom_nb = {
	.notifier_call = fh_oom_notify,
};

static int __init fh_init(void)
{
	fh_debug_init();
	return register_oom_notifier(&fh_oom_nb);
}
subsys_initcall(fh_init);
