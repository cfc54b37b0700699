/*
 * Virtio free memory hint device: what precopy need not send
 *
 * Memory that is discarded while precopy runs has no content worth sending. Its
 * dirty bits are cleared while the driver still waits for its buffer, that is,
 * before the guest can write to the memory again: each later write is logged.
 *
 * Nobody knows which of the memory that was discarded earlier is still unused.
 * So the epoch moves when precopy begins, and the guest hints all of its free
 * memory again. It moves once more at the end, because precopy has read, and
 * with that may have populated, whatever it did not skip.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "exec/target_page.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/* To miss the time by which it has to be done costs what is sent in vain. */
#define SKIP_MS 100

static bool virtio_freehint_can_skip(const VirtIOFreehint *fh,
                                     const VirtIOFreehintHint *hint,
                                     const VirtIOFreehintPart *part)
{
    return fh->precopy == VIRTIO_FREEHINT_PRECOPY_SKIPS &&
           !(hint->flags & VIRTIO_FREEHINT_HINT_F_ZERO) &&
           !migrate_ram_is_ignored(part->rb) &&
           QEMU_IS_ALIGNED(part->offset | part->len, qemu_target_page_size());
}

static void virtio_freehint_unref_part(gpointer part)
{
    memory_region_unref(((VirtIOFreehintPart *)part)->mr);
}

/* Slices of a range go on where the last one has ended. */
static bool virtio_freehint_extend_last(GArray *skips,
                                        const VirtIOFreehintPart *part)
{
    VirtIOFreehintPart *last;

    if (!skips->len) {
        return false;
    }
    last = &g_array_index(skips, VirtIOFreehintPart, skips->len - 1);
    if (last->mr != part->mr || last->offset + last->len != part->offset) {
        return false;
    }
    last->len += part->len;
    return true;
}

void virtio_freehint_precopy_note(VirtIOFreehint *fh, VirtIOFreehintHint *hint,
                                  const VirtIOFreehintPart *part)
{
    if (!virtio_freehint_can_skip(fh, hint, part)) {
        return;
    }
    if (!hint->skips) {
        hint->skips = g_array_new(false, false, sizeof(*part));
        g_array_set_clear_func(hint->skips, virtio_freehint_unref_part);
    }
    if (!virtio_freehint_extend_last(hint->skips, part)) {
        memory_region_ref(part->mr);
        g_array_append_vals(hint->skips, part, 1);
    }
}

void virtio_freehint_precopy_forget(GArray *skips)
{
    if (skips) {
        g_array_unref(skips);
    }
}

uint64_t virtio_freehint_precopy_skip(const GArray *skips, const bool *hurry)
{
    const int64_t start = get_clock();
    uint64_t bytes = 0;
    bool locked;
    guint i;

    /*
     * Under KVM the log is cleared section by section, as RCU has them, and the
     * threads of the pool are not known to RCU.
     */
    rcu_register_thread();
    locked = ram_skip_lock(SKIP_MS, hurry);
    for (i = 0; locked && i < skips->len; i++) {
        const VirtIOFreehintPart *part =
            &g_array_index(skips, VirtIOFreehintPart, i);

        ram_skip(part->rb, part->offset, part->len);
        bytes += part->len;
    }
    if (locked) {
        ram_skip_unlock();
    }
    rcu_unregister_thread();
    trace_virtio_freehint_precopy_skip(skips->len, bytes, locked,
                                       get_clock() - start);
    return bytes;
}

/*
 * A destination that runs before it has all of its memory waits for pages that
 * nobody sends: so it would be if postcopy can follow. COLO has a bitmap of its
 * own use.
 */
static void precopy_begins(VirtIOFreehint *fh)
{
    if (migrate_postcopy_ram() || migrate_colo()) {
        fh->precopy = VIRTIO_FREEHINT_PRECOPY_SENDS_ALL;
        return;
    }
    fh->precopy = VIRTIO_FREEHINT_PRECOPY_SKIPS;
    virtio_freehint_owe_epoch(fh);
}

/* The bitmap goes away after this, and the next one is none of these hints'. */
static void precopy_ends(VirtIOFreehint *fh)
{
    VirtIOFreehintHint *hint;

    fh->precopy = VIRTIO_FREEHINT_PRECOPY_NONE;
    virtio_freehint_slice_drain(fh);
    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        virtio_freehint_precopy_forget(g_steal_pointer(&hint->skips));
    }
    virtio_freehint_owe_epoch(fh);
}

/*
 * In the migration thread, the main loop, or where a VM is saved; always with
 * the BQL. From the first bitmap sync on until the BQL is released the bitmaps
 * are still being set up: but that takes a slice that begins later.
 */
static int precopy_changed(NotifierWithReturn *notifier, void *data,
                           Error **errp)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      precopy_notifier);
    const PrecopyNotifyData *precopy = data;

    switch (precopy->reason) {
    case PRECOPY_NOTIFY_AFTER_BITMAP_SYNC:
        if (fh->precopy == VIRTIO_FREEHINT_PRECOPY_NONE) {
            precopy_begins(fh);
        }
        break;
    case PRECOPY_NOTIFY_COMPLETE:
        /* The VM has stopped, and there is one more sync to come. */
        fh->precopy = VIRTIO_FREEHINT_PRECOPY_SENDS_ALL;
        break;
    case PRECOPY_NOTIFY_CLEANUP:
        if (fh->precopy != VIRTIO_FREEHINT_PRECOPY_NONE) {
            precopy_ends(fh);
        }
        break;
    default:
        break;
    }
    return 0;
}

void virtio_freehint_precopy_init(VirtIOFreehint *fh)
{
    fh->precopy = VIRTIO_FREEHINT_PRECOPY_NONE;
    fh->precopy_notifier.notify = precopy_changed;
    precopy_add_notifier(&fh->precopy_notifier);
}

void virtio_freehint_precopy_cleanup(VirtIOFreehint *fh)
{
    precopy_remove_notifier(&fh->precopy_notifier);
}
