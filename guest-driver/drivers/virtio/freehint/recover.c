// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: a device that does not answer, or answers nonsense, is
 * reset, and set up again some time later. All of it is part of the loop.
 *
 * Until the device has confirmed the reset, it may still discard what it was given, so
 * nobody gets that memory before.
 */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/module.h>

#include "vfh.h"

/* How long a device may take for an answer before it is reset. */
static unsigned int timeout_ms = 5000;
module_param(timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "A device that has not answered a hint after this long is reset");

/*
 * In this time, the driver looks for an answer this many times. It counts looks, not
 * time: if the host runs neither the guest nor its device for a while, the guest's
 * clock jumps, though the device could not answer, and that counts as one look.
 */
#define VFH_LOOKS		8

/* How long a device may take to confirm a reset, before what it has is given up. */
#define VFH_RESET_TIME		(10 * HZ)

/* A device that was reset stays down for this long, and for twice as long each time. */
#define VFH_BACKOFF		HZ
#define VFH_MAX_BACKOFF		(60 * HZ)

static unsigned long vfh_look_time(void)
{
	return max(msecs_to_jiffies(READ_ONCE(timeout_ms)) / VFH_LOOKS, 1UL);
}

/**
 * vfh_fail - the device is of no use: reset it
 * @fh: the device
 * @hopeless: whether it is of no use when it is set up again, either
 * @why: what to tell the administrator
 */
void vfh_fail(struct vfh *fh, bool hopeless, const char *why)
{
	if (hopeless)
		fh->hopeless = true;
	if (fh->phase != VFH_UP)
		return;

	dev_err(&fh->vdev->dev, "%s, resetting the device%s\n", why,
		hopeless ? "; no more hints until the driver is bound again" : "");
	fh->counters.resets++;
	fh->phase = VFH_RESETTING;
	fh->is_lost = false;
	fh->reset_deadline = fh->now + VFH_RESET_TIME;
	WRITE_ONCE(fh->is_reset, false);
	fh->port->reset(fh);
}

/**
 * vfh_forget - a device was reset: it has no message, and may have become another one
 * @fh: the device
 */
void vfh_forget(struct vfh *fh)
{
	fh->gauges.queued = false;
	fh->gauges.refused = false;
	fh->flush.done.queued = false;
	fh->flush.done.refused = false;
	vfh_flush_forget(fh);
	fh->status = VIRTIO_FREEHINT_DRIVER_NOT_READY;
	fh->config_changed = true;
	fh->up_since = fh->now;
}

/* The device has let go of everything, without telling what it did. */
static void vfh_take_back(struct vfh *fh)
{
	struct vfh_msg *msg, *next;
	unsigned int i;

	list_for_each_entry_safe(msg, next, &fh->flight, list) {
		struct freehint_batch *batch = msg->batch;

		for (i = 0; i < batch->nr_ranges; i++)
			batch->ranges[i].outcome = FREEHINT_RETRY;
		if (batch->lost)
			fh->counters.leaked_bytes -= vfh_bytes(batch->nr_pages);
		fh->counters.aborted_bytes += vfh_bytes(batch->nr_pages);
		vfh_hint_done(fh, msg);
	}
	vfh_forget(fh);
	fh->round = false;
	fh->slow = 0;
}

/* The device has not confirmed its reset, and may still write. */
static void vfh_give_up(struct vfh *fh)
{
	struct vfh_msg *msg;

	fh->is_lost = true;
	if (list_empty(&fh->flight))
		return;
	list_for_each_entry(msg, &fh->flight, list) {
		fh->source->lost(msg->batch);
		fh->counters.leaked_bytes += vfh_bytes(msg->batch->nr_pages);
	}
	dev_err(&fh->vdev->dev, "the device does not confirm its reset, %llu KiB that it may still discard are lost until it does\n",
		vfh_bytes(fh->in_flight) >> 10);
	WRITE_ONCE(fh->in_flight, 0);
}

/**
 * vfh_await_reset - the device was told to reset itself: has it
 * @fh: the device
 */
void vfh_await_reset(struct vfh *fh)
{
	/* Pairs with vfh_reset_work(): the device writes nothing any more. */
	if (smp_load_acquire(&fh->is_reset) || fh->port->is_gone(fh)) {
		vfh_take_back(fh);
		fh->phase = fh->hopeless ? VFH_HOPELESS : VFH_DOWN;
		fh->revive_at = fh->now + fh->backoff;
		fh->backoff = min(2 * fh->backoff, VFH_MAX_BACKOFF);
	} else if (time_before(fh->now, fh->reset_deadline)) {
		vfh_wait_until(fh, fh->reset_deadline);
	} else if (!fh->is_lost) {
		vfh_give_up(fh);
	}
}

/**
 * vfh_set_up_again - go on setting up a device that was reset
 * @fh: the device
 */
void vfh_set_up_again(struct vfh *fh)
{
	if (fh->asleep)
		return;
	if (fh->phase == VFH_DOWN) {
		if (time_before(fh->now, fh->revive_at)) {
			vfh_wait_until(fh, fh->revive_at);
			return;
		}
		fh->phase = VFH_REVIVING;
		WRITE_ONCE(fh->is_revived, false);
		fh->port->revive(fh);
	}
	/* Pairs with vfh_revive_work(). */
	if (smp_load_acquire(&fh->is_revived)) {
		dev_info(&fh->vdev->dev, "the device is back\n");
		fh->phase = VFH_UP;
		vfh_forget(fh);
	} else if (READ_ONCE(fh->hopeless)) {
		fh->phase = VFH_HOPELESS;
	}
}

/**
 * vfh_expect_answer - a hint is about to be in flight
 * @fh: the device
 * @msg: the hint
 */
void vfh_expect_answer(struct vfh *fh, struct vfh_msg *msg)
{
	msg->looks = 0;
	if (list_empty(&fh->flight))
		fh->next_look = fh->now + vfh_look_time();
}

/**
 * vfh_answered - the device has answered a hint
 * @fh: the device
 *
 * If it has been up for long, its next fault counts as its first.
 */
void vfh_answered(struct vfh *fh)
{
	if (time_after(fh->now, fh->up_since + VFH_MAX_BACKOFF))
		fh->backoff = VFH_BACKOFF;
}

/**
 * vfh_look_for_overdue - has an answer not come in time
 * @fh: the device
 */
void vfh_look_for_overdue(struct vfh *fh)
{
	struct vfh_msg *msg;
	bool overdue = false;

	if (list_empty(&fh->flight))
		return;
	if (time_before(fh->now, fh->next_look)) {
		vfh_wait_until(fh, fh->next_look);
		return;
	}
	list_for_each_entry(msg, &fh->flight, list)
		overdue |= ++msg->looks > VFH_LOOKS;
	if (overdue) {
		fh->counters.timeouts++;
		vfh_fail(fh, false, "no answer to a hint in time");
		return;
	}
	fh->next_look = fh->now + vfh_look_time();
	vfh_wait_until(fh, fh->next_look);
}

/**
 * vfh_recovery_init - the device has had no fault yet
 * @fh: the device
 */
void vfh_recovery_init(struct vfh *fh)
{
	fh->phase = VFH_UP;
	fh->backoff = VFH_BACKOFF;
	fh->up_since = fh->now;
	fh->revive_at = fh->now;
}
