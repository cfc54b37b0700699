// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: granules that are nearly free become free as a whole.
 *
 * An optional layer. What programs free often lies in granules of which a few pages are
 * still in use, so that no hint can name it. Here these pages move to other pieces of
 * free memory. Compaction would do that, too, but it moves pages to the top of a zone,
 * whatever lies there: most of that memory may be with the host, and would have to come
 * back first. This starts with the granules that take the fewest moves, and breaks up no
 * free granule for them.
 *
 * Nothing is locked while it looks: what it sees is a guess, and a page that cannot be
 * isolated or moved stays where it is.
 */
#include <linux/export.h>
#include <linux/freehint.h>
#include <linux/gfp.h>
#include <linux/kernel_stat.h>
#include <linux/memblock.h>
#include <linux/memory_hotplug.h>
#include <linux/migrate.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/rculist.h>
#include <linux/swap.h>
#include <linux/tick.h>
#include <linux/time64.h>

#include "../internal.h"
#include "compat.h"
#include "hooks.h"
#include "internal.h"

/* First, at most one page in this many of a granule may be in use; at last, in that many. */
#define FH_FIRST_USED	32
#define FH_LAST_USED	2

/* One call looks at this many granules, or sections without memory, and moves one. */
#define FH_LOOKS	64

/*
 * Pages in use of a granule; more than @max if there are more, or if one cannot be
 * moved: then all of the granule has to stay.
 */
static unsigned int fh_count_used(unsigned long pfn, unsigned long end,
				  unsigned int max)
{
	unsigned int used = 0;

	while (pfn < end && used <= max) {
		struct page *page = pfn_to_page(pfn);

		if (PageBuddy(page)) {
			unsigned int order = buddy_order_unsafe(page);

			pfn += order <= MAX_PAGE_ORDER ? 1UL << order : 1;
			continue;
		}
		if (!PageLRU(page))
			return max + 1;
		used++;
		pfn++;
	}
	return used;
}

/* Returns how many pages it has isolated. */
static unsigned int fh_isolate(unsigned long pfn, unsigned long end,
			       struct list_head *folios)
{
	unsigned int nr = 0;

	for (; pfn < end; pfn++) {
		struct folio *folio = folio_get_nontail_page(pfn_to_page(pfn));

		if (!folio)
			continue;
		if (!folio_test_unevictable(folio) && folio_isolate_lru(folio)) {
			list_add_tail(&folio->lru, folios);
			nr += folio_nr_pages(folio);
			/* As migrate_pages() expects. */
			node_stat_mod_folio(folio, NR_ISOLATED_ANON +
					    folio_is_file_lru(folio),
					    folio_nr_pages(folio));
		}
		folio_put(folio);
	}
	return nr;
}

/**
 * struct fh_evacuation - where the pages of a granule go
 * @pfn: the granule's first page
 * @end: one past its last page
 * @inside: free pages of the granule itself, kept until the others have moved
 */
struct fh_evacuation {
	unsigned long pfn;
	unsigned long end;
	struct list_head inside;
};

static struct folio *fh_target(struct folio *source, unsigned long private)
{
	struct fh_evacuation *ev = (struct fh_evacuation *)private;
	gfp_t gfp = (GFP_USER | __GFP_MOVABLE | __GFP_NOWARN | __GFP_THISNODE) &
		    ~__GFP_RECLAIM;
	struct folio *target;

	if (folio_zonenum(source) == ZONE_MOVABLE)
		gfp |= __GFP_HIGHMEM;
	while ((target = __folio_alloc_node(gfp, folio_order(source),
					    folio_nid(source)))) {
		if (folio_pfn(target) < ev->pfn || folio_pfn(target) >= ev->end)
			break;
		list_add(&target->lru, &ev->inside);
	}
	return target;
}

