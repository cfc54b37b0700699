/*
 * QTest test cases for virtio-freehint: what the operator sees and sets
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
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_config.h"

#define GRANULE (2 * MiB)
#define MAX_RANGES 1024

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define FREE_START (qfreehint_ram_start() + 64 * MiB)

#define TIMEOUT_US (30 * 1000 * 1000)

/* A command's arguments: @start and those that @rest adds. The caller's. */
static QDict *arguments(const char *start, const char *rest)
{
    g_autofree char *text = g_strdup_printf("{ %s, %s }", start, rest);

    return qobject_to(QDict, qobject_from_json(text, &error_abort));
}

static void freehint_set(const char *settings)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': %p }",
                             arguments("'id': 'fh0'", settings));
}

static void assert_set_fails(const char *settings, const char *part)
{
    QDict *rsp = qmp("{ 'execute': 'freehint-set', 'arguments': %p }",
                     arguments("'id': 'fh0'", settings));
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), part));
    qobject_unref(rsp);
}

static void say(QVirtioFreehint *fh, uint32_t driver_status)
{
    qpci_io_writel(fh->pci->pdev, fh->pci->bar, fh->pci->device_cfg_offset +
                   offsetof(struct virtio_freehint_config, driver_status),
                   driver_status);
}

/* All obstacles are listed, in a fixed order. */
static void test_obstacles(void *obj, void *data, QGuestAllocator *alloc)
{
    static const uint32_t refusals[] = {
        VIRTIO_FREEHINT_DRIVER_OFF,
        VIRTIO_FREEHINT_DRIVER_POISONING,
        VIRTIO_FREEHINT_DRIVER_DEBUGGING,
        VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER,
        VIRTIO_FREEHINT_DRIVER_GRANULE,
        VIRTIO_FREEHINT_DRIVER_FAILED,
        12345,
    };
    QVirtioFreehint *fh = obj;
    g_autofree char *info = NULL;
    int i;

    qfreehint_assert_obstacles("driver-not-ready ");
    say(fh, VIRTIO_FREEHINT_DRIVER_ACTIVE);
    qfreehint_assert_obstacles("");
    say(fh, VIRTIO_FREEHINT_DRIVER_WAITING);
    qfreehint_assert_obstacles("");
    for (i = 0; i < ARRAY_SIZE(refusals); i++) {
        say(fh, refusals[i]);
        qfreehint_assert_obstacles("guest ");
    }

    freehint_set("'rate-limit': 1048576");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START,
                                       8 * GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_assert_obstacles("guest over-rate ");
    qfreehint_set_prop("veto0", "disabled", true);
    qfreehint_assert_obstacles("pinned guest over-rate ");
    qfreehint_set_enabled(false);
    qfreehint_assert_obstacles("operator pinned guest over-rate ");
    info = qtest_hmp(global_qtest, "info freehint");
    g_assert_nonnull(strstr(info, "pinned: "));
    g_assert_nonnull(strstr(info, "/machine/peripheral/veto0"));
    g_assert_nonnull(strstr(info, "over-rate: "));
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'stop' }");
    qfreehint_assert_obstacles("operator vm-stopped pinned guest over-rate ");
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'cont' }");

    qvirtio_reset(fh->vdev);
    qfreehint_assert_obstacles("operator driver-not-ready pinned over-rate ");
    freehint_set("'rate-limit': 0, 'enabled': true");
    qfreehint_set_prop("veto0", "disabled", false);
    qfreehint_restart(fh, alloc);
    say(fh, VIRTIO_FREEHINT_DRIVER_ACTIVE);
    qfreehint_assert_obstacles("");
}

