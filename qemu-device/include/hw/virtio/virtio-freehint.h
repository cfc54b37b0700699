/*
 * Virtio free memory hint device
 *
 * The guest names memory that it does not use, the host takes it back and says
 * so range by range. The protocol is in
 * standard-headers/linux/virtio_freehint.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_FREEHINT_H
#define HW_VIRTIO_FREEHINT_H

#include "block/thread-pool.h"
#include "exec/ramlist.h"
#include "qemu/notify.h"
#include "qemu/queue.h"
#include "qemu/ratelimit.h"
#include "qemu/timer.h"
#include "hw/virtio/virtio-freehint-compat.h"
#include "hw/virtio/virtio.h"
#include "qapi/qapi-types-freehint.h"
#include "qom/object.h"

#define TYPE_VIRTIO_FREEHINT "virtio-freehint-device"
OBJECT_DECLARE_TYPE(VirtIOFreehint, VirtIOFreehintClass, VIRTIO_FREEHINT)

/* Properties that can be set at any time. */
#define VIRTIO_FREEHINT_ENABLED_PROP "enabled"
#define VIRTIO_FREEHINT_DELAY_PROP "delay-ms"
#define VIRTIO_FREEHINT_MIN_AGE_PROP "min-age-ms"
#define VIRTIO_FREEHINT_RATE_LIMIT_PROP "rate-limit"
#define VIRTIO_FREEHINT_DISCARD_PROP "discard"

/* What can be read of it. */
#define VIRTIO_FREEHINT_STATE_PROP "state"
#define VIRTIO_FREEHINT_REASON_PROP "reason"
#define VIRTIO_FREEHINT_OBSTACLES_PROP "obstacles"
#define VIRTIO_FREEHINT_STATS_PROP "stats"

typedef struct VirtIOFreehintHint VirtIOFreehintHint;
typedef struct VirtIOFreehintSlice VirtIOFreehintSlice;

/* How much of something there was. Never decreases, except for "in flight". */
typedef struct VirtIOFreehintCount {
    uint64_t ranges;
    uint64_t bytes;
} VirtIOFreehintCount;

/*
 * Why ranges were declined, as an index: one for each veto reason of the
 * protocol, and reason "none" for the ones that a VM stop or a reset cut short.
 */
#define VIRTIO_FREEHINT_NUM_DECLINE_REASONS 6

/* One for each status of the protocol from VIRTIO_FREEHINT_S_NEVER on. */
#define VIRTIO_FREEHINT_NUM_REJECTS 8

/*
 * What became of the ranges that the guest named since the device was created:
 * hinted = discarded + declined + throttled + rejected + failed + in flight,
 * in ranges and in bytes. Memory that is hinted twice counts twice.
 */
typedef struct VirtIOFreehintStats {
    VirtIOFreehintCount hinted;
    VirtIOFreehintCount discarded;
    VirtIOFreehintCount declined[VIRTIO_FREEHINT_NUM_DECLINE_REASONS];
    VirtIOFreehintCount throttled;
    /* The part of "throttled" that was over the operator's limit. */
    VirtIOFreehintCount over_rate;
    VirtIOFreehintCount rejected[VIRTIO_FREEHINT_NUM_REJECTS];
    VirtIOFreehintCount failed;
    VirtIOFreehintCount in_flight;
    /* Messages: well-formed hints, unsupported ones, malformed ones. */
    uint64_t hints;
    uint64_t unsupported;
    uint64_t malformed;
    /* Slices given to the host, what they covered, how long they took. */
    uint64_t discard_calls;
    uint64_t discard_bytes;
    uint64_t discard_ns;
    /* The part of them that left it to the host when to take the memory. */
    uint64_t lazy_calls;
    uint64_t lazy_bytes;
    uint64_t lazy_ns;
    /* What outgoing migrations did not send, because it was discarded. */
    uint64_t skipped_bytes;
} VirtIOFreehintStats;

/* What an outgoing migration does with memory that is discarded meanwhile. */
typedef enum VirtIOFreehintPrecopy {
    VIRTIO_FREEHINT_PRECOPY_NONE,
    VIRTIO_FREEHINT_PRECOPY_SKIPS,
    VIRTIO_FREEHINT_PRECOPY_SENDS_ALL,
} VirtIOFreehintPrecopy;

/* What the driver says of the guest's memory, in bytes: unchecked. */
typedef struct VirtIOFreehintGauges {
    uint64_t free;
    uint64_t pending;
    uint64_t hinted;
    uint64_t in_flight;
    uint64_t stuck;
    uint64_t reused;
    /* QEMU_CLOCK_REALTIME, in ms, when it said so; -1 if it has not. */
    int64_t arrival_ms;
} VirtIOFreehintGauges;

