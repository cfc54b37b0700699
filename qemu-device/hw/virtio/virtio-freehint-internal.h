/*
 * Virtio free memory hint device: between its source files
 *
 * Unless a comment says otherwise, functions are called with the BQL held.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_FREEHINT_INTERNAL_H
#define HW_VIRTIO_FREEHINT_INTERNAL_H

#include "exec/cpu-common.h"
#include "hw/virtio/virtio-freehint.h"
#include "qapi/qapi-builtin-types.h"
#include "standard-headers/linux/virtio_freehint.h"

/* Most ranges in a hint: bounds what is copied before it is checked. */
#define VIRTIO_FREEHINT_MAX_RANGES 1024

/* When to hint ranges again that were throttled. */
#define VIRTIO_FREEHINT_RETRY_MS 100

/* The least limit, in bytes a second: one granule takes two seconds. */
#define VIRTIO_FREEHINT_MIN_RATE_LIMIT (1024 * 1024)

/* Upper bound for the pacing that is asked of the guest. */
#define VIRTIO_FREEHINT_MAX_PACING_MS 60000

/* Upper bound for the time that a driver is given to answer a flush. */
#define VIRTIO_FREEHINT_MAX_FLUSH_MS 3600000

/* Memory that the guest says it does not use: guest-physical, in bytes. */
typedef struct VirtIOFreehintRange {
    uint64_t addr;
    uint64_t len;
} VirtIOFreehintRange;

/* The piece of a range that lies in one RAMBlock. */
typedef struct VirtIOFreehintPart {
    MemoryRegion *mr;
    RAMBlock *rb;
    uint64_t offset;
    uint64_t len;
} VirtIOFreehintPart;

/*
 * A message that was taken off the queue and not yet given back. Header and
 * ranges are the device's own copy: the guest may go on writing to its own.
 */
struct VirtIOFreehintHint {
    /* Has to be first: virtqueue_pop() allocates the whole. */
    VirtQueueElement elem;

    uint16_t flags;
    uint64_t cookie;
    uint32_t nranges;
    VirtIOFreehintRange *ranges;
    uint8_t *status;

    /* The first range without a status, and how far discarding it got. */
    uint32_t next;
    uint64_t done;

    /*
     * VirtIOFreehintPart, each with a reference to its memory region: what was
     * discarded, and precopy need not send. NULL if there is none.
     */
    GArray *skips;

    /* QEMU_CLOCK_REALTIME, in ms, when it was taken off the queue. */
    int64_t arrival_ms;
    /* When its first range got a status. */
    uint32_t epoch;
    /* For its ranges that got VIRTIO_FREEHINT_S_THROTTLED, if not 0. */
    uint32_t retry_ms;

    QTAILQ_ENTRY(VirtIOFreehintHint) entry;
};

/* The outcome of a slice that a veto kept from starting. */
#define VIRTIO_FREEHINT_VETOED (-ECANCELED)

/* virtio-freehint.c */

/* Tell the driver, now or as soon as it runs, that config space has changed. */
void virtio_freehint_notify_config(VirtIOFreehint *fh);

/* The device as the user knows it: where "id" is, e.g., the PCI function. */
DeviceState *virtio_freehint_proxy(VirtIOFreehint *fh);

/* Milliseconds since a time of QEMU_CLOCK_REALTIME. */
uint64_t virtio_freehint_age_ms(int64_t since_ms);

/* virtio-freehint-qmp.c */

FreehintStats *virtio_freehint_stats_query(const VirtIOFreehint *fh);

/* Whether a new rate limit is one that can be set. */
bool virtio_freehint_check_rate_limit(uint64_t limit, Error **errp);

/* What the driver says of itself, as far as QAPI has a name for it. */
FreehintDriverStatus virtio_freehint_driver_status(const VirtIOFreehint *fh);

/* virtio-freehint-vmstate.c */

extern const VMStateDescription vmstate_virtio_freehint_device;

/* virtio-freehint-work.c */

/**
 * virtio_freehint_bh: one turn of work on the queue
 *
 * @opaque: the device
 *
 * The device's bottom half: whatever there may be to do, schedule it.
 */
void virtio_freehint_bh(void *opaque);

/* The driver has notified the device. */
void virtio_freehint_handle_hintq(VirtIODevice *vdev, VirtQueue *vq);

