// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of the guard. The zone is fake, and made of figures.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/vmstat.h>

#include "../internal.h"

#define ORDER	9U
#define G	(1L << ORDER)

/* Granules of the zone, and how many of them are free and whole. */
#define ALL	2000
#define FREE	1000

/* How many can be out of that zone, and of a large one. */
#define SHARE	(FREE / 8)
#define MOST	128
/* And of a zone below its reserve. */
#define RESERVED_SHARE	8

struct fake {
	struct zone zone;
	struct per_cpu_zonestat __percpu *zonestats;
	struct fh_zone fz;
};

/* Set how many granules are free, and how many of them are whole. */
static void set_free(struct fake *fake, long granules, long whole)
{
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_PAGES], granules * G);
	fake->zone.free_area[ORDER].nr_free = whole % 2;
	fake->zone.free_area[ORDER + 1].nr_free = whole / 2;
}

static void set_high_watermark(struct fake *fake, long pages)
{
	fake->zone._watermark[WMARK_HIGH] = pages;
}

static int fake_init(struct kunit *test)
{
	struct fake *fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fake);
	test->priv = fake;
	fake->zonestats = alloc_percpu(struct per_cpu_zonestat);
	KUNIT_ASSERT_NOT_NULL(test, fake->zonestats);
	fake->zone.per_cpu_zonestats = fake->zonestats;
	atomic_long_set(&fake->zone.managed_pages, ALL * G);
	set_free(fake, FREE, FREE);
	fake->fz.zone = &fake->zone;
	fake->fz.order = ORDER;
	fake->fz.yield_end = jiffies;
	return 0;
}

static void fake_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	free_percpu(fake->zonestats);
}

static long other(struct fake *fake)
{
	return fh_room(&fake->fz).other;
}

/* Only a share of what is free can be out at a time, and not more than a limit. */
static void test_share_of_a_zone(struct kunit *test)
{
	struct fake *fake = test->priv;

	KUNIT_EXPECT_EQ(test, other(fake), SHARE);
	KUNIT_EXPECT_EQ(test, fh_room(&fake->fz).cma, SHARE);
	/* What is out is not on the lists. */
	set_free(fake, FREE - 100, FREE - 100);
	fake->fz.nr[FH_OUT] = 100;
	KUNIT_EXPECT_EQ(test, other(fake), SHARE - 100);
	set_free(fake, FREE - SHARE, FREE - SHARE);
	fake->fz.nr[FH_OUT] = SHARE;
	KUNIT_EXPECT_LE(test, other(fake), 0);

	fake->fz.nr[FH_OUT] = 0;
	set_free(fake, 100 * FREE, 100 * FREE);
	KUNIT_EXPECT_EQ(test, other(fake), MOST);
}

/* Some whole granules stay, however much is free in pieces. */
static void test_whole_granules(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_free(fake, FREE, 160);
	KUNIT_EXPECT_EQ(test, other(fake), 20);
	set_free(fake, FREE, 9);
	KUNIT_EXPECT_EQ(test, other(fake), 1);
	set_free(fake, FREE, 8);
	KUNIT_EXPECT_LE(test, other(fake), 0);
}

static void test_watermark(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_high_watermark(fake, (FREE - 1) * G);
	KUNIT_EXPECT_EQ(test, other(fake), 1);
	set_high_watermark(fake, (FREE - 1) * G + 1);
	KUNIT_EXPECT_LE(test, other(fake), 0);
	set_high_watermark(fake, (FREE - 1) * G);
	fake->zone.watermark_boost = 1;
	KUNIT_EXPECT_LE(test, other(fake), 0);
}

/* Pages that most allocations cannot have are no headroom. */
static void test_highatomic(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_high_watermark(fake, (FREE - 10) * G);
	KUNIT_EXPECT_GT(test, other(fake), 0);
	fake->zone.nr_free_highatomic = 10 * G;
	KUNIT_EXPECT_LE(test, other(fake), 0);
}

