// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of what brings free memory together.
 */
#include <linux/mm.h>
#include <linux/vmstat.h>

#include "client.h"

/* Memory that per-CPU lists keep is found. */
static void test_gather_drains(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, MAX_PAGE_ORDER);
	unsigned long pfn, i;

	KUNIT_ASSERT_NOT_NULL(test, page);
	pfn = page_to_pfn(page);
	split_page(page, MAX_PAGE_ORDER);
	for (i = 0; i < MAX_ORDER_NR_PAGES; i++)
		__free_page(page + i);
	freehint_gather(false, 0);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	KUNIT_EXPECT_TRUE(test, is_free(pfn + G));
	settle(test);
}

#ifdef CONFIG_COMPACTION
static unsigned long scanned(void)
{
	static unsigned long events[NR_VM_EVENT_ITEMS];

	all_vm_events(events);
	return events[COMPACTMIGRATE_SCANNED];
}

/* Compaction ends when its time is up, and does not begin without any. */
static void test_compaction_ends_in_time(struct kunit *test)
{
	unsigned long before = scanned();

	freehint_gather(true, jiffies - 1);
	KUNIT_EXPECT_EQ(test, scanned(), before);
	freehint_gather(true, jiffies + 60 * HZ);
	KUNIT_EXPECT_GT(test, scanned(), before);
}
#endif

static struct kunit_case drain_cases[] = {
	KUNIT_CASE(test_gather_drains),
#ifdef CONFIG_COMPACTION
	KUNIT_CASE(test_compaction_ends_in_time),
#endif
	{ }
};

static struct kunit_suite drain_suite = {
	.name = "freehint_drain",
	.init = client_init,
	.exit = client_exit,
	.test_cases = drain_cases,
};
kunit_test_suite(drain_suite);
