/*
 * Which granules of a guest are in host memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FREEHINT_MAP_H
#define FREEHINT_MAP_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

/* At most about this many granules are looked at. */
#define MAP_GRANULES 4096

typedef struct Map {
    /* How much of each granule is in host memory, in 255ths. */
    GByteArray *parts;
    gint64 granule;
    /* Every step-th granule is in parts. */
    guint64 step;
} Map;

/*
 * Look at the process @pid below @proc. @memdevs and @blocks are what QEMU's
 * query-memdev and x-query-ramblock returned.
 */
Map *map_take(const char *proc, gint64 pid, gint64 granule, JsonNode *memdevs,
              const char *blocks, GError **error);
void map_free(Map *map);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Map, map_free)

#endif
