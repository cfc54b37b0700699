/*
 * Virtio free memory hint device: what keeps it from discarding
 *
 * Discarding changes the host page behind a guest page. Whatever uses the host
 * page, such as a device that does DMA, RDMA, a lock or a snapshot in progress,
 * would go on with the old one. As long as something does, the device is
 * vetoed. The operator comes first: a device that is switched off says so,
 * whatever else holds.
 *
 * The driver only needs to know whether to hint. An operator needs to know all
 * that keeps the VM from shrinking, in host and guest, and what to do about it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "exec/target_page.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/virtio-freehint.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "qapi/qapi-events-freehint.h"
#include "qapi/util.h"
#include "system/system.h"
#include "trace.h"

/* How often to check for the end of a veto, if it is not announced. */
#define FREEHINT_VETO_POLL_MS 500

/* How long to wait for the lock: without it, memory is sent needlessly. */
#define FREEHINT_SKIP_MS 100

/* The rate limit holds on average over this time. */
#define FREEHINT_RATE_SLICE_NS (100 * SCALE_MS)

/* A driver that comes back too early is told to wait again. */
#define FREEHINT_MAX_RETRY_MS 60000

/* The QAPI enum has the protocol's values. */
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_DISABLED !=
                  (int)VIRTIO_FREEHINT_STATE_DISABLED);
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_ACTIVE !=
                  (int)VIRTIO_FREEHINT_STATE_ACTIVE);
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_VETOED !=
                  (int)VIRTIO_FREEHINT_STATE_VETOED);

/* Whether a reason holds */

static bool freehint_is_off(VirtIOFreehint *fh)
{
    return !fh->enabled;
}

static bool freehint_is_stopped(VirtIOFreehint *fh)
{
    return !VIRTIO_DEVICE(fh)->vm_running;
}

