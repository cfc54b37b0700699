/*
 * Virtio free memory hint device: messages
 *
 * Takes messages off the queue, keeps the books about their ranges, and puts
 * the answers together.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "qemu/timer.h"
#include "hw/boards.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

QEMU_BUILD_BUG_ON(VIRTIO_FREEHINT_NUM_DECLINE_REASONS !=
                  VIRTIO_FREEHINT_REASON_EXTERNAL + 1);
QEMU_BUILD_BUG_ON(VIRTIO_FREEHINT_NUM_REJECTS !=
                  VIRTIO_FREEHINT_S_BACKING - VIRTIO_FREEHINT_S_NEVER + 1);

/*
 * A wrong range may claim any length. No range counts for more than there is,
 * so that the counters stay meaningful.
 */
static uint64_t countable_bytes(const VirtIOFreehintRange *range)
{
    return MIN(range->len, current_machine->maxram_size);
}

static void count_range(VirtIOFreehintCount *count,
                        const VirtIOFreehintRange *range)
{
    count->ranges++;
    count->bytes += countable_bytes(range);
}

static void uncount_range(VirtIOFreehintCount *count,
                          const VirtIOFreehintRange *range)
{
    count->ranges--;
    count->bytes -= countable_bytes(range);
}

static VirtIOFreehintCount *count_for(VirtIOFreehintStats *stats,
                                      uint8_t status, uint32_t why)
{
    switch (status) {
    case VIRTIO_FREEHINT_S_DISCARDED:
        return &stats->discarded;
    case VIRTIO_FREEHINT_S_DECLINED:
        return &stats->declined[why];
    case VIRTIO_FREEHINT_S_THROTTLED:
        return &stats->throttled;
    case VIRTIO_FREEHINT_S_FAILED:
        return &stats->failed;
    default:
        return &stats->rejected[status - VIRTIO_FREEHINT_S_NEVER];
    }
}

void virtio_freehint_settle(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                            uint8_t status, uint32_t why)
{
    const VirtIOFreehintRange *range = &hint->ranges[hint->next];

    trace_virtio_freehint_range(hint->cookie, hint->next, range->addr,
                                range->len, status);
    uncount_range(&fh->stats.in_flight, range);
    count_range(count_for(&fh->stats, status, why), range);
    if (!hint->next) {
        hint->epoch = fh->rehint_epoch;
    }
    if (status == VIRTIO_FREEHINT_S_DECLINED) {
        virtio_freehint_owe_epoch(fh);
    }
    hint->status[hint->next++] = status;
    hint->done = 0;
}

void virtio_freehint_count_over_rate(VirtIOFreehint *fh,
                                     const VirtIOFreehintHint *hint)
{
    count_range(&fh->stats.over_rate, &hint->ranges[hint->next]);
}

static void free_hint(VirtIOFreehintHint *hint)
{
    virtio_freehint_precopy_forget(hint->skips);
    g_free(hint->ranges);
    g_free(hint->status);
    g_free(hint);
}

/* Returns the bytes written, for the used ring. */
static size_t write_ack(const VirtIOFreehintHint *hint, uint16_t result)
{
    const VirtQueueElement *elem = &hint->elem;
    const struct virtio_freehint_ack ack = {
        .result = cpu_to_le16(result),
        .nstatus = cpu_to_le32(hint->nranges),
        .rehint_epoch = cpu_to_le32(hint->epoch),
        .retry_after_ms = cpu_to_le32(hint->retry_ms),
    };
    size_t len;

    len = iov_from_buf(elem->in_sg, elem->in_num, 0, &ack, sizeof(ack));
    /* There is no array of no statuses. */
    if (hint->nranges) {
        len += iov_from_buf(elem->in_sg, elem->in_num, len, hint->status,
                            hint->nranges);
    }
    return len;
}

void virtio_freehint_use(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                         size_t len)
{
    virtqueue_push(fh->hintq, &hint->elem, len);
}

static void push_quietly(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                         uint16_t result)
{
    const size_t len = write_ack(hint, result);

    VIRTIO_FREEHINT_GET_CLASS(fh)->use(fh, hint, len);
    free_hint(hint);
}

