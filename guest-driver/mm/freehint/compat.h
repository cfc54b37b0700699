/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what differs between the kernels that there are patches for.
 */
#ifndef _MM_FREEHINT_COMPAT_H
#define _MM_FREEHINT_COMPAT_H

#include <linux/mmzone.h>
#include <linux/page-isolation.h>

/* From 7.3 on, this has buddy_order() and drain_all_pages(). */
#ifdef __has_include
#if __has_include("../page_alloc.h")
#include "../page_alloc.h"
#endif
#endif

/*
 * From 6.18 on, an isolated pageblock keeps its type. Before, isolating one took this
 * flag.
 */
#ifndef REPORT_FAILURE
#define FH_ISOLATED_KEEPS_TYPE
#endif

#endif /* _MM_FREEHINT_COMPAT_H */
