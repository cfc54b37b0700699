// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: how lock holds grow with the machine, in zones of up to 12 TiB that
 * have states but no memory. For each size, each case prints how often the lock is taken,
 * for how long at most, and for how long in total:
 *
 *	scale: SIZE GiB, WHAT: HOLDS holds, MAX ns at most, TOTAL ns
 *
 * Under "qemu -icount shift=0" a nanosecond is an instruction.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/timekeeping.h>

#include "../internal.h"

#define ORDER		9U
#define G		(1UL << ORDER)

/* A section above all memory of a guest that runs these tests. */
#define SEC		100000UL

static const unsigned long scale_gib[] = { 64, 1024, 12288 };

/**
 * struct scale - a zone without memory, and what was seen of its lock
 * @zone: the zone
 * @fz: tracks it
 * @gib: its size
 * @start: its first pfn
 * @end: one past its last pfn
 * @begin: when the lock was taken
 * @holds: how often it was taken
 * @max: longest hold, in ns
 * @total: all holds together, in ns
 */
struct scale {
	struct zone zone;
	struct fh_zone *fz;
	unsigned long gib;
	unsigned long start;
	unsigned long end;
	u64 begin;
	unsigned long holds;
	u64 max;
	u64 total;
};

static void hold(struct scale *s)
{
	spin_lock_irq(&s->zone.lock);
	s->begin = ktime_get_ns();
}

static void let_go(struct scale *s)
{
	u64 ns = ktime_get_ns() - s->begin;

	spin_unlock_irq(&s->zone.lock);
	s->holds++;
	s->max = max(s->max, ns);
	s->total += ns;
}

static void report(struct kunit *test, const char *what)
{
	struct scale *s = test->priv;

	kunit_info(test, "scale: %lu GiB, %s: %lu holds, %llu ns at most, %llu ns\n",
		   s->gib, what, s->holds, s->max, s->total);
	s->holds = 0;
	s->max = 0;
	s->total = 0;
}

static struct scale *zone_without_memory(struct kunit *test)
{
	struct scale *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);
	unsigned long sections, sec;

	KUNIT_ASSERT_NOT_NULL(test, s);
	test->priv = s;
	s->gib = *(const unsigned long *)test->param_value;
	sections = s->gib << (30 - PAGE_SHIFT - PFN_SECTION_SHIFT);
	s->start = section_nr_to_pfn(SEC);
	s->end = section_nr_to_pfn(SEC + sections);
	spin_lock_init(&s->zone.lock);
	s->zone.zone_start_pfn = s->start;
	s->zone.spanned_pages = s->end - s->start;
	s->fz = fh_zone_alloc(&s->zone, ORDER);
	KUNIT_ASSERT_NOT_NULL(test, s->fz);
	/* Nobody is to be woken. */
	s->fz->busy = true;
	for (sec = SEC; sec < SEC + sections; sec++)
		KUNIT_ASSERT_EQ(test, fh_zone_add_section(s->fz, sec), 0);
	return s;
}

static void scale_exit(struct kunit *test)
{
	struct scale *s = test->priv;

	if (!s || !s->fz)
		return;
	fh_zone_free(s->fz);
	/* It is freed after a grace period, but points to what is about to go. */
	rcu_barrier();
}

static void end_period(struct scale *s, enum fh_event event)
{
	unsigned long sec = 0;
	bool more = true;

	while (more) {
		hold(s);
		more = fh_age_some(s->fz, &sec, event);
		let_go(s);
	}
}

/* Do to states what one lock hold of a collection does. Returns the granules taken. */
static unsigned long take_some(struct scale *s)
{
	unsigned long *pfn = &s->fz->cursor, taken = 0;

	hold(s);
	while (taken < FH_HOLD_GRANULES && fh_find_due(s->fz, pfn, false)) {
		fh_event(s->fz, *pfn, ORDER, FH_TAKE);
		taken++;
	}
	let_go(s);
	return taken;
}

/* All memory of the machine is freed at once, and hinted. */
static void test_all_free(struct kunit *test)
{
	struct scale *s = zone_without_memory(test);
	unsigned long pfn, granules = (s->end - s->start) >> ORDER, taken = 0;

	for (pfn = s->start; pfn < s->end; pfn += MAX_ORDER_NR_PAGES) {
		hold(s);
		fh_freed(s->fz, pfn, MAX_PAGE_ORDER);
		let_go(s);
	}
	report(test, "free, a block of the highest order a hold");
	end_period(s, FH_PERIOD);
	KUNIT_EXPECT_GE(test, s->holds, granules / FH_HOLD_STATES);
	report(test, "end of a period, all of it young");
	end_period(s, FH_PERIOD);
	KUNIT_EXPECT_EQ(test, s->fz->nr[FH_DUE], granules);
	report(test, "end of a period, all of it at rest");

	s->fz->cursor = FH_TOP;
	while (s->fz->nr[FH_DUE])
		taken += take_some(s);
	KUNIT_EXPECT_EQ(test, taken, granules);
	KUNIT_EXPECT_GE(test, s->holds, granules / FH_HOLD_GRANULES);
	report(test, "taking all of it, states only");
}

/* A lock hold that looks for due granules skips others, but not for long. */
static void test_none_due(struct kunit *test)
{
	struct scale *s = zone_without_memory(test);
	unsigned long pfn;

	spin_lock_irq(&s->zone.lock);
	for (pfn = s->start; pfn < s->end; pfn += MAX_ORDER_NR_PAGES)
		fh_freed(s->fz, pfn, MAX_PAGE_ORDER);
	spin_unlock_irq(&s->zone.lock);
	s->fz->cursor = FH_TOP;
	while (s->fz->cursor)
		KUNIT_ASSERT_EQ(test, take_some(s), 0);
	KUNIT_EXPECT_GE(test, s->holds,
			((s->end - s->start) >> ORDER) / FH_HOLD_STATES);
	report(test, "looking for what is due, all of it young");
}

/* The walk over one bit per section, when there is nothing to do. */
static void test_idle(struct kunit *test)
{
	struct scale *s = zone_without_memory(test);

	end_period(s, FH_PERIOD);
	KUNIT_EXPECT_EQ(test, s->holds, 1);
	report(test, "end of a period, nothing pending");
	s->fz->cursor = FH_TOP;
	take_some(s);
	KUNIT_EXPECT_EQ(test, s->fz->cursor, 0);
	report(test, "looking for what is due, nothing pending");
}

static void gib_desc(const unsigned long *gib, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%lu GiB", *gib);
}

KUNIT_ARRAY_PARAM(scale, scale_gib, gib_desc);

static struct kunit_case scale_cases[] = {
	KUNIT_CASE_PARAM(test_all_free, scale_gen_params),
	KUNIT_CASE_PARAM(test_none_due, scale_gen_params),
	KUNIT_CASE_PARAM(test_idle, scale_gen_params),
	{ }
};

static struct kunit_suite scale_suite = {
	.name = "freehint_scale",
	.exit = scale_exit,
	.test_cases = scale_cases,
};
kunit_test_suite(scale_suite);