static void push_answer(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                        uint16_t result)
{
    push_quietly(fh, hint, result);
    virtio_notify(VIRTIO_DEVICE(fh), fh->hintq);
}

void virtio_freehint_push(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    assert(hint->next == hint->nranges);
    trace_virtio_freehint_done(hint->cookie, hint->epoch);
    QTAILQ_REMOVE(&fh->hints, hint, entry);
    push_answer(fh, hint, VIRTIO_FREEHINT_R_DONE);
}

void virtio_freehint_forget(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    QTAILQ_REMOVE(&fh->hints, hint, entry);
    virtqueue_detach_element(fh->hintq, &hint->elem, 0);
    free_hint(hint);
}

static void copy_ranges(VirtIOFreehintHint *hint)
{
    const size_t size = hint->nranges * sizeof(struct virtio_freehint_range);
    g_autofree struct virtio_freehint_range *ranges = g_malloc(size);
    uint32_t i;

    iov_to_buf(hint->elem.out_sg, hint->elem.out_num,
               sizeof(struct virtio_freehint_hdr), ranges, size);
    hint->ranges = g_new(VirtIOFreehintRange, hint->nranges);
    hint->status = g_new0(uint8_t, hint->nranges);
    for (i = 0; i < hint->nranges; i++) {
        hint->ranges[i].addr = le64_to_cpu(ranges[i].addr);
        hint->ranges[i].len = le64_to_cpu(ranges[i].len);
    }
}

/*
 * The message is too short for what it says: there is no way to answer it, and
 * the driver has to reset the device, which ends the other messages as well.
 */
static void malformed(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                      const char *what, uint64_t has, uint64_t limit)
{
    fh->stats.malformed++;
    virtio_error(VIRTIO_DEVICE(fh), "virtio-freehint: malformed message: %s"
                 " is %" PRIu64 ", limit %" PRIu64, what, has, limit);
    virtqueue_detach_element(fh->hintq, &hint->elem, 0);
    free_hint(hint);
    virtio_freehint_drain(fh, false);
}

/* Only a hint is answered with statuses. */
static void push_result(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                        uint16_t result)
{
    hint->nranges = 0;
    push_answer(fh, hint, result);
}

static void unsupported(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                        uint16_t type)
{
    fh->stats.unsupported++;
    trace_virtio_freehint_unsupported(hint->cookie, type, hint->flags);
    push_result(fh, hint, VIRTIO_FREEHINT_R_UNSUPPORTED);
}

static void accept_hint(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    uint32_t i;

    trace_virtio_freehint_hint(hint->cookie, hint->flags, hint->nranges);
    if (hint->nranges) {
        copy_ranges(hint);
    }
    for (i = 0; i < hint->nranges; i++) {
        count_range(&fh->stats.hinted, &hint->ranges[i]);
        count_range(&fh->stats.in_flight, &hint->ranges[i]);
    }
    fh->stats.hints++;
    hint->arrival_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    fh->last_hint_ms = hint->arrival_ms;
    QTAILQ_INSERT_TAIL(&fh->hints, hint, entry);
}

static void parse_hint(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t out_size = iov_size(elem->out_sg, elem->out_num);
    const size_t in_size = iov_size(elem->in_sg, elem->in_num);
    uint64_t need;

    if (hint->nranges > fh->max_ranges) {
        malformed(fh, hint, "the number of ranges", hint->nranges,
                  fh->max_ranges);
        return;
    }
    need = sizeof(struct virtio_freehint_hdr) +
           (uint64_t)hint->nranges * sizeof(struct virtio_freehint_range);
    if (out_size < need) {
        malformed(fh, hint, "the readable part", out_size, need);
        return;
    }
    need = sizeof(struct virtio_freehint_ack) + hint->nranges;
    if (in_size < need) {
        malformed(fh, hint, "the writable part", in_size, need);
        return;
    }
    accept_hint(fh, hint);
}

/*
 * Copy what a message other than a hint has after its header. Returns whether
 * all of it is there; if not, the message is gone.
 */
