/*
 * QTest test cases for virtio-freehint: kinds of memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "qemu/bswap.h"
#include "qemu/memfd.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/libqos-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-freehint.h"
#include "hw/acpi/pc-hotplug.h"
#include "hw/pci-host/q35.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_mem.h"
#include "standard-headers/linux/virtio_ring.h"

#define GRANULE (2 * MiB)

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define RAM_SIZE (128 * MiB)
#define FREE_START (64 * MiB)

#define TIMEOUT_US (10 * 1000 * 1000)

#define DEVICE "virtio-freehint-pci,addr=04.0,id=fh0"
/* This device can be made slow, or misbehave. */
#define TESTDEV "virtio-freehint-testdev-pci,addr=04.0,id=fh0"

typedef struct VM {
    QOSState *qs;
    QVirtioPCIDevice *pci;
    QVirtioFreehint fh;
} VM;

static VM *vm_start(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

static VM *vm_start(const char *fmt, ...)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4, 0) };
    VM *vm = g_new0(VM, 1);
    va_list ap;

    va_start(ap, fmt);
    vm->qs = qtest_pc_vboot(fmt, ap);
    va_end(ap);
    global_qtest = vm->qs->qts;

    vm->pci = virtio_pci_new(vm->qs->pcibus, &addr);
    g_assert_nonnull(vm->pci);
    qvirtio_pci_device_enable(vm->pci);
    qvirtio_start_device(&vm->pci->vdev);
    qfreehint_init(&vm->fh, vm->pci);
    qfreehint_start(&vm->fh, &vm->qs->alloc);
    return vm;
}

static void vm_stop(VM *vm)
{
    qfreehint_assert_identity();
    qvirtqueue_cleanup(vm->fh.vdev->bus, vm->fh.vq, &vm->qs->alloc);
    qvirtio_pci_device_disable(vm->pci);
    g_free(vm->pci->pdev);
    g_free(vm->pci);
    qtest_shutdown(vm->qs);
    g_free(vm);
}

static uint8_t hint(VM *vm, uint16_t flags, uint64_t addr, uint64_t len)
{
    return qfreehint_hint_one(&vm->fh, &vm->qs->alloc, flags, addr, len);
}

/* A hint gets this status, and the right counter counts it. */
static void assert_status(VM *vm, uint16_t flags, uint64_t addr, uint64_t len,
                          uint8_t status)
{
    static const char *const kinds[UINT8_MAX + 1] = {
        [VIRTIO_FREEHINT_S_UNMAPPED] = "unmapped",
        [VIRTIO_FREEHINT_S_NOT_RAM] = "not-ram",
        [VIRTIO_FREEHINT_S_READ_ONLY] = "read-only",
        [VIRTIO_FREEHINT_S_EXCLUDED] = "excluded",
        [VIRTIO_FREEHINT_S_BACKING] = "backing",
    };
    const char *kind = kinds[status];
    uint64_t rejected = qfreehint_count("rejected", "ranges");
    uint64_t of_kind = kind ? qfreehint_count_rejected(kind) : 0;

    g_assert_cmphex(hint(vm, flags, addr, len), ==, status);
    g_assert_cmpuint(qfreehint_count("rejected", "ranges") - rejected, ==,
                     !!kind);
    if (kind) {
        g_assert_cmpuint(qfreehint_count_rejected(kind) - of_kind, ==, 1);
    }
}

/* Hint memory that has to keep its content. */
static void assert_refused(VM *vm, uint16_t flags, uint64_t addr,
                           uint64_t len, uint8_t status)
{
    qfreehint_fill(addr, len, 0xa5);
    assert_status(vm, flags, addr, len, status);
    g_assert_true(qfreehint_is_filled(addr, len, 0xa5));
}

static void assert_discarded(VM *vm, uint16_t flags, uint64_t addr,
                             uint64_t len)
{
    qfreehint_fill(addr, len, flags & VIRTIO_FREEHINT_HINT_F_ZERO ? 0 : 0xa5);
    g_assert_cmphex(hint(vm, flags, addr, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(addr, len, 0));
}

/* QEMU's messages, in a file that the test can read. */

static char *log_path(void)
{
    return g_strdup_printf("%s/qtest-freehint-%d.log", g_get_tmp_dir(),
                           getpid());
}

static void assert_warned(const char *part, int times)
{
    g_autofree char *path = log_path(), *text = NULL;
    const char *found;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    for (found = text; (found = strstr(found, part)); found++) {
        times--;
    }
    g_assert_cmpint(times, ==, 0);
}

static void remove_log(void)
{
    g_autofree char *path = log_path();

    unlink(path);
}

/* Backings of the machine's RAM */

/*
 * The obstacle is listed, for the machine's memory "mem0" alone, and says what
 * to do about it.
 */
static void assert_obstacle(const char *reason, const char *advice,
                            int host_errno)
{
    QDict *device = qfreehint_query();
    const QListEntry *entry;
    QDict *memory = NULL;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "obstacles"), entry) {
        QDict *obstacle = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(obstacle, "reason"), reason)) {
            QList *list = qdict_get_qlist(obstacle, "memory");

            g_assert_cmpuint(qlist_size(list), ==, 1);
            memory = qobject_to(QDict, qlist_peek(list));
            g_assert_nonnull(strstr(qdict_get_str(obstacle, "detail"),
                                    advice));
        }
    }
    g_assert_nonnull(memory);
    g_assert_cmpstr(qdict_get_str(memory, "region"), ==, "mem0");
    g_assert_cmpuint(qdict_get_int(memory, "bytes"), ==, RAM_SIZE);
    g_assert_cmpint(qdict_get_try_int(memory, "host-errno", 0), ==,
                    host_errno);
    qobject_unref(device);
}

/* "info freehint" has a line that is, or begins with, @line. */
static void assert_info(const char *line)
{
    g_autofree char *info = qtest_hmp(global_qtest, "info freehint");

    g_assert_nonnull(strstr(info, line));
}

static void await_epoch_other_than(VM *vm, uint32_t epoch)
{
    gint64 start = g_get_monotonic_time();

    while (QFREEHINT_CONFIG(&vm->fh, rehint_epoch) == epoch) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

/* How much memory of the host QEMU takes, in bytes. */
static uint64_t resident(void)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm",
                                            qtest_pid(global_qtest));
    g_autofree char *statm = NULL;
    uint64_t size, pages;

    g_assert_true(g_file_get_contents(path, &statm, NULL, NULL));
    g_assert_cmpint(sscanf(statm, "%" SCNu64 " %" SCNu64, &size, &pages), ==,
                    2);
    return pages * qemu_real_host_page_size();
}

/*
 * QEMU may need some memory for itself. If nothing was freed, it has more than
 * before, and an unsigned difference would be large.
 */
static void assert_fell(uint64_t before, uint64_t len)
{
    g_assert_cmpint((int64_t)(before - resident()), >=, len - GRANULE);
}

/*
 * Whether the host's process_madvise() works on several pieces of our own
 * memory.
 */
static bool has_process_madvise(void)
{
    const size_t size = qemu_real_host_page_size();
    int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec piece = { .iov_len = size };
    ssize_t ret;

    piece.iov_base = mmap(NULL, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ret = syscall(SYS_process_madvise, pidfd, &piece, 1, MADV_DONTNEED, 0);
    munmap(piece.iov_base, size);
    close(pidfd);
    return ret == size;
}

/* How many huge pages of 2 MiB the host can provide. */
static uint64_t pool_pages(void)
{
    static const char *const names[] = {
        "nr_hugepages", "nr_overcommit_hugepages",
    };
    uint64_t pages = 0;
    int i;

    for (i = 0; i < ARRAY_SIZE(names); i++) {
        g_autofree char *path = g_build_filename("/sys/kernel/mm/hugepages",
                                                 "hugepages-2048kB", names[i],
                                                 NULL);
        g_autofree char *text = NULL;

        if (g_file_get_contents(path, &text, NULL, NULL)) {
            pages += g_ascii_strtoull(text, NULL, 10);
        }
    }
    return pages;
}

static const char *const good_backings[] = {
    "memory-backend-ram",
    "memory-backend-ram,share=on",
    "memory-backend-memfd,share=on",
    "memory-backend-memfd,share=off",
};

/* The content is gone, and the host's memory is free. */
static void test_backing(const void *opaque)
{
    const uint64_t len = RAM_SIZE - FREE_START;
    const char *backing = opaque;
    uint64_t before;
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object %s,id=mem0,size=128M", backing);

    assert_discarded(vm, 0, FREE_START, GRANULE);
    assert_discarded(vm, VIRTIO_FREEHINT_HINT_F_ZERO, FREE_START, GRANULE);

    qfreehint_fill(FREE_START, len, 0xa5);
    before = resident();
    g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    assert_fell(before, len);
    vm_stop(vm);
}

/* How much of QEMU's memory the host may take without swapping, in bytes. */
static uint64_t lazily_freed(void)
{
    return qfreehint_host_bytes("smaps_rollup", "LazyFree:");
}

/*
 * With discard=lazy, memory is left to the host if that works: only the first
 * of the backings. The others are dropped, and both can be told apart.
 */
static void test_lazy(const void *opaque)
{
    const uint64_t len = RAM_SIZE - FREE_START;
    const char *backing = opaque;
    const bool works = backing == good_backings[0];
    uint64_t before;
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      ",discard=lazy -object %s,id=mem0,size=128M", backing);

    qfreehint_fill(FREE_START, len, 0xa5);
    before = resident();
    g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("discard-bytes"), ==, len);
    if (works) {
        g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, len);
        g_assert_cmpuint(lazily_freed(), >=, len / 2);
        /* The host does not take what is used again. */
        qfreehint_fill(FREE_START, len, 0x5a);
        g_assert_cmpuint(lazily_freed(), <, GRANULE);
        g_assert_true(qfreehint_is_filled(FREE_START, len, 0x5a));
    } else {
        g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, 0);
        assert_fell(before, len);
        g_assert_true(qfreehint_is_filled(FREE_START, len, 0));
    }
    vm_stop(vm);
}

/* Check what the default means, as shown, and as the driver is told. */
static void assert_auto(VM *vm, bool lazy)
{
    const char *mode = lazy ? "auto" : "drop";
    g_autofree char *line = g_strdup_printf("discard: auto, in effect: %s,",
                                            mode);
    QDict *device = qfreehint_query();

    g_assert_cmpstr(qdict_get_str(device, "discard"), ==, "auto");
    g_assert_cmpstr(qdict_get_str(device, "discard-in-effect"), ==, mode);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, lazy), ==, lazy);
    qobject_unref(device);
    assert_info(line);
    qfreehint_assert_obstacles("driver-not-ready ");
}

static void set_auto(void)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'id': 'fh0',"
                             " 'discard': 'auto' } }");
}

/* By default, what may be wanted back is lazy, or dropped if it cannot be. */
static void test_auto(const void *opaque)
{
    const uint64_t len = RAM_SIZE - FREE_START;
    const char *backing = opaque;
    const bool works = backing == good_backings[0];
    uint64_t before;
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object %s,id=mem0,size=128M", backing);

    assert_auto(vm, works);
    qfreehint_fill(FREE_START, len, 0xa5);
    before = resident();
    if (works) {
        g_assert_cmphex(hint(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, len),
                        ==, VIRTIO_FREEHINT_S_LAZY);
        g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, len);
        g_assert_cmpuint(lazily_freed(), >=, len / 2);
        g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                        VIRTIO_FREEHINT_S_DISCARDED);
        g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, len);
    } else {
        g_assert_cmphex(hint(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, len),
                        ==, VIRTIO_FREEHINT_S_DISCARDED);
        g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, 0);
    }
    assert_fell(before, len);
    g_assert_true(qfreehint_is_filled(FREE_START, len, 0));
    vm_stop(vm);
}

/*
 * If some memory cannot be lazy, "drop" is in effect: the guest does not know
 * which memory that is. What is not discarded at all does not count.
 */
