// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: the engine.
 *
 * One thread does all that concerns hints: it collects, submits, takes answers
 * and gives back. It never waits for memory, for the device or for the engine's
 * mutex, so whoever waits for what is in flight waits for the device alone.
 * Time goes in periods. At the end of each, a round hints what has aged; when
 * the round is over, what was young has aged. A guest in which nothing is freed
 * has no periods, and is not woken up.
 */
#define pr_fmt(fmt) "freehint: " fmt

#include <linux/cleanup.h>
#include <linux/errno.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/init.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/oom.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "../page_reporting.h"
#include "hooks.h"
#include "internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/freehint.h>

/* The guest's own bounds, whatever the device asks for. */
static unsigned int min_age_floor_ms = 20;
module_param(min_age_floor_ms, uint, 0644);
MODULE_PARM_DESC(min_age_floor_ms, "Memory stays free for at least this long before it is hinted");

static unsigned int min_age_ceiling_ms = 60000;
module_param(min_age_ceiling_ms, uint, 0644);
MODULE_PARM_DESC(min_age_ceiling_ms, "The device may not ask that memory stay free for longer than this");

static unsigned int timeout_ms = 5000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "A device that has not answered a hint after this long is reset");

static bool allow_drain = true;
module_param_named(drain, allow_drain, bool, 0644);
MODULE_PARM_DESC(drain, "Drain a zone's per-CPU lists once after much memory was freed");

/* A granule this small would cost more in state and calls than it gives. */
#define FH_MIN_GRANULE		max(PAGE_SIZE, SZ_64K)

/* Longest wait for what is in flight on behalf of others, in ms. */
#define FH_WAIT_MS		1000

/* After an OOM, free memory is left alone for this long. */
#define FH_OOM_PAUSE		(10 * HZ)

DEFINE_STATIC_KEY_FALSE(freehint_key);
unsigned int freehint_order __read_mostly = NR_PAGE_ORDERS;

/**
 * struct fh_engine - the engine
 * @lock: who is registered, and whether the engine runs
 * @dev: the device, or NULL
 * @order: the granule
 * @active: the device wants hints
 * @allowed: so does the guest's administrator
 * @broken: the device is not to be talked to
 * @give_up: the driver says that the device is broken
 * @status: as last told to the driver
 *
 * @running: the thread may submit; written under @lock
 * @worker: the thread
 * @tick: a period has ended
 * @reap: the device has answered, or something else makes a round go on
 * @abort: the device has been reset; everything in flight comes back
 * @watch: fires when the oldest hint is overdue
 * @kick: from under a zone lock to @tick
 * @recover: resets the device; not in the thread, as it may take long
 *
 * @idle: the thread's: hints that can be filled
 * @flight: the thread's: hints that the device has, oldest first
 * @round: the thread's: a round is under way
 * @pace: the thread's: how long memory rests
 * @delay_ms: least time between two rounds
 * @pause_until: jiffies; nothing is submitted before
 * @in_flight: pages in @flight
 * @wait: woken whenever @in_flight falls
 * @stats: counters; written by the thread
 */
struct fh_engine {
	struct mutex lock; /* for what control decides */
	struct freehint_dev *dev;
	unsigned int order;
	bool active;
	bool allowed;
	bool broken;
	bool give_up;
	enum freehint_status status;

	bool running;
	struct kthread_worker *worker;
	struct kthread_delayed_work tick;
	struct kthread_work reap;
	struct kthread_work abort;
	struct kthread_delayed_work watch;
	struct irq_work kick;
	struct work_struct recover;

	struct list_head idle;
	struct list_head flight;
	bool round;
	struct fh_pace pace;
	unsigned int delay_ms;
	unsigned long pause_until;
	atomic_long_t in_flight;
	wait_queue_head_t wait;
	struct freehint_stats stats;
};

static struct fh_engine engine = {
	.lock = __MUTEX_INITIALIZER(engine.lock),
	.idle = LIST_HEAD_INIT(engine.idle),
	.flight = LIST_HEAD_INIT(engine.flight),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(engine.wait),
	.allowed = true,
};

static u64 fh_bytes(unsigned long pages)
{
	return (u64)pages << PAGE_SHIFT;
}

/*
 * Rounds.
 */

