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
    monitor_printf(mon, "  skipped by migration: %" PRIu64 " bytes\n",
                   stats->skipped_bytes);
}

static void print_vetoes(Monitor *mon, const FreehintVetoList *vetoes)
{
    for (; vetoes; vetoes = vetoes->next) {
        const FreehintVeto *veto = vetoes->value;
        const strList *path;

        monitor_printf(mon, "  %s: %s\n", FreehintReason_str(veto->reason),
                       veto->detail);
        for (path = veto->qom_paths; path; path = path->next) {
            monitor_printf(mon, "    %s\n", path->value);
        }
    }
}

static void print_device(Monitor *mon, const FreehintInfo *info)
{
    monitor_printf(mon, "%s: %s, driver %s\n",
                   info->id ? info->id : info->qom_path,
                   FreehintState_str(info->state),
                   FreehintDriverStatus_str(info->driver_status));
    print_vetoes(mon, info->vetoes);
    monitor_printf(mon, "  granule: %" PRIu64 " bytes, max ranges: %" PRIu32
                   ", epoch: %" PRIu32 "\n", info->granule, info->max_ranges,
                   info->rehint_epoch);
    monitor_printf(mon, "  delay: %" PRIu32 " ms, min age: %" PRIu32 " ms\n",
                   info->delay_ms, info->min_age_ms);
    if (info->has_last_hint_age_ms) {
        monitor_printf(mon, "  last hint: %" PRIu64 " ms ago\n",
                       info->last_hint_age_ms);
    }
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