static bool freehint_lacks_driver(VirtIOFreehint *fh)
{
    return !(VIRTIO_DEVICE(fh)->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
           fh->driver_status == VIRTIO_FREEHINT_DRIVER_NOT_READY;
}

static bool freehint_is_pinned(VirtIOFreehint *fh)
{
    return ram_block_discard_is_disabled();
}

static bool freehint_is_locked(VirtIOFreehint *fh)
{
    return should_mlock(mlock_state);
}

/* RDMA pins memory on the source without disabling discards. */
static bool freehint_migrates_over_rdma(VirtIOFreehint *fh)
{
    return migrate_rdma() && migration_is_running();
}

/* Postcopy takes an absent page for one that it has to request. */
static bool freehint_in_postcopy(VirtIOFreehint *fh)
{
    return migration_in_incoming_postcopy();
}

/* A snapshot write-protects pages, so they have to be present. */
static bool freehint_in_snapshot(VirtIOFreehint *fh)
{
    return migration_in_bg_snapshot();
}

static bool freehint_has_vhost_user(VirtIOFreehint *fh)
{
    return vhost_user_in_use() && !fh->assume_vhost_user_safe;
}

static bool freehint_guest_refuses(VirtIOFreehint *fh)
{
    return fh->driver_status > VIRTIO_FREEHINT_DRIVER_WAITING;
}

static bool freehint_is_over_rate(VirtIOFreehint *fh)
{
    return freehint_rate_wait_ms(fh);
}

static const struct {
    /* NULL for reasons about memory: see freehint_memory_with(). */
    bool (*holds)(VirtIOFreehint *fh);
    const char *detail;
    /* What the driver is told if it is a veto: enum virtio_freehint_reason. */
    uint32_t veto;
    /* Its end is not announced reliably. */
    bool polled;
} freehint_reasons[FREEHINT_REASON__MAX] = {
    [FREEHINT_REASON_OPERATOR] = {
        freehint_is_off,
        "the device is switched off; freehint-set enabled=true switches it on",
        VIRTIO_FREEHINT_REASON_OPERATOR
    },
    [FREEHINT_REASON_VM_STOPPED] = {
        freehint_is_stopped,
        "the VM does not run, so that its guest cannot hint"
    },
    [FREEHINT_REASON_DRIVER_NOT_READY] = {
        freehint_lacks_driver,
        "the guest has no driver for the device, or it has not got far enough"
    },
    [FREEHINT_REASON_PINNED] = {
        freehint_is_pinned,
        "something holds guest memory, such as a VFIO device; discards resume"
        " when it is gone",
        VIRTIO_FREEHINT_REASON_PINNED
    },
    [FREEHINT_REASON_LOCKED] = {
        freehint_is_locked,
        "guest memory is locked by -overcommit mem-lock; start the VM without"
        " it",
        VIRTIO_FREEHINT_REASON_LOCKED
    },
    [FREEHINT_REASON_RDMA_MIGRATION] = {
        freehint_migrates_over_rdma,
        "a migration over RDMA holds guest memory; discards resume when it is"
        " over",
        VIRTIO_FREEHINT_REASON_MIGRATION, true
    },
    [FREEHINT_REASON_INCOMING_POSTCOPY] = {
        freehint_in_postcopy,
        "memory is still to come from the source of a postcopy migration;"
        " discards resume when it is over",
        VIRTIO_FREEHINT_REASON_MIGRATION, true
    },
    [FREEHINT_REASON_BACKGROUND_SNAPSHOT] = {
        freehint_in_snapshot,
        "a background snapshot is being written; discards resume when it is"
        " over",
        VIRTIO_FREEHINT_REASON_MIGRATION, true
    },
    [FREEHINT_REASON_EXTERNAL] = {
        freehint_has_vhost_user,
        "a vhost-user back end may hold guest memory; assume-vhost-user-safe"
        " is for those that do not",
        VIRTIO_FREEHINT_REASON_EXTERNAL
    },
    [FREEHINT_REASON_FIXED_MEMORY] = {
        NULL, "its backing does not let go of memory"
    },
    [FREEHINT_REASON_FILE_MEMORY] = {
        NULL,
        "it is a named file; discard-file-backed=on lets holes be punched into"
        " it"
    },
    [FREEHINT_REASON_RESERVED_MEMORY] = {
        NULL,
        "it has huge pages or is preallocated; discard-reserved=on gives the"
        " reservation up"
    },
    [FREEHINT_REASON_LARGE_PAGES] = {
        NULL,
        "its pages are larger than the granule, and ranges smaller than a page"
        " are refused; give it smaller pages"
    },
    [FREEHINT_REASON_HOST_FAILURE] = {
        NULL, "the host failed to discard some memory; it is tried again"
    },
    [FREEHINT_REASON_GUEST] = {
        freehint_guest_refuses,
        "the guest's driver is idle by itself; driver-status says why"
    },
    [FREEHINT_REASON_OVER_RATE] = {
        freehint_is_over_rate,
        "more was discarded than rate-limit allows for the moment"
    },
    [FREEHINT_REASON_LAZY_UNRELIABLE] = {
        NULL,
        "discard=lazy drops memory: this host's kernel loses what is written to"
        " memory after MADV_FREE, or could not be tested; update it"
    },
    [FREEHINT_REASON_LAZY_FORBIDDEN] = {
        NULL,
        "discard=lazy drops memory: vhost-scsi writes to guest memory without"
        " marking it dirty; the host would lose that"
    },
    [FREEHINT_REASON_LAZY_MERGING] = {
        NULL,
        "discard=lazy drops memory: KSM is on, and what it has merged belongs"
        " to others, too; use -machine mem-merge=off, or write 2 to"
        " /sys/kernel/mm/ksm/run"
    },
};

const char *freehint_reason_detail(FreehintReason reason)
{
    return freehint_reasons[reason].detail;
}

/* Obstacles */

/*
 * VFIO devices have a property that shows whether they pin guest memory, so
 * none of their headers is needed. vfio-user devices (QEMU 10.1 and later) lack
 * it: they always keep discards disabled.
 */
static bool freehint_pins_memory(Object *obj)
{
    if (object_property_find(obj, "x-balloon-allowed")) {
        return !object_property_get_bool(obj, "x-balloon-allowed", NULL);
    }
    return object_dynamic_cast(obj, "vfio-user-pci");
}

static int freehint_find_pinning(Object *obj, void *opaque)
{
    strList ***tail = opaque;

    if (object_dynamic_cast(obj, TYPE_DEVICE) && DEVICE(obj)->realized &&
        freehint_pins_memory(obj)) {
        QAPI_LIST_APPEND(*tail, object_get_canonical_path(obj));
    }
    return 0;
}

/* QOM paths of the devices that pin guest memory, as far as they are known. */
static strList *freehint_pinning_devices(void)
{
    strList *devices = NULL, **tail = &devices;

    object_child_foreach_recursive(object_get_root(), freehint_find_pinning,
                                   &tail);
    return devices;
}

FreehintObstacleList *freehint_obstacles(VirtIOFreehint *fh)
{
    FreehintObstacleList *list = NULL, **tail = &list;
    FreehintReason reason;

    for (reason = 0; reason < FREEHINT_REASON__MAX; reason++) {
        bool (*holds)(VirtIOFreehint *fh) = freehint_reasons[reason].holds;
        FreehintMemoryList *memory = holds ? NULL :
                                     freehint_memory_with(fh, reason);
        FreehintObstacle *obstacle;

        if (holds ? !holds(fh) : !memory) {
            continue;
        }
        obstacle = g_new0(FreehintObstacle, 1);
        obstacle->reason = reason;
        obstacle->detail = g_strdup(freehint_reasons[reason].detail);
        obstacle->has_memory = memory;
        obstacle->memory = memory;
        if (reason == FREEHINT_REASON_PINNED) {
            obstacle->qom_paths = freehint_pinning_devices();
            obstacle->has_qom_paths = obstacle->qom_paths;
        }
        QAPI_LIST_APPEND(tail, obstacle);
    }
    return list;
}

/* State and epoch */

static FreehintReason freehint_first_veto(VirtIOFreehint *fh)
{
    FreehintReason reason;

    for (reason = 0; reason < FREEHINT_REASON__MAX; reason++) {
        if (freehint_reasons[reason].veto &&
            freehint_reasons[reason].holds(fh)) {
            return reason;
        }
    }
    return FREEHINT_NO_REASON;
}

uint32_t freehint_guest_reason(const VirtIOFreehint *fh)
{
    return fh->reason == FREEHINT_NO_REASON ? VIRTIO_FREEHINT_REASON_NONE :
                                              freehint_reasons[fh->reason].veto;
}

static uint32_t freehint_state_for(FreehintReason reason)
{
    switch (reason) {
    case FREEHINT_NO_REASON:
        return VIRTIO_FREEHINT_STATE_ACTIVE;
    case FREEHINT_REASON_OPERATOR:
        return VIRTIO_FREEHINT_STATE_DISABLED;
    default:
        return VIRTIO_FREEHINT_STATE_VETOED;
    }
}

static void freehint_announce_state(VirtIOFreehint *fh)
{
    const DeviceState *proxy = freehint_proxy(fh);

    trace_virtio_freehint_state(fh->state, freehint_guest_reason(fh),
                                fh->rehint_epoch);
    qapi_event_send_freehint_state_changed(proxy->id, proxy->canonical_path,
                                           fh->state,
                                           fh->reason != FREEHINT_NO_REASON,
                                           fh->reason);
}

/*
 * The state changes before the drain, so that the drain counts what it declines
 * under the reason. The epoch moves after it, so that what was declined has the
 * old epoch. The flush ends after the drain, too, when all that was discarded
 * for it is counted.
 */
static void freehint_set_reason(VirtIOFreehint *fh, FreehintReason reason)
{
    const bool changed = reason != fh->reason;
    const bool active = reason == FREEHINT_NO_REASON;

    fh->reason = reason;
    fh->state = freehint_state_for(reason);
    if (!active) {
        freehint_drain(fh, true);
        freehint_flush_end(fh, FREEHINT_FLUSH_RESULT_INACTIVE);
    }
    if (active && (changed ||
                   (fh->running && qatomic_read(&fh->epoch_owed)))) {
        qatomic_set(&fh->epoch_owed, false);
        fh->rehint_epoch++;
    } else if (!changed) {
        return;
    }
    if (changed) {
        freehint_announce_state(fh);
    }
    freehint_notify_config(fh);
}

void freehint_owe_epoch(VirtIOFreehint *fh)
{
    qatomic_set(&fh->epoch_owed, true);
    qemu_bh_schedule(fh->bh);
}

void freehint_apply_vetoes(VirtIOFreehint *fh)
{
    const FreehintReason reason = freehint_first_veto(fh);

    freehint_set_reason(fh, reason);
    if (reason != FREEHINT_NO_REASON && freehint_reasons[reason].polled) {
        timer_mod(fh->veto_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  FREEHINT_VETO_POLL_MS);
    }
}

static void freehint_poll_veto(void *opaque)
{
    freehint_apply_vetoes(opaque);
}

/*
 * Called in any thread. Whoever enables discards may unpin only after that, so
 * the main loop has to find out. Pinning has populated memory, even if it ends
 * before the main loop looks, and so may have a vhost-user back end that comes
 * or goes.
 */
static void freehint_discard_disable_changed(Notifier *notifier, void *data)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      discard_notifier);

    if (ram_block_discard_is_disabled()) {
        qemu_bh_schedule(fh->bh);
    } else {
        freehint_owe_epoch(fh);
    }
}

