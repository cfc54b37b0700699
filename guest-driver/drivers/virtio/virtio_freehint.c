// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: carries the hints of mm/freehint/ to the
 * device, and what the device says back. Section names are those of the
 * specification, see include/uapi/linux/virtio_freehint.h.
 *
 * The queue belongs to the engine's thread: the operations below run there and
 * nowhere else, so it needs no lock. Configuration changes are followed by a
 * work item.
 */
#include <linux/completion.h>
#include <linux/crash_dump.h>
#include <linux/freehint.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/reboot.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>
#include <uapi/linux/virtio_freehint.h>

/* With 16 bytes a range, a hint fits a page and a bit. */
#define VFH_MAX_RANGES		256

/* Enough to keep the device busy while answers are being dealt with. */
#define VFH_MAX_HINTS		8

/* A message takes one descriptor for what the device reads, one for its answer. */
#define VFH_DESCRIPTORS		2

/* Messages that are no hints: gauges, and the answer to a flush. */
#define VFH_OTHER_MSGS		2

/* How long a device may take to confirm a reset. */
#define VFH_RESET_TIMEOUT	(10 * HZ)

/* How long a device that was reset is left alone, at first and at most. */
#define VFH_FIRST_REST		(1 * HZ)
#define VFH_MAX_REST		(64 * HZ)

/* The device may not keep us waiting for longer than this. */
#define VFH_MAX_RETRY_MS	60000

/**
 * struct vfh_msg - the buffers of one message
 * @queued: the device has them
 * @refused: the device does not support this type of message
 * @hint: of a hint, what is in them
 * @request: header and what follows it, read by the device
 * @answer: ack and status bytes, written by the device
 *
 * Allocated when the device is probed: nothing is to be allocated while free
 * memory is off the free lists.
 */
struct vfh_msg {
	bool queued;
	bool refused;
	struct freehint_hint *hint;
	struct vfh_request {
		struct virtio_freehint_hdr hdr;
		union {
			DECLARE_FLEX_ARRAY(struct virtio_freehint_range, ranges);
			struct virtio_freehint_gauges gauges;
			struct virtio_freehint_flush_done flush_done;
		};
	} *request;
	struct vfh_answer {
		struct virtio_freehint_ack ack;
		u8 status[];
	} *answer;
};

/**
 * struct virtio_freehint - a device
 * @vdev: it
 * @vq: hintq; the engine thread's
 * @dev: as the engine knows it
 * @hints: messages, by &freehint_hint.slot
 * @gauges: message
 * @flush_done: message
 * @flush: what the device is to be told of the last flush
 * @flush_owed: it has not been told
 * @notifications: how often the device was told to look at the queue
 * @epoch: rehint epoch as last read
 * @broken: it has been said why the device is of no use
 * @given_up: and that is not going to change
 * @baffled: the device gives answers of an unknown kind, and that has been said
 * @flush_id: the last flush that the device has asked for, if it can
 * @config_work: reads the configuration
 * @config_lock: protects @config_stop
 * @config_stop: the configuration is of no interest, nor is another try
 * @reset_work: resets the device, however long it takes
 * @reset_done: it has
 * @was_reset: the device is not to be talked to before it is set up anew
 * @retry_work: sets it up anew
 * @rest: how long it is left alone before that, in jiffies
 * @retried: jiffies, when that was done last
 * @reboot_nb: for the end of this kernel
 */
struct virtio_freehint {
	struct virtio_device *vdev;
	struct virtqueue *vq;
	struct freehint_dev dev;
	struct vfh_msg hints[VFH_MAX_HINTS];
	struct vfh_msg gauges;
	struct vfh_msg flush_done;
	struct freehint_flush flush;
	bool flush_owed;
	u64 notifications;
	u32 epoch;
	bool broken;
	bool given_up;
	bool baffled;
	u32 flush_id;

	struct work_struct config_work;
	spinlock_t config_lock; /* for config_stop */
	bool config_stop;

	struct work_struct reset_work;
	struct completion reset_done;
	bool was_reset;
	struct delayed_work retry_work;
	unsigned long rest;
	unsigned long retried;

	struct notifier_block reboot_nb;
};

static struct virtio_freehint *to_vfh(struct freehint_dev *dev)
{
	return container_of(dev, struct virtio_freehint, dev);
}

/*
 * Messages.
 */

static void vfh_fill_hdr(struct vfh_msg *msg, u16 type, u16 flags, u32 nranges,
			 u64 cookie)
{
	msg->request->hdr = (struct virtio_freehint_hdr) {
		.type = cpu_to_le16(type),
		.flags = cpu_to_le16(flags),
		.nranges = cpu_to_le32(nranges),
		.cookie = cpu_to_le64(cookie),
	};
}

/* What follows from the first reason is not worth a line. */
static void vfh_broken(struct virtio_freehint *fh, const char *why)
{
	if (!xchg(&fh->broken, true))
		dev_err(&fh->vdev->dev, "%s, resetting it\n", why);
	freehint_broken(&fh->dev);
}

