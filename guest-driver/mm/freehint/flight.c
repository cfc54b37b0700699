// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: hints that the device has, and those who wait for them.
 *
 * Their pages are on no free list. They return when the device has answered, or
 * when a reset is confirmed, and on no other occasion: not when time is up, and
 * not because somebody needs them.
 */
#define pr_fmt(fmt) "freehint: " fmt

#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/oom.h>
#include <linux/rcupdate.h>

#include <trace/events/freehint.h>

#include "engine.h"
#include "hooks.h"

/* How long a device may take for an answer before it is reset. */
unsigned int fh_timeout_ms = 5000;

/*
 * In this time, the answer is looked for so many times. Looks are counted, not
 * time: where the host runs neither the guest nor its device for a while, the
 * guest's clock jumps, the device could not answer, and that makes for one look.
 */
#define FH_LOOKS		8

/* Longest wait for what is in flight on behalf of others, in ms. */
#define FH_WAIT_MS		1000

/* After an OOM, free memory is left alone for this long. */
#define FH_OOM_PAUSE		(10 * HZ)

static unsigned long fh_look_period(void)
{
	return max(msecs_to_jiffies(READ_ONCE(fh_timeout_ms)) / FH_LOOKS, 1UL);
}

/**
 * fh_watch - see to it that an overdue answer is noticed
 * @e: the engine
 *
 * Context: the engine's thread.
 */
void fh_watch(struct fh_engine *e)
{
	/* If it is planned already, it stays so. */
	if (!list_empty(&e->flight))
		kthread_queue_delayed_work(e->worker, &e->watch, fh_look_period());
}

/**
 * fh_pause - submit nothing for a while
 * @e: the engine
 * @delay: for how long, in jiffies
 *
 * Whoever asks for the longest pause gets it; racing ones get about that.
 *
 * Context: any.
 */
void fh_pause(struct fh_engine *e, unsigned long delay)
{
	unsigned long until = jiffies + delay;

	if (time_after(until, READ_ONCE(e->pause_until)))
		WRITE_ONCE(e->pause_until, until);
}

static void fh_hint_done(struct fh_engine *e, struct freehint_hint *hint)
{
	list_move(&hint->list, &e->idle);
	atomic_long_sub(hint->nr_pages, &e->in_flight);
	wake_up_all(&e->wait);
}

/**
 * fh_submit - hand a hint to the driver
 * @e: the engine
 * @hint: a filled hint
 *
 * Context: the engine's thread.
 * Return: 0, or the driver's error: the pages are back on the free lists then.
 */
int fh_submit(struct fh_engine *e, struct freehint_hint *hint)
{
	int ret;

	hint->cookie = e->stats.hints + 1;
	hint->zero = want_init_on_free();
	hint->looks = 0;
	trace_freehint_submit(hint);

	atomic_long_add(hint->nr_pages, &e->in_flight);
	list_move_tail(&hint->list, &e->flight);
	ret = e->dev->ops->submit(e->dev, hint);
	if (ret) {
		e->stats.submit_errors++;
		fh_give_back(hint, true);
		fh_hint_done(e, hint);
		return ret;
	}
	e->stats.hints++;
	e->stats.ranges += hint->nr_ranges;
	e->stats.hinted_bytes += fh_bytes(hint->nr_pages);
	return 0;
}

/* The device has answered. In the engine's thread. */
void fh_reap(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;

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
	struct kthread_worker *worker;

	/* None, if a device does that before, or after, it can have anything. */
	guard(rcu)();
	/* Pairs with fh_set_up(): what it does is set up by then. */
	worker = smp_load_acquire(&fh_engine.worker);
	if (worker)
		kthread_queue_work(worker, &fh_engine.reap);
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
	struct fh_engine *e = &fh_engine;

	trace_freehint_complete(hint, stale);
	fh_count_verdicts(e, hint);
	fh_flush_count(&e->flush, hint);
	fh_give_back(hint, stale);
	fh_hint_done(e, hint);
	if (hint->cookie == e->overdue) {
		/* Late, but not lost: the device is not reset for that. */
		WRITE_ONCE(e->overdue, 0);
		fh_watch(e);
	}
	if (retry_ms)
		fh_pause(e, msecs_to_jiffies(retry_ms));
}
EXPORT_SYMBOL_GPL(freehint_complete);

static struct freehint_hint *fh_oldest(struct fh_engine *e)
{
	return list_first_entry_or_null(&e->flight, struct freehint_hint, list);
}