/*
 * At setup, discards in progress have to end before the migration thread
 * exists. At the end, the migration does not have its final state yet.
 */
static int freehint_migration_changed(NotifierWithReturn *notifier,
                                      MigrationEvent *event, Error **errp)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      migration_notifier);

    if (event->type == MIG_EVENT_PRECOPY_SETUP) {
        freehint_apply_vetoes(fh);
    } else {
        qemu_bh_schedule(fh->bh);
    }
    return 0;
}

/*
 * What precopy need not send
 *
 * Memory that is discarded while precopy runs has no content worth sending. Its
 * dirty bits are cleared while the driver still waits for its buffer, that is,
 * before the guest can write to the memory again: each later write is logged.
 *
 * Nobody knows which of the memory that was discarded earlier is still unused.
 * So the epoch moves when precopy begins, and the guest hints all of its free
 * memory again. It moves once more at the end, because precopy has read, and
 * may have populated, whatever it did not skip.
 */

static bool freehint_can_skip(const VirtIOFreehint *fh,
                              const FreehintHint *hint,
                              const FreehintPart *part)
{
    return fh->precopy == FREEHINT_PRECOPY_SKIPS &&
           !(hint->flags & VIRTIO_FREEHINT_HINT_F_ZERO) &&
           !migrate_ram_is_ignored(part->mr->ram_block) &&
           QEMU_IS_ALIGNED(part->offset | part->len, qemu_target_page_size());
}

