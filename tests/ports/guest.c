// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The only process of a guest on another architecture.
 *
 * It keeps some memory, and uses and frees other memory several times. It checks that
 * freed memory is hinted, and that memory that it keeps is left alone. Its lines on
 * the console begin with "port:"; the last is "port: ok", or says what went wrong.
 */
#include <errno.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define KEPT (64 * MIB)
#define FREED (256 * MIB)
/* How much may stay unhinted: on per-CPU lists, and beside memory in use. */
#define LEFT (32 * MIB)
#define ROUNDS 3
#define WAIT_MS 120000
#define POLL_MS 50

#define ATTRIBUTES "/sys/bus/virtio/drivers/virtio_freehint/virtio*/freehint"

static char attributes[256];

/* Init must not exit; the test ends the guest when it has read the console. */
static void end(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("port: ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
    fflush(stdout);
    for (;;) {
        pause();
    }
}

static void mount_or_end(const char *type, const char *where)
{
    mkdir(where, 0755);
    if (mount(type, where, type, 0, NULL)) {
        end("failed: cannot mount %s: %s", where, strerror(errno));
    }
}

static void find_attributes(void)
{
    glob_t found;

    if (glob(ATTRIBUTES, 0, NULL, &found)) {
        end("failed: no device is bound");
    }
    snprintf(attributes, sizeof(attributes), "%s", found.gl_pathv[0]);
    globfree(&found);
}

static const char *attribute(const char *name)
{
    static char value[64];
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", attributes, name);
    file = fopen(path, "r");
    if (!file || fscanf(file, "%63s", value) != 1) {
        end("failed: cannot read %s", path);
    }
    fclose(file);
    return value;
}

static unsigned long long figure(const char *name)
{
    return strtoull(attribute(name), NULL, 10);
}

static unsigned long *filled(size_t bytes, unsigned long seed)
{
    unsigned long *words = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (words == MAP_FAILED) {
        end("failed: cannot map %zu bytes: %s", bytes, strerror(errno));
    }
    for (size_t i = 0; i < bytes / sizeof(*words); i++) {
        words[i] = seed + i;
    }
    return words;
}

static void check(const unsigned long *words, size_t bytes, unsigned long seed)
{
    for (size_t i = 0; i < bytes / sizeof(*words); i++) {
        if (words[i] != seed + i) {
            end("failed: word %zu is %lx, not %lx", i, words[i], seed + i);
        }
    }
}

static void wait_discarded(unsigned long long wanted)
{
    for (int waited = 0; figure("discarded_bytes") < wanted; waited += POLL_MS) {
        if (waited >= WAIT_MS) {
            end("failed: %llu bytes hinted, %llu discarded, not %llu; status %s",
                figure("hinted_bytes"), figure("discarded_bytes"), wanted,
                attribute("status"));
        }
        usleep(POLL_MS * 1000);
    }
}

int main(void)
{
    unsigned long *kept, *freed;
    unsigned long long before;

    mount_or_end("proc", "/proc");
    mount_or_end("sysfs", "/sys");
    find_attributes();
    printf("port: pages of %ld bytes, %s-endian\n", sysconf(_SC_PAGESIZE),
           *(const char *)&(const short){1} ? "little" : "big");

    kept = filled(KEPT, 1);
    for (unsigned long round = 0; round < ROUNDS; round++) {
        before = figure("discarded_bytes");
        freed = filled(FREED, ~round);
        check(freed, FREED, ~round);
        munmap(freed, FREED);
        wait_discarded(before + FREED - LEFT);
        check(kept, KEPT, 1);
    }
    end("ok");
}
