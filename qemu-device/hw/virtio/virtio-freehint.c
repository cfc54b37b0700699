/*
 * Virtio free memory hint device
 *
 * The driver names ranges of guest memory that are free, and owns them until
 * the device has answered. The device discards what it may, so that the host
 * gets the memory back, and answers with a status for each range.
 *
 * This is the device as the rest of QEMU sees it. What it does with messages
 * begins in virtio-freehint-work.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "hw/boards.h"
#include "hw/qdev-properties.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-freehint.h"
#include "qapi/visitor.h"
#include "system/kvm.h"
#include "system/qtest.h"
#include "system/tcg.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

#define VIRTIO_FREEHINT_QUEUE_SIZE 128

#define VIRTIO_FREEHINT_DEFAULT_DELAY_MS 0
#define VIRTIO_FREEHINT_DEFAULT_MIN_AGE_MS 100

DeviceState *virtio_freehint_proxy(VirtIOFreehint *fh)
{
    DeviceState *dev = DEVICE(fh);

    return dev->id ? dev : qdev_get_parent_bus(dev)->parent;
}

void virtio_freehint_notify_config(VirtIOFreehint *fh)
{
    fh->config_changed = !fh->running;
    if (fh->running) {
        virtio_notify_config(VIRTIO_DEVICE(fh));
    }
}

uint64_t virtio_freehint_age_ms(int64_t since_ms)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - since_ms;
}

/* What depends on a feature comes after what is always there. */
static const VirtIOFeature virtio_freehint_feature_sizes[] = {
    { .flags = 1ull << VIRTIO_FREEHINT_F_FLUSH,
      .end = endof(struct virtio_freehint_config, flush_timeout_ms) },
    { }
};

static const VirtIOConfigSizeParams virtio_freehint_config_size = {
    .min_size = endof(struct virtio_freehint_config, driver_status),
    .max_size = sizeof(struct virtio_freehint_config),
    .feature_sizes = virtio_freehint_feature_sizes,
};

static uint64_t virtio_freehint_get_features(VirtIODevice *vdev,
                                             uint64_t features, Error **errp)
{
    /* PCI functions see to it; virtio-mmio is what its bus is told to be. */
    if (!virtio_has_feature(features, VIRTIO_F_VERSION_1)) {
        error_setg(errp, "virtio-freehint needs virtio 1, which this bus does"
                   " not offer; for virtio-mmio, set force-legacy=off");
        return 0;
    }
    return features | VIRTIO_FREEHINT(vdev)->host_features;
}

static void virtio_freehint_get_config(VirtIODevice *vdev, uint8_t *data)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);
    struct virtio_freehint_config config = {
        .granule = cpu_to_le64(fh->granule),
        .max_ranges = cpu_to_le32(fh->max_ranges),
        .state = cpu_to_le32(fh->state),
        .reason = cpu_to_le32(fh->reason),
        .rehint_epoch = cpu_to_le32(fh->rehint_epoch),
        .delay_ms = cpu_to_le32(fh->delay_ms),
        .min_age_ms = cpu_to_le32(fh->min_age_ms),
        .driver_status = cpu_to_le32(fh->driver_status),
        .flush_id = cpu_to_le32(fh->flush.id),
        .flush_flags = cpu_to_le32(fh->flush.flags),
        .flush_timeout_ms = cpu_to_le32(fh->flush.timeout_ms),
    };

    memcpy(data, &config, vdev->config_len);
}

static void virtio_freehint_set_config(VirtIODevice *vdev, const uint8_t *data)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);
    struct virtio_freehint_config config = { };

    memcpy(&config, data, vdev->config_len);
    fh->driver_status = le32_to_cpu(config.driver_status);
    trace_virtio_freehint_driver_status(fh->driver_status);
}

/*
 * Called whenever the driver writes the status, on reset, when bus mastering
 * goes off, and when the VM stops or continues. Only in the last case does the
 * driver, once it runs again, still want its buffers back.
 */
