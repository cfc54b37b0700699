// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: what the device is told of the guest's memory. Section
 * "Gauges".
 *
 * Gauges go along with hints, where they need no notification of their own. A timer
 * that does not wake a CPU looks for changes without hints now and then: an idle guest
 * stays idle, and has nothing to report either.
 */
#include <linux/math.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>

#include "vfh.h"
#include "trace.h"

/* A change of less than one in this many bytes of memory is not worth telling. */
#define VFH_GAUGES_SHARE	128

/**
 * vfh_gauges_send - put the present gauges where the device will find them
 * @fh: the device
 *
 * Return: whether to notify it: not if it takes no gauges, or has not read the last ones.
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
 * vfh_gauges_worth_telling - have gauges changed enough to be sent without a hint
 * @fh: the device
 *
 * Context: any.
 */
bool vfh_gauges_worth_telling(const struct vfh *fh)
{
	/* At least a granule, and at most what matters to an operator. */
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
 * The gauges that went along with the last hint were taken while it was in flight.
 * Nobody may look again for as long as the guest is idle.
 */
void vfh_gauges_rest(struct vfh *fh)
{
	if (vfh_gauges_worth_telling(fh) && vfh_gauges_send(fh))
		fh->port->kick(fh);
}
