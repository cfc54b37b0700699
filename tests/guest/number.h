/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Numbers on the command lines of the tools in this folder.
 */
#ifndef TESTS_GUEST_NUMBER_H
#define TESTS_GUEST_NUMBER_H

#include <err.h>
#include <stdint.h>
#include <stdlib.h>

/* Parse a decimal number; for anything else, end the program as misused. */
static inline uint64_t parse_number(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*end || end == text)
		errx(2, "'%s' is not a number", text);
	return value;
}

#endif
