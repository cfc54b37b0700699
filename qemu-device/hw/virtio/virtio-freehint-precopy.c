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

/*
 * The migration thread has the bitmap locked while it sends, for 50 ms at a
 * time, or for much longer if the network is stuck. In between, it is unlocked
 * for some 100 us. To miss that costs a zero page or an old one in the stream.
 */
#define SKIP_TRIES 600
#define SKIP_POLL_US 100

bool virtio_freehint_precopy_skips(VirtIOFreehint *fh,
                                   const VirtIOFreehintPart *part,
                                   uint16_t flags)
{
    return fh->precopy == VIRTIO_FREEHINT_PRECOPY_SKIPS &&
           !(flags & VIRTIO_FREEHINT_HINT_F_ZERO) &&
           !migrate_ram_is_ignored(part->rb) &&
           QEMU_IS_ALIGNED(part->offset | part->len, qemu_target_page_size());
}

bool virtio_freehint_precopy_skip(const VirtIOFreehintPart *part,
                                  const bool *hurry)
{
    bool skipped;
    int tries;

    /*
     * Under KVM the log is cleared section by section, as RCU has them, and the
     * threads of the pool are not known to RCU.
     */
    rcu_register_thread();
    skipped = ram_try_skip(part->rb, part->offset, part->len);
    for (tries = 1; !skipped && tries < SKIP_TRIES && !qatomic_read(hurry);
         tries++) {
        g_usleep(SKIP_POLL_US);
        skipped = ram_try_skip(part->rb, part->offset, part->len);
    }
    rcu_unregister_thread();
    trace_virtio_freehint_precopy_skip(qemu_ram_get_idstr(part->rb),
                                       part->offset, part->len, skipped,
                                       tries);
    return skipped;
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

/* The bitmap goes away after this. */
static void precopy_ends(VirtIOFreehint *fh)
{
    fh->precopy = VIRTIO_FREEHINT_PRECOPY_NONE;
    virtio_freehint_slice_drain(fh);
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
