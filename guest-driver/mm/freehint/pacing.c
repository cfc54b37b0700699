// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: for how long memory stays free before it is hinted.
 *
 * The rule, in three sentences. Memory is hinted when it has stayed free for
 * the age, which starts at what the device asks for. When at least half as much
 * is reused soon after it was hinted as is hinted, the age doubles, up to one
 * reuse window. When for two windows in a row next to nothing was reused, neither
 * after a hint nor while it waited for one, the age halves, and again with each such
 * window that follows, down to where it started.
 */
#include <linux/jiffies.h>
#include <linux/math.h>
#include <linux/minmax.h>

#include <trace/events/freehint.h>

#include "internal.h"

static void fh_pace_forget(struct fh_pace *pace)
{
	pace->before = (struct fh_reuse) { };
	pace->unclaimed = 0;
	pace->calm = false;
}

/**
 * fh_reuse_add - add up evidence
 * @sum: what there is
 * @more: what comes on top
 */
void fh_reuse_add(struct fh_reuse *sum, const struct fh_reuse *more)
{
	sum->hinted += more->hinted;
	sum->reused += more->reused;
	sum->spared += more->spared;
}

static void fh_pace_set(struct fh_pace *pace, unsigned int age_ms)
{
	age_ms = clamp(age_ms, pace->min_ms, pace->max_ms);
	if (age_ms == pace->age_ms)
		return;
	pace->age_ms = age_ms;
	trace_freehint_pace(age_ms, pace->reuse.hinted, pace->reuse.reused,
			    pace->reuse.spared);
}

/**
 * fh_pace_bounds - set where the age may move
 * @pace: the pace
 * @min_ms: floor
 * @max_ms: ceiling; the floor if that is higher
 */
void fh_pace_bounds(struct fh_pace *pace, unsigned int min_ms,
		    unsigned int max_ms)
{
	/* Unless it has backed off, it is what the device asked for, and follows. */
	unsigned int age_ms = pace->age_ms == pace->min_ms ? min_ms : pace->age_ms;

	pace->min_ms = min_ms;
	pace->max_ms = max(min_ms, max_ms);
	fh_pace_set(pace, age_ms);
}

/*
 * Too early: half of what was hinted was wanted back. A few granules that come
 * and go are no pattern.
 */
static bool fh_reuse_hot(const struct fh_reuse *reuse)
{
	return reuse->hinted >= FH_BURST && reuse->reused >= reuse->hinted / 2;
}

/*
 * A window may end between a hint and the reuse of what it held, so both count: the
 * one that goes on, and that with the one before it.
 */
static bool fh_pace_hot(const struct fh_pace *pace)
{
	struct fh_reuse both = pace->before;

	fh_reuse_add(&both, &pace->reuse);
	return fh_reuse_hot(&pace->reuse) || fh_reuse_hot(&both);
}

/*
 * What was spared counts like what was reused: with a shorter age it would have
 * been. Otherwise an age that has grown long enough to spare a loop's memory
 * would take that success for a reason to shrink.
 */
static bool fh_reuse_calm(const struct fh_reuse *reuse)
{
	unsigned long total = reuse->hinted + reuse->spared;

	return reuse->reused + reuse->spared <= max(FH_BURST / 2, total / 16);
}

/*
 * How many windows that have just ended shorten the age? Not the first calm one: what
 * was hinted in it may be wanted back in the next. Those that were slept through come
 * after what was known before, and before or with what has come now: that the first
 * one was not calm is no reason to take the others for anything but what they were.
 */
static unsigned long fh_pace_calm_windows(struct fh_pace *pace,
					  const struct fh_reuse *now,
					  unsigned long windows)
{
	bool calm = fh_reuse_calm(&pace->reuse);
	bool goes_on = pace->calm && calm;

	if (!fh_reuse_calm(now))
		windows = 0;
	else if (!calm)
		windows--;
	pace->calm = windows;
	return windows && !goes_on ? windows - 1 : windows;
}

static void fh_pace_end_windows(struct fh_pace *pace, const struct fh_reuse *now,
				unsigned long windows)
{
	windows = fh_pace_calm_windows(pace, now, windows);
	fh_pace_set(pace, pace->age_ms >> min(windows, 16UL));
	/* Of what was hinted earlier than that, none was too early. */
	pace->unclaimed = min(pace->unclaimed, pace->reuse.hinted);
	pace->before = pace->reuse;
}

/*
 * Reuse counts as far as there were hints that can have been too early: a guest that
 * grows takes what was hinted long ago, and would have, whatever was spared.
 */
static void fh_pace_claim(struct fh_pace *pace, struct fh_reuse *reuse)
{
	pace->unclaimed += reuse->hinted;
	reuse->reused = min(reuse->reused, pace->unclaimed);
	pace->unclaimed -= reuse->reused;
}

/**
 * fh_pace_judge - let the age follow the evidence
 * @pace: the pace
 * @reuse: evidence since the last call
 * @now: jiffies
 */
void fh_pace_judge(struct fh_pace *pace, const struct fh_reuse *reuse,
		   unsigned long now)
{
	unsigned long windows = (now - pace->since) / FH_WINDOW;
	struct fh_reuse claimed = *reuse;

	fh_pace_claim(pace, &claimed);
	fh_reuse_add(&pace->reuse, &claimed);
	if (fh_pace_hot(pace)) {
		fh_pace_set(pace, pace->age_ms * 2);
		fh_pace_forget(pace);
	} else if (windows) {
		fh_pace_end_windows(pace, &claimed, windows);
	} else {
		return;
	}
	pace->reuse = (struct fh_reuse) { };
	pace->since = now;
}