static void await_reason(QVirtioFreehint *fh, uint32_t reason)
{
    gint64 start = g_get_monotonic_time();

    while (QFREEHINT_CONFIG(fh, reason) != reason) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

/* RDMA pins the source's memory for as long as the migration lasts. */
static void test_rdma(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);

    if (QEMU_VERSION_MAJOR > 10 || QEMU_VERSION_MINOR > 0) {
        g_test_skip("this version of QEMU sends no page by RDMA without RDMA");
        return;
    }
    say(fh, VIRTIO_FREEHINT_DRIVER_ACTIVE);
    qfreehint_set_prop("veto0", "rdma-migrations", true);
    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    /* Memory that takes a minute to send. */
    qtest_qmp_assert_success(global_qtest, "{ 'execute':"
                             " 'migrate-set-parameters', 'arguments': {"
                             " 'max-bandwidth': 1048576 } }");
    qfreehint_migrate("exec:cat > /dev/null");
    await_reason(fh, VIRTIO_FREEHINT_REASON_MIGRATION);
    qfreehint_assert_state("vetoed", "rdma-migration");
    qfreehint_assert_obstacles("rdma-migration ");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DECLINED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate_cancel' }");
    await_reason(fh, VIRTIO_FREEHINT_REASON_NONE);
    qfreehint_assert_obstacles("");
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, epoch);
    qfreehint_set_prop("veto0", "rdma-migrations", false);
    qos_invalidate_command_line();
}

/* Above the limit, the answer comes at once, with a time to try again. */
static void test_rate(void *obj, void *data, QGuestAllocator *alloc)
{
    const QFreehintRange ranges[] = {
        { FREE_START, 4 * GRANULE },
        { FREE_START + 8 * GRANULE, GRANULE },
        { 1 * TiB, GRANULE },
    };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = ARRAY_SIZE(ranges),
    };
    QVirtioFreehint *fh = obj;
    uint64_t over = qfreehint_count("over-rate", "bytes");
    uint64_t throttled = qfreehint_count("throttled", "ranges");
    struct virtio_freehint_ack ack;
    QFreehintHint hint;

    /* At this rate, eight MiB take four seconds. */
    freehint_set("'rate-limit': 2097152");
    qfreehint_fill(FREE_START, 9 * GRANULE, 0xa5);
    hint = qfreehint_prepare(fh, alloc, &hdr, ranges, ARRAY_SIZE(ranges));
    qfreehint_submit(fh, &hint);
    g_assert_cmpint(qfreehint_wait(fh, &hint), <, 1000 * 1000);
    ack = qfreehint_ack(&hint);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(qfreehint_status(&hint, 1), ==,
                    VIRTIO_FREEHINT_S_THROTTLED);
    /* A bad range is refused for what it is, whatever the rate. */
    g_assert_cmphex(qfreehint_status(&hint, 2), ==,
                    VIRTIO_FREEHINT_S_UNMAPPED);
    g_assert_true(qfreehint_is_filled(FREE_START, 4 * GRANULE, 0));
    g_assert_true(qfreehint_is_filled(FREE_START + 8 * GRANULE, GRANULE,
                                      0xa5));
    g_assert_cmpuint(ack.retry_after_ms, >, 3000);
    g_assert_cmpuint(ack.retry_after_ms, <=, 4000);
    g_assert_cmpuint(qfreehint_count("over-rate", "bytes") - over, ==,
                     GRANULE);
    g_assert_cmpuint(qfreehint_count("throttled", "ranges") - throttled, ==,
                     1);
    qfreehint_assert_identity();

    g_usleep(ack.retry_after_ms * 1000ull);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START + 8 * GRANULE,
                                       GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_THROTTLED);

    assert_set_fails("'rate-limit': 1048575, 'enabled': false", "1048575");
    qfreehint_assert_state("active", NULL);
    freehint_set("'rate-limit': 0");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

/* Send a lazy hint without ranges. */
static void send_lazily(QVirtioFreehint *fh, QGuestAllocator *alloc)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .flags = VIRTIO_FREEHINT_HINT_F_LAZY,
    };
    QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdr, NULL, 0);

    qfreehint_submit(fh, &hint);
    qfreehint_wait(fh, &hint);
}

