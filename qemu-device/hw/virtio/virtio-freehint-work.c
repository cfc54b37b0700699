/*
 * Virtio free memory hint device: work on the queue
 *
 * The queue, config space and the counters belong to whoever holds the BQL.
 * All work on the queue is done in turns of one bottom half; each turn is
 * bounded, and ends early while a slice of memory is being discarded, which a
 * worker thread does (see virtio-freehint-discard.c). There is at most one
 * slice in progress, and virtio_freehint_drain() ends it together with all
 * messages that were taken.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/*
 * Most messages taken, and most ranges worked on, in one turn. What a range
 * costs, except for discarding it, is a walk over the memory regions that it
 * touches.
 */
#define VIRTIO_FREEHINT_TURN 64

/*
 * After this time neither of the two goes on in the same turn. A message can
 * have a thousand descriptors, and a range as many regions as the guest has
 * mapped: counts alone are no bound.
 */
#define VIRTIO_FREEHINT_TURN_NS (500 * SCALE_US)

/*
 * After this time the rest of a message is throttled. The protocol allows for
 * a second until it is answered.
 */
#define VIRTIO_FREEHINT_ANSWER_MS 500

static void decline_range(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    virtio_freehint_settle(fh, hint, VIRTIO_FREEHINT_S_DECLINED, fh->reason);
}

static void count_discarded(VirtIOFreehint *fh, uint64_t len, int64_t ns,
                            bool lazy)
{
    fh->stats.discard_bytes += len;
    if (lazy) {
        fh->stats.lazy_calls++;
        fh->stats.lazy_bytes += len;
        fh->stats.lazy_ns += ns;
    }
    virtio_freehint_rate_count(fh, len);
}

void virtio_freehint_slice_ended(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                 const VirtIOFreehintPart *part,
                                 int ret, int64_t ns, bool lazy)
{
    if (ret == VIRTIO_FREEHINT_VETOED) {
        virtio_freehint_settle(fh, hint, VIRTIO_FREEHINT_S_DECLINED,
                               VIRTIO_FREEHINT_REASON_PINNED);
        return;
    }
    fh->stats.discard_calls++;
    fh->stats.discard_ns += ns;
    virtio_freehint_block_tried(fh, part->mr, ret);
    if (ret) {
        virtio_freehint_settle(fh, hint, VIRTIO_FREEHINT_S_FAILED,
                               VIRTIO_FREEHINT_REASON_NONE);
        return;
    }
    count_discarded(fh, part->len, ns, lazy);
    virtio_freehint_precopy_note(fh, hint, part);
    hint->done += part->len;
    if (hint->done == hint->ranges[hint->next].len) {
        virtio_freehint_settle(fh, hint, VIRTIO_FREEHINT_S_DISCARDED,
                               VIRTIO_FREEHINT_REASON_NONE);
    }
}

/*
 * Memory may be remapped between two slices of a range, so that each of them
 * is looked up when its time has come. By then part of the range may be gone,
 * and it is too late to refuse it for good.
 */
static void start_slice(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    const VirtIOFreehintRange *range = &hint->ranges[hint->next];
    const VirtIOFreehintRange rest = {
        .addr = range->addr + hint->done,
        .len = range->len - hint->done,
    };
    VirtIOFreehintPart part;
    uint8_t status;

    status = virtio_freehint_find_part(fh, &rest, hint->flags, &part);
    if (status == VIRTIO_FREEHINT_S_DISCARDED) {
        virtio_freehint_slice_start(fh, hint, &part);
    } else {
        decline_range(fh, hint);
    }
}

static bool is_late(const VirtIOFreehintHint *hint)
{
    return qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - hint->arrival_ms >
           VIRTIO_FREEHINT_ANSWER_MS;
}

/* Several ranges of a hint share one answer to when they are worth a retry. */
static void throttle_range(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                           uint32_t retry_ms)
{
    hint->retry_ms = MAX(hint->retry_ms, retry_ms);
    virtio_freehint_settle(fh, hint, VIRTIO_FREEHINT_S_THROTTLED,
                           VIRTIO_FREEHINT_REASON_NONE);
}

/* A range is checked as a whole first: a wrong one loses nothing. */
static void advance_range(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    const uint32_t wait_ms = hint->done ? 0 : virtio_freehint_rate_wait_ms(fh);
    uint8_t status = VIRTIO_FREEHINT_S_DISCARDED;

    if (!hint->done) {
        status = virtio_freehint_check_range(fh, &hint->ranges[hint->next],
                                             hint->flags);
    }
    if (status != VIRTIO_FREEHINT_S_DISCARDED) {
        virtio_freehint_settle(fh, hint, status, VIRTIO_FREEHINT_REASON_NONE);
    } else if (fh->state != VIRTIO_FREEHINT_STATE_ACTIVE) {
        decline_range(fh, hint);
    } else if (is_late(hint)) {
        throttle_range(fh, hint, VIRTIO_FREEHINT_RETRY_MS);
    } else if (wait_ms) {
        virtio_freehint_count_over_rate(fh, hint);
        throttle_range(fh, hint, wait_ms);
    } else {
        start_slice(fh, hint);
    }
}

