/*
 * QTest test cases for virtio-freehint
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/pci.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"

#define GRANULE (2 * MiB)
#define MAX_RANGES 1024

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define FREE_START (qfreehint_ram_start() + 64 * MiB)
#define FREE_LEN (64 * MiB)

#define CONFIG_TIMEOUT_US (10 * 1000 * 1000)

static void test_config(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QDict *device;

    g_assert_cmpuint(qvirtio_config_readq(fh->vdev,
                         offsetof(struct virtio_freehint_config, granule)),
                     ==, GRANULE);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, max_ranges), ==, MAX_RANGES);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, state), ==,
                     VIRTIO_FREEHINT_STATE_ACTIVE);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, reason), ==,
                     VIRTIO_FREEHINT_REASON_NONE);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 0);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, min_age_ms), ==, 100);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, driver_status), ==,
                     VIRTIO_FREEHINT_DRIVER_NOT_READY);

    device = qfreehint_query();
    g_assert_cmpstr(qdict_get_str(device, "id"), ==, "fh0");
    g_assert_cmpstr(qdict_get_str(device, "qom-path"), ==,
                    "/machine/peripheral/fh0");
    g_assert_true(qdict_get_bool(device, "enabled"));
    g_assert_cmpstr(qdict_get_str(device, "state"), ==, "active");
    g_assert_false(qdict_haskey(device, "reason"));
    g_assert_cmpstr(qdict_get_str(device, "driver-status"), ==, "not-ready");
    g_assert_cmpuint(qdict_get_int(device, "granule"), ==, GRANULE);
    g_assert_cmpuint(qdict_get_int(device, "max-ranges"), ==, MAX_RANGES);
    g_assert_cmpuint(qdict_get_int(device, "rehint-epoch"), ==,
                     QFREEHINT_CONFIG(fh, rehint_epoch));
    g_assert_cmpuint(qdict_get_int(device, "min-age-ms"), ==, 100);
    qobject_unref(device);
}

static void write_config(QVirtioFreehint *fh, size_t offset, uint32_t value)
{
    qpci_io_writel(fh->pci->pdev, fh->pci->bar,
                   fh->pci->device_cfg_offset + offset, value);
}

static void assert_driver_status(const char *name)
{
    QDict *device = qfreehint_query();

    g_assert_cmpstr(qdict_get_str(device, "driver-status"), ==, name);
    qobject_unref(device);
}

/* The driver writes its status and nothing else, and a reset clears it. */
static void test_driver_status(void *obj, void *data, QGuestAllocator *alloc)
{
    const size_t offset = offsetof(struct virtio_freehint_config,
                                   driver_status);
    QVirtioFreehint *fh = obj;

    write_config(fh, offset, VIRTIO_FREEHINT_DRIVER_POISONING);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, driver_status), ==,
                     VIRTIO_FREEHINT_DRIVER_POISONING);
    assert_driver_status("poisoning");
    write_config(fh, offset, 12345);
    assert_driver_status("unknown");

    write_config(fh, offsetof(struct virtio_freehint_config, max_ranges), 7);
    write_config(fh, offsetof(struct virtio_freehint_config, rehint_epoch), 7);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, max_ranges), ==, MAX_RANGES);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, 7);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, driver_status), ==, 12345);

    qfreehint_restart(fh, alloc);
    assert_driver_status("not-ready");
    write_config(fh, offsetof(struct virtio_freehint_config, delay_ms), 7);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 0);
    assert_driver_status("not-ready");
}

static void test_discard(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t before = FREE_START, addr = before + GRANULE;
    const uint64_t after = addr + GRANULE;
    QVirtioFreehint *fh = obj;
    uint64_t discarded = qfreehint_count("discarded", "bytes");
    uint64_t calls = qfreehint_stat("discard-calls");

    qfreehint_fill(before, 3 * GRANULE, 0xa5);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, addr, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(before, GRANULE, 0xa5));
    g_assert_true(qfreehint_is_filled(addr, GRANULE, 0));
    g_assert_true(qfreehint_is_filled(after, GRANULE, 0xa5));

    g_assert_cmpuint(qfreehint_count("discarded", "bytes") - discarded, ==,
                     GRANULE);
    g_assert_cmpuint(qfreehint_stat("discard-calls") - calls, ==, 1);
    qfreehint_assert_identity();

    /* The memory can be used at once. */
    qfreehint_fill(addr, GRANULE, 0x5a);
    g_assert_true(qfreehint_is_filled(addr, GRANULE, 0x5a));
}

