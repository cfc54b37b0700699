/*
 * QTest test cases for virtio-freehint: a guest that floods the queue
 *
 * While a driver keeps the ring full and kicks all the time, the monitor
 * answers and another device works about as fast as without that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/pci.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_ring.h"

#define GRANULE (2 * MiB)
#define MAX_RANGES 1024

/* RAM that neither firmware nor libqos uses, in a machine of 128 MiB. */
#define FREE_START (qfreehint_ram_start() + 64 * MiB)

/* How often the device is notified of new messages in the ring. */
#define KICKS 16

/*
 * How much a flood may add to the median of this many samples: a few turns of
 * the device's bottom half. Other processes disturb some rounds, not all of
 * them.
 */
#define SAMPLES 31
#define ADDED_US_MAX (10 * 1000)
#define ROUNDS 5

#define TIMEOUT_US (30 * 1000 * 1000)

/* A few bytes per message of a flood. */
#define GROWN_MAX (256 * KiB)

/* The content of each message of a flood. */
typedef struct Flood {
    const char *name;
    uint32_t nranges;
    uint64_t start, len;
} Flood;

/* Another device, which works beside ours. */
typedef struct Rng {
    QVirtioPCIDevice *pci;
    QVirtQueue *vq;
    uint64_t buffer;
} Rng;

typedef struct Latency {
    gint64 qmp_us, rng_us;
} Latency;

typedef struct Guest {
    QVirtioFreehint *fh;
    Rng rng;
    /* NULL while there is no flood. */
    QFreehintHint *message;
    int in_ring;
} Guest;

/*
 * The whole ring is the same message, whose descriptors nobody changes. All of
 * it is made available at once, so there is much to do when others want to be
 * served.
 */
static void keep_flooding(Guest *guest)
{
    QVirtQueue *vq = guest->fh->vq;
    const uint64_t avail_idx = vq->avail + offsetof(struct vring_avail, idx);
    uint16_t idx = qtest_readw(global_qtest, avail_idx);
    uint32_t head, len;
    int i;

    if (!guest->message) {
        return;
    }
    while (qfreehint_poll(guest->fh, &head, &len)) {
        guest->in_ring--;
    }
    for (; guest->in_ring < vq->size; guest->in_ring++, idx++) {
        qtest_writew(global_qtest, vq->avail + offsetof(struct vring_avail,
                                                        ring[idx % vq->size]),
                     guest->message->head);
    }
    qtest_writew(global_qtest, avail_idx, idx);
    for (i = 0; i < KICKS; i++) {
        guest->fh->vdev->bus->virtqueue_kick(guest->fh->vdev, vq);
    }
}

static gint64 time_qmp(void)
{
    gint64 start = g_get_monotonic_time();

    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'query-status' }");
    return g_get_monotonic_time() - start;
}

static gint64 time_rng(Rng *rng)
{
    QVirtioDevice *vdev = &rng->pci->vdev;
    gint64 start = g_get_monotonic_time();
    uint32_t head;

    /* libqos never reuses descriptors, but one is enough here. */
    rng->vq->free_head = 0;
    rng->vq->num_free = rng->vq->size;
    head = qvirtqueue_add(global_qtest, rng->vq, rng->buffer, 16, true, false);
    qvirtqueue_kick(global_qtest, vdev, rng->vq, head);
    while (!qvirtqueue_get_buf(global_qtest, rng->vq, NULL, NULL)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
    }
    return g_get_monotonic_time() - start;
}

static int compare_times(const void *a, const void *b)
{
    const gint64 first = *(const gint64 *)a, second = *(const gint64 *)b;

    return (first > second) - (first < second);
}

static gint64 median(gint64 *us)
{
    qsort(us, SAMPLES, sizeof(*us), compare_times);
    return us[SAMPLES / 2];
}

static Latency measure(Guest *guest)
{
    gint64 qmp_us[SAMPLES], rng_us[SAMPLES];
    int i;

    for (i = 0; i < SAMPLES; i++) {
        keep_flooding(guest);
        qmp_us[i] = time_qmp();
        keep_flooding(guest);
        rng_us[i] = time_rng(&guest->rng);
    }
    return (Latency) { median(qmp_us), median(rng_us) };
}

static void end_flood(Guest *guest)
{
    gint64 start = g_get_monotonic_time();
    uint32_t head, len;

    guest->message = NULL;
    while (guest->in_ring) {
        guest->in_ring -= qfreehint_poll(guest->fh, &head, &len);
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
    }
}

