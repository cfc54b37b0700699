/*
 * Which of a guest's memory the host has, granule by granule
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FREEHINT_MAP_H
#define FREEHINT_MAP_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

/* So many granules are looked at; of a larger guest, one in so many. */
#define MAP_GRANULES 4096

typedef struct Map {
    /* The part of each granule that is in host memory, in 255ths. */
    GByteArray *parts;
    gint64 granule;
    /* One granule in so many is in parts. */
    guint64 step;
} Map;

/*
 * Of the process @pid below @proc. @memdevs and @blocks are what query-memdev
 * and x-query-ramblock have returned.
 */
Map *map_take(const char *proc, gint64 pid, gint64 granule, JsonNode *memdevs,
              const char *blocks, GError **error);
void map_free(Map *map);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Map, map_free)

#endif
