// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, reuse and pace.
 */
#include <kunit/test.h>

#include "fake.h"

static void hint_one(struct kunit *test, unsigned long granule)
{
	struct fake *fake = test->priv;

	fake->fz->reuse = (struct fh_reuse) { };
	free_granules(fake, granule, 1);
	promote(fake);
	KUNIT_ASSERT_TRUE(test, fill(fake));
	answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.hinted, 1);
}

static u64 reused_total(struct kunit *test)
{
	struct fake *fake = test->priv;

	return fake->fz->reused_total;
}

static void test_reuse_window(struct kunit *test)
{
	struct fake *fake = test->priv;

	rotate(fake, true);
	hint_one(test, 4);
	alloc_pages_at(fake, at(4), G - 1);
	KUNIT_EXPECT_EQ(test, reused_total(test), 1);

	/* In the next window it still counts, in the one after it does not. */
	hint_one(test, 6);
	hint_one(test, 8);
	rotate(fake, false);
	alloc_pages_at(fake, at(6), G);
	KUNIT_EXPECT_EQ(test, reused_total(test), 2);
	rotate(fake, false);
	alloc_pages_at(fake, at(8), G);
	KUNIT_EXPECT_EQ(test, reused_total(test), 2);
}

/* The worker may be asleep while windows end. */
static void test_reuse_window_asleep(struct kunit *test)
{
	struct fake *fake = test->priv;

	rotate(fake, true);
	hint_one(test, 4);
	fake->fz->window_end = jiffies - FH_WINDOW / 2;
	alloc_pages_at(fake, at(4), G);
	KUNIT_EXPECT_EQ(test, reused_total(test), 1);

	hint_one(test, 6);
	fake->fz->window_end = jiffies - FH_WINDOW;
	alloc_pages_at(fake, at(6), G);
	KUNIT_EXPECT_EQ(test, reused_total(test), 1);
}

/* What is taken need not be what was hinted last. */
static void test_reuse_of_other_memory(struct kunit *test)
{
	struct fake *fake = test->priv;

	hint_one(test, 4);
	rotate(fake, true);
	rotate(fake, true);
	hint_one(test, 6);
	alloc_pages_at(fake, at(4), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);
	KUNIT_EXPECT_EQ(test, reused_total(test), 0);

	/* But soon after that. */
	fake->fz->soon_end = jiffies;
	alloc_pages_at(fake, at(6), G);
	KUNIT_EXPECT_EQ(test, fake->fz->reuse.reused, 1);
	KUNIT_EXPECT_EQ(test, reused_total(test), 1);
}

static void test_pace_bounds(struct kunit *test)
{
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	fh_pace_bounds(&pace, 8000, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 8000);
	fh_pace_bounds(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 20);
}

/* What the guest has learned is not forgotten because the device asks for less. */
static void test_pace_bounds_backed_off(struct kunit *test)
{
	const struct fh_reuse hot = { .hinted = 256, .reused = 200 };
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &hot, 0);
	fh_pace_bounds(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
	fh_pace_bounds(&pace, 20, 150);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 150);
}

/* A guest that wants everything back is left alone longer, up to a limit. */
static void test_pace_backs_off(struct kunit *test)
{
	const struct fh_reuse hot = { .hinted = 256, .reused = 200 };
	struct fh_pace pace = { };
	unsigned int age = 100;

	fh_pace_bounds(&pace, 100, 5000);
	while (age < 5000) {
		age = min(2 * age, 5000U);
		fh_pace_judge(&pace, &hot, 0);
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
	}
	fh_pace_judge(&pace, &hot, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 5000);
}

/* Evidence adds up over calls until there is enough of it. */
static void test_pace_needs_evidence(struct kunit *test)
{
	const struct fh_reuse some = { .hinted = FH_BURST / 2, .reused = FH_BURST / 2 };
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	fh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
}

