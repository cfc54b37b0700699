// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: messages, and the virtqueue that carries them. See
 * section "Messages". The queue belongs to the loop, so it needs no lock.
 */
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>

#include "vfh.h"
#include "trace.h"

/* The device may not keep us waiting for longer than this. */
#define VFH_MAX_RETRY_MS	60000

/**
 * vfh_fill_hdr - fill the header of a message
 * @msg: the message
 * @type: enum virtio_freehint_type
 * @flags: depends on @type
 * @nranges: ranges that follow
 * @cookie: shown in traces
 */
void vfh_fill_hdr(struct vfh_msg *msg, u16 type, u16 flags, u32 nranges,
		  u64 cookie)
{
	msg->request->hdr = (struct virtio_freehint_hdr) {
		.type = cpu_to_le16(type),
		.flags = cpu_to_le16(flags),
		.nranges = cpu_to_le32(nranges),
		.cookie = cpu_to_le64(cookie),
	};
}

/**
 * vfh_send_hint - make a hint available, section "Hinting free memory"
 * @fh: the device
 * @msg: a message whose batch was collected
 *
 * Does not notify the device. Return: 0, or a negative error if the device lacks it.
 */
int vfh_send_hint(struct vfh *fh, struct vfh_msg *msg)
{
	const struct freehint_batch *batch = msg->batch;
	u16 flags = want_init_on_free() ? VIRTIO_FREEHINT_HINT_F_ZERO : 0;
	unsigned int i;
	int ret;

	msg->lazy = batch->early && fh->config.lazy;
	if (msg->lazy)
		flags |= VIRTIO_FREEHINT_HINT_F_LAZY;

	msg->cookie = fh->counters.hints + 1;
	vfh_fill_hdr(msg, VIRTIO_FREEHINT_T_HINT, flags, batch->nr_ranges,
		     msg->cookie);
	for (i = 0; i < batch->nr_ranges; i++) {
		const struct freehint_range *range = &batch->ranges[i];

		msg->request->ranges[i] = (struct virtio_freehint_range) {
			.addr = cpu_to_le64(PFN_PHYS(range->pfn)),
			.len = cpu_to_le64(PFN_PHYS(range->nr_pages)),
		};
	}
	trace_freehint_submit(msg);
	ret = fh->port->send(fh, msg,
			     flex_array_size(msg->request, ranges, batch->nr_ranges),
			     batch->nr_ranges);
	if (ret)
		return ret;
	fh->counters.hints++;
	fh->counters.ranges += batch->nr_ranges;
	fh->counters.hinted_bytes += vfh_bytes(batch->nr_pages);
	return 0;
}

/**
 * vfh_result - the result of a message as a whole
 * @answer: what the device wrote
 * @len: how much of it
 *
 * Return: enum virtio_freehint_result, or 0 for none.
 */
u16 vfh_result(const struct vfh_answer *answer, size_t len)
{
	if (len < sizeof(answer->ack))
		return 0;
	return le16_to_cpu(answer->ack.result);
}

/* How many statuses the device gave. */
static size_t vfh_nr_statuses(struct vfh *fh, const struct vfh_answer *answer,
			      size_t len)
{
	u16 result = vfh_result(answer, len);

	switch (result) {
	case VIRTIO_FREEHINT_R_DONE:
		return min_t(size_t, le32_to_cpu(answer->ack.nstatus),
			     len - sizeof(answer->ack));
	case VIRTIO_FREEHINT_R_UNSUPPORTED:
		/* It would give the same answer to every other hint. */
		vfh_fail(fh, true, "the device does not support these hints");
		return 0;
	default:
		if (!fh->baffled)
			dev_warn(&fh->vdev->dev, "no known result in an answer of %zu bytes (%u), taking all such as refusals\n",
				 len, result);
		fh->baffled = true;
		return 0;
	}
}

/* Section "Range status": an unknown status means what its class means. */
static enum vfh_verdict vfh_verdict(u8 status, bool lazy)
{
	if (status >= VIRTIO_FREEHINT_S_NEVER)
		return VFH_NEVER;

	switch (status) {
	case VIRTIO_FREEHINT_S_DISCARDED:
		return VFH_DISCARDED;
	case VIRTIO_FREEHINT_S_LAZY:
		return lazy ? VFH_LAZY : VFH_DECLINED;
	case VIRTIO_FREEHINT_S_THROTTLED:
		return VFH_THROTTLED;
	case VIRTIO_FREEHINT_S_FAILED:
		return VFH_FAILED;
	default:
		return VFH_DECLINED;
	}
}

static enum freehint_outcome vfh_outcome(enum vfh_verdict verdict)
{
	switch (verdict) {
	case VFH_DISCARDED:
		return FREEHINT_DISCARDED;
	case VFH_LAZY:
		return FREEHINT_LAZY;
	case VFH_THROTTLED:
		return FREEHINT_RETRY;
	case VFH_NEVER:
		return FREEHINT_SUSPECT;
	default:
		return FREEHINT_REFUSED;
	}
}

