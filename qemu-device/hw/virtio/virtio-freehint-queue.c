/*
 * Virtio free memory hint device: the queue
 *
 * Takes messages off the queue, has what they name discarded, keeps counters of
 * that, and puts the answers together. The file follows the way of a message
 * from top to bottom. At the end are the turns that do all of this: runs of one
 * bottom half. Each of them is bounded, and none waits for the worker. There is
 * at most one job in progress, and freehint_drain() ends it together with all
 * messages that were taken.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "hw/boards.h"
#include "hw/virtio/virtio-freehint.h"
#include "trace.h"

/*
 * How many messages one turn takes and works on at most, and how long it does
 * either. A message can have a thousand descriptors, and a range as many
 * regions as the guest has mapped: counts alone are no bound.
 */
#define FREEHINT_TURN 64
#define FREEHINT_TURN_NS (500 * SCALE_US)

/*
 * After this time, the rest of a message is throttled. The protocol allows for
 * a second until it is answered.
 */
#define FREEHINT_ANSWER_MS 500

/* When to hint ranges again that were throttled after that time. */
#define FREEHINT_RETRY_MS 100

QEMU_BUILD_BUG_ON(FREEHINT_NUM_DECLINED != VIRTIO_FREEHINT_REASON_EXTERNAL + 1);
QEMU_BUILD_BUG_ON(FREEHINT_NUM_REJECTED !=
                  VIRTIO_FREEHINT_S_BACKING - VIRTIO_FREEHINT_S_NEVER + 1);

/* Both parts of a turn have one: how much they have done, and their end. */
typedef struct FreehintBudget {
    unsigned int used;
    int64_t end_ns;
} FreehintBudget;

static FreehintBudget freehint_new_budget(void)
{
    return (FreehintBudget) { .end_ns = get_clock() + FREEHINT_TURN_NS };
}

static bool freehint_is_spent(const FreehintBudget *budget)
{
    return budget->used == FREEHINT_TURN || get_clock() >= budget->end_ns;
}

/* The books */

/*
 * A wrong range may claim any length. No range counts for more memory than
 * there is, so that the counters stay meaningful.
 */
static uint64_t freehint_countable(const FreehintRange *range)
{
    return MIN(range->len, current_machine->maxram_size);
}

static void freehint_count(FreehintCount *count, const FreehintRange *range)
{
    count->ranges++;
    count->bytes += freehint_countable(range);
}

static FreehintCount *freehint_count_for(FreehintCounters *counters,
                                         uint8_t status, uint32_t why)
{
    switch (status) {
    case VIRTIO_FREEHINT_S_DISCARDED:
    case VIRTIO_FREEHINT_S_LAZY:
        return &counters->discarded;
    case VIRTIO_FREEHINT_S_DECLINED:
        return &counters->declined[why];
    case VIRTIO_FREEHINT_S_THROTTLED:
        return &counters->throttled;
    case VIRTIO_FREEHINT_S_FAILED:
        return &counters->failed;
    default:
        return &counters->rejected[status - VIRTIO_FREEHINT_S_NEVER];
    }
}

/*
 * Give the next range of a hint its status. @why is the enum
 * virtio_freehint_reason to count it under if it is declined.
 */
static void freehint_settle(VirtIOFreehint *fh, FreehintHint *hint,
                            uint8_t status, uint32_t why)
{
    const FreehintRange *range = &hint->ranges[hint->next];

    trace_virtio_freehint_range(hint->cookie, hint->next, range->addr,
                                range->len, status);
    fh->counters.in_flight.ranges--;
    fh->counters.in_flight.bytes -= freehint_countable(range);
    freehint_count(freehint_count_for(&fh->counters, status, why), range);
    if (!hint->next) {
        hint->epoch = fh->rehint_epoch;
    }
    if (status == VIRTIO_FREEHINT_S_DECLINED) {
        freehint_owe_epoch(fh);
    }
    hint->status[hint->next++] = status;
    hint->done = 0;
    hint->lent = false;
}

static void freehint_decline(VirtIOFreehint *fh, FreehintHint *hint)
{
    freehint_settle(fh, hint, VIRTIO_FREEHINT_S_DECLINED,
                    freehint_guest_reason(fh));
}