/* Does not tell the device. @size is of what follows the header. */
static int vfh_queue(struct virtio_freehint *fh, struct vfh_msg *msg,
		     size_t size, size_t nr_statuses)
{
	size_t answer_size = struct_size(msg->answer, status, nr_statuses);
	struct scatterlist request, answer, *sgs[] = { &request, &answer };
	int ret;

	/* What the device does not write claims nothing. */
	memset(msg->answer, 0, answer_size);

	sg_init_one(&request, msg->request,
		    offsetof(struct vfh_request, ranges) + size);
	sg_init_one(&answer, msg->answer, answer_size);
	ret = virtqueue_add_sgs(fh->vq, sgs, 1, 1, msg,
				GFP_NOWAIT | __GFP_NOWARN);
	if (!ret)
		msg->queued = true;
	else if (ret == -EIO)
		vfh_broken(fh, "the queue is broken");
	return ret;
}

static void vfh_notify(struct virtio_freehint *fh)
{
	/* Not while it looks at the queue anyway. */
	if (!virtqueue_kick_prepare(fh->vq))
		return;
	fh->notifications++;
	virtqueue_notify(fh->vq);
}

static void vfh_kick(struct freehint_dev *dev)
{
	vfh_notify(to_vfh(dev));
}

static u16 vfh_result(const struct vfh_answer *answer, size_t len)
{
	if (len < sizeof(answer->ack))
		return 0;
	return le16_to_cpu(answer->ack.result);
}

/*
 * Hints and their answers.
 */

/* Section "Range status": what is not listed, and zero, means "declined". */
static enum freehint_verdict vfh_verdict(u8 status)
{
	switch (status) {
	case VIRTIO_FREEHINT_S_DISCARDED:
		return FREEHINT_DISCARDED;
	case VIRTIO_FREEHINT_S_THROTTLED:
		return FREEHINT_THROTTLED;
	case VIRTIO_FREEHINT_S_FAILED:
		return FREEHINT_FAILED;
	case VIRTIO_FREEHINT_S_EMPTY:
	case VIRTIO_FREEHINT_S_OVERFLOW:
	case VIRTIO_FREEHINT_S_MISALIGNED:
	case VIRTIO_FREEHINT_S_UNMAPPED:
	case VIRTIO_FREEHINT_S_NOT_RAM:
	case VIRTIO_FREEHINT_S_READ_ONLY:
	case VIRTIO_FREEHINT_S_EXCLUDED:
	case VIRTIO_FREEHINT_S_BACKING:
		return FREEHINT_NEVER;
	default:
		return FREEHINT_DECLINED;
	}
}

static void vfh_fill_hint(struct vfh_msg *msg, const struct freehint_hint *hint)
{
	u16 flags = hint->zero ? VIRTIO_FREEHINT_HINT_F_ZERO : 0;
	unsigned int i;

	vfh_fill_hdr(msg, VIRTIO_FREEHINT_T_HINT, flags, hint->nr_ranges,
		     hint->cookie);
	for (i = 0; i < hint->nr_ranges; i++) {
		const struct freehint_range *range = &hint->ranges[i];

		msg->request->ranges[i] = (struct virtio_freehint_range) {
			.addr = cpu_to_le64(PFN_PHYS(range->pfn)),
			.len = cpu_to_le64(PFN_PHYS(range->nr_pages)),
		};
	}
}

static int vfh_submit(struct freehint_dev *dev, struct freehint_hint *hint)
{
	struct virtio_freehint *fh = to_vfh(dev);
	struct vfh_msg *msg = &fh->hints[hint->slot];

	vfh_fill_hint(msg, hint);
	msg->hint = hint;
	return vfh_queue(fh, msg,
			 flex_array_size(msg->request, ranges, hint->nr_ranges),
			 hint->nr_ranges);
}

static void vfh_queue_config(struct virtio_freehint *fh)
{
	unsigned long flags;

	spin_lock_irqsave(&fh->config_lock, flags);
	if (!fh->config_stop)
		queue_work(system_freezable_wq, &fh->config_work);
	spin_unlock_irqrestore(&fh->config_lock, flags);
}

/* What another try would not change. */
static void vfh_give_up(struct virtio_freehint *fh, const char *why)
{
	WRITE_ONCE(fh->broken, true);
	if (!xchg(&fh->given_up, true))
		dev_err(&fh->vdev->dev, "%s, no more hints until the driver is bound again\n",
			why);
	freehint_broken(&fh->dev);
}

/* How many statuses the device gave, section "Messages". */
static size_t vfh_nr_statuses(struct virtio_freehint *fh,
			      const struct vfh_answer *answer, size_t len)
{
	u16 result = vfh_result(answer, len);

	switch (result) {
	case VIRTIO_FREEHINT_R_DONE:
		return min_t(size_t, le32_to_cpu(answer->ack.nstatus),
			     len - sizeof(answer->ack));
	case VIRTIO_FREEHINT_R_UNSUPPORTED:
		/* It would say the same to every other hint. */
		vfh_give_up(fh, "the device does not support these hints");
		return 0;
	default:
		if (!fh->baffled)
			dev_warn(&fh->vdev->dev, "no known result in an answer of %zu bytes (%u), taking all such as refusals\n",
				 len, result);
		fh->baffled = true;
		return 0;
	}
}

