/*
 * QTest test cases for virtio-freehint: what a migration sends and loads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/pci.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"
#include "qobject/qdict.h"

#define GRANULE (2 * MiB)

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define FREE_START (qfreehint_ram_start() + 64 * MiB)
#define FREE_LEN (64 * MiB)

/*
 * This memory is hinted while a migration runs. It is sent last, and the memory
 * before it takes half a minute at the bandwidth that the tests begin with.
 */
#define HINT_START (FREE_START + 32 * MiB)
#define HINT_LEN (32 * MiB)
#define SLOW_BYTES_PER_S MiB

/* The filled memory takes as long as four polls for the end of the veto. */
#define POSTCOPY_BYTES_PER_S (FREE_LEN / 2)

/* Less than is hinted, but much more than is sent twice. */
#define SENT_TWICE MiB

#define TIMEOUT_US (30 * 1000 * 1000)

static uint64_t get_device_int(const char *name)
{
    QDict *device = qfreehint_query();
    uint64_t value = qdict_get_int(device, name);

    qobject_unref(device);
    return value;
}

static void set_capability(const char *name)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute':"
                             " 'migrate-set-capabilities', 'arguments': {"
                             " 'capabilities': [ { 'capability': %s,"
                             " 'state': true } ] } }", name);
}

static void set_bandwidth(uint64_t bytes_per_s)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute':"
                             " 'migrate-set-parameters', 'arguments': {"
                             " 'max-bandwidth': %" PRIu64 " } }",
                             bytes_per_s);
}

/* The memory that was sent, in full or as zero pages, and @total. */
static uint64_t sent_bytes(uint64_t *total)
{
    QDict *rsp = qmp("{ 'execute': 'query-migrate' }");
    QDict *ram = qdict_get_qdict(qdict_get_qdict(rsp, "return"), "ram");
    uint64_t pages = qdict_get_int(ram, "normal") +
                     qdict_get_int(ram, "duplicate");
    uint64_t bytes = pages * qdict_get_int(ram, "page-size");

    *total = qdict_get_int(ram, "total");
    qobject_unref(rsp);
    return bytes;
}

static void await_epoch_other_than(QVirtioFreehint *fh, uint32_t epoch)
{
    gint64 start = g_get_monotonic_time();

    while (QFREEHINT_CONFIG(fh, rehint_epoch) == epoch) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

static void await_migration_status(const char *wanted)
{
    gint64 start = g_get_monotonic_time();
    bool reached = false;

    while (!reached) {
        QDict *rsp = qmp("{ 'execute': 'query-migrate' }");

        reached = !strcmp(qdict_get_try_str(qdict_get_qdict(rsp, "return"),
                                            "status") ?: "", wanted);
        qobject_unref(rsp);
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

static QTestState *start_destination(const char *props, const char *uri)
{
    return qtest_initf("-M %s -device virtio-freehint-pci,addr=04.0,id=fh0%s"
                       " -incoming %s", qfreehint_machine(), props, uri);
}

/* From here on the guest is in @to, and global_qtest is that. */
static void switch_over(QTestState *to)
{
    set_bandwidth(0);
    qfreehint_await_migration();
    global_qtest = to;
    qtest_qmp_eventwait(to, "RESUME");
}

static void switch_back(QTestState *from)
{
    qtest_quit(global_qtest);
    global_qtest = from;
    qos_invalidate_command_line();
}

/* Migrate slowly, and hint once precopy has begun. */
static void migrate_and_hint(QVirtioFreehint *fh, QGuestAllocator *alloc,
                             const char *uri, uint16_t flags, bool asked)
{
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);

    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    set_bandwidth(SLOW_BYTES_PER_S);
    qfreehint_migrate(uri);
    if (asked) {
        await_epoch_other_than(fh, epoch);
    } else {
        await_migration_status("active");
    }
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, flags, HINT_START, HINT_LEN),
                    ==, VIRTIO_FREEHINT_S_DISCARDED);
}

