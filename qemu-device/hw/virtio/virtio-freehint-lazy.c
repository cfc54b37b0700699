/*
 * Virtio free memory hint device: what may be left to the host to take
 *
 * MADV_FREE leaves memory where it is, clean, until the host runs short. A
 * page that is written to after that is dirty, and stays. Data is lost where a
 * page is written to and not marked dirty, and that is not the guest's data
 * alone: a page that KSM has merged belongs to others, too.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "exec/ramblock.h"
#include "hw/virtio/vhost.h"
#include "qapi/error.h"
#include "system/hostmem.h"
#include "trace.h"
#include "virtio-freehint-internal.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Of Linux 6.4: whether all memory of the process may be merged. */
#ifndef PR_GET_MEMORY_MERGE
#define PR_GET_MEMORY_MERGE 68
#endif

/* The probe: as much as the largest page that MADV_FREE leaves whole. */
#define PROBE_SIZE (2 * MiB)

/* A host that is busy may not do at once what it is asked to. */
#define PROBE_TRIES 5

static bool virtio_freehint_is_filled(const uint8_t *mem, uint8_t byte)
{
    return mem[0] == byte && !memcmp(mem, mem + 1, PROBE_SIZE - 1);
}

/*
 * Free memory lazily, and have the host take what is clean. In between write to
 * it, if told to, and have its page tables changed, which has many reasons.
 */
static bool virtio_freehint_probe_once(uint8_t *mem, bool rewrite)
{
    memset(mem, 0xa5, PROBE_SIZE);
    if (madvise(mem, PROBE_SIZE, MADV_FREE)) {
        return false;
    }
    if (rewrite) {
        memset(mem, 0x5a, PROBE_SIZE);
    }
    return !mprotect(mem, PROBE_SIZE, PROT_READ) &&
           !mprotect(mem, PROBE_SIZE, PROT_READ | PROT_WRITE) &&
           !madvise(mem, PROBE_SIZE, MADV_PAGEOUT);
}

/* A page that another processor has just got is on no list yet, and stays. */
static bool virtio_freehint_most_is_taken(const uint8_t *mem)
{
    const size_t page = qemu_real_host_page_size();
    size_t offset, taken = 0;

    for (offset = 0; offset < PROBE_SIZE; offset += page) {
        taken += mem[offset] ? 0 : page;
    }
    return taken > PROBE_SIZE / 2;
}

/* Only a host that takes what was not written to has been put to the test. */
static FreehintLazyProbe virtio_freehint_probe_pages(uint8_t *mem, int advice)
{
    int tries = 0;

    /* Without huge pages in the kernel there is nothing to be advised. */
    madvise(mem, PROBE_SIZE, advice);
    while (!virtio_freehint_probe_once(mem, false) ||
           !virtio_freehint_most_is_taken(mem)) {
        if (++tries == PROBE_TRIES) {
            return FREEHINT_LAZY_PROBE_UNTESTED;
        }
    }
    if (!virtio_freehint_probe_once(mem, true)) {
        return FREEHINT_LAZY_PROBE_UNTESTED;
    }
    return virtio_freehint_is_filled(mem, 0x5a) ?
           FREEHINT_LAZY_PROBE_RELIABLE : FREEHINT_LAZY_PROBE_UNRELIABLE;
}

static FreehintLazyProbe virtio_freehint_probe(uint8_t *mem)
{
    static const int advices[] = { MADV_HUGEPAGE, MADV_NOHUGEPAGE };
    FreehintLazyProbe worst = FREEHINT_LAZY_PROBE_RELIABLE;
    int i;

    for (i = 0; i < ARRAY_SIZE(advices); i++) {
        worst = MAX(worst, virtio_freehint_probe_pages(mem, advices[i]));
        /* Pages of another size come with new memory. */
        madvise(mem, PROBE_SIZE, MADV_DONTNEED);
    }
    return worst;
}