static void vfh_read_verdicts(const struct vfh_answer *answer, size_t nr,
			      struct freehint_hint *hint)
{
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++)
		hint->ranges[i].verdict = i < nr ? vfh_verdict(answer->status[i]) :
						   FREEHINT_DECLINED;
}

static unsigned int vfh_retry_ms(const struct vfh_answer *answer,
				 const struct freehint_hint *hint)
{
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++)
		if (hint->ranges[i].verdict == FREEHINT_THROTTLED)
			return clamp(le32_to_cpu(answer->ack.retry_after_ms),
				     1U, VFH_MAX_RETRY_MS);
	return 0;
}

static void vfh_hint_answered(struct virtio_freehint *fh, struct vfh_msg *msg,
			      unsigned int len)
{
	const struct vfh_answer *answer = msg->answer;
	struct freehint_hint *hint = msg->hint;
	size_t nr = vfh_nr_statuses(fh, answer, len);
	bool stale = false;

	vfh_read_verdicts(answer, nr, hint);
	if (nr) {
		stale = le32_to_cpu(answer->ack.rehint_epoch) !=
			READ_ONCE(fh->epoch);
		/* We, or the answer, may be behind: look. */
		if (stale)
			vfh_queue_config(fh);
	}
	freehint_complete(&fh->dev, hint, stale, vfh_retry_ms(answer, hint));
}

/*
 * Gauges and the answer to a flush. The device acknowledges them, no more. One
 * that does not know them is not to blame, and not to be asked again.
 */

static struct virtio_freehint_gauges
vfh_le_gauges(const struct freehint_gauges *gauges)
{
	return (struct virtio_freehint_gauges) {
		.free = cpu_to_le64(gauges->free_bytes),
		.pending = cpu_to_le64(gauges->pending_bytes),
		.hinted = cpu_to_le64(gauges->discarded_bytes),
		.in_flight = cpu_to_le64(gauges->in_flight_bytes),
		.stuck = cpu_to_le64(gauges->stuck_bytes),
		.reused = cpu_to_le64(gauges->reused_bytes),
	};
}

static bool vfh_gauges(struct freehint_dev *dev,
		       const struct freehint_gauges *gauges)
{
	struct virtio_freehint *fh = to_vfh(dev);
	struct vfh_msg *msg = &fh->gauges;

	if (msg->queued || msg->refused)
		return false;
	vfh_fill_hdr(msg, VIRTIO_FREEHINT_T_GAUGES, 0, 0, 0);
	msg->request->gauges = vfh_le_gauges(gauges);
	return !vfh_queue(fh, msg, sizeof(msg->request->gauges), 0);
}

static const u32 vfh_flush_results[] = {
	[FREEHINT_FLUSH_DONE] = VIRTIO_FREEHINT_FLUSH_DONE,
	[FREEHINT_FLUSH_TIMEOUT] = VIRTIO_FREEHINT_FLUSH_TIMEOUT,
	[FREEHINT_FLUSH_REFUSED] = VIRTIO_FREEHINT_FLUSH_REFUSED,
};

static void vfh_fill_flush_done(struct vfh_msg *msg,
				const struct freehint_flush *flush)
{
	vfh_fill_hdr(msg, VIRTIO_FREEHINT_T_FLUSH_DONE, 0, 0, flush->id);
	msg->request->flush_done = (struct virtio_freehint_flush_done) {
		.id = cpu_to_le32(flush->id),
		.result = cpu_to_le32(vfh_flush_results[flush->result]),
		.hinted = cpu_to_le64(flush->hinted_bytes),
		.gauges = vfh_le_gauges(&flush->gauges),
	};
}

/*
 * Or do it when the queue is reaped: the device may have read the answer to the
 * flush before, and asked for this one, ahead of our seeing that it did. Room is
 * kept in the queue, but a device may have a very small one.
 */
static void vfh_answer_flush(struct virtio_freehint *fh)
{
	struct vfh_msg *msg = &fh->flush_done;

	if (!fh->flush_owed || msg->queued || msg->refused)
		return;
	vfh_fill_flush_done(msg, &fh->flush);
	if (vfh_queue(fh, msg, sizeof(msg->request->flush_done), 0))
		return;
	fh->flush_owed = false;
	vfh_notify(fh);
}

static void vfh_flushed(struct freehint_dev *dev,
			const struct freehint_flush *flush)
{
	struct virtio_freehint *fh = to_vfh(dev);

	fh->flush = *flush;
	fh->flush_owed = true;
	vfh_answer_flush(fh);
}

