/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what mm/freehint/ offers to a driver.
 *
 * mm/freehint/ knows which memory is free, for how long, and what became of it. It
 * takes free memory off the free lists and puts it back, and nothing more. The
 * driver decides when, talks to its device, and keeps all deadlines. In short::
 *
 *	freehint_start(order, wake, data);
 *	for (;;) {
 *		(wait for wake(), for the device, or until a period is over)
 *		for (each batch that the device has let go of)
 *			freehint_return(batch);
 *		if (a period is over)
 *			more = freehint_age(0);
 *		if (a settle time is over)
 *			more = freehint_settle();
 *		while (freehint_collect(batch, max_pages, 0))
 *			(send the batch to the device)
 *	}
 *	freehint_stop();
 *
 * From freehint_collect() to freehint_return() the pages of a batch are on no free
 * list and belong to the driver. It may keep them for as long as it likes: an OOM and a
 * contiguous allocation wait for them for a second at most, and memory does not go
 * offline while some of it is out.
 *
 * There is one user at a time. It calls all functions from one thread, and they may
 * sleep, unless they say otherwise. None of them waits for memory or for a device while a
 * batch is out, so that the thread can always return it.
 */
#ifndef _LINUX_FREEHINT_H
#define _LINUX_FREEHINT_H

#include <linux/types.h>

struct zone;

/**
 * enum freehint_outcome - what became of a range, as the driver sees it
 * @FREEHINT_RETRY: nothing; it is due again
 * @FREEHINT_DISCARDED: the host has the memory, or may take it when it likes
 * @FREEHINT_REFUSED: not to be offered again before freehint_rehint()
 * @FREEHINT_SUSPECT: some of it is refused, but nobody knows which granule; each is
 *	due again, in a range of its own
 * @FREEHINT_LAZY: the host may take it when it likes; it is due again when it has
 *	settled, see freehint_settle()
 * @FREEHINT_NR_OUTCOMES: how many there are
 *
 * Zero is "nothing", so that an outcome that nobody has set claims nothing.
 */
enum freehint_outcome {
	FREEHINT_RETRY = 0,
	FREEHINT_DISCARDED,
	FREEHINT_REFUSED,
	FREEHINT_SUSPECT,
	FREEHINT_LAZY,
	FREEHINT_NR_OUTCOMES,
};

/**
 * struct freehint_range - contiguous free memory
 * @pfn: first page; a multiple of the granule
 * @nr_pages: a multiple of the granule, not zero. The range lies in one zone and in
 *	one memory section.
 * @outcome: set by the driver before it calls freehint_return()
 */
struct freehint_range {
	unsigned long pfn;
	unsigned long nr_pages;
	enum freehint_outcome outcome;
};

/**
 * struct freehint_batch - memory that is taken off the free lists in one go
 * @zone: where all of it lies
 * @nr_pages: sum over the ranges
 * @early: the guest may want all of it back soon, see FREEHINT_EARLY
 * @lost: freehint_lost() was called for it
 * @max_ranges: room in @ranges, at least 1; set by the driver
 * @nr_ranges: used entries of @ranges
 * @ranges: by descending address
 */
struct freehint_batch {
	struct zone *zone;
	unsigned long nr_pages;
	bool early;
	bool lost;
	unsigned int max_ranges;
	unsigned int nr_ranges;
	struct freehint_range ranges[] __counted_by(max_ranges);
};

/**
 * enum freehint_refusal - why mm does not offer free memory
 * @FREEHINT_CAN: it does
 * @FREEHINT_NO_GRANULE: the granule is larger than a pageblock, which can be
 *	isolated, and so taken apart from its buddy, while it is free
 * @FREEHINT_NO_POISONING: free pages carry a pattern that the allocator checks
 * @FREEHINT_NO_DEBUGGING: free pages are unmapped, guarded or shadowed
 * @FREEHINT_NO_OTHER: free page reporting has a device; each would invalidate what the
 *	other knows
 */
enum freehint_refusal {
	FREEHINT_CAN = 0,
	FREEHINT_NO_GRANULE,
	FREEHINT_NO_POISONING,
	FREEHINT_NO_DEBUGGING,
	FREEHINT_NO_OTHER,
};

