/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_freehint

#if !defined(_VIRTIO_FREEHINT_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _VIRTIO_FREEHINT_TRACE_H

#include <linux/tracepoint.h>

#include "vfh.h"

TRACE_EVENT(freehint_submit,
	TP_PROTO(const struct vfh_msg *msg),
	TP_ARGS(msg),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(unsigned int, nr_ranges)
		__field(unsigned long, nr_pages)
	),
	TP_fast_assign(
		__entry->cookie = msg->cookie;
		__entry->nr_ranges = msg->batch->nr_ranges;
		__entry->nr_pages = msg->batch->nr_pages;
	),
	TP_printk("cookie=%llu ranges=%u pages=%lu", __entry->cookie,
		  __entry->nr_ranges, __entry->nr_pages)
);

TRACE_EVENT(freehint_complete,
	TP_PROTO(const struct vfh_msg *msg, bool stale),
	TP_ARGS(msg, stale),
	TP_STRUCT__entry(
		__field(u64, cookie)
		__field(bool, stale)
	),
	TP_fast_assign(
		__entry->cookie = msg->cookie;
		__entry->stale = stale;
	),
	TP_printk("cookie=%llu stale=%d", __entry->cookie, __entry->stale)
);

TRACE_EVENT(freehint_range,
	TP_PROTO(u64 cookie, const struct freehint_range *range,
		 unsigned int verdict),
	TP_ARGS(cookie, range, verdict),
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
		__entry->verdict = verdict;
	),
	TP_printk("cookie=%llu pfn=%#lx pages=%lu verdict=%s", __entry->cookie,
		  __entry->pfn, __entry->nr_pages,
		  __print_symbolic(__entry->verdict,
				   { VFH_DISCARDED, "discarded" },
				   { VFH_LAZY, "lazy" },
				   { VFH_DECLINED, "declined" },
				   { VFH_THROTTLED, "throttled" },
				   { VFH_FAILED, "failed" },
				   { VFH_NEVER, "never" }))
);

/* Between the end of a round and the start of the next, the device is left alone. */
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
	TP_PROTO(u32 id, u32 result, u64 hinted, const struct vfh_figures *figures),
	TP_ARGS(id, result, hinted, figures),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, result)
		__field(u64, hinted)
		__field(u64, pending)
		__field(u64, stuck)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->result = result;
		__entry->hinted = hinted;
		__entry->pending = figures->pending;
		__entry->stuck = figures->stuck;
	),
	TP_printk("id=%u result=%s hinted=%llu pending=%llu stuck=%llu",
		  __entry->id,
		  __print_symbolic(__entry->result,
				   { VIRTIO_FREEHINT_FLUSH_DONE, "done" },
				   { VIRTIO_FREEHINT_FLUSH_TIMEOUT, "timeout" },
				   { VIRTIO_FREEHINT_FLUSH_REFUSED, "refused" }),
		  __entry->hinted, __entry->pending, __entry->stuck)
);

TRACE_EVENT(freehint_gauges,
	TP_PROTO(const struct vfh_figures *figures),
	TP_ARGS(figures),
	TP_STRUCT__entry(
		__field(u64, free)
		__field(u64, pending)
		__field(u64, discarded)
		__field(u64, in_flight)
		__field(u64, stuck)
		__field(u64, reused)
	),
	TP_fast_assign(
		__entry->free = figures->free;
		__entry->pending = figures->pending;
		__entry->discarded = figures->hinted;
		__entry->in_flight = figures->in_flight;
		__entry->stuck = figures->stuck;
		__entry->reused = figures->reused;
	),
	TP_printk("free=%llu pending=%llu discarded=%llu in_flight=%llu stuck=%llu reused=%llu",
		  __entry->free, __entry->pending, __entry->discarded,
		  __entry->in_flight, __entry->stuck, __entry->reused)
);

TRACE_EVENT(freehint_pace,
	TP_PROTO(unsigned int age_ms, const struct vfh_reuse *reuse),
	TP_ARGS(age_ms, reuse),
	TP_STRUCT__entry(
		__field(unsigned int, age_ms)
		__field(unsigned long, hinted)
		__field(unsigned long, reused)
		__field(unsigned long, spared)
	),
	TP_fast_assign(
		__entry->age_ms = age_ms;
		__entry->hinted = reuse->hinted;
		__entry->reused = reuse->reused;
		__entry->spared = reuse->spared;
	),
	TP_printk("age_ms=%u hinted=%lu reused=%lu spared=%lu", __entry->age_ms,
		  __entry->hinted, __entry->reused, __entry->spared)
);

#endif /* _VIRTIO_FREEHINT_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace

/* This part must be outside protection. */
#include <trace/define_trace.h>