/**
 * virtio_freehint_drain: end all work on behalf of the guest
 *
 * @fh: the device
 * @answer: whether the driver still waits for an answer
 *
 * When this returns no discard is in progress, and none starts for any message
 * that was taken off the queue. Those are given back with what was not reached
 * declined or, without @answer, forgotten. Waits for one slice at most.
 *
 * Section "Drain rule".
 */
void virtio_freehint_drain(VirtIOFreehint *fh, bool answer);

/**
 * virtio_freehint_slice_ended: take in the outcome of a slice
 *
 * @fh: the device
 * @hint: the one that the slice was started for
 * @part: what was to be discarded
 * @ret: 0, VIRTIO_FREEHINT_VETOED, or what ram_block_discard_range() returned
 * @ns: how long the host took
 * @lazy: it was left to the host when to take the memory
 */
void virtio_freehint_slice_ended(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                 const VirtIOFreehintPart *part,
                                 int ret, int64_t ns, bool lazy);

/* virtio-freehint-msg.c */

/**
 * virtio_freehint_pop: take the next message off the queue
 *
 * A hint is added to @fh->hints. Answers by itself what is no hint. If the
 * message or the ring is malformed, the device is broken (NEEDS_RESET) and
 * drained.
 *
 * Returns: whether there was a message
 */
bool virtio_freehint_pop(VirtIOFreehint *fh);

/**
 * virtio_freehint_settle: give the next range of a hint its status
 *
 * @fh: the device
 * @hint: has a range without a status
 * @status: enum virtio_freehint_status
 * @why: enum virtio_freehint_reason to count the range under if it is declined
 */
void virtio_freehint_settle(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                            uint8_t status, uint32_t why);

/* The next range of a hint is about to be throttled by the limit. */
void virtio_freehint_count_over_rate(VirtIOFreehint *fh,
                                     const VirtIOFreehintHint *hint);

/* Write an answer of @len bytes into the used ring. */
void virtio_freehint_use(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                         size_t len);

/* Give a hint back to the driver: all its ranges are settled. */
void virtio_freehint_push(VirtIOFreehint *fh, VirtIOFreehintHint *hint);

/* Forget a hint: the driver has given up its buffers. */
void virtio_freehint_forget(VirtIOFreehint *fh, VirtIOFreehintHint *hint);

/* virtio-freehint-rate.c */

/* Bytes a second, 0 for no limit. */
void virtio_freehint_rate_set_limit(VirtIOFreehint *fh, uint64_t limit);

/* Memory has been discarded, in bytes. */
void virtio_freehint_rate_count(VirtIOFreehint *fh, uint64_t bytes);

/* How long, in ms, the device is over the limit; 0 if it is not. */
uint32_t virtio_freehint_rate_wait_ms(VirtIOFreehint *fh);

void virtio_freehint_rate_init(VirtIOFreehint *fh);
void virtio_freehint_rate_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-obstacles.c */

/* All that keeps the VM from shrinking, in order of precedence. */
FreehintObstacleList *virtio_freehint_obstacles(VirtIOFreehint *fh);

/* virtio-freehint-gauges.c */

/* The driver says how much of the guest's memory is in which state. */
void virtio_freehint_gauges_set(VirtIOFreehint *fh,
                                const struct virtio_freehint_gauges *gauges);

/* The driver that said so is gone. */
void virtio_freehint_gauges_forget(VirtIOFreehint *fh);

/* What the driver has said, NULL if it has not: the caller's. */
FreehintGauges *virtio_freehint_gauges_query(const VirtIOFreehint *fh);

/* virtio-freehint-flush.c */

/**
 * virtio_freehint_flush_start: ask the driver for all free memory
 *
 * @fh: the device
 * @timeout_ms: how long the driver may take, more than 0
 * @compact: whether it is asked to move memory in use together first
 *
 * How the flush ends is told by the event FREEHINT_FLUSH_COMPLETED, exactly
 * once: by the driver's answer, by time, or by whatever keeps the driver from
 * answering, for which virtio_freehint_flush_end() is called.
 *
 * Returns: the number of the flush, or 0 with @errp set if none was begun
 *
 * Section "Flush".
 */
uint32_t virtio_freehint_flush_start(VirtIOFreehint *fh, uint32_t timeout_ms,
                                     bool compact, Error **errp);

