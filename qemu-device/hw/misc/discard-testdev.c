/*
 * Test device that disables discards of RAM
 *
 * Does what, e.g., VFIO does with the discard API, and nothing else, so that
 * the effect on other devices can be tested without hardware.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-core.h"
#include "hw/virtio/virtio-freehint-compat.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qom/object.h"

#define TYPE_DISCARD_TESTDEV "discard-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(DiscardTestdev, DISCARD_TESTDEV)

struct DiscardTestdev {
    DeviceState parent_obj;

    /* Which of the disable counters this device holds. */
    bool disabled;
    bool uncoordinated_disabled;
};

static void set_disabled(bool *held, bool value, int (*disable)(bool state),
                         Error **errp)
{
    if (*held == value) {
        return;
    }
    if (disable(value)) {
        error_setg(errp, "another device requires discards");
        return;
    }
    *held = value;
}

static bool discard_testdev_get_disabled(Object *obj, Error **errp)
{
    return DISCARD_TESTDEV(obj)->disabled;
}

static void discard_testdev_set_disabled(Object *obj, bool value,
                                         Error **errp)
{
    set_disabled(&DISCARD_TESTDEV(obj)->disabled, value,
                 ram_block_discard_disable, errp);
}

/* As VFIO devices have it: whether this one leaves discards alone. */
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
    set_disabled(&DISCARD_TESTDEV(obj)->uncoordinated_disabled, value,
                 ram_block_uncoordinated_discard_disable, errp);
}

static void discard_testdev_finalize(Object *obj)
{
    discard_testdev_set_disabled(obj, false, &error_abort);
    discard_testdev_set_uncoordinated(obj, false, &error_abort);
}

static void discard_testdev_class_init(ObjectClass *klass,
                                       VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);

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
}

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
}

type_init(discard_testdev_register_types)
