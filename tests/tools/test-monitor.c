/*
 * What the tools make of recorded answers of QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <string.h>
#include <unistd.h>
#include <glib/gstdio.h>
#include "report.h"

#define MIB (G_GINT64_CONSTANT(1) << 20)

static Sample *parse(const char *text, gint64 memory)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) node = json_from_string(text, &error);
    Sample *sample = sample_new("vm");

    g_assert_no_error(error);
    sample->figures[VM_MEMORY] = memory;
    sample_parse(sample, node);
    return sample;
}

/* All recorded VMs have 512 MiB. */
static Sample *recorded(const char *name)
{
    g_autofree char *file = g_strconcat(name, ".json", NULL);
    g_autofree char *path =
        g_test_build_filename(G_TEST_DIST, "recorded", file, NULL);
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    /* The first line is the licence. */
    return parse(strchr(text, '\n'), 512 * MIB);
}

static void test_figures(void)
{
    g_autoptr(Sample) sample = recorded("active");
    const gint64 *values = sample->figures;

    g_assert_null(sample->words[PROBLEM]);
    g_assert_cmpstr(sample->words[DEVICE], ==, "fh0");
    g_assert_cmpstr(sample->words[STATE], ==, "active");
    g_assert_cmpstr(sample->words[DRIVER], ==, "active");
    g_assert_null(sample->words[REASON]);
    g_assert_cmpint(values[GUEST_FREE], ==, 460546048);
    g_assert_cmpint(values[GUEST_PENDING], ==, 2097152);
    g_assert_cmpint(values[GUEST_HINTED], ==, 452984832);
    g_assert_cmpint(values[GUEST_STUCK], ==, 5464064);
    g_assert_cmpint(values[GUEST_REUSED], ==, 27262976);
    g_assert_cmpint(values[GUEST_AGE], ==, 1824);
    g_assert_cmpint(values[LAST_HINT_AGE], ==, 2685);
    g_assert_cmpint(values[HINTS], ==, 9);
    g_assert_cmpint(values[DISCARDED], ==, 480247808);
    g_assert_cmpint(values[DISCARD_TIME], ==, 64070);
    g_assert_cmpint(values[POPULATED_HINTED], ==, UNKNOWN);
    g_assert_cmpint(values[WORKS], ==, WORKS_WELL);
}

/* Fails if a member of QEMU's answer is renamed. */
static void test_all_are_there(void)
{
    g_autoptr(Sample) file = recorded("file"), lazy = recorded("lazy");

    for (int i = 0; i < N_FIGURES; i++) {
        if (figures[i].path) {
            const Sample *sample = i == POPULATED_HINTED ? file : lazy;

            if (sample->figures[i] == UNKNOWN) {
                g_test_message("%s", figures[i].path);
            }
            g_assert_cmpint(sample->figures[i], !=, UNKNOWN);
        }
    }
    g_assert_cmpstr(lazy->words[FLUSH], ==, "done");
    g_assert_cmpstr(lazy->words[DISCARD], ==, "lazy");
    g_assert_cmpstr(lazy->words[IN_EFFECT], ==, "lazy");
    g_assert_cmpint(lazy->figures[LAZY_CALLS], >, 0);
}

static void test_sums(void)
{
    static const char text[] =
        "[{ 'id': 'x', 'state': 'active', 'driver-status': 'active',"
        "   'stats': { 'declined': { 'pinned': { 'bytes': 3, 'ranges': 1 },"
        "                            'locked': { 'bytes': 40, 'ranges': 1 } },"
        "              'rejected': {} } }]";
    g_autoptr(Sample) sample = NULL;
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');

    sample = parse(json, UNKNOWN);
    g_assert_cmpint(sample->figures[DECLINED], ==, 43);
    g_assert_cmpint(sample->figures[REJECTED], ==, 0);
    g_assert_cmpint(sample->figures[FAILED], ==, UNKNOWN);
}

