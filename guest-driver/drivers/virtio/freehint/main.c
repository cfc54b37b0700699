// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: the life of a device. The driver carries hints of free
 * memory from mm/freehint/ to the device, and answers back. See
 * Documentation/mm/freehint.rst.
 */
#include <linux/cleanup.h>
#include <linux/crash_dump.h>
#include <linux/kthread.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/reboot.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#define CREATE_TRACE_POINTS
#include "trace.h"
#include "vfh.h"

/* A message takes one descriptor for what the device reads, one for its answer. */
#define VFH_DESCRIPTORS		2

/* Messages that are no hints: gauges, and the answer to a flush. */
#define VFH_OTHER_MSGS		2

/* A smaller granule would cost more in state and calls than it gains. */
#define VFH_MIN_GRANULE		max(PAGE_SIZE, SZ_64K)

/* There is only one device, as the guest has one allocator. */
static struct vfh *vfh_device;
static DEFINE_MUTEX(vfh_device_lock);

static const struct vfh_source vfh_buddy = {
	.engine = freehint_engine,
	.refusal = freehint_refusal,
	.start = freehint_start,
	.stop = freehint_stop,
	.age = freehint_age,
#ifdef CONFIG_VIRTIO_FREEHINT_PACE
	.settle = freehint_settle,
#endif
	.collect = freehint_collect,
	.give_back = freehint_return,
	.lost = freehint_lost,
	.rehint = freehint_rehint,
	.get_stats = freehint_get_stats,
	.worth_a_look = freehint_worth_a_look,
#ifdef CONFIG_VIRTIO_FREEHINT_FLUSH
	.gather = freehint_gather,
#endif
#ifdef CONFIG_VIRTIO_FREEHINT_COMPACT
	.evacuate = freehint_evacuate,
	.get_load = freehint_get_load,
#endif
};

#ifdef CONFIG_FREEHINT_DRAIN
static bool vfh_drain = true;

static int vfh_set_drain(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_bool(val, kp);

	if (!ret)
		freehint_set_drain(vfh_drain);
	return ret;
}

static const struct kernel_param_ops vfh_drain_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = vfh_set_drain,
	.get = param_get_bool,
};

module_param_cb(drain, &vfh_drain_ops, &vfh_drain, 0644);
MODULE_PARM_DESC(drain, "Drain a zone's per-CPU lists once after much memory was freed");
#endif

/**
 * vfh_bounds_changed - a parameter that bounds the pace was written
 *
 * Context: process context. When this returns, it is in effect.
 */
void vfh_bounds_changed(void)
{
	guard(mutex)(&vfh_device_lock);
	if (!vfh_device)
		return;
	set_bit(VFH_EVENT_CONFIG, &vfh_device->events);
	vfh_wish(vfh_device, &vfh_device->allowed, vfh_device->allowed);
}

/* The guest's own bounds, whatever the device asks for. */
static unsigned int min_age_floor_ms = 20;
static unsigned int min_age_ceiling_ms = 60000;

static int vfh_set_ms(const char *val, const struct kernel_param *kp)
{
	int ret = param_set_uint(val, kp);

	if (!ret)
		vfh_bounds_changed();
	return ret;
}

static const struct kernel_param_ops vfh_ms_ops = {
	.set = vfh_set_ms,
	.get = param_get_uint,
};

module_param_cb(min_age_floor_ms, &vfh_ms_ops, &min_age_floor_ms, 0644);
MODULE_PARM_DESC(min_age_floor_ms, "Memory stays free for at least this long before it is hinted");
module_param_cb(min_age_ceiling_ms, &vfh_ms_ops, &min_age_ceiling_ms, 0644);
MODULE_PARM_DESC(min_age_ceiling_ms, "The device may not ask that memory stay free for longer than this");

/*
 * Memory that is hinted lazily and used again costs next to nothing. But each hint has
 * its price, and a loop should not pay it over and over.
 */
#define VFH_EARLY_SHARE		4

/**
 * vfh_bound_config - keep what the device asks for within the guest's bounds
 * @config: as the device gave it
 */
