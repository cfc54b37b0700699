// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: unit tests of what moves pages out of granules that are nearly free.
 */
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>

#include "client.h"

#define KEPT	0x5aU

/* A granule that is in use, page by page. */
static struct page *split_granule(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_MOVABLE, ORDER);

	KUNIT_ASSERT_NOT_NULL(test, page);
	split_page(page, ORDER);
	return page;
}

/* Free pages of a granule from @first on. */
static void free_from(struct page *page, unsigned int first)
{
	unsigned int i;

	for (i = first; i < G; i++)
		__free_page(page + i);
	drain_all_pages(NULL);
}

static void sweep_all(void)
{
	struct freehint_sweep sweep = { };

	while (freehint_evacuate(&sweep))
		;
}

/* What is in use, but on no LRU list, stays where it is. */
static void test_evacuate_leaves_what_cannot_move(struct kunit *test)
{
	struct page *page = split_granule(test);

	memset(page_address(page), KEPT, PAGE_SIZE);
	free_from(page, 1);
	sweep_all();
	KUNIT_EXPECT_FALSE(test, is_free(page_to_pfn(page)));
	KUNIT_EXPECT_EQ(test, page_count(page), 1);
	KUNIT_EXPECT_NULL(test, memchr_inv(page_address(page), KEPT, PAGE_SIZE));
	__free_page(page);
	settle(test);
}

#ifdef CONFIG_SHMEM
/* In 7.3, the flags of a mapping are a struct. */
#ifndef EMPTY_VMA_FLAGS
#define EMPTY_VMA_FLAGS	0
#endif

/* A file whose only page is @page, which does not belong to the caller any more. */
static struct file *file_of(struct kunit *test, struct page *page)
{
	struct file *file = shmem_kernel_file_setup("freehint", PAGE_SIZE,
						    EMPTY_VMA_FLAGS);
	struct folio *folio = page_folio(page);

	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	memset(page_address(page), KEPT, PAGE_SIZE);
	KUNIT_ASSERT_EQ(test, filemap_add_folio(file->f_mapping, folio, 0, GFP_KERNEL), 0);
	folio_mark_uptodate(folio);
	folio_unlock(folio);
	folio_put(folio);
	return file;
}

static void expect_kept(struct kunit *test, struct file *file)
{
	struct page *page = shmem_read_mapping_page(file->f_mapping, 0);

	KUNIT_ASSERT_FALSE(test, IS_ERR(page));
	KUNIT_EXPECT_NULL(test, memchr_inv(page_address(page), KEPT, PAGE_SIZE));
	put_page(page);
}

/* Take what is free in small pieces, until the next page would be one of the granule. */
static void use_up_pieces(struct kunit *test, unsigned long pfn, struct list_head *pieces)
{
	struct page *page;

	for (;;) {
		page = alloc_page(GFP_KERNEL | __GFP_MOVABLE | __GFP_NOWARN);
		KUNIT_ASSERT_NOT_NULL(test, page);
		if (page_to_pfn(page) >= pfn && page_to_pfn(page) < pfn + G)
			break;
		list_add(&page->lru, pieces);
	}
	__free_page(page);
	drain_all_pages(NULL);
}

static void free_pieces(struct list_head *pieces)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, pieces, lru)
		__free_page(page);
}

/* A page of a file goes elsewhere, with what is in it, and the granule is free. */
static void test_evacuate_moves_what_can_move(struct kunit *test)
{
	struct page *page = split_granule(test), *other = split_granule(test);
	struct file *file = file_of(test, page);
	unsigned long pfn = page_to_pfn(page);
	struct freehint_sweep swept = { };
	LIST_HEAD(pieces);
	unsigned int i;

	free_from(page, 1);
	/* The first page that the allocator would give is of the granule itself. */
	use_up_pieces(test, pfn, &pieces);
	/* There is room in this one, half of which stays, but not in pieces that small. */
	free_from(other, G / 2);
	KUNIT_EXPECT_FALSE(test, is_free(pfn));

	/* One look at it is enough. */
	while (swept.pfn <= pfn)
		freehint_evacuate(&swept);
	KUNIT_EXPECT_TRUE(test, is_free(pfn));
	KUNIT_EXPECT_GE(test, swept.gained, 1);
	KUNIT_EXPECT_GE(test, swept.moved, swept.gained);
	expect_kept(test, file);
	/* It is to be hinted, like any memory that is freed. */
	KUNIT_EXPECT_EQ(test, state_of(pfn), FH_YOUNG);

	free_pieces(&pieces);
	fput(file);
	for (i = 0; i < G / 2; i++)
		__free_page(other + i);
	settle(test);
}

/* A page that somebody looks at stays; so does the granule. */
static void test_evacuate_leaves_what_is_pinned(struct kunit *test)
{
	struct page *page = split_granule(test), *other = split_granule(test);
	struct file *file = file_of(test, page);

	get_page(page);
	free_from(page, 1);
	free_from(other, 1);
	sweep_all();
	KUNIT_EXPECT_FALSE(test, is_free(page_to_pfn(page)));
	expect_kept(test, file);
	/* It is on its list again, where reclaim finds it. */
	lru_add_drain_all();
	KUNIT_EXPECT_TRUE(test, PageLRU(page));
	put_page(page);
	fput(file);
	__free_page(other);
	settle(test);
}
#endif

/* Time goes by while nobody does anything. */
static void test_idle_time(struct kunit *test)
{
	struct freehint_load before, after;

	freehint_get_load(&before);
	schedule_timeout_uninterruptible(HZ / 5);
	freehint_get_load(&after);
	KUNIT_EXPECT_GT(test, after.idle_ns, before.idle_ns);
	KUNIT_EXPECT_EQ(test, after.stalls, before.stalls);
}

static struct kunit_case evacuate_cases[] = {
	KUNIT_CASE(test_evacuate_leaves_what_cannot_move),
#ifdef CONFIG_SHMEM
	KUNIT_CASE(test_evacuate_moves_what_can_move),
	KUNIT_CASE(test_evacuate_leaves_what_is_pinned),
#endif
	KUNIT_CASE(test_idle_time),
	{ }
};

static struct kunit_suite evacuate_suite = {
	.name = "freehint_evacuate",
	.init = client_init,
	.exit = client_exit,
	.test_cases = evacuate_cases,
};
kunit_test_suite(evacuate_suite);
