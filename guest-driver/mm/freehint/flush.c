// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: all free memory at once, because the device asks for it.
 *
 * A flush has three stages. A work item prepares it: it compacts, if that was
 * asked for, and drains the per-CPU lists, which can take long and may wait for
 * others. Then the engine's thread hints what is pending, whatever its age, in
 * rounds that follow each other at once. Then the driver answers.
 *
 * The thread has a timer for the deadline, so the answer is in time whatever the
 * preparation does, the device, or those who asked for a pause.
 */
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/workqueue.h>

#include <trace/events/freehint.h>

#include "../internal.h"
#include "engine.h"
#include "hooks.h"

/* So that jiffies don't wrap around; nobody waits for this long. */
#define FH_FLUSH_MAX_MS		(3600 * MSEC_PER_SEC)

/*
 * A round finds all that is pending when it starts; the next ones find what was
 * the last block of its kind, and what was freed since. On a busy guest that
 * would never end.
 */
#define FH_FLUSH_ROUNDS		4

/**
 * fh_flush_begin - memory is prepared, the next hints are the flush's
 * @flush: the flush
 * @first: the cookie of the first of them
 */
void fh_flush_begin(struct fh_flush *flush, u64 first)
{
	flush->stage = FH_FLUSH_HINTING;
	flush->first = first;
	flush->rounds = 0;
	flush->hinted = 0;
}

/**
 * fh_flush_count - a hint was answered
 * @flush: the flush
 * @hint: the hint; earlier ones do not count
 */
void fh_flush_count(struct fh_flush *flush, const struct freehint_hint *hint)
{
	if (flush->stage == FH_FLUSH_HINTING && hint->cookie >= flush->first)
		flush->hinted += hint->nr_pages;
}

/**
 * fh_flush_round_over - a round is over, nothing is in flight
 * @flush: the flush
 * @progress: something was hinted in that round
 *
 * Return: whether the flush is done.
 */
bool fh_flush_round_over(struct fh_flush *flush, bool progress)
{
	return ++flush->rounds == FH_FLUSH_ROUNDS || !progress;
}

static void fh_flush_end(struct fh_engine *e, enum freehint_flush_result result)
{
	struct fh_flush *flush = &e->flush;
	struct freehint_flush answer = {
		.id = flush->request.id,
		.result = result,
	};

	if (flush->stage == FH_FLUSH_HINTING)
		answer.hinted_bytes = fh_bytes(flush->hinted);
	flush->stage = FH_FLUSH_NONE;
	WRITE_ONCE(flush->compact_until, jiffies);

	fh_gauges_get(e, &answer.gauges);
	e->stats.flushes++;
	trace_freehint_flush(&answer);
	if (!e->broken)
		e->dev->ops->flushed(e->dev, &answer);
}

/**
 * fh_flush_goes_on - a round is over: does the flush need another one
 * @e: the engine
 * @progress: something was hinted in that round
 * @pending: there is something to hint
 *
 * Context: the engine's thread, nothing is in flight.
 */
bool fh_flush_goes_on(struct fh_engine *e, bool progress, bool pending)
{
	if (!fh_flushing(e))
		return false;
	/* The pause may end before time is up. */
	if (pending && !fh_may_submit(e))
		return true;
	if (!fh_flush_round_over(&e->flush, progress))
		return true;
	fh_flush_end(e, FREEHINT_FLUSH_DONE);
	return false;
}

/*
 * What happens in a flush is no evidence on the pace: memory is hinted that
 * would have rested, and compaction has taken some.
 */
static void fh_flush_zone(struct fh_zone *fz)
{
	unsigned long flags;

	fh_promote(fz);
	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->settling = true;
	fz->reuse = (struct fh_reuse) { };
	spin_unlock_irqrestore(&fz->zone->lock, flags);
	fh_rewind(fz);
}

static void fh_flush_hint(struct fh_engine *e)
{
	struct fh_zone *fz;

	fh_flush_begin(&e->flush, e->stats.hints + 1);
	for_each_fh_zone(fz)
		fh_flush_zone(fz);
	fh_start_round(e);
}

/* What the device asked for is all that it waits for. */
static void fh_flush_take_request(struct fh_engine *e)
{
	struct fh_flush *flush = &e->flush;
	unsigned long flags;
	bool is_asked;

	spin_lock_irqsave(&flush->lock, flags);
	is_asked = flush->is_asked;
	flush->is_asked = false;
	if (is_asked)
		flush->request = flush->asked;
	spin_unlock_irqrestore(&flush->lock, flags);
	if (!is_asked)
		return;

	flush->stage = FH_FLUSH_PREPARING;
	/* A device that was replaced meanwhile counts from 1 again. */
	WRITE_ONCE(flush->prepared, 0);
	if (!READ_ONCE(e->running))
		return;
	/* Half of the time is for hinting. */
	WRITE_ONCE(flush->compact_until, flush->request.start +
		   (flush->request.deadline - flush->request.start) / 2);
	kthread_mod_delayed_work(e->worker, &flush->expire,
				 max_t(long, flush->request.deadline - jiffies, 1));
	queue_work(system_unbound_wq, &flush->prepare);
}

