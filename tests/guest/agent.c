// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs the host's commands in the guest, and tells the host how much memory is
 * free while it does.
 *
 * usage: agent PORT INTERVAL_MS
 *
 * PORT is a virtio-serial port. These lines go over it:
 *
 *	to the guest	ID COMMAND		run COMMAND by /bin/sh
 *			(an empty line)		nothing, see freehint_vm.py
 *	to the host	hello NOW		the agent is up
 *			mem NOW FREE		every INTERVAL_MS
 *			ID out TEXT		a line that the command wrote
 *			ID exit STATUS NOW	the command has ended
 *
 * ID is the host's name for the command. NOW is CLOCK_MONOTONIC in ms, so the
 * host knows when something happened, and not just when it heard of it. FREE is
 * MemFree in KiB. STATUS is as in a shell: 128 + N for signal N.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_JOBS	8
#define MAX_LINE	4096
#define MAX_ID		32

/* Bytes that have come in and do not make a whole line yet. */
struct line_buffer {
	size_t used;
	char text[MAX_LINE];
};

/* A running command; @pid is 0 in a free slot, @output is -1 once it is closed. */
struct job {
	pid_t pid;
	int output;
	char id[MAX_ID];
	struct line_buffer buffer;
};

static int port;
static struct job jobs[MAX_JOBS];

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Send a line to the host. If the host is gone, there is nothing to do. */
static void tell(const char *format, ...)
{
	char line[MAX_LINE + 2 * MAX_ID];
	size_t done = 0, length;
	va_list ap;

	va_start(ap, format);
	length = vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	while (done < length) {
		ssize_t n = write(port, line + done, length - done);

		if (n < 0 && errno != EINTR)
			err(1, "write to the port");
		if (n > 0)
			done += n;
	}
}

/*
 * Read what there is, and pass each whole line on without its newline. A line that
 * is too long is passed on in pieces. Returns false at the end of the file.
 */
static bool read_lines(int fd, struct line_buffer *buffer,
		       void (*handle)(void *arg, const char *line), void *arg)
{
	ssize_t n = read(fd, buffer->text + buffer->used,
			 MAX_LINE - 1 - buffer->used);
	char *start = buffer->text, *end;

	if (n <= 0)
		return n < 0 && (errno == EINTR || errno == EAGAIN);
	buffer->used += n;
	buffer->text[buffer->used] = '\0';
	while ((end = strchr(start, '\n'))) {
		*end = '\0';
		handle(arg, start);
		start = end + 1;
	}
	buffer->used -= start - buffer->text;
	if (buffer->used == MAX_LINE - 1) {
		handle(arg, start);
		buffer->used = 0;
	}
	memmove(buffer->text, start, buffer->used);
	return true;
}

static struct job *free_job(void)
{
	for (int i = 0; i < MAX_JOBS; i++) {
		if (!jobs[i].pid)
			return &jobs[i];
	}
	return NULL;
}

static void run_shell(const char *command, int output)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	execl("/bin/sh", "sh", "-c", command, NULL);
	err(127, "/bin/sh");
}

static void start_job(void *arg, const char *line)
{
	struct job *job = free_job();
	int ends[2], skip = 0;

	(void)arg;
	if (!*line)
		return;
	if (!job)
		errx(1, "more than %d commands at once", MAX_JOBS);
	if (sscanf(line, "%31s %n", job->id, &skip) != 1 || !skip)
		errx(1, "no command in '%s'", line);
	if (pipe2(ends, O_CLOEXEC))
		err(1, "pipe");
	job->pid = fork();
	if (job->pid < 0)
		err(1, "fork");
	if (!job->pid)
		run_shell(line + skip, ends[1]);
	close(ends[1]);
	job->output = ends[0];
	job->buffer.used = 0;
}

static void tell_output(void *arg, const char *line)
{
	struct job *job = arg;

	tell("%s out %s\n", job->id, line);
}

static void read_output(struct job *job)
{
	if (job->output < 0 ||
	    read_lines(job->output, &job->buffer, tell_output, job))
		return;
	close(job->output);
	job->output = -1;
}

/*
 * Take the time first: this is when the command's memory became free. Its last
 * output may still be in the pipe. Read only what is there now, as a process that
 * the command left running may hold the pipe open for ever.
 */
