/*
 * Virtio free memory hint device
 *
 * The driver names ranges of guest memory that are free, and owns them until
 * the device has answered. The device discards what it may, so that the host
 * gets the memory back, and answers with a status for each range.
 *
 * This file has what the rest of QEMU sees: config space, status, migration
 * state, properties. Messages are handled in virtio-freehint-queue.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "hw/boards.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-freehint.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-freehint.h"
#include "system/kvm.h"
#include "system/qtest.h"
#include "system/tcg.h"
#include "trace.h"

#define FREEHINT_QUEUE_SIZE 128

DeviceState *freehint_proxy(VirtIOFreehint *fh)
{
    DeviceState *dev = DEVICE(fh);

    return dev->id ? dev : qdev_get_parent_bus(dev)->parent;
}

void freehint_notify_config(VirtIOFreehint *fh)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);

    fh->config_changed = !fh->running;
    if (fh->running) {
        virtio_notify_config(vdev);
    } else {
        /* A driver that is reading several fields reads them again. */
        vdev->generation++;
    }
}

uint64_t freehint_age_ms(int64_t since_ms)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - since_ms;
}

/* Fields that depend on a feature come after those that always exist. */
static const VirtIOFeature freehint_feature_sizes[] = {
    { .flags = 1ull << VIRTIO_FREEHINT_F_FLUSH,
      .end = endof(struct virtio_freehint_config, flush_timeout_ms) },
    { .flags = 1ull << VIRTIO_FREEHINT_F_LAZY,
      .end = sizeof(struct virtio_freehint_config) },
    { }
};

static const VirtIOConfigSizeParams freehint_config_size = {
    .min_size = endof(struct virtio_freehint_config, driver_status),
    .max_size = sizeof(struct virtio_freehint_config),
    .feature_sizes = freehint_feature_sizes,
};

static uint64_t freehint_get_features(VirtIODevice *vdev,
                                             uint64_t features, Error **errp)
{
    /* PCI functions make sure of it; on virtio-mmio, it depends on the bus. */
    if (!virtio_has_feature(features, VIRTIO_F_VERSION_1)) {
        error_setg(errp, "virtio-freehint needs virtio 1, which this bus does"
                   " not offer; for virtio-mmio, set force-legacy=off");
        return 0;
    }
    return features | VIRTIO_FREEHINT(vdev)->host_features;
}

static void freehint_get_config(VirtIODevice *vdev, uint8_t *data)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);
    struct virtio_freehint_config config = {
        .granule = cpu_to_le64(fh->granule),
        .max_ranges = cpu_to_le32(fh->max_ranges),
        .state = cpu_to_le32(fh->state),
        .reason = cpu_to_le32(freehint_guest_reason(fh)),
        .rehint_epoch = cpu_to_le32(fh->rehint_epoch),
        .delay_ms = cpu_to_le32(fh->delay_ms),
        .min_age_ms = cpu_to_le32(fh->min_age_ms),
        .driver_status = cpu_to_le32(fh->driver_status),
        .flush_id = cpu_to_le32(fh->flush.id),
        .flush_flags = cpu_to_le32(fh->flush.flags),
        .flush_timeout_ms = cpu_to_le32(fh->flush.timeout_ms),
        .lazy = cpu_to_le32(fh->lazy),
    };

    memcpy(data, &config, vdev->config_len);
}

static void freehint_set_config(VirtIODevice *vdev, const uint8_t *data)
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
 * driver still want its buffers back, once it runs again.
 */
static VirtIOFreehintStatusResult
freehint_set_status(VirtIODevice *vdev, uint8_t status)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->running = virtio_device_should_start(vdev, status);
    if (fh->running) {
        qemu_bh_schedule(fh->bh);
    } else {
        freehint_drain(fh, !vdev->vm_running);
        freehint_flush_end(fh, vdev->vm_running ?
                                  FREEHINT_FLUSH_RESULT_RESET :
                                  FREEHINT_FLUSH_RESULT_STOPPED);
    }
    return VIRTIO_FREEHINT_STATUS_SET;
}