/* All ranges of a hint share one answer, which says when to retry them. */
static void freehint_throttle(VirtIOFreehint *fh, FreehintHint *hint,
                              uint32_t retry_ms)
{
    hint->retry_ms = MAX(hint->retry_ms, retry_ms);
    freehint_settle(fh, hint, VIRTIO_FREEHINT_S_THROTTLED,
                    VIRTIO_FREEHINT_REASON_NONE);
}

/* Answers */

static void freehint_free(FreehintHint *hint)
{
    if (hint->skips) {
        g_array_unref(hint->skips);
    }
    g_free(hint->ranges);
    g_free(hint->status);
    g_free(hint);
}

/* Returns the bytes written, for the used ring. */
static size_t freehint_write_ack(const FreehintHint *hint, uint16_t result)
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
    /* Without ranges there is no array of statuses. */
    if (hint->nranges) {
        len += iov_from_buf(elem->in_sg, elem->in_num, len, hint->status,
                            hint->nranges);
    }
    return len;
}

void freehint_use(VirtIOFreehint *fh, FreehintHint *hint, size_t len)
{
    virtqueue_push(fh->hintq, &hint->elem, len);
}

static void freehint_push_quietly(VirtIOFreehint *fh, FreehintHint *hint,
                                  uint16_t result)
{
    const size_t len = freehint_write_ack(hint, result);

    VIRTIO_FREEHINT_GET_CLASS(fh)->use(fh, hint, len);
    freehint_free(hint);
}

static void freehint_push(VirtIOFreehint *fh, FreehintHint *hint,
                          uint16_t result)
{
    freehint_push_quietly(fh, hint, result);
    virtio_notify(VIRTIO_DEVICE(fh), fh->hintq);
}

/* Only a hint is answered with statuses. */
static void freehint_push_result(VirtIOFreehint *fh, FreehintHint *hint,
                                 uint16_t result)
{
    hint->nranges = 0;
    freehint_push(fh, hint, result);
}

/* Give a hint back to the driver: all its ranges are settled. */
static void freehint_push_hint(VirtIOFreehint *fh, FreehintHint *hint)
{
    assert(hint->next == hint->nranges);
    trace_virtio_freehint_done(hint->cookie, hint->epoch);
    QTAILQ_REMOVE(&fh->hints, hint, entry);
    freehint_push(fh, hint, VIRTIO_FREEHINT_R_DONE);
}

/* Drop a message whose buffers the driver has given up, or will. */
static void freehint_detach(VirtIOFreehint *fh, FreehintHint *hint)
{
    virtqueue_detach_element(fh->hintq, &hint->elem, 0);
    freehint_free(hint);
}

/* Drain */

static void freehint_drain_hint(VirtIOFreehint *fh, FreehintHint *hint,
                                bool answer)
{
    while (hint->next < hint->nranges) {
        freehint_decline(fh, hint);
    }
    if (answer) {
        freehint_push_hint(fh, hint);
    } else {
        QTAILQ_REMOVE(&fh->hints, hint, entry);
        freehint_detach(fh, hint);
    }
}

void freehint_drain(VirtIOFreehint *fh, bool answer)
{
    FreehintHint *hint;

    trace_virtio_freehint_drain(!QTAILQ_EMPTY(&fh->hints),
                                freehint_job_busy(fh), answer);
    freehint_job_drain(fh);
    while ((hint = QTAILQ_FIRST(&fh->hints))) {
        freehint_drain_hint(fh, hint, answer);
    }
}

/* Take and parse */

/*
 * The message is too short for its content: there is no way to answer it, and
 * the driver has to reset the device, which ends the other messages as well.
 */
static void freehint_malformed(VirtIOFreehint *fh, FreehintHint *hint,
                               const char *what, uint64_t has, uint64_t limit)
{
    fh->counters.malformed++;
    virtio_error(VIRTIO_DEVICE(fh), "virtio-freehint: malformed message: %s"
                 " is %" PRIu64 ", limit %" PRIu64, what, has, limit);
    freehint_detach(fh, hint);
    freehint_drain(fh, false);
}

static void freehint_unsupported(VirtIOFreehint *fh, FreehintHint *hint,
                                 uint16_t type)
{
    fh->counters.unsupported++;
    trace_virtio_freehint_unsupported(hint->cookie, type, hint->flags);
    freehint_push_result(fh, hint, VIRTIO_FREEHINT_R_UNSUPPORTED);
}

