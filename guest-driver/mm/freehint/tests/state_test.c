// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of the states of granules and of where they are kept.
 * The zone has no memory: nothing here looks at a page.
 */
#include <kunit/test.h>
#include <linux/cleanup.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/sizes.h>

#include "../internal.h"

#define ORDER		9U
#define G		(1UL << ORDER)
#define GRANULES	(PAGES_PER_SECTION >> ORDER)

/* A section above all memory of a guest that runs these tests. */
#define SEC		100000UL

struct fake {
	struct zone zone;
	struct fh_zone *fz;
};

static unsigned long at(unsigned long granule)
{
	return section_nr_to_pfn(SEC) + granule * G;
}

static void add_section(struct kunit *test, unsigned long sec)
{
	struct fake *fake = test->priv;

	KUNIT_ASSERT_EQ(test, fh_zone_add_section(fake->fz, sec), 0);
}

static int fake_init(struct kunit *test)
{
	struct fake *fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fake);
	test->priv = fake;
	spin_lock_init(&fake->zone.lock);
	fake->zone.zone_start_pfn = section_nr_to_pfn(SEC);
	fake->zone.spanned_pages = PAGES_PER_SECTION;
	fake->fz = fh_zone_alloc(&fake->zone, ORDER);
	KUNIT_ASSERT_NOT_NULL(test, fake->fz);
	/* Nobody is to be woken. */
	fake->fz->busy = true;
	add_section(test, SEC);
	return 0;
}

/* Test cases hold it, as what they call requires. */
static spinlock_t *zone_lock(struct kunit *test)
{
	struct fake *fake = test->priv;

	return &fake->zone.lock;
}

static void fake_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	fh_zone_free(fake->fz);
	/* It is freed after a grace period, but points to what is about to go. */
	rcu_barrier();
}

/* The life of a granule, as in Documentation/mm/freehint.rst; "!" cannot happen. */
static const char * const life[FH_NR_EVENTS] = {
	/*			 UYREDSOLZWHN */
	[FH_FREED]	   = "YYYYYY!!YYYN",
	[FH_ALLOCATED]	   = "UUUUUU!!UUUN",
	[FH_PERIOD]	   = "URDDDSOLZWHN",
	[FH_PERIOD_EARLY]  = "UREEDSOLZWHN",
	[FH_SETTLE]	   = "UYREDSOLWDHN",
	[FH_HURRY]	   = "UDDDDSOLDDHN",
	[FH_TAKE]	   = "!!!OOO!!!!!!",
	[FH_VANISHED]	   = "UUUUUU!!UUUN",
	[FH_RETRY]	   = "D!!!!!DD!!!!",
	[FH_RETRY_EARLY]   = "E!!!!!EE!!!!",
	[FH_DISCARD]	   = "H!!!!!HH!!!!",
	[FH_REFUSE]	   = "N!!!!!NN!!!!",
	[FH_SUSPECTED]	   = "S!!!!!SS!!!!",
	[FH_LEND]	   = "Z!!!!!ZZ!!!!",
	[FH_BROKEN]	   = "U!!!!!UU!!!!",
	[FH_LOSE]	   = "!!!!!!L!!!!!",
	[FH_FORGET]	   = "UUUUUUOLUUUU",
	[FH_FOUND]	   = "DDDDDD!!DDDD",
};

static const char letter[FH_NR_STATES + 1] = "UYREDSOLZWHN";