static unsigned long fh_period(struct fh_engine *e)
{
	unsigned int ms = max(e->pace.age_ms, READ_ONCE(e->delay_ms));

	return max(msecs_to_jiffies(ms), 1UL);
}

static void fh_next_period(struct fh_engine *e, unsigned long delay)
{
	if (READ_ONCE(e->running))
		kthread_mod_delayed_work(e->worker, &e->tick, delay);
}

static void fh_watch(struct fh_engine *e)
{
	struct freehint_hint *oldest;
	long left;

	oldest = list_first_entry_or_null(&e->flight, struct freehint_hint, list);
	if (!oldest)
		return;
	left = oldest->deadline - jiffies;
	kthread_mod_delayed_work(e->worker, &e->watch, max(left, 1L));
}

static void fh_hint_done(struct fh_engine *e, struct freehint_hint *hint)
{
	list_move(&hint->list, &e->idle);
	atomic_long_sub(hint->nr_pages, &e->in_flight);
	wake_up_all(&e->wait);
}

static int fh_submit(struct fh_engine *e, struct freehint_hint *hint)
{
	int ret;

	hint->cookie = e->stats.hints + 1;
	hint->zero = want_init_on_free();
	hint->deadline = jiffies + msecs_to_jiffies(READ_ONCE(timeout_ms));
	trace_freehint_submit(hint);

	atomic_long_add(hint->nr_pages, &e->in_flight);
	list_move_tail(&hint->list, &e->flight);
	ret = e->dev->ops->submit(e->dev, hint);
	if (ret) {
		fh_give_back(hint, true);
		fh_hint_done(e, hint);
		return ret;
	}
	e->stats.hints++;
	e->stats.ranges += hint->nr_ranges;
	e->stats.hinted_bytes += fh_bytes(hint->nr_pages);
	return 0;
}

