// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: a zone for unit tests.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>

#include "fake.h"

/* The free block that covers a pfn; its order is returned, or NO_BLOCK. */
int fake_find(struct fake *fake, unsigned long pfn, unsigned long *head)
{
	int order;

	for (order = UNIT_ORDER; order <= MAX_PAGE_ORDER; order++) {
		*head = ALIGN_DOWN(pfn, 1UL << order);
		if (fake->order[unit(*head)] >= order)
			return fake->order[unit(*head)];
	}
	return NO_BLOCK;
}

/* Takes a part out of a free block; the rest stays free. */
static void fake_carve(struct fake *fake, unsigned long head, int high,
		       unsigned long pfn, int order)
{
	fake->order[unit(head)] = NO_BLOCK;
	while (high > order) {
		unsigned long rest = head + (1UL << --high);

		if (pfn >= rest)
			swap(rest, head);
		fake->order[unit(rest)] = high;
	}
}

static unsigned long fake_merge(struct fake *fake, unsigned long pfn, int *order)
{
	while (*order < MAX_PAGE_ORDER) {
		unsigned long buddy = pfn ^ (1UL << *order);

		if (fake->order[unit(buddy)] != *order)
			break;
		fake->order[unit(buddy)] = NO_BLOCK;
		pfn &= ~(1UL << *order);
		(*order)++;
	}
	fake->order[unit(pfn)] = *order;
	return pfn;
}

/* As __free_one_page() and its hook; the lock is held. */
static void fake_free_locked(struct fake *fake, unsigned long pfn, int order)
{
	pfn = fake_merge(fake, pfn, &order);
	if (order >= (int)G)
		fh_note_free(fake->fz, pfn, order);
}

/* As page_del_and_expand() with its hook; the lock is held. */
static bool fake_alloc_locked(struct fake *fake, unsigned long pfn, int order)
{
	unsigned long head;
	int high = fake_find(fake, pfn, &head);

	if (high < order)
		return false;
	fake_carve(fake, head, high, pfn, order);
	if (high >= (int)G)
		fh_note_taken(fake->fz, pfn, order);
	return true;
}

void fake_free(struct fake *fake, unsigned long pfn, int order)
{
	spin_lock_irq(&fake->zone.lock);
	fake_free_locked(fake, pfn, order);
	spin_unlock_irq(&fake->zone.lock);
}

/* Returns whether there was something to allocate. */
bool fake_alloc(struct fake *fake, unsigned long pfn, int order)
{
	bool done;

	spin_lock_irq(&fake->zone.lock);
	done = fake_alloc_locked(fake, pfn, order);
	spin_unlock_irq(&fake->zone.lock);
	return done;
}

static int fake_take_block(struct fh_zone *fz, unsigned long pfn,
			   unsigned int order)
{
	struct fake *fake = kunit_get_current_test()->priv;
	unsigned long head;
	int high = fake_find(fake, pfn, &head);

	if (high < (int)fz->order)
		return -ENOENT;
	if (pfn == fake->locked)
		return -EBUSY;
	order = min_t(int, order, high);
	fake_carve(fake, head, high, pfn, order);
	atomic_long_sub(BIT(order), &fake->zone.vm_stat[NR_FREE_PAGES]);
	return order;
}

static void fake_give_block(struct fh_zone *fz, unsigned long pfn,
			    unsigned int order)
{
	struct fake *fake = kunit_get_current_test()->priv;

	atomic_long_add(BIT(order), &fake->zone.vm_stat[NR_FREE_PAGES]);
	fake_free_locked(fake, pfn, order);
}

void free_granules(struct fake *fake, unsigned long first, unsigned long nr)
{
	while (nr--)
		fake_free(fake, at(first++), G);
}

void alloc_pages_at(struct fake *fake, unsigned long pfn, int order)
{
	KUNIT_ASSERT_TRUE(kunit_get_current_test(), fake_alloc(fake, pfn, order));
}

void promote(struct fake *fake)
{
	unsigned long sec = 0;

	spin_lock_irq(&fake->zone.lock);
	while (fh_promote_some(fake->fz, &sec))
		;
	spin_unlock_irq(&fake->zone.lock);
}

void rotate(struct fake *fake, bool all)
{
	unsigned long sec = 0;

	spin_lock_irq(&fake->zone.lock);
	while (fh_rotate_some(fake->fz, &sec, all))
		;
	fake->fz->window_end = jiffies + FH_WINDOW;
	spin_unlock_irq(&fake->zone.lock);
}

bool fill(struct fake *fake)
{
	fh_rewind(fake->fz);
	return fh_fill(fake->fz, fake->hint);
}

void answer(struct fake *fake, enum freehint_verdict verdict, bool stale)
{
	unsigned int i;

	for (i = 0; i < fake->hint->nr_ranges; i++)
		fake->hint->ranges[i].verdict = verdict;
	fh_give_back(fake->hint, stale);
}

int state(struct fake *fake, unsigned long granule)
{
	int found = NOTHING;
	enum fh_plane plane;

	spin_lock_irq(&fake->zone.lock);
	for (plane = 0; plane <= FH_NEVER; plane++)
		if (fh_test(fake->fz, at(granule), G, plane))
			found = found == NOTHING ? (int)plane : -1;
	spin_unlock_irq(&fake->zone.lock);
	return found;
}

/**
 * fake_zone_init - make a zone that is tracked, with state for all of it
 * @test: fails if there is no memory
 * @zone: zeroed
 * @sections: size, from FAKE_START on
 * @free_pages: how many pages its counters say are free, in the largest blocks
 *
 * Return: the state, for fh_zone_free().
 */
struct fh_zone *fake_zone_init(struct kunit *test, struct zone *zone,
			       unsigned long sections, unsigned long free_pages)
{
	unsigned long sec;

	spin_lock_init(&zone->lock);
	zone->zone_start_pfn = FAKE_START;
	zone->spanned_pages = sections * PAGES_PER_SECTION;
	atomic_long_set(&zone->vm_stat[NR_FREE_PAGES], free_pages);
	zone->free_area[MAX_PAGE_ORDER].nr_free = free_pages >> MAX_PAGE_ORDER;

	zone->freehint = fh_zone_alloc(zone, G);
	KUNIT_ASSERT_NOT_NULL(test, zone->freehint);
	for (sec = 0; sec < sections; sec++)
		KUNIT_ASSERT_EQ(test, fh_zone_add_section(zone->freehint,
							  FAKE_SECTION + sec), 0);
	return zone->freehint;
}

struct freehint_hint *fake_hint_alloc(struct kunit *test, unsigned int max_ranges)
{
	struct freehint_hint *hint;

	hint = kunit_kzalloc(test, struct_size(hint, ranges, max_ranges), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, hint);
	hint->max_ranges = max_ranges;
	return hint;
}

int fake_init(struct kunit *test)
{
	struct fake *fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fake);
	test->priv = fake;

	fake->order = kunit_kmalloc(test, UNITS, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, fake->order);
	memset(fake->order, NO_BLOCK, UNITS);

	fake->hint = fake_hint_alloc(test, MAX_RANGES);
	/* Plenty, so that the guard is out of the way unless it is tested. */
	fake->fz = fake_zone_init(test, &fake->zone, FAKE_SECTIONS, 1UL << 24);

	kunit_activate_static_stub(test, fh_take_block, fake_take_block);
	kunit_activate_static_stub(test, fh_give_block, fake_give_block);
	return 0;
}

void fake_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	if (fake)
		fh_zone_free(fake->zone.freehint);
}
