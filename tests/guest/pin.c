// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Holds a page of movable memory that cannot be moved: it is the content of a pipe.
 *
 * usage: pin
 *
 * Prints "pinned" when it does, and ends when it is killed.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE_BYTES	4096

int main(void)
{
	struct iovec page = { .iov_len = PAGE_BYTES };
	int ends[2];

	page.iov_base = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page.iov_base == MAP_FAILED)
		err(1, "mmap");
	memset(page.iov_base, 1, PAGE_BYTES);
	if (pipe(ends))
		err(1, "pipe");
	if (vmsplice(ends[1], &page, 1, 0) != PAGE_BYTES)
		err(1, "vmsplice");
	if (puts("pinned") == EOF || fflush(stdout) == EOF)
		err(1, "standard output");
	pause();
	return 0;
}
