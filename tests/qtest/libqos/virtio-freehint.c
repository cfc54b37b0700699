/*
 * libqos driver for virtio-freehint-pci
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "../libqtest-single.h"
#include "virtio-freehint.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define TIMEOUT_US (30 * 1000 * 1000)

/* The RAM of Arm's machine "virt". */
#define ARM_VIRT_RAM_START 0x40000000

static QGuestAllocator *alloc;

static bool is_arm(void)
{
    return !strcmp(qtest_get_arch(), "aarch64");
}

uint64_t qfreehint_ram_start(void)
{
    return is_arm() ? ARM_VIRT_RAM_START : 0;
}

const char *qfreehint_machine(void)
{
    return is_arm() ? "virt -cpu max" : "pc";
}

void qfreehint_start(QVirtioFreehint *fh, QGuestAllocator *t_alloc)
{
    uint64_t features = qvirtio_get_features(fh->vdev);

    features &= ~(QVIRTIO_F_BAD_FEATURE | fh->refused_features |
                  (1ull << VIRTIO_RING_F_INDIRECT_DESC) |
                  (1ull << VIRTIO_RING_F_EVENT_IDX));
    qvirtio_set_features(fh->vdev, features);
    fh->vq = qvirtqueue_setup(fh->vdev, t_alloc, VIRTIO_FREEHINT_VQ_HINT);
    qvirtio_set_driver_ok(fh->vdev);
}

static size_t writable_size(uint32_t nranges)
{
    return sizeof(struct virtio_freehint_ack) + nranges;
}

static QFreehintHint prepare(QGuestAllocator *t_alloc,
                             const struct virtio_freehint_hdr *hdr,
                             const void *body, size_t size, uint32_t nranges)
{
    const struct virtio_freehint_hdr le_hdr = {
        .type = cpu_to_le16(hdr->type),
        .flags = cpu_to_le16(hdr->flags),
        .nranges = cpu_to_le32(hdr->nranges),
        .cookie = cpu_to_le64(hdr->cookie),
    };
    QFreehintHint hint = {
        .nranges = nranges,
        .readable_len = sizeof(le_hdr) + size,
    };

    hint.readable = guest_alloc(t_alloc, hint.readable_len);
    hint.writable = guest_alloc(t_alloc, writable_size(nranges));
    qtest_memwrite(global_qtest, hint.readable, &le_hdr, sizeof(le_hdr));
    if (size) {
        qtest_memwrite(global_qtest, hint.readable + sizeof(le_hdr), body,
                       size);
    }
    /* Bytes that the device does not write must not pass for an answer. */
    qtest_memset(global_qtest, hint.writable, 0xee, writable_size(nranges));
    return hint;
}

QFreehintHint qfreehint_prepare(QVirtioFreehint *fh, QGuestAllocator *t_alloc,
                                const struct virtio_freehint_hdr *hdr,
                                const QFreehintRange *ranges,
                                uint32_t nranges)
{
    g_autofree QFreehintRange *le_ranges = g_new(QFreehintRange, nranges);
    uint32_t i;

    for (i = 0; i < nranges; i++) {
        le_ranges[i].addr = cpu_to_le64(ranges[i].addr);
        le_ranges[i].len = cpu_to_le64(ranges[i].len);
    }
    return prepare(t_alloc, hdr, le_ranges, nranges * sizeof(*le_ranges),
                   nranges);
}

QFreehintHint qfreehint_prepare_body(QVirtioFreehint *fh,
                                     QGuestAllocator *t_alloc,
                                     const struct virtio_freehint_hdr *hdr,
                                     const void *body, size_t size)
{
    return prepare(t_alloc, hdr, body, size, 0);
}

/* The number of descriptors; DIV_ROUND_UP() overflows for large steps. */
static uint32_t count_parts(uint32_t size, uint32_t step)
{
    return size ? (size - 1) / step + 1 : 0;
}

