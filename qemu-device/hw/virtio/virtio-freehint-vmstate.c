/*
 * Virtio free memory hint device: migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "migration/vmstate.h"
#include "virtio-freehint-internal.h"

/*
 * What the driver was told travels; policy (enabled, pacing) and counters
 * belong to the host that the VM runs on. The driver takes granule and maximum
 * for constants, so that the destination adopts the source's if it can.
 */
typedef struct VirtIOFreehintMigConstants {
    VirtIOFreehint *parent;
    uint64_t granule;
    uint32_t max_ranges;
} VirtIOFreehintMigConstants;

static int virtio_freehint_mig_constants_pre_save(void *opaque)
{
    VirtIOFreehintMigConstants *tmp = opaque;

    tmp->granule = tmp->parent->granule;
    tmp->max_ranges = tmp->parent->max_ranges;
    return 0;
}

static int virtio_freehint_mig_constants_post_load(void *opaque,
                                                   int version_id)
{
    const VirtIOFreehintMigConstants *tmp = opaque;
    VirtIOFreehint *fh = tmp->parent;

    if (!is_power_of_2(tmp->granule) || tmp->granule < fh->granule_prop) {
        error_report("virtio-freehint: the source's granule 0x%" PRIx64
                     " is not a power of two that is at least this host's"
                     " 0x%" PRIx64, tmp->granule, fh->granule_prop);
        return -EINVAL;
    }
    if (!tmp->max_ranges || tmp->max_ranges > VIRTIO_FREEHINT_MAX_RANGES) {
        error_report("virtio-freehint: the source takes %" PRIu32 " ranges in"
                     " a hint, this host 1 to %d", tmp->max_ranges,
                     VIRTIO_FREEHINT_MAX_RANGES);
        return -EINVAL;
    }
    fh->granule = tmp->granule;
    fh->max_ranges = tmp->max_ranges;
    return 0;
}

static const VMStateDescription vmstate_virtio_freehint_constants = {
    .name = "virtio-freehint-device/constants",
    .pre_save = virtio_freehint_mig_constants_pre_save,
    .post_load = virtio_freehint_mig_constants_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64(granule, VirtIOFreehintMigConstants),
        VMSTATE_UINT32(max_ranges, VirtIOFreehintMigConstants),
        VMSTATE_END_OF_LIST()
    },
};

static int virtio_freehint_pre_save(void *opaque)
{
    VirtIOFreehint *fh = opaque;

    /* The VM has stopped: a message that is not back now never comes back. */
    assert(QTAILQ_EMPTY(&fh->hints));
    assert(!fh->flush.pending);
    return 0;
}

static int virtio_freehint_pre_load(void *opaque)
{
    VirtIOFreehint *fh = opaque;

    /* What a source leaves out is as it was in the beginning. */
    fh->flush.id = 0;
    fh->flush.flags = 0;
    fh->flush.timeout_ms = 0;
    return 0;
}

static int virtio_freehint_post_load(void *opaque, int version_id)
{
    VirtIOFreehint *fh = opaque;

    /* Memory has been populated here, whatever was hinted before. */
    fh->rehint_epoch++;
    qatomic_set(&fh->epoch_owed, false);
    fh->config_changed = true;
    return 0;
}

/*
 * The ID goes on counting where the VM goes, and does so where it goes back to
 * an earlier state: whoever waits for an event knows a flush by its ID. With it
 * goes what the driver was asked for, which it may be about to read; but nobody
 * waits for it any more.
 */
static bool virtio_freehint_flush_needed(void *opaque)
{
    const VirtIOFreehint *fh = opaque;

    return fh->flush.id;
}

static int virtio_freehint_flush_post_load(void *opaque, int version_id)
{
    VirtIOFreehintFlush *flush = &((VirtIOFreehint *)opaque)->flush;

    if (!flush->id || flush->flags & ~VIRTIO_FREEHINT_FLUSH_F_COMPACT ||
        !flush->timeout_ms ||
        flush->timeout_ms > VIRTIO_FREEHINT_MAX_FLUSH_MS) {
        error_report("virtio-freehint: the source's flush %" PRIu32 " with"
                     " flags 0x%" PRIx32 " and %" PRIu32 " ms is not one that"
                     " this host could have begun", flush->id, flush->flags,
                     flush->timeout_ms);
        return -EINVAL;
    }
    flush->last_id = MAX(flush->last_id, flush->id);
    return 0;
}

static const VMStateDescription vmstate_virtio_freehint_flush = {
    .name = "virtio-freehint-device/flush",
    .minimum_version_id = 1,
    .version_id = 1,
    .needed = virtio_freehint_flush_needed,
    .post_load = virtio_freehint_flush_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(flush.id, VirtIOFreehint),
        VMSTATE_UINT32(flush.flags, VirtIOFreehint),
        VMSTATE_UINT32(flush.timeout_ms, VirtIOFreehint),
        VMSTATE_END_OF_LIST()
    },
};

const VMStateDescription vmstate_virtio_freehint_device = {
    .name = "virtio-freehint-device",
    .minimum_version_id = 1,
    .version_id = 1,
    .pre_save = virtio_freehint_pre_save,
    .pre_load = virtio_freehint_pre_load,
    .post_load = virtio_freehint_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_WITH_TMP(VirtIOFreehint, VirtIOFreehintMigConstants,
                         vmstate_virtio_freehint_constants),
        VMSTATE_UINT32(rehint_epoch, VirtIOFreehint),
        VMSTATE_UINT32(driver_status, VirtIOFreehint),
        VMSTATE_END_OF_LIST()
    },
    .subsections = (const VMStateDescription * const []) {
        &vmstate_virtio_freehint_flush,
        NULL
    },
};
