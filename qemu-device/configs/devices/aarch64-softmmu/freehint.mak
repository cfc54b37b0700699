# SPDX-License-Identifier: GPL-2.0-or-later
#
# What the device's tests run on, and no more. For
# configure --without-default-devices --with-devices-aarch64=freehint
CONFIG_ARM_VIRT=y

# The device, and what it may meet
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_FREEHINT=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_RNG=y

# It can be slow, or misbehave, on purpose; not for production
CONFIG_VIRTIO_FREEHINT_TESTDEV=y

# Vetoes
CONFIG_TEST_DEVICES=y
CONFIG_DISCARD_TESTDEV=y
