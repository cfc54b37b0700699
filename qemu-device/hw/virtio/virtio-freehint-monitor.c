/*
 * Virtio free memory hint device: what the operator sees of it, and asks of it
 *
 * The guest reports on its own memory in the gauges. They explain what the host
 * sees of the guest, and are shown to the operator. Nothing else may depend on
 * them.
 *
 * The operator can ask for all free memory now, for instance before the guest
 * is saved. The device asks the driver for it by a new flush ID in config
 * space, and somebody waits for the end: each ID gets one event
 * FREEHINT_FLUSH_COMPLETED, whatever the driver does or does not do. A flush is
 * pending from when it is accepted until that event. At most one is pending.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/timer.h"
#include "hw/virtio/virtio-freehint.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-freehint.h"
#include "qapi/qapi-events-freehint.h"
#include "qapi/qapi-visit-freehint.h"
#include "qapi/util.h"
#include "trace.h"

/* Enough for a guest of many GiB on a busy host. */
#define FREEHINT_DEFAULT_FLUSH_MS 10000

/*
 * How late an answer may come: the driver waits for its last hints, each of
 * which the device may keep for a second, and a busy host does not let the
 * guest run at all times.
 */
#define FREEHINT_FLUSH_GRACE_MS 2000

/* The lowest limit, in bytes per second: one granule takes two seconds. */
#define FREEHINT_MIN_RATE_LIMIT (1024 * 1024)

QEMU_BUILD_BUG_ON((int)FREEHINT_DRIVER_STATUS_UNKNOWN !=
                  (int)VIRTIO_FREEHINT_DRIVER_FAILED + 1);

/* There is at most one, see freehint_check_machine(). */
static VirtIOFreehint *freehint_find(void)
{
    Object *obj = object_resolve_path_type("", TYPE_VIRTIO_FREEHINT, NULL);

    return obj && DEVICE(obj)->realized ? VIRTIO_FREEHINT(obj) : NULL;
}

/* By ID or QOM path. */
static VirtIOFreehint *freehint_find_named(const char *id, Error **errp)
{
    VirtIOFreehint *fh = freehint_find();
    const DeviceState *proxy = fh ? freehint_proxy(fh) : NULL;

    if (!fh || (g_strcmp0(proxy->id, id) &&
                g_strcmp0(proxy->canonical_path, id))) {
        error_setg(errp, "there is no virtio-freehint device '%s'", id);
        return NULL;
    }
    return fh;
}

/* Gauges */

void freehint_set_gauges(VirtIOFreehint *fh,
                         const struct virtio_freehint_gauges *gauges)
{
    fh->gauges = (FreehintGauges) {
        .free = le64_to_cpu(gauges->free),
        .pending = le64_to_cpu(gauges->pending),
        .hinted = le64_to_cpu(gauges->hinted),
        .in_flight = le64_to_cpu(gauges->in_flight),
        .stuck = le64_to_cpu(gauges->stuck),
        .reused = le64_to_cpu(gauges->reused),
        .rest_ms = le32_to_cpu(gauges->rest_ms),
    };
    fh->gauges_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    trace_virtio_freehint_gauges(fh->gauges.free, fh->gauges.pending,
                                 fh->gauges.hinted, fh->gauges.in_flight,
                                 fh->gauges.stuck, fh->gauges.reused);
}

/* NULL if the driver has not said anything. */
static FreehintGauges *freehint_query_gauges(VirtIOFreehint *fh)
{
    if (fh->gauges_ms < 0) {
        return NULL;
    }
    fh->gauges.age_ms = freehint_age_ms(fh->gauges_ms);
    return QAPI_CLONE(FreehintGauges, &fh->gauges);
}

/* Flush */

static bool freehint_has_flush(VirtIOFreehint *fh)
{
    return virtio_host_has_feature(VIRTIO_DEVICE(fh), VIRTIO_FREEHINT_F_FLUSH);
}

static bool freehint_negotiated_flush(VirtIOFreehint *fh)
{
    return virtio_vdev_has_feature(VIRTIO_DEVICE(fh), VIRTIO_FREEHINT_F_FLUSH);
}

/* What the driver reports about itself, if QAPI has a name for it. */
static FreehintDriverStatus freehint_driver_status(const VirtIOFreehint *fh)
{
    return MIN(fh->driver_status, FREEHINT_DRIVER_STATUS_UNKNOWN);
}

