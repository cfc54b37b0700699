// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loads another kernel, and starts it.
 *
 * usage: kexec [-p] KERNEL INITRD COMMAND_LINE
 *
 *	-p	only load it, for when this kernel panics
 *
 * Debian's kexec-tools can do this, too, but installing it changes how the machine
 * that runs the tests restarts.
 *
 * Exit status: 2 if it cannot be done.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdbool.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		err(2, "%s", path);
	return fd;
}

static void load(char **argv, bool on_panic)
{
	int kernel = open_file(argv[0]), initrd = open_file(argv[1]);
	const char *command_line = argv[2];
	unsigned long flags = on_panic ? KEXEC_FILE_ON_CRASH : 0;

	if (syscall(SYS_kexec_file_load, kernel, initrd,
		    strlen(command_line) + 1, command_line, flags))
		err(2, "kexec_file_load");
	close(kernel);
	close(initrd);
}

int main(int argc, char **argv)
{
	bool on_panic = argc > 1 && !strcmp(argv[1], "-p");

	if (argc != 4 + on_panic)
		errx(2, "usage: kexec [-p] KERNEL INITRD COMMAND_LINE");
	load(argv + 1 + on_panic, on_panic);
	if (on_panic)
		return 0;
	reboot(LINUX_REBOOT_CMD_KEXEC);
	err(2, "the other kernel does not start");
}
