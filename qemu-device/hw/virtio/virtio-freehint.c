/*
 * Virtio free memory hint device
 *
 * The driver names ranges of guest memory that are free, and owns them until
 * the device has answered. The device discards what it may, so that the host
 * gets the memory back, and answers with a status for each range.
 *
 * The queue, config space and the counters belong to whoever holds the BQL.
 * All work on the queue is done in turns of one bottom half; each turn is
 * bounded, and ends early while a slice of memory is being discarded, which a
 * worker thread does (see virtio-freehint-discard.c). There is at most one
 * slice in progress, and virtio_freehint_drain() ends it together with all
 * messages that were taken.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "hw/boards.h"
#include "hw/qdev-properties.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "system/xen.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

#define VIRTIO_FREEHINT_QUEUE_SIZE 128

/*
 * Most messages taken, and most ranges worked on, in one turn. What a range
 * costs, except for discarding it, is a walk over the memory regions that it
 * touches.
 */
#define VIRTIO_FREEHINT_TURN 64

/*
 * After this time the rest of a message is throttled. The protocol allows for
 * a second until it is answered.
 */
#define VIRTIO_FREEHINT_ANSWER_MS 500

#define VIRTIO_FREEHINT_DEFAULT_DELAY_MS 0
#define VIRTIO_FREEHINT_DEFAULT_MIN_AGE_MS 100

DeviceState *virtio_freehint_proxy(VirtIOFreehint *fh)
{
    DeviceState *dev = DEVICE(fh);

    return dev->id ? dev : qdev_get_parent_bus(dev)->parent;
}

/* Work on the queue */

static void decline_range(VirtIOFreehint *fh)
{
    virtio_freehint_settle(fh, VIRTIO_FREEHINT_S_DECLINED, fh->reason);
}

void virtio_freehint_slice_ended(VirtIOFreehint *fh,
                                 const VirtIOFreehintPart *part,
                                 int ret, int64_t ns)
{
    VirtIOFreehintHint *hint = QSIMPLEQ_FIRST(&fh->hints);

    if (ret == VIRTIO_FREEHINT_VETOED) {
        virtio_freehint_settle(fh, VIRTIO_FREEHINT_S_DECLINED,
                               VIRTIO_FREEHINT_REASON_PINNED);
        return;
    }
    fh->stats.discard_calls++;
    fh->stats.discard_ns += ns;
    if (ret) {
        virtio_freehint_block_failed(fh, part->mr, ret);
        virtio_freehint_settle(fh, VIRTIO_FREEHINT_S_FAILED,
                               VIRTIO_FREEHINT_REASON_NONE);
        return;
    }
    fh->stats.discard_bytes += part->len;
    hint->done += part->len;
    if (hint->done == hint->ranges[hint->next].len) {
        virtio_freehint_settle(fh, VIRTIO_FREEHINT_S_DISCARDED,
                               VIRTIO_FREEHINT_REASON_NONE);
    }
}

/*
 * Memory may be remapped between two slices of a range, so that each of them
 * is looked up when its time has come. By then part of the range may be gone,
 * and it is too late to refuse it for good.
 */
static void start_slice(VirtIOFreehint *fh, const VirtIOFreehintHint *hint)
{
    const VirtIOFreehintRange *range = &hint->ranges[hint->next];
    const VirtIOFreehintRange rest = {
        .addr = range->addr + hint->done,
        .len = range->len - hint->done,
    };
    VirtIOFreehintPart part;
    uint8_t status;

    status = virtio_freehint_find_part(fh, &rest, hint->flags, &part);
    if (status == VIRTIO_FREEHINT_S_DISCARDED) {
        virtio_freehint_slice_start(fh, &part);
    } else {
        decline_range(fh);
    }
}

static bool is_late(const VirtIOFreehintHint *hint)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - hint->arrival_ms >
           VIRTIO_FREEHINT_ANSWER_MS;
}

/* A range is checked as a whole first: a wrong one loses nothing. */
static void advance_range(VirtIOFreehint *fh, const VirtIOFreehintHint *hint)
{
    uint8_t status = VIRTIO_FREEHINT_S_DISCARDED;

    if (!hint->done) {
        status = virtio_freehint_check_range(fh, &hint->ranges[hint->next],
                                             hint->flags);
    }
    if (status != VIRTIO_FREEHINT_S_DISCARDED) {
        virtio_freehint_settle(fh, status, VIRTIO_FREEHINT_REASON_NONE);
    } else if (fh->state != VIRTIO_FREEHINT_STATE_ACTIVE) {
        decline_range(fh);
    } else if (is_late(hint)) {
        virtio_freehint_settle(fh, VIRTIO_FREEHINT_S_THROTTLED,
                               VIRTIO_FREEHINT_REASON_NONE);
    } else {
        start_slice(fh, hint);
    }
}

