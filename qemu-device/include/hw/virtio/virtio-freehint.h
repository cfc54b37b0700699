/*
 * Virtio free memory hint device
 *
 * The guest names memory that it does not use; the host takes it back and
 * answers range by range. The protocol is in
 * standard-headers/linux/virtio_freehint.h.
 *
 * Unless a comment says otherwise, functions are called with the BQL held,
 * which protects everything here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_FREEHINT_H
#define HW_VIRTIO_FREEHINT_H

#include "block/thread-pool.h"
#include "exec/cpu-common.h"
#include "exec/ramlist.h"
#include "hw/virtio/virtio-freehint-compat.h"
#include "hw/virtio/virtio.h"
#include "qapi/qapi-types-freehint.h"
#include "qemu/notify.h"
#include "qemu/queue.h"
#include "qemu/ratelimit.h"
#include "qemu/timer.h"
#include "qom/object.h"
#include "standard-headers/linux/virtio_freehint.h"

#define TYPE_VIRTIO_FREEHINT "virtio-freehint-device"
OBJECT_DECLARE_TYPE(VirtIOFreehint, VirtIOFreehintClass, VIRTIO_FREEHINT)

/* Most ranges in a hint: bounds what is copied before it is checked. */
#define FREEHINT_MAX_RANGES 1024

/* Upper bound for the pacing that is asked of the guest. */
#define FREEHINT_MAX_PACING_MS 60000

/* Upper bound for the time that a driver is given to answer a flush. */
#define FREEHINT_MAX_FLUSH_MS 3600000

/* Nothing is in the way. */
#define FREEHINT_NO_REASON FREEHINT_REASON__MAX

/* One for each veto of the protocol, and one for a stop or a reset. */
#define FREEHINT_NUM_DECLINED 6

/* One for each status of the protocol from VIRTIO_FREEHINT_S_NEVER on. */
#define FREEHINT_NUM_REJECTED 8

/* Memory that the guest says it does not use: guest-physical, in bytes. */
typedef struct FreehintRange {
    uint64_t addr;
    uint64_t len;
} FreehintRange;

/* A piece of a range that lies in one memory region. */
typedef struct FreehintPart {
    /* With a reference of its own. */
    MemoryRegion *mr;
    uint64_t offset;
    uint64_t len;
    /* What madvise() is told; 0 if ram_block_discard_range() is to do it. */
    int advice;
    /* It is left to the host only because the guest may want it back soon. */
    bool lent;
    /* The range ends with it. */
    bool ends_range;
} FreehintPart;

/*
 * A message that was taken off the queue and not yet given back. Header and
 * ranges are copies: the guest may still write to the originals.
 */
typedef struct FreehintHint {
    /* Has to be first: virtqueue_pop() allocates the whole structure. */
    VirtQueueElement elem;

    uint16_t flags;
    uint64_t cookie;
    uint32_t nranges;
    FreehintRange *ranges;
    uint8_t *status;

    /* The first range without a status, and how far discarding it got. */
    uint32_t next;
    uint64_t done;
    /* Some of that was lent. */
    bool lent;

    /* FreehintPart: discarded, so that precopy need not send it; or NULL. */
    GArray *skips;

    /* QEMU_CLOCK_REALTIME, in ms, when it was taken off the queue. */
    int64_t arrival_ms;
    /* The epoch in which its first range got a status. */
    uint32_t epoch;
    /* For its ranges that got VIRTIO_FREEHINT_S_THROTTLED, if not 0. */
    uint32_t retry_ms;

    QTAILQ_ENTRY(FreehintHint) entry;
} FreehintHint;

/*
 * Atomic. Only the worker goes on from RUNNING and CANCELLED, only the main
 * loop from IDLE and ENDED; from QUEUED, whichever of them is first.
 */
typedef enum FreehintPhase {
    FREEHINT_IDLE,
    FREEHINT_QUEUED,
    FREEHINT_CANCELLED,
    FREEHINT_RUNNING,
    FREEHINT_ENDED,
} FreehintPhase;

/*
 * What the worker does for a hint: it discards as much memory as the host can
 * in a moment, or has precopy skip what was discarded. Each device has one job,
 * and never more than one request in the pool: a drain that calls it off leaves
 * nothing behind.
 */