static VirtIOFreehintStatusResult
virtio_freehint_set_status(VirtIODevice *vdev, uint8_t status)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->running = virtio_device_should_start(vdev, status);
    if (fh->running) {
        qemu_bh_schedule(fh->bh);
    } else {
        virtio_freehint_drain(fh, !vdev->vm_running);
        virtio_freehint_flush_end(fh, vdev->vm_running ?
                                  FREEHINT_FLUSH_RESULT_RESET :
                                  FREEHINT_FLUSH_RESULT_STOPPED);
    }
    return VIRTIO_FREEHINT_STATUS_SET;
}

static void virtio_freehint_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    /* The transport passes on whatever number the driver has selected. */
    if (index == VIRTIO_FREEHINT_VQ_HINT) {
        virtio_freehint_drain(VIRTIO_FREEHINT(vdev), false);
    }
}

static void virtio_freehint_reset(VirtIODevice *vdev)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->driver_status = VIRTIO_FREEHINT_DRIVER_NOT_READY;
    virtio_freehint_gauges_forget(fh);
    fh->config_changed = false;
    /* A write to any other field brings along what is left over here. */
    virtio_freehint_get_config(vdev, vdev->config);
}

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

static void virtio_freehint_answer_timer(void *opaque)
{
    VirtIOFreehint *fh = opaque;

    qemu_bh_schedule(fh->bh);
}

static bool virtio_freehint_check_machine(VirtIOFreehint *fh, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);
    bool ambiguous = false;

    /*
     * Others map guest memory on demand, as Xen does, or pin it without a word,
     * as MSHV does.
     */
    if (!kvm_enabled() && !tcg_enabled() && !qtest_enabled()) {
        error_setg(errp, "virtio-freehint supports the accelerators kvm and"
                   " tcg");
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
    object_resolve_path_type("", TYPE_VIRTIO_FREEHINT, &ambiguous);
    if (ambiguous) {
        error_setg(errp, "at most one virtio-freehint device is supported");
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
                virtio_get_config_size(&virtio_freehint_config_size,
                                       fh->host_features));
    fh->hintq = virtio_add_queue(vdev, VIRTIO_FREEHINT_QUEUE_SIZE,
                                 virtio_freehint_handle_hintq);
    fh->bh = virtio_bh_io_new_guarded(dev, virtio_freehint_bh, fh);
    QTAILQ_INIT(&fh->hints);
    fh->answer_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                    virtio_freehint_answer_timer, fh);
    fh->max_ranges = VIRTIO_FREEHINT_MAX_RANGES;
    fh->last_hint_ms = -1;
    virtio_freehint_gauges_forget(fh);
    virtio_freehint_flush_init(fh);
    virtio_freehint_slice_init(fh);
    virtio_freehint_lazy_init(fh);
    virtio_freehint_blocks_init(fh);
    virtio_freehint_veto_init(fh);
    virtio_freehint_precopy_init(fh);
}

static void virtio_freehint_device_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);

    virtio_freehint_precopy_cleanup(fh);
    virtio_freehint_veto_cleanup(fh);
    fh->running = false;
    virtio_freehint_drain(fh, false);
    timer_free(fh->answer_timer);
    virtio_freehint_flush_cleanup(fh);
    virtio_freehint_blocks_cleanup(fh);
    /* Until here, memory that is removed asks for the slice in progress. */
    virtio_freehint_slice_cleanup(fh);
    virtio_freehint_lazy_cleanup(fh);
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

static bool virtio_freehint_get_vhost_user_safe(Object *obj, Error **errp)
{
    return VIRTIO_FREEHINT(obj)->assume_vhost_user_safe;
}

static void virtio_freehint_set_vhost_user_safe(Object *obj, bool value,
                                                Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);

    fh->assume_vhost_user_safe = value;
    if (DEVICE(fh)->realized) {
        virtio_freehint_refresh(fh);
    }
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

static void virtio_freehint_get_rate_limit(Object *obj, Visitor *v,
                                           const char *name, void *opaque,
                                           Error **errp)
{
    uint64_t limit = VIRTIO_FREEHINT(obj)->rate_limit;

    visit_type_size(v, name, &limit, errp);
}