static void test_auto_mixed(void)
{
    const QFreehintRange ranges[] = {
        { FREE_START, GRANULE }, { 5 * GiB, GRANULE },
    };
    uint8_t status[ARRAY_SIZE(ranges)];
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=2,maxmem=1G"
                      " -object memory-backend-memfd,id=mem1,size=128M"
                      " -object memory-backend-memfd,id=mem2,size=128M,"
                      "prealloc=on -device pc-dimm,memdev=mem2"
                      " -device " DEVICE);
    QDict *device = qfreehint_query();

    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, lazy), ==, 1);
    g_assert_cmpstr(qdict_get_str(device, "discard-in-effect"), ==, "auto");
    qobject_unref(device);
    qtest_qmp_device_add(global_qtest, "pc-dimm", "dimm0",
                         "{ 'memdev': 'mem1', 'addr': 5368709120 }");
    device = qfreehint_query();
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, lazy), ==, 0);
    g_assert_cmpstr(qdict_get_str(device, "discard-in-effect"), ==, "drop");
    qobject_unref(device);
    /* If the guest still hints lazily, each status says what was done. */
    qfreehint_hint(&vm->fh, &vm->qs->alloc, VIRTIO_FREEHINT_HINT_F_LAZY, ranges,
                   ARRAY_SIZE(ranges), status);
    g_assert_cmphex(status[0], ==, VIRTIO_FREEHINT_S_LAZY);
    g_assert_cmphex(status[1], ==, VIRTIO_FREEHINT_S_DISCARDED);
    vm_stop(vm);
}

static void assert_lazy(VM *vm, bool lazy, const char *obstacles)
{
    const uint64_t len = RAM_SIZE - FREE_START;
    const uint64_t before = qfreehint_stat("lazy-bytes");

    qfreehint_assert_obstacles(obstacles);
    qfreehint_fill(FREE_START, len, 0xa5);
    g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("lazy-bytes") - before, ==,
                     lazy ? len : 0);
}

#define LAZY_RAM "-M q35,memory-backend=mem0 -nodefaults" \
                 " -object memory-backend-ram,id=mem0,size=128M"
#define LAZY_VM LAZY_RAM "%s -device " DEVICE ",discard=lazy%s"

/* The host's kernel has one of the bugs that were fixed in 2026. */
static void test_lazy_unreliable(void)
{
    VM *vm = vm_start(LAZY_RAM " -device " TESTDEV
                      ",discard=lazy,x-distrust-lazy=on");
    QDict *device = qfreehint_query();

    g_assert_cmpstr(qdict_get_str(device, "lazy-probe"), ==, "unreliable");
    qobject_unref(device);
    assert_lazy(vm, false, "driver-not-ready lazy-unreliable ");
    vm_stop(vm);
}

static void test_auto_unreliable(void)
{
    VM *vm = vm_start(LAZY_RAM " -device " TESTDEV ",x-distrust-lazy=on");

    assert_auto(vm, false);
    assert_discarded(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, GRANULE);
    vm_stop(vm);
}

static void assert_too_late(QDict *rsp)
{
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "freed lazily"));
    qobject_unref(rsp);
}

/*
 * Nothing is lazy while a device writes to pages and leaves them clean. No such
 * device may come if there are lazily freed pages already.
 */
static void test_lazy_vhost_scsi(void)
{
    VM *vm = vm_start("-M pc,memory-backend=mem0 -nodefaults"
                      " -object memory-backend-ram,id=mem0,size=128M"
                      " -device discard-testdev,id=veto0 -device " DEVICE
                      ",discard=lazy");

    qfreehint_set_prop("veto0", "lazy-forbidden", true);
    assert_lazy(vm, false, "driver-not-ready lazy-forbidden ");
    qfreehint_set_prop("veto0", "lazy-forbidden", false);
    assert_lazy(vm, true, "driver-not-ready ");
    assert_too_late(qmp("{ 'execute': 'qom-set', 'arguments': {"
                        " 'path': 'veto0', 'property': 'lazy-forbidden',"
                        " 'value': true } }"));
    if (qtest_has_device("vhost-scsi-pci")) {
        assert_too_late(qmp("{ 'execute': 'device_add', 'arguments': {"
                            " 'driver': 'vhost-scsi-pci',"
                            " 'wwpn': 'naa.5000000000000001' } }"));
    }
    assert_lazy(vm, true, "driver-not-ready ");
    vm_stop(vm);
}

/*
 * Such a device can be plugged until something was freed lazily, even if that
 * could have happened before.
 */
static void test_auto_vhost_scsi(void)
{
    VM *vm = vm_start("-M pc,memory-backend=mem0 -nodefaults"
                      " -object memory-backend-ram,id=mem0,size=128M"
                      " -device discard-testdev,id=veto0 -device " DEVICE);

    assert_auto(vm, true);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    qfreehint_set_prop("veto0", "lazy-forbidden", true);
    assert_auto(vm, false);
    assert_discarded(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, GRANULE);
    qfreehint_set_prop("veto0", "lazy-forbidden", false);
    assert_auto(vm, true);
    g_assert_cmphex(hint(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, GRANULE),
                    ==, VIRTIO_FREEHINT_S_LAZY);
    assert_too_late(qmp("{ 'execute': 'qom-set', 'arguments': {"
                        " 'path': 'veto0', 'property': 'lazy-forbidden',"
                        " 'value': true } }"));
    vm_stop(vm);
}

/* Settings of the host, which are restored */

typedef struct HostSetting {
    const char *path;
    char *value;
} HostSetting;

#define KSM "/sys/kernel/mm/ksm/"
#define THP "/sys/kernel/mm/transparent_hugepage/"

static HostSetting ksm_settings[] = {
    { KSM "run" }, { KSM "pages_to_scan" }, { KSM "sleep_millisecs" }, { }
};

static HostSetting thp_settings[] = {
    { THP "enabled" }, { THP "khugepaged/max_ptes_none" },
    { THP "khugepaged/pages_to_scan" },
    { THP "khugepaged/scan_sleep_millisecs" },
    { THP "khugepaged/alloc_sleep_millisecs" }, { }
};

static bool host_write(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY);
    bool written = fd >= 0 && write(fd, value, strlen(value)) > 0;

    if (fd >= 0) {
        close(fd);
    }
    return written;
}

static void host_restore(void *opaque)
{
    HostSetting *setting;

    for (setting = opaque; setting->path; setting++) {
        if (setting->value) {
            host_write(setting->path, setting->value);
            g_clear_pointer(&setting->value, g_free);
        }
    }
}

/* Whether they can be set. In a list of words, the current one has brackets. */
static bool host_save(HostSetting *settings)
{
    HostSetting *setting;

    for (setting = settings; setting->path; setting++) {
        char *value, *end;

        if (!g_file_get_contents(setting->path, &setting->value, NULL, NULL)) {
            return false;
        }
        value = strchr(setting->value, '[');
        end = value ? strchr(value, ']') : NULL;
        if (end) {
            memmove(setting->value, value + 1, end - value - 1);
            setting->value[end - value - 1] = '\0';
        }
        if (!host_write(setting->path, setting->value)) {
            return false;
        }
    }
    g_test_queue_destroy(host_restore, settings);
    qtest_add_abrt_handler(host_restore, settings);
    return true;
}

static uint64_t ksm_merged_pages(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/ksm_merging_pages", pid);
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return g_ascii_strtoull(text, NULL, 10);
}

/*
 * Other processes share pages with the guest, and must keep them. So memory
 * that may be merged is dropped while KSM is on, or has merged any pages.
 */
static void test_lazy_ksm(void)
{
    const uint64_t len = RAM_SIZE - FREE_START;
    gint64 start = g_get_monotonic_time();
    uint8_t *bystander;
    VM *vm;

    if (!g_file_test("/proc/self/ksm_merging_pages", G_FILE_TEST_EXISTS) ||
        !host_save(ksm_settings)) {
        g_test_skip("KSM cannot be switched on");
        return;
    }
    bystander = mmap(NULL, GRANULE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(bystander != MAP_FAILED);
    memset(bystander, 0xa5, GRANULE);
    g_assert_cmpint(madvise(bystander, GRANULE, MADV_MERGEABLE), ==, 0);

    vm = vm_start(LAZY_VM, "", "");
    qfreehint_fill(FREE_START, len, 0xa5);
    g_assert_true(host_write(KSM "pages_to_scan", "100000"));
    g_assert_true(host_write(KSM "sleep_millisecs", "1"));
    g_assert_true(host_write(KSM "run", "1"));
    while (!ksm_merged_pages(getpid()) ||
           !ksm_merged_pages(qtest_pid(global_qtest))) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, 60 * 1000 * 1000);
        g_usleep(10 * 1000);
    }
    assert_lazy(vm, false, "driver-not-ready lazy-merging ");
    /* No more pages are merged, but merged ones stay so. */
    g_assert_true(host_write(KSM "run", "0"));
    assert_lazy(vm, false, "driver-not-ready lazy-merging ");
    set_auto();
    assert_auto(vm, false);
    assert_discarded(vm, VIRTIO_FREEHINT_HINT_F_LAZY, FREE_START, GRANULE);
    g_assert_true(bystander[0] == 0xa5 &&
                  !memcmp(bystander, bystander + 1, GRANULE - 1));
    vm_stop(vm);

    vm = vm_start(LAZY_VM, ",merge=off", "");
    assert_lazy(vm, true, "driver-not-ready ");
    vm_stop(vm);

    g_assert_true(host_write(KSM "run", "2"));
    vm = vm_start(LAZY_VM, "", "");
    assert_lazy(vm, true, "driver-not-ready ");
    set_auto();
    assert_auto(vm, true);
    vm_stop(vm);
    munmap(bystander, GRANULE);
}

typedef struct File {
    char *path;
    int fd;
} File;

/* A file as large as the machine's RAM, filled where memory will be hinted. */
static File file_create(void)
{
    g_autofree uint8_t *data = g_malloc(GRANULE);
    File file;

    file.fd = g_file_open_tmp("qtest-freehint-XXXXXX", &file.path, NULL);
    g_assert_cmpint(file.fd, >=, 0);
    g_assert_cmpint(ftruncate(file.fd, RAM_SIZE), ==, 0);
    memset(data, 0xa5, GRANULE);
    g_assert_cmpint(pwrite(file.fd, data, GRANULE, FREE_START), ==, GRANULE);
    return file;
}

static bool file_is_filled(const File *file, uint8_t pattern)
{
    g_autofree uint8_t *data = g_malloc(GRANULE);

    g_assert_cmpint(pread(file->fd, data, GRANULE, FREE_START), ==, GRANULE);
    return data[0] == pattern && !memcmp(data, data + 1, GRANULE - 1);
}

/* Remove its name; whoever has it open still has it. */
static void file_unlink(File *file)
{
    g_assert_cmpint(unlink(file->path), ==, 0);
    g_free(file->path);
    file->path = g_strdup_printf("/proc/%d/fd/%d", getpid(), file->fd);
}

static void file_remove(File *file)
{
    unlink(file->path);
    g_free(file->path);
    close(file->fd);
}

/* A named file keeps its content. */
static void test_file(void)
{
    g_autofree char *log = log_path();
    File file = file_create();
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-file,id=mem0,size=128M,"
                      "mem-path=%s,share=on 2>%s", file.path, log);

    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    g_assert_true(file_is_filled(&file, 0xa5));
    assert_obstacle("file-memory", "discard-file-backed=on", 0);
    vm_stop(vm);
    assert_warned("memory 'mem0' is not discarded", 1);
    assert_warned("discard-file-backed=on", 1);
    remove_log();
    file_remove(&file);
}

