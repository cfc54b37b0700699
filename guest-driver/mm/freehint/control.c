// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: who wants what, and what follows from it.
 *
 * The engine runs while a device is registered and nothing speaks against it.
 * Only then is the static key on, so that a guest without the device, or with a
 * device that wants nothing, pays nothing. All is decided under one mutex, which
 * the engine's thread never takes.
 */
#define pr_fmt(fmt) "freehint: " fmt

#include <linux/cleanup.h>
#include <linux/errno.h>
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/init.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "../page_reporting.h"
#include "engine.h"
#include "hooks.h"

#define CREATE_TRACE_POINTS
#include <trace/events/freehint.h>

static void fh_bounds_changed(void);

static int fh_set_ms(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_uint(val, kp);

	if (!ret)
		fh_bounds_changed();
	return ret;
}

static const struct kernel_param_ops fh_ms_ops = {
	.set = fh_set_ms,
	.get = param_get_uint,
};

static int fh_set_adapts(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_bool(val, kp);

	if (!ret)
		fh_bounds_changed();
	return ret;
}

static const struct kernel_param_ops fh_adapts_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = fh_set_adapts,
	.get = param_get_bool,
};

/* The guest's own bounds, whatever the device asks for. */
static unsigned int min_age_floor_ms = 20;
module_param_cb(min_age_floor_ms, &fh_ms_ops, &min_age_floor_ms, 0644);
MODULE_PARM_DESC(min_age_floor_ms, "Memory stays free for at least this long before it is hinted");

static unsigned int min_age_ceiling_ms = 60000;
module_param_cb(min_age_ceiling_ms, &fh_ms_ops, &min_age_ceiling_ms, 0644);
MODULE_PARM_DESC(min_age_ceiling_ms, "The device may not ask that memory stay free for longer than this");

module_param_cb(adapt, &fh_adapts_ops, &fh_adapts, 0644);
MODULE_PARM_DESC(adapt, "Let memory stay free for longer where it is reused soon after it was hinted");

module_param_named(timeout_ms, fh_timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "A device that has not answered a hint after this long is reset");

module_param_named(drain, fh_drain_allowed, bool, 0644);
MODULE_PARM_DESC(drain, "Drain a zone's per-CPU lists once after much memory was freed");

/* A granule this small would cost more in state and calls than it gives. */
#define FH_MIN_GRANULE		max(PAGE_SIZE, SZ_64K)

DEFINE_STATIC_KEY_FALSE(freehint_key);
unsigned int freehint_order __read_mostly = NR_PAGE_ORDERS;

struct fh_engine fh_engine = {
	.lock = __MUTEX_INITIALIZER(fh_engine.lock),
	.idle = LIST_HEAD_INIT(fh_engine.idle),
	.flight = LIST_HEAD_INIT(fh_engine.flight),
	.wait = __WAIT_QUEUE_HEAD_INITIALIZER(fh_engine.wait),
};

static void fh_stop_submitting(struct fh_engine *e)
{
	WRITE_ONCE(e->running, false);
	fh_gauges_stop(e);
	kthread_cancel_delayed_work_sync(&e->tick);
	/* A pump that has seen running is over after this. */
	kthread_flush_worker(e->worker);
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
	fh_gauges_start(e);
}

static void fh_stop(struct fh_engine *e)
{
	fh_stop_submitting(e);
	if (!e->broken && !fh_wait_answers(e)) {
		e->stats.timeouts++;
		pr_warn("no answer in %u ms while stopping, resetting the device\n",
			fh_timeout_ms);
		fh_reset_device(e);
	}
	fh_flush_stop(e);
	kthread_flush_worker(e->worker);
	static_branch_disable(&freehint_key);
}

/*
 * A pageblock can be isolated, and so taken apart from its buddy, without a hook
 * being told. A granule must not be torn by that.
 */
static bool fh_granule_fits(const struct fh_engine *e)
{
	return e->order <= pageblock_order;
}

