/*
 * Virtio free memory hint device: which memory may be discarded
 *
 * A range comes from the guest and may name anything. What may be discarded is
 * a positive list: the machine's own RAM, NUMA memory backends, DIMMs and the
 * plugged parts of virtio-mem, as the device's DMA address space maps them.
 * Whether it is RAM says too little: so are ROM images, video memory, shared
 * memory of other machines, persistent memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "hw/boards.h"
#include "hw/mem/nvdimm.h"
#include "hw/mem/pc-dimm.h"
#include "hw/virtio/virtio-mem.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "system/hostmem.h"
#include "system/numa.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

/*
 * A huge page of most hosts. Smaller granules would cost more calls, and leave
 * the host with fragments that it cannot use as huge pages.
 */
#define VIRTIO_FREEHINT_MIN_GRANULE (2 * MiB)

/*
 * The largest block that any Linux guest keeps on its free lists (arm64 with
 * 64 KiB pages). Memory with larger pages does not raise the granule, which
 * would make the device useless for the rest of memory; of that, only ranges of
 * whole pages are discarded.
 */
#define VIRTIO_FREEHINT_MAX_GRANULE (512 * MiB)

/* Who else may want the content of the file that memory is mapped from. */
typedef enum VirtIOFreehintFile {
    /* There is no file, or QEMU alone has it. */
    VIRTIO_FREEHINT_FILE_NONE,
    /* Others may, but discarding leaves it alone. */
    VIRTIO_FREEHINT_FILE_PRIVATE,
    /* Others may, and discarding punches holes into it. */
    VIRTIO_FREEHINT_FILE_SHARED,
} VirtIOFreehintFile;

/* Nothing is in the way of discarding. */
#define VIRTIO_FREEHINT_NO_REFUSAL FREEHINT_REFUSAL__MAX

/* When to try again what the host failed to discard: doubles each time. */
#define VIRTIO_FREEHINT_MIN_BACKOFF_MS 1000
#define VIRTIO_FREEHINT_MAX_BACKOFF_MS 60000

/* What the positive list knows of a memory region. */
typedef struct VirtIOFreehintBlock {
    /* Where QEMU has it mapped: tells when it is gone. */
    const void *host;
    /* The memory device's own setting, which does not change. */
    bool dev_prealloc;
    VirtIOFreehintFile file;
    /* Why it is not discarded, FREEHINT_REFUSAL__MAX if it is. */
    FreehintRefusal refusal;
    /* The log says so. */
    bool refusal_told;
    /* How often in a row the host has failed, and with which errno. */
    unsigned int failures;
    int error;
    /* Left alone until then: QEMU_CLOCK_REALTIME, in ms. */
    int64_t retry_ms;
} VirtIOFreehintBlock;

/* Called with the memory device that @mr belongs to, NULL for boot memory. */
typedef void (*BlockFn)(MemoryRegion *mr, Object *dev, void *opaque);

typedef struct BlockVisit {
    BlockFn fn;
    void *opaque;
} BlockVisit;

static int visit_memory_device(Object *obj, void *opaque)
{
    const BlockVisit *visit = opaque;
    Object *memdev;

    if (!object_dynamic_cast(obj, TYPE_PC_DIMM) &&
        !object_dynamic_cast(obj, TYPE_VIRTIO_MEM)) {
        return 0;
    }
    /* Nvdimms are DIMMs, too, but their content outlives the guest. */
    if (object_dynamic_cast(obj, TYPE_NVDIMM)) {
        return 0;
    }
    memdev = object_property_get_link(obj, PC_DIMM_MEMDEV_PROP, NULL);
    if (memdev && host_memory_backend_mr_inited(MEMORY_BACKEND(memdev))) {
        visit->fn(&MEMORY_BACKEND(memdev)->mr, obj, visit->opaque);
    }
    return 0;
}

/* Memory that the machine started with. */
static void foreach_boot_block(BlockFn fn, void *opaque)
{
    MachineState *ms = current_machine;
    int i;

    if (ms->ram) {
        fn(ms->ram, NULL, opaque);
    }
    for (i = 0; ms->numa_state && i < ms->numa_state->num_nodes; i++) {
        HostMemoryBackend *memdev = ms->numa_state->nodes[i].node_memdev;

        if (memdev) {
            fn(&memdev->mr, NULL, opaque);
        }
    }
}

static void foreach_block(BlockFn fn, void *opaque)
{
    BlockVisit visit = { .fn = fn, .opaque = opaque };

    foreach_boot_block(fn, opaque);
    object_child_foreach_recursive(OBJECT(current_machine),
                                   visit_memory_device, &visit);
}

