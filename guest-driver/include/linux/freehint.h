/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: the interface between the engine in mm/freehint/ and the
 * driver of the device that takes the hints. See Documentation/mm/freehint.rst.
 */
#ifndef _LINUX_FREEHINT_H
#define _LINUX_FREEHINT_H

#include <linux/errno.h>
#include <linux/list.h>
#include <linux/types.h>

struct freehint_dev;
struct zone;

/**
 * enum freehint_verdict - what the device did with one range
 * @FREEHINT_DECLINED: nothing; try again after freehint_rehint()
 * @FREEHINT_THROTTLED: nothing; try again after the time that came with it
 * @FREEHINT_FAILED: it tried and failed; try again after freehint_rehint()
 * @FREEHINT_NEVER: nothing, and it never will; until freehint_rehint()
 * @FREEHINT_DISCARDED: the host has the memory, or may take it when it likes
 *
 * Zero is "declined", so that an answer that nobody wrote claims nothing. None
 * but @FREEHINT_DISCARDED says anything about the content of the range.
 */
enum freehint_verdict {
	FREEHINT_DECLINED = 0,
	FREEHINT_THROTTLED,
	FREEHINT_FAILED,
	FREEHINT_NEVER,
	FREEHINT_DISCARDED,
	FREEHINT_NR_VERDICTS,
};

/**
 * enum freehint_status - what the engine does, and why if it does nothing
 * @FREEHINT_ACTIVE: free memory is being hinted
 * @FREEHINT_WAITING: the device asked for no hints, freehint_set_active()
 * @FREEHINT_OFF: the guest's administrator said so, freehint_set_allowed()
 * @FREEHINT_POISONING: free pages carry a pattern that the allocator checks
 * @FREEHINT_DEBUGGING: free pages are unmapped, guarded or shadowed
 * @FREEHINT_OTHER_REPORTER: free page reporting has a device already
 * @FREEHINT_GRANULE: the device's granule is larger than a pageblock
 * @FREEHINT_BROKEN: the device did not answer, or the driver gave up on it
 */
enum freehint_status {
	FREEHINT_ACTIVE = 0,
	FREEHINT_WAITING,
	FREEHINT_OFF,
	FREEHINT_POISONING,
	FREEHINT_DEBUGGING,
	FREEHINT_OTHER_REPORTER,
	FREEHINT_GRANULE,
	FREEHINT_BROKEN,
	FREEHINT_NR_STATUSES,
};

/**
 * struct freehint_range - free memory, named by page frame number
 * @pfn: first page; a multiple of the granule
 * @nr_pages: a multiple of the granule, not zero. The range lies in one zone
 *	and in one memory section.
 * @verdict: set by the driver before it calls freehint_complete()
 */
struct freehint_range {
	unsigned long pfn;
	unsigned long nr_pages;
	enum freehint_verdict verdict;
};

/**
 * struct freehint_hint - one message to the device: ranges of one zone
 * @list: the engine's
 * @zone: where every range of this hint lies
 * @slot: 0 .. &freehint_dev.nr_hints - 1; lets the driver find its own buffer
 * @cookie: counts hints; for traces
 * @deadline: jiffies by which the device must have answered
 * @nr_pages: sum over the ranges
 * @zero: the guest takes every byte to be zero afterwards, whatever the verdict
 * @max_ranges: room in @ranges
 * @nr_ranges: used entries of @ranges
 * @ranges: what is hinted, by ascending address
 *
 * From &freehint_ops.submit until freehint_complete() the pages belong to the
 * device: they are on no free list, and nobody reads or writes them.
 */
struct freehint_hint {
	struct list_head list;
	struct zone *zone;
	unsigned int slot;
	u64 cookie;
	unsigned long deadline;
	unsigned long nr_pages;
	bool zero;
	unsigned int max_ranges;
	unsigned int nr_ranges;
	struct freehint_range ranges[] __counted_by(max_ranges);
};

/**
 * struct freehint_ops - what the engine asks of a driver
 * @submit: put a hint where the device will find it. Called in the engine's
 *	thread; must not wait for memory. 0, or a negative error, upon which the
 *	pages go back to the allocator at once.
 * @kick: tell the device of what was submitted. Called in the engine's thread.
 * @reap: call freehint_complete() for each hint that the device has answered,
 *	and ask for a notification of the next. Called in the engine's thread.
 * @reset: end the device's use of all hints. Returns 0 once the device has
 *	confirmed that, or is gone for good; a negative error if neither can be
 *	had in bounded time: the pages are then never used again. May sleep.
 * @status: &enum freehint_status has changed. Called with the engine's mutex
 *	held; may sleep, must not call back into the engine.
 */
