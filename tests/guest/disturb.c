// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Does to the guest's memory what kernels and administrators do, while anything
 * else may be going on, and counts how often that worked.
 *
 * usage: disturb [-s SECONDS] [-r SEED] ACTION[:PAUSE_MS]...
 *
 *	-s	how long, in seconds (default: 30)
 *	-r	seed of the random sizes and places (default: 1)
 *
 * Each action has its own process, which repeats it and pauses each time (default:
 * 100 ms):
 *
 *	compact	compact all memory
 *	cma	allocate up to 64 MiB of a CMA area, as one range, and free it
 *	offline	take a movable memory block offline and online again
 *	huge	grow the pool of huge pages, and empty it
 *	drop	drop clean caches and shrink slabs
 *	audit	have the kernel compare the states of granules with the free
 *		lists; each contradiction counts as failed
 *
 * Prints for each action how often it was done and how often it failed. Exit
 * status: 1 if an audit failed, 2 on misuse; the caller judges whether other
 * actions may fail.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <glob.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "number.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define VM		"/proc/sys/vm/"
#define CMA		"/sys/kernel/debug/cma/*/"
#define BLOCKS		"/sys/devices/system/memory/memory*/"
#define CHECK		"/sys/kernel/debug/freehint/check"

/* Most pages to ask a CMA area for, as one range. */
#define MOST_CMA	16384

/* Most huge pages to ask for at a time. */
#define MOST_HUGE	32

static unsigned long seconds = 30;
static unsigned int seed = 1;

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static bool put_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t done;

	if (fd < 0)
		err(2, "%s", path);
	done = write(fd, text, strlen(text));
	close(fd);
	return done == (ssize_t)strlen(text);
}

static bool put_number(const char *path, unsigned long number)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", number);
	return put_text(path, text);
}

static void get_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t done;

	if (fd < 0)
		err(2, "%s", path);
	done = read(fd, text, size - 1);
	if (done < 0)
		err(2, "read %s", path);
	close(fd);
	text[done] = '\0';
}

static unsigned long get_number(const char *path)
{
	char text[32];

	get_text(path, text, sizeof(text));
	return strtoul(text, NULL, 10);
}

/* A random one of the paths that match @pattern; the caller frees it. */
static char *pick(const char *pattern)
{
	glob_t found;
	char *path;

	if (glob(pattern, 0, NULL, &found))
		errx(2, "there is no %s", pattern);
	path = strdup(found.gl_pathv[rand() % found.gl_pathc]);
	if (!path)
		err(2, "strdup");
	globfree(&found);
	return path;
}

static char *beside(const char *path, const char *name)
{
	char *other;

	if (asprintf(&other, "%.*s/%s", (int)(strrchr(path, '/') - path), path,
		     name) < 0)
		err(2, "asprintf");
	return other;
}

/*
 * Linux lets compaction look at the pages of a block while that goes offline, and their
 * structs are overwritten then: compaction, if it has stopped there for long, crashes.
 * On a busy host that happens. So the two take turns; close() ends a turn.
 */
static int take_turn(void)
{
	int fd = open("/sys/devices/system/memory/block_size_bytes", O_RDONLY);

	if (fd < 0 || flock(fd, LOCK_EX))
		err(2, "no turn");
	return fd;
}

/* Each action returns whether it worked. */

static bool compact(void)
{
	int turn = take_turn();
	bool done = put_text(VM "compact_memory", "1");

	close(turn);
	return done;
}

static bool drop(void)
{
	return put_text(VM "drop_caches", "3");
}

static bool cma(void)
{
	char *alloc = pick(CMA "alloc");
	char *release = beside(alloc, "free");
	unsigned long pages = 1 + rand() % MOST_CMA;
	bool done = put_number(alloc, pages);

	if (done && !put_number(release, pages))
		errx(2, "%s does not take back %lu pages", release, pages);
	free(release);
	free(alloc);
	return done;
}