/* The last flush that was asked for. */
typedef struct VirtIOFreehintFlush {
    /* Shown to the driver in config space; id is 0 before the first. */
    uint32_t id;
    uint32_t flags;
    uint32_t timeout_ms;
    /* The last one that was given out: loading a state sets only id back. */
    uint32_t last_id;

    /* Nobody has been told yet how it ended. */
    bool pending;
    /* When it was asked for: QEMU_CLOCK_REALTIME, in ms, and bytes. */
    int64_t start_ms;
    uint64_t start_discarded;
    /* Runs out when the driver is not going to answer any more. */
    QEMUTimer *timer;
    /* How the last one ended; NULL before the first has. */
    FreehintFlushCompleted *last;
} VirtIOFreehintFlush;

/* Everything here is protected by the BQL; see also VirtIOFreehintSlice. */
struct VirtIOFreehint {
    VirtIODevice parent_obj;

    VirtQueue *hintq;
    /* Everything that touches the queue runs from here. */
    QEMUBH *bh;
    /* The VM runs, and the driver said DRIVER_OK. */
    bool running;
    /* Taken off the queue and not given back, in order of arrival. */
    QTAILQ_HEAD(, VirtIOFreehintHint) hints;
    /* Runs out when one of them has to be answered without more ado. */
    QEMUTimer *answer_timer;
    /* A thread for discards, for others may be busy with whatever else. */
    ThreadPool *pool;
    /* The discard in progress, and how long one may be, in bytes. */
    VirtIOFreehintSlice *slice;
    uint64_t slice_size;

    /* The operator's settings. */
    uint64_t host_features;
    bool enabled;
    uint32_t delay_ms;
    uint32_t min_age_ms;
    FreehintDiscardMode discard_mode;
    /* Whether the host keeps what is written after MADV_FREE. */
    FreehintLazyProbe lazy_probe;
    /* KSM's "run" and "pages_shared"; -1 if they cannot be read. */
    int ksm_run_fd;
    int ksm_shared_fd;
    /* The host's kernel has no KSM. */
    bool ksm_absent;
    /* Bytes a second, 0 for no limit, and what was used of it. */
    uint64_t rate_limit;
    RateLimit rate;
    bool discard_file_backed;
    bool discard_reserved;
    bool assume_vhost_user_safe;
    uint64_t granule_prop;

    /* Shown to the driver in config space. */
    uint64_t granule;
    uint32_t max_ranges;
    uint32_t state;
    uint32_t reason;
    uint32_t rehint_epoch;
    /* Written by the driver: unchecked. */
    uint32_t driver_status;

    /*
     * An answer that was given since the epoch moved may no longer hold: it has
     * to move once more when the device is active. Atomic.
     */
    bool epoch_owed;
    VirtIOFreehintPrecopy precopy;
    /* Config space has changed, and the driver does not know yet. */
    bool config_changed;

    /* MemoryRegion => VirtIOFreehintBlock: what may be discarded. */
    GHashTable *blocks;
    bool blocks_stale;
    /* Runs out when what the host failed to discard is worth another try. */
    QEMUTimer *retry_timer;
    MemoryListener memory_listener;
    RAMBlockNotifier ram_notifier;

    Notifier discard_notifier;
    NotifierWithReturn migration_notifier;
    NotifierWithReturn precopy_notifier;
    /* For the vetoes that end without telling anyone. */
    QEMUTimer *veto_timer;

    VirtIOFreehintFlush flush;
    VirtIOFreehintGauges gauges;

    VirtIOFreehintStats stats;
    /* QEMU_CLOCK_REALTIME, in ms; -1 before the first hint. */
    int64_t last_hint_ms;
};

/* What a device for tests does otherwise. */
struct VirtIOFreehintClass {
    VirtioDeviceClass parent_class;

    /* Whether to go on with hints that were taken; always, if it is NULL. */
    bool (*may_advance)(VirtIOFreehint *fh);
    /* Give a message back, with an answer of so many bytes. */
    void (*use)(VirtIOFreehint *fh, VirtIOFreehintHint *hint, size_t len);
    /* In the worker: a slice may still be called off; NULL does nothing. */
    void (*begin_slice)(VirtIOFreehint *fh);
    /* In the worker: it may not. */
    void (*discard_slice)(VirtIOFreehint *fh, VirtIOFreehintSlice *slice);
};

#endif
