/*
 * QTest test cases for virtio-freehint: flush, and the guest's gauges
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/pci.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"
#include "hw/pci/pci_regs.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"

#define GRANULE (2 * MiB)
#define FREE_START (qfreehint_ram_start() + 64 * MiB)

#define CONFIG_TIMEOUT_US (10 * 1000 * 1000)

#define COMPLETED "FREEHINT_FLUSH_COMPLETED"

static const struct virtio_freehint_gauges some_gauges = {
    .free = 11 * GRANULE,
    .pending = 22 * GRANULE,
    .hinted = 33 * GRANULE,
    .in_flight = 44 * GRANULE,
    .stuck = 55 * GRANULE,
    .reused = 66 * GRANULE,
    .rest_ms = 77,
};

static struct virtio_freehint_gauges to_le(struct virtio_freehint_gauges cpu)
{
    return (struct virtio_freehint_gauges) {
        .free = cpu_to_le64(cpu.free),
        .pending = cpu_to_le64(cpu.pending),
        .hinted = cpu_to_le64(cpu.hinted),
        .in_flight = cpu_to_le64(cpu.in_flight),
        .stuck = cpu_to_le64(cpu.stuck),
        .reused = cpu_to_le64(cpu.reused),
        .rest_ms = cpu_to_le32(cpu.rest_ms),
    };
}

static void assert_gauges(QDict *parent)
{
    QDict *gauges = qdict_get_qdict(parent, "guest-gauges");

    g_assert_nonnull(gauges);
    g_assert_cmpuint(qdict_get_int(gauges, "free"), ==, 11 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "pending"), ==, 22 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "hinted"), ==, 33 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "in-flight"), ==, 44 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "stuck"), ==, 55 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "reused"), ==, 66 * GRANULE);
    g_assert_cmpuint(qdict_get_int(gauges, "rest-ms"), ==, 77);
    g_assert_cmpuint(qdict_get_int(gauges, "age-ms"), <, 60000);
}

/* The driver's answer to a flush; returns the result of the message. */
static uint16_t answer(QVirtioFreehint *fh, QGuestAllocator *alloc,
                       uint32_t id, uint32_t result)
{
    const struct virtio_freehint_flush_done done = {
        .id = cpu_to_le32(id),
        .result = cpu_to_le32(result),
        .hinted = cpu_to_le64(77 * GRANULE),
        .gauges = to_le(some_gauges),
    };

    return qfreehint_send(fh, alloc, VIRTIO_FREEHINT_T_FLUSH_DONE, &done,
                          sizeof(done));
}

/* Start a flush, which has to be accepted; returns its ID. */
static uint32_t start_flush(void)
{
    QDict *rsp = qmp("{ 'execute': 'freehint-flush', 'arguments': {"
                     " 'id': 'fh0', 'timeout-ms': 60000 } }");
    uint32_t id;

    g_assert_true(qdict_haskey(rsp, "return"));
    id = qdict_get_int(qdict_get_qdict(rsp, "return"), "flush-id");
    g_assert_cmpuint(id, !=, 0);
    qobject_unref(rsp);
    return id;
}

static void assert_refused(const char *args, const char *klass,
                           const char *part)
{
    g_autofree char *text = g_strdup_printf("{ %s }", args);
    QDict *rsp = qmp("{ 'execute': 'freehint-flush', 'arguments': %p }",
                     qobject_from_json(text, &error_abort));
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_cmpstr(qdict_get_str(error, "class"), ==, klass);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), part));
    qobject_unref(rsp);
}

static void assert_no_flush(const char *part)
{
    assert_refused("'id': 'fh0'", "GenericError", part);
}

/*
 * Wait for the next event; it is the caller's. An event that comes twice would
 * be taken for that of the next flush.
 */
static QDict *await_end(uint32_t id, const char *result)
{
    QDict *event = qtest_qmp_eventwait_ref(global_qtest, COMPLETED);
    QDict *end = qdict_get_qdict(event, "data");

    g_assert_cmpuint(qdict_get_int(end, "flush-id"), ==, id);
    g_assert_cmpstr(qdict_get_str(end, "result"), ==, result);
    g_assert_cmpstr(qdict_get_str(end, "id"), ==, "fh0");
    g_assert_cmpstr(qdict_get_str(end, "qom-path"), ==,
                    "/machine/peripheral/fh0");
    qobject_ref(end);
    qobject_unref(event);
    return end;
}

