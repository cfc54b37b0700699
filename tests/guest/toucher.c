// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Allocates memory, touches every page of it and frees it, in cycles.
 *
 * usage: toucher [-m MIB] [-n CYCLES | -s SECONDS] [-w WARM_UP] [-k KEEP_MS]
 *		  [-p PAUSE_MS] [-j THREADS] [-t]
 *
 *	-m	memory of each thread, in MiB (default: 512)
 *	-n	cycles of each thread (default: 1)
 *	-s	begin cycles for this many seconds instead
 *	-w	cycles before these, which are not reported (default: 0)
 *	-k	keep the memory this long before freeing it, in ms
 *	-p	pause after each cycle, in ms
 *	-j	threads, each with memory of its own (default: 1)
 *	-t	ask for transparent huge pages; without -t, refuse them
 *
 * Prints a line per cycle,
 *
 *	cycle THREAD TOUCH_NS FREE_NS FREE_MS FREED_MS
 *
 * with the time that touching and freeing took, and when freeing began and ended, by
 * CLOCK_MONOTONIC; and at the end
 *
 *	total BYTES NS
 *
 * with the number of bytes touched, and the time for all threads, pauses included.
 */
#define _GNU_SOURCE
#include <err.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "number.h"

#define MIB		(1UL << 20)
#define HUGE_BYTES	(2 * MIB)
#define PAGE_BYTES	4096
#define NS_PER_S	1000000000ULL
#define NS_PER_MS	1000000ULL
#define MAX_THREADS	64

static uint64_t size = 512 * MIB;
static uint64_t cycles = 1;
static uint64_t seconds;
static uint64_t warm_up;
static uint64_t keep_ms;
static uint64_t pause_ms;
static uint64_t nthreads = 1;
static bool huge;

static pthread_barrier_t warm;
static uint64_t started[MAX_THREADS], ended[MAX_THREADS], touched[MAX_THREADS];

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static void sleep_ms(uint64_t ms)
{
	struct timespec ts = {
		.tv_sec = ms / 1000,
		.tv_nsec = ms % 1000 * NS_PER_MS,
	};

	nanosleep(&ts, NULL);
}

/* Map one more huge page, so the first can start at a multiple of its size. */
static char *map_area(void)
{
	char *area = mmap(NULL, size + HUGE_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		err(2, "mmap of %llu MiB", (unsigned long long)(size / MIB));
	if (madvise(area, size + HUGE_BYTES,
		    huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		err(2, "madvise for huge pages");
	return area;
}

static void touch(char *area)
{
	uintptr_t start = ((uintptr_t)area + HUGE_BYTES - 1) & -HUGE_BYTES;

	for (uint64_t offset = 0; offset < size; offset += PAGE_BYTES)
		__atomic_store_n((char *)(start + offset), 1, __ATOMIC_RELAXED);
}

static void run_cycle(unsigned int thread, bool tell)
{
	char *area = map_area();
	uint64_t begin, touched_at, freeing, freed;

	begin = now_ns();
	touch(area);
	touched_at = now_ns();
	if (keep_ms)
		sleep_ms(keep_ms);
	freeing = now_ns();
	munmap(area, size + HUGE_BYTES);
	freed = now_ns();
	if (tell)
		printf("cycle %u %llu %llu %llu %llu\n", thread,
		       (unsigned long long)(touched_at - begin),
		       (unsigned long long)(freed - freeing),
		       (unsigned long long)(freeing / NS_PER_MS),
		       (unsigned long long)(freed / NS_PER_MS));
	if (pause_ms)
		sleep_ms(pause_ms);
}

static bool goes_on(uint64_t done, uint64_t since)
{
	if (seconds)
		return now_ns() - since < seconds * NS_PER_S;
	return done < cycles;
}

static void *run_thread(void *arg)
{
	unsigned int thread = (uintptr_t)arg;
	uint64_t done;

	for (done = 0; done < warm_up; done++)
		run_cycle(thread, false);
	pthread_barrier_wait(&warm);
	started[thread] = now_ns();
	for (done = 0; goes_on(done, started[thread]); done++)
		run_cycle(thread, true);
	ended[thread] = now_ns();
	touched[thread] = done * size;
	return NULL;
}

static void print_total(void)
{
	uint64_t first = started[0], last = ended[0], bytes = 0;

	for (unsigned int i = 0; i < nthreads; i++) {
		first = started[i] < first ? started[i] : first;
		last = ended[i] > last ? ended[i] : last;
		bytes += touched[i];
	}
	printf("total %llu %llu\n", (unsigned long long)bytes,
	       (unsigned long long)(last - first));
}

static void parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "m:n:s:w:k:p:j:t")) != -1) {
		switch (option) {
		case 'm':
			size = parse_number(optarg) * MIB;
			break;
		case 'n':
			cycles = parse_number(optarg);
			break;
		case 's':
			seconds = parse_number(optarg);
			break;
		case 'w':
			warm_up = parse_number(optarg);
			break;
		case 'k':
			keep_ms = parse_number(optarg);
			break;
		case 'p':
			pause_ms = parse_number(optarg);
			break;
		case 'j':
			nthreads = parse_number(optarg);
			break;
		case 't':
			huge = true;
			break;
		default:
			exit(2);
		}
	}
	if (!size || !nthreads || nthreads > MAX_THREADS)
		errx(2, "there must be some memory, and 1 to %d threads",
		     MAX_THREADS);
}

int main(int argc, char **argv)
{
	pthread_t threads[MAX_THREADS];

	parse_options(argc, argv);
	/* Write each line at once, not when a buffer is full. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_barrier_init(&warm, NULL, nthreads);
	for (uintptr_t i = 0; i < nthreads; i++)
		if (pthread_create(&threads[i], NULL, run_thread, (void *)i))
			errx(2, "cannot create a thread");
	for (unsigned int i = 0; i < nthreads; i++)
		pthread_join(threads[i], NULL);
	print_total();
	return 0;
}