static void test_pace_speeds_up(struct kunit *test)
{
	const struct fh_reuse none = { };
	struct fh_pace pace = { .age_ms = 3200 };
	unsigned long now = 0;

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &none, now + FH_WINDOW - 1);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	/* The first window is none yet. */
	now += FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	now += FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 1600);
	/* Two windows slept through. */
	now += 2 * FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 400);
	now += 1000 * FH_WINDOW;
	fh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
}

/* A loop is over, and nothing happens until something else is freed. */
static void test_pace_speeds_up_asleep(struct kunit *test)
{
	const struct fh_reuse spared = { .spared = 256 }, none = { };
	struct fh_pace pace = { .age_ms = 3200 };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &spared, FH_WINDOW / 2);
	/* The loop was in the first of these, and the second is the first calm one. */
	fh_pace_judge(&pace, &none, 4 * FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	/* It goes on as before. */
	fh_pace_judge(&pace, &spared, 8 * FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	fh_pace_judge(&pace, &none, 9 * FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	fh_pace_judge(&pace, &none, 10 * FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 400);
}

/* Whatever windows end between the hints of a loop and the reuse. */
static void test_pace_learns_across_windows(struct kunit *test)
{
	const struct fh_reuse hinted = { .hinted = 256 }, reused = { .reused = 256 };
	struct fh_pace pace = { };
	unsigned int age = 100;
	unsigned long now = 0;

	fh_pace_bounds(&pace, 100, 5000);
	while (age < 3200) {
		/* At the end of a window, and at that of the next. */
		now += FH_WINDOW;
		fh_pace_judge(&pace, &hinted, now);
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
		now += FH_WINDOW;
		fh_pace_judge(&pace, &reused, now);
		age *= 2;
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
	}
}

/* Much that was freed for good does not hide a loop for longer than a window. */
static void test_pace_learns_after_much(struct kunit *test)
{
	const struct fh_reuse much = { .hinted = 4096 };
	const struct fh_reuse loop = { .hinted = 256, .reused = 200 };
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &much, FH_WINDOW);
	fh_pace_judge(&pace, &loop, FH_WINDOW + 1);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
}

/* A guest that grows takes more than what was hinted lately, and it is not in vain. */
static void test_pace_growth(struct kunit *test)
{
	const struct fh_reuse some = { .hinted = FH_BURST / 2 };
	const struct fh_reuse much = { .reused = 1024 }, last = { .hinted = 256 };
	struct fh_pace pace = { };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &some, 0);
	fh_pace_judge(&pace, &much, 0);
	fh_pace_judge(&pace, &last, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
}

/* An age that spares a loop its memory stays, although nothing is reused. */
static void test_pace_holds(struct kunit *test)
{
	const struct fh_reuse spared = { .spared = 256 };
	struct fh_pace pace = { .age_ms = 3200 };

	fh_pace_bounds(&pace, 100, 5000);
	fh_pace_judge(&pace, &spared, FH_WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
}

static struct kunit_case freehint_pacing_cases[] = {
	KUNIT_CASE(test_reuse_window),
	KUNIT_CASE(test_reuse_window_asleep),
	KUNIT_CASE(test_reuse_of_other_memory),
	KUNIT_CASE(test_pace_bounds),
	KUNIT_CASE(test_pace_bounds_backed_off),
	KUNIT_CASE(test_pace_backs_off),
	KUNIT_CASE(test_pace_needs_evidence),
	KUNIT_CASE(test_pace_speeds_up),
	KUNIT_CASE(test_pace_speeds_up_asleep),
	KUNIT_CASE(test_pace_learns_across_windows),
	KUNIT_CASE(test_pace_learns_after_much),
	KUNIT_CASE(test_pace_growth),
	KUNIT_CASE(test_pace_holds),
	{ }
};

static struct kunit_suite freehint_pacing_suite = {
	.name = "freehint_pacing",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_pacing_cases,
};

kunit_test_suite(freehint_pacing_suite);
