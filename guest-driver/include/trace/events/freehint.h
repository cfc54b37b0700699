/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM freehint

#if !defined(_TRACE_FREEHINT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_FREEHINT_H

#include <linux/tracepoint.h>

/* Freed: whole granules, from that of @pfn on, are pending. */
TRACE_EVENT(freehint_pending,
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

#endif /* _TRACE_FREEHINT_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