/**
 * vfh_read_answer - see what became of the ranges of a hint
 * @fh: the device
 * @msg: the hint, which the device has used; its batch is ready to be returned
 * @len: how much the device has written
 *
 * Answers of an epoch other than ours claim nothing.
 *
 * Return: how long the device wants to be left alone, in ms.
 */
unsigned int vfh_read_answer(struct vfh *fh, struct vfh_msg *msg,
			     unsigned int len)
{
	const struct vfh_answer *answer = msg->answer;
	size_t nr = vfh_nr_statuses(fh, answer, len);
	unsigned int i, retry_ms = 0;
	bool stale;

	stale = nr && le32_to_cpu(answer->ack.rehint_epoch) != fh->config.epoch;
	/* Either we or the answer may be behind: read the configuration. */
	fh->config_changed |= stale;
	trace_freehint_complete(msg, stale);

	for (i = 0; i < msg->batch->nr_ranges; i++) {
		struct freehint_range *range = &msg->batch->ranges[i];
		enum vfh_verdict verdict;

		verdict = i < nr ? vfh_verdict(answer->status[i], msg->lazy) :
				   VFH_DECLINED;
		fh->counters.verdict_bytes[verdict] += vfh_bytes(range->nr_pages);
		trace_freehint_range(msg->cookie, range, verdict);
		range->outcome = stale ? FREEHINT_RETRY : vfh_outcome(verdict);
		if (verdict == VFH_THROTTLED)
			retry_ms = clamp(le32_to_cpu(answer->ack.retry_after_ms),
					 1U, VFH_MAX_RETRY_MS);
	}
	return retry_ms;
}

/**
 * vfh_figures - the present figures
 * @fh: the device
 *
 * Context: any.
 */
struct vfh_figures vfh_figures(const struct vfh *fh)
{
	struct freehint_stats stats;

	fh->source->get_stats(&stats);
	return (struct vfh_figures) {
		.free = vfh_bytes(stats.free),
		.pending = vfh_bytes(stats.pending),
		.hinted = vfh_bytes(stats.discarded),
		.in_flight = vfh_bytes(stats.out),
		.stuck = vfh_bytes(stats.stuck),
		.reused = vfh_bytes(stats.reused),
		.rest_ms = fh->pace.age_ms,
	};
}

/**
 * vfh_le_gauges - figures as the device reads them
 * @figures: the figures
 */
struct virtio_freehint_gauges vfh_le_gauges(const struct vfh_figures *figures)
{
	return (struct virtio_freehint_gauges) {
		.free = cpu_to_le64(figures->free),
		.pending = cpu_to_le64(figures->pending),
		.hinted = cpu_to_le64(figures->hinted),
		.in_flight = cpu_to_le64(figures->in_flight),
		.stuck = cpu_to_le64(figures->stuck),
		.reused = cpu_to_le64(figures->reused),
		.rest_ms = cpu_to_le32(figures->rest_ms),
	};
}

/*
 * The port of a real device.
 */

static bool vfh_virtio_read_config(struct vfh *fh, struct vfh_config *config)
{
	struct virtio_device *vdev = fh->vdev;
	u32 flush_id = 0;

	if (vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET)
		return false;
	virtio_cread_le(vdev, struct virtio_freehint_config, rehint_epoch,
			&config->epoch);
	virtio_cread_le(vdev, struct virtio_freehint_config, state,
			&config->state);
	virtio_cread_le(vdev, struct virtio_freehint_config, delay_ms,
			&config->delay_ms);
	virtio_cread_le(vdev, struct virtio_freehint_config, min_age_ms,
			&config->min_age_ms);
	config->lazy = 0;
	/* Virtio must not be asked for a feature that is not in the driver's table. */
	if (IS_ENABLED(CONFIG_VIRTIO_FREEHINT_PACE))
		virtio_cread_le_feature(vdev, VIRTIO_FREEHINT_F_LAZY,
					struct virtio_freehint_config, lazy,
					&config->lazy);

	/* The id changes last: from then on, the fields that belong to it are valid. */
	if (IS_ENABLED(CONFIG_VIRTIO_FREEHINT_FLUSH))
		virtio_cread_le_feature(vdev, VIRTIO_FREEHINT_F_FLUSH,
					struct virtio_freehint_config, flush_id,
					&flush_id);
	if (flush_id == config->flush_id)
		return true;
	config->flush_id = flush_id;
	virtio_cread_le(vdev, struct virtio_freehint_config, flush_flags,
			&config->flush_flags);
	virtio_cread_le(vdev, struct virtio_freehint_config, flush_timeout_ms,
			&config->flush_timeout_ms);
	return true;
}