static void virtio_freehint_set_rate_limit(Object *obj, Visitor *v,
                                           const char *name, void *opaque,
                                           Error **errp)
{
    uint64_t limit;

    if (visit_type_size(v, name, &limit, errp) &&
        virtio_freehint_check_rate_limit(limit, errp)) {
        virtio_freehint_rate_set_limit(VIRTIO_FREEHINT(obj), limit);
    }
}

static int virtio_freehint_get_discard(Object *obj, Error **errp)
{
    return VIRTIO_FREEHINT(obj)->discard_mode;
}

static void virtio_freehint_set_discard(Object *obj, int value, Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);

    if (fh->discard_mode != value) {
        fh->discard_mode = value;
        /* What one mode takes a while for may be nothing to the other. */
        virtio_freehint_slice_shorten(fh);
    }
}

static int virtio_freehint_get_state(Object *obj, Error **errp)
{
    return VIRTIO_FREEHINT(obj)->state;
}

static int virtio_freehint_get_reason(Object *obj, Error **errp)
{
    return VIRTIO_FREEHINT(obj)->reason;
}

static void virtio_freehint_get_obstacles(Object *obj, Visitor *v,
                                          const char *name, void *opaque,
                                          Error **errp)
{
    g_autoptr(FreehintObstacleList) obstacles =
        virtio_freehint_obstacles(VIRTIO_FREEHINT(obj));

    visit_type_FreehintObstacleList(v, name, &obstacles, errp);
}

static void virtio_freehint_get_stats(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    g_autoptr(FreehintStats) stats =
        virtio_freehint_stats_query(VIRTIO_FREEHINT(obj));

    visit_type_FreehintStats(v, name, &stats, errp);
}

static const struct {
    const char *name;
    const char *description;
} virtio_freehint_descriptions[] = {
    { VIRTIO_FREEHINT_ENABLED_PROP, "whether hints are acted on" },
    { VIRTIO_FREEHINT_DELAY_PROP,
      "least time between two rounds of hints, in ms" },
    { VIRTIO_FREEHINT_MIN_AGE_PROP,
      "least time that memory is free before it is hinted, in ms" },
    { VIRTIO_FREEHINT_RATE_LIMIT_PROP,
      "most memory that is discarded, in bytes a second; 0: no limit" },
    { VIRTIO_FREEHINT_DISCARD_PROP,
      "whether the host takes memory at once (drop) or when it runs short"
      " (lazy)" },
    { VIRTIO_FREEHINT_STATE_PROP, "whether the device discards memory" },
    { VIRTIO_FREEHINT_REASON_PROP, "why it does not, the first of all" },
    { VIRTIO_FREEHINT_OBSTACLES_PROP,
      "all that keeps the VM from shrinking, see query-freehint" },
    { VIRTIO_FREEHINT_STATS_PROP, "what the device did, see query-freehint" },
    { "flush", "whether the guest can be asked for all its free memory" },
    { "discard-file-backed",
      "discard memory in named files: punches holes into the file" },
    { "discard-reserved",
      "discard huge pages and preallocated memory: the host may not be able"
      " to provide them again" },
    { "assume-vhost-user-safe",
      "discard in spite of vhost-user devices: none of them pins memory" },
    { "x-granule", "unit of hints, in bytes; 0: chosen by the device" },
};

static void add_descriptions(ObjectClass *klass)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(virtio_freehint_descriptions); i++) {
        object_class_property_set_description(klass,
            virtio_freehint_descriptions[i].name,
            virtio_freehint_descriptions[i].description);
    }
}

static void add_pacing_prop(ObjectClass *klass, const char *name,
                            size_t offset)
{
    object_class_property_add(klass, name, "uint32",
                              virtio_freehint_get_pacing,
                              virtio_freehint_set_pacing, NULL,
                              (void *)(uintptr_t)offset);
}