/* A setting of the memory backend, or of virtio-mem. */
static bool virtio_freehint_has_set(Object *obj, const char *prop)
{
    return obj && object_property_find(obj, prop) &&
           object_property_get_bool(obj, prop, &error_abort);
}

/*
 * A file without a name was created by QEMU and is not to be found by anybody
 * else. But one that is mapped privately may have been handed to several VMs,
 * each of which has its own copies of what it has written to.
 */
static VirtIOFreehintFile virtio_freehint_file(RAMBlock *rb)
{
    struct stat st;

    if (!qemu_ram_is_named_file(rb)) {
        return VIRTIO_FREEHINT_FILE_NONE;
    }
    if (!qemu_ram_is_shared(rb)) {
        return VIRTIO_FREEHINT_FILE_PRIVATE;
    }
    return !fstat(rb->fd, &st) && !st.st_nlink ? VIRTIO_FREEHINT_FILE_NONE :
                                                 VIRTIO_FREEHINT_FILE_SHARED;
}

/*
 * Together with is_aligned(), covers all that ram_block_discard_range() would
 * complain about, one message for each call: a guest must not fill the log.
 */
static FreehintRefusal virtio_freehint_refusal(const VirtIOFreehint *fh,
                                               const MemoryRegion *mr,
                                               bool dev_prealloc,
                                               VirtIOFreehintFile file)
{
    const RAMBlock *rb = mr->ram_block;

    if (!rb || rb->flags & (RAM_PREALLOC | RAM_PMEM | RAM_READONLY |
                            RAM_GUEST_MEMFD)) {
        return FREEHINT_REFUSAL_FIXED;
    }
    if (file == VIRTIO_FREEHINT_FILE_SHARED && !fh->discard_file_backed &&
        !virtio_freehint_has_set(mr->owner, "discard-data")) {
        return FREEHINT_REFUSAL_FILE;
    }
    /* The reservation goes with the pages, a later access may be fatal. */
    if (!fh->discard_reserved &&
        (rb->page_size != qemu_real_host_page_size() || dev_prealloc ||
         virtio_freehint_has_set(mr->owner, "prealloc"))) {
        return FREEHINT_REFUSAL_RESERVED;
    }
    return VIRTIO_FREEHINT_NO_REFUSAL;
}

/* All that may be different from one turn to the next. */
static void virtio_freehint_update_refusal(VirtIOFreehint *fh,
                                           const MemoryRegion *mr,
                                           VirtIOFreehintBlock *block)
{
    const FreehintRefusal old = block->refusal;

    block->file = mr->ram_block ? virtio_freehint_file(mr->ram_block) :
                                  VIRTIO_FREEHINT_FILE_NONE;
    block->refusal = virtio_freehint_refusal(fh, mr, block->dev_prealloc,
                                             block->file);
    if (old != VIRTIO_FREEHINT_NO_REFUSAL &&
        block->refusal == VIRTIO_FREEHINT_NO_REFUSAL) {
        block->refusal_told = false;
        virtio_freehint_owe_epoch(fh);
    }
}

typedef struct BlocksUpdate {
    VirtIOFreehint *fh;
    GHashTable *old;
    GHashTable *new;
    bool grown;
} BlocksUpdate;

static void update_block(MemoryRegion *mr, Object *dev, void *opaque)
{
    BlocksUpdate *update = opaque;
    VirtIOFreehintBlock *block = g_new0(VirtIOFreehintBlock, 1);
    const VirtIOFreehintBlock *old = g_hash_table_lookup(update->old, mr);

    if (old) {
        *block = *old;
    } else {
        block->host = mr->ram_block ? mr->ram_block->host : NULL;
        block->dev_prealloc = virtio_freehint_has_set(dev, "prealloc");
        block->refusal = VIRTIO_FREEHINT_NO_REFUSAL;
        update->grown = true;
    }
    virtio_freehint_update_refusal(update->fh, mr, block);
    g_hash_table_insert(update->new, mr, block);
}

static GHashTable *blocks_new(void)
{
    return g_hash_table_new_full(NULL, NULL, NULL, g_free);
}

/*
 * The list is put together when it is needed and memory has come or gone since
 * it was: the guest can remap memory at will, e.g. through PCI BARs.
 */
static void update_blocks(VirtIOFreehint *fh)
{
    BlocksUpdate update = { .fh = fh, .old = fh->blocks };

    if (!fh->blocks_stale) {
        return;
    }
    fh->blocks_stale = false;
    update.new = blocks_new();
    foreach_block(update_block, &update);
    /* Earlier refusals may be for memory that is on the list by now. */
    if (update.grown && g_hash_table_size(update.old)) {
        virtio_freehint_owe_epoch(fh);
    }
    fh->blocks = update.new;
    g_hash_table_destroy(update.old);
}