/* The end of a flush that the driver has not answered. */
static void assert_end(uint32_t id, const char *result)
{
    QDict *end = await_end(id, result);

    g_assert_false(qdict_haskey(end, "hinted"));
    g_assert_cmpint(qdict_haskey(end, "reason"), ==,
                    !strcmp(result, "inactive"));
    qobject_unref(end);
}

static void assert_no_event(void)
{
    /* All events that there are by now come before the answer. */
    qobject_unref(qfreehint_query());
    g_assert_null(qtest_qmp_event_ref(global_qtest, COMPLETED));
}

static QDict *query_flush(void)
{
    QDict *device = qfreehint_query();
    QDict *flush = qdict_get_qdict(device, "flush");

    qobject_ref(flush);
    qobject_unref(device);
    return flush;
}

static bool is_pending(void)
{
    QDict *flush = query_flush();
    bool pending = qdict_haskey(flush, "pending-id");

    qobject_unref(flush);
    return pending;
}

/* A flush from the request to the event, with hints in between. */
static void test_flush(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QDict *flush, *end, *rsp;
    uint32_t id;

    g_assert_true(fh->vdev->features & (1ull << VIRTIO_FREEHINT_F_FLUSH));
    /* Earlier discards do not count. */
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    id = QFREEHINT_CONFIG(fh, flush_id);
    qpci_io_readb(fh->pci->pdev, fh->pci->bar, fh->pci->isr_cfg_offset);
    rsp = qmp("{ 'execute': 'freehint-flush', 'arguments': {"
              " 'id': '/machine/peripheral/fh0', 'timeout-ms': 12345,"
              " 'compact': true } }");
    g_assert_cmpuint(qdict_get_int(qdict_get_qdict(rsp, "return"), "flush-id"),
                     ==, id + 1);
    qobject_unref(rsp);
    id++;
    qvirtio_wait_config_isr(fh->vdev, CONFIG_TIMEOUT_US);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, id);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_flags), ==,
                     VIRTIO_FREEHINT_FLUSH_F_COMPACT);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_timeout_ms), ==, 12345);

    /* A second flush is refused, and does not affect the one in progress. */
    assert_no_flush("is in progress");
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, id);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_timeout_ms), ==, 12345);
    flush = query_flush();
    g_assert_true(qdict_get_bool(flush, "negotiated"));
    g_assert_cmpuint(qdict_get_int(flush, "pending-id"), ==, id);
    qobject_unref(flush);

    /* Nobody has asked for these flushes. */
    g_assert_cmpuint(answer(fh, alloc, id - 1, VIRTIO_FREEHINT_FLUSH_DONE), ==,
                     VIRTIO_FREEHINT_R_DONE);
    g_assert_cmpuint(answer(fh, alloc, id + 1, VIRTIO_FREEHINT_FLUSH_DONE), ==,
                     VIRTIO_FREEHINT_R_DONE);
    assert_no_event();
    g_assert_true(is_pending());

    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmpuint(answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE), ==,
                     VIRTIO_FREEHINT_R_DONE);
    end = await_end(id, "done");
    g_assert_cmpuint(qdict_get_int(end, "hinted"), ==, 77 * GRANULE);
    g_assert_cmpuint(qdict_get_int(end, "discarded"), ==, GRANULE);
    g_assert_cmpstr(qdict_get_str(end, "driver-status"), ==, "not-ready");
    g_assert_cmpuint(qdict_get_int(end, "duration-ms"), <, 60000);
    g_assert_false(qdict_haskey(end, "reason"));
    assert_gauges(end);
    qobject_unref(end);

    flush = query_flush();
    g_assert_false(qdict_haskey(flush, "pending-id"));
    end = qdict_get_qdict(flush, "last");
    g_assert_cmpuint(qdict_get_int(end, "flush-id"), ==, id);
    g_assert_cmpstr(qdict_get_str(end, "result"), ==, "done");
    assert_gauges(end);
    qobject_unref(flush);

    /* Nobody waits for the same answer a second time. */
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    assert_no_event();
}

/*
 * Any answer of the driver ends a flush, and each end has its event. Events are
 * not rate-limited: the clock that limits others stands still here.
 */