struct freehint_ops {
	int (*submit)(struct freehint_dev *dev, struct freehint_hint *hint);
	void (*kick)(struct freehint_dev *dev);
	void (*reap)(struct freehint_dev *dev);
	int (*reset)(struct freehint_dev *dev);
	void (*status)(struct freehint_dev *dev, enum freehint_status status);
};

/**
 * struct freehint_dev - a device that takes hints
 * @ops: the driver's operations
 * @granule: bytes, a power of two; every range is a multiple of it
 * @max_ranges: most ranges in a hint, at least 1
 * @nr_hints: most hints that the device can be given at a time, at least 1
 *
 * Filled by the driver before freehint_register(), constant from then on.
 */
struct freehint_dev {
	const struct freehint_ops *ops;
	u64 granule;
	unsigned int max_ranges;
	unsigned int nr_hints;
};

/**
 * struct freehint_stats - counters since the device was registered, and gauges
 * @hints: hints submitted
 * @ranges: ranges in them
 * @hinted_bytes: bytes in them; the sum of @verdict_bytes, @aborted_bytes,
 *	@leaked_bytes and @in_flight_bytes
 * @verdict_bytes: of these, by the device's verdict
 * @aborted_bytes: of these, given back after a reset without a verdict
 * @leaked_bytes: of these, lost on purpose: the device never let go of them
 * @in_flight_bytes: gauge: of these, in the device's hands now
 * @reused_bytes: allocated again soon after they were hinted
 * @stale_granules: granules that were marked free and were not when they were
 *	looked at; anything but a rare race is a missed hook
 * @guard_stops: rounds that the watermark guard ended early
 * @pcp_drains: times that the per-CPU lists of a zone were drained
 * @timeouts: times that the device did not answer in time
 * @pending_bytes: gauge, 0 like the next three while the status is not
 *	&FREEHINT_ACTIVE: free, to be hinted
 * @discarded_bytes: gauge: free, and with the host
 * @refused_bytes: gauge: free, and declined for now
 * @excluded_bytes: gauge: that the device will never take, free or not
 * @stuck_bytes: gauge: free, in blocks smaller than the granule
 * @age_ms: for how long memory stays free now before it is hinted
 * @granule: bytes; what the engine works in
 */
struct freehint_stats {
	u64 hints;
	u64 ranges;
	u64 hinted_bytes;
	u64 verdict_bytes[FREEHINT_NR_VERDICTS];
	u64 aborted_bytes;
	u64 leaked_bytes;
	u64 in_flight_bytes;
	u64 reused_bytes;
	u64 stale_granules;
	u64 guard_stops;
	u64 pcp_drains;
	u64 timeouts;
	u64 pending_bytes;
	u64 discarded_bytes;
	u64 refused_bytes;
	u64 excluded_bytes;
	u64 stuck_bytes;
	u64 granule;
	unsigned int age_ms;
};

int freehint_register(struct freehint_dev *dev);
void freehint_unregister(struct freehint_dev *dev);
void freehint_set_active(struct freehint_dev *dev, bool active);
void freehint_set_allowed(struct freehint_dev *dev, bool allowed);
bool freehint_allowed(struct freehint_dev *dev);
void freehint_set_pace(struct freehint_dev *dev, unsigned int delay_ms,
		       unsigned int min_age_ms);
void freehint_rehint(struct freehint_dev *dev);
void freehint_broken(struct freehint_dev *dev);
void freehint_interrupt(struct freehint_dev *dev);
void freehint_complete(struct freehint_dev *dev, struct freehint_hint *hint,
		       bool stale, unsigned int retry_ms);
enum freehint_status freehint_status(struct freehint_dev *dev);
void freehint_get_stats(struct freehint_dev *dev, struct freehint_stats *stats);

/* For mm/page_reporting.c, the other engine that a guest may run. */
#ifdef CONFIG_FREEHINT
void freehint_reporter_changed(void);
#else
static inline void freehint_reporter_changed(void) { }
#endif

#endif /* _LINUX_FREEHINT_H */
