/*
 * Virtio free memory hint device: flush
 *
 * The operator wants all free memory now, for instance before the guest is
 * saved. The device asks the driver for it by a new flush ID in config space,
 * and somebody waits for the end: each ID that was given out gets one event
 * FREEHINT_FLUSH_COMPLETED, whatever the driver does or does not do.
 *
 * A flush is pending from when it is accepted until that event. At most one is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-events-freehint.h"
#include "qapi/qapi-visit-freehint.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/*
 * How much later than it should an answer may come: the driver waits for its
 * last hints, each of which the device may keep for a second, and a busy host
 * does not let the guest run at all times.
 */
#define VIRTIO_FREEHINT_FLUSH_GRACE_MS 2000

static bool has_flush(VirtIOFreehint *fh)
{
    return virtio_host_has_feature(VIRTIO_DEVICE(fh), VIRTIO_FREEHINT_F_FLUSH);
}

static bool negotiated_flush(VirtIOFreehint *fh)
{
    return virtio_vdev_has_feature(VIRTIO_DEVICE(fh), VIRTIO_FREEHINT_F_FLUSH);
}

/* Somebody waits for a flush, so that it is not begun in vain. */
static bool can_flush(VirtIOFreehint *fh, Error **errp)
{
    const VirtIODevice *vdev = VIRTIO_DEVICE(fh);

    if (!has_flush(fh)) {
        error_setg(errp, "the device has no flush: it was created with"
                   " flush=off");
    } else if (fh->flush.pending) {
        error_setg(errp, "flush %" PRIu32 " is in progress; it ends with"
                   " FREEHINT_FLUSH_COMPLETED", fh->flush.id);
    } else if (fh->state != VIRTIO_FREEHINT_STATE_ACTIVE) {
        error_setg(errp, "the device is %s, reason '%s'; query-freehint tells"
                   " more", FreehintState_str(fh->state),
                   FreehintReason_str(fh->reason));
    } else if (!vdev->vm_running) {
        error_setg(errp, "the VM is stopped, so that its driver cannot"
                   " answer");
    } else if (!fh->running) {
        error_setg(errp, "the guest has no driver for the device that is"
                   " ready");
    } else if (!negotiated_flush(fh)) {
        error_setg(errp, "the guest's driver does not support flush");
    } else {
        return true;
    }
    return false;
}

/* Zero stands for "none yet". */
static uint32_t next_id(uint32_t id)
{
    return id == UINT32_MAX ? 1 : id + 1;
}

uint32_t virtio_freehint_flush_start(VirtIOFreehint *fh, uint32_t timeout_ms,
                                     bool compact, Error **errp)
{
    VirtIOFreehintFlush *flush = &fh->flush;

    virtio_freehint_refresh(fh);
    if (!can_flush(fh, errp)) {
        return 0;
    }
    flush->flags = compact ? VIRTIO_FREEHINT_FLUSH_F_COMPACT : 0;
    flush->timeout_ms = timeout_ms;
    flush->last_id = next_id(flush->last_id);
    flush->id = flush->last_id;
    flush->pending = true;
    flush->start_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    flush->start_discarded = fh->stats.discarded.bytes;
    timer_mod(flush->timer, flush->start_ms + timeout_ms +
              VIRTIO_FREEHINT_FLUSH_GRACE_MS);
    trace_virtio_freehint_flush_start(flush->id, flush->flags, timeout_ms);
    virtio_freehint_notify_config(fh);
    return flush->id;
}