static bool fh_hint_zone(struct fh_engine *e, struct fh_zone *fz)
{
	struct freehint_hint *hint;

	hint = list_first_entry_or_null(&e->idle, struct freehint_hint, list);
	if (!hint)
		return false;

	fz->guarded = false;
	if (!fh_fill(fz, hint) || fh_submit(e, hint))
		return false;
	fz->progress = true;
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

static bool fh_may_submit(struct fh_engine *e)
{
	return READ_ONCE(e->running) &&
	       time_after_eq(jiffies, READ_ONCE(e->pause_until));
}

/*
 * The zone's part in the round is over. Whether it needs another one by itself
 * is decided in the lock hold that makes the hooks speak up again.
 */
static bool fh_zone_end_round(struct fh_engine *e, struct fh_zone *fz)
{
	unsigned long sec = 0, flags;
	unsigned long waiting;
	bool more;

	/* What comes in from here on is seen below. */
	waiting = data_race(fz->nr[FH_YOUNG]);
	do {
		spin_lock_irqsave(&fz->zone->lock, flags);
		more = fh_promote_some(fz, &sec);
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	} while (more);

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->busy = waiting || fz->nr[FH_YOUNG] || fz->burst >= FH_BURST ||
		   (fz->nr[FH_AGED] && (fz->progress || !fh_may_submit(e)));
	more = fz->busy;
	if (!fz->progress)
		fz->settling = false;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	e->stats.guard_stops += fz->guarded;
	return more;
}

static void fh_end_round(struct fh_engine *e)
{
	unsigned long delay = fh_period(e);
	long pause = e->pause_until - jiffies;
	struct fh_zone *fz;
	bool busy = false;

	e->round = false;
	for_each_fh_zone(fz)
		busy |= fh_zone_end_round(e, fz);
	if (busy)
		fh_next_period(e, max_t(long, delay, pause));
}

/* Go on with the round: submit what can be, and end it if that was all. */
static void fh_pump(struct fh_engine *e)
{
	bool sent = false;

	while (fh_may_submit(e) && fh_hint_zones(e))
		sent = true;
	if (sent)
		e->dev->ops->kick(e->dev);
	fh_watch(e);
	if (list_empty(&e->flight))
		fh_end_round(e);
}

/*
 * Periods.
 */

/* What happened in the period that ends, and what was learned in it. */
static void fh_zone_end_period(struct fh_zone *fz, struct fh_reuse *reuse)
{
	bool rotate, all, quiet, more = true;
	unsigned long sec = 0, flags;

	spin_lock_irqsave(&fz->zone->lock, flags);
	reuse->hinted += fz->reuse.hinted;
	reuse->reused += fz->reuse.reused;
	reuse->spared += fz->reuse.spared;
	fz->reuse = (struct fh_reuse) { };

	rotate = time_after_eq(jiffies, fz->window_end);
	all = time_after_eq(jiffies, fz->window_end + FH_WINDOW);
	quiet = fz->burst >= FH_BURST && fz->freed + fz->taken < FH_BURST;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	while (rotate && more) {
		spin_lock_irqsave(&fz->zone->lock, flags);
		more = fh_rotate_some(fz, &sec, all);
		if (!more)
			fz->window_end = jiffies + FH_WINDOW;
		spin_unlock_irqrestore(&fz->zone->lock, flags);
		cond_resched();
	}

	if (quiet && allow_drain) {
		fh_drain_pcp(fz);
		engine.stats.pcp_drains++;
	}

	spin_lock_irqsave(&fz->zone->lock, flags);
	if (quiet)
		fz->burst = 0;
	fz->freed = 0;
	fz->taken = 0;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	fz->cursor = 0;
	fz->progress = false;
	fz->guarded = false;
}

static void fh_tick(struct kthread_work *work)
{
	struct fh_engine *e = &engine;
	struct fh_reuse reuse = { };
	struct fh_zone *fz;

	if (!READ_ONCE(e->running))
		return;
	if (e->round) {
		/* The device is slower than we are; it will catch up. */
		fh_next_period(e, fh_period(e));
		return;
	}

	for_each_fh_zone(fz)
		fh_zone_end_period(fz, &reuse);
	fh_pace_judge(&e->pace, &reuse, jiffies);

	e->round = true;
	fh_pump(e);
}

static void fh_kick(struct irq_work *work)
{
	struct fh_engine *e = &engine;

	/* Must not pull in a tick that is due already, hence not _mod_. */
	if (READ_ONCE(e->running))
		kthread_queue_delayed_work(e->worker, &e->tick, fh_period(e));
}

/*
 * Answers.
 */

static void fh_reap(struct kthread_work *work)
{
	struct fh_engine *e = &engine;

	if (e->broken)
		return;
	e->dev->ops->reap(e->dev);
	if (e->round)
		fh_pump(e);
}

/**
 * freehint_interrupt - the device has answered
 * @dev: the device
 *
 * Leads to &freehint_ops.reap. Context: any.
 */
void freehint_interrupt(struct freehint_dev *dev)
{
	kthread_queue_work(engine.worker, &engine.reap);
}
EXPORT_SYMBOL_GPL(freehint_interrupt);

static void fh_count_verdicts(struct fh_engine *e,
			      const struct freehint_hint *hint)
{
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++)
		e->stats.verdict_bytes[hint->ranges[i].verdict] +=
			fh_bytes(hint->ranges[i].nr_pages);
}

/**
 * freehint_complete - the device has let go of a hint
 * @dev: the device
 * @hint: the hint, with a verdict on each range
 * @stale: the verdicts were given under a rehint epoch other than the present
 * @retry_ms: for throttled ranges, how long to wait
 *
 * Context: from &freehint_ops.reap only.
 */
void freehint_complete(struct freehint_dev *dev, struct freehint_hint *hint,
		       bool stale, unsigned int retry_ms)
{
	struct fh_engine *e = &engine;

	trace_freehint_complete(hint, stale);
	fh_count_verdicts(e, hint);
	fh_give_back(hint, stale);
	fh_hint_done(e, hint);
	if (retry_ms)
		WRITE_ONCE(e->pause_until, jiffies + msecs_to_jiffies(retry_ms));
}
EXPORT_SYMBOL_GPL(freehint_complete);

/*
 * A device that does not answer.
 */

