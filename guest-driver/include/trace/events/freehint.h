/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM freehint

#if !defined(_TRACE_FREEHINT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_FREEHINT_H

#include <linux/freehint.h>
#include <linux/tracepoint.h>

/* Freed: granules from @pfn on, not necessarily in a row, became pending. */
DECLARE_EVENT_CLASS(freehint_granules,
	TP_PROTO(unsigned long pfn, unsigned int granules),
	TP_ARGS(pfn, granules),
	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, granules)
	),
	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->granules = granules;
	),
	TP_printk("pfn=%#lx granules=%u", __entry->pfn, __entry->granules)
);

DEFINE_EVENT(freehint_granules, freehint_pending,
	TP_PROTO(unsigned long pfn, unsigned int granules),
	TP_ARGS(pfn, granules)
);

/* Allocated again soon after they were hinted. */
DEFINE_EVENT(freehint_granules, freehint_reuse,
	TP_PROTO(unsigned long pfn, unsigned int granules),
	TP_ARGS(pfn, granules)
);

/* Off the free lists and, later, back on them. */
DECLARE_EVENT_CLASS(freehint_block,
	TP_PROTO(unsigned long pfn, unsigned int order),
	TP_ARGS(pfn, order),
	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, order)
	),
	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->order = order;
	),
	TP_printk("pfn=%#lx order=%u", __entry->pfn, __entry->order)
);

DEFINE_EVENT(freehint_block, freehint_take,
	TP_PROTO(unsigned long pfn, unsigned int order),
	TP_ARGS(pfn, order)
);

DEFINE_EVENT(freehint_block, freehint_give,
	TP_PROTO(unsigned long pfn, unsigned int order),
	TP_ARGS(pfn, order)
);

TRACE_EVENT(freehint_submit,
	TP_PROTO(const struct freehint_hint *hint),
	TP_ARGS(hint),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(unsigned int, nr_ranges)
		__field(unsigned long, nr_pages)
	),
	TP_fast_assign(
		__entry->cookie = hint->cookie;
		__entry->nr_ranges = hint->nr_ranges;
		__entry->nr_pages = hint->nr_pages;
	),
	TP_printk("cookie=%llu ranges=%u pages=%lu", __entry->cookie,
		  __entry->nr_ranges, __entry->nr_pages)
);

TRACE_EVENT(freehint_complete,
	TP_PROTO(const struct freehint_hint *hint, bool stale),
	TP_ARGS(hint, stale),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(bool, stale)
	),
	TP_fast_assign(
		__entry->cookie = hint->cookie;
		__entry->stale = stale;
	),
	TP_printk("cookie=%llu stale=%d", __entry->cookie, __entry->stale)
);

TRACE_EVENT(freehint_range,
	TP_PROTO(u64 cookie, const struct freehint_range *range),
	TP_ARGS(cookie, range),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(unsigned long, pfn)
		__field(unsigned long, nr_pages)
		__field(unsigned int, verdict)
	),
	TP_fast_assign(
		__entry->cookie = cookie;
		__entry->pfn = range->pfn;
		__entry->nr_pages = range->nr_pages;
		__entry->verdict = range->verdict;
	),
	TP_printk("cookie=%llu pfn=%#lx pages=%lu verdict=%s", __entry->cookie,
		  __entry->pfn, __entry->nr_pages,
		  __print_symbolic(__entry->verdict,
				   { FREEHINT_DECLINED, "declined" },
				   { FREEHINT_THROTTLED, "throttled" },
				   { FREEHINT_FAILED, "failed" },
				   { FREEHINT_NEVER, "never" },
				   { FREEHINT_DISCARDED, "discarded" }))
);

/* Between the end of one and the start of the next the device is left alone. */
TRACE_EVENT(freehint_round,
	TP_PROTO(bool start),
	TP_ARGS(start),
	TP_STRUCT__entry(
		__field(bool, start)
	),
	TP_fast_assign(
		__entry->start = start;
	),
	TP_printk("%s", __entry->start ? "start" : "end")
);

TRACE_EVENT(freehint_flush,
	TP_PROTO(const struct freehint_flush *flush),
	TP_ARGS(flush),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(unsigned int, result)
		__field(u64, hinted)
		__field(u64, pending)
		__field(u64, stuck)
	),
	TP_fast_assign(
		__entry->id = flush->id;
		__entry->result = flush->result;
		__entry->hinted = flush->hinted_bytes;
		__entry->pending = flush->gauges.pending_bytes;
		__entry->stuck = flush->gauges.stuck_bytes;
	),
	TP_printk("id=%u result=%s hinted=%llu pending=%llu stuck=%llu",
		  __entry->id,
		  __print_symbolic(__entry->result,
				   { FREEHINT_FLUSH_DONE, "done" },
				   { FREEHINT_FLUSH_TIMEOUT, "timeout" },
				   { FREEHINT_FLUSH_REFUSED, "refused" }),
		  __entry->hinted, __entry->pending, __entry->stuck)
);

TRACE_EVENT(freehint_gauges,
	TP_PROTO(const struct freehint_gauges *gauges),
	TP_ARGS(gauges),
	TP_STRUCT__entry(
		__field(u64, free)
		__field(u64, pending)
		__field(u64, discarded)
		__field(u64, in_flight)
		__field(u64, stuck)
		__field(u64, reused)
	),
	TP_fast_assign(
		__entry->free = gauges->free_bytes;
		__entry->pending = gauges->pending_bytes;
		__entry->discarded = gauges->discarded_bytes;
		__entry->in_flight = gauges->in_flight_bytes;
		__entry->stuck = gauges->stuck_bytes;
		__entry->reused = gauges->reused_bytes;
	),
	TP_printk("free=%llu pending=%llu discarded=%llu in_flight=%llu stuck=%llu reused=%llu",
		  __entry->free, __entry->pending, __entry->discarded,
		  __entry->in_flight, __entry->stuck, __entry->reused)
);

TRACE_EVENT(freehint_pace,
	TP_PROTO(unsigned int age_ms, unsigned long hinted, unsigned long reused,
		 unsigned long spared),
	TP_ARGS(age_ms, hinted, reused, spared),
	TP_STRUCT__entry(
		__field(unsigned int, age_ms)
		__field(unsigned long, hinted)
		__field(unsigned long, reused)
		__field(unsigned long, spared)
	),
	TP_fast_assign(
		__entry->age_ms = age_ms;
		__entry->hinted = hinted;
		__entry->reused = reused;
		__entry->spared = spared;
	),
	TP_printk("age_ms=%u hinted=%lu reused=%lu spared=%lu", __entry->age_ms,
		  __entry->hinted, __entry->reused, __entry->spared)
);

#endif /* _TRACE_FREEHINT_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
