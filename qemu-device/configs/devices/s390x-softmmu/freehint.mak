# SPDX-License-Identifier: GPL-2.0-or-later
#
# What shows that the device builds and starts, and no more. For
# configure --without-default-devices --with-devices-s390x=freehint
CONFIG_S390_CCW_VIRTIO=y

# The device, as a channel device and on PCI
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_FREEHINT=y
CONFIG_VIRTIO_BLK=y
