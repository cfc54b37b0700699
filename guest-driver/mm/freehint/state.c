// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: the life of a granule.
 *
 * Each granule has a state of one byte. The table below gives the state after each event.
 * States are advisory: they say where to look, and the free lists say what is true
 * (buddy.c). So an event may be missed, unless it frees memory.
 *
 * All of this runs under zone->lock, in whatever context the allocator holds it:
 * nothing may allocate, sleep, print or arm a timer.
 */
#include <linux/bitmap.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/lockdep.h>
#include <linux/minmax.h>
#include <linux/mm.h>

#define CREATE_TRACE_POINTS
#include <trace/events/freehint.h>

#include "hooks.h"
#include "internal.h"

DEFINE_STATIC_KEY_FALSE(freehint_key);
unsigned int freehint_order __read_mostly = NR_PAGE_ORDERS;

/* Calls the driver, which cannot be done under a zone's lock. */
static void (*fh_wake_user)(void *data);
static void *fh_wake_data;

static void fh_do_wake(struct irq_work *work)
{
	fh_wake_user(fh_wake_data);
}

static struct irq_work fh_wake = IRQ_WORK_INIT(fh_do_wake);

/* This event cannot happen in this state. */
#define ERR	FH_NR_STATES

#define LIFE(unknown, young, resting, early, due, suspect, out, lost, lazy, lazy_long, \
	     discarded, refused)						\
	{ [FH_UNKNOWN] = unknown, [FH_YOUNG] = young, [FH_RESTING] = resting,	\
	  [FH_EARLY] = early, [FH_DUE] = due, [FH_SUSPECT] = suspect,		\
	  [FH_OUT] = out, [FH_LOST] = lost, [FH_LAZY] = lazy,			\
	  [FH_LAZY_LONG] = lazy_long, [FH_DISCARDED] = discarded,		\
	  [FH_REFUSED] = refused }

/* The state after an event, by event and state. */
const u8 fh_next_state[FH_NR_EVENTS][FH_NR_STATES] = {
#define U FH_UNKNOWN
#define Y FH_YOUNG
#define R FH_RESTING
#define E FH_EARLY
#define D FH_DUE
#define S FH_SUSPECT
#define O FH_OUT
#define L FH_LOST
#define Z FH_LAZY
#define W FH_LAZY_LONG
#define H FH_DISCARDED
#define N FH_REFUSED
			      /* U    Y    R    E    D    S    O    L    Z    W    H    N */
	[FH_FREED]        = LIFE(Y,   Y,   Y,   Y,   Y,   Y,   ERR, ERR, Y,   Y,   Y,   N),
	[FH_ALLOCATED]    = LIFE(U,   U,   U,   U,   U,   U,   ERR, ERR, U,   U,   U,   N),
	[FH_PERIOD]       = LIFE(U,   R,   D,   D,   D,   S,   O,   L,   Z,   W,   H,   N),
	[FH_PERIOD_EARLY] = LIFE(U,   R,   E,   E,   D,   S,   O,   L,   Z,   W,   H,   N),
	[FH_SETTLE]       = LIFE(U,   Y,   R,   E,   D,   S,   O,   L,   W,   D,   H,   N),
	[FH_HURRY]        = LIFE(U,   D,   D,   D,   D,   S,   O,   L,   D,   D,   H,   N),
	[FH_TAKE]         = LIFE(ERR, ERR, ERR, O,   O,   O,   ERR, ERR, ERR, ERR, ERR, ERR),
	[FH_VANISHED]     = LIFE(U,   U,   U,   U,   U,   U,   ERR, ERR, U,   U,   U,   N),
	[FH_RETRY]        = LIFE(D,   ERR, ERR, ERR, ERR, ERR, D,   D,   ERR, ERR, ERR, ERR),
	[FH_RETRY_EARLY]  = LIFE(E,   ERR, ERR, ERR, ERR, ERR, E,   E,   ERR, ERR, ERR, ERR),
	[FH_DISCARD]      = LIFE(H,   ERR, ERR, ERR, ERR, ERR, H,   H,   ERR, ERR, ERR, ERR),
	[FH_REFUSE]       = LIFE(N,   ERR, ERR, ERR, ERR, ERR, N,   N,   ERR, ERR, ERR, ERR),
	[FH_SUSPECTED]    = LIFE(S,   ERR, ERR, ERR, ERR, ERR, S,   S,   ERR, ERR, ERR, ERR),
	[FH_LEND]         = LIFE(Z,   ERR, ERR, ERR, ERR, ERR, Z,   Z,   ERR, ERR, ERR, ERR),
	[FH_BROKEN]       = LIFE(U,   ERR, ERR, ERR, ERR, ERR, U,   U,   ERR, ERR, ERR, ERR),
	[FH_LOSE]         = LIFE(ERR, ERR, ERR, ERR, ERR, ERR, L,   ERR, ERR, ERR, ERR, ERR),
	[FH_FORGET]       = LIFE(U,   U,   U,   U,   U,   U,   O,   L,   U,   U,   U,   U),
	[FH_FOUND]        = LIFE(D,   D,   D,   D,   D,   D,   ERR, ERR, D,   D,   D,   D),
#undef U
#undef Y
#undef R
#undef E
#undef D
#undef S
#undef O
#undef L
#undef Z
#undef W
#undef H
#undef N
};