/* The operator allows a named file to be discarded; zeros are not promised. */
static void test_file_allowed(const void *opaque)
{
    const char *options = opaque;
    File file = file_create();
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults"
                      " -object memory-backend-file,id=mem0,size=128M,"
                      "mem-path=%s,share=on%s", file.path, options);

    assert_refused(vm, VIRTIO_FREEHINT_HINT_F_ZERO, FREE_START, GRANULE,
                   VIRTIO_FREEHINT_S_BACKING);
    qfreehint_assert_obstacles("driver-not-ready ");
    g_assert_true(file_is_filled(&file, 0xa5));
    assert_discarded(vm, 0, FREE_START, GRANULE);
    g_assert_true(file_is_filled(&file, 0));
    vm_stop(vm);
    file_remove(&file);
}

/* The operator allows it while the VM runs: the guest hints again. */
static void test_file_allowed_later(void)
{
    File file = file_create();
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-file,id=mem0,size=128M,"
                      "mem-path=%s,share=on", file.path);
    uint32_t epoch;

    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    qfreehint_set_prop("/objects/mem0", "discard-data", true);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    await_epoch_other_than(vm, epoch);
    qfreehint_assert_obstacles("driver-not-ready ");
    vm_stop(vm);
    file_remove(&file);
}

/*
 * The VM's own copies are discarded, so the template shows again. That is never
 * changed, whatever the operator allows, as other clones may use it. It is not
 * zero.
 */
static void test_file_private(const void *opaque)
{
    const char *options = opaque;
    const uint64_t len = RAM_SIZE - FREE_START;
    File file = file_create();
    uint64_t before;
    VM *vm;

    if (strstr(options, "unlinked")) {
        file_unlink(&file);
        options = " -device " DEVICE;
    }
    vm = vm_start("-M q35,memory-backend=mem0 -nodefaults"
                  " -object memory-backend-file,id=mem0,size=128M,"
                  "mem-path=%s,share=off%s", file.path, options);
    qfreehint_fill(FREE_START, len, 0x5a);
    before = resident();
    g_assert_cmphex(hint(vm, VIRTIO_FREEHINT_HINT_F_ZERO, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_BACKING);
    g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    assert_fell(before, len);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
    g_assert_true(file_is_filled(&file, 0xa5));
    vm_stop(vm);
    file_remove(&file);
}

/* Nobody else can open a file that QEMU has created and unlinked. */
static void test_file_unlinked(void)
{
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-file,id=mem0,size=128M,"
                      "mem-path=%s,share=on", g_get_tmp_dir());

    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
}

static void test_prealloc(void)
{
    g_autofree char *log = log_path();
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-ram,id=mem0,size=128M,"
                      "prealloc=on 2>%s", log);

    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    assert_obstacle("reserved-memory", "discard-reserved=on", 0);
    vm_stop(vm);
    assert_warned("memory 'mem0' is not discarded", 1);
    assert_warned("discard-reserved=on", 1);
    remove_log();

    vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                  ",discard-reserved=on"
                  " -object memory-backend-ram,id=mem0,size=128M,prealloc=on");
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
}

/* The back end's setting at the time of the hint counts. */
static void test_prealloc_later(void)
{
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-ram,id=mem0,size=128M");

    assert_discarded(vm, 0, FREE_START, GRANULE);
    qfreehint_set_prop("/objects/mem0", "prealloc", true);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_BACKING);
    assert_obstacle("reserved-memory", "discard-reserved=on", 0);
    vm_stop(vm);
}

/* "prealloc" populates discarded memory; it has to be hinted once more. */
static void test_prealloc_allowed(void)
{
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      ",discard-reserved=on"
                      " -object memory-backend-ram,id=mem0,size=128M");
    uint32_t epoch;

    assert_discarded(vm, 0, FREE_START, GRANULE);
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    qfreehint_set_prop("/objects/mem0", "prealloc", true);
    await_epoch_other_than(vm, epoch);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
}

/*
 * A file whose mapping can be written, but in which the host can no longer
 * punch holes. The device waits longer each time before it tries again, unless
 * the operator wants it to try at once.
 */
static void test_host_failure(void)
{
    const QFreehintRange ranges[] = {
        { FREE_START, GRANULE }, { FREE_START + 2 * GRANULE, GRANULE },
    };
    g_autofree char *path = NULL, *log = log_path();
    int fd = memfd_create("qtest-freehint", MFD_ALLOW_SEALING);
    uint8_t status[ARRAY_SIZE(ranges)];
    uint32_t epoch;
    VM *vm;

    if (fd < 0) {
        g_test_skip("no memfd");
        return;
    }
    g_assert_cmpint(ftruncate(fd, RAM_SIZE), ==, 0);
    path = g_strdup_printf("/proc/%d/fd/%d", getpid(), fd);
    vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                  ",discard-file-backed=on"
                  " -object memory-backend-file,id=mem0,size=128M,share=on,"
                  "mem-path=%s 2>%s", path, log);

    assert_discarded(vm, 0, FREE_START, GRANULE);
    g_assert_cmpint(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), ==, 0);
    qfreehint_assert_obstacles("driver-not-ready ");
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 2);
    assert_obstacle("host-failure", "it is tried again", EPERM);
    assert_info("    mem0, 134217728 bytes, 1 times: Operation not permitted");
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    await_epoch_other_than(vm, epoch);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 3);
    qfreehint_set_enabled(false);
    qfreehint_set_enabled(true);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 4);
    g_assert_cmpuint(qfreehint_count("failed", "ranges"), ==, 4);
    /* Of many ranges, one is tried. */
    qfreehint_set_enabled(false);
    qfreehint_set_enabled(true);
    qfreehint_hint(&vm->fh, &vm->qs->alloc, 0, ranges, ARRAY_SIZE(ranges),
                   status);
    g_assert_cmphex(status[0], ==, VIRTIO_FREEHINT_S_FAILED);
    g_assert_cmphex(status[1], ==, VIRTIO_FREEHINT_S_FAILED);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 5);
    vm_stop(vm);
    /* One warning for each try that the operator asked for. */
    assert_warned("discarding from memory", 3);
    assert_warned("is not discarded", 0);
    remove_log();
    close(fd);
}

/* Each of two memories is tried again at its own time, not only the first. */
static void test_host_failure_of_two(void)
{
    const uint64_t second = 96 * MiB;
    g_autofree char *log = log_path();
    char *path[2];
    uint32_t epoch;
    int fd[2], i;
    VM *vm;

    for (i = 0; i < 2; i++) {
        fd[i] = memfd_create("qtest-freehint", MFD_ALLOW_SEALING);
        g_assert_cmpint(ftruncate(fd[i], i ? 32 * MiB : second), ==, 0);
        path[i] = g_strdup_printf("/proc/%d/fd/%d", getpid(), fd[i]);
    }
    vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                  ",discard-file-backed=on"
                  " -object memory-backend-file,id=mem0,size=96M,share=on,"
                  "mem-path=%s"
                  " -object memory-backend-file,id=mem1,size=32M,share=on,"
                  "mem-path=%s"
                  " -numa node,memdev=mem0 -numa node,memdev=mem1 2>%s",
                  path[0], path[1], log);
    for (i = 0; i < 2; i++) {
        g_assert_cmpint(fcntl(fd[i], F_ADD_SEALS, F_SEAL_FUTURE_WRITE), ==, 0);
    }
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    /* The two must not become due together. */
    g_usleep(50 * 1000);
    assert_refused(vm, 0, second, GRANULE, VIRTIO_FREEHINT_S_FAILED);
    for (i = 0; i < 2; i++) {
        await_epoch_other_than(vm, epoch);
        epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    }
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 2);
    vm_stop(vm);
    remove_log();
    for (i = 0; i < 2; i++) {
        g_free(path[i]);
        close(fd[i]);
    }
}

/* The bits of the fault "host-calls". */
enum {
    CALL_PROCESS_MADVISE = 1 << 0,
    CALL_FREE = 1 << 1,
    CALL_DONTNEED = 1 << 2,
    CALL_REMOVE = 1 << 3,
    CALL_FALLOCATE = 1 << 4,
    CALL_ANY = (1 << 5) - 1,
};

/*
 * A backing, and the calls that give its memory back: one of @enough is enough,
 * and all of @needed are needed.
 */
typedef struct FailingHost {
    const char *name;
    const char *backing;
    uint32_t enough;
    uint32_t needed;
} FailingHost;

static const FailingHost failing_hosts[] = {
    { "ram", "memory-backend-ram", CALL_PROCESS_MADVISE | CALL_DONTNEED },
    { "lazy", "memory-backend-ram",
      CALL_PROCESS_MADVISE | CALL_FREE | CALL_DONTNEED },
    { "ram-shared", "memory-backend-ram,share=on", 0,
      CALL_FALLOCATE | CALL_DONTNEED },
    { "memfd-shared", "memory-backend-memfd,share=on", 0,
      CALL_FALLOCATE | CALL_DONTNEED },
    { "memfd-private", "memory-backend-memfd,share=off", 0,
      CALL_FALLOCATE | CALL_DONTNEED },
    { "file-shared", "memory-backend-file,share=on", 0,
      CALL_FALLOCATE | CALL_DONTNEED },
    { "file-private", "memory-backend-file,share=off",
      CALL_PROCESS_MADVISE | CALL_DONTNEED },
};

/* The calls that fail: each alone, and those that a fallback replaces. */
static const uint32_t failing_calls[] = {
    CALL_PROCESS_MADVISE, CALL_FREE, CALL_DONTNEED, CALL_REMOVE, CALL_FALLOCATE,
    CALL_PROCESS_MADVISE | CALL_FREE,
    CALL_PROCESS_MADVISE | CALL_DONTNEED,
    CALL_ANY,
};

static const int host_errnos[] = {
    EPERM, EINTR, EIO, EAGAIN, ENOMEM, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP,
};

static void set_host_errno(int host_errno, uint32_t calls)
{
    if (host_errno) {
        qtest_qmp_assert_success(global_qtest, "{ 'execute': 'qom-set',"
                                 " 'arguments': { 'path': 'fh0',"
                                 " 'property': 'x-faults', 'value': {"
                                 " 'host-errno': %d, 'host-calls': %u } } }",
                                 host_errno, calls);
    } else {
        qtest_qmp_assert_success(global_qtest, "{ 'execute': 'qom-set',"
                                 " 'arguments': { 'path': 'fh0',"
                                 " 'property': 'x-faults', 'value': {} } }");
    }
}

/*
 * Send one hint of two ranges, which get this status. A host that fails may
 * have freed a part, and may keep lazily freed memory for a while.
 */
static void hint_two(VM *vm, uint8_t status, bool is_gone)
{
    const QFreehintRange ranges[] = {
        { FREE_START, GRANULE }, { FREE_START + 2 * GRANULE, GRANULE },
    };
    uint8_t got[ARRAY_SIZE(ranges)];
    int i;

    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        qfreehint_fill(ranges[i].addr, GRANULE, 0xa5);
    }
    qfreehint_hint(&vm->fh, &vm->qs->alloc, 0, ranges, ARRAY_SIZE(ranges), got);
    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        g_assert_cmphex(got[i], ==, status);
        g_assert_true(qfreehint_is_filled(ranges[i].addr, GRANULE, 0) ||
                      (!is_gone && qfreehint_is_filled(ranges[i].addr, GRANULE,
                                                       0xa5)));
    }
}

/*
 * Whatever the error, memory is discarded by another call, or an obstacle says
 * why it is not. It is discarded once the host no longer fails.
 */