static void freehint_queue_reset(VirtIODevice *vdev, uint32_t index)
{
    /* The transport passes on whatever number the driver has selected. */
    if (index == VIRTIO_FREEHINT_VQ_HINT) {
        freehint_drain(VIRTIO_FREEHINT(vdev), false);
    }
}

static void freehint_reset(VirtIODevice *vdev)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    fh->driver_status = VIRTIO_FREEHINT_DRIVER_NOT_READY;
    fh->gauges_ms = -1;
    fh->config_changed = false;
    /* A write to any other field passes all of this to set_config(). */
    freehint_get_config(vdev, vdev->config);
}

/* Migration */

/*
 * What the driver was told migrates; policy (enabled, pacing) and counters
 * belong to the host that the VM runs on. The driver treats granule and maximum
 * as constants, so the destination adopts the source's if it can.
 */
typedef struct FreehintMigConstants {
    VirtIOFreehint *parent;
    uint64_t granule;
    uint32_t max_ranges;
} FreehintMigConstants;

static int freehint_mig_constants_pre_save(void *opaque)
{
    FreehintMigConstants *tmp = opaque;

    tmp->granule = tmp->parent->granule;
    tmp->max_ranges = tmp->parent->max_ranges;
    return 0;
}

static int freehint_mig_constants_post_load(void *opaque,
                                                   int version_id)
{
    const FreehintMigConstants *tmp = opaque;
    VirtIOFreehint *fh = tmp->parent;

    if (!is_power_of_2(tmp->granule) || tmp->granule < fh->granule_prop) {
        error_report("virtio-freehint: the source's granule 0x%" PRIx64
                     " is not a power of two that is at least this host's"
                     " 0x%" PRIx64, tmp->granule, fh->granule_prop);
        return -EINVAL;
    }
    if (!tmp->max_ranges || tmp->max_ranges > FREEHINT_MAX_RANGES) {
        error_report("virtio-freehint: the source takes %" PRIu32 " ranges in"
                     " a hint, this host 1 to %d", tmp->max_ranges,
                     FREEHINT_MAX_RANGES);
        return -EINVAL;
    }
    fh->granule = tmp->granule;
    fh->max_ranges = tmp->max_ranges;
    return 0;
}

static const VMStateDescription vmstate_freehint_constants = {
    .name = "virtio-freehint-device/constants",
    .pre_save = freehint_mig_constants_pre_save,
    .post_load = freehint_mig_constants_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64(granule, FreehintMigConstants),
        VMSTATE_UINT32(max_ranges, FreehintMigConstants),
        VMSTATE_END_OF_LIST()
    },
};

static int freehint_pre_save(void *opaque)
{
    VirtIOFreehint *fh = opaque;

    /* The VM has stopped: a message that is not back now never comes back. */
    assert(QTAILQ_EMPTY(&fh->hints));
    assert(!fh->flush.pending);
    return 0;
}

static int freehint_pre_load(void *opaque)
{
    VirtIOFreehint *fh = opaque;

    /* What a source leaves out has its initial value. */
    fh->flush.id = 0;
    fh->flush.flags = 0;
    fh->flush.timeout_ms = 0;
    return 0;
}

static int freehint_post_load(void *opaque, int version_id)
{
    VirtIOFreehint *fh = opaque;

    /* Memory that was hinted before may be populated here. */
    fh->rehint_epoch++;
    qatomic_set(&fh->epoch_owed, false);
    fh->config_changed = true;
    return 0;
}

/*
 * The ID keeps counting on the destination, and when an earlier state is
 * loaded: whoever waits for an event knows a flush by its ID. The request
 * migrates with it, because the driver may be about to read it; but nobody
 * waits for its end any more.
 */
static bool freehint_flush_needed(void *opaque)
{
    const VirtIOFreehint *fh = opaque;

    return fh->flush.id;
}

