/*
 * Virtio free memory hint device: guest RAM
 *
 * A range comes from the guest and may name anything. A positive list says what
 * may be discarded: the machine's own RAM, NUMA memory backends, DIMMs and the
 * plugged parts of virtio-mem, as the device's DMA address space maps them.
 * That memory is RAM is not enough: so are ROM images, video memory, shared
 * memory of other machines and persistent memory.
 *
 * Memory is discarded job by job in a worker thread, so that neither the main
 * loop nor a vCPU waits for the host's memory management. A job is short enough
 * to wait for where the drain rule demands it. The worker gets memory that was
 * validated before, and touches nothing of the device but the job and the
 * class. It never takes the BQL, because whoever waits for it may hold it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "hw/boards.h"
#include "hw/mem/nvdimm.h"
#include "hw/mem/pc-dimm.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/virtio-freehint.h"
#include "hw/virtio/virtio-mem.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "system/hostmem.h"
#include "system/numa.h"
#include "system/system.h"
#include "trace.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Since Linux 6.4: whether all memory of the process may be merged. */
#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68
#endif

/*
 * The size of a huge page on most hosts. Smaller granules would cost more calls
 * and leave the host with fragments that it cannot use as huge pages.
 */
#define FREEHINT_USUAL_GRANULE (2 * MiB)

/*
 * The largest block that any Linux guest keeps on its free lists (arm64 with
 * 64 KiB pages). Memory with larger pages does not raise the granule, which
 * would make the device useless for all other memory; of that with larger
 * pages, only ranges of whole pages are discarded.
 */
#define FREEHINT_MAX_GRANULE (512 * MiB)

/* When to retry what the host failed to discard: doubles each time. */
#define FREEHINT_MIN_BACKOFF_MS 1000
#define FREEHINT_MAX_BACKOFF_MS 60000

/*
 * mmap_lock is held for a whole job, which makes the guest's page faults wait;
 * so does anybody who drains. So a job should take 2 ms at most. The smallest
 * one takes about that for 4 KiB pages. Huge pages are a hundred times faster;
 * the largest job takes 25 ms, once, if small pages replace them.
 */
#define FREEHINT_MIN_JOB (16 * MiB)
#define FREEHINT_MAX_JOB (256 * MiB)
#define FREEHINT_MAX_JOB_NS (2 * SCALE_MS)

/* The most pieces of memory that the host takes in one call: UIO_MAXIOV. */
#define FREEHINT_MAX_PIECES 1024

/* Who else may want the content of the file that memory is mapped from. */
typedef enum FreehintFile {
    /* There is no file, or QEMU alone has it. */
    FREEHINT_FILE_NONE,
    /* Others may want it, but discarding leaves it alone. */
    FREEHINT_FILE_PRIVATE,
    /* Others may want it, and discarding punches holes into it. */
    FREEHINT_FILE_SHARED,
} FreehintFile;

/* What the positive list knows of a memory region. */
typedef struct FreehintBlock {
    /* Where QEMU has mapped it, to notice when it is removed. */
    const void *host;
    /* The memory device's own setting, which does not change. */
    bool dev_prealloc;
    FreehintFile file;
    /* Why it is not discarded, or FREEHINT_NO_REASON. */
    FreehintReason refusal;
    /* The refusal is in the log. */
    bool refusal_told;
    /* How often in a row the host has failed, and with which errno. */
    unsigned int failures;
    int error;
    /* Left alone until then: QEMU_CLOCK_REALTIME, in ms. */
    int64_t retry_ms;
} FreehintBlock;

/* The positive list */

/* Called with the memory device that @mr belongs to, NULL for boot memory. */
typedef void (*FreehintBlockFn)(MemoryRegion *mr, Object *dev, void *opaque);

typedef struct FreehintVisit {
    FreehintBlockFn fn;
    void *opaque;
} FreehintVisit;

static int freehint_visit_memory_device(Object *obj, void *opaque)
{
    const FreehintVisit *visit = opaque;
    Object *memdev;

    /* Nvdimms are DIMMs, too, but their content outlives the guest. */
    if ((!object_dynamic_cast(obj, TYPE_PC_DIMM) &&
         !object_dynamic_cast(obj, TYPE_VIRTIO_MEM)) ||
        object_dynamic_cast(obj, TYPE_NVDIMM)) {
        return 0;
    }
    memdev = object_property_get_link(obj, PC_DIMM_MEMDEV_PROP, NULL);
    if (memdev && host_memory_backend_mr_inited(MEMORY_BACKEND(memdev))) {
        visit->fn(&MEMORY_BACKEND(memdev)->mr, obj, visit->opaque);
    }
    return 0;
}

/* Memory that the machine started with. */
static void freehint_foreach_boot_block(FreehintBlockFn fn, void *opaque)
{
    MachineState *ms = current_machine;
    int i;

    /* If NUMA nodes have all memory, it is only their container. */
    if (ms->ram && memory_region_is_ram(ms->ram)) {
        fn(ms->ram, NULL, opaque);
    }
    for (i = 0; ms->numa_state && i < ms->numa_state->num_nodes; i++) {
        HostMemoryBackend *memdev = ms->numa_state->nodes[i].node_memdev;

        if (memdev) {
            fn(&memdev->mr, NULL, opaque);
        }
    }
}

static void freehint_foreach_block(FreehintBlockFn fn, void *opaque)
{
    FreehintVisit visit = { .fn = fn, .opaque = opaque };

    freehint_foreach_boot_block(fn, opaque);
    object_child_foreach_recursive(OBJECT(current_machine),
                                   freehint_visit_memory_device, &visit);
}

/* A setting of the memory backend, or of virtio-mem. */
static bool freehint_has_set(Object *obj, const char *prop)
{
    return obj && object_property_find(obj, prop) &&
           object_property_get_bool(obj, prop, &error_abort);
}

/*
 * A file without a name was created by QEMU, and nobody else can find it. But
 * one that is mapped privately may have been handed to several VMs, each of
 * which has its own copies of what it has written to.
 */
