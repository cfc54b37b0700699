/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: a zone for unit tests.
 *
 * It has a lock, a few counters and, in place of the free lists, a buddy
 * allocator of a page of code. On it run the engine's own state, collecting and
 * giving back; what would touch real free lists is replaced by static stubs.
 */
#ifndef _MM_FREEHINT_TESTS_FAKE_H
#define _MM_FREEHINT_TESTS_FAKE_H

#include <kunit/test.h>
#include <linux/mmzone.h>

#include "../internal.h"

/* Not at the start of the map, and not where the real zones would matter. */
#define FAKE_SECTION	1000UL
#define FAKE_SECTIONS	3UL
#define FAKE_START	section_nr_to_pfn(FAKE_SECTION)
#define FAKE_END	section_nr_to_pfn(FAKE_SECTION + FAKE_SECTIONS)

/* 2 MiB on 4 KiB pages; what matters is that there are smaller and larger. */
#define G		(MAX_PAGE_ORDER - 1)
#define GPAGES		BIT(G)

/* What the fake allocator hands out at least: half a granule. */
#define UNIT_ORDER	(G - 1)
#define UNITS		(FAKE_SECTIONS * PAGES_PER_SECTION >> UNIT_ORDER)

/* Room in a hint. */
#define MAX_RANGES	8

/* No free block starts, or covers, here. */
#define NO_BLOCK	(-1)

/* No state. */
#define NOTHING		FH_NR_PLANES

/**
 * struct fake - what a test works with
 * @zone: has a lock and counters, and no pages
 * @fz: tracks it
 * @hint: room for MAX_RANGES ranges
 * @order: by unit: order of the free block that starts there, or NO_BLOCK
 * @locked: the block at this pfn may not be taken
 */
struct fake {
	struct zone zone;
	struct fh_zone *fz;
	struct freehint_hint *hint;
	s8 *order;
	unsigned long locked;
};

/* The first page of a granule. */
static inline unsigned long at(unsigned long granule)
{
	return FAKE_START + granule * GPAGES;
}

static inline unsigned long unit(unsigned long pfn)
{
	return (pfn - FAKE_START) >> UNIT_ORDER;
}

int fake_init(struct kunit *test);
void fake_exit(struct kunit *test);

/* What a test with a zone of another size needs, too. */
struct fh_zone *fake_zone_init(struct kunit *test, struct zone *zone,
			       unsigned long sections, unsigned long free_pages);
struct freehint_hint *fake_hint_alloc(struct kunit *test, unsigned int max_ranges);

/* The allocator. These hold the lock of the zone, which nobody contends for. */
int fake_find(struct fake *fake, unsigned long pfn, unsigned long *head);
void fake_free(struct fake *fake, unsigned long pfn, int order);
bool fake_alloc(struct fake *fake, unsigned long pfn, int order);

/* What happens to the zone in tests. */
void free_granules(struct fake *fake, unsigned long first, unsigned long nr);
void alloc_pages_at(struct fake *fake, unsigned long pfn, int order);
void promote(struct fake *fake);
void rotate(struct fake *fake, bool all);
bool fill(struct fake *fake);
void answer(struct fake *fake, enum freehint_verdict verdict, bool stale);

/* The one state of a granule, NOTHING for none, or -1 for several. */
int state(struct fake *fake, unsigned long granule);

#define EXPECT_STATE(test, granule, want) \
	KUNIT_EXPECT_EQ(test, state((test)->priv, granule), (int)(want))

#endif /* _MM_FREEHINT_TESTS_FAKE_H */
