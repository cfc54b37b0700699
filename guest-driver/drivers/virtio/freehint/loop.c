// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: the loop.
 *
 * One thread does everything with the device and with free memory, in vfh_pass(). Others
 * write down what they want, and wake it. It never waits for memory or for the device, so
 * it can always put back what the device has let go of.
 *
 * Pages come back from the device only when it has used their buffer, or has confirmed a
 * reset: not when time is up, and not because somebody needs them.
 */
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>

#include "vfh.h"
#include "trace.h"

/* A source that could not be started is tried again after this time. */
#define VFH_RETRY_START		(5 * HZ)

/* The most pages in a hint; and the most in flight, for a slow device. */
#define VFH_MAX_HINT		(SZ_128M >> PAGE_SHIFT)
#define VFH_MAX_FLIGHT		(2 * VFH_MAX_HINT)
#define VFH_MAX_SLOW		8U

/* The interval in seconds at which gauges are checked without a hint. */
#define VFH_GAUGES_LOOKS	5

/* The period that ends idle time is this many times shorter than others. */
#define VFH_FIRST_PERIOD	4

/*
 * Answers.
 */

/**
 * vfh_hint_done - the device has let go of a hint
 * @fh: the device
 * @msg: the hint, with an outcome for each of its ranges
 */
void vfh_hint_done(struct vfh *fh, struct vfh_msg *msg)
{
	if (!msg->batch->lost)
		WRITE_ONCE(fh->in_flight, fh->in_flight - msg->batch->nr_pages);
	fh->source->give_back(msg->batch);
	msg->queued = false;
	list_move(&msg->list, &fh->idle);
}

/*
 * A device has to answer in time, and throttles what it cannot handle by then. So less is
 * in flight until it keeps up: there is progress, however slow it is.
 */
static void vfh_learn_speed(struct vfh *fh, unsigned int retry_ms)
{
	if (!retry_ms) {
		fh->slow -= !!fh->slow;
		return;
	}
	fh->slow = min(fh->slow + 1, VFH_MAX_SLOW);
	fh->pause_end = fh->now + msecs_to_jiffies(retry_ms);
}

/* When a settle time is over that begins now. */
static unsigned long vfh_next_settle_end(const struct vfh *fh)
{
	return fh->now + msecs_to_jiffies(fh->pace.age_ms);
}

/* Hint what is lazy once more when it has settled. */
static void vfh_await_settling(struct vfh *fh)
{
	if (fh->settle_runs)
		return;
	fh->settle_runs = true;
	fh->settle_end = vfh_next_settle_end(fh);
}

static void vfh_reap(struct vfh *fh)
{
	struct vfh_msg *msg;
	unsigned int len;

	while (fh->phase == VFH_UP && (msg = fh->port->next(fh, &len))) {
		if (!msg->queued) {
			vfh_fail(fh, false, "an answer to nothing");
			break;
		}
		if (msg->batch) {
			vfh_learn_speed(fh, vfh_read_answer(fh, msg, len));
			vfh_flush_answered(fh, msg);
			if (msg->lazy)
				vfh_await_settling(fh);
			vfh_hint_done(fh, msg);
			vfh_answered(fh);
			continue;
		}
		msg->queued = false;
		/*
		 * A device may not know this type of message: that is no fault, and it is
		 * not sent again.
		 */
		if (vfh_result(msg->answer, len) == VIRTIO_FREEHINT_R_UNSUPPORTED)
			msg->refused = true;
	}
	if (fh->phase == VFH_UP && fh->port->is_broken(fh))
		vfh_fail(fh, false, "the queue is broken");
}

/*
 * What the device, the guest's administrator and mm want.
 */

/*
 * If the guest tends to want memory back soon, memory is hinted lazily first. Other
 * guests are spared the second hint.
 */
static bool vfh_is_lazy(const struct vfh *fh)
{
	return fh->config.lazy && fh->source->settle &&
	       fh->pace.age_ms > fh->pace.min_ms;
}

/* How long memory rests before it is hinted, lazily or not. */
static unsigned int vfh_rest_ms(const struct vfh *fh)
{
	return vfh_is_lazy(fh) ? fh->config.early_ms : fh->pace.age_ms;
}