void vfh_bound_config(struct vfh_config *config)
{
	u32 floor = READ_ONCE(min_age_floor_ms);
	u32 ceiling = max(floor, READ_ONCE(min_age_ceiling_ms));

	config->min_age_ms = clamp(config->min_age_ms, floor, ceiling);
	config->early_ms = max(config->min_age_ms / VFH_EARLY_SHARE, floor);
	config->delay_ms = min(config->delay_ms, ceiling);
}

static void vfh_hintq_callback(struct virtqueue *vq)
{
	virtqueue_disable_cb(vq);
	vfh_wake(vq->vdev->priv, VFH_EVENT_OTHER);
}

static void vfh_config_changed(struct virtio_device *vdev)
{
	vfh_wake(vdev->priv, VFH_EVENT_CONFIG);
}

static int vfh_find_vqs(struct vfh *fh)
{
	fh->vq = virtio_find_single_vq(fh->vdev, vfh_hintq_callback, "hintq");

	return PTR_ERR_OR_ZERO(fh->vq);
}

/* This driver does not answer a flush that was asked for before this. */
static void vfh_read_flush_id(struct vfh *fh)
{
	fh->config.flush_id = 0;
	if (IS_ENABLED(CONFIG_VIRTIO_FREEHINT_FLUSH))
		virtio_cread_le_feature(fh->vdev, VIRTIO_FREEHINT_F_FLUSH,
					struct virtio_freehint_config, flush_id,
					&fh->config.flush_id);
}

/* The state of a hibernated guest can come back in another VM. */
static bool vfh_limits_hold(struct vfh *fh)
{
	struct virtio_device *vdev = fh->vdev;
	u32 max_ranges;
	u64 granule;

	virtio_cread_le(vdev, struct virtio_freehint_config, granule, &granule);
	virtio_cread_le(vdev, struct virtio_freehint_config, max_ranges,
			&max_ranges);
	if (granule == fh->granule && max_ranges >= fh->max_ranges)
		return true;
	dev_err(&vdev->dev, "another granule, or hints of fewer ranges, than before, bind the driver again\n");
	return false;
}

static int vfh_read_limits(struct vfh *fh)
{
	struct virtio_device *vdev = fh->vdev;
	u32 max_ranges, nr_msgs;

	virtio_cread_le(vdev, struct virtio_freehint_config, granule,
			&fh->granule);
	virtio_cread_le(vdev, struct virtio_freehint_config, max_ranges,
			&max_ranges);
	if (!is_power_of_2(fh->granule)) {
		dev_err(&vdev->dev, "granule of %llu bytes is no power of two, fix the device\n",
			fh->granule);
		return -EINVAL;
	}
	if (!max_ranges) {
		dev_err(&vdev->dev, "the device takes hints of 0 ranges, fix the device\n");
		return -EINVAL;
	}
	fh->order = ilog2(max_t(u64, fh->granule, VFH_MIN_GRANULE)) - PAGE_SHIFT;
	fh->max_ranges = min(max_ranges, VFH_MAX_RANGES);
	nr_msgs = virtqueue_get_vring_size(fh->vq) / VFH_DESCRIPTORS;
	fh->nr_hints = clamp((int)nr_msgs - VFH_OTHER_MSGS, 1, VFH_MAX_HINTS);
	return 0;
}

/*
 * Reset and setting up again wait for the device, so they are not in the loop.
 */

static int vfh_negotiate(struct virtio_device *vdev)
{
	int ret;

	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_DRIVER);
	ret = vdev->config->finalize_features(vdev);
	if (ret)
		return ret;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return -ENODEV;
	return 0;
}

/* Leave a status for the operator; the reset has wiped the last one. */
static void vfh_tell_failed(struct vfh *fh)
{
	if (!vfh_negotiate(fh->vdev))
		fh->port->write_status(fh, VIRTIO_FREEHINT_DRIVER_FAILED);
	virtio_add_status(fh->vdev, VIRTIO_CONFIG_S_FAILED);
}

static void vfh_reset_work(struct work_struct *work)
{
	struct vfh *fh = container_of(work, struct vfh, reset_work);

	/* Waits until the device confirms. */
	virtio_reset_device(fh->vdev);
	if (!fh->port->is_gone(fh))
		vfh_tell_failed(fh);
	/* Pairs with vfh_await_reset(). */
	smp_store_release(&fh->is_reset, true);
	vfh_wake(fh, VFH_EVENT_OTHER);
}