static void test_results(void *obj, void *data, QGuestAllocator *alloc)
{
    static const struct {
        uint32_t result;
        const char *name;
    } results[] = {
        { VIRTIO_FREEHINT_FLUSH_DONE, "done" },
        { VIRTIO_FREEHINT_FLUSH_TIMEOUT, "timeout" },
        { VIRTIO_FREEHINT_FLUSH_REFUSED, "refused" },
        { 0, "unknown" },
        { UINT32_MAX, "unknown" },
    };
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i < ARRAY_SIZE(results); i++) {
        uint32_t id = start_flush();

        answer(fh, alloc, id, results[i].result);
        qobject_unref(await_end(id, results[i].name));
    }
    assert_no_event();
}

/* A driver that never answers. */
static void test_no_answer(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QDict *rsp = qmp("{ 'execute': 'freehint-flush', 'arguments': {"
                     " 'id': 'fh0', 'timeout-ms': 100 } }");
    uint32_t id = qdict_get_int(qdict_get_qdict(rsp, "return"), "flush-id");
    QDict *end;

    qobject_unref(rsp);
    end = await_end(id, "no-answer");
    g_assert_false(qdict_haskey(end, "hinted"));
    /* The flush's timeout, and the two seconds of grace that are documented. */
    g_assert_cmpuint(qdict_get_int(end, "duration-ms"), >=, 2100);
    g_assert_cmpuint(qdict_get_int(end, "duration-ms"), <, 30000);
    qobject_unref(end);

    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    assert_no_event();
    id = start_flush();
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    qobject_unref(await_end(id, "done"));
}

static void clear_driver_ok(QVirtioFreehint *fh)
{
    uint8_t status = fh->vdev->bus->get_status(fh->vdev);

    fh->vdev->bus->set_status(fh->vdev, status & ~VIRTIO_CONFIG_S_DRIVER_OK);
}

/* This is all that a kernel does before it starts another one. */
static void clear_bus_master(QVirtioFreehint *fh)
{
    uint16_t command = qpci_config_readw(fh->pci->pdev, PCI_COMMAND);

    qpci_config_writew(fh->pci->pdev, PCI_COMMAND,
                       command & ~PCI_COMMAND_MASTER);
    qpci_config_writew(fh->pci->pdev, PCI_COMMAND, command);
}

/* The driver is gone before it can answer; the ID stays. */
static void test_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t id;

    id = start_flush();
    qvirtio_reset(fh->vdev);
    assert_end(id, "reset");
    assert_no_flush("no driver for the device that is ready");
    qfreehint_restart(fh, alloc);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, id);
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    assert_no_event();

    id = start_flush();
    clear_driver_ok(fh);
    assert_end(id, "reset");
    qfreehint_restart(fh, alloc);

    id = start_flush();
    clear_bus_master(fh);
    assert_end(id, "reset");
    qfreehint_restart(fh, alloc);

    id = start_flush();
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    qobject_unref(await_end(id, "done"));
    assert_no_event();
}

/* The device stops being active: it is disabled, or vetoed. */
static void test_inactive(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *info = NULL, *line = NULL;
    QVirtioFreehint *fh = obj;
    uint32_t id;
    QDict *end;

    id = start_flush();
    qfreehint_set_enabled(false);
    end = await_end(id, "inactive");
    g_assert_cmpstr(qdict_get_str(end, "reason"), ==, "operator");
    qobject_unref(end);
    assert_no_flush("disabled, reason 'operator'");
    info = qtest_hmp(global_qtest, "info freehint");
    line = g_strdup_printf("flush %" PRIu32 ": inactive, operator, ", id);
    g_assert_nonnull(strstr(info, line));
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_REFUSED);
    qfreehint_set_enabled(true);

    id = start_flush();
    qfreehint_set_prop("veto0", "disabled", true);
    end = await_end(id, "inactive");
    g_assert_cmpstr(qdict_get_str(end, "reason"), ==, "pinned");
    qobject_unref(end);
    assert_no_flush("vetoed, reason 'pinned'");
    qfreehint_set_prop("veto0", "disabled", false);
    assert_no_event();

    /* A veto counts before the device has noticed it, too. */
    qfreehint_set_prop("veto0", "disabled", true);
    assert_no_flush("vetoed, reason 'pinned'");
    qfreehint_set_prop("veto0", "disabled", false);
}

static void test_stop(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t id = start_flush();

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'stop' }");
    assert_end(id, "stopped");
    assert_no_flush("the VM is stopped");
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'cont' }");
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    assert_no_event();

    id = start_flush();
    answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE);
    qobject_unref(await_end(id, "done"));
}

