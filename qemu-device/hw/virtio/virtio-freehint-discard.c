/*
 * Virtio free memory hint device: discarding, slice by slice
 *
 * A slice is as much memory as the host discards in one go. It runs in a
 * worker thread, so that neither the main loop nor a vCPU waits for the host's
 * memory management, and is short enough to be waited for where the drain rule
 * demands it.
 *
 * The worker gets memory that was validated before and touches nothing else:
 * of the device only its class, not the queue. It never takes the BQL, because
 * whoever waits for it may hold it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/units.h"
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

/*
 * Atomic. The worker alone goes on from RUNNING and CANCELLED, the main loop
 * from IDLE and ENDED, and which of them is the first from QUEUED.
 */
typedef enum SlicePhase {
    SLICE_IDLE,
    SLICE_QUEUED,
    SLICE_CANCELLED,
    SLICE_RUNNING,
    SLICE_ENDED,
} SlicePhase;

/*
 * There is one for each device, and never more than one piece of work for the
 * pool: a drain that calls it off leaves nothing behind.
 */
struct VirtIOFreehintSlice {
    SlicePhase phase;
    /* Whom it is for; NULL unless it is queued, running, or has ended. BQL. */
    VirtIOFreehintHint *hint;
    /* Its bottom half is scheduled when the worker is done. */
    VirtIOFreehint *fh;

    /* Written before the phase is QUEUED. */
    VirtIOFreehintPart part;
    bool lazy;
    /* What precopy is to skip, instead of discarding the part; else NULL. */
    GArray *skips;

    /* Somebody drains. Atomic. */
    bool hurry;

    /* Written by the worker before the phase is ENDED. */
    int ret;
    int64_t ns;
    bool freed_lazily;
    uint64_t skipped_bytes;
};

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
void virtio_freehint_slice_discard(VirtIOFreehint *fh,
                                   VirtIOFreehintSlice *slice)
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
    VirtIOFreehint *fh = slice->fh;
    int64_t start;

    if (!ram_block_discard_begin()) {
        slice->ret = VIRTIO_FREEHINT_VETOED;
        return;
    }
    trace_virtio_freehint_slice_begin(name, part->offset, part->len);
    start = get_clock();
    VIRTIO_FREEHINT_GET_CLASS(fh)->discard_slice(fh, slice);
    slice->ns = get_clock() - start;
    trace_virtio_freehint_slice_end(name, part->offset, part->len,
                                    slice->ret, slice->ns);
    ram_block_discard_end();
}