/* Why not to hint, in order of precedence. */
static enum freehint_status fh_verdict(const struct fh_engine *e)
{
	if (e->broken)
		return FREEHINT_BROKEN;
	if (!fh_granule_fits(e))
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
	[FREEHINT_POISONING] = "free pages are poisoned (page_poison)",
	[FREEHINT_DEBUGGING] = "free pages are unmapped or shadowed (debug_pagealloc, KMSAN)",
	[FREEHINT_OTHER_REPORTER] = "free page reporting has a device already",
	[FREEHINT_GRANULE] = "the device's granule is larger than a pageblock",
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
	u64 overdue;

	guard(mutex)(&e->lock);
	if (!e->dev || e->broken)
		return;
	overdue = READ_ONCE(e->overdue);
	/* It has answered after all. */
	if (!e->give_up && !overdue)
		return;
	if (overdue)
		pr_warn("no answer to hint %llu in %u ms, resetting the device\n",
			overdue, fh_timeout_ms);
	fh_stop_submitting(e);
	fh_reset_device(e);
	fh_flush_stop(e);
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
	WRITE_ONCE(fh_engine.give_up, true);
	schedule_work(&fh_engine.recover);
}
EXPORT_SYMBOL_GPL(freehint_broken);

/**
 * freehint_let_go - the device has been reset
 * @dev: the device
 *
 * In case that &freehint_ops.reset did not wait for so long: what is accounted for
 * as leaked comes back. Context: process context.
 */
void freehint_let_go(struct freehint_dev *dev)
{
	struct fh_engine *e = &fh_engine;

	guard(mutex)(&e->lock);
	if (e->dev != dev || !e->broken)
		return;
	kthread_queue_work(e->worker, &e->abort);
	kthread_flush_work(&e->abort);
}
EXPORT_SYMBOL_GPL(freehint_let_go);

/**
 * freehint_mended - the device can be talked to again after a reset
 * @dev: the device, which has let go of all that it had
 *
 * It is as when it was registered: the driver has yet to call
 * freehint_set_active(). Context: process context.
 */
void freehint_mended(struct freehint_dev *dev)
{
	struct fh_engine *e = &fh_engine;

	guard(mutex)(&e->lock);
	if (e->dev != dev)
		return;
	e->active = false;
	e->broken = false;
	e->give_up = false;
	e->overdue = 0;
	fh_update(e);
}
EXPORT_SYMBOL_GPL(freehint_mended);

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
	guard(mutex)(&fh_engine.lock);
	fh_engine.active = active;
	fh_update(&fh_engine);
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
	guard(mutex)(&fh_engine.lock);
	fh_engine.allowed = allowed;
	fh_update(&fh_engine);
}
EXPORT_SYMBOL_GPL(freehint_set_allowed);

/**
 * freehint_allowed - does the guest's administrator allow hints
 * @dev: the device
 */
bool freehint_allowed(struct freehint_dev *dev)
{
	return READ_ONCE(fh_engine.allowed);
}
EXPORT_SYMBOL_GPL(freehint_allowed);

static void fh_apply_pace(struct fh_engine *e)
{
	unsigned int floor = READ_ONCE(min_age_floor_ms);
	unsigned int ceiling = max(floor, READ_ONCE(min_age_ceiling_ms));

	lockdep_assert_held(&e->lock);

	WRITE_ONCE(e->delay_ms, min(e->asked_delay_ms, ceiling));
	WRITE_ONCE(e->min_age_ms, clamp(e->asked_age_ms, floor, ceiling));
	/* The pace is the thread's. */
	kthread_queue_work(e->worker, &e->repace);
	kthread_flush_work(&e->repace);
}

/* By the guest's administrator, or, before there is a device, its command line. */
static void fh_bounds_changed(void)
{
	struct fh_engine *e = &fh_engine;

	guard(mutex)(&e->lock);
	if (e->dev)
		fh_apply_pace(e);
}

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
	struct fh_engine *e = &fh_engine;

	guard(mutex)(&e->lock);
	e->asked_delay_ms = delay_ms;
	e->asked_age_ms = min_age_ms;
	fh_apply_pace(e);
}
EXPORT_SYMBOL_GPL(freehint_set_pace);