static int freehint_flush_post_load(void *opaque, int version_id)
{
    FreehintFlushState *flush = &((VirtIOFreehint *)opaque)->flush;

    if (!flush->id || flush->flags & ~VIRTIO_FREEHINT_FLUSH_F_COMPACT ||
        !flush->timeout_ms ||
        flush->timeout_ms > FREEHINT_MAX_FLUSH_MS) {
        error_report("virtio-freehint: the source's flush %" PRIu32 " with"
                     " flags 0x%" PRIx32 " and %" PRIu32 " ms is not one that"
                     " this host could have begun", flush->id, flush->flags,
                     flush->timeout_ms);
        return -EINVAL;
    }
    flush->last_id = MAX(flush->last_id, flush->id);
    return 0;
}

static const VMStateDescription vmstate_freehint_flush = {
    .name = "virtio-freehint-device/flush",
    .minimum_version_id = 1,
    .version_id = 1,
    .needed = freehint_flush_needed,
    .post_load = freehint_flush_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(flush.id, VirtIOFreehint),
        VMSTATE_UINT32(flush.flags, VirtIOFreehint),
        VMSTATE_UINT32(flush.timeout_ms, VirtIOFreehint),
        VMSTATE_END_OF_LIST()
    },
};

static const VMStateDescription vmstate_freehint_device = {
    .name = "virtio-freehint-device",
    .minimum_version_id = 1,
    .version_id = 1,
    .pre_save = freehint_pre_save,
    .pre_load = freehint_pre_load,
    .post_load = freehint_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_WITH_TMP(VirtIOFreehint, FreehintMigConstants,
                         vmstate_freehint_constants),
        VMSTATE_UINT32(rehint_epoch, VirtIOFreehint),
        VMSTATE_UINT32(driver_status, VirtIOFreehint),
        VMSTATE_END_OF_LIST()
    },
    .subsections = (const VMStateDescription * const []) {
        &vmstate_freehint_flush,
        NULL
    },
};
static const VMStateDescription vmstate_freehint = {
    .name = "virtio-freehint",
    .minimum_version_id = 1,
    .version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_VIRTIO_DEVICE,
        VMSTATE_END_OF_LIST()
    },
};

/* Life cycle */

static void freehint_answer_timer(void *opaque)
{
    qemu_bh_schedule(((VirtIOFreehint *)opaque)->bh);
}

static bool freehint_check_machine(VirtIOFreehint *fh, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);
    bool ambiguous = false;

    /*
     * Other accelerators map guest memory on demand, like Xen, or pin it
     * without announcing that, like MSHV.
     */
    if (!kvm_enabled() && !tcg_enabled() && !qtest_enabled()) {
        error_setg(errp, "virtio-freehint supports the accelerators kvm and"
                   " tcg");
        return false;
    }
    /* Ranges are guest-physical addresses, whatever an IOMMU maps. */
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

static bool freehint_init_granule(VirtIOFreehint *fh, Error **errp)
{
    if (!fh->granule_prop) {
        fh->granule_prop = freehint_default_granule(fh);
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

static bool freehint_check_properties(VirtIOFreehint *fh, Error **errp)
{
    const FreehintSettings settings = {
        .has_delay_ms = true,
        .delay_ms = fh->delay_ms,
        .has_min_age_ms = true,
        .min_age_ms = fh->min_age_ms,
        .has_rate_limit = true,
        .rate_limit = fh->rate_limit,
    };

    return freehint_check_settings(&settings, errp);
}

static void freehint_device_realize(DeviceState *dev, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);

    if (!freehint_check_properties(fh, errp) ||
        !freehint_check_machine(fh, errp) ||
        !freehint_init_granule(fh, errp)) {
        return;
    }

    virtio_init(vdev, VIRTIO_ID_FREEHINT,
                virtio_get_config_size(&freehint_config_size,
                                       fh->host_features));
    fh->hintq = virtio_add_queue(vdev, FREEHINT_QUEUE_SIZE,
                                 freehint_handle_hintq);
    fh->bh = virtio_bh_io_new_guarded(dev, freehint_bh, fh);
    QTAILQ_INIT(&fh->hints);
    fh->answer_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                    freehint_answer_timer, fh);
    fh->max_ranges = FREEHINT_MAX_RANGES;
    fh->last_hint_ms = -1;
    freehint_monitor_init(fh);
    freehint_ram_init(fh);
    freehint_policy_init(fh);
}