/* Something has happened: a request, the end of preparing, or of hinting at all. */
static void fh_flush_look(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;
	struct fh_flush *flush = &e->flush;

	fh_flush_take_request(e);
	if (flush->stage == FH_FLUSH_NONE)
		return;
	if (!READ_ONCE(e->running))
		fh_flush_end(e, FREEHINT_FLUSH_REFUSED);
	else if (flush->stage == FH_FLUSH_PREPARING &&
		 READ_ONCE(flush->prepared) == flush->request.id)
		fh_flush_hint(e);
}

static void fh_flush_expire(struct kthread_work *work)
{
	struct fh_engine *e = &fh_engine;
	struct fh_flush *flush = &e->flush;

	if (flush->stage != FH_FLUSH_NONE &&
	    time_after_eq(jiffies, flush->request.deadline))
		fh_flush_end(e, FREEHINT_FLUSH_TIMEOUT);
}

static void fh_flush_compact(const unsigned long *until)
{
	struct fh_zone *fz;

	/* What waits on per-CPU lists for the LRU cannot be moved. */
	lru_add_drain_all();
	for_each_fh_zone(fz)
		freehint_compact_zone(fz->zone, until);
}

static void fh_flush_prepare(struct work_struct *work)
{
	struct fh_flush *flush = container_of(work, struct fh_flush, prepare);
	struct fh_flush_request request;
	struct fh_zone *fz;

	spin_lock_irq(&flush->lock);
	request = flush->asked;
	spin_unlock_irq(&flush->lock);

	if (request.compact)
		fh_flush_compact(&flush->compact_until);
	for_each_fh_zone(fz)
		drain_all_pages(fz->zone);

	WRITE_ONCE(flush->prepared, request.id);
	kthread_queue_work(fh_engine.worker, &flush->look);
}

/**
 * freehint_flush - hint all free memory, now
 * @dev: the device
 * @id: the device's number for this, other than the last one's
 * @timeout_ms: when to answer at the latest
 * @compact: move memory in use together first, as far as time allows
 *
 * Leads to &freehint_ops.flushed. The device asks for one flush at a time: if an
 * earlier one is not over, there is no answer to that.
 *
 * Context: any in which the device stays registered.
 */
void freehint_flush(struct freehint_dev *dev, u32 id, unsigned int timeout_ms,
		    bool compact)
{
	struct fh_engine *e = &fh_engine;
	struct fh_flush *flush = &e->flush;
	unsigned long flags;

	timeout_ms = min_t(unsigned int, timeout_ms, FH_FLUSH_MAX_MS);
	spin_lock_irqsave(&flush->lock, flags);
	flush->asked = (struct fh_flush_request) {
		.id = id,
		.compact = compact,
		.start = jiffies,
		.deadline = jiffies + msecs_to_jiffies(timeout_ms),
	};
	flush->is_asked = true;
	spin_unlock_irqrestore(&flush->lock, flags);
	kthread_queue_work(e->worker, &flush->look);
}
EXPORT_SYMBOL_GPL(freehint_flush);

/**
 * fh_flush_stop - the engine does not run any more: nor does a flush
 * @e: the engine
 *
 * Context: control, the mutex held. The thread answers in its own time.
 */
void fh_flush_stop(struct fh_engine *e)
{
	kthread_queue_work(e->worker, &e->flush.look);
}

/**
 * fh_flush_set_up - a device is there, and a thread
 * @e: the engine
 */
void fh_flush_set_up(struct fh_engine *e)
{
	struct fh_flush *flush = &e->flush;

	kthread_init_work(&flush->look, fh_flush_look);
	kthread_init_delayed_work(&flush->expire, fh_flush_expire);
	flush->stage = FH_FLUSH_NONE;
	flush->is_asked = false;
	flush->prepared = 0;
}

/**
 * fh_flush_tear_down - the device goes
 * @e: the engine, which does not run
 */
void fh_flush_tear_down(struct fh_engine *e)
{
	cancel_work_sync(&e->flush.prepare);
	kthread_cancel_delayed_work_sync(&e->flush.expire);
}

/**
 * fh_flush_init - once
 * @e: the engine
 */
void __init fh_flush_init(struct fh_engine *e)
{
	spin_lock_init(&e->flush.lock);
	INIT_WORK(&e->flush.prepare, fh_flush_prepare);
}
