/*
 * QTest test cases for virtio-freehint: what the host gets back
 *
 * A discard can succeed and free nothing: if memory is shared, the file behind
 * it counts, and huge pages of hugetlbfs do not count as resident memory. So
 * for each kind of memory these tests add up all that QEMU keeps of it, before
 * and after.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/prctl.h>
#include "qemu/module.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"

#define GRANULE (2 * MiB)

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define RAM_SIZE (128 * MiB)
#define FREE_START (qfreehint_ram_start() + 64 * MiB)
#define FREE_SIZE (64 * MiB)

/* How much QEMU, and the hint itself, may need meanwhile. */
#define SLACK (2 * MiB)

#define HUGE_PAGE (2 * MiB)
#define NR_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

/* The host's memory that QEMU keeps, in bytes. */
typedef struct Footprint {
    /* Mapped, except huge pages of hugetlbfs. */
    uint64_t resident;
    uint64_t hugetlb;
    /* In files without a name, mapped or not. */
    uint64_t files;
} Footprint;

static char *proc_path(const char *name)
{
    return g_strdup_printf("/proc/%d/%s", qtest_pid(global_qtest), name);
}

/* A sum over all mappings, in bytes. */
static uint64_t smaps_sum(const char *field)
{
    g_autofree char *path = proc_path("smaps_rollup");
    g_autofree char *smaps = NULL;
    const char *line;
    uint64_t kib;

    g_assert_true(g_file_get_contents(path, &smaps, NULL, NULL));
    line = strstr(smaps, field);
    g_assert_nonnull(line);
    g_assert_cmpint(sscanf(line + strlen(field), ": %" SCNu64, &kib), ==, 1);
    return kib * KiB;
}

static uint64_t file_bytes(const char *fd_path)
{
    g_autofree char *target = g_file_read_link(fd_path, NULL);
    struct stat st;

    if (!target || !g_str_has_prefix(target, "/memfd:") || stat(fd_path, &st)) {
        return 0;
    }
    return st.st_blocks * 512;
}

static uint64_t files_sum(void)
{
    g_autofree char *path = proc_path("fd");
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    uint64_t sum = 0;
    const char *name;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *fd_path = g_build_filename(path, name, NULL);

        sum += file_bytes(fd_path);
    }
    return sum;
}

static Footprint footprint(void)
{
    return (Footprint) {
        .resident = smaps_sum("\nRss"),
        .hugetlb = smaps_sum("\nShared_Hugetlb") +
                   smaps_sum("\nPrivate_Hugetlb"),
        .files = files_sum(),
    };
}