/* A malformed message is no answer, and the driver has to reset the device. */
static void test_broken(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_FLUSH_DONE,
    };
    QVirtioFreehint *fh = obj;
    gint64 start = g_get_monotonic_time();
    uint32_t id = start_flush();
    QFreehintHint message = qfreehint_prepare_body(fh, alloc, &hdr, NULL, 0);

    qfreehint_submit(fh, &message);
    while (!(fh->vdev->bus->get_status(fh->vdev) &
             VIRTIO_CONFIG_S_NEEDS_RESET)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, CONFIG_TIMEOUT_US);
        g_usleep(1000);
    }
    assert_no_event();
    g_assert_true(is_pending());
    qvirtio_reset(fh->vdev);
    assert_end(id, "reset");
    assert_no_event();
    qfreehint_restart(fh, alloc);
}

/* After a queue reset the driver may set up its queue again, and answer. */
static void test_queue_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t id = start_flush();

    fh->vdev->bus->queue_select(fh->vdev, VIRTIO_FREEHINT_VQ_HINT);
    qpci_io_writew(fh->pci->pdev, fh->pci->bar, fh->pci->common_cfg_offset +
                   offsetof(struct virtio_pci_modern_common_cfg, queue_reset),
                   1);
    assert_no_event();
    g_assert_true(is_pending());
    qfreehint_restart(fh, alloc);
    assert_end(id, "reset");
    assert_no_event();
}

static void test_system_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    uint32_t id = start_flush();

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'system_reset' }");
    assert_end(id, "reset");
    assert_no_event();
    /* Firmware would have to set up PCI again. */
    qos_invalidate_command_line();
}

/* The event is sent even when QEMU quits. */
static void test_quit(void *obj, void *data, QGuestAllocator *alloc)
{
    uint32_t id = start_flush();

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'quit' }");
    assert_end(id, "stopped");
    qtest_wait_qemu(global_qtest);
    qos_invalidate_command_line();
}

static void test_unplug(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QTestState *qts = fh->pci->pdev->bus->qts;
    uint32_t id;

    if (fh->pci->pdev->bus->not_hotpluggable) {
        g_test_skip("pci bus does not support hotplug");
        return;
    }
    id = start_flush();
    qtest_qmp_assert_success(qts, "{ 'execute': 'device_del',"
                             " 'arguments': { 'id': 'fh0' } }");
    /* The guest ejects slot 4. */
    qtest_outl(qts, 0xae08, 1 << 4);
    assert_end(id, "removed");
    qtest_qmp_eventwait(qts, "DEVICE_DELETED");
    g_assert_null(qtest_qmp_event_ref(qts, COMPLETED));
    assert_refused("'id': 'fh0'", "GenericError", "fh0");
    /* The next test needs the device again. */
    qos_invalidate_command_line();
}

static void test_errors(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t id = QFREEHINT_CONFIG(fh, flush_id);
    QDict *flush;

    assert_refused("'id': 'nobody'", "GenericError", "nobody");
    assert_refused("'id': 'fh0', 'timeout-ms': 0", "GenericError",
                   "'timeout-ms' is 0");
    assert_refused("'id': 'fh0', 'timeout-ms': 3600001", "GenericError",
                   "'timeout-ms' is 3600001");

    fh->refused_features = 1ull << VIRTIO_FREEHINT_F_FLUSH;
    qfreehint_restart(fh, alloc);
    assert_no_flush("does not support flush");
    flush = query_flush();
    g_assert_false(qdict_get_bool(flush, "negotiated"));
    qobject_unref(flush);
    g_assert_cmpuint(answer(fh, alloc, id, VIRTIO_FREEHINT_FLUSH_DONE), ==,
                     VIRTIO_FREEHINT_R_UNSUPPORTED);
    fh->refused_features = 0;
    qfreehint_restart(fh, alloc);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, id);
    assert_no_event();
}

/* Without the feature, the fields and the message do not exist. */
static void test_off(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QDict *device;

    g_assert_false(fh->vdev->features & (1ull << VIRTIO_FREEHINT_F_FLUSH));
    g_assert_cmphex(QFREEHINT_CONFIG(fh, flush_id), ==, UINT32_MAX);
    g_assert_cmpuint(answer(fh, alloc, 0, VIRTIO_FREEHINT_FLUSH_DONE), ==,
                     VIRTIO_FREEHINT_R_UNSUPPORTED);
    assert_no_flush("flush=off");
    device = qfreehint_query();
    g_assert_false(qdict_haskey(device, "flush"));
    qobject_unref(device);
}

