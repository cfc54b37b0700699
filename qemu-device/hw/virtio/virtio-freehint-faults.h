/*
 * Virtio free memory hint device: misbehaving on purpose
 *
 * Where the device asks whether it shall break a rule of the specification.
 * Without CONFIG_VIRTIO_FREEHINT_FAULTS, which no production build has, the
 * answer is no at compile time. All functions are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_FREEHINT_FAULTS_H
#define HW_VIRTIO_FREEHINT_FAULTS_H

#include "virtio-freehint-internal.h"

#include CONFIG_DEVICES

#ifdef CONFIG_VIRTIO_FREEHINT_FAULTS

/* Add the property that faults are set by. */
void virtio_freehint_faults_class_init(ObjectClass *klass);

/* To be called before the device, or its PCI function, goes away. */
void virtio_freehint_faults_cleanup(VirtIOFreehint *fh);

/* Falsify what the driver is about to read. */
void virtio_freehint_fault_config(VirtIOFreehint *fh,
                                  struct virtio_freehint_config *config);

/* Whether to leave the first hint, if there still is one, as it is for now. */
bool virtio_freehint_fault_holds(VirtIOFreehint *fh);

/* Whether to forget the first hint instead of giving it back. */
bool virtio_freehint_fault_loses(VirtIOFreehint *fh);

/**
 * virtio_freehint_fault_answer: falsify the answer to a hint
 *
 * @fh: the device
 * @hint: the hint; its answer is in the guest's memory, but not yet used
 * @len: the used length
 *
 * Returns: the used length that the driver gets to see
 */
size_t virtio_freehint_fault_answer(VirtIOFreehint *fh,
                                    const VirtIOFreehintHint *hint,
                                    size_t len);

/* Falsify which buffer is going to be used, of a message that is no hint. */
void virtio_freehint_fault_used_id(VirtIOFreehint *fh, VirtQueueElement *elem);

#else

static inline void virtio_freehint_faults_class_init(ObjectClass *klass)
{
}

static inline void virtio_freehint_faults_cleanup(VirtIOFreehint *fh)
{
}

static inline void
virtio_freehint_fault_config(VirtIOFreehint *fh,
                             struct virtio_freehint_config *config)
{
}

static inline bool virtio_freehint_fault_holds(VirtIOFreehint *fh)
{
    return false;
}

static inline bool virtio_freehint_fault_loses(VirtIOFreehint *fh)
{
    return false;
}

static inline size_t
virtio_freehint_fault_answer(VirtIOFreehint *fh,
                             const VirtIOFreehintHint *hint, size_t len)
{
    return len;
}

static inline void virtio_freehint_fault_used_id(VirtIOFreehint *fh,
                                                 VirtQueueElement *elem)
{
}

#endif /* CONFIG_VIRTIO_FREEHINT_FAULTS */

#endif