/* A guest can report anything. */
static void test_nonsense(void)
{
    static const char *const texts[] = {
        "{}", "[[]]", "[1]", "[{}]", "[{\"id\":1}]", "null",
        "[{\"id\":\"x\",\"state\":\"active\",\"driver-status\":7}]", NULL
    };
    g_autoptr(Sample) sample = parse(
        "[{\"id\":\"x\",\"state\":\"active\",\"driver-status\":\"active\","
        "\"obstacles\":[7,{},{\"reason\":\"pinned\",\"memory\":[3,{}]}],"
        "\"guest-gauges\":{\"free\":18446744073709551615,\"stuck\":\"much\","
        "\"hinted\":9223372036854775807}}]", MIB);

    g_assert_null(sample->words[PROBLEM]);
    g_assert_cmpint(sample->figures[GUEST_FREE], ==, UNKNOWN);
    g_assert_cmpint(sample->figures[GUEST_STUCK], ==, UNKNOWN);
    g_assert_cmpint(sample->figures[GUEST_HINTED], ==, G_MAXINT64);
    g_assert_cmpint(sample_obstacles(sample), ==, 3);
    g_assert_cmpstr(sample_obstacle(sample, 0, "reason"), ==, "");
    g_assert_cmpstr(sample_obstacle(sample, 2, "reason"), ==, "pinned");
    for (int i = 0; texts[i]; i++) {
        g_autoptr(Sample) bad = parse(texts[i], MIB);

        g_assert_cmpstr(bad->words[PROBLEM], ==, "error");
        g_assert_cmpint(bad->figures[WORKS], ==, UNKNOWN);
    }
}

/* For each state: what is shown, and whether it works. */
static void test_states(void)
{
    static const struct {
        const char *name;
        const char *state;
        gint64 works;
    } cases[] = {
        { "active", "active", WORKS_WELL },
        { "lazy", "active", WORKS_WELL },
        { "off", "active: guest, driver off", WORKS_NOT },
        { "disabled", "disabled: operator", WORKS_NOT },
        { "locked", "vetoed: locked", WORKS_NOT },
        /* All of the VM's memory is that file. */
        { "file", "active: file-memory", WORKS_NOT },
    };
    g_autoptr(Sample) none = parse("[]", MIB);
    g_autofree char *state = report_state(none);

    g_assert_cmpstr(state, ==, "no-device");
    g_assert_cmpint(none->figures[WORKS], ==, WORKS_NOT);
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(Sample) sample = recorded(cases[i].name);
        g_autofree char *text = report_state(sample);

        g_assert_cmpstr(text, ==, cases[i].state);
        g_assert_cmpint(sample->figures[WORKS], ==, cases[i].works);
    }
}

/* There is other memory, too. */
static void test_partly(void)
{
    g_autofree char *path =
        g_test_build_filename(G_TEST_DIST, "recorded", "file.json", NULL);
    g_autofree char *text = NULL;
    g_autoptr(Sample) sample = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    sample = parse(strchr(text, '\n'), 513 * MIB);
    g_assert_cmpint(sample->figures[WORKS], ==, WORKS_PARTLY);
}

static void test_sizes(void)
{
    static const struct {
        gint64 bytes;
        const char *text;
    } cases[] = {
        { UNKNOWN, "-" }, { 0, "0" }, { 512, "0K" }, { 1024, "1K" },
        { 2 * MIB, "2.0M" }, { 1000 * MIB, "1.0G" }, { 999 * MIB, "999M" },
        { 10188 * 1024, "9.9M" }, { 10190 * 1024, "10M" },
        { G_MAXINT64, "8.0E" },
    };

    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = report_size(cases[i].bytes);

        g_assert_cmpstr(text, ==, cases[i].text);
    }
}

static void test_text(void)
{
    g_autofree char *text = report_text("a\033[2Jb\n\302\205\377 \303\244");

    g_assert_cmpstr(text, ==, "a?[2Jb???\357\277\275 \303\244");
}

