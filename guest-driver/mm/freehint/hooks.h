/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what the page allocator tells mm/freehint/, and what it does for
 * it. With the key off and with CONFIG_JUMP_LABEL, each hook is a NOP.
 */
#ifndef _MM_FREEHINT_HOOKS_H
#define _MM_FREEHINT_HOOKS_H

#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/types.h>

#ifdef CONFIG_FREEHINT

DECLARE_STATIC_KEY_FALSE(freehint_key);
extern unsigned int freehint_order;

void __freehint_freed(struct zone *zone);
void __freehint_allocated(struct zone *zone, unsigned long pfn,
			  unsigned int order);
void __freehint_wait_range(unsigned long start_pfn, unsigned long end_pfn);

/**
 * freehint_freeing - pages are about to be merged with their buddies
 * @zone: their zone
 * @pfn: the first page that is freed
 * @order: how much is freed
 *
 * The zone keeps this for freehint_freed(), so that the allocator need not keep it while
 * it merges. If the key is switched on between the two calls, freehint_freed() sees an
 * earlier free, or none, which does no harm.
 *
 * Context: as freehint_freed().
 */
static inline void freehint_freeing(struct zone *zone, unsigned long pfn,
				    unsigned int order)
{
	if (static_branch_unlikely(&freehint_key)) {
		zone->freehint_pfn = pfn;
		zone->freehint_order = order;
	}
}

/**
 * freehint_freed - pages are on a free list now
 * @zone: their zone; freehint_freeing() was told which pages
 * @block_order: order of the block that they are part of now
 *
 * What was freed is pending now, if it is part of a whole granule. What it was merged
 * with was free before, and keeps its state, as it does when a block is split.
 *
 * Context: zone->lock held, in any context that it may be taken in.
 */
static inline void freehint_freed(struct zone *zone, unsigned int block_order)
{
	if (static_branch_unlikely(&freehint_key) &&
	    block_order >= freehint_order)
		__freehint_freed(zone);
}

/**
 * freehint_allocated - pages are taken off a free list for a user
 * @zone: their zone
 * @page: the first of them
 * @order: how much is taken
 * @block_order: order of the free block that they are taken from
 *
 * Only figures, and how soon reuse is noticed, depend on this: a granule that is taken in
 * another way keeps its state until some of it is freed again, or somebody checks whether
 * it is free.
 *
 * Context: as freehint_freed().
 */
static inline void freehint_allocated(struct zone *zone, struct page *page,
				      unsigned int order,
				      unsigned int block_order)
{
	if (static_branch_unlikely(&freehint_key) &&
	    block_order >= freehint_order)
		__freehint_allocated(zone, page_to_pfn(page), order);
}

/**
 * freehint_wait_range - wait until no page of an isolated range is out
 * @start_pfn: first page
 * @end_pfn: one past the last page
 *
 * For code that has isolated the pageblocks of the range, so that no more of it
 * is taken, and now expects its free pages on the free lists.
 *
 * Context: process context; may sleep, for a second at most.
 */
static inline void freehint_wait_range(unsigned long start_pfn,
				       unsigned long end_pfn)
{
	if (static_branch_unlikely(&freehint_key))
		__freehint_wait_range(start_pfn, end_pfn);
}

/* In page_alloc.c, as what they need is static there. */
void __freehint_take(struct zone *zone, struct page *buddy, struct page *page,
		     unsigned int order);
void __freehint_give(struct zone *zone, struct page *page, unsigned int order,
		     bool to_tail);
bool __freehint_drain_some(struct zone *zone, unsigned int cpu);

#else /* !CONFIG_FREEHINT */

static inline void freehint_freeing(struct zone *zone, unsigned long pfn,
				    unsigned int order)
{
}

static inline void freehint_freed(struct zone *zone, unsigned int block_order)
{
}

static inline void freehint_allocated(struct zone *zone, struct page *page,
				      unsigned int order,
				      unsigned int block_order)
{
}

static inline void freehint_wait_range(unsigned long start_pfn,
				       unsigned long end_pfn)
{
}

#endif /* CONFIG_FREEHINT */
#endif /* _MM_FREEHINT_HOOKS_H */