/* Bring a granule from unknown to a state. */
static void bring(struct fh_zone *fz, unsigned long pfn, enum fh_state state)
{
	switch (state) {
	case FH_UNKNOWN:
	case FH_NR_STATES:
		break;
	case FH_YOUNG:
		fh_event(fz, pfn, ORDER, FH_FREED);
		break;
	case FH_RESTING:
		fh_event(fz, pfn, ORDER, FH_FREED);
		fh_event(fz, pfn, ORDER, FH_PERIOD);
		break;
	case FH_EARLY:
		fh_event(fz, pfn, ORDER, FH_RETRY_EARLY);
		break;
	case FH_DUE:
		fh_event(fz, pfn, ORDER, FH_FOUND);
		break;
	case FH_SUSPECT:
		fh_event(fz, pfn, ORDER, FH_SUSPECTED);
		break;
	case FH_OUT:
	case FH_LOST:
		fh_event(fz, pfn, ORDER, FH_FOUND);
		fh_event(fz, pfn, ORDER, FH_TAKE);
		if (state == FH_LOST)
			fh_event(fz, pfn, ORDER, FH_LOSE);
		break;
	case FH_LAZY:
	case FH_LAZY_LONG:
		fh_event(fz, pfn, ORDER, FH_LEND);
		if (state == FH_LAZY_LONG)
			fh_event(fz, pfn, ORDER, FH_SETTLE);
		break;
	case FH_DISCARDED:
		fh_event(fz, pfn, ORDER, FH_DISCARD);
		break;
	case FH_REFUSED:
		fh_event(fz, pfn, ORDER, FH_REFUSE);
		break;
	}
}

static bool is_pending(char state)
{
	return strchr("YREDS", state);
}

static bool is_moving(char state)
{
	return strchr("YREDSZW", state);
}

static void test_every_cell(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	enum fh_event event;
	enum fh_state state;

	guard(spinlock)(zone_lock(test));
	for (event = 0; event < FH_NR_EVENTS; event++) {
		for (state = 0; state < FH_NR_STATES; state++) {
			char after = life[event][state];
			unsigned int was;

			bring(fz, at(7), state);
			KUNIT_ASSERT_EQ_MSG(test, fh_state(fz, at(7)), state,
					    "to %c", letter[state]);
			KUNIT_EXPECT_EQ(test, fz->nr[state],
					state ? 1 : GRANULES);
			/* The warning for "!" is not tested here. */
			if (after != '!') {
				was = fh_event(fz, at(7), ORDER, event);
				KUNIT_EXPECT_EQ(test, was, is_pending(letter[state]));
				KUNIT_EXPECT_EQ_MSG(test, letter[fh_state(fz, at(7))],
						    after, "event %u, state %c",
						    event, letter[state]);
				KUNIT_EXPECT_TRUE(test, !is_moving(after) ||
						  test_bit(SEC - fz->map->first,
							   fz->map->pending));
			} else {
				KUNIT_EXPECT_EQ_MSG(test, fh_next_state[event][state],
						    FH_NR_STATES, "event %u, state %c",
						    event, letter[state]);
			}
			if (fh_state(fz, at(7)) == FH_OUT ||
			    fh_state(fz, at(7)) == FH_LOST)
				fh_event(fz, at(7), ORDER, FH_BROKEN);
			fh_event(fz, at(7), ORDER, FH_FORGET);
			KUNIT_ASSERT_EQ(test, fh_state(fz, at(7)), FH_UNKNOWN);
		}
	}
}

/* What was free before keeps its state, whatever is merged with it. */
static void test_freed_marks_what_was_freed(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(4), FH_DISCARDED);
	/* The last page of granule 5. */
	fh_freed(fz, at(6) - 1, 0);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(4)), FH_DISCARDED);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(5)), FH_YOUNG);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(6)), FH_UNKNOWN);
	KUNIT_EXPECT_EQ(test, fz->freed, 1);

	fh_freed(fz, at(8), ORDER + 2);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_YOUNG], 5);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(11)), FH_YOUNG);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(12)), FH_UNKNOWN);
	KUNIT_EXPECT_EQ(test, fz->burst, 5);
}

/* If some of a freed block is refused, the rest is still pending. */
static void test_freed_beside_refused(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	unsigned long pfn = FH_TOP, sec = 0;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(8), FH_REFUSED);
	fh_freed(fz, at(8), ORDER + 1);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(8)), FH_REFUSED);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(9)), FH_YOUNG);
	while (fh_age_some(fz, &sec, FH_HURRY))
		;
	KUNIT_EXPECT_TRUE(test, fh_find_due(fz, &pfn, false));
	KUNIT_EXPECT_EQ(test, pfn, at(9));
}

