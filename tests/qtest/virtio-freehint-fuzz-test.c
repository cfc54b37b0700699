/*
 * QTest test case for virtio-freehint: valid and nearly valid messages
 *
 * A driver that does almost everything right. Messages come in batches; while
 * the device works on one, it is disturbed. A batch with nothing wrong in it
 * has to be answered in full. Whatever happens, QEMU survives, the counters add
 * up, and memory that was not hinted properly keeps its content.
 *
 * All choices come from GLib's random numbers: "--seed" repeats a run. With
 * FREEHINT_FUZZ_SECONDS in the environment it runs this long.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "libqtest-single.h"
#include "libqos/pci.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"

#define GRANULE (64 * KiB)
#define FUZZ_OPTS "x-granule=64K"
#define DEFAULT_BATCHES 100

/*
 * RAM that neither firmware nor libqos uses, in a machine of 128 MiB: messages,
 * memory that is never hinted properly, memory that is.
 */
#define SCRATCH_START (qfreehint_ram_start() + 48 * MiB)
#define KEPT_START (qfreehint_ram_start() + 60 * MiB)
#define FREE_START (qfreehint_ram_start() + 64 * MiB)
#define FREE_END (qfreehint_ram_start() + 128 * MiB)
#define KEPT_BYTE 0xc5

#define MAX_MESSAGES 6
#define MAX_RANGES 1024
#define MAX_PIECES 6
#define TIMEOUT_US (30 * 1000 * 1000)

/* QEMU's own memory goes up and down; leaks add up in a long run. */
#define GROWN_MAX (2 * MiB)

/* What the device has to do with a message. */
typedef enum Expect {
    EXPECT_DONE,
    EXPECT_UNSUPPORTED,
    /* It may break the device; how far that gets is not defined. */
    EXPECT_ANYTHING,
} Expect;

typedef struct Message {
    Expect expect;
    uint64_t readable;
    uint32_t readable_size;
    uint64_t writable;
    uint32_t writable_size;
    uint32_t nranges;
    /* The ranges that have to be refused. */
    unsigned long bad[BITS_TO_LONGS(MAX_RANGES)];
} Message;

typedef struct Fuzz {
    QVirtioFreehint *fh;
    QGuestAllocator *alloc;
    /* The driver's position in the ring; descriptors are used up in order. */
    uint16_t avail_idx;
    uint16_t used_idx;
    uint32_t next_desc;
    /* The address for the next message. */
    uint64_t scratch;
    bool enabled;
    bool vetoed;
} Fuzz;

static uint32_t pick(uint32_t n)
{
    return g_test_rand_int_range(0, n);
}

static bool one_in(uint32_t n)
{
    return !pick(n);
}