static uint32_t add_part(QVirtioFreehint *fh, uint64_t addr, uint32_t size,
                         uint32_t step, bool write, bool more)
{
    uint32_t head = fh->vq->free_head;

    while (size) {
        uint32_t len = MIN(step, size);

        size -= len;
        qvirtqueue_add(global_qtest, fh->vq, addr, len, write, size || more);
        addr += len;
    }
    return head;
}

void qfreehint_submit_split(QVirtioFreehint *fh, QFreehintHint *hint,
                            uint32_t readable, uint32_t writable,
                            uint32_t step)
{
    const uint32_t needed = count_parts(readable, step) +
                            count_parts(writable, step);

    /* libqos never reuses descriptors: start again when it has no more. */
    if (fh->vq->free_head + needed > fh->vq->size) {
        fh->vq->free_head = 0;
        fh->vq->num_free = fh->vq->size;
    }
    hint->head = add_part(fh, hint->readable, readable, step, false, writable);
    add_part(fh, hint->writable, writable, step, true, false);
    qvirtqueue_kick(global_qtest, fh->vdev, fh->vq, hint->head);
}

void qfreehint_submit(QVirtioFreehint *fh, QFreehintHint *hint)
{
    qfreehint_submit_split(fh, hint, hint->readable_len,
                           writable_size(hint->nranges), UINT32_MAX);
}

bool qfreehint_poll(QVirtioFreehint *fh, uint32_t *head, uint32_t *len)
{
    return qvirtqueue_get_buf(global_qtest, fh->vq, head, len);
}

gint64 qfreehint_wait(QVirtioFreehint *fh, QFreehintHint *hint)
{
    gint64 start = g_get_monotonic_time();
    struct virtio_freehint_ack ack;
    uint32_t head, len;

    while (!qfreehint_poll(fh, &head, &len)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        g_usleep(1000);
    }
    g_assert_cmpuint(head, ==, hint->head);
    ack = qfreehint_ack(hint);
    g_assert_cmpuint(len, ==, writable_size(ack.nstatus));
    return g_get_monotonic_time() - start;
}

struct virtio_freehint_ack qfreehint_ack(const QFreehintHint *hint)
{
    struct virtio_freehint_ack ack;

    qtest_memread(global_qtest, hint->writable, &ack, sizeof(ack));
    ack.result = le16_to_cpu(ack.result);
    ack.reserved = le16_to_cpu(ack.reserved);
    ack.nstatus = le32_to_cpu(ack.nstatus);
    ack.rehint_epoch = le32_to_cpu(ack.rehint_epoch);
    ack.retry_after_ms = le32_to_cpu(ack.retry_after_ms);
    return ack;
}

uint8_t qfreehint_status(const QFreehintHint *hint, uint32_t index)
{
    return qtest_readb(global_qtest, hint->writable +
                       sizeof(struct virtio_freehint_ack) + index);
}

void qfreehint_hint(QVirtioFreehint *fh, QGuestAllocator *t_alloc,
                    uint16_t flags, const QFreehintRange *ranges,
                    uint32_t nranges, uint8_t *status)
{
    const struct virtio_freehint_hdr hdr = {
        .type = VIRTIO_FREEHINT_T_HINT,
        .flags = flags,
        .nranges = nranges,
        .cookie = 0x1122334455667788,
    };
    struct virtio_freehint_ack ack;
    QFreehintHint hint;
    uint32_t i;

    hint = qfreehint_prepare(fh, t_alloc, &hdr, ranges, nranges);
    qfreehint_submit(fh, &hint);
    qfreehint_wait(fh, &hint);
    ack = qfreehint_ack(&hint);
    g_assert_cmpuint(ack.result, ==, VIRTIO_FREEHINT_R_DONE);
    g_assert_cmpuint(ack.reserved, ==, 0);
    g_assert_cmpuint(ack.nstatus, ==, nranges);
    for (i = 0; i < nranges; i++) {
        status[i] = qfreehint_status(&hint, i);
    }
    guest_free(t_alloc, hint.readable);
    guest_free(t_alloc, hint.writable);
}