static void test_allocated_is_evidence(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(1), FH_DISCARDED);
	bring(fz, at(2), FH_DISCARDED);
	bring(fz, at(3), FH_RESTING);
	fz->soon_end = jiffies + HZ;
	fh_allocated(fz, at(1) + 3, 0);
	KUNIT_EXPECT_EQ(test, fz->reused, 1);
	fh_allocated(fz, at(3), 0);
	fh_allocated(fz, at(3) + 1, 0);
	KUNIT_EXPECT_EQ(test, fz->spared, 1);
	KUNIT_EXPECT_EQ(test, fz->taken, 2);

	fz->soon_end = jiffies;
	fh_allocated(fz, at(2), ORDER);
	KUNIT_EXPECT_EQ(test, fz->reused, 1);
	KUNIT_EXPECT_EQ(test, fz->taken, 3);
}

static void age(struct fh_zone *fz, enum fh_event event)
{
	unsigned long sec = 0;

	while (fh_age_some(fz, &sec, event))
		;
}

static void test_due_after_a_whole_period(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	unsigned long pfn = FH_TOP;

	guard(spinlock)(zone_lock(test));
	fh_freed(fz, at(3), ORDER);
	age(fz, FH_PERIOD);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_RESTING);
	KUNIT_EXPECT_FALSE(test, fh_find_due(fz, &pfn, false));
	KUNIT_EXPECT_EQ(test, pfn, 0);
	fh_freed(fz, at(5), ORDER);
	age(fz, FH_PERIOD);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_DUE);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(5)), FH_RESTING);
	age(fz, FH_HURRY);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_DUE], 2);

	/* A section with nothing pending any more drops out of the walk. */
	fh_event(fz, at(3), ORDER, FH_TAKE);
	fh_event(fz, at(5), ORDER, FH_TAKE);
	age(fz, FH_PERIOD);
	KUNIT_EXPECT_TRUE(test, bitmap_empty(fz->map->pending, fz->map->nr));
}

/* What is early after a whole period can be lazy, and is due after a settle time. */
static void test_settles(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	unsigned long pfn = FH_TOP;

	guard(spinlock)(zone_lock(test));
	fh_freed(fz, at(3), ORDER);
	age(fz, FH_PERIOD_EARLY);
	KUNIT_EXPECT_FALSE(test, fh_find_due(fz, &pfn, true));
	age(fz, FH_PERIOD_EARLY);
	pfn = FH_TOP;
	KUNIT_EXPECT_FALSE(test, fh_find_due(fz, &pfn, false));
	pfn = FH_TOP;
	KUNIT_EXPECT_TRUE(test, fh_find_due(fz, &pfn, true));
	KUNIT_EXPECT_EQ(test, pfn, at(3));

	fh_event(fz, at(3), ORDER, FH_TAKE);
	fh_event(fz, at(3), ORDER, FH_LEND);
	/* Periods do not change that. */
	age(fz, FH_PERIOD_EARLY);
	age(fz, FH_PERIOD);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_LAZY);
	age(fz, FH_SETTLE);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_LAZY_LONG);
	fh_event(fz, at(5), ORDER, FH_LEND);
	age(fz, FH_SETTLE);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_DUE);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(5)), FH_LAZY_LONG);
	/* A settle time does not make other memory older. */
	fh_freed(fz, at(7), ORDER);
	age(fz, FH_SETTLE);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(7)), FH_YOUNG);
}

/* Lazy memory that is allocated counts as spared: the host has not taken it. */
static void test_lazy_is_spared(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	guard(spinlock)(zone_lock(test));
	fz->soon_end = jiffies + HZ;
	bring(fz, at(1), FH_LAZY);
	bring(fz, at(2), FH_LAZY_LONG);
	fh_allocated(fz, at(1) + 3, 0);
	fh_allocated(fz, at(2), ORDER);
	KUNIT_EXPECT_EQ(test, fz->spared, 2);
	KUNIT_EXPECT_EQ(test, fz->reused, 0);
	KUNIT_EXPECT_EQ(test, fz->taken, 2);
}