static uint64_t rand64(void)
{
    return (uint64_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int();
}

/* Life cycle of the device */

static void start(Fuzz *fuzz)
{
    QVirtioFreehint *fh = fuzz->fh;
    uint64_t features = qvirtio_get_features(fh->vdev) & ~QVIRTIO_F_BAD_FEATURE;

    if (one_in(2)) {
        features &= ~(1ull << VIRTIO_RING_F_INDIRECT_DESC);
    }
    if (one_in(2)) {
        features &= ~(1ull << VIRTIO_RING_F_EVENT_IDX);
    }
    qvirtio_set_features(fh->vdev, features);
    fh->vq = qvirtqueue_setup(fh->vdev, fuzz->alloc, VIRTIO_FREEHINT_VQ_HINT);
    qvirtio_set_driver_ok(fh->vdev);
    fuzz->avail_idx = 0;
    fuzz->used_idx = 0;
    fuzz->next_desc = 0;
}

static void restart(Fuzz *fuzz)
{
    QVirtioFreehint *fh = fuzz->fh;

    qvirtio_reset(fh->vdev);
    qvirtqueue_cleanup(fh->vdev->bus, fh->vq, fuzz->alloc);
    qvirtio_set_acknowledge(fh->vdev);
    qvirtio_set_driver(fh->vdev);
    start(fuzz);
}

/* Messages */

static QFreehintRange valid_range(uint64_t start, uint64_t end)
{
    const uint32_t granules = (end - start) / GRANULE;
    const uint32_t first = pick(granules);
    const uint32_t n = 1 + pick(MIN(granules - first, one_in(32) ? 1024 : 8));

    return (QFreehintRange) { start + first * GRANULE, n * GRANULE };
}

/* A range that has to be refused, even if it names memory to be kept. */
static QFreehintRange bad_range(void)
{
    const uint64_t elsewhere[] = {
        0xc0000, 0xf0000, 0xfee00000, 0xfffc0000, FREE_END, 4 * GiB, 1 * TiB,
        0xfd000000, 0xfebd0000,
    };
    QFreehintRange range = valid_range(KEPT_START, FREE_START);

    switch (pick(6)) {
    case 0:
        range.addr += 1 + pick(GRANULE - 1);
        break;
    case 1:
        range.len += 1 + pick(GRANULE - 1);
        break;
    case 2:
        range.len = 0;
        break;
    case 3:
        range.len = -range.addr + GRANULE;
        break;
    case 4:
        range.addr = QEMU_ALIGN_DOWN(elsewhere[pick(ARRAY_SIZE(elsewhere))],
                                     GRANULE);
        break;
    case 5:
        /* Partly RAM. */
        range.addr = FREE_END - GRANULE * (1 + pick(4));
        range.len = GRANULE * (5 + pick(100));
        break;
    }
    return range;
}

static uint32_t pick_nranges(void)
{
    switch (pick(16)) {
    case 0:
        return 0;
    case 1:
        return MAX_RANGES;
    default:
        return 1 + pick(32);
    }
}

/* Write fields as no driver would; true if no field was changed. */
static bool spoil_header(struct virtio_freehint_hdr *hdr, Expect *expect)
{
    switch (pick(16)) {
    case 0:
        hdr->type = 0x4000 | g_test_rand_int();
        *expect = EXPECT_UNSUPPORTED;
        return false;
    case 1:
        hdr->flags = 0x8000 | g_test_rand_int();
        *expect = EXPECT_UNSUPPORTED;
        return false;
    case 2:
        hdr->nranges += 1 + pick(2 * MAX_RANGES);
        *expect = EXPECT_ANYTHING;
        return false;
    case 3:
        hdr->nranges = UINT32_MAX - pick(16);
        *expect = EXPECT_ANYTHING;
        return false;
    case 4:
        /* The device takes the ranges for something else. */
        hdr->type = one_in(2) ? VIRTIO_FREEHINT_T_FLUSH_DONE :
                                VIRTIO_FREEHINT_T_GAUGES;
        *expect = EXPECT_ANYTHING;
        return false;
    default:
        return true;
    }
}

/* Unless the message is correct, all of its ranges name memory to be kept. */
static QFreehintRange pick_range(bool proper, bool bad)
{
    if (bad) {
        return bad_range();
    }
    return proper ? valid_range(FREE_START, FREE_END) :
                    valid_range(KEPT_START, FREE_START);
}

static uint64_t take_scratch(Fuzz *fuzz, uint32_t size)
{
    uint64_t addr = fuzz->scratch;

    fuzz->scratch += size + pick(64);
    g_assert_cmpuint(fuzz->scratch, <=, KEPT_START);
    return addr;
}

static Message make_message(Fuzz *fuzz)
{
    struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .flags = one_in(4) ? VIRTIO_FREEHINT_HINT_F_ZERO : 0,
        .nranges = pick_nranges(),
        .cookie = rand64(),
    };
    Message msg = { .expect = EXPECT_DONE, .nranges = hdr.nranges };
    const bool proper = spoil_header(&hdr, &msg.expect);
    struct virtio_freehint_range *ranges;
    g_autofree uint8_t *data = NULL;
    uint32_t i;

    msg.readable_size = sizeof(hdr) + msg.nranges * sizeof(*ranges);
    msg.writable_size = sizeof(struct virtio_freehint_ack) + msg.nranges;
    hdr.type = cpu_to_le16(hdr.type);
    hdr.flags = cpu_to_le16(hdr.flags);
    hdr.nranges = cpu_to_le32(hdr.nranges);
    data = g_malloc(msg.readable_size);
    memcpy(data, &hdr, sizeof(hdr));
    ranges = (void *)(data + sizeof(hdr));
    for (i = 0; i < msg.nranges; i++) {
        const bool bad = one_in(4);
        const QFreehintRange range = pick_range(proper, bad);

        if (bad) {
            set_bit(i, msg.bad);
        }
        ranges[i].addr = cpu_to_le64(range.addr);
        ranges[i].len = cpu_to_le64(range.len);
    }

    msg.readable = take_scratch(fuzz, msg.readable_size);
    msg.writable = take_scratch(fuzz, msg.writable_size);
    qtest_bufwrite(global_qtest, msg.readable, data, msg.readable_size);
    qtest_memset(global_qtest, msg.writable, 0xee, msg.writable_size);
    return msg;
}

