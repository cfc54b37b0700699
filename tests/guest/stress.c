// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many workers allocate memory of every kind, fill it, verify it and free it, in
 * random order, to find bytes that were lost.
 *
 * usage: stress [-m MIB] [-s SECONDS] [-w WORKERS] [-r SEED] [KIND...]
 *
 *	-m	the most memory that all workers use together, in MiB (default: 256)
 *	-s	how long, in seconds (default: 30)
 *	-w	workers of each kind (default: 2)
 *	-r	seed of the random sequence (default: 1)
 *
 * KIND is one of those in kinds[] below; the default is all. Movable and unmovable
 * allocations, small and huge ones, are side by side, since a wrong boundary would
 * show where free memory has neighbours in use.
 *
 * The value of a word depends on its object, its page and its position there. So a
 * word that was zeroed, is stale, or belongs elsewhere is found.
 *
 * Exit status: 0 if no byte was lost, 1 if some were or if a worker was killed, 2 on
 * misuse.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "number.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MIB		(1UL << 20)
#define PAGE		4096UL
#define PAGE_WORDS	(PAGE / sizeof(uint64_t))
#define HUGE		(2 * MIB)
#define HUGE_PAGES	(HUGE / PAGE)

/* The most objects that a worker has at a time. */
#define SLOTS		64

/* KSM merges pages with the same content, so its objects have one of few contents. */
#define KSM_SEEDS	4

struct kind;

/**
 * struct object - memory that is allocated, filled and verified as a whole
 * @pages: pages of content; 0 for none
 * @seed: determines the content
 * @map: the mapping, of @span bytes
 * @pipe: holds the content if that is not mapped
 */
struct object {
	size_t pages;
	uint64_t seed;
	char *map;
	size_t span;
	int pipe[2];
};

/**
 * struct kind - a kind of memory
 * @name: its name
 * @unit: an object has a multiple of this many pages of content
 * @most: the most pages of content that an object can have
 * @stride: distance of the pages of content in the mapping, in bytes
 * @cost: pages of memory per page of content
 * @get: allocate an object of @pages; false if there is no memory for it
 * @put: free it
 */
struct kind {
	const char *name;
	size_t unit;
	size_t most;
	size_t stride;
	size_t cost;
	bool (*get)(const struct kind *kind, struct object *object);
	void (*put)(struct object *object);
};

/* What the workers of a kind did, in memory that all processes share. */
struct tally {
	uint64_t objects;
	uint64_t refused;
	uint64_t verified;
	uint64_t lost;
};