static FreehintFile freehint_file(RAMBlock *rb)
{
    struct stat st;

    if (!rb || !qemu_ram_is_named_file(rb)) {
        return FREEHINT_FILE_NONE;
    }
    if (!qemu_ram_is_shared(rb)) {
        return FREEHINT_FILE_PRIVATE;
    }
    return !fstat(rb->fd, &st) && !st.st_nlink ? FREEHINT_FILE_NONE :
                                                 FREEHINT_FILE_SHARED;
}

/*
 * Together with freehint_is_aligned(), covers all that
 * ram_block_discard_range() would complain about with one message per call: a
 * guest must not fill the log.
 */
static FreehintReason freehint_refusal(const VirtIOFreehint *fh,
                                       const MemoryRegion *mr,
                                       bool dev_prealloc, FreehintFile file)
{
    const RAMBlock *rb = mr->ram_block;

    if (!rb || rb->flags & (RAM_PREALLOC | RAM_PMEM | RAM_READONLY |
                            RAM_GUEST_MEMFD)) {
        return FREEHINT_REASON_FIXED_MEMORY;
    }
    if (file == FREEHINT_FILE_SHARED && !fh->discard_file_backed &&
        !freehint_has_set(mr->owner, "discard-data")) {
        return FREEHINT_REASON_FILE_MEMORY;
    }
    /* The reservation goes with the pages: a later access may be fatal. */
    if (!fh->discard_reserved &&
        (rb->page_size != qemu_real_host_page_size() || dev_prealloc ||
         freehint_has_set(mr->owner, "prealloc"))) {
        return FREEHINT_REASON_RESERVED_MEMORY;
    }
    return FREEHINT_NO_REASON;
}

/* Update all that may change from one turn to the next. */
static void freehint_update_refusal(VirtIOFreehint *fh, const MemoryRegion *mr,
                                    FreehintBlock *block)
{
    const FreehintReason old = block->refusal;

    block->file = freehint_file(mr->ram_block);
    block->refusal = freehint_refusal(fh, mr, block->dev_prealloc,
                                      block->file);
    if (old != FREEHINT_NO_REASON && block->refusal == FREEHINT_NO_REASON) {
        block->refusal_told = false;
        freehint_owe_epoch(fh);
    }
}

typedef struct FreehintUpdate {
    VirtIOFreehint *fh;
    GHashTable *old;
    GHashTable *new;
    bool grown;
} FreehintUpdate;

/* A number in sysfs or the like; 0 if it cannot be read. */
static uint64_t freehint_read_setting(const char *path)
{
    g_autofree char *text = NULL;
    uint64_t value;

    return g_file_get_contents(path, &text, NULL, NULL) &&
           !parse_uint(g_strchomp(text), NULL, 10, &value) ? value : 0;
}

/* A pool of huge pages or a file system, and the VM's share of it. */
typedef struct FreehintStore {
    uint64_t page_size;
    dev_t dev;
    uint64_t used;
    uint64_t wanted;
} FreehintStore;

static void freehint_add_to_store(MemoryRegion *mr, Object *dev, void *opaque)
{
    const RAMBlock *rb = mr->ram_block;
    FreehintStore *store = opaque;
    struct stat st;

    if (rb && rb->fd >= 0 && !fstat(rb->fd, &st) &&
        rb->page_size == store->page_size && st.st_dev == store->dev) {
        store->used += st.st_blocks * 512ull;
        store->wanted += rb->used_length;
    }
}

/* Returns how much more the pool can provide, in bytes. */
static uint64_t freehint_pool_left(uint64_t page_size)
{
    g_autofree char *pool = g_strdup_printf(
        "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB", page_size / KiB);
    g_autofree char *idle = g_build_filename(pool, "free_hugepages", NULL);
    g_autofree char *more = g_build_filename(pool, "nr_overcommit_hugepages",
                                             NULL);
    g_autofree char *had = g_build_filename(pool, "surplus_hugepages", NULL);
    const uint64_t max = freehint_read_setting(more);

    return page_size * (freehint_read_setting(idle) + max -
                        MIN(max, freehint_read_setting(had)));
}

/* If discarded memory cannot be allocated again, touching it is fatal. */
static void freehint_warn_of_store(const MemoryRegion *mr)
{
    const RAMBlock *rb = mr->ram_block;
    FreehintStore store = { };
    uint64_t capacity;
    struct statfs fs;
    struct stat st;

    if (!rb || rb->fd < 0 || fstat(rb->fd, &st) || fstatfs(rb->fd, &fs)) {
        return;
    }
    store.page_size = rb->page_size;
    store.dev = st.st_dev;
    freehint_foreach_block(freehint_add_to_store, &store);
    if (rb->page_size != qemu_real_host_page_size()) {
        capacity = store.used + freehint_pool_left(rb->page_size);
    } else if (fs.f_blocks) {
        capacity = store.used + (uint64_t)fs.f_bavail * fs.f_bsize;
    } else {
        /* A file system without a size, like that of memfds. */
        return;
    }
    if (capacity < store.wanted) {
        warn_report("virtio-freehint: memory '%s', with what else is behind it,"
                    " may need %" PRIu64 " MiB, and can have %" PRIu64 " MiB:"
                    " the VM is killed when that is used up",
                    memory_region_name(mr), store.wanted / MiB,
                    capacity / MiB);
    }
}

static void freehint_update_block(MemoryRegion *mr, Object *dev, void *opaque)
{
    FreehintUpdate *update = opaque;
    FreehintBlock *block = g_new0(FreehintBlock, 1);
    const FreehintBlock *old = g_hash_table_lookup(update->old, mr);

    if (old) {
        *block = *old;
    } else {
        block->host = mr->ram_block ? mr->ram_block->host : NULL;
        block->dev_prealloc = freehint_has_set(dev, "prealloc");
        block->refusal = FREEHINT_NO_REASON;
        update->grown = true;
        freehint_warn_of_store(mr);
    }
    freehint_update_refusal(update->fh, mr, block);
    g_hash_table_insert(update->new, mr, block);
}

