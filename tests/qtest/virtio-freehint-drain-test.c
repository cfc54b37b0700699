/*
 * QTest test cases for virtio-freehint: slow discards, and drains
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
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"

#define GRANULE (2 * MiB)

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define FREE_START (qfreehint_ram_start() + 64 * MiB)
#define FREE_LEN (64 * MiB)

/* As much as a slow device discards at once, and then some more. */
#define JOB_LEN (16 * MiB)
#define SLOW_LEN (JOB_LEN + GRANULE)

/* Slow enough to act meanwhile, even on a busy machine. */
#define SLOW_OPTS "x-job-delay-ms=1200"

/*
 * Times after the hint: when the discard is in progress, until when it
 * certainly is, and when it is over.
 */
#define BEGIN_US (300 * 1000)
#define LATEST_US (700 * 1000)
#define END_US (1400 * 1000)

#define TIMEOUT_US (30 * 1000 * 1000)

#define LONG_DELAY_MS 3000

static QFreehintHint submit_slow_hint(QVirtioFreehint *fh,
                                      QGuestAllocator *alloc)
{
    const QFreehintRange ranges[] = {
        { FREE_START, JOB_LEN },
        { FREE_START + JOB_LEN, GRANULE },
    };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = ARRAY_SIZE(ranges),
    };
    QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdr, ranges,
                                           ARRAY_SIZE(ranges));

    qfreehint_fill(FREE_START, SLOW_LEN, 0xa5);
    qfreehint_submit(fh, &hint);
    return hint;
}

/*
 * Send a hint for two ranges, and return while the first one is being
 * discarded. All tests of the drain rule continue in the same way: cause a
 * drain, use the memory, and check that it is not discarded later. If the
 * machine is so busy that there may be no time for that, send the hint again.
 */
static QFreehintHint start_slow_hint(QVirtioFreehint *fh,
                                     QGuestAllocator *alloc)
{
    gint64 start = g_get_monotonic_time();
    QFreehintHint hint = submit_slow_hint(fh, alloc);

    g_usleep(BEGIN_US);
    while (g_get_monotonic_time() - start > LATEST_US) {
        qfreehint_wait(fh, &hint);
        start = g_get_monotonic_time();
        hint = submit_slow_hint(fh, alloc);
        g_usleep(BEGIN_US);
    }
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 2);
    return hint;
}

static void assert_drained(void)
{
    qfreehint_fill(FREE_START, SLOW_LEN, 0x5a);
    g_usleep(END_US);
    g_assert_true(qfreehint_is_filled(FREE_START, SLOW_LEN, 0x5a));
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 0);
    qfreehint_assert_identity();
}

/* The device waited for the range in progress, and did not begin the other. */
static void assert_answered(QVirtioFreehint *fh, QFreehintHint *hint)
{
    uint32_t head, len;

    g_assert_true(qfreehint_poll(fh, &head, &len));
    g_assert_cmpuint(head, ==, hint->head);
    g_assert_cmpuint(qfreehint_ack(hint).result, ==,
                     VIRTIO_FREEHINT_R_DONE);
    g_assert_cmphex(qfreehint_status(hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(qfreehint_status(hint, 1), ==,
                    VIRTIO_FREEHINT_S_DECLINED);
}

static void test_drain_disable(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);

    qfreehint_set_enabled(false);
    assert_answered(fh, &hint);
    assert_drained();
    qfreehint_set_enabled(true);
}

/* The test device writes this byte, here, when it has disabled discards. */
#define DMA_BYTE 0xd7
#define DMA_ADDR (FREE_START + 64 * KiB)
#define DMA_LEN 4096

static const char *const disable_props[] = {
    "disabled", "uncoordinated-disabled",
};

static void *setup_dma(GString *cmd_line, void *arg)
{
    g_string_append_printf(cmd_line, " -device discard-testdev,id=veto0,"
                           "dma-addr=%" PRIu64, (uint64_t)DMA_ADDR);
    return arg;
}

/*
 * Memory keeps its content from the moment when discards are disabled, not only
 * from when somebody could have noticed.
 */
static void disable_discards_and_write(const char *prop)
{
    qfreehint_set_prop("veto0", prop, true);
    g_usleep(END_US);
    g_assert_true(qfreehint_is_filled(DMA_ADDR, DMA_LEN, DMA_BYTE));
}

/* A veto waits for a discard that has begun. */
static void test_drain_veto(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i < ARRAY_SIZE(disable_props); i++) {
        QFreehintHint hint = start_slow_hint(fh, alloc);

        disable_discards_and_write(disable_props[i]);
        assert_answered(fh, &hint);
        assert_drained();
        qfreehint_set_prop("veto0", disable_props[i], false);
    }
}