/* Any number but the one given, or none, is a reason to be careful. */
static bool virtio_freehint_reads(int fd, bool (*accepts)(uint64_t value))
{
    char text[32] = "";
    uint64_t value;

    return fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0 &&
           !parse_uint(g_strchomp(text), NULL, 10, &value) && accepts(value);
}

static bool virtio_freehint_ksm_stands_still(uint64_t run)
{
    return run != 1;
}

static bool virtio_freehint_ksm_is_empty(uint64_t pages_shared)
{
    return !pages_shared;
}

static bool virtio_freehint_ksm_active(const VirtIOFreehint *fh)
{
    return !fh->ksm_absent &&
           !(virtio_freehint_reads(fh->ksm_run_fd,
                                   virtio_freehint_ksm_stands_still) &&
             virtio_freehint_reads(fh->ksm_shared_fd,
                                   virtio_freehint_ksm_is_empty));
}

/* By the memory backend's setting, or by the service manager's. */
static bool virtio_freehint_is_mergeable(const MemoryRegion *mr)
{
    return !object_dynamic_cast(mr->owner, TYPE_MEMORY_BACKEND) ||
           object_property_get_bool(mr->owner, "merge", &error_abort) ||
           prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1;
}

bool virtio_freehint_can_be_lazy(const MemoryRegion *mr)
{
    const RAMBlock *rb = mr->ram_block;

    return rb && rb->fd < 0 && !qemu_ram_is_shared(mr->ram_block) &&
           rb->page_size == qemu_real_host_page_size();
}

bool virtio_freehint_lazy_refusal(const VirtIOFreehint *fh,
                                  const MemoryRegion *mr,
                                  FreehintCause *cause)
{
    if (!virtio_freehint_can_be_lazy(mr)) {
        return false;
    }
    if (fh->lazy_probe != FREEHINT_LAZY_PROBE_RELIABLE) {
        *cause = FREEHINT_CAUSE_LAZY_UNRELIABLE;
    } else if (vhost_forbids_lazy_discards()) {
        *cause = FREEHINT_CAUSE_LAZY_FORBIDDEN;
    } else if (virtio_freehint_is_mergeable(mr) &&
               virtio_freehint_ksm_active(fh)) {
        *cause = FREEHINT_CAUSE_LAZY_MERGING;
    } else {
        return false;
    }
    return true;
}

/* A kernel without KSM does not know the advice. */
static bool virtio_freehint_lacks_ksm(uint8_t *mem)
{
    return madvise(mem, PROBE_SIZE, MADV_MERGEABLE) && errno == EINVAL;
}

/* In a mapping of its own, for what is advised must not stick to the heap. */
static void virtio_freehint_probe_host(VirtIOFreehint *fh)
{
    const size_t size = 2 * PROBE_SIZE;
    uint8_t *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *mem = QEMU_ALIGN_PTR_UP(mapping, PROBE_SIZE);

    fh->lazy_probe = FREEHINT_LAZY_PROBE_UNTESTED;
    fh->ksm_absent = false;
    if (mapping == MAP_FAILED) {
        return;
    }
    fh->lazy_probe = virtio_freehint_probe(mem);
    fh->ksm_absent = virtio_freehint_lacks_ksm(mem);
    munmap(mapping, size);
}

void virtio_freehint_lazy_init(VirtIOFreehint *fh)
{
    virtio_freehint_probe_host(fh);
    /* Kept open, for QEMU may lose its root directory and its rights. */
    fh->ksm_run_fd = qemu_open_old("/sys/kernel/mm/ksm/run", O_RDONLY);
    fh->ksm_shared_fd = qemu_open_old("/sys/kernel/mm/ksm/pages_shared",
                                      O_RDONLY);
    trace_virtio_freehint_lazy_probe(FreehintLazyProbe_str(fh->lazy_probe),
                                     fh->ksm_absent);
}

void virtio_freehint_lazy_cleanup(VirtIOFreehint *fh)
{
    if (fh->ksm_run_fd >= 0) {
        qemu_close(fh->ksm_run_fd);
    }
    if (fh->ksm_shared_fd >= 0) {
        qemu_close(fh->ksm_shared_fd);
    }
}