/* Memory that is discarded during precopy is not sent; later writes are. */
static void test_skip(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *from = global_qtest;
    QTestState *to = start_destination("", uri);
    uint64_t sent, total;

    migrate_and_hint(obj, alloc, uri, 0, true);
    qfreehint_fill(HINT_START + GRANULE, GRANULE, 0x5a);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, HINT_LEN);

    set_bandwidth(0);
    qfreehint_await_migration();
    sent = sent_bytes(&total);
    g_assert_cmpuint(sent, <, total - HINT_LEN + GRANULE + SENT_TWICE);

    switch_over(to);
    g_assert_true(qfreehint_is_filled(FREE_START, HINT_START - FREE_START,
                                      0xa5));
    g_assert_true(qfreehint_is_filled(HINT_START, GRANULE, 0));
    g_assert_true(qfreehint_is_filled(HINT_START + GRANULE, GRANULE, 0x5a));
    g_assert_true(qfreehint_is_filled(HINT_START + 2 * GRANULE,
                                      HINT_LEN - 2 * GRANULE, 0));
    switch_back(from);
}

static void assert_all_sent(QTestState *from, QTestState *to)
{
    uint64_t sent, total;

    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);
    set_bandwidth(0);
    qfreehint_await_migration();
    sent = sent_bytes(&total);
    g_assert_cmpuint(sent, >=, total);
    switch_over(to);
    g_assert_true(qfreehint_is_filled(FREE_START, HINT_START - FREE_START,
                                      0xa5));
    g_assert_true(qfreehint_is_filled(HINT_START, HINT_LEN, 0));
    switch_back(from);
}

/* If the guest relies on zeros, the memory is sent. */
static void test_skip_not_zero(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *to = start_destination("", uri);

    migrate_and_hint(obj, alloc, uri, VIRTIO_FREEHINT_HINT_F_ZERO, true);
    assert_all_sent(global_qtest, to);
}

/*
 * A destination that can run before it has all memory. NULL if the host has no
 * userfaultfd, or does not let us use it; the test is skipped then.
 */
static QTestState *start_postcopy(const char *uri)
{
    QTestState *from = global_qtest, *to;
    QDict *rsp = qmp("{ 'execute': 'migrate-set-capabilities', 'arguments': {"
                     " 'capabilities': [ { 'capability': 'postcopy-ram',"
                     " 'state': true } ] } }");
    bool supported = !qdict_haskey(rsp, "error");

    qobject_unref(rsp);
    if (!supported) {
        g_test_skip("no userfaultfd");
        return NULL;
    }
    to = start_destination("", "defer");
    global_qtest = to;
    set_capability("postcopy-ram");
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    global_qtest = from;
    return to;
}

/* A destination that runs early would wait for memory that is not sent. */
static void test_skip_not_postcopy(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *to = start_postcopy(uri);
    QVirtioFreehint *fh = obj;
    uint32_t epoch;

    if (!to) {
        return;
    }
    epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    migrate_and_hint(fh, alloc, uri, 0, false);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);
    assert_all_sent(global_qtest, to);
}

/* The next state that QEMU announces. */
static char *await_state_change(QTestState *qts)
{
    QDict *event = qtest_qmp_eventwait_ref(qts, "FREEHINT_STATE_CHANGED");
    char *state = g_strdup(qdict_get_str(qdict_get_qdict(event, "data"),
                                         "state"));

    qobject_unref(event);
    return state;
}

/*
 * Nothing is discarded while memory is still to come. Nobody announces the end;
 * the device has to poll for it, even if nobody queries.
 */