/* Lazily freed memory keeps what is written to it at any time. */
static void test_lazy(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint64_t calls = qfreehint_stat("discard-calls");
    uint64_t lazy_calls = qfreehint_stat("lazy-calls");
    uint64_t bytes = qfreehint_stat("lazy-bytes");

    freehint_set("'discard': 'lazy'");
    qfreehint_fill(FREE_START, 3 * GRANULE, 0xa5);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START + GRANULE,
                                       GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("discard-calls") - calls, ==, 1);
    g_assert_cmpuint(qfreehint_stat("lazy-calls") - lazy_calls, ==, 1);
    g_assert_cmpuint(qfreehint_stat("lazy-bytes") - bytes, ==, GRANULE);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0xa5));
    g_assert_true(qfreehint_is_filled(FREE_START + 2 * GRANULE, GRANULE,
                                      0xa5));
    qfreehint_fill(FREE_START + GRANULE, GRANULE, 0x5a);
    g_assert_true(qfreehint_is_filled(FREE_START + GRANULE, GRANULE, 0x5a));

    /* Zeros stay zeros, whether the host takes them or not. */
    qfreehint_fill(FREE_START, GRANULE, 0);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, VIRTIO_FREEHINT_HINT_F_ZERO,
                                       FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));

    freehint_set("'discard': 'drop'");
    bytes = qfreehint_stat("lazy-bytes");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START + GRANULE,
                                       GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START + GRANULE, GRANULE, 0));
    g_assert_cmpuint(qfreehint_stat("lazy-bytes"), ==, bytes);
    freehint_set("'discard': 'auto'");
}

static void assert_mode(QVirtioFreehint *fh, const char *mode, bool lazy)
{
    QDict *device = qfreehint_query();

    g_assert_cmpstr(qdict_get_str(device, "discard"), ==, mode);
    g_assert_cmpstr(qdict_get_str(device, "discard-in-effect"), ==, mode);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, lazy), ==, lazy);
    qobject_unref(device);
}

/* The driver is told if this changes what is done for its lazy hints. */
static void set_mode(QVirtioFreehint *fh, const char *mode, bool lazy)
{
    const bool told = QFREEHINT_CONFIG(fh, lazy) != lazy;
    g_autofree char *setting = g_strdup_printf("'discard': '%s'", mode);

    /* Reading the interrupt status clears it. */
    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    freehint_set(setting);
    if (told) {
        qvirtio_wait_config_isr(fh->vdev, TIMEOUT_US);
    }
    assert_mode(fh, mode, lazy);
}

/* Hint memory, which is left to the host if @lazy. */
static void hint_lazily(QVirtioFreehint *fh, QGuestAllocator *alloc,
                        uint16_t flags, uint8_t status, bool lazy)
{
    /* This takes more than one job. */
    const uint64_t len = 24 * GRANULE;
    const uint64_t bytes = qfreehint_stat("lazy-bytes");
    const uint8_t pattern = flags & VIRTIO_FREEHINT_HINT_F_ZERO ? 0 : 0xa5;

    qfreehint_fill(FREE_START, len, pattern);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, flags, FREE_START, len), ==,
                    status);
    g_assert_cmpuint(qfreehint_stat("lazy-bytes") - bytes, ==, lazy ? len : 0);
    if (!lazy) {
        g_assert_true(qfreehint_is_filled(FREE_START, len, 0));
    }
}

/*
 * What the guest may want back soon is left to the host, and dropped when it is
 * hinted again. If the operator chose one of the two, that is done at once, and
 * nothing needs to be hinted again.
 */
