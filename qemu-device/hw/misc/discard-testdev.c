/*
 * Test device that disables discards of RAM
 *
 * Uses the discard API as, e.g., VFIO does, so that the effect on other devices
 * can be tested without hardware. Such a device relies on memory to stay where
 * it is once discards are disabled: if dma-addr is set, this one writes to a
 * page then, in place of a device that does DMA.
 *
 * With "flapping", it disables and enables discards in turn, as fast as the
 * main loop goes round: there is always a change to act on. With "blink", it
 * does so once, and holds the main loop meanwhile: only other threads notice.
 *
 * It can make migrations look as if they went over RDMA, which needs hardware.
 * It can keep a thread of the main loop's pool busy, or the main loop itself,
 * so that others have to wait.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/thread-pool.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/virtio-freehint-compat.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qom/object.h"

#define TYPE_DISCARD_TESTDEV "discard-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(DiscardTestdev, DISCARD_TESTDEV)

#define DISCARD_TESTDEV_DMA_BYTE 0xd7

#define DISCARD_TESTDEV_BLINK_US (2 * 1000 * 1000)

struct DiscardTestdev {
    DeviceState parent_obj;

    /* Which of the disable counters this device holds. */
    bool disabled;
    bool uncoordinated_disabled;
    /* Acts for a vhost back end that does not mark what it writes dirty. */
    bool lazy_forbidden;
    /* Guest-physical address of the page to write to, 0 for none. */
    uint64_t dma_addr;
    /* Schedules itself; NULL unless it is flapping. */
    QEMUBH *flap_bh;
    /* Added while migrations are to look as if they went over RDMA. */
    NotifierWithReturn rdma_notifier;
    /* A thread of the pool waits for this to be false. Atomic. */
    bool pool_busy;
};

static void discard_testdev_write_page(uint64_t addr, Error **errp)
{
    uint8_t page[4096];

    memset(page, DISCARD_TESTDEV_DMA_BYTE, sizeof(page));
    if (address_space_write(&address_space_memory, addr,
                            MEMTXATTRS_UNSPECIFIED, page, sizeof(page)) !=
        MEMTX_OK) {
        error_setg(errp, "cannot write to 0x%" PRIx64, addr);
    }
}

static void discard_testdev_hold(DiscardTestdev *dev, bool *held, bool value,
                                 int (*disable)(bool state), Error **errp)
{
    if (*held == value) {
        return;
    }
    if (disable(value)) {
        error_setg(errp, "another device requires discards");
        return;
    }
    *held = value;
    if (value && dev->dma_addr) {
        discard_testdev_write_page(dev->dma_addr, errp);
    }
}

static bool discard_testdev_get_disabled(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->disabled;
}

static void discard_testdev_set_disabled(Object *obj, bool value,
                                         Error **errp)
{
    DiscardTestdev *dev = DISCARD_TESTDEV(obj);

    discard_testdev_hold(dev, &dev->disabled, value, ram_block_discard_disable,
                         errp);
}

/* As in VFIO devices: whether this one leaves discards enabled. */
static bool discard_testdev_get_allowed(Object *obj, Error **errp)
{
    return !DISCARD_TESTDEV(obj)->disabled;
}

static bool discard_testdev_get_uncoordinated(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->uncoordinated_disabled;
}

static void discard_testdev_set_uncoordinated(Object *obj, bool value,
                                              Error **errp)
{
    DiscardTestdev *dev = DISCARD_TESTDEV(obj);

    discard_testdev_hold(dev, &dev->uncoordinated_disabled, value,
                         ram_block_uncoordinated_discard_disable, errp);
}

static bool discard_testdev_get_lazy_forbidden(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->lazy_forbidden;
}

static void discard_testdev_set_lazy_forbidden(Object *obj, bool value,
                                               Error **errp)
{
    DiscardTestdev *dev = DISCARD_TESTDEV(obj);

    if (value && !dev->lazy_forbidden && vhost_allowed_lazy_discards()) {
        error_setg(errp, "guest memory may have been freed lazily");
        return;
    }
    if (dev->lazy_forbidden != value) {
        dev->lazy_forbidden = value;
        vhost_forbid_lazy_discards(value);
    }
}

static bool discard_testdev_get_pulse(Object *obj, Error **errp)
{
    return false;
}