/* Somebody waits for a flush, so do not start it in vain. */
static bool freehint_can_flush(VirtIOFreehint *fh, Error **errp)
{
    if (!freehint_has_flush(fh)) {
        error_setg(errp, "the device has no flush: it was created with"
                   " flush=off");
    } else if (fh->flush.pending) {
        error_setg(errp, "flush %" PRIu32 " is in progress; it ends with"
                   " FREEHINT_FLUSH_COMPLETED", fh->flush.id);
    } else if (fh->reason != FREEHINT_NO_REASON) {
        error_setg(errp, "the device is %s, reason '%s'; query-freehint tells"
                   " more", FreehintState_str(fh->state),
                   FreehintReason_str(fh->reason));
    } else if (!VIRTIO_DEVICE(fh)->vm_running) {
        error_setg(errp, "the VM is stopped, so that its driver cannot"
                   " answer");
    } else if (!fh->running) {
        error_setg(errp, "the guest has no driver for the device that is"
                   " ready");
    } else if (!freehint_negotiated_flush(fh)) {
        error_setg(errp, "the guest's driver does not support flush");
    } else {
        return true;
    }
    return false;
}

static void freehint_flush_start(VirtIOFreehint *fh, uint32_t timeout_ms,
                                 bool compact)
{
    FreehintFlushState *flush = &fh->flush;

    flush->flags = compact ? VIRTIO_FREEHINT_FLUSH_F_COMPACT : 0;
    flush->timeout_ms = timeout_ms;
    /* Zero stands for "none yet". */
    flush->last_id += flush->last_id == UINT32_MAX ? 2 : 1;
    flush->id = flush->last_id;
    flush->pending = true;
    flush->start_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    flush->start_discarded = fh->counters.discarded.bytes;
    timer_mod(flush->timer, flush->start_ms + timeout_ms +
                            FREEHINT_FLUSH_GRACE_MS);
    trace_virtio_freehint_flush_start(flush->id, flush->flags, timeout_ms);
    freehint_notify_config(fh);
}

static void freehint_flush_complete(VirtIOFreehint *fh,
                                    FreehintFlushResult result,
                                    const uint64_t *hinted)
{
    const DeviceState *proxy = freehint_proxy(fh);
    FreehintFlushCompleted *end = g_new0(FreehintFlushCompleted, 1);
    FreehintFlushState *flush = &fh->flush;

    trace_virtio_freehint_flush_end(flush->id, FreehintFlushResult_str(result));
    end->id = g_strdup(proxy->id);
    end->qom_path = g_strdup(proxy->canonical_path);
    end->flush_id = flush->id;
    end->result = result;
    end->has_reason = result == FREEHINT_FLUSH_RESULT_INACTIVE;
    end->reason = fh->reason;
    end->driver_status = freehint_driver_status(fh);
    end->duration_ms = freehint_age_ms(flush->start_ms);
    end->discarded = fh->counters.discarded.bytes - flush->start_discarded;
    end->has_hinted = hinted;
    end->hinted = hinted ? *hinted : 0;
    end->guest_gauges = freehint_query_gauges(fh);

    flush->pending = false;
    timer_del(flush->timer);
    qapi_free_FreehintFlushCompleted(flush->last);
    flush->last = end;
    qapi_event_send_freehint_flush_completed(end);
}

static FreehintFlushResult freehint_flush_result(uint32_t result)
{
    switch (result) {
    case VIRTIO_FREEHINT_FLUSH_DONE:
        return FREEHINT_FLUSH_RESULT_DONE;
    case VIRTIO_FREEHINT_FLUSH_TIMEOUT:
        return FREEHINT_FLUSH_RESULT_TIMEOUT;
    case VIRTIO_FREEHINT_FLUSH_REFUSED:
        return FREEHINT_FLUSH_RESULT_REFUSED;
    default:
        return FREEHINT_FLUSH_RESULT_UNKNOWN;
    }
}

void freehint_flush_answered(VirtIOFreehint *fh,
                             const struct virtio_freehint_flush_done *done)
{
    const uint32_t id = le32_to_cpu(done->id);
    const uint64_t hinted = le64_to_cpu(done->hinted);

    trace_virtio_freehint_flush_answer(id, le32_to_cpu(done->result), hinted);
    /* An answer may come late, or without a request. */
    if (!fh->flush.pending || id != fh->flush.id) {
        return;
    }
    freehint_set_gauges(fh, &done->gauges);
    freehint_flush_complete(fh,
                            freehint_flush_result(le32_to_cpu(done->result)),
                            &hinted);
}

