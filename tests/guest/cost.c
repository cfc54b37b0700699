// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts the instructions of loops that allocate and free memory.
 *
 * usage: cost
 *
 * Prints a line for each loop: LOOP OPERATIONS BUDDY INSTRUCTIONS
 *
 *	fault	fault in and unmap so few pages that they stay on the per-CPU lists
 *	order0	fault in and unmap so many pages that they come from the buddy lists
 *		and go back there
 *	order9	grow the pool of huge pages by more than a per-CPU list holds, and
 *		empty it
 *
 * An operation is an allocation and the free that undoes it; at least BUDDY of them
 * get past the per-CPU lists. The time stamp counter has to count instructions, as
 * it does under "qemu -icount shift=0". Each loop runs many times, and the median is
 * printed. Two of the loops are so short that most runs have no timer tick. The third
 * is so long that most runs have the same number of ticks, and of merged blocks.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define PAGE		4096UL
#define VM		"/proc/sys/vm/"

/* An address with nothing else nearby, so each run uses the same page tables. */
#define PLACE		((void *)(1UL << 40))

/* More pages than the per-CPU lists have at first; freeing so many makes them small. */
#define LISTED_BEFORE	16384UL

/* How often each loop is run. */
#define RUNS		101

static void touch_and_free(unsigned long pages)
{
	char *map = mmap(PLACE, pages * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			 -1, 0);

	if (map == MAP_FAILED)
		err(2, "mmap of %lu pages", pages);
	for (unsigned long i = 0; i < pages; i++)
		map[i * PAGE] = 1;
	munmap(map, pages * PAGE);
}

/* Returns the new value, which may not be the one asked for. */
static unsigned long set_number(const char *path, unsigned long number)
{
	int fd = open(path, O_RDWR);
	char text[32];
	ssize_t length;

	snprintf(text, sizeof(text), "%lu", number);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(2, "%lu to %s", number, path);
	length = pread(fd, text, sizeof(text) - 1, 0);
	if (length < 0)
		err(2, "%s", path);
	text[length] = '\0';
	close(fd);
	return strtoul(text, NULL, 10);
}

static void set_pool(unsigned long pages)
{
	unsigned long got = set_number(VM "nr_hugepages", pages);

	if (got != pages)
		errx(2, "a pool of %lu instead of %lu huge pages", got, pages);
}

static void fill_and_empty_pool(unsigned long pages)
{
	set_pool(pages);
	set_pool(0);
}

/* The highest limit that any zone has for its per-CPU lists, in pages. */
static unsigned long most_on_lists(void)
{
	FILE *file = fopen("/proc/zoneinfo", "re");
	unsigned long high, most = 0;
	char line[256];

	if (!file)
		err(2, "/proc/zoneinfo");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, " high: %lu", &high) == 1 && high > most)
			most = high;
	fclose(file);
	return most;
}

static const struct {
	const char *name;
	void (*run)(unsigned long operations);
	unsigned long operations;
	unsigned long pages;
} loops[] = {
	{ "fault", touch_and_free, 16, 16 },
	{ "order0", touch_and_free, 4096, 4096 },
	{ "order9", fill_and_empty_pool, 64, 64 * 512 },
};

static int compare(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

static uint64_t median_run(void (*run)(unsigned long), unsigned long operations)
{
	static uint64_t took[RUNS];

	for (int i = 0; i < RUNS; i++) {
		uint64_t start = __rdtsc();

		run(operations);
		took[i] = __rdtsc() - start;
	}
	qsort(took, RUNS, sizeof(took[0]), compare);
	return took[RUNS / 2];
}

int main(void)
{
	unsigned long listed;

	/* The size of the lists adapts to the load; make it minimal and fixed. */
	set_number(VM "percpu_pagelist_high_fraction", INT_MAX);
	touch_and_free(LISTED_BEFORE);
	listed = most_on_lists();
	for (size_t i = 0; i < ARRAY_SIZE(loops); i++) {
		unsigned long size = loops[i].pages / loops[i].operations;
		unsigned long operations = loops[i].operations;
		unsigned long buddy = operations > listed / size ?
				      operations - listed / size : 0;

		printf("%s %lu %lu %llu\n", loops[i].name, operations, buddy,
		       (unsigned long long)median_run(loops[i].run, operations));
	}
	return 0;
}