static unsigned long vfh_period(const struct vfh *fh)
{
	return max(msecs_to_jiffies(max(vfh_rest_ms(fh), fh->config.delay_ms)), 1UL);
}

static void vfh_read_config(struct vfh *fh)
{
	u32 flush_id = fh->config.flush_id, epoch = fh->config.epoch;

	if (fh->asleep || !fh->config_changed)
		return;
	fh->config_changed = false;
	if (!fh->port->read_config(fh, &fh->config)) {
		vfh_fail(fh, false, "the device asks to be reset");
		return;
	}
	vfh_bound_config(&fh->config);
	vfh_pace_bounds(fh);
	/* If the periods have become shorter, so has the one that runs. */
	if (time_after(fh->period_end, fh->now + vfh_period(fh)))
		fh->period_end = fh->now + vfh_period(fh);
	if (time_after(fh->settle_end, vfh_next_settle_end(fh)))
		fh->settle_end = vfh_next_settle_end(fh);
	if (fh->config.flush_id != flush_id)
		vfh_flush_ask(fh);
	if (fh->config.epoch == epoch || !fh->running)
		return;
	/* From here on, answers that were given under another epoch do not count. */
	fh->source->rehint();
	fh->catching_up = true;
	fh->period_runs = true;
	fh->period_end = fh->now + msecs_to_jiffies(fh->pace.age_ms);
}

/* Section "Driver status": what the driver does, and why, if it does nothing. */
static u32 vfh_find_status(const struct vfh *fh)
{
	static const u32 refusals[] = {
		[FREEHINT_NO_GRANULE] = VIRTIO_FREEHINT_DRIVER_GRANULE,
		[FREEHINT_NO_POISONING] = VIRTIO_FREEHINT_DRIVER_POISONING,
		[FREEHINT_NO_DEBUGGING] = VIRTIO_FREEHINT_DRIVER_DEBUGGING,
		[FREEHINT_NO_OTHER] = VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER,
	};
	enum freehint_refusal refusal = fh->source->refusal(fh->order);

	if (fh->phase != VFH_UP)
		return VIRTIO_FREEHINT_DRIVER_FAILED;
	if (refusal)
		return refusals[refusal];
	if (!READ_ONCE(fh->allowed))
		return VIRTIO_FREEHINT_DRIVER_OFF;
	if (fh->asleep || fh->config.state != VIRTIO_FREEHINT_STATE_ACTIVE)
		return VIRTIO_FREEHINT_DRIVER_WAITING;
	return VIRTIO_FREEHINT_DRIVER_ACTIVE;
}

static void vfh_tell_status(struct vfh *fh, u32 status)
{
	static const char * const refusals[] = {
		[VIRTIO_FREEHINT_DRIVER_POISONING] =
			"free pages are poisoned (page_poison)",
		[VIRTIO_FREEHINT_DRIVER_DEBUGGING] =
			"free pages are unmapped or shadowed (debug_pagealloc, KMSAN)",
		[VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER] =
			"free page reporting has a device already",
		[VIRTIO_FREEHINT_DRIVER_GRANULE] =
			"the device's granule is larger than a pageblock",
		[VIRTIO_FREEHINT_DRIVER_FAILED] = NULL,
	};

	if (status == fh->status)
		return;
	WRITE_ONCE(fh->status, status);
	if (refusals[status])
		dev_warn(&fh->vdev->dev, "not hinting: %s\n", refusals[status]);
	if (fh->phase == VFH_UP && !fh->asleep)
		fh->port->write_status(fh, status);
}

/*
 * Runs in an interrupt. The period begins here: if a process has the CPU, the thread may
 * not run before that process has freed all of its memory.
 */
static void vfh_freed(void *data)
{
	struct vfh *fh = data;

	WRITE_ONCE(fh->freed_at, jiffies);
	vfh_wake(fh, VFH_EVENT_FREED);
}

