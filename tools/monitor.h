/*
 * What QEMU and the host report about VMs with a virtio-freehint device
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
    /* For Prometheus; in JSON without "freehint_". */
    const char *metric;
    const char *help;
    /* Its path in query-freehint, if it is there; "*" sums all members. */
    const char *path;
    /* Divides the value to get the unit in the name; 0 means 1. */
    double divisor;
} Figure;

extern const Figure figures[N_FIGURES];

/* A figure that is not known. */
#define UNKNOWN ((gint64)-1)

/* Values of WORKS: none, some or all of the guest's memory gets back. */
enum { WORKS_NOT, WORKS_PARTLY, WORKS_WELL };

typedef enum WordId {
    PROBLEM, DEVICE, STATE, REASON, DRIVER, DISCARD, IN_EFFECT, FLUSH,
    N_WORDS
} WordId;

typedef struct Word {
    const char *name;
    const char *path;
    /* The metric that has this word as a label, if there is one. */
    const char *metric;
    const char *help;
} Word;

extern const Word words[N_WORDS];

typedef struct Source {
    /* The name that the operator gave it, or NULL. */
    char *name;
    /* The path of a QMP socket, or a libvirt domain, or neither. */
    char *path;
    char *domain;
    /* QEMU's process, if the source was found in /proc. */
    gint64 pid;
    /* Whether to take a map. */
    gboolean wants_map;
} Source;

typedef struct Sample {
    char *name;
    gint64 pid;
    /* By g_get_monotonic_time(). */
    gint64 when;
    /*
     * Each may be NULL. If there is a PROBLEM, all others are:
     *   no-device   the VM has none
     *   no-command  QEMU does not know the device
     *   no-monitor  QEMU has no QMP socket with a path
     *   busy        another client uses the monitor
     *   no-answer   QEMU accepts us, but does not answer
     *   gone        nobody listens
     *   denied      we lack the permission
     *   error       anything else
     */
    char *words[N_WORDS];
    /* The problem as a sentence. */
    char *detail;
    /* As query-freehint has them. */
    JsonArray *obstacles;
    gint64 figures[N_FIGURES];
    /* NULL if it was not wanted, or failed: then map_problem says why. */
    Map *map;
    char *map_problem;
} Sample;

void source_free(Source *source);

/*
 * Where to ask: sockets, as "[NAME=]PATH", and libvirt domains. If neither is
 * given, all QEMU processes on this host.
 */
GPtrArray *sources_list(char **sockets, char **domains);

/* All QEMU processes below @proc, each with its QMP socket if it has one. */
GPtrArray *sources_find(const char *proc);

/*
 * Take a sample of each source, in their order. @timeout_s is for each answer
 * from QEMU. Only one call may run at a time.
 */
GPtrArray *samples_take(GPtrArray *sources, unsigned timeout_s);

Sample *sample_new(const char *name);
void sample_free(Sample *sample);

/* Fill in what query-freehint returned. */
void sample_parse(Sample *sample, JsonNode *returned);

guint sample_obstacles(const Sample *sample);
const char *sample_obstacle(const Sample *sample, guint index,
                            const char *member);

/* Whether a client is connected; @table replaces /proc/net/unix in tests. */
gboolean socket_is_taken(const char *path, const char *table);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Sample, sample_free)

#endif
