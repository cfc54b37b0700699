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
 * @FREEHINT_NR_VERDICTS: how many there are
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
 * @FREEHINT_NR_STATUSES: how many there are
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
 * @generation: the engine's
 * @slot: 0 .. &freehint_dev.nr_hints - 1; lets the driver find its own buffer
 * @cookie: counts hints; for traces
 * @looks: how often the answer was looked for in vain
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
	unsigned int generation;
	unsigned int slot;
	u64 cookie;
	unsigned int looks;
	unsigned long nr_pages;
	bool zero;
	unsigned int max_ranges;
	unsigned int nr_ranges;
	struct freehint_range ranges[] __counted_by(max_ranges);
};

/**
 * struct freehint_gauges - the guest's memory at a moment, in bytes
 * @free_bytes: free, and not in flight
 * @pending_bytes: free in whole granules, to be hinted; 0 like the next while
 *	the status is not &FREEHINT_ACTIVE
 * @discarded_bytes: free, and with the host
 * @in_flight_bytes: in the device's hands
 * @stuck_bytes: free, in blocks smaller than the granule
 * @reused_bytes: no gauge but a sum: allocated again soon after it was hinted
 *
 * Each figure is right by itself; together they may be a moment apart.
 */
struct freehint_gauges {
	u64 free_bytes;
	u64 pending_bytes;
	u64 discarded_bytes;
	u64 in_flight_bytes;
	u64 stuck_bytes;
	u64 reused_bytes;
};

/**
 * enum freehint_flush_result - how a flush ended
 * @FREEHINT_FLUSH_DONE: all that could be hinted was, and got its answers
 * @FREEHINT_FLUSH_TIMEOUT: time was up before
 * @FREEHINT_FLUSH_REFUSED: the engine does not hint, or stopped to before the
 *	flush was done; its status says why
 */
enum freehint_flush_result {
	FREEHINT_FLUSH_DONE,
	FREEHINT_FLUSH_TIMEOUT,
	FREEHINT_FLUSH_REFUSED,
};

/**
 * struct freehint_flush - a flush that has ended
 * @id: as given to freehint_flush()
 * @result: how it ended
 * @hinted_bytes: hinted for it, and answered
 * @gauges: the guest's memory after it
 */
struct freehint_flush {
	u32 id;
	enum freehint_flush_result result;
	u64 hinted_bytes;
	struct freehint_gauges gauges;
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
 *	had in bounded time: the pages are then not used before
 *	freehint_let_go(). May sleep.
 * @gauges: put gauges where the device will find them. Called in the engine's
 *	thread, must not wait for memory. Returns whether the device is to be
 *	told: not so if it takes no gauges, or has not yet read the last ones.
 * @flushed: a flush is over: answer the device, and tell it. Called in the
 *	engine's thread, once for each freehint_flush() unless the device has
 *	been reset; must not wait for memory.
 * @status: &enum freehint_status has changed. Called with the engine's mutex
 *	held; may sleep, must not call back into the engine.
 */
struct freehint_ops {
	int (*submit)(struct freehint_dev *dev, struct freehint_hint *hint);
	void (*kick)(struct freehint_dev *dev);
	void (*reap)(struct freehint_dev *dev);
	int (*reset)(struct freehint_dev *dev);
	bool (*gauges)(struct freehint_dev *dev,
		       const struct freehint_gauges *gauges);
	void (*flushed)(struct freehint_dev *dev,
			const struct freehint_flush *flush);
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
 * @runs: the least number of ranges that could have named the same: maximal
 *	runs, in the order of addresses and within a memory section, of what one
 *	round hinted. A run that two hints of a round share is two ranges.
 * @hinted_bytes: bytes in them; the sum of @verdict_bytes, @aborted_bytes,
 *	@leaked_bytes and &freehint_gauges.in_flight_bytes
 * @verdict_bytes: of these, by the device's verdict
 * @aborted_bytes: of these, given back after a reset without a verdict
 * @leaked_bytes: of these, lost on purpose: the device never let go of them
 * @stale_granules: granules that were marked free and were not when they were
 *	looked at; anything but a rare race is a missed hook
 * @guard_stops: rounds that the watermark guard ended early
 * @pcp_drains: times that the per-CPU lists of a zone were drained
 * @timeouts: times that the device did not answer in time
 * @submit_errors: times that the driver could not submit a hint
 * @flushes: flushes that have ended, in whatever way
 * @gauges: now
 * @refused_bytes: gauge, 0 like the next while the status is not
 *	&FREEHINT_ACTIVE: free, and declined for now
 * @excluded_bytes: gauge: that the device will never take, free or not
 * @age_ms: for how long memory stays free now before it is hinted
 * @granule: bytes; what the engine works in
 */
struct freehint_stats {
	u64 hints;
	u64 ranges;
	u64 runs;
	u64 hinted_bytes;
	u64 verdict_bytes[FREEHINT_NR_VERDICTS];
	u64 aborted_bytes;
	u64 leaked_bytes;
	u64 stale_granules;
	u64 guard_stops;
	u64 pcp_drains;
	u64 timeouts;
	u64 submit_errors;
	u64 flushes;
	struct freehint_gauges gauges;
	u64 refused_bytes;
	u64 excluded_bytes;
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
void freehint_flush(struct freehint_dev *dev, u32 id, unsigned int timeout_ms,
		    bool compact);
void freehint_broken(struct freehint_dev *dev);
void freehint_let_go(struct freehint_dev *dev);
void freehint_mended(struct freehint_dev *dev);
void freehint_interrupt(struct freehint_dev *dev);
void freehint_complete(struct freehint_dev *dev, struct freehint_hint *hint,
		       bool stale, unsigned int retry_ms);
void freehint_sync(struct freehint_dev *dev);
enum freehint_status freehint_status(struct freehint_dev *dev);
void freehint_get_stats(struct freehint_dev *dev, struct freehint_stats *stats);

/* For mm/page_reporting.c, the other engine that a guest may run. */
#ifdef CONFIG_FREEHINT
void freehint_reporter_changed(void);
#else
static inline void freehint_reporter_changed(void) { }
#endif

#endif /* _LINUX_FREEHINT_H */
