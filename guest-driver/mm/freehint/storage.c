// SPDX-License-Identifier: GPL-2.0
/*
 * Free memory hints: where the state of granules is kept.
 *
 * A chunk is allocated for each section of each zone when a device registers, or
 * when the section comes online, and freed when either goes. Zones find their
 * chunks through a map that is replaced under zone->lock when it has to grow, so
 * that whoever holds that lock may follow every pointer.
 */
#define pr_fmt(fmt) "freehint: " fmt

#include <linux/bitmap.h>
#include <linux/cleanup.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "hooks.h"
#include "internal.h"

/* Serializes those who change maps; readers hold zone->lock. */
static DEFINE_MUTEX(fh_storage_mutex);

/* The granule's order and the kick of zones that come online; under the mutex. */
static bool fh_storage_exists;
static unsigned int fh_storage_order;
static struct irq_work *fh_storage_kick;

static void fh_map_free(struct fh_map *map)
{
	if (!map)
		return;
	bitmap_free(map->pending);
	bitmap_free(map->hinted);
	kvfree(map);
}

static struct fh_map *fh_map_alloc(unsigned long first, unsigned long nr)
{
	struct fh_map *map = kvzalloc(struct_size(map, chunk, nr), GFP_KERNEL);

	if (!map)
		return NULL;
	map->first = first;
	map->nr = nr;
	map->pending = bitmap_zalloc(nr, GFP_KERNEL);
	map->hinted = bitmap_zalloc(nr, GFP_KERNEL);
	if (!map->pending || !map->hinted) {
		fh_map_free(map);
		return NULL;
	}
	return map;
}

static void fh_map_copy(struct fh_map *to, const struct fh_map *from)
{
	unsigned long i, shift;

	shift = from->first - to->first;
	for (i = 0; i < from->nr; i++) {
		to->chunk[i + shift] = from->chunk[i];
		__assign_bit(i + shift, to->pending, test_bit(i, from->pending));
		__assign_bit(i + shift, to->hinted, test_bit(i, from->hinted));
	}
}

/* Let the map span a section; what it spans already it keeps. */
static int fh_map_grow(struct fh_zone *fz, unsigned long sec)
{
	struct fh_map *old = fz->map, *new;
	unsigned long first, end, flags;

	if (old && sec >= old->first && sec < old->first + old->nr)
		return 0;

	first = old ? min(old->first, sec) : sec;
	end = old ? max(old->first + old->nr, sec + 1) : sec + 1;
	new = fh_map_alloc(first, end - first);
	if (!new)
		return -ENOMEM;

	spin_lock_irqsave(&fz->zone->lock, flags);
	if (old)
		fh_map_copy(new, old);
	fz->map = new;
	spin_unlock_irqrestore(&fz->zone->lock, flags);

	fh_map_free(old);
	return 0;
}

/**
 * fh_zone_alloc - start to track a zone
 * @zone: the zone
 * @order: the granule
 *
 * Return: with no section in it yet, and not known to the hooks; or NULL.
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
	fz->words = BITS_TO_LONGS(PAGES_PER_SECTION >> order);
	fz->soon_end = jiffies;
	fz->window_end = jiffies;
	fz->yield_end = jiffies;
	fz->map = fh_map_alloc(first, last - first + 1);
	if (!fz->map) {
		kfree(fz);
		return NULL;
	}
	return fz;
}

/**
 * fh_zone_free - the opposite of fh_zone_alloc()
 * @fz: not known to the hooks any more; or NULL
 */
void fh_zone_free(struct fh_zone *fz)
{
	unsigned long i;

	if (!fz)
		return;
	for (i = 0; i < fz->map->nr; i++)
		kfree(fz->map->chunk[i]);
	fh_map_free(fz->map);
	kfree(fz);
}

/**
 * fh_zone_add_section - have room for the granules of a section
 * @fz: the zone
 * @sec: number of the section
 *
 * Return: 0 or -ENOMEM.
 */
int fh_zone_add_section(struct fh_zone *fz, unsigned long sec)
{
	struct fh_chunk *chunk;
	unsigned long flags;
	int ret;

	ret = fh_map_grow(fz, sec);
	if (ret)
		return ret;
	if (fz->map->chunk[sec - fz->map->first])
		return 0;

	chunk = kzalloc(struct_size(chunk, bits, FH_NR_PLANES * fz->words),
			GFP_KERNEL);
	if (!chunk)
		return -ENOMEM;

	spin_lock_irqsave(&fz->zone->lock, flags);
	fz->map->chunk[sec - fz->map->first] = chunk;
	spin_unlock_irqrestore(&fz->zone->lock, flags);
	return 0;
}

/**
 * fh_zone_del_section - forget a section
 * @fz: the zone
 * @sec: number of the section; none of its pages is free or in flight
 */