/* Returns how many pages have moved: none, if one of those in use cannot be isolated. */
static unsigned int fh_move_out(unsigned long pfn, unsigned long end,
				unsigned int used)
{
	struct fh_evacuation ev = {
		.pfn = pfn,
		.end = end,
		.inside = LIST_HEAD_INIT(ev.inside),
	};
	struct folio *folio, *next;
	unsigned int moved = 0;
	LIST_HEAD(folios);

	if (fh_isolate(pfn, end, &folios) != used) {
		putback_movable_pages(&folios);
		return 0;
	}
	/* Waits for nobody: the pages of an idle guest are not locked. */
	if (migrate_pages(&folios, fh_target, NULL, (unsigned long)&ev,
			  MIGRATE_ASYNC, MR_COMPACTION, &moved))
		putback_movable_pages(&folios);
	list_for_each_entry_safe(folio, next, &ev.inside, lru)
		folio_put(folio);
	return moved;
}

/*
 * Is there room in other pieces of free memory? If not, a whole granule would be broken
 * up, and nothing would be gained.
 */
static bool fh_has_room(const struct zone *zone, unsigned long free_here,
			unsigned long used)
{
	struct fh_zone *fz;

	guard(rcu)();
	list_for_each_entry_rcu(fz, &fh_zones, list)
		if (fz->zone == zone)
			return fh_stuck_pages(fz) >= free_here + 2 * used;
	return false;
}

static bool fh_evacuate_granule(struct freehint_sweep *sweep, unsigned long pfn,
				unsigned long pages)
{
	struct zone *zone = page_zone(pfn_to_page(pfn));
	unsigned int used = fh_count_used(pfn, pfn + pages, sweep->max_used);
	unsigned int moved;

	if (!used || used > sweep->max_used ||
	    !fh_has_room(zone, pages - used, used))
		return false;
	moved = fh_move_out(pfn, pfn + pages, used);
	sweep->moved += moved;
	sweep->gained += moved == used;
	/* What was left behind went there, and would be the first target of the next. */
	fh_drain_zone(zone);
	return true;
}

static void fh_sweep_more(struct freehint_sweep *sweep, unsigned long pages)
{
	sweep->pfn = 0;
	sweep->max_used = sweep->max_used ? 2 * sweep->max_used :
					    max(pages / FH_FIRST_USED, 1UL);
	/* Pages that wait on per-CPU lists for the LRU cannot be moved. */
	lru_add_drain_all();
}

/**
 * freehint_evacuate - look for a granule that is nearly free, and make it free
 * @sweep: how far the search is; zeroed before the first call
 *
 * Call it again to go on, or later: each call takes little time. Memory that is in use
 * all the time, or that is pinned, stays where it is.
 *
 * Context: process context, in any thread but the one that returns batches.
 * Return: false if the sweep is over; the next call begins another.
 */
bool freehint_evacuate(struct freehint_sweep *sweep)
{
	const unsigned long pages = 1UL << freehint_order;
	unsigned int looks = FH_LOOKS;
	bool done = false;

	if (!sweep->max_used)
		fh_sweep_more(sweep, pages);
	get_online_mems();
	while (looks-- && !done && sweep->pfn < max_pfn) {
		unsigned long pfn = sweep->pfn;

		if (pfn_to_online_page(pfn)) {
			sweep->pfn += pages;
			done = fh_evacuate_granule(sweep, pfn, pages);
		} else {
			sweep->pfn = SECTION_ALIGN_UP(pfn + 1);
		}
	}
	put_online_mems();
	if (sweep->pfn < max_pfn)
		return true;
	if (sweep->max_used >= pages / FH_LAST_USED) {
		sweep->max_used = 0;
		return false;
	}
	fh_sweep_more(sweep, pages);
	return true;
}
EXPORT_SYMBOL_GPL(freehint_evacuate);

/**
 * freehint_get_load - what has the guest been doing
 * @load: filled
 *
 * Context: any. Looks at each CPU.
 */
void freehint_get_load(struct freehint_load *load)
{
	int cpu;

	*load = (struct freehint_load) {
		.stalls = fh_count_stalls(),
	};
	for_each_online_cpu(cpu) {
		u64 us = get_cpu_idle_time_us(cpu, NULL);

		/* If the timer ticks while a CPU idles, only these ticks tell. */
		load->idle_ns += us == -1ULL ? kcpustat_cpu(cpu).cpustat[CPUTIME_IDLE] :
					       us * NSEC_PER_USEC;
	}
}
EXPORT_SYMBOL_GPL(freehint_get_load);
