// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: what the guest's administrator sees and sets. sysfs has
 * what one needs to know, see
 * Documentation/ABI/testing/sysfs-bus-virtio-drivers-virtio_freehint; debugfs has the
 * counters.
 */
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/seq_file.h>
#include <linux/sysfs.h>
#include <linux/virtio_config.h>

#include "vfh.h"

static struct vfh *dev_to_vfh(struct device *dev)
{
	return dev_to_virtio(dev)->priv;
}

static ssize_t vfh_emit_name(char *buf, u32 value, const char * const names[],
			     size_t nr)
{
	if (value < nr)
		return sysfs_emit(buf, "%s\n", names[value]);
	return sysfs_emit(buf, "unknown (%u)\n", value);
}

static ssize_t status_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	static const char * const names[] = {
		[VIRTIO_FREEHINT_DRIVER_NOT_READY] = "waiting",
		[VIRTIO_FREEHINT_DRIVER_ACTIVE] = "active",
		[VIRTIO_FREEHINT_DRIVER_WAITING] = "waiting",
		[VIRTIO_FREEHINT_DRIVER_OFF] = "off",
		[VIRTIO_FREEHINT_DRIVER_POISONING] = "poisoning",
		[VIRTIO_FREEHINT_DRIVER_DEBUGGING] = "debugging",
		[VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER] = "other-reporter",
		[VIRTIO_FREEHINT_DRIVER_GRANULE] = "granule",
		[VIRTIO_FREEHINT_DRIVER_FAILED] = "failed",
	};

	return vfh_emit_name(buf, READ_ONCE(dev_to_vfh(dev)->status), names,
			     ARRAY_SIZE(names));
}
static DEVICE_ATTR_RO(status);

static ssize_t engine_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%s\n", dev_to_vfh(dev)->source->engine());
}
static DEVICE_ATTR_RO(engine);

static ssize_t device_state_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	static const char * const names[] = { "disabled", "active", "vetoed" };
	u32 value = virtio_cread32(dev_to_virtio(dev),
				   offsetof(struct virtio_freehint_config, state));

	return vfh_emit_name(buf, value, names, ARRAY_SIZE(names));
}
static DEVICE_ATTR_RO(device_state);

static ssize_t device_reason_show(struct device *dev,
				  struct device_attribute *attr, char *buf)
{
	static const char * const names[] = { "none", "operator", "pinned",
					      "locked", "migration", "external" };
	u32 value = virtio_cread32(dev_to_virtio(dev),
				   offsetof(struct virtio_freehint_config, reason));

	return vfh_emit_name(buf, value, names, ARRAY_SIZE(names));
}
static DEVICE_ATTR_RO(device_reason);

static ssize_t allowed_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(dev_to_vfh(dev)->allowed));
}

static ssize_t allowed_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t count)
{
	struct vfh *fh = dev_to_vfh(dev);
	bool allowed;
	int ret;

	ret = kstrtobool(buf, &allowed);
	if (ret)
		return ret;
	vfh_wish(fh, &fh->allowed, allowed);
	return count;
}
static DEVICE_ATTR_RW(allowed);

/* A figure of the loop, as it was a moment ago: neither side waits. */
#define VFH_FIGURE(_name, _expr)					\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	struct vfh *fh = dev_to_vfh(dev);				\
									\
	return sysfs_emit(buf, "%llu\n", (u64)(_expr));	\
}									\
static DEVICE_ATTR_RO(_name)

VFH_FIGURE(granule, (u64)PAGE_SIZE << fh->order);
VFH_FIGURE(age_ms, READ_ONCE(fh->pace.age_ms));
VFH_FIGURE(hinted_bytes, READ_ONCE(fh->counters.hinted_bytes));
VFH_FIGURE(discarded_bytes, READ_ONCE(fh->counters.verdict_bytes[VFH_DISCARDED]));
VFH_FIGURE(in_flight_bytes, vfh_bytes(READ_ONCE(fh->in_flight)));
VFH_FIGURE(leaked_bytes, READ_ONCE(fh->counters.leaked_bytes));

static struct freehint_stats vfh_stats(struct device *dev)
{
	struct freehint_stats stats;

	dev_to_vfh(dev)->source->get_stats(&stats);
	return stats;
}

static ssize_t free_pending_bytes_show(struct device *dev,
				       struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", vfh_bytes(vfh_stats(dev).pending));
}
static DEVICE_ATTR_RO(free_pending_bytes);

static ssize_t free_lazy_bytes_show(struct device *dev,
				    struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", vfh_bytes(vfh_stats(dev).lazy));
}
static DEVICE_ATTR_RO(free_lazy_bytes);

static ssize_t free_stuck_bytes_show(struct device *dev,
				     struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", vfh_bytes(vfh_stats(dev).stuck));
}
static DEVICE_ATTR_RO(free_stuck_bytes);

