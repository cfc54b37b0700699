/*
 * Virtio free memory hint device: why does this VM not shrink?
 *
 * The reasons of config space are for the driver, which only has to know
 * whether to hint. An operator wants to know all that is in the way, on both
 * sides, and what to do about it. The two lists agree in their order.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "qapi/qapi-types-freehint.h"
#include "qapi/util.h"
#include "virtio-freehint-internal.h"

static bool has_reason(VirtIOFreehint *fh, uint32_t reason)
{
    return virtio_freehint_reasons(fh) & (1u << reason);
}

static bool is_switched_off(VirtIOFreehint *fh)
{
    return has_reason(fh, VIRTIO_FREEHINT_REASON_OPERATOR);
}

static bool is_stopped(VirtIOFreehint *fh)
{
    return !VIRTIO_DEVICE(fh)->vm_running;
}

static bool lacks_driver(VirtIOFreehint *fh)
{
    return !(VIRTIO_DEVICE(fh)->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
           fh->driver_status == VIRTIO_FREEHINT_DRIVER_NOT_READY;
}

static bool is_pinned(VirtIOFreehint *fh)
{
    return has_reason(fh, VIRTIO_FREEHINT_REASON_PINNED);
}

static bool is_locked(VirtIOFreehint *fh)
{
    return has_reason(fh, VIRTIO_FREEHINT_REASON_LOCKED);
}

static bool migrates_over_rdma(VirtIOFreehint *fh)
{
    return migrate_rdma() && migration_is_running();
}

static bool is_in_postcopy(VirtIOFreehint *fh)
{
    return migration_in_incoming_postcopy();
}

static bool is_in_snapshot(VirtIOFreehint *fh)
{
    return migration_in_bg_snapshot();
}

static bool has_vhost_user(VirtIOFreehint *fh)
{
    return has_reason(fh, VIRTIO_FREEHINT_REASON_EXTERNAL);
}

static bool has_refused_memory(VirtIOFreehint *fh, bool failing)
{
    g_autoptr(FreehintRefusedMemoryList) memory =
        virtio_freehint_refused_memory(fh, failing);

    return memory;
}

static bool has_fixed_memory(VirtIOFreehint *fh)
{
    return has_refused_memory(fh, false);
}

static bool has_failing_memory(VirtIOFreehint *fh)
{
    return has_refused_memory(fh, true);
}

static const char *describe_guest(VirtIOFreehint *fh)
{
    switch (fh->driver_status) {
    case VIRTIO_FREEHINT_DRIVER_NOT_READY:
    case VIRTIO_FREEHINT_DRIVER_ACTIVE:
    case VIRTIO_FREEHINT_DRIVER_WAITING:
        return NULL;
    case VIRTIO_FREEHINT_DRIVER_OFF:
        return "the guest's administrator has switched its driver off";
    case VIRTIO_FREEHINT_DRIVER_POISONING:
        return "the guest fills free memory with a pattern that it checks";
    case VIRTIO_FREEHINT_DRIVER_DEBUGGING:
        return "a debugging facility of the guest needs free memory to stay"
               " as it is";
    case VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER:
        return "another facility of the guest reports free memory, for"
               " example virtio-balloon with free-page-reporting=on";
    case VIRTIO_FREEHINT_DRIVER_GRANULE:
        return "the granule is larger than what the guest keeps apart as one"
               " piece of free memory";
    case VIRTIO_FREEHINT_DRIVER_FAILED:
        return "the guest's driver has given the device up; its log says"
               " more";
    default:
        return "the guest's driver says something that this version does not"
               " know";
    }
}

static bool guest_refuses(VirtIOFreehint *fh)
{
    return describe_guest(fh);
}

static bool is_over_rate(VirtIOFreehint *fh)
{
    return virtio_freehint_rate_wait_ms(fh);
}

static bool drops_for(VirtIOFreehint *fh, FreehintCause cause)
{
    return fh->discard_mode == FREEHINT_DISCARD_MODE_LAZY &&
           virtio_freehint_drops_for(fh, cause);
}

static bool distrusts_host(VirtIOFreehint *fh)
{
    return drops_for(fh, FREEHINT_CAUSE_LAZY_UNRELIABLE);
}

static bool may_not_be_lazy(VirtIOFreehint *fh)
{
    return drops_for(fh, FREEHINT_CAUSE_LAZY_FORBIDDEN);
}

static bool may_be_merged(VirtIOFreehint *fh)
{
    return drops_for(fh, FREEHINT_CAUSE_LAZY_MERGING);
}

/* Numbered by precedence. */
static const struct {
    bool (*holds)(VirtIOFreehint *fh);
    const char *detail;
} obstacles[FREEHINT_CAUSE__MAX] = {
    [FREEHINT_CAUSE_OPERATOR] = {
        is_switched_off,
        "the device is switched off; freehint-set enabled=true switches it on"
    },
    [FREEHINT_CAUSE_VM_STOPPED] = {
        is_stopped,
        "the VM does not run, so that its guest cannot hint"
    },
    [FREEHINT_CAUSE_DRIVER_NOT_READY] = {
        lacks_driver,
        "the guest has no driver for the device, or it has not got far enough"
    },
    [FREEHINT_CAUSE_PINNED] = {
        is_pinned,
        "a subsystem of QEMU that is no VFIO device disables discards; they"
        " resume when it is gone"
    },
    [FREEHINT_CAUSE_LOCKED] = {
        is_locked,
        "guest memory is locked by -overcommit mem-lock; start the VM without"
        " it"
    },
    [FREEHINT_CAUSE_RDMA_MIGRATION] = {
        migrates_over_rdma,
        "a migration over RDMA holds guest memory; discards resume when it is"
        " over"
    },
    [FREEHINT_CAUSE_INCOMING_POSTCOPY] = {
        is_in_postcopy,
        "memory is still to come from the source of a postcopy migration;"
        " discards resume when it is over"
    },
    [FREEHINT_CAUSE_BACKGROUND_SNAPSHOT] = {
        is_in_snapshot,
        "a background snapshot is being written; discards resume when it is"
        " over"
    },
    [FREEHINT_CAUSE_EXTERNAL] = {
        has_vhost_user,
        "a vhost-user back end may hold guest memory;"
        " assume-vhost-user-safe=on is for those that do not"
    },
    [FREEHINT_CAUSE_BACKING] = {
        has_fixed_memory,
        "some memory is not to be discarded; an option may allow it, which is"
        " named with the memory"
    },
    [FREEHINT_CAUSE_HOST_FAILURE] = {
        has_failing_memory,
        "the host failed to discard some memory; it is tried again"
    },
    [FREEHINT_CAUSE_GUEST] = { guest_refuses },
    [FREEHINT_CAUSE_OVER_RATE] = {
        is_over_rate,
        "more was discarded than rate-limit allows for the moment"
    },
    [FREEHINT_CAUSE_LAZY_UNRELIABLE] = {
        distrusts_host,
        "discard=lazy drops memory: this host's kernel loses what is written to"
        " memory after MADV_FREE, or could not be tested; update it"
    },
    [FREEHINT_CAUSE_LAZY_FORBIDDEN] = {
        may_not_be_lazy,
        "discard=lazy drops memory: vhost-scsi writes to guest memory without"
        " marking it dirty; the host would lose that"
    },
    [FREEHINT_CAUSE_LAZY_MERGING] = {
        may_be_merged,
        "discard=lazy drops memory: KSM is on, and what it has merged belongs"
        " to others, too; use -machine mem-merge=off, or write 2 to"
        " /sys/kernel/mm/ksm/run"
    },
};