static int slice_worker(void *opaque)
{
    VirtIOFreehintSlice *slice = opaque;
    const VirtIOFreehintClass *fc = VIRTIO_FREEHINT_GET_CLASS(slice->fh);

    if (fc->begin_slice) {
        fc->begin_slice(slice->fh);
    }
    if (qatomic_cmpxchg(&slice->phase, SLICE_QUEUED, SLICE_RUNNING) ==
        SLICE_QUEUED) {
        if (slice->skips) {
            slice->skipped_bytes = virtio_freehint_precopy_skip(slice->skips,
                                                                &slice->hurry);
        } else {
            slice_discard(slice);
        }
        qatomic_store_release(&slice->phase, SLICE_ENDED);
    } else {
        qatomic_store_release(&slice->phase, SLICE_IDLE);
    }
    qemu_bh_schedule(slice->fh->bh);
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

static void slice_release(VirtIOFreehintSlice *slice)
{
    if (slice->skips) {
        virtio_freehint_precopy_forget(g_steal_pointer(&slice->skips));
    } else {
        memory_region_unref(slice->part.mr);
    }
}

/* From here on another one can be started. */
void virtio_freehint_slice_reap(VirtIOFreehint *fh)
{
    VirtIOFreehintSlice *slice = fh->slice;
    VirtIOFreehintHint *hint = slice->hint;

    if (qatomic_load_acquire(&slice->phase) != SLICE_ENDED) {
        return;
    }
    slice->hint = NULL;
    qatomic_set(&slice->phase, SLICE_IDLE);
    if (slice->skips) {
        fh->stats.skipped_bytes += slice->skipped_bytes;
    } else {
        adapt_slice_size(fh, slice);
        virtio_freehint_slice_ended(fh, hint, &slice->part, slice->ret,
                                    slice->ns, slice->freed_lazily);
    }
    slice_release(slice);
}

bool virtio_freehint_slice_busy(const VirtIOFreehint *fh)
{
    return qatomic_read(&fh->slice->phase) != SLICE_IDLE;
}

bool virtio_freehint_slice_is_for(const VirtIOFreehint *fh,
                                  const VirtIOFreehintHint *hint)
{
    return fh->slice->hint == hint;
}

bool virtio_freehint_slice_uses(const VirtIOFreehint *fh,
                                const MemoryRegion *mr)
{
    return fh->slice->hint && !fh->slice->skips && fh->slice->part.mr == mr;
}

bool virtio_freehint_slice_cancel(VirtIOFreehint *fh)
{
    VirtIOFreehintSlice *slice = fh->slice;

    if (qatomic_cmpxchg(&slice->phase, SLICE_QUEUED, SLICE_CANCELLED) !=
        SLICE_QUEUED) {
        return false;
    }
    slice->hint = NULL;
    slice_release(slice);
    return true;
}

void virtio_freehint_slice_shorten(VirtIOFreehint *fh)
{
    fh->slice_size = SLICE_SIZE_MIN;
}

void virtio_freehint_slice_init(VirtIOFreehint *fh)
{
    fh->pool = thread_pool_new();
    thread_pool_set_max_threads(fh->pool, 1);
    fh->slice = g_new0(VirtIOFreehintSlice, 1);
    virtio_freehint_slice_shorten(fh);
}

/* The worker may be about to find out that it was called off. */
void virtio_freehint_slice_cleanup(VirtIOFreehint *fh)
{
    thread_pool_free(fh->pool);
    g_free(fh->slice);
}

static bool may_be_lazy(const VirtIOFreehint *fh,
                        const VirtIOFreehintPart *part)
{
    FreehintCause unused;

    return fh->discard_mode == FREEHINT_DISCARD_MODE_LAZY &&
           virtio_freehint_can_be_lazy(part->mr) &&
           !virtio_freehint_lazy_refusal(fh, part->mr, &unused);
}

void virtio_freehint_slice_start(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                 const VirtIOFreehintPart *part)
{
    VirtIOFreehintSlice *slice = fh->slice;

    assert(!virtio_freehint_slice_busy(fh));
    *slice = (VirtIOFreehintSlice) {
        .phase = SLICE_QUEUED,
        .hint = hint,
        .fh = fh,
        .part = *part,
        .lazy = may_be_lazy(fh, part),
    };
    slice->part.len = MIN(part->len, MAX(fh->slice_size,
                                         qemu_ram_pagesize(part->rb)));
    thread_pool_submit(fh->pool, slice_worker, slice, NULL);
}

void virtio_freehint_slice_skip(VirtIOFreehint *fh, VirtIOFreehintHint *hint)
{
    VirtIOFreehintSlice *slice = fh->slice;

    assert(!virtio_freehint_slice_busy(fh));
    *slice = (VirtIOFreehintSlice) {
        .phase = SLICE_QUEUED,
        .hint = hint,
        .fh = fh,
        .skips = g_steal_pointer(&hint->skips),
    };
    thread_pool_submit(fh->pool, slice_worker, slice, NULL);
}

/*
 * The worker has the pool to itself, so it is done as soon as the slice is.
 * Waiting in aio_poll() would run other parts of QEMU in the middle of, e.g., a
 * device reset.
 */
void virtio_freehint_slice_drain(VirtIOFreehint *fh)
{
    VirtIOFreehintSlice *slice = fh->slice;

    if (slice->hint && !virtio_freehint_slice_cancel(fh)) {
        qatomic_set(&slice->hurry, true);
        thread_pool_wait(fh->pool);
        virtio_freehint_slice_reap(fh);
    }
}
