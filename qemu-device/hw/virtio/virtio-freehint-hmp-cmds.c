/*
 * Virtio free memory hint device: HMP commands
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-freehint.h"
#include "qapi/qapi-visit-freehint.h"
#include "qapi/qobject-input-visitor.h"
#include "qemu/keyval.h"
#include "qobject/qdict.h"

static void print_count(Monitor *mon, const char *name,
                        const FreehintCount *count)
{
    monitor_printf(mon, "  %s: %" PRIu64 " ranges, %" PRIu64 " bytes\n",
                   name, count->ranges, count->bytes);
}

static void print_stats(Monitor *mon, const FreehintStats *stats)
{
    monitor_printf(mon, "  hints: %" PRIu64 ", unsupported: %" PRIu64
                   ", malformed: %" PRIu64 "\n", stats->hints,
                   stats->unsupported, stats->malformed);
    print_count(mon, "hinted", stats->hinted);
    print_count(mon, "discarded", stats->discarded);
    print_count(mon, "declined, interrupted", stats->declined->interrupted);
    print_count(mon, "declined, operator", stats->declined->q_operator);
    print_count(mon, "declined, pinned", stats->declined->pinned);
    print_count(mon, "declined, locked", stats->declined->locked);
    print_count(mon, "declined, migration", stats->declined->migration);
    print_count(mon, "declined, external", stats->declined->external);
    print_count(mon, "throttled", stats->throttled);
    print_count(mon, "throttled, over the rate", stats->over_rate);
    print_count(mon, "rejected, empty", stats->rejected->empty);
    print_count(mon, "rejected, overflow", stats->rejected->overflow);
    print_count(mon, "rejected, misaligned", stats->rejected->misaligned);
    print_count(mon, "rejected, unmapped", stats->rejected->unmapped);
    print_count(mon, "rejected, not RAM", stats->rejected->not_ram);
    print_count(mon, "rejected, read-only", stats->rejected->read_only);
    print_count(mon, "rejected, excluded", stats->rejected->excluded);
    print_count(mon, "rejected, backing", stats->rejected->backing);
    print_count(mon, "failed", stats->failed);
    print_count(mon, "in flight", stats->in_flight);
    monitor_printf(mon, "  discard calls: %" PRIu64 ", %" PRIu64 " bytes, %"
                   PRIu64 " ns\n", stats->discard_calls,
                   stats->discard_bytes, stats->discard_time_ns);
    monitor_printf(mon, "  of these lazy: %" PRIu64 ", %" PRIu64 " bytes, %"
                   PRIu64 " ns\n", stats->lazy_calls, stats->lazy_bytes,
                   stats->lazy_time_ns);
    monitor_printf(mon, "  skipped by migration: %" PRIu64 " bytes\n",
                   stats->skipped_bytes);
}

static void print_refused_memory(Monitor *mon,
                                 const FreehintRefusedMemoryList *list)
{
    for (; list; list = list->next) {
        const FreehintRefusedMemory *memory = list->value;

        monitor_printf(mon, "    %s, %" PRIu64 " bytes: %s", memory->region,
                       memory->bytes, FreehintRefusal_str(memory->refusal));
        if (memory->option) {
            monitor_printf(mon, ", see %s", memory->option);
        }
        if (memory->has_host_errno) {
            monitor_printf(mon, ", %" PRIu32 " times: %s", memory->failures,
                           strerror(memory->host_errno));
        }
        monitor_printf(mon, "\n");
    }
}

static void print_obstacles(Monitor *mon, const FreehintObstacleList *list)
{
    for (; list; list = list->next) {
        const FreehintObstacle *obstacle = list->value;
        const strList *path;

        monitor_printf(mon, "  %s: %s\n", FreehintCause_str(obstacle->cause),
                       obstacle->detail);
        for (path = obstacle->qom_paths; path; path = path->next) {
            monitor_printf(mon, "    %s\n", path->value);
        }
        print_refused_memory(mon, obstacle->memory);
    }
}

static void print_gauges(Monitor *mon, const FreehintGauges *gauges)
{
    monitor_printf(mon, "  the guest says, %" PRIu64 " ms ago, in bytes:"
                   " free: %" PRIu64 ", pending: %" PRIu64 ", hinted: %" PRIu64
                   ", in flight: %" PRIu64 ", stuck: %" PRIu64 ", reused: %"
                   PRIu64 "\n", gauges->age_ms, gauges->free, gauges->pending,
                   gauges->hinted, gauges->in_flight, gauges->stuck,
                   gauges->reused);
}

static void print_flush_outcome(Monitor *mon,
                                const FreehintFlushOutcome *outcome)
{
    monitor_printf(mon, "  flush %" PRIu32 ": %s", outcome->flush_id,
                   FreehintFlushResult_str(outcome->result));
    if (outcome->has_reason) {
        monitor_printf(mon, ", %s", FreehintReason_str(outcome->reason));
    }
    monitor_printf(mon, ", %" PRIu64 " ms, driver %s, discarded %" PRIu64
                   " bytes", outcome->duration_ms,
                   FreehintDriverStatus_str(outcome->driver_status),
                   outcome->discarded);
    if (outcome->has_hinted) {
        monitor_printf(mon, ", the guest says that it hinted %" PRIu64
                       " bytes", outcome->hinted);
    }
    monitor_printf(mon, "\n");
}

static void print_flush(Monitor *mon, const FreehintFlush *flush)
{
    if (!flush) {
        monitor_printf(mon, "  flush: off\n");
        return;
    }
    if (!flush->negotiated) {
        monitor_printf(mon, "  flush: not negotiated by the guest\n");
    }
    if (flush->last) {
        print_flush_outcome(mon, flush->last);
    }
    if (flush->has_pending_id) {
        monitor_printf(mon, "  flush %" PRIu32 ": in progress\n",
                       flush->pending_id);
    }
}

static void print_device(Monitor *mon, const FreehintInfo *info)
{
    monitor_printf(mon, "%s: %s, driver %s\n",
                   info->id ? info->id : info->qom_path,
                   FreehintState_str(info->state),
                   FreehintDriverStatus_str(info->driver_status));
    print_obstacles(mon, info->obstacles);
    monitor_printf(mon, "  granule: %" PRIu64 " bytes, max ranges: %" PRIu32
                   ", epoch: %" PRIu32 "\n", info->granule, info->max_ranges,
                   info->rehint_epoch);
    monitor_printf(mon, "  delay: %" PRIu32 " ms, min age: %" PRIu32 " ms\n",
                   info->delay_ms, info->min_age_ms);
    monitor_printf(mon, "  discard: %s, rate limit: %" PRIu64
                   " bytes a second\n", FreehintDiscardMode_str(info->discard),
                   info->rate_limit);
    if (info->discard == FREEHINT_DISCARD_MODE_LAZY) {
        monitor_printf(mon, "  lazy discards: the host is %s\n",
                       FreehintLazyProbe_str(info->lazy_probe));
    }
    if (info->has_last_hint_age_ms) {
        monitor_printf(mon, "  last hint: %" PRIu64 " ms ago\n",
                       info->last_hint_age_ms);
    }
    if (info->guest_gauges) {
        print_gauges(mon, info->guest_gauges);
    }
    print_flush(mon, info->flush);
    print_stats(mon, info->stats);
}

void hmp_info_freehint(Monitor *mon, const QDict *qdict)
{
    g_autoptr(FreehintInfoList) devices = qmp_query_freehint(&error_abort);
    const FreehintInfoList *device;

    for (device = devices; device; device = device->next) {
        print_device(mon, device->value);
    }
    if (!devices) {
        monitor_printf(mon, "there is no virtio-freehint device\n");
    }
}

/* "fh0,enabled=off": all that freehint-set has, as one string. */
void hmp_freehint_set(Monitor *mon, const QDict *qdict)
{
    g_autoptr(FreehintSettings) settings = NULL;
    const char *text = qdict_get_str(qdict, "settings");
    g_autoptr(QDict) args = NULL;
    Error *err = NULL;
    Visitor *v;

    args = keyval_parse(text, "id", NULL, &err);
    if (args) {
        v = qobject_input_visitor_new_keyval(QOBJECT(args));
        visit_type_FreehintSettings(v, NULL, &settings, &err);
        visit_free(v);
    }
    if (settings) {
        qmp_freehint_set(settings, &err);
    }
    hmp_handle_error(mon, err);
}

void hmp_freehint_flush(Monitor *mon, const QDict *qdict)
{
    const bool has_timeout_ms = qdict_haskey(qdict, "timeout-ms");
    g_autoptr(FreehintFlushStarted) started = NULL;
    Error *err = NULL;

    started = qmp_freehint_flush(qdict_get_str(qdict, "id"), has_timeout_ms,
                                 qdict_get_try_int(qdict, "timeout-ms", 0),
                                 true, qdict_get_try_bool(qdict, "compact",
                                                          false), &err);
    if (started) {
        monitor_printf(mon, "flush %" PRIu32 " has begun; \"info freehint\""
                       " shows what comes of it\n", started->flush_id);
    }
    hmp_handle_error(mon, err);
}
