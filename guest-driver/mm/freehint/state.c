// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: the state of granules.
 *
 * Bitmaps, one a state, so that a whole buddy block, or all granules of a
 * section, change state in a few instructions. Everything here runs under
 * zone->lock, in whatever context the allocator holds it: nothing may allocate,
 * sleep, print or arm a timer. State is advisory: it says where to look, and the
 * free lists say what is true (collect.c).
 */
#include <linux/bitmap.h>
#include <linux/bits.h>
#include <linux/jiffies.h>
#include <linux/lockdep.h>
#include <linux/mm.h>

#include <trace/events/freehint.h>

#include "../internal.h"
#include "hooks.h"
#include "internal.h"

/**
 * struct fh_span - granules that lie side by side in a chunk
 * @chunk: the chunk
 * @sec: its index in the map
 * @word: first long of each plane
 * @nr_words: how many longs; more than one only if they are covered wholly
 * @mask: the bits in each of them
 */
struct fh_span {
	struct fh_chunk *chunk;
	unsigned long sec;
	unsigned int word;
	unsigned int nr_words;
	unsigned long mask;
};

static unsigned long *fh_word(const struct fh_zone *fz, struct fh_chunk *chunk,
			      enum fh_plane plane, unsigned int word)
{
	return &chunk->bits[plane * fz->words + word];
}

/*
 * A block is aligned to its size and sections hold whole blocks, so a block's
 * bits are part of one long, or all bits of some.
 */
static bool fh_span(const struct fh_zone *fz, unsigned long pfn,
		    unsigned int order, struct fh_span *span)
{
	unsigned int nr = order > fz->order ? 1U << (order - fz->order) : 1;
	unsigned int first = (pfn & ~PAGE_SECTION_MASK) >> fz->order;
	unsigned int shift = first % BITS_PER_LONG;
	const struct fh_map *map = fz->map;

	lockdep_assert_held(&fz->zone->lock);

	span->sec = pfn_to_section_nr(pfn) - map->first;
	if (span->sec >= map->nr || !map->chunk[span->sec])
		return false;

	span->chunk = map->chunk[span->sec];
	span->word = first / BITS_PER_LONG;
	span->nr_words = DIV_ROUND_UP(nr, BITS_PER_LONG);
	if (nr < BITS_PER_LONG)
		span->mask = GENMASK(shift + nr - 1, shift);
	else
		span->mask = ~0UL;
	return true;
}

static unsigned int fh_clear_bits(struct fh_zone *fz, struct fh_chunk *chunk,
				  enum fh_plane plane, unsigned int word,
				  unsigned long mask)
{
	unsigned long *w = fh_word(fz, chunk, plane, word);
	unsigned int nr = hweight_long(*w & mask);

	*w &= ~mask;
	fz->nr[plane] -= nr;
	return nr;
}

static unsigned int fh_set_bits(struct fh_zone *fz, struct fh_chunk *chunk,
				enum fh_plane plane, unsigned int word,
				unsigned long mask)
{
	unsigned long *w = fh_word(fz, chunk, plane, word);
	unsigned int nr = hweight_long(mask & ~*w);

	*w |= mask;
	fz->nr[plane] += nr;
	return nr;
}

static bool fh_chunk_empty(struct fh_zone *fz, struct fh_chunk *chunk,
			   enum fh_plane plane)
{
	return !memchr_inv(fh_word(fz, chunk, plane, 0), 0,
			   fz->words * sizeof(long));
}

static unsigned long fh_known(struct fh_zone *fz, const struct fh_span *span,
			      unsigned int word)
{
	struct fh_chunk *chunk = span->chunk;

	return *fh_word(fz, chunk, FH_YOUNG, word) |
	       *fh_word(fz, chunk, FH_AGED, word) |
	       *fh_word(fz, chunk, FH_HINTED, word) |
	       *fh_word(fz, chunk, FH_HELD, word) |
	       *fh_word(fz, chunk, FH_INFLIGHT, word) |
	       *fh_word(fz, chunk, FH_NEVER, word);
}

/**
 * fh_note_free - a free block became known
 * @fz: its zone
 * @pfn: its first page
 * @order: its order, at least the granule's
 *
 * Return: how many granules became pending by this.
 */