/* Descriptors */

static int split_part(struct vring_desc *descs, uint64_t addr, uint32_t size,
                      uint16_t flags)
{
    const int max = 1 + pick(MAX_PIECES);
    int n = 0;

    while (size) {
        const uint32_t len = n + 1 < max ? 1 + pick(size) : size;

        descs[n++] = (struct vring_desc) {
            .addr = addr, .len = len, .flags = flags,
        };
        addr += len;
        size -= len;
    }
    return n;
}

/* Make something wrong with a descriptor of a chain. */
static void spoil_desc(Fuzz *fuzz, struct vring_desc *desc)
{
    const uint64_t addrs[] = {
        0, 0xc0000, 0xfee00000, 0xfffc0000, FREE_END - 1, 4 * GiB, 1 * TiB,
        UINT64_MAX, fuzz->fh->vq->desc, fuzz->fh->vq->avail,
        fuzz->fh->vq->used, FREE_START,
    };
    static const uint32_t lens[] = {
        0, 1, 15, 17, 4096, 64 * MiB, INT32_MAX, UINT32_MAX,
    };

    switch (pick(4)) {
    case 0:
        desc->addr = addrs[pick(ARRAY_SIZE(addrs))];
        break;
    case 1:
        desc->len = lens[pick(ARRAY_SIZE(lens))];
        break;
    case 2:
        desc->flags ^= 1 << pick(3);
        break;
    case 3:
        desc->next = one_in(2) ? pick(fuzz->fh->vq->size) : g_test_rand_int();
        desc->flags |= VRING_DESC_F_NEXT;
        break;
    }
}

static void write_descs(uint64_t table, uint32_t first,
                        const struct vring_desc *descs, int n)
{
    int i;

    for (i = 0; i < n; i++) {
        const struct vring_desc le = {
            .addr = cpu_to_le64(descs[i].addr),
            .len = cpu_to_le32(descs[i].len),
            .flags = cpu_to_le16(descs[i].flags),
            .next = cpu_to_le16(descs[i].next),
        };

        qtest_memwrite(global_qtest, table + (first + i) * sizeof(le), &le,
                       sizeof(le));
    }
}

static void link_descs(struct vring_desc *descs, int n, uint32_t first)
{
    int i;

    for (i = 0; i < n - 1; i++) {
        descs[i].flags |= VRING_DESC_F_NEXT;
        descs[i].next = first + i + 1;
    }
}

static bool spoil_chain(Fuzz *fuzz, struct vring_desc *descs, int n)
{
    if (!one_in(12)) {
        return false;
    }
    spoil_desc(fuzz, &descs[pick(n)]);
    return true;
}

/* Make a message available, in one of many ways; returns its head. */
static uint16_t add_chain(Fuzz *fuzz, Message *msg)
{
    QVirtQueue *vq = fuzz->fh->vq;
    struct vring_desc descs[2 * MAX_PIECES + 2];
    uint16_t head = fuzz->next_desc;
    bool spoilt;
    int n;

    n = split_part(descs, msg->readable, msg->readable_size, 0);
    n += split_part(descs + n, msg->writable, msg->writable_size,
                    VRING_DESC_F_WRITE);

    if (vq->indirect && one_in(2)) {
        struct vring_desc desc = {
            .addr = take_scratch(fuzz, n * sizeof(desc)),
            .len = n * sizeof(desc),
            .flags = VRING_DESC_F_INDIRECT,
        };

        link_descs(descs, n, 0);
        spoilt = spoil_chain(fuzz, descs, n);
        write_descs(desc.addr, 0, descs, n);
        spoilt |= spoil_chain(fuzz, &desc, 1);
        write_descs(vq->desc, head, &desc, 1);
        fuzz->next_desc++;
    } else {
        link_descs(descs, n, head);
        spoilt = spoil_chain(fuzz, descs, n);
        write_descs(vq->desc, head, descs, n);
        fuzz->next_desc += n;
    }
    g_assert_cmpuint(fuzz->next_desc, <=, vq->size);
    if (spoilt) {
        msg->expect = EXPECT_ANYTHING;
    }
    return head;
}