static void test_host_errno(const void *opaque)
{
    const FailingHost *host = opaque;
    const bool is_lazy = !strcmp(host->name, "lazy");
    const uint32_t other = has_process_madvise() ? 0 : CALL_PROCESS_MADVISE;
    g_autofree char *log = log_path(), *path = NULL;
    VM *vm;
    int i, j;

    if (g_str_has_prefix(host->name, "file")) {
        const int fd = g_file_open_tmp("qtest-freehint-XXXXXX", &path, NULL);

        g_assert_cmpint(ftruncate(fd, RAM_SIZE), ==, 0);
        close(fd);
    }
    vm = vm_start("-M q35,memory-backend=mem0,mem-merge=off -nodefaults"
                  " -device " TESTDEV ",discard-file-backed=on%s"
                  " -object %s,id=mem0,size=128M%s%s 2>%s",
                  is_lazy ? ",discard=lazy" : "", host->backing,
                  path ? ",mem-path=" : "", path ?: "", log);
    for (i = 0; i < ARRAY_SIZE(host_errnos); i++) {
        for (j = 0; j < ARRAY_SIZE(failing_calls); j++) {
            const uint32_t calls = failing_calls[j];
            const bool fails = host->needed & calls ||
                (host->enough && !(host->enough & ~(calls | other)));

            set_host_errno(host_errnos[i], calls);
            hint_two(vm, fails ? VIRTIO_FREEHINT_S_FAILED :
                                 VIRTIO_FREEHINT_S_DISCARDED,
                     !fails && !is_lazy);
            set_host_errno(0, 0);
            if (fails) {
                assert_obstacle("host-failure", "it is tried again",
                                host_errnos[i]);
                qfreehint_set_enabled(false);
                qfreehint_set_enabled(true);
                hint_two(vm, VIRTIO_FREEHINT_S_DISCARDED, !is_lazy);
            }
            qfreehint_assert_obstacles("driver-not-ready ");
        }
    }
    vm_stop(vm);
    remove_log();
    if (path) {
        unlink(path);
    }
}

static bool file_set_append_only(const File *file, bool append_only)
{
    int flags;

    if (ioctl(file->fd, FS_IOC_GETFLAGS, &flags)) {
        return false;
    }
    flags = append_only ? flags | FS_APPEND_FL : flags & ~FS_APPEND_FL;
    return !ioctl(file->fd, FS_IOC_SETFLAGS, &flags);
}

/* Memory that failed once is discarded when the host recovers. */
static void test_host_recovers(void)
{
    g_autofree char *log = log_path();
    File file = file_create();
    uint32_t epoch;
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      ",discard-file-backed=on"
                      " -object memory-backend-file,id=mem0,size=128M,share=on,"
                      "mem-path=%s 2>%s", file.path, log);

    if (file_set_append_only(&file, true)) {
        epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
        g_assert_cmphex(hint(vm, 0, FREE_START, GRANULE), ==,
                        VIRTIO_FREEHINT_S_FAILED);
        assert_obstacle("host-failure", "it is tried again", EPERM);
        g_assert_true(file_set_append_only(&file, false));
        await_epoch_other_than(vm, epoch);
        assert_discarded(vm, 0, FREE_START, GRANULE);
        qfreehint_assert_obstacles("driver-not-ready ");
    } else {
        g_test_skip("no file that cannot be punched for a while");
    }
    vm_stop(vm);
    remove_log();
    file_remove(&file);
}

/* Scattered granules: many ranges of one hint */

#define SCATTERED 512
#define SMALL_GRANULE (64 * KiB)

/* A job has 16 MiB, or less if a turn ends before. */
#define MOST_CALLS 3

/* Hint every second granule, or all of them. */
static void hint_many(VM *vm, uint32_t nranges, uint64_t step)
{
    g_autofree QFreehintRange *ranges = g_new(QFreehintRange, nranges);
    g_autofree uint8_t *status = g_new0(uint8_t, nranges);
    uint32_t i;

    for (i = 0; i < nranges; i++) {
        ranges[i].addr = FREE_START + i * step;
        ranges[i].len = SMALL_GRANULE;
    }
    qfreehint_fill(FREE_START, nranges * step, 0xa5);
    qfreehint_hint(&vm->fh, &vm->qs->alloc, 0, ranges, nranges, status);
    for (i = 0; i < nranges; i++) {
        g_assert_cmphex(status[i], ==, VIRTIO_FREEHINT_S_DISCARDED);
    }
}

/* The ranges are zero, and the memory between them has its content. */
static void assert_many_zero(uint32_t nranges, uint64_t step)
{
    uint32_t i;

    for (i = 0; i < nranges; i++) {
        const uint64_t addr = FREE_START + i * step;

        g_assert_true(qfreehint_is_filled(addr, SMALL_GRANULE, 0));
        g_assert_true(step == SMALL_GRANULE ||
                      qfreehint_is_filled(addr + SMALL_GRANULE,
                                          step - SMALL_GRANULE, 0xa5));
    }
}

/* There are as few calls as jobs, if the host supports that. */
static void test_scattered(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                      ",x-granule=64K");

    hint_many(vm, SCATTERED, 2 * SMALL_GRANULE);
    assert_many_zero(SCATTERED, 2 * SMALL_GRANULE);
    g_test_message("%d granules: %" PRIu64 " calls", SCATTERED,
                   qfreehint_stat("discard-calls"));
    if (has_process_madvise()) {
        g_assert_cmpuint(qfreehint_stat("discard-calls"), <=, MOST_CALLS);
    }
    g_assert_cmpuint(qfreehint_stat("discard-pieces"), ==, SCATTERED);
    vm_stop(vm);
}

/* Adjacent ranges are one piece. */
static void test_touching(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                      ",x-granule=64K");

    hint_many(vm, 4, SMALL_GRANULE);
    assert_many_zero(4, SMALL_GRANULE);
    if (has_process_madvise()) {
        g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 1);
        g_assert_cmpuint(qfreehint_stat("discard-pieces"), ==, 1);
    }
    vm_stop(vm);
}

/* A host that takes one piece per call; the result is the same. */
static void test_scattered_one_by_one(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M -device " TESTDEV
                      ",x-granule=64K,x-single-pieces=on");

    hint_many(vm, SCATTERED, 2 * SMALL_GRANULE);
    assert_many_zero(SCATTERED, 2 * SMALL_GRANULE);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, SCATTERED);
    g_assert_cmpuint(qfreehint_stat("discard-pieces"), ==, SCATTERED);
    vm_stop(vm);
}

/* What is left to the host to take goes in one call as well. */
static void test_scattered_lazily(void)
{
    VM *vm = vm_start(LAZY_VM, "", ",x-granule=64K");

    hint_many(vm, SCATTERED, 2 * SMALL_GRANULE);
    g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==,
                     SCATTERED * SMALL_GRANULE);
    if (has_process_madvise()) {
        g_assert_cmpuint(qfreehint_stat("lazy-calls"), <=, MOST_CALLS);
    }
    vm_stop(vm);
}

/* A bad range does not affect its neighbours, or the order of statuses. */
static void test_scattered_and_wrong(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                      ",x-granule=64K");
    const QFreehintRange ranges[] = {
        { FREE_START, SMALL_GRANULE },
        { FREE_START + 2 * SMALL_GRANULE, SMALL_GRANULE },
        { FREE_START + 4 * SMALL_GRANULE, SMALL_GRANULE + 1 },
        { FREE_START + 6 * SMALL_GRANULE, SMALL_GRANULE },
        { RAM_SIZE - SMALL_GRANULE, 2 * SMALL_GRANULE },
        { FREE_START + 8 * SMALL_GRANULE, SMALL_GRANULE },
    };
    static const uint8_t expected[] = {
        VIRTIO_FREEHINT_S_DISCARDED,
        VIRTIO_FREEHINT_S_DISCARDED,
        VIRTIO_FREEHINT_S_MISALIGNED,
        VIRTIO_FREEHINT_S_DISCARDED,
        VIRTIO_FREEHINT_S_UNMAPPED,
        VIRTIO_FREEHINT_S_DISCARDED,
    };
    uint8_t status[ARRAY_SIZE(ranges)];
    int i;

    qfreehint_fill(FREE_START, 10 * SMALL_GRANULE, 0xa5);
    qfreehint_fill(RAM_SIZE - SMALL_GRANULE, SMALL_GRANULE, 0xa5);
    qfreehint_hint(&vm->fh, &vm->qs->alloc, 0, ranges, ARRAY_SIZE(ranges),
                   status);
    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        g_assert_cmphex(status[i], ==, expected[i]);
        g_assert_true(qfreehint_is_filled(ranges[i].addr, SMALL_GRANULE,
                                          expected[i] ==
                                          VIRTIO_FREEHINT_S_DISCARDED ? 0 :
                                                                        0xa5));
    }
    vm_stop(vm);
}

/*
 * The host's khugepaged makes a huge page of small ones if no more than
 * max_ptes_none of them are absent. It fills those in, hinted or not.
 */

/* This many granules, with as many between them; then whole huge pages. */
#define NUM_HOLES 256
#define HOLES (NUM_HOLES * SMALL_GRANULE)
#define WHOLE (FREE_START + 2 * HOLES)

/* With "madvise", QEMU's memory has huge pages, as QEMU asks for them. */
static bool begin_collapsing(void)
{
    return host_save(thp_settings) &&
           host_write(THP "enabled", "madvise") &&
           host_write(THP "khugepaged/pages_to_scan", "1000000") &&
           host_write(THP "khugepaged/scan_sleep_millisecs", "10") &&
           host_write(THP "khugepaged/alloc_sleep_millisecs", "10");
}

static uint64_t full_scans(void)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(THP "khugepaged/full_scans", &text, NULL,
                                      NULL));
    return g_ascii_strtoull(text, NULL, 10);
}

/* Wait until khugepaged, with this setting, has scanned everything. */
static void collapse(const char *max_ptes_none)
{
    gint64 start = g_get_monotonic_time();
    uint64_t end;

    g_assert_true(host_write(THP "khugepaged/max_ptes_none", max_ptes_none));
    end = full_scans() + 3;
    while (full_scans() < end) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, 60 * 1000 * 1000);
        g_usleep(10 * 1000);
    }
}

static void assert_resident(uint64_t bytes)
{
    g_assert_cmpuint(qfreehint_ram_resident() + GRANULE - bytes, <=,
                     2 * GRANULE);
}

/*
 * Whole huge pages stay discarded. Smaller pieces come back, full of zeros,
 * unless the host's administrator has changed max_ptes_none.
 */