/*
 * The list is only rebuilt when it is needed and memory has come or gone since
 * the last time: the guest can remap memory at will, e.g. through PCI BARs.
 */
static void freehint_update_blocks(VirtIOFreehint *fh)
{
    FreehintUpdate update = { .fh = fh, .old = fh->blocks };

    if (!fh->blocks_stale) {
        return;
    }
    fh->blocks_stale = false;
    update.new = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    freehint_foreach_block(freehint_update_block, &update);
    /* Earlier refusals may be for memory that is on the list by now. */
    if (update.grown && g_hash_table_size(update.old)) {
        freehint_owe_epoch(fh);
    }
    fh->blocks = update.new;
    g_hash_table_destroy(update.old);
}

/* After this, whoever removes memory may do anything with it. */
static void freehint_region_del(MemoryListener *listener,
                                MemoryRegionSection *section)
{
    VirtIOFreehint *fh = container_of(listener, VirtIOFreehint,
                                      memory_listener);
    guint i;

    if (!memory_region_is_ram(section->mr)) {
        return;
    }
    fh->blocks_stale = true;
    for (i = 0; fh->job.hint && !fh->job.skips && i < fh->job.parts->len; i++) {
        if (g_array_index(fh->job.parts, FreehintPart, i).mr == section->mr) {
            freehint_job_drain(fh);
            return;
        }
    }
}

static void freehint_region_add(MemoryListener *listener,
                                MemoryRegionSection *section)
{
    VirtIOFreehint *fh = container_of(listener, VirtIOFreehint,
                                      memory_listener);

    fh->blocks_stale |= memory_region_is_ram(section->mr);
}

static gboolean freehint_is_at(gpointer mr, gpointer block, gpointer host)
{
    return ((const FreehintBlock *)block)->host == host;
}

/*
 * Memory that comes later may get a region at the same address: what is known
 * of the old region must not apply to it.
 */
static void freehint_ram_removed(RAMBlockNotifier *notifier, void *host,
                                 size_t size, size_t max_size)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint, ram_notifier);

    g_hash_table_foreach_remove(fh->blocks, freehint_is_at, host);
}

static void freehint_raise_granule(MemoryRegion *mr, Object *dev, void *opaque)
{
    const RAMBlock *rb = mr->ram_block;
    VirtIOFreehint *fh = opaque;

    if (rb && rb->page_size <= FREEHINT_MAX_GRANULE &&
        freehint_refusal(fh, mr, false, freehint_file(mr->ram_block)) ==
        FREEHINT_NO_REASON) {
        fh->granule = MAX(fh->granule, rb->page_size);
    }
}

/*
 * Discarding part of a huge page would split it. A guest of the same machine
 * keeps free memory together in pieces of that size, be it smaller than ours.
 */
uint64_t freehint_default_granule(VirtIOFreehint *fh)
{
    const uint64_t thp_size = freehint_read_setting(
        "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");

    fh->granule = thp_size ? MIN(pow2floor(thp_size), FREEHINT_MAX_GRANULE) :
                             FREEHINT_USUAL_GRANULE;
    freehint_foreach_boot_block(freehint_raise_granule, fh);
    return fh->granule;
}

typedef struct FreehintPopulation {
    uint64_t total;
    uint64_t populated;
    bool known;
} FreehintPopulation;

/* Reading populates memory only if it is shared. */
static void freehint_count_populated(MemoryRegion *mr, Object *dev,
                                     void *opaque)
{
    FreehintPopulation *population = opaque;
    RAMBlock *rb = mr->ram_block;
    struct stat st;

    if (!rb || rb->fd < 0 || !qemu_ram_is_shared(rb) || fstat(rb->fd, &st)) {
        population->known = false;
        return;
    }
    population->total += rb->used_length;
    population->populated += st.st_blocks * 512ull;
}

bool freehint_populated_hinted(const VirtIOFreehint *fh, uint64_t *bytes)
{
    FreehintPopulation population = { .known = true };
    uint64_t sum;

    freehint_foreach_block(freehint_count_populated, &population);
    sum = population.populated + MIN(fh->gauges.hinted, population.total);
    *bytes = sum > population.total ? sum - population.total : 0;
    return population.known && fh->gauges_ms >= 0;
}

/* Memory that the host fails to discard */

static bool freehint_in_backoff(const FreehintBlock *block)
{
    return block->failures &&
           qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < block->retry_ms;
}

/* The epoch tells the guest when to try again. */
static void freehint_block_failed(VirtIOFreehint *fh, MemoryRegion *mr,
                                  FreehintBlock *block, int error)
{
    const int64_t backoff_ms = MIN(FREEHINT_MIN_BACKOFF_MS <<
                                   MIN(block->failures, 10),
                                   FREEHINT_MAX_BACKOFF_MS);

    block->failures++;
    block->error = error;
    block->retry_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + backoff_ms;
    timer_mod_anticipate(fh->retry_timer, block->retry_ms);
    if (block->failures == 1) {
        warn_report("virtio-freehint: discarding from memory '%s' failed: %s;"
                    " it will be tried again", memory_region_name(mr),
                    strerror(error));
    }
}

void freehint_block_tried(VirtIOFreehint *fh, MemoryRegion *mr, int ret)
{
    FreehintBlock *block = g_hash_table_lookup(fh->blocks, mr);

    if (block && ret) {
        freehint_block_failed(fh, mr, block, -ret);
    } else if (block) {
        block->failures = 0;
    }
}

void freehint_forgive_blocks(VirtIOFreehint *fh)
{
    FreehintBlock *block;
    GHashTableIter iter;

    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&block)) {
        block->failures = 0;
    }
}

/* The time has come for one of several blocks: the others go on waiting. */
static void freehint_retry(void *opaque)
{
    VirtIOFreehint *fh = opaque;
    FreehintBlock *block;
    GHashTableIter iter;

    freehint_owe_epoch(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&block)) {
        if (freehint_in_backoff(block)) {
            timer_mod_anticipate(fh->retry_timer, block->retry_ms);
        }
    }
}

