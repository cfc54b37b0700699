/*
 * Virtio free memory hint device: the channel device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-freehint.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qom/object.h"
#include "virtio-ccw.h"

#define TYPE_VIRTIO_FREEHINT_CCW "virtio-freehint-ccw"
OBJECT_DECLARE_SIMPLE_TYPE(VirtIOFreehintCcw, VIRTIO_FREEHINT_CCW)

struct VirtIOFreehintCcw {
    VirtioCcwDevice parent_obj;
    VirtIOFreehint vdev;
};

static const Property virtio_freehint_ccw_properties[] = {
    DEFINE_PROP_BIT("ioeventfd", VirtioCcwDevice, flags,
                    VIRTIO_CCW_FLAG_USE_IOEVENTFD_BIT, true),
    DEFINE_PROP_UINT32("max_revision", VirtioCcwDevice, max_rev,
                       VIRTIO_CCW_MAX_REV),
};

static void virtio_freehint_ccw_realize(VirtioCcwDevice *ccw_dev, Error **errp)
{
    VirtIOFreehintCcw *dev = VIRTIO_FREEHINT_CCW(ccw_dev);

    qdev_realize(DEVICE(&dev->vdev), BUS(&ccw_dev->bus), errp);
}

static void virtio_freehint_ccw_class_init(ObjectClass *klass,
                                           VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtIOCCWDeviceClass *k = VIRTIO_CCW_DEVICE_CLASS(klass);

    k->realize = virtio_freehint_ccw_realize;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    dc->desc = "virtio free memory hints";
    device_class_set_props(dc, virtio_freehint_ccw_properties);
}

static void virtio_freehint_ccw_instance_init(Object *obj)
{
    VirtIOFreehintCcw *dev = VIRTIO_FREEHINT_CCW(obj);

    /* There is no legacy device of this kind: it is virtio 1, or nothing. */
    VIRTIO_CCW_DEVICE(obj)->force_revision_1 = true;
    virtio_instance_init_common(obj, &dev->vdev, sizeof(dev->vdev),
                                TYPE_VIRTIO_FREEHINT);
}

static const TypeInfo virtio_freehint_ccw_info = {
    .name = TYPE_VIRTIO_FREEHINT_CCW,
    .parent = TYPE_VIRTIO_CCW_DEVICE,
    .instance_size = sizeof(VirtIOFreehintCcw),
    .instance_init = virtio_freehint_ccw_instance_init,
    .class_init = virtio_freehint_ccw_class_init,
};

static void virtio_freehint_ccw_register(void)
{
    type_register_static(&virtio_freehint_ccw_info);
}

type_init(virtio_freehint_ccw_register)