static void test_collapse(void)
{
    uint64_t low;
    VM *vm;

    if (!begin_collapsing()) {
        g_test_skip("khugepaged cannot be told what to do");
        return;
    }
    g_assert_true(host_write(THP "khugepaged/max_ptes_none", "0"));
    vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                  ",x-granule=64K");
    qfreehint_fill(WHOLE, RAM_SIZE - WHOLE, 0xa5);
    g_assert_cmphex(hint(vm, 0, WHOLE, RAM_SIZE - WHOLE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    low = qfreehint_ram_resident() + HOLES;
    hint_many(vm, NUM_HOLES, 2 * SMALL_GRANULE);
    assert_resident(low);
    collapse("0");
    assert_resident(low);
    collapse("511");
    assert_resident(low + HOLES);
    assert_many_zero(NUM_HOLES, 2 * SMALL_GRANULE);
    g_assert_true(qfreehint_is_filled(WHOLE, RAM_SIZE - WHOLE, 0));
    vm_stop(vm);
}

/*
 * What was freed lazily is still there. Whatever the setting, khugepaged may
 * make pieces into huge pages, which the host does not take; it leaves whole
 * huge pages alone. Nothing is lost, and pieces can be hinted again.
 */
static void test_collapse_lazy(void)
{
    uint64_t before, after;
    uint32_t i;
    VM *vm;

    if (!begin_collapsing()) {
        g_test_skip("khugepaged cannot be told what to do");
        return;
    }
    vm = vm_start(LAZY_VM, "", ",x-granule=64K");
    qfreehint_fill(WHOLE, RAM_SIZE - WHOLE, 0xa5);
    g_assert_cmphex(hint(vm, 0, WHOLE, RAM_SIZE - WHOLE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    hint_many(vm, NUM_HOLES, 2 * SMALL_GRANULE);
    g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==,
                     RAM_SIZE - WHOLE + HOLES);
    /* One piece is used again. */
    qfreehint_fill(FREE_START, SMALL_GRANULE, 0x5a);
    before = lazily_freed();
    collapse("0");
    after = lazily_freed();
    g_test_message("free: %" PRIu64 " KiB of whole huge pages, %" PRIu64
                   " KiB with pieces; %" PRIu64 " KiB later",
                   (RAM_SIZE - WHOLE) / KiB, before / KiB, after / KiB);
    g_assert_cmpuint(after, >=, (RAM_SIZE - WHOLE) / 2);
    g_assert_true(qfreehint_is_filled(FREE_START, SMALL_GRANULE, 0x5a));
    for (i = 0; i < NUM_HOLES; i++) {
        const uint64_t addr = FREE_START + 2 * i * SMALL_GRANULE;

        g_assert_true(!i || qfreehint_is_filled(addr, SMALL_GRANULE, 0xa5) ||
                      qfreehint_is_filled(addr, SMALL_GRANULE, 0));
        g_assert_true(qfreehint_is_filled(addr + SMALL_GRANULE, SMALL_GRANULE,
                                          0xa5));
    }
    hint_many(vm, NUM_HOLES, 2 * SMALL_GRANULE);
    g_assert_cmpuint(lazily_freed(), >=, (RAM_SIZE - WHOLE + HOLES) / 2);
    vm_stop(vm);
}

/* A warning comes first if the host may not have RAM for the guest again. */

static void test_small_pool(void)
{
    g_autofree char *log = log_path();
    VM *vm = vm_start("-M q35 -nodefaults"
                      " -object memory-backend-memfd,id=mem1,size=1G,"
                      "reserve=off,hugetlb=on,hugetlbsize=2M"
                      " -m 128M,slots=1,maxmem=2G"
                      " -device pc-dimm,memdev=mem1 -device " DEVICE
                      ",discard-reserved=on 2>%s", log);
    const bool small = pool_pages() < 512;

    vm_stop(vm);
    assert_warned("memory 'mem1', with what else is behind it, may need 1024"
                  " MiB", small);
    remove_log();
}

/* Other files, and memory that is plugged later, count as well. */
static void test_small_file_system(void)
{
    g_autofree char *folder = g_dir_make_tmp("qtest-freehint-XXXXXX", NULL);
    g_autofree char *other = g_build_filename(folder, "other", NULL);
    g_autofree char *log = log_path(), *filling = g_malloc0(32 * MiB);
    VM *vm;

    if (mount("tmpfs", folder, "tmpfs", 0, "size=192M")) {
        g_test_skip("nothing can be mounted");
        rmdir(folder);
        return;
    }
    vm = vm_start("-M q35,memory-backend=mem0 -nodefaults"
                  " -m 128M,slots=1,maxmem=1G"
                  " -object memory-backend-file,id=mem0,size=128M,share=on,"
                  "mem-path=%s -device " DEVICE " 2>%s", folder, log);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    assert_warned("behind it", 0);
    g_assert_true(g_file_set_contents(other, filling, 32 * MiB, NULL));
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'object-add',"
                             " 'arguments': { 'qom-type':"
                             " 'memory-backend-file', 'id': 'mem1',"
                             " 'size': %u, 'share': true, 'mem-path': %s } }",
                             (unsigned int)RAM_SIZE, folder);
    qtest_qmp_device_add(global_qtest, "pc-dimm", "dimm0",
                         "{ 'memdev': 'mem1' }");
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
    assert_warned("behind it", 1);
    assert_warned("memory 'mem1', with what else is behind it, may need 256"
                  " MiB, and can have 160 MiB", 1);
    remove_log();
    unlink(other);
    g_assert_cmpint(umount(folder), ==, 0);
    rmdir(folder);
}

/*
 * From here on, only this process and QEMU see what is mounted. Returns a file
 * descriptor to go back with, or -1 without the privilege.
 */
static int begin_own_mounts(void)
{
    int fd = open("/proc/self/ns/mnt", O_RDONLY);

    if (unshare(CLONE_NEWNS)) {
        close(fd);
        return -1;
    }
    g_assert_cmpint(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), ==, 0);
    return fd;
}

/* Going back changes to the root directory, too. */
static void end_own_mounts(int fd)
{
    g_autofree char *folder = g_get_current_dir();

    g_assert_cmpint(setns(fd, CLONE_NEWNS), ==, 0);
    g_assert_cmpint(chdir(folder), ==, 0);
    close(fd);
}

/* The granule is as large as the host's huge pages, so none is split. */
static void test_granule_of_host(void)
{
    static const struct {
        const char *huge_page;
        uint64_t granule;
    } hosts[] = {
        { "65536\n", 64 * KiB },
        { "33554432\n", 32 * MiB },
        /* Guests rarely have that much free memory in one piece. */
        { "1073741824\n", 512 * MiB },
        /* The host does not say. */
        { "\n", 2 * MiB },
    };
    const char *path = THP "hpage_pmd_size";
    const int mounts = begin_own_mounts();
    g_autofree char *text = NULL;
    int i;

    if (mounts < 0 || !g_file_get_contents(path, &text, NULL, NULL)) {
        g_test_skip("this host's huge pages cannot be made to look different");
        return;
    }
    for (i = 0; i < ARRAY_SIZE(hosts); i++) {
        g_autofree char *other = log_path();
        VM *vm;

        g_assert_true(g_file_set_contents(other, hosts[i].huge_page, -1,
                                          NULL));
        g_assert_cmpint(mount(other, path, NULL, MS_BIND, NULL), ==, 0);
        vm = vm_start("-M q35 -nodefaults -device " DEVICE);
        g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, granule), ==,
                         hosts[i].granule);
        vm_stop(vm);
        g_assert_cmpint(umount(path), ==, 0);
        unlink(other);
    }
    end_own_mounts(mounts);
}

/* Reads by others make the host populate discarded memory */

/* Send gauges in which the guest takes this much for discarded. */
static void say_hinted(VM *vm, uint64_t bytes)
{
    const struct virtio_freehint_gauges gauges = {
        .hinted = cpu_to_le64(bytes),
    };

    g_assert_cmpuint(qfreehint_send(&vm->fh, &vm->qs->alloc,
                                    VIRTIO_FREEHINT_T_GAUGES, &gauges,
                                    sizeof(gauges)), ==,
                     VIRTIO_FREEHINT_R_DONE);
}

static uint64_t populated_hinted(void)
{
    QDict *device = qfreehint_query();
    uint64_t bytes = qdict_get_int(device, "populated-hinted");

    qobject_unref(device);
    return bytes;
}

static void test_read(void)
{
    static const char *const commands[] = {
        "pmemsave", "memsave", "dump-guest-memory",
    };
    const uint64_t len = RAM_SIZE - FREE_START;
    g_autofree char *path = g_strdup_printf("%s/qtest-freehint-%d.dump",
                                            g_get_tmp_dir(), getpid());
    uint32_t epoch;
    int i;
    VM *vm = vm_start("-M q35,memory-backend=mem0 -nodefaults -device " DEVICE
                      " -object memory-backend-memfd,id=mem0,size=128M,"
                      "share=on");

    for (i = 0; i < ARRAY_SIZE(commands); i++) {
        epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
        assert_discarded(vm, 0, FREE_START, len);
        /* The memory that was read is populated again. */
        g_assert_cmphex(hint(vm, 0, FREE_START, len), ==,
                        VIRTIO_FREEHINT_S_DISCARDED);
        say_hinted(vm, len);
        g_assert_cmpuint(populated_hinted(), ==, 0);
        g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, rehint_epoch), ==, epoch);
        if (!strcmp(commands[i], "dump-guest-memory")) {
            g_autofree char *uri = g_strdup_printf("file:%s", path);

            qtest_qmp_assert_success(global_qtest, "{ 'execute': %s,"
                                     " 'arguments': { 'paging': false,"
                                     " 'protocol': %s } }", commands[i], uri);
        } else {
            qtest_qmp_assert_success(global_qtest, "{ 'execute': %s,"
                                     " 'arguments': { 'val': 0, 'size': %"
                                     PRIu64 ", 'filename': %s } }",
                                     commands[i], (uint64_t)RAM_SIZE, path);
        }
        await_epoch_other_than(vm, epoch);
        g_assert_cmpuint(populated_hinted(), >=, len - GRANULE);
        assert_info("  of what is hinted, populated all the same: ");
        unlink(path);
    }
    vm_stop(vm);
}

/* A range over two nodes is discarded unless one of them must not be. */
static void test_numa(void)
{
    const uint64_t border = 96 * MiB;
    File file;
    VM *vm = vm_start("-M q35 -nodefaults -m 128M -device " DEVICE
                      " -object memory-backend-ram,id=mem0,size=96M"
                      " -object memory-backend-memfd,id=mem1,size=32M"
                      " -numa node,memdev=mem0 -numa node,memdev=mem1");

    assert_discarded(vm, 0, border - GRANULE, 2 * GRANULE);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 2);
    qfreehint_assert_obstacles("driver-not-ready ");
    vm_stop(vm);

    file = file_create();
    vm = vm_start("-M q35 -nodefaults -m 224M -device " DEVICE
                  " -object memory-backend-ram,id=mem0,size=96M"
                  " -object memory-backend-file,id=mem1,size=128M,share=on,"
                  "mem-path=%s"
                  " -numa node,memdev=mem0 -numa node,memdev=mem1", file.path);
    assert_refused(vm, 0, border - GRANULE, 2 * GRANULE,
                   VIRTIO_FREEHINT_S_BACKING);
    assert_discarded(vm, 0, border - GRANULE, GRANULE);
    vm_stop(vm);
    file_remove(&file);
}

static void test_granule(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE ",x-granule=64K");

    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, granule), ==, 64 * KiB);
    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    g_assert_cmphex(hint(vm, 0, FREE_START + 64 * KiB, 64 * KiB), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, 64 * KiB, 0xa5));
    g_assert_true(qfreehint_is_filled(FREE_START + 64 * KiB, 64 * KiB, 0));
    g_assert_true(qfreehint_is_filled(FREE_START + 128 * KiB, 64 * KiB, 0xa5));
    g_assert_cmphex(hint(vm, 0, FREE_START + 4096, 64 * KiB), ==,
                    VIRTIO_FREEHINT_S_MISALIGNED);
    vm_stop(vm);
}

/* Memory that is not the machine's own RAM */

static uint64_t get_address(const char *id, const char *prop)
{
    QDict *rsp = qmp("{ 'execute': 'qom-get',"
                     " 'arguments': { 'path': %s, 'property': %s } }", id,
                     prop);
    uint64_t addr = qdict_get_int(rsp, "return");

    qobject_unref(rsp);
    return addr;
}

static void test_dimm(void)
{
    VM *vm = vm_start("-M q35,nvdimm=on -nodefaults -m 128M,slots=4,maxmem=1G"
                      " -device " DEVICE
                      " -object memory-backend-ram,id=mem1,size=64M"
                      " -device pc-dimm,id=dimm0,memdev=mem1"
                      " -object memory-backend-ram,id=mem2,size=64M"
                      " -device nvdimm,id=nvdimm0,memdev=mem2");

    assert_discarded(vm, 0, get_address("dimm0", "addr"), GRANULE);
    assert_refused(vm, 0, get_address("nvdimm0", "addr"), GRANULE,
                   VIRTIO_FREEHINT_S_EXCLUDED);
    vm_stop(vm);
}

