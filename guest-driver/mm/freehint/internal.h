/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: what the parts of mm/freehint/ share.
 *
 * A granule is the unit that the driver asked for; a block is what the buddy allocator
 * has on its lists.
 */
#ifndef _MM_FREEHINT_INTERNAL_H
#define _MM_FREEHINT_INTERNAL_H

#include <linux/freehint.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mmzone.h>
#include <linux/mutex.h>

/*
 * A lock hold ends after this many granules were taken or given back. At less than a
 * microsecond each, interrupts are off for well below 20 us, whatever the size of the
 * machine.
 */
#define FH_HOLD_GRANULES	8UL

/* A lock hold that only looks at states ends after this many. */
#define FH_HOLD_STATES		1024UL

/*
 * This many freed granules make a burst, including what the per-CPU lists hold of it:
 * then draining them is worth it.
 */
#define FH_BURST		16UL

/* A pfn above all memory. */
#define FH_TOP			ULONG_MAX

/**
 * enum fh_state - what is known of a granule
 * @FH_UNKNOWN: in use, or not wholly free
 * @FH_YOUNG: became free in this period
 * @FH_RESTING: became free in the previous period
 * @FH_EARLY: the same, and the guest may want it back soon: to be offered as such
 * @FH_DUE: free for a whole period at least: to be offered
 * @FH_SUSPECT: due, but in a range of its own, as a range that included it was
 *	refused
 * @FH_OUT: on no free list, with the driver
 * @FH_LOST: the same, but not expected back
 * @FH_LAZY: free, and the host may take it; lazy since this settle time
 * @FH_LAZY_LONG: the same, but lazy since the previous settle time
 * @FH_DISCARDED: free, and the host has it
 * @FH_REFUSED: refused; stays so across allocation and free
 * @FH_NR_STATES: how many there are
 */
enum fh_state {
	FH_UNKNOWN = 0,
	FH_YOUNG,
	FH_RESTING,
	FH_EARLY,
	FH_DUE,
	FH_SUSPECT,
	FH_OUT,
	FH_LOST,
	FH_LAZY,
	FH_LAZY_LONG,
	FH_DISCARDED,
	FH_REFUSED,
	FH_NR_STATES,
};

/**
 * enum fh_event - what can happen to a granule
 * @FH_FREED: the last part of it that was in use was freed
 * @FH_ALLOCATED: some of it was allocated
 * @FH_PERIOD: a period is over
 * @FH_PERIOD_EARLY: the same, and what has rested may be wanted back soon
 * @FH_SETTLE: a settle time is over
 * @FH_HURRY: somebody waits for all free memory
 * @FH_TAKE: it is taken for the driver
 * @FH_VANISHED: it was looked for on the free lists, and is not there
 * @FH_RETRY: it is back, see &enum freehint_outcome; so are the next five
 * @FH_RETRY_EARLY: the same, of a batch that was early
 * @FH_DISCARD: see there
 * @FH_REFUSE: see there
 * @FH_SUSPECTED: see there
 * @FH_LEND: see there
 * @FH_BROKEN: it is back, and a page of it has a memory error
 * @FH_LOSE: the driver does not expect it back
 * @FH_FORGET: its state does not hold any more
 * @FH_FOUND: it was found on the free lists
 * @FH_NR_EVENTS: how many there are
 */
enum fh_event {
	FH_FREED,
	FH_ALLOCATED,
	FH_PERIOD,
	FH_PERIOD_EARLY,
	FH_SETTLE,
	FH_HURRY,
	FH_TAKE,
	FH_VANISHED,
	FH_RETRY,
	FH_RETRY_EARLY,
	FH_DISCARD,
	FH_REFUSE,
	FH_SUSPECTED,
	FH_LEND,
	FH_BROKEN,
	FH_LOSE,
	FH_FORGET,
	FH_FOUND,
	FH_NR_EVENTS,
};

extern const u8 fh_next_state[FH_NR_EVENTS][FH_NR_STATES];

/**
 * struct fh_map - the states of a zone's granules, by memory section
 * @first: number of the first section
 * @nr: how many sections the map spans
 * @pending: bitmap of the sections that may have granules that are pending or lazy. It
 *	makes the walk of an idle guest cheap: 12 TiB have 98304 sections, or 1536 longs.
 * @states: per section: &enum fh_state of each granule, a byte each; NULL for a
 *	section that is not online in this zone
 */
struct fh_map {
	unsigned long first;
	unsigned long nr;
	unsigned long *pending;
	u8 *states[] __counted_by(nr);
};

/* The guard left memory of a CMA area, or other memory; or somebody has isolated it. */
#define FH_LEFT_CMA		BIT(0)
#define FH_LEFT_OTHER		BIT(1)
#define FH_LEFT_GUARDED		(FH_LEFT_CMA | FH_LEFT_OTHER)
#define FH_LEFT_ISOLATED	BIT(2)

