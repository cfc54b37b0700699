// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, how much is done in one lock hold.
 *
 * Interrupts are off under a zone's lock. So an irq_work that is queued by what
 * the engine does there runs when the lock is let go of, and counts what was done
 * until then. The engine's own functions take the lock here; what they would do
 * to free lists is replaced by static stubs.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/irq_work.h>
#include <linux/mm.h>

#include "../engine.h"
#include "fake.h"

/* The smallest granule has the most of them in a section. */
#define SMALL_ORDER		4

/* Most that a hold of a resync may look at, see Documentation/mm/freehint.rst. */
#define RESYNC_GRANULES		64

/**
 * struct holds - what was seen of lock holds
 * @end: pending from the first granule of a hold to the hold's end
 * @granules: in this hold
 * @most: in the hold that had the most
 * @total: in all of them
 */
struct holds {
	struct irq_work end;
	unsigned long granules;
	unsigned long most;
	unsigned long total;
};

/**
 * struct held_zone - what a test works with
 * @zone: has a lock and counters, and no pages
 * @fz: tracks it, or what the test has put here instead
 * @hint: holds a whole section
 * @holds: counts
 */
struct held_zone {
	struct zone zone;
	struct fh_zone *fz;
	struct freehint_hint *hint;
	struct holds holds;
};

static void hold_ended(struct irq_work *work)
{
	struct holds *holds = container_of(work, struct holds, end);

	holds->most = max(holds->most, holds->granules);
	holds->total += holds->granules;
	holds->granules = 0;
}

/* Under the lock. */
static void count(unsigned long granules)
{
	struct held_zone *held = kunit_get_current_test()->priv;

	held->holds.granules += granules;
	irq_work_queue(&held->holds.end);
}

static int take_block(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	count(BIT(order - fz->order));
	return order;
}

static void give_block(struct fh_zone *fz, unsigned long pfn, unsigned int order)
{
	count(BIT(order - fz->order));
}

static struct page *find_buddy(struct zone *zone, unsigned long pfn,
			       unsigned int order)
{
	count(1);
	return NULL;
}

static void expect_holds(struct kunit *test, unsigned long most,
			 unsigned long total)
{
	struct held_zone *held = test->priv;

	irq_work_sync(&held->holds.end);
	KUNIT_EXPECT_LE(test, held->holds.most, most);
	KUNIT_EXPECT_EQ(test, held->holds.total, total);
	held->holds.most = 0;
	held->holds.total = 0;
}

/* A section of memory that is free, and has aged. */
static void free_section(struct held_zone *held)
{
	unsigned long pfn;

	for (pfn = at(0); pfn < at(0) + PAGES_PER_SECTION; pfn += MAX_ORDER_NR_PAGES) {
		spin_lock_irq(&held->zone.lock);
		fh_note_free(held->fz, pfn, MAX_PAGE_ORDER);
		spin_unlock_irq(&held->zone.lock);
	}
	fh_promote(held->fz);
}

static void test_take_and_give(struct kunit *test)
{
	struct held_zone *held = test->priv;

	free_section(held);
	KUNIT_ASSERT_TRUE(test, fh_fill(held->fz, held->hint));
	expect_holds(test, FH_HOLD_GRANULES, PAGES_PER_SECTION / GPAGES);

	fh_give_back(held->hint, true);
	expect_holds(test, FH_HOLD_GRANULES, PAGES_PER_SECTION / GPAGES);
}

/* In a section of real memory: there have to be pages to look at. */
static void test_resync(struct kunit *test)
{
	struct page *page = virt_to_page(test->priv);
	unsigned long sec = pfn_to_section_nr(page_to_pfn(page));
	struct held_zone *held = test->priv;
	struct fh_zone *fz;

	fz = fh_zone_alloc(page_zone(page), SMALL_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, fz);
	fh_zone_free(held->fz);
	held->fz = fz;
	KUNIT_ASSERT_EQ(test, fh_zone_add_section(fz, sec), 0);

	fh_resync(fz);
	expect_holds(test, RESYNC_GRANULES, PAGES_PER_SECTION >> SMALL_ORDER);
}

static int holds_init(struct kunit *test)
{
	struct held_zone *held;

	if (!arch_irq_work_has_interrupt())
		kunit_skip(test, "an irq_work waits for the next tick here");

	held = kunit_kzalloc(test, sizeof(*held), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, held);
	test->priv = held;
	held->holds.end = IRQ_WORK_INIT_HARD(hold_ended);
	held->hint = fake_hint_alloc(test, MAX_RANGES);
	held->fz = fake_zone_init(test, &held->zone, 1, 1UL << 24);

	kunit_activate_static_stub(test, fh_take_block, take_block);
	kunit_activate_static_stub(test, fh_give_block, give_block);
	kunit_activate_static_stub(test, fh_find_buddy, find_buddy);
	return 0;
}

static void holds_exit(struct kunit *test)
{
	struct held_zone *held = test->priv;

	if (held) {
		irq_work_sync(&held->holds.end);
		fh_zone_free(held->fz);
	}
}

static struct kunit_case freehint_holds_cases[] = {
	KUNIT_CASE(test_take_and_give),
	KUNIT_CASE(test_resync),
	{ }
};

static struct kunit_suite freehint_holds_suite = {
	.name = "freehint_holds",
	.init = holds_init,
	.exit = holds_exit,
	.test_cases = freehint_holds_cases,
};

kunit_test_suite(freehint_holds_suite);