/* A discard that has not begun, although its worker runs, does not begin. */
static void test_veto_before_start(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    int i;

    for (i = 0; i < ARRAY_SIZE(disable_props); i++) {
        QFreehintHint hint = start_slow_hint(fh, alloc);
        uint64_t calls = qfreehint_stat("discard-calls");

        disable_discards_and_write(disable_props[i]);
        qfreehint_wait(fh, &hint);
        g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                        VIRTIO_FREEHINT_S_DECLINED);
        g_assert_cmphex(qfreehint_status(&hint, 1), ==,
                        VIRTIO_FREEHINT_S_DECLINED);
        g_assert_true(qfreehint_is_filled(FREE_START, DMA_ADDR - FREE_START,
                                          0xa5));
        g_assert_true(qfreehint_is_filled(FREE_START + JOB_LEN, GRANULE,
                                          0xa5));
        g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, calls);
        qfreehint_set_prop("veto0", disable_props[i], false);
    }
}

/*
 * A veto comes and goes before the device has its turn, so only the worker sees
 * it. Ranges that were declined because of it are asked for again all the same.
 */
static void test_veto_blink(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;
    gint64 start = g_get_monotonic_time();

    /* On a busy machine the worker may look too early. */
    do {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        hint = submit_slow_hint(fh, alloc);
        qfreehint_set_prop("veto0", "blink", true);
        qfreehint_wait(fh, &hint);
    } while (qfreehint_status(&hint, 0) != VIRTIO_FREEHINT_S_DECLINED);

    while (QFREEHINT_CONFIG(fh, rehint_epoch) ==
           qfreehint_ack(&hint).rehint_epoch) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
    /* With a change of state, the epoch would have moved because of that. */
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'query-name' }");
    g_assert_null(qtest_qmp_event_ref(global_qtest, "FREEHINT_STATE_CHANGED"));
}

/*
 * A veto comes and goes before anybody looks, and nothing is hinted meanwhile.
 * The driver is notified, although only the epoch has changed.
 */
static void test_veto_pulse(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);

    qfreehint_set_prop("veto0", "pulse", true);
    qvirtio_wait_config_isr(fh->vdev, TIMEOUT_US);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=, epoch);
    qfreehint_assert_state("active", NULL);
}

static void test_drain_stop(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);
    struct virtio_freehint_ack ack;

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'stop' }");
    assert_answered(fh, &hint);
    assert_drained();

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'cont' }");
    /* The declined range will be hinted again. */
    ack = qfreehint_ack(&hint);
    g_assert_cmpuint(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                     VIRTIO_FREEHINT_S_DISCARDED);
    /* The epoch moves once for a pulse. */
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), ==,
                     ack.rehint_epoch + 1);
}

/* The driver has given up its buffers: the device no longer writes to them. */
static void assert_forgotten(QFreehintHint *hint)
{
    g_assert_cmphex(qfreehint_ack(hint).result, ==, 0xeeee);
    g_assert_cmphex(qfreehint_status(hint, 0), ==, 0xee);
}

static void test_drain_reset(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);

    qvirtio_reset(fh->vdev);
    assert_drained();
    assert_forgotten(&hint);
    qfreehint_restart(fh, alloc);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

static void test_drain_system_reset(void *obj, void *data,
                                    QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;

    /* On a reset, some machines write their device tree to the start of RAM. */
    guest_alloc(alloc, 2 * MiB);
    hint = start_slow_hint(fh, alloc);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(global_qtest, "RESET");
    assert_drained();
    assert_forgotten(&hint);
    /* Firmware would have to set up PCI again. */
    qos_invalidate_command_line();
}

static void remove_ram_file(void *unused)
{
    g_autofree char *path = qfreehint_ram_file();

    unlink(path);
}

