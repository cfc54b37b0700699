/*
 * Virtio free memory hint device: the PCI function
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-freehint.h"
#include "hw/virtio/virtio-pci.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qom/object.h"

#define TYPE_VIRTIO_FREEHINT_PCI "virtio-freehint-pci-base"
OBJECT_DECLARE_SIMPLE_TYPE(VirtIOFreehintPCI, VIRTIO_FREEHINT_PCI)

struct VirtIOFreehintPCI {
    VirtIOPCIProxy parent_obj;
    VirtIOFreehint vdev;
};

static const Property virtio_freehint_pci_properties[] = {
    DEFINE_PROP_BIT("ioeventfd", VirtIOPCIProxy, flags,
                    VIRTIO_PCI_FLAG_USE_IOEVENTFD_BIT, true),
    DEFINE_PROP_UINT32("vectors", VirtIOPCIProxy, nvectors,
                       DEV_NVECTORS_UNSPECIFIED),
};

static void virtio_freehint_pci_realize(VirtIOPCIProxy *vpci_dev, Error **errp)
{
    VirtIOFreehintPCI *dev = VIRTIO_FREEHINT_PCI(vpci_dev);

    /* One for config changes, one for the queue. */
    if (vpci_dev->nvectors == DEV_NVECTORS_UNSPECIFIED) {
        vpci_dev->nvectors = 2;
    }
    virtio_pci_force_virtio_1(vpci_dev);
    qdev_realize(DEVICE(&dev->vdev), BUS(&vpci_dev->bus), errp);
}

static void virtio_freehint_pci_class_init(ObjectClass *klass,
                                           VirtIOFreehintClassData *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    VirtioPCIClass *k = VIRTIO_PCI_CLASS(klass);
    PCIDeviceClass *pcidev_k = PCI_DEVICE_CLASS(klass);

    k->realize = virtio_freehint_pci_realize;
    pcidev_k->revision = VIRTIO_PCI_ABI_VERSION;
    pcidev_k->class_id = PCI_CLASS_OTHERS;
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    dc->desc = "virtio free memory hints";
    device_class_set_props(dc, virtio_freehint_pci_properties);
}

static void virtio_freehint_pci_instance_init(Object *obj)
{
    VirtIOFreehintPCI *dev = VIRTIO_FREEHINT_PCI(obj);

    /* Makes all properties of the device properties of the function, too. */
    virtio_instance_init_common(obj, &dev->vdev, sizeof(dev->vdev),
                                TYPE_VIRTIO_FREEHINT);
}

static const VirtioPCIDeviceTypeInfo virtio_freehint_pci_info = {
    .base_name = TYPE_VIRTIO_FREEHINT_PCI,
    .generic_name = "virtio-freehint-pci",
    .instance_size = sizeof(VirtIOFreehintPCI),
    .instance_init = virtio_freehint_pci_instance_init,
    .class_init = virtio_freehint_pci_class_init,
};

static void virtio_freehint_pci_register(void)
{
    virtio_pci_types_register(&virtio_freehint_pci_info);
}

type_init(virtio_freehint_pci_register)