/* Whether a flood slows others down by no more than it may. */
static bool is_bounded(Guest *guest, const char *name, QFreehintHint *message)
{
    Latency before = measure(guest), during;

    /* Submit once as usual, which sets up the descriptors. */
    qfreehint_submit(guest->fh, message);
    qfreehint_wait(guest->fh, message);
    guest->message = message;
    during = measure(guest);
    end_flood(guest);
    g_test_message("%s: QMP %" PRId64 " to %" PRId64 " us, virtio-rng %"
                   PRId64 " to %" PRId64 " us", name, before.qmp_us,
                   during.qmp_us, before.rng_us, during.rng_us);
    return during.qmp_us - before.qmp_us < ADDED_US_MAX &&
           during.rng_us - before.rng_us < ADDED_US_MAX;
}

/* Lost memory makes QEMU grow in each flood; a heap settles after some. */
static bool flood_grows(Guest *guest, const char *name, QFreehintHint *message)
{
    const uint64_t before = qfreehint_own_memory();
    int64_t grown;

    is_bounded(guest, name, message);
    grown = qfreehint_own_memory() - before;
    g_test_message("%s: grown by %" PRId64, name, grown);
    return grown >= GROWN_MAX;
}

static QFreehintHint make_message(QVirtioFreehint *fh, QGuestAllocator *alloc,
                                  const Flood *flood)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .nranges = flood->nranges,
    };
    g_autofree QFreehintRange *ranges = g_new(QFreehintRange, MAX_RANGES);
    int i;

    for (i = 0; i < MAX_RANGES; i++) {
        ranges[i] = (QFreehintRange) { flood->start, flood->len };
    }
    return qfreehint_prepare(fh, alloc, &hdr, ranges, flood->nranges);
}

static Rng rng_start(QPCIBus *bus, QGuestAllocator *alloc)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(5, 0) };
    Rng rng = { .pci = virtio_pci_new(bus, &addr) };
    QVirtioDevice *vdev = &rng.pci->vdev;

    g_assert_cmpuint(vdev->device_type, ==, VIRTIO_ID_RNG);
    qvirtio_pci_device_enable(rng.pci);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                               ~(QVIRTIO_F_BAD_FEATURE |
                                 (1ull << VIRTIO_RING_F_INDIRECT_DESC) |
                                 (1ull << VIRTIO_RING_F_EVENT_IDX)));
    rng.vq = qvirtqueue_setup(vdev, alloc, 0);
    qvirtio_set_driver_ok(vdev);
    rng.buffer = guest_alloc(alloc, 16);
    return rng;
}

static void rng_stop(Rng *rng, QGuestAllocator *alloc)
{
    guest_free(alloc, rng->buffer);
    qvirtqueue_cleanup(rng->pci->vdev.bus, rng->vq, alloc);
    qvirtio_pci_device_disable(rng->pci);
    g_free(rng->pci->pdev);
    g_free(rng->pci);
}

static void test_flood(void *obj, void *data, QGuestAllocator *alloc)
{
    const Flood floods[] = {
        { "no ranges", 0 },
        /* All memory below the firmware: slow to refuse. */
        { "bad ranges", MAX_RANGES, 0, 0xff000000 },
        { "one range again and again", MAX_RANGES, FREE_START, GRANULE },
    };
    Guest guest = { .fh = obj };
    int i, round;

    guest.rng = rng_start(guest.fh->pci->pdev->bus, alloc);
    for (i = 0; i < ARRAY_SIZE(floods); i++) {
        QFreehintHint message = make_message(guest.fh, alloc, &floods[i]);
        bool bounded = false, grows = true;

        for (round = 0; round < ROUNDS && !bounded; round++) {
            bounded = is_bounded(&guest, floods[i].name, &message);
        }
        g_assert_true(bounded);
        for (round = 0; round < ROUNDS && grows; round++) {
            grows = flood_grows(&guest, floods[i].name, &message);
        }
        g_assert_true(QFREEHINT_FREED_IS_KEPT || !grows);
        guest_free(alloc, message.readable);
        guest_free(alloc, message.writable);
    }
    qfreehint_assert_identity();
    rng_stop(&guest.rng, alloc);
    qos_invalidate_command_line();
}

static void *setup_rng(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -device virtio-rng-pci,addr=05.0");
    return arg;
}

static void register_virtio_freehint_flood_test(void)
{
    QOSGraphTestOptions rng = { .before = setup_rng };

    /* It measures time, so it should not run beside others in "make check". */
    if (!g_test_slow()) {
        return;
    }
    qos_add_test("flood", "virtio-freehint", test_flood, &rng);
}

libqos_init(register_virtio_freehint_flood_test);