static void hint_all(QVirtioFreehint *fh, QGuestAllocator *alloc,
                     uint64_t addr, uint64_t len)
{
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, addr, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

/* A kind of memory, by what is added to QEMU's command line. */
typedef struct Backing {
    const char *name;
    const char *args;
    /* Which member of the footprint counts this memory. */
    bool files;
    bool hugetlb;
} Backing;

static const Backing backings[] = {
    { "ram", "-object memory-backend-ram,id=mem0,size=128M" },
    { "ram-shared", "-object memory-backend-ram,id=mem0,size=128M,share=on",
      .files = true },
    /* A page that is written to is first in the file, and then copied. */
    { "memfd", "-object memory-backend-memfd,id=mem0,size=128M,share=off",
      .files = true },
    { "memfd-shared",
      "-object memory-backend-memfd,id=mem0,size=128M,share=on",
      .files = true },
};

static const Backing huge_backings[] = {
    { "hugetlb", "-object memory-backend-memfd,id=mem0,size=128M,share=off,"
      "hugetlb=on,hugetlbsize=2M", .hugetlb = true },
    { "hugetlb-shared", "-object memory-backend-memfd,id=mem0,size=128M,"
      "share=on,hugetlb=on,hugetlbsize=2M", .hugetlb = true, .files = true },
};

static void *setup_backing(GString *cmd_line, void *arg)
{
    const Backing *backing = arg;

    g_string_append_printf(cmd_line, " -machine memory-backend=mem0 %s",
                           backing->args);
    return arg;
}

/* The difference may be negative. */
static void assert_fell(uint64_t before, uint64_t after, uint64_t len)
{
    g_assert_cmpint((int64_t)(before - after), >=, len - SLACK);
}

static void assert_freed(const Backing *backing, const Footprint *before,
                         const Footprint *after, uint64_t len)
{
    g_test_message("%s: resident %" PRIu64 " to %" PRIu64 " MiB, hugetlb %"
                   PRIu64 " to %" PRIu64 " MiB, files %" PRIu64 " to %" PRIu64
                   " MiB", backing->name, before->resident / MiB,
                   after->resident / MiB, before->hugetlb / MiB,
                   after->hugetlb / MiB, before->files / MiB,
                   after->files / MiB);
    if (backing->hugetlb) {
        assert_fell(before->hugetlb, after->hugetlb, len);
    } else {
        assert_fell(before->resident, after->resident, len);
    }
    if (backing->files) {
        assert_fell(before->files, after->files, len);
    }
}

static void test_backing(void *obj, void *data, QGuestAllocator *alloc)
{
    const Backing *backing = data;
    Footprint before, after;

    qfreehint_fill(FREE_START, FREE_SIZE, 0xa5);
    before = footprint();
    hint_all(obj, alloc, FREE_START, FREE_SIZE);
    after = footprint();
    assert_freed(backing, &before, &after, FREE_SIZE);
}

/* With transparent huge pages, and without */

static const Backing small_pages = {
    "ram", "-object memory-backend-ram,id=mem0,size=128M",
};

/* QEMU inherits this, and asks for huge pages in vain. */
static void *setup_no_thp(GString *cmd_line, void *arg)
{
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    g_string_append(cmd_line, " -name no-thp");
    return setup_backing(cmd_line, arg);
}

static void test_no_thp(void *obj, void *data, QGuestAllocator *alloc)
{
    prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
    qfreehint_fill(FREE_START, FREE_SIZE, 0xa5);
    g_assert_cmpuint(smaps_sum("\nAnonHugePages"), ==, 0);
    test_backing(obj, data, alloc);
}

static void test_thp(void *obj, void *data, QGuestAllocator *alloc)
{
    qfreehint_fill(FREE_START, FREE_SIZE, 0xa5);
    if (smaps_sum("\nAnonHugePages") < FREE_SIZE / 2) {
        g_test_skip("the host has no transparent huge pages to give");
        return;
    }
    test_backing(obj, data, alloc);
}

/* Huge pages of hugetlbfs, which the host has to reserve */

static uint64_t read_number(const char *path)
{
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ?
           g_ascii_strtoull(text, NULL, 10) : 0;
}

static bool write_number(const char *path, uint64_t value)
{
    FILE *file = fopen(path, "w");
    bool ok = file && fprintf(file, "%" PRIu64, value) > 0;

    return file && !fclose(file) && ok;
}

/* How many there were before the first test. */
static int64_t other_hugepages = -1;

/* Those that QEMU still has are freed when it ends. */
static void return_huge_pages(void *opaque)
{
    write_number(NR_HUGEPAGES, other_hugepages);
}

/* The machine starts without them, too, and the test checks that. */
static void *setup_hugetlb(GString *cmd_line, void *arg)
{
    uint64_t wanted;

    if (other_hugepages < 0) {
        other_hugepages = read_number(NR_HUGEPAGES);
    }
    wanted = other_hugepages + RAM_SIZE / HUGE_PAGE;
    g_test_queue_destroy(return_huge_pages, NULL);
    if (!write_number(NR_HUGEPAGES, wanted) ||
        read_number(NR_HUGEPAGES) < wanted) {
        g_string_append(cmd_line, " -name no-hugetlb");
        return NULL;
    }
    return setup_backing(cmd_line, arg);
}

/* They are reserved: the operator has to allow them to be discarded. */
static void test_hugetlb_refused(void *obj, void *data, QGuestAllocator *alloc)
{
    Footprint before, after;

    if (!data) {
        g_test_skip("huge pages cannot be set aside, see nr_hugepages");
        return;
    }
    qfreehint_fill(FREE_START, FREE_SIZE, 0xa5);
    before = footprint();
    g_assert_cmphex(qfreehint_hint_one(obj, alloc, 0, FREE_START, FREE_SIZE),
                    ==, VIRTIO_FREEHINT_S_BACKING);
    after = footprint();
    g_assert_cmpuint(before.hugetlb, ==, after.hugetlb);
    g_assert_true(qfreehint_is_filled(FREE_START, FREE_SIZE, 0xa5));
}

static void test_hugetlb(void *obj, void *data, QGuestAllocator *alloc)
{
    if (!data) {
        g_test_skip("huge pages cannot be set aside, see nr_hugepages");
        return;
    }
    test_backing(obj, data, alloc);
    /* The pool still has a page for each one that the guest uses again. */
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));
}