static void fh_overdue(struct kthread_work *work)
{
	struct fh_engine *e = &engine;
	struct freehint_hint *oldest;

	oldest = list_first_entry_or_null(&e->flight, struct freehint_hint, list);
	if (!oldest || e->broken)
		return;
	if (time_before(jiffies, oldest->deadline)) {
		fh_watch(e);
		return;
	}
	/* An answer whose notification was lost is an answer all the same. */
	e->dev->ops->reap(e->dev);
	if (list_first_entry_or_null(&e->flight, struct freehint_hint, list) != oldest) {
		fh_watch(e);
		return;
	}
	e->stats.timeouts++;
	pr_warn("no answer to hint %llu in %u ms, resetting the device\n",
		oldest->cookie, timeout_ms);
	schedule_work(&e->recover);
}

/* The device has let go of everything, without telling what it did. */
static void fh_abort(struct kthread_work *work)
{
	struct freehint_hint *hint, *next;
	struct fh_engine *e = &engine;

	list_for_each_entry_safe(hint, next, &e->flight, list) {
		e->stats.aborted_bytes += fh_bytes(hint->nr_pages);
		fh_give_back(hint, true);
		fh_hint_done(e, hint);
	}
	e->round = false;
}

/* It has not, and may yet write: the pages must never be used again. */
static void fh_leak(struct fh_engine *e)
{
	unsigned long pages = atomic_long_xchg(&e->in_flight, 0);

	INIT_LIST_HEAD(&e->flight);
	e->stats.leaked_bytes += fh_bytes(pages);
	pr_err("the device could not be reset, %llu KiB that it may still discard are lost until reboot\n",
	       fh_bytes(pages) >> 10);
}

static void fh_stop_submitting(struct fh_engine *e)
{
	WRITE_ONCE(e->running, false);
	kthread_cancel_delayed_work_sync(&e->tick);
	/* A pump that has seen running is over after this. */
	kthread_flush_work(&e->reap);
}

/* Everything that is in flight comes back, or is accounted for. */
static void fh_reset_device(struct fh_engine *e)
{
	lockdep_assert_held(&e->lock);

	e->broken = true;
	kthread_flush_worker(e->worker);
	if (e->dev->ops->reset(e->dev)) {
		fh_leak(e);
		return;
	}
	kthread_queue_work(e->worker, &e->abort);
	kthread_flush_work(&e->abort);
}

/*
 * Control: what the parties want, and what follows from it.
 */

static bool fh_wait_in_flight(struct fh_engine *e, unsigned int ms)
{
	return wait_event_timeout(e->wait, !atomic_long_read(&e->in_flight),
				  msecs_to_jiffies(ms));
}

static void fh_start(struct fh_engine *e)
{
	struct fh_zone *fz;

	freehint_order = e->order;
	static_branch_enable(&freehint_key);
	for_each_fh_zone(fz)
		fh_resync(fz);
	WRITE_ONCE(e->running, true);
	fh_next_period(e, fh_period(e));
}

static void fh_stop(struct fh_engine *e)
{
	fh_stop_submitting(e);
	if (!e->broken && !fh_wait_in_flight(e, timeout_ms)) {
		e->stats.timeouts++;
		pr_warn("no answer in %u ms while stopping, resetting the device\n",
			timeout_ms);
		fh_reset_device(e);
	}
	kthread_flush_worker(e->worker);
	static_branch_disable(&freehint_key);
}

/* Why not to hint, in order of precedence. */
static enum freehint_status fh_verdict(const struct fh_engine *e)
{
	if (e->broken)
		return FREEHINT_BROKEN;
	if (e->order > MAX_PAGE_ORDER)
		return FREEHINT_GRANULE;
	if (page_poisoning_enabled())
		return FREEHINT_POISONING;
	if (debug_pagealloc_enabled() || debug_guardpage_enabled() ||
	    IS_ENABLED(CONFIG_KMSAN))
		return FREEHINT_DEBUGGING;
	if (page_reporting_registered())
		return FREEHINT_OTHER_REPORTER;
	if (!e->allowed)
		return FREEHINT_OFF;
	if (!e->active)
		return FREEHINT_WAITING;
	return FREEHINT_ACTIVE;
}

static const char * const fh_refusals[FREEHINT_NR_STATUSES] = {
	[FREEHINT_POISONING] = "free pages are poisoned (page_poisoning)",
	[FREEHINT_DEBUGGING] = "free pages are guarded by a debugging facility",
	[FREEHINT_OTHER_REPORTER] = "free page reporting has a device already",
	[FREEHINT_GRANULE] = "the device's granule exceeds the largest free block",
};

