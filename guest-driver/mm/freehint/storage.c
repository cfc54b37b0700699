// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: where the states of granules are kept, and for which memory.
 *
 * From freehint_start() to freehint_stop(), each zone with memory is tracked, and each
 * online section of it has room for its states. A section that two zones share has room
 * in each, as the lock of a zone protects only its own states.
 *
 * fh_topology protects which zones and sections are tracked. The driver's thread holds
 * it while it walks them, and never while it waits for anything that may depend on the
 * holder of another lock. States change under zone->lock. Figures of a zone are read
 * under RCU.
 */
#define pr_fmt(fmt) "freehint: " fmt

#include <linux/bitmap.h>
#include <linux/cleanup.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rculist.h>
#include <linux/slab.h>

#include "hooks.h"
#include "internal.h"

DEFINE_MUTEX(fh_topology);

/* Zones that are tracked; under fh_topology, or RCU. */
LIST_HEAD(fh_zones);

/* Zones that come online are tracked, too. */
static bool fh_tracking;

static void fh_map_free(struct fh_map *map)
{
	if (!map)
		return;
	bitmap_free(map->pending);
	kvfree(map);
}

/* If this fails, hints or new memory have to wait, and the log says so. */
static struct fh_map *fh_map_alloc(unsigned long first, unsigned long end)
{
	unsigned long nr = end - first;
	struct fh_map *map = kvzalloc(struct_size(map, states, nr),
				      GFP_KERNEL | __GFP_NOWARN);

	if (!map)
		return NULL;
	map->first = first;
	map->nr = nr;
	map->pending = bitmap_zalloc(nr, GFP_KERNEL);
	if (!map->pending) {
		kvfree(map);
		return NULL;
	}
	return map;
}

/*
 * Let the map span a section. It grows by half, so that memory that comes section by
 * section does not copy it each time. It grows in steps of a long, so that the bitmap
 * is copied by longs: only that happens with the lock held, 12 KiB for 12 TiB.
 */
static int fh_map_grow(struct fh_zone *fz, unsigned long sec)
{
	struct fh_map *old = fz->map, *new;
	unsigned long first, end, shift, flags;

	if (sec >= old->first && sec < old->first + old->nr)
		return 0;

	first = old->first;
	end = old->first + old->nr;
	if (sec < first)
		first = round_down(sec, BITS_PER_LONG);
	else
		end = round_up(sec + 1 + old->nr / 2, BITS_PER_LONG);
	new = fh_map_alloc(first, end);
	if (!new)
		return -ENOMEM;

	shift = old->first - first;
	memcpy(new->states + shift, old->states, old->nr * sizeof(*old->states));
	spin_lock_irqsave(&fz->zone->lock, flags);
	bitmap_copy(new->pending + BIT_WORD(shift), old->pending, old->nr);
	fz->map = new;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	fh_map_free(old);
	return 0;
}

/**
 * fh_zone_alloc - allocate what is kept for a zone
 * @zone: the zone
 * @order: the granule
 *
 * Return: a struct without sections, not yet known to the hooks; or NULL.
 */
struct fh_zone *fh_zone_alloc(struct zone *zone, unsigned int order)
{
	unsigned long first = pfn_to_section_nr(zone->zone_start_pfn);
	unsigned long last = pfn_to_section_nr(zone_end_pfn(zone) - 1);
	struct fh_zone *fz = kzalloc(sizeof(*fz), GFP_KERNEL);

	if (!fz)
		return NULL;
	fz->zone = zone;
	fz->order = order;
	fz->soon_end = jiffies;
	fz->yield_end = jiffies;
	fz->map = fh_map_alloc(round_down(first, BITS_PER_LONG),
			       round_up(last + 1, BITS_PER_LONG));
	if (!fz->map) {
		kfree(fz);
		return NULL;
	}
	return fz;
}

/**
 * fh_zone_free - the opposite of fh_zone_alloc()
 * @fz: the zone, not known to the hooks any more
 */
void fh_zone_free(struct fh_zone *fz)
{
	unsigned long i;

	for (i = 0; i < fz->map->nr; i++)
		kfree(fz->map->states[i]);
	fh_map_free(fz->map);
	kfree_rcu(fz, rcu);
}

/**
 * fh_zone_add_section - make room for the states of a section
 * @fz: the zone
 * @sec: number of the section
 *
 * Return: 0 or -ENOMEM.
 */
int fh_zone_add_section(struct fh_zone *fz, unsigned long sec)
{
	unsigned long granules = PAGES_PER_SECTION >> fz->order, flags;
	u8 *states;
	int ret;

	ret = fh_map_grow(fz, sec);
	if (ret)
		return ret;
	if (fz->map->states[sec - fz->map->first])
		return 0;

	states = kzalloc(granules, GFP_KERNEL);
	if (!states)
		return -ENOMEM;

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->map->states[sec - fz->map->first] = states;
	fz->nr[FH_UNKNOWN] += granules;
	spin_unlock_irqrestore(&fz->zone->lock, flags);
	return 0;
}

/**
 * fh_zone_del_section - forget a section
 * @fz: the zone
 * @sec: number of the section; none of its pages is free
 */