/* A hint of more than one slice, and one of no ranges. */
static void test_sizes(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t len = FREE_LEN;
    QVirtioFreehint *fh = obj;
    uint64_t calls = qfreehint_stat("discard-calls");

    qfreehint_fill(FREE_START, len, 0xa5);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, len), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, len, 0));
    calls = qfreehint_stat("discard-calls") - calls;
    g_assert_cmpuint(calls, >=, 1);
    g_assert_cmpuint(calls, <=, len / (16 * MiB));

    qfreehint_hint(fh, alloc, 0, NULL, 0, NULL);
    qfreehint_assert_identity();
}

static void test_zero(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;

    qfreehint_fill(FREE_START, GRANULE, 0);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, VIRTIO_FREEHINT_HINT_F_ZERO,
                                       FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));
}

/* A range that is refused, and its status. */
typedef struct BadRange {
    const char *kind;
    QFreehintRange range;
    uint8_t status;
} BadRange;

/* A bad range between two good ones, which are discarded. */
static void check_bad_range(QVirtioFreehint *fh, QGuestAllocator *alloc,
                            const BadRange *bad)
{
    const uint64_t good = FREE_START + 8 * MiB;
    const uint64_t window = 16 * MiB;
    const uint64_t end = FREE_START + FREE_LEN;
    const QFreehintRange ranges[] = {
        { good, GRANULE }, bad->range, { good + 4 * MiB, GRANULE },
    };
    uint64_t rejected = qfreehint_count_rejected(bad->kind);
    uint8_t status[ARRAY_SIZE(ranges)];

    g_test_message("%s 0x%" PRIx64 "+0x%" PRIx64, bad->kind,
                   (uint64_t)bad->range.addr, (uint64_t)bad->range.len);
    qfreehint_fill(FREE_START, window, 0xa5);
    qfreehint_fill(end - GRANULE, GRANULE, 0xa5);
    qfreehint_hint(fh, alloc, 0, ranges, ARRAY_SIZE(ranges), status);
    g_assert_cmphex(status[0], ==, VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(status[1], ==, bad->status);
    g_assert_cmphex(status[2], ==, VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_count_rejected(bad->kind) - rejected, ==, 1);

    g_assert_true(qfreehint_is_filled(FREE_START, good - FREE_START, 0xa5));
    g_assert_true(qfreehint_is_filled(good, GRANULE, 0));
    g_assert_true(qfreehint_is_filled(good + GRANULE, 2 * MiB, 0xa5));
    g_assert_true(qfreehint_is_filled(good + 4 * MiB, GRANULE, 0));
    g_assert_true(qfreehint_is_filled(good + 6 * MiB, 2 * MiB, 0xa5));
    g_assert_true(qfreehint_is_filled(end - GRANULE, GRANULE, 0xa5));
}

/* If possible they start in good memory, which must keep its content. */
static void test_bad_ranges(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t end = FREE_START + FREE_LEN;
    const BadRange bad[] = {
        { "empty", { FREE_START, 0 }, VIRTIO_FREEHINT_S_EMPTY },
        { "overflow", { FREE_START, -GRANULE }, VIRTIO_FREEHINT_S_OVERFLOW },
        { "overflow", { -GRANULE, 2 * GRANULE }, VIRTIO_FREEHINT_S_OVERFLOW },
        { "misaligned", { FREE_START + 4096, GRANULE },
          VIRTIO_FREEHINT_S_MISALIGNED },
        { "misaligned", { FREE_START, GRANULE - 4096 },
          VIRTIO_FREEHINT_S_MISALIGNED },
        { "misaligned", { FREE_START + 1, GRANULE - 2 },
          VIRTIO_FREEHINT_S_MISALIGNED },
        /* RAM, then nothing */
        { "unmapped", { end - GRANULE, 2 * GRANULE },
          VIRTIO_FREEHINT_S_UNMAPPED },
        { "unmapped", { -GRANULE, GRANULE }, VIRTIO_FREEHINT_S_UNMAPPED },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        check_bad_range(obj, alloc, &bad[i]);
    }
    qfreehint_assert_identity();
}

static const BadRange bad_in_pc[] = {
    { "unmapped", { 1 * TiB, GRANULE }, VIRTIO_FREEHINT_S_UNMAPPED },
    /* The local APIC and its surroundings */
    { "not-ram", { 0xfee00000, GRANULE }, VIRTIO_FREEHINT_S_NOT_RAM },
    /* RAM, nothing, then the APIC: all but the firmware */
    { "not-ram", { 64 * MiB, 0xff000000 - 64 * MiB },
      VIRTIO_FREEHINT_S_NOT_RAM },
    /* The firmware, and nothing before it */
    { "read-only", { 4 * GiB - GRANULE, GRANULE },
      VIRTIO_FREEHINT_S_READ_ONLY },
    /* RAM, VGA and the copy of the firmware below 1 MiB */
    { "read-only", { 0, GRANULE }, VIRTIO_FREEHINT_S_READ_ONLY },
};

static const BadRange bad_in_virt[] = {
    /* Flash, which reads as ROM */
    { "read-only", { 0, GRANULE }, VIRTIO_FREEHINT_S_READ_ONLY },
    /* The interrupt controller */
    { "not-ram", { 0x08000000, GRANULE }, VIRTIO_FREEHINT_S_NOT_RAM },
};

/* Parts of the address space that are not RAM. */
static void test_bad_places(void *obj, void *data, QGuestAllocator *alloc)
{
    const bool pc = !qfreehint_ram_start();
    const BadRange *bad = pc ? bad_in_pc : bad_in_virt;
    const int n = pc ? ARRAY_SIZE(bad_in_pc) : ARRAY_SIZE(bad_in_virt);
    int i;

    for (i = 0; i < n; i++) {
        check_bad_range(obj, alloc, &bad[i]);
    }
    qfreehint_assert_identity();
}

/* It does not matter how a message is split into descriptors. */
static void test_framing(void *obj, void *data, QGuestAllocator *alloc)
{
    static const uint32_t steps[] = { 1, 3, 7, 16, 17, 25 };
    const QFreehintRange ranges[] = {
        { FREE_START, GRANULE }, { FREE_START + 1, GRANULE },
    };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = ARRAY_SIZE(ranges),
    };
    const uint32_t readable = sizeof(hdr) + sizeof(ranges);
    const uint32_t writable = sizeof(struct virtio_freehint_ack) +
                              ARRAY_SIZE(ranges);
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i < ARRAY_SIZE(steps); i++) {
        QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdr, ranges,
                                               ARRAY_SIZE(ranges));

        qfreehint_fill(FREE_START, GRANULE, 0xa5);
        qfreehint_submit_split(fh, &hint, readable, writable, steps[i]);
        qfreehint_wait(fh, &hint);
        g_assert_cmpuint(qfreehint_ack(&hint).result, ==,
                         VIRTIO_FREEHINT_R_DONE);
        g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                        VIRTIO_FREEHINT_S_DISCARDED);
        g_assert_cmphex(qfreehint_status(&hint, 1), ==,
                        VIRTIO_FREEHINT_S_MISALIGNED);
        g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));
    }
}

