/*
 * Virtio free memory hint device: QMP commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-freehint.h"
#include "qapi/util.h"
#include "virtio-freehint-internal.h"

/* Enough for a guest of many GiB on a busy host. */
#define DEFAULT_FLUSH_MS 10000

QEMU_BUILD_BUG_ON((int)FREEHINT_DRIVER_STATUS_UNKNOWN !=
                  (int)VIRTIO_FREEHINT_DRIVER_FAILED + 1);

/* There is at most one, see virtio_freehint_check_machine(). */
static VirtIOFreehint *find_device(void)
{
    Object *obj = object_resolve_path_type("", TYPE_VIRTIO_FREEHINT, NULL);

    return obj && DEVICE(obj)->realized ? VIRTIO_FREEHINT(obj) : NULL;
}

static bool is_named(VirtIOFreehint *fh, const char *id)
{
    const DeviceState *proxy = virtio_freehint_proxy(fh);

    return !g_strcmp0(proxy->id, id) ||
           !g_strcmp0(proxy->canonical_path, id);
}

/* By ID or QOM path. */
static VirtIOFreehint *find_named_device(const char *id, Error **errp)
{
    VirtIOFreehint *fh = find_device();

    if (!fh || !is_named(fh, id)) {
        error_set(errp, ERROR_CLASS_DEVICE_NOT_FOUND,
                  "there is no virtio-freehint device '%s'", id);
        return NULL;
    }
    return fh;
}

static FreehintCount *query_count(const VirtIOFreehintCount *count)
{
    FreehintCount *info = g_new0(FreehintCount, 1);

    info->ranges = count->ranges;
    info->bytes = count->bytes;
    return info;
}

static FreehintDeclined *query_declined(const VirtIOFreehintCount *declined)
{
    FreehintDeclined *info = g_new0(FreehintDeclined, 1);

    info->interrupted = query_count(&declined[VIRTIO_FREEHINT_REASON_NONE]);
    info->q_operator = query_count(&declined[VIRTIO_FREEHINT_REASON_OPERATOR]);
    info->pinned = query_count(&declined[VIRTIO_FREEHINT_REASON_PINNED]);
    info->locked = query_count(&declined[VIRTIO_FREEHINT_REASON_LOCKED]);
    info->migration =
        query_count(&declined[VIRTIO_FREEHINT_REASON_MIGRATION]);
    info->external = query_count(&declined[VIRTIO_FREEHINT_REASON_EXTERNAL]);
    return info;
}

static FreehintCount *query_reject(const VirtIOFreehintStats *stats,
                                   uint8_t status)
{
    return query_count(&stats->rejected[status - VIRTIO_FREEHINT_S_NEVER]);
}

static FreehintRejected *query_rejected(const VirtIOFreehintStats *stats)
{
    FreehintRejected *info = g_new0(FreehintRejected, 1);

    info->empty = query_reject(stats, VIRTIO_FREEHINT_S_EMPTY);
    info->overflow = query_reject(stats, VIRTIO_FREEHINT_S_OVERFLOW);
    info->misaligned = query_reject(stats, VIRTIO_FREEHINT_S_MISALIGNED);
    info->unmapped = query_reject(stats, VIRTIO_FREEHINT_S_UNMAPPED);
    info->not_ram = query_reject(stats, VIRTIO_FREEHINT_S_NOT_RAM);
    info->read_only = query_reject(stats, VIRTIO_FREEHINT_S_READ_ONLY);
    info->excluded = query_reject(stats, VIRTIO_FREEHINT_S_EXCLUDED);
    info->backing = query_reject(stats, VIRTIO_FREEHINT_S_BACKING);
    return info;
}

FreehintStats *virtio_freehint_stats_query(const VirtIOFreehint *fh)
{
    const VirtIOFreehintStats *stats = &fh->stats;
    FreehintStats *info = g_new0(FreehintStats, 1);

    info->hints = stats->hints;
    info->unsupported = stats->unsupported;
    info->malformed = stats->malformed;
    info->hinted = query_count(&stats->hinted);
    info->discarded = query_count(&stats->discarded);
    info->declined = query_declined(stats->declined);
    info->throttled = query_count(&stats->throttled);
    info->over_rate = query_count(&stats->over_rate);
    info->rejected = query_rejected(stats);
    info->failed = query_count(&stats->failed);
    info->in_flight = query_count(&stats->in_flight);
    info->discard_calls = stats->discard_calls;
    info->discard_bytes = stats->discard_bytes;
    info->discard_time_ns = stats->discard_ns;
    info->lazy_calls = stats->lazy_calls;
    info->lazy_bytes = stats->lazy_bytes;
    info->lazy_time_ns = stats->lazy_ns;
    info->skipped_bytes = stats->skipped_bytes;
    return info;
}

