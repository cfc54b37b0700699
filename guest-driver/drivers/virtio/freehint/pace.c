// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: how long memory rests before it is hinted or, if it can
 * be hinted lazily first, before it is hinted once more.
 *
 * The rule, in three sentences. Memory is hinted for good when it has stayed free for the
 * age, which starts at what the device asks for. If at least half as much is reused soon
 * after a hint as is hinted, the age doubles (quadruples if memory is hinted lazily
 * first), up to one window. If next to nothing was reused for two windows in a row,
 * neither after a hint nor while it waited for one, the age halves, and again with each
 * such window that follows, down to where it started.
 */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/module.h>

#include "vfh.h"
#include "trace.h"

/* The age depends on the reuse within this time. */
#define VFH_WINDOW	FREEHINT_REUSE_WINDOW

/*
 * The factor by which the age grows. If memory is lazy meanwhile, a long age keeps
 * nothing from a host that is short of memory, and is learned in fewer cycles of a loop.
 */
#define VFH_STEP	2
#define VFH_LAZY_STEP	4

static bool adapt = true;

static int vfh_set_adapts(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_bool(val, kp);

	if (!ret)
		vfh_bounds_changed();
	return ret;
}

static const struct kernel_param_ops vfh_adapts_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = vfh_set_adapts,
	.get = param_get_bool,
};

module_param_cb(adapt, &vfh_adapts_ops, &adapt, 0644);
MODULE_PARM_DESC(adapt, "Let memory stay free for longer where it is reused soon after it was hinted");

static void vfh_pace_forget(struct vfh_pace *pace)
{
	pace->before = (struct vfh_reuse) { };
	pace->unclaimed = 0;
	pace->calm = false;
}

static void vfh_reuse_add(struct vfh_reuse *sum, const struct vfh_reuse *more)
{
	sum->hinted += more->hinted;
	sum->reused += more->reused;
	sum->spared += more->spared;
}

static void vfh_pace_set(struct vfh_pace *pace, unsigned int age_ms)
{
	age_ms = clamp(age_ms, pace->min_ms, pace->max_ms);
	if (age_ms == pace->age_ms)
		return;
	WRITE_ONCE(pace->age_ms, age_ms);
	trace_freehint_pace(age_ms, &pace->reuse);
}

/**
 * vfh_pace_limits - set the bounds of the age
 * @pace: the pace
 * @min_ms: floor: what the device asks for
 * @max_ms: ceiling; the floor if that is higher
 *
 * A device that asks for less than before is obeyed at once: its host is short of memory.
 * What was learned has to be learned again.
 */
void vfh_pace_limits(struct vfh_pace *pace, unsigned int min_ms,
		     unsigned int max_ms)
{
	bool learned = pace->age_ms > pace->min_ms && min_ms >= pace->min_ms;

	pace->min_ms = min_ms;
	pace->max_ms = max(min_ms, max_ms);
	vfh_pace_set(pace, learned ? pace->age_ms : min_ms);
}

/**
 * vfh_pace_bounds - the device, or the guest's administrator, may want another age
 * @fh: the device
 */
void vfh_pace_bounds(struct vfh *fh)
{
	fh->pace.burst = 16UL << fh->order;
	vfh_pace_limits(&fh->pace, fh->config.min_age_ms,
			READ_ONCE(adapt) ? jiffies_to_msecs(VFH_WINDOW) : 0);
}

/*
 * Hints were too early: half of what was hinted was wanted back. A few granules that come
 * and go are no pattern.
 */
static bool vfh_reuse_hot(const struct vfh_pace *pace, const struct vfh_reuse *reuse)
{
	return reuse->hinted >= pace->burst && reuse->reused >= reuse->hinted / 2;
}

/*
 * A window may end between a hint and the reuse of its memory. So two sums count: that of
 * the current window, and that of the current and the previous one.
 */
static bool vfh_pace_hot(const struct vfh_pace *pace)
{
	struct vfh_reuse both = pace->before;

	vfh_reuse_add(&both, &pace->reuse);
	return vfh_reuse_hot(pace, &pace->reuse) || vfh_reuse_hot(pace, &both);
}