static void freehint_copy_ranges(FreehintHint *hint)
{
    const size_t size = hint->nranges * sizeof(struct virtio_freehint_range);
    g_autofree struct virtio_freehint_range *ranges = g_malloc(size);
    uint32_t i;

    iov_to_buf(hint->elem.out_sg, hint->elem.out_num,
               sizeof(struct virtio_freehint_hdr), ranges, size);
    hint->ranges = g_new(FreehintRange, hint->nranges);
    hint->status = g_new0(uint8_t, hint->nranges);
    for (i = 0; i < hint->nranges; i++) {
        hint->ranges[i].addr = le64_to_cpu(ranges[i].addr);
        hint->ranges[i].len = le64_to_cpu(ranges[i].len);
    }
}

static void freehint_accept(VirtIOFreehint *fh, FreehintHint *hint)
{
    uint32_t i;

    trace_virtio_freehint_hint(hint->cookie, hint->flags, hint->nranges);
    if (hint->nranges) {
        freehint_copy_ranges(hint);
    }
    for (i = 0; i < hint->nranges; i++) {
        freehint_count(&fh->counters.hinted, &hint->ranges[i]);
        freehint_count(&fh->counters.in_flight, &hint->ranges[i]);
    }
    fh->counters.hints++;
    hint->arrival_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    fh->last_hint_ms = hint->arrival_ms;
    QTAILQ_INSERT_TAIL(&fh->hints, hint, entry);
}

static void freehint_parse_hint(VirtIOFreehint *fh, FreehintHint *hint)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t out_size = iov_size(elem->out_sg, elem->out_num);
    const size_t in_size = iov_size(elem->in_sg, elem->in_num);
    const uint64_t out_need = sizeof(struct virtio_freehint_hdr) +
        (uint64_t)hint->nranges * sizeof(struct virtio_freehint_range);
    const uint64_t in_need = sizeof(struct virtio_freehint_ack) +
                             (uint64_t)hint->nranges;

    if (hint->nranges > fh->max_ranges) {
        freehint_malformed(fh, hint, "the number of ranges", hint->nranges,
                           fh->max_ranges);
    } else if (out_size < out_need) {
        freehint_malformed(fh, hint, "the readable part", out_size, out_need);
    } else if (in_size < in_need) {
        freehint_malformed(fh, hint, "the writable part", in_size, in_need);
    } else {
        freehint_accept(fh, hint);
    }
}

/*
 * Copy what a message other than a hint has after its header. Returns whether
 * all of it is there; if not, the message is gone.
 */
static bool freehint_copy_body(VirtIOFreehint *fh, FreehintHint *hint,
                               void *body, size_t size)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t hdr_size = sizeof(struct virtio_freehint_hdr);

    if (iov_to_buf(elem->out_sg, elem->out_num, hdr_size, body, size) == size) {
        return true;
    }
    freehint_malformed(fh, hint, "the readable part",
                       iov_size(elem->out_sg, elem->out_num), hdr_size + size);
    return false;
}

static void freehint_parse_flush_done(VirtIOFreehint *fh, FreehintHint *hint)
{
    struct virtio_freehint_flush_done done;

    if (freehint_copy_body(fh, hint, &done, sizeof(done))) {
        freehint_flush_answered(fh, &done);
        freehint_push_result(fh, hint, VIRTIO_FREEHINT_R_DONE);
    }
}

/*
 * No driver waits for this answer. Gauges come along with hints, and the
 * interrupt for a hint that is not used yet comes soon, and will do for both.
 */
static void freehint_parse_gauges(VirtIOFreehint *fh, FreehintHint *hint)
{
    struct virtio_freehint_gauges gauges;

    if (!freehint_copy_body(fh, hint, &gauges, sizeof(gauges))) {
        return;
    }
    freehint_set_gauges(fh, &gauges);
    hint->nranges = 0;
    if (QTAILQ_EMPTY(&fh->hints)) {
        freehint_push(fh, hint, VIRTIO_FREEHINT_R_DONE);
    } else {
        freehint_push_quietly(fh, hint, VIRTIO_FREEHINT_R_DONE);
    }
}

