/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what differs between the kernels that there are patches for.
 */
#ifndef _MM_FREEHINT_COMPAT_H
#define _MM_FREEHINT_COMPAT_H

/*
 * From 7.3 on, buddy_order() and drain_all_pages() are there, and a pageblock that is
 * isolated keeps its type.
 */
#ifdef __has_include
#if __has_include("../page_alloc.h")
#include "../page_alloc.h"

#define FH_ISOLATED_KEEPS_TYPE
#endif
#endif

#endif /* _MM_FREEHINT_COMPAT_H */
