/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what differs between the kernels that there are patches for.
 */
#ifndef _MM_FREEHINT_COMPAT_H
#define _MM_FREEHINT_COMPAT_H

#include <linux/page-isolation.h>

/*
 * From 7.3 on, buddy_order() and drain_all_pages() are there, and a pageblock that is
 * isolated keeps its type.
 */
#ifdef __has_include
#if __has_include("../page_alloc.h")
#include "../page_alloc.h"

/* For unit tests. */
#define set_pageblock_migratetype(page, mt)				\
	init_pageblock_migratetype(page, mt, false)
#define start_isolate_page_range(start, end, mt, flags, gfp)		\
	start_isolate_page_range(start, end, PB_ISOLATE_MODE_OTHER)
#define undo_isolate_page_range(start, end, mt)				\
	undo_isolate_page_range(start, end)
#endif
#endif

#endif /* _MM_FREEHINT_COMPAT_H */