static struct attribute *vfh_attrs[] = {
	&dev_attr_status.attr,
	&dev_attr_engine.attr,
	&dev_attr_device_state.attr,
	&dev_attr_device_reason.attr,
	&dev_attr_allowed.attr,
	&dev_attr_granule.attr,
	&dev_attr_age_ms.attr,
	&dev_attr_hinted_bytes.attr,
	&dev_attr_discarded_bytes.attr,
	&dev_attr_in_flight_bytes.attr,
	&dev_attr_leaked_bytes.attr,
	&dev_attr_free_pending_bytes.attr,
	&dev_attr_free_lazy_bytes.attr,
	&dev_attr_free_stuck_bytes.attr,
	NULL
};

static const struct attribute_group vfh_group = {
	.name = "freehint",
	.attrs = vfh_attrs,
};

const struct attribute_group *vfh_groups[] = {
	&vfh_group,
	NULL
};

static struct dentry *vfh_debugfs;

static int vfh_counters_show(struct seq_file *m, void *unused)
{
	const struct vfh *fh = m->private;
	const struct vfh_counters *c = &fh->counters;
	struct freehint_stats stats;

	fh->source->get_stats(&stats);
	seq_printf(m, "hints %llu\n", c->hints);
	seq_printf(m, "ranges %llu\n", c->ranges);
	seq_printf(m, "notifications %llu\n", c->notifications);
	seq_printf(m, "hinted_bytes %llu\n", c->hinted_bytes);
	seq_printf(m, "discarded_bytes %llu\n", c->verdict_bytes[VFH_DISCARDED]);
	seq_printf(m, "lazy_bytes %llu\n", c->verdict_bytes[VFH_LAZY]);
	seq_printf(m, "declined_bytes %llu\n", c->verdict_bytes[VFH_DECLINED]);
	seq_printf(m, "throttled_bytes %llu\n", c->verdict_bytes[VFH_THROTTLED]);
	seq_printf(m, "failed_bytes %llu\n", c->verdict_bytes[VFH_FAILED]);
	seq_printf(m, "never_bytes %llu\n", c->verdict_bytes[VFH_NEVER]);
	seq_printf(m, "aborted_bytes %llu\n", c->aborted_bytes);
	seq_printf(m, "leaked_bytes %llu\n", c->leaked_bytes);
	seq_printf(m, "in_flight_bytes %llu\n", vfh_bytes(fh->in_flight));
	seq_printf(m, "timeouts %llu\n", c->timeouts);
	seq_printf(m, "resets %llu\n", c->resets);
	seq_printf(m, "unsent %llu\n", c->unsent);
	seq_printf(m, "flushes %llu\n", c->flushes);
	seq_printf(m, "free_pending_bytes %llu\n", vfh_bytes(stats.pending));
	seq_printf(m, "free_discarded_bytes %llu\n", vfh_bytes(stats.discarded));
	seq_printf(m, "free_lazy_bytes %llu\n", vfh_bytes(stats.lazy));
	seq_printf(m, "refused_bytes %llu\n", vfh_bytes(stats.refused));
	seq_printf(m, "free_stuck_bytes %llu\n", vfh_bytes(stats.stuck));
	seq_printf(m, "reused_bytes %llu\n", vfh_bytes(stats.reused));
	seq_printf(m, "spared_bytes %llu\n", vfh_bytes(stats.spared));
	seq_printf(m, "vanished_bytes %llu\n", vfh_bytes(stats.vanished));
	seq_printf(m, "guarded_periods %llu\n", stats.guarded);
	seq_printf(m, "pcp_drains %llu\n", stats.drains);
	seq_printf(m, "compact_moved_bytes %llu\n", vfh_bytes(fh->compact.sweep.moved));
	seq_printf(m, "compact_gained_bytes %llu\n",
		   vfh_bytes(fh->compact.sweep.gained << fh->order));
	seq_printf(m, "compact_us %llu\n", div_u64(fh->compact.spent, NSEC_PER_USEC));
	seq_printf(m, "lost_since_boot_bytes %llu\n", vfh_bytes(stats.lost));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(vfh_counters);

/**
 * vfh_debugfs_add - show the counters of a device
 * @fh: the device
 */
void vfh_debugfs_add(struct vfh *fh)
{
	debugfs_create_file(dev_name(&fh->vdev->dev), 0400, vfh_debugfs, fh,
			    &vfh_counters_fops);
}

/**
 * vfh_debugfs_remove - stop showing them; when this returns, nobody reads them
 * @fh: the device
 */
void vfh_debugfs_remove(struct vfh *fh)
{
	debugfs_lookup_and_remove(dev_name(&fh->vdev->dev), vfh_debugfs);
}

void vfh_debugfs_init(void)
{
	vfh_debugfs = debugfs_create_dir("virtio_freehint", NULL);
}

void vfh_debugfs_exit(void)
{
	debugfs_remove(vfh_debugfs);
}
