// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Makes one allocation of the kernel fail while a word is written to a file.
 *
 * usage: failnth N FILE WORD [PID]
 *
 * The Nth allocation of the writer, or of the task PID, fails. Prints "failed", or
 * "fewer" if there were fewer than N, and the error number of the write, or 0. The
 * kernel needs CONFIG_FAULT_INJECTION.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "number.h"

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void set_nth(int fd, uint64_t nth)
{
	char text[24];
	int len = snprintf(text, sizeof(text), "%llu", (unsigned long long)nth);

	if (pwrite(fd, text, len, 0) != len)
		err(1, "fail-nth");
}

/* The number of allocations until one fails. */
static uint64_t get_nth(int fd)
{
	char text[24];
	ssize_t len = pread(fd, text, sizeof(text) - 1, 0);

	if (len < 2)
		err(1, "fail-nth");
	text[len - 1] = '\0';
	return parse_number(text);
}

int main(int argc, char **argv)
{
	int file, nth, error;
	uint64_t left;
	char path[64];

	if (argc != 4 && argc != 5)
		errx(2, "usage: failnth N FILE WORD [PID]");
	snprintf(path, sizeof(path), "/proc/%s/fail-nth", argc == 5 ? argv[4] : "self");
	nth = open_or_die(path, O_RDWR);
	file = open_or_die(argv[2], O_WRONLY);

	set_nth(nth, parse_number(argv[1]));
	error = write(file, argv[3], strlen(argv[3])) < 0 ? errno : 0;
	left = get_nth(nth);
	set_nth(nth, 0);
	printf("%s %d\n", left ? "fewer" : "failed", error);
	return 0;
}