static void fh_update(struct fh_engine *e)
{
	enum freehint_status status;

	lockdep_assert_held(&e->lock);

	if (!e->dev)
		return;
	status = fh_verdict(e);
	if (e->running && status != FREEHINT_ACTIVE)
		fh_stop(e);
	else if (!e->running && status == FREEHINT_ACTIVE)
		fh_start(e);

	/* Stopping may have broken it. */
	status = fh_verdict(e);
	if (status == e->status)
		return;
	WRITE_ONCE(e->status, status);
	if (fh_refusals[status])
		pr_warn("not hinting: %s\n", fh_refusals[status]);
	e->dev->ops->status(e->dev, status);
}

static void fh_recover(struct work_struct *work)
{
	struct fh_engine *e = container_of(work, struct fh_engine, recover);

	guard(mutex)(&e->lock);
	if (!e->dev || e->broken)
		return;
	/* It has answered after all. */
	if (!e->give_up && !atomic_long_read(&e->in_flight))
		return;
	fh_stop_submitting(e);
	fh_reset_device(e);
	static_branch_disable(&freehint_key);
	fh_update(e);
}

/**
 * freehint_broken - the driver has given up on the device
 * @dev: the device
 *
 * Resets it and takes back what is in flight, soon. Context: any that may not
 * hold the engine's mutex.
 */
void freehint_broken(struct freehint_dev *dev)
{
	WRITE_ONCE(engine.give_up, true);
	schedule_work(&engine.recover);
}
EXPORT_SYMBOL_GPL(freehint_broken);

/**
 * freehint_set_active - the device wants hints, or does not
 * @dev: the device
 * @active: it does
 *
 * When this returns with @active false, nothing is in flight and nothing will be.
 * Context: process context; bounded by the timeout and a reset.
 */
void freehint_set_active(struct freehint_dev *dev, bool active)
{
	guard(mutex)(&engine.lock);
	engine.active = active;
	fh_update(&engine);
}
EXPORT_SYMBOL_GPL(freehint_set_active);

/**
 * freehint_set_allowed - the guest's administrator allows hints, or does not
 * @dev: the device
 * @allowed: they do
 *
 * Context: as freehint_set_active().
 */
void freehint_set_allowed(struct freehint_dev *dev, bool allowed)
{
	guard(mutex)(&engine.lock);
	engine.allowed = allowed;
	fh_update(&engine);
}
EXPORT_SYMBOL_GPL(freehint_set_allowed);

/**
 * freehint_allowed - does the guest's administrator allow hints
 * @dev: the device
 */
bool freehint_allowed(struct freehint_dev *dev)
{
	return READ_ONCE(engine.allowed);
}
EXPORT_SYMBOL_GPL(freehint_allowed);

/**
 * freehint_set_pace - how often and how soon the device wants hints
 * @dev: the device
 * @delay_ms: least time between two rounds of hints
 * @min_age_ms: least time that memory is free before it is hinted
 *
 * The guest's bounds apply to both. Context: process context.
 */
void freehint_set_pace(struct freehint_dev *dev, unsigned int delay_ms,
		       unsigned int min_age_ms)
{
	struct fh_engine *e = &engine;
	unsigned int floor = READ_ONCE(min_age_floor_ms);
	unsigned int ceiling = max(floor, READ_ONCE(min_age_ceiling_ms));

	guard(mutex)(&e->lock);
	WRITE_ONCE(e->delay_ms, min(delay_ms, ceiling));
	fh_pace_bounds(&e->pace, clamp(min_age_ms, floor, ceiling),
		       jiffies_to_msecs(FH_WINDOW));
}
EXPORT_SYMBOL_GPL(freehint_set_pace);

/**
 * freehint_rehint - earlier answers of the device do not hold any more
 * @dev: the device
 *
 * Everything free becomes pending again, what was discarded as well as what was
 * refused. Context: process context.
 */
void freehint_rehint(struct freehint_dev *dev)
{
	struct fh_engine *e = &engine;
	struct fh_zone *fz;

	guard(mutex)(&e->lock);
	if (!e->running)
		return;
	for_each_fh_zone(fz)
		fh_resync(fz);
	fh_next_period(e, fh_period(e));
}
EXPORT_SYMBOL_GPL(freehint_rehint);