static void vfh_virtio_write_status(struct vfh *fh, u32 status)
{
	virtio_cwrite_le(fh->vdev, struct virtio_freehint_config, driver_status,
			 &status);
}

static int vfh_virtio_send(struct vfh *fh, struct vfh_msg *msg, size_t size,
			   size_t nr_statuses)
{
	size_t answer_size = struct_size(msg->answer, status, nr_statuses);
	struct scatterlist request, answer, *sgs[] = { &request, &answer };

	/* What the device does not write claims nothing. */
	memset(msg->answer, 0, answer_size);

	sg_init_one(&request, msg->request,
		    offsetof(struct vfh_request, ranges) + size);
	sg_init_one(&answer, msg->answer, answer_size);
	return virtqueue_add_sgs(fh->vq, sgs, 1, 1, msg,
				 GFP_NOWAIT | __GFP_NOWARN);
}

static void vfh_virtio_kick(struct vfh *fh)
{
	/* No need while the device looks at the queue anyway. */
	if (!virtqueue_kick_prepare(fh->vq))
		return;
	fh->counters.notifications++;
	virtqueue_notify(fh->vq);
}

static struct vfh_msg *vfh_virtio_next(struct vfh *fh, unsigned int *len)
{
	struct vfh_msg *msg;

	do {
		virtqueue_disable_cb(fh->vq);
		msg = virtqueue_get_buf(fh->vq, len);
	} while (!msg && !virtqueue_enable_cb(fh->vq));
	return msg;
}

static bool vfh_virtio_is_broken(struct vfh *fh)
{
	return virtqueue_is_broken(fh->vq);
}

/*
 * Surprise removal: reads from a device that is gone give all ones. So do reads from a
 * PCI device that is there but does not decode its memory, and maybe from one on another
 * transport: these may still write to the guest's memory.
 */
static bool vfh_virtio_is_gone(struct vfh *fh)
{
	struct device *parent = fh->vdev->dev.parent;

	return dev_is_pci(parent) &&
	       fh->vdev->config->get_status(fh->vdev) == 0xff &&
	       !pci_device_is_present(to_pci_dev(parent));
}

static void vfh_virtio_reset(struct vfh *fh)
{
	queue_work(system_long_wq, &fh->reset_work);
}

static void vfh_virtio_revive(struct vfh *fh)
{
	queue_work(system_long_wq, &fh->revive_work);
}

const struct vfh_port vfh_virtio_port = {
	.read_config = vfh_virtio_read_config,
	.write_status = vfh_virtio_write_status,
	.send = vfh_virtio_send,
	.kick = vfh_virtio_kick,
	.next = vfh_virtio_next,
	.is_broken = vfh_virtio_is_broken,
	.is_gone = vfh_virtio_is_gone,
	.reset = vfh_virtio_reset,
	.revive = vfh_virtio_revive,
};

/*
 * Buffers.
 */

static void vfh_free_msg(struct vfh_msg *msg)
{
	kfree(msg->batch);
	kfree(msg->request);
	kfree(msg->answer);
}

static bool vfh_alloc_msg(struct vfh_msg *msg, unsigned int nr_ranges)
{
	msg->request = kmalloc(struct_size(msg->request, ranges, nr_ranges),
			       GFP_KERNEL);
	msg->answer = kmalloc(struct_size(msg->answer, status, nr_ranges),
			      GFP_KERNEL);
	return msg->request && msg->answer;
}

static bool vfh_alloc_hint(struct vfh *fh, struct vfh_msg *msg)
{
	if (!vfh_alloc_msg(msg, fh->max_ranges))
		return false;
	msg->batch = kzalloc(struct_size(msg->batch, ranges, fh->max_ranges),
			     GFP_KERNEL);
	if (!msg->batch)
		return false;
	msg->batch->max_ranges = fh->max_ranges;
	list_add_tail(&msg->list, &fh->idle);
	return true;
}

/**
 * vfh_alloc_msgs - allocate the buffers of all messages
 * @fh: the device, with its limits
 *
 * Return: 0 or -ENOMEM; call vfh_free_msgs() in either case.
 */
int vfh_alloc_msgs(struct vfh *fh)
{
	unsigned int i;
	bool ok;

	ok = vfh_alloc_msg(&fh->gauges, 0) && vfh_alloc_msg(&fh->flush.done, 0);
	for (i = 0; ok && i < fh->nr_hints; i++)
		ok = vfh_alloc_hint(fh, &fh->hints[i]);
	return ok ? 0 : -ENOMEM;
}

/**
 * vfh_free_msgs - free the buffers of all messages
 * @fh: the device, which has none of them
 */
void vfh_free_msgs(struct vfh *fh)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fh->hints); i++)
		vfh_free_msg(&fh->hints[i]);
	vfh_free_msg(&fh->gauges);
	vfh_free_msg(&fh->flush.done);
}