/**
 * freehint_sync - wait until no operation of the driver is under way
 * @dev: the device, for which nothing is active that could begin one
 *
 * Context: process context.
 */
void freehint_sync(struct freehint_dev *dev)
{
	kthread_flush_worker(fh_engine.worker);
}
EXPORT_SYMBOL_GPL(freehint_sync);

/**
 * freehint_rehint - earlier answers of the device do not hold any more
 * @dev: the device
 *
 * Everything free becomes pending again, what was discarded as well as what was
 * refused. Context: process context.
 */
void freehint_rehint(struct freehint_dev *dev)
{
	struct fh_engine *e = &fh_engine;
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
	guard(mutex)(&fh_engine.lock);
	fh_update(&fh_engine);
}

/**
 * freehint_status - what the engine does
 * @dev: the device
 */
enum freehint_status freehint_status(struct freehint_dev *dev)
{
	return READ_ONCE(fh_engine.status);
}
EXPORT_SYMBOL_GPL(freehint_status);

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
	struct kthread_worker *worker;
	int ret;

	ret = fh_alloc_hints(e);
	if (ret)
		return ret;

	worker = kthread_create_worker(0, "kfreehintd");
	if (IS_ERR(worker)) {
		ret = PTR_ERR(worker);
		goto free_hints;
	}
	/* A work remembers its worker, and the last one is gone. */
	kthread_init_delayed_work(&e->tick, fh_tick);
	kthread_init_delayed_work(&e->watch, fh_look_for_answer);
	kthread_init_work(&e->reap, fh_reap);
	kthread_init_work(&e->abort, fh_abort);
	kthread_init_work(&e->repace, fh_repace);
	kthread_init_work(&e->tell, fh_gauges_tell);
	fh_flush_set_up(e);

	if (fh_granule_fits(e)) {
		ret = fh_storage_create(e->order, &e->kick);
		if (ret)
			goto destroy_worker;
	}
	/* From here the device may interrupt; pairs with freehint_interrupt(). */
	smp_store_release(&e->worker, worker);
	return 0;

destroy_worker:
	kthread_destroy_worker(worker);
free_hints:
	fh_free_hints(e);
	return ret;
}

static void fh_tear_down(struct fh_engine *e)
{
	struct kthread_worker *worker = e->worker;

	/* Preparing a flush walks the zones. */
	fh_flush_tear_down(e);
	if (fh_granule_fits(e))
		fh_storage_destroy();
	/* No hook kicks any more; what was kicked finds nothing to do. */
	irq_work_sync(&e->kick);
	kthread_cancel_delayed_work_sync(&e->tick);
	kthread_cancel_delayed_work_sync(&e->watch);
	/* An interrupt may be on its way to it. */
	WRITE_ONCE(e->worker, NULL);
	synchronize_rcu();
	kthread_destroy_worker(worker);
	/* The leaked ones, of a device that is gone. */
	list_splice_init(&e->flight, &e->idle);
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
	struct fh_engine *e = &fh_engine;
	int ret;

	if (!is_power_of_2(dev->granule) || !dev->max_ranges || !dev->nr_hints)
		return -EINVAL;

	guard(mutex)(&e->lock);
	if (e->dev)
		return -EBUSY;

	e->dev = dev;
	e->order = ilog2(max_t(u64, dev->granule, FH_MIN_GRANULE)) - PAGE_SHIFT;
	e->active = false;
	e->allowed = true;
	e->broken = false;
	e->give_up = false;
	e->leaked = false;
	e->overdue = 0;
	e->status = FREEHINT_NR_STATUSES;
	e->round = false;
	e->round_end = jiffies;
	e->pause_until = jiffies;
	e->stalls = fh_count_stalls();
	e->told = (struct freehint_gauges) { };
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
	struct fh_engine *e = &fh_engine;

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
	struct fh_engine *e = &fh_engine;

	init_irq_work(&e->kick, fh_kick);
	INIT_WORK(&e->recover, fh_recover);
	fh_flush_init(e);
	fh_gauges_init(e);
	fh_debug_init();
	return fh_flight_init();
}
subsys_initcall(fh_init);