static void vfh_start(struct vfh *fh)
{
	if (time_before(fh->now, fh->revive_at)) {
		vfh_wait_until(fh, fh->revive_at);
		return;
	}
	if (fh->source->start(fh->order, vfh_freed, fh)) {
		if (fh->source->refusal(fh->order) == FREEHINT_CAN)
			dev_warn(&fh->vdev->dev, "cannot keep track of free memory, trying again\n");
		fh->revive_at = fh->now + VFH_RETRY_START;
		vfh_wait_until(fh, fh->revive_at);
		return;
	}
	fh->running = true;
	fh->catching_up = true;
	fh->period_runs = true;
	fh->period_end = fh->now + msecs_to_jiffies(fh->pace.age_ms);
	fh->pause_end = fh->now;
	mod_timer(&fh->look, jiffies + HZ);
}

static void vfh_stop(struct vfh *fh)
{
	fh->running = false;
	fh->round = false;
	fh->period_runs = false;
	fh->settle_runs = false;
	timer_delete_sync(&fh->look);
	fh->source->stop();
}

/* A source may find out only when it is started that it must not be. */
static u32 vfh_why_not_started(const struct vfh *fh)
{
	u32 status = vfh_find_status(fh);

	return status == VIRTIO_FREEHINT_DRIVER_ACTIVE ?
	       VIRTIO_FREEHINT_DRIVER_NOT_READY : status;
}

/* Returns whether to hint memory. Stops the source when nothing is in flight any more. */
static bool vfh_follow_wishes(struct vfh *fh, unsigned long wishes)
{
	u32 status = vfh_find_status(fh);
	bool wanted = status == VIRTIO_FREEHINT_DRIVER_ACTIVE;

	if (wanted && !fh->running) {
		vfh_start(fh);
		if (!fh->running)
			status = vfh_why_not_started(fh);
	}
	/* Nobody says when the other reporter goes: look again. */
	if (status == VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER)
		vfh_wait_until(fh, fh->now + VFH_RETRY_START);
	if (!wanted && fh->running && (list_empty(&fh->flight) || fh->is_lost))
		vfh_stop(fh);
	if (wanted || !fh->running) {
		vfh_tell_status(fh, status);
		WRITE_ONCE(fh->followed, wishes);
		wake_up_all(&fh->followed_wait);
	}
	return wanted && fh->running;
}

/*
 * Hints.
 */

/* May hints be sent now, or did the device ask for a pause? */
static bool vfh_may_send(const struct vfh *fh)
{
	return time_after_eq(fh->now, fh->pause_end);
}

/* While the device is busy with earlier hints, the same round goes on. */
static void vfh_begin_round(struct vfh *fh)
{
	if (fh->round)
		return;
	fh->round = true;
	fh->progress = false;
	trace_freehint_round(true);
}

/**
 * vfh_start_round - start to hint what is due
 * @fh: the device
 * @flags: see freehint_age()
 */
void vfh_start_round(struct vfh *fh, unsigned int flags)
{
	fh->period_runs = fh->source->age(flags);
	fh->period_end = fh->now + vfh_period(fh);
	if (fh->period_runs)
		vfh_wait_until(fh, fh->period_end);
	vfh_begin_round(fh);
}

/* Has @end come? The device may want to be left alone between two rounds. */
static bool vfh_is_over(struct vfh *fh, unsigned long *end)
{
	unsigned long left = fh->round_end + msecs_to_jiffies(fh->config.delay_ms);

	if (!fh->round && time_before(*end, left))
		*end = left;
	if (!time_before(fh->now, *end))
		return true;
	vfh_wait_until(fh, *end);
	return false;
}

/* Memory is hinted when it has been free for a whole period. */
static void vfh_end_period(struct vfh *fh)
{
	if (test_and_clear_bit(VFH_EVENT_FREED, &fh->events) && !fh->period_runs) {
		fh->period_runs = true;
		fh->period_end = READ_ONCE(fh->freed_at) +
			max(msecs_to_jiffies(vfh_rest_ms(fh)) / VFH_FIRST_PERIOD, 1UL);
	}
	if (test_and_clear_bit(VFH_EVENT_LOOK, &fh->events) && !fh->period_runs &&
	    fh->source->worth_a_look()) {
		fh->period_runs = true;
		fh->period_end = fh->now;
	}
	/* The device can only be left alone if the round ends. */
	if (!fh->period_runs || (fh->round && fh->config.delay_ms) ||
	    !vfh_is_over(fh, &fh->period_end))
		return;
	vfh_pace_tick(fh);
	vfh_start_round(fh, vfh_is_lazy(fh) ? FREEHINT_EARLY : 0);
}