void freehint_flush_end(VirtIOFreehint *fh, FreehintFlushResult result)
{
    if (fh->flush.pending) {
        freehint_flush_complete(fh, result, NULL);
    }
}

static void freehint_flush_expired(void *opaque)
{
    freehint_flush_end(opaque, FREEHINT_FLUSH_RESULT_NO_ANSWER);
}

FreehintFlushStarted *qmp_freehint_flush(const char *id,
                                         bool has_timeout_ms,
                                         uint32_t timeout_ms,
                                         bool has_compact, bool compact,
                                         Error **errp)
{
    VirtIOFreehint *fh = freehint_find_named(id, errp);
    FreehintFlushStarted *started;

    if (!fh) {
        return NULL;
    }
    if (!has_timeout_ms) {
        timeout_ms = FREEHINT_DEFAULT_FLUSH_MS;
    }
    if (!timeout_ms || timeout_ms > FREEHINT_MAX_FLUSH_MS) {
        error_setg(errp, "'timeout-ms' is %" PRIu32 ", but has to be from 1"
                   " to %d", timeout_ms, FREEHINT_MAX_FLUSH_MS);
        return NULL;
    }
    freehint_apply_vetoes(fh);
    if (!freehint_can_flush(fh, errp)) {
        return NULL;
    }
    freehint_flush_start(fh, timeout_ms, has_compact && compact);
    started = g_new0(FreehintFlushStarted, 1);
    started->flush_id = fh->flush.id;
    return started;
}

/* NULL without the feature. */
static FreehintFlush *freehint_query_flush(VirtIOFreehint *fh)
{
    const FreehintFlushState *flush = &fh->flush;
    FreehintFlush *info;

    if (!freehint_has_flush(fh)) {
        return NULL;
    }
    info = g_new0(FreehintFlush, 1);
    info->negotiated = freehint_negotiated_flush(fh);
    info->has_pending_id = flush->pending;
    info->pending_id = flush->id;
    if (flush->last) {
        info->last = QAPI_CLONE(FreehintFlushOutcome,
                                qapi_FreehintFlushCompleted_base(flush->last));
    }
    return info;
}

/* Settings */

static bool freehint_check_pacing(bool has_value, uint32_t value,
                                  const char *name, Error **errp)
{
    if (has_value && value > FREEHINT_MAX_PACING_MS) {
        error_setg(errp, "'%s' is %" PRIu32 ", but may be at most %d", name,
                   value, FREEHINT_MAX_PACING_MS);
        return false;
    }
    return true;
}

bool freehint_check_settings(const FreehintSettings *new, Error **errp)
{
    if (new->has_rate_limit && new->rate_limit &&
        new->rate_limit < FREEHINT_MIN_RATE_LIMIT) {
        error_setg(errp, "'rate-limit' is %" PRIu64 ", but has to be 0 or at"
                   " least %d bytes a second", new->rate_limit,
                   FREEHINT_MIN_RATE_LIMIT);
        return false;
    }
    return freehint_check_pacing(new->has_delay_ms, new->delay_ms, "delay-ms",
                                 errp) &&
           freehint_check_pacing(new->has_min_age_ms, new->min_age_ms,
                                 "min-age-ms", errp);
}

static void freehint_apply_settings(VirtIOFreehint *fh,
                                    const FreehintSettings *new)
{
    if (new->has_delay_ms || new->has_min_age_ms) {
        fh->delay_ms = new->has_delay_ms ? new->delay_ms : fh->delay_ms;
        fh->min_age_ms = new->has_min_age_ms ? new->min_age_ms :
                                               fh->min_age_ms;
        freehint_notify_config(fh);
    }
    if (new->has_rate_limit) {
        freehint_set_rate_limit(fh, new->rate_limit);
    }
    if (new->has_discard && new->discard != fh->discard_mode) {
        fh->discard_mode = new->discard;
        /* What takes no time in one mode may take a while in another. */
        freehint_job_shorten(fh);
        freehint_refresh_blocks(fh);
    }
    if (new->has_assume_vhost_user_safe) {
        fh->assume_vhost_user_safe = new->assume_vhost_user_safe;
    }
    if (new->has_enabled) {
        if (new->enabled && !fh->enabled) {
            freehint_forgive_blocks(fh);
        }
        fh->enabled = new->enabled;
    }
    freehint_apply_vetoes(fh);
}