static void vfh_answered(struct virtio_freehint *fh, struct vfh_msg *msg,
			 unsigned int len)
{
	msg->queued = false;
	if (msg != &fh->gauges && msg != &fh->flush_done)
		vfh_hint_answered(fh, msg, len);
	else if (vfh_result(msg->answer, len) == VIRTIO_FREEHINT_R_UNSUPPORTED)
		msg->refused = true;
}

static void vfh_reap(struct freehint_dev *dev)
{
	struct virtio_freehint *fh = to_vfh(dev);
	struct vfh_msg *msg;
	unsigned int len;

	do {
		virtqueue_disable_cb(fh->vq);
		while ((msg = virtqueue_get_buf(fh->vq, &len)))
			vfh_answered(fh, msg, len);
	} while (!virtqueue_enable_cb(fh->vq));
	if (virtqueue_is_broken(fh->vq)) {
		vfh_broken(fh, "the queue is broken");
		return;
	}
	vfh_answer_flush(fh);
}

static void vfh_hintq_callback(struct virtqueue *vq)
{
	struct virtio_freehint *fh = vq->vdev->priv;

	virtqueue_disable_cb(vq);
	freehint_interrupt(&fh->dev);
}

/*
 * Reset.
 */

static void vfh_write_status(struct virtio_freehint *fh, u32 status)
{
	virtio_cwrite_le(fh->vdev, struct virtio_freehint_config,
			 driver_status, &status);
}

/*
 * Surprise removal: whatever is read from a device that is gone is all ones. So it
 * is from one on PCI that is there, and just does not decode its memory: that one
 * may still write to ours. Other transports cannot tell the two apart.
 */
static bool vfh_gone(struct virtio_freehint *fh)
{
	struct device *parent = fh->vdev->dev.parent;

	if (fh->vdev->config->get_status(fh->vdev) != 0xff)
		return false;
	return dev_is_pci(parent) && !pci_device_is_present(to_pci_dev(parent));
}

