// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: how what the engine does grows with the machine.
 *
 * Zones of up to 12 TiB that have state but no memory. What is run is the
 * engine's own code, with the free lists replaced by an allocator that gives
 * whatever is asked for. Each case prints, for each size, how often the lock was
 * taken, how long it was held at most and in all:
 *
 *	scale: SIZE GiB, WHAT: HOLDS holds, MAX ns at most, TOTAL ns
 *
 * Under "qemu -icount shift=0" a nanosecond is an instruction. What is checked
 * is that there are no fewer holds than there must be for none to do more on a
 * large zone than it may on any.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/sizes.h>
#include <linux/timekeeping.h>

#include "fake.h"

/* Ranges in a message of the virtio device. */
#define SCALE_RANGES	256

/* Hints that are filled and answered; the cost is that of one of them. */
#define SCALE_HINTS	16

static const unsigned long scale_gib[] = { 64, 1024, 12288 };

/**
 * struct scale - a zone without memory
 * @zone: has a lock and counters
 * @fz: tracks it
 * @hint: room for SCALE_RANGES ranges
 * @start: its first pfn
 * @end: one past its last pfn
 */
struct scale {
	struct zone zone;
	struct fh_zone *fz;
	struct freehint_hint *hint;
	unsigned long start;
	unsigned long end;
};

/**
 * struct holds - what was seen of the lock
 * @nr: how often it was taken
 * @max_ns: longest hold
 * @total_ns: all of them
 */
struct holds {
	unsigned long nr;
	u64 max_ns;
	u64 total_ns;
};

static int scale_take_block(struct fh_zone *fz, unsigned long pfn,
			    unsigned int order)
{
	return order;
}

static void scale_give_block(struct fh_zone *fz, unsigned long pfn,
			     unsigned int order)
{
}

static u64 hold_begin(struct scale *s)
{
	spin_lock_irq(&s->zone.lock);
	return ktime_get_ns();
}

static void hold_end(struct scale *s, struct holds *holds, u64 begin)
{
	u64 ns = ktime_get_ns() - begin;

	spin_unlock_irq(&s->zone.lock);
	holds->nr++;
	holds->max_ns = max(holds->max_ns, ns);
	holds->total_ns += ns;
}

static void scale_print(struct kunit *test, struct scale *s, const char *what,
			const struct holds *holds)
{
	kunit_info(test, "scale: %lu GiB, %s: %lu holds, %llu ns at most, %llu ns\n",
		   (s->end - s->start) >> (30 - PAGE_SHIFT), what, holds->nr,
		   holds->max_ns, holds->total_ns);
}

static void scale_free(struct scale *s)
{
	if (s) {
		fh_zone_free(s->fz);
		s->fz = NULL;
	}
}

static struct scale *scale_alloc(struct kunit *test, unsigned long gib)
{
	struct scale *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);
	unsigned long sections = (gib << 30) / SZ_1M >>
				 (PFN_SECTION_SHIFT + PAGE_SHIFT - 20);

	KUNIT_ASSERT_NOT_NULL(test, s);
	test->priv = s;
	s->start = FAKE_START;
	s->end = section_nr_to_pfn(FAKE_SECTION + sections);

	s->hint = fake_hint_alloc(test, SCALE_RANGES);
	s->fz = fake_zone_init(test, &s->zone, sections, s->end - s->start);

	kunit_activate_static_stub(test, fh_take_block, scale_take_block);
	kunit_activate_static_stub(test, fh_give_block, scale_give_block);
	return s;
}

/* Frees the first of each @step blocks of the highest order. */
static void scale_free_blocks(struct scale *s, unsigned long step,
			      struct holds *holds)
{
	unsigned long pfn;
	u64 begin;

	for (pfn = s->start; pfn < s->end; pfn += step << MAX_PAGE_ORDER) {
		begin = hold_begin(s);
		fh_note_free(s->fz, pfn, MAX_PAGE_ORDER);
		hold_end(s, holds, begin);
	}
}

static void scale_promote(struct scale *s, struct holds *holds)
{
	unsigned long sec = 0;
	bool more = true;

	while (more) {
		u64 begin = hold_begin(s);

		more = fh_promote_some(s->fz, &sec);
		hold_end(s, holds, begin);
	}
}

static void scale_rotate(struct scale *s, struct holds *holds)
{
	unsigned long sec = 0;
	bool more = true;

	while (more) {
		u64 begin = hold_begin(s);

		more = fh_rotate_some(s->fz, &sec, false);
		hold_end(s, holds, begin);
	}
}

/* Something of each section was discarded a moment ago. */
static void scale_mark_recent(struct scale *s, struct holds *holds)
{
	unsigned long pfn;
	u64 begin;

	for (pfn = s->start; pfn < s->end; pfn += PAGES_PER_SECTION) {
		begin = hold_begin(s);
		fh_mark_recent(s->fz, pfn, G);
		hold_end(s, holds, begin);
	}
}