static void freehint_device_unrealize(DeviceState *dev)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(dev);
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);

    fh->running = false;
    freehint_drain(fh, false);
    freehint_policy_cleanup(fh);
    freehint_monitor_cleanup(fh);
    freehint_ram_cleanup(fh);
    timer_free(fh->answer_timer);
    qemu_bh_delete(fh->bh);
    virtio_delete_queue(fh->hintq);
    virtio_cleanup(vdev);
}

static void freehint_visit_mode(Object *obj, Visitor *v, const char *name,
                                void *opaque, Error **errp)
{
    visit_type_FreehintDiscardMode(v, name, object_field_prop_ptr(obj, opaque),
                                   errp);
}

static const PropertyInfo freehint_prop_mode = {
    .type = "FreehintDiscardMode",
    .description = "when the host takes memory that is discarded: at once"
                   " (drop), when it runs short (lazy), or at once unless the"
                   " guest may want it back soon (auto)",
    .enum_table = &FreehintDiscardMode_lookup,
    .get = freehint_visit_mode,
    .set = freehint_visit_mode,
};

/* freehint-set can change the first ones while the VM runs. */
static const Property freehint_properties[] = {
    DEFINE_PROP_BOOL("enabled", VirtIOFreehint, enabled, true),
    DEFINE_PROP_UINT32("delay-ms", VirtIOFreehint, delay_ms, 0),
    DEFINE_PROP_UINT32("min-age-ms", VirtIOFreehint, min_age_ms, 100),
    DEFINE_PROP_SIZE("rate-limit", VirtIOFreehint, rate_limit, 0),
    DEFINE_PROP("discard", VirtIOFreehint, discard_mode, freehint_prop_mode,
                FreehintDiscardMode),
    DEFINE_PROP_BOOL("assume-vhost-user-safe", VirtIOFreehint,
                     assume_vhost_user_safe, false),
    DEFINE_PROP_BIT64("flush", VirtIOFreehint, host_features,
                      VIRTIO_FREEHINT_F_FLUSH, true),
    DEFINE_PROP_BIT64("lazy-hints", VirtIOFreehint, host_features,
                      VIRTIO_FREEHINT_F_LAZY, true),
    DEFINE_PROP_BOOL("discard-file-backed", VirtIOFreehint,
                     discard_file_backed, false),
    DEFINE_PROP_BOOL("discard-reserved", VirtIOFreehint, discard_reserved,
                     false),
    DEFINE_PROP_SIZE("x-granule", VirtIOFreehint, granule_prop, 0),
};

static void freehint_class_init(ObjectClass *klass,
                                VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);
    VirtIOFreehintClass *fc = VIRTIO_FREEHINT_CLASS(klass);

    device_class_set_props(dc, freehint_properties);
    dc->desc = "virtio free memory hints";
    dc->vmsd = &vmstate_freehint;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);

    vdc->realize = freehint_device_realize;
    vdc->unrealize = freehint_device_unrealize;
    vdc->reset = freehint_reset;
    vdc->get_features = freehint_get_features;
    vdc->get_config = freehint_get_config;
    vdc->set_config = freehint_set_config;
    vdc->set_status = freehint_set_status;
    vdc->queue_reset = freehint_queue_reset;
    vdc->vmsd = &vmstate_freehint_device;
    fc->use = freehint_use;
    fc->discard = freehint_discard;
}

static const TypeInfo freehint_info = {
    .name = TYPE_VIRTIO_FREEHINT,
    .parent = TYPE_VIRTIO_DEVICE,
    .instance_size = sizeof(VirtIOFreehint),
    .class_size = sizeof(VirtIOFreehintClass),
    .class_init = freehint_class_init,
};

static void freehint_register_types(void)
{
    type_register_static(&freehint_info);
}

type_init(freehint_register_types)
