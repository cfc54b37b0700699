// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver: unit tests of the pace.
 */
#include <kunit/test.h>
#include <linux/jiffies.h>

#include "../vfh.h"

#define BURST	16
#define WINDOW	FREEHINT_REUSE_WINDOW

static void test_pace_bounds(struct kunit *test)
{
	struct vfh_pace pace = { .burst = BURST };

	vfh_pace_limits(&pace, 100, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	vfh_pace_limits(&pace, 8000, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 8000);
	vfh_pace_limits(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 20);
}

/* A device that asks for less is obeyed at once; what was learned is learned again. */
static void test_pace_bounds_backed_off(struct kunit *test)
{
	const struct vfh_reuse hot = { .hinted = 256, .reused = 200 };
	struct vfh_pace pace = { .burst = BURST };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &hot, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
	/* The same wish again changes nothing. */
	vfh_pace_limits(&pace, 100, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
	vfh_pace_limits(&pace, 100, 150);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 150);
	vfh_pace_limits(&pace, 20, 5000);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 20);
}

/* A guest wants everything back: expect the age to grow in these steps, up to a limit. */
static void back_off(struct kunit *test, struct vfh_pace *pace, unsigned int step)
{
	const struct vfh_reuse hot = { .hinted = 256, .reused = 200 };
	unsigned int age = 100;

	vfh_pace_limits(pace, 100, 5000);
	while (age < 5000) {
		age = min(step * age, 5000U);
		vfh_pace_judge(pace, &hot, 0);
		KUNIT_EXPECT_EQ(test, pace->age_ms, age);
	}
	vfh_pace_judge(pace, &hot, 0);
	KUNIT_EXPECT_EQ(test, pace->age_ms, 5000);
}

/* A guest that wants everything back is left alone longer. */
static void test_pace_backs_off(struct kunit *test)
{
	struct vfh_pace pace = { .burst = BURST };

	back_off(test, &pace, 2);
}

/* The host can have what is lazy, so learning is quick. */
static void test_pace_of_what_is_lazy(struct kunit *test)
{
	struct vfh_pace pace = { .burst = BURST, .lazy = true };

	back_off(test, &pace, 4);
}

/* Evidence adds up over calls until there is enough of it. */
static void test_pace_needs_evidence(struct kunit *test)
{
	const struct vfh_reuse some = { .hinted = BURST / 2, .reused = BURST / 2 };
	struct vfh_pace pace = { .burst = BURST };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
	vfh_pace_judge(&pace, &some, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
}

static void test_pace_speeds_up(struct kunit *test)
{
	const struct vfh_reuse none = { };
	struct vfh_pace pace = { .burst = BURST, .age_ms = 3200 };
	unsigned long now = 0;

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &none, now + WINDOW - 1);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	/* The first calm window does not count yet. */
	now += WINDOW;
	vfh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	now += WINDOW;
	vfh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 1600);
	/* Two windows slept through. */
	now += 2 * WINDOW;
	vfh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 400);
	now += 1000 * WINDOW;
	vfh_pace_judge(&pace, &none, now);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
}

/* A loop is over, and nothing happens until something else is freed. */
static void test_pace_speeds_up_asleep(struct kunit *test)
{
	const struct vfh_reuse spared = { .spared = 256 }, none = { };
	struct vfh_pace pace = { .burst = BURST, .age_ms = 3200 };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &spared, WINDOW / 2);
	/* The loop was in the first of these, and the second is the first calm one. */
	vfh_pace_judge(&pace, &none, 4 * WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	/* The loop goes on as before. */
	vfh_pace_judge(&pace, &spared, 8 * WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	vfh_pace_judge(&pace, &none, 9 * WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 800);
	vfh_pace_judge(&pace, &none, 10 * WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 400);
}

/* The age grows even if a window ends between the hints of a loop and the reuse. */
static void test_pace_learns_across_windows(struct kunit *test)
{
	const struct vfh_reuse hinted = { .hinted = 256 }, reused = { .reused = 256 };
	struct vfh_pace pace = { .burst = BURST };
	unsigned int age = 100;
	unsigned long now = 0;

	vfh_pace_limits(&pace, 100, 5000);
	while (age < 3200) {
		/* Hints at the end of a window, reuse at the end of the next. */
		now += WINDOW;
		vfh_pace_judge(&pace, &hinted, now);
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
		now += WINDOW;
		vfh_pace_judge(&pace, &reused, now);
		age *= 2;
		KUNIT_EXPECT_EQ(test, pace.age_ms, age);
	}
}

/* Much that was freed for good does not hide a loop for longer than a window. */
static void test_pace_learns_after_much(struct kunit *test)
{
	const struct vfh_reuse much = { .hinted = 4096 };
	const struct vfh_reuse loop = { .hinted = 256, .reused = 200 };
	struct vfh_pace pace = { .burst = BURST };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &much, WINDOW);
	vfh_pace_judge(&pace, &loop, WINDOW + 1);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 200);
}

/* A guest that grows takes more than what was hinted lately: hints are not in vain. */
static void test_pace_growth(struct kunit *test)
{
	const struct vfh_reuse some = { .hinted = BURST / 2 };
	const struct vfh_reuse much = { .reused = 1024 }, last = { .hinted = 256 };
	struct vfh_pace pace = { .burst = BURST };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &some, 0);
	vfh_pace_judge(&pace, &much, 0);
	vfh_pace_judge(&pace, &last, 0);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 100);
}

/* An age that spares a loop its memory stays, although nothing is reused. */
static void test_pace_holds(struct kunit *test)
{
	const struct vfh_reuse spared = { .spared = 256 };
	struct vfh_pace pace = { .burst = BURST, .age_ms = 3200 };

	vfh_pace_limits(&pace, 100, 5000);
	vfh_pace_judge(&pace, &spared, WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
	vfh_pace_judge(&pace, &spared, 2 * WINDOW);
	KUNIT_EXPECT_EQ(test, pace.age_ms, 3200);
}

static struct kunit_case pace_cases[] = {
	KUNIT_CASE(test_pace_bounds),
	KUNIT_CASE(test_pace_bounds_backed_off),
	KUNIT_CASE(test_pace_backs_off),
	KUNIT_CASE(test_pace_of_what_is_lazy),
	KUNIT_CASE(test_pace_needs_evidence),
	KUNIT_CASE(test_pace_speeds_up),
	KUNIT_CASE(test_pace_speeds_up_asleep),
	KUNIT_CASE(test_pace_learns_across_windows),
	KUNIT_CASE(test_pace_learns_after_much),
	KUNIT_CASE(test_pace_growth),
	KUNIT_CASE(test_pace_holds),
	{ }
};

static struct kunit_suite pace_suite = {
	.name = "freehint_pace",
	.test_cases = pace_cases,
};
kunit_test_suite(pace_suite);
