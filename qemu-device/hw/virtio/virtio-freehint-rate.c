/*
 * Virtio free memory hint device: the operator's limit
 *
 * So many bytes a second may be discarded. What is above the limit is told to
 * the driver at once, with the time after which it is worth another try: the
 * device never keeps a message for later, because the guest lacks the memory
 * until it is answered.
 *
 * A range that has been begun is carried through, since one that is cut off
 * would start from its beginning each time. The next ones wait for longer then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "virtio-freehint-internal.h"

/* The limit holds on average over this time. */
#define RATE_SLICE_NS (100 * SCALE_MS)

/* A driver that comes back too early is told so again. */
#define MAX_RETRY_MS 60000

bool virtio_freehint_check_rate_limit(uint64_t limit, Error **errp)
{
    if (limit && limit < VIRTIO_FREEHINT_MIN_RATE_LIMIT) {
        error_setg(errp, "'" VIRTIO_FREEHINT_RATE_LIMIT_PROP "' is %" PRIu64
                   ", but has to be 0 or at least %d bytes a second", limit,
                   VIRTIO_FREEHINT_MIN_RATE_LIMIT);
        return false;
    }
    return true;
}

void virtio_freehint_rate_set_limit(VirtIOFreehint *fh, uint64_t limit)
{
    fh->rate_limit = limit;
    ratelimit_set_speed(&fh->rate, limit, RATE_SLICE_NS);
}

void virtio_freehint_rate_count(VirtIOFreehint *fh, uint64_t bytes)
{
    ratelimit_calculate_delay(&fh->rate, bytes);
}

uint32_t virtio_freehint_rate_wait_ms(VirtIOFreehint *fh)
{
    const int64_t ns = ratelimit_calculate_delay(&fh->rate, 0);

    return ns > 0 ? MIN(DIV_ROUND_UP(ns, SCALE_MS), MAX_RETRY_MS) : 0;
}

void virtio_freehint_rate_init(VirtIOFreehint *fh)
{
    ratelimit_init(&fh->rate);
}

void virtio_freehint_rate_cleanup(VirtIOFreehint *fh)
{
    ratelimit_destroy(&fh->rate);
}
