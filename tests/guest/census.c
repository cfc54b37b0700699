// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the pages of each zone by what the kernel reports about them.
 *
 * usage: census
 *
 * Prints a line for each zone that has memory:
 *
 *	NODE ZONE free PAGES cached PAGES slab PAGES bare PAGES away GRANULES
 *
 * "free" pages are on the free lists, "cached" ones on the per-CPU lists. "slab"
 * pages hold small objects of the kernel, which are in use or not: KASAN keeps freed
 * objects for a while. "bare" pages have no flag at all: they are cached, the kernel
 * uses them, or they are in flight. "away" counts granules of 2 MiB in which all
 * pages are bare; the kernel uses few granules in this way, always the same ones.
 */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define GRANULE_PAGES	512
#define KPF_SLAB	7
#define KPF_BUDDY	10

/* A zone of /proc/zoneinfo. */
struct zone {
	int node;
	char name[16];
	unsigned long spanned;
	unsigned long cached;
	unsigned long start_pfn;
};

struct count {
	unsigned long free;
	unsigned long slab;
	unsigned long bare;
	unsigned long away;
};

/* Count the granule at @pfn, but only its pages below @end. */
static void count_granule(int flags_fd, unsigned long pfn, unsigned long end,
			  struct count *count)
{
	size_t nr = end - pfn < GRANULE_PAGES ? end - pfn : GRANULE_PAGES;
	uint64_t flags[GRANULE_PAGES];
	unsigned long bare = 0;
	ssize_t done;

	done = pread(flags_fd, flags, nr * sizeof(flags[0]),
		     pfn * sizeof(flags[0]));
	if (done < 0)
		err(2, "/proc/kpageflags");
	nr = done / sizeof(flags[0]);
	for (size_t i = 0; i < nr; i++) {
		count->free += flags[i] >> KPF_BUDDY & 1;
		count->slab += flags[i] >> KPF_SLAB & 1;
		bare += !flags[i];
	}
	count->bare += bare;
	count->away += bare == GRANULE_PAGES;
}

static void count_zone(int flags_fd, const struct zone *zone)
{
	unsigned long end = zone->start_pfn + zone->spanned;
	unsigned long pfn = zone->start_pfn;
	struct count count = { 0 };

	while (pfn < end) {
		unsigned long next = (pfn / GRANULE_PAGES + 1) * GRANULE_PAGES;

		count_granule(flags_fd, pfn, next < end ? next : end, &count);
		pfn = next;
	}
	printf("%d %s free %lu cached %lu slab %lu bare %lu away %lu\n",
	       zone->node, zone->name, count.free, zone->cached, count.slab,
	       count.bare, count.away);
}

/* Read a line's figure into @zone. True for the last line of a zone with memory. */
static bool read_line(const char *line, struct zone *zone)
{
	unsigned long cached;

	if (sscanf(line, "Node %d, zone %15s", &zone->node, zone->name) == 2)
		zone->cached = 0;
	else if (sscanf(line, " count: %lu", &cached) == 1)
		zone->cached += cached;
	else if (sscanf(line, " spanned %lu", &zone->spanned) != 1)
		return sscanf(line, " start_pfn: %lu", &zone->start_pfn) == 1;
	return false;
}

int main(void)
{
	int flags_fd = open("/proc/kpageflags", O_RDONLY);
	FILE *zones = fopen("/proc/zoneinfo", "r");
	struct zone zone = { 0 };
	char line[256];

	if (flags_fd < 0 || !zones)
		err(2, "/proc/kpageflags or /proc/zoneinfo");
	while (fgets(line, sizeof(line), zones))
		if (read_line(line, &zone))
			count_zone(flags_fd, &zone);
	return 0;
}
