/*
 * Virtio free memory hint device that is slow, or misbehaves, on purpose
 *
 * For tests only: no production build has it. It is the device, except for what
 * these properties change:
 *
 * x-job-start-delay-ms, x-job-delay-ms: how long a job waits before it begins,
 * and before it discards anything.
 *
 * x-distrust-lazy: pretend that this host loses what is written to memory that
 * was freed lazily.
 *
 * x-single-pieces: pretend that this host takes one piece of memory per call.
 *
 * x-faults: a driver has to survive devices that break the rules. This is a
 * structure that can be set as a whole at any time; each member that is present
 * is a fault. What the device does to memory, and what it counts, does not
 * change; only what it tells the driver, or when, is wrong.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"
#include "qemu/timer.h"
#include "exec/memop.h"
#include "hw/qdev-properties.h"
#include "hw/virtio/virtio-freehint.h"
#include "hw/virtio/virtio-pci.h"
#include "qapi/error.h"
#include "qapi/visitor.h"
#include "standard-headers/linux/virtio_pci.h"

#define TYPE_FREEHINT_TESTDEV "virtio-freehint-testdev"
OBJECT_DECLARE_SIMPLE_TYPE(FreehintTestdev, FREEHINT_TESTDEV)

#define TYPE_FREEHINT_TESTDEV_PCI "virtio-freehint-testdev-pci-base"
OBJECT_DECLARE_SIMPLE_TYPE(FreehintTestdevPCI, FREEHINT_TESTDEV_PCI)

typedef enum Fault {
    /* Feature bits to flip: offered if they should not be, or the reverse. */
    FAULT_FEATURES,

    /* What config space says instead of the truth. */
    FAULT_GRANULE,
    FAULT_MAX_RANGES,
    FAULT_STATE,

    /* What answers say instead of the truth. */
    FAULT_RESULT,
    FAULT_RESERVED,
    FAULT_NSTATUS,
    FAULT_EPOCH_OFFSET,
    FAULT_RETRY_AFTER_MS,
    FAULT_STATUS,
    FAULT_USED_LENGTH,
    /* What the used ring says of messages other than hints. */
    FAULT_USED_ID,

    /* Messages are neither acted on nor used. */
    FAULT_HANG,
    /* This many hints are acted on, but never used; others are. */
    FAULT_LOSE,
    /* A hint breaks the device. */
    FAULT_NEEDS_RESET,
    /* The driver's writes to the device status have no effect. */
    FAULT_STUCK_STATUS,

    /* Calls to the host, as bits of testdev_calls, fail with this error. */
    FAULT_HOST_ERRNO,
    FAULT_HOST_CALLS,

    FAULT__MAX,
} Fault;

static const char *const testdev_fault_names[FAULT__MAX] = {
    [FAULT_FEATURES] = "features",
    [FAULT_GRANULE] = "granule",
    [FAULT_MAX_RANGES] = "max-ranges",
    [FAULT_STATE] = "state",
    [FAULT_RESULT] = "result",
    [FAULT_RESERVED] = "reserved",
    [FAULT_NSTATUS] = "nstatus",
    [FAULT_EPOCH_OFFSET] = "epoch-offset",
    [FAULT_RETRY_AFTER_MS] = "retry-after-ms",
    [FAULT_STATUS] = "status",
    [FAULT_USED_LENGTH] = "used-length",
    [FAULT_USED_ID] = "used-id",
    [FAULT_HANG] = "hang",
    [FAULT_LOSE] = "lose",
    [FAULT_NEEDS_RESET] = "needs-reset",
    [FAULT_STUCK_STATUS] = "stuck-status",
    [FAULT_HOST_ERRNO] = "host-errno",
    [FAULT_HOST_CALLS] = "host-calls",
};

typedef struct FaultValue {
    bool given;
    uint64_t value;
} FaultValue;

struct FreehintTestdev {
    VirtIOFreehint parent_obj;

    uint32_t start_delay_ms;
    uint32_t delay_ms;
    bool distrust_lazy;
    bool single_pieces;
    FaultValue faults[FAULT__MAX];

    /* Covers the function's device status while that is stuck. */
    MemoryRegion status_mr;
    bool status_mapped;
    /* The driver asked for a reset that it did not get. */
    bool reset_owed;
};