/* The device answers a message that it does not know, and does nothing else. */
static void test_unsupported(void *obj, void *data, QGuestAllocator *alloc)
{
    static const struct virtio_freehint_hdr hdrs[] = {
        { .type = 0, .nranges = 1 },
        { .type = VIRTIO_FREEHINT_T_GAUGES, .flags = 1, .nranges = 1 },
        { .type = VIRTIO_FREEHINT_T_FLUSH_DONE, .flags = 1, .nranges = 1 },
        { .type = 4, .nranges = 1 },
        { .type = 0xffff, .flags = 0xffff, .nranges = UINT32_MAX },
        { .type = VIRTIO_FREEHINT_T_HINT, .flags = 1 << 2, .nranges = 1 },
        { .type = VIRTIO_FREEHINT_T_HINT, .flags = 0x8001, .nranges = 1 },
    };
    const QFreehintRange range = { FREE_START, GRANULE };
    QVirtioFreehint *fh = obj;
    uint64_t unsupported = qfreehint_stat("unsupported");
    uint64_t hinted = qfreehint_count("hinted", "ranges");
    int i;

    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    for (i = 0; i < ARRAY_SIZE(hdrs); i++) {
        QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdrs[i],
                                               &range, 1);
        struct virtio_freehint_ack ack;

        qfreehint_submit(fh, &hint);
        qfreehint_wait(fh, &hint);
        ack = qfreehint_ack(&hint);
        g_assert_cmpuint(ack.result, ==, VIRTIO_FREEHINT_R_UNSUPPORTED);
        g_assert_cmpuint(ack.nstatus, ==, 0);
        g_assert_cmpuint(ack.rehint_epoch, ==,
                         QFREEHINT_CONFIG(fh, rehint_epoch));
        /* Nothing was written beyond the used length. */
        g_assert_cmphex(qfreehint_status(&hint, 0), ==, 0xee);
    }
    g_assert_cmpuint(qfreehint_stat("unsupported") - unsupported, ==,
                     ARRAY_SIZE(hdrs));
    g_assert_cmpuint(qfreehint_count("hinted", "ranges"), ==, hinted);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

