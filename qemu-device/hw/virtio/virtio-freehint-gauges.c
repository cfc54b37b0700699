/*
 * Virtio free memory hint device: the guest's word on its own memory
 *
 * It explains what the host sees of the guest, and is shown to the operator.
 * Nothing else may depend on it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

void virtio_freehint_gauges_set(VirtIOFreehint *fh,
                                const struct virtio_freehint_gauges *gauges)
{
    fh->gauges = (VirtIOFreehintGauges) {
        .free = le64_to_cpu(gauges->free),
        .pending = le64_to_cpu(gauges->pending),
        .hinted = le64_to_cpu(gauges->hinted),
        .in_flight = le64_to_cpu(gauges->in_flight),
        .stuck = le64_to_cpu(gauges->stuck),
        .reused = le64_to_cpu(gauges->reused),
        .arrival_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME),
    };
    trace_virtio_freehint_gauges(fh->gauges.free, fh->gauges.pending,
                                 fh->gauges.hinted, fh->gauges.in_flight,
                                 fh->gauges.stuck, fh->gauges.reused);
}

void virtio_freehint_gauges_forget(VirtIOFreehint *fh)
{
    fh->gauges = (VirtIOFreehintGauges) { .arrival_ms = -1 };
}

FreehintGauges *virtio_freehint_gauges_query(const VirtIOFreehint *fh)
{
    const VirtIOFreehintGauges *gauges = &fh->gauges;
    FreehintGauges *info;

    if (gauges->arrival_ms < 0) {
        return NULL;
    }
    info = g_new0(FreehintGauges, 1);
    info->free = gauges->free;
    info->pending = gauges->pending;
    info->hinted = gauges->hinted;
    info->in_flight = gauges->in_flight;
    info->stuck = gauges->stuck;
    info->reused = gauges->reused;
    info->age_ms = virtio_freehint_age_ms(gauges->arrival_ms);
    return info;
}