static void test_lazy_hints(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint16_t lazy = VIRTIO_FREEHINT_HINT_F_LAZY;
    const uint16_t zero = VIRTIO_FREEHINT_HINT_F_ZERO;
    QVirtioFreehint *fh = obj;
    uint64_t discarded = qfreehint_count("discarded", "ranges");
    uint64_t unsupported;

    assert_mode(fh, "auto", true);
    hint_lazily(fh, alloc, lazy, VIRTIO_FREEHINT_S_LAZY, true);
    hint_lazily(fh, alloc, lazy | zero, VIRTIO_FREEHINT_S_LAZY, true);
    hint_lazily(fh, alloc, 0, VIRTIO_FREEHINT_S_DISCARDED, false);
    hint_lazily(fh, alloc, zero, VIRTIO_FREEHINT_S_DISCARDED, false);
    g_assert_cmpuint(qfreehint_count("discarded", "ranges") - discarded, ==,
                     4);
    qfreehint_assert_identity();
    /* A lazy hint does not affect the next hint. */
    hint_lazily(fh, alloc, lazy, VIRTIO_FREEHINT_S_LAZY, true);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, lazy, 1 * TiB, GRANULE), ==,
                    VIRTIO_FREEHINT_S_UNMAPPED);

    set_mode(fh, "drop", false);
    hint_lazily(fh, alloc, lazy, VIRTIO_FREEHINT_S_DISCARDED, false);
    hint_lazily(fh, alloc, 0, VIRTIO_FREEHINT_S_DISCARDED, false);
    set_mode(fh, "lazy", false);
    hint_lazily(fh, alloc, lazy, VIRTIO_FREEHINT_S_DISCARDED, true);
    hint_lazily(fh, alloc, 0, VIRTIO_FREEHINT_S_DISCARDED, true);
    set_mode(fh, "auto", true);

    unsupported = qfreehint_stat("unsupported");
    fh->refused_features = 1ull << VIRTIO_FREEHINT_F_LAZY;
    qfreehint_restart(fh, alloc);
    qfreehint_send(fh, alloc, VIRTIO_FREEHINT_T_HINT, NULL, 0);
    g_assert_cmpuint(qfreehint_stat("unsupported"), ==, unsupported);
    send_lazily(fh, alloc);
    g_assert_cmpuint(qfreehint_stat("unsupported") - unsupported, ==, 1);
    fh->refused_features = 0;
    qfreehint_restart(fh, alloc);
    hint_lazily(fh, alloc, lazy, VIRTIO_FREEHINT_S_LAZY, true);
}

/* Without the feature, there is no such field. */
static void test_no_lazy_hints(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;

    g_assert_false(fh->vdev->features & (1ull << VIRTIO_FREEHINT_F_LAZY));
    g_assert_cmphex(QFREEHINT_CONFIG(fh, lazy), ==, UINT32_MAX);
    hint_lazily(fh, alloc, 0, VIRTIO_FREEHINT_S_DISCARDED, false);
}

/* Without the feature of other fields, these are there, and 0. */
static void test_lazy_hints_alone(void *obj, void *data,
                                  QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;

    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, 0);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_timeout_ms), ==, 0);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, lazy), ==, 1);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, reserved), ==, 0);
}

static bool get_hint_age(uint64_t *age)
{
    QDict *device = qfreehint_query();
    bool known = qdict_haskey(device, "last-hint-age-ms");

    *age = known ? qdict_get_int(device, "last-hint-age-ms") : 0;
    qobject_unref(device);
    return known;
}

static void *setup_own_qemu(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -name times");
    return arg;
}

#define SLICE_DELAY_NS (200 * SCALE_MS)

/* How long the host took, and how long ago the last hint was. */
static void test_times(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint64_t drop_ns, age, later;

    g_assert_false(get_hint_age(&age));
    g_assert_cmpuint(qfreehint_stat("discard-time-ns"), ==, 0);

    qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE);
    g_assert_true(get_hint_age(&age));
    g_assert_cmpuint(age, <, TIMEOUT_US / 1000);
    g_usleep(50 * 1000);
    g_assert_true(get_hint_age(&later));
    g_assert_cmpuint(later, >=, age + 50);

    drop_ns = qfreehint_stat("discard-time-ns");
    g_assert_cmpuint(drop_ns, >=, SLICE_DELAY_NS);
    g_assert_cmpuint(qfreehint_stat("lazy-time-ns"), ==, 0);

    freehint_set("'discard': 'lazy'");
    qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE);
    g_assert_cmpuint(qfreehint_stat("lazy-time-ns"), >=, SLICE_DELAY_NS);
    g_assert_cmpuint(qfreehint_stat("discard-time-ns"), ==,
                     drop_ns + qfreehint_stat("lazy-time-ns"));
    freehint_set("'discard': 'auto'");
}