static FreehintObstacle *describe(VirtIOFreehint *fh, FreehintCause cause)
{
    FreehintObstacle *obstacle = g_new0(FreehintObstacle, 1);
    const char *detail = obstacles[cause].detail;

    if (cause == FREEHINT_CAUSE_GUEST) {
        detail = describe_guest(fh);
    } else if (cause == FREEHINT_CAUSE_PINNED) {
        obstacle->qom_paths = virtio_freehint_pinning_devices();
        obstacle->has_qom_paths = obstacle->qom_paths;
        if (obstacle->qom_paths) {
            detail = "VFIO devices hold guest memory; unplug them, or accept"
                     " that memory is not returned";
        }
    }
    if (cause == FREEHINT_CAUSE_BACKING ||
        cause == FREEHINT_CAUSE_HOST_FAILURE) {
        obstacle->has_memory = true;
        obstacle->memory = virtio_freehint_refused_memory(
            fh, cause == FREEHINT_CAUSE_HOST_FAILURE);
    }
    obstacle->cause = cause;
    obstacle->detail = g_strdup(detail);
    return obstacle;
}

FreehintObstacleList *virtio_freehint_obstacles(VirtIOFreehint *fh)
{
    FreehintObstacleList *list = NULL;
    FreehintObstacleList **tail = &list;
    FreehintCause cause;

    for (cause = 0; cause < FREEHINT_CAUSE__MAX; cause++) {
        if (obstacles[cause].holds(fh)) {
            QAPI_LIST_APPEND(tail, describe(fh, cause));
        }
    }
    return list;
}