unsigned int fh_note_free(struct fh_zone *fz, unsigned long pfn,
			  unsigned int order)
{
	unsigned int added = 0, i;
	struct fh_span span;

	if (!fh_span(fz, pfn, order, &span))
		return 0;

	for (i = 0; i < span.nr_words; i++) {
		unsigned int word = span.word + i;
		unsigned long new = span.mask & ~fh_known(fz, &span, word);

		/* Free, and in the hands of the device: the one thing that must not be. */
		VM_WARN_ON_ONCE(*fh_word(fz, span.chunk, FH_INFLIGHT, word) & span.mask);
		added += fh_set_bits(fz, span.chunk, FH_YOUNG, word, new);
	}
	if (added)
		__set_bit(span.sec, fz->map->pending);

	fz->burst += added;
	fz->freed += added;
	return added;
}

/* Which of these granules were hinted at most two reuse windows ago? */
static unsigned long fh_recent(struct fh_zone *fz, struct fh_chunk *chunk,
			       unsigned int word)
{
	unsigned long recent = 0;

	/*
	 * The worker, which moves bits on from FRESH to RECENT, may be asleep:
	 * an idle guest is not woken for that. Time tells what it would find.
	 */
	if (time_before(jiffies, fz->window_end + FH_WINDOW))
		recent |= *fh_word(fz, chunk, FH_FRESH, word);
	if (time_before(jiffies, fz->window_end))
		recent |= *fh_word(fz, chunk, FH_RECENT, word);
	return recent;
}

/**
 * fh_note_taken - pages were allocated from a free block
 * @fz: their zone
 * @pfn: the first of them
 * @order: how many; a part of a granule ends the whole granule's being free
 */
void fh_note_taken(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	unsigned int pending = 0, hinted = 0, held = 0, reused = 0, i;
	struct fh_span span;

	if (!fh_span(fz, pfn, order, &span))
		return;

	for (i = 0; i < span.nr_words; i++) {
		struct fh_chunk *chunk = span.chunk;
		unsigned int word = span.word + i;
		unsigned long mask = span.mask;

		reused += hweight_long(fh_recent(fz, chunk, word) & mask &
				       *fh_word(fz, chunk, FH_HINTED, word));
		pending += fh_clear_bits(fz, chunk, FH_YOUNG, word, mask);
		pending += fh_clear_bits(fz, chunk, FH_AGED, word, mask);
		hinted += fh_clear_bits(fz, chunk, FH_HINTED, word, mask);
		held += fh_clear_bits(fz, chunk, FH_HELD, word, mask);
		fh_clear_bits(fz, chunk, FH_FRESH, word, mask);
		fh_clear_bits(fz, chunk, FH_RECENT, word, mask);
	}
	fz->taken += pending + hinted + held;
	fz->reuse.spared += pending;
	/*
	 * Which of all that is hinted is taken first is up to the free lists. What
	 * was hinted last could have been taken instead, had it been spared.
	 */
	if (time_before(jiffies, fz->soon_end))
		fz->reuse.reused += hinted;
	fz->reused_total += reused;
	if (reused)
		trace_freehint_reuse(pfn, reused);
}

/**
 * fh_move - granules of a block change from one state to another
 * @fz: their zone
 * @pfn: the block's first page
 * @order: its order; below the granule's it means that granule
 * @from: granules in this state change, others do not
 * @to: the state that they get
 */
void fh_move(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane from, enum fh_plane to)
{
	struct fh_span span;
	unsigned int i;

	if (!fh_span(fz, pfn, order, &span))
		return;

	for (i = 0; i < span.nr_words; i++) {
		unsigned int word = span.word + i;
		unsigned long mask;

		mask = *fh_word(fz, span.chunk, from, word) & span.mask;
		fh_clear_bits(fz, span.chunk, from, word, mask);
		fh_set_bits(fz, span.chunk, to, word, mask);
	}
	if (to == FH_YOUNG || to == FH_AGED)
		__set_bit(span.sec, fz->map->pending);
}

/**
 * fh_drop - granules of a block lose a state
 * @fz: their zone
 * @pfn: the block's first page
 * @order: its order; below the granule's it means that granule
 * @from: the state
 */
void fh_drop(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane from)
{
	struct fh_span span;
	unsigned int i;

	if (!fh_span(fz, pfn, order, &span))
		return;

	for (i = 0; i < span.nr_words; i++)
		fh_clear_bits(fz, span.chunk, from, span.word + i, span.mask);
}

/**
 * fh_mark_recent - granules of a block have just been discarded on our hint
 * @fz: their zone
 * @pfn: the block's first page
 * @order: its order
 */