/**
 * freehint_reporter_changed - free page reporting got or lost its device
 *
 * A guest needs one of the two: each would undo what the other knows.
 * Context: process context.
 */
void freehint_reporter_changed(void)
{
	guard(mutex)(&engine.lock);
	fh_update(&engine);
}

/**
 * freehint_status - what the engine does
 * @dev: the device
 */
enum freehint_status freehint_status(struct freehint_dev *dev)
{
	return READ_ONCE(engine.status);
}
EXPORT_SYMBOL_GPL(freehint_status);

/*
 * Those who need what is in flight.
 */

static bool fh_range_in_flight(unsigned long pfn, unsigned long end)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	struct fh_zone *fz;
	unsigned long flags;
	bool found = false;

	spin_lock_irqsave(&zone->lock, flags);
	fz = zone->freehint;
	if (fz && fz->nr[FH_INFLIGHT]) {
		pfn = ALIGN_DOWN(pfn, fh_granule_pages(fz));
		for (; pfn < end && !found; pfn += fh_granule_pages(fz))
			found = fh_test(fz, pfn, fz->order, FH_INFLIGHT);
	}
	spin_unlock_irqrestore(&zone->lock, flags);
	return found;
}

void __freehint_wait_range(unsigned long start_pfn, unsigned long end_pfn)
{
	wait_event_timeout(engine.wait, !fh_range_in_flight(start_pfn, end_pfn),
			   msecs_to_jiffies(FH_WAIT_MS));
}

static int fh_oom_notify(struct notifier_block *nb, unsigned long unused,
			 void *freed)
{
	struct fh_engine *e = &engine;
	long before = atomic_long_read(&e->in_flight);

	if (!READ_ONCE(e->running))
		return NOTIFY_DONE;
	WRITE_ONCE(e->pause_until, jiffies + FH_OOM_PAUSE);
	if (before && fh_wait_in_flight(e, FH_WAIT_MS))
		*(unsigned long *)freed += before;
	return NOTIFY_OK;
}

static struct notifier_block fh_oom_nb = {
	.notifier_call = fh_oom_notify,
};

/*
 * Statistics.
 */

static void fh_count_zone(const struct fh_zone *fz, struct freehint_stats *stats)
{
	unsigned long granules = 0, free;
	unsigned int order;

	for (order = fz->order; order < NR_PAGE_ORDERS; order++)
		/* A gauge need not be exact. */
		granules += data_race(fz->zone->free_area[order].nr_free)
			    << (order - fz->order);
	free = zone_page_state(fz->zone, NR_FREE_PAGES);
	stats->stuck_bytes += fh_bytes(free - min(free, granules << fz->order));

	stats->pending_bytes += fh_bytes((fz->nr[FH_YOUNG] + fz->nr[FH_AGED]) << fz->order);
	stats->discarded_bytes += fh_bytes(fz->nr[FH_HINTED] << fz->order);
	stats->refused_bytes += fh_bytes(fz->nr[FH_HELD] << fz->order);
	stats->excluded_bytes += fh_bytes(fz->nr[FH_NEVER] << fz->order);
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
	struct fh_engine *e = &engine;
	struct fh_zone *fz;

	guard(mutex)(&e->lock);
	*stats = e->stats;
	stats->in_flight_bytes = fh_bytes(atomic_long_read(&e->in_flight));
	stats->age_ms = e->pace.age_ms;
	stats->granule = PAGE_SIZE << e->order;
	for_each_fh_zone(fz)
		fh_count_zone(fz, stats);
}
EXPORT_SYMBOL_GPL(freehint_get_stats);

/*
 * Registration.
 */

static void fh_free_hints(struct fh_engine *e)
{
	struct freehint_hint *hint, *next;

	list_for_each_entry_safe(hint, next, &e->idle, list) {
		list_del(&hint->list);
		kfree(hint);
	}
}