static FreehintFlushCompleted *describe_end(VirtIOFreehint *fh,
                                            FreehintFlushResult result,
                                            const uint64_t *hinted)
{
    const VirtIOFreehintFlush *flush = &fh->flush;
    const DeviceState *proxy = virtio_freehint_proxy(fh);
    FreehintFlushCompleted *end = g_new0(FreehintFlushCompleted, 1);

    end->id = g_strdup(proxy->id);
    end->qom_path = g_strdup(proxy->canonical_path);
    end->flush_id = flush->id;
    end->result = result;
    end->has_reason = result == FREEHINT_FLUSH_RESULT_INACTIVE;
    end->reason = fh->reason;
    end->driver_status = virtio_freehint_driver_status(fh);
    end->duration_ms = virtio_freehint_age_ms(flush->start_ms);
    end->discarded = fh->stats.discarded.bytes - flush->start_discarded;
    end->has_hinted = hinted;
    end->hinted = hinted ? *hinted : 0;
    end->guest_gauges = virtio_freehint_gauges_query(fh);
    return end;
}

static void complete(VirtIOFreehint *fh, FreehintFlushResult result,
                     const uint64_t *hinted)
{
    VirtIOFreehintFlush *flush = &fh->flush;

    trace_virtio_freehint_flush_end(flush->id, FreehintFlushResult_str(result));
    flush->pending = false;
    timer_del(flush->timer);
    qapi_free_FreehintFlushCompleted(flush->last);
    flush->last = describe_end(fh, result, hinted);
    qapi_event_send_freehint_flush_completed(flush->last);
}

static FreehintFlushResult answer_result(uint32_t result)
{
    switch (result) {
    case VIRTIO_FREEHINT_FLUSH_DONE:
        return FREEHINT_FLUSH_RESULT_DONE;
    case VIRTIO_FREEHINT_FLUSH_TIMEOUT:
        return FREEHINT_FLUSH_RESULT_TIMEOUT;
    case VIRTIO_FREEHINT_FLUSH_REFUSED:
        return FREEHINT_FLUSH_RESULT_REFUSED;
    default:
        return FREEHINT_FLUSH_RESULT_UNKNOWN;
    }
}

void virtio_freehint_flush_answered(
    VirtIOFreehint *fh, const struct virtio_freehint_flush_done *done)
{
    const uint32_t id = le32_to_cpu(done->id);
    const uint64_t hinted = le64_to_cpu(done->hinted);

    trace_virtio_freehint_flush_answer(id, le32_to_cpu(done->result), hinted);
    /* An answer may come late, or never have been asked for. */
    if (!fh->flush.pending || id != fh->flush.id) {
        return;
    }
    virtio_freehint_gauges_set(fh, &done->gauges);
    complete(fh, answer_result(le32_to_cpu(done->result)), &hinted);
}

void virtio_freehint_flush_end(VirtIOFreehint *fh, FreehintFlushResult result)
{
    if (fh->flush.pending) {
        complete(fh, result, NULL);
    }
}

static void flush_timer_cb(void *opaque)
{
    virtio_freehint_flush_end(opaque, FREEHINT_FLUSH_RESULT_NO_ANSWER);
}

FreehintFlush *virtio_freehint_flush_query(VirtIOFreehint *fh)
{
    const VirtIOFreehintFlush *flush = &fh->flush;
    FreehintFlush *info;

    if (!has_flush(fh)) {
        return NULL;
    }
    info = g_new0(FreehintFlush, 1);
    info->negotiated = negotiated_flush(fh);
    info->has_pending_id = flush->pending;
    info->pending_id = flush->id;
    if (flush->last) {
        info->last = QAPI_CLONE(FreehintFlushOutcome,
                                qapi_FreehintFlushCompleted_base(flush->last));
    }
    return info;
}

void virtio_freehint_flush_init(VirtIOFreehint *fh)
{
    fh->flush.timer = timer_new_ms(QEMU_CLOCK_REALTIME, flush_timer_cb, fh);
}

void virtio_freehint_flush_cleanup(VirtIOFreehint *fh)
{
    virtio_freehint_flush_end(fh, FREEHINT_FLUSH_RESULT_REMOVED);
    timer_free(fh->flush.timer);
    qapi_free_FreehintFlushCompleted(fh->flush.last);
    fh->flush.last = NULL;
}