/* The answer to a later message waits for the answer to an earlier one. */
static void test_in_order(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    const struct virtio_freehint_hdr unknown = { .type = 77 };
    const QFreehintRange range = { FREE_START, GRANULE };
    QVirtioFreehint *fh = obj;
    QFreehintHint hint, other;

    g_assert_true(fh->vdev->features & (1ull << VIRTIO_F_IN_ORDER));
    hint = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
    other = qfreehint_prepare_body(fh, alloc, &unknown, NULL, 0);
    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    qfreehint_submit(fh, &hint);
    qfreehint_submit(fh, &other);
    qfreehint_wait(fh, &hint);
    qfreehint_wait(fh, &other);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_ack(&other).result, ==,
                     VIRTIO_FREEHINT_R_UNSUPPORTED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));

    /* A message that a drain has dropped does not hold up later ones. */
    qfreehint_submit(fh, &hint);
    qfreehint_restart(fh, alloc);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

/* Properties are set with -device, and shown; freehint-set changes them. */
static void test_properties(void *obj, void *data, QGuestAllocator *alloc)
{
    static const char *const names[] = {
        "enabled", "delay-ms", "min-age-ms", "rate-limit", "discard",
        "assume-vhost-user-safe",
    };
    QDict *before = qfreehint_query(), *after;
    int i;

    freehint_set("'enabled': false, 'delay-ms': 7, 'min-age-ms': 8,"
                 " 'rate-limit': 104857600, 'discard': 'lazy',"
                 " 'assume-vhost-user-safe': true");
    after = qfreehint_query();
    for (i = 0; i < ARRAY_SIZE(names); i++) {
        QDict *rsp = qmp("{ 'execute': 'qom-get', 'arguments': {"
                         " 'path': 'fh0', 'property': %s } }", names[i]);

        g_assert_true(qobject_is_equal(qdict_get(rsp, "return"),
                                       qdict_get(after, names[i])));
        g_assert_false(qobject_is_equal(qdict_get(before, names[i]),
                                        qdict_get(after, names[i])));
        qobject_unref(rsp);
        rsp = qmp("{ 'execute': 'qom-set', 'arguments': { 'path': 'fh0',"
                  " 'property': %s, 'value': %p } }", names[i],
                  qobject_ref(qdict_get(before, names[i])));
        g_assert_true(qdict_haskey(rsp, "error"));
        qobject_unref(rsp);
    }
    freehint_set("'enabled': true, 'delay-ms': 0, 'min-age-ms': 100,"
                 " 'rate-limit': 0, 'discard': 'auto',"
                 " 'assume-vhost-user-safe': false");
    qobject_unref(after);
    qobject_unref(before);
}