static void test_hmp(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *before = NULL, *after = NULL, *line = NULL;
    uint32_t id = start_flush();

    before = qtest_hmp(global_qtest, "info freehint");
    line = g_strdup_printf("flush %" PRIu32 ": in progress", id);
    g_assert_nonnull(strstr(before, line));
    answer(obj, alloc, id, VIRTIO_FREEHINT_FLUSH_REFUSED);
    qobject_unref(await_end(id, "refused"));

    after = qtest_hmp(global_qtest, "info freehint");
    g_free(line);
    line = g_strdup_printf("flush %" PRIu32 ": refused", id);
    g_assert_nonnull(strstr(after, line));
    g_assert_nonnull(strstr(after, "the guest says"));
}

/* Migration */

static char *state_file(void)
{
    return g_strdup_printf("%s/qtest-freehint-%d.state", g_get_tmp_dir(),
                           getpid());
}

static void save_state(const char *path)
{
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
    while (true) {
        QDict *rsp = qmp("{ 'execute': 'query-migrate' }");
        const char *status = qdict_get_str(qdict_get_qdict(rsp, "return"),
                                           "status");
        bool completed = !strcmp(status, "completed");

        g_assert_cmpstr(status, !=, "failed");
        qobject_unref(rsp);
        if (completed) {
            break;
        }
        g_usleep(1000);
    }
}

/* The fields of the flush in a saved state, as big-endian 32-bit numbers. */
static uint32_t *find_flush(char *state, size_t size)
{
    static const char name[] = "virtio-freehint-device/flush";
    char *found = memmem(state, size, name, strlen(name));

    g_assert_nonnull(found);
    /* After the name there is the version. */
    return (uint32_t *)(found + strlen(name) + sizeof(uint32_t));
}

/* Start a QEMU with a state that "migrate file:" has saved. */
static QTestState *load_state(const char *path)
{
    QTestState *qts = qtest_initf("-M %s -device virtio-freehint-pci,"
                                  "addr=04.0,id=fh0 -incoming defer",
                                  qfreehint_machine());
    g_autofree char *uri = g_strdup_printf("file:%s", path);

    qtest_qmp_send(qts, "{ 'execute': 'migrate-incoming',"
                   " 'arguments': { 'uri': %s } }", uri);
    return qts;
}

/*
 * The ID migrates, and a flush ends on the source. A state that no device could
 * have saved is refused.
 */
static void test_migrate(void *obj, void *data, QGuestAllocator *alloc)
{
    static const struct {
        int field;
        uint32_t value;
    } bad[] = {
        { 0, 0 }, { 1, 1 << 1 }, { 2, 0 }, { 2, 3600001 },
    };
    g_autofree char *path = state_file(), *state = NULL;
    QTestState *from = global_qtest, *to;
    QVirtioFreehint *fh = obj;
    uint32_t id = start_flush();
    gsize size;
    int i;

    save_state(path);
    assert_end(id, "stopped");
    g_assert_true(g_file_get_contents(path, &state, &size, NULL));
    g_assert_cmpuint(ldl_be_p(find_flush(state, size)), ==, id);

    to = load_state(path);
    global_qtest = to;
    qobject_unref(qtest_qmp_receive(to));
    qtest_qmp_eventwait(to, "RESUME");
    fh->pci->pdev->bus->qts = to;
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, id);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_timeout_ms), ==, 60000);
    g_assert_false(is_pending());
    g_assert_cmpuint(start_flush(), ==, id + 1);
    qtest_quit(to);
    fh->pci->pdev->bus->qts = from;
    global_qtest = from;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *copy = g_memdup2(state, size);

        stl_be_p(find_flush(copy, size) + bad[i].field, bad[i].value);
        g_assert_true(g_file_set_contents(path, copy, size, NULL));
        to = load_state(path);
        qtest_set_expected_status(to, EXIT_FAILURE);
        qtest_wait_qemu(to);
        qtest_quit(to);
    }
    unlink(path);
    qos_invalidate_command_line();
}