static void advance_hint(VirtIOFreehint *fh)
{
    const VirtIOFreehintHint *hint = QSIMPLEQ_FIRST(&fh->hints);

    if (hint->next < hint->nranges) {
        advance_range(fh, hint);
    } else {
        virtio_freehint_push(fh);
    }
}

/*
 * The driver need not notify while the device looks at the queue anyway.
 * Returns whether there was, or is, a message.
 */
static bool take_message(VirtIOFreehint *fh)
{
    virtio_queue_set_notification(fh->hintq, 0);
    if (virtio_freehint_pop(fh)) {
        return true;
    }
    virtio_queue_set_notification(fh->hintq, 1);
    return !virtio_queue_empty(fh->hintq);
}

/*
 * Messages are taken off the queue as soon as possible, for the time by which
 * they have to be answered runs from then.
 */
static void virtio_freehint_bh(void *opaque)
{
    VirtIOFreehint *fh = opaque;
    int takes = VIRTIO_FREEHINT_TURN;
    int steps = VIRTIO_FREEHINT_TURN;

    virtio_freehint_refresh(fh);
    if (!fh->running) {
        return;
    }
    if (fh->config_changed) {
        virtio_freehint_notify_config(fh);
    }
    while (takes && take_message(fh)) {
        takes--;
    }
    while (steps && !fh->slice && !QSIMPLEQ_EMPTY(&fh->hints)) {
        advance_hint(fh);
        steps--;
    }
    if (!takes || !steps) {
        qemu_bh_schedule(fh->bh);
    }
}

static void virtio_freehint_handle_hintq(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    qemu_bh_schedule(fh->bh);
}

static void drain_hint(VirtIOFreehint *fh, bool answer)
{
    const VirtIOFreehintHint *hint = QSIMPLEQ_FIRST(&fh->hints);

    while (hint->next < hint->nranges) {
        decline_range(fh);
    }
    if (answer) {
        virtio_freehint_push(fh);
    } else {
        virtio_freehint_forget(fh);
    }
}

void virtio_freehint_drain(VirtIOFreehint *fh, bool answer)
{
    trace_virtio_freehint_drain(!QSIMPLEQ_EMPTY(&fh->hints), !!fh->slice,
                                answer);
    virtio_freehint_slice_drain(fh);
    while (!QSIMPLEQ_EMPTY(&fh->hints)) {
        drain_hint(fh, answer);
    }
}

/* Virtio device */

void virtio_freehint_notify_config(VirtIOFreehint *fh)
{
    fh->config_changed = !fh->running;
    if (fh->running) {
        virtio_notify_config(VIRTIO_DEVICE(fh));
    }
}

static uint64_t virtio_freehint_get_features(VirtIODevice *vdev,
                                             uint64_t features, Error **errp)
{
    return features;
}

static void virtio_freehint_get_config(VirtIODevice *vdev, uint8_t *data)
{
    const VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);
    const struct virtio_freehint_config config = {
        .granule = cpu_to_le64(fh->granule),
        .max_ranges = cpu_to_le32(fh->max_ranges),
        .state = cpu_to_le32(fh->state),
        .reason = cpu_to_le32(fh->reason),
        .rehint_epoch = cpu_to_le32(fh->rehint_epoch),
        .delay_ms = cpu_to_le32(fh->delay_ms),
        .min_age_ms = cpu_to_le32(fh->min_age_ms),
        .driver_status = cpu_to_le32(fh->driver_status),
    };

    memcpy(data, &config, sizeof(config));
}

static void virtio_freehint_set_config(VirtIODevice *vdev, const uint8_t *data)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);
    struct virtio_freehint_config config;

    memcpy(&config, data, sizeof(config));
    fh->driver_status = le32_to_cpu(config.driver_status);
    trace_virtio_freehint_driver_status(fh->driver_status);
}

/*
 * Called whenever the driver writes the status, on reset, when bus mastering
 * goes off, and when the VM stops or continues. Only in the last case does the
 * driver, once it runs again, still want its buffers back.
 */
static void virtio_freehint_set_status(VirtIODevice *vdev, uint8_t status)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->running = virtio_device_should_start(vdev, status);
    if (fh->running) {
        qemu_bh_schedule(fh->bh);
    } else {
        virtio_freehint_drain(fh, !vdev->vm_running);
    }
}