static void await_needs_reset(QVirtioFreehint *fh)
{
    gint64 start = g_get_monotonic_time();

    while (!(fh->vdev->bus->get_status(fh->vdev) &
             VIRTIO_CONFIG_S_NEEDS_RESET)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, CONFIG_TIMEOUT_US);
        g_usleep(1000);
    }
}

/* A message that is too short breaks the device, and a reset repairs it. */
static void test_malformed(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint32_t hdr_size = sizeof(struct virtio_freehint_hdr);
    const uint32_t range_size = sizeof(QFreehintRange);
    const uint32_t ack_size = sizeof(struct virtio_freehint_ack);
    const struct {
        const char *what;
        uint16_t type;
        uint32_t nranges, readable, writable;
    } bad[] = {
        { "no readable part", VIRTIO_FREEHINT_T_HINT, 1, 0, ack_size + 1 },
        { "short header", VIRTIO_FREEHINT_T_HINT, 0, hdr_size - 1, ack_size },
        { "no ranges", VIRTIO_FREEHINT_T_HINT, 1, hdr_size, ack_size + 1 },
        { "short range", VIRTIO_FREEHINT_T_HINT, 1,
          hdr_size + range_size - 1, ack_size + 1 },
        { "no writable part", VIRTIO_FREEHINT_T_HINT, 0, hdr_size, 0 },
        { "short ack", VIRTIO_FREEHINT_T_HINT, 0, hdr_size, ack_size - 1 },
        { "short ack, unknown type", 77, 0, hdr_size, ack_size - 1 },
        { "no status", VIRTIO_FREEHINT_T_HINT, 1, hdr_size + range_size,
          ack_size },
        { "too many ranges", VIRTIO_FREEHINT_T_HINT, MAX_RANGES + 1,
          hdr_size + (MAX_RANGES + 1) * range_size,
          ack_size + MAX_RANGES + 1 },
        { "absurdly many ranges", VIRTIO_FREEHINT_T_HINT, UINT32_MAX,
          hdr_size + range_size, ack_size + 1 },
        { "short answer to a flush", VIRTIO_FREEHINT_T_FLUSH_DONE, 0,
          hdr_size + sizeof(struct virtio_freehint_flush_done) - 1, ack_size },
        { "short gauges", VIRTIO_FREEHINT_T_GAUGES, 0,
          hdr_size + sizeof(struct virtio_freehint_gauges) - 1, ack_size },
        { "no room for an answer", VIRTIO_FREEHINT_T_GAUGES, 0,
          hdr_size + sizeof(struct virtio_freehint_gauges), ack_size - 1 },
    };
    g_autofree QFreehintRange *ranges = g_new(QFreehintRange, MAX_RANGES + 1);
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i <= MAX_RANGES; i++) {
        ranges[i] = (QFreehintRange) { FREE_START, GRANULE };
    }
    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        const struct virtio_freehint_hdr hdr = {
            .type = bad[i].type,
            .nranges = bad[i].nranges,
        };
        uint64_t malformed = qfreehint_stat("malformed");
        QFreehintHint hint;

        g_test_message("%s", bad[i].what);
        hint = qfreehint_prepare(fh, alloc, &hdr, ranges,
                                 MIN(bad[i].nranges, MAX_RANGES + 1));
        qfreehint_submit_split(fh, &hint, bad[i].readable,
                               bad[i].writable, UINT32_MAX);
        await_needs_reset(fh);
        g_assert_false(qfreehint_poll(fh, NULL, NULL));
        g_assert_cmpuint(qfreehint_stat("malformed") - malformed, ==, 1);
        qfreehint_restart(fh, alloc);
    }
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
    qfreehint_assert_identity();
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

