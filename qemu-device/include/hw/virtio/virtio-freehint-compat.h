/*
 * Virtio free memory hint device: differences between versions of QEMU
 *
 * The only place that knows of them. 10.1 moved headers, made class data
 * constant, and lets setting the status fail.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_FREEHINT_COMPAT_H
#define HW_VIRTIO_FREEHINT_COMPAT_H

#if QEMU_VERSION_MAJOR * 100 + QEMU_VERSION_MINOR >= 1001
#include "accel/accel-ops.h"
#include "system/address-spaces.h"
#include "system/memory.h"
#include "system/ramblock.h"
typedef const void VirtIOFreehintClassData;
typedef int VirtIOFreehintStatusResult;
#define VIRTIO_FREEHINT_STATUS_SET 0
#else
#include "qemu/accel.h"
#include "exec/address-spaces.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
typedef void VirtIOFreehintClassData;
typedef void VirtIOFreehintStatusResult;
#define VIRTIO_FREEHINT_STATUS_SET
#endif

#endif