void virtio_freehint_blocks_refresh(VirtIOFreehint *fh)
{
    VirtIOFreehintBlock *block;
    GHashTableIter iter;
    MemoryRegion *mr;

    update_blocks(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, (gpointer *)&block)) {
        virtio_freehint_update_refusal(fh, mr, block);
    }
}

static const struct {
    const char *text;
    const char *option;
} virtio_freehint_refusals[] = {
    [FREEHINT_REFUSAL_FIXED] = {
        "its backing does not let go of memory", NULL
    },
    [FREEHINT_REFUSAL_FILE] = {
        "it is a named file; discard-file-backed=on lets holes be punched into"
        " it", "discard-file-backed"
    },
    [FREEHINT_REFUSAL_RESERVED] = {
        "it has huge pages or is preallocated; discard-reserved=on gives the"
        " reservation up", "discard-reserved"
    },
};

/* An operator wonders why the VM does not shrink, but needs no reminders. */
static void tell_refusal(VirtIOFreehintBlock *block, MemoryRegion *mr)
{
    if (!block->refusal_told) {
        block->refusal_told = true;
        warn_report("virtio-freehint: memory '%s' is not discarded: %s",
                    memory_region_name(mr),
                    virtio_freehint_refusals[block->refusal].text);
    }
}

static bool is_in_backoff(const VirtIOFreehintBlock *block)
{
    return block->failures &&
           qemu_clock_get_ms(QEMU_CLOCK_REALTIME) < block->retry_ms;
}

static uint8_t check_block(VirtIOFreehintBlock *block, MemoryRegion *mr,
                           uint16_t flags)
{
    if (block->refusal != VIRTIO_FREEHINT_NO_REFUSAL) {
        tell_refusal(block, mr);
        return VIRTIO_FREEHINT_S_BACKING;
    }
    /* What others write to a file shows where the guest relies on zeros. */
    if (block->file != VIRTIO_FREEHINT_FILE_NONE &&
        flags & VIRTIO_FREEHINT_HINT_F_ZERO) {
        return VIRTIO_FREEHINT_S_BACKING;
    }
    return is_in_backoff(block) ? VIRTIO_FREEHINT_S_FAILED :
                                  VIRTIO_FREEHINT_S_DISCARDED;
}

/* Large pages may exceed the granule, and DIMMs need not start on one. */
static bool is_aligned(const VirtIOFreehintPart *part)
{
    const RAMBlock *rb = part->rb;

    return QEMU_IS_ALIGNED(part->offset | part->len, rb->page_size) &&
           QEMU_PTR_IS_ALIGNED(rb->host + part->offset, rb->page_size);
}

static bool is_populated(MemoryRegionSection *section)
{
    RamDiscardManager *rdm =
        memory_region_get_ram_discard_manager(section->mr);

    return !rdm || ram_discard_manager_is_populated(rdm, section);
}

static uint8_t check_section(VirtIOFreehint *fh, MemoryRegionSection *section,
                             uint16_t flags, VirtIOFreehintPart *part)
{
    MemoryRegion *mr = section->mr;
    VirtIOFreehintBlock *block;
    uint8_t status;

    if (section->readonly || mr->rom_device) {
        return VIRTIO_FREEHINT_S_READ_ONLY;
    }
    if (!memory_region_is_ram(mr) || memory_region_is_ram_device(mr)) {
        return VIRTIO_FREEHINT_S_NOT_RAM;
    }

    block = g_hash_table_lookup(fh->blocks, mr);
    if (!block || !is_populated(section)) {
        return VIRTIO_FREEHINT_S_EXCLUDED;
    }

    part->mr = mr;
    part->rb = mr->ram_block;
    part->offset = section->offset_within_region;
    if (part->offset + part->len > part->rb->used_length) {
        return VIRTIO_FREEHINT_S_EXCLUDED;
    }
    status = check_block(block, mr, flags);
    if (status == VIRTIO_FREEHINT_S_BACKING || is_aligned(part)) {
        return status;
    }
    return VIRTIO_FREEHINT_S_MISALIGNED;
}

