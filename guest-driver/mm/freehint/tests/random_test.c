// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests, random sequences against a model.
 */
#include <kunit/test.h>
#include <linux/prandom.h>

#include "fake.h"

#define STEPS		20000
#define GRANULES	(UNITS / 2)

/**
 * struct model - the same rules, one granule at a time
 * @state: of each granule, NOTHING for none
 */
struct model {
	u8 state[GRANULES];
};

static bool model_is_free(struct fake *fake, unsigned long granule)
{
	unsigned long head;

	return fake_find(fake, at(granule), &head) >= (int)G;
}

static void model_after_free(struct fake *fake, struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == NOTHING && model_is_free(fake, i))
			model->state[i] = FH_YOUNG;
}

static void model_after_alloc(struct fake *fake, struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] != FH_NEVER && model->state[i] != FH_INFLIGHT &&
		    !model_is_free(fake, i))
			model->state[i] = NOTHING;
}

static void model_promote(struct model *model)
{
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == FH_YOUNG)
			model->state[i] = FH_AGED;
}

/* For each range: free before, of age, in order, not joined, not twice. */
static void model_take(struct kunit *test, struct model *model)
{
	const struct freehint_hint *hint = ((struct fake *)test->priv)->hint;
	unsigned long pfn, last = 0;
	unsigned int i;

	for (i = 0; i < hint->nr_ranges; i++) {
		const struct freehint_range *range = &hint->ranges[i];
		unsigned long end = range->pfn + range->nr_pages;

		KUNIT_ASSERT_GE(test, range->pfn, last);
		if (range->pfn == last)
			KUNIT_ASSERT_EQ(test, last % PAGES_PER_SECTION, 0);
		last = end;
		for (pfn = range->pfn; pfn < end; pfn += GPAGES) {
			u8 *s = &model->state[(pfn - FAKE_START) / GPAGES];

			KUNIT_ASSERT_EQ(test, *s, FH_AGED);
			*s = FH_INFLIGHT;
		}
	}
}

static void model_give(struct model *model, enum freehint_verdict verdict)
{
	static const u8 after[] = {
		[FREEHINT_DECLINED] = FH_HELD, [FREEHINT_THROTTLED] = FH_AGED,
		[FREEHINT_FAILED] = FH_HELD, [FREEHINT_NEVER] = FH_NEVER,
		[FREEHINT_DISCARDED] = FH_HINTED,
	};
	unsigned long i;

	for (i = 0; i < GRANULES; i++)
		if (model->state[i] == FH_INFLIGHT)
			model->state[i] = after[verdict];
}

static void model_compare(struct kunit *test, struct model *model)
{
	struct fake *fake = test->priv;
	unsigned long count[FH_NEVER + 1] = { }, i;
	enum fh_plane plane;

	for (i = 0; i < GRANULES; i++) {
		KUNIT_ASSERT_EQ_MSG(test, state(fake, i), model->state[i],
				    "granule %lu", i);
		KUNIT_ASSERT_FALSE(test, model->state[i] == FH_INFLIGHT &&
				   model_is_free(fake, i));
		if (model->state[i] <= FH_NEVER)
			count[model->state[i]]++;
	}
	for (plane = 0; plane <= FH_NEVER; plane++)
		KUNIT_ASSERT_EQ(test, count[plane], fake->fz->nr[plane]);
}

static unsigned int random(struct rnd_state *rnd, unsigned int below)
{
	return prandom_u32_state(rnd) % below;
}

static void random_alloc(struct fake *fake, struct model *model,
			 struct rnd_state *rnd)
{
	int order = UNIT_ORDER + random(rnd, MAX_PAGE_ORDER - UNIT_ORDER + 1);
	unsigned long pfn = FAKE_START + ((unsigned long)random(rnd, UNITS) << UNIT_ORDER);

	fake_alloc(fake, ALIGN_DOWN(pfn, 1UL << order), order);
	model_after_alloc(fake, model);
}

/* Frees one unit that is neither free nor in flight, if this is one. */
static void random_free(struct fake *fake, struct model *model,
			struct rnd_state *rnd)
{
	unsigned long pfn = FAKE_START + ((unsigned long)random(rnd, UNITS) << UNIT_ORDER);
	unsigned long head;

	if (fake_find(fake, pfn, &head) != NO_BLOCK ||
	    model->state[(pfn - FAKE_START) / GPAGES] == FH_INFLIGHT)
		return;
	fake_free(fake, pfn, UNIT_ORDER);
	model_after_free(fake, model);
}

static enum freehint_verdict random_verdict(struct rnd_state *rnd)
{
	enum freehint_verdict verdict = random(rnd, 8);

	/* Not "never" too often, or nothing is left to test. */
	if (verdict >= FREEHINT_NR_VERDICTS ||
	    (verdict == FREEHINT_NEVER && random(rnd, 16)))
		return FREEHINT_DISCARDED;
	return verdict;
}

/* Sends a hint, or, if one is out, answers it. Returns whether one is out. */
static bool random_hint(struct kunit *test, struct model *model, bool out,
			struct rnd_state *rnd)
{
	struct fake *fake = test->priv;
	enum freehint_verdict verdict;

	if (!out) {
		out = fill(fake);
		model_take(test, model);
		return out;
	}
	verdict = random_verdict(rnd);
	answer(fake, verdict, false);
	model_give(model, verdict);
	return false;
}

/* While a hint is out, allocations and frees go on around it. */
static void test_random(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct model *model = kunit_kzalloc(test, sizeof(*model), GFP_KERNEL);
	struct rnd_state rnd;
	bool out = false;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, model);
	memset(model->state, NOTHING, sizeof(model->state));
	prandom_seed_state(&rnd, 20);

	for (i = 0; i < STEPS; i++) {
		switch (random(&rnd, 16)) {
		case 0:
			promote(fake);
			model_promote(model);
			break;
		case 1:
			out = random_hint(test, model, out, &rnd);
			break;
		case 2 ... 6:
			random_alloc(fake, model, &rnd);
			break;
		default:
			random_free(fake, model, &rnd);
		}
		if (i % 64 == 0)
			model_compare(test, model);
	}
	if (out)
		answer(fake, FREEHINT_DISCARDED, false);
	KUNIT_EXPECT_EQ(test, fake->fz->stale, 0);
}

static struct kunit_case freehint_random_cases[] = {
	KUNIT_CASE_SLOW(test_random),
	{ }
};

static struct kunit_suite freehint_random_suite = {
	.name = "freehint_random",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = freehint_random_cases,
};

kunit_test_suite(freehint_random_suite);