/* Unplug with a hint and a flush in progress, then plug a new device. */
static void test_hotplug(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    const QFreehintRange range = { FREE_START, GRANULE };
    QPCIAddress addr = { .devfn = QPCI_DEVFN(4, 0) };
    QVirtioFreehint *fh = obj, again = { };
    QPCIBus *bus = fh->pci->pdev->bus;
    QTestState *qts = bus->qts;
    QVirtioPCIDevice *pci;
    QFreehintHint hint;

    if (bus->not_hotpluggable) {
        g_test_skip("pci bus does not support hotplug");
        return;
    }
    hint = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
    qfreehint_submit(fh, &hint);
    qtest_qmp_assert_success(qts, "{ 'execute': 'freehint-flush',"
                             " 'arguments': { 'id': 'fh0' } }");
    qtest_qmp_assert_success(qts, "{ 'execute': 'device_del',"
                             " 'arguments': { 'id': 'fh0' } }");
    /* The guest ejects slot 4. */
    qtest_outl(qts, 0xae08, 1 << 4);
    qtest_qmp_eventwait(qts, "FREEHINT_FLUSH_COMPLETED");
    qtest_qmp_eventwait(qts, "DEVICE_DELETED");

    qtest_qmp_device_add(qts, "virtio-freehint-pci", "fh0", "{'addr': '4'}");
    pci = virtio_pci_new(bus, &addr);
    g_assert_nonnull(pci);
    qvirtio_pci_device_enable(pci);
    qvirtio_start_device(&pci->vdev);
    qfreehint_init(&again, pci);
    qfreehint_start(&again, alloc);
    g_assert_cmpuint(qfreehint_count("hinted", "ranges"), ==, 0);
    qfreehint_fill(FREE_START, GRANULE, 0xa5);
    g_assert_cmphex(qfreehint_hint_one(&again, alloc, 0, FREE_START, GRANULE),
                    ==, VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, GRANULE, 0));
    qvirtqueue_cleanup(again.vdev->bus, again.vq, alloc);
    qvirtio_pci_device_disable(pci);
    g_free(pci->pdev);
    g_free(pci);
    /* The next test needs the device that libqos knows. */
    qos_invalidate_command_line();
}

/* The time that the main loop spends on the worst of guests */

#define STORMS 4
#define STORM_MESSAGES 30

/* The bound for all turns except one in a thousand. */
#define TURN_NS_MAX (2 * SCALE_MS)

/* Each thread has its own file, by its number. */
static char *trace_file(const char *thread)
{
    return g_strdup_printf("%s/qtest-freehint-%d.trace.%s", g_get_tmp_dir(),
                           getpid(), thread);
}

static void *setup_trace(GString *cmd_line, void *arg)
{
    g_autofree char *path = trace_file("%d");

    g_string_append_printf(cmd_line, " -d tid -D %s"
                           " -trace virtio_freehint_turn_end"
                           " -trace virtio_freehint_job_begin", path);
    return arg;
}

/*
 * Fill the ring with ranges that take the longest to refuse. Returns whether
 * QMP was served meanwhile: on a busy machine the device may be done before
 * that.
 */
static bool storm(QVirtioFreehint *fh, QFreehintHint *hint)
{
    gint64 start = g_get_monotonic_time();
    uint32_t head, len;
    bool served;
    int i;

    for (i = 0; i < STORM_MESSAGES; i++) {
        qfreehint_submit(fh, hint);
    }
    served = qfreehint_count("in-flight", "ranges");
    for (i = 0; i < STORM_MESSAGES; i++) {
        while (!qfreehint_poll(fh, &head, &len)) {
            /* Kick all the time, with nothing new. */
            fh->vdev->bus->virtqueue_kick(fh->vdev, fh->vq);
            g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        }
    }
    return served;
}

typedef struct TraceSums {
    unsigned int turns, long_turns, slices;
    int64_t longest_ns;
} TraceSums;

static void sum_line(const char *line, bool main_thread, TraceSums *sums)
{
    const char *cpu = strstr(line, "cpu_ns=");

    if (strstr(line, "job_begin")) {
        g_assert_false(main_thread);
        sums->slices++;
    } else if (cpu && !strstr(line, "messages=0 steps=0 ")) {
        int64_t ns = g_ascii_strtoll(cpu + strlen("cpu_ns="), NULL, 10);

        g_assert_true(main_thread);
        g_assert_cmpint(ns, >, 0);
        sums->turns++;
        sums->long_turns += ns > TURN_NS_MAX;
        sums->longest_ns = MAX(sums->longest_ns, ns);
    }
}

static void sum_file(const char *path, bool main_thread, TraceSums *sums)
{
    g_autofree char *trace = NULL;
    g_auto(GStrv) lines = NULL;
    char **line;

    g_assert_true(g_file_get_contents(path, &trace, NULL, NULL));
    lines = g_strsplit(trace, "\n", -1);
    for (line = lines; *line; line++) {
        sum_line(*line, main_thread, sums);
    }
}