void freehint_precopy_note(VirtIOFreehint *fh, FreehintHint *hint,
                           const FreehintPart *part)
{
    FreehintPart *last;

    if (!freehint_can_skip(fh, hint, part)) {
        return;
    }
    if (!hint->skips) {
        hint->skips = freehint_parts_new();
    }
    last = hint->skips->len ? &g_array_index(hint->skips, FreehintPart,
                                             hint->skips->len - 1) : NULL;
    if (last && last->mr == part->mr &&
        last->offset + last->len == part->offset) {
        last->len += part->len;
    } else {
        memory_region_ref(part->mr);
        g_array_append_vals(hint->skips, part, 1);
    }
}

uint64_t freehint_precopy_skip(const GArray *parts, const bool *hurry)
{
    const int64_t start = get_clock();
    uint64_t bytes = 0;
    bool locked;
    guint i;

    /*
     * Under KVM, clearing the log walks the memory sections under RCU, which
     * does not know the threads of the pool.
     */
    rcu_register_thread();
    locked = ram_skip_lock(FREEHINT_SKIP_MS, hurry);
    for (i = 0; locked && i < parts->len; i++) {
        const FreehintPart *part = &g_array_index(parts, FreehintPart, i);

        ram_skip(part->mr->ram_block, part->offset, part->len);
        bytes += part->len;
    }
    if (locked) {
        ram_skip_unlock();
    }
    rcu_unregister_thread();
    trace_virtio_freehint_precopy_skip(parts->len, bytes, locked,
                                       get_clock() - start);
    return bytes;
}

/*
 * If postcopy can follow, the destination may run without all of its memory,
 * and would wait for pages that nobody sends. COLO uses the bitmap for itself.
 */