/* RAM that outlives QEMU shows whether a discard came after the end. */
static void test_drain_quit(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t start = FREE_START - qfreehint_ram_start();
    g_autofree char *path = qfreehint_ram_file(), *ram = NULL;
    gsize size, i;

    g_test_queue_destroy(remove_ram_file, NULL);
    start_slow_hint(obj, alloc);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'quit' }");
    qtest_wait_qemu(global_qtest);
    g_assert_true(g_file_get_contents(path, &ram, &size, NULL));
    g_assert_cmpuint(size, >=, start + SLOW_LEN);
    for (i = 0; i < JOB_LEN; i++) {
        g_assert_cmphex(ram[start + i], ==, 0);
    }
    for (; i < SLOW_LEN; i++) {
        g_assert_cmphex((uint8_t)ram[start + i], ==, 0xa5);
    }
    qos_invalidate_command_line();
}

static void reset_queue(QVirtioFreehint *fh, uint16_t index)
{
    g_assert_true(fh->vdev->features & (1ull << VIRTIO_F_RING_RESET));
    fh->vdev->bus->queue_select(fh->vdev, index);
    qpci_io_writew(fh->pci->pdev, fh->pci->bar, fh->pci->common_cfg_offset +
                   offsetof(struct virtio_pci_modern_common_cfg, queue_reset),
                   1);
}

static void test_drain_queue_reset(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);

    /* There is no such queue, so its reset does not affect the hint. */
    reset_queue(fh, VIRTIO_FREEHINT_VQ_HINT + 1);
    qfreehint_wait(fh, &hint);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);

    hint = start_slow_hint(fh, alloc);
    reset_queue(fh, VIRTIO_FREEHINT_VQ_HINT);
    assert_drained();
    assert_forgotten(&hint);
    qfreehint_restart(fh, alloc);
}

static void test_drain_driver_ok(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);
    uint8_t status = fh->vdev->bus->get_status(fh->vdev);

    fh->vdev->bus->set_status(fh->vdev, status & ~VIRTIO_CONFIG_S_DRIVER_OK);
    assert_drained();
    assert_forgotten(&hint);
    qfreehint_restart(fh, alloc);
}

static void *setup_one_worker(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -object main-loop,id=loop0,thread-pool-max=1");
    return qfreehint_setup_veto(cmd_line, arg);
}

/*
 * A drain cancels a discard that waits for a processor, and does not wait for
 * it. Until its worker has noticed, later ranges are throttled.
 */
static void test_drain_queued(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    gint64 start = g_get_monotonic_time();
    uint64_t calls = qfreehint_stat("discard-calls");
    QFreehintHint hint = submit_slow_hint(fh, alloc);

    while (qfreehint_count("in-flight", "ranges") != 2) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
    }
    qvirtio_reset(fh->vdev);
    g_assert_cmpint(g_get_monotonic_time() - start, <, LONG_DELAY_MS * 1000);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 0);
    assert_forgotten(&hint);
    qfreehint_fill(FREE_START, SLOW_LEN, 0x5a);

    qfreehint_restart(fh, alloc);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START + SLOW_LEN,
                                       GRANULE), ==,
                    VIRTIO_FREEHINT_S_THROTTLED);
    g_usleep(LONG_DELAY_MS * 1000);
    g_assert_true(qfreehint_is_filled(FREE_START, SLOW_LEN, 0x5a));
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, calls);
    qfreehint_assert_identity();
}