/*
 * Lazy discards
 *
 * MADV_FREE leaves memory in place, clean, until the host runs short. A page
 * that is written to after that is dirty, and stays. Data is lost if a page is
 * written to but not marked dirty, and not only the guest's data: a page that
 * KSM has merged belongs to others, too.
 */

/* The probe has the size of the largest page that MADV_FREE leaves whole. */
#define FREEHINT_PROBE_SIZE (2 * MiB)

/* A busy host may not do at once what it is asked to. */
#define FREEHINT_PROBE_TRIES 5

static bool freehint_is_filled(const uint8_t *mem, uint8_t byte)
{
    return mem[0] == byte && !memcmp(mem, mem + 1, FREEHINT_PROBE_SIZE - 1);
}

/*
 * Free memory lazily, and have the host take what is clean. In between, write
 * to it if told to, and have its page tables changed, as can always happen.
 */
static bool freehint_probe_once(uint8_t *mem, bool rewrite)
{
    memset(mem, 0xa5, FREEHINT_PROBE_SIZE);
    if (madvise(mem, FREEHINT_PROBE_SIZE, MADV_FREE)) {
        return false;
    }
    if (rewrite) {
        memset(mem, 0x5a, FREEHINT_PROBE_SIZE);
    }
    return !mprotect(mem, FREEHINT_PROBE_SIZE, PROT_READ) &&
           !mprotect(mem, FREEHINT_PROBE_SIZE, PROT_READ | PROT_WRITE) &&
           !madvise(mem, FREEHINT_PROBE_SIZE, MADV_PAGEOUT);
}

/* A page that another CPU has just allocated is on no list yet, and stays. */
static bool freehint_most_is_taken(const uint8_t *mem)
{
    const size_t page = qemu_real_host_page_size();
    size_t offset, taken = 0;

    for (offset = 0; offset < FREEHINT_PROBE_SIZE; offset += page) {
        taken += mem[offset] ? 0 : page;
    }
    return taken > FREEHINT_PROBE_SIZE / 2;
}

/* The test is only valid if the host takes what was not written to. */
static FreehintLazyProbe freehint_probe_pages(uint8_t *mem, int advice)
{
    int tries = 0;

    /* This fails if the kernel has no huge pages, which does not matter. */
    madvise(mem, FREEHINT_PROBE_SIZE, advice);
    while (!freehint_probe_once(mem, false) || !freehint_most_is_taken(mem)) {
        if (++tries == FREEHINT_PROBE_TRIES) {
            return FREEHINT_LAZY_PROBE_UNTESTED;
        }
    }
    if (!freehint_probe_once(mem, true)) {
        return FREEHINT_LAZY_PROBE_UNTESTED;
    }
    return freehint_is_filled(mem, 0x5a) ? FREEHINT_LAZY_PROBE_RELIABLE :
                                           FREEHINT_LAZY_PROBE_UNRELIABLE;
}

static FreehintLazyProbe freehint_probe(uint8_t *mem)
{
    static const int advices[] = { MADV_HUGEPAGE, MADV_NOHUGEPAGE };
    FreehintLazyProbe worst = FREEHINT_LAZY_PROBE_RELIABLE;
    int i;

    for (i = 0; i < ARRAY_SIZE(advices); i++) {
        worst = MAX(worst, freehint_probe_pages(mem, advices[i]));
        /* Only new memory gets pages of another size. */
        madvise(mem, FREEHINT_PROBE_SIZE, MADV_DONTNEED);
    }
    return worst;
}

static ssize_t freehint_process_madvise(int pidfd, const struct iovec *pieces,
                                        size_t num, int advice)
{
#ifdef SYS_process_madvise
    return syscall(SYS_process_madvise, pidfd, pieces, num, advice, 0);
#else
    errno = ENOSYS;
    return -1;
#endif
}

/* Since 6.13, Linux takes such advice from a process about itself. */
static int freehint_open_self(uint8_t *mem)
{
    struct iovec piece = { .iov_base = mem, .iov_len = FREEHINT_PROBE_SIZE };
    int pidfd = -1;

#ifdef SYS_pidfd_open
    pidfd = syscall(SYS_pidfd_open, getpid(), 0);
#endif
    if (pidfd >= 0 &&
        freehint_process_madvise(pidfd, &piece, 1, MADV_DONTNEED) !=
        FREEHINT_PROBE_SIZE) {
        close(pidfd);
        return -1;
    }
    return pidfd;
}

/* Uses a mapping of its own, so that the advice does not stick to the heap. */
static void freehint_probe_host(VirtIOFreehint *fh)
{
    const size_t size = 2 * FREEHINT_PROBE_SIZE;
    uint8_t *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *mem = QEMU_ALIGN_PTR_UP(mapping, FREEHINT_PROBE_SIZE);

    fh->lazy_probe = FREEHINT_LAZY_PROBE_UNTESTED;
    fh->ksm_absent = false;
    fh->pidfd = -1;
    if (mapping != MAP_FAILED) {
        fh->lazy_probe = freehint_probe(mem);
        /* A kernel without KSM does not know this advice. */
        fh->ksm_absent = madvise(mem, FREEHINT_PROBE_SIZE, MADV_MERGEABLE) &&
                         errno == EINVAL;
        fh->pidfd = freehint_open_self(mem);
        munmap(mapping, size);
    }
    /* Kept open: QEMU may lose its root directory and its rights. */
    fh->ksm_run_fd = qemu_open_old("/sys/kernel/mm/ksm/run", O_RDONLY);
    fh->ksm_shared_fd = qemu_open_old("/sys/kernel/mm/ksm/pages_shared",
                                      O_RDONLY);
    trace_virtio_freehint_lazy_probe(FreehintLazyProbe_str(fh->lazy_probe),
                                     fh->ksm_absent);
}

static bool freehint_read_number(int fd, uint64_t *value)
{
    char text[32] = "";

    return fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0 &&
           !parse_uint(g_strchomp(text), NULL, 10, value);
}