static void virtio_freehint_instance_init(Object *obj)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(obj);

    fh->enabled = true;
    fh->delay_ms = VIRTIO_FREEHINT_DEFAULT_DELAY_MS;
    fh->min_age_ms = VIRTIO_FREEHINT_DEFAULT_MIN_AGE_MS;
    fh->discard_mode = FREEHINT_DISCARD_MODE_DROP;
    virtio_freehint_rate_init(fh);
}

static void virtio_freehint_instance_finalize(Object *obj)
{
    virtio_freehint_rate_cleanup(VIRTIO_FREEHINT(obj));
}

static const Property virtio_freehint_properties[] = {
    DEFINE_PROP_BIT64("flush", VirtIOFreehint, host_features,
                      VIRTIO_FREEHINT_F_FLUSH, true),
    DEFINE_PROP_BOOL("discard-file-backed", VirtIOFreehint,
                     discard_file_backed, false),
    DEFINE_PROP_BOOL("discard-reserved", VirtIOFreehint, discard_reserved,
                     false),
    DEFINE_PROP_SIZE("x-granule", VirtIOFreehint, granule_prop, 0),
};

static void virtio_freehint_class_init(ObjectClass *klass,
                                       VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);
    VirtIOFreehintClass *fc = VIRTIO_FREEHINT_CLASS(klass);

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
    fc->use = virtio_freehint_use;
    fc->discard_slice = virtio_freehint_slice_discard;

    object_class_property_add_bool(klass, VIRTIO_FREEHINT_ENABLED_PROP,
                                   virtio_freehint_get_enabled,
                                   virtio_freehint_set_enabled);
    object_class_property_add_bool(klass, "assume-vhost-user-safe",
                                   virtio_freehint_get_vhost_user_safe,
                                   virtio_freehint_set_vhost_user_safe);
    add_pacing_prop(klass, VIRTIO_FREEHINT_DELAY_PROP,
                    offsetof(VirtIOFreehint, delay_ms));
    add_pacing_prop(klass, VIRTIO_FREEHINT_MIN_AGE_PROP,
                    offsetof(VirtIOFreehint, min_age_ms));
    object_class_property_add(klass, VIRTIO_FREEHINT_RATE_LIMIT_PROP, "size",
                              virtio_freehint_get_rate_limit,
                              virtio_freehint_set_rate_limit, NULL, NULL);
    object_class_property_add_enum(klass, VIRTIO_FREEHINT_DISCARD_PROP,
                                   "FreehintDiscardMode",
                                   &FreehintDiscardMode_lookup,
                                   virtio_freehint_get_discard,
                                   virtio_freehint_set_discard);
    object_class_property_add_enum(klass, VIRTIO_FREEHINT_STATE_PROP,
                                   "FreehintState", &FreehintState_lookup,
                                   virtio_freehint_get_state, NULL);
    object_class_property_add_enum(klass, VIRTIO_FREEHINT_REASON_PROP,
                                   "FreehintReason", &FreehintReason_lookup,
                                   virtio_freehint_get_reason, NULL);
    object_class_property_add(klass, VIRTIO_FREEHINT_OBSTACLES_PROP,
                              "FreehintObstacleList",
                              virtio_freehint_get_obstacles, NULL, NULL, NULL);
    object_class_property_add(klass, VIRTIO_FREEHINT_STATS_PROP,
                              "FreehintStats", virtio_freehint_get_stats,
                              NULL, NULL, NULL);
    add_descriptions(klass);
}

static const TypeInfo virtio_freehint_info = {
    .name = TYPE_VIRTIO_FREEHINT,
    .parent = TYPE_VIRTIO_DEVICE,
    .instance_size = sizeof(VirtIOFreehint),
    .instance_init = virtio_freehint_instance_init,
    .instance_finalize = virtio_freehint_instance_finalize,
    .class_size = sizeof(VirtIOFreehintClass),
    .class_init = virtio_freehint_class_init,
};

static void virtio_freehint_register_types(void)
{
    type_register_static(&virtio_freehint_info);
}

type_init(virtio_freehint_register_types)