/**
 * struct freehint_stats - figures, in pages unless they say otherwise
 * @free: free pages of the guest; what is out is not free
 * @pending: free in whole granules, and to be offered
 * @discarded: free, and the host has it, or may take it
 * @lazy: what of that was returned as lazy, and has not settled
 * @refused: refused; free, or in use again
 * @stuck: free in blocks smaller than the granule
 * @out: pages that the driver has, and expects back
 * @lost: pages that it has, and does not expect back
 * @paused: nothing is collected for a while, after an OOM
 * @returned: sum: returned as discarded
 * @reused: sum: allocated of what the host had, within FREEHINT_REUSE_WINDOW after
 *	something was returned as discarded
 * @spared: sum: allocated while pending or lazy
 * @vanished: sum: pending, but not free when they were looked at
 * @drains: times that the per-CPU lists of a zone were drained
 * @guarded: periods in which the guard of the watermarks left something pending
 *
 * Each figure is right by itself, but they may be a moment apart. @pending and @discarded
 * include what was taken in other ways than by an allocation: for compaction, or because
 * of a memory error.
 */
struct freehint_stats {
	unsigned long free;
	unsigned long pending;
	unsigned long discarded;
	unsigned long lazy;
	unsigned long refused;
	unsigned long stuck;
	unsigned long out;
	unsigned long lost;
	bool paused;
	u64 returned;
	u64 reused;
	u64 spared;
	u64 vanished;
	u64 drains;
	u64 guarded;
};

/* Memory that is used again this soon after it went to the host went too early. */
#define FREEHINT_REUSE_WINDOW	(5 * HZ)

/*
 * A flag of freehint_age() and freehint_collect(): somebody waits for all free memory.
 * What is pending counts as rested, what is lazy as settled, and zones that are short of
 * memory give, too.
 */
#define FREEHINT_NOW		1U

/*
 * A flag of freehint_age(): what has rested may be wanted back soon, and is offered as
 * such. It can be returned as lazy.
 */
#define FREEHINT_EARLY		2U

/**
 * struct freehint_sweep - how far freehint_evacuate() is
 * @pfn: where to go on
 * @max_used: granules with more pages in use are left alone for now; 0 at the start
 * @moved: sum: pages that were moved, by this sweep and those before it
 * @gained: sum: granules that are free as a whole because of that
 */
struct freehint_sweep {
	unsigned long pfn;
	unsigned int max_used;
	unsigned long moved;
	unsigned long gained;
};

/**
 * struct freehint_load - what the guest has been doing, since boot
 * @idle_ns: time that CPUs have been idle, summed over all of them
 * @stalls: times that somebody had to wait for memory
 */
struct freehint_load {
	u64 idle_ns;
	unsigned long stalls;
};

/* What provides these functions: "mm", or what takes its place. */
const char *freehint_engine(void);
enum freehint_refusal freehint_refusal(unsigned int order);
int freehint_start(unsigned int order, void (*wake)(void *data), void *data);
void freehint_stop(void);
bool freehint_age(unsigned int flags);
bool freehint_settle(void);
unsigned int freehint_collect(struct freehint_batch *batch,
			      unsigned long max_pages, unsigned int flags);
void freehint_return(struct freehint_batch *batch);
void freehint_lost(struct freehint_batch *batch);
void freehint_rehint(void);
void freehint_get_stats(struct freehint_stats *stats);

bool freehint_worth_a_look(void);
void freehint_gather(bool compact, unsigned long deadline);

/* An optional layer: pages in use can be moved out of granules that are nearly free. */
bool freehint_evacuate(struct freehint_sweep *sweep);
void freehint_get_load(struct freehint_load *load);

/* An optional layer: freehint_age() can drain per-CPU lists. */
#ifdef CONFIG_FREEHINT_DRAIN
void freehint_set_drain(bool drain);
#else
static inline void freehint_set_drain(bool drain)
{
}
#endif

#endif /* _LINUX_FREEHINT_H */