/* The driver has answered a flush, not necessarily the one in progress. */
void virtio_freehint_flush_answered(
    VirtIOFreehint *fh, const struct virtio_freehint_flush_done *done);

/* End the flush in progress, if any, without an answer. */
void virtio_freehint_flush_end(VirtIOFreehint *fh, FreehintFlushResult result);

/* The flush in progress and the last one; NULL without the feature. */
FreehintFlush *virtio_freehint_flush_query(VirtIOFreehint *fh);

void virtio_freehint_flush_init(VirtIOFreehint *fh);
void virtio_freehint_flush_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-range.c */

/**
 * virtio_freehint_check_range: test whether a range may be discarded
 *
 * @fh: the device
 * @range: not trusted
 * @flags: the hint's VIRTIO_FREEHINT_HINT_F_* flags
 *
 * Returns: VIRTIO_FREEHINT_S_DISCARDED if so, else the status that says why
 * not: the greatest one of its parts.
 *
 * Section "Range status".
 */
uint8_t virtio_freehint_check_range(VirtIOFreehint *fh,
                                    const VirtIOFreehintRange *range,
                                    uint16_t flags);

/**
 * virtio_freehint_find_part: find where a range begins
 *
 * @fh: the device
 * @range: lies inside the 64-bit address space, is not empty
 * @flags: the hint's VIRTIO_FREEHINT_HINT_F_* flags
 * @part: the longest piece at the start of @range that has one answer. Only if
 *        the piece may be discarded are all its members valid; the caller then
 *        owns a reference to its memory region.
 *
 * Returns: as virtio_freehint_check_range().
 */
uint8_t virtio_freehint_find_part(VirtIOFreehint *fh,
                                  const VirtIOFreehintRange *range,
                                  uint16_t flags, VirtIOFreehintPart *part);

/**
 * virtio_freehint_block_tried: take in whether the host has discarded memory
 *
 * @fh: the device
 * @mr: what it is part of
 * @ret: 0 or what ram_block_discard_range() returned
 *
 * After a failure the memory is left alone for a while, longer each time, and
 * then the epoch moves. Warns once until it works again.
 */
void virtio_freehint_block_tried(VirtIOFreehint *fh, MemoryRegion *mr, int ret);

/* Bring up to date which memory may be discarded. */
void virtio_freehint_blocks_refresh(VirtIOFreehint *fh);

/* The memory that is not discarded: the host fails to, or it is not to be. */
FreehintRefusedMemoryList *virtio_freehint_refused_memory(VirtIOFreehint *fh,
                                                          bool failing);

/* Try again at once what the host failed to discard. */
void virtio_freehint_forgive_blocks(VirtIOFreehint *fh);

/* Whether any memory that is on the list is dropped for that cause. */
bool virtio_freehint_drops_for(VirtIOFreehint *fh, FreehintCause cause);

/* The granule, in bytes, that suits the machine's boot memory. */
uint64_t virtio_freehint_default_granule(VirtIOFreehint *fh);

void virtio_freehint_blocks_init(VirtIOFreehint *fh);
void virtio_freehint_blocks_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-discard.c */

void virtio_freehint_slice_init(VirtIOFreehint *fh);
void virtio_freehint_slice_cleanup(VirtIOFreehint *fh);

/* Begin with short slices, and find out anew how long they may be. */
void virtio_freehint_slice_shorten(VirtIOFreehint *fh);

/* Discard what a slice covers; called from the worker. */
void virtio_freehint_slice_discard(VirtIOFreehint *fh,
                                   VirtIOFreehintSlice *slice);

/* Whether none can be started now. */
bool virtio_freehint_slice_busy(const VirtIOFreehint *fh);

/* Whether there is one for that hint, which is queued or running. */
bool virtio_freehint_slice_is_for(const VirtIOFreehint *fh,
                                  const VirtIOFreehintHint *hint);

/* Whether there is one that is queued or running in that memory. */
bool virtio_freehint_slice_uses(const VirtIOFreehint *fh,
                                const MemoryRegion *mr);

/* Take in how the slice has ended, if it has. */
void virtio_freehint_slice_reap(VirtIOFreehint *fh);

/**
 * virtio_freehint_slice_cancel: call off the slice that is queued, if any
 *
 * Returns: whether it has not begun, and never will. Until the worker has found
 * that out, no other can be started.
 */
bool virtio_freehint_slice_cancel(VirtIOFreehint *fh);