/* Part of the time for an answer to the oldest hint is over. In the thread. */
void fh_look_for_answer(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;
	struct freehint_hint *oldest = fh_oldest(e);
	u64 cookie;

	if (!oldest || e->broken)
		return;
	cookie = oldest->cookie;
	/* An answer whose notification was lost is an answer all the same. */
	fh_reap(&e->reap);
	oldest = fh_oldest(e);
	if (!oldest)
		return;
	if (oldest->cookie != cookie || ++oldest->looks < FH_LOOKS) {
		fh_watch(e);
		return;
	}
	e->stats.timeouts++;
	WRITE_ONCE(e->overdue, cookie);
	schedule_work(&e->recover);
}

/* The device has let go of everything, without telling what it did. In the thread. */
void fh_abort(struct kthread_work *work)
{
	struct freehint_hint *hint, *next;
	struct fh_engine *e = &fh_engine;

	list_for_each_entry_safe(hint, next, &e->flight, list) {
		if (e->leaked) {
			e->stats.leaked_bytes -= fh_bytes(hint->nr_pages);
			atomic_long_add(hint->nr_pages, &e->in_flight);
		}
		e->stats.aborted_bytes += fh_bytes(hint->nr_pages);
		fh_give_back(hint, true);
		fh_hint_done(e, hint);
	}
	e->leaked = false;
	e->round = false;
}

/*
 * It has not, and may yet write: the pages must not be used. They stay listed, as
 * it may let go later. Others do not wait for that.
 */
static void fh_leak(struct fh_engine *e)
{
	unsigned long pages = atomic_long_xchg(&e->in_flight, 0);

	e->leaked = true;
	e->stats.leaked_bytes += fh_bytes(pages);
	wake_up_all(&e->wait);
	pr_err("the device could not be reset, %llu KiB that it may still discard are lost until it is\n",
	       fh_bytes(pages) >> 10);
}

/**
 * fh_reset_device - end the device's use of everything
 * @e: the engine
 *
 * What is in flight comes back, or is accounted for as leaked.
 *
 * Context: control, the mutex held; sleeps for as long as the driver does.
 */
void fh_reset_device(struct fh_engine *e)
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

/**
 * fh_wait_in_flight - wait until the device has nothing
 * @e: the engine
 * @ms: for at most so long
 *
 * Context: process context, not the engine's thread. Return: whether that is so.
 */
bool fh_wait_in_flight(struct fh_engine *e, unsigned int ms)
{
	return wait_event_timeout(e->wait, !atomic_long_read(&e->in_flight),
				  msecs_to_jiffies(ms));
}

/**
 * fh_wait_answers - wait until the device has nothing, or ought to be reset
 * @e: the engine, which submits nothing
 *
 * Context: process context, not the engine's thread. Return: whether it has
 * nothing.
 */
bool fh_wait_answers(struct fh_engine *e)
{
	unsigned int looks;

	for (looks = 0; looks < FH_LOOKS; looks++)
		if (wait_event_timeout(e->wait, !atomic_long_read(&e->in_flight),
				       fh_look_period()))
			return true;
	return false;
}

static bool fh_range_in_flight(unsigned long pfn, unsigned long end)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	unsigned long flags;
	bool found;

	spin_lock_irqsave(&zone->lock, flags);
	found = zone->freehint &&
		fh_any(zone->freehint, pfn, end, FH_INFLIGHT);
	spin_unlock_irqrestore(&zone->lock, flags);
	return found;
}

void __freehint_wait_range(unsigned long start_pfn, unsigned long end_pfn)
{
	wait_event_timeout(fh_engine.wait, !fh_range_in_flight(start_pfn, end_pfn),
			   msecs_to_jiffies(FH_WAIT_MS));
}

static int fh_oom_notify(struct notifier_block *nb, unsigned long unused,
			 void *freed)
{
	struct fh_engine *e = &fh_engine;
	long before = atomic_long_read(&e->in_flight);

	if (!READ_ONCE(e->running))
		return NOTIFY_DONE;
	fh_pause(e, FH_OOM_PAUSE);
	if (before && fh_wait_in_flight(e, FH_WAIT_MS))
		*(unsigned long *)freed += before;
	return NOTIFY_OK;
}

static struct notifier_block fh_oom_nb = {
	.notifier_call = fh_oom_notify,
};

int __init fh_flight_init(void)
{
	return register_oom_notifier(&fh_oom_nb);
}