/* To be safe, settings that cannot be read count as active. */
static bool freehint_ksm_active(const VirtIOFreehint *fh)
{
    uint64_t run, shared;

    return !fh->ksm_absent &&
           (!freehint_read_number(fh->ksm_run_fd, &run) || run == 1 ||
            !freehint_read_number(fh->ksm_shared_fd, &shared) || shared);
}

/* By the setting of the memory backend, or of the service manager. */
static bool freehint_is_mergeable(const MemoryRegion *mr)
{
    return !object_dynamic_cast(mr->owner, TYPE_MEMORY_BACKEND) ||
           object_property_get_bool(mr->owner, "merge", &error_abort) ||
           prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1;
}

/* Shared memory, files and large pages cannot be freed lazily at all. */
static bool freehint_can_be_lazy(const MemoryRegion *mr)
{
    const RAMBlock *rb = mr->ram_block;

    return rb && rb->fd < 0 && !qemu_ram_is_shared(mr->ram_block) &&
           rb->page_size == qemu_real_host_page_size();
}

/* Why memory that could be lazy has to be dropped, or FREEHINT_NO_REASON. */
static FreehintReason freehint_lazy_refusal(const VirtIOFreehint *fh,
                                            const MemoryRegion *mr)
{
    if (fh->lazy_probe != FREEHINT_LAZY_PROBE_RELIABLE) {
        return FREEHINT_REASON_LAZY_UNRELIABLE;
    }
    if (vhost_forbids_lazy_discards()) {
        return FREEHINT_REASON_LAZY_FORBIDDEN;
    }
    if (freehint_is_mergeable(mr) && freehint_ksm_active(fh)) {
        return FREEHINT_REASON_LAZY_MERGING;
    }
    return FREEHINT_NO_REASON;
}

/*
 * This has to hold for all memory that is discarded, as the guest does not know
 * which part cannot be lazy: what it hints early there would be gone at once.
 */
static bool freehint_all_can_be_lazy(VirtIOFreehint *fh)
{
    FreehintBlock *block;
    GHashTableIter iter;
    MemoryRegion *mr;

    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, (gpointer *)&block)) {
        if (block->refusal == FREEHINT_NO_REASON &&
            (!freehint_can_be_lazy(mr) ||
             freehint_lazy_refusal(fh, mr) != FREEHINT_NO_REASON)) {
            return false;
        }
    }
    return true;
}

void freehint_refresh_blocks(VirtIOFreehint *fh)
{
    FreehintBlock *block;
    GHashTableIter iter;
    MemoryRegion *mr;
    bool lazy;

    freehint_update_blocks(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, (gpointer *)&block)) {
        freehint_update_refusal(fh, mr, block);
    }
    lazy = fh->discard_mode == FREEHINT_DISCARD_MODE_AUTO &&
           freehint_all_can_be_lazy(fh);
    if (lazy != fh->lazy) {
        fh->lazy = lazy;
        freehint_notify_config(fh);
    }
}

/* Which memory is not discarded, or not lazily, and why */

static bool freehint_block_has(VirtIOFreehint *fh, const MemoryRegion *mr,
                               const FreehintBlock *block,
                               FreehintReason reason)
{
    if (reason >= FREEHINT_REASON_LAZY_UNRELIABLE) {
        return fh->discard_mode == FREEHINT_DISCARD_MODE_LAZY &&
               freehint_can_be_lazy(mr) &&
               freehint_lazy_refusal(fh, mr) == reason;
    }
    if (block->refusal != FREEHINT_NO_REASON) {
        return block->refusal == reason;
    }
    if (reason == FREEHINT_REASON_LARGE_PAGES) {
        return mr->ram_block->page_size > fh->granule;
    }
    return block->failures && reason == FREEHINT_REASON_HOST_FAILURE;
}

FreehintMemoryList *freehint_memory_with(VirtIOFreehint *fh,
                                         FreehintReason reason)
{
    FreehintMemoryList *list = NULL, **tail = &list;
    FreehintBlock *block;
    GHashTableIter iter;
    MemoryRegion *mr;

    freehint_refresh_blocks(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, (gpointer *)&block)) {
        FreehintMemory *memory;

        if (!freehint_block_has(fh, mr, block, reason)) {
            continue;
        }
        memory = g_new0(FreehintMemory, 1);
        memory->region = g_strdup(memory_region_name(mr));
        memory->bytes = memory_region_size(mr);
        memory->has_host_errno = memory->has_failures =
            reason == FREEHINT_REASON_HOST_FAILURE;
        memory->host_errno = block->error;
        memory->failures = block->failures;
        QAPI_LIST_APPEND(tail, memory);
    }
    return list;
}

/* Ranges */

/* The operator needs to know why the VM does not shrink, but only once. */
static void freehint_tell_refusal(FreehintBlock *block, MemoryRegion *mr)
{
    if (!block->refusal_told) {
        block->refusal_told = true;
        warn_report("virtio-freehint: memory '%s' is not discarded: %s",
                    memory_region_name(mr),
                    freehint_reason_detail(block->refusal));
    }
}

static uint8_t freehint_check_block(FreehintBlock *block, MemoryRegion *mr,
                                    uint16_t flags)
{
    if (block->refusal != FREEHINT_NO_REASON) {
        freehint_tell_refusal(block, mr);
        return VIRTIO_FREEHINT_S_BACKING;
    }
    /* If the guest relies on zeros, it must not see what others write. */
    if (block->file != FREEHINT_FILE_NONE &&
        flags & VIRTIO_FREEHINT_HINT_F_ZERO) {
        return VIRTIO_FREEHINT_S_BACKING;
    }
    return freehint_in_backoff(block) ? VIRTIO_FREEHINT_S_FAILED :
                                        VIRTIO_FREEHINT_S_DISCARDED;
}

/* Large pages may exceed the granule, and DIMMs need not start on one. */
static bool freehint_is_aligned(const MemoryRegionSection *section)
{
    const RAMBlock *rb = section->mr->ram_block;
    const uint64_t offset = section->offset_within_region;

    return QEMU_IS_ALIGNED(offset | int128_get64(section->size),
                           rb->page_size) &&
           QEMU_PTR_IS_ALIGNED(rb->host + offset, rb->page_size);
}

