// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: what the device is told of the guest's memory. Section
 * "Gauges".
 *
 * Gauges go along with hints, where they cost no notification of their own. What changes
 * without hints is looked at now and then, by a timer that does not wake a CPU: an idle
 * guest stays idle, and has nothing to report either.
 */
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>

#include "vfh.h"
#include "trace.h"

/* What moved by less than one in this many bytes of memory is not worth telling. */
#define VFH_GAUGES_SHARE	128

/**
 * vfh_gauges_send - put the present gauges where the device will find them
 * @fh: the device
 *
 * Return: whether it is to be told: not if it takes no gauges, or has not read the last
 * ones.
 */
bool vfh_gauges_send(struct vfh *fh)
{
	struct vfh_figures figures = vfh_figures(fh);
	struct vfh_msg *msg = &fh->gauges;

	if (msg->queued || msg->refused)
		return false;
	vfh_fill_hdr(msg, VIRTIO_FREEHINT_T_GAUGES, 0, 0, 0);
	msg->request->gauges = vfh_le_gauges(&figures);
	if (fh->port->send(fh, msg, sizeof(msg->request->gauges), 0))
		return false;
	msg->queued = true;
	trace_freehint_gauges(&figures);
	fh->told = figures;
	return true;
}

/**
 * vfh_gauges_worth_telling - have gauges moved enough to be told without a hint
 * @fh: the device
 *
 * Context: any.
 */
bool vfh_gauges_worth_telling(const struct vfh *fh)
{
	/* No less than a granule, and no more than what an operator cares for. */
	u64 share = min_t(u64, vfh_bytes(totalram_pages()) / VFH_GAUGES_SHARE, SZ_64M);
	const struct vfh_figures now = vfh_figures(fh), *old = &fh->told;
	u64 step = max(share, fh->granule);

	return abs_diff(old->free, now.free) >= step ||
	       abs_diff(old->pending, now.pending) >= step ||
	       abs_diff(old->hinted, now.hinted) >= step ||
	       abs_diff(old->in_flight, now.in_flight) >= step ||
	       abs_diff(old->stuck, now.stuck) >= step ||
	       abs_diff(old->reused, now.reused) >= step;
}

/**
 * vfh_gauges_rest - there is nothing more to do for now
 * @fh: the device
 *
 * What went along with the last hint is of the time when it was in flight. Nobody may look
 * again for as long as the guest is idle.
 */
void vfh_gauges_rest(struct vfh *fh)
{
	if (vfh_gauges_worth_telling(fh) && vfh_gauges_send(fh))
		fh->port->kick(fh);
}