/* A DIMM that is plugged later is known at once. */
static void test_dimm_hotplug(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=4,maxmem=1G"
                      " -device " DEVICE
                      " -object memory-backend-ram,id=mem1,size=64M");
    gint64 start = g_get_monotonic_time();
    uint32_t epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    uint64_t addr = 4 * GiB;

    g_assert_cmphex(hint(vm, 0, addr, GRANULE), ==,
                    VIRTIO_FREEHINT_S_UNMAPPED);
    qtest_qmp_device_add(global_qtest, "pc-dimm", "dimm0",
                         "{ 'memdev': 'mem1', 'addr': %" PRId64 " }",
                         (int64_t)addr);
    /*
     * What was refused before may be RAM by now; any hint makes the device
     * look.
     */
    g_assert_cmphex(hint(vm, 0, 1 * TiB, GRANULE), ==,
                    VIRTIO_FREEHINT_S_UNMAPPED);
    while (QFREEHINT_CONFIG(&vm->fh, rehint_epoch) == epoch) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
    assert_discarded(vm, 0, addr, GRANULE);
    vm_stop(vm);
}

static void plug_dimm(uint64_t addr, bool prealloc)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'object-add',"
                             " 'arguments': { 'qom-type':"
                             " 'memory-backend-ram', 'id': 'mem1',"
                             " 'size': 4194304, 'prealloc': %i } }", prealloc);
    qtest_qmp_device_add(global_qtest, "pc-dimm", "dimm0",
                         "{ 'memdev': 'mem1', 'addr': %" PRId64 " }",
                         (int64_t)addr);
}

/* The guest ejects the DIMM in slot 0. */
static void eject_dimm(void)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'device_del',"
                             " 'arguments': { 'id': 'dimm0' } }");
    qtest_outl(global_qtest, ACPI_MEMORY_HOTPLUG_BASE, 0);
    qtest_outb(global_qtest, ACPI_MEMORY_HOTPLUG_BASE + 0x14, 1 << 3);
}

static void remove_dimm(void)
{
    qtest_qmp_eventwait(global_qtest, "DEVICE_DELETED");
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'object-del',"
                             " 'arguments': { 'id': 'mem1' } }");
    /* Wait for RCU to free it. */
    g_usleep(200 * 1000);
}

/* After an eject, the DIMM's memory may be used for something else at once. */
static void test_dimm_drained(void)
{
    const uint64_t addr = 4 * GiB;
    const QFreehintRange range = { addr, GRANULE };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    QFreehintHint slow;
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=1,maxmem=1G"
                      " -device " TESTDEV ",x-job-delay-ms=3000");

    plug_dimm(addr, false);
    slow = qfreehint_prepare(&vm->fh, &vm->qs->alloc, &hdr, &range, 1);
    qfreehint_submit(&vm->fh, &slow);
    g_usleep(500 * 1000);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 1);
    eject_dimm();
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 1);
    qfreehint_wait(&vm->fh, &slow);
    remove_dimm();
    vm_stop(vm);
}

#define REPLACEMENTS 4

/* Memory that a thread of QEMU frees is the next that any thread gets. */
#define REUSE_AT_ONCE "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"

/*
 * Nothing is known about a DIMM that replaces another one, although QEMU may
 * keep the two in the same place.
 */
static void test_dimm_replaced(void)
{
    g_autofree char *log = log_path();
    uint64_t addr = 4 * GiB;
    VM *vm;
    int i;

    g_setenv("GLIBC_TUNABLES", REUSE_AT_ONCE, true);
    vm = vm_start("-M q35 -nodefaults -m 128M,slots=1,maxmem=1G"
                  " -device " DEVICE " 2>%s", log);
    g_unsetenv("GLIBC_TUNABLES");
    assert_discarded(vm, 0, FREE_START, GRANULE);
    for (i = 0; i < REPLACEMENTS; i++) {
        uint32_t epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);

        plug_dimm(addr, true);
        assert_status(vm, 0, addr, GRANULE, VIRTIO_FREEHINT_S_BACKING);
        /* The epoch moves in the turn after the one that saw the memory. */
        assert_discarded(vm, 0, FREE_START, GRANULE);
        g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, rehint_epoch), !=, epoch);
        eject_dimm();
        remove_dimm();
    }
    vm_stop(vm);
    assert_warned("memory 'mem1' is not discarded", REPLACEMENTS);
    remove_log();
}

/* The granule stays, whatever memory is plugged later. */
static void test_granule_constant(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=1,maxmem=1G"
                      " -device " DEVICE ",x-granule=64K");
    QDict *rsp = qmp("{ 'execute': 'qom-set', 'arguments': {"
                     " 'path': 'fh0', 'property': 'x-granule',"
                     " 'value': 131072 } }");

    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    plug_dimm(4 * GiB, false);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, granule), ==, 64 * KiB);
    assert_discarded(vm, 0, FREE_START + 64 * KiB, 64 * KiB);
    vm_stop(vm);
}

/* If memory has larger pages, only whole ones can be discarded. */
static void test_large_pages(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=1,maxmem=1G"
                      " -device " DEVICE ",x-granule=64K,discard-reserved=on");
    QDict *rsp = qmp("{ 'execute': 'object-add', 'arguments': {"
                     " 'qom-type': 'memory-backend-memfd', 'id': 'mem1',"
                     " 'size': 67108864, 'hugetlb': true,"
                     " 'hugetlbsize': 2097152, 'reserve': false } }");

    if (qdict_haskey(rsp, "error")) {
        g_test_skip("no huge pages of 2 MiB");
    } else {
        qfreehint_assert_obstacles("driver-not-ready ");
        qtest_qmp_device_add(global_qtest, "pc-dimm", "dimm0",
                             "{ 'memdev': 'mem1', 'addr': %" PRId64 " }",
                             (int64_t)(4 * GiB));
        assert_status(vm, 0, 4 * GiB, 64 * KiB, VIRTIO_FREEHINT_S_BACKING);
        qfreehint_assert_obstacles("driver-not-ready large-pages ");
        g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, granule), ==, 64 * KiB);
        assert_discarded(vm, 0, FREE_START + 64 * KiB, 64 * KiB);
    }
    qobject_unref(rsp);
    vm_stop(vm);
}

#define VMEM_SLOT 5

/* Plug blocks as a driver for virtio-mem does. */
static void plug_virtio_mem(VM *vm, uint64_t addr, uint16_t nblocks)
{
    const struct virtio_mem_req req = {
        .type = cpu_to_le16(VIRTIO_MEM_REQ_PLUG),
        .u.plug.addr = cpu_to_le64(addr),
        .u.plug.nb_blocks = cpu_to_le16(nblocks),
    };
    QPCIAddress slot = { .devfn = QPCI_DEVFN(VMEM_SLOT, 0) };
    QVirtioPCIDevice *pci = virtio_pci_new(vm->qs->pcibus, &slot);
    uint64_t out = guest_alloc(&vm->qs->alloc, sizeof(req));
    uint64_t in = guest_alloc(&vm->qs->alloc, sizeof(struct virtio_mem_resp));
    QVirtQueue *vq;
    uint32_t head;

    qvirtio_pci_device_enable(pci);
    qvirtio_start_device(&pci->vdev);
    qvirtio_set_features(&pci->vdev, 1ull << VIRTIO_F_VERSION_1 |
                         1ull << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE);
    vq = qvirtqueue_setup(&pci->vdev, &vm->qs->alloc, 0);
    qvirtio_set_driver_ok(&pci->vdev);

    qtest_memwrite(global_qtest, out, &req, sizeof(req));
    head = qvirtqueue_add(global_qtest, vq, out, sizeof(req), false, true);
    qvirtqueue_add(global_qtest, vq, in, sizeof(struct virtio_mem_resp), true,
                   false);
    qvirtqueue_kick(global_qtest, &pci->vdev, vq, head);
    qvirtio_wait_used_elem(global_qtest, &pci->vdev, vq, head, NULL,
                           TIMEOUT_US);
    g_assert_cmpuint(qtest_readw(global_qtest, in), ==, VIRTIO_MEM_RESP_ACK);

    qvirtqueue_cleanup(pci->vdev.bus, vq, &vm->qs->alloc);
    g_free(pci->pdev);
    g_free(pci);
}

/* Only the plugged part of virtio-mem is discarded. */
static void test_virtio_mem(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=4,maxmem=1G"
                      " -device " DEVICE
                      " -object memory-backend-ram,id=mem1,size=64M"
                      " -device virtio-mem-pci,id=vmem0,memdev=mem1,addr=%d,"
                      "block-size=2M,requested-size=8M", VMEM_SLOT);
    const uint64_t addr = get_address("vmem0", "memaddr");
    const uint64_t end = addr + 2 * GRANULE;

    assert_status(vm, 0, addr, GRANULE, VIRTIO_FREEHINT_S_EXCLUDED);
    plug_virtio_mem(vm, addr, 2);
    assert_discarded(vm, 0, addr, 2 * GRANULE);
    assert_status(vm, 0, end, GRANULE, VIRTIO_FREEHINT_S_EXCLUDED);
    qfreehint_fill(addr, 2 * GRANULE, 0xa5);
    assert_status(vm, 0, end - GRANULE, 2 * GRANULE,
                  VIRTIO_FREEHINT_S_EXCLUDED);
    g_assert_true(qfreehint_is_filled(addr, 2 * GRANULE, 0xa5));
    vm_stop(vm);
}

/* Firmware in flash, which the guest can write to, counts as ROM. */
static void test_pflash(void)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("qtest-freehint-XXXXXX", &path, NULL);
    VM *vm;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, GRANULE), ==, 0);
    vm = vm_start("-M q35 -nodefaults -device " DEVICE
                  " -drive if=pflash,format=raw,file=%s", path);
    assert_status(vm, 0, 4 * GiB - GRANULE, GRANULE,
                  VIRTIO_FREEHINT_S_READ_ONLY);
    vm_stop(vm);
    unlink(path);
    close(fd);
}

static void test_virtio_pmem(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -m 128M,slots=4,maxmem=1G"
                      " -device " DEVICE
                      " -object memory-backend-ram,id=mem1,size=64M,share=on"
                      " -device virtio-pmem-pci,id=pmem0,memdev=mem1");

    assert_refused(vm, 0, get_address("pmem0", "memaddr"), GRANULE,
                   VIRTIO_FREEHINT_S_EXCLUDED);
    vm_stop(vm);
}

static void test_pci_ram(VM *vm, int slot, int bar)
{
    QPCIDevice *dev = qpci_device_find(vm->qs->pcibus, QPCI_DEVFN(slot, 0));
    QPCIBar qbar;

    g_assert_nonnull(dev);
    qpci_device_enable(dev);
    qbar = qpci_iomap(dev, bar, NULL);
    assert_refused(vm, 0, qbar.addr, GRANULE, VIRTIO_FREEHINT_S_EXCLUDED);
    qpci_iounmap(dev, qbar);
    g_free(dev);
}

static void test_vram(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE
                      " -device VGA,addr=05.0,romfile=");

    test_pci_ram(vm, 5, 0);
    vm_stop(vm);
}

static void test_ivshmem(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE
                      " -object memory-backend-ram,id=mem1,size=4M,share=on"
                      " -device ivshmem-plain,addr=05.0,memdev=mem1");

    test_pci_ram(vm, 5, 2);
    vm_stop(vm);
}

/* Memory of system management mode is RAM for nobody else. */
static void test_smram(void)
{
    const uint64_t tseg = RAM_SIZE - 8 * MiB;
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE);
    QPCIDevice *mch = qpci_device_find(vm->qs->pcibus, QPCI_DEVFN(0, 0));

    qfreehint_fill(tseg, GRANULE, 0xa5);
    qpci_config_writeb(mch, MCH_HOST_BRIDGE_ESMRAMC,
                       MCH_HOST_BRIDGE_ESMRAMC_T_EN |
                       MCH_HOST_BRIDGE_ESMRAMC_TSEG_SZ_8MB);
    qpci_config_writeb(mch, MCH_HOST_BRIDGE_SMRAM,
                       MCH_HOST_BRIDGE_SMRAM_G_SMRAME);
    assert_status(vm, 0, tseg, GRANULE, VIRTIO_FREEHINT_S_NOT_RAM);
    qpci_config_writeb(mch, MCH_HOST_BRIDGE_ESMRAMC, 0);
    g_assert_true(qfreehint_is_filled(tseg, GRANULE, 0xa5));
    g_free(mch);
    vm_stop(vm);
}