static void test_incoming_postcopy(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *from = global_qtest, *to = start_postcopy(uri);
    g_autofree char *during = NULL, *after = NULL;

    if (!to) {
        return;
    }
    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    set_bandwidth(SLOW_BYTES_PER_S);
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-set-parameters',"
                             " 'arguments': { 'max-postcopy-bandwidth':"
                             " %" PRIu64 " } }", POSTCOPY_BYTES_PER_S);
    qfreehint_migrate(uri);
    await_migration_status("active");
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-start-postcopy' }");

    during = await_state_change(to);
    g_assert_cmpstr(during, ==, "vetoed");
    /* Events are limited to one per second of the guest's time. */
    qtest_clock_step(to, NANOSECONDS_PER_SECOND);
    after = await_state_change(to);
    g_assert_cmpstr(after, ==, "active");
    global_qtest = to;
    switch_back(from);
}

/*
 * A socket that a migration can connect to, but nobody reads from it. Up to
 * @backlog + 1 connections succeed at once, another one has to wait.
 */
static int listen_only(const char *uri, int backlog)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const char *path = uri + strlen("unix:");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_assert_cmpuint(strlen(path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    unlink(path);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(fd, backlog), ==, 0);
    return fd;
}

static void stop_listening(int fd, const char *uri)
{
    close(fd);
    unlink(uri + strlen("unix:"));
}

static int connect_to(const char *uri)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strcpy(addr.sun_path, uri + strlen("unix:"));
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

static void cancel_migration(void)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate_cancel' }");
    await_migration_status("cancelled");
}

/*
 * The migration thread waits for the network, and holds the bitmap's lock
 * meanwhile: the device does not wait for that, and the memory is sent.
 */
static void test_skip_stuck(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    const QFreehintRange range = { HINT_START, HINT_LEN };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    int fd = listen_only(uri, 1);
    uint64_t sent = 0, total, before;
    QFreehintHint hint;

    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    set_bandwidth(0);
    qfreehint_migrate(uri);
    await_epoch_other_than(fh, epoch);
    do {
        before = sent;
        g_usleep(200 * 1000);
        sent = sent_bytes(&total);
    } while (!sent || sent != before);
    g_assert_cmpuint(sent, <, total);

    hint = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
    qfreehint_submit(fh, &hint);
    g_assert_cmpint(qfreehint_wait(fh, &hint), <, 1000 * 1000);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);
    g_assert_cmpuint(qfreehint_stat("discard-bytes"), >, 0);
    qfreehint_assert_identity();

    epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    cancel_migration();
    /* Precopy has read memory that was discarded. */
    await_epoch_other_than(fh, epoch);
    stop_listening(fd, uri);
}

/* The device takes hints and does nothing with them. */
static void set_hang(bool hang)
{
    QDict *faults = qdict_new();

    if (hang) {
        qdict_put_int(faults, "hang", 1);
    }
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'qom-set',"
                             " 'arguments': { 'path':"
                             " '/machine/peripheral/fh0', 'property':"
                             " 'x-faults', 'value': %p } }", faults);
}

static void await_in_flight(uint64_t ranges)
{
    gint64 start = g_get_monotonic_time();

    while (qfreehint_count("in-flight", "ranges") != ranges) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

/* Untouched RAM that takes seconds to scan, and almost no memory. */
#define LARGE_RAM "8G"
#define SCATTERED 256
#define SCATTERED_HINTS 32
/* The end of that RAM, after the hole from 3 to 4 GiB; it is sent last. */
#define SCATTERED_START (9 * GiB - 2 * SCATTERED * GRANULE)

static void *setup_large_ram(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -m " LARGE_RAM);
    return arg;
}

/* While the migration thread sends as fast as it can, hints get their turn. */
static void test_skip_unthrottled(void *obj, void *data,
                                  QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = SCATTERED / SCATTERED_HINTS,
    };
    QFreehintRange ranges[SCATTERED];
    QFreehintHint hints[SCATTERED_HINTS];
    gint64 us = 0;
    int i, j;

    for (i = 0; i < SCATTERED; i++) {
        ranges[i].addr = SCATTERED_START + 2 * i * GRANULE;
        ranges[i].len = GRANULE;
    }
    for (i = 0; i < SCATTERED_HINTS; i++) {
        hints[i] = qfreehint_prepare(fh, alloc, &hdr, &ranges[i * hdr.nranges],
                                     hdr.nranges);
    }
    set_bandwidth(0);
    qfreehint_migrate("exec:cat >/dev/null");
    await_epoch_other_than(fh, epoch);
    /* One hint after the other; each has to wait for its turn. */
    for (i = 0; i < SCATTERED_HINTS; i++) {
        qfreehint_submit(fh, &hints[i]);
        us += qfreehint_wait(fh, &hints[i]);
        for (j = 0; j < hdr.nranges; j++) {
            g_assert_cmphex(qfreehint_status(&hints[i], j), ==,
                            VIRTIO_FREEHINT_S_DISCARDED);
        }
    }
    g_test_message("%d hints: %" PRId64 " us, %" PRIu64 " MiB skipped",
                   SCATTERED_HINTS, us, qfreehint_stat("skipped-bytes") / MiB);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), >=, 256 * MiB);
    g_assert_cmpint(us, <, 1000 * 1000);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate_cancel' }");
    qos_invalidate_command_line();
}

