/*
 * Virtio free memory hint device: misbehaving on purpose
 *
 * A driver has to survive devices that break the rules. This makes the device
 * one of them, for tests of drivers.
 *
 * What goes wrong is set by the property "x-faults", a structure that can be
 * set as a whole at any time: each member that is there is a fault, each one
 * that isn't is none. What the device does to memory, and counts, is what it
 * always does; only what it tells the driver, or when, is wrong.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "exec/memop.h"
#include "hw/virtio/virtio-pci.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-freehint-faults.h"

typedef enum Fault {
    /* Feature bits that are offered and should not be, or the reverse. */
    FAULT_FEATURES,

    /* What config space says instead of the truth. */
    FAULT_GRANULE,
    FAULT_MAX_RANGES,
    FAULT_STATE,

    /* What answers say instead of the truth. */
    FAULT_RESULT,
    FAULT_RESERVED,
    FAULT_NSTATUS,
    FAULT_EPOCH_OFFSET,
    FAULT_RETRY_AFTER_MS,
    FAULT_STATUS,
    FAULT_USED_LENGTH,
    /* What the used ring says of messages other than hints. */
    FAULT_USED_ID,

    /* Messages are left alone: not acted on, and not used. */
    FAULT_HANG,
    /* So many hints are acted on and never used, others are. */
    FAULT_LOSE,
    /* A hint breaks the device. */
    FAULT_NEEDS_RESET,
    /* The driver's writes to the device status have no effect. */
    FAULT_STUCK_STATUS,

    FAULT__MAX,
} Fault;

static const char *const fault_names[FAULT__MAX] = {
    [FAULT_FEATURES] = "features",
    [FAULT_GRANULE] = "granule",
    [FAULT_MAX_RANGES] = "max-ranges",
    [FAULT_STATE] = "state",
    [FAULT_RESULT] = "result",
    [FAULT_RESERVED] = "reserved",
    [FAULT_NSTATUS] = "nstatus",
    [FAULT_EPOCH_OFFSET] = "epoch-offset",
    [FAULT_RETRY_AFTER_MS] = "retry-after-ms",
    [FAULT_STATUS] = "status",
    [FAULT_USED_LENGTH] = "used-length",
    [FAULT_USED_ID] = "used-id",
    [FAULT_HANG] = "hang",
    [FAULT_LOSE] = "lose",
    [FAULT_NEEDS_RESET] = "needs-reset",
    [FAULT_STUCK_STATUS] = "stuck-status",
};

typedef struct FaultValue {
    bool given;
    uint64_t value;
} FaultValue;

struct VirtIOFreehintFaults {
    FaultValue faults[FAULT__MAX];

    /* Lies over the function's device status while that is stuck. */
    MemoryRegion status_mr;
    bool status_mapped;
    /* The driver asked for a reset that it did not get. */
    bool reset_owed;
};

static bool has_fault(const VirtIOFreehint *fh, Fault fault)
{
    return fh->faults && fh->faults->faults[fault].given;
}

/* What there is instead of the true value. */
static uint64_t faulty(const VirtIOFreehint *fh, Fault fault, uint64_t value)
{
    return has_fault(fh, fault) ? fh->faults->faults[fault].value : value;
}

/* What the device does at the fault's time */

void virtio_freehint_fault_config(VirtIOFreehint *fh,
                                  struct virtio_freehint_config *config)
{
    config->granule = cpu_to_le64(faulty(fh, FAULT_GRANULE, fh->granule));
    config->max_ranges = cpu_to_le32(faulty(fh, FAULT_MAX_RANGES,
                                            fh->max_ranges));
    config->state = cpu_to_le32(faulty(fh, FAULT_STATE, fh->state));
}

bool virtio_freehint_fault_holds(VirtIOFreehint *fh)
{
    if (has_fault(fh, FAULT_NEEDS_RESET)) {
        virtio_error(VIRTIO_DEVICE(fh), "virtio-freehint: broken as x-faults"
                     " wants it");
        virtio_freehint_drain(fh, false);
        return true;
    }
    return has_fault(fh, FAULT_HANG);
}