static void test_metrics(void)
{
    g_autoptr(GPtrArray) samples = g_ptr_array_new();
    g_autoptr(Sample) one = recorded("off"), two = sample_new("b\"\\\n\033");
    g_autofree char *text = NULL;

    one->figures[HOST_RESIDENT] = G_MAXINT64;
    g_ptr_array_add(samples, one);
    g_ptr_array_add(samples, two);
    two->figures[MONITOR_UP] = 0;
    two->words[PROBLEM] = g_strdup("busy");
    text = report_metrics(samples);
    for (const char *const *line = (const char *const []) {
        "# TYPE freehint_guest_free_bytes gauge",
        "# TYPE freehint_discarded_bytes_total counter",
        "freehint_monitor_up{vm=\"vm\",device=\"fh0\"} 1",
        "freehint_monitor_up{vm=\"b\\\"\\\\\\n\033\",device=\"\"} 0",
        "freehint_problem{vm=\"b\\\"\\\\\\n\033\",device=\"\",problem=\"busy\"} 1",
        "freehint_works{vm=\"vm\",device=\"fh0\"} 0",
        "freehint_state{vm=\"vm\",device=\"fh0\",state=\"active\"} 1",
        "freehint_driver_status{vm=\"vm\",device=\"fh0\",driver_status=\"off\"} 1",
        "freehint_obstacle{vm=\"vm\",device=\"fh0\",reason=\"guest\"} 1",
        "freehint_guest_free_bytes{vm=\"vm\",device=\"fh0\"} 460546048",
        "freehint_guest_gauges_age_seconds{vm=\"vm\",device=\"fh0\"} 3.383",
        "freehint_host_resident_bytes{vm=\"vm\",device=\"fh0\"} "
            "9223372036854775807",
        NULL }; *line; line++) {
        g_autofree char *whole = g_strdup_printf("\n%s\n", *line);

        g_test_message("%s", *line);
        g_assert_nonnull(strstr(text, whole));
    }
    /* An unknown value is absent, not zero. */
    g_assert_null(strstr(text, "\nfreehint_populated_hinted_bytes{"));
}

static void test_guest(void)
{
    g_autofree char *folder = g_dir_make_tmp(NULL, NULL);
    g_autofree char *group = g_build_filename(folder, "virtio3", "freehint", NULL);
    g_autofree char *file = g_build_filename(group, "leaked_bytes", NULL);
    g_autofree char *device = g_path_get_dirname(group);
    g_autofree char *text = NULL;

    g_assert_cmpint(g_mkdir_with_parents(group, 0700), ==, 0);
    g_assert_true(g_file_set_contents(file, "4096\n", -1, NULL));
    text = report_guest(folder, "web1");
    g_assert_true(g_str_has_suffix(
        text, "\nfreehint_driver_leaked_bytes{vm=\"web1\",device=\"virtio3\"} "
        "4096\n"));
    g_remove(file);
    g_rmdir(group);
    g_rmdir(device);
    g_rmdir(folder);
}

static void test_taken(void)
{
    static const char table[] =
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 2243591 /q.sock\n"
        "0000000000000000: 00000003 00000000 00000000 0001 02     0 /w.sock\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 2241430 /w.sock\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 22 /with blank\n";

    g_assert_true(socket_is_taken("/q.sock", table));
    g_assert_true(socket_is_taken("/with blank", table));
    g_assert_false(socket_is_taken("/w.sock", table));
    g_assert_false(socket_is_taken("/q", table));
}

/* Look for a process with these arguments, which ';' separates. */
static GPtrArray *find_in(const char *arguments)
{
    g_autofree char *proc = g_dir_make_tmp(NULL, NULL);
    g_autofree char *folder = g_build_filename(proc, "42", NULL);
    g_autofree char *file = g_build_filename(folder, "cmdline", NULL);
    g_autofree char *text = g_strdelimit(g_strdup(arguments), ";", '\0');
    GPtrArray *found;

    g_assert_cmpint(g_mkdir(folder, 0700), ==, 0);
    g_assert_true(g_file_set_contents(file, text, strlen(arguments) + 1, NULL));
    found = sources_find(proc);
    g_remove(file);
    g_rmdir(folder);
    g_rmdir(proc);
    return found;
}

