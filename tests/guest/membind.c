// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs a command that takes memory from one node only, including the page cache that
 * it fills.
 *
 * usage: membind NODE COMMAND [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <err.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "number.h"

#define BITS_PER_LONG	(8 * sizeof(long))

int main(int argc, char **argv)
{
	unsigned long nodes;
	uint64_t node;

	if (argc < 3)
		errx(2, "usage: membind NODE COMMAND [ARGUMENT...]");
	node = parse_number(argv[1]);
	if (node >= BITS_PER_LONG)
		errx(2, "%s is no node", argv[1]);
	nodes = 1UL << node;
	if (syscall(SYS_set_mempolicy, MPOL_BIND, &nodes, BITS_PER_LONG + 1))
		err(1, "set_mempolicy");
	execvp(argv[2], argv + 2);
	err(1, "%s", argv[2]);
}