static VirtIOFreehintClass *testdev_production_class(void)
{
    return VIRTIO_FREEHINT_CLASS(object_class_by_name(TYPE_VIRTIO_FREEHINT));
}

static bool testdev_has_fault(const FreehintTestdev *dev, Fault fault)
{
    return dev->faults[fault].given;
}

/* The faulty value, if there is one, instead of the true one. */
static uint64_t testdev_faulty(const FreehintTestdev *dev, Fault fault,
                               uint64_t value)
{
    return testdev_has_fault(dev, fault) ? dev->faults[fault].value : value;
}

/* What the device does wrong */

static void testdev_get_config(VirtIODevice *vdev, uint8_t *data)
{
    const FreehintTestdev *dev = FREEHINT_TESTDEV(vdev);
    const VirtIOFreehint *fh = &dev->parent_obj;
    struct virtio_freehint_config *config = (void *)data;

    VIRTIO_DEVICE_CLASS(testdev_production_class())->get_config(vdev, data);
    config->granule = cpu_to_le64(testdev_faulty(dev, FAULT_GRANULE,
                                                 fh->granule));
    config->max_ranges = cpu_to_le32(testdev_faulty(dev, FAULT_MAX_RANGES,
                                                    fh->max_ranges));
    config->state = cpu_to_le32(testdev_faulty(dev, FAULT_STATE, fh->state));
}

static bool testdev_may_advance(VirtIOFreehint *fh)
{
    const FreehintTestdev *dev = FREEHINT_TESTDEV(fh);

    if (testdev_has_fault(dev, FAULT_NEEDS_RESET) &&
        !QTAILQ_EMPTY(&fh->hints)) {
        virtio_error(VIRTIO_DEVICE(fh), "virtio-freehint: broken as x-faults"
                     " wants it");
        freehint_drain(fh, false);
        return false;
    }
    return !testdev_has_fault(dev, FAULT_HANG);
}

static bool testdev_loses_answer(FreehintTestdev *dev)
{
    FaultValue *lose = &dev->faults[FAULT_LOSE];

    return lose->given && lose->value && lose->value--;
}

static void testdev_spoil_ack(const FreehintTestdev *dev,
                              struct virtio_freehint_ack *ack)
{
    const uint32_t epoch = le32_to_cpu(ack->rehint_epoch);

    ack->result = cpu_to_le16(testdev_faulty(dev, FAULT_RESULT,
                                             le16_to_cpu(ack->result)));
    ack->reserved = cpu_to_le16(testdev_faulty(dev, FAULT_RESERVED, 0));
    ack->nstatus = cpu_to_le32(testdev_faulty(dev, FAULT_NSTATUS,
                                              le32_to_cpu(ack->nstatus)));
    ack->rehint_epoch = cpu_to_le32(epoch +
                                    testdev_faulty(dev, FAULT_EPOCH_OFFSET, 0));
    ack->retry_after_ms = cpu_to_le32(
        testdev_faulty(dev, FAULT_RETRY_AFTER_MS,
                       le32_to_cpu(ack->retry_after_ms)));
}

static void testdev_spoil_answer(const FreehintTestdev *dev,
                                 const FreehintHint *hint)
{
    const VirtQueueElement *elem = &hint->elem;
    struct virtio_freehint_ack ack;

    iov_to_buf(elem->in_sg, elem->in_num, 0, &ack, sizeof(ack));
    testdev_spoil_ack(dev, &ack);
    iov_from_buf(elem->in_sg, elem->in_num, 0, &ack, sizeof(ack));
    if (testdev_has_fault(dev, FAULT_STATUS)) {
        iov_memset(elem->in_sg, elem->in_num, sizeof(ack),
                   testdev_faulty(dev, FAULT_STATUS, 0), hint->nranges);
    }
}

/* Only a hint has ranges. */
static void testdev_use(VirtIOFreehint *fh, FreehintHint *hint, size_t len)
{
    FreehintTestdev *dev = FREEHINT_TESTDEV(fh);

    if (!hint->nranges) {
        hint->elem.index = testdev_faulty(dev, FAULT_USED_ID, hint->elem.index);
    } else if (testdev_loses_answer(dev)) {
        virtqueue_detach_element(fh->hintq, &hint->elem, 0);
        return;
    } else {
        testdev_spoil_answer(dev, hint);
        len = testdev_faulty(dev, FAULT_USED_LENGTH, len);
    }
    testdev_production_class()->use(fh, hint, len);
}