static void await_needs_reset(QVirtioFreehint *fh)
{
    gint64 start = g_get_monotonic_time();

    while (!(fh->vdev->bus->get_status(fh->vdev) &
             VIRTIO_CONFIG_S_NEEDS_RESET)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

/* The driver names a descriptor that does not exist: all messages end. */
static void test_drain_broken_ring(void *obj, void *data,
                                   QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);

    qvirtqueue_kick(global_qtest, fh->vdev, fh->vq, fh->vq->size);
    await_needs_reset(fh);
    assert_drained();
    assert_forgotten(&hint);
    qfreehint_restart(fh, alloc);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
}

/*
 * Bus mastering off: this is all that a kernel does before it starts another
 * one.
 */
static void test_drain_bus_master(void *obj, void *data,
                                  QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = start_slow_hint(fh, alloc);
    uint16_t command = qpci_config_readw(fh->pci->pdev, PCI_COMMAND);

    qpci_config_writew(fh->pci->pdev, PCI_COMMAND,
                       command & ~PCI_COMMAND_MASTER);
    assert_drained();
    assert_forgotten(&hint);
    qpci_config_writew(fh->pci->pdev, PCI_COMMAND, command);
    qfreehint_restart(fh, alloc);
}

/* The guest rewrites a message that the device has: that changes nothing. */
static void test_rewritten(void *obj, void *data, QGuestAllocator *alloc)
{
    const uint64_t other = FREE_START + 32 * MiB;
    const struct virtio_freehint_range range = {
        .addr = cpu_to_le64(other),
        .len = cpu_to_le64(GRANULE),
    };
    const struct virtio_freehint_hdr hdr = {
        .type = cpu_to_le16(VIRTIO_FREEHINT_T_HINT),
        .nranges = cpu_to_le32(UINT32_MAX),
    };
    gint64 start = g_get_monotonic_time();
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;

    qfreehint_fill(other, GRANULE, 0xa5);
    hint = submit_slow_hint(fh, alloc);
    while (qfreehint_count("in-flight", "ranges") != 2) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
    }
    memwrite(hint.readable, &hdr, sizeof(hdr));
    memwrite(hint.readable + sizeof(hdr), &range, sizeof(range));
    memwrite(hint.readable + sizeof(hdr) + sizeof(range), &range,
             sizeof(range));
    qfreehint_wait(fh, &hint);
    g_assert_cmpuint(qfreehint_ack(&hint).nstatus, ==, 2);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(qfreehint_status(&hint, 1), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_true(qfreehint_is_filled(FREE_START, SLOW_LEN, 0));
    g_assert_true(qfreehint_is_filled(other, GRANULE, 0xa5));
    qfreehint_assert_identity();
}

static void test_drain_unplug(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QTestState *qts = fh->pci->pdev->bus->qts;
    QDict *rsp;

    if (fh->pci->pdev->bus->not_hotpluggable) {
        g_test_skip("pci bus does not support hotplug");
        return;
    }
    start_slow_hint(fh, alloc);
    qtest_qmp_assert_success(qts, "{ 'execute': 'device_del',"
                             " 'arguments': { 'id': 'fh0' } }");
    /* The guest ejects slot 4. */
    qtest_outl(qts, 0xae08, 1 << 4);
    qfreehint_fill(FREE_START, SLOW_LEN, 0x5a);
    qtest_qmp_eventwait(qts, "DEVICE_DELETED");
    g_usleep(END_US);
    g_assert_true(qfreehint_is_filled(FREE_START, SLOW_LEN, 0x5a));
    rsp = qmp("{ 'execute': 'query-freehint' }");
    g_assert_true(qlist_empty(qdict_get_qlist(rsp, "return")));
    qobject_unref(rsp);
    /* The next test needs the device again. */
    qos_invalidate_command_line();
}

/* Wait for all hints, in whatever order; returns how long that took, in us. */
static gint64 wait_for_all(QVirtioFreehint *fh, const QFreehintHint *hints,
                           int n)
{
    gint64 start = g_get_monotonic_time();
    uint32_t head, len;
    int i, used;

    for (used = 0; used < n; used++) {
        while (!qfreehint_poll(fh, &head, &len)) {
            g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
            g_usleep(1000);
        }
        i = 0;
        while (i < n && hints[i].head != head) {
            i++;
        }
        g_assert_cmpint(i, <, n);
    }
    return g_get_monotonic_time() - start;
}

/* No message waits longer than the protocol allows, however slow the host. */
static void test_bound(void *obj, void *data, QGuestAllocator *alloc)
{
    const QFreehintRange ranges[] = {
        { FREE_START, FREE_LEN },
        { FREE_START, FREE_LEN },
    };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = ARRAY_SIZE(ranges),
    };
    QVirtioFreehint *fh = obj;
    struct virtio_freehint_ack ack;
    QFreehintHint hints[4];
    gint64 us;
    int i;

    for (i = 0; i < ARRAY_SIZE(hints); i++) {
        hints[i] = qfreehint_prepare(fh, alloc, &hdr, ranges,
                                     ARRAY_SIZE(ranges));
    }
    for (i = 0; i < ARRAY_SIZE(hints); i++) {
        qfreehint_submit(fh, &hints[i]);
    }
    us = wait_for_all(fh, hints, ARRAY_SIZE(hints));
    for (i = 0; i < ARRAY_SIZE(hints); i++) {
        ack = qfreehint_ack(&hints[i]);
        g_assert_cmphex(qfreehint_status(&hints[i], 1), ==,
                        VIRTIO_FREEHINT_S_THROTTLED);
        g_assert_cmpuint(ack.retry_after_ms, >, 0);
    }
    g_assert_cmpint(us, <, 1000 * 1000);
    g_assert_cmpuint(qfreehint_count("throttled", "ranges"), >=,
                     ARRAY_SIZE(hints));
    qfreehint_assert_identity();
}

