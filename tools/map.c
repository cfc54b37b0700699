/*
 * Which granules of a guest are in host memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
#include <glib/gstdio.h>
#include "map.h"

/* A bit of an entry in /proc/PID/pagemap. */
#define PRESENT (G_GUINT64_CONSTANT(1) << 63)

/* The largest granule that a device can have. */
#define MAX_GRANULE (512 << 20)

typedef struct Block {
    guint64 offset, size, address;
} Block;

/* A memory backend's block is named after its ID, or its path to that ID. */
static gboolean is_memdev(JsonArray *memdevs, const char *name)
{
    for (guint i = 0; i < json_array_get_length(memdevs); i++) {
        JsonObject *memdev = json_array_get_object_element(memdevs, i);
        const char *id =
            json_object_get_string_member_with_default(memdev, "id", "");

        if (*id && g_str_has_suffix(name, id)) {
            gsize before = strlen(name) - strlen(id);

            if (!before || name[before - 1] == '/') {
                return TRUE;
            }
        }
    }
    return FALSE;
}

static int by_offset(gconstpointer left, gconstpointer right)
{
    const Block *a = left, *b = right;

    return (a->offset > b->offset) - (a->offset < b->offset);
}

/* The blocks that are guest memory, not firmware or memory of devices. */
static GArray *find_blocks(JsonArray *memdevs, const char *text)
{
    GArray *blocks = g_array_new(FALSE, FALSE, sizeof(Block));
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (char **line = lines; *line; line++) {
        g_autofree char *name = g_malloc(strlen(*line) + 1);
        guint64 offset, size, address;

        if (sscanf(*line, "%s %*u %*s %" G_GINT64_MODIFIER "x"
                   " %" G_GINT64_MODIFIER "x %*x %" G_GINT64_MODIFIER "x",
                   name, &offset, &size, &address) == 4 &&
            is_memdev(memdevs, name)) {
            const Block block = { offset, size, address };

            g_array_append_val(blocks, block);
        }
    }
    g_array_sort(blocks, by_offset);
    return blocks;
}

/* How much of a granule is in host memory, in 255ths; -1 and errno on error. */
static int look_at(int pagemap, guint64 address, gint64 granule)
{
    const long page = getauxval(AT_PAGESZ);
    gsize pages = granule / page, present = 0;
    gssize size = pages * sizeof(guint64), got;
    g_autofree guint64 *entries = g_malloc(size);

    got = pread(pagemap, entries, size, address / page * sizeof(*entries));
    if (got != size) {
        errno = got < 0 ? errno : EIO;
        return -1;
    }
    for (gsize i = 0; i < pages; i++) {
        present += !!(entries[i] & PRESENT);
    }
    /* Round up: a single page is not nothing. */
    return (present * 255 + pages - 1) / pages;
}

static gboolean look_at_all(Map *map, int pagemap, GArray *blocks)
{
    for (guint i = 0; i < blocks->len; i++) {
        const Block *block = &g_array_index(blocks, Block, i);

        for (guint64 at = 0; at + map->granule <= block->size;
             at += map->step * map->granule) {
            int part = look_at(pagemap, block->address + at, map->granule);
            guint8 byte = part;

            if (part < 0) {
                return FALSE;
            }
            g_byte_array_append(map->parts, &byte, 1);
        }
    }
    return TRUE;
}

Map *map_take(const char *proc, gint64 pid, gint64 granule, JsonNode *memdevs,
              const char *blocks, GError **error)
{
    g_autofree char *path = g_strdup_printf("%s/%" G_GINT64_FORMAT "/pagemap",
                                            proc, pid);
    g_autoptr(GArray) found = NULL;
    g_autoptr(Map) map = g_new0(Map, 1);
    guint64 size = 0;
    int pagemap;

    map->parts = g_byte_array_new();
    map->granule = granule;
    if (granule < (gint64)getauxval(AT_PAGESZ) || granule > MAX_GRANULE ||
        !JSON_NODE_HOLDS_ARRAY(memdevs)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "QEMU has returned something unexpected");
        return NULL;
    }
    found = find_blocks(json_node_get_array(memdevs), blocks);
    for (guint i = 0; i < found->len; i++) {
        size += g_array_index(found, Block, i).size;
    }
    map->step = MAX((size / granule + MAP_GRANULES - 1) / MAP_GRANULES, 1);
    pagemap = g_open(path, O_RDONLY | O_CLOEXEC, 0);
    if (pagemap < 0 || !look_at_all(map, pagemap, found)) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s",
                    path, g_strerror(errno));
        g_clear_pointer(&map, map_free);
    }
    if (pagemap >= 0) {
        close(pagemap);
    }
    return g_steal_pointer(&map);
}

void map_free(Map *map)
{
    g_byte_array_unref(map->parts);
    g_free(map);
}
