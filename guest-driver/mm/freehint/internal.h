/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what the parts of the engine share.
 *
 * Vocabulary: a granule is the unit that the device works in, a block is what
 * the buddy allocator has on its lists, a chunk is what is known of the
 * granules of one memory section in one zone.
 */
#ifndef _MM_FREEHINT_INTERNAL_H
#define _MM_FREEHINT_INTERNAL_H

#include <linux/freehint.h>
#include <linux/irq_work.h>
#include <linux/mmzone.h>

/* A pfn that no page has. */
#define FH_NO_PFN		ULONG_MAX

/*
 * A lock hold ends after this many granules were taken or given back. At less
 * than a microsecond each that is well below 20 us with interrupts off, and it
 * does not grow with the machine.
 */
#define FH_HOLD_GRANULES	8UL

/* A lock hold that only goes through bitmaps ends after this many chunks. */
#define FH_HOLD_CHUNKS		16

/*
 * This many granules freed make a burst, with what the per-CPU lists hold of it,
 * which is worth draining then. That many also are enough evidence to judge the
 * pace by.
 */
#define FH_BURST		16

/*
 * Reuse within a window after a hint says that the hint came too early. The window
 * outlasts the pauses that the engine can learn: it lets memory rest for up to one
 * window (fh_pace_judge()).
 */
#define FH_WINDOW		(5 * HZ)

/**
 * enum fh_plane - what is known of a granule, one bitmap each
 * @FH_YOUNG: free, since some time in this period; not hinted
 * @FH_AGED: free for at least one whole period; not hinted
 * @FH_HINTED: free, and the device discarded it
 * @FH_HELD: free, and the device declined it for now
 * @FH_INFLIGHT: on no free list, in the hands of the device
 * @FH_NEVER: the device will not take it; stays set while it is allocated
 * @FH_FRESH: hinted in this reuse window
 * @FH_RECENT: hinted in the reuse window before
 * @FH_NR_PLANES: how many bitmaps that makes
 *
 * At most one of YOUNG to INFLIGHT is set, and none of YOUNG to HELD together
 * with NEVER: see the table in Documentation/mm/freehint.rst.
 */
enum fh_plane {
	FH_YOUNG,
	FH_AGED,
	FH_HINTED,
	FH_HELD,
	FH_INFLIGHT,
	FH_NEVER,
	FH_FRESH,
	FH_RECENT,
	FH_NR_PLANES,
};

/**
 * struct fh_chunk - the granules of one section in one zone
 * @bits: FH_NR_PLANES bitmaps of &fh_zone.words longs each
 *
 * A section that two zones share has a chunk in each, as a zone's lock protects
 * the chunks of that zone only.
 */
struct fh_chunk {
	DECLARE_FLEX_ARRAY(unsigned long, bits);
};

/**
 * struct fh_map - a zone's chunks, by section
 * @first: number of the first section
 * @nr: how many sections the map spans
 * @pending: bitmap by section: those whose chunk has YOUNG or AGED bits
 * @hinted: bitmap by section: those whose chunk has FRESH or RECENT bits
 * @chunk: by section; NULL for a section that is not online in this zone
 *
 * The bitmaps are what makes a walk of an idle guest cheap: a machine of 12 TiB
 * has 98304 sections of 128 MiB, or 1536 longs to look at.
 */
struct fh_map {
	unsigned long first;
	unsigned long nr;
	unsigned long *pending;
	unsigned long *hinted;
	struct fh_chunk *chunk[] __counted_by(nr);
};

/**
 * struct fh_reuse - evidence on the pace, in granules
 * @hinted: discarded on our hint
 * @reused: allocated of all that is hinted, within a reuse window after a hint
 * @spared: allocated before they were old enough to be hinted
 */
struct fh_reuse {
	unsigned long hinted;
	unsigned long reused;
	unsigned long spared;
};

/**
 * struct fh_zone - what the engine knows of a zone
 * @zone: the zone; its lock protects everything here but what is the
 *	worker's
 * @order: the granule, as an order of pages
 * @words: longs a plane
 * @map: the chunks
 * @nr: set bits in each plane
 * @kick: queued when @busy becomes true; NULL for none
 * @busy: the worker will look at this zone without being told
 * @burst: granules freed since the per-CPU lists were last drained
 * @kept: the per-CPU lists were seen to hold a burst in this period
 * @freed: granules freed in this period
 * @taken: granules allocated in this period
 * @generation: counts resyncs; what the device said before one does not hold
 * @settling: what is hinted was found by a resync and has been free for who
 *	knows how long; that it is used one day says nothing about the pace
 * @reuse: evidence since it was last collected
 * @soon_end: jiffies; what is taken of what is hinted counts as reuse until then
 * @reused_total: granules reused soon after they themselves were hinted, ever
 * @stale: granules that turned out not to be free
 * @window_end: jiffies; FRESH becomes RECENT then
 * @put_off: the worker's: rounds in a row that this zone sat out, or 0
 * @cursor: the worker's: first pfn that this round has not looked at
 * @run_end: the worker's: end of what this round took last
 * @runs: the worker's: runs of neighbours that were hinted, ever; see
 *	&freehint_stats.runs
 * @progress: the worker's: something was hinted in this round
 * @guarded: the worker's: the watermark guard ended this round early
 * @free_then: the worker's: free pages when the last round ended
 * @yield: the worker's: for how long it hinted nothing while short, last time that
 *	somebody waited for memory, in jiffies
 * @yield_end: the worker's: jiffies; until when that is so
 * @yielded: the worker's: that was so, and nothing was hinted since
 * @slow: the worker's: the device did not get round to all that it was given;
 *	it is given so many times half of that
 */