/* The file with the zone of a random online movable block; the caller frees it. */
static char *pick_movable(void)
{
	glob_t found;
	char *path = NULL, zone[64];
	size_t first;

	if (glob(BLOCKS "valid_zones", 0, NULL, &found))
		errx(2, "there are no memory blocks");
	first = rand();
	for (size_t i = 0; i < found.gl_pathc && !path; i++) {
		const char *other = found.gl_pathv[(first + i) % found.gl_pathc];

		get_text(other, zone, sizeof(zone));
		if (!strcmp(zone, "Movable\n"))
			path = strdup(other);
	}
	globfree(&found);
	if (!path)
		errx(2, "no memory block is movable");
	return path;
}

static bool offline(void)
{
	char *zones = pick_movable();
	char *state = beside(zones, "state");
	int turn = take_turn();
	bool done = put_text(state, "offline");

	if (done && !put_text(state, "online_movable"))
		errx(2, "%s does not come online", state);
	close(turn);
	free(state);
	free(zones);
	return done;
}

static bool huge(void)
{
	unsigned long asked = 1 + rand() % MOST_HUGE;
	bool done;

	if (!put_number(VM "nr_hugepages", asked))
		err(2, "nr_hugepages");
	done = get_number(VM "nr_hugepages") >= asked;
	put_number(VM "nr_hugepages", 0);
	return done;
}

static bool audit(void)
{
	char text[512], *violations;

	get_text(CHECK, text, sizeof(text));
	violations = strstr(text, "violations ");
	if (!violations)
		errx(2, "%s says nothing of violations: %s", CHECK, text);
	if (!strtoul(violations + strlen("violations "), NULL, 10))
		return true;
	printf("%s", text);
	return false;
}

static const struct action {
	const char *name;
	bool (*run)(void);
} actions[] = {
	{ "compact", compact },
	{ "cma", cma },
	{ "offline", offline },
	{ "huge", huge },
	{ "drop", drop },
	{ "audit", audit },
};

static const struct action *find_action(const char *name, size_t length)
{
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		if (strlen(actions[i].name) == length &&
		    !strncmp(actions[i].name, name, length))
			return &actions[i];
	errx(2, "there is no action '%.*s'", (int)length, name);
}

/* All that an action's process does; returns its exit status. */
static int repeat(const struct action *action, unsigned long pause_ms)
{
	uint64_t end = now_ms() + seconds * 1000;
	unsigned long done = 0, failed = 0;

	srand(seed + (action - actions));
	while (now_ms() < end) {
		if (action->run())
			done++;
		else
			failed++;
		usleep(pause_ms * 1000);
	}
	printf("%s: %lu done, %lu failed\n", action->name, done, failed);
	return action->run == audit && failed ? 1 : 0;
}

static void start(const char *argument)
{
	const char *colon = strchr(argument, ':');
	size_t length = colon ? (size_t)(colon - argument) : strlen(argument);
	unsigned long pause_ms = colon ? strtoul(colon + 1, NULL, 10) : 100;
	const struct action *action = find_action(argument, length);
	pid_t pid = fork();

	if (pid < 0)
		err(2, "fork");
	if (!pid)
		exit(repeat(action, pause_ms));
}

int main(int argc, char **argv)
{
	int option, status, worst = 0;

	while ((option = getopt(argc, argv, "s:r:")) != -1) {
		switch (option) {
		case 's':
			seconds = parse_number(optarg);
			break;
		case 'r':
			seed = parse_number(optarg);
			break;
		default:
			exit(2);
		}
	}
	if (optind == argc)
		errx(2, "which actions?");
	for (int i = optind; i < argc; i++)
		start(argv[i]);
	while (wait(&status) > 0) {
		int code = WIFEXITED(status) ? WEXITSTATUS(status) : 2;

		if (WIFSIGNALED(status))
			printf("an action was killed by signal %d\n",
			       WTERMSIG(status));
		worst = code > worst ? code : worst;
	}
	return worst;
}