static void test_find_by_descending_address(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	const unsigned long due[] = { GRANULES - 1, 40, 7, 0 };
	unsigned long pfn = FH_TOP, i;

	guard(spinlock)(zone_lock(test));
	for (i = 0; i < ARRAY_SIZE(due); i++)
		bring(fz, at(due[i]), i == 1 ? FH_SUSPECT : FH_DUE);
	bring(fz, at(20), FH_YOUNG);
	for (i = 0; i < ARRAY_SIZE(due); i++) {
		KUNIT_EXPECT_TRUE(test, fh_find_due(fz, &pfn, false));
		KUNIT_EXPECT_EQ(test, pfn, at(due[i]));
	}
	KUNIT_EXPECT_FALSE(test, fh_find_due(fz, &pfn, false));
	KUNIT_EXPECT_EQ(test, pfn, 0);
}

/* A lock hold ends, however much there is to look at. */
static void test_holds_are_bounded(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	const unsigned long sections = 3 * FH_HOLD_STATES / GRANULES;
	unsigned long pfn, sec = 0, i, holds = 0;

	guard(spinlock)(zone_lock(test));
	spin_unlock(&fake->zone.lock);
	for (i = 0; i < sections; i++)
		add_section(test, SEC + i);
	spin_lock(&fake->zone.lock);
	for (i = 0; i < sections; i++)
		bring(fz, at(i * GRANULES + 1), FH_YOUNG);
	bring(fz, at(0), FH_DUE);

	pfn = FH_TOP;
	while (!fh_find_due(fz, &pfn, false) && pfn)
		holds++;
	KUNIT_EXPECT_EQ(test, pfn, at(0));
	KUNIT_EXPECT_GE(test, holds, 2);
	KUNIT_EXPECT_LE(test, holds, 4);

	for (holds = 0; fh_age_some(fz, &sec, FH_PERIOD); holds++)
		;
	KUNIT_EXPECT_GE(test, holds, 2);
	KUNIT_EXPECT_LE(test, holds, 4);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_RESTING], sections);
}

static void test_any_out(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(9), FH_OUT);
	bring(fz, at(20), FH_LOST);
	KUNIT_EXPECT_TRUE(test, fh_any_out(fz, at(0), at(GRANULES)));
	KUNIT_EXPECT_TRUE(test, fh_any_out(fz, at(9) + 5, at(9) + 6));
	KUNIT_EXPECT_FALSE(test, fh_any_out(fz, at(0), at(9)));
	KUNIT_EXPECT_FALSE(test, fh_any_out(fz, at(10), at(GRANULES)));
	/* Nothing is out in a section that is not tracked either. */
	KUNIT_EXPECT_FALSE(test, fh_any_out(fz, at(GRANULES), at(3 * GRANULES)));
}

/* The map grows in both directions, by more than it has to, and keeps its states. */
static void test_map_grows(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	unsigned long grown = 0, i;
	struct fh_map *map;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(3), FH_DUE);
	spin_unlock(&fake->zone.lock);
	add_section(test, SEC - 1000);
	for (i = 1; i < 4000; i++) {
		map = fz->map;
		add_section(test, SEC + i);
		grown += map != fz->map;
	}
	spin_lock(&fake->zone.lock);
	KUNIT_EXPECT_LE(test, grown, 8);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_DUE);
	KUNIT_EXPECT_TRUE(test, test_bit(SEC - fz->map->first, fz->map->pending));
	KUNIT_EXPECT_EQ(test, bitmap_weight(fz->map->pending, fz->map->nr), 1);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_UNKNOWN], 4001 * GRANULES - 1);

	fh_event(fz, section_nr_to_pfn(SEC - 1000), ORDER, FH_FREED);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_YOUNG], 1);

	spin_unlock(&fake->zone.lock);
	fh_zone_del_section(fz, SEC - 1000);
	fh_zone_del_section(fz, SEC);
	spin_lock(&fake->zone.lock);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_YOUNG], 0);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_DUE], 0);
	KUNIT_EXPECT_TRUE(test, bitmap_empty(fz->map->pending, fz->map->nr));
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_UNKNOWN);
	/* Memory that nobody keeps track of. */
	fh_freed(fz, at(3), ORDER);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_YOUNG], 0);
}