static int vfh_set_up(struct vfh *fh)
{
	struct virtio_device *vdev = fh->vdev;
	int ret;

	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	ret = vfh_negotiate(vdev);
	if (ret)
		return ret;
	if (!vfh_limits_hold(fh))
		return -EINVAL;
	ret = vfh_find_vqs(fh);
	if (ret)
		return ret;
	vfh_read_flush_id(fh);
	virtio_device_ready(vdev);
	return 0;
}

static void vfh_revive_work(struct work_struct *work)
{
	struct vfh *fh = container_of(work, struct vfh, revive_work);
	int ret = vfh_set_up(fh);

	if (ret) {
		dev_err(&fh->vdev->dev, "cannot be set up again (%d), no more hints until the driver is bound again\n",
			ret);
		WRITE_ONCE(fh->hopeless, true);
		virtio_reset_device(fh->vdev);
		vfh_tell_failed(fh);
	} else {
		/* Pairs with vfh_set_up_again(). */
		smp_store_release(&fh->is_revived, true);
	}
	vfh_wake(fh, VFH_EVENT_OTHER);
}

/*
 * After this, nothing is in flight, and the device writes nothing any more. If it does
 * not even confirm a reset, this waits for it, as there is no way to take the rings away
 * from it.
 */
static void vfh_quiesce(struct vfh *fh)
{
	vfh_wish(fh, &fh->asleep, true);
	flush_work(&fh->revive_work);
	flush_work(&fh->reset_work);
	/* What was lost is back, now that the reset is confirmed. */
	vfh_wish(fh, &fh->asleep, true);
	vfh_flush_cancel(fh);
	vfh_compact_cancel(fh);
	if (!fh->port->is_gone(fh))
		virtio_reset_device(fh->vdev);
}

/*
 * A kernel that is started by kexec must not find its memory discarded on behalf of this
 * one. The bus resets its devices later: the loop must leave the device alone until then,
 * and not take that reset for a fault to recover from.
 */
static int vfh_reboot(struct notifier_block *nb, unsigned long action,
		      void *unused)
{
	guard(mutex)(&vfh_device_lock);
	if (vfh_device)
		vfh_wish(vfh_device, &vfh_device->asleep, true);
	return NOTIFY_DONE;
}

static struct notifier_block vfh_reboot_nb = {
	.notifier_call = vfh_reboot,
};

static bool vfh_claim(struct vfh *fh)
{
	guard(mutex)(&vfh_device_lock);
	if (vfh_device)
		return false;
	vfh_device = fh;
	return true;
}

static void vfh_release(void)
{
	guard(mutex)(&vfh_device_lock);
	vfh_device = NULL;
}

static int vfh_start_thread(struct vfh *fh)
{
	struct task_struct *thread = kthread_run(vfh_thread, fh, "kfreehintd");

	if (IS_ERR(thread))
		return PTR_ERR(thread);
	fh->thread = thread;
	return 0;
}

static int vfh_probe(struct virtio_device *vdev)
{
	struct vfh *fh;
	int ret;

	/* The memory that a dump is written from must not change. */
	if (is_kdump_kernel()) {
		dev_info(&vdev->dev, "not hinting free memory in a kdump kernel\n");
		return -ENODEV;
	}

	fh = kzalloc(sizeof(*fh), GFP_KERNEL);
	if (!fh)
		return -ENOMEM;
	vdev->priv = fh;
	fh->vdev = vdev;
	fh->source = &vfh_buddy;
	fh->port = &vfh_virtio_port;
	vfh_init(fh);
	INIT_WORK(&fh->reset_work, vfh_reset_work);
	INIT_WORK(&fh->revive_work, vfh_revive_work);

	ret = vfh_find_vqs(fh);
	if (ret)
		goto free_device;
	ret = vfh_read_limits(fh);
	if (ret)
		goto reset;
	ret = vfh_alloc_msgs(fh);
	if (ret)
		goto reset;

	vfh_read_flush_id(fh);
	virtio_device_ready(vdev);
	if (!vfh_claim(fh)) {
		dev_err(&vdev->dev, "there is another device already\n");
		ret = -EBUSY;
		goto reset;
	}
	ret = vfh_start_thread(fh);
	if (ret)
		goto release;
	vfh_debugfs_add(fh);
	/* From here on, its status is valid. */
	vfh_wish(fh, &fh->allowed, true);
	return 0;

release:
	vfh_release();
reset:
	/* Otherwise the next probe could not set up the queue. */
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	vfh_free_msgs(fh);
free_device:
	kfree(fh);
	return ret;
}

