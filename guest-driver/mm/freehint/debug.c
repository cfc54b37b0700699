// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: compare what the engine believes with the free lists.
 *
 * Two invariants, granule by granule, each under the zone's lock. Safety: no
 * granule is on a free list and in the hands of the device. Completeness: every
 * granule on a free list is pending, hinted, declined or never, and none that is
 * not on a free list claims to be.
 */
#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/seq_file.h>

#include "../internal.h"
#include "engine.h"
#include "hooks.h"

/**
 * struct fh_audit - granules seen, and what was wrong with them
 * @granules: looked at
 * @free: on a free list, whole
 * @both: on a free list and in flight
 * @lost: on a free list and in no state
 * @stale: in a state that says free, and not on a free list
 * @mixed: in more than one state
 * @miscounted: planes whose count differs from their bits, summed over zones
 */
struct fh_audit {
	unsigned long granules;
	unsigned long free;
	unsigned long both;
	unsigned long lost;
	unsigned long stale;
	unsigned long mixed;
	unsigned long miscounted;
};

static void fh_audit_granule(struct fh_zone *fz, unsigned long pfn,
			     struct fh_audit *audit, unsigned long *count)
{
	bool is_free = pfn_to_online_page(pfn) &&
		       fh_find_buddy(fz->zone, pfn, fz->order);
	unsigned int states = 0;
	enum fh_plane plane;
	bool set[FH_NR_PLANES];

	for (plane = 0; plane < FH_NR_PLANES; plane++) {
		set[plane] = fh_test(fz, pfn, fz->order, plane);
		count[plane] += set[plane];
		if (plane <= FH_NEVER)
			states += set[plane];
	}

	audit->granules++;
	audit->free += is_free;
	audit->both += is_free && set[FH_INFLIGHT];
	audit->lost += is_free && !states;
	audit->stale += !is_free && (set[FH_YOUNG] || set[FH_AGED] ||
				     set[FH_HINTED] || set[FH_HELD]);
	audit->mixed += states > 1;
}

/*
 * One lock hold for the whole zone, or the counts could not be compared. For
 * debugging only, as it is as long as the zone is large.
 */
static void fh_audit_zone(struct fh_zone *fz, struct fh_audit *audit)
{
	unsigned long count[FH_NR_PLANES] = { };
	unsigned long sec, pfn, end, flags;
	enum fh_plane plane;

	spin_lock_irqsave(&fz->zone->lock, flags);
	for (sec = 0; sec < fz->map->nr; sec++) {
		if (!fz->map->chunk[sec])
			continue;
		pfn = section_nr_to_pfn(fz->map->first + sec);
		end = pfn + PAGES_PER_SECTION;
		for (; pfn < end; pfn += fh_granule_pages(fz))
			fh_audit_granule(fz, pfn, audit, count);
	}
	for (plane = 0; plane < FH_NR_PLANES; plane++)
		audit->miscounted += count[plane] != fz->nr[plane];
	spin_unlock_irqrestore(&fz->zone->lock, flags);
}

static int check_show(struct seq_file *m, void *unused)
{
	struct fh_audit audit = { };
	struct fh_zone *fz;

	/* No device, and no zone, comes or goes meanwhile. */
	guard(mutex)(&fh_engine.lock);
	/* With the key off nobody keeps the state. */
	if (static_key_enabled(&freehint_key)) {
		get_online_mems();
		for_each_fh_zone(fz)
			fh_audit_zone(fz, &audit);
		put_online_mems();
	}

	seq_printf(m, "granules %lu\n", audit.granules);
	seq_printf(m, "free %lu\n", audit.free);
	seq_printf(m, "both %lu\n", audit.both);
	seq_printf(m, "lost %lu\n", audit.lost);
	seq_printf(m, "stale %lu\n", audit.stale);
	seq_printf(m, "mixed %lu\n", audit.mixed);
	seq_printf(m, "miscounted %lu\n", audit.miscounted);
	seq_printf(m, "violations %lu\n", audit.both + audit.lost + audit.stale +
		   audit.mixed + audit.miscounted);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(check);

void __init fh_debug_init(void)
{
	struct dentry *dir = debugfs_create_dir("freehint", NULL);

	debugfs_create_file("check", 0400, dir, NULL, &check_fops);
}