static void test_found(void)
{
    static const struct {
        const char *arguments;
        const char *name;
        const char *path;
        gboolean none;
    } cases[] = {
        { "/usr/bin/qemu-system-x86_64;-name;guest=a b,debug-threads=on;-qmp;"
          "unix:/q,server=on,wait=off", "a b", "/q" },
        { "qemu-system-x86_64;--name;web;-m;4G;-qmp;"
          "unix:path=/p,server,nowait", "web", "/p" },
        { "qemu-kvm;-chardev;socket,id=c,path=/c,server=on,wait=off;-mon;"
          "chardev=c,mode=control", NULL, "/c" },
        { "kvm;-chardev;socket,server,path=/c,nowait,id=c;-mon;c,mode=control",
          NULL, "/c" },
        /* HMP; passed as a file descriptor; QEMU is the client; no wait=off. */
        { "kvm;-name;h;-chardev;socket,id=c,path=/c,server=on,wait=off;-mon;"
          "chardev=c", "h", NULL },
        { "kvm;-name;l;-chardev;socket,id=c,fd=5;-mon;chardev=c,mode=control",
          "l", NULL },
        { "kvm;-chardev;socket,path=/c,id=c,wait=off;-mon;c,mode=control", NULL,
          NULL },
        { "kvm;-qmp;unix:/q,server=off,wait=off", NULL, NULL },
        { "kvm;-qmp;unix:/q,server=on", NULL, NULL },
        { "kvm;-qmp", NULL, NULL },
        { "vi;-qmp;unix:/q,server=on,wait=off", NULL, NULL, TRUE },
    };

    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GPtrArray) found = find_in(cases[i].arguments);
        const Source *source = found->len ? found->pdata[0] : NULL;

        g_test_message("%s", cases[i].arguments);
        g_assert_cmpint(found->len, ==, cases[i].none ? 0 : 1);
        if (source) {
            g_assert_cmpstr(source->name, ==, cases[i].name);
            g_assert_cmpstr(source->path, ==, cases[i].path);
            g_assert_cmpint(source->pid, ==, 42);
        }
    }
}

static void test_arguments(void)
{
    char *sockets[] = { (char *)"/a=b", (char *)"n=/c", (char *)"d", NULL };
    char *domains[] = { (char *)"dom", NULL };
    g_autoptr(GPtrArray) sources = sources_list(sockets, domains);
    const Source *const *list = (const Source *const *)sources->pdata;

    g_assert_cmpint(sources->len, ==, 4);
    g_assert_cmpstr(list[0]->path, ==, "/a=b");
    g_assert_null(list[0]->name);
    g_assert_cmpstr(list[1]->path, ==, "/c");
    g_assert_cmpstr(list[1]->name, ==, "n");
    g_assert_cmpstr(list[2]->path, ==, "d");
    g_assert_cmpstr(list[3]->domain, ==, "dom");
}

/* The map of a process with this pagemap; NULL if it has none. */
static Map *map_of(const char *pagemap, gsize size, const char *blocks)
{
    g_autofree char *proc = g_dir_make_tmp(NULL, NULL);
    g_autofree char *folder = g_build_filename(proc, "42", NULL);
    g_autofree char *file = g_build_filename(folder, "pagemap", NULL);
    g_autoptr(JsonNode) memdevs =
        json_from_string("[{\"id\": \"pc.ram\"}, {\"id\": \"dimm\"}]", NULL);
    g_autoptr(GError) error = NULL;
    Map *map;

    g_assert_cmpint(g_mkdir(folder, 0700), ==, 0);
    if (pagemap) {
        g_assert_true(g_file_set_contents(file, pagemap, size, NULL));
    }
    map = map_take(proc, 42, 2 * MIB, memdevs, blocks, &error);
    g_assert_true(!map == !!error);
    g_remove(file);
    g_rmdir(folder);
    g_rmdir(proc);
    return map;
}

