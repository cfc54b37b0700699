/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Virtio free memory hint driver: differences between kernel versions. This is the only
 * place that knows versions; it is included before everything else.
 */
#ifndef _VIRTIO_FREEHINT_COMPAT_H
#define _VIRTIO_FREEHINT_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
#ifndef __counted_by
#define __counted_by(member)
#endif
#define abs_diff(a, b) ({			\
	typeof(a) _a = (a), _b = (b);		\
						\
	_a > _b ? _a - _b : _b - _a;		\
})
#endif

/* MAX_ORDER was the number of orders before it was the highest order. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
#define NR_PAGE_ORDERS		MAX_ORDER
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
#define NR_PAGE_ORDERS		(MAX_ORDER + 1)
#endif

/* Before it had this name. Debian's 6.12 has both. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
#define system_dfl_wq		system_unbound_wq
#endif

#endif /* _VIRTIO_FREEHINT_COMPAT_H */