/**
 * struct fh_zone - what is known of a zone
 * @list: in fh_zones
 * @rcu: to be freed
 * @zone: the zone; its lock protects everything down to @soon_end
 * @order: the granule, as an order of pages
 * @map: the states
 * @nr: granules in each state
 * @busy: there will be another period, even if the hooks do not ask for one
 * @freed: granules freed in this period
 * @taken: granules allocated in this period
 * @burst: granules freed since the per-CPU lists were drained
 * @returned: granules returned as discarded, ever
 * @reused: see &freehint_stats.reused, in granules
 * @spared: see &freehint_stats.spared, in granules
 * @vanished: see &freehint_stats.vanished, in granules
 * @soon_end: until then, in jiffies, allocations of discarded memory count as reused
 *
 * The rest belongs to the driver's thread, except @leaving, which fh_topology protects.
 *
 * @leaving: the zone is about to have no memory: its per-CPU data goes
 * @cursor: what is below this pfn has not been looked at in this period
 * @early_cursor: the same for what is early
 * @put_off: periods in a row in which nothing was taken because much was being freed
 * @turn: when this zone had its last turn
 * @tried: the last collection that tried this zone
 * @progress: something was taken in this period
 * @left: why something that is due was left in this period, FH_LEFT_*
 * @stalls: stalls that this zone has yielded to
 * @yield: for how long this zone gives nothing, in jiffies
 * @yield_end: when that ends, in jiffies
 * @yielded: it has given nothing since it yielded
 * @nr_drains: see &freehint_stats.drains
 * @nr_guarded: see &freehint_stats.guarded
 */
struct fh_zone {
	struct list_head list;
	struct rcu_head rcu;
	struct zone *zone;
	unsigned int order;
	struct fh_map *map;
	unsigned long nr[FH_NR_STATES];
	bool busy;
	unsigned long freed;
	unsigned long taken;
	unsigned long burst;
	u64 returned;
	u64 reused;
	u64 spared;
	u64 vanished;
	unsigned long soon_end;

	bool leaving;
	unsigned long cursor;
	unsigned long early_cursor;
	unsigned int put_off;
	u64 turn;
	u64 tried;
	bool progress;
	unsigned int left;
	unsigned long stalls;
	unsigned long yield;
	unsigned long yield_end;
	bool yielded;
	u64 nr_drains;
	u64 nr_guarded;
};

static inline unsigned long fh_granule_pages(const struct fh_zone *fz)
{
	return 1UL << fz->order;
}

static inline unsigned long fh_nr_young(const struct fh_zone *fz)
{
	return READ_ONCE(fz->nr[FH_YOUNG]) + READ_ONCE(fz->nr[FH_RESTING]);
}

static inline unsigned long fh_nr_due(const struct fh_zone *fz)
{
	return READ_ONCE(fz->nr[FH_EARLY]) + READ_ONCE(fz->nr[FH_DUE]) +
	       READ_ONCE(fz->nr[FH_SUSPECT]);
}

static inline unsigned long fh_nr_lazy(const struct fh_zone *fz)
{
	return READ_ONCE(fz->nr[FH_LAZY]) + READ_ONCE(fz->nr[FH_LAZY_LONG]);
}

/* The zone gives nothing now, or has to give something soon: its periods go on. */
static inline bool fh_is_yielding(const struct fh_zone *fz)
{
	return fz->yielded && time_before(jiffies, fz->yield_end + HZ);
}

/* state.c: the life of a granule; all but the first two run under zone->lock */
void fh_wake_whom(void (*wake)(void *data), void *data);
void fh_wake_nobody(void);
unsigned int fh_event(struct fh_zone *fz, unsigned long pfn, unsigned int order,
		      enum fh_event event);
void fh_freed(struct fh_zone *fz, unsigned long pfn, unsigned int order);
void fh_allocated(struct fh_zone *fz, unsigned long pfn, unsigned int order);
enum fh_state fh_state(struct fh_zone *fz, unsigned long pfn);
bool fh_any_out(struct fh_zone *fz, unsigned long pfn, unsigned long end);
bool fh_find_due(struct fh_zone *fz, unsigned long *pfn, bool early);
bool fh_age_some(struct fh_zone *fz, unsigned long *sec, enum fh_event event);

/* storage.c: where states are kept, and for which memory */
extern struct list_head fh_zones;
extern struct mutex fh_topology;
int fh_track(unsigned int order);
void fh_untrack(void);
struct fh_zone *fh_zone_alloc(struct zone *zone, unsigned int order);
int fh_zone_add_section(struct fh_zone *fz, unsigned long sec);
void fh_zone_del_section(struct fh_zone *fz, unsigned long sec);
void fh_zone_free(struct fh_zone *fz);

/**
 * struct fh_room - how many granules may be taken
 * @cma: of CMA areas
 * @other: of other memory: not every allocation can use CMA, so free memory there
 *	does not help the others
 */
struct fh_room {
	long cma;
	long other;
};

/* guard.c: how much may be taken now */
struct fh_room fh_room(const struct fh_zone *fz);
unsigned long fh_count_stalls(void);
bool fh_yields(struct fh_zone *fz, unsigned long stalls);
bool fh_can_give(const struct fh_zone *fz);
unsigned long fh_stuck_pages(const struct fh_zone *fz);

/* buddy.c: off the free lists, and back */
struct page *fh_find_buddy(struct zone *zone, unsigned long pfn,
			   unsigned int order);
bool fh_collect_zone(struct fh_zone *fz, struct freehint_batch *batch,
		     unsigned long max_pages, const unsigned long *stalls);
void fh_return_range(struct fh_zone *fz, const struct freehint_range *range,
		     bool early);
void fh_find_free(struct fh_zone *fz);

/* drain.c: per-CPU lists */
#ifdef CONFIG_FREEHINT_DRAIN
bool fh_pcp_is_full(const struct fh_zone *fz);
bool fh_drain(struct fh_zone *fz, bool full);
void fh_drain_zone(struct zone *zone);
#else
static inline bool fh_pcp_is_full(const struct fh_zone *fz)
{
	return false;
}

static inline bool fh_drain(struct fh_zone *fz, bool full)
{
	return false;
}
#endif

/* debug.c */
#ifdef CONFIG_FREEHINT_DEBUG
void fh_debug_init(void);
#else
static inline void fh_debug_init(void) { }
#endif

#endif /* _MM_FREEHINT_INTERNAL_H */