static bool freehint_is_supported(VirtIOFreehint *fh, uint16_t type,
                                  uint16_t flags)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(fh);

    switch (type) {
    case VIRTIO_FREEHINT_T_HINT:
        if (virtio_vdev_has_feature(vdev, VIRTIO_FREEHINT_F_LAZY)) {
            flags &= ~VIRTIO_FREEHINT_HINT_F_LAZY;
        }
        return !(flags & ~VIRTIO_FREEHINT_HINT_F_ZERO);
    case VIRTIO_FREEHINT_T_FLUSH_DONE:
        return !flags && virtio_vdev_has_feature(vdev,
                                                 VIRTIO_FREEHINT_F_FLUSH);
    case VIRTIO_FREEHINT_T_GAUGES:
        return !flags;
    default:
        return false;
    }
}

/*
 * An unknown type may have any layout, so the type is checked before anything
 * that not all messages share.
 */
static void freehint_parse(VirtIOFreehint *fh, FreehintHint *hint)
{
    const VirtQueueElement *elem = &hint->elem;
    const size_t out_size = iov_size(elem->out_sg, elem->out_num);
    const size_t in_size = iov_size(elem->in_sg, elem->in_num);
    struct virtio_freehint_hdr hdr;
    uint16_t type;

    if (iov_to_buf(elem->out_sg, elem->out_num, 0, &hdr, sizeof(hdr)) !=
        sizeof(hdr)) {
        freehint_malformed(fh, hint, "the readable part", out_size,
                           sizeof(hdr));
        return;
    }
    if (in_size < sizeof(struct virtio_freehint_ack)) {
        freehint_malformed(fh, hint, "the writable part", in_size,
                           sizeof(struct virtio_freehint_ack));
        return;
    }

    type = le16_to_cpu(hdr.type);
    hint->flags = le16_to_cpu(hdr.flags);
    hint->nranges = le32_to_cpu(hdr.nranges);
    hint->cookie = le64_to_cpu(hdr.cookie);
    if (!freehint_is_supported(fh, type, hint->flags)) {
        freehint_unsupported(fh, hint, type);
    } else if (type == VIRTIO_FREEHINT_T_FLUSH_DONE) {
        freehint_parse_flush_done(fh, hint);
    } else if (type == VIRTIO_FREEHINT_T_GAUGES) {
        freehint_parse_gauges(fh, hint);
    } else {
        freehint_parse_hint(fh, hint);
    }
}

/* Returns whether there was a message. */
static bool freehint_receive(VirtIOFreehint *fh)
{
    FreehintHint *hint = virtqueue_pop(fh->hintq, sizeof(FreehintHint));

    if (!hint) {
        /* A ring that makes no sense breaks the device, like such a message. */
        if (VIRTIO_DEVICE(fh)->broken) {
            freehint_drain(fh, false);
        }
        return false;
    }
    /* Clear all but the element, which comes first. */
    memset((char *)hint + sizeof(hint->elem), 0,
           sizeof(*hint) - sizeof(hint->elem));
    hint->epoch = fh->rehint_epoch;
    freehint_parse(fh, hint);
    return true;
}

/*
 * The driver need not notify while the device looks at the queue anyway.
 * Returns whether there was, or is, a message.
 */
static bool freehint_take(VirtIOFreehint *fh)
{
    virtio_queue_set_notification(fh->hintq, 0);
    if (freehint_receive(fh)) {
        return true;
    }
    virtio_queue_set_notification(fh->hintq, 1);
    return !virtio_queue_empty(fh->hintq);
}

/* Returns whether there may be more messages. */
static bool freehint_take_some(VirtIOFreehint *fh, FreehintBudget *takes)
{
    while (!freehint_is_spent(takes)) {
        if (!freehint_take(fh)) {
            return false;
        }
        takes->used++;
    }
    return true;
}

/* Discard */

static bool freehint_is_late(const FreehintHint *hint)
{
    return freehint_age_ms(hint->arrival_ms) > FREEHINT_ANSWER_MS;
}