static bool freehint_is_populated(const MemoryRegionSection *section)
{
    RamDiscardManager *rdm =
        memory_region_get_ram_discard_manager(section->mr);

    return !rdm || ram_discard_manager_is_populated(rdm, section);
}

static uint8_t freehint_check_section(VirtIOFreehint *fh,
                                      const MemoryRegionSection *section,
                                      uint16_t flags)
{
    MemoryRegion *mr = section->mr;
    FreehintBlock *block;
    uint8_t status;

    if (section->readonly || mr->rom_device) {
        return VIRTIO_FREEHINT_S_READ_ONLY;
    }
    if (!memory_region_is_ram(mr) || memory_region_is_ram_device(mr)) {
        return VIRTIO_FREEHINT_S_NOT_RAM;
    }
    block = g_hash_table_lookup(fh->blocks, mr);
    if (!block || !freehint_is_populated(section)) {
        return VIRTIO_FREEHINT_S_EXCLUDED;
    }
    if (section->offset_within_region + int128_get64(section->size) >
        mr->ram_block->used_length) {
        return VIRTIO_FREEHINT_S_EXCLUDED;
    }
    status = freehint_check_block(block, mr, flags);
    return freehint_is_aligned(section) ? status : VIRTIO_FREEHINT_S_BACKING;
}

/*
 * In a private mapping of a named file, only QEMU's own copies are discarded:
 * ram_block_discard_range() would punch a hole into a file that others may use.
 */
static int freehint_advice(const VirtIOFreehint *fh, const MemoryRegion *mr,
                           uint16_t flags)
{
    const bool lazy = flags & VIRTIO_FREEHINT_HINT_F_LAZY ?
                      fh->discard_mode != FREEHINT_DISCARD_MODE_DROP :
                      fh->discard_mode == FREEHINT_DISCARD_MODE_LAZY;

    if (lazy && freehint_can_be_lazy(mr) &&
        freehint_lazy_refusal(fh, mr) == FREEHINT_NO_REASON) {
        vhost_allow_lazy_discards();
        return MADV_FREE;
    }
    return freehint_can_be_lazy(mr) ||
           (qemu_ram_is_named_file(mr->ram_block) &&
            !qemu_ram_is_shared(mr->ram_block)) ? MADV_DONTNEED : 0;
}

/* Returns whether there was room for all of it. */
static bool freehint_add_part(VirtIOFreehint *fh, FreehintJob *job,
                              const MemoryRegionSection *section,
                              uint16_t flags)
{
    const uint64_t page_size = section->mr->ram_block->page_size;
    const uint64_t len = int128_get64(section->size);
    const FreehintPart *last = job->parts->len ?
        &g_array_index(job->parts, FreehintPart, job->parts->len - 1) : NULL;
    FreehintPart part = {
        .mr = section->mr,
        .offset = section->offset_within_region,
        .len = MIN(len, QEMU_ALIGN_DOWN(job->room, page_size)),
    };

    if (!part.len && job->room && !last) {
        part.len = page_size;
    }
    if (part.len) {
        /* Asking the host about each part would take longer than the rest. */
        part.advice = last && last->mr == part.mr ?
                      last->advice : freehint_advice(fh, part.mr, flags);
        part.lent = part.advice == MADV_FREE &&
                    fh->discard_mode == FREEHINT_DISCARD_MODE_AUTO;
        memory_region_ref(part.mr);
        g_array_append_val(job->parts, part);
    }
    job->room -= MIN(job->room, part.len);
    if (part.len < len) {
        job->room = 0;
        return false;
    }
    return true;
}

/*
 * Find the piece at the start of a range that has the same status, and remove
 * it from the range. Returns the status. Only if the piece may be discarded
 * does @section have a region, with a reference to it.
 */
static uint8_t freehint_find_piece(VirtIOFreehint *fh, FreehintRange *range,
                                   uint16_t flags, MemoryRegionSection *section)
{
    uint8_t status = VIRTIO_FREEHINT_S_UNMAPPED;
    uint64_t len = range->len;
    hwaddr start;

    *section = memory_region_find(VIRTIO_DEVICE(fh)->dma_as->root, range->addr,
                                  range->len);
    if (section->mr) {
        start = section->offset_within_address_space;
        if (start != range->addr) {
            len = start - range->addr;
        } else {
            len = int128_get64(section->size);
            status = freehint_check_section(fh, section, flags);
            trace_virtio_freehint_section(memory_region_name(section->mr),
                                          section->offset_within_region, len,
                                          status);
        }
        if (status != VIRTIO_FREEHINT_S_DISCARDED) {
            memory_region_unref(section->mr);
        }
    }
    range->addr += len;
    range->len -= len;
    return status;
}

uint8_t freehint_collect(VirtIOFreehint *fh, const FreehintRange *range,
                         uint16_t flags, FreehintJob *job)
{
    const guint had = job ? job->parts->len : 0;
    const uint64_t room = job ? job->room : 0;
    uint8_t worst = VIRTIO_FREEHINT_S_DISCARDED;
    FreehintRange rest = *range;
    bool complete = job;

    freehint_update_blocks(fh);
    while (rest.len) {
        MemoryRegionSection section;
        uint8_t status = freehint_find_piece(fh, &rest, flags, &section);

        worst = MAX(worst, status);
        if (status == VIRTIO_FREEHINT_S_DISCARDED) {
            complete = complete &&
                       freehint_add_part(fh, job, &section, flags);
            memory_region_unref(section.mr);
        }
    }
    if (job && worst != VIRTIO_FREEHINT_S_DISCARDED) {
        g_array_set_size(job->parts, had);
        job->room = room;
    } else if (complete) {
        g_array_index(job->parts, FreehintPart,
                      job->parts->len - 1).ends_range = true;
    }
    return worst;
}

/* The worker */

static void *freehint_part_host(const FreehintPart *part)
{
    return part->mr->ram_block->host + part->offset;
}