/* One byte per granule, and what each section needs. */
static void test_size_at_12_tib(struct kunit *test)
{
	unsigned long sections = SZ_1T / PAGE_SIZE * 12 / PAGES_PER_SECTION;
	unsigned long bytes = sections * (sizeof(void *) + GRANULES) + sections / 8;
	unsigned long granules = sections * GRANULES;

	guard(spinlock)(zone_lock(test));
	KUNIT_EXPECT_LE(test, bytes, granules + sections * 9);
	kunit_info(test, "12 TiB: %lu KiB for %lu granules in %lu sections\n",
		   bytes >> 10, granules, sections);
}

/* Many random steps, compared with a plain model. */
static void test_random(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	struct rnd_state rnd;
	char model[GRANULES];
	unsigned long i, step, seed;
	enum fh_event event;

	guard(spinlock)(zone_lock(test));
	for (seed = 1; seed <= 10; seed++) {
		prandom_seed_state(&rnd, seed);
		for (i = 0; i < GRANULES; i++)
			model[i] = letter[fh_state(fz, at(i))];
		for (step = 0; step < 2000; step++) {
			unsigned int more = prandom_u32_state(&rnd) % 3;
			unsigned long first = prandom_u32_state(&rnd) % GRANULES;
			bool possible = true;

			first = ALIGN_DOWN(first, 1UL << more);
			event = prandom_u32_state(&rnd) % FH_NR_EVENTS;
			for (i = first; i < first + (1UL << more); i++)
				possible &= life[event][strchr(letter, model[i]) - letter] != '!';
			if (!possible)
				continue;
			fh_event(fz, at(first), ORDER + more, event);
			for (i = first; i < first + (1UL << more); i++)
				model[i] = life[event][strchr(letter, model[i]) - letter];
		}
		for (i = 0; i < GRANULES; i++)
			KUNIT_ASSERT_EQ_MSG(test, letter[fh_state(fz, at(i))], model[i],
					    "seed %lu, granule %lu", seed, i);
		for (step = 0; step < FH_NR_STATES; step++) {
			unsigned long nr = 0;

			for (i = 0; i < GRANULES; i++)
				nr += model[i] == letter[step];
			KUNIT_ASSERT_EQ_MSG(test, fz->nr[step], nr, "seed %lu, state %c",
					    seed, letter[step]);
		}
	}
}

/* If there is no memory to track a new section, nothing changes. */
static void test_no_memory_for_a_map(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct fh_zone *fz = fake->fz;
	/* A map with a pointer per section up to there is larger than any allocation. */
	unsigned long too_far = ULONG_MAX / sizeof(void *) + SEC;
	struct fh_map *map = fz->map;

	guard(spinlock)(zone_lock(test));
	bring(fz, at(3), FH_DUE);
	spin_unlock(&fake->zone.lock);
	KUNIT_EXPECT_EQ(test, fh_zone_add_section(fz, too_far), -ENOMEM);
	spin_lock(&fake->zone.lock);
	KUNIT_EXPECT_PTR_EQ(test, fz->map, map);
	KUNIT_EXPECT_EQ(test, fh_state(fz, at(3)), FH_DUE);
	KUNIT_EXPECT_EQ(test, fz->nr[FH_UNKNOWN], GRANULES - 1);
}

static struct kunit_case state_cases[] = {
	KUNIT_CASE(test_every_cell),
	KUNIT_CASE(test_freed_marks_what_was_freed),
	KUNIT_CASE(test_freed_beside_refused),
	KUNIT_CASE(test_allocated_is_evidence),
	KUNIT_CASE(test_due_after_a_whole_period),
	KUNIT_CASE(test_settles),
	KUNIT_CASE(test_lazy_is_spared),
	KUNIT_CASE(test_find_by_descending_address),
	KUNIT_CASE(test_holds_are_bounded),
	KUNIT_CASE(test_any_out),
	KUNIT_CASE(test_map_grows),
	KUNIT_CASE(test_no_memory_for_a_map),
	KUNIT_CASE(test_size_at_12_tib),
	KUNIT_CASE(test_random),
	{ }
};

static struct kunit_suite state_suite = {
	.name = "freehint_state",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = state_cases,
};
kunit_test_suite(state_suite);