typedef struct FreehintJob {
    VirtIOFreehint *fh;
    /* The hint that it is for; NULL unless it is queued, running or ended. */
    FreehintHint *hint;
    /* FreehintPart, of one range or several, in order. */
    GArray *parts;
    /* How many more bytes it may get. */
    uint64_t room;
    /* The parts were discarded, and precopy is to skip them. */
    bool skips;
    /* The operator's assume-vhost-user-safe. */
    bool vhost_user_safe;
    /* Somebody waits in a drain. Atomic. */
    bool hurry;

    /* Written by the worker before the phase is ENDED. */

    /* How many of the parts were discarded. */
    unsigned int ndone;
    /* Why the next one failed: a negative errno; or 0. */
    int ret;
    /* Why none was tried: enum virtio_freehint_reason. */
    uint32_t veto;
    int64_t ns;
    uint64_t calls;
    uint64_t pieces;
    uint64_t lazy_calls;
    uint64_t lazy_bytes;
    uint64_t skipped_bytes;
} FreehintJob;

/*
 * What became of the ranges that the guest has named since the device was
 * created: hinted = discarded + declined + throttled + rejected + failed + in
 * flight, in ranges and in bytes. Memory that is hinted twice counts twice. The
 * other counters are those of FreehintStats.
 */
typedef struct FreehintCounters {
    FreehintCount hinted;
    FreehintCount discarded;
    FreehintCount declined[FREEHINT_NUM_DECLINED];
    FreehintCount throttled;
    FreehintCount over_rate;
    FreehintCount rejected[FREEHINT_NUM_REJECTED];
    FreehintCount failed;
    FreehintCount in_flight;
    uint64_t hints;
    uint64_t unsupported;
    uint64_t malformed;
    uint64_t discard_calls;
    uint64_t discard_pieces;
    uint64_t discard_bytes;
    uint64_t discard_ns;
    uint64_t lazy_calls;
    uint64_t lazy_bytes;
    uint64_t lazy_ns;
    uint64_t skipped_bytes;
} FreehintCounters;

/* What an outgoing migration does with memory that is discarded meanwhile. */
typedef enum FreehintPrecopy {
    FREEHINT_PRECOPY_NONE,
    FREEHINT_PRECOPY_SKIPS,
    FREEHINT_PRECOPY_SENDS_ALL,
} FreehintPrecopy;

/* The last flush that was asked for. */
typedef struct FreehintFlushState {
    /* Shown to the driver in config space; id is 0 before the first. */
    uint32_t id;
    uint32_t flags;
    uint32_t timeout_ms;
    /* The last ID that was given out; loading a state sets back only id. */
    uint32_t last_id;

    /* Its end has not been announced yet. */
    bool pending;
    /* At the request: QEMU_CLOCK_REALTIME, in ms, and bytes discarded. */
    int64_t start_ms;
    uint64_t start_discarded;
    /* Expires when no answer of the driver is to be expected any more. */
    QEMUTimer *timer;
    /* How the last one ended; NULL before the first has. */
    FreehintFlushCompleted *last;
} FreehintFlushState;

struct VirtIOFreehint {
    VirtIODevice parent_obj;

    VirtQueue *hintq;
    /* Everything that touches the queue runs from here. */
    QEMUBH *bh;
    /* The VM runs, and the driver said DRIVER_OK. */
    bool running;
    /* Taken off the queue and not given back, in order of arrival. */
    QTAILQ_HEAD(, FreehintHint) hints;
    /* Expires when one of them has to be answered at once. */
    QEMUTimer *answer_timer;
    /* A thread for jobs only: a shared one may be busy with other work. */
    ThreadPool *pool;
    FreehintJob job;
    /* Says who has the job at the moment. */
    FreehintPhase job_phase;
    /* How much memory a job may have, in bytes. */
    uint64_t job_size;

    /* The operator's settings. */
    uint64_t host_features;
    bool enabled;
    uint32_t delay_ms;
    uint32_t min_age_ms;
    FreehintDiscardMode discard_mode;
    /* Bytes per second, 0 for no limit, and what was used of it. */
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
    uint32_t rehint_epoch;
    /* Memory that the guest may want back soon is discarded lazily. */
    bool lazy;
    /* Written by the driver: unchecked. */
    uint32_t driver_status;
    /* Why it is not active; config space has the protocol's value for it. */
    FreehintReason reason;
    /*
     * An answer that was given since the epoch moved may no longer hold: the
     * epoch has to move again when the device is active. Atomic.
     */
    bool epoch_owed;
    /* Config space has changed, and the driver does not know yet. */
    bool config_changed;

    /* MemoryRegion => FreehintBlock: what may be discarded. */
    GHashTable *blocks;
    bool blocks_stale;
    /* Expires when it is time to retry what the host failed to discard. */
    QEMUTimer *retry_timer;
    MemoryListener memory_listener;
    RAMBlockNotifier ram_notifier;
    Notifier machine_done;

    /* Whether the host keeps what is written after MADV_FREE. */
    FreehintLazyProbe lazy_probe;
    /* KSM's "run" and "pages_shared"; -1 if they cannot be read. */
    int ksm_run_fd;
    int ksm_shared_fd;
    /* The host's kernel has no KSM. */
    bool ksm_absent;
    /* QEMU, for process_madvise(); -1 if each piece takes a call. */
    int pidfd;