/**
 * fh_wake_whom - let memory that is freed wake somebody
 * @wake: see freehint_start()
 * @data: for @wake
 *
 * Context: the key is off.
 */
void fh_wake_whom(void (*wake)(void *data), void *data)
{
	fh_wake_user = wake;
	fh_wake_data = data;
}

/**
 * fh_wake_nobody - wait until a wakeup under way has ended
 *
 * Context: process context. The key is off.
 */
void fh_wake_nobody(void)
{
	irq_work_sync(&fh_wake);
}

static bool fh_is_due(enum fh_state state, bool early)
{
	return early ? state == FH_EARLY :
		       state == FH_DUE || state == FH_SUSPECT;
}

static bool fh_is_pending(enum fh_state state)
{
	return state >= FH_YOUNG && state <= FH_SUSPECT;
}

/* Time changes this state: the walk has to look at the granule's section. */
static bool fh_is_moving(enum fh_state state)
{
	return fh_is_pending(state) || state == FH_LAZY || state == FH_LAZY_LONG;
}

static unsigned long fh_section_granules(const struct fh_zone *fz)
{
	return PAGES_PER_SECTION >> fz->order;
}

/* The states from @pfn to the end of its section; NULL if they are not tracked. */
static u8 *fh_states(const struct fh_zone *fz, unsigned long pfn)
{
	unsigned long sec;

	lockdep_assert_held(&fz->zone->lock);

	if (!fz->map)
		return NULL;
	sec = pfn_to_section_nr(pfn) - fz->map->first;
	if (sec >= fz->map->nr || !fz->map->states[sec])
		return NULL;
	return fz->map->states[sec] + ((pfn & ~PAGE_SECTION_MASK) >> fz->order);
}

static enum fh_state fh_change(struct fh_zone *fz, u8 *state,
			       enum fh_event event)
{
	enum fh_state old = *state, new = fh_next_state[event][old];

	/* This must never be: a page that is both out and on a free list. */
	VM_WARN_ONCE(new == ERR, "freehint: event %u in state %u\n", event, old);
	if (new == ERR)
		return old;
	fz->nr[old]--;
	fz->nr[new]++;
	*state = new;
	return old;
}

static unsigned int fh_nr_granules(const struct fh_zone *fz, unsigned int order)
{
	return order > fz->order ? 1U << (order - fz->order) : 1;
}

/**
 * fh_event - something happens to the granules of a block
 * @fz: their zone
 * @pfn: the block's first page
 * @order: its order; if below that of a granule, the whole granule is meant
 * @event: what happens
 *
 * Blocks are aligned to their size, so none is in two sections.
 *
 * Return: how many of the granules were pending before.
 */
unsigned int fh_event(struct fh_zone *fz, unsigned long pfn, unsigned int order,
		      enum fh_event event)
{
	unsigned int nr = fh_nr_granules(fz, order), pending = 0, i;
	u8 *states = fh_states(fz, pfn);
	bool is_moving = false;

	if (!states)
		return 0;
	for (i = 0; i < nr; i++) {
		pending += fh_is_pending(fh_change(fz, &states[i], event));
		is_moving |= fh_is_moving(states[i]);
	}
	if (is_moving)
		__set_bit(pfn_to_section_nr(pfn) - fz->map->first,
			  fz->map->pending);
	return pending;
}

/**
 * fh_freed - the allocator has freed pages that made granules whole
 * @fz: their zone
 * @pfn: the first page that was freed
 * @order: how much was freed
 */
void fh_freed(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	unsigned int nr = fh_nr_granules(fz, order);

	fh_event(fz, pfn, order, FH_FREED);
	fz->freed += nr;
	fz->burst += nr;
	trace_freehint_pending(pfn, nr);
	if (fz->busy)
		return;
	/*
	 * Do not wake the driver's thread here: that takes locks, and queueing work may
	 * allocate with debugging on. Neither may happen under zone->lock.
	 */
	fz->busy = true;
	irq_work_queue(&fh_wake);
}

/**
 * fh_allocated - the allocator has taken pages off the free lists
 * @fz: their zone
 * @pfn: the first of them
 * @order: how many
 */