/*
 * Acts like a VFIO device that cannot pin all of memory: it has populated some,
 * and is gone before the main loop goes on.
 */
static void discard_testdev_set_pulse(Object *obj, bool value, Error **errp)
{
    ERRP_GUARD();

    if (!value) {
        return;
    }
    discard_testdev_set_disabled(obj, true, errp);
    if (!*errp) {
        discard_testdev_set_disabled(obj, false, errp);
    }
}

static void discard_testdev_set_blink(Object *obj, bool value, Error **errp)
{
    discard_testdev_set_disabled(obj, true, errp);
    g_usleep(DISCARD_TESTDEV_BLINK_US);
    discard_testdev_set_disabled(obj, false, errp);
}

static void discard_testdev_flap(void *opaque)
{
    DiscardTestdev *dev = opaque;

    discard_testdev_set_disabled(OBJECT(dev), !dev->disabled, &error_abort);
    qemu_bh_schedule(dev->flap_bh);
}

static bool discard_testdev_get_flapping(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->flap_bh;
}

static void discard_testdev_set_flapping(Object *obj, bool value, Error **errp)
{
    DiscardTestdev *dev = DISCARD_TESTDEV(obj);

    if (value && !dev->flap_bh) {
        dev->flap_bh = qemu_bh_new_guarded(discard_testdev_flap, dev,
                                           &DEVICE(dev)->mem_reentrancy_guard);
        qemu_bh_schedule(dev->flap_bh);
    } else if (!value && dev->flap_bh) {
        qemu_bh_delete(dev->flap_bh);
        dev->flap_bh = NULL;
    }
}

/* RDMA sets it here, too: after the state of the last one was cleared. */
static int discard_testdev_pretend_rdma(NotifierWithReturn *notifier,
                                        MigrationEvent *event, Error **errp)
{
    if (event->type == MIG_EVENT_PRECOPY_SETUP) {
        migrate_get_current()->rdma_migration = true;
    }
    return 0;
}

static bool discard_testdev_get_rdma(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->rdma_notifier.notify;
}

static void discard_testdev_set_rdma(Object *obj, bool value, Error **errp)
{
    NotifierWithReturn *notifier = &DISCARD_TESTDEV(obj)->rdma_notifier;

    if (value && !notifier->notify) {
        migration_add_notifier(notifier, discard_testdev_pretend_rdma);
    } else if (!value && notifier->notify) {
        migration_remove_notifier(notifier);
    }
}

static void discard_testdev_get_hold_bql(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    uint32_t ms = 0;

    visit_type_uint32(v, name, &ms, errp);
}

/* Acts like code that prepares a lot of memory, or waits for storage. */
static void discard_testdev_set_hold_bql(Object *obj, Visitor *v,
                                         const char *name, void *opaque,
                                         Error **errp)
{
    uint32_t ms;

    if (visit_type_uint32(v, name, &ms, errp)) {
        g_usleep(ms * 1000ull);
    }
}

static int discard_testdev_keep_busy(void *opaque)
{
    DiscardTestdev *dev = opaque;

    while (qatomic_read(&dev->pool_busy)) {
        g_usleep(1000);
    }
    return 0;
}

static void discard_testdev_busy_ended(void *opaque, int ret)
{
    object_unref(OBJECT(opaque));
}

static bool discard_testdev_get_pool_busy(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->pool_busy;
}

static void discard_testdev_set_pool_busy(Object *obj, bool value,
                                          Error **errp)
{
    DiscardTestdev *dev = DISCARD_TESTDEV(obj);
    const bool begins = value && !dev->pool_busy;

    qatomic_set(&dev->pool_busy, value);
    if (begins) {
        object_ref(obj);
        thread_pool_submit_aio(discard_testdev_keep_busy, dev,
                               discard_testdev_busy_ended, dev);
    }
}

static void discard_testdev_finalize(Object *obj)
{
    discard_testdev_set_rdma(obj, false, &error_abort);
    discard_testdev_set_flapping(obj, false, &error_abort);
    discard_testdev_set_disabled(obj, false, &error_abort);
    discard_testdev_set_uncoordinated(obj, false, &error_abort);
    discard_testdev_set_lazy_forbidden(obj, false, &error_abort);
}