static void advance_hint(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    if (hint->next < hint->nranges) {
        advance_range(fh, hint);
    } else if (hint->skips && !is_late(hint) &&
               fh->precopy == VIRTIO_FREEHINT_PRECOPY_SKIPS) {
        virtio_freehint_slice_skip(fh, hint);
    } else {
        virtio_freehint_push(fh, hint);
    }
}

/*
 * While there is a slice in progress, others wait for it, but only until they
 * are late, and so does the hint that it is for, unless it has begun.
 */
static VirtIOFreehintHint *next_hint(VirtIOFreehint *fh)
{
    VirtIOFreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        if (!virtio_freehint_slice_busy(fh)) {
            return hint;
        }
        if (!is_late(hint)) {
            return NULL;
        }
        if (!virtio_freehint_slice_is_for(fh, hint) ||
            virtio_freehint_slice_cancel(fh)) {
            return hint;
        }
    }
    return NULL;
}

/* Nobody else calls when the slice in progress does not end. */
static void await_lateness(VirtIOFreehint *fh)
{
    const VirtIOFreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        if (!is_late(hint)) {
            timer_mod(fh->answer_timer,
                      hint->arrival_ms + VIRTIO_FREEHINT_ANSWER_MS + 1);
            return;
        }
    }
}

/*
 * The driver need not notify while the device looks at the queue anyway.
 * Returns whether there was, or is, a message.
 */
static bool take_message(VirtIOFreehint *fh)
{
    virtio_queue_set_notification(fh->hintq, 0);
    if (virtio_freehint_pop(fh)) {
        return true;
    }
    virtio_queue_set_notification(fh->hintq, 1);
    return !virtio_queue_empty(fh->hintq);
}

/* What the two parts of a turn share: how often, and for how long. */
typedef struct Budget {
    unsigned int used;
    int64_t end_ns;
} Budget;

static Budget new_budget(void)
{
    return (Budget) { .end_ns = get_clock() + VIRTIO_FREEHINT_TURN_NS };
}

static bool is_spent(const Budget *budget)
{
    return budget->used == VIRTIO_FREEHINT_TURN ||
           get_clock() >= budget->end_ns;
}

/* Returns whether there may be more messages. */
static bool take_messages(VirtIOFreehint *fh, Budget *takes)
{
    while (!is_spent(takes)) {
        if (!take_message(fh)) {
            return false;
        }
        takes->used++;
    }
    return true;
}

static bool may_advance(VirtIOFreehint *fh)
{
    const VirtIOFreehintClass *fc = VIRTIO_FREEHINT_GET_CLASS(fh);

    return !fc->may_advance || fc->may_advance(fh);
}

/* Returns whether there is more to do that no slice in progress will start. */
static bool advance_hints(VirtIOFreehint *fh, Budget *steps)
{
    VirtIOFreehintHint *hint;

    while (may_advance(fh) && (hint = next_hint(fh))) {
        if (is_spent(steps)) {
            return true;
        }
        advance_hint(fh, hint);
        steps->used++;
    }
    return false;
}

/*
 * Messages are taken off the queue as soon as possible, for the time by which
 * they have to be answered runs from then.
 */
static void run_turn(VirtIOFreehint *fh, Budget *takes, Budget *steps)
{
    bool more;

    virtio_freehint_slice_reap(fh);
    virtio_freehint_refresh(fh);
    if (!fh->running) {
        return;
    }
    if (fh->config_changed) {
        virtio_freehint_notify_config(fh);
    }
    virtio_freehint_blocks_refresh(fh);
    *takes = new_budget();
    more = take_messages(fh, takes);
    *steps = new_budget();
    more |= advance_hints(fh, steps);
    await_lateness(fh);
    if (more) {
        qemu_bh_schedule(fh->bh);
    }
}

/* Of this thread; how long others kept it from running says nothing. */
static int64_t cpu_time_ns(void)
{
    struct timespec ts;

    if (!trace_event_get_state_backends(TRACE_VIRTIO_FREEHINT_TURN_END)) {
        return 0;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * NANOSECONDS_PER_SECOND + ts.tv_nsec;
}

void virtio_freehint_bh(void *opaque)
{
    const int64_t start = cpu_time_ns();
    Budget takes = { }, steps = { };

    trace_virtio_freehint_turn_begin();
    run_turn(opaque, &takes, &steps);
    trace_virtio_freehint_turn_end(takes.used, steps.used,
                                   cpu_time_ns() - start);
}

void virtio_freehint_handle_hintq(VirtIODevice *vdev, VirtQueue *vq)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(vdev);

    qemu_bh_schedule(fh->bh);
}

static void drain_hint(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                       bool answer)
{
    while (hint->next < hint->nranges) {
        decline_range(fh, hint);
    }
    if (answer) {
        virtio_freehint_push(fh, hint);
    } else {
        virtio_freehint_forget(fh, hint);
    }
}

void virtio_freehint_drain(VirtIOFreehint *fh, bool answer)
{
    VirtIOFreehintHint *hint;

    trace_virtio_freehint_drain(!QTAILQ_EMPTY(&fh->hints),
                                virtio_freehint_slice_busy(fh), answer);
    virtio_freehint_slice_drain(fh);
    while ((hint = QTAILQ_FIRST(&fh->hints))) {
        drain_hint(fh, hint, answer);
    }
}