/* Near the watermarks, what the CPUs have counted and not added up yet matters. */
static void test_drift(struct kunit *test)
{
	struct fake *fake = test->priv;
	int cpu;

	set_high_watermark(fake, (FREE - 1) * G);
	for_each_possible_cpu(cpu)
		per_cpu_ptr(fake->zonestats, cpu)->vm_stat_diff[NR_FREE_PAGES] = -100;
	KUNIT_EXPECT_EQ(test, other(fake), 1);
	fake->zone.percpu_drift_mark = FREE * G;
	KUNIT_EXPECT_EQ(test, other(fake), 1);
	fake->zone.percpu_drift_mark = FREE * G + 1;
	KUNIT_EXPECT_LE(test, other(fake), 0);
}

/* Free memory of CMA areas is no reserve for allocations that cannot use it. */
static void test_cma_is_apart(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_high_watermark(fake, 20 * G);
	atomic_long_set(&fake->zone.vm_stat[NR_FREE_CMA_PAGES], (FREE - 10) * G);
	KUNIT_EXPECT_GT(test, fh_room(&fake->fz).cma, 100);
	KUNIT_EXPECT_LE(test, other(fake), 0);
	set_high_watermark(fake, 2 * G);
	KUNIT_EXPECT_EQ(test, other(fake), 1);
	/* Room for one kind is no reason to look for the other. */
	set_high_watermark(fake, 20 * G);
	fake->fz.nr[FH_DUE] = 1;
	fake->fz.left = FH_LEFT_OTHER;
	KUNIT_EXPECT_FALSE(test, fh_can_give(&fake->fz));
	fake->fz.left = FH_LEFT_CMA;
	KUNIT_EXPECT_TRUE(test, fh_can_give(&fake->fz));
}

/* What is reserved from users of other zones is hinted, a little at a time. */
static void test_lowmem_reserve(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake->zone.lowmem_reserve[MAX_NR_ZONES - 1] = (FREE - 16) * G;
	KUNIT_EXPECT_EQ(test, other(fake), 2);
	fake->zone.lowmem_reserve[MAX_NR_ZONES - 1] = ALL * G;
	KUNIT_EXPECT_EQ(test, other(fake), RESERVED_SHARE);
	fake->fz.nr[FH_OUT] = RESERVED_SHARE;
	KUNIT_EXPECT_LE(test, other(fake), 0);
	fake->fz.nr[FH_OUT] = 0;
	set_high_watermark(fake, FREE * G);
	KUNIT_EXPECT_LE(test, other(fake), 0);
}

/* Waits for memory are counted, be it for reclaim or for compaction. */
static void test_stalls_are_counted(struct kunit *test)
{
	unsigned long before = fh_count_stalls();

	count_vm_event(ALLOCSTALL_MOVABLE);
	KUNIT_EXPECT_EQ(test, fh_count_stalls(), before + 1);
	count_vm_event(ALLOCSTALL_NORMAL);
	KUNIT_EXPECT_EQ(test, fh_count_stalls(), before + 2);
	count_vm_events(ALLOCSTALL_MOVABLE, -1);
	count_vm_events(ALLOCSTALL_NORMAL, -1);
#ifdef CONFIG_COMPACTION
	count_vm_event(COMPACTSTALL);
	KUNIT_EXPECT_EQ(test, fh_count_stalls(), before + 1);
	count_vm_events(COMPACTSTALL, -1);
#endif
}

/* A zone that is short yields to those who wait: once, and for a while. */
static void test_a_short_zone_yields(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = &fake->fz;

	set_free(fake, 100, 100);
	KUNIT_EXPECT_FALSE(test, fh_yields(fz, 0));
	KUNIT_EXPECT_TRUE(test, fh_yields(fz, 1));
	KUNIT_EXPECT_TRUE(test, fh_yields(fz, 1));
	KUNIT_EXPECT_TRUE(test, fh_is_yielding(fz));
	KUNIT_EXPECT_FALSE(test, time_after(fz->yield_end, jiffies + HZ));

	/* While pressure goes on, it gives something in between. */
	fz->yield_end = jiffies;
	KUNIT_EXPECT_FALSE(test, fh_yields(fz, 2));
	fz->yielded = false;
	KUNIT_EXPECT_FALSE(test, fh_yields(fz, 2));
	KUNIT_EXPECT_TRUE(test, fh_yields(fz, 3));
}

