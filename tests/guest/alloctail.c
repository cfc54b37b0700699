// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Measures how long single allocations take while little memory is free, and some
 * of that is allocated and freed all the time.
 *
 * usage: alloctail [-l LEAVE_MIB | -f FILL_MIB] [-c CHURN_MIB] [-p PAUSE_MS]
 *		    [-s SECONDS]
 *
 *	-l	fill the memory until this much is free (default: 192)
 *	-f	fill this much instead: the figure of free memory does not include
 *		per-CPU lists, or memory that the device has
 *	-c	have another thread allocate and free this much of it all the time
 *		(default: 64)
 *	-p	pause of that thread each time it has freed (default: 250)
 *	-s	how long to measure (default: 10)
 *
 * Prints, for pages (order 0) and huge pages (order 9), the number of allocations
 * and how long they took, in nanoseconds, and what the allocator had to do for them:
 *
 *	order ORDER COUNT P50 P99 P999 MAX
 *	vmstat NAME EVENTS
 *
 * An allocation is the first touch of a page, fault and clearing included.
 */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "number.h"

#define MIB		(1UL << 20)
#define PAGE_BYTES	4096UL
#define HUGE_BYTES	(2 * MIB)
#define NS_PER_S	1000000000ULL

/* Pages and huge pages per round; at its end, they are freed again. */
#define ROUND_PAGES	1024
#define ROUND_HUGE	4
#define MAX_SAMPLES	(1UL << 20)

static uint64_t leave = 192 * MIB;
static uint64_t fill_bytes;
static uint64_t churn_bytes = 64 * MIB;
static uint64_t pause_ms = 250;
static uint64_t seconds = 10;
static bool over;

struct samples {
	uint64_t ns[MAX_SAMPLES];
	size_t nr;
};

static struct samples pages, huge_pages;

#define NR_EVENTS	8

static const char * const events[NR_EVENTS] = {
	"allocstall_dma32", "allocstall_normal", "allocstall_movable",
	"compact_stall", "compact_fail", "thp_fault_alloc", "thp_fault_fallback",
	"oom_kill",
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static uint64_t free_bytes(void)
{
	struct sysinfo info;

	sysinfo(&info);
	return (uint64_t)info.freeram * info.mem_unit;
}

static void read_events(uint64_t *values)
{
	FILE *file = fopen("/proc/vmstat", "re");
	unsigned long long value;
	char name[64];

	if (!file)
		err(1, "/proc/vmstat");
	while (fscanf(file, "%63s %llu", name, &value) == 2)
		for (int i = 0; i < NR_EVENTS; i++)
			if (!strcmp(name, events[i]))
				values[i] = value;
	fclose(file);
}

static char *map(size_t size, int advice)
{
	char *area = mmap(NULL, size + HUGE_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		err(2, "mmap of %zu MiB", size / MIB);
	area = (char *)(((uintptr_t)area + HUGE_BYTES - 1) & -HUGE_BYTES);
	if (madvise(area, size, advice))
		err(2, "madvise");
	return area;
}

/* Fill until little is free, or until all that was asked for is in use. Never freed. */
static void fill(void)
{
	size_t room = fill_bytes ? fill_bytes : free_bytes();
	char *area = map(room, MADV_HUGEPAGE);

	for (size_t done = 0;
	     done < room && (fill_bytes || free_bytes() > leave);
	     done += HUGE_BYTES)
		memset(area + done, 1, HUGE_BYTES);
}

static void *churn(void *arg)
{
	struct timespec ts = {
		.tv_sec = pause_ms / 1000,
		.tv_nsec = pause_ms % 1000 * 1000000,
	};
	char *area = map(churn_bytes, MADV_HUGEPAGE);

	(void)arg;
	while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
		for (size_t done = 0; done < churn_bytes; done += PAGE_BYTES)
			area[done] = 1;
		if (madvise(area, churn_bytes, MADV_DONTNEED))
			err(2, "madvise(MADV_DONTNEED)");
		nanosleep(&ts, NULL);
	}
	return NULL;
}

static void measure(struct samples *samples, char *area, size_t size, int nr)
{
	for (int i = 0; i < nr && samples->nr < MAX_SAMPLES; i++) {
		uint64_t begin = now_ns();

		__atomic_store_n(area + i * size, 1, __ATOMIC_RELAXED);
		samples->ns[samples->nr++] = now_ns() - begin;
	}
	if (madvise(area, nr * size, MADV_DONTNEED))
		err(2, "madvise(MADV_DONTNEED)");
}

static int compare(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

static uint64_t permille(const struct samples *samples, unsigned int which)
{
	return samples->ns[(samples->nr - 1) * which / 1000];
}

static void print_samples(int order, struct samples *samples)
{
	if (!samples->nr)
		errx(1, "nothing was measured");
	qsort(samples->ns, samples->nr, sizeof(uint64_t), compare);
	printf("order %d %zu %llu %llu %llu %llu\n", order, samples->nr,
	       (unsigned long long)permille(samples, 500),
	       (unsigned long long)permille(samples, 990),
	       (unsigned long long)permille(samples, 999),
	       (unsigned long long)permille(samples, 1000));
}

static void parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "l:f:c:p:s:")) != -1) {
		switch (option) {
		case 'l':
			leave = parse_number(optarg) * MIB;
			break;
		case 'f':
			fill_bytes = parse_number(optarg) * MIB;
			break;
		case 'c':
			churn_bytes = parse_number(optarg) * MIB;
			break;
		case 'p':
			pause_ms = parse_number(optarg);
			break;
		case 's':
			seconds = parse_number(optarg);
			break;
		default:
			exit(2);
		}
	}
	if (!seconds || (!fill_bytes && churn_bytes >= leave))
		errx(2, "it takes a second, and less is churned than left free");
}

int main(int argc, char **argv)
{
	uint64_t before[NR_EVENTS] = { 0 }, after[NR_EVENTS] = { 0 };
	char *small, *large;
	pthread_t thread;
	uint64_t end;

	parse_options(argc, argv);
	small = map(ROUND_PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
	large = map(ROUND_HUGE * HUGE_BYTES, MADV_HUGEPAGE);
	/* Allocate the memory for the samples before they are taken. */
	memset(&pages, 1, sizeof(pages));
	memset(&huge_pages, 1, sizeof(huge_pages));
	pages.nr = 0;
	huge_pages.nr = 0;
	fill();

	read_events(before);
	if (pthread_create(&thread, NULL, churn, NULL))
		errx(2, "cannot create a thread");
	end = now_ns() + seconds * NS_PER_S;
	while (now_ns() < end) {
		measure(&pages, small, PAGE_BYTES, ROUND_PAGES);
		measure(&huge_pages, large, HUGE_BYTES, ROUND_HUGE);
	}
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	read_events(after);

	print_samples(0, &pages);
	print_samples(9, &huge_pages);
	for (int i = 0; i < NR_EVENTS; i++)
		printf("vmstat %s %llu\n", events[i],
		       (unsigned long long)(after[i] - before[i]));
	return 0;
}
