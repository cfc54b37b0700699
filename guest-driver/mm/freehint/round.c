// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: periods and rounds.
 *
 * Time goes in periods. At the end of each, a round hints what has aged; when the
 * round is over, what was young has aged. So memory is hinted after one to two
 * periods. A guest in which nothing is freed has no periods, and is not woken up;
 * what is freed then begins with a short one.
 *
 * All of this but fh_kick() runs in the engine's thread.
 */
#include <linux/jiffies.h>
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/vmstat.h>

#include <trace/events/freehint.h>

#include "engine.h"

bool fh_drain_allowed = true;

/* Does the age follow what it sees, or only what the device asks for? */
bool fh_adapts = true;

/*
 * The period that ends idleness is so many times shorter than others, long enough
 * for what is freed in one go. What ages at its end rests for a whole one after it.
 */
#define FH_FIRST_PERIOD	4

/*
 * For so long nothing is hinted of a zone that is short of memory when somebody had
 * to wait until memory was reclaimed or compacted. Such a zone has little to give,
 * and its users want it. If that goes on when hints do, it is for twice as long each
 * time, up to the maximum.
 */
#define FH_YIELD	HZ
#define FH_MAX_YIELD	(8UL * HZ)

/* A zone is short that can spare less than one in so many of its granules. */
#define FH_SHORT_SHARE	8

/* A zone sits out at most this many rounds because it is in a burst. */
#define FH_MAX_PUT_OFF	3

/**
 * fh_period - the length of a period, in jiffies
 * @e: the engine
 */
unsigned long fh_period(struct fh_engine *e)
{
	unsigned int ms = max(e->pace.age_ms, READ_ONCE(e->delay_ms));

	return max(msecs_to_jiffies(ms), 1UL);
}

/**
 * fh_next_period - let a period end
 * @e: the engine
 * @delay: in this many jiffies, whatever was planned before
 */
void fh_next_period(struct fh_engine *e, unsigned long delay)
{
	if (READ_ONCE(e->running))
		kthread_mod_delayed_work(e->worker, &e->tick, delay);
}

static bool fh_is_short(struct fh_zone *fz)
{
	long granules = zone_managed_pages(fz->zone) >> fz->order;

	return fh_spare_granules(fz) < granules / FH_SHORT_SHARE;
}

static bool fh_yields(struct fh_zone *fz)
{
	return time_before(jiffies, fz->yield_end) && fh_is_short(fz);
}

static bool fh_hint_zone(struct fh_engine *e, struct fh_zone *fz)
{
	struct freehint_hint *hint;

	hint = list_first_entry_or_null(&e->idle, struct freehint_hint, list);
	if (!hint)
		return false;

	if ((fz->put_off || fh_yields(fz)) && !fh_flushing(e))
		return false;
	fz->guarded = false;
	if (!fh_fill(fz, hint) || fh_submit(e, hint))
		return false;
	fz->progress = true;
	fz->yielded = false;
	return true;
}

/* One hint a zone in turn, so that a large zone does not starve the others. */
static bool fh_hint_zones(struct fh_engine *e)
{
	bool sent = false;
	struct fh_zone *fz;

	for_each_fh_zone(fz)
		sent |= fh_hint_zone(e, fz);
	return sent;
}

/**
 * fh_may_submit - may hints be submitted now
 * @e: the engine
 *
 * Not if it does not run, or if the device or an OOM asked for a pause.
 */
bool fh_may_submit(struct fh_engine *e)
{
	return READ_ONCE(e->running) &&
	       time_after_eq(jiffies, READ_ONCE(e->pause_until));
}

/**
 * fh_promote - what was young has aged
 * @fz: the zone
 *
 * Context: the engine's thread.
 */
void fh_promote(struct fh_zone *fz)
{
	unsigned long sec = 0, flags;
	bool more;

	do {
		spin_lock_irqsave(&fz->zone->lock, flags);
		more = fh_promote_some(fz, &sec);
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	} while (more);
}

/*
 * The zone's part in the round is over. Whether it needs another one by itself
 * is decided in the lock hold that makes the hooks speak up again.
 */
static bool fh_zone_end_round(struct fh_engine *e, struct fh_zone *fz)
{
	unsigned long waiting, flags;
	bool more;

	/* What comes in from here on is seen below. */
	waiting = data_race(fz->nr[FH_YOUNG]);
	fh_promote(fz);

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->busy = waiting || fz->nr[FH_YOUNG] || fz->burst >= FH_BURST ||
		   fz->put_off ||
		   (fz->nr[FH_AGED] && (fz->progress || !fh_may_submit(e) ||
					time_before(jiffies, fz->yield_end)));
	more = fz->busy;
	if (!fz->progress)
		fz->settling = false;
	fz->free_then = zone_page_state(fz->zone, NR_FREE_PAGES);
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	e->stats.guard_stops += fz->guarded;
	return more;
}

