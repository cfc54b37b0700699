/*
 * Virtio free memory hint device: what keeps it from discarding
 *
 * Discarding changes the host page behind a guest page. Whoever holds on to the
 * host page - a device that does DMA, RDMA, a lock, a snapshot in progress -
 * would go on with the old one. While anything of that kind holds, the device
 * is vetoed. The operator comes first: a device that is switched off says so
 * whatever else holds.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "hw/virtio/vhost.h"
#include "migration/migration.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "qapi/qapi-events-freehint.h"
#include "qapi/util.h"
#include "system/system.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/* Their end is not announced reliably, so that it is looked for. */
#define POLLED_REASONS (1u << VIRTIO_FREEHINT_REASON_MIGRATION | \
                        1u << VIRTIO_FREEHINT_REASON_EXTERNAL)
#define VETO_POLL_MS 500

/* QAPI has the protocol's values by name. */
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_DISABLED !=
                  (int)VIRTIO_FREEHINT_STATE_DISABLED);
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_ACTIVE !=
                  (int)VIRTIO_FREEHINT_STATE_ACTIVE);
QEMU_BUILD_BUG_ON((int)FREEHINT_STATE_VETOED !=
                  (int)VIRTIO_FREEHINT_STATE_VETOED);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_NONE !=
                  (int)VIRTIO_FREEHINT_REASON_NONE);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_OPERATOR !=
                  (int)VIRTIO_FREEHINT_REASON_OPERATOR);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_PINNED !=
                  (int)VIRTIO_FREEHINT_REASON_PINNED);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_LOCKED !=
                  (int)VIRTIO_FREEHINT_REASON_LOCKED);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_MIGRATION !=
                  (int)VIRTIO_FREEHINT_REASON_MIGRATION);
QEMU_BUILD_BUG_ON((int)FREEHINT_REASON_EXTERNAL !=
                  (int)VIRTIO_FREEHINT_REASON_EXTERNAL);

/*
 * RDMA registers, that is pins, the source's memory without disabling
 * discards. A background snapshot write-protects pages, and needs them present
 * for that. Incoming postcopy takes an absent page for one to be requested.
 */
static bool migration_forbids_discards(void)
{
    return migration_in_incoming_postcopy() || migration_in_bg_snapshot() ||
           (migrate_rdma() && migration_is_running());
}

uint32_t virtio_freehint_reasons(VirtIOFreehint *fh)
{
    uint32_t reasons = 0;

    if (!fh->enabled) {
        reasons |= 1u << VIRTIO_FREEHINT_REASON_OPERATOR;
    }
    if (ram_block_discard_is_disabled()) {
        reasons |= 1u << VIRTIO_FREEHINT_REASON_PINNED;
    }
    if (should_mlock(mlock_state)) {
        reasons |= 1u << VIRTIO_FREEHINT_REASON_LOCKED;
    }
    if (migration_forbids_discards()) {
        reasons |= 1u << VIRTIO_FREEHINT_REASON_MIGRATION;
    }
    if (vhost_user_in_use() && !fh->assume_vhost_user_safe) {
        reasons |= 1u << VIRTIO_FREEHINT_REASON_EXTERNAL;
    }
    return reasons;
}

/* Reasons are numbered by precedence, "none" is 0. */
static uint32_t first_reason(uint32_t reasons)
{
    return reasons ? ctz32(reasons) : VIRTIO_FREEHINT_REASON_NONE;
}

static uint32_t state_for(uint32_t reason)
{
    switch (reason) {
    case VIRTIO_FREEHINT_REASON_NONE:
        return VIRTIO_FREEHINT_STATE_ACTIVE;
    case VIRTIO_FREEHINT_REASON_OPERATOR:
        return VIRTIO_FREEHINT_STATE_DISABLED;
    default:
        return VIRTIO_FREEHINT_STATE_VETOED;
    }
}

static void announce_state(VirtIOFreehint *fh)
{
    DeviceState *proxy = virtio_freehint_proxy(fh);

    trace_virtio_freehint_state(fh->state, fh->reason, fh->rehint_epoch);
    qapi_event_send_freehint_state_changed(proxy->id, proxy->canonical_path,
                                           fh->state, fh->reason,
                                           fh->rehint_epoch);
}

/*
 * The state is set before the drain, so that what is declined there is counted
 * under the reason, and the epoch moves after it, so that what was declined
 * has the epoch that has ended. A flush ends with all that was discarded for it
 * counted.
 */