    Notifier discard_notifier;
    NotifierWithReturn migration_notifier;
    NotifierWithReturn precopy_notifier;
    FreehintPrecopy precopy;
    /* For the vetoes whose end is not announced. */
    QEMUTimer *veto_timer;

    FreehintFlushState flush;
    /* What the driver reports about guest memory, unchecked, and when. */
    FreehintGauges gauges;
    int64_t gauges_ms;
    FreehintCounters counters;
    /* QEMU_CLOCK_REALTIME, in ms; -1 before the first hint. */
    int64_t last_hint_ms;
};

/* What a test device does differently. */
struct VirtIOFreehintClass {
    VirtioDeviceClass parent_class;

    /* Whether to go on with hints that were taken; always, if it is NULL. */
    bool (*may_advance)(VirtIOFreehint *fh);
    /* Give a message back, with an answer of @len bytes. */
    void (*use)(VirtIOFreehint *fh, FreehintHint *hint, size_t len);
    /* Called in the worker, while a job may still be called off; or NULL. */
    void (*begin_job)(VirtIOFreehint *fh);
    /* Called in the worker, when a job may not be called off any more. */
    void (*discard)(FreehintJob *job);
};

/* virtio-freehint.c: device and config space */

/* Tell the driver, now or as soon as it runs, that config space has changed. */
void freehint_notify_config(VirtIOFreehint *fh);

/* The device that has the user's "id": e.g., the PCI function. */
DeviceState *freehint_proxy(VirtIOFreehint *fh);

/* Milliseconds since a time of QEMU_CLOCK_REALTIME. */
uint64_t freehint_age_ms(int64_t since_ms);

/* Whether new settings are valid; absent ones are. */
bool freehint_check_settings(const FreehintSettings *new, Error **errp);


/* virtio-freehint-queue.c: take, parse, discard in turns, answer, drain */

/* One turn of work on the queue; schedule it when there may be some. */
void freehint_bh(void *opaque);

/* The driver has notified the device. */
void freehint_handle_hintq(VirtIODevice *vdev, VirtQueue *vq);

/* Write an answer of @len bytes into the used ring. */
void freehint_use(VirtIOFreehint *fh, FreehintHint *hint, size_t len);

/**
 * freehint_drain: end all work on behalf of the guest
 *
 * @fh: the device
 * @answer: whether the driver still waits for an answer
 *
 * When this returns, no job is in progress, and none starts for a message that
 * was taken off the queue. Messages are given back, and what was not reached is
 * declined; without @answer, they are forgotten. Waits for one job at most.
 *
 * Section "Drain rule".
 */
void freehint_drain(VirtIOFreehint *fh, bool answer);

/**
 * freehint_job_ended: record what became of a job's parts
 *
 * The job was to discard them, and its hint still exists.
 */
void freehint_job_ended(VirtIOFreehint *fh, const FreehintJob *job);

/* virtio-freehint-ram.c: what may be discarded, and the worker that does it */

/**
 * freehint_collect: find out whether a range may be discarded
 *
 * @fh: the device
 * @range: lies inside the 64-bit address space, is not empty
 * @flags: the hint's VIRTIO_FREEHINT_HINT_F_* flags
 * @job: as much of the range as there is room for becomes parts of it; NULL if
 *       the range is only to be checked
 *
 * Returns: VIRTIO_FREEHINT_S_DISCARDED if all of it may be discarded, else why
 * not: the greatest status of its pieces, none of which is in the job then.
 *
 * Section "Range status".
 */
uint8_t freehint_collect(VirtIOFreehint *fh, const FreehintRange *range,
                         uint16_t flags, FreehintJob *job);

/* Bring up to date which memory may be discarded, and lazily. */
void freehint_refresh_blocks(VirtIOFreehint *fh);

/**
 * freehint_block_tried: record whether the host has discarded memory
 *
 * @fh: the device
 * @mr: the region that the memory is part of
 * @ret: 0 or a negative errno
 *
 * After a failure, the memory is left alone for a while, longer each time, and
 * then the epoch moves. Warns once until it works again.
 */
void freehint_block_tried(VirtIOFreehint *fh, MemoryRegion *mr, int ret);

/* Try again at once what the host failed to discard. */
void freehint_forgive_blocks(VirtIOFreehint *fh);

/* The memory that is not discarded, or not lazily, for a reason. */
FreehintMemoryList *freehint_memory_with(VirtIOFreehint *fh,
                                         FreehintReason reason);

/*
 * A lower bound, in bytes, of the memory that the driver takes for discarded
 * although the host has populated it. Returns whether there is one.
 */
bool freehint_populated_hinted(const VirtIOFreehint *fh, uint64_t *bytes);