/* Vetoes that come with the command line */

/* Try to lock more than QEMU has, without touching it. */
static bool can_lock_memory(void)
{
    const size_t size = 4 * GiB;
    void *mem = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
                     MAP_NORESERVE, -1, 0);
    bool locked;

    g_assert(mem != MAP_FAILED);
    locked = !mlock2(mem, size, MLOCK_ONFAULT);
    munmap(mem, size);
    return locked;
}

static void test_mlock(void)
{
    VM *vm;

    if (!can_lock_memory()) {
        g_test_skip("memory cannot be locked, see RLIMIT_MEMLOCK");
        return;
    }
    vm = vm_start("-M q35 -nodefaults -overcommit mem-lock=on-fault -device "
                  DEVICE);
    qfreehint_assert_state("vetoed", "locked");
    qfreehint_assert_obstacles("driver-not-ready locked ");
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_DECLINED);
    vm_stop(vm);
}

/* Memory shared with another process, which may pin it */

#define VHOST_USER_BLK "contrib/vhost-user-blk/vhost-user-blk"

typedef struct BackEnd {
    char *folder;
    char *socket;
    char *disk;
    GPid pid;
} BackEnd;

static void back_end_spawn(BackEnd *end)
{
    const char *argv[] = {
        VHOST_USER_BLK, "-s", end->socket, "-b", end->disk, NULL
    };

    g_assert_true(g_spawn_async(NULL, (char **)argv, NULL,
                                G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                                &end->pid, NULL));
}

static BackEnd back_end_start(void)
{
    BackEnd end = { .folder = g_dir_make_tmp("qtest-freehint-XXXXXX", NULL) };
    gint64 start = g_get_monotonic_time();

    g_assert_nonnull(end.folder);
    end.socket = g_build_filename(end.folder, "socket", NULL);
    end.disk = g_build_filename(end.folder, "disk", NULL);
    g_assert_true(g_file_set_contents(end.disk, "", 0, NULL));
    g_assert_cmpint(truncate(end.disk, MiB), ==, 0);
    back_end_spawn(&end);
    while (!g_file_test(end.socket, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
    return end;
}

static void back_end_stop(BackEnd *end)
{
    if (end->pid) {
        kill(end->pid, SIGKILL);
        waitpid(end->pid, NULL, 0);
        end->pid = 0;
    }
}

static void back_end_remove(BackEnd *end)
{
    back_end_stop(end);
    unlink(end->socket);
    unlink(end->disk);
    rmdir(end->folder);
    g_free(end->socket);
    g_free(end->disk);
    g_free(end->folder);
}

#define BACK_END_SLOT 5

static VM *vm_start_with_back_end(const BackEnd *end, const char *props)
{
    return vm_start("-M pc,memory-backend=mem0 -nodefaults"
                    " -object memory-backend-memfd,id=mem0,size=128M,share=on"
                    " -chardev socket,id=vu0,path=%s"
                    " -device vhost-user-blk-pci,id=blk0,chardev=vu0,addr=%d"
                    " -device " DEVICE "%s", end->socket, BACK_END_SLOT, props);
}

/* A way for a back end to give up the memory. */
typedef void BackEndEnd(BackEnd *end);

static void unplug(BackEnd *end)
{
    qpci_unplug_acpi_device_test(global_qtest, "blk0", BACK_END_SLOT);
}

static void await_state(VM *vm, uint32_t state)
{
    const gint64 start = g_get_monotonic_time();

    while (QFREEHINT_CONFIG(&vm->fh, state) != state) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

static void await_active(VM *vm)
{
    await_state(vm, VIRTIO_FREEHINT_STATE_ACTIVE);
}

/* There is a veto while the device is plugged and its back end connected. */
static void test_vhost_user(const void *data)
{
    BackEndEnd *end_it = (BackEndEnd *)data;
    BackEnd end;
    VM *vm;
    uint32_t epoch;

    if (!g_file_test(VHOST_USER_BLK, G_FILE_TEST_IS_EXECUTABLE)) {
        g_test_skip("no " VHOST_USER_BLK);
        return;
    }
    end = back_end_start();
    vm = vm_start_with_back_end(&end, "");
    qfreehint_assert_state("vetoed", "external");
    qfreehint_assert_obstacles("driver-not-ready external ");
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_DECLINED);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 0);
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);

    end_it(&end);
    await_active(vm);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, rehint_epoch), !=, epoch);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
    back_end_remove(&end);
}

/*
 * Nobody hints or queries, before or meanwhile: after that, the device would
 * look again a second later.
 */
static void test_vhost_user_announced(void)
{
    uint32_t epoch;
    BackEnd end;
    VM *vm;

    if (!g_file_test(VHOST_USER_BLK, G_FILE_TEST_IS_EXECUTABLE)) {
        g_test_skip("no " VHOST_USER_BLK);
        return;
    }
    end = back_end_start();
    vm = vm_start("-M pc,memory-backend=mem0 -nodefaults"
                  " -object memory-backend-memfd,id=mem0,size=128M,share=on"
                  " -chardev socket,id=vu0,path=%s -device " DEVICE,
                  end.socket);
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    qtest_qmp_device_add(global_qtest, "vhost-user-blk-pci", "blk0",
                         "{ 'chardev': 'vu0', 'addr': %s }",
                         stringify(BACK_END_SLOT));
    await_state(vm, VIRTIO_FREEHINT_STATE_VETOED);
    qtest_qmp_eventwait(global_qtest, "FREEHINT_STATE_CHANGED");
    unplug(&end);
    await_active(vm);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, rehint_epoch), !=, epoch);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
    back_end_remove(&end);
}

/* The operator declares that this back end does not pin anything. */
static void test_vhost_user_safe(void)
{
    BackEnd end;
    VM *vm;

    if (!g_file_test(VHOST_USER_BLK, G_FILE_TEST_IS_EXECUTABLE)) {
        g_test_skip("no " VHOST_USER_BLK);
        return;
    }
    end = back_end_start();
    vm = vm_start_with_back_end(&end, ",assume-vhost-user-safe=on");
    qfreehint_assert_state("active", NULL);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    vm_stop(vm);
    back_end_remove(&end);
}

/* The guest uses the device, so the back end has the guest's memory. */
static QVirtioPCIDevice *use_back_end(VM *vm, QVirtQueue **vq)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(BACK_END_SLOT, 0) };
    QVirtioPCIDevice *blk = virtio_pci_new(vm->qs->pcibus, &addr);

    g_assert_nonnull(blk);
    qvirtio_pci_device_enable(blk);
    qvirtio_start_device(&blk->vdev);
    qvirtio_set_features(&blk->vdev, 1ull << VIRTIO_F_VERSION_1);
    *vq = qvirtqueue_setup(&blk->vdev, &vm->qs->alloc, 0);
    qvirtio_set_driver_ok(&blk->vdev);
    return blk;
}

/* VHOST_USER_ADD_MEM_REG */
#define GIVES_MEMORY "vhost_user_write req:37 "

/* A back end that reconnects gets memory after the discard in progress. */
static void test_vhost_user_reconnects(void)
{
    g_autofree char *log = log_path(), *text = NULL;
    const QFreehintRange range = { FREE_START, GRANULE };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    const char *begin, *end_of_job, *table;
    QVirtioPCIDevice *blk;
    QFreehintHint slow;
    QVirtQueue *vq;
    gint64 start;
    BackEnd end;
    VM *vm;

    if (!g_file_test(VHOST_USER_BLK, G_FILE_TEST_IS_EXECUTABLE)) {
        g_test_skip("no " VHOST_USER_BLK);
        return;
    }
    end = back_end_start();
    vm = vm_start("-M pc,memory-backend=mem0 -nodefaults"
                  " -object memory-backend-memfd,id=mem0,size=128M,share=on"
                  " -chardev socket,id=vu0,path=%s,reconnect-ms=100"
                  " -device vhost-user-blk-pci,id=blk0,chardev=vu0,addr=%d,"
                  "num-queues=1 -device " TESTDEV ",x-job-delay-ms=3000"
                  " -trace virtio_freehint_job_* -trace vhost_user_write -D %s",
                  end.socket, BACK_END_SLOT, log);
    blk = use_back_end(vm, &vq);
    back_end_stop(&end);
    unlink(end.socket);
    await_active(vm);

    slow = qfreehint_prepare(&vm->fh, &vm->qs->alloc, &hdr, &range, 1);
    qfreehint_submit(&vm->fh, &slow);
    g_usleep(500 * 1000);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 1);
    back_end_spawn(&end);
    qfreehint_wait(&vm->fh, &slow);
    g_assert_cmphex(qfreehint_status(&slow, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    start = g_get_monotonic_time();
    do {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
        g_free(text);
        g_assert_true(g_file_get_contents(log, &text, NULL, NULL));
        begin = strstr(text, "job_begin");
        g_assert_nonnull(begin);
        end_of_job = strstr(begin, "job_end");
        g_assert_nonnull(end_of_job);
        table = strstr(begin, GIVES_MEMORY);
    } while (!table);
    g_assert_true(strstr(text, GIVES_MEMORY) < begin);
    g_assert_true(table > end_of_job);
    qfreehint_assert_state("vetoed", "external");

    qvirtqueue_cleanup(blk->vdev.bus, vq, &vm->qs->alloc);
    qvirtio_pci_device_disable(blk);
    g_free(blk->pdev);
    g_free(blk);
    vm_stop(vm);
    remove_log();
    back_end_remove(&end);
}

/* Declare it at run time, too; the guest hints again what was declined. */
static void declare_vhost_user_safe(bool safe)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'id': 'fh0',"
                             " 'assume-vhost-user-safe': %i } }", safe);
}

static void test_vhost_user_declared_safe(void)
{
    uint32_t epoch;
    BackEnd end;
    VM *vm;

    if (!g_file_test(VHOST_USER_BLK, G_FILE_TEST_IS_EXECUTABLE)) {
        g_test_skip("no " VHOST_USER_BLK);
        return;
    }
    end = back_end_start();
    vm = vm_start_with_back_end(&end, "");
    epoch = QFREEHINT_CONFIG(&vm->fh, rehint_epoch);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_DECLINED);
    declare_vhost_user_safe(true);
    qfreehint_assert_state("active", NULL);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, rehint_epoch), !=, epoch);
    assert_discarded(vm, 0, FREE_START, GRANULE);
    declare_vhost_user_safe(false);
    qfreehint_assert_state("vetoed", "external");
    vm_stop(vm);
    back_end_remove(&end);
}

/* x-query-virtio-status knows the device's features by name. */
static void test_virtio_status(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE);
    QDict *rsp = qmp("{ 'execute': 'x-query-virtio-status', 'arguments': {"
                     " 'path': '/machine/peripheral/fh0/virtio-backend' } }");
    QDict *status = qdict_get_qdict(rsp, "return");
    QDict *features = qdict_get_qdict(status, "host-features");
    const char *names[] = {
        "VIRTIO_FREEHINT_F_FLUSH", "VIRTIO_FREEHINT_F_LAZY",
    };
    const QListEntry *entry;
    int i, known = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(features, "dev-features"), entry) {
        QString *name = qobject_to(QString, qlist_entry_obj(entry));

        for (i = 0; i < ARRAY_SIZE(names); i++) {
            known += g_str_has_prefix(qstring_get_str(name), names[i]);
        }
    }
    g_assert_cmpint(known, ==, ARRAY_SIZE(names));
    qobject_unref(rsp);
    vm_stop(vm);
}

static void test_start_disabled(void)
{
    VM *vm = vm_start("-M q35 -nodefaults -device " DEVICE ",enabled=off,"
                      "delay-ms=5,min-age-ms=20");

    qfreehint_assert_state("disabled", "operator");
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, delay_ms), ==, 5);
    g_assert_cmpuint(QFREEHINT_CONFIG(&vm->fh, min_age_ms), ==, 20);
    assert_refused(vm, 0, FREE_START, GRANULE, VIRTIO_FREEHINT_S_DECLINED);
    vm_stop(vm);
}