/* One hold of collecting: as fh_fill() does it, which takes the lock itself. */
static bool scale_fill_some(struct scale *s, struct holds *holds)
{
	u64 begin = hold_begin(s);
	bool more;

	more = fh_fill_some(s->fz, s->hint, FH_HOLD_GRANULES << G);
	hold_end(s, holds, begin);
	return more;
}

static void scale_fill(struct scale *s, struct holds *holds)
{
	s->hint->zone = &s->zone;
	s->hint->nr_ranges = 0;
	s->hint->nr_pages = 0;
	while (s->hint->nr_ranges < SCALE_RANGES &&
	       s->hint->nr_pages < SZ_128M >> PAGE_SHIFT)
		if (!scale_fill_some(s, holds))
			break;
}

static void scale_answer(struct scale *s)
{
	unsigned int i;

	for (i = 0; i < s->hint->nr_ranges; i++)
		s->hint->ranges[i].verdict = FREEHINT_DISCARDED;
	fh_give_back(s->hint, false);
}

/* All of the machine is freed at once, and hinted. */
static void test_all_free(struct kunit *test)
{
	struct holds frees = { }, promotes = { }, fills = { }, rotates = { };
	struct scale *s = scale_alloc(test, *(unsigned long *)test->param_value);
	unsigned int i;

	scale_free_blocks(s, 1, &frees);
	scale_print(test, s, "free, a block of the highest order a hold", &frees);
	scale_promote(s, &promotes);
	scale_print(test, s, "end of a period, all of it young", &promotes);
	KUNIT_EXPECT_GE(test, promotes.nr, s->fz->map->nr / FH_HOLD_CHUNKS);
	for (i = 0; i < SCALE_HINTS; i++) {
		scale_fill(s, &fills);
		KUNIT_EXPECT_EQ(test, s->hint->nr_pages, SZ_128M >> PAGE_SHIFT);
		scale_answer(s);
	}
	scale_print(test, s, "collecting 16 hints of 128 MiB", &fills);
	KUNIT_EXPECT_EQ(test, fills.nr,
			SCALE_HINTS * (SZ_128M >> PAGE_SHIFT >> G) / FH_HOLD_GRANULES);
	scale_rotate(s, &rotates);
	scale_print(test, s, "end of a reuse window", &rotates);
}

/* The end of a reuse window in which something of each section was hinted. */
static void test_all_recent(struct kunit *test)
{
	struct scale *s = scale_alloc(test, *(unsigned long *)test->param_value);
	struct holds marks = { }, rotates = { };

	scale_mark_recent(s, &marks);
	scale_rotate(s, &rotates);
	scale_print(test, s, "end of a reuse window, all sections hinted", &rotates);
	KUNIT_EXPECT_GE(test, rotates.nr, s->fz->map->nr / FH_HOLD_CHUNKS);
}

/* Nothing is pending: what a period of an almost idle guest costs. */
static void test_idle(struct kunit *test)
{
	struct scale *s = scale_alloc(test, *(unsigned long *)test->param_value);
	struct holds promotes = { }, fills = { };

	scale_promote(s, &promotes);
	scale_print(test, s, "end of a period, nothing pending", &promotes);
	scale_fill(s, &fills);
	scale_print(test, s, "collecting, nothing pending", &fills);
	KUNIT_EXPECT_EQ(test, promotes.nr, 1);
	KUNIT_EXPECT_EQ(test, fills.nr, 1);
}

/*
 * Something is pending in every section, and none of it has aged: the walk finds
 * nothing, and must let go of the lock on the way.
 */
static void test_nothing_aged(struct kunit *test)
{
	struct scale *s = scale_alloc(test, *(unsigned long *)test->param_value);
	struct holds frees = { }, fills = { };

	scale_free_blocks(s, PAGES_PER_SECTION >> MAX_PAGE_ORDER, &frees);
	scale_fill(s, &fills);
	scale_print(test, s, "collecting, all sections pending, none aged", &fills);
	KUNIT_EXPECT_EQ(test, s->hint->nr_ranges, 0);
	KUNIT_EXPECT_GE(test, fills.nr, s->fz->map->nr / FH_HOLD_CHUNKS);
}

static void scale_exit(struct kunit *test)
{
	scale_free(test->priv);
}

static void scale_describe(const unsigned long *gib, char *text)
{
	snprintf(text, KUNIT_PARAM_DESC_SIZE, "%lu GiB", *gib);
}

KUNIT_ARRAY_PARAM(scale, scale_gib, scale_describe);

static struct kunit_case freehint_scale_cases[] = {
	KUNIT_CASE_PARAM(test_idle, scale_gen_params),
	KUNIT_CASE_PARAM(test_all_free, scale_gen_params),
	KUNIT_CASE_PARAM(test_nothing_aged, scale_gen_params),
	KUNIT_CASE_PARAM(test_all_recent, scale_gen_params),
	{ }
};

static struct kunit_suite freehint_scale_suite = {
	.name = "freehint_scale",
	.exit = scale_exit,
	.test_cases = freehint_scale_cases,
};

kunit_test_suite(freehint_scale_suite);
