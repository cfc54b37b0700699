/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the page allocator tells the engine of free memory hints, and the two
 * helpers by which the engine takes memory off the free lists and puts it back.
 *
 * All of it but what says otherwise happens under zone->lock. With the key off each hook is a NOP, where
 * there is CONFIG_JUMP_LABEL.
 */
#ifndef _MM_FREEHINT_HOOKS_H
#define _MM_FREEHINT_HOOKS_H

#include <linux/jump_label.h>
#include <linux/mmzone.h>
#include <linux/types.h>

#ifdef CONFIG_FREEHINT

DECLARE_STATIC_KEY_FALSE(freehint_key);
extern unsigned int freehint_order;

void __freehint_note_free(struct zone *zone, unsigned long pfn,
			  unsigned int order);
void __freehint_note_taken(struct zone *zone, unsigned long pfn,
			   unsigned int order);
void __freehint_note_taking(struct zone *zone, struct page *buddy,
			    unsigned int order);
void __freehint_note_kept(struct zone *zone);
void __freehint_wait_range(unsigned long start_pfn, unsigned long end_pfn);

/**
 * freehint_note_free - a block has come to rest on a free list
 * @zone: its zone
 * @pfn: its first page
 * @order: its order after merging
 *
 * Granules of the block that are known to be free keep what is known of them;
 * the others become pending. There is no need to tell which part was freed and
 * which was merged with.
 *
 * Context: zone->lock held, in any context that it may be taken in.
 */
static inline void freehint_note_free(struct zone *zone, unsigned long pfn,
				      unsigned int order)
{
	if (static_branch_unlikely(&freehint_key) && order >= freehint_order)
		__freehint_note_free(zone, pfn, order);
}

/**
 * freehint_note_taken - pages have left the free lists for a user
 * @zone: their zone
 * @pfn: the first page that is taken
 * @order: how much is taken
 * @buddy_order: order of the free block that it is taken from. Below the
 *	granule's order nothing is known that could be forgotten.
 *
 * Context: zone->lock held, in any context that it may be taken in.
 */
static inline void freehint_note_taken(struct zone *zone, unsigned long pfn,
				       unsigned int order,
				       unsigned int buddy_order)
{
	if (static_branch_unlikely(&freehint_key) &&
	    buddy_order >= freehint_order)
		__freehint_note_taken(zone, pfn, order);
}

/**
 * freehint_note_taking - the first pages of a free block go to a user
 * @zone: their zone
 * @buddy: head of the block, which is still on its free list
 * @order: how much is taken
 *
 * As freehint_note_taken(), for the allocator's hot path: all that it is given is
 * at hand there, so that the compiler keeps nothing for it with the key off.
 *
 * Context: zone->lock held, in any context that it may be taken in.
 */
static inline void freehint_note_taking(struct zone *zone, struct page *buddy,
					unsigned int order)
{
	if (static_branch_unlikely(&freehint_key))
		__freehint_note_taking(zone, buddy, order);
}

/**
 * freehint_note_kept - a per-CPU list, which is being looked at, holds free pages
 * @zone: the zone of the pages
 * @pages: how many
 *
 * What is freed may stay there whole, of which nothing else tells. A granule or
 * more is worth a look at how much all of the zone's lists hold.
 *
 * Context: process context, no locks held; about once a second.
 */
static inline void freehint_note_kept(struct zone *zone, int pages)
{
	if (static_branch_unlikely(&freehint_key) && pages >> freehint_order)
		__freehint_note_kept(zone);
}

/**
 * freehint_wait_range - wait until no page of an isolated range is hinted
 * @start_pfn: first page
 * @end_pfn: one past the last page
 *
 * For code that has isolated the pageblocks of the range, so that no more of it
 * is taken, and now expects to find its free pages on the free lists.
 *
 * Context: process context, may sleep; bounded.
 */
static inline void freehint_wait_range(unsigned long start_pfn,
				       unsigned long end_pfn)
{
	if (static_branch_unlikely(&freehint_key))
		__freehint_wait_range(start_pfn, end_pfn);
}

/* In page_alloc.c and compaction.c, as what they need is static there. */
void __freehint_take(struct zone *zone, struct page *buddy, struct page *page,
		     unsigned int order);
void __freehint_give(struct zone *zone, struct page *page, unsigned int order);
#ifdef CONFIG_COMPACTION
void freehint_compact_zone(struct zone *zone, const unsigned long *until);
#else
static inline void freehint_compact_zone(struct zone *zone,
					 const unsigned long *until)
{
}
#endif

#else /* !CONFIG_FREEHINT */

static inline void freehint_note_free(struct zone *zone, unsigned long pfn,
				      unsigned int order)
{
}

static inline void freehint_note_taken(struct zone *zone, unsigned long pfn,
				       unsigned int order,
				       unsigned int buddy_order)
{
}

static inline void freehint_note_taking(struct zone *zone, struct page *buddy,
					unsigned int order)
{
}

static inline void freehint_note_kept(struct zone *zone, int pages)
{
}

static inline void freehint_wait_range(unsigned long start_pfn,
				       unsigned long end_pfn)
{
}

#endif /* CONFIG_FREEHINT */
#endif /* _MM_FREEHINT_HOOKS_H */