static void freehint_count_call(FreehintJob *job, int advice,
                                unsigned int pieces, uint64_t bytes)
{
    job->calls++;
    job->pieces += pieces;
    if (advice == MADV_FREE) {
        job->lazy_calls++;
        job->lazy_bytes += bytes;
    }
}

/*
 * With MADV_FREE, the host takes the pages when it runs short; one that the
 * guest has written to by then stays, and has cost the guest nothing. Until it
 * is written to, such a page has its old content or zeros. That is right for a
 * hint without expectation, and for one that expects zeros, as the memory holds
 * zeros already. What cannot be freed lazily is dropped.
 */
static int freehint_discard_part(FreehintJob *job, const FreehintPart *part)
{
    int advice = part->advice, ret;

    if (advice == MADV_FREE &&
        madvise(freehint_part_host(part), part->len, MADV_FREE)) {
        advice = MADV_DONTNEED;
    }
    if (advice == MADV_FREE) {
        ret = 0;
    } else if (advice == MADV_DONTNEED) {
        ret = madvise(freehint_part_host(part), part->len, MADV_DONTNEED) ?
              -errno : 0;
    } else {
        ret = ram_block_discard_range(part->mr->ram_block, part->offset,
                                      part->len);
    }
    freehint_count_call(job, advice, 1, part->len);
    return ret;
}

/*
 * Make one call for all next parts with the same advice. Returns how many there
 * are; 0 if each needs its own call, for instance to find out what is wrong.
 */
static unsigned int freehint_discard_many(FreehintJob *job)
{
    const FreehintPart *parts = &g_array_index(job->parts, FreehintPart,
                                               job->ndone);
    const unsigned int left = job->parts->len - job->ndone;
    const unsigned int max = MIN(left, FREEHINT_MAX_PIECES);
    g_autofree struct iovec *pieces = NULL;
    const int advice = parts->advice;
    unsigned int i, npieces = 0;
    ssize_t bytes = 0;

    if (job->fh->pidfd < 0 || !advice || max < 2) {
        return 0;
    }
    pieces = g_new(struct iovec, max);
    for (i = 0; i < max && parts[i].advice == advice; i++) {
        struct iovec *last = npieces ? &pieces[npieces - 1] : NULL;
        void *host = freehint_part_host(&parts[i]);

        if (last && last->iov_base + last->iov_len == host) {
            last->iov_len += parts[i].len;
        } else {
            pieces[npieces++] = (struct iovec) { host, parts[i].len };
        }
        bytes += parts[i].len;
    }
    if (freehint_process_madvise(job->fh->pidfd, pieces, npieces, advice) !=
        bytes) {
        return 0;
    }
    freehint_count_call(job, advice, npieces, bytes);
    return i;
}

void freehint_discard(FreehintJob *job)
{
    while (!job->ret && job->ndone < job->parts->len) {
        const unsigned int many = freehint_discard_many(job);

        job->ndone += many;
        if (!many) {
            job->ret = freehint_discard_part(job, &g_array_index(job->parts,
                                                                 FreehintPart,
                                                                 job->ndone));
            job->ndone += !job->ret;
        }
    }
}

static uint64_t freehint_parts_bytes(const GArray *parts)
{
    uint64_t bytes = 0;
    guint i;

    for (i = 0; i < parts->len; i++) {
        bytes += g_array_index(parts, FreehintPart, i).len;
    }
    return bytes;
}

/*
 * A vhost-user back end that gets memory waits for the sections that were
 * entered before; those that come after ask whether there is one.
 */
static uint32_t freehint_begin(const FreehintJob *job)
{
    if (!ram_block_discard_begin()) {
        return VIRTIO_FREEHINT_REASON_PINNED;
    }
    if (!job->vhost_user_safe && vhost_user_in_use()) {
        ram_block_discard_end();
        return VIRTIO_FREEHINT_REASON_EXTERNAL;
    }
    return VIRTIO_FREEHINT_REASON_NONE;
}

static void freehint_work_discard(FreehintJob *job)
{
    int64_t start;

    job->veto = freehint_begin(job);
    if (job->veto) {
        return;
    }
    trace_virtio_freehint_job_begin(job->parts->len,
                                    freehint_parts_bytes(job->parts));
    start = get_clock();
    VIRTIO_FREEHINT_GET_CLASS(job->fh)->discard(job);
    job->ns = get_clock() - start;
    trace_virtio_freehint_job_end(job->ndone, job->ret, job->ns);
    ram_block_discard_end();
}

static int freehint_work(void *opaque)
{
    VirtIOFreehint *fh = opaque;
    const VirtIOFreehintClass *fc = VIRTIO_FREEHINT_GET_CLASS(fh);
    FreehintJob *job = &fh->job;

    if (fc->begin_job) {
        fc->begin_job(fh);
    }
    if (qatomic_cmpxchg(&fh->job_phase, FREEHINT_QUEUED, FREEHINT_RUNNING) !=
        FREEHINT_QUEUED) {
        qatomic_store_release(&fh->job_phase, FREEHINT_IDLE);
    } else {
        if (job->skips) {
            job->skipped_bytes = freehint_precopy_skip(job->parts, &job->hurry);
        } else {
            freehint_work_discard(job);
        }
        qatomic_store_release(&fh->job_phase, FREEHINT_ENDED);
    }
    qemu_bh_schedule(fh->bh);
    return 0;
}

/* Jobs, as the main loop sees them */

static void freehint_part_unref(gpointer part)
{
    memory_region_unref(((FreehintPart *)part)->mr);
}

GArray *freehint_parts_new(void)
{
    GArray *parts = g_array_new(false, false, sizeof(FreehintPart));

    g_array_set_clear_func(parts, freehint_part_unref);
    return parts;
}

bool freehint_job_busy(const VirtIOFreehint *fh)
{
    /* Pairs with freehint_work(): when idle, the worker is done with the job */
    return qatomic_load_acquire(&fh->job_phase) != FREEHINT_IDLE;
}