/* The last ID is followed by the first; zero stands for none. */
static void test_wrap(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *path = state_file(), *state = NULL;
    QTestState *from = global_qtest, *to;
    QVirtioFreehint *fh = obj;
    gsize size;

    start_flush();
    save_state(path);
    g_assert_true(g_file_get_contents(path, &state, &size, NULL));
    stl_be_p(find_flush(state, size), UINT32_MAX);
    g_assert_true(g_file_set_contents(path, state, size, NULL));

    to = load_state(path);
    global_qtest = to;
    qobject_unref(qtest_qmp_receive(to));
    qtest_qmp_eventwait(to, "RESUME");
    fh->pci->pdev->bus->qts = to;
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, UINT32_MAX);
    g_assert_cmpuint(start_flush(), ==, 1);
    qtest_quit(to);
    fh->pci->pdev->bus->qts = from;
    global_qtest = from;
    unlink(path);
    qos_invalidate_command_line();
}

/* Going back to an earlier state */

/* Run blockdev-create to its end. */
static void create_image(QDict *options)
{
    gint64 start = g_get_monotonic_time();
    bool concluded = false;

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'blockdev-create',"
                             " 'arguments': { 'job-id': 'create0',"
                             " 'options': %p } }", options);
    while (!concluded) {
        QDict *rsp = qmp("{ 'execute': 'query-jobs' }");
        const QListEntry *first = qlist_first(qdict_get_qlist(rsp, "return"));
        QDict *job = qobject_to(QDict, qlist_entry_obj(first));

        concluded = !strcmp(qdict_get_str(job, "status"), "concluded");
        g_assert_false(qdict_haskey(job, "error"));
        qobject_unref(rsp);
        g_assert_cmpint(g_get_monotonic_time() - start, <, CONFIG_TIMEOUT_US);
    }
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'job-dismiss',"
                             " 'arguments': { 'id': 'create0' } }");
}

static QDict *file_options(const char *path)
{
    QDict *file = qdict_new();

    qdict_put_str(file, "driver", "file");
    qdict_put_str(file, "filename", path);
    return file;
}

/* A disk that QEMU can save states in. */
static void add_qcow2(const char *path)
{
    QDict *file = file_options(path), *qcow2 = qdict_new();

    qdict_put_int(file, "size", 0);
    create_image(file);
    qdict_put_str(qcow2, "driver", "qcow2");
    qdict_put(qcow2, "file", file_options(path));
    qdict_put_int(qcow2, "size", 64 * MiB);
    create_image(qcow2);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'blockdev-add',"
                             " 'arguments': { 'driver': 'qcow2',"
                             " 'node-name': 'disk0', 'file': %p } }",
                             file_options(path));
}

static void hmp_quietly(const char *line)
{
    g_autofree char *answer = qtest_hmp(global_qtest, "%s", line);

    g_assert_cmpstr(answer, ==, "");
}

/* The driver sees the old ID, but no ID is used a second time. */
static void test_loadvm(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *path = g_strdup_printf("%s/qtest-freehint-%d.qcow2",
                                            g_get_tmp_dir(), getpid());
    QVirtioFreehint *fh = obj;
    uint32_t saved, id;

    add_qcow2(path);
    saved = start_flush();
    answer(fh, alloc, saved, VIRTIO_FREEHINT_FLUSH_DONE);
    qobject_unref(await_end(saved, "done"));
    hmp_quietly("savevm saved");

    id = start_flush();
    hmp_quietly("loadvm saved");
    assert_end(id, "stopped");
    assert_no_event();
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, flush_id), ==, saved);
    g_assert_cmpuint(start_flush(), ==, id + 1);
    unlink(path);
    qos_invalidate_command_line();
}

/* Gauges are guest-reported: shown, forgotten with the driver, and not used. */
static void test_gauges(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_gauges gauges = to_le(some_gauges);
    QVirtioFreehint *fh = obj;
    uint64_t hints = qfreehint_stat("hints");
    uint32_t epoch;
    QDict *device;

    qfreehint_restart(fh, alloc);
    epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    device = qfreehint_query();
    g_assert_false(qdict_haskey(device, "guest-gauges"));
    qobject_unref(device);

    g_assert_cmpuint(qfreehint_send(fh, alloc, VIRTIO_FREEHINT_T_GAUGES,
                                    &gauges, sizeof(gauges)), ==,
                     VIRTIO_FREEHINT_R_DONE);
    device = qfreehint_query();
    assert_gauges(device);
    qobject_unref(device);
    qfreehint_assert_state("active", NULL);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==, epoch);
    g_assert_cmpuint(qfreehint_stat("hints"), ==, hints);
    qfreehint_assert_identity();

    qvirtio_reset(fh->vdev);
    device = qfreehint_query();
    g_assert_false(qdict_haskey(device, "guest-gauges"));
    qobject_unref(device);
    qfreehint_restart(fh, alloc);
}

