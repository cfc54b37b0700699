/*
 * Virtio free memory hint device: discarding, slice by slice
 *
 * A slice is as much memory as the host discards in one go. It runs in a
 * worker thread, so that neither the main loop nor a vCPU waits for the host's
 * memory management, and is short enough to be waited for where the drain rule
 * demands it.
 *
 * The worker gets memory that was validated before and touches nothing else:
 * not the device, not the queue. It never takes the BQL, because whoever waits
 * for it may hold it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "block/aio.h"
#include "block/thread-pool.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/*
 * mmap_lock is held for all of a slice, which makes the guest's page faults
 * wait as well, and so does whoever drains: a slice should take 2 ms at most.
 * The smallest one takes about that for 4 KiB pages. Huge pages are a hundred
 * times faster; the largest one takes 6 ms if they give way to small ones.
 */
#define SLICE_SIZE_MIN (16 * MiB)
#define SLICE_SIZE_MAX (64 * MiB)
#define SLICE_NS_MAX (2 * SCALE_MS)

typedef enum SlicePhase {
    SLICE_QUEUED,
    SLICE_RUNNING,
    SLICE_ENDED,
    SLICE_CANCELLED,
} SlicePhase;

/*
 * Lives until the thread pool has called back in the main loop, which may be
 * long after a drain cut it off from the device.
 */
struct VirtIOFreehintSlice {
    /* Who wants to know the outcome; NULL after a drain. BQL. */
    VirtIOFreehint *fh;
    /* Set once. */
    VirtIOFreehintPart part;
    uint32_t start_delay_ms;
    uint32_t delay_ms;
    bool lazy;
    bool skip;

    /* Somebody drains. Atomic. */
    bool hurry;

    QemuMutex lock;
    QemuCond ended;
    /* Protected by the lock. */
    SlicePhase phase;
    /* Written by the worker before the phase is SLICE_ENDED. */
    int ret;
    int64_t ns;
    bool freed_lazily;
    bool skipped;
};

static void delay(uint32_t ms)
{
    if (ms) {
        g_usleep(ms * 1000ull);
    }
}

/*
 * The host takes the pages when it runs short; one that the guest has written
 * to by then stays, and has cost it nothing. Only private anonymous memory with
 * pages of normal size can do that. Until it is written to, such a page has its
 * old content or zeros: right for a hint without expectation, and the same for
 * one that expects zeros, which the memory holds already.
 */
static bool free_lazily(const VirtIOFreehintPart *part)
{
    return !madvise(part->rb->host + part->offset, part->len, MADV_FREE);
}

/*
 * Of a private mapping of a file only QEMU's own copies go, for others may have
 * the same file: ram_block_discard_range() would punch a hole into it.
 */
static int drop(const VirtIOFreehintPart *part)
{
    RAMBlock *rb = part->rb;

    if (qemu_ram_is_named_file(rb) && !qemu_ram_is_shared(rb)) {
        return madvise(rb->host + part->offset, part->len, MADV_DONTNEED) ?
               -errno : 0;
    }
    return ram_block_discard_range(rb, part->offset, part->len);
}

/* What cannot be freed lazily is dropped. */
static void discard_memory(VirtIOFreehintSlice *slice)
{
    const VirtIOFreehintPart *part = &slice->part;

    slice->freed_lazily = slice->lazy && free_lazily(part);
    if (!slice->freed_lazily) {
        slice->ret = drop(part);
    }
}

static void slice_discard(VirtIOFreehintSlice *slice)
{
    const VirtIOFreehintPart *part = &slice->part;
    const char *name = qemu_ram_get_idstr(part->rb);
    int64_t start;

    delay(slice->start_delay_ms);
    if (!ram_block_discard_begin()) {
        slice->ret = VIRTIO_FREEHINT_VETOED;
        return;
    }
    trace_virtio_freehint_slice_begin(name, part->offset, part->len);
    start = get_clock();
    delay(slice->delay_ms);
    discard_memory(slice);
    slice->ns = get_clock() - start;
    trace_virtio_freehint_slice_end(name, part->offset, part->len,
                                    slice->ret, slice->ns);
    ram_block_discard_end();
    if (slice->skip && !slice->ret) {
        slice->skipped = virtio_freehint_precopy_skip(part, &slice->hurry);
    }
}

/* Returns whether the slice is now in the given phase. */
static bool slice_advance(VirtIOFreehintSlice *slice, SlicePhase from,
                          SlicePhase to)
{
    QEMU_LOCK_GUARD(&slice->lock);
    if (slice->phase != from) {
        return false;
    }
    slice->phase = to;
    qemu_cond_signal(&slice->ended);
    return true;
}