static const Property discard_testdev_properties[] = {
    DEFINE_PROP_UINT64("dma-addr", DiscardTestdev, dma_addr, 0),
};

static void discard_testdev_class_init(ObjectClass *klass,
                                       VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

    device_class_set_props(dc, discard_testdev_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    dc->desc = "disables discards of RAM, for tests";
    object_class_property_add_bool(klass, "disabled",
                                   discard_testdev_get_disabled,
                                   discard_testdev_set_disabled);
    object_class_property_set_description(klass, "disabled",
                                          "disable all discards");
    object_class_property_add_bool(klass, "x-balloon-allowed",
                                   discard_testdev_get_allowed, NULL);
    object_class_property_set_description(klass, "x-balloon-allowed",
                                          "whether it leaves discards alone,"
                                          " named as for VFIO");
    object_class_property_add_bool(klass, "uncoordinated-disabled",
                                   discard_testdev_get_uncoordinated,
                                   discard_testdev_set_uncoordinated);
    object_class_property_set_description(klass, "uncoordinated-disabled",
                                          "disable uncoordinated discards");
    object_class_property_add_bool(klass, "lazy-forbidden",
                                   discard_testdev_get_lazy_forbidden,
                                   discard_testdev_set_lazy_forbidden);
    object_class_property_set_description(klass, "lazy-forbidden",
                                          "forbid lazy discards, as vhost-scsi"
                                          " does");
    object_class_property_add_bool(klass, "pulse", discard_testdev_get_pulse,
                                   discard_testdev_set_pulse);
    object_class_property_set_description(klass, "pulse",
                                          "disable discards, and enable them"
                                          " at once");
    object_class_property_add_bool(klass, "flapping",
                                   discard_testdev_get_flapping,
                                   discard_testdev_set_flapping);
    object_class_property_set_description(klass, "flapping",
                                          "change 'disabled' all the time");
    object_class_property_add_bool(klass, "blink", NULL,
                                   discard_testdev_set_blink);
    object_class_property_set_description(klass, "blink",
                                          "disable discards for a moment in"
                                          " which nothing else runs");
    object_class_property_add_bool(klass, "rdma-migrations",
                                   discard_testdev_get_rdma,
                                   discard_testdev_set_rdma);
    object_class_property_set_description(klass, "rdma-migrations",
                                          "have migrations look as if they"
                                          " went over RDMA");
    object_class_property_add(klass, "hold-bql-ms", "uint32",
                              discard_testdev_get_hold_bql,
                              discard_testdev_set_hold_bql, NULL, NULL);
    object_class_property_set_description(klass, "hold-bql-ms",
                                          "keep the main loop, and the BQL, for"
                                          " so long");
    object_class_property_add_bool(klass, "pool-busy",
                                   discard_testdev_get_pool_busy,
                                   discard_testdev_set_pool_busy);
    object_class_property_set_description(klass, "pool-busy",
                                          "keep a thread of the main loop's"
                                          " pool busy");
}

/*
 * "-accel discard-test" is "-accel qtest" under an unknown name, in place of an
 * accelerator that is yet to be written.
 */
static bool discard_test_accel_allowed;

static void discard_test_accel_class_init(ObjectClass *klass,
                                          VirtIOFreehintClassData *data)
{
    ACCEL_CLASS(klass)->allowed = &discard_test_accel_allowed;
}

static const TypeInfo discard_test_accel_info = {
    .name = ACCEL_CLASS_NAME("discard-test"),
    .parent = ACCEL_CLASS_NAME("qtest"),
    .class_init = discard_test_accel_class_init,
};

static const TypeInfo discard_test_accel_ops_info = {
    .name = "discard-test-accel-ops",
    .parent = "qtest-accel-ops",
    .abstract = true,
};

static const TypeInfo discard_testdev_info = {
    .name = TYPE_DISCARD_TESTDEV,
    .parent = TYPE_DEVICE,
    .instance_size = sizeof(DiscardTestdev),
    .instance_finalize = discard_testdev_finalize,
    .class_init = discard_testdev_class_init,
};

static void discard_testdev_register_types(void)
{
    type_register_static(&discard_testdev_info);
    type_register_static(&discard_test_accel_info);
    type_register_static(&discard_test_accel_ops_info);
}

type_init(discard_testdev_register_types)