/* Leave word for the operator; the reset has wiped what was there. */
static void vfh_tell_failed(struct virtio_freehint *fh)
{
	virtio_add_status(fh->vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	virtio_add_status(fh->vdev, VIRTIO_CONFIG_S_DRIVER);
	vfh_write_status(fh, VIRTIO_FREEHINT_DRIVER_FAILED);
	if (READ_ONCE(fh->given_up))
		virtio_add_status(fh->vdev, VIRTIO_CONFIG_S_FAILED);
}

/* A device that soon fails again is left alone for longer each time. */
static void vfh_plan_retry(struct virtio_freehint *fh)
{
	if (time_before(jiffies, fh->retried + 2 * VFH_MAX_REST))
		fh->rest = min(2 * fh->rest, VFH_MAX_REST);
	else
		fh->rest = VFH_FIRST_REST;
	queue_delayed_work(system_freezable_wq, &fh->retry_work, fh->rest);
}

/* The reset is confirmed, unless the device is gone. */
static void vfh_after_reset(struct virtio_freehint *fh)
{
	unsigned long flags;

	spin_lock_irqsave(&fh->config_lock, flags);
	if (!fh->config_stop && !READ_ONCE(fh->given_up))
		vfh_plan_retry(fh);
	spin_unlock_irqrestore(&fh->config_lock, flags);
}

static void vfh_reset_work(struct work_struct *work)
{
	struct virtio_freehint *fh = container_of(work, struct virtio_freehint,
						  reset_work);

	/* Waits for as long as it takes the device to confirm. */
	virtio_reset_device(fh->vdev);
	vfh_tell_failed(fh);
	complete_all(&fh->reset_done);
	/* It may be late, and the pages be taken for lost. */
	freehint_let_go(&fh->dev);
	vfh_after_reset(fh);
}

/* Returns whether the device has let go of all buffers, and in time. */
static bool vfh_reset_confirmed(struct virtio_freehint *fh)
{
	bool asked = fh->was_reset;

	fh->was_reset = true;
	if (vfh_gone(fh))
		return true;
	if (!asked)
		queue_work(system_long_wq, &fh->reset_work);
	return wait_for_completion_timeout(&fh->reset_done, VFH_RESET_TIMEOUT);
}

/* Ends the use of all buffers, section "Hinting free memory". */
static int vfh_reset(struct freehint_dev *dev)
{
	struct virtio_freehint *fh = to_vfh(dev);

	return vfh_reset_confirmed(fh) ? 0 : -ETIMEDOUT;
}

/*
 * Configuration.
 */

static const struct {
	u32 driver_status;
	const char *name;
} vfh_statuses[FREEHINT_NR_STATUSES] = {
	[FREEHINT_ACTIVE] = { VIRTIO_FREEHINT_DRIVER_ACTIVE, "active" },
	[FREEHINT_WAITING] = { VIRTIO_FREEHINT_DRIVER_WAITING, "waiting" },
	[FREEHINT_OFF] = { VIRTIO_FREEHINT_DRIVER_OFF, "off" },
	[FREEHINT_POISONING] = { VIRTIO_FREEHINT_DRIVER_POISONING, "poisoning" },
	[FREEHINT_DEBUGGING] = { VIRTIO_FREEHINT_DRIVER_DEBUGGING, "debugging" },
	[FREEHINT_OTHER_REPORTER] = { VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER,
				      "other-reporter" },
	[FREEHINT_GRANULE] = { VIRTIO_FREEHINT_DRIVER_GRANULE, "granule" },
	[FREEHINT_BROKEN] = { VIRTIO_FREEHINT_DRIVER_FAILED, "failed" },
};

static void vfh_status(struct freehint_dev *dev, enum freehint_status status)
{
	struct virtio_freehint *fh = to_vfh(dev);

	if (!fh->was_reset)
		vfh_write_status(fh, vfh_statuses[status].driver_status);
}

static u32 vfh_read_flush_id(struct virtio_freehint *fh)
{
	u32 id = 0;

	virtio_cread_le_feature(fh->vdev, VIRTIO_FREEHINT_F_FLUSH,
				struct virtio_freehint_config, flush_id, &id);
	return id;
}

/* Section "Flush". The id changes last, and what it comes with holds from then. */
static void vfh_read_flush(struct virtio_freehint *fh)
{
	u32 id = vfh_read_flush_id(fh), flags, timeout_ms;

	if (id == fh->flush_id)
		return;
	fh->flush_id = id;
	virtio_cread_le(fh->vdev, struct virtio_freehint_config, flush_flags,
			&flags);
	virtio_cread_le(fh->vdev, struct virtio_freehint_config,
			flush_timeout_ms, &timeout_ms);
	freehint_flush(&fh->dev, id, timeout_ms,
		       flags & VIRTIO_FREEHINT_FLUSH_F_COMPACT);
}

static void vfh_read_config(struct virtio_freehint *fh)
{
	u32 state, epoch, delay_ms, min_age_ms;
	struct virtio_device *vdev = fh->vdev;
	bool moved;

	virtio_cread_le(vdev, struct virtio_freehint_config, rehint_epoch,
			&epoch);
	virtio_cread_le(vdev, struct virtio_freehint_config, state, &state);
	virtio_cread_le(vdev, struct virtio_freehint_config, delay_ms,
			&delay_ms);
	virtio_cread_le(vdev, struct virtio_freehint_config, min_age_ms,
			&min_age_ms);

	freehint_set_pace(&fh->dev, delay_ms, min_age_ms);
	/* The epoch first: answers under the old one must not count from here. */
	moved = epoch != fh->epoch;
	WRITE_ONCE(fh->epoch, epoch);
	if (moved)
		freehint_rehint(&fh->dev);
	freehint_set_active(&fh->dev, state == VIRTIO_FREEHINT_STATE_ACTIVE);
	vfh_read_flush(fh);
}

static void vfh_config_work(struct work_struct *work)
{
	struct virtio_freehint *fh = container_of(work, struct virtio_freehint,
						  config_work);
	u8 status = fh->vdev->config->get_status(fh->vdev);

	if (status & VIRTIO_CONFIG_S_NEEDS_RESET) {
		vfh_broken(fh, "the device asks to be reset");
		return;
	}
	vfh_read_config(fh);
}

static void vfh_config_changed(struct virtio_device *vdev)
{
	vfh_queue_config(vdev->priv);
}

static void vfh_config_enable(struct virtio_freehint *fh, bool enable)
{
	spin_lock_irq(&fh->config_lock);
	fh->config_stop = !enable;
	spin_unlock_irq(&fh->config_lock);
	if (!enable)
		cancel_work_sync(&fh->config_work);
}

/*
 * sysfs: the group "freehint" of the virtio device, see
 * Documentation/ABI/testing/sysfs-bus-virtio-drivers-virtio_freehint.
 */

static struct virtio_freehint *dev_to_vfh(struct device *dev)
{
	return dev_to_virtio(dev)->priv;
}

static ssize_t status_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	enum freehint_status status = freehint_status(&dev_to_vfh(dev)->dev);

	return sysfs_emit(buf, "%s\n", vfh_statuses[status].name);
}
static DEVICE_ATTR_RO(status);

static u32 vfh_config_word(struct device *dev, unsigned int offset)
{
	return virtio_cread32(dev_to_virtio(dev), offset);
}

static ssize_t vfh_show_name(char *buf, u32 value, const char * const names[],
			     size_t nr)
{
	if (value < nr)
		return sysfs_emit(buf, "%s\n", names[value]);
	return sysfs_emit(buf, "unknown (%u)\n", value);
}

static ssize_t device_state_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	static const char * const names[] = { "disabled", "active", "vetoed" };
	u32 value = vfh_config_word(dev, offsetof(struct virtio_freehint_config, state));

	return vfh_show_name(buf, value, names, ARRAY_SIZE(names));
}
static DEVICE_ATTR_RO(device_state);