/* So slow that one slice ends after the migration. */
#define SLOW_OPTS "x-job-delay-ms=1200"
/* So slow that a slice ends before its hint has to be answered anyway. */
#define SHORT_OPTS "x-job-delay-ms=400"
#define BEGIN_US (150 * 1000)

/* The first range gets its status at once, the other one takes a while. */
static QFreehintHint submit_empty_and_slow(QVirtioFreehint *fh,
                                           QGuestAllocator *alloc)
{
    const QFreehintRange ranges[] = { { HINT_START }, { HINT_START, GRANULE } };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = ARRAY_SIZE(ranges),
    };
    QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdr, ranges,
                                           ARRAY_SIZE(ranges));

    qfreehint_submit(fh, &hint);
    return hint;
}

/* Start precopy; returns the epoch that begins with it. */
static uint32_t start_precopy(QVirtioFreehint *fh)
{
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);

    qfreehint_migrate("exec:cat > /dev/null");
    await_epoch_other_than(fh, epoch);
    return QFREEHINT_CONFIG(fh, rehint_epoch);
}

/*
 * An answer has the epoch in which its first status was decided, not an earlier
 * or a later one.
 */
static void test_ack_epoch(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;
    uint32_t epoch;

    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    set_bandwidth(SLOW_BYTES_PER_S);
    set_hang(true);
    hint = submit_empty_and_slow(fh, alloc);
    await_in_flight(2);
    epoch = start_precopy(fh);
    set_hang(false);
    qfreehint_wait(fh, &hint);
    g_assert_cmpuint(qfreehint_ack(&hint).rehint_epoch, ==, epoch);

    cancel_migration();
    await_epoch_other_than(fh, epoch);
    epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    hint = submit_empty_and_slow(fh, alloc);
    await_in_flight(1);
    start_precopy(fh);
    qfreehint_wait(fh, &hint);
    g_assert_cmphex(qfreehint_status(&hint, 1), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_ack(&hint).rehint_epoch, ==, epoch);
    cancel_migration();
    /* The next test's migration must not be as slow. */
    qos_invalidate_command_line();
}

/* The bitmap is freed while a slice is in progress that would change it. */
static void test_skip_late(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    const QFreehintRange range = { HINT_START, GRANULE };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    int fd = listen_only(uri, 1);
    QFreehintHint hint;

    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    qfreehint_migrate(uri);
    await_epoch_other_than(fh, epoch);
    hint = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
    qfreehint_submit(fh, &hint);
    g_usleep(BEGIN_US);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 1);
    cancel_migration();
    g_assert_cmpint(qfreehint_wait(fh, &hint), <, 500 * 1000);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);
    stop_listening(fd, uri);
}

/* There is no bitmap until the first sync, however long that takes. */
static void test_skip_connecting(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    int fd = listen_only(uri, 0);
    int first = connect_to(uri);

    qfreehint_migrate(uri);
    await_migration_status("setup");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, HINT_START, HINT_LEN), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);

    stop_listening(fd, uri);
    close(first);
    await_migration_status("failed");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, HINT_START, HINT_LEN), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);
}