static void make_available(Fuzz *fuzz, uint16_t head)
{
    QVirtQueue *vq = fuzz->fh->vq;

    qtest_writew(global_qtest, vq->avail + offsetof(struct vring_avail, ring) +
                 fuzz->avail_idx % vq->size * sizeof(uint16_t), head);
    fuzz->avail_idx++;
    qtest_writew(global_qtest, vq->avail + offsetof(struct vring_avail, idx),
                 fuzz->avail_idx);
}

static void submit(Fuzz *fuzz, Message *msg)
{
    uint16_t head = add_chain(fuzz, msg);

    if (one_in(200)) {
        head = g_test_rand_int();
        msg->expect = EXPECT_ANYTHING;
    }
    if (one_in(200)) {
        fuzz->avail_idx += g_test_rand_int();
        msg->expect = EXPECT_ANYTHING;
    }
    make_available(fuzz, head);
}

/* Disturbances that the driver, the operator or others may cause at any time */

static void set_enabled(Fuzz *fuzz, bool enabled)
{
    fuzz->enabled = enabled;
    qfreehint_set_enabled(enabled);
}

static void set_vetoed(Fuzz *fuzz, bool vetoed)
{
    fuzz->vetoed = vetoed;
    qfreehint_set_prop("veto0", "disabled", vetoed);
}

static void pause_and_go_on(void)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'stop' }");
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'cont' }");
}

/* Start a flush; it is refused while one is in progress. */
static void flush(void)
{
    qobject_unref(qmp("{ 'execute': 'freehint-flush',"
                      " 'arguments': { 'id': 'fh0' } }"));
}

static void write_config(Fuzz *fuzz)
{
    QVirtioFreehint *fh = fuzz->fh;

    qpci_io_writeb(fh->pci->pdev, fh->pci->bar, fh->pci->device_cfg_offset +
                   pick(sizeof(struct virtio_freehint_config)),
                   g_test_rand_int());
}

static void disturb(Fuzz *fuzz)
{
    switch (pick(12)) {
    case 0:
        set_enabled(fuzz, !fuzz->enabled);
        break;
    case 1:
        set_vetoed(fuzz, !fuzz->vetoed);
        break;
    case 2:
        pause_and_go_on();
        break;
    case 3:
        write_config(fuzz);
        break;
    case 4:
        flush();
        break;
    case 5:
        fuzz->fh->vdev->bus->virtqueue_kick(fuzz->fh->vdev, fuzz->fh->vq);
        break;
    }
}

static void reset_queue(Fuzz *fuzz)
{
    QVirtioFreehint *fh = fuzz->fh;

    fh->vdev->bus->queue_select(fh->vdev, VIRTIO_FREEHINT_VQ_HINT);
    qpci_io_writew(fh->pci->pdev, fh->pci->bar, fh->pci->common_cfg_offset +
                   offsetof(struct virtio_pci_modern_common_cfg, queue_reset),
                   1);
}

static void stop_bus_master(Fuzz *fuzz)
{
    QPCIDevice *pdev = fuzz->fh->pci->pdev;
    uint16_t command = qpci_config_readw(pdev, PCI_COMMAND);

    qpci_config_writew(pdev, PCI_COMMAND, command & ~PCI_COMMAND_MASTER);
    qpci_config_writew(pdev, PCI_COMMAND, command);
}

static void clear_status_bits(Fuzz *fuzz)
{
    QVirtioDevice *vdev = fuzz->fh->vdev;

    vdev->bus->set_status(vdev, vdev->bus->get_status(vdev) &
                          g_test_rand_int());
}

/* The driver gives up its messages, in one of several ways. */
static void give_up(Fuzz *fuzz)
{
    switch (pick(4)) {
    case 0:
        reset_queue(fuzz);
        break;
    case 1:
        stop_bus_master(fuzz);
        break;
    case 2:
        clear_status_bits(fuzz);
        break;
    }
    restart(fuzz);
}

/* Batches */

static void await_all(Fuzz *fuzz)
{
    const uint64_t addr = fuzz->fh->vq->used + offsetof(struct vring_used, idx);
    gint64 start = g_get_monotonic_time();

    while (qtest_readw(global_qtest, addr) != fuzz->avail_idx) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
    }
}