static bool copy_body(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                      void *body, size_t size)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t hdr_size = sizeof(struct virtio_freehint_hdr);

    if (iov_to_buf(elem->out_sg, elem->out_num, hdr_size, body, size) == size) {
        return true;
    }
    malformed(fh, hint, "the readable part",
              iov_size(elem->out_sg, elem->out_num), hdr_size + size);
    return false;
}

static void parse_flush_done(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    struct virtio_freehint_flush_done done;

    if (copy_body(fh, hint, &done, sizeof(done))) {
        virtio_freehint_flush_answered(fh, &done);
        push_result(fh, hint, VIRTIO_FREEHINT_R_DONE);
    }
}

/*
 * No driver waits for this answer. Gauges come along with hints, and the
 * interrupt for a hint that is not used yet is due soon, and will do for both.
 */
static void parse_gauges(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    struct virtio_freehint_gauges gauges;

    if (!copy_body(fh, hint, &gauges, sizeof(gauges))) {
        return;
    }
    virtio_freehint_gauges_set(fh, &gauges);
    hint->nranges = 0;
    if (QTAILQ_EMPTY(&fh->hints)) {
        push_answer(fh, hint, VIRTIO_FREEHINT_R_DONE);
    } else {
        push_quietly(fh, hint, VIRTIO_FREEHINT_R_DONE);
    }
}

static bool is_supported(VirtIOFreehint *fh, uint16_t type, uint16_t flags)
{
    switch (type) {
    case VIRTIO_FREEHINT_T_HINT:
        return !(flags & ~VIRTIO_FREEHINT_HINT_F_ZERO);
    case VIRTIO_FREEHINT_T_FLUSH_DONE:
        return !flags && virtio_vdev_has_feature(VIRTIO_DEVICE(fh),
                                                 VIRTIO_FREEHINT_F_FLUSH);
    case VIRTIO_FREEHINT_T_GAUGES:
        return !flags;
    default:
        return false;
    }
}

/*
 * An unknown type may have any layout, so that only what all messages share is
 * looked at before the type.
 */
static void parse_message(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t out_size = iov_size(elem->out_sg, elem->out_num);
    const size_t in_size = iov_size(elem->in_sg, elem->in_num);
    struct virtio_freehint_hdr hdr;
    uint16_t type;

    if (iov_to_buf(elem->out_sg, elem->out_num, 0, &hdr, sizeof(hdr)) !=
        sizeof(hdr)) {
        malformed(fh, hint, "the readable part", out_size, sizeof(hdr));
        return;
    }
    if (in_size < sizeof(struct virtio_freehint_ack)) {
        malformed(fh, hint, "the writable part", in_size,
                  sizeof(struct virtio_freehint_ack));
        return;
    }

    type = le16_to_cpu(hdr.type);
    hint->flags = le16_to_cpu(hdr.flags);
    hint->nranges = le32_to_cpu(hdr.nranges);
    hint->cookie = le64_to_cpu(hdr.cookie);
    if (!is_supported(fh, type, hint->flags)) {
        unsupported(fh, hint, type);
    } else if (type == VIRTIO_FREEHINT_T_FLUSH_DONE) {
        parse_flush_done(fh, hint);
    } else if (type == VIRTIO_FREEHINT_T_GAUGES) {
        parse_gauges(fh, hint);
    } else {
        parse_hint(fh, hint);
    }
}

bool virtio_freehint_pop(VirtIOFreehint *fh)
{
    VirtIOFreehintHint *hint;

    hint = virtqueue_pop(fh->hintq, sizeof(VirtIOFreehintHint));
    if (!hint) {
        /* A ring that makes no sense breaks the device as a message does. */
        if (VIRTIO_DEVICE(fh)->broken) {
            virtio_freehint_drain(fh, false);
        }
        return false;
    }
    hint->flags = 0;
    hint->cookie = 0;
    hint->nranges = 0;
    hint->ranges = NULL;
    hint->status = NULL;
    hint->skips = NULL;
    hint->next = 0;
    hint->done = 0;
    hint->epoch = fh->rehint_epoch;
    hint->retry_ms = 0;
    parse_message(fh, hint);
    return true;
}