uint8_t virtio_freehint_find_part(VirtIOFreehint *fh,
                                  const VirtIOFreehintRange *range,
                                  uint16_t flags, VirtIOFreehintPart *part)
{
    MemoryRegionSection section;
    uint8_t status;
    hwaddr start;

    update_blocks(fh);
    section = memory_region_find(VIRTIO_DEVICE(fh)->dma_as->root,
                                 range->addr, range->len);
    if (!section.mr) {
        part->len = range->len;
        return VIRTIO_FREEHINT_S_UNMAPPED;
    }

    start = section.offset_within_address_space;
    if (start != range->addr) {
        part->len = start - range->addr;
        status = VIRTIO_FREEHINT_S_UNMAPPED;
    } else {
        part->len = int128_get64(section.size);
        status = check_section(fh, &section, flags, part);
        trace_virtio_freehint_section(memory_region_name(section.mr),
                                      section.offset_within_region, part->len,
                                      status);
    }
    if (status != VIRTIO_FREEHINT_S_DISCARDED) {
        memory_region_unref(section.mr);
    }
    return status;
}

uint8_t virtio_freehint_check_range(VirtIOFreehint *fh,
                                    const VirtIOFreehintRange *range,
                                    uint16_t flags)
{
    VirtIOFreehintRange rest = *range;
    uint8_t worst = VIRTIO_FREEHINT_S_DISCARDED;

    /* What is not well-formed has no parts to say more about. */
    if (!QEMU_IS_ALIGNED(range->addr | range->len, fh->granule)) {
        return VIRTIO_FREEHINT_S_MISALIGNED;
    }
    if (!range->len) {
        return VIRTIO_FREEHINT_S_EMPTY;
    }
    if (range->len - 1 > UINT64_MAX - range->addr) {
        return VIRTIO_FREEHINT_S_OVERFLOW;
    }

    while (rest.len) {
        VirtIOFreehintPart part;
        uint8_t status = virtio_freehint_find_part(fh, &rest, flags, &part);

        if (status == VIRTIO_FREEHINT_S_DISCARDED) {
            memory_region_unref(part.mr);
        }
        worst = MAX(worst, status);
        rest.addr += part.len;
        rest.len -= part.len;
    }
    return worst;
}

static int64_t virtio_freehint_backoff_ms(unsigned int failures)
{
    return MIN(VIRTIO_FREEHINT_MIN_BACKOFF_MS << MIN(failures - 1, 10),
               VIRTIO_FREEHINT_MAX_BACKOFF_MS);
}

/* The guest is told by the epoch when to try again. */
static void virtio_freehint_block_failed(VirtIOFreehint *fh, MemoryRegion *mr,
                                         VirtIOFreehintBlock *block, int error)
{
    block->failures++;
    block->error = error;
    block->retry_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                      virtio_freehint_backoff_ms(block->failures);
    timer_mod_anticipate(fh->retry_timer, block->retry_ms);
    if (block->failures == 1) {
        warn_report("virtio-freehint: discarding from memory '%s' failed: %s;"
                    " it will be tried again", memory_region_name(mr),
                    strerror(error));
    }
}

void virtio_freehint_block_tried(VirtIOFreehint *fh, MemoryRegion *mr, int ret)
{
    VirtIOFreehintBlock *block = g_hash_table_lookup(fh->blocks, mr);

    if (!block) {
        return;
    }
    if (ret) {
        virtio_freehint_block_failed(fh, mr, block, -ret);
    } else {
        block->failures = 0;
    }
}

void virtio_freehint_forgive_blocks(VirtIOFreehint *fh)
{
    VirtIOFreehintBlock *block;
    GHashTableIter iter;

    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&block)) {
        block->failures = 0;
    }
}

/* One of several blocks at a time: the others go on waiting for their turn. */
static void virtio_freehint_retry(void *opaque)
{
    VirtIOFreehint *fh = opaque;
    VirtIOFreehintBlock *block;
    GHashTableIter iter;

    virtio_freehint_owe_epoch(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&block)) {
        if (is_in_backoff(block)) {
            timer_mod_anticipate(fh->retry_timer, block->retry_ms);
        }
    }
}

static FreehintRefusedMemory *
virtio_freehint_describe_refusal(const MemoryRegion *mr,
                                 const VirtIOFreehintBlock *block)
{
    FreehintRefusedMemory *info = g_new0(FreehintRefusedMemory, 1);

    info->region = g_strdup(memory_region_name(mr));
    info->bytes = memory_region_size((MemoryRegion *)mr);
    if (block->refusal == VIRTIO_FREEHINT_NO_REFUSAL) {
        info->refusal = FREEHINT_REFUSAL_FAILING;
        info->has_host_errno = true;
        info->host_errno = block->error;
        info->has_failures = true;
        info->failures = block->failures;
    } else {
        info->refusal = block->refusal;
        info->option =
            g_strdup(virtio_freehint_refusals[block->refusal].option);
    }
    return info;
}