static void test_max_ranges(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree QFreehintRange *ranges = g_new(QFreehintRange, MAX_RANGES);
    g_autofree uint8_t *status = g_malloc(MAX_RANGES);
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i < MAX_RANGES; i++) {
        ranges[i] = (QFreehintRange) { FREE_START + i % 16 * GRANULE, GRANULE };
    }
    qfreehint_fill(FREE_START, 16 * GRANULE, 0xa5);
    qfreehint_hint(fh, alloc, 0, ranges, MAX_RANGES, status);
    for (i = 0; i < MAX_RANGES; i++) {
        /* On a busy machine the last ones may come too late. */
        if (i < 16 || status[i] != VIRTIO_FREEHINT_S_THROTTLED) {
            g_assert_cmphex(status[i], ==, VIRTIO_FREEHINT_S_DISCARDED);
        }
    }
    g_assert_true(qfreehint_is_filled(FREE_START, 16 * GRANULE, 0));
    qfreehint_assert_identity();
}

/*
 * Disabled, the device declines hints and notifies the driver. Enabled, it
 * moves the epoch.
 */
static void test_disable(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    uint64_t declined = qfreehint_count("declined", "bytes");
    uint64_t calls = qfreehint_stat("discard-calls");

    /*
     * The epoch moves even if nothing was declined: the guest may have given
     * up.
     */
    qfreehint_set_enabled(false);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);
    qfreehint_set_enabled(true);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, epoch);
    epoch = QFREEHINT_CONFIG(fh, rehint_epoch);

    /* Reading the interrupt status clears it. */
    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    qfreehint_set_enabled(false);
    qvirtio_wait_config_isr(fh->vdev, CONFIG_TIMEOUT_US);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, state), ==,
                     VIRTIO_FREEHINT_STATE_DISABLED);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, reason), ==,
                     VIRTIO_FREEHINT_REASON_OPERATOR);
    qfreehint_assert_state("disabled", "operator");

    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DECLINED);
    /* A bad range is refused for what it is, in any state. */
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, 1 * TiB, GRANULE), ==,
                    VIRTIO_FREEHINT_S_UNMAPPED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
    g_assert_cmpuint(qfreehint_count("declined", "bytes") - declined, ==,
                     GRANULE);
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, calls);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);

    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    qfreehint_set_enabled(true);
    qvirtio_wait_config_isr(fh->vdev, CONFIG_TIMEOUT_US);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, state), ==,
                     VIRTIO_FREEHINT_STATE_ACTIVE);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, epoch);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_assert_identity();
}

/* The device that query-freehint names for the veto, or NULL. */
static char *get_pinning_device(void)
{
    QDict *device = qfreehint_query();
    QList *obstacles = qdict_get_qlist(device, "obstacles");
    QDict *pinned = qobject_to(QDict, qlist_peek(obstacles));
    QList *paths = qdict_get_qlist(pinned, "qom-paths");
    char *path = NULL;

    g_assert_cmpuint(qlist_size(obstacles), ==, 1);
    g_assert_cmpstr(qdict_get_str(pinned, "reason"), ==, "pinned");
    if (paths) {
        g_assert_cmpuint(qlist_size(paths), ==, 1);
        path = g_strdup(qstring_get_str(qobject_to(QString,
                                                   qlist_peek(paths))));
    }
    qobject_unref(device);
    return path;
}

/* The driver is notified, although nobody queries. */
static void set_veto(QVirtioFreehint *fh, const char *prop, bool value)
{
    /* Reading the interrupt status clears it. */
    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    qfreehint_set_prop("veto0", prop, value);
    qvirtio_wait_config_isr(fh->vdev, CONFIG_TIMEOUT_US);
}

