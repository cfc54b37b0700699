// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: compact memory when the guest idles.
 *
 * The rule, in four sentences. Once per second, somebody looks. If the guest has been idle
 * since the last look, nobody had to wait for memory, and much is free in pieces that are
 * too small for hints, a work item moves pages out of granules that are nearly free. It
 * may take 1 % of one CPU's time; what it does not take is saved for a while. A sweep is
 * followed by a rest, which doubles after each sweep that gains little, and ends early if
 * much more is stuck by then.
 */
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>

#include "vfh.h"

/* The guest is idle if its CPUs use at most one in this many of their time. */
#define VFH_COMPACT_BUSY	8

/* Its share of one CPU's time, and the most that can be saved. */
#define VFH_COMPACT_SHARE	100
#define VFH_COMPACT_CREDIT	((s64)NSEC_PER_SEC)

/* It goes on for this long at a time: then somebody looks whether the guest still idles. */
#define VFH_COMPACT_SLICE	(100 * NSEC_PER_MSEC)

/* One in this many bytes of memory, or of what is stuck, is worth some work. */
#define VFH_COMPACT_WORTH	128
#define VFH_COMPACT_LITTLE	16

#define VFH_COMPACT_REST	(8ULL * NSEC_PER_SEC)
#define VFH_COMPACT_MAX_REST	(512ULL * NSEC_PER_SEC)

static bool vfh_compact = true;
module_param_named(compact, vfh_compact, bool, 0644);
MODULE_PARM_DESC(compact, "Move pages in use together when the guest idles, so that more free memory can be hinted");

static bool vfh_is_idle(const struct vfh_load *then, const struct vfh_load *now)
{
	u64 time = (now->now - then->now) * now->cpus;
	u64 idle = now->sums.idle_ns - then->sums.idle_ns;

	return now->cpus == then->cpus && now->sums.stalls == then->sums.stalls &&
	       idle >= time - div_u64(time, VFH_COMPACT_BUSY);
}

static bool vfh_rests(const struct vfh_compact *compact, const struct vfh_load *load)
{
	return compact->rests && load->now < compact->rest_end &&
	       load->stuck <= compact->stuck + compact->stuck / 4;
}

/**
 * vfh_compact_due - is now the time to move pages
 * @compact: compaction; its credit grows with time
 * @load: what the guest has been doing
 */
bool vfh_compact_due(struct vfh_compact *compact, const struct vfh_load *load)
{
	struct vfh_load last = compact->last;
	s64 earned = div_u64(load->now - last.now, VFH_COMPACT_SHARE);

	compact->last = *load;
	/* There was no earlier look. */
	if (!last.now)
		return false;
	compact->credit = min(compact->credit + earned, VFH_COMPACT_CREDIT);
	if (compact->credit <= 0 || load->stuck < load->worth ||
	    vfh_rests(compact, load) || !vfh_is_idle(&last, load))
		return false;
	compact->rests = false;
	return true;
}

/**
 * vfh_compact_rest - a sweep is over
 * @compact: compaction
 * @load: what is left
 * @gained: pages in the granules that were gained
 */
void vfh_compact_rest(struct vfh_compact *compact, const struct vfh_load *load,
		      unsigned long gained)
{
	bool little = gained < load->stuck / VFH_COMPACT_LITTLE;

	compact->rest = little ? min(2 * compact->rest, VFH_COMPACT_MAX_REST) : 0;
	compact->rest = max(compact->rest, VFH_COMPACT_REST);
	compact->rest_end = load->now + compact->rest;
	compact->rests = true;
	compact->stuck = load->stuck;
}

static struct vfh_load vfh_load(const struct vfh *fh)
{
	struct freehint_stats stats;
	struct vfh_load load = {
		.now = ktime_get_ns(),
		.cpus = num_online_cpus(),
		.worth = max(totalram_pages() / VFH_COMPACT_WORTH, 2UL << fh->order),
	};

	fh->source->get_stats(&stats);
	load.stuck = stats.stuck;
	fh->source->get_load(&load.sums);
	return load;
}

/**
 * vfh_compact_slice - compact, for as long as there is credit, and for a slice at most
 * @fh: the device
 *
 * Context: the work item.
 */
void vfh_compact_slice(struct vfh *fh)
{
	struct vfh_compact *compact = &fh->compact;
	struct freehint_sweep *sweep = &compact->sweep;
	u64 start = ktime_get_ns(), spent;
	bool more;

	do {
		more = fh->source->evacuate(sweep);
		spent = ktime_get_ns() - start;
	} while (more && spent < min(compact->credit, VFH_COMPACT_SLICE) && !need_resched());

	compact->credit -= spent;
	compact->spent += spent;
	if (!more) {
		struct vfh_load load = vfh_load(fh);

		vfh_compact_rest(compact, &load,
				 (sweep->gained - compact->gained) << fh->order);
		compact->gained = sweep->gained;
	}
}

static void vfh_compact_work(struct work_struct *work)
{
	struct vfh *fh = container_of(work, struct vfh, compact.work);

	vfh_compact_slice(fh);
	/* Pairs with vfh_compact_look(). */
	smp_store_release(&fh->compact.works, false);
}

/**
 * vfh_compact_look - a second is over: compact, if that is due
 * @fh: the device
 *
 * Context: the timer's interrupt.
 */
void vfh_compact_look(struct vfh *fh)
{
	struct vfh_load load;

	if (!fh->source->evacuate || !READ_ONCE(vfh_compact))
		return;
	/* Pairs with vfh_compact_work(). */
	if (smp_load_acquire(&fh->compact.works))
		return;
	load = vfh_load(fh);
	if (!vfh_compact_due(&fh->compact, &load))
		return;
	fh->compact.works = true;
	queue_work(system_dfl_wq, &fh->compact.work);
}

/**
 * vfh_compact_init - prepare for compaction
 * @fh: the device
 */
void vfh_compact_init(struct vfh *fh)
{
	INIT_WORK(&fh->compact.work, vfh_compact_work);
}

/**
 * vfh_compact_cancel - the device is going away
 * @fh: the device; its timer is off
 *
 * Context: process context, not the loop.
 */
void vfh_compact_cancel(struct vfh *fh)
{
	cancel_work_sync(&fh->compact.work);
	fh->compact.works = false;
}