static bool was_interrupted(const QVirtioFreehint *fh)
{
    return fh->vdev->bus->get_queue_isr_status(fh->vdev, fh->vq);
}

/* Gauges are answered at once, without an interrupt of their own. */
static void test_gauges_along(void *obj, void *data, QGuestAllocator *alloc)
{
    const struct virtio_freehint_gauges gauges = to_le(some_gauges);
    const struct virtio_freehint_hdr hint_hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    /* Gauges have no ranges, whatever the header says. */
    const struct virtio_freehint_hdr gauges_hdr = {
        .type = VIRTIO_FREEHINT_T_GAUGES,
        .nranges = 7,
    };
    const QFreehintRange range = {
        .addr = qfreehint_ram_start() + 4 * GRANULE,
        .len = GRANULE,
    };
    QFreehintHint hint, message;
    QVirtioFreehint *fh = obj;

    qfreehint_restart(fh, alloc);
    hint = qfreehint_prepare(fh, alloc, &hint_hdr, &range, 1);
    message = qfreehint_prepare_body(fh, alloc, &gauges_hdr, &gauges,
                                     sizeof(gauges));
    qfreehint_submit(fh, &hint);
    qfreehint_submit(fh, &message);
    qfreehint_wait(fh, &message);
    g_assert_cmpuint(qfreehint_ack(&message).result, ==,
                     VIRTIO_FREEHINT_R_DONE);
    g_assert_cmpuint(qfreehint_ack(&message).nstatus, ==, 0);
    g_assert_false(was_interrupted(fh));
    qfreehint_wait(fh, &hint);
    g_assert_true(was_interrupted(fh));

    /* Without a hint there would be no other interrupt. */
    qfreehint_submit(fh, &message);
    qfreehint_wait(fh, &message);
    g_assert_true(was_interrupted(fh));
}

static void register_virtio_freehint_flush_test(void)
{
    QOSGraphTestOptions veto = { .before = qfreehint_setup_veto };
    QOSGraphTestOptions off = {
        .edge.extra_device_opts = "flush=off,lazy-hints=off",
    };
    /* Slow enough to send something while a hint is in progress. */
    QOSGraphTestOptions slow = {
        .edge.extra_device_opts = "x-job-delay-ms=1200",
    };

    qos_add_test("flush/done", "virtio-freehint", test_flush, NULL);
    qos_add_test("flush/results", "virtio-freehint", test_results, NULL);
    qos_add_test("flush/no-answer", "virtio-freehint", test_no_answer, NULL);
    qos_add_test("flush/reset", "virtio-freehint", test_reset, NULL);
    qos_add_test("flush/inactive", "virtio-freehint", test_inactive, &veto);
    qos_add_test("flush/stop", "virtio-freehint", test_stop, NULL);
    qos_add_test("flush/broken", "virtio-freehint", test_broken, NULL);
    qos_add_test("flush/queue-reset", "virtio-freehint", test_queue_reset,
                 NULL);
    qos_add_test("flush/system-reset", "virtio-freehint", test_system_reset,
                 NULL);
    qos_add_test("flush/quit", "virtio-freehint", test_quit, NULL);
    qos_add_test("flush/unplug", "virtio-freehint", test_unplug, NULL);
    qos_add_test("flush/errors", "virtio-freehint", test_errors, NULL);
    qos_add_test("flush/off", "virtio-freehint", test_off, &off);
    qos_add_test("flush/hmp", "virtio-freehint", test_hmp, NULL);
    qos_add_test("flush/migrate", "virtio-freehint", test_migrate, NULL);
    qos_add_test("flush/wrap", "virtio-freehint", test_wrap, NULL);
    qos_add_test("flush/loadvm", "virtio-freehint", test_loadvm, NULL);
    qos_add_test("gauges/shown", "virtio-freehint", test_gauges, NULL);
    qos_add_test("gauges/along", "virtio-freehint-testdev",
                 test_gauges_along, &slow);
}

libqos_init(register_virtio_freehint_flush_test);