FreehintDriverStatus virtio_freehint_driver_status(const VirtIOFreehint *fh)
{
    return MIN(fh->driver_status, FREEHINT_DRIVER_STATUS_UNKNOWN);
}

static FreehintInfo *query_device(VirtIOFreehint *fh)
{
    const DeviceState *proxy = virtio_freehint_proxy(fh);
    FreehintInfo *info = g_new0(FreehintInfo, 1);

    info->id = g_strdup(proxy->id);
    info->qom_path = g_strdup(proxy->canonical_path);
    info->enabled = fh->enabled;
    info->state = fh->state;
    info->reason = fh->reason;
    info->obstacles = virtio_freehint_obstacles(fh);
    info->driver_status = virtio_freehint_driver_status(fh);
    info->granule = fh->granule;
    info->max_ranges = fh->max_ranges;
    info->rehint_epoch = fh->rehint_epoch;
    info->delay_ms = fh->delay_ms;
    info->min_age_ms = fh->min_age_ms;
    info->rate_limit = fh->rate_limit;
    info->discard = fh->discard_mode;
    info->lazy_probe = fh->lazy_probe;
    info->has_last_hint_age_ms = fh->last_hint_ms >= 0;
    if (info->has_last_hint_age_ms) {
        info->last_hint_age_ms = virtio_freehint_age_ms(fh->last_hint_ms);
    }
    info->guest_gauges = virtio_freehint_gauges_query(fh);
    info->flush = virtio_freehint_flush_query(fh);
    info->stats = virtio_freehint_stats_query(fh);
    return info;
}

FreehintInfoList *qmp_query_freehint(Error **errp)
{
    VirtIOFreehint *fh = find_device();
    FreehintInfoList *devices = NULL;

    if (fh) {
        virtio_freehint_refresh(fh);
        QAPI_LIST_PREPEND(devices, query_device(fh));
    }
    return devices;
}

static bool check_pacing(bool has_value, uint32_t value, const char *name,
                         Error **errp)
{
    if (has_value && value > VIRTIO_FREEHINT_MAX_PACING_MS) {
        error_setg(errp, "'%s' is %" PRIu32 ", but may be at most %d", name,
                   value, VIRTIO_FREEHINT_MAX_PACING_MS);
        return false;
    }
    return true;
}

void qmp_freehint_set(FreehintSettings *new, Error **errp)
{
    VirtIOFreehint *fh = find_named_device(new->id, errp);

    if (!fh ||
        !check_pacing(new->has_delay_ms, new->delay_ms, "delay-ms", errp) ||
        !check_pacing(new->has_min_age_ms, new->min_age_ms, "min-age-ms",
                      errp) ||
        (new->has_rate_limit &&
         !virtio_freehint_check_rate_limit(new->rate_limit, errp))) {
        return;
    }

    /* What was checked cannot fail. */
    if (new->has_delay_ms) {
        object_property_set_uint(OBJECT(fh), VIRTIO_FREEHINT_DELAY_PROP,
                                 new->delay_ms, &error_abort);
    }
    if (new->has_min_age_ms) {
        object_property_set_uint(OBJECT(fh), VIRTIO_FREEHINT_MIN_AGE_PROP,
                                 new->min_age_ms, &error_abort);
    }
    if (new->has_rate_limit) {
        virtio_freehint_rate_set_limit(fh, new->rate_limit);
    }
    if (new->has_discard) {
        object_property_set_str(OBJECT(fh), VIRTIO_FREEHINT_DISCARD_PROP,
                                FreehintDiscardMode_str(new->discard),
                                &error_abort);
    }
    if (new->has_enabled) {
        object_property_set_bool(OBJECT(fh), VIRTIO_FREEHINT_ENABLED_PROP,
                                 new->enabled, &error_abort);
    }
}

FreehintFlushStarted *qmp_freehint_flush(const char *id,
                                         bool has_timeout_ms,
                                         uint32_t timeout_ms,
                                         bool has_compact, bool compact,
                                         Error **errp)
{
    VirtIOFreehint *fh = find_named_device(id, errp);
    FreehintFlushStarted *started;
    uint32_t flush_id;

    if (!fh) {
        return NULL;
    }
    if (!has_timeout_ms) {
        timeout_ms = DEFAULT_FLUSH_MS;
    }
    if (!timeout_ms || timeout_ms > VIRTIO_FREEHINT_MAX_FLUSH_MS) {
        error_setg(errp, "'timeout-ms' is %" PRIu32 ", but has to be from 1"
                   " to %d", timeout_ms, VIRTIO_FREEHINT_MAX_FLUSH_MS);
        return NULL;
    }
    flush_id = virtio_freehint_flush_start(fh, timeout_ms,
                                           has_compact && compact, errp);
    if (!flush_id) {
        return NULL;
    }
    started = g_new0(FreehintFlushStarted, 1);
    started->flush_id = flush_id;
    return started;
}