/* The sums over the traces of all threads. */
static TraceSums sum_files(void)
{
    g_autofree char *main_thread = g_strdup_printf("%d",
                                                   qtest_pid(global_qtest));
    g_autofree char *prefix = trace_file("");
    g_autofree char *name = g_path_get_basename(prefix);
    g_autoptr(GDir) folder = g_dir_open(g_get_tmp_dir(), 0, NULL);
    TraceSums sums = { };
    const char *found;

    while ((found = g_dir_read_name(folder))) {
        if (g_str_has_prefix(found, name)) {
            const char *thread = found + strlen(name);
            g_autofree char *path = trace_file(thread);

            sum_file(path, !strcmp(thread, main_thread), &sums);
            unlink(path);
        }
    }
    return sums;
}

static void test_turns(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = MAX_RANGES,
    };
    g_autofree QFreehintRange *ranges = g_new(QFreehintRange, MAX_RANGES);
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;
    TraceSums sums;
    int i, served = 0;

    for (i = 0; i < MAX_RANGES; i++) {
        /* RAM, VGA and firmware, more RAM, and so on up to the APIC. */
        ranges[i] = (QFreehintRange) { 0, 0xff000000 };
    }
    hint = qfreehint_prepare(fh, alloc, &hdr, ranges, MAX_RANGES);
    for (i = 0; i < STORMS; i++) {
        served += storm(fh, &hint);
        g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START,
                                           GRANULE), ==,
                        VIRTIO_FREEHINT_S_DISCARDED);
    }
    sums = sum_files();
    g_test_message("%u turns, %u over the bound, longest %" PRId64 " ns, %u"
                   " slices, QMP served in %d of %d storms", sums.turns,
                   sums.long_turns, sums.longest_ns, sums.slices, served,
                   STORMS);
    g_assert_cmpint(served, >, 0);
    g_assert_cmpuint(sums.turns, >=, 1000);
    g_assert_cmpuint(sums.long_turns, <=, sums.turns / 1000);
    g_assert_cmpuint(sums.slices, >=, STORMS);
    qos_invalidate_command_line();
}

static void register_virtio_freehint_control_test(void)
{
    QOSGraphTestOptions veto = { .before = qfreehint_setup_veto };
    QOSGraphTestOptions trace = { .before = setup_trace };
    QOSGraphTestOptions slow = {
        .edge.extra_device_opts = "x-job-delay-ms=200",
    };
    QOSGraphTestOptions slow_own = {
        .edge.extra_device_opts = "x-job-delay-ms=200",
        .before = setup_own_qemu,
    };
    QOSGraphTestOptions eager = { .edge.extra_device_opts = "lazy-hints=off" };
    QOSGraphTestOptions alone = { .edge.extra_device_opts = "flush=off" };
    QOSGraphTestOptions in_order = {
        .edge.extra_device_opts = "x-job-delay-ms=200,in_order=on",
    };

    qos_add_test("obstacles", "virtio-freehint", test_obstacles, &veto);
    qos_add_test("rdma", "virtio-freehint", test_rdma, &veto);
    qos_add_test("rate", "virtio-freehint", test_rate, NULL);
    qos_add_test("lazy", "virtio-freehint", test_lazy, NULL);
    qos_add_test("lazy-hints/modes", "virtio-freehint", test_lazy_hints, NULL);
    qos_add_test("lazy-hints/off", "virtio-freehint", test_no_lazy_hints,
                 &eager);
    qos_add_test("lazy-hints/alone", "virtio-freehint", test_lazy_hints_alone,
                 &alone);
    qos_add_test("times", "virtio-freehint-testdev", test_times, &slow_own);
    qos_add_test("in-order", "virtio-freehint-testdev",
                 test_in_order, &in_order);
    qos_add_test("properties", "virtio-freehint", test_properties, NULL);
    qos_add_test("hotplug", "virtio-freehint-testdev", test_hotplug, &slow);
    qos_add_test("turns", "virtio-freehint", test_turns, &trace);
}

libqos_init(register_virtio_freehint_control_test);