/* Memory that both sides share is not sent: it has no bitmap. */
static void test_skip_not_ignored(void *obj, void *data,
                                  QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    g_autofree char *path = qfreehint_ram_file();
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    int fd = listen_only(uri, 1);

    set_capability("x-ignore-shared");
    set_bandwidth(SLOW_BYTES_PER_S / 16);
    qfreehint_migrate(uri);
    await_epoch_other_than(fh, epoch);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, HINT_START, HINT_LEN), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(qfreehint_stat("skipped-bytes"), ==, 0);

    cancel_migration();
    stop_listening(fd, uri);
    unlink(path);
    qos_invalidate_command_line();
}

/* Preallocated memory, under the name that "pc" has for its own. */
#define PREALLOCATED " -machine memory-backend=pc.ram" \
    " -object memory-backend-ram,id=pc.ram,size=128M,prealloc=on," \
    "x-use-canonical-path-for-ramblock-id=off"

/* The destination refuses all hints, and nothing is lost. */
static void test_refusing_destination(void *obj, void *data,
                                      QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *from = global_qtest, *to;
    QVirtioFreehint *fh = obj;

    if (qfreehint_ram_start()) {
        g_test_skip("another machine has another name for its memory");
        return;
    }
    to = start_destination(PREALLOCATED, uri);
    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);
    qfreehint_migrate(uri);
    switch_over(to);
    fh->pci->pdev->bus->qts = to;
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, HINT_START, HINT_LEN), ==,
                    VIRTIO_FREEHINT_S_BACKING);
    g_assert_cmpuint(qfreehint_count_rejected("backing"), ==, 1);
    g_assert_true(qfreehint_is_filled(FREE_START, FREE_LEN, 0xa5));
    fh->pci->pdev->bus->qts = from;
    switch_back(from);
}

/* The granule must not change: a destination with a smaller one adopts it. */
static void test_migrate_granule(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *from = global_qtest, *to = start_destination("", uri);

    g_assert_cmpuint(get_device_int("granule"), ==, 2 * GRANULE);
    qfreehint_migrate(uri);
    switch_over(to);
    g_assert_cmpuint(get_device_int("granule"), ==, 2 * GRANULE);
    switch_back(from);
}

/* A destination with a larger granule could not do what the driver was told. */
static void test_migrate_large_granule(void *obj, void *data,
                                       QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QTestState *to = start_destination(",x-granule=8M", uri);

    qtest_set_expected_status(to, EXIT_FAILURE);
    qfreehint_migrate(uri);
    qtest_wait_qemu(to);
    qtest_quit(to);
    qos_invalidate_command_line();
}


/* The begin of the device's state in a stream, in the stream's byte order. */
typedef struct QEMU_PACKED DeviceState {
    uint64_t granule;
    uint32_t max_ranges;
} DeviceState;

static DeviceState device_state(uint64_t granule, uint32_t max_ranges)
{
    return (DeviceState) {
        .granule = cpu_to_be64(granule),
        .max_ranges = cpu_to_be32(max_ranges),
    };
}

/* Load a stream in which the device's state @old is replaced by another one. */
static void load_stream(const char *path, const DeviceState *old,
                        const DeviceState *new, int status)
{
    g_autofree char *uri = g_strdup_printf("file:%s.changed", path);
    g_autofree char *stream = NULL;
    QTestState *to;
    void *found;
    gsize size;

    g_assert_true(g_file_get_contents(path, &stream, &size, NULL));
    found = memmem(stream, size, old, sizeof(*old));
    g_assert_nonnull(found);
    memcpy(found, new, sizeof(*new));
    g_assert_null(memmem(stream, size, old, sizeof(*old)));
    g_assert_true(g_file_set_contents(uri + strlen("file:"), stream, size,
                                      NULL));

    to = start_destination("", "defer");
    qtest_set_expected_status(to, status);
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             " 'arguments': { 'uri': %s } }", uri);
    if (status) {
        qtest_wait_qemu(to);
    } else {
        qtest_qmp_eventwait(to, "RESUME");
    }
    qtest_quit(to);
    unlink(uri + strlen("file:"));
}