struct fh_zone {
	struct zone *zone;
	unsigned int order;
	unsigned int words;
	struct fh_map *map;
	unsigned long nr[FH_NR_PLANES];

	struct irq_work *kick;
	bool busy;
	unsigned long burst;
	bool kept;
	unsigned long freed;
	unsigned long taken;

	unsigned int generation;
	bool settling;
	struct fh_reuse reuse;
	unsigned long soon_end;
	u64 reused_total;
	u64 stale;
	unsigned long window_end;

	unsigned int put_off;
	unsigned long cursor;
	unsigned long run_end;
	u64 runs;
	bool progress;
	bool guarded;
	unsigned long free_then;
	unsigned long yield;
	unsigned long yield_end;
	bool yielded;
	unsigned int slow;
};

/**
 * struct fh_pace - how long memory must stay free before it is hinted
 * @min_ms: floor of @age_ms: what the device asks for, within the guest's bounds
 * @max_ms: ceiling of @age_ms
 * @age_ms: now
 * @reuse: evidence since the age last doubled, or since the last window ended
 * @before: and in the window before that, if the age has not doubled since
 * @unclaimed: granules hinted in these two windows that no reuse was held against
 * @calm: there was a calm window before the one that goes on
 * @since: jiffies, when @reuse was last emptied
 */
struct fh_pace {
	unsigned int min_ms;
	unsigned int max_ms;
	unsigned int age_ms;
	struct fh_reuse reuse;
	struct fh_reuse before;
	unsigned long unclaimed;
	bool calm;
	unsigned long since;
};

/* state.c: the state of granules, all under zone->lock */
unsigned int fh_note_free(struct fh_zone *fz, unsigned long pfn,
			  unsigned int order);
void fh_note_taken(struct fh_zone *fz, unsigned long pfn, unsigned int order);
void fh_move(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane from, enum fh_plane to);
void fh_drop(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane from);
void fh_mark_recent(struct fh_zone *fz, unsigned long pfn, unsigned int order);
bool fh_test(struct fh_zone *fz, unsigned long pfn, unsigned int order,
	     enum fh_plane plane);
bool fh_any(struct fh_zone *fz, unsigned long pfn, unsigned long end,
	    enum fh_plane plane);
bool fh_next(struct fh_zone *fz, enum fh_plane plane, unsigned long *pfn);
void fh_wipe_chunk(struct fh_zone *fz, unsigned long sec);
bool fh_promote_some(struct fh_zone *fz, unsigned long *sec);
bool fh_rotate_some(struct fh_zone *fz, unsigned long *sec, bool all);

static inline unsigned long fh_granule_pages(const struct fh_zone *fz)
{
	return 1UL << fz->order;
}

/* storage.c: where the state is kept */
int fh_storage_create(unsigned int order, struct irq_work *kick);
void fh_storage_destroy(void);
struct fh_zone *fh_zone_alloc(struct zone *zone, unsigned int order);
int fh_zone_add_section(struct fh_zone *fz, unsigned long sec);
void fh_zone_del_section(struct fh_zone *fz, unsigned long sec);
void fh_zone_free(struct fh_zone *fz);

struct fh_zone *fh_next_zone(struct fh_zone *fz);

/* From registering to unregistering; a zone once tracked stays so. */
#define for_each_fh_zone(fz) \
	for (fz = fh_next_zone(NULL); fz; fz = fh_next_zone(fz))

/* collect.c: from free lists to hints and back */
struct page *fh_find_buddy(struct zone *zone, unsigned long pfn,
			   unsigned int order);
int fh_take_block(struct fh_zone *fz, unsigned long pfn, unsigned int order);
void fh_give_block(struct fh_zone *fz, unsigned long pfn, unsigned int order);
void fh_resync(struct fh_zone *fz);
void fh_rewind(struct fh_zone *fz);
long fh_spare_granules(struct fh_zone *fz);
long fh_allowance(struct fh_zone *fz);
bool fh_fill_some(struct fh_zone *fz, struct freehint_hint *hint,
		  unsigned long max_pages);
bool fh_fill(struct fh_zone *fz, struct freehint_hint *hint);
void fh_give_back(struct freehint_hint *hint, bool stale);
unsigned long fh_pcp_pages(struct zone *zone);
bool fh_drain_pcp(struct fh_zone *fz);

/* pacing.c */
void fh_reuse_add(struct fh_reuse *sum, const struct fh_reuse *more);
void fh_pace_bounds(struct fh_pace *pace, unsigned int min_ms,
		    unsigned int max_ms);
void fh_pace_judge(struct fh_pace *pace, const struct fh_reuse *reuse,
		   unsigned long now);

/* debug.c */
#ifdef CONFIG_FREEHINT_DEBUG
void fh_debug_init(void);
#else
static inline void fh_debug_init(void) { }
#endif

#endif /* _MM_FREEHINT_INTERNAL_H */