/* Jobs with delays, both in the worker */

static void testdev_delay(uint32_t ms)
{
    if (ms) {
        g_usleep(ms * 1000ull);
    }
}

static void testdev_begin_job(VirtIOFreehint *fh)
{
    testdev_delay(FREEHINT_TESTDEV(fh)->start_delay_ms);
}

/* A host that fails */

/* For madvise(), the advice has to match, too. */
static const struct {
    uint32_t nr;
    uint32_t advice;
} testdev_calls[] = {
    { SYS_process_madvise },
    { SYS_madvise, MADV_FREE },
    { SYS_madvise, MADV_DONTNEED },
    { SYS_madvise, MADV_REMOVE },
    { SYS_fallocate },
};

/* From here on this thread's calls fail; the caller must not need them. */
static void testdev_make_calls_fail(uint32_t calls, uint32_t error)
{
    const uint32_t low = HOST_BIG_ENDIAN ? 4 : 0;
    struct sock_filter code[ARRAY_SIZE(testdev_calls) * 5 + 1];
    struct sock_fprog program = { .filter = code };
    int n = 0, i;

    for (i = 0; i < ARRAY_SIZE(testdev_calls); i++) {
        const uint32_t advice = testdev_calls[i].advice;

        if (!(calls & 1u << i)) {
            continue;
        }
        code[n++] = (struct sock_filter)
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                     offsetof(struct seccomp_data, nr));
        code[n++] = (struct sock_filter)
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, testdev_calls[i].nr, 0, 3);
        code[n++] = (struct sock_filter)
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                     offsetof(struct seccomp_data, args[2]) + low);
        code[n++] = (struct sock_filter)
            BPF_JUMP(BPF_JMP | (advice ? BPF_JEQ : BPF_JGE) | BPF_K, advice,
                     0, 1);
        code[n++] = (struct sock_filter)
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error);
    }
    code[n++] = (struct sock_filter)
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program.len = n;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        error_report("virtio-freehint: no seccomp filter: %s",
                     strerror(errno));
        abort();
    }
}

static void *testdev_discard_thread(void *opaque)
{
    FreehintJob *job = opaque;
    const FreehintTestdev *dev = FREEHINT_TESTDEV(job->fh);

    testdev_make_calls_fail(testdev_faulty(dev, FAULT_HOST_CALLS, UINT32_MAX),
                            testdev_faulty(dev, FAULT_HOST_ERRNO, 0));
    testdev_production_class()->discard(job);
    return NULL;
}

static void testdev_discard(FreehintJob *job)
{
    const FreehintTestdev *dev = FREEHINT_TESTDEV(job->fh);
    QemuThread thread;

    testdev_delay(dev->delay_ms);
    if (!testdev_has_fault(dev, FAULT_HOST_ERRNO)) {
        testdev_production_class()->discard(job);
        return;
    }
    /* A filter exists for as long as its thread. */
    qemu_thread_create(&thread, "freehint-errno", testdev_discard_thread, job,
                       QEMU_THREAD_JOINABLE);
    qemu_thread_join(&thread);
}

/* A device status that nobody can write */

static VirtIOPCIProxy *testdev_pci_proxy(FreehintTestdev *dev)
{
    return VIRTIO_PCI(qdev_get_parent_bus(DEVICE(dev))->parent);
}

static uint64_t testdev_stuck_status_read(void *opaque, hwaddr addr,
                                          unsigned size)
{
    return VIRTIO_DEVICE(opaque)->status;
}

static void testdev_stuck_status_write(void *opaque, hwaddr addr,
                                       uint64_t value, unsigned size)
{
    FreehintTestdev *dev = opaque;

    dev->reset_owed |= !value;
}

static const MemoryRegionOps testdev_stuck_status_ops = {
    .read = testdev_stuck_status_read,
    .write = testdev_stuck_status_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .impl.max_access_size = 1,
};