void fh_allocated(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	unsigned long discarded = fz->nr[FH_DISCARDED], lazy = fh_nr_lazy(fz);
	unsigned long spared;

	spared = fh_event(fz, pfn, order, FH_ALLOCATED);
	discarded -= fz->nr[FH_DISCARDED];
	/* As a rule, the host has not taken what is lazy; settled, it would be gone. */
	spared += lazy - fh_nr_lazy(fz);
	fz->taken += spared + discarded;
	fz->spared += spared;
	/*
	 * The free lists decide which of the memory that the host has is used first. So
	 * this counts all of it: what went to the host last could have been used instead.
	 */
	if (discarded && time_before(jiffies, fz->soon_end))
		fz->reused += discarded;
}

void __freehint_freed(struct zone *zone)
{
	if (zone->freehint)
		fh_freed(zone->freehint, zone->freehint_pfn,
			 zone->freehint_order);
}

void __freehint_allocated(struct zone *zone, unsigned long pfn,
			  unsigned int order)
{
	if (zone->freehint)
		fh_allocated(zone->freehint, pfn, order);
}

/**
 * fh_state - the state of a granule
 * @fz: its zone
 * @pfn: its first page
 */
enum fh_state fh_state(struct fh_zone *fz, unsigned long pfn)
{
	u8 *states = fh_states(fz, pfn);

	return states ? *states : FH_UNKNOWN;
}

/**
 * fh_any_out - does the driver have any granule of a range that is expected back
 * @fz: the zone
 * @pfn: first page
 * @end: one past the last page
 */
bool fh_any_out(struct fh_zone *fz, unsigned long pfn, unsigned long end)
{
	while (pfn < end && fz->nr[FH_OUT]) {
		unsigned long stop = min(end, SECTION_ALIGN_UP(pfn + 1));
		unsigned long nr = ((stop - 1) >> fz->order) - (pfn >> fz->order) + 1;
		u8 *states = fh_states(fz, pfn);

		if (states && memchr(states, FH_OUT, nr))
			return true;
		pfn = stop;
	}
	return false;
}

/**
 * fh_find_due - find the next granule that is due, by descending address
 * @fz: the zone
 * @pfn: looks below this; becomes the granule's first page, or where to go on, or 0
 *	if there is no more
 * @early: find one that is early, or one that is not
 *
 * Looks at FH_HOLD_STATES granules at most, as many can be pending without any being due.
 *
 * Return: true if there is one at @pfn.
 */
bool fh_find_due(struct fh_zone *fz, unsigned long *pfn, bool early)
{
	const struct fh_map *map = fz->map;
	unsigned long budget = FH_HOLD_STATES;
	unsigned long sec, start, i;

	lockdep_assert_held(&fz->zone->lock);

	*pfn = min(*pfn, section_nr_to_pfn(map->first + map->nr));
	while (*pfn > section_nr_to_pfn(map->first)) {
		sec = pfn_to_section_nr(*pfn - 1) - map->first;
		if (!test_bit(sec, map->pending)) {
			sec = find_last_bit(map->pending, sec);
			/* No section below has one. */
			if (!test_bit(sec, map->pending))
				break;
			*pfn = section_nr_to_pfn(map->first + sec + 1);
		}
		start = section_nr_to_pfn(map->first + sec);
		for (i = (*pfn - start) >> fz->order; i; i--) {
			if (!budget--)
				return false;
			*pfn = start + ((i - 1) << fz->order);
			if (map->states[sec] &&
			    fh_is_due(map->states[sec][i - 1], early))
				return true;
		}
	}
	*pfn = 0;
	return false;
}

static bool fh_age_states(struct fh_zone *fz, u8 *states, unsigned long nr,
			  enum fh_event event)
{
	bool moving = false;

	for (; nr; nr--, states++) {
		if (!fh_is_moving(*states))
			continue;
		fh_change(fz, states, event);
		moving = true;
	}
	return moving;
}

/**
 * fh_age_some - let some of what is pending or lazy age, for one lock hold
 * @fz: the zone
 * @sec: index in the map of the section to go on with; start with 0
 * @event: FH_PERIOD, FH_PERIOD_EARLY, FH_SETTLE or FH_HURRY
 *
 * Return: true if there is more to do.
 */
bool fh_age_some(struct fh_zone *fz, unsigned long *sec, enum fh_event event)
{
	const unsigned long granules = fh_section_granules(fz);
	unsigned long budget = max(FH_HOLD_STATES / granules, 1UL);
	struct fh_map *map = fz->map;

	lockdep_assert_held(&fz->zone->lock);

	for (; budget; budget--, ++*sec) {
		*sec = find_next_bit(map->pending, map->nr, *sec);
		if (*sec >= map->nr)
			return false;
		if (!map->states[*sec] ||
		    !fh_age_states(fz, map->states[*sec], granules, event))
			__clear_bit(*sec, map->pending);
	}
	return true;
}