void freehint_job_shorten(VirtIOFreehint *fh)
{
    fh->job_size = FREEHINT_MIN_JOB;
}

void freehint_job_prepare(VirtIOFreehint *fh, uint64_t room)
{
    GArray *parts = fh->job.parts;

    assert(!freehint_job_busy(fh));
    g_array_set_size(parts, 0);
    fh->job = (FreehintJob) { .fh = fh, .parts = parts, .room = room };
}

void freehint_job_start(VirtIOFreehint *fh, FreehintHint *hint)
{
    fh->job.hint = hint;
    fh->job.vhost_user_safe = fh->assume_vhost_user_safe;
    /* Pairs with freehint_work(), which reads the rest of it. */
    qatomic_store_release(&fh->job_phase, FREEHINT_QUEUED);
    thread_pool_submit(fh->pool, freehint_work, fh, NULL);
}

void freehint_job_start_skip(VirtIOFreehint *fh, FreehintHint *hint)
{
    freehint_job_prepare(fh, 0);
    g_array_unref(fh->job.parts);
    fh->job.parts = g_steal_pointer(&hint->skips);
    fh->job.skips = true;
    freehint_job_start(fh, hint);
}

/* A job that was short anyway, or failed, says nothing about longer ones. */
static void freehint_adapt_job_size(VirtIOFreehint *fh, const FreehintJob *job)
{
    if (job->ret || job->veto) {
        return;
    }
    if (job->ns > FREEHINT_MAX_JOB_NS) {
        fh->job_size = fh->job_size * FREEHINT_MAX_JOB_NS / job->ns;
        fh->job_size = QEMU_ALIGN_DOWN(fh->job_size, FREEHINT_USUAL_GRANULE);
        fh->job_size = MAX(fh->job_size, FREEHINT_MIN_JOB);
    } else if (!job->room && job->ns < FREEHINT_MAX_JOB_NS / 4) {
        fh->job_size = MIN(fh->job_size * 2, FREEHINT_MAX_JOB);
    }
}

static void freehint_job_count(VirtIOFreehint *fh, const FreehintJob *job)
{
    FreehintCounters *counters = &fh->counters;

    counters->discard_calls += job->calls;
    counters->discard_pieces += job->pieces;
    counters->discard_ns += job->ns;
    counters->lazy_calls += job->lazy_calls;
    counters->lazy_bytes += job->lazy_bytes;
    counters->lazy_ns += job->lazy_calls ? job->ns : 0;
    counters->skipped_bytes += job->skipped_bytes;
}

/* After this, another job can be started. */
void freehint_job_reap(VirtIOFreehint *fh)
{
    FreehintJob *job = &fh->job;

    if (qatomic_load_acquire(&fh->job_phase) != FREEHINT_ENDED) {
        return;
    }
    qatomic_set(&fh->job_phase, FREEHINT_IDLE);
    freehint_job_count(fh, job);
    if (!job->skips) {
        freehint_adapt_job_size(fh, job);
        freehint_job_ended(fh, job);
    }
    job->hint = NULL;
    g_array_set_size(job->parts, 0);
}

bool freehint_job_cancel(VirtIOFreehint *fh)
{
    if (qatomic_cmpxchg(&fh->job_phase, FREEHINT_QUEUED, FREEHINT_CANCELLED) !=
        FREEHINT_QUEUED) {
        return false;
    }
    fh->job.hint = NULL;
    g_array_set_size(fh->job.parts, 0);
    return true;
}

/*
 * The worker has the pool to itself, so it is done as soon as the job is.
 * Waiting in aio_poll() would run other parts of QEMU in the middle of, e.g., a
 * device reset.
 */
void freehint_job_drain(VirtIOFreehint *fh)
{
    if (fh->job.hint && !freehint_job_cancel(fh)) {
        qatomic_set(&fh->job.hurry, true);
        thread_pool_wait(fh->pool);
        freehint_job_reap(fh);
    }
}

/* By now, all memory that the VM starts with is there. */
static void freehint_machine_done(Notifier *notifier, void *data)
{
    freehint_refresh_blocks(container_of(notifier, VirtIOFreehint,
                                         machine_done));
}

void freehint_ram_init(VirtIOFreehint *fh)
{
    fh->pool = thread_pool_new();
    thread_pool_set_max_threads(fh->pool, 1);
    fh->job = (FreehintJob) { .fh = fh, .parts = freehint_parts_new() };
    freehint_job_shorten(fh);
    freehint_probe_host(fh);
    fh->blocks = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    fh->blocks_stale = true;
    fh->retry_timer = timer_new_ms(QEMU_CLOCK_REALTIME, freehint_retry, fh);
    fh->memory_listener = (MemoryListener) {
        .name = "virtio-freehint",
        .region_add = freehint_region_add,
        .region_del = freehint_region_del,
    };
    /* The DMA address space is the same one, but is not known yet. */
    memory_listener_register(&fh->memory_listener, &address_space_memory);
    fh->ram_notifier.ram_block_removed = freehint_ram_removed;
    ram_block_notifier_add(&fh->ram_notifier);
    fh->machine_done.notify = freehint_machine_done;
    qemu_add_machine_init_done_notifier(&fh->machine_done);
}

/* The worker may be about to find out that its job was cancelled. */
void freehint_ram_cleanup(VirtIOFreehint *fh)
{
    qemu_remove_machine_init_done_notifier(&fh->machine_done);
    ram_block_notifier_remove(&fh->ram_notifier);
    /* Until then, a removal of memory looks at the job in progress. */
    memory_listener_unregister(&fh->memory_listener);
    thread_pool_free(fh->pool);
    g_array_unref(fh->job.parts);
    timer_free(fh->retry_timer);
    g_hash_table_destroy(fh->blocks);
    fh->blocks = NULL;
    if (fh->pidfd >= 0) {
        close(fh->pidfd);
    }
    if (fh->ksm_run_fd >= 0) {
        qemu_close(fh->ksm_run_fd);
    }
    if (fh->ksm_shared_fd >= 0) {
        qemu_close(fh->ksm_shared_fd);
    }
}