void fh_zone_del_section(struct fh_zone *fz, unsigned long sec)
{
	struct fh_map *map = fz->map;
	struct fh_chunk *chunk;
	unsigned long flags;

	if (sec < map->first || sec - map->first >= map->nr)
		return;

	spin_lock_irqsave(&fz->zone->lock, flags);
	chunk = map->chunk[sec - map->first];
	if (chunk) {
		fh_wipe_chunk(fz, sec - map->first);
		map->chunk[sec - map->first] = NULL;
	}
	spin_unlock_irqrestore(&fz->zone->lock, flags);
	kfree(chunk);
}

/**
 * fh_next_zone - go through the zones that are tracked
 * @fz: where to go on, NULL to start
 *
 * Return: the next, NULL after the last.
 */
struct fh_zone *fh_next_zone(struct fh_zone *fz)
{
	struct zone *zone;

	zone = fz ? next_zone(fz->zone) : first_online_pgdat()->node_zones;
	for (; zone; zone = next_zone(zone)) {
		fz = READ_ONCE(zone->freehint);
		if (fz)
			return fz;
	}
	return NULL;
}

static void fh_publish(struct zone *zone, struct fh_zone *fz)
{
	unsigned long flags;

	spin_lock_irqsave(&zone->lock, flags);
	WRITE_ONCE(zone->freehint, fz);
	spin_unlock_irqrestore(&zone->lock, flags);
}

static struct fh_zone *fh_track_zone(struct zone *zone)
{
	struct fh_zone *fz = zone->freehint;

	if (fz)
		return fz;
	fz = fh_zone_alloc(zone, fh_storage_order);
	if (!fz)
		return NULL;
	fz->kick = fh_storage_kick;
	fh_publish(zone, fz);
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

static void fh_untrack_node(pg_data_t *pgdat)
{
	enum zone_type type;

	for (type = 0; type < MAX_NR_ZONES; type++) {
		struct zone *zone = &pgdat->node_zones[type];
		struct fh_zone *fz = zone->freehint;

		if (!fz)
			continue;
		fh_publish(zone, NULL);
		fh_zone_free(fz);
	}
}

/* A node whose memory was removed is offline, and its zones are still tracked. */
static void fh_untrack_all(void)
{
	int nid;

	for_each_node(nid)
		fh_untrack_node(NODE_DATA(nid));
}

static int fh_memory_notify(struct notifier_block *nb, unsigned long action,
			    void *data)
{
	struct memory_notify *mn = data;
	unsigned long end = mn->start_pfn + mn->nr_pages;
	struct zone *zone;

	switch (action) {
	case MEM_GOING_OFFLINE:
		/* Isolated before this is called, so no more of it is taken. */
		freehint_wait_range(mn->start_pfn, end);
		return NOTIFY_OK;
	case MEM_GOING_ONLINE:
	case MEM_CANCEL_ONLINE:
	case MEM_OFFLINE:
		break;
	default:
		return NOTIFY_DONE;
	}

	guard(mutex)(&fh_storage_mutex);
	if (!fh_storage_exists)
		return NOTIFY_DONE;

	zone = page_zone(pfn_to_page(mn->start_pfn));
	if (action != MEM_GOING_ONLINE)
		fh_untrack_range(zone, mn->start_pfn, end);
	else if (fh_track_range(zone, mn->start_pfn, end))
		/* Not worth failing for: this memory just is not hinted. */
		pr_warn("no memory to track pfn %#lx to %#lx, it will not be hinted\n",
			mn->start_pfn, end - 1);
	return NOTIFY_OK;
}

static struct notifier_block fh_memory_nb = {
	.notifier_call = fh_memory_notify,
};

/**
 * fh_storage_create - track all zones, now and as memory comes online
 * @order: the granule
 * @kick: queued when a zone that was idle has something to do
 *
 * Context: process context. Return: 0 or a negative error.
 */
int fh_storage_create(unsigned int order, struct irq_work *kick)
{
	struct zone *zone;
	int ret;

	ret = register_memory_notifier(&fh_memory_nb);
	if (ret)
		return ret;

	get_online_mems();
	mutex_lock(&fh_storage_mutex);
	fh_storage_order = order;
	fh_storage_kick = kick;
	fh_storage_exists = true;
	for_each_populated_zone(zone) {
		ret = fh_track_range(zone, zone->zone_start_pfn,
				     zone_end_pfn(zone));
		if (ret)
			break;
	}
	mutex_unlock(&fh_storage_mutex);
	put_online_mems();

	if (ret)
		fh_storage_destroy();
	return ret;
}

/**
 * fh_storage_destroy - track nothing
 *
 * Context: process context. The key is off and nothing is in flight.
 */
void fh_storage_destroy(void)
{
	unregister_memory_notifier(&fh_memory_nb);
	mutex_lock(&fh_storage_mutex);
	fh_storage_exists = false;
	fh_untrack_all();
	mutex_unlock(&fh_storage_mutex);
}