void fh_mark_recent(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	struct fh_span span;
	unsigned int i;

	if (!fh_span(fz, pfn, order, &span))
		return;

	for (i = 0; i < span.nr_words; i++)
		fz->reuse.hinted += fh_set_bits(fz, span.chunk, FH_FRESH,
						span.word + i, span.mask);
	fz->soon_end = jiffies + FH_WINDOW;
	__set_bit(span.sec, fz->map->hinted);
}

/**
 * fh_test - are all granules of a block in a state
 * @fz: their zone
 * @pfn: the block's first page
 * @order: its order; below the granule's it means that granule
 * @plane: the state
 */
bool fh_test(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane plane)
{
	struct fh_span span;
	unsigned int i;

	if (!fh_span(fz, pfn, order, &span))
		return false;

	for (i = 0; i < span.nr_words; i++)
		if (~*fh_word(fz, span.chunk, plane, span.word + i) & span.mask)
			return false;
	return true;
}

/**
 * fh_next - find the next pending granule in address order
 * @fz: the zone
 * @plane: FH_YOUNG or FH_AGED; for others, sections without either are skipped
 * @pfn: where to start; becomes the granule's first page, or where to go on, or
 *	FH_NO_PFN if there is no more
 *
 * Looks at FH_HOLD_CHUNKS sections at most, as there may be many that have
 * pending granules and none of this plane.
 *
 * Return: true if there is a granule at @pfn.
 */
bool fh_next(struct fh_zone *fz, enum fh_plane plane, unsigned long *pfn)
{
	unsigned int nr = PAGES_PER_SECTION >> fz->order;
	const struct fh_map *map = fz->map;
	unsigned int budget = FH_HOLD_CHUNKS;
	unsigned long sec = 0;
	unsigned int bit = 0;

	lockdep_assert_held(&fz->zone->lock);

	if (pfn_to_section_nr(*pfn) >= map->first) {
		sec = pfn_to_section_nr(*pfn) - map->first;
		bit = (*pfn & ~PAGE_SECTION_MASK) >> fz->order;
	}

	while (sec < map->nr && budget--) {
		if (test_bit(sec, map->pending) && map->chunk[sec]) {
			bit = find_next_bit(fh_word(fz, map->chunk[sec], plane, 0),
					    nr, bit);
			if (bit < nr) {
				*pfn = section_nr_to_pfn(map->first + sec) +
				       ((unsigned long)bit << fz->order);
				return true;
			}
		}
		sec = find_next_bit(map->pending, map->nr, sec + 1);
		bit = 0;
	}
	*pfn = sec < map->nr ? section_nr_to_pfn(map->first + sec) : FH_NO_PFN;
	return false;
}

/**
 * fh_any - is any granule of a range in a state
 * @fz: the zone
 * @pfn: first page
 * @end: one past the last page
 * @plane: the state
 */
bool fh_any(struct fh_zone *fz, unsigned long pfn, unsigned long end,
	    enum fh_plane plane)
{
	const struct fh_map *map = fz->map;

	lockdep_assert_held(&fz->zone->lock);

	while (pfn < end && fz->nr[plane]) {
		unsigned long sec = pfn_to_section_nr(pfn) - map->first;
		unsigned long start = pfn & ~PAGE_SECTION_MASK;
		unsigned long stop = min(end - pfn + start, PAGES_PER_SECTION);
		unsigned int nr = DIV_ROUND_UP(stop, fh_granule_pages(fz));

		if (sec < map->nr && map->chunk[sec] &&
		    find_next_bit(fh_word(fz, map->chunk[sec], plane, 0), nr,
				  start >> fz->order) < nr)
			return true;
		pfn += PAGES_PER_SECTION - start;
	}
	return false;
}

/**
 * fh_wipe_chunk - forget all about the free granules of a section
 * @fz: the zone
 * @sec: index of the section in the map
 *
 * Granules in the device's hands stay marked as such: they are not free.
 */
void fh_wipe_chunk(struct fh_zone *fz, unsigned long sec)
{
	struct fh_chunk *chunk = fz->map->chunk[sec];
	enum fh_plane plane;
	unsigned int word;

	lockdep_assert_held(&fz->zone->lock);

	for (plane = 0; plane < FH_NR_PLANES; plane++) {
		if (plane == FH_INFLIGHT)
			continue;
		for (word = 0; word < fz->words; word++)
			fh_clear_bits(fz, chunk, plane, word, ~0UL);
	}
	__clear_bit(sec, fz->map->pending);
	__clear_bit(sec, fz->map->hinted);
}

