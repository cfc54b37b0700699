// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Prints what the page cache of a file system has taken in and given up, and which of
 * its files may be written to.
 *
 * usage: cachelog events DIR
 *	  cachelog writers DIR
 *
 * DIR is where the file system is mounted. The first form empties the trace buffers of
 * all processors, and prints a line for each run of pages of a file that were read (r),
 * written without being read (w) or deleted from the cache (d),
 *
 *	r|w|d INODE INDEX PAGES
 *
 * and at the end
 *
 *	other PAGES
 *	lost EVENTS
 *
 * with the number of pages that other file systems and block devices have given up, and
 * of events that did not fit. It expects the events filemap:mm_filemap_add_to_page_cache,
 * filemap:mm_filemap_delete_from_page_cache and writeback:writeback_dirty_folio without
 * the option context-info. A page is written without being read if the next event of the
 * processor that adds it makes it dirty. Runs of one processor are in order.
 *
 * The second form prints
 *
 *	writer INODE
 *
 * for each regular file that a process has open for writing, or maps from a file that
 * was opened so. A file may come more than once.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define TRACING		"/sys/kernel/tracing"
#define EVENT_ADD	"mm_filemap_add_to_page_cache: "
#define EVENT_DELETE	"mm_filemap_delete_from_page_cache: "
#define EVENT_DIRTY	"writeback_dirty_folio: "
#define PAGE_SHIFT	12
#define KERNEL_MINOR_BITS	20
/* In the mode of a link to an open file. */
#define LINK_WRITES	0200

struct run {
	char kind;
	unsigned long inode;
	uint64_t index, pages;
};

static dev_t device;
static struct run current, added;
static uint64_t other, lost;

static void flush(void)
{
	if (current.pages)
		printf("%c %lu %llu %llu\n", current.kind, current.inode,
		       (unsigned long long)current.index,
		       (unsigned long long)current.pages);
	current.pages = 0;
}

static void note(char kind, const struct run *run)
{
	if (!run->pages)
		return;
	if (current.kind == kind && current.inode == run->inode &&
	    current.index + current.pages == run->index) {
		current.pages += run->pages;
		return;
	}
	flush();
	current = *run;
	current.kind = kind;
}

/* What was added last is known to be read when something else comes next. */
static void settle_added(void)
{
	note('r', &added);
	added.pages = 0;
}

static void handle_cache(const char *text, bool add)
{
	unsigned int major_nr, minor_nr, order;
	unsigned long long offset;
	struct run run = {};

	if (sscanf(text, "dev %u:%u ino %lx pfn=%*s ofs=%llu order=%u", &major_nr,
		   &minor_nr, &run.inode, &offset, &order) != 5)
		errx(1, "unknown event '%s'", text);
	run.index = offset >> PAGE_SHIFT;
	run.pages = 1ULL << order;
	settle_added();
	if (makedev(major_nr, minor_nr) != device)
		other += add ? 0 : run.pages;
	else if (add)
		added = run;
	else
		note('d', &run);
}

static void handle_dirty(const char *text)
{
	unsigned int major_nr, minor_nr;
	struct run run = { .pages = 1 };
	unsigned long long index;

	/*
	 * A device may have a name in place of a number; then it is not ours. Of the
	 * block device itself, the inode is the kernel's number of the device.
	 */
	if (sscanf(text, "bdi %u:%u: ino=%lu index=%llu", &major_nr, &minor_nr,
		   &run.inode, &index) != 4 ||
	    makedev(major_nr, minor_nr) != device ||
	    run.inode == (major_nr << KERNEL_MINOR_BITS | minor_nr))
		return;
	run.index = index;
	if (added.pages && added.inode == run.inode && added.index == run.index) {
		note('w', &added);
		added.pages = 0;
		return;
	}
	settle_added();
	note('w', &run);
}

static void handle(const char *line)
{
	unsigned long long events;

	if (!strncmp(line, EVENT_ADD, strlen(EVENT_ADD)))
		handle_cache(line + strlen(EVENT_ADD), true);
	else if (!strncmp(line, EVENT_DELETE, strlen(EVENT_DELETE)))
		handle_cache(line + strlen(EVENT_DELETE), false);
	else if (!strncmp(line, EVENT_DIRTY, strlen(EVENT_DIRTY)))
		handle_dirty(line + strlen(EVENT_DIRTY));
	else if (sscanf(line, "CPU:%*d [LOST %llu EVENTS]", &events) == 1)
		lost += events;
}

/* Returns false if there is no such processor. */
static bool empty_buffer(int cpu)
{
	char path[64], *line = NULL;
	size_t size = 0;
	FILE *file;
	int fd;

	snprintf(path, sizeof(path), TRACING "/per_cpu/cpu%d/trace_pipe", cpu);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT && cpu)
			return false;
		err(1, "%s", path);
	}
	file = fdopen(fd, "r");
	if (!file)
		err(1, "%s", path);
	while (getline(&line, &size, file) > 0)
		handle(line);
	if (errno != EAGAIN)
		err(1, "%s", path);
	settle_added();
	flush();
	free(line);
	fclose(file);
	return true;
}

static void print_events(void)
{
	for (int cpu = 0; empty_buffer(cpu); cpu++)
		;
	printf("other %llu\nlost %llu\n", (unsigned long long)other,
	       (unsigned long long)lost);
}

/* The link of an open or a mapped file says how that was opened. */
static void print_writers_in(const char *path)
{
	struct dirent *entry;
	DIR *dir = opendir(path);
	struct stat st;

	/* The process may have ended. */
	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (!fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) &&
		    S_ISLNK(st.st_mode) && st.st_mode & LINK_WRITES &&
		    !fstatat(dirfd(dir), entry->d_name, &st, 0) &&
		    st.st_dev == device && S_ISREG(st.st_mode))
			printf("writer %lu\n", (unsigned long)st.st_ino);
	closedir(dir);
}

static void print_writers(void)
{
	static const char *const folders[] = { "fd", "map_files" };
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[512];

	if (!proc)
		err(1, "/proc");
	while ((entry = readdir(proc)))
		for (int i = 0; i < 2 && atoi(entry->d_name) > 0; i++) {
			snprintf(path, sizeof(path), "/proc/%s/%s", entry->d_name,
				 folders[i]);
			print_writers_in(path);
		}
	closedir(proc);
}

int main(int argc, char **argv)
{
	struct stat st;

	if (argc != 3)
		errx(2, "usage: cachelog events|writers DIR");
	if (stat(argv[2], &st))
		err(1, "%s", argv[2]);
	device = st.st_dev;
	if (!strcmp(argv[1], "events"))
		print_events();
	else if (!strcmp(argv[1], "writers"))
		print_writers();
	else
		errx(2, "there is no '%s'", argv[1]);
	return 0;
}