static void virtio_freehint_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    virtio_freehint_drain(VIRTIO_FREEHINT(vdev), false);
}

static void virtio_freehint_reset(VirtIODevice *vdev)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->driver_status = VIRTIO_FREEHINT_DRIVER_NOT_READY;
    fh->config_changed = false;
    /* A write to any other field brings along what is left over here. */
    virtio_freehint_get_config(vdev, vdev->config);
}

/* Migration */

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
    assert(QSIMPLEQ_EMPTY(&fh->hints));
    return 0;
}

static int virtio_freehint_post_load(void *opaque, int version_id)
{
    VirtIOFreehint *fh = opaque;

    /* Memory has been populated here, whatever was hinted before. */
    fh->rehint_epoch++;
    fh->epoch_owed = false;
    fh->config_changed = true;
    return 0;
}

static const VMStateDescription vmstate_virtio_freehint_device = {
    .name = "virtio-freehint-device",
    .minimum_version_id = 1,
    .version_id = 1,
    .pre_save = virtio_freehint_pre_save,
    .post_load = virtio_freehint_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_WITH_TMP(VirtIOFreehint, VirtIOFreehintMigConstants,
                         vmstate_virtio_freehint_constants),
        VMSTATE_UINT32(rehint_epoch, VirtIOFreehint),
        VMSTATE_UINT32(driver_status, VirtIOFreehint),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_virtio_freehint = {
    .name = "virtio-freehint",
    .minimum_version_id = 1,
    .version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_VIRTIO_DEVICE,
        VMSTATE_END_OF_LIST()
    },
};

/* Life cycle */

static bool virtio_freehint_check_machine(VirtIOFreehint *fh, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);
    bool ambiguous = false;

    object_resolve_path_type("", TYPE_VIRTIO_FREEHINT, &ambiguous);
    if (ambiguous) {
        error_setg(errp, "at most one virtio-freehint device is supported");
        return false;
    }
    if (xen_enabled()) {
        error_setg(errp, "virtio-freehint does not work under Xen, which maps"
                   " guest memory on demand");
        return false;
    }
    /* Ranges are named by guest-physical address, past any IOMMU. */
    if (virtio_host_has_feature(vdev, VIRTIO_F_IOMMU_PLATFORM)) {
        error_setg(errp, "virtio-freehint does not support iommu_platform=on");
        return false;
    }
    if (current_machine->cgs) {
        error_setg(errp, "virtio-freehint does not support confidential"
                   " guests");
        return false;
    }
    return true;
}

static bool virtio_freehint_init_granule(VirtIOFreehint *fh, Error **errp)
{
    if (!fh->granule_prop) {
        fh->granule_prop = virtio_freehint_default_granule(fh);
    }
    if (!is_power_of_2(fh->granule_prop) ||
        fh->granule_prop < qemu_real_host_page_size()) {
        error_setg(errp, "'x-granule' is 0x%" PRIx64 ", but has to be a power"
                   " of two and at least the host's page size 0x%zx",
                   fh->granule_prop, (size_t)qemu_real_host_page_size());
        return false;
    }
    fh->granule = fh->granule_prop;
    return true;
}

static void virtio_freehint_device_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);

    if (!virtio_freehint_check_machine(fh, errp) ||
        !virtio_freehint_init_granule(fh, errp)) {
        return;
    }

    virtio_init(vdev, VIRTIO_ID_FREEHINT,
                sizeof(struct virtio_freehint_config));
    fh->hintq = virtio_add_queue(vdev, VIRTIO_FREEHINT_QUEUE_SIZE,
                                 virtio_freehint_handle_hintq);
    fh->bh = virtio_bh_io_new_guarded(dev, virtio_freehint_bh, fh);
    QSIMPLEQ_INIT(&fh->hints);
    fh->max_ranges = VIRTIO_FREEHINT_MAX_RANGES;
    fh->last_hint_ms = -1;
    virtio_freehint_blocks_init(fh);
    virtio_freehint_veto_init(fh);
}

static void virtio_freehint_device_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);

    virtio_freehint_veto_cleanup(fh);
    fh->running = false;
    virtio_freehint_drain(fh, false);
    virtio_freehint_blocks_cleanup(fh);
    qemu_bh_delete(fh->bh);
    virtio_delete_queue(fh->hintq);
    virtio_cleanup(vdev);
}

/* Properties that can be set at any time */

static bool virtio_freehint_get_enabled(Object *obj, Error **errp)
{
    return VIRTIO_FREEHINT(obj)->enabled;
}