static ssize_t device_reason_show(struct device *dev,
				  struct device_attribute *attr, char *buf)
{
	static const char * const names[] = { "none", "operator", "pinned",
					      "locked", "migration", "external" };
	u32 value = vfh_config_word(dev, offsetof(struct virtio_freehint_config, reason));

	return vfh_show_name(buf, value, names, ARRAY_SIZE(names));
}
static DEVICE_ATTR_RO(device_reason);

static ssize_t allowed_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", freehint_allowed(&dev_to_vfh(dev)->dev));
}

static ssize_t allowed_store(struct device *dev, struct device_attribute *attr,
			     const char *buf, size_t count)
{
	bool allowed;
	int ret;

	ret = kstrtobool(buf, &allowed);
	if (ret)
		return ret;
	freehint_set_allowed(&dev_to_vfh(dev)->dev, allowed);
	return count;
}
static DEVICE_ATTR_RW(allowed);

#define VFH_STAT(_name, _expr)						\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	struct freehint_stats stats;					\
									\
	freehint_get_stats(&dev_to_vfh(dev)->dev, &stats);		\
	return sysfs_emit(buf, "%llu\n", (unsigned long long)(_expr));	\
}									\
static DEVICE_ATTR_RO(_name)

VFH_STAT(granule, stats.granule);
VFH_STAT(age_ms, stats.age_ms);
VFH_STAT(hints, stats.hints);
VFH_STAT(notifications, dev_to_vfh(dev)->notifications);
VFH_STAT(ranges, stats.ranges);
VFH_STAT(runs, stats.runs);
VFH_STAT(hinted_bytes, stats.hinted_bytes);
VFH_STAT(discarded_bytes, stats.verdict_bytes[FREEHINT_DISCARDED]);
VFH_STAT(declined_bytes, stats.verdict_bytes[FREEHINT_DECLINED]);
VFH_STAT(throttled_bytes, stats.verdict_bytes[FREEHINT_THROTTLED]);
VFH_STAT(never_bytes, stats.verdict_bytes[FREEHINT_NEVER]);
VFH_STAT(failed_bytes, stats.verdict_bytes[FREEHINT_FAILED]);
VFH_STAT(aborted_bytes, stats.aborted_bytes);
VFH_STAT(leaked_bytes, stats.leaked_bytes);
VFH_STAT(in_flight_bytes, stats.gauges.in_flight_bytes);
VFH_STAT(reused_bytes, stats.gauges.reused_bytes);
VFH_STAT(free_pending_bytes, stats.gauges.pending_bytes);
VFH_STAT(free_discarded_bytes, stats.gauges.discarded_bytes);
VFH_STAT(free_refused_bytes, stats.refused_bytes);
VFH_STAT(free_stuck_bytes, stats.gauges.stuck_bytes);
VFH_STAT(excluded_bytes, stats.excluded_bytes);
VFH_STAT(stale_granules, stats.stale_granules);
VFH_STAT(guard_stops, stats.guard_stops);
VFH_STAT(pcp_drains, stats.pcp_drains);
VFH_STAT(timeouts, stats.timeouts);
VFH_STAT(submit_errors, stats.submit_errors);
VFH_STAT(flushes, stats.flushes);

static struct attribute *vfh_attrs[] = {
	&dev_attr_status.attr,
	&dev_attr_device_state.attr,
	&dev_attr_device_reason.attr,
	&dev_attr_allowed.attr,
	&dev_attr_granule.attr,
	&dev_attr_age_ms.attr,
	&dev_attr_hints.attr,
	&dev_attr_notifications.attr,
	&dev_attr_ranges.attr,
	&dev_attr_runs.attr,
	&dev_attr_hinted_bytes.attr,
	&dev_attr_discarded_bytes.attr,
	&dev_attr_declined_bytes.attr,
	&dev_attr_throttled_bytes.attr,
	&dev_attr_never_bytes.attr,
	&dev_attr_failed_bytes.attr,
	&dev_attr_aborted_bytes.attr,
	&dev_attr_leaked_bytes.attr,
	&dev_attr_in_flight_bytes.attr,
	&dev_attr_reused_bytes.attr,
	&dev_attr_free_pending_bytes.attr,
	&dev_attr_free_discarded_bytes.attr,
	&dev_attr_free_refused_bytes.attr,
	&dev_attr_free_stuck_bytes.attr,
	&dev_attr_excluded_bytes.attr,
	&dev_attr_stale_granules.attr,
	&dev_attr_guard_stops.attr,
	&dev_attr_pcp_drains.attr,
	&dev_attr_timeouts.attr,
	&dev_attr_submit_errors.attr,
	&dev_attr_flushes.attr,
	NULL
};

static const struct attribute_group vfh_group = {
	.name = "freehint",
	.attrs = vfh_attrs,
};
__ATTRIBUTE_GROUPS(vfh);

/*
 * Life cycle.
 */

static const struct freehint_ops vfh_ops = {
	.submit = vfh_submit,
	.kick = vfh_kick,
	.reap = vfh_reap,
	.reset = vfh_reset,
	.gauges = vfh_gauges,
	.flushed = vfh_flushed,
	.status = vfh_status,
};

