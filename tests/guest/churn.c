// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Allocates, writes, verifies and frees memory again and again, to find bytes
 * that were lost.
 *
 * usage: churn [-m MIB] [-n CYCLES] [-p PAUSE_MS] [-t] [-z]
 *
 *	-m	memory to use, in MiB (default: 512)
 *	-n	cycles (default: 10)
 *	-p	pause each time memory was freed, in ms (default: 300)
 *	-t	ask for transparent huge pages
 *	-z	also verify that new memory is zero, as it must always be
 *
 * The value of a word depends on its position, its block, and how often the block
 * was written. So a word that was zeroed, is stale, or belongs elsewhere is found.
 * A cycle frees every other block while the rest is in use, since a wrong boundary
 * would show where free memory has neighbours in use. Then it fills the gaps,
 * verifies all of it, and frees everything.
 *
 * Exit status: 0 if no byte was lost, 1 if some were, 2 on misuse.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "number.h"

#define MIB		(1UL << 20)
#define BLOCK_BYTES	(2 * MIB)
#define BLOCK_WORDS	(BLOCK_BYTES / sizeof(uint64_t))

static uint64_t nblocks = 256;
static uint64_t cycles = 10;
static uint64_t pause_ms = 300;
static bool huge;
static bool verify_zero;

/* Odd multipliers spread the inputs over the word and keep it from being 0. */
static uint64_t expected(uint64_t block, uint64_t word, uint64_t generation)
{
	return ((block * BLOCK_WORDS + word) * 2 + 1) * 0x9e3779b97f4a7c15ULL ^
	       generation * 0xc2b2ae3d27d4eb4fULL;
}

/* The number of words in a block that are not zero. */
static uint64_t count_nonzero(const uint64_t *memory, uint64_t block)
{
	const uint64_t *words = memory + block * BLOCK_WORDS;
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < BLOCK_WORDS; i++)
		wrong += words[i] != 0;
	if (wrong)
		printf("block %llu is new and has %llu words that are not zero\n",
		       (unsigned long long)block, (unsigned long long)wrong);
	return wrong;
}

/* Write a block of new memory; returns how many of its words were wrong before. */
static uint64_t write_block(uint64_t *memory, uint64_t block,
			    uint64_t generation)
{
	uint64_t wrong = verify_zero ? count_nonzero(memory, block) : 0;
	uint64_t *words = memory + block * BLOCK_WORDS;

	for (uint64_t i = 0; i < BLOCK_WORDS; i++)
		words[i] = expected(block, i, generation);
	return wrong;
}

/* The number of words that are wrong; prints the first. */
static uint64_t verify_block(const uint64_t *memory, uint64_t block,
			     uint64_t generation)
{
	const uint64_t *words = memory + block * BLOCK_WORDS;
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < BLOCK_WORDS; i++) {
		uint64_t want = expected(block, i, generation);

		if (words[i] == want)
			continue;
		if (!wrong++)
			printf("block %llu word %llu: %#llx instead of %#llx\n",
			       (unsigned long long)block, (unsigned long long)i,
			       (unsigned long long)words[i],
			       (unsigned long long)want);
	}
	return wrong;
}

static void pause_after_free(void)
{
	struct timespec ts = {
		.tv_sec = pause_ms / 1000,
		.tv_nsec = pause_ms % 1000 * 1000000,
	};

	nanosleep(&ts, NULL);
}

/* Blocks start at multiples of their size, so each can be a huge page. */
static void *map_blocks(void)
{
	size_t size = nblocks * BLOCK_BYTES;
	uintptr_t start;
	char *area;

	area = mmap(NULL, size + BLOCK_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		err(2, "mmap of %zu MiB", size / MIB);
	start = ((uintptr_t)area + BLOCK_BYTES - 1) & ~(BLOCK_BYTES - 1);
	if (start > (uintptr_t)area)
		munmap(area, start - (uintptr_t)area);
	munmap((char *)start + size, (uintptr_t)area + BLOCK_BYTES - start);
	if (huge && madvise((void *)start, size, MADV_HUGEPAGE))
		err(2, "madvise(MADV_HUGEPAGE)");
	return (void *)start;
}

static void free_block(uint64_t *memory, uint64_t block)
{
	if (madvise(memory + block * BLOCK_WORDS, BLOCK_BYTES, MADV_DONTNEED))
		err(2, "madvise(MADV_DONTNEED)");
}

/* One cycle; returns the number of words lost in it. */
static uint64_t churn(uint64_t cycle)
{
	uint64_t *memory = map_blocks();
	uint64_t wrong = 0;

	for (uint64_t b = 0; b < nblocks; b++)
		wrong += write_block(memory, b, 2 * cycle);
	for (uint64_t b = cycle & 1; b < nblocks; b += 2)
		free_block(memory, b);
	pause_after_free();
	for (uint64_t b = cycle & 1; b < nblocks; b += 2)
		wrong += write_block(memory, b, 2 * cycle + 1);
	for (uint64_t b = 0; b < nblocks; b++)
		wrong += verify_block(memory, b,
				      2 * cycle + ((b ^ cycle ^ 1) & 1));
	munmap(memory, nblocks * BLOCK_BYTES);
	pause_after_free();
	return wrong;
}

static void parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "m:n:p:tz")) != -1) {
		switch (option) {
		case 'm':
			nblocks = parse_number(optarg) * MIB / BLOCK_BYTES;
			break;
		case 'n':
			cycles = parse_number(optarg);
			break;
		case 'p':
			pause_ms = parse_number(optarg);
			break;
		case 't':
			huge = true;
			break;
		case 'z':
			verify_zero = true;
			break;
		default:
			exit(2);
		}
	}
	if (!nblocks || !cycles)
		errx(2, "there must be at least one cycle, and 2 MiB");
}

int main(int argc, char **argv)
{
	uint64_t wrong = 0;

	parse_options(argc, argv);
	for (uint64_t cycle = 0; cycle < cycles; cycle++)
		wrong += churn(cycle);
	printf("%llu cycles of %llu MiB, %llu bytes lost\n",
	       (unsigned long long)cycles,
	       (unsigned long long)(nblocks * BLOCK_BYTES / MIB),
	       (unsigned long long)(wrong * sizeof(uint64_t)));
	return wrong ? 1 : 0;
}
