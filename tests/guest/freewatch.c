// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints how much of the free memory is in blocks that a hint can name, again and
 * again, and what all other memory is used for; or in how many pieces the free
 * memory is.
 *
 * usage: freewatch INTERVAL_MS SECONDS
 *	  freewatch use INTERVAL_MS SECONDS
 *	  freewatch runs
 *
 * The first form prints a line each INTERVAL_MS for SECONDS,
 *
 *	free NOW_MS FREE_BYTES BLOCK_BYTES
 *
 * from CLOCK_MONOTONIC, MemFree and /proc/buddyinfo: BLOCK_BYTES are in blocks of
 * 2 MiB or more. The second form prints
 *
 *	use NOW_MS BLOCK_BYTES NAME BYTES...
 *
 * with all that /proc/meminfo tells. The third form prints
 *
 *	runs NR GRANULES
 *
 * from /proc/kpageflags: GRANULES granules of 2 MiB are entirely free, and they are
 * in NR runs, each as long as possible.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES	4096ULL
#define GRANULE_ORDER	9
#define GRANULE_PAGES	(1 << GRANULE_ORDER)

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static uint64_t free_bytes(void)
{
	unsigned long long kib = 0;
	FILE *file = fopen("/proc/meminfo", "re");
	char line[128];

	if (!file)
		err(1, "/proc/meminfo");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "MemFree: %llu", &kib) == 1)
			break;
	fclose(file);
	return kib * 1024;
}

/* "Node 0, zone DMA32 1 2 3...": free blocks by order. */
static uint64_t zone_block_bytes(const char *line)
{
	uint64_t bytes = 0;
	int order = 0, skip = 0;
	unsigned long nr;

	if (sscanf(line, "Node %*d, zone %*s %n", &skip) < 0 || !skip)
		errx(1, "/proc/buddyinfo has '%s'", line);
	for (line += skip; sscanf(line, "%lu %n", &nr, &skip) == 1; line += skip) {
		if (order >= GRANULE_ORDER)
			bytes += nr * (PAGE_BYTES << order);
		order++;
	}
	return bytes;
}

static uint64_t block_bytes(void)
{
	FILE *file = fopen("/proc/buddyinfo", "re");
	uint64_t bytes = 0;
	char line[512];

	if (!file)
		err(1, "/proc/buddyinfo");
	while (fgets(line, sizeof(line), file))
		bytes += zone_block_bytes(line);
	fclose(file);
	return bytes;
}

static void print_free(void)
{
	printf("free %llu %llu %llu\n", (unsigned long long)now_ms(),
	       (unsigned long long)free_bytes(),
	       (unsigned long long)block_bytes());
}

/* Some fields are numbers of huge pages, not sizes. */
static void print_use(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib;
	char line[128], name[64];

	if (!file)
		err(1, "/proc/meminfo");
	printf("use %llu %llu", (unsigned long long)now_ms(),
	       (unsigned long long)block_bytes());
	while (fgets(line, sizeof(line), file))
		if (strstr(line, " kB\n") &&
		    sscanf(line, "%63[^:]: %llu", name, &kib) == 2)
			printf(" %s %llu", name, kib * 1024);
	printf("\n");
	fclose(file);
}

static void watch(void (*print)(void), long interval_ms, long seconds)
{
	struct timespec interval = {
		.tv_sec = interval_ms / 1000,
		.tv_nsec = interval_ms % 1000 * 1000000,
	};
	uint64_t end = now_ms() + seconds * 1000;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (now_ms() < end) {
		print();
		nanosleep(&interval, NULL);
	}
}

static bool granule_is_free(const uint64_t *flags)
{
	for (int i = 0; i < GRANULE_PAGES; i++)
		if (!(flags[i] & 1ULL << KPF_BUDDY))
			return false;
	return true;
}

static void count_runs(void)
{
	static uint64_t flags[GRANULE_PAGES];
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	unsigned long runs = 0, granules = 0;
	bool free, was_free = false;

	if (fd < 0)
		err(1, "/proc/kpageflags");
	while (read(fd, flags, sizeof(flags)) == sizeof(flags)) {
		free = granule_is_free(flags);
		granules += free;
		runs += free && !was_free;
		was_free = free;
	}
	close(fd);
	printf("runs %lu %lu\n", runs, granules);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "runs"))
		count_runs();
	else if (argc == 3 && atol(argv[1]) > 0 && atol(argv[2]) > 0)
		watch(print_free, atol(argv[1]), atol(argv[2]));
	else if (argc == 4 && !strcmp(argv[1], "use") && atol(argv[2]) > 0 &&
		 atol(argv[3]) > 0)
		watch(print_use, atol(argv[2]), atol(argv[3]));
	else
		errx(2, "usage: freewatch [use] INTERVAL_MS SECONDS | freewatch runs");
	return 0;
}