/* If somebody disables discards, there is a veto; a device is named. */
static void test_veto(void *obj, void *data, QGuestAllocator *alloc)
{
    static const char *const props[] = { "disabled", "uncoordinated-disabled" };
    static const char *const paths[] = { "/machine/peripheral/veto0", NULL };
    QVirtioFreehint *fh = obj;
    int i;

    write_config(fh, offsetof(struct virtio_freehint_config, driver_status),
                 VIRTIO_FREEHINT_DRIVER_WAITING);
    for (i = 0; i < ARRAY_SIZE(props); i++) {
        uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
        g_autofree char *path = NULL;

        set_veto(fh, props[i], true);
        qfreehint_fill(FREE_START, GRANULE, 0xa5);
        g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START,
                                           GRANULE), ==,
                        VIRTIO_FREEHINT_S_DECLINED);
        g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
        qfreehint_assert_state("vetoed", "pinned");
        g_assert_cmpuint(QFREEHINT_CONFIG(fh, state), ==,
                         VIRTIO_FREEHINT_STATE_VETOED);
        g_assert_cmpuint(QFREEHINT_CONFIG(fh, reason), ==,
                         VIRTIO_FREEHINT_REASON_PINNED);

        path = get_pinning_device();
        g_assert_cmpstr(path, ==, paths[i]);

        /* "operator" has precedence as the reason, and the veto stays. */
        qfreehint_set_enabled(false);
        qfreehint_assert_state("disabled", "operator");
        qfreehint_set_enabled(true);
        qfreehint_assert_state("vetoed", "pinned");

        g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);
        set_veto(fh, props[i], false);
        qfreehint_assert_state("active", NULL);
        g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, epoch);
        g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START,
                                           GRANULE), ==,
                        VIRTIO_FREEHINT_S_DISCARDED);
    }
    qfreehint_assert_identity();
}

/* Counters add up after random hints, some of them while disabled. */
static void test_identity(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    bool enabled = true;
    int i, j;

    for (i = 0; i < 200; i++) {
        QFreehintRange ranges[16];
        uint8_t status[16];
        int n = g_test_rand_int_range(0, 17);

        for (j = 0; j < n; j++) {
            ranges[j].addr = FREE_START + GRANULE *
                             g_test_rand_int_range(0, 40);
            ranges[j].len = GRANULE * g_test_rand_int_range(0, 4);
            switch (g_test_rand_int_range(0, 8)) {
            case 0:
                ranges[j].addr |= g_test_rand_int();
                break;
            case 1:
                ranges[j].len = (uint64_t)g_test_rand_int() << 32;
                break;
            case 2:
                ranges[j].addr = (uint64_t)g_test_rand_int() << 21;
                break;
            }
        }
        qfreehint_hint(fh, alloc, i & 1, ranges, n, status);
        if (!g_test_rand_int_range(0, 20)) {
            enabled = !enabled;
            qfreehint_set_enabled(enabled);
        }
        qfreehint_assert_identity();
    }
    qfreehint_set_enabled(true);
}

static void assert_qmp_error(QDict *rsp, const char *klass, const char *part)
{
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_cmpstr(qdict_get_str(error, "class"), ==, klass);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), part));
    qobject_unref(rsp);
}

static void test_qmp(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    g_autofree char *info = NULL;

    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'id': 'fh0', 'delay-ms': 250,"
                             " 'min-age-ms': 60000 } }");
    qvirtio_wait_config_isr(fh->vdev, CONFIG_TIMEOUT_US);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 250);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, min_age_ms), ==, 60000);

    /* A command changes all of its settings, or none. */
    assert_qmp_error(qmp("{ 'execute': 'freehint-set', 'arguments': {"
                         " 'id': 'fh0', 'delay-ms': 1, 'min-age-ms': 60001,"
                         " 'enabled': false } }"), "GenericError",
                     "60001");
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 250);
    qfreehint_assert_state("active", NULL);

    /* A device can be named by its QOM path. Settings that are absent stay. */
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'min-age-ms': 100,"
                             " 'id': '/machine/peripheral/fh0' } }");
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 250);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, min_age_ms), ==, 100);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'id': 'fh0', 'delay-ms': 0 } }");
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, delay_ms), ==, 0);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, min_age_ms), ==, 100);

    assert_qmp_error(qmp("{ 'execute': 'freehint-set', 'arguments': {"
                         " 'id': 'nobody', 'enabled': false } }"),
                     "GenericError", "nobody");

    info = qtest_hmp(global_qtest, "info freehint");
    g_assert_nonnull(strstr(info, "fh0: active"));
}