/* The main loop's thread pool is busy, with stalled storage for instance. */
static void test_bound_pool(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;

    qfreehint_set_prop("veto0", "pool-busy", true);
    hint = submit_slow_hint(fh, alloc);
    g_assert_cmpint(qfreehint_wait(fh, &hint), <, 1000 * 1000);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_set_prop("veto0", "pool-busy", false);
}

/* A slice that gets no processor for a long time is cancelled. */
static void test_bound_queued(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hints[2];
    int i;

    hints[0] = submit_slow_hint(fh, alloc);
    hints[1] = submit_slow_hint(fh, alloc);
    for (i = 0; i < ARRAY_SIZE(hints); i++) {
        g_assert_cmpint(qfreehint_wait(fh, &hints[i]), <, 1000 * 1000);
        g_assert_cmphex(qfreehint_status(&hints[i], 0), ==,
                        VIRTIO_FREEHINT_S_THROTTLED);
        g_assert_cmphex(qfreehint_status(&hints[i], 1), ==,
                        VIRTIO_FREEHINT_S_THROTTLED);
        g_assert_cmpuint(qfreehint_ack(&hints[i]).retry_after_ms, >, 0);
    }
    /* The slice never begins. */
    g_usleep(LONG_DELAY_MS * 1000);
    g_assert_true(qfreehint_is_filled(FREE_START, SLOW_LEN, 0xa5));
    g_assert_cmpuint(qfreehint_stat("discard-calls"), ==, 0);
    qfreehint_assert_identity();
}

/* While the host takes very long for one range, the others are answered. */
static void test_bound_running(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint first = submit_slow_hint(fh, alloc);
    QFreehintHint others[3];
    gint64 us = 0;
    int i;

    for (i = 0; i < ARRAY_SIZE(others); i++) {
        others[i] = submit_slow_hint(fh, alloc);
    }
    for (i = 0; i < ARRAY_SIZE(others); i++) {
        us += qfreehint_wait(fh, &others[i]);
        g_assert_cmphex(qfreehint_status(&others[i], 0), ==,
                        VIRTIO_FREEHINT_S_THROTTLED);
    }
    g_assert_cmpint(us, <, 1000 * 1000);
    g_assert_cmpuint(qfreehint_count("in-flight", "ranges"), ==, 2);
    qfreehint_wait(fh, &first);
    g_assert_cmphex(qfreehint_status(&first, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    g_assert_cmphex(qfreehint_status(&first, 1), ==,
                    VIRTIO_FREEHINT_S_THROTTLED);
    qfreehint_assert_identity();
}

/*
 * A discard in progress goes on, whoever holds the BQL. Returns false if it was
 * over before the BQL was held, on a busy machine.
 */
static bool hold_bql_during_discard(int ms)
{
    uint64_t before = qfreehint_resident_anon();
    gint64 start = g_get_monotonic_time(), discarded;
    QDict *rsp;

    qtest_qmp_send(global_qtest, "{ 'execute': 'qom-set', 'arguments': {"
                   " 'path': 'veto0', 'property': 'hold-bql-ms',"
                   " 'value': %d } }", ms);
    while (qfreehint_resident_anon() + JOB_LEN / 2 > before) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, ms * 1000);
        g_usleep(1000);
    }
    discarded = g_get_monotonic_time();
    rsp = qtest_qmp_receive(global_qtest);
    g_assert_true(qdict_haskey(rsp, "return"));
    g_assert_cmpint(g_get_monotonic_time() - start, >=, ms * 1000);
    qobject_unref(rsp);
    return discarded > g_get_monotonic_time() - ms * 1000;
}