uint16_t qfreehint_send(QVirtioFreehint *fh, QGuestAllocator *t_alloc,
                        uint16_t type, const void *body, size_t size)
{
    const struct virtio_freehint_hdr hdr = { .type = type };
    QFreehintHint message = qfreehint_prepare_body(fh, t_alloc, &hdr, body,
                                                   size);
    struct virtio_freehint_ack ack;

    qfreehint_submit(fh, &message);
    qfreehint_wait(fh, &message);
    ack = qfreehint_ack(&message);
    g_assert_cmpuint(ack.nstatus, ==, 0);
    g_assert_cmpuint(ack.retry_after_ms, ==, 0);
    guest_free(t_alloc, message.readable);
    guest_free(t_alloc, message.writable);
    return ack.result;
}

void qfreehint_fill(uint64_t addr, uint64_t len, uint8_t pattern)
{
    qtest_memset(global_qtest, addr, pattern, len);
}

/* Reads in chunks, since the time that libqtest takes for one is quadratic. */
bool qfreehint_is_filled(uint64_t addr, uint64_t len, uint8_t pattern)
{
    uint8_t data[16 * KiB];

    while (len) {
        const size_t size = MIN(len, sizeof(data));

        qtest_bufread(global_qtest, addr, data, size);
        /* All bytes equal the first one, and that is the pattern. */
        if (data[0] != pattern || memcmp(data, data + 1, size - 1)) {
            return false;
        }
        addr += size;
        len -= size;
    }
    return true;
}

uint64_t qfreehint_host_bytes(const char *file, const char *field)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/%s",
                                            qtest_pid(global_qtest), file);
    g_autofree char *text = NULL;
    const char *line;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    line = strstr(text, field);
    g_assert_nonnull(line);
    return g_ascii_strtoull(line + strlen(field), NULL, 10) * KiB;
}

uint64_t qfreehint_resident_anon(void)
{
    return qfreehint_host_bytes("status", "RssAnon:");
}

uint64_t qfreehint_ram_resident(void)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps",
                                            qtest_pid(global_qtest));
    g_autofree char *smaps = NULL;
    const char *line;

    g_assert_true(g_file_get_contents(path, &smaps, NULL, NULL));
    for (line = smaps; (line = strstr(line, "\nSize:")); line++) {
        if (g_ascii_strtoull(line + strlen("\nSize:"), NULL, 10) ==
            128 * MiB / KiB) {
            line = strstr(line, "\nRss:");
            return g_ascii_strtoull(line + strlen("\nRss:"), NULL, 10) * KiB;
        }
    }
    g_assert_not_reached();
}

uint64_t qfreehint_own_memory(void)
{
    return qfreehint_resident_anon() - qfreehint_ram_resident();
}

QDict *qfreehint_query(void)
{
    QDict *rsp = qmp("{ 'execute': 'query-freehint' }");
    QList *devices = qdict_get_qlist(rsp, "return");
    QDict *device;

    g_assert_cmpuint(qlist_size(devices), ==, 1);
    device = qobject_to(QDict, qlist_pop(devices));
    qobject_unref(rsp);
    return device;
}

void qfreehint_assert_state(const char *state, const char *reason)
{
    QDict *device = qfreehint_query();

    g_assert_cmpstr(qdict_get_str(device, "state"), ==, state);
    g_assert_cmpstr(qdict_get_try_str(device, "reason"), ==, reason);
    qobject_unref(device);
}

/* The sum of "bytes" or "ranges" over a counter and its parts. */
static uint64_t sum_counts(const QDict *dict, const char *unit)
{
    const QDictEntry *entry;
    uint64_t sum = 0;

    for (entry = qdict_first(dict); entry; entry = qdict_next(dict, entry)) {
        const char *key = qdict_entry_key(entry);
        const QDict *child = qobject_to(QDict, qdict_entry_value(entry));

        if (child) {
            sum += sum_counts(child, unit);
        } else if (!strcmp(key, unit)) {
            sum += qdict_get_int(dict, key);
        }
    }
    return sum;
}

uint64_t qfreehint_count(const char *name, const char *unit)
{
    QDict *device = qfreehint_query();
    QDict *stats = qdict_get_qdict(device, "stats");
    uint64_t sum = sum_counts(qdict_get_qdict(stats, name), unit);

    qobject_unref(device);
    return sum;
}