bool virtio_freehint_fault_loses(VirtIOFreehint *fh)
{
    FaultValue *lose;

    if (!has_fault(fh, FAULT_LOSE)) {
        return false;
    }
    lose = &fh->faults->faults[FAULT_LOSE];
    return lose->value && lose->value--;
}

static void spoil_ack(const VirtIOFreehint *fh,
                      struct virtio_freehint_ack *ack)
{
    const uint32_t epoch = le32_to_cpu(ack->rehint_epoch);

    ack->result = cpu_to_le16(faulty(fh, FAULT_RESULT,
                                     le16_to_cpu(ack->result)));
    ack->reserved = cpu_to_le16(faulty(fh, FAULT_RESERVED, 0));
    ack->nstatus = cpu_to_le32(faulty(fh, FAULT_NSTATUS,
                                      le32_to_cpu(ack->nstatus)));
    ack->rehint_epoch = cpu_to_le32(epoch + faulty(fh, FAULT_EPOCH_OFFSET, 0));
    ack->retry_after_ms = cpu_to_le32(faulty(fh, FAULT_RETRY_AFTER_MS,
                                             le32_to_cpu(ack->retry_after_ms)));
}

size_t virtio_freehint_fault_answer(VirtIOFreehint *fh,
                                    const VirtIOFreehintHint *hint, size_t len)
{
    const VirtQueueElement *elem = &hint->elem;
    struct virtio_freehint_ack ack;

    iov_to_buf(elem->in_sg, elem->in_num, 0, &ack, sizeof(ack));
    spoil_ack(fh, &ack);
    iov_from_buf(elem->in_sg, elem->in_num, 0, &ack, sizeof(ack));
    if (has_fault(fh, FAULT_STATUS)) {
        iov_memset(elem->in_sg, elem->in_num, sizeof(ack),
                   faulty(fh, FAULT_STATUS, 0), hint->nranges);
    }
    return faulty(fh, FAULT_USED_LENGTH, len);
}

void virtio_freehint_fault_used_id(VirtIOFreehint *fh, VirtQueueElement *elem)
{
    elem->index = faulty(fh, FAULT_USED_ID, elem->index);
}

/* The device status that nobody can write */

static VirtIOPCIProxy *pci_proxy(VirtIOFreehint *fh)
{
    Object *proxy = OBJECT(qdev_get_parent_bus(DEVICE(fh))->parent);

    return (VirtIOPCIProxy *)object_dynamic_cast(proxy, TYPE_VIRTIO_PCI);
}

static uint64_t stuck_status_read(void *opaque, hwaddr addr, unsigned size)
{
    const VirtIOFreehint *fh = opaque;

    return fh->parent_obj.status;
}

static void stuck_status_write(void *opaque, hwaddr addr, uint64_t value,
                               unsigned size)
{
    VirtIOFreehint *fh = opaque;

    fh->faults->reset_owed |= !value;
}

static const MemoryRegionOps stuck_status_ops = {
    .read = stuck_status_read,
    .write = stuck_status_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .impl.max_access_size = 1,
};

static void map_stuck_status(VirtIOFreehint *fh)
{
    VirtIOFreehintFaults *faults = fh->faults;

    memory_region_init_io(&faults->status_mr, OBJECT(fh), &stuck_status_ops,
                          fh, "virtio-freehint-stuck-status", 1);
    memory_region_add_subregion_overlap(&pci_proxy(fh)->common.mr,
                                        VIRTIO_PCI_COMMON_STATUS,
                                        &faults->status_mr, 1);
    faults->status_mapped = true;
}