static int vfh_find_vqs(struct virtio_freehint *fh)
{
	fh->vq = virtio_find_single_vq(fh->vdev, vfh_hintq_callback, "hintq");

	return PTR_ERR_OR_ZERO(fh->vq);
}

static void vfh_free_msg(struct vfh_msg *msg)
{
	kfree(msg->request);
	kfree(msg->answer);
}

static void vfh_free_msgs(struct virtio_freehint *fh)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fh->hints); i++)
		vfh_free_msg(&fh->hints[i]);
	vfh_free_msg(&fh->gauges);
	vfh_free_msg(&fh->flush_done);
}

static bool vfh_alloc_msg(struct vfh_msg *msg, unsigned int nr_ranges)
{
	msg->request = kmalloc(struct_size(msg->request, ranges, nr_ranges),
			       GFP_KERNEL);
	msg->answer = kmalloc(struct_size(msg->answer, status, nr_ranges),
			      GFP_KERNEL);
	return msg->request && msg->answer;
}

static int vfh_alloc_msgs(struct virtio_freehint *fh)
{
	unsigned int i;
	bool ok;

	ok = vfh_alloc_msg(&fh->gauges, 0) && vfh_alloc_msg(&fh->flush_done, 0);
	for (i = 0; i < fh->dev.nr_hints; i++)
		ok = ok && vfh_alloc_msg(&fh->hints[i], fh->dev.max_ranges);
	return ok ? 0 : -ENOMEM;
}

/* A device that was reset has no message, and may have become another one. */
static void vfh_forget_msgs(struct virtio_freehint *fh)
{
	fh->gauges.queued = false;
	fh->gauges.refused = false;
	fh->flush_done.queued = false;
	fh->flush_done.refused = false;
	fh->flush_owed = false;
	fh->flush_id = vfh_read_flush_id(fh);
}

/* The state of a hibernated guest can come back in another VM. */
static bool vfh_limits_hold(struct virtio_freehint *fh)
{
	struct virtio_device *vdev = fh->vdev;
	u32 max_ranges;
	u64 granule;

	virtio_cread_le(vdev, struct virtio_freehint_config, granule, &granule);
	virtio_cread_le(vdev, struct virtio_freehint_config, max_ranges,
			&max_ranges);
	return granule == fh->dev.granule && max_ranges >= fh->dev.max_ranges;
}

static int vfh_read_limits(struct virtio_freehint *fh)
{
	struct virtio_device *vdev = fh->vdev;
	u32 max_ranges, nr_msgs;
	u64 granule;

	virtio_cread_le(vdev, struct virtio_freehint_config, granule, &granule);
	virtio_cread_le(vdev, struct virtio_freehint_config, max_ranges,
			&max_ranges);
	if (!is_power_of_2(granule)) {
		dev_err(&vdev->dev, "granule of %llu bytes is no power of two, fix the device\n",
			granule);
		return -EINVAL;
	}
	if (!max_ranges) {
		dev_err(&vdev->dev, "the device takes hints of 0 ranges, fix the device\n");
		return -EINVAL;
	}

	fh->dev.ops = &vfh_ops;
	fh->dev.granule = granule;
	fh->dev.max_ranges = min(max_ranges, VFH_MAX_RANGES);
	nr_msgs = virtqueue_get_vring_size(fh->vq) / VFH_DESCRIPTORS;
	fh->dev.nr_hints = clamp((int)nr_msgs - VFH_OTHER_MSGS, 1, VFH_MAX_HINTS);
	return 0;
}

static int vfh_negotiate(struct virtio_device *vdev)
{
	int ret = vdev->config->finalize_features(vdev);

	if (ret)
		return ret;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return -ENODEV;
	return 0;
}

/* The queue is there, and features are negotiated: make use of the device again. */
static void vfh_resume(struct virtio_freehint *fh)
{
	vfh_forget_msgs(fh);
	virtio_device_ready(fh->vdev);
	if (!vfh_limits_hold(fh)) {
		vfh_give_up(fh, "another granule, or hints of fewer ranges, than before");
		if (fh->was_reset)
			vfh_tell_failed(fh);
		return;
	}
	if (fh->was_reset) {
		reinit_completion(&fh->reset_done);
		fh->was_reset = false;
		WRITE_ONCE(fh->broken, false);
		freehint_mended(&fh->dev);
	}
	vfh_queue_config(fh);
}

static void vfh_retry_work(struct work_struct *work)
{
	struct virtio_freehint *fh = container_of(to_delayed_work(work),
						  struct virtio_freehint,
						  retry_work);
	struct virtio_device *vdev = fh->vdev;

	if (vfh_gone(fh))
		return;
	fh->retried = jiffies;
	vdev->config->del_vqs(vdev);
	if (vfh_negotiate(vdev) || vfh_find_vqs(fh)) {
		vfh_give_up(fh, "the device cannot be set up anew");
		vfh_tell_failed(fh);
		return;
	}
	vfh_resume(fh);
}