static void freehint_precopy_begins(VirtIOFreehint *fh)
{
    if (migrate_postcopy_ram() || migrate_colo()) {
        fh->precopy = FREEHINT_PRECOPY_SENDS_ALL;
        return;
    }
    fh->precopy = FREEHINT_PRECOPY_SKIPS;
    freehint_owe_epoch(fh);
}

/* The bitmap goes away after this; what was noted is not for the next. */
static void freehint_precopy_ends(VirtIOFreehint *fh)
{
    FreehintHint *hint;

    fh->precopy = FREEHINT_PRECOPY_NONE;
    freehint_job_drain(fh);
    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        g_clear_pointer(&hint->skips, g_array_unref);
    }
    freehint_owe_epoch(fh);
}

/*
 * Called with the BQL, in the migration thread, the main loop, or where a VM is
 * saved. From the first bitmap sync until the BQL is released, the bitmaps are
 * still being set up; but jobs that skip begin only later.
 */
static int freehint_precopy_changed(NotifierWithReturn *notifier, void *data,
                                    Error **errp)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      precopy_notifier);
    const PrecopyNotifyData *precopy = data;

    switch (precopy->reason) {
    case PRECOPY_NOTIFY_AFTER_BITMAP_SYNC:
        if (fh->precopy == FREEHINT_PRECOPY_NONE) {
            freehint_precopy_begins(fh);
        }
        break;
    case PRECOPY_NOTIFY_COMPLETE:
        /* The VM has stopped, and there is one more sync to come. */
        fh->precopy = FREEHINT_PRECOPY_SENDS_ALL;
        break;
    case PRECOPY_NOTIFY_CLEANUP:
        if (fh->precopy != FREEHINT_PRECOPY_NONE) {
            freehint_precopy_ends(fh);
        }
        break;
    default:
        break;
    }
    return 0;
}

/*
 * The operator's limit
 *
 * The operator limits how many bytes per second may be discarded. A range above
 * the limit is refused at once, with the time after which it is worth a retry:
 * the device never keeps a message for later, because the guest lacks the
 * memory until it is answered. A range that was begun is finished, since a
 * range that is cut off would start from its beginning each time. The next
 * ranges wait longer in return.
 */

void freehint_set_rate_limit(VirtIOFreehint *fh, uint64_t limit)
{
    fh->rate_limit = limit;
    ratelimit_set_speed(&fh->rate, limit, FREEHINT_RATE_SLICE_NS);
}

uint32_t freehint_rate_wait_ms(VirtIOFreehint *fh)
{
    const int64_t ns = ratelimit_calculate_delay(&fh->rate, 0);

    return ns > 0 ? MIN(DIV_ROUND_UP(ns, SCALE_MS), FREEHINT_MAX_RETRY_MS) : 0;
}

/*
 * When QEMU exits, it first drops the migration object, and still polls and
 * answers the monitor after that. The device goes on asking about migration.
 */
void freehint_policy_init(VirtIOFreehint *fh)
{
    object_ref(OBJECT(migrate_get_current()));
    ratelimit_init(&fh->rate);
    freehint_set_rate_limit(fh, fh->rate_limit);
    fh->reason = freehint_first_veto(fh);
    fh->state = freehint_state_for(fh->reason);
    fh->veto_timer = timer_new_ms(QEMU_CLOCK_REALTIME, freehint_poll_veto, fh);
    fh->discard_notifier.notify = freehint_discard_disable_changed;
    ram_block_discard_add_notifier(&fh->discard_notifier);
    migration_add_notifier(&fh->migration_notifier,
                           freehint_migration_changed);
    fh->precopy = FREEHINT_PRECOPY_NONE;
    fh->precopy_notifier.notify = freehint_precopy_changed;
    precopy_add_notifier(&fh->precopy_notifier);
}

void freehint_policy_cleanup(VirtIOFreehint *fh)
{
    precopy_remove_notifier(&fh->precopy_notifier);
    migration_remove_notifier(&fh->migration_notifier);
    ram_block_discard_remove_notifier(&fh->discard_notifier);
    timer_free(fh->veto_timer);
    ratelimit_destroy(&fh->rate);
    object_unref(OBJECT(migrate_get_current()));
}