/*
 * What was hinted lazily is hinted once more when it has settled. If the device wants to
 * be left alone in between, a period may begin each round: what has settled joins it.
 */
static void vfh_end_settle_time(struct vfh *fh)
{
	if (!fh->settle_runs || !vfh_is_over(fh, &fh->settle_end))
		return;
	fh->settle_runs = fh->source->settle();
	fh->settle_end = vfh_next_settle_end(fh);
	if (fh->settle_runs)
		vfh_wait_until(fh, fh->settle_end);
	vfh_begin_round(fh);
}

static bool vfh_send_one(struct vfh *fh, unsigned int flags)
{
	unsigned long max_pages = VFH_MAX_HINT;
	struct vfh_msg *msg;

	msg = list_first_entry_or_null(&fh->idle, struct vfh_msg, list);
	if (!msg || !vfh_may_send(fh))
		return false;
	if (fh->slow) {
		unsigned long most = VFH_MAX_FLIGHT >> fh->slow;

		if (fh->in_flight && fh->in_flight >= most)
			return false;
		max_pages = min(most / 2, most - fh->in_flight);
	}
	if (!fh->source->collect(msg->batch, max_pages, flags))
		return false;

	if (vfh_send_hint(fh, msg)) {
		/* The device does not have it, and it is due again. */
		fh->counters.unsent++;
		fh->source->give_back(msg->batch);
		return false;
	}
	msg->queued = true;
	vfh_expect_answer(fh, msg);
	list_move_tail(&msg->list, &fh->flight);
	WRITE_ONCE(fh->in_flight, fh->in_flight + msg->batch->nr_pages);
	return true;
}

static void vfh_send(struct vfh *fh)
{
	unsigned int flags = vfh_flushing(fh) ? FREEHINT_NOW : 0;
	bool sent = false;

	if (!fh->round)
		return;
	while (vfh_send_one(fh, flags))
		sent = true;
	if (sent) {
		fh->progress = true;
		/* One notification is enough for both. */
		vfh_gauges_send(fh);
		fh->port->kick(fh);
	}
	vfh_look_for_overdue(fh);
	if (!list_empty(&fh->flight))
		return;
	if (!vfh_may_send(fh)) {
		vfh_wait_until(fh, fh->pause_end);
		return;
	}

	fh->round = false;
	fh->round_end = fh->now;
	trace_freehint_round(false);
	if (!fh->progress)
		fh->catching_up = false;
	vfh_flush_round_over(fh);
	if (fh->period_runs)
		vfh_wait_until(fh, fh->period_end);
	else
		vfh_gauges_rest(fh);
}

/**
 * vfh_pass - do all that can be done now
 * @fh: the device
 * @now: jiffies
 *
 * &vfh.next is when the next pass is due, if nothing happens before.
 *
 * Context: the loop.
 */
void vfh_pass(struct vfh *fh, unsigned long now)
{
	unsigned long wishes = READ_ONCE(fh->wishes);

	fh->now = now;
	fh->next = now + MAX_JIFFY_OFFSET;
	if (test_and_clear_bit(VFH_EVENT_CONFIG, &fh->events))
		fh->config_changed = true;

	if (fh->phase == VFH_UP)
		vfh_read_config(fh);
	if (vfh_may_use_queue(fh))
		vfh_reap(fh);
	if (fh->phase == VFH_UP)
		vfh_look_for_overdue(fh);
	if (fh->phase == VFH_RESETTING)
		vfh_await_reset(fh);
	if (fh->phase == VFH_DOWN || fh->phase == VFH_REVIVING)
		vfh_set_up_again(fh);

	if (vfh_follow_wishes(fh, wishes)) {
		vfh_flush_step(fh);
		vfh_end_period(fh);
		vfh_end_settle_time(fh);
		vfh_send(fh);
		if (test_and_clear_bit(VFH_EVENT_TELL, &fh->events))
			vfh_gauges_rest(fh);
	} else {
		clear_bit(VFH_EVENT_FREED, &fh->events);
		clear_bit(VFH_EVENT_LOOK, &fh->events);
		clear_bit(VFH_EVENT_TELL, &fh->events);
		vfh_flush_step(fh);
	}
}