/* A zone that stays short gives something less and less often. */
static void test_lasting_pressure(struct kunit *test)
{
	static const unsigned long seconds[] = { 1, 2, 4, 8, 8 };
	struct fake *fake = test->priv;
	struct fh_zone *fz = &fake->fz;
	unsigned long stalls = 0;
	unsigned int i;

	set_free(fake, 100, 100);
	for (i = 0; i < ARRAY_SIZE(seconds); i++) {
		KUNIT_EXPECT_TRUE(test, fh_yields(fz, ++stalls));
		KUNIT_EXPECT_EQ(test, fz->yield, seconds[i] * HZ);
		fz->yield_end = jiffies;
		fz->yielded = false;
	}
	/* After a pause, it yields for the shortest time again. */
	fz->yield_end = jiffies - fz->yield;
	KUNIT_EXPECT_TRUE(test, fh_yields(fz, ++stalls));
	KUNIT_EXPECT_EQ(test, fz->yield, HZ);
}

/* A zone that is not short does not yield: that would not help those who wait. */
static void test_others_do_not_yield(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = &fake->fz;

	KUNIT_EXPECT_FALSE(test, fh_yields(fz, 1));
	/* A wait from before it became short does not count. */
	set_free(fake, 100, 100);
	KUNIT_EXPECT_FALSE(test, fh_yields(fz, 1));
	KUNIT_EXPECT_TRUE(test, fh_yields(fz, 2));
}

/* Memory that is free in pieces does not help those who wait for a whole block. */
static void test_pieces_are_short(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_free(fake, FREE, 100);
	KUNIT_EXPECT_TRUE(test, fh_yields(&fake->fz, 1));
}

/* What was left can be taken when the reason is gone. */
static void test_what_was_left(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = &fake->fz;

	fz->left = FH_LEFT_GUARDED | FH_LEFT_ISOLATED;
	KUNIT_EXPECT_FALSE(test, fh_can_give(fz));
	fz->nr[FH_SUSPECT] = 1;
	fz->left = 0;
	KUNIT_EXPECT_FALSE(test, fh_can_give(fz));
	fz->left = FH_LEFT_GUARDED;
	KUNIT_EXPECT_TRUE(test, fh_can_give(fz));
	fz->yield_end = jiffies + HZ;
	KUNIT_EXPECT_FALSE(test, fh_can_give(fz));
	fz->yield_end = jiffies;
	set_high_watermark(fake, FREE * G);
	KUNIT_EXPECT_FALSE(test, fh_can_give(fz));
	fz->left = FH_LEFT_ISOLATED;
	KUNIT_EXPECT_TRUE(test, fh_can_give(fz));
	fz->leaving = true;
	KUNIT_EXPECT_FALSE(test, fh_can_give(fz));
}

/* Memory that is free in pieces, each too small for a hint. */
static void test_stuck_pages(struct kunit *test)
{
	struct fake *fake = test->priv;

	set_free(fake, FREE, 400);
	KUNIT_EXPECT_EQ(test, fh_stuck_pages(&fake->fz), (FREE - 400) * G);
	/* The two figures may be from different moments. */
	set_free(fake, FREE, FREE + 1);
	KUNIT_EXPECT_EQ(test, fh_stuck_pages(&fake->fz), 0);
}

static struct kunit_case guard_cases[] = {
	KUNIT_CASE(test_share_of_a_zone),
	KUNIT_CASE(test_whole_granules),
	KUNIT_CASE(test_watermark),
	KUNIT_CASE(test_highatomic),
	KUNIT_CASE(test_drift),
	KUNIT_CASE(test_cma_is_apart),
	KUNIT_CASE(test_lowmem_reserve),
	KUNIT_CASE(test_stalls_are_counted),
	KUNIT_CASE(test_a_short_zone_yields),
	KUNIT_CASE(test_lasting_pressure),
	KUNIT_CASE(test_others_do_not_yield),
	KUNIT_CASE(test_pieces_are_short),
	KUNIT_CASE(test_what_was_left),
	KUNIT_CASE(test_stuck_pages),
	{ }
};

static struct kunit_suite guard_suite = {
	.name = "freehint_guard",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = guard_cases,
};
kunit_test_suite(guard_suite);