static void end_job(struct job *job, int status)
{
	uint64_t end = now_ms();
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status)
				       : WEXITSTATUS(status);

	if (job->output >= 0)
		fcntl(job->output, F_SETFL, O_NONBLOCK);
	do {
		errno = 0;
		read_output(job);
	} while (job->output >= 0 && errno != EAGAIN);
	if (job->buffer.used) {
		job->buffer.text[job->buffer.used] = '\0';
		tell_output(job, job->buffer.text);
	}
	tell("%s exit %d %llu\n", job->id, code, (unsigned long long)end);
	if (job->output >= 0)
		close(job->output);
	job->pid = 0;
}

/* The agent may be process 1's deputy, and so get children that are not its own. */
static void reap(int signals)
{
	struct signalfd_siginfo info;
	int status;
	pid_t pid;

	if (read(signals, &info, sizeof(info)) < 0)
		err(1, "signalfd");
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < MAX_JOBS; i++) {
			if (jobs[i].pid == pid)
				end_job(&jobs[i], status);
		}
	}
}

static void tell_memory(int timer)
{
	static char text[256];
	static int meminfo = -1;
	unsigned long free_kib = 0;
	uint64_t ticks;
	char *field;
	ssize_t n;

	if (read(timer, &ticks, sizeof(ticks)) < 0)
		err(1, "timerfd");
	if (meminfo < 0)
		meminfo = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	n = pread(meminfo, text, sizeof(text) - 1, 0);
	if (n <= 0)
		err(1, "/proc/meminfo");
	text[n] = '\0';
	field = strstr(text, "MemFree:");
	if (!field || sscanf(field, "MemFree: %lu", &free_kib) != 1)
		errx(1, "no MemFree in /proc/meminfo");
	tell("mem %llu %lu\n", (unsigned long long)now_ms(), free_kib);
}

static int open_signals(void)
{
	sigset_t mask;
	int fd;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	fd = signalfd(-1, &mask, SFD_CLOEXEC);
	if (fd < 0)
		err(1, "signalfd");
	return fd;
}

static int open_timer(long interval_ms)
{
	struct timespec interval = {
		.tv_sec = interval_ms / 1000,
		.tv_nsec = interval_ms % 1000 * 1000000,
	};
	struct itimerspec spec = {
		.it_interval = interval,
		.it_value = interval,
	};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

	if (fd < 0 || timerfd_settime(fd, 0, &spec, NULL))
		err(1, "timerfd");
	return fd;
}

int main(int argc, char **argv)
{
	enum { PORT, SIGNALS, TIMER, FIRST_JOB };
	struct pollfd fds[FIRST_JOB + MAX_JOBS];
	static struct line_buffer commands;
	long interval_ms = argc == 3 ? strtol(argv[2], NULL, 10) : 0;

	if (interval_ms <= 0)
		errx(2, "usage: agent PORT INTERVAL_MS");
	port = open(argv[1], O_RDWR | O_CLOEXEC);
	if (port < 0)
		err(1, "%s", argv[1]);
	fds[PORT] = (struct pollfd){ .fd = port, .events = POLLIN };
	fds[SIGNALS] = (struct pollfd){ open_signals(), POLLIN, 0 };
	fds[TIMER] = (struct pollfd){ open_timer(interval_ms), POLLIN, 0 };
	tell("hello %llu\n", (unsigned long long)now_ms());

	for (;;) {
		for (int i = 0; i < MAX_JOBS; i++) {
			fds[FIRST_JOB + i] = (struct pollfd){
				.fd = jobs[i].pid ? jobs[i].output : -1,
				.events = POLLIN,
			};
		}
		if (poll(fds, FIRST_JOB + MAX_JOBS, -1) < 0)
			err(1, "poll");
		for (int i = 0; i < MAX_JOBS; i++) {
			if (fds[FIRST_JOB + i].revents)
				read_output(&jobs[i]);
		}
		if (fds[SIGNALS].revents)
			reap(fds[SIGNALS].fd);
		if (fds[TIMER].revents)
			tell_memory(fds[TIMER].fd);
		if ((fds[PORT].revents & POLLIN) &&
		    !read_lines(port, &commands, start_job, NULL))
			errx(1, "the host has closed the port");
	}
}