/* Is the range wrong by itself, whatever memory there is? */
static uint8_t freehint_check_form(const VirtIOFreehint *fh,
                                   const FreehintRange *range)
{
    if (!QEMU_IS_ALIGNED(range->addr | range->len, fh->granule)) {
        return VIRTIO_FREEHINT_S_MISALIGNED;
    }
    if (!range->len) {
        return VIRTIO_FREEHINT_S_EMPTY;
    }
    return range->len - 1 > UINT64_MAX - range->addr ?
           VIRTIO_FREEHINT_S_OVERFLOW : VIRTIO_FREEHINT_S_DISCARDED;
}

/*
 * Find out whether what is left of a range may be discarded, and make it part
 * of a job, if there is one. It is looked up for each job, because memory may
 * be remapped between two of them.
 */
static uint8_t freehint_collect_range(VirtIOFreehint *fh, FreehintHint *hint,
                                      uint32_t index, uint64_t done,
                                      FreehintJob *job)
{
    const FreehintRange *range = &hint->ranges[index];
    const FreehintRange rest = {
        .addr = range->addr + done,
        .len = range->len - done,
    };
    const uint8_t status = freehint_check_form(fh, range);

    return status == VIRTIO_FREEHINT_S_DISCARDED ?
           freehint_collect(fh, &rest, hint->flags, job) : status;
}

/*
 * The next ranges go into the same job, as far as there is room and this turn
 * has time. A range that may not be discarded ends the job, because ranges get
 * their status in order. With a rate limit, each range waits for what the last
 * one has used.
 */
static void freehint_collect_more(VirtIOFreehint *fh, FreehintHint *hint,
                                  const FreehintBudget *steps)
{
    uint32_t i = hint->next + 1;

    while (fh->job.room && !fh->rate_limit && i < hint->nranges &&
           get_clock() < steps->end_ns &&
           freehint_collect_range(fh, hint, i, 0, &fh->job) ==
           VIRTIO_FREEHINT_S_DISCARDED) {
        i++;
    }
}

/*
 * A range is checked as a whole first: a wrong one loses nothing. When another
 * part of it is looked up later, part of it may be gone, and then it is too
 * late to refuse it for good.
 */
static void freehint_advance_range(VirtIOFreehint *fh, FreehintHint *hint,
                                   const FreehintBudget *steps)
{
    const uint32_t wait_ms = hint->done ? 0 : freehint_rate_wait_ms(fh);
    const bool active = fh->state == VIRTIO_FREEHINT_STATE_ACTIVE;
    const bool late = freehint_is_late(hint);
    const bool begin = active && !late && !wait_ms;
    uint8_t status;

    if (begin) {
        freehint_job_prepare(fh, fh->job_size);
    }
    status = freehint_collect_range(fh, hint, hint->next, hint->done,
                                    begin ? &fh->job : NULL);
    if (status != VIRTIO_FREEHINT_S_DISCARDED && !hint->done) {
        freehint_settle(fh, hint, status, VIRTIO_FREEHINT_REASON_NONE);
    } else if (status != VIRTIO_FREEHINT_S_DISCARDED || !active) {
        freehint_decline(fh, hint);
    } else if (late) {
        freehint_throttle(fh, hint, FREEHINT_RETRY_MS);
    } else if (wait_ms) {
        freehint_count(&fh->counters.over_rate, &hint->ranges[hint->next]);
        freehint_throttle(fh, hint, wait_ms);
    } else {
        freehint_collect_more(fh, hint, steps);
        freehint_job_start(fh, hint);
    }
}

static void freehint_advance(VirtIOFreehint *fh, FreehintHint *hint,
                             const FreehintBudget *steps)
{
    if (hint->next < hint->nranges) {
        freehint_advance_range(fh, hint, steps);
    } else if (hint->skips && !freehint_is_late(hint) &&
               fh->precopy == FREEHINT_PRECOPY_SKIPS) {
        freehint_job_start_skip(fh, hint);
    } else {
        freehint_push_hint(fh, hint);
    }
}

static void freehint_part_discarded(VirtIOFreehint *fh, FreehintHint *hint,
                                    const FreehintPart *part)
{
    freehint_block_tried(fh, part->mr, 0);
    fh->counters.discard_bytes += part->len;
    ratelimit_calculate_delay(&fh->rate, part->len);
    freehint_precopy_note(fh, hint, part);
    hint->done += part->len;
    hint->lent |= part->lent;
    if (part->ends_range) {
        freehint_settle(fh, hint, hint->lent ? VIRTIO_FREEHINT_S_LAZY :
                                               VIRTIO_FREEHINT_S_DISCARDED,
                        VIRTIO_FREEHINT_REASON_NONE);
    }
}