void qmp_freehint_set(FreehintSettings *new, Error **errp)
{
    VirtIOFreehint *fh = freehint_find_named(new->id, errp);

    if (fh && freehint_check_settings(new, errp)) {
        freehint_apply_settings(fh, new);
    }
}

/* Query */

static FreehintCount *freehint_rejected(VirtIOFreehint *fh, uint8_t status)
{
    return &fh->counters.rejected[status - VIRTIO_FREEHINT_S_NEVER];
}

static FreehintStats *freehint_query_stats(VirtIOFreehint *fh)
{
    FreehintCounters *counters = &fh->counters;
    FreehintCount *declined = counters->declined;
    FreehintDeclined by_reason = {
        .interrupted = &declined[VIRTIO_FREEHINT_REASON_NONE],
        .q_operator = &declined[VIRTIO_FREEHINT_REASON_OPERATOR],
        .pinned = &declined[VIRTIO_FREEHINT_REASON_PINNED],
        .locked = &declined[VIRTIO_FREEHINT_REASON_LOCKED],
        .migration = &declined[VIRTIO_FREEHINT_REASON_MIGRATION],
        .external = &declined[VIRTIO_FREEHINT_REASON_EXTERNAL],
    };
    FreehintRejected by_status = {
        .empty = freehint_rejected(fh, VIRTIO_FREEHINT_S_EMPTY),
        .overflow = freehint_rejected(fh, VIRTIO_FREEHINT_S_OVERFLOW),
        .misaligned = freehint_rejected(fh, VIRTIO_FREEHINT_S_MISALIGNED),
        .unmapped = freehint_rejected(fh, VIRTIO_FREEHINT_S_UNMAPPED),
        .not_ram = freehint_rejected(fh, VIRTIO_FREEHINT_S_NOT_RAM),
        .read_only = freehint_rejected(fh, VIRTIO_FREEHINT_S_READ_ONLY),
        .excluded = freehint_rejected(fh, VIRTIO_FREEHINT_S_EXCLUDED),
        .backing = freehint_rejected(fh, VIRTIO_FREEHINT_S_BACKING),
    };
    const FreehintStats stats = {
        .hints = counters->hints,
        .unsupported = counters->unsupported,
        .malformed = counters->malformed,
        .hinted = &counters->hinted,
        .discarded = &counters->discarded,
        .declined = &by_reason,
        .throttled = &counters->throttled,
        .over_rate = &counters->over_rate,
        .rejected = &by_status,
        .failed = &counters->failed,
        .in_flight = &counters->in_flight,
        .discard_calls = counters->discard_calls,
        .discard_pieces = counters->discard_pieces,
        .discard_bytes = counters->discard_bytes,
        .discard_time_ns = counters->discard_ns,
        .lazy_calls = counters->lazy_calls,
        .lazy_bytes = counters->lazy_bytes,
        .lazy_time_ns = counters->lazy_ns,
        .skipped_bytes = counters->skipped_bytes,
    };

    return QAPI_CLONE(FreehintStats, &stats);
}

static FreehintInfo *freehint_query(VirtIOFreehint *fh)
{
    const DeviceState *proxy = freehint_proxy(fh);
    FreehintInfo *info = g_new0(FreehintInfo, 1);

    info->id = g_strdup(proxy->id);
    info->qom_path = g_strdup(proxy->canonical_path);
    info->enabled = fh->enabled;
    info->state = fh->state;
    info->has_reason = fh->reason != FREEHINT_NO_REASON;
    info->reason = fh->reason;
    info->obstacles = freehint_obstacles(fh);
    info->driver_status = freehint_driver_status(fh);
    info->granule = fh->granule;
    info->max_ranges = fh->max_ranges;
    info->rehint_epoch = fh->rehint_epoch;
    info->delay_ms = fh->delay_ms;
    info->min_age_ms = fh->min_age_ms;
    info->rate_limit = fh->rate_limit;
    info->discard = fh->discard_mode;
    info->discard_in_effect = fh->discard_mode == FREEHINT_DISCARD_MODE_AUTO &&
                              !fh->lazy ? FREEHINT_DISCARD_MODE_DROP :
                                          fh->discard_mode;
    info->lazy_probe = fh->lazy_probe;
    info->assume_vhost_user_safe = fh->assume_vhost_user_safe;
    info->has_last_hint_age_ms = fh->last_hint_ms >= 0;
    if (info->has_last_hint_age_ms) {
        info->last_hint_age_ms = freehint_age_ms(fh->last_hint_ms);
    }
    info->guest_gauges = freehint_query_gauges(fh);
    info->has_populated_hinted =
        freehint_populated_hinted(fh, &info->populated_hinted);
    info->flush = freehint_query_flush(fh);
    info->stats = freehint_query_stats(fh);
    return info;
}