static void virtio_freehint_set_enabled(Object *obj, bool value, Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);
    const bool changed = fh->enabled != value;

    fh->enabled = value;
    if (!changed || !DEVICE(fh)->realized) {
        return;
    }
    if (value) {
        virtio_freehint_forgive_blocks(fh);
    }
    virtio_freehint_refresh(fh);
}

static void virtio_freehint_get_pacing(Object *obj, Visitor *v,
                                       const char *name, void *opaque,
                                       Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);
    uint32_t *field = (void *)fh + (uintptr_t)opaque;
    uint32_t value = *field;

    visit_type_uint32(v, name, &value, errp);
}

static void virtio_freehint_set_pacing(Object *obj, Visitor *v,
                                       const char *name, void *opaque,
                                       Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);
    uint32_t *field = (void *)fh + (uintptr_t)opaque;
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value > VIRTIO_FREEHINT_MAX_PACING_MS) {
        error_setg(errp, "'%s' is %" PRIu32 ", but may be at most %d", name,
                   value, VIRTIO_FREEHINT_MAX_PACING_MS);
        return;
    }
    if (value == *field) {
        return;
    }
    *field = value;
    if (DEVICE(fh)->realized) {
        virtio_freehint_notify_config(fh);
    }
}

static void add_pacing_prop(ObjectClass *klass, const char *name,
                            size_t offset, const char *description)
{
    object_class_property_add(klass, name, "uint32",
                              virtio_freehint_get_pacing,
                              virtio_freehint_set_pacing, NULL,
                              (void *)(uintptr_t)offset);
    object_class_property_set_description(klass, name, description);
}

static void virtio_freehint_instance_init(Object *obj)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);

    fh->enabled = true;
    fh->delay_ms = VIRTIO_FREEHINT_DEFAULT_DELAY_MS;
    fh->min_age_ms = VIRTIO_FREEHINT_DEFAULT_MIN_AGE_MS;
}

static const Property virtio_freehint_properties[] = {
    DEFINE_PROP_BOOL("discard-file-backed", VirtIOFreehint,
                     discard_file_backed, false),
    DEFINE_PROP_BOOL("discard-reserved", VirtIOFreehint, discard_reserved,
                     false),
    DEFINE_PROP_BOOL("assume-vhost-user-safe", VirtIOFreehint,
                     assume_vhost_user_safe, false),
    DEFINE_PROP_SIZE("x-granule", VirtIOFreehint, granule_prop, 0),
    /* For tests: makes it likely that a slice is in progress. */
    DEFINE_PROP_UINT32("x-slice-delay-ms", VirtIOFreehint, slice_delay_ms, 0),
};

static void virtio_freehint_class_init(ObjectClass *klass,
                                       VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);

    device_class_set_props(dc, virtio_freehint_properties);
    dc->desc = "virtio free memory hints";
    dc->vmsd = &vmstate_virtio_freehint;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);

    vdc->realize = virtio_freehint_device_realize;
    vdc->unrealize = virtio_freehint_device_unrealize;
    vdc->reset = virtio_freehint_reset;
    vdc->get_features = virtio_freehint_get_features;
    vdc->get_config = virtio_freehint_get_config;
    vdc->set_config = virtio_freehint_set_config;
    vdc->set_status = virtio_freehint_set_status;
    vdc->queue_reset = virtio_freehint_queue_reset;
    vdc->vmsd = &vmstate_virtio_freehint_device;

    object_class_property_add_bool(klass, VIRTIO_FREEHINT_ENABLED_PROP,
                                   virtio_freehint_get_enabled,
                                   virtio_freehint_set_enabled);
    object_class_property_set_description(klass, VIRTIO_FREEHINT_ENABLED_PROP,
                                          "whether hints are acted on");
    add_pacing_prop(klass, VIRTIO_FREEHINT_DELAY_PROP,
                    offsetof(VirtIOFreehint, delay_ms),
                    "least time between two rounds of hints, in ms");
    add_pacing_prop(klass, VIRTIO_FREEHINT_MIN_AGE_PROP,
                    offsetof(VirtIOFreehint, min_age_ms),
                    "least time that memory is free before it is hinted,"
                    " in ms");
}

static const TypeInfo virtio_freehint_info = {
    .name = TYPE_VIRTIO_FREEHINT,
    .parent = TYPE_VIRTIO_DEVICE,
    .instance_size = sizeof(VirtIOFreehint),
    .instance_init = virtio_freehint_instance_init,
    .class_init = virtio_freehint_class_init,
};

static void virtio_freehint_register_types(void)
{
    type_register_static(&virtio_freehint_info);
}

type_init(virtio_freehint_register_types)