/* A stream is not trusted: a state that no device could send is refused. */
static void test_hostile_stream(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = g_strdup_printf("file:%s/qtest-freehint-%d.stream",
                                           g_get_tmp_dir(), getpid());
    const char *path = uri + strlen("file:");
    QVirtioFreehint *fh = obj;
    const uint32_t max = QFREEHINT_CONFIG(fh, max_ranges);
    const DeviceState old = device_state(GRANULE, max);
    const struct {
        DeviceState state;
        int status;
    } streams[] = {
        /* A good state is accepted: the values are why others are not. */
        { device_state(2 * GRANULE, 1), EXIT_SUCCESS },
        { device_state(1ull << 63, max), EXIT_SUCCESS },
        { device_state(0, max), EXIT_FAILURE },
        { device_state(GRANULE / 2, max), EXIT_FAILURE },
        { device_state(3 * GRANULE, max), EXIT_FAILURE },
        { device_state(GRANULE, 0), EXIT_FAILURE },
        { device_state(GRANULE, max + 1), EXIT_FAILURE },
    };
    int i;

    qfreehint_migrate(uri);
    qfreehint_await_migration();
    for (i = 0; i < ARRAY_SIZE(streams); i++) {
        load_stream(path, &old, &streams[i].state, streams[i].status);
    }
    unlink(path);
    qos_invalidate_command_line();
}

static void register_virtio_freehint_migrate_test(void)
{
    QOSGraphTestOptions slow = { .edge.extra_device_opts = SLOW_OPTS };
    QOSGraphTestOptions short_slice = {
        .edge.extra_device_opts = SHORT_OPTS,
    };
    QOSGraphTestOptions granule = {
        .edge.extra_device_opts = "x-granule=4M",
    };
    QOSGraphTestOptions large = { .before = setup_large_ram };
    QOSGraphTestOptions shared = {
        .edge.extra_device_opts = "discard-file-backed=on",
        .before = qfreehint_setup_shared_ram,
    };

    qos_add_test("migrate/skip", "virtio-freehint", test_skip, NULL);
    qos_add_test("migrate/skip-not-zero", "virtio-freehint",
                 test_skip_not_zero, NULL);
    qos_add_test("migrate/skip-not-postcopy", "virtio-freehint",
                 test_skip_not_postcopy, NULL);
    qos_add_test("migrate/incoming-postcopy", "virtio-freehint",
                 test_incoming_postcopy, NULL);
    qos_add_test("migrate/skip-stuck", "virtio-freehint", test_skip_stuck,
                 NULL);
    qos_add_test("migrate/skip-unthrottled", "virtio-freehint",
                 test_skip_unthrottled, &large);
    qos_add_test("migrate/skip-late", "virtio-freehint-testdev",
                 test_skip_late, &short_slice);
    qos_add_test("migrate/ack-epoch", "virtio-freehint-testdev",
                 test_ack_epoch, &slow);
    qos_add_test("migrate/skip-connecting", "virtio-freehint",
                 test_skip_connecting, NULL);
    qos_add_test("migrate/skip-not-ignored", "virtio-freehint",
                 test_skip_not_ignored, &shared);
    qos_add_test("migrate/refusing-destination", "virtio-freehint",
                 test_refusing_destination, NULL);
    qos_add_test("migrate/granule", "virtio-freehint", test_migrate_granule,
                 &granule);
    qos_add_test("migrate/large-granule", "virtio-freehint",
                 test_migrate_large_granule, &granule);
    qos_add_test("migrate/hostile-stream", "virtio-freehint",
                 test_hostile_stream, NULL);
}

libqos_init(register_virtio_freehint_migrate_test);