/*
 * Nothing is in flight after this, and the device writes nothing any more. If it
 * does not even confirm a reset, this waits for it, as there is no way to take
 * the rings from under it.
 */
static void vfh_quiesce(struct virtio_freehint *fh)
{
	vfh_config_enable(fh, false);
	freehint_set_active(&fh->dev, false);
	flush_work(&fh->reset_work);
	cancel_delayed_work_sync(&fh->retry_work);
	if (!vfh_gone(fh))
		virtio_reset_device(fh->vdev);
	/* A late interrupt may have set off a last look at the queue. */
	freehint_sync(&fh->dev);
}

/*
 * A kernel that is started by kexec must not find its memory discarded on behalf
 * of this one. Bus mastering off, which is all that PCI does, need not stop a
 * discard that is under way, and not every version of the virtio bus resets its
 * devices; nor would it wait for what is in flight.
 *
 * From here a restart by kexec looks like any other one. If no kernel follows,
 * a device that does not confirm the reset does not get to keep this one.
 */
static int vfh_reboot(struct notifier_block *nb, unsigned long action,
		      void *unused)
{
	struct virtio_freehint *fh = container_of(nb, struct virtio_freehint,
						  reboot_nb);

	vfh_config_enable(fh, false);
	freehint_set_active(&fh->dev, false);
	cancel_delayed_work_sync(&fh->retry_work);
	if (vfh_reset_confirmed(fh))
		return NOTIFY_DONE;

	dev_err(&fh->vdev->dev, "the device does not confirm its reset%s\n",
		action == SYS_RESTART ? ", waiting until it does" : "");
	if (action == SYS_RESTART)
		flush_work(&fh->reset_work);
	return NOTIFY_DONE;
}

static int vfh_probe(struct virtio_device *vdev)
{
	struct virtio_freehint *fh;
	int ret;

	/* What a dump is written from must stay as it is. */
	if (is_kdump_kernel()) {
		dev_info(&vdev->dev, "not hinting free memory in a kdump kernel\n");
		return -ENODEV;
	}

	fh = kzalloc(sizeof(*fh), GFP_KERNEL);
	if (!fh)
		return -ENOMEM;
	vdev->priv = fh;
	fh->vdev = vdev;
	fh->reboot_nb.notifier_call = vfh_reboot;
	INIT_WORK(&fh->config_work, vfh_config_work);
	INIT_WORK(&fh->reset_work, vfh_reset_work);
	INIT_DELAYED_WORK(&fh->retry_work, vfh_retry_work);
	init_completion(&fh->reset_done);
	fh->retried = jiffies - 2 * VFH_MAX_REST;
	spin_lock_init(&fh->config_lock);

	ret = vfh_find_vqs(fh);
	if (ret)
		goto free_device;
	ret = vfh_read_limits(fh);
	if (ret)
		goto reset;
	ret = vfh_alloc_msgs(fh);
	if (ret)
		goto reset;

	vfh_forget_msgs(fh);
	virtio_device_ready(vdev);
	ret = freehint_register(&fh->dev);
	if (ret) {
		dev_err(&vdev->dev, "cannot hint free memory: %s (%d)\n",
			ret == -EBUSY ? "there is another device" : "no memory",
			ret);
		goto reset;
	}
	register_reboot_notifier(&fh->reboot_nb);
	vfh_read_config(fh);
	return 0;

reset:
	/* Or the queue could not be set up by whoever tries next. */
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	vfh_free_msgs(fh);
free_device:
	kfree(fh);
	return ret;
}

static void vfh_remove(struct virtio_device *vdev)
{
	struct virtio_freehint *fh = vdev->priv;

	unregister_reboot_notifier(&fh->reboot_nb);
	vfh_quiesce(fh);
	freehint_unregister(&fh->dev);
	/* The engine may have had a last reason for a reset. */
	flush_work(&fh->reset_work);
	vdev->config->del_vqs(vdev);
	vfh_free_msgs(fh);
	kfree(fh);
}

/*
 * Section "Feature bits". Behind an IOMMU, real or for confidentiality, a
 * guest-physical address means nothing to the device.
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

/* Activating the engine makes it forget all that the device said before. */
static int vfh_restore(struct virtio_device *vdev)
{
	struct virtio_freehint *fh = vdev->priv;
	int ret;

	ret = vfh_find_vqs(fh);
	if (ret)
		return ret;
	/* It was told before it was reset. */
	if (fh->given_up) {
		virtio_device_ready(vdev);
		vfh_tell_failed(fh);
		return 0;
	}
	vfh_config_enable(fh, true);
	vfh_resume(fh);
	return 0;
}
#endif

static const unsigned int vfh_features[] = {
	VIRTIO_FREEHINT_F_FLUSH,
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
module_virtio_driver(virtio_freehint_driver);

MODULE_DESCRIPTION("Virtio free memory hint driver");
MODULE_LICENSE("GPL");