/*
 * What was spared counts like what was reused: with a shorter age it would have been
 * reused. Otherwise an age that is long enough to spare a loop's memory would shrink
 * because of that success.
 */
static bool vfh_reuse_calm(const struct vfh_pace *pace, const struct vfh_reuse *reuse)
{
	unsigned long total = reuse->hinted + reuse->spared;

	return reuse->reused + reuse->spared <= max(pace->burst / 2, total / 16);
}

/*
 * How many of the windows that have just ended shorten the age? Not the first calm one:
 * what was hinted in it may be wanted back in the next. If several have ended since the
 * last look, the earlier evidence belongs to the first of them. If that one was not calm,
 * the others may still have been.
 */
static unsigned long vfh_calm_windows(struct vfh_pace *pace,
				      const struct vfh_reuse *now,
				      unsigned long windows)
{
	bool calm = vfh_reuse_calm(pace, &pace->reuse);
	bool goes_on = pace->calm && calm;

	if (!vfh_reuse_calm(pace, now))
		windows = 0;
	else if (!calm)
		windows--;
	pace->calm = windows;
	return windows && !goes_on ? windows - 1 : windows;
}

static void vfh_pace_end_windows(struct vfh_pace *pace, const struct vfh_reuse *now,
				 unsigned long windows)
{
	windows = vfh_calm_windows(pace, now, windows);
	vfh_pace_set(pace, pace->age_ms >> min(windows, 16UL));
	/* No earlier hint was too early. */
	pace->unclaimed = min(pace->unclaimed, pace->reuse.hinted);
	pace->before = pace->reuse;
}

/*
 * Reuse counts only up to what was hinted lately: a guest that grows takes memory that
 * was hinted long ago, and would have done so whatever was spared.
 */
static void vfh_pace_claim(struct vfh_pace *pace, struct vfh_reuse *reuse)
{
	pace->unclaimed += reuse->hinted;
	reuse->reused = min(reuse->reused, pace->unclaimed);
	pace->unclaimed -= reuse->reused;
}

/**
 * vfh_pace_judge - let the age follow the evidence
 * @pace: the pace
 * @reuse: evidence since the last call
 * @now: jiffies
 */
void vfh_pace_judge(struct vfh_pace *pace, const struct vfh_reuse *reuse,
		    unsigned long now)
{
	unsigned long windows = (now - pace->since) / VFH_WINDOW;
	struct vfh_reuse claimed = *reuse;

	vfh_pace_claim(pace, &claimed);
	vfh_reuse_add(&pace->reuse, &claimed);
	if (vfh_pace_hot(pace)) {
		vfh_pace_set(pace, pace->age_ms * (pace->lazy ? VFH_LAZY_STEP : VFH_STEP));
		vfh_pace_forget(pace);
	} else if (windows) {
		vfh_pace_end_windows(pace, &claimed, windows);
	} else {
		return;
	}
	pace->reuse = (struct vfh_reuse) { };
	pace->since = now;
}

/* How much a sum has grown. When memory goes, so does its part of the sum. */
static unsigned long vfh_rise(u64 now, unsigned long *seen)
{
	unsigned long rise = now > *seen ? now - *seen : 0;

	*seen = now;
	return rise;
}

/**
 * vfh_pace_tick - a period has ended: judge what happened in it
 * @fh: the device
 */
void vfh_pace_tick(struct vfh *fh)
{
	struct freehint_stats stats;
	struct vfh_reuse reuse;

	fh->source->get_stats(&stats);
	reuse.hinted = vfh_rise(stats.returned, &fh->seen.hinted);
	reuse.reused = vfh_rise(stats.reused, &fh->seen.reused);
	reuse.spared = vfh_rise(stats.spared, &fh->seen.spared);
	if (fh->catching_up)
		reuse = (struct vfh_reuse) { };
	fh->pace.lazy = fh->config.lazy && fh->source->settle;
	vfh_pace_judge(&fh->pace, &reuse, fh->now);
}
