/*
 * What QEMU and the host tell of VMs with a virtio-freehint device
 *
 * A source says where to ask, a sample is what came of it. Nothing is kept
 * open between two samples: a QMP socket has room for one client, and others
 * may want to use it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FREEHINT_MONITOR_H
#define FREEHINT_MONITOR_H

#include "map.h"

typedef enum FigureId {
    MONITOR_UP, WORKS, VM_MEMORY, HOST_RESIDENT, HOST_LAZY_FREE,
    GUEST_FREE, GUEST_PENDING, GUEST_HINTED, GUEST_IN_FLIGHT, GUEST_STUCK,
    GUEST_REUSED, GUEST_REST, GUEST_AGE, POPULATED_HINTED, GRANULE, RATE_LIMIT,
    LAST_HINT_AGE, HINTS, MALFORMED, UNSUPPORTED, HINTED, DISCARDED, DECLINED,
    THROTTLED, OVER_RATE, REJECTED, FAILED, IN_FLIGHT, DISCARD_CALLS,
    DISCARD_TIME, LAZY_CALLS, LAZY_BYTES, SKIPPED,
    N_FIGURES
} FigureId;

typedef struct Figure {
    /* In Prometheus' format; in JSON without "freehint_". */
    const char *metric;
    const char *help;
    /* Where query-freehint has it, if it does; "*" is the sum of all. */
    const char *path;
    /* How much of it the unit is that the name says; 0 stands for 1. */
    double divisor;
} Figure;

extern const Figure figures[N_FIGURES];

/* A figure that nobody has told. */
#define UNKNOWN ((gint64)-1)

/* Values of WORKS, which has UNKNOWN, too: does the guest's memory get back? */
enum { WORKS_NOT, WORKS_PARTLY, WORKS_WELL };

typedef enum WordId {
    PROBLEM, DEVICE, STATE, REASON, DRIVER, DISCARD, FLUSH,
    N_WORDS
} WordId;

typedef struct Word {
    const char *name;
    const char *path;
    /* The metric that is 1 with this word as its label, if there is one. */
    const char *metric;
    const char *help;
} Word;

extern const Word words[N_WORDS];

typedef struct Source {
    /* As the operator calls it; may be NULL. */
    char *name;
    /* One of a QMP socket's path and a domain of libvirt's, or none. */
    char *path;
    char *domain;
    /* QEMU's process, if it was found by it. */
    gint64 pid;
    /* Whether a sample is to have a map. */
    gboolean wants_map;
} Source;

typedef struct Sample {
    char *name;
    gint64 pid;
    /* In microseconds, of g_get_monotonic_time(). */
    gint64 when;
    /*
     * NULL where there is none. If there is a PROBLEM, there is nothing else:
     *   no-device   the VM has none
     *   no-command  QEMU does not know the device
     *   no-monitor  QEMU listens at no socket with a path
     *   busy        another client has the monitor
     *   no-answer   QEMU accepts us, and says nothing
     *   gone        nobody listens
     *   denied      we must not ask
     *   error       anything else
     */
    char *words[N_WORDS];
    /* The problem, for people. */
    char *detail;
    /* As query-freehint has them. */
    JsonArray *obstacles;
    gint64 figures[N_FIGURES];
    /* NULL if nobody wants one; or if there is none, which map_problem says. */
    Map *map;
    char *map_problem;
} Sample;

void source_free(Source *source);

/*
 * Where to ask: sockets, with a name of the operator's before it or not, and
 * domains of libvirt's; if there are neither, whatever QEMU runs here.
 */
GPtrArray *sources_list(char **sockets, char **domains);

/* All QEMU processes below @proc, with a QMP socket that they listen at. */
GPtrArray *sources_find(const char *proc);

/*
 * In the order of @sources; QEMU has @timeout_s for each of its answers. There
 * may be one call at a time.
 */
GPtrArray *samples_take(GPtrArray *sources, unsigned timeout_s);

Sample *sample_new(const char *name);
void sample_free(Sample *sample);

/* Take over what query-freehint has returned. */
void sample_parse(Sample *sample, JsonNode *returned);

guint sample_obstacles(const Sample *sample);
const char *sample_obstacle(const Sample *sample, guint index,
                            const char *member);

/* Whether somebody talks to a socket, by what is in /proc/net/unix. */
gboolean socket_is_taken(const char *path, const char *table);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Sample, sample_free)

#endif
