/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Numbers on the command lines of the tools in this folder.
 */
#ifndef TESTS_GUEST_NUMBER_H
#define TESTS_GUEST_NUMBER_H

#include <err.h>
#include <stdint.h>
#include <stdlib.h>

/* A decimal number; ends the program, as misused, if @text is anything else. */
static inline uint64_t parse_number(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (*end || end == text)
		errx(2, "'%s' is not a number", text);
	return value;
}

#endif