/* Not a PCI function */

#define MMIO_VM "-M microvm -nodefaults -device virtio-freehint-device,id=fh0"

static void test_mmio(void)
{
    QTestState *qts = qtest_init(MMIO_VM
                                 " -global virtio-mmio.force-legacy=off");

    global_qtest = qts;
    qfreehint_assert_state("active", NULL);
    qtest_quit(qts);
}

/* The transport that the device is plugged into: the last one is used first. */
#define MMIO_BASE (0xfeb00000 + 23 * 512)

/* A driver takes its queue back by writing zero to QueueReady. */
static void test_mmio_queue_ready(void)
{
    QTestState *qts = qtest_init("-M microvm -nodefaults -m 128M"
                                 " -device virtio-freehint-testdev,id=fh0,"
                                 "x-job-delay-ms=1200"
                                 " -global virtio-mmio.force-legacy=off");
    const struct {
        struct virtio_freehint_hdr hdr;
        struct virtio_freehint_range range;
    } QEMU_PACKED msg = {
        .hdr.type = cpu_to_le16(VIRTIO_FREEHINT_T_HINT),
        .hdr.nranges = cpu_to_le32(1),
        .range = { cpu_to_le64(FREE_START), cpu_to_le64(GRANULE) },
    };
    /* The addresses of ring and message. */
    const uint64_t desc = 16 * MiB, avail = desc + 4096, used = avail + 4096;
    const uint64_t out = used + 4096, in = out + 4096;

    global_qtest = qts;
    g_assert_cmphex(qtest_readl(qts, MMIO_BASE + 0x008), ==,
                    VIRTIO_ID_FREEHINT);
    qtest_writel(qts, MMIO_BASE + 0x070, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER);
    qtest_writel(qts, MMIO_BASE + 0x024, 1);
    qtest_writel(qts, MMIO_BASE + 0x020, 1);
    qtest_writel(qts, MMIO_BASE + 0x070, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
    qtest_writel(qts, MMIO_BASE + 0x030, 0);
    qtest_writel(qts, MMIO_BASE + 0x038, 16);
    qtest_writel(qts, MMIO_BASE + 0x080, desc);
    qtest_writel(qts, MMIO_BASE + 0x090, avail);
    qtest_writel(qts, MMIO_BASE + 0x0a0, used);
    qtest_writel(qts, MMIO_BASE + 0x044, 1);
    qtest_writel(qts, MMIO_BASE + 0x070, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                 VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
                 VIRTIO_CONFIG_S_DRIVER_OK);

    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    qtest_memwrite(qts, out, &msg, sizeof(msg));
    qtest_writeq(qts, desc, out);
    qtest_writel(qts, desc + 8, sizeof(msg));
    qtest_writew(qts, desc + 12, VRING_DESC_F_NEXT);
    qtest_writew(qts, desc + 14, 1);
    qtest_writeq(qts, desc + 16, in);
    qtest_writel(qts, desc + 24, 64);
    qtest_writew(qts, desc + 28, VRING_DESC_F_WRITE);
    qtest_writew(qts, avail + 2, 1);
    qtest_writel(qts, MMIO_BASE + 0x050, 0);
    g_usleep(300 * 1000);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 1);

    qtest_writel(qts, MMIO_BASE + 0x044, 0);
    g_assert_cmphex(qtest_readl(qts, MMIO_BASE + 0x044), ==, 0);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 0);
    qfreehint_fill(FREE_START, GRANULE, 0x5a);
    g_usleep(1400 * 1000);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0x5a));
    g_assert_cmphex(qtest_readw(qts, used + 2), ==, 0);
    qfreehint_assert_identity();
    qtest_quit(qts);
}

static void assert_does_not_start(const char *options, const char *why)
{
    g_autofree char *command = g_strdup_printf("timeout 60 %s %s -display none",
                                               getenv("QTEST_QEMU_BINARY"),
                                               options);
    g_autofree char *errors = NULL;
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, &errors, &status,
                                            NULL));
    g_assert_cmpint(WEXITSTATUS(status), ==, EXIT_FAILURE);
    g_assert_nonnull(strstr(errors, why));
}

/* By default the bus does not offer virtio 1. */
static void test_mmio_legacy(void)
{
    assert_does_not_start(MMIO_VM " -accel qtest",
                          "virtio-freehint needs virtio 1");
}

/* An accelerator that may pin guest memory, as far as is known. */
static void test_accel(void)
{
    assert_does_not_start("-M q35 -nodefaults -accel discard-test"
                          " -device " DEVICE,
                          "virtio-freehint supports the accelerators kvm and"
                          " tcg");
}

static void test_bad_granule(void)
{
    assert_does_not_start("-M q35 -nodefaults -device " DEVICE
                          ",x-granule=3M", "'x-granule' is 0x300000");
}

static void test_no_device(void)
{
    QTestState *qts = qtest_init("-M q35 -nodefaults");
    g_autofree char *info = qtest_hmp(qts, "info freehint");
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-freehint' }");

    g_assert_nonnull(strstr(info, "there is no virtio-freehint device"));
    g_assert_true(qlist_empty(qdict_get_qlist(rsp, "return")));
    qobject_unref(rsp);
    qtest_quit(qts);
}

static void add_backing_tests(void)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(good_backings); i++) {
        g_autofree char *path = g_strdup_printf("virtio-freehint/backing/%s",
                                                good_backings[i]);

        qtest_add_data_func(path, good_backings[i], test_backing);
        g_free(path);
        path = g_strdup_printf("virtio-freehint/lazy/%s", good_backings[i]);
        qtest_add_data_func(path, good_backings[i], test_lazy);
        g_free(path);
        path = g_strdup_printf("virtio-freehint/auto/%s", good_backings[i]);
        qtest_add_data_func(path, good_backings[i], test_auto);
    }
    qtest_add_func("virtio-freehint/backing/file/shared", test_file);
    qtest_add_func("virtio-freehint/backing/file/unlinked",
                   test_file_unlinked);
    qtest_add_data_func("virtio-freehint/backing/file/shared-allowed",
                        " -device " DEVICE ",discard-file-backed=on",
                        test_file_allowed);
    qtest_add_data_func("virtio-freehint/backing/file/discard-data",
                        ",discard-data=on -device " DEVICE,
                        test_file_allowed);
    qtest_add_func("virtio-freehint/backing/file/allowed-later",
                   test_file_allowed_later);
    qtest_add_data_func("virtio-freehint/backing/file/private",
                        " -device " DEVICE, test_file_private);
    qtest_add_data_func("virtio-freehint/backing/file/private-allowed",
                        " -device " DEVICE ",discard-file-backed=on",
                        test_file_private);
    qtest_add_data_func("virtio-freehint/backing/file/private-unlinked",
                        "unlinked", test_file_private);
    qtest_add_func("virtio-freehint/backing/prealloc", test_prealloc);
    qtest_add_func("virtio-freehint/backing/prealloc-later",
                   test_prealloc_later);
    qtest_add_func("virtio-freehint/backing/prealloc-allowed",
                   test_prealloc_allowed);
    qtest_add_func("virtio-freehint/backing/host-failure", test_host_failure);
    qtest_add_func("virtio-freehint/backing/host-failure-of-two",
                   test_host_failure_of_two);
    qtest_add_data_func("virtio-freehint/host-errno/ram",
                        &failing_hosts[0], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/lazy",
                        &failing_hosts[1], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/ram-shared",
                        &failing_hosts[2], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/memfd-shared",
                        &failing_hosts[3], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/memfd-private",
                        &failing_hosts[4], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/file-shared",
                        &failing_hosts[5], test_host_errno);
    qtest_add_data_func("virtio-freehint/host-errno/file-private",
                        &failing_hosts[6], test_host_errno);
    qtest_add_func("virtio-freehint/backing/host-recovers",
                   test_host_recovers);
    qtest_add_func("virtio-freehint/scattered", test_scattered);
    qtest_add_func("virtio-freehint/scattered/touching", test_touching);
    qtest_add_func("virtio-freehint/scattered/one-by-one",
                   test_scattered_one_by_one);
    qtest_add_func("virtio-freehint/scattered/lazily", test_scattered_lazily);
    qtest_add_func("virtio-freehint/scattered/and-wrong",
                   test_scattered_and_wrong);
    qtest_add_func("virtio-freehint/collapse", test_collapse);
    qtest_add_func("virtio-freehint/collapse/lazy", test_collapse_lazy);
    qtest_add_func("virtio-freehint/backing/numa", test_numa);
    qtest_add_func("virtio-freehint/backing/small-pool", test_small_pool);
    qtest_add_func("virtio-freehint/backing/small-file-system",
                   test_small_file_system);
    qtest_add_func("virtio-freehint/granule-of-host", test_granule_of_host);
    qtest_add_func("virtio-freehint/read", test_read);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_backing_tests();
    qtest_add_func("virtio-freehint/lazy-unreliable", test_lazy_unreliable);
    qtest_add_func("virtio-freehint/lazy-vhost-scsi", test_lazy_vhost_scsi);
    qtest_add_func("virtio-freehint/lazy-ksm", test_lazy_ksm);
    qtest_add_func("virtio-freehint/auto-mixed", test_auto_mixed);
    qtest_add_func("virtio-freehint/auto-unreliable", test_auto_unreliable);
    qtest_add_func("virtio-freehint/auto-vhost-scsi", test_auto_vhost_scsi);
    qtest_add_func("virtio-freehint/granule", test_granule);
    qtest_add_func("virtio-freehint/dimm", test_dimm);
    qtest_add_func("virtio-freehint/dimm-hotplug", test_dimm_hotplug);
    qtest_add_func("virtio-freehint/dimm-drained", test_dimm_drained);
    qtest_add_func("virtio-freehint/dimm-replaced", test_dimm_replaced);
    qtest_add_func("virtio-freehint/granule-constant", test_granule_constant);
    qtest_add_func("virtio-freehint/large-pages", test_large_pages);
    qtest_add_func("virtio-freehint/virtio-mem", test_virtio_mem);
    qtest_add_func("virtio-freehint/pflash", test_pflash);
    qtest_add_func("virtio-freehint/virtio-pmem", test_virtio_pmem);
    qtest_add_func("virtio-freehint/vram", test_vram);
    qtest_add_func("virtio-freehint/ivshmem", test_ivshmem);
    qtest_add_func("virtio-freehint/smram", test_smram);
    qtest_add_func("virtio-freehint/mlock", test_mlock);
    qtest_add_data_func("virtio-freehint/vhost-user/unplugged", unplug,
                        test_vhost_user);
    qtest_add_data_func("virtio-freehint/vhost-user/gone", back_end_stop,
                        test_vhost_user);
    qtest_add_func("virtio-freehint/vhost-user/announced",
                   test_vhost_user_announced);
    qtest_add_func("virtio-freehint/vhost-user/safe", test_vhost_user_safe);
    qtest_add_func("virtio-freehint/vhost-user/declared-safe",
                   test_vhost_user_declared_safe);
    qtest_add_func("virtio-freehint/vhost-user/reconnects",
                   test_vhost_user_reconnects);
    qtest_add_func("virtio-freehint/virtio-status", test_virtio_status);
    qtest_add_func("virtio-freehint/mmio", test_mmio);
    qtest_add_func("virtio-freehint/mmio/queue-ready", test_mmio_queue_ready);
    qtest_add_func("virtio-freehint/mmio-legacy", test_mmio_legacy);
    qtest_add_func("virtio-freehint/accel", test_accel);
    qtest_add_func("virtio-freehint/bad-granule", test_bad_granule);
    qtest_add_func("virtio-freehint/no-device", test_no_device);
    qtest_add_func("virtio-freehint/start-disabled", test_start_disabled);
    return g_test_run();
}