/* Several memories in one machine */

#define NUMA_SIZE (48 * MiB)

/* 144 MiB in all; each range is in one of them, and the last in all of them. */
static void *setup_numa(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -m 144M"
                    " -object memory-backend-ram,id=mem0,size=48M"
                    " -object memory-backend-memfd,id=mem1,size=48M,share=on"
                    " -object memory-backend-memfd,id=mem2,size=48M,share=off"
                    " -numa node,memdev=mem0 -numa node,memdev=mem1"
                    " -numa node,memdev=mem2");
    return arg;
}

static void test_numa(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t start = qfreehint_ram_start() + NUMA_SIZE - 16 * MiB;
    const uint64_t len = 2 * NUMA_SIZE + 16 * MiB;
    Footprint before, after;

    qfreehint_fill(start, len, 0xa5);
    before = footprint();
    hint_all(obj, alloc, start, len);
    after = footprint();
    assert_fell(before.resident, after.resident, len);
    /* All of mem1 and mem2. */
    assert_fell(before.files, after.files, 2 * NUMA_SIZE);
}

#define DIMM_ADDR (4 * GiB)
#define DIMM_SIZE (64 * MiB)

static void *setup_dimm(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -m 128M,slots=2,maxmem=1G"
                    " -object memory-backend-ram,id=dimm-mem0,size=64M"
                    " -object memory-backend-memfd,id=dimm-mem1,size=64M");
    return arg;
}

/* DIMMs that are plugged later, one of each kind. */
static void test_dimm(void *obj, void *data, QGuestAllocator *alloc)
{
    Footprint before, after;
    int i;

    if (qfreehint_ram_start()) {
        g_test_skip("DIMMs have other addresses, and need firmware, here");
        return;
    }
    for (i = 0; i < 2; i++) {
        const int64_t addr = DIMM_ADDR + i * DIMM_SIZE;
        g_autofree char *id = g_strdup_printf("dimm%d", i);
        g_autofree char *memdev = g_strdup_printf("dimm-mem%d", i);

        qtest_qmp_device_add(global_qtest, "pc-dimm", id,
                             "{ 'memdev': %s, 'addr': %" PRId64 " }", memdev,
                             addr);
        qfreehint_fill(addr, DIMM_SIZE, 0xa5);
        before = footprint();
        hint_all(obj, alloc, addr, DIMM_SIZE);
        after = footprint();
        assert_fell(before.resident, after.resident, DIMM_SIZE);
        g_assert_cmpuint(before.files - after.files, ==, i ? DIMM_SIZE : 0);
    }
    qos_invalidate_command_line();
}

static void add_backing_test(const Backing *backing, const char *path,
                             QOSTestFunc fn,
                             void *(*before)(GString *cmd_line, void *arg),
                             const char *device_opts)
{
    QOSGraphTestOptions opts = {
        .arg = (void *)backing,
        .before = before,
        .edge.extra_device_opts = device_opts,
    };

    qos_add_test(path, "virtio-freehint", fn, &opts);
}

static void add_backing_tests(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(backings); i++) {
        g_autofree char *path = g_strdup_printf("residency/%s",
                                                backings[i].name);

        add_backing_test(&backings[i], path, test_backing, setup_backing, NULL);
    }
    add_backing_test(&small_pages, "residency/no-thp", test_no_thp,
                     setup_no_thp, NULL);
    add_backing_test(&backings[0], "residency/thp", test_thp, setup_backing,
                     NULL);
    for (i = 0; i < ARRAY_SIZE(huge_backings); i++) {
        g_autofree char *path = g_strdup_printf("residency/%s",
                                                huge_backings[i].name);
        g_autofree char *refused = g_strdup_printf("%s-refused", path);

        add_backing_test(&huge_backings[i], refused, test_hugetlb_refused,
                         setup_hugetlb, NULL);
        add_backing_test(&huge_backings[i], path, test_hugetlb, setup_hugetlb,
                         "discard-reserved=on");
    }
}

static void register_virtio_freehint_residency_test(void)
{
    QOSGraphTestOptions numa = { .before = setup_numa };
    QOSGraphTestOptions dimm = { .before = setup_dimm };

    add_backing_tests();
    qos_add_test("residency/numa", "virtio-freehint", test_numa, &numa);
    qos_add_test("residency/dimm", "virtio-freehint", test_dimm, &dimm);
}

libqos_init(register_virtio_freehint_residency_test);