void fh_zone_del_section(struct fh_zone *fz, unsigned long sec)
{
	unsigned long granules = PAGES_PER_SECTION >> fz->order, flags, i;
	struct fh_map *map = fz->map;
	u8 *states;

	if (sec < map->first || sec - map->first >= map->nr)
		return;

	spin_lock_irqsave(&fz->zone->lock, flags);
	states = map->states[sec - map->first];
	for (i = 0; states && i < granules; i++)
		fz->nr[states[i]]--;
	map->states[sec - map->first] = NULL;
	__clear_bit(sec - map->first, map->pending);
	spin_unlock_irqrestore(&fz->zone->lock, flags);
	kfree(states);
}

static void fh_publish(struct zone *zone, struct fh_zone *fz)
{
	unsigned long flags;

	spin_lock_irqsave(&zone->lock, flags);
	zone->freehint = fz;
	spin_unlock_irqrestore(&zone->lock, flags);
}

static struct fh_zone *fh_track_zone(struct zone *zone)
{
	struct fh_zone *fz = zone->freehint;

	if (fz)
		return fz;
	fz = fh_zone_alloc(zone, freehint_order);
	if (!fz)
		return NULL;
	fh_publish(zone, fz);
	list_add_tail_rcu(&fz->list, &fh_zones);
	return fz;
}

static int fh_track_range(struct zone *zone, unsigned long start_pfn,
			  unsigned long end_pfn)
{
	struct fh_zone *fz = fh_track_zone(zone);
	unsigned long sec;
	int ret;

	if (!fz)
		return -ENOMEM;
	for (sec = pfn_to_section_nr(start_pfn);
	     sec <= pfn_to_section_nr(end_pfn - 1); sec++) {
		if (!present_section_nr(sec))
			continue;
		ret = fh_zone_add_section(fz, sec);
		if (ret)
			return ret;
	}
	return 0;
}

static void fh_untrack_range(struct zone *zone, unsigned long start_pfn,
			     unsigned long end_pfn)
{
	struct fh_zone *fz = zone->freehint;
	unsigned long sec;

	if (!fz)
		return;
	for (sec = pfn_to_section_nr(start_pfn);
	     sec <= pfn_to_section_nr(end_pfn - 1); sec++)
		fh_zone_del_section(fz, sec);
}

/*
 * With its last memory, a zone loses its per-CPU data, which the thread and readers of
 * figures access without a lock.
 */
static void fh_set_leaving(struct zone *zone, bool leaving)
{
	struct fh_zone *fz = zone->freehint;

	if (!fz || fz->leaving == leaving)
		return;
	WRITE_ONCE(fz->leaving, leaving);
	if (leaving)
		synchronize_rcu();
}

static struct zone *fh_zone_of(const struct memory_notify *mn)
{
	return page_zone(pfn_to_page(mn->start_pfn));
}

static int fh_memory_notify(struct notifier_block *nb, unsigned long action,
			    void *data)
{
	struct memory_notify *mn = data;
	unsigned long end = mn->start_pfn + mn->nr_pages;

	guard(mutex)(&fh_topology);
	if (!fh_tracking)
		return NOTIFY_DONE;

	/* In other actions, its page structs may not be valid yet, or no longer. */
	switch (action) {
	case MEM_GOING_ONLINE:
		if (fh_track_range(fh_zone_of(mn), mn->start_pfn, end))
			/* Not worth failing for. */
			pr_warn("no memory to track pfn %#lx to %#lx, it will not be hinted\n",
				mn->start_pfn, end - 1);
		else
			fh_set_leaving(fh_zone_of(mn), false);
		break;
	case MEM_GOING_OFFLINE:
		if (fh_zone_of(mn)->present_pages <= mn->nr_pages)
			fh_set_leaving(fh_zone_of(mn), true);
		break;
	case MEM_CANCEL_OFFLINE:
		fh_set_leaving(fh_zone_of(mn), false);
		break;
	case MEM_CANCEL_ONLINE:
	case MEM_OFFLINE:
		fh_untrack_range(fh_zone_of(mn), mn->start_pfn, end);
		break;
	}
	return NOTIFY_OK;
}

static struct notifier_block fh_memory_nb = {
	.notifier_call = fh_memory_notify,
};

/**
 * fh_track - track all zones, now and as memory comes online
 * @order: the granule
 *
 * From here on, the hooks are active.
 *
 * Context: process context. Return: 0 or a negative error.
 */
int fh_track(unsigned int order)
{
	struct zone *zone;
	int ret;

	ret = register_memory_notifier(&fh_memory_nb);
	if (ret)
		return ret;

	get_online_mems();
	mutex_lock(&fh_topology);
	freehint_order = order;
	fh_tracking = true;
	for_each_populated_zone(zone) {
		ret = fh_track_range(zone, zone->zone_start_pfn,
				     zone_end_pfn(zone));
		if (ret)
			break;
	}
	mutex_unlock(&fh_topology);
	put_online_mems();

	if (ret)
		fh_untrack();
	else
		static_branch_enable(&freehint_key);
	return ret;
}

/**
 * fh_untrack - track nothing
 *
 * Context: process context.
 */
void fh_untrack(void)
{
	struct fh_zone *fz, *next;

	static_branch_disable(&freehint_key);
	unregister_memory_notifier(&fh_memory_nb);
	guard(mutex)(&fh_topology);
	fh_tracking = false;
	list_for_each_entry_safe(fz, next, &fh_zones, list) {
		fh_publish(fz->zone, NULL);
		list_del_rcu(&fz->list);
		fh_zone_free(fz);
	}
}
