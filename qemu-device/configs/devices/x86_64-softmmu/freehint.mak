# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the guests and the tests of virtio-freehint need, and no more. For
# configure --without-default-devices --with-devices-x86_64=freehint
CONFIG_Q35=y
CONFIG_I440FX=y
CONFIG_MICROVM=y

# The device, and what a guest boots with
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_FREEHINT=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_RNG=y
CONFIG_ISA_DEBUG=y

# It can be slow, or misbehave, on purpose; not for production
CONFIG_VIRTIO_FREEHINT_TESTDEV=y

# A slot that the device can be taken out of
CONFIG_PCIE_PORT=y

# The peer, for comparisons
CONFIG_VIRTIO_BALLOON=y

# Memory that may not be discarded, or only in part
CONFIG_VIRTIO_MEM=y
CONFIG_VIRTIO_PMEM=y
CONFIG_NVDIMM=y
CONFIG_IVSHMEM_DEVICE=y
CONFIG_VGA_PCI=y

# Vetoes
CONFIG_VFIO_PCI=y
CONFIG_VTD=y
CONFIG_VHOST_USER_BLK=y
CONFIG_VIRTIO_SCSI=y
CONFIG_VHOST_SCSI=y

# What QEMU's own tests expect of any build with these machines
CONFIG_TEST_DEVICES=y
CONFIG_DISCARD_TESTDEV=y
CONFIG_EDU=y
CONFIG_PCI_BRIDGE=y
CONFIG_PCIE_PCI_BRIDGE=y
CONFIG_USB_HID=y
