// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Fragments memory: uses much of it, and keeps one page of every few.
 *
 * usage: fragment [-m MIB] [-k PAGES]
 *
 *	-m	memory to use, in MiB (default: 256)
 *	-k	keep one page out of this many (default: 64)
 *
 * Prints "ready" when that is done. SIGTERM ends it; then it verifies the pages, as
 * the kernel may have moved them meanwhile.
 *
 * Exit status: 0 if all pages are right, 1 if not, 2 on misuse.
 */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB		(1UL << 20)

static size_t page_bytes;
static size_t npages;
static size_t keep_every = 64;

/* Each word of a page has the page's number in it. */
static uint64_t expected(size_t page, size_t word)
{
	return (page * page_bytes + word + 1) * 0x9e3779b97f4a7c15ULL;
}

static uint64_t *page_at(char *memory, size_t page)
{
	return (uint64_t *)(memory + page * page_bytes);
}

static void fill(char *memory, size_t page)
{
	uint64_t *words = page_at(memory, page);

	for (size_t i = 0; i < page_bytes / sizeof(*words); i++)
		words[i] = expected(page, i);
}

/* The number of words that are wrong. */
static size_t verify(char *memory, size_t page)
{
	const uint64_t *words = page_at(memory, page);
	size_t wrong = 0;

	for (size_t i = 0; i < page_bytes / sizeof(*words); i++)
		wrong += words[i] != expected(page, i);
	return wrong;
}

/* Use small pages only: a huge page would be split, not freed in pieces. */
static char *map_pages(void)
{
	char *memory = mmap(NULL, npages * page_bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(2, "mmap of %zu pages", npages);
	if (madvise(memory, npages * page_bytes, MADV_NOHUGEPAGE))
		err(2, "madvise(MADV_NOHUGEPAGE)");
	return memory;
}

static void free_between(char *memory, size_t kept)
{
	size_t first = kept + 1, end = kept + keep_every;

	if (end > npages)
		end = npages;
	if (first < end && madvise(page_at(memory, first),
				   (end - first) * page_bytes, MADV_DONTNEED))
		err(2, "madvise(MADV_DONTNEED)");
}

static void wait_for_sigterm(void)
{
	sigset_t set;
	int number;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	puts("ready");
	fflush(stdout);
	sigwait(&set, &number);
}

static size_t parse_number(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*end || end == text || !value)
		errx(2, "'%s' is not a number above 0", text);
	return value;
}

static void parse_options(int argc, char **argv)
{
	size_t mib = 256;
	int option;

	while ((option = getopt(argc, argv, "m:k:")) != -1) {
		switch (option) {
		case 'm':
			mib = parse_number(optarg);
			break;
		case 'k':
			keep_every = parse_number(optarg);
			break;
		default:
			exit(2);
		}
	}
	npages = mib * MIB / page_bytes;
}

int main(int argc, char **argv)
{
	size_t wrong = 0;
	char *memory;

	page_bytes = sysconf(_SC_PAGESIZE);
	parse_options(argc, argv);
	memory = map_pages();
	for (size_t page = 0; page < npages; page++)
		fill(memory, page);
	for (size_t page = 0; page < npages; page += keep_every)
		free_between(memory, page);

	wait_for_sigterm();
	for (size_t page = 0; page < npages; page += keep_every)
		wrong += verify(memory, page);
	printf("%zu pages kept, %zu bytes lost\n",
	       (npages + keep_every - 1) / keep_every, wrong * sizeof(uint64_t));
	return wrong ? 1 : 0;
}
