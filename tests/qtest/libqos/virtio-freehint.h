/*
 * libqos driver for virtio-freehint-pci
 *
 * Functions that take no device work on the one with ID "fh0" in the QEMU of
 * global_qtest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_VIRTIO_FREEHINT_H
#define TESTS_LIBQOS_VIRTIO_FREEHINT_H

#include "qgraph.h"
#include "virtio.h"
#include "virtio-pci.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_freehint.h"

typedef struct QVirtioFreehint {
    QVirtioDevice *vdev;
    QVirtQueue *vq;
    QVirtioPCIDevice *pci;
    /* Features that are offered, but not accepted. */
    uint64_t refused_features;
} QVirtioFreehint;

typedef struct QVirtioFreehintPCI {
    QVirtioPCIDevice pci_vdev;
    QVirtioFreehint freehint;
} QVirtioFreehintPCI;

/* In host byte order. */
typedef struct virtio_freehint_range QFreehintRange;

/* A message that the device has, or is about to get. */
typedef struct QFreehintHint {
    uint64_t readable;
    uint64_t writable;
    uint32_t readable_len;
    uint32_t nranges;
    uint32_t head;
} QFreehintHint;

void qfreehint_init(QVirtioFreehint *fh, QVirtioPCIDevice *pci);

/* Negotiate, set up the queue and set DRIVER_OK. */
void qfreehint_start(QVirtioFreehint *fh, QGuestAllocator *alloc);

/* Reset the device, and start it again. */
void qfreehint_restart(QVirtioFreehint *fh, QGuestAllocator *alloc);

/* A 32-bit field of config space. */
#define QFREEHINT_CONFIG(fh, field) \
    qvirtio_config_readl((fh)->vdev, \
                         offsetof(struct virtio_freehint_config, field))

/*
 * Write a message to guest memory. Header and ranges are in host byte order;
 * the header is written as given, whatever @nranges is.
 */
QFreehintHint qfreehint_prepare(QVirtioFreehint *fh, QGuestAllocator *alloc,
                                const struct virtio_freehint_hdr *hdr,
                                const QFreehintRange *ranges,
                                uint32_t nranges);

/* The same for a message without ranges, which has @size bytes of @body. */
QFreehintHint qfreehint_prepare_body(QVirtioFreehint *fh,
                                     QGuestAllocator *alloc,
                                     const struct virtio_freehint_hdr *hdr,
                                     const void *body, size_t size);

/* Make a message available in as few descriptors as possible, and notify. */
void qfreehint_submit(QVirtioFreehint *fh, QFreehintHint *hint);

/*
 * Make a message available whose parts are split into descriptors of at most
 * @step bytes, @readable and @writable bytes in all, and notify.
 */
void qfreehint_submit_split(QVirtioFreehint *fh, QFreehintHint *hint,
                            uint32_t readable, uint32_t writable,
                            uint32_t step);

/* Wait until the message is used; returns how long that took, in us. */
gint64 qfreehint_wait(QVirtioFreehint *fh, QFreehintHint *hint);

/* Whether the device has used a buffer that has not been waited for. */
bool qfreehint_poll(QVirtioFreehint *fh, uint32_t *head, uint32_t *len);

/* Read the writable part of a message. */
struct virtio_freehint_ack qfreehint_ack(const QFreehintHint *hint);
uint8_t qfreehint_status(const QFreehintHint *hint, uint32_t index);

/* One hint from start to end; the statuses are copied out. */
void qfreehint_hint(QVirtioFreehint *fh, QGuestAllocator *alloc,
                    uint16_t flags, const QFreehintRange *ranges,
                    uint32_t nranges, uint8_t *status);

/* The same for a single range; returns its status. */
uint8_t qfreehint_hint_one(QVirtioFreehint *fh, QGuestAllocator *alloc,
                           uint16_t flags, uint64_t addr, uint64_t len);

/* A message without ranges from start to end; returns the result. */
uint16_t qfreehint_send(QVirtioFreehint *fh, QGuestAllocator *alloc,
                        uint16_t type, const void *body, size_t size);

/* The start of guest RAM: 0 on a PC. */
uint64_t qfreehint_ram_start(void);
void qfreehint_fill(uint64_t addr, uint64_t len, uint8_t pattern);
bool qfreehint_is_filled(uint64_t addr, uint64_t len, uint8_t pattern);

/* A field of a file of QEMU's in the host's /proc, in bytes. */
uint64_t qfreehint_host_bytes(const char *file, const char *field);

/* QEMU's anonymous memory that is resident, in bytes, the guest's included. */
uint64_t qfreehint_resident_anon(void);

/* Resident memory: of a machine's 128 MiB of RAM, and of QEMU besides. */
uint64_t qfreehint_ram_resident(void);
uint64_t qfreehint_own_memory(void);

/*
 * The address sanitizer keeps freed memory, and finds leaks by itself. The
 * thread sanitizer keeps records of accesses.
 */
#if defined(QEMU_SANITIZE_ADDRESS) || defined(QEMU_SANITIZE_THREAD)
#define QFREEHINT_FREED_IS_KEPT true
#else
#define QFREEHINT_FREED_IS_KEPT false
#endif

/* The device's entry in the answer to query-freehint. The caller's. */
QDict *qfreehint_query(void);
/* An active device has no reason: NULL. */
void qfreehint_assert_state(const char *state, const char *reason);

/*
 * A counter of ranges from "stats", in "ranges" or "bytes"; for "declined" and
 * "rejected" the sum of all kinds.
 */
uint64_t qfreehint_count(const char *name, const char *unit);

/* Any other counter from "stats". */
uint64_t qfreehint_stat(const char *name);

/* The number of ranges in one member of "rejected". */
uint64_t qfreehint_count_rejected(const char *kind);

/* The reasons of all obstacles as listed, each followed by a blank. */
void qfreehint_assert_obstacles(const char *expected);

/* The outcomes of all ranges add up, in both units. */
void qfreehint_assert_identity(void);

void qfreehint_set_enabled(bool enabled);
void qfreehint_set_prop(const char *path, const char *prop, bool value);

/* The value of -M for another QEMU with the same machine, with options. */
const char *qfreehint_machine(void);

/* A Unix socket of this test's own, to migrate over. */
char *qfreehint_migration_uri(void);

/* Start a migration; wait until it has completed. */
void qfreehint_migrate(const char *uri);
void qfreehint_await_migration(void);

/*
 * For QOSGraphTestOptions.before: the machine's RAM is a file. It outlives
 * QEMU, and the test has to remove it.
 */
void *qfreehint_setup_shared_ram(GString *cmd_line, void *arg);
char *qfreehint_ram_file(void);

/* For QOSGraphTestOptions.before: "veto0", which can disable discards. */
void *qfreehint_setup_veto(GString *cmd_line, void *arg);

#endif