static void test_map(void)
{
    /* Not by offset; with firmware, and with a name that only ends alike. */
    static const char blocks[] =
        " Block Name PSize Offset Used Total HVA RO\n"
        " /objects/dimm 2 MiB 0x1000000 0x200000 0x200000 0x200000 rw\n"
        " pc.bios 256 KiB 0x800000 0x40000 0x40000 0x0 ro\n"
        " a-dimm 4 KiB 0xa00000 0x200000 0x200000 0x0 rw\n"
        " pc.ram 4 KiB 0x0 0x400000 0x400000 0x600000 rw\n";
    const gsize pages = 2 * MIB / 4096;
    g_autofree guint64 *entries = g_new0(guint64, 5 * pages);
    const gsize size = 5 * pages * sizeof(*entries);
    g_autoptr(Map) map = NULL;

    if (sysconf(_SC_PAGESIZE) != 4096) {
        g_test_skip("entries are those of pages of 4 KiB");
        return;
    }
    /* All present, one page present, and all swapped out. */
    for (gsize i = 0; i < pages; i++) {
        entries[3 * pages + i] = G_GUINT64_CONSTANT(1) << 63;
        entries[pages + i] = G_GUINT64_CONSTANT(1) << 62;
    }
    entries[4 * pages + 7] = G_GUINT64_CONSTANT(1) << 63 | 5;
    map = map_of((const char *)entries, size, blocks);
    g_assert_nonnull(map);
    g_assert_cmpuint(map->step, ==, 1);
    g_assert_cmpmem(map->parts->data, map->parts->len, "\xff\x01\x00", 3);
    /* A pagemap that ends early, an empty one, and no process. */
    g_assert_null(map_of((const char *)entries, size - 8, blocks));
    g_assert_null(map_of("", 0, blocks));
    g_assert_null(map_of(NULL, 0, blocks));
}

static void test_map_of_a_large_guest(void)
{
    /* 10 GiB and 2 MiB; the addresses may overlap. */
    static const char blocks[] =
        "pc.ram 4 KiB 0x0 0x280000000 0x280000000 0x0 rw\n"
        "/objects/dimm 4 KiB 0x400000000 0x200000 0x200000 0x0 rw\n";
    const gsize size = 10 * 1024 * MIB / sysconf(_SC_PAGESIZE) * 8;
    g_autofree char *pagemap = g_malloc0(size);
    g_autoptr(Map) map = map_of(pagemap, size, blocks);

    /* 5121 granules of 2 MiB. */
    g_assert_nonnull(map);
    g_assert_cmpuint(map->step, ==, 2);
    g_assert_cmpuint(map->parts->len, ==, 2561);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/monitor/figures", test_figures);
    g_test_add_func("/monitor/all-are-there", test_all_are_there);
    g_test_add_func("/monitor/sums", test_sums);
    g_test_add_func("/monitor/nonsense", test_nonsense);
    g_test_add_func("/monitor/states", test_states);
    g_test_add_func("/monitor/partly", test_partly);
    g_test_add_func("/monitor/taken", test_taken);
    g_test_add_func("/monitor/found", test_found);
    g_test_add_func("/monitor/arguments", test_arguments);
    g_test_add_func("/monitor/map", test_map);
    g_test_add_func("/monitor/map-of-a-large-guest", test_map_of_a_large_guest);
    g_test_add_func("/report/sizes", test_sizes);
    g_test_add_func("/report/text", test_text);
    g_test_add_func("/report/metrics", test_metrics);
    g_test_add_func("/report/guest", test_guest);
    return g_test_run();
}