FreehintInfoList *qmp_query_freehint(Error **errp)
{
    VirtIOFreehint *fh = freehint_find();
    FreehintInfoList *devices = NULL;

    if (fh) {
        freehint_apply_vetoes(fh);
        QAPI_LIST_PREPEND(devices, freehint_query(fh));
    }
    return devices;
}

/* For people */

/* Counts of 0 are left out. */
static void freehint_print_count(Monitor *mon, const char *name,
                                 const FreehintCount *count)
{
    if (count->ranges) {
        monitor_printf(mon, "  %s: %" PRIu64 " ranges, %" PRIu64 " bytes\n",
                       name, count->ranges, count->bytes);
    }
}

static void freehint_print_stats(Monitor *mon, const FreehintStats *stats)
{
    const FreehintDeclined *declined = stats->declined;
    const FreehintRejected *rejected = stats->rejected;

    monitor_printf(mon, "  hints: %" PRIu64 ", unsupported: %" PRIu64
                   ", malformed: %" PRIu64 "\n", stats->hints,
                   stats->unsupported, stats->malformed);
    freehint_print_count(mon, "hinted", stats->hinted);
    freehint_print_count(mon, "discarded", stats->discarded);
    freehint_print_count(mon, "declined, interrupted", declined->interrupted);
    freehint_print_count(mon, "declined, operator", declined->q_operator);
    freehint_print_count(mon, "declined, pinned", declined->pinned);
    freehint_print_count(mon, "declined, locked", declined->locked);
    freehint_print_count(mon, "declined, migration", declined->migration);
    freehint_print_count(mon, "declined, external", declined->external);
    freehint_print_count(mon, "throttled", stats->throttled);
    freehint_print_count(mon, "throttled, over the rate", stats->over_rate);
    freehint_print_count(mon, "rejected, empty", rejected->empty);
    freehint_print_count(mon, "rejected, overflow", rejected->overflow);
    freehint_print_count(mon, "rejected, misaligned", rejected->misaligned);
    freehint_print_count(mon, "rejected, unmapped", rejected->unmapped);
    freehint_print_count(mon, "rejected, not RAM", rejected->not_ram);
    freehint_print_count(mon, "rejected, read-only", rejected->read_only);
    freehint_print_count(mon, "rejected, excluded", rejected->excluded);
    freehint_print_count(mon, "rejected, backing", rejected->backing);
    freehint_print_count(mon, "failed", stats->failed);
    freehint_print_count(mon, "in flight", stats->in_flight);
    monitor_printf(mon, "  discard calls: %" PRIu64 ", %" PRIu64 " pieces, %"
                   PRIu64 " bytes, %" PRIu64 " ns\n", stats->discard_calls,
                   stats->discard_pieces, stats->discard_bytes,
                   stats->discard_time_ns);
    monitor_printf(mon, "  of these lazy: %" PRIu64 ", %" PRIu64 " bytes, %"
                   PRIu64 " ns\n", stats->lazy_calls, stats->lazy_bytes,
                   stats->lazy_time_ns);
    monitor_printf(mon, "  skipped by migration: %" PRIu64 " bytes\n",
                   stats->skipped_bytes);
}

static void freehint_print_obstacles(Monitor *mon,
                                     const FreehintObstacleList *list)
{
    for (; list; list = list->next) {
        const FreehintObstacle *obstacle = list->value;
        const FreehintMemoryList *memory;
        const strList *path;

        monitor_printf(mon, "  %s: %s\n", FreehintReason_str(obstacle->reason),
                       obstacle->detail);
        for (path = obstacle->qom_paths; path; path = path->next) {
            monitor_printf(mon, "    %s\n", path->value);
        }
        for (memory = obstacle->memory; memory; memory = memory->next) {
            monitor_printf(mon, "    %s, %" PRIu64 " bytes",
                           memory->value->region, memory->value->bytes);
            if (memory->value->has_host_errno) {
                monitor_printf(mon, ", %" PRIu32 " times: %s",
                               memory->value->failures,
                               strerror(memory->value->host_errno));
            }
            monitor_printf(mon, "\n");
        }
    }
}

