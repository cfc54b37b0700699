// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Measures what it costs to copy a page and to hash the copy, with pages that are in no
 * cache.
 *
 * usage: pagecost
 *
 * Prints
 *
 *	cost COPY_NS HASH_NS BOTH_NS
 *
 * for a page of 4 KiB: copied, hashed with XXH64, and copied and then the copy hashed.
 * Pages are taken in random order from memory that no cache can hold.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_BYTES	4096UL
#define AREA_BYTES	(256UL << 20)
#define NR_PAGES	(AREA_BYTES / PAGE_BYTES)
#define LANES		4

#define PRIME_1		0x9E3779B185EBCA87ULL
#define PRIME_2		0xC2B2AE3D27D4EB4FULL
#define PRIME_3		0x165667B19E3779F9ULL
#define PRIME_4		0x85EBCA77C2B2AE63ULL

/* The compiler must not find that nobody needs them. */
static uint64_t all_hashes;

static uint64_t rotate(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static uint64_t mix(uint64_t lane, uint64_t word)
{
	return rotate(lane + word * PRIME_2, 31) * PRIME_1;
}

/* XXH64 with a seed of 0; a page has no remainder. */
static uint64_t hash_page(const uint64_t *page)
{
	uint64_t lane[LANES] = { PRIME_1 + PRIME_2, PRIME_2, 0, -PRIME_1 };
	uint64_t hash;

	for (unsigned int i = 0; i < PAGE_BYTES / sizeof(*page); i += LANES)
		for (int j = 0; j < LANES; j++)
			lane[j] = mix(lane[j], le64toh(page[i + j]));
	hash = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) +
	       rotate(lane[3], 18);
	for (int j = 0; j < LANES; j++)
		hash = (hash ^ mix(0, lane[j])) * PRIME_1 + PRIME_4;
	hash += PAGE_BYTES;
	hash = (hash ^ hash >> 33) * PRIME_2;
	hash = (hash ^ hash >> 29) * PRIME_3;
	return hash ^ hash >> 32;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	/* Not the time in which others had the processor. */
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static char *allocate(void)
{
	char *area = mmap(NULL, AREA_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		err(1, "mmap");
	madvise(area, AREA_BYTES, MADV_HUGEPAGE);
	for (size_t i = 0; i < AREA_BYTES; i++)
		area[i] = i * 7 + (i >> 12);
	return area;
}

static double measure(char *to, const char *from, int copies, int hashes)
{
	uint64_t start = now_ns();

	for (size_t i = 0, nr = 0; i < NR_PAGES; i++) {
		/* A step that is odd visits all, and no two in a row are near. */
		nr = (nr + 40503) % NR_PAGES;
		if (copies)
			memcpy(to + nr * PAGE_BYTES, from + nr * PAGE_BYTES, PAGE_BYTES);
		if (hashes)
			all_hashes += hash_page((const void *)(to + nr * PAGE_BYTES));
	}
	return (double)(now_ns() - start) / NR_PAGES;
}

int main(void)
{
	char *to = allocate(), *from = allocate();
	double copy = measure(to, from, 1, 0), hash = measure(to, from, 0, 1);

	printf("cost %.0f %.0f %.0f\n", copy, hash, measure(to, from, 1, 1));
	return !all_hashes;
}