/* The parts after one that has failed were not tried. */
void freehint_job_ended(VirtIOFreehint *fh, const FreehintJob *job)
{
    const FreehintPart *parts = (const FreehintPart *)job->parts->data;
    unsigned int i;

    for (i = 0; i < job->ndone; i++) {
        freehint_part_discarded(fh, job->hint, &parts[i]);
    }
    if (job->veto) {
        freehint_settle(fh, job->hint, VIRTIO_FREEHINT_S_DECLINED, job->veto);
    } else if (job->ret) {
        freehint_block_tried(fh, parts[i].mr, job->ret);
        freehint_settle(fh, job->hint, VIRTIO_FREEHINT_S_FAILED,
                        VIRTIO_FREEHINT_REASON_NONE);
    }
}

/*
 * While a job is in progress, other hints wait for it, but only until they are
 * late. So does the hint that the job is for, unless the job has begun.
 */
static FreehintHint *freehint_next_hint(VirtIOFreehint *fh)
{
    FreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        if (!freehint_job_busy(fh)) {
            return hint;
        }
        if (!freehint_is_late(hint)) {
            return NULL;
        }
        if (fh->job.hint != hint || freehint_job_cancel(fh)) {
            return hint;
        }
    }
    return NULL;
}

static bool freehint_may_advance(VirtIOFreehint *fh)
{
    const VirtIOFreehintClass *fc = VIRTIO_FREEHINT_GET_CLASS(fh);

    return !fc->may_advance || fc->may_advance(fh);
}

/* Returns whether there is more to do that no job in progress will start. */
static bool freehint_advance_some(VirtIOFreehint *fh, FreehintBudget *steps)
{
    FreehintHint *hint;

    while (freehint_may_advance(fh) && (hint = freehint_next_hint(fh))) {
        if (freehint_is_spent(steps)) {
            return true;
        }
        freehint_advance(fh, hint, steps);
        steps->used++;
    }
    return false;
}

/* If the job in progress does not end, nothing else starts a turn. */
static void freehint_await_lateness(VirtIOFreehint *fh)
{
    const FreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        if (!freehint_is_late(hint)) {
            timer_mod(fh->answer_timer,
                      hint->arrival_ms + FREEHINT_ANSWER_MS + 1);
            return;
        }
    }
}

/* Turns */

/*
 * Messages are taken off the queue as soon as possible, because the time to
 * answer them runs from then.
 */
static void freehint_turn(VirtIOFreehint *fh, FreehintBudget *takes,
                          FreehintBudget *steps)
{
    bool more;

    freehint_job_reap(fh);
    freehint_apply_vetoes(fh);
    if (!fh->running) {
        return;
    }
    if (fh->config_changed) {
        freehint_notify_config(fh);
    }
    freehint_refresh_blocks(fh);
    *takes = freehint_new_budget();
    more = freehint_take_some(fh, takes);
    *steps = freehint_new_budget();
    more |= freehint_advance_some(fh, steps);
    freehint_await_lateness(fh);
    if (more) {
        qemu_bh_schedule(fh->bh);
    }
}

/* CPU time of this thread, without the time that others had the CPU. */
static int64_t freehint_cpu_time_ns(void)
{
    struct timespec ts;

    if (!trace_event_get_state_backends(TRACE_VIRTIO_FREEHINT_TURN_END)) {
        return 0;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * NANOSECONDS_PER_SECOND + ts.tv_nsec;
}

void freehint_bh(void *opaque)
{
    const int64_t start = freehint_cpu_time_ns();
    FreehintBudget takes = { }, steps = { };

    trace_virtio_freehint_turn_begin();
    freehint_turn(opaque, &takes, &steps);
    trace_virtio_freehint_turn_end(takes.used, steps.used,
                                   freehint_cpu_time_ns() - start);
}

void freehint_handle_hintq(VirtIODevice *vdev, VirtQueue *vq)
{
    qemu_bh_schedule(VIRTIO_FREEHINT(vdev)->bh);
}