static void testdev_map_stuck_status(FreehintTestdev *dev)
{
    memory_region_init_io(&dev->status_mr, OBJECT(dev),
                          &testdev_stuck_status_ops, dev,
                          "virtio-freehint-stuck-status", 1);
    memory_region_add_subregion_overlap(&testdev_pci_proxy(dev)->common.mr,
                                        VIRTIO_PCI_COMMON_STATUS,
                                        &dev->status_mr, 1);
    dev->status_mapped = true;
}

static void testdev_unmap_stuck_status(FreehintTestdev *dev)
{
    memory_region_del_subregion(&testdev_pci_proxy(dev)->common.mr,
                                &dev->status_mr);
    object_unparent(OBJECT(&dev->status_mr));
    dev->status_mapped = false;
}

/* The driver may still wait for the reset that it asked for. */
static void testdev_reset_at_last(FreehintTestdev *dev)
{
    if (dev->reset_owed) {
        dev->reset_owed = false;
        memory_region_dispatch_write(&testdev_pci_proxy(dev)->common.mr,
                                     VIRTIO_PCI_COMMON_STATUS, 0, MO_8,
                                     MEMTXATTRS_UNSPECIFIED);
    }
}

static void testdev_set_status_stuck(FreehintTestdev *dev, bool stuck)
{
    if (stuck && !dev->status_mapped) {
        testdev_map_stuck_status(dev);
    }
    if (dev->status_mapped) {
        memory_region_set_enabled(&dev->status_mr, stuck);
    }
    if (!stuck) {
        testdev_reset_at_last(dev);
    }
}

/* The property */

static void testdev_get_faults(Object *obj, Visitor *v, const char *name,
                               void *opaque, Error **errp)
{
    const FreehintTestdev *dev = FREEHINT_TESTDEV(obj);
    Fault i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return;
    }
    for (i = 0; i < FAULT__MAX; i++) {
        uint64_t value = testdev_faulty(dev, i, 0);

        if (testdev_has_fault(dev, i) &&
            !visit_type_uint64(v, testdev_fault_names[i], &value, errp)) {
            break;
        }
    }
    visit_end_struct(v, NULL);
}

static bool testdev_visit_faults(Visitor *v, const char *name,
                                 FaultValue *faults, Error **errp)
{
    bool ok = true;
    Fault i;

    if (!visit_start_struct(v, name, NULL, 0, errp)) {
        return false;
    }
    for (i = 0; ok && i < FAULT__MAX; i++) {
        if (visit_optional(v, testdev_fault_names[i], &faults[i].given)) {
            ok = visit_type_uint64(v, testdev_fault_names[i], &faults[i].value,
                                   errp);
        }
    }
    ok = ok && visit_check_struct(v, errp);
    visit_end_struct(v, NULL);
    return ok;
}

/* Messages that were held up would be late, and not be acted on at all. */
static void testdev_forgive_lateness(VirtIOFreehint *fh)
{
    const int64_t now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    FreehintHint *hint;

    QTAILQ_FOREACH(hint, &fh->hints, entry) {
        hint->arrival_ms = now;
    }
}

/* A member that is absent this time is a fault no more. */
static void testdev_set_faults(Object *obj, Visitor *v, const char *name,
                               void *opaque, Error **errp)
{
    FreehintTestdev *dev = FREEHINT_TESTDEV(obj);
    VirtIOFreehint *fh = &dev->parent_obj;
    const uint64_t old_features = testdev_faulty(dev, FAULT_FEATURES, 0);
    FaultValue faults[FAULT__MAX] = { };

    if (!testdev_visit_faults(v, name, faults, errp)) {
        return;
    }
    if (!DEVICE(dev)->realized) {
        error_setg(errp, "'%s' can be set on a realized device only", name);
        return;
    }
    memcpy(dev->faults, faults, sizeof(faults));
    VIRTIO_DEVICE(fh)->host_features ^=
        old_features ^ testdev_faulty(dev, FAULT_FEATURES, 0);
    testdev_set_status_stuck(dev, testdev_has_fault(dev, FAULT_STUCK_STATUS));
    testdev_forgive_lateness(fh);
    freehint_notify_config(fh);
    qemu_bh_schedule(fh->bh);
}