static void set_state(VirtIOFreehint *fh, uint32_t state, uint32_t reason)
{
    const bool changed = state != fh->state || reason != fh->reason;
    const bool active = state == VIRTIO_FREEHINT_STATE_ACTIVE;
    const bool activated = active && state != fh->state;

    fh->state = state;
    fh->reason = reason;
    if (!active) {
        virtio_freehint_drain(fh, true);
        virtio_freehint_flush_end(fh, FREEHINT_FLUSH_RESULT_INACTIVE);
    }
    if (activated ||
        (active && fh->running && qatomic_read(&fh->epoch_owed))) {
        qatomic_set(&fh->epoch_owed, false);
        fh->rehint_epoch++;
    } else if (!changed) {
        return;
    }
    if (changed) {
        announce_state(fh);
    }
    virtio_freehint_notify_config(fh);
}

void virtio_freehint_owe_epoch(VirtIOFreehint *fh)
{
    qatomic_set(&fh->epoch_owed, true);
    qemu_bh_schedule(fh->bh);
}

void virtio_freehint_refresh(VirtIOFreehint *fh)
{
    const uint32_t reasons = virtio_freehint_reasons(fh);
    const uint32_t reason = first_reason(reasons);

    set_state(fh, state_for(reason), reason);
    if (reasons & POLLED_REASONS) {
        timer_mod(fh->veto_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + VETO_POLL_MS);
    }
}

static void veto_timer_cb(void *opaque)
{
    virtio_freehint_refresh(opaque);
}

/*
 * Any thread. Whoever enables discards may unpin only after that, so it is left
 * to the main loop to find out. Pinning has populated memory, also if it is
 * over before the main loop looks.
 */
static void discard_disable_changed(Notifier *notifier, void *data)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      discard_notifier);

    if (ram_block_discard_is_disabled()) {
        qemu_bh_schedule(fh->bh);
    } else {
        virtio_freehint_owe_epoch(fh);
    }
}

/*
 * At setup, before the migration thread exists, what is in progress has to be
 * over. At the end the migration's state is not yet what it will be.
 */
static int migration_changed(NotifierWithReturn *notifier,
                             MigrationEvent *event, Error **errp)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint,
                                      migration_notifier);

    if (event->type == MIG_EVENT_PRECOPY_SETUP) {
        virtio_freehint_refresh(fh);
    } else {
        qemu_bh_schedule(fh->bh);
    }
    return 0;
}

typedef struct PinningSearch {
    strList **tail;
} PinningSearch;

/*
 * VFIO devices tell by a property whether they pin guest memory, without
 * their headers. Those of vfio-user, of QEMU 10.1 and later, lack it: they
 * always keep discards disabled.
 */
static bool pins_memory(Object *obj)
{
    if (object_property_find(obj, "x-balloon-allowed")) {
        return !object_property_get_bool(obj, "x-balloon-allowed", NULL);
    }
    return object_dynamic_cast(obj, "vfio-user-pci");
}

static int find_pinning_device(Object *obj, void *opaque)
{
    PinningSearch *search = opaque;

    if (object_dynamic_cast(obj, TYPE_DEVICE) && DEVICE(obj)->realized &&
        pins_memory(obj)) {
        QAPI_LIST_APPEND(search->tail, object_get_canonical_path(obj));
    }
    return 0;
}

strList *virtio_freehint_pinning_devices(void)
{
    strList *devices = NULL;
    PinningSearch search = { .tail = &devices };

    object_child_foreach_recursive(object_get_root(), find_pinning_device,
                                   &search);
    return devices;
}

/*
 * When QEMU ends it lets go of the migration object first, and after that polls
 * and answers the monitor. The device goes on asking about migration.
 */
static void hold_migration(void)
{
    object_ref(OBJECT(migrate_get_current()));
}

static void release_migration(void)
{
    object_unref(OBJECT(migrate_get_current()));
}

void virtio_freehint_veto_init(VirtIOFreehint *fh)
{
    hold_migration();
    fh->reason = first_reason(virtio_freehint_reasons(fh));
    fh->state = state_for(fh->reason);
    fh->veto_timer = timer_new_ms(QEMU_CLOCK_REALTIME, veto_timer_cb, fh);
    fh->discard_notifier.notify = discard_disable_changed;
    ram_block_discard_add_notifier(&fh->discard_notifier);
    migration_add_notifier(&fh->migration_notifier, migration_changed);
}

void virtio_freehint_veto_cleanup(VirtIOFreehint *fh)
{
    migration_remove_notifier(&fh->migration_notifier);
    ram_block_discard_remove_notifier(&fh->discard_notifier);
    timer_free(fh->veto_timer);
    release_migration();
}