/**
 * virtio_freehint_slice_start: have the start of a part discarded
 *
 * @fh: the device, with no slice in progress
 * @hint: the one that it is for
 * @part: passed on, including the reference to its memory region; shortened to
 *        what one slice may cover
 *
 * Returns at once. When it has ended there is a turn of the device's bottom
 * half, which calls virtio_freehint_slice_reap().
 */
void virtio_freehint_slice_start(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                 const VirtIOFreehintPart *part);

/**
 * virtio_freehint_slice_skip: have precopy not send what a hint has discarded
 *
 * @fh: the device, with no slice in progress
 * @hint: has something to skip, and will have nothing any more
 *
 * Another kind of slice: the worker waits for the migration thread.
 */
void virtio_freehint_slice_skip(VirtIOFreehint *fh, VirtIOFreehintHint *hint);

/**
 * virtio_freehint_slice_drain: wait for the slice in progress, if any
 *
 * One that has not started never will. One that has is waited for, and
 * virtio_freehint_slice_ended() is called from here.
 */
void virtio_freehint_slice_drain(VirtIOFreehint *fh);

/* virtio-freehint-lazy.c */

/**
 * virtio_freehint_lazy_refusal: find why memory must not be freed lazily
 *
 * @fh: the device
 * @mr: memory that may be discarded
 * @cause: the first reason why it has to be dropped instead, if there is one
 *
 * Returns: whether there is a reason. There is none for memory that cannot be
 * freed lazily at all: shared memory, files, large pages.
 */
bool virtio_freehint_lazy_refusal(const VirtIOFreehint *fh,
                                  const MemoryRegion *mr,
                                  FreehintCause *cause);

/* Whether the kind of memory is one that can be freed lazily. */
bool virtio_freehint_can_be_lazy(const MemoryRegion *mr);

void virtio_freehint_lazy_init(VirtIOFreehint *fh);
void virtio_freehint_lazy_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-veto.c */

/**
 * virtio_freehint_reasons: find what keeps the device from discarding now
 *
 * Returns: a bit (1 << enum virtio_freehint_reason) for each reason that holds.
 */
uint32_t virtio_freehint_reasons(VirtIOFreehint *fh);

/**
 * virtio_freehint_refresh: act on what has changed outside the device
 *
 * Brings state, reason and epoch up to date, drains if the device has to stop,
 * and tells driver and management. When this returns and the state is not
 * active, nothing is being discarded.
 *
 * Section "Effective state".
 */
void virtio_freehint_refresh(VirtIOFreehint *fh);

/**
 * virtio_freehint_owe_epoch: have the guest hint all its free memory again
 *
 * @fh: the device
 *
 * For whoever knows that an answer of the device may no longer hold: memory was
 * declined that can be discarded now, or was discarded and may be populated.
 * Any thread may call this; the epoch moves in the next turn of the bottom half
 * in which the device is active.
 */
void virtio_freehint_owe_epoch(VirtIOFreehint *fh);

/* QOM paths of the devices that pin guest memory, as far as they are known. */
strList *virtio_freehint_pinning_devices(void);

void virtio_freehint_veto_init(VirtIOFreehint *fh);
void virtio_freehint_veto_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-precopy.c */

/**
 * virtio_freehint_precopy_note: note what precopy need not send
 *
 * @fh: the device
 * @hint: not back with the driver
 * @part: was discarded for it
 *
 * Section "Interaction with other facilities".
 */
void virtio_freehint_precopy_note(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                  const VirtIOFreehintPart *part);

/* Forget what was noted; @skips may be NULL. */
void virtio_freehint_precopy_forget(GArray *skips);

/**
 * virtio_freehint_precopy_skip: have precopy not send what was discarded
 *
 * @skips: was noted for a message that is not back with the driver
 * @hurry: set, atomically, when somebody waits for the caller
 *
 * Called from a worker, without the BQL, between the begin of precopy and its
 * end. Waits for 100 ms at most.
 *
 * Returns: how much that is, in bytes; 0 if it is sent all the same, because
 * the migration thread was too busy.
 */
uint64_t virtio_freehint_precopy_skip(const GArray *skips, const bool *hurry);

void virtio_freehint_precopy_init(VirtIOFreehint *fh);
void virtio_freehint_precopy_cleanup(VirtIOFreehint *fh);

#endif