static void testdev_realize(DeviceState *dev, Error **errp)
{
    VirtIOFreehint *fh = VIRTIO_FREEHINT(dev);
    ERRP_GUARD();

    VIRTIO_DEVICE_CLASS(testdev_production_class())->realize(dev, errp);
    if (*errp) {
        return;
    }
    if (FREEHINT_TESTDEV(dev)->distrust_lazy) {
        fh->lazy_probe = FREEHINT_LAZY_PROBE_UNRELIABLE;
    }
    if (FREEHINT_TESTDEV(dev)->single_pieces && fh->pidfd >= 0) {
        close(fh->pidfd);
        fh->pidfd = -1;
    }
}

static void testdev_unrealize(DeviceState *dev)
{
    if (FREEHINT_TESTDEV(dev)->status_mapped) {
        testdev_unmap_stuck_status(FREEHINT_TESTDEV(dev));
    }
    VIRTIO_DEVICE_CLASS(testdev_production_class())->unrealize(dev);
}

static const Property testdev_properties[] = {
    DEFINE_PROP_UINT32("x-job-start-delay-ms", FreehintTestdev, start_delay_ms,
                       0),
    DEFINE_PROP_UINT32("x-job-delay-ms", FreehintTestdev, delay_ms, 0),
    DEFINE_PROP_BOOL("x-distrust-lazy", FreehintTestdev, distrust_lazy, false),
    DEFINE_PROP_BOOL("x-single-pieces", FreehintTestdev, single_pieces, false),
};

static void testdev_class_init(ObjectClass *klass,
                               VirtIOFreehintClassData *data)
{
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_CLASS(klass);
    VirtIOFreehintClass *fc = VIRTIO_FREEHINT_CLASS(klass);

    device_class_set_props(DEVICE_CLASS(klass), testdev_properties);
    vdc->realize = testdev_realize;
    vdc->unrealize = testdev_unrealize;
    vdc->get_config = testdev_get_config;
    fc->may_advance = testdev_may_advance;
    fc->use = testdev_use;
    fc->begin_job = testdev_begin_job;
    fc->discard = testdev_discard;
    object_class_property_add(klass, "x-faults", "struct", testdev_get_faults,
                              testdev_set_faults, NULL, NULL);
}

static const TypeInfo testdev_info = {
    .name = TYPE_FREEHINT_TESTDEV,
    .parent = TYPE_VIRTIO_FREEHINT,
    .instance_size = sizeof(FreehintTestdev),
    .class_init = testdev_class_init,
};

/* The PCI function */

struct FreehintTestdevPCI {
    VirtIOPCIProxy parent_obj;
    FreehintTestdev vdev;
};

static void testdev_pci_realize(VirtIOPCIProxy *proxy, Error **errp)
{
    virtio_pci_force_virtio_1(proxy);
    proxy->nvectors = 2;
    qdev_realize(DEVICE(&FREEHINT_TESTDEV_PCI(proxy)->vdev), BUS(&proxy->bus),
                 errp);
}

static void testdev_pci_class_init(ObjectClass *klass,
                                   VirtIOFreehintClassData *data)
{
    VIRTIO_PCI_CLASS(klass)->realize = testdev_pci_realize;
    PCI_DEVICE_CLASS(klass)->class_id = PCI_CLASS_OTHERS;
    PCI_DEVICE_CLASS(klass)->revision = VIRTIO_PCI_ABI_VERSION;
    set_bit(DEVICE_CATEGORY_MISC, DEVICE_CLASS(klass)->categories);
    DEVICE_CLASS(klass)->desc = "virtio free memory hints, for tests";
}

static void testdev_pci_instance_init(Object *obj)
{
    FreehintTestdevPCI *dev = FREEHINT_TESTDEV_PCI(obj);

    virtio_instance_init_common(obj, &dev->vdev, sizeof(dev->vdev),
                                TYPE_FREEHINT_TESTDEV);
}

static const VirtioPCIDeviceTypeInfo testdev_pci_info = {
    .base_name = TYPE_FREEHINT_TESTDEV_PCI,
    .generic_name = "virtio-freehint-testdev-pci",
    .instance_size = sizeof(FreehintTestdevPCI),
    .instance_init = testdev_pci_instance_init,
    .class_init = testdev_pci_class_init,
};

static void testdev_register(void)
{
    type_register_static(&testdev_info);
    virtio_pci_types_register(&testdev_pci_info);
}

type_init(testdev_register)
