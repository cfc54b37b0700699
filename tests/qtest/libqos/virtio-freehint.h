/*
 * libqos driver for virtio-freehint-pci
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_VIRTIO_FREEHINT_H
#define TESTS_LIBQOS_VIRTIO_FREEHINT_H

#include "qgraph.h"
#include "virtio.h"
#include "virtio-pci.h"
#include "standard-headers/linux/virtio_freehint.h"

typedef struct QVirtioFreehint {
    QVirtioDevice *vdev;
    QVirtQueue *vq;
    QVirtioPCIDevice *pci;
} QVirtioFreehint;

typedef struct QVirtioFreehintPCI {
    QVirtioPCIDevice pci_vdev;
    QVirtioFreehint freehint;
} QVirtioFreehintPCI;

/* In host byte order. */
typedef struct virtio_freehint_range QFreehintRange;

/* A hint that the device has, or is about to get. */
typedef struct QFreehintHint {
    uint64_t readable;
    uint64_t writable;
    uint32_t nranges;
    uint32_t head;
} QFreehintHint;

/* Negotiate, set up the queue and set DRIVER_OK: also after a reset. */
void qvirtio_freehint_start(QVirtioFreehint *fh, QGuestAllocator *alloc);

/*
 * Put a message into guest memory. Header and ranges are written as given, in
 * host byte order.
 */
QFreehintHint qvirtio_freehint_prepare(QVirtioFreehint *fh,
                                       QGuestAllocator *alloc,
                                       const struct virtio_freehint_hdr *hdr,
                                       const QFreehintRange *ranges,
                                       uint32_t nranges);

/* Make a hint available in as few descriptors as possible, and notify. */
void qvirtio_freehint_submit(QVirtioFreehint *fh, QFreehintHint *hint);

/*
 * Make a message available whose parts are split into descriptors of at most
 * @step bytes, @readable and @writable bytes in all, and notify.
 */
void qvirtio_freehint_submit_split(QVirtioFreehint *fh, QFreehintHint *hint,
                                   uint32_t readable, uint32_t writable,
                                   uint32_t step);

/* Wait for the hint; returns how long it was in us. */
gint64 qvirtio_freehint_wait(QVirtioFreehint *fh, QFreehintHint *hint);

/* Whether the device has used a buffer that has not been waited for. */
bool qvirtio_freehint_poll(QVirtioFreehint *fh, uint32_t *head, uint32_t *len);

/* The answer to a hint that has been waited for. */
struct virtio_freehint_ack qvirtio_freehint_ack(const QFreehintHint *hint);
uint8_t qvirtio_freehint_status(const QFreehintHint *hint, uint32_t index);

/* One hint from start to end; the statuses are copied out. */
void qvirtio_freehint_hint(QVirtioFreehint *fh, QGuestAllocator *alloc,
                           uint16_t flags,
                           const QFreehintRange *ranges,
                           uint32_t nranges, uint8_t *status);

#endif