static void unmap_stuck_status(VirtIOFreehint *fh)
{
    VirtIOFreehintFaults *faults = fh->faults;

    memory_region_del_subregion(&pci_proxy(fh)->common.mr, &faults->status_mr);
    object_unparent(OBJECT(&faults->status_mr));
    faults->status_mapped = false;
}

/* The driver may be waiting for what it asked for meanwhile. */
static void reset_at_last(VirtIOFreehint *fh)
{
    if (fh->faults->reset_owed) {
        fh->faults->reset_owed = false;
        memory_region_dispatch_write(&pci_proxy(fh)->common.mr,
                                     VIRTIO_PCI_COMMON_STATUS, 0, MO_8,
                                     MEMTXATTRS_UNSPECIFIED);
    }
}

static void set_status_stuck(VirtIOFreehint *fh, bool stuck)
{
    if (stuck && !fh->faults->status_mapped) {
        map_stuck_status(fh);
    }
    if (fh->faults->status_mapped) {
        memory_region_set_enabled(&fh->faults->status_mr, stuck);
    }
    if (!stuck) {
        reset_at_last(fh);
    }
}

void virtio_freehint_faults_cleanup(VirtIOFreehint *fh)
{
    if (fh->faults && fh->faults->status_mapped) {
        unmap_stuck_status(fh);
    }
}

/* The property */

static void get_faults(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    const VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);
    Fault i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return;
    }
    for (i = 0; i < FAULT__MAX; i++) {
        uint64_t value = faulty(fh, i, 0);

        if (has_fault(fh, i) &&
            !visit_type_uint64(v, fault_names[i], &value, errp)) {
            break;
        }
    }
    visit_end_struct(v, NULL);
}

static bool visit_faults(Visitor *v, const char *name, FaultValue *faults,
                         Error **errp)
{
    bool ok = true;
    Fault i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return false;
    }
    for (i = 0; ok && i < FAULT__MAX; i++) {
        if (visit_optional(v, fault_names[i], &faults[i].given)) {
            ok = visit_type_uint64(v, fault_names[i], &faults[i].value, errp);
        }
    }
    ok = ok && visit_check_struct(v, errp);
    visit_end_struct(v, NULL);
    return ok;
}

/* Else what was held would not be acted on at all, being late. */
static void forgive_lateness(VirtIOFreehint *fh)
{
    const int64_t now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    VirtIOFreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        hint->arrival_ms = now;
    }
}

/* A member that is gone takes its effect with it. */
static void apply_faults(VirtIOFreehint *fh, uint64_t old_features)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);

    vdev->host_features ^= old_features ^ faulty(fh, FAULT_FEATURES, 0);
    set_status_stuck(fh, has_fault(fh, FAULT_STUCK_STATUS));
    forgive_lateness(fh);
    virtio_freehint_notify_config(fh);
    qemu_bh_schedule(fh->bh);
}

static void set_faults(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);
    const uint64_t old_features = faulty(fh, FAULT_FEATURES, 0);
    FaultValue faults[FAULT__MAX] = { };

    if (!visit_faults(v, name, faults, errp)) {
        return;
    }
    if (!DEVICE(fh)->realized || !pci_proxy(fh)) {
        error_setg(errp, "'%s' can be set on a realized PCI device only",
                   name);
        return;
    }
    if (!fh->faults) {
        fh->faults = g_new0(VirtIOFreehintFaults, 1);
    }
    memcpy(fh->faults->faults, faults, sizeof(faults));
    apply_faults(fh, old_features);
}

/* A vCPU can be in the memory region until the device is finalized. */
static void release_faults(Object *obj, const char *name, void *opaque)
{
    g_free(VIRTIO_FREEHINT(obj)->faults);
}

void virtio_freehint_faults_class_init(ObjectClass *klass)
{
    object_class_property_add(klass, "x-faults", "struct", get_faults,
                              set_faults, release_faults, NULL);
    object_class_property_set_description(klass, "x-faults",
        "ways to misbehave, for tests of drivers: see"
        " virtio-freehint-faults.c");
}