static void freehint_print_gauges(Monitor *mon, const FreehintGauges *gauges)
{
    monitor_printf(mon, "  the guest says, %" PRIu64 " ms ago, in bytes:"
                   " free: %" PRIu64 ", pending: %" PRIu64 ", hinted: %" PRIu64
                   ", in flight: %" PRIu64 ", stuck: %" PRIu64 ", reused: %"
                   PRIu64 "; memory rests for %" PRIu32 " ms\n",
                   gauges->age_ms, gauges->free, gauges->pending,
                   gauges->hinted, gauges->in_flight, gauges->stuck,
                   gauges->reused, gauges->rest_ms);
}

static void freehint_print_flush(Monitor *mon, const FreehintFlush *flush)
{
    const FreehintFlushOutcome *last = flush->last;

    if (last) {
        monitor_printf(mon, "  flush %" PRIu32 ": %s%s%s, %" PRIu64 " ms,"
                       " driver %s, discarded %" PRIu64 " bytes",
                       last->flush_id, FreehintFlushResult_str(last->result),
                       last->has_reason ? ", " : "",
                       last->has_reason ? FreehintReason_str(last->reason) : "",
                       last->duration_ms,
                       FreehintDriverStatus_str(last->driver_status),
                       last->discarded);
        if (last->has_hinted) {
            monitor_printf(mon, ", the guest says that it hinted %" PRIu64
                           " bytes", last->hinted);
        }
        monitor_printf(mon, "\n");
    }
    if (flush->has_pending_id) {
        monitor_printf(mon, "  flush %" PRIu32 ": in progress\n",
                       flush->pending_id);
    }
}

void hmp_info_freehint(Monitor *mon, const QDict *qdict)
{
    g_autoptr(FreehintInfoList) devices = qmp_query_freehint(&error_abort);
    const FreehintInfo *info;

    if (!devices) {
        monitor_printf(mon, "there is no virtio-freehint device\n");
        return;
    }
    info = devices->value;
    monitor_printf(mon, "%s: %s, driver %s\n",
                   info->id ? info->id : info->qom_path,
                   FreehintState_str(info->state),
                   FreehintDriverStatus_str(info->driver_status));
    freehint_print_obstacles(mon, info->obstacles);
    monitor_printf(mon, "  granule: %" PRIu64 " bytes, max ranges: %" PRIu32
                   ", epoch: %" PRIu32 "\n", info->granule, info->max_ranges,
                   info->rehint_epoch);
    monitor_printf(mon, "  delay: %" PRIu32 " ms, min age: %" PRIu32 " ms\n",
                   info->delay_ms, info->min_age_ms);
    monitor_printf(mon, "  discard: %s, in effect: %s, the host is %s, rate"
                   " limit: %" PRIu64 " bytes a second\n",
                   FreehintDiscardMode_str(info->discard),
                   FreehintDiscardMode_str(info->discard_in_effect),
                   FreehintLazyProbe_str(info->lazy_probe), info->rate_limit);
    if (info->has_last_hint_age_ms) {
        monitor_printf(mon, "  last hint: %" PRIu64 " ms ago\n",
                       info->last_hint_age_ms);
    }
    if (info->guest_gauges) {
        freehint_print_gauges(mon, info->guest_gauges);
    }
    if (info->has_populated_hinted) {
        monitor_printf(mon, "  of what is hinted, populated all the same: %"
                       PRIu64 " bytes\n", info->populated_hinted);
    }
    if (info->flush) {
        freehint_print_flush(mon, info->flush);
    }
    freehint_print_stats(mon, info->stats);
}

void freehint_monitor_init(VirtIOFreehint *fh)
{
    fh->gauges_ms = -1;
    fh->flush.timer = timer_new_ms(QEMU_CLOCK_REALTIME, freehint_flush_expired,
                                   fh);
}

void freehint_monitor_cleanup(VirtIOFreehint *fh)
{
    freehint_flush_end(fh, FREEHINT_FLUSH_RESULT_REMOVED);
    timer_free(fh->flush.timer);
    qapi_free_FreehintFlushCompleted(fh->flush.last);
    fh->flush.last = NULL;
}