uint64_t qfreehint_stat(const char *name)
{
    QDict *device = qfreehint_query();
    uint64_t value = qdict_get_int(qdict_get_qdict(device, "stats"), name);

    qobject_unref(device);
    return value;
}

uint64_t qfreehint_count_rejected(const char *kind)
{
    QDict *device = qfreehint_query();
    QDict *rejected = qdict_get_qdict(qdict_get_qdict(device, "stats"),
                                      "rejected");
    uint64_t ranges = qdict_get_int(qdict_get_qdict(rejected, kind), "ranges");

    qobject_unref(device);
    return ranges;
}

void qfreehint_assert_obstacles(const char *expected)
{
    g_autoptr(GString) reasons = g_string_new("");
    QDict *device = qfreehint_query();
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(device, "obstacles"), entry) {
        QDict *obstacle = qobject_to(QDict, qlist_entry_obj(entry));

        g_assert_cmpstr(qdict_get_str(obstacle, "detail"), !=, "");
        g_string_append_printf(reasons, "%s ",
                               qdict_get_str(obstacle, "reason"));
    }
    qobject_unref(device);
    g_assert_cmpstr(reasons->str, ==, expected);
}

void qfreehint_assert_identity(void)
{
    static const char *const units[] = { "ranges", "bytes" };
    static const char *const fates[] = {
        "discarded", "declined", "throttled", "rejected", "failed",
        "in-flight",
    };
    QDict *device = qfreehint_query();
    QDict *stats = qdict_get_qdict(device, "stats");
    int i, j;

    for (i = 0; i < ARRAY_SIZE(units); i++) {
        uint64_t sum = 0;

        for (j = 0; j < ARRAY_SIZE(fates); j++) {
            sum += sum_counts(qdict_get_qdict(stats, fates[j]), units[i]);
        }
        g_assert_cmpuint(sum, ==,
                         sum_counts(qdict_get_qdict(stats, "hinted"),
                                    units[i]));
    }
    qobject_unref(device);
}

void qfreehint_set_enabled(bool enabled)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'freehint-set',"
                             " 'arguments': { 'id': 'fh0', 'enabled': %i } }",
                             enabled);
}

void qfreehint_set_prop(const char *path, const char *prop, bool value)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'qom-set',"
                             " 'arguments': { 'path': %s, 'property': %s,"
                             " 'value': %i } }", path, prop, value);
}

char *qfreehint_migration_uri(void)
{
    return g_strdup_printf("unix:%s/qtest-freehint-%d.migration",
                           g_get_tmp_dir(), getpid());
}

void qfreehint_migrate(const char *uri)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'migrate',"
                             " 'arguments': { 'uri': %s } }", uri);
}

void qfreehint_await_migration(void)
{
    gint64 start = g_get_monotonic_time();
    bool completed = false;

    while (!completed) {
        QDict *rsp = qmp("{ 'execute': 'query-migrate' }");
        const char *status = qdict_get_str(qdict_get_qdict(rsp, "return"),
                                           "status");

        g_assert_cmpstr(status, !=, "failed");
        g_assert_cmpint(g_get_monotonic_time() - start, <, TIMEOUT_US);
        completed = !strcmp(status, "completed");
        qobject_unref(rsp);
    }
}

char *qfreehint_ram_file(void)
{
    return g_strdup_printf("%s/qtest-freehint-%d.ram", g_get_tmp_dir(),
                           getpid());
}

void *qfreehint_setup_shared_ram(GString *cmd_line, void *arg)
{
    g_autofree char *path = qfreehint_ram_file();

    g_string_append_printf(cmd_line, " -object memory-backend-file,id=ram0,"
                           "size=128M,share=on,mem-path=%s"
                           " -machine memory-backend=ram0", path);
    return arg;
}

void *qfreehint_setup_veto(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -device discard-testdev,id=veto0");
    return arg;
}