static void vfh_remove(struct virtio_device *vdev)
{
	struct vfh *fh = vdev->priv;

	vfh_debugfs_remove(fh);
	vfh_release();
	vfh_quiesce(fh);
	kthread_stop(fh->thread);
	vdev->config->del_vqs(vdev);
	vfh_free_msgs(fh);
	kfree(fh);
}

/*
 * Section "Feature bits". If the platform may keep memory from the device, the host must
 * not be told which memory is free.
 */
static int vfh_validate(struct virtio_device *vdev)
{
	if (__virtio_test_bit(vdev, VIRTIO_F_ACCESS_PLATFORM)) {
		dev_err(&vdev->dev, "the device offers VIRTIO_F_ACCESS_PLATFORM, which excludes hinting memory by address\n");
		return -EINVAL;
	}
	if (!__virtio_test_bit(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "the device does not offer VIRTIO_F_VERSION_1\n");
		return -EINVAL;
	}
	return 0;
}

#ifdef CONFIG_PM_SLEEP
static int vfh_freeze(struct virtio_device *vdev)
{
	vfh_quiesce(vdev->priv);
	vdev->config->del_vqs(vdev);
	return 0;
}

static int vfh_restore(struct virtio_device *vdev)
{
	struct vfh *fh = vdev->priv;
	int ret;

	ret = vfh_find_vqs(fh);
	if (ret)
		return ret;
	vfh_read_flush_id(fh);
	virtio_device_ready(vdev);
	if (fh->phase == VFH_HOPELESS || !vfh_limits_hold(fh)) {
		WRITE_ONCE(fh->hopeless, true);
		fh->port->write_status(fh, VIRTIO_FREEHINT_DRIVER_FAILED);
		virtio_add_status(vdev, VIRTIO_CONFIG_S_FAILED);
	}
	vfh_wake_up(fh);
	return 0;
}
#endif

static const unsigned int vfh_features[] = {
#ifdef CONFIG_VIRTIO_FREEHINT_FLUSH
	VIRTIO_FREEHINT_F_FLUSH,
#endif
#ifdef CONFIG_VIRTIO_FREEHINT_PACE
	VIRTIO_FREEHINT_F_LAZY,
#endif
};

static const struct virtio_device_id vfh_ids[] = {
	{ VIRTIO_ID_FREEHINT, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, vfh_ids);

static struct virtio_driver virtio_freehint_driver = {
	.driver.name = KBUILD_MODNAME,
	.driver.dev_groups = vfh_groups,
	.id_table = vfh_ids,
	.feature_table = vfh_features,
	.feature_table_size = ARRAY_SIZE(vfh_features),
	.validate = vfh_validate,
	.probe = vfh_probe,
	.remove = vfh_remove,
	.config_changed = vfh_config_changed,
#ifdef CONFIG_PM_SLEEP
	.freeze = vfh_freeze,
	.restore = vfh_restore,
#endif
};

static int __init virtio_freehint_driver_init(void)
{
	int ret;

	vfh_debugfs_init();
	register_reboot_notifier(&vfh_reboot_nb);
	ret = register_virtio_driver(&virtio_freehint_driver);
	if (ret) {
		unregister_reboot_notifier(&vfh_reboot_nb);
		vfh_debugfs_exit();
	}
	return ret;
}
module_init(virtio_freehint_driver_init);

static void __exit virtio_freehint_driver_exit(void)
{
	unregister_virtio_driver(&virtio_freehint_driver);
	unregister_reboot_notifier(&vfh_reboot_nb);
	vfh_debugfs_exit();
}
module_exit(virtio_freehint_driver_exit);

MODULE_DESCRIPTION("Virtio free memory hint driver");
MODULE_LICENSE("GPL");
