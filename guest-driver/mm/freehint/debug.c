// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: compare the states of granules with the free lists.
 *
 * Each granule has two invariants, checked under the zone's lock. Safety: it is not
 * both on a free list and out. Completeness: on a free list, it is pending, lazy, discarded
 * or refused. A granule that is not free, though its state says so, is no violation: it
 * was taken in another way than by an allocation, or is about to be noticed.
 */
#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/seq_file.h>

#include "../internal.h"
#include "hooks.h"
#include "internal.h"

/**
 * struct fh_audit - granules seen, and what was wrong with them
 * @granules: looked at
 * @free: on a free list, whole
 * @both: on a free list and out
 * @unknown: on a free list and in no state
 * @taken: in a state that says free, but not on a free list
 * @miscounted: states whose count differs from their granules, summed over zones
 */
struct fh_audit {
	unsigned long granules;
	unsigned long free;
	unsigned long both;
	unsigned long unknown;
	unsigned long taken;
	unsigned long miscounted;
};

static void fh_audit_granule(struct fh_zone *fz, unsigned long pfn,
			     struct fh_audit *audit, unsigned long *nr)
{
	bool is_free = pfn_to_online_page(pfn) &&
		       fh_find_buddy(fz->zone, pfn, fz->order);
	enum fh_state state = fh_state(fz, pfn);
	bool is_out = state == FH_OUT || state == FH_LOST;

	nr[state]++;
	audit->granules++;
	audit->free += is_free;
	audit->both += is_free && is_out;
	audit->unknown += is_free && state == FH_UNKNOWN;
	audit->taken += !is_free && !is_out && state != FH_UNKNOWN &&
			state != FH_REFUSED;
}

/*
 * The lock is held for the whole zone, so that the counts can be compared. For
 * debugging only, as a large zone takes long.
 */
static void fh_audit_zone(struct fh_zone *fz, struct fh_audit *audit)
{
	unsigned long nr[FH_NR_STATES] = { };
	unsigned long sec, pfn, end, irq;
	enum fh_state state;

	spin_lock_irqsave(&fz->zone->lock, irq);
	for (sec = 0; sec < fz->map->nr; sec++) {
		if (!fz->map->states[sec])
			continue;
		pfn = section_nr_to_pfn(fz->map->first + sec);
		end = pfn + PAGES_PER_SECTION;
		for (; pfn < end; pfn += fh_granule_pages(fz))
			fh_audit_granule(fz, pfn, audit, nr);
	}
	for (state = 0; state < FH_NR_STATES; state++)
		audit->miscounted += nr[state] != fz->nr[state];
	spin_unlock_irqrestore(&fz->zone->lock, irq);
}

static int check_show(struct seq_file *m, void *unused)
{
	struct fh_audit audit = { };
	struct fh_zone *fz;

	guard(mutex)(&fh_topology);
	list_for_each_entry(fz, &fh_zones, list)
		fh_audit_zone(fz, &audit);

	seq_printf(m, "granules %lu\n", audit.granules);
	seq_printf(m, "free %lu\n", audit.free);
	seq_printf(m, "both %lu\n", audit.both);
	seq_printf(m, "unknown %lu\n", audit.unknown);
	seq_printf(m, "taken %lu\n", audit.taken);
	seq_printf(m, "miscounted %lu\n", audit.miscounted);
	seq_printf(m, "violations %lu\n",
		   audit.both + audit.unknown + audit.miscounted);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(check);

void __init fh_debug_init(void)
{
	struct dentry *dir = debugfs_create_dir("freehint", NULL);

	debugfs_create_file("check", 0400, dir, NULL, &check_fops);
}