uint8_t qfreehint_hint_one(QVirtioFreehint *fh, QGuestAllocator *t_alloc,
                           uint16_t flags, uint64_t addr, uint64_t len)
{
    const QFreehintRange range = { .addr = addr, .len = len };
    uint8_t status;

    qfreehint_hint(fh, t_alloc, flags, &range, 1, &status);
    return status;
}

void qfreehint_restart(QVirtioFreehint *fh, QGuestAllocator *t_alloc)
{
    qvirtio_reset(fh->vdev);
    qvirtqueue_cleanup(fh->vdev->bus, fh->vq, t_alloc);
    qvirtio_set_acknowledge(fh->vdev);
    qvirtio_set_driver(fh->vdev);
    qfreehint_start(fh, t_alloc);
}

static void *qvirtio_freehint_pci_get_driver(void *object,
                                             const char *interface)
{
    QVirtioFreehintPCI *fh_pci = object;

    if (!g_strcmp0(interface, "pci-device")) {
        return fh_pci->pci_vdev.pdev;
    }
    if (g_str_has_prefix(interface, "virtio-freehint")) {
        return &fh_pci->freehint;
    }
    if (!g_strcmp0(interface, "virtio")) {
        return fh_pci->freehint.vdev;
    }

    fprintf(stderr, "%s not present in virtio-freehint-pci\n", interface);
    g_assert_not_reached();
}

static void qvirtio_freehint_pci_destructor(QOSGraphObject *obj)
{
    QVirtioFreehintPCI *fh_pci = (QVirtioFreehintPCI *)obj;

    qvirtqueue_cleanup(fh_pci->freehint.vdev->bus, fh_pci->freehint.vq, alloc);
    qvirtio_pci_destructor(&fh_pci->pci_vdev.obj);
}

static void qvirtio_freehint_pci_start_hw(QOSGraphObject *obj)
{
    QVirtioFreehintPCI *fh_pci = (QVirtioFreehintPCI *)obj;

    qvirtio_pci_start_hw(&fh_pci->pci_vdev.obj);
    qfreehint_start(&fh_pci->freehint, alloc);
}

void qfreehint_init(QVirtioFreehint *fh, QVirtioPCIDevice *pci)
{
    fh->vdev = &pci->vdev;
    fh->pci = pci;
}

static void *virtio_freehint_pci_create(void *pci_bus,
                                        QGuestAllocator *t_alloc, void *addr)
{
    QVirtioFreehintPCI *fh_pci = g_new0(QVirtioFreehintPCI, 1);
    QOSGraphObject *obj = &fh_pci->pci_vdev.obj;

    virtio_pci_init(&fh_pci->pci_vdev, pci_bus, addr);
    qfreehint_init(&fh_pci->freehint, &fh_pci->pci_vdev);
    alloc = t_alloc;

    obj->get_driver = qvirtio_freehint_pci_get_driver;
    obj->start_hw = qvirtio_freehint_pci_start_hw;
    obj->destructor = qvirtio_freehint_pci_destructor;

    return obj;
}

static void virtio_freehint_register_nodes(void)
{
    QPCIAddress addr = {
        .devfn = QPCI_DEVFN(4, 0),
    };
    QOSGraphEdgeOptions opts = {
        .extra_device_opts = "addr=04.0,id=fh0",
    };

    add_qpci_address(&opts, &addr);
    qos_node_create_driver("virtio-freehint-pci", virtio_freehint_pci_create);
    qos_node_consumes("virtio-freehint-pci", "pci-bus", &opts);
    qos_node_produces("virtio-freehint-pci", "pci-device");
    qos_node_produces("virtio-freehint-pci", "virtio");
    qos_node_produces("virtio-freehint-pci", "virtio-freehint");

    /* This one can be made slow, or wrong; otherwise it is the same. */
    qos_node_create_driver("virtio-freehint-testdev-pci",
                           virtio_freehint_pci_create);
    qos_node_consumes("virtio-freehint-testdev-pci", "pci-bus", &opts);
    qos_node_produces("virtio-freehint-testdev-pci",
                      "virtio-freehint-testdev");
}

libqos_init(virtio_freehint_register_nodes);