static void check_answer(const Message *msg)
{
    const QFreehintHint hint = { .writable = msg->writable };
    const struct virtio_freehint_ack ack = qfreehint_ack(&hint);
    uint8_t status[MAX_RANGES];
    uint32_t i;

    if (msg->expect == EXPECT_UNSUPPORTED) {
        g_assert_cmpuint(ack.result, ==, VIRTIO_FREEHINT_R_UNSUPPORTED);
        return;
    }
    g_assert_cmpuint(ack.result, ==, VIRTIO_FREEHINT_R_DONE);
    g_assert_cmpuint(ack.nstatus, ==, msg->nranges);
    qtest_memread(global_qtest, msg->writable + sizeof(ack), status,
                  msg->nranges);
    for (i = 0; i < msg->nranges; i++) {
        g_assert_cmphex(status[i], >=, VIRTIO_FREEHINT_S_DISCARDED);
        g_assert_cmphex(status[i], !=, 0xee);
        g_assert_false(test_bit(i, msg->bad) &&
                       status[i] == VIRTIO_FREEHINT_S_DISCARDED);
    }
}

static void check_answers(Fuzz *fuzz, const Message *msgs, int n)
{
    QVirtioDevice *vdev = fuzz->fh->vdev;
    int i;

    await_all(fuzz);
    g_assert_false(vdev->bus->get_status(vdev) & VIRTIO_CONFIG_S_NEEDS_RESET);
    for (i = 0; i < n; i++) {
        check_answer(&msgs[i]);
    }
    fuzz->used_idx = fuzz->avail_idx;
    fuzz->next_desc = 0;
}

static void run_batch(Fuzz *fuzz)
{
    const int n = 1 + pick(MAX_MESSAGES);
    Message msgs[MAX_MESSAGES];
    bool answered = true;
    int i;

    fuzz->scratch = SCRATCH_START + pick(4096);
    for (i = 0; i < n; i++) {
        msgs[i] = make_message(fuzz);
        submit(fuzz, &msgs[i]);
        answered &= msgs[i].expect != EXPECT_ANYTHING;
    }
    fuzz->fh->vdev->bus->virtqueue_kick(fuzz->fh->vdev, fuzz->fh->vq);
    disturb(fuzz);
    if (!answered || one_in(8)) {
        give_up(fuzz);
    } else {
        check_answers(fuzz, msgs, n);
    }
    qfreehint_assert_identity();
}

static void *setup_fuzz(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -name fuzz");

    return qfreehint_setup_veto(cmd_line, arg);
}

static void test_fuzz(void *obj, void *data, QGuestAllocator *alloc)
{
    const char *seconds = g_getenv("FREEHINT_FUZZ_SECONDS");
    const gint64 end = g_get_monotonic_time() +
                       (seconds ? atoi(seconds) : 0) * G_USEC_PER_SEC;
    Fuzz fuzz = { .fh = obj, .alloc = alloc, .enabled = true };
    uint64_t before = 0;
    int64_t grown;
    int batch;

    restart(&fuzz);
    qfreehint_fill(KEPT_START, FREE_START - KEPT_START, KEPT_BYTE);
    for (batch = 0; batch < DEFAULT_BATCHES || g_get_monotonic_time() < end;
         batch++) {
        if (batch == DEFAULT_BATCHES / 2) {
            before = qfreehint_own_memory();
        }
        run_batch(&fuzz);
        if (batch % 32 == 31) {
            g_assert_true(qfreehint_is_filled(KEPT_START,
                                              FREE_START - KEPT_START,
                                              KEPT_BYTE));
        }
    }
    grown = qfreehint_own_memory() - before;
    g_test_message("%d batches, %" PRIu64 " hints, %" PRIu64 " malformed, %"
                   PRIu64 " bytes discarded, grown by %" PRId64, batch,
                   qfreehint_stat("hints"), qfreehint_stat("malformed"),
                   qfreehint_stat("discard-bytes"), grown);
    /* A run without discards would prove nothing. */
    g_assert_cmpuint(qfreehint_stat("discard-bytes"), >, 0);
    g_assert_cmpuint(qfreehint_stat("malformed"), >, 0);
    g_assert_true(QFREEHINT_FREED_IS_KEPT || grown < GROWN_MAX);
    /* The device asks the host for nothing that the host could refuse. */
    g_assert_cmpuint(qfreehint_count("failed", "ranges"), ==, 0);
    set_vetoed(&fuzz, false);
    set_enabled(&fuzz, true);
    qfreehint_restart(fuzz.fh, alloc);
}

static void register_virtio_freehint_fuzz_test(void)
{
    QOSGraphTestOptions opts = {
        .edge.extra_device_opts = FUZZ_OPTS,
        .before = setup_fuzz,
    };

    qos_add_test("fuzz", "virtio-freehint", test_fuzz, &opts);
}

libqos_init(register_virtio_freehint_fuzz_test);