static void fh_end_round(struct fh_engine *e)
{
	long pause = READ_ONCE(e->pause_until) - jiffies;
	bool busy = false, progress = false, pending = false;
	unsigned long delay = fh_period(e);
	struct fh_zone *fz;

	e->round = false;
	e->round_end = jiffies;
	trace_freehint_round(false);
	for_each_fh_zone(fz) {
		progress |= fz->progress;
		busy |= fh_zone_end_round(e, fz);
		/* What comes in now has not waited for this flush. */
		pending |= data_race(fz->nr[FH_AGED]);
	}
	if (fh_flush_goes_on(e, progress, pending)) {
		busy = true;
		delay = 0;
	}
	if (busy)
		fh_next_period(e, max_t(long, delay, pause));
	else
		fh_gauges_rest(e);
}

/**
 * fh_count_stalls - how often somebody waited for memory, ever
 *
 * Context: any. Return: direct reclaims and direct compactions.
 */
unsigned long fh_count_stalls(void)
{
	unsigned long nr = 0;
	int cpu, zone;

	for_each_online_cpu(cpu) {
		const unsigned long *event = per_cpu(vm_event_states, cpu).event;

		for (zone = 0; zone < MAX_NR_ZONES; zone++)
			/* Only whether it has moved matters. */
			nr += data_race(event[ALLOCSTALL_NORMAL - ZONE_NORMAL + zone]);
#ifdef CONFIG_COMPACTION
		/* As above. */
		nr += data_race(event[COMPACTSTALL]);
#endif
	}
	return nr;
}

/* Once it has yielded, it hints once before it does so again. */
static void fh_zone_yield(struct fh_zone *fz)
{
	if (fz->yielded || !fh_is_short(fz))
		return;
	if (time_before(jiffies, fz->yield_end + fz->yield))
		fz->yield = min(2 * fz->yield, FH_MAX_YIELD);
	else
		fz->yield = FH_YIELD;
	fz->yield_end = jiffies + fz->yield;
	fz->yielded = true;
}

/*
 * Memory that somebody waits for is not to be away, for however short a time. Which
 * memory that is nobody says, but it is none of a zone with plenty.
 */
static void fh_yield(struct fh_engine *e)
{
	unsigned long stalls = fh_count_stalls();
	struct fh_zone *fz;

	if (stalls == e->stalls)
		return;
	e->stalls = stalls;
	for_each_fh_zone(fz)
		fh_zone_yield(fz);
}

/**
 * fh_pump - go on with the round: submit what can be, end it if that was all
 * @e: the engine
 */
void fh_pump(struct fh_engine *e)
{
	bool sent = false;

	fh_yield(e);
	while (fh_may_submit(e) && fh_hint_zones(e))
		sent = true;
	if (sent) {
		/* It is told of both at once. */
		fh_gauges_send(e);
		e->dev->ops->kick(e->dev);
	}
	fh_watch(e);
	if (list_empty(&e->flight))
		fh_end_round(e);
}

/**
 * fh_start_round - hint what has aged
 * @e: the engine; its zones have been rewound
 */
void fh_start_round(struct fh_engine *e)
{
	e->round = true;
	trace_freehint_round(true);
	fh_pump(e);
}

/*
 * What a round had to pass over wakes nobody when it can be had: watermarks fall, a
 * pageblock is isolated no more, a block is not the last one of its kind.
 */
static bool fh_zone_worth_another_round(struct fh_zone *fz)
{
	unsigned long free = zone_page_state(fz->zone, NR_FREE_PAGES);
	/* What is missed now is seen at the next look. */
	bool aged = data_race(fz->nr[FH_AGED]);
	/* As above. */
	bool guarded = data_race(fz->guarded);
	/* As above. */
	unsigned long then = data_race(fz->free_then);

	if (!aged || fh_allowance(fz) <= 0)
		return false;
	return guarded || abs_diff(free, then) >= fh_granule_pages(fz);
}

/**
 * fh_worth_another_round - is there something to hint that was passed over before
 * @e: the engine
 *
 * Context: any in which a device stays registered.
 */
bool fh_worth_another_round(const struct fh_engine *e)
{
	struct fh_zone *fz;

	if (READ_ONCE(e->round))
		return false;
	for_each_fh_zone(fz)
		if (fh_zone_worth_another_round(fz))
			return true;
	return false;
}