/* When the main loop was busy, the next thing it does is to answer. */
static void test_bound_bql(void *obj, void *data, QGuestAllocator *alloc)
{
    const QFreehintRange range = { FREE_START + SLOW_LEN, GRANULE };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    QVirtioFreehint *fh = obj;
    QFreehintHint hints[4];
    bool held;
    int i;

    do {
        hints[0] = start_slow_hint(fh, alloc);
        for (i = 1; i < ARRAY_SIZE(hints); i++) {
            hints[i] = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
            qfreehint_submit(fh, &hints[i]);
        }
        held = hold_bql_during_discard(g_test_perf() ? 8000 : 2000);
        g_assert_cmpint(wait_for_all(fh, hints, ARRAY_SIZE(hints)), <,
                        1000 * 1000);
    } while (!held);
    g_assert_cmphex(qfreehint_status(&hints[0], 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_assert_state("active", NULL);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_assert_identity();
}

/* Hint, then clear DRIVER_OK: the device forgets the hint and all about it. */
static void hint_and_clear_driver_ok(QVirtioFreehint *fh, QFreehintHint *hint,
                                     uint64_t hints)
{
    uint8_t status = fh->vdev->bus->get_status(fh->vdev);

    qfreehint_submit(fh, hint);
    while (qfreehint_stat("hints") != hints) {
        g_usleep(100);
    }
    fh->vdev->bus->set_status(fh->vdev, status & ~VIRTIO_CONFIG_S_DRIVER_OK);
    fh->vdev->bus->set_status(fh->vdev, status);
}

/* No guest can make QEMU grow, whatever the host's thread pool is doing. */
static void test_drain_rounds(void *obj, void *data, QGuestAllocator *alloc)
{
    const QFreehintRange range = { FREE_START, GRANULE };
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = 1,
    };
    const int rounds = g_test_perf() ? 100000 : 2000;
    QVirtioFreehint *fh = obj;
    QFreehintHint hint = qfreehint_prepare(fh, alloc, &hdr, &range, 1);
    uint64_t hints = qfreehint_stat("hints");
    uint64_t before = 0;
    int64_t grown;
    int i;

    qfreehint_set_prop("veto0", "pool-busy", true);
    for (i = 0; i < rounds; i++) {
        if (i == rounds / 10) {
            before = qfreehint_resident_anon();
        }
        hint_and_clear_driver_ok(fh, &hint, ++hints);
    }
    /* If something were left of each hint, it would be more. */
    grown = qfreehint_resident_anon() - before;
    g_assert_true(QFREEHINT_FREED_IS_KEPT || grown < rounds * 64);
    qfreehint_set_prop("veto0", "pool-busy", false);
    qfreehint_restart(fh, alloc);
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START, GRANULE), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);
    qfreehint_assert_identity();
}

static void await_active(QVirtioFreehint *fh)
{
    gint64 start = g_get_monotonic_time();

    while (QFREEHINT_CONFIG(fh, state) != VIRTIO_FREEHINT_STATE_ACTIVE) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
}

static char *slice_log(void)
{
    return g_strdup_printf("%s/qtest-freehint-%d.slices", g_get_tmp_dir(),
                           getpid());
}

static void *setup_slice_log(GString *cmd_line, void *arg)
{
    g_autofree char *path = slice_log();

    g_string_append_printf(cmd_line, " -trace virtio_freehint_job_* -D %s",
                           path);
    return arg;
}

static int count_lines_with(const char *text, const char *word)
{
    int count = 0;

    while ((text = strstr(text, word))) {
        text += strlen(word);
        count++;
    }
    return count;
}

/* Checks the trace, at this instant: a QMP command would wait for the drain. */
static void assert_no_slice_in_progress(void)
{
    g_autofree char *path = slice_log();
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(count_lines_with(text, "job_begin"), >, 0);
    g_assert_cmpint(count_lines_with(text, "job_begin"), ==,
                    count_lines_with(text, "job_end"));
}

static void remove_slice_log(void *unused)
{
    g_autofree char *path = slice_log();

    unlink(path);
}

/*
 * A background snapshot is a veto, from before it protects memory until it is
 * over, even if nobody queries the device.
 */