/* The granule, in bytes, that suits the machine's boot memory. */
uint64_t freehint_default_granule(VirtIOFreehint *fh);

/* Whether no job can be started now. */
bool freehint_job_busy(const VirtIOFreehint *fh);

/* Empty the job, and give it room for @room bytes. */
void freehint_job_prepare(VirtIOFreehint *fh, uint64_t room);

/**
 * freehint_job_start: have the job done for a hint
 *
 * Returns at once. When the job has ended, the device's bottom half runs, and
 * calls freehint_job_reap().
 */
void freehint_job_start(VirtIOFreehint *fh, FreehintHint *hint);

/* Have precopy not send what a hint has discarded: another kind of job. */
void freehint_job_start_skip(VirtIOFreehint *fh, FreehintHint *hint);

/* Record how the job has ended, if it has. */
void freehint_job_reap(VirtIOFreehint *fh);

/*
 * Call off the queued job, if any. Returns whether it has not begun, and never
 * will. Until the worker has noticed, no other job can be started.
 */
bool freehint_job_cancel(VirtIOFreehint *fh);

/*
 * Wait for the job in progress, if any, and call freehint_job_reap(). A job
 * that has not started never will.
 */
void freehint_job_drain(VirtIOFreehint *fh);

/* Begin with short jobs again, and find out how long they may be. */
void freehint_job_shorten(VirtIOFreehint *fh);

/* Discard a job's parts. In the worker. */
void freehint_discard(FreehintJob *job);

void freehint_ram_init(VirtIOFreehint *fh);
void freehint_ram_cleanup(VirtIOFreehint *fh);

/* virtio-freehint-policy.c: vetoes and reasons, precopy, the rate limit */

/**
 * freehint_apply_vetoes: act on what has changed outside the device
 *
 * Brings state, reason and epoch up to date, drains if the device has to stop,
 * and tells driver and management. When this returns and the state is not
 * active, nothing is being discarded.
 *
 * Section "Effective state".
 */
void freehint_apply_vetoes(VirtIOFreehint *fh);

/* What the driver is told: enum virtio_freehint_reason. */
uint32_t freehint_guest_reason(const VirtIOFreehint *fh);

/* All that keeps the VM from shrinking, in order of precedence. */
FreehintObstacleList *freehint_obstacles(VirtIOFreehint *fh);

/* What a reason means, in words. */
const char *freehint_reason_detail(FreehintReason reason);

/**
 * freehint_owe_epoch: have the guest hint all its free memory again
 *
 * @fh: the device
 *
 * For whoever knows that an answer of the device may no longer hold: declined
 * memory can be discarded now, or discarded memory may be populated. Any thread
 * may call this; the epoch moves in the next turn of the bottom half in which
 * the device is active.
 */
void freehint_owe_epoch(VirtIOFreehint *fh);

void freehint_policy_init(VirtIOFreehint *fh);
void freehint_policy_cleanup(VirtIOFreehint *fh);

/* Bytes per second, 0 for no limit. */
void freehint_set_rate_limit(VirtIOFreehint *fh, uint64_t limit);

/* How long, in ms, the device is over the limit; 0 if it is not. */
uint32_t freehint_rate_wait_ms(VirtIOFreehint *fh);

/* A part was discarded for a hint: note it if precopy need not send it. */
void freehint_precopy_note(VirtIOFreehint *fh, FreehintHint *hint,
                           const FreehintPart *part);

/**
 * freehint_precopy_skip: have precopy not send what was discarded
 *
 * @parts: noted for a message that the driver does not have back yet
 * @hurry: set, atomically, when somebody waits for the caller
 *
 * Called in the worker, without the BQL, while precopy is in progress. Waits
 * for 100 ms at most.
 *
 * Returns: how many bytes are skipped; 0 if all are sent, because the migration
 * thread was too busy.
 */
uint64_t freehint_precopy_skip(const GArray *parts, const bool *hurry);

/* An array of FreehintPart; each part drops its region when it is freed. */
GArray *freehint_parts_new(void);

/* virtio-freehint-monitor.c: flush, gauges, QMP and HMP */

/* The driver says how much of the guest's memory is in which state. */
void freehint_set_gauges(VirtIOFreehint *fh,
                         const struct virtio_freehint_gauges *gauges);

/* The driver has answered a flush, not necessarily the one in progress. */
void freehint_flush_answered(VirtIOFreehint *fh,
                             const struct virtio_freehint_flush_done *done);

/* End the flush in progress, if any, without an answer. */
void freehint_flush_end(VirtIOFreehint *fh, FreehintFlushResult result);

void freehint_monitor_init(VirtIOFreehint *fh);
void freehint_monitor_cleanup(VirtIOFreehint *fh);

#endif