/*
 * While much is being freed, what comes next is likely to be next to what is
 * there: a little later both make one range, and fewer messages.
 */
static void fh_put_off(struct fh_zone *fz)
{
	if (fz->freed >= FH_BURST && fz->put_off < FH_MAX_PUT_OFF)
		fz->put_off++;
	else
		fz->put_off = 0;
}

/*
 * Do the per-CPU lists need a drain? What they keep counts: between the pages of a
 * first burst of 128 MiB that stay there hardly a granule gets whole, and all of a
 * smaller one may stay there. A drain moves what was freed since the last one, so it
 * costs each page one move at most.
 */
static bool fh_in_burst(struct fh_zone *fz)
{
	/* What is missed now is seen at the end of the next period. */
	unsigned long whole = data_race(fz->burst);
	/* As above. */
	bool kept = data_race(fz->kept);

	return (whole || kept) &&
	       whole + (fh_pcp_pages(fz->zone) >> fz->order) >= FH_BURST;
}

/* What happened in the period that ends, and what was learned in it. */
static void fh_zone_end_period(struct fh_zone *fz, struct fh_reuse *reuse)
{
	bool rotate, all, quiet, began, more = true;
	bool burst = fh_in_burst(fz);
	unsigned long sec = 0, flags;

	spin_lock_irqsave(&fz->zone->lock, flags);
	fh_reuse_add(reuse, &fz->reuse);
	fz->reuse = (struct fh_reuse) { };

	rotate = time_after_eq(jiffies, fz->window_end);
	all = time_after_eq(jiffies, fz->window_end + FH_WINDOW);
	quiet = burst && fz->freed + fz->taken < FH_BURST;
	/* A short burst is over by now, and what it left behind ages with it. */
	began = burst && fz->burst == fz->freed;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	while (rotate && more) {
		spin_lock_irqsave(&fz->zone->lock, flags);
		more = fh_rotate_some(fz, &sec, all);
		if (!more)
			fz->window_end = jiffies + FH_WINDOW;
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	}

	if ((began || quiet) && READ_ONCE(fh_drain_allowed) && fh_drain_pcp(fz))
		fh_engine.stats.pcp_drains++;

	spin_lock_irqsave(&fz->zone->lock, flags);
	if (quiet)
		fz->burst = 0;
	fh_put_off(fz);
	fz->kept = false;
	fz->freed = 0;
	fz->taken = 0;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	fh_rewind(fz);
}

/*
 * The kick of a zone that becomes busy counts from then, not from the end of the
 * last round. Returns how long the device wants to be left alone yet, in jiffies.
 */
static long fh_delay_left(const struct fh_engine *e)
{
	unsigned long delay = msecs_to_jiffies(READ_ONCE(e->delay_ms));

	return fh_flushing(e) ? 0 : (long)(e->round_end + delay - jiffies);
}

/* A period has ended. */
void fh_tick(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;
	long left = fh_delay_left(e);
	struct fh_reuse reuse = { };
	struct fh_zone *fz;

	if (!READ_ONCE(e->running))
		return;
	if (e->round) {
		/* The device is slower than we are; it will catch up. */
		fh_next_period(e, fh_period(e));
		return;
	}
	if (left > 0) {
		fh_next_period(e, left);
		return;
	}

	for_each_fh_zone(fz)
		fh_zone_end_period(fz, &reuse);
	fh_pace_judge(&e->pace, &reuse, jiffies);
	fh_start_round(e);
}

/*
 * The device's wishes have changed. Nobody shall wait for the end of a long period
 * that has been made short.
 */
void fh_repace(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;
	struct timer_list *timer = &e->tick.timer;
	unsigned long end;

	fh_pace_bounds(&e->pace, READ_ONCE(e->min_age_ms),
		       READ_ONCE(fh_adapts) ? jiffies_to_msecs(FH_WINDOW) : 0);
	end = jiffies + fh_period(e);
	if (timer_pending(timer) && time_after(READ_ONCE(timer->expires), end))
		fh_next_period(e, fh_period(e));
}

/* A zone that was idle has something to do. In the irq_work's context. */
void fh_kick(struct irq_work *work)
{
	struct fh_engine *e = &fh_engine;
	unsigned long delay = max(fh_period(e) / FH_FIRST_PERIOD, 1UL);

	/* Must not pull in a tick that is due already, hence not _mod_. */
	if (READ_ONCE(e->running))
		kthread_queue_delayed_work(e->worker, &e->tick, delay);
}