static void fh_promote_chunk(struct fh_zone *fz, unsigned long sec)
{
	struct fh_chunk *chunk = fz->map->chunk[sec];
	unsigned int word;

	for (word = 0; word < fz->words; word++) {
		unsigned long young = *fh_word(fz, chunk, FH_YOUNG, word);

		fh_clear_bits(fz, chunk, FH_YOUNG, word, young);
		fh_set_bits(fz, chunk, FH_AGED, word, young);
	}
	if (fh_chunk_empty(fz, chunk, FH_AGED))
		__clear_bit(sec, fz->map->pending);
}

/**
 * fh_promote_some - a period has ended: what was young has aged
 * @fz: the zone
 * @sec: index of the section to go on with; start with 0
 *
 * Return: true if there is more to do, in another lock hold.
 */
bool fh_promote_some(struct fh_zone *fz, unsigned long *sec)
{
	struct fh_map *map = fz->map;
	unsigned int budget = FH_HOLD_CHUNKS;

	lockdep_assert_held(&fz->zone->lock);

	while (budget--) {
		*sec = find_next_bit(map->pending, map->nr, *sec);
		if (*sec >= map->nr)
			return false;
		fh_promote_chunk(fz, (*sec)++);
	}
	return true;
}

static void fh_rotate_chunk(struct fh_zone *fz, unsigned long sec, bool all)
{
	struct fh_chunk *chunk = fz->map->chunk[sec];
	unsigned int word;

	for (word = 0; word < fz->words; word++) {
		unsigned long fresh = *fh_word(fz, chunk, FH_FRESH, word);

		fh_clear_bits(fz, chunk, FH_RECENT, word, ~0UL);
		fh_clear_bits(fz, chunk, FH_FRESH, word, fresh);
		if (!all)
			fh_set_bits(fz, chunk, FH_RECENT, word, fresh);
	}
	if (fh_chunk_empty(fz, chunk, FH_RECENT))
		__clear_bit(sec, fz->map->hinted);
}

/**
 * fh_rotate_some - a reuse window has ended: what was fresh is recent
 * @fz: the zone
 * @sec: index of the section to go on with; start with 0
 * @all: more than one window has ended: nothing is recent either
 *
 * Return: true if there is more to do, in another lock hold.
 */
bool fh_rotate_some(struct fh_zone *fz, unsigned long *sec, bool all)
{
	struct fh_map *map = fz->map;
	unsigned int budget = FH_HOLD_CHUNKS;

	lockdep_assert_held(&fz->zone->lock);

	while (budget--) {
		*sec = find_next_bit(map->hinted, map->nr, *sec);
		if (*sec >= map->nr)
			return false;
		fh_rotate_chunk(fz, (*sec)++, all);
	}
	return true;
}

/* The zone has something to do. */
static void fh_wake(struct fh_zone *fz)
{
	if (fz->busy)
		return;
	/*
	 * Not the work itself: queueing it takes locks and may, with debugging on,
	 * allocate, neither of which is to happen under zone->lock.
	 */
	fz->busy = true;
	irq_work_queue(fz->kick);
}

void __freehint_note_free(struct zone *zone, unsigned long pfn,
			  unsigned int order)
{
	struct fh_zone *fz = zone->freehint;
	unsigned int added;

	if (!fz)
		return;

	added = fh_note_free(fz, pfn, order);
	if (!added)
		return;

	trace_freehint_pending(pfn, added);
	fh_wake(fz);
}

void __freehint_note_kept(struct zone *zone)
{
	struct fh_zone *fz;
	unsigned long flags;

	if (fh_pcp_pages(zone) >> freehint_order < FH_BURST)
		return;

	spin_lock_irqsave(&zone->lock, flags);
	fz = zone->freehint;
	if (fz) {
		fz->kept = true;
		fh_wake(fz);
	}
	spin_unlock_irqrestore(&zone->lock, flags);
}

void __freehint_note_taken(struct zone *zone, unsigned long pfn,
			   unsigned int order)
{
	if (zone->freehint)
		fh_note_taken(zone->freehint, pfn, order);
}

void __freehint_note_taking(struct zone *zone, struct page *buddy,
			    unsigned int order)
{
	if (buddy_order(buddy) >= freehint_order)
		__freehint_note_taken(zone, page_to_pfn(buddy), order);
}