static void test_snapshot(void *obj, void *data, QGuestAllocator *alloc)
{
    QVirtioFreehint *fh = obj;
    QFreehintHint hint;
    QDict *rsp;

    g_test_queue_destroy(remove_slice_log, NULL);
    rsp = qmp("{ 'execute': 'migrate-set-capabilities', 'arguments': {"
              " 'capabilities': [ { 'capability': 'background-snapshot',"
              " 'state': true } ] } }");
    if (qdict_haskey(rsp, "error")) {
        g_test_skip("no userfaultfd with write protection");
        qobject_unref(rsp);
        return;
    }
    qobject_unref(rsp);
    /* Memory that takes a minute to save. */
    qtest_qmp_assert_success(global_qtest, "{ 'execute':"
                             " 'migrate-set-parameters', 'arguments': {"
                             " 'max-bandwidth': 1048576 } }");
    qfreehint_fill(FREE_START, FREE_LEN, 0xa5);

    hint = start_slow_hint(fh, alloc);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri':"
                             " 'exec:cat > /dev/null' } }");
    assert_no_slice_in_progress();
    assert_answered(fh, &hint);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, reason), ==,
                     VIRTIO_FREEHINT_REASON_MIGRATION);
    qfreehint_assert_state("vetoed", "background-snapshot");
    qfreehint_assert_obstacles("driver-not-ready background-snapshot ");
    g_assert_cmphex(qfreehint_hint_one(fh, alloc, 0, FREE_START + 32 * MiB,
                                       GRANULE), ==,
                    VIRTIO_FREEHINT_S_DECLINED);
    g_assert_true(qfreehint_is_filled(FREE_START + 32 * MiB, GRANULE, 0xa5));

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate_cancel' }");
    await_active(fh);
    g_assert_cmpuint(QFREEHINT_CONFIG(fh, rehint_epoch), !=,
                     qfreehint_ack(&hint).rehint_epoch);
    qos_invalidate_command_line();
}

/*
 * A hint is answered before the VM leaves. The destination shows what the
 * driver was told, with a new epoch; its settings and counters are its own.
 */
static void test_migrate(void *obj, void *data, QGuestAllocator *alloc)
{
    g_autofree char *uri = qfreehint_migration_uri();
    QVirtioFreehint *fh = obj;
    uint32_t epoch = QFREEHINT_CONFIG(fh, rehint_epoch);
    QTestState *from = global_qtest, *to;
    QFreehintHint hint;
    QDict *device;

    qpci_io_writel(fh->pci->pdev, fh->pci->bar, fh->pci->device_cfg_offset +
                   offsetof(struct virtio_freehint_config, driver_status),
                   VIRTIO_FREEHINT_DRIVER_ACTIVE);
    to = qtest_initf("-M %s -device virtio-freehint-pci,addr=04.0,id=fh0,"
                     "enabled=off,delay-ms=7 -incoming %s",
                     qfreehint_machine(), uri);
    hint = start_slow_hint(fh, alloc);
    qfreehint_migrate(uri);
    qfreehint_await_migration();

    global_qtest = to;
    qtest_qmp_eventwait(to, "RESUME");
    g_assert_cmpuint(qfreehint_ack(&hint).result, ==, VIRTIO_FREEHINT_R_DONE);
    g_assert_cmpuint(qfreehint_ack(&hint).nstatus, ==, 2);
    g_assert_cmphex(qfreehint_status(&hint, 0), ==,
                    VIRTIO_FREEHINT_S_DISCARDED);

    device = qfreehint_query();
    g_assert_cmpstr(qdict_get_str(device, "driver-status"), ==, "active");
    g_assert_cmpstr(qdict_get_str(device, "state"), ==, "disabled");
    g_assert_cmpuint(qdict_get_int(device, "delay-ms"), ==, 7);
    /* The epoch has to differ from all that the driver has seen. */
    g_assert_cmpuint(qdict_get_int(device, "rehint-epoch"), !=, epoch);
    g_assert_cmpuint(qdict_get_int(device, "rehint-epoch"), !=,
                     qfreehint_ack(&hint).rehint_epoch);
    qobject_unref(device);
    g_assert_cmpuint(qfreehint_count("hinted", "ranges"), ==, 0);
    qtest_quit(to);

    global_qtest = from;
    qos_invalidate_command_line();
}

