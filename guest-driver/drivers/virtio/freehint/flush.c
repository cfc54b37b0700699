// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: hint all free memory at once, when the device asks
 * for it. Section "Flush".
 *
 * A flush has three stages. A work item brings memory to the free lists, which can take
 * long. Then all pending memory is hinted, whatever its age, in rounds that follow each
 * other at once. Then the driver answers, by the deadline whatever happens.
 */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/time64.h>

#include "vfh.h"
#include "trace.h"

/* So that jiffies don't wrap around; nobody waits for this long. */
#define VFH_FLUSH_MAX_MS	(3600 * MSEC_PER_SEC)

/*
 * A round hints all that is pending at its start; the next ones hint what was the last
 * block of its kind, and what was freed since. On a busy guest that would never end.
 */
#define VFH_FLUSH_ROUNDS	4

/* A flush that is held up looks again after this time. */
#define VFH_FLUSH_LOOK		(HZ / 10)

static void vfh_flush_send(struct vfh *fh)
{
	struct vfh_flush *flush = &fh->flush;

	if (!flush->owed || flush->done.queued || flush->done.refused ||
	    !vfh_may_use_queue(fh))
		return;
	/* Later, if there is no room in the queue. */
	if (fh->port->send(fh, &flush->done,
			   sizeof(flush->done.request->flush_done), 0))
		return;
	flush->done.queued = true;
	flush->owed = false;
	fh->port->kick(fh);
}

static void vfh_flush_end(struct vfh *fh, u32 result)
{
	struct vfh_figures figures = vfh_figures(fh);
	struct vfh_flush *flush = &fh->flush;
	struct vfh_msg *done = &flush->done;
	u64 hinted = vfh_bytes(flush->hinted);

	flush->stage = VFH_FLUSH_NONE;
	fh->counters.flushes++;
	trace_freehint_flush(flush->id, result, hinted, &figures);

	vfh_fill_hdr(done, VIRTIO_FREEHINT_T_FLUSH_DONE, 0, 0, flush->id);
	done->request->flush_done = (struct virtio_freehint_flush_done) {
		.id = cpu_to_le32(flush->id),
		.result = cpu_to_le32(result),
		.hinted = cpu_to_le64(hinted),
		.gauges = vfh_le_gauges(&figures),
	};
	flush->owed = true;
	vfh_flush_send(fh);
}

/**
 * vfh_flush_ask - the device asks for a flush
 * @fh: the device; its configuration says what is asked for
 *
 * The device asks for one at a time: if an earlier one is not over, it gets no answer.
 */
void vfh_flush_ask(struct vfh *fh)
{
	unsigned long time = msecs_to_jiffies(min_t(u32, fh->config.flush_timeout_ms,
						    VFH_FLUSH_MAX_MS));
	struct vfh_flush *flush = &fh->flush;

	flush->stage = VFH_FLUSH_GATHERING;
	flush->id = fh->config.flush_id;
	flush->compact = fh->config.flush_flags & VIRTIO_FREEHINT_FLUSH_F_COMPACT;
	flush->deadline = fh->now + time;
	/* Half of the time is for hinting. */
	flush->compact_until = fh->now + time / 2;
	flush->rounds = 0;
	flush->hinted = 0;
	flush->owed = false;
	flush->held_up = false;
	WRITE_ONCE(flush->gathered, false);
	if (fh->running)
		queue_work(system_dfl_wq, &flush->gather);
}

static void vfh_flush_gather(struct work_struct *work)
{
	struct vfh *fh = container_of(work, struct vfh, flush.gather);

	fh->source->gather(READ_ONCE(fh->flush.compact),
			   READ_ONCE(fh->flush.compact_until));
	/* Pairs with vfh_flush_step(): memory is on the free lists. */
	smp_store_release(&fh->flush.gathered, true);
	vfh_wake(fh, VFH_EVENT_OTHER);
}

/* There is something to hint, but mm gives nothing now. That may end in time. */
static bool vfh_held_up(const struct vfh *fh)
{
	struct freehint_stats stats;

	fh->source->get_stats(&stats);
	return stats.paused && stats.pending;
}

static void vfh_flush_round(struct vfh *fh)
{
	/* What happens in a flush says nothing about the pace. */
	fh->catching_up = true;
	vfh_start_round(fh, FREEHINT_NOW);
}

/**
 * vfh_flush_step - go on with the flush that is under way, if there is one
 * @fh: the device
 */
void vfh_flush_step(struct vfh *fh)
{
	struct vfh_flush *flush = &fh->flush;

	vfh_flush_send(fh);
	if (flush->stage == VFH_FLUSH_NONE)
		return;
	if (!fh->running) {
		vfh_flush_end(fh, VIRTIO_FREEHINT_FLUSH_REFUSED);
		return;
	}
	if (time_after_eq(fh->now, flush->deadline)) {
		vfh_flush_end(fh, VIRTIO_FREEHINT_FLUSH_TIMEOUT);
		return;
	}
	vfh_wait_until(fh, flush->deadline);
	if (flush->stage == VFH_FLUSH_HINTING) {
		if (!flush->held_up)
			return;
		if (vfh_held_up(fh)) {
			vfh_wait_until(fh, fh->now + VFH_FLUSH_LOOK);
			return;
		}
	} else {
		/* Pairs with vfh_flush_gather(). */
		if (!smp_load_acquire(&flush->gathered))
			return;
		flush->stage = VFH_FLUSH_HINTING;
		flush->first = fh->counters.hints + 1;
	}
	flush->held_up = false;
	vfh_flush_round(fh);
}

/**
 * vfh_flush_answered - a hint was answered: it may have been part of the flush
 * @fh: the device
 * @msg: the hint
 */
void vfh_flush_answered(struct vfh *fh, const struct vfh_msg *msg)
{
	if (vfh_flushing(fh) && msg->cookie >= fh->flush.first)
		fh->flush.hinted += msg->batch->nr_pages;
}

/**
 * vfh_flush_round_over - a round is over: does the flush need another one
 * @fh: the device, with nothing in flight
 */
void vfh_flush_round_over(struct vfh *fh)
{
	struct vfh_flush *flush = &fh->flush;

	if (!vfh_flushing(fh))
		return;
	if (vfh_held_up(fh)) {
		flush->held_up = true;
		vfh_wait_until(fh, fh->now + VFH_FLUSH_LOOK);
		return;
	}
	if (fh->progress && ++flush->rounds < VFH_FLUSH_ROUNDS) {
		vfh_flush_round(fh);
		/* At once. */
		vfh_wait_until(fh, fh->now);
		return;
	}
	vfh_flush_end(fh, VIRTIO_FREEHINT_FLUSH_DONE);
}

/**
 * vfh_flush_forget - the device was reset, and waits for no answer
 * @fh: the device
 */
void vfh_flush_forget(struct vfh *fh)
{
	fh->flush.stage = VFH_FLUSH_NONE;
	fh->flush.owed = false;
}

/**
 * vfh_flush_init - prepare for flushes
 * @fh: the device
 */
void vfh_flush_init(struct vfh *fh)
{
	INIT_WORK(&fh->flush.gather, vfh_flush_gather);
}

/**
 * vfh_flush_cancel - the device is going away
 * @fh: the device
 *
 * Context: process context, not the loop.
 */
void vfh_flush_cancel(struct vfh *fh)
{
	cancel_work_sync(&fh->flush.gather);
}
