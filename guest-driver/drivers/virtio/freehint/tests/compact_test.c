// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of compaction when the guest idles.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/time64.h>

#include "../vfh.h"

#define CPUS	4
#define SECOND	((u64)NSEC_PER_SEC)
#define STUCK	10000UL

/* A guest that was idle for a second after @load, but for this much time of its CPUs. */
static void pass(struct vfh_load *load, u64 used)
{
	load->now += SECOND;
	load->sums.idle_ns += CPUS * SECOND - used;
}

static struct vfh_load new_load(void)
{
	return (struct vfh_load) {
		.now = SECOND,
		.cpus = CPUS,
		.stuck = STUCK,
		.worth = STUCK,
	};
}

static void test_compact_when_idle(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	/* There is nothing to compare with. */
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, SECOND / 4);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
	pass(&load, SECOND);
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, SECOND / 4);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

static void test_compact_not_under_pressure(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	vfh_compact_due(&compact, &load);
	pass(&load, 0);
	load.sums.stalls++;
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, 0);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

/* With a CPU more or less, times of before and after do not compare. */
static void test_compact_not_when_cpus_change(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	vfh_compact_due(&compact, &load);
	pass(&load, 0);
	load.cpus--;
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, 0);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

static void test_compact_needs_a_reason(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	load.stuck--;
	vfh_compact_due(&compact, &load);
	pass(&load, 0);
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	load.stuck++;
	pass(&load, 0);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

/* 1 % of a CPU's time, of which a second is saved at most. */
static void test_compact_budget(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	vfh_compact_due(&compact, &load);
	pass(&load, 0);
	vfh_compact_due(&compact, &load);
	KUNIT_EXPECT_EQ(test, compact.credit, SECOND / 100);
	load.now += 10000 * SECOND;
	load.sums.idle_ns += 10000 * SECOND * CPUS;
	vfh_compact_due(&compact, &load);
	KUNIT_EXPECT_EQ(test, compact.credit, SECOND);

	/* Who has taken too much waits until it is earned. */
	compact.credit = -(s64)SECOND / 50;
	pass(&load, 0);
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, 0);
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, 0);
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

/* How many seconds of idleness it rests for. */
static unsigned int rest(struct vfh_compact *compact, struct vfh_load *load)
{
	unsigned int seconds = 0;

	do {
		pass(load, 0);
		seconds++;
	} while (seconds < 1000 && !vfh_compact_due(compact, load));
	return seconds;
}

static void test_compact_backs_off(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();
	unsigned int seconds;

	vfh_compact_due(&compact, &load);
	for (seconds = 8; seconds < 512; seconds *= 2) {
		vfh_compact_rest(&compact, &load, STUCK / 16 - 1);
		KUNIT_EXPECT_EQ(test, rest(&compact, &load), seconds);
	}
	vfh_compact_rest(&compact, &load, 0);
	KUNIT_EXPECT_EQ(test, rest(&compact, &load), 512);
	vfh_compact_rest(&compact, &load, 0);
	KUNIT_EXPECT_EQ(test, rest(&compact, &load), 512);
	/* That was worth it. */
	vfh_compact_rest(&compact, &load, STUCK / 16);
	KUNIT_EXPECT_EQ(test, rest(&compact, &load), 8);
}

/* Programs have ended meanwhile, for instance. */
static void test_compact_when_more_is_stuck(struct kunit *test)
{
	struct vfh_compact compact = { };
	struct vfh_load load = new_load();

	vfh_compact_due(&compact, &load);
	vfh_compact_rest(&compact, &load, 0);
	pass(&load, 0);
	load.stuck += STUCK / 4;
	KUNIT_EXPECT_FALSE(test, vfh_compact_due(&compact, &load));
	pass(&load, 0);
	load.stuck++;
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
	/* And it goes on, however little is left. */
	pass(&load, 0);
	load.stuck = STUCK;
	KUNIT_EXPECT_TRUE(test, vfh_compact_due(&compact, &load));
}

#define STEP_MS	2

static unsigned int steps;

static bool evacuate_slowly(struct freehint_sweep *sweep)
{
	steps++;
	mdelay(STEP_MS);
	return true;
}

static const struct vfh_source slow_source = {
	.evacuate = evacuate_slowly,
};

/* What it takes is taken off its credit, and it stops when there is none left. */
static void test_compact_pays(struct kunit *test)
{
	struct vfh *fh = kunit_kzalloc(test, sizeof(*fh), GFP_KERNEL);
	const s64 credit = 5 * STEP_MS * NSEC_PER_MSEC;

	KUNIT_ASSERT_NOT_NULL(test, fh);
	fh->source = &slow_source;
	fh->compact.credit = credit;
	steps = 0;
	vfh_compact_slice(fh);
	KUNIT_EXPECT_GE(test, steps, 1);
	KUNIT_EXPECT_LE(test, steps, 5);
	KUNIT_EXPECT_GE(test, fh->compact.spent, steps * STEP_MS * NSEC_PER_MSEC);
	KUNIT_EXPECT_EQ(test, fh->compact.credit, credit - (s64)fh->compact.spent);
}

static struct kunit_case compact_cases[] = {
	KUNIT_CASE(test_compact_when_idle),
	KUNIT_CASE(test_compact_not_under_pressure),
	KUNIT_CASE(test_compact_not_when_cpus_change),
	KUNIT_CASE(test_compact_needs_a_reason),
	KUNIT_CASE(test_compact_budget),
	KUNIT_CASE(test_compact_backs_off),
	KUNIT_CASE(test_compact_when_more_is_stuck),
	KUNIT_CASE(test_compact_pays),
	{ }
};

static struct kunit_suite compact_suite = {
	.name = "freehint_compact",
	.test_cases = compact_cases,
};
kunit_test_suite(compact_suite);