static int slice_worker(void *opaque)
{
    VirtIOFreehintSlice *slice = opaque;

    if (slice_advance(slice, SLICE_QUEUED, SLICE_RUNNING)) {
        slice_discard(slice);
        slice_advance(slice, SLICE_RUNNING, SLICE_ENDED);
    }
    return 0;
}

/* One that was shorter anyway, or failed, says nothing about longer ones. */
static void adapt_slice_size(VirtIOFreehint *fh,
                             const VirtIOFreehintSlice *slice)
{
    if (slice->ret) {
        return;
    }
    if (slice->ns > SLICE_NS_MAX) {
        fh->slice_size = MAX(fh->slice_size / 2, SLICE_SIZE_MIN);
    } else if (slice->part.len == fh->slice_size &&
               slice->ns < SLICE_NS_MAX / 4) {
        fh->slice_size = MIN(fh->slice_size * 2, SLICE_SIZE_MAX);
    }
}

/* Hand the outcome to the device, which is then free to start another one. */
static void slice_report(VirtIOFreehintSlice *slice)
{
    VirtIOFreehint *fh = slice->fh;

    slice->fh = NULL;
    fh->slice = NULL;
    if (slice->phase == SLICE_ENDED) {
        adapt_slice_size(fh, slice);
        if (slice->skipped) {
            fh->stats.skipped_bytes += slice->part.len;
        }
        virtio_freehint_slice_ended(fh, &slice->part, slice->ret, slice->ns,
                                    slice->freed_lazily);
    }
}

static void slice_free(VirtIOFreehintSlice *slice)
{
    memory_region_unref(slice->part.mr);
    qemu_cond_destroy(&slice->ended);
    qemu_mutex_destroy(&slice->lock);
    g_free(slice);
}

/* Main loop, after the worker has returned. */
static void slice_done(void *opaque, int ret)
{
    VirtIOFreehintSlice *slice = opaque;
    VirtIOFreehint *fh = slice->fh;

    if (fh) {
        slice_report(slice);
        qemu_bh_schedule(fh->bh);
    }
    slice_free(slice);
}

void virtio_freehint_slice_init(VirtIOFreehint *fh)
{
    fh->slice_size = SLICE_SIZE_MIN;
}

static bool may_be_lazy(const VirtIOFreehint *fh,
                        const VirtIOFreehintPart *part)
{
    FreehintCause unused;

    return fh->discard_mode == FREEHINT_DISCARD_MODE_LAZY &&
           virtio_freehint_can_be_lazy(part->mr) &&
           !virtio_freehint_lazy_refusal(fh, part->mr, &unused);
}

void virtio_freehint_slice_start(VirtIOFreehint *fh,
                                 const VirtIOFreehintPart *part, bool skip)
{
    VirtIOFreehintSlice *slice = g_new0(VirtIOFreehintSlice, 1);

    assert(!fh->slice);
    slice->fh = fh;
    slice->part = *part;
    slice->part.len = MIN(part->len, MAX(fh->slice_size,
                                         qemu_ram_pagesize(part->rb)));
    slice->start_delay_ms = fh->slice_start_delay_ms;
    slice->delay_ms = fh->slice_delay_ms;
    slice->lazy = may_be_lazy(fh, part);
    slice->skip = skip;
    slice->phase = SLICE_QUEUED;
    qemu_mutex_init(&slice->lock);
    qemu_cond_init(&slice->ended);
    fh->slice = slice;
    thread_pool_submit_aio(slice_worker, slice, slice_done, slice);
}

/*
 * Waiting in aio_poll() for slice_done() would run other parts of QEMU in the
 * middle of, e.g., a device reset. And a slice that no worker has picked up may
 * need the main loop, that is the BQL, to get a worker: it is cancelled.
 */
void virtio_freehint_slice_drain(VirtIOFreehint *fh)
{
    VirtIOFreehintSlice *slice = fh->slice;

    if (!slice) {
        return;
    }
    if (!slice_advance(slice, SLICE_QUEUED, SLICE_CANCELLED)) {
        qatomic_set(&slice->hurry, true);
        QEMU_LOCK_GUARD(&slice->lock);
        while (slice->phase == SLICE_RUNNING) {
            qemu_cond_wait(&slice->ended, &slice->lock);
        }
    }
    slice_report(slice);
}