static size_t memory = 256 * MIB;
static unsigned long seconds = 30;
static unsigned long workers = 2;
static uint64_t random_state = 1;
static struct tally *tallies;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static uint64_t random_below(uint64_t limit)
{
	random_state += 0x9e3779b97f4a7c15ULL;
	return mix(random_state) % limit;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void nap(unsigned int ms)
{
	usleep(ms * 1000);
}

static void count(uint64_t *counter, uint64_t by)
{
	__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/*
 * Kinds of memory.
 */

static bool get_anon(const struct kind *kind, struct object *object)
{
	object->span = object->pages * kind->stride;
	object->map = mmap(NULL, object->span, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return object->map != MAP_FAILED;
}

static void put_map(struct object *object)
{
	if (munmap(object->map, object->span))
		err(2, "munmap");
}

/* Starts at a multiple of a huge page's size, so it can consist of huge pages. */
static bool get_thp(const struct kind *kind, struct object *object)
{
	size_t size = object->pages * kind->stride;
	uintptr_t start;
	char *area;

	area = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return false;
	start = ((uintptr_t)area + HUGE - 1) & ~(HUGE - 1);
	if (start > (uintptr_t)area)
		munmap(area, start - (uintptr_t)area);
	munmap((char *)start + size, (uintptr_t)area + HUGE - start);
	object->map = (char *)start;
	object->span = size;
	/* This fails on a kernel without huge pages; small pages will do. */
	madvise(object->map, size, MADV_HUGEPAGE);
	return true;
}

static bool get_hugetlb(const struct kind *kind, struct object *object)
{
	object->span = object->pages * kind->stride;
	object->map = mmap(NULL, object->span, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	return object->map != MAP_FAILED;
}

static bool get_mlock(const struct kind *kind, struct object *object)
{
	if (!get_anon(kind, object))
		return false;
	if (!mlock(object->map, object->span))
		return true;
	put_map(object);
	return false;
}

static bool get_ksm(const struct kind *kind, struct object *object)
{
	if (!get_anon(kind, object))
		return false;
	if (madvise(object->map, object->span, MADV_MERGEABLE))
		err(2, "madvise(MADV_MERGEABLE)");
	return true;
}

static bool get_tmpfs(const struct kind *kind, struct object *object)
{
	int fd = memfd_create("stress", 0);

	if (fd < 0)
		err(2, "memfd_create");
	object->span = object->pages * kind->stride;
	if (ftruncate(fd, object->span))
		err(2, "ftruncate to %zu", object->span);
	object->map = mmap(NULL, object->span, PROT_READ | PROT_WRITE,
			   MAP_SHARED, fd, 0);
	close(fd);
	return object->map != MAP_FAILED;
}

static bool get_pipe(const struct kind *kind, struct object *object)
{
	size_t size = object->pages * kind->stride;

	if (pipe2(object->pipe, O_NONBLOCK))
		err(2, "pipe");
	if (fcntl(object->pipe[1], F_SETPIPE_SZ, (int)size) >= (int)size)
		return true;
	close(object->pipe[0]);
	close(object->pipe[1]);
	return false;
}

static void put_pipe(struct object *object)
{
	close(object->pipe[0]);
	close(object->pipe[1]);
}

static const struct kind kinds[] = {
	{ "anon", 1, 1024, PAGE, 1, get_anon, put_map },
	{ "thp", HUGE_PAGES, 8 * HUGE_PAGES, PAGE, 1, get_thp, put_map },
	{ "hugetlb", HUGE_PAGES, 4 * HUGE_PAGES, PAGE, 1, get_hugetlb, put_map },
	{ "tmpfs", 1, 1024, PAGE, 1, get_tmpfs, put_map },
	{ "mlock", 1, 512, PAGE, 1, get_mlock, put_map },
	{ "ksm", 1, 512, PAGE, 1, get_ksm, put_map },
	/* Unmovable: the content of a pipe, and a page table for each page. */
	{ "pipe", 1, 256, PAGE, 1, get_pipe, put_pipe },
	{ "pgtable", 1, 256, HUGE, 2, get_anon, put_map },
};

/*
 * Content.
 */

static uint64_t expected(uint64_t seed, uint64_t page, uint64_t word)
{
	return ((page * PAGE_WORDS + word) * 2 + 1) * 0x9e3779b97f4a7c15ULL ^
	       mix(seed);
}

static void fill_page(uint64_t *words, uint64_t seed, uint64_t page)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		words[i] = expected(seed, page, i);
}

/* The number of words that are wrong; prints the first. */
static uint64_t verify_page(const struct kind *kind, const uint64_t *words,
			    uint64_t seed, uint64_t page)
{
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < PAGE_WORDS; i++) {
		uint64_t want = expected(seed, page, i);

		if (words[i] == want)
			continue;
		if (!wrong++)
			printf("%s seed %llu page %llu word %llu: %#llx instead of %#llx\n",
			       kind->name, (unsigned long long)seed,
			       (unsigned long long)page, (unsigned long long)i,
			       (unsigned long long)words[i],
			       (unsigned long long)want);
	}
	return wrong;
}

static bool is_pipe(const struct kind *kind)
{
	return kind->put == put_pipe;
}

/* All pages of an object of KSM are alike. */
static uint64_t page_number(const struct kind *kind, uint64_t page)
{
	return kind->get == get_ksm ? 0 : page;
}

static uint64_t new_seed(const struct kind *kind)
{
	return random_below(kind->get == get_ksm ? KSM_SEEDS : UINT32_MAX);
}

static void fill(const struct kind *kind, struct object *object)
{
	uint64_t buffer[PAGE_WORDS];

	object->seed = new_seed(kind);
	for (size_t i = 0; i < object->pages; i++) {
		uint64_t number = page_number(kind, i);

		if (!is_pipe(kind)) {
			fill_page((uint64_t *)(object->map + i * kind->stride),
				  object->seed, number);
			continue;
		}
		fill_page(buffer, object->seed, number);
		if (write(object->pipe[1], buffer, PAGE) != (ssize_t)PAGE)
			err(2, "write to a pipe");
	}
}

/* The number of bytes that were lost. A pipe is empty afterwards. */
static uint64_t verify(const struct kind *kind, const struct object *object)
{
	uint64_t buffer[PAGE_WORDS];
	uint64_t wrong = 0;

	for (size_t i = 0; i < object->pages; i++) {
		const uint64_t *words = buffer;

		if (!is_pipe(kind))
			words = (const uint64_t *)(object->map + i * kind->stride);
		else if (read(object->pipe[0], buffer, PAGE) != (ssize_t)PAGE)
			err(2, "read from a pipe");
		wrong += verify_page(kind, words, object->seed,
				     page_number(kind, i));
	}
	return wrong * sizeof(uint64_t);
}

/*
 * Workers.
 */

/* Small objects are more frequent than large ones. */
static size_t random_pages(const struct kind *kind)
{
	size_t units = kind->most / kind->unit;

	while (units > 1 && random_below(3))
		units /= 2;
	return kind->unit * (1 + random_below(units));
}

static void create(const struct kind *kind, struct object *object,
		   size_t *budget, struct tally *tally)
{
	object->pages = random_pages(kind);
	if (object->pages * kind->cost > *budget) {
		object->pages = 0;
		return;
	}
	if (!kind->get(kind, object)) {
		count(&tally->refused, 1);
		object->pages = 0;
		return;
	}
	*budget -= object->pages * kind->cost;
	count(&tally->objects, 1);
	fill(kind, object);
}

static void check(const struct kind *kind, const struct object *object,
		  struct tally *tally)
{
	count(&tally->lost, verify(kind, object));
	count(&tally->verified, object->pages * PAGE);
}

static void destroy(const struct kind *kind, struct object *object,
		    size_t *budget)
{
	kind->put(object);
	*budget += object->pages * kind->cost;
	object->pages = 0;
}

/* Memory has to be free for a moment before it is hinted. */
static void destroy_all(const struct kind *kind, struct object *objects,
			size_t *budget, struct tally *tally)
{
	for (int i = 0; i < SLOTS; i++) {
		if (!objects[i].pages)
			continue;
		check(kind, &objects[i], tally);
		destroy(kind, &objects[i], budget);
	}
	nap(random_below(100));
}

static void step(const struct kind *kind, struct object *objects,
		 size_t *budget, struct tally *tally)
{
	struct object *object = &objects[random_below(SLOTS)];

	if (!object->pages) {
		create(kind, object, budget, tally);
		return;
	}
	check(kind, object, tally);
	if (random_below(2)) {
		fill(kind, object);
		return;
	}
	destroy(kind, object, budget);
	nap(random_below(10));
}

static void work(const struct kind *kind, struct tally *tally, size_t budget)
{
	static struct object objects[SLOTS];
	uint64_t end = now_ms() + seconds * 1000;

	while (now_ms() < end) {
		if (random_below(200))
			step(kind, objects, &budget, tally);
		else
			destroy_all(kind, objects, &budget, tally);
	}
	destroy_all(kind, objects, &budget, tally);
}

static void start(const struct kind *kind, unsigned long worker, size_t budget)
{
	pid_t pid = fork();

	if (pid < 0)
		err(2, "fork");
	if (pid)
		return;
	/* Each worker has its own sequence. */
	random_state = mix(random_state + (kind - kinds) * workers + worker);
	work(kind, &tallies[kind - kinds], budget);
	exit(0);
}

/* Wait for all workers; returns the number of those that were killed. */
static int wait_for_all(void)
{
	int status, killed = 0;
	pid_t pid;

	while ((pid = wait(&status)) > 0) {
		if (!status)
			continue;
		printf("worker %d ended with status %#x\n", pid, status);
		killed++;
	}
	return killed;
}

/* The number of bytes lost in total. */
static uint64_t report(void)
{
	uint64_t verified = 0, lost = 0;

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		const struct tally *tally = &tallies[i];

		if (!tally->objects && !tally->refused)
			continue;
		printf("%s: %llu objects, %llu refused, %llu MiB verified, %llu bytes lost\n",
		       kinds[i].name, (unsigned long long)tally->objects,
		       (unsigned long long)tally->refused,
		       (unsigned long long)(tally->verified / MIB),
		       (unsigned long long)tally->lost);
		verified += tally->verified;
		lost += tally->lost;
	}
	printf("all: %llu MiB verified, %llu bytes lost\n",
	       (unsigned long long)(verified / MIB), (unsigned long long)lost);
	return lost;
}

static const struct kind *find_kind(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	errx(2, "there is no kind of memory '%s'", name);
}

static void parse_options(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "m:s:w:r:")) != -1) {
		switch (option) {
		case 'm':
			memory = parse_number(optarg) * MIB;
			break;
		case 's':
			seconds = parse_number(optarg);
			break;
		case 'w':
			workers = parse_number(optarg);
			break;
		case 'r':
			random_state = parse_number(optarg);
			break;
		default:
			exit(2);
		}
	}
	if (!workers)
		errx(2, "there must be at least one worker of each kind");
}

int main(int argc, char **argv)
{
	size_t nr_kinds, budget;
	int killed;

	parse_options(argc, argv);
	tallies = mmap(NULL, sizeof(*tallies) * ARRAY_SIZE(kinds),
		       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED)
		err(2, "mmap");

	nr_kinds = argc > optind ? (size_t)(argc - optind) : ARRAY_SIZE(kinds);
	budget = memory / PAGE / (nr_kinds * workers);
	for (size_t i = 0; i < nr_kinds; i++) {
		const struct kind *kind = argc > optind ?
					  find_kind(argv[optind + i]) : &kinds[i];

		for (unsigned long w = 0; w < workers; w++)
			start(kind, w, budget);
	}
	killed = wait_for_all();
	return report() || killed ? 1 : 0;
}