static int fh_alloc_hints(struct fh_engine *e)
{
	struct freehint_hint *hint;
	unsigned int slot;

	for (slot = 0; slot < e->dev->nr_hints; slot++) {
		hint = kzalloc(struct_size(hint, ranges, e->dev->max_ranges),
			       GFP_KERNEL);
		if (!hint) {
			fh_free_hints(e);
			return -ENOMEM;
		}
		hint->slot = slot;
		hint->max_ranges = e->dev->max_ranges;
		list_add_tail(&hint->list, &e->idle);
	}
	return 0;
}

static int fh_set_up(struct fh_engine *e)
{
	int ret;

	ret = fh_alloc_hints(e);
	if (ret)
		return ret;

	e->worker = kthread_create_worker(0, "kfreehintd");
	if (IS_ERR(e->worker)) {
		ret = PTR_ERR(e->worker);
		goto free_hints;
	}

	/* A granule that no free list has leaves nothing to keep track of. */
	if (e->order <= MAX_PAGE_ORDER) {
		ret = fh_storage_create(e->order, &e->kick);
		if (ret)
			goto destroy_worker;
	}
	return 0;

destroy_worker:
	kthread_destroy_worker(e->worker);
free_hints:
	fh_free_hints(e);
	return ret;
}

static void fh_tear_down(struct fh_engine *e)
{
	if (e->order <= MAX_PAGE_ORDER)
		fh_storage_destroy();
	/* No hook kicks any more; what was kicked finds nothing to do. */
	irq_work_sync(&e->kick);
	kthread_cancel_delayed_work_sync(&e->tick);
	kthread_cancel_delayed_work_sync(&e->watch);
	kthread_destroy_worker(e->worker);
	fh_free_hints(e);
}

/**
 * freehint_register - a device takes hints from now on
 * @dev: the device; its driver has called freehint_set_pace() and
 *	freehint_set_active() before memory is hinted to it
 *
 * One device a guest. That the guest cannot hint now, or ever, is no error but a
 * status: the device shall know why it gets nothing.
 *
 * Context: process context.
 * Return: 0; -EBUSY if there is a device already; -EINVAL; -ENOMEM.
 */
int freehint_register(struct freehint_dev *dev)
{
	struct fh_engine *e = &engine;
	int ret;

	if (!is_power_of_2(dev->granule) || !dev->max_ranges || !dev->nr_hints)
		return -EINVAL;

	guard(mutex)(&e->lock);
	if (e->dev)
		return -EBUSY;

	e->dev = dev;
	e->order = ilog2(max_t(u64, dev->granule, FH_MIN_GRANULE)) - PAGE_SHIFT;
	e->active = false;
	e->broken = false;
	e->give_up = false;
	e->status = FREEHINT_NR_STATUSES;
	e->round = false;
	e->pause_until = jiffies;
	e->pace = (struct fh_pace) { .since = jiffies };
	e->stats = (struct freehint_stats) { };

	ret = fh_set_up(e);
	if (ret) {
		e->dev = NULL;
		return ret;
	}
	fh_update(e);
	return 0;
}
EXPORT_SYMBOL_GPL(freehint_register);

/**
 * freehint_unregister - a device takes no more hints
 * @dev: the device
 *
 * When this returns, nothing is in flight, or it is accounted for as leaked, and
 * no operation of the driver runs or will be called.
 *
 * Context: process context; bounded by the timeout and a reset.
 */
void freehint_unregister(struct freehint_dev *dev)
{
	struct fh_engine *e = &engine;

	mutex_lock(&e->lock);
	if (e->dev != dev) {
		mutex_unlock(&e->lock);
		return;
	}
	e->active = false;
	if (e->running)
		fh_stop(e);
	fh_tear_down(e);
	e->dev = NULL;
	mutex_unlock(&e->lock);

	/* Finds no device. */
	cancel_work_sync(&e->recover);
}
EXPORT_SYMBOL_GPL(freehint_unregister);

static int __init fh_init(void)
{
	struct fh_engine *e = &engine;

	kthread_init_delayed_work(&e->tick, fh_tick);
	kthread_init_delayed_work(&e->watch, fh_overdue);
	kthread_init_work(&e->reap, fh_reap);
	kthread_init_work(&e->abort, fh_abort);
	init_irq_work(&e->kick, fh_kick);
	INIT_WORK(&e->recover, fh_recover);
	fh_debug_init();
	return register_oom_notifier(&fh_oom_nb);
}
subsys_initcall(fh_init);