/**
 * vfh_wake - wake the loop for an event
 * @fh: the device
 * @event: VFH_EVENT_*
 *
 * Context: any.
 */
void vfh_wake(struct vfh *fh, unsigned int event)
{
	set_bit(event, &fh->events);
	wake_up(&fh->wait);
}

/**
 * vfh_wish - change a wish, and wait until the loop has followed it
 * @fh: the device
 * @what: &vfh.allowed or &vfh.asleep
 * @value: what it is to be
 *
 * If memory is not to be hinted any more, the device has none of it when this returns, or
 * it is lost. That takes the timeout and a reset at most.
 *
 * Context: process context, not the loop.
 */
void vfh_wish(struct vfh *fh, bool *what, bool value)
{
	unsigned long wish;

	spin_lock(&fh->lock);
	WRITE_ONCE(*what, value);
	wish = fh->wishes + 1;
	WRITE_ONCE(fh->wishes, wish);
	spin_unlock(&fh->lock);
	vfh_wake(fh, VFH_EVENT_OTHER);
	wait_event(fh->followed_wait, (long)(READ_ONCE(fh->followed) - wish) >= 0);
}

/**
 * vfh_wake_up - a device that was asleep has been set up again
 * @fh: the device
 *
 * The loop is asleep: nothing is in flight, and it does not look at the device.
 */
void vfh_wake_up(struct vfh *fh)
{
	fh->phase = fh->hopeless ? VFH_HOPELESS : VFH_UP;
	vfh_forget(fh);
	vfh_wish(fh, &fh->asleep, false);
}

/**
 * vfh_thread - runs the loop
 * @data: the device
 *
 * Return: 0, when it is told to stop.
 */
int vfh_thread(void *data)
{
	struct vfh *fh = data;

	while (!kthread_should_stop()) {
		long left;

		clear_bit(VFH_EVENT_OTHER, &fh->events);
		vfh_pass(fh, jiffies);
		left = max_t(long, fh->next - jiffies, 0);
		wait_event_idle_timeout(fh->wait, READ_ONCE(fh->events) ||
					kthread_should_stop(), left);
	}
	return 0;
}

/* Runs in a timer's interrupt, so that the loop is only woken if there is work. */
static void vfh_look(struct timer_list *timer)
{
	struct vfh *fh = container_of(timer, struct vfh, look);

	fh->looks++;
	if (fh->source->worth_a_look() || fh->source->refusal(fh->order))
		vfh_wake(fh, VFH_EVENT_LOOK);
	if (fh->looks % VFH_GAUGES_LOOKS == 0 && vfh_gauges_worth_telling(fh))
		vfh_wake(fh, VFH_EVENT_TELL);
	vfh_compact_look(fh);
	mod_timer(&fh->look, jiffies + HZ);
}

/**
 * vfh_init - set up what the loop needs
 * @fh: zeroed, with a source and a port
 */
void vfh_init(struct vfh *fh)
{
	init_waitqueue_head(&fh->wait);
	init_waitqueue_head(&fh->followed_wait);
	spin_lock_init(&fh->lock);
	INIT_LIST_HEAD(&fh->idle);
	INIT_LIST_HEAD(&fh->flight);
	timer_setup(&fh->look, vfh_look, TIMER_DEFERRABLE);
	vfh_flush_init(fh);
	vfh_compact_init(fh);
	fh->allowed = true;
	fh->now = jiffies;
	vfh_recovery_init(fh);
	fh->round_end = jiffies;
	fh->pause_end = jiffies;
	fh->pace.since = jiffies;
	fh->config_changed = true;
}