FreehintRefusedMemoryList *virtio_freehint_refused_memory(VirtIOFreehint *fh,
                                                          bool failing)
{
    FreehintRefusedMemoryList *list = NULL, **tail = &list;
    VirtIOFreehintBlock *block;
    GHashTableIter iter;
    MemoryRegion *mr;

    virtio_freehint_blocks_refresh(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, (gpointer *)&block)) {
        const bool refused = block->refusal != VIRTIO_FREEHINT_NO_REFUSAL;

        if (failing ? !refused && block->failures : refused) {
            QAPI_LIST_APPEND(tail, virtio_freehint_describe_refusal(mr, block));
        }
    }
    return list;
}

bool virtio_freehint_drops_for(VirtIOFreehint *fh, FreehintCause cause)
{
    GHashTableIter iter;
    MemoryRegion *mr;

    update_blocks(fh);
    g_hash_table_iter_init(&iter, fh->blocks);
    while (g_hash_table_iter_next(&iter, (gpointer *)&mr, NULL)) {
        FreehintCause found;

        if (virtio_freehint_lazy_refusal(fh, mr, &found) && found == cause) {
            return true;
        }
    }
    return false;
}

typedef struct GranuleSearch {
    const VirtIOFreehint *fh;
    uint64_t granule;
} GranuleSearch;

static void raise_granule(MemoryRegion *mr, Object *dev, void *opaque)
{
    GranuleSearch *search = opaque;
    RAMBlock *rb = mr->ram_block;

    if (rb && virtio_freehint_refusal(search->fh, mr, false,
                                      virtio_freehint_file(rb)) ==
              VIRTIO_FREEHINT_NO_REFUSAL &&
        rb->page_size <= VIRTIO_FREEHINT_MAX_GRANULE) {
        search->granule = MAX(search->granule, rb->page_size);
    }
}

uint64_t virtio_freehint_default_granule(VirtIOFreehint *fh)
{
    GranuleSearch search = { .fh = fh, .granule = VIRTIO_FREEHINT_MIN_GRANULE };

    foreach_boot_block(raise_granule, &search);
    return search.granule;
}

/* Whoever removes memory may do with it what it likes after that. */
static void virtio_freehint_region_del(MemoryListener *listener,
                                       MemoryRegionSection *section)
{
    VirtIOFreehint *fh = container_of(listener, VirtIOFreehint,
                                      memory_listener);

    if (memory_region_is_ram(section->mr)) {
        fh->blocks_stale = true;
        if (virtio_freehint_slice_uses(fh, section->mr)) {
            virtio_freehint_slice_drain(fh);
        }
    }
}

static void virtio_freehint_region_add(MemoryListener *listener,
                                           MemoryRegionSection *section)
{
    VirtIOFreehint *fh = container_of(listener, VirtIOFreehint,
                                      memory_listener);

    if (memory_region_is_ram(section->mr)) {
        fh->blocks_stale = true;
    }
}

static gboolean is_at(gpointer mr, gpointer block, gpointer host)
{
    return ((const VirtIOFreehintBlock *)block)->host == host;
}

/*
 * Memory that comes later may get a region at the same address: what is known
 * of this one must not be held against it.
 */
static void virtio_freehint_ram_removed(RAMBlockNotifier *notifier, void *host,
                                        size_t size, size_t max_size)
{
    VirtIOFreehint *fh = container_of(notifier, VirtIOFreehint, ram_notifier);

    g_hash_table_foreach_remove(fh->blocks, is_at, host);
}

void virtio_freehint_blocks_init(VirtIOFreehint *fh)
{
    fh->blocks = blocks_new();
    fh->blocks_stale = true;
    fh->retry_timer = timer_new_ms(QEMU_CLOCK_REALTIME, virtio_freehint_retry,
                                   fh);
    fh->memory_listener = (MemoryListener) {
        .name = "virtio-freehint",
        .region_add = virtio_freehint_region_add,
        .region_del = virtio_freehint_region_del,
    };
    /* Which is the DMA address space as well; that one is not known yet. */
    memory_listener_register(&fh->memory_listener, &address_space_memory);
    fh->ram_notifier.ram_block_removed = virtio_freehint_ram_removed;
    ram_block_notifier_add(&fh->ram_notifier);
}

void virtio_freehint_blocks_cleanup(VirtIOFreehint *fh)
{
    ram_block_notifier_remove(&fh->ram_notifier);
    memory_listener_unregister(&fh->memory_listener);
    timer_free(fh->retry_timer);
    g_hash_table_destroy(fh->blocks);
    fh->blocks = NULL;
}