static void register_virtio_freehint_drain_test(void)
{
    QOSGraphTestOptions slow = { .edge.extra_device_opts = SLOW_OPTS };
    /* Messages have to be answered within a second. */
    QOSGraphTestOptions bound = {
        .edge.extra_device_opts = "x-job-delay-ms=200",
    };
    QOSGraphTestOptions slow_veto = {
        .edge.extra_device_opts = SLOW_OPTS,
        .before = setup_dma,
    };
    /* A discard begins late enough to act before that. */
    QOSGraphTestOptions late_start = {
        .edge.extra_device_opts = "x-job-start-delay-ms=100",
    };
    QOSGraphTestOptions slow_file = {
        .edge.extra_device_opts = SLOW_OPTS ",discard-file-backed=on",
        .before = qfreehint_setup_shared_ram,
    };
    QOSGraphTestOptions slow_log = {
        .edge.extra_device_opts = SLOW_OPTS,
        .before = setup_slice_log,
    };
    QOSGraphTestOptions veto = { .before = qfreehint_setup_veto };
    QOSGraphTestOptions one_worker = { .before = setup_one_worker };
    /* Longer than a message may take, before the slice runs or meanwhile. */
    QOSGraphTestOptions long_queued = {
        .edge.extra_device_opts = "x-job-start-delay-ms="
                                  stringify(LONG_DELAY_MS),
    };
    QOSGraphTestOptions long_running = {
        .edge.extra_device_opts = "x-job-delay-ms="
                                  stringify(LONG_DELAY_MS),
    };
    QOSGraphTestOptions late = {
        .edge.extra_device_opts = SLOW_OPTS,
        .before = qfreehint_setup_veto,
    };
    /* A worker that is not given back is gone for good. */
    QOSGraphTestOptions one_worker_slow = {
        .edge.extra_device_opts = "x-job-start-delay-ms=20",
        .before = setup_one_worker,
    };
    QOSGraphTestOptions slow_start = {
        .edge.extra_device_opts = "x-job-start-delay-ms=1200",
        .before = setup_dma,
    };

    qos_add_test("drain/disable", "virtio-freehint-testdev",
                 test_drain_disable, &slow);
    qos_add_test("drain/stop", "virtio-freehint-testdev",
                 test_drain_stop, &slow);
    qos_add_test("drain/reset", "virtio-freehint-testdev",
                 test_drain_reset, &slow);
    qos_add_test("drain/system-reset", "virtio-freehint-testdev",
                 test_drain_system_reset, &slow);
    qos_add_test("drain/quit", "virtio-freehint-testdev",
                 test_drain_quit, &slow_file);
    qos_add_test("drain/queue-reset", "virtio-freehint-testdev",
                 test_drain_queue_reset, &slow);
    qos_add_test("drain/driver-ok", "virtio-freehint-testdev",
                 test_drain_driver_ok, &slow);
    qos_add_test("drain/queued", "virtio-freehint-testdev",
                 test_drain_queued, &long_queued);
    qos_add_test("drain/broken-ring", "virtio-freehint-testdev",
                 test_drain_broken_ring, &slow);
    qos_add_test("drain/bus-master", "virtio-freehint-testdev",
                 test_drain_bus_master, &slow);
    qos_add_test("rewritten", "virtio-freehint-testdev", test_rewritten,
                 &late_start);
    qos_add_test("drain/unplug", "virtio-freehint-testdev",
                 test_drain_unplug, &slow);
    qos_add_test("drain/veto", "virtio-freehint-testdev",
                 test_drain_veto, &slow_veto);
    qos_add_test("drain/veto-before-start", "virtio-freehint-testdev",
                 test_veto_before_start, &slow_start);
    qos_add_test("veto-blink", "virtio-freehint-testdev",
                 test_veto_blink, &slow_start);
    qos_add_test("veto-pulse", "virtio-freehint", test_veto_pulse, &veto);
    qos_add_test("bound", "virtio-freehint-testdev", test_bound, &bound);
    qos_add_test("bound/pool", "virtio-freehint", test_bound_pool,
                 &one_worker);
    qos_add_test("bound/queued", "virtio-freehint-testdev",
                 test_bound_queued, &long_queued);
    qos_add_test("bound/running", "virtio-freehint-testdev",
                 test_bound_running, &long_running);
    qos_add_test("bound/bql", "virtio-freehint-testdev", test_bound_bql, &late);
    qos_add_test("drain/rounds", "virtio-freehint-testdev",
                 test_drain_rounds, &one_worker_slow);
    qos_add_test("drain/snapshot", "virtio-freehint-testdev",
                 test_snapshot, &slow_log);
    qos_add_test("migrate/state", "virtio-freehint-testdev",
                 test_migrate, &slow);
}

libqos_init(register_virtio_freehint_drain_test);
