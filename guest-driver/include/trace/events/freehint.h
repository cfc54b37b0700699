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