/* A QEMU without the events of other tests, or their rate limit. */
static void *setup_own_qemu(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -name events");
    return arg;
}

static void assert_state_event(const char *state, const char *reason)
{
    QDict *event = qtest_qmp_eventwait_ref(global_qtest,
                                           "FREEHINT_STATE_CHANGED");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "fh0");
    g_assert_cmpstr(qdict_get_str(data, "state"), ==, state);
    g_assert_cmpstr(qdict_get_try_str(data, "reason"), ==, reason);
    qobject_unref(event);
}

static void assert_no_state_event(void)
{
    /* All events that there are by now come before the answer. */
    qobject_unref(qfreehint_query());
    g_assert_null(qtest_qmp_event_ref(global_qtest,
                                      "FREEHINT_STATE_CHANGED"));
}

/*
 * One event per second, of the virtual clock under qtest: the first at once,
 * and then the last of the others.
 */
static void test_state_event(void *obj, void *data, QGuestAllocator *alloc)
{
    qfreehint_set_enabled(false);
    assert_state_event("disabled", "operator");
    qfreehint_set_enabled(true);
    qfreehint_set_enabled(false);
    qfreehint_set_enabled(true);
    assert_no_state_event();
    qtest_clock_step(global_qtest, NANOSECONDS_PER_SECOND);
    assert_state_event("active", NULL);
    qtest_clock_step(global_qtest, NANOSECONDS_PER_SECOND);
    assert_no_state_event();
}

static void test_refused_devices(void *obj, void *data,
                                 QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;

    if (fh->pci->pdev->bus->not_hotpluggable) {
        g_test_skip("pci bus does not support hotplug");
        return;
    }
    assert_qmp_error(qmp("{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'virtio-freehint-pci', 'id': 'fh1',"
                         " 'addr': '5', 'iommu_platform': true } }"),
                     "GenericError", "does not support iommu_platform");
    assert_qmp_error(qmp("{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'virtio-freehint-pci', 'id': 'fh1',"
                         " 'addr': '5', 'min-age-ms': 60001 } }"),
                     "GenericError", "60001");
    assert_qmp_error(qmp("{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'virtio-freehint-pci', 'id': 'fh1',"
                         " 'addr': '5', 'rate-limit': 1048575 } }"),
                     "GenericError", "1048575");
    assert_qmp_error(qmp("{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'virtio-freehint-pci', 'id': 'fh1',"
                         " 'addr': '5', 'discard': 'now' } }"),
                     "GenericError", "now");
    assert_qmp_error(qmp("{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'virtio-freehint-pci', 'id': 'fh1',"
                         " 'addr': '5' } }"), "GenericError", "at most one");
    qfreehint_assert_state("active", NULL);
}

static void register_virtio_freehint_test(void)
{
    QOSGraphTestOptions own = { .before = setup_own_qemu };
    QOSGraphTestOptions veto = { .before = qfreehint_setup_veto };

    qos_add_test("config", "virtio-freehint", test_config, NULL);
    qos_add_test("driver-status", "virtio-freehint", test_driver_status, NULL);
    qos_add_test("discard", "virtio-freehint", test_discard, NULL);
    qos_add_test("sizes", "virtio-freehint", test_sizes, NULL);
    qos_add_test("zero", "virtio-freehint", test_zero, NULL);
    qos_add_test("bad-ranges", "virtio-freehint", test_bad_ranges, NULL);
    qos_add_test("bad-places", "virtio-freehint", test_bad_places, NULL);
    qos_add_test("framing", "virtio-freehint", test_framing, NULL);
    qos_add_test("unsupported", "virtio-freehint", test_unsupported, NULL);
    qos_add_test("malformed", "virtio-freehint", test_malformed, NULL);
    qos_add_test("max-ranges", "virtio-freehint", test_max_ranges, NULL);
    qos_add_test("disable", "virtio-freehint", test_disable, NULL);
    qos_add_test("identity", "virtio-freehint", test_identity, NULL);
    qos_add_test("qmp", "virtio-freehint", test_qmp, NULL);
    qos_add_test("state-event", "virtio-freehint", test_state_event, &own);
    qos_add_test("refused-devices", "virtio-freehint", test_refused_devices,
                 NULL);
    qos_add_test("veto", "virtio-freehint", test_veto, &veto);
}

libqos_init(register_virtio_freehint_test);
