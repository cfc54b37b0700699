// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, the books of a flush.
 */
#include <kunit/test.h>

#include "../engine.h"
#include "fake.h"

static struct freehint_hint *a_hint(struct kunit *test, u64 cookie)
{
	struct freehint_hint *hint = ((struct fake *)test->priv)->hint;

	hint->cookie = cookie;
	hint->nr_pages = 3 * GPAGES;
	return hint;
}

/* Answers to what was hinted before the flush are not the flush's. */
static void test_flush_counts_its_own(struct kunit *test)
{
	struct fh_flush flush = { };

	fh_flush_begin(&flush, 8);
	fh_flush_count(&flush, a_hint(test, 7));
	KUNIT_EXPECT_EQ(test, flush.hinted, 0);
	fh_flush_count(&flush, a_hint(test, 8));
	fh_flush_count(&flush, a_hint(test, 9));
	KUNIT_EXPECT_EQ(test, flush.hinted, 6 * GPAGES);
}

static void test_flush_counts_while_hinting(struct kunit *test)
{
	struct fh_flush flush = { };

	fh_flush_count(&flush, a_hint(test, 8));
	flush.stage = FH_FLUSH_PREPARING;
	fh_flush_count(&flush, a_hint(test, 8));
	KUNIT_EXPECT_EQ(test, flush.hinted, 0);
}

static void test_flush_starts_afresh(struct kunit *test)
{
	struct fh_flush flush = { };

	fh_flush_begin(&flush, 8);
	fh_flush_count(&flush, a_hint(test, 8));
	fh_flush_round_over(&flush, true);
	fh_flush_begin(&flush, 9);
	KUNIT_EXPECT_EQ(test, flush.stage, FH_FLUSH_HINTING);
	KUNIT_EXPECT_EQ(test, flush.hinted, 0);
	KUNIT_EXPECT_EQ(test, flush.rounds, 0);
}

/* Done when a round finds nothing, or, on a busy guest, after a few of them. */
static void test_flush_ends(struct kunit *test)
{
	struct fh_flush flush = { };
	unsigned int rounds = 1;

	fh_flush_begin(&flush, 1);
	KUNIT_EXPECT_TRUE(test, fh_flush_round_over(&flush, false));

	fh_flush_begin(&flush, 1);
	KUNIT_EXPECT_FALSE(test, fh_flush_round_over(&flush, true));
	KUNIT_EXPECT_TRUE(test, fh_flush_round_over(&flush, false));

	fh_flush_begin(&flush, 1);
	while (!fh_flush_round_over(&flush, true) && rounds < 100)
		rounds++;
	KUNIT_EXPECT_LT(test, rounds, 10);
}

static struct kunit_case freehint_flush_cases[] = {
	KUNIT_CASE(test_flush_counts_its_own),
	KUNIT_CASE(test_flush_counts_while_hinting),
	KUNIT_CASE(test_flush_starts_afresh),
	KUNIT_CASE(test_flush_ends),
	{ }
};

static struct kunit_suite freehint_flush_suite = {
	.name = "freehint_flush",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_flush_cases,
};

kunit_test_suite(freehint_flush_suite);
