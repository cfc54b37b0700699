/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Virtio free memory hint device: the protocol, shared by device and driver.
 *
 * The text that this header puts into C is spec/description.tex; section
 * names below refer to it.  All fields are little-endian, all addresses and
 * lengths are guest-physical bytes.
 */
#ifndef _LINUX_VIRTIO_FREEHINT_H
#define _LINUX_VIRTIO_FREEHINT_H

#include <linux/types.h>

/*
 * Section "Device ID".  The last ID that a virtio PCI function can carry
 * (0x1040 + 63 = 0x107f).  Not assigned by the virtio TC: a placeholder until
 * an ID is reserved.
 */
#define VIRTIO_ID_FREEHINT			63

/*
 * Section "Feature bits".
 *
 * FLUSH: the device can ask for a flush, and waits for the driver's answer. The
 * configuration space has the fields from flush_id on only with this bit or LAZY.
 *
 * LAZY: memory that may be wanted back soon can be hinted as such. The configuration
 * space has the fields from lazy on only with this bit.
 */
#define VIRTIO_FREEHINT_F_FLUSH			0
#define VIRTIO_FREEHINT_F_LAZY			1

/* Section "Virtqueues". */
#define VIRTIO_FREEHINT_VQ_HINT			0

/**
 * struct virtio_freehint_config - device configuration space
 * @granule: bytes; a power of two. Every range starts and ends on a multiple
 *	of it. Constant while the device exists.
 * @max_ranges: most ranges that one hint may name; at least 1. Constant.
 * @state: enum virtio_freehint_state; what the device does with hints now.
 * @reason: enum virtio_freehint_reason; why @state is not active, else none.
 * @rehint_epoch: moves when earlier answers no longer hold. Compare for equality
 *	only.
 * @delay_ms: least time in ms between two rounds of hints.
 * @min_age_ms: least time in ms that memory is free before it is hinted.
 * @driver_status: enum virtio_freehint_driver_status; the only field that the
 *	driver writes.
 * @flush_id: number of the last flush asked for, 0 before the first; this and
 *	the next two only with VIRTIO_FREEHINT_F_FLUSH.
 * @flush_flags: VIRTIO_FREEHINT_FLUSH_F_* flags of that flush.
 * @flush_timeout_ms: ms within which the driver has to answer it.
 * @lazy: 1 if VIRTIO_FREEHINT_HINT_F_LAZY makes the device discard lazily, else 0;
 *	only with VIRTIO_FREEHINT_F_LAZY.
 * @reserved: 0.
 *
 * Section "Device configuration layout".
 */
struct virtio_freehint_config {
	__le64 granule;
	__le32 max_ranges;
	__le32 state;
	__le32 reason;
	__le32 rehint_epoch;
	__le32 delay_ms;
	__le32 min_age_ms;
	__le32 driver_status;
	__le32 flush_id;
	__le32 flush_flags;
	__le32 flush_timeout_ms;
	__le32 lazy;
	__le32 reserved;
};

/* Section "Effective state"; an unknown value means "do not hint". */
enum virtio_freehint_state {
	VIRTIO_FREEHINT_STATE_DISABLED		= 0,
	VIRTIO_FREEHINT_STATE_ACTIVE		= 1,
	VIRTIO_FREEHINT_STATE_VETOED		= 2,
};

/* Section "Effective state"; listed in order of precedence. */
enum virtio_freehint_reason {
	VIRTIO_FREEHINT_REASON_NONE		= 0,
	/* The operator switched the device off. */
	VIRTIO_FREEHINT_REASON_OPERATOR		= 1,
	/* Something holds guest pages by their host address (e.g. VFIO). */
	VIRTIO_FREEHINT_REASON_PINNED		= 2,
	/* Guest memory is locked into host memory. */
	VIRTIO_FREEHINT_REASON_LOCKED		= 3,
	/* A migration or snapshot that a discard would corrupt. */
	VIRTIO_FREEHINT_REASON_MIGRATION	= 4,
	/* A back end in another process may hold guest pages. */
	VIRTIO_FREEHINT_REASON_EXTERNAL		= 5,
};

/* Section "Driver status"; what the driver says of itself. */
enum virtio_freehint_driver_status {
	/* No driver, or not far enough yet; the value after reset. */
	VIRTIO_FREEHINT_DRIVER_NOT_READY	= 0,
	VIRTIO_FREEHINT_DRIVER_ACTIVE		= 1,
	/* Idle because config says so (disabled or vetoed). */
	VIRTIO_FREEHINT_DRIVER_WAITING		= 2,
	/* Idle on the guest administrator's word. */
	VIRTIO_FREEHINT_DRIVER_OFF		= 3,
	/* Free pages carry a pattern that the guest checks. */
	VIRTIO_FREEHINT_DRIVER_POISONING	= 4,
	/* Free pages are unmapped or shadowed by a debugging facility. */
	VIRTIO_FREEHINT_DRIVER_DEBUGGING	= 5,
	/* Another facility of the guest reports free memory already. */
	VIRTIO_FREEHINT_DRIVER_OTHER_REPORTER	= 6,
	/* The granule exceeds the largest block that the guest tracks. */
	VIRTIO_FREEHINT_DRIVER_GRANULE		= 7,
	/* The driver gave up on the device (e.g. a request never returned). */
	VIRTIO_FREEHINT_DRIVER_FAILED		= 8,
};

/* Section "Messages". */
enum virtio_freehint_type {
	VIRTIO_FREEHINT_T_HINT			= 1,
	/* Followed by struct virtio_freehint_flush_done. */
	VIRTIO_FREEHINT_T_FLUSH_DONE		= 2,
	/* Followed by struct virtio_freehint_gauges. */
	VIRTIO_FREEHINT_T_GAUGES		= 3,
};

/*
 * Flags of a hint, sections "Content expectation" and "Hinting free memory".
 *
 * ZERO: the guest takes every byte of the ranges to be zero afterwards,
 * whatever status they get.  Without it a byte reads as zero or as a value that
 * it held before, from the moment that the hint is available until it is written.
 *
 * LAZY: the guest may want the ranges back soon, so that they are better discarded
 * lazily.  Those that get VIRTIO_FREEHINT_S_LAZY are hinted again, without this flag,
 * when they have been free for longer.
 */
#define VIRTIO_FREEHINT_HINT_F_ZERO		(1 << 0)
#define VIRTIO_FREEHINT_HINT_F_LAZY		(1 << 1)

/**
 * struct virtio_freehint_hdr - what every message starts with
 * @type: enum virtio_freehint_type
 * @flags: depends on @type; unknown bits make the message unsupported
 * @nranges: entries of struct virtio_freehint_range that follow; 0 unless the type
 *	defines ranges. The others have a structure of their own there
 * @cookie: the driver's own, for traces
 *
 * Device-readable. Section "Messages".
 */
struct virtio_freehint_hdr {
	__le16 type;
	__le16 flags;
	__le32 nranges;
	__le64 cookie;
};

/**
 * struct virtio_freehint_range - free guest memory, named by address
 * @addr: guest-physical address, a multiple of the granule
 * @len: bytes, a multiple of the granule, not zero
 *
 * Device-readable. Section "Hinting free memory".
 */
struct virtio_freehint_range {
	__le64 addr;
	__le64 len;
};

/**
 * struct virtio_freehint_ack - what every used message starts with
 * @result: enum virtio_freehint_result for the message as a whole
 * @reserved: zero
 * @nstatus: bytes of status that follow: nranges of a hint, else 0
 * @rehint_epoch: the epoch under which the message was handled
 * @retry_after_ms: for ranges with status THROTTLED, in ms; else 0
 *
 * Device-writable, followed by one byte of enum virtio_freehint_status for
 * each range of the message. Section "Messages".
 */
struct virtio_freehint_ack {
	__le16 result;
	__le16 reserved;
	__le32 nstatus;
	__le32 rehint_epoch;
	__le32 retry_after_ms;
};

/* Zero is no result: memory that nobody wrote must not read as success. */
enum virtio_freehint_result {
	VIRTIO_FREEHINT_R_DONE			= 1,
	VIRTIO_FREEHINT_R_UNSUPPORTED		= 2,
};

/*
 * Section "Range status".  A value that is not listed, zero among them, means
 * "declined" below VIRTIO_FREEHINT_S_REFUSED, and "refused" from there on.  A
 * range that needs several answers gets the greatest of them, so the order of
 * these values is the order of severity.
 */
enum virtio_freehint_status {
	/* The host has taken the memory, or takes it later unless it is written. */
	VIRTIO_FREEHINT_S_DISCARDED		= 0x10,
	/* The same, in part lazily; worth hinting again without HINT_F_LAZY. */
	VIRTIO_FREEHINT_S_LAZY			= 0x11,

	/* Not now; hint again when the epoch moves. */
	VIRTIO_FREEHINT_S_DECLINED		= 0x20,
	/* Not now; hint again after retry_after_ms. */
	VIRTIO_FREEHINT_S_THROTTLED		= 0x21,

	/* The host tried and failed; hint again when the epoch moves. */
	VIRTIO_FREEHINT_S_FAILED		= 0x30,

	/* Refused, until the epoch moves: wrong, or not for discarding. */
	VIRTIO_FREEHINT_S_EMPTY			= 0x40,
	VIRTIO_FREEHINT_S_OVERFLOW		= 0x41,
	VIRTIO_FREEHINT_S_MISALIGNED		= 0x42,
	VIRTIO_FREEHINT_S_UNMAPPED		= 0x43,
	VIRTIO_FREEHINT_S_NOT_RAM		= 0x44,
	VIRTIO_FREEHINT_S_READ_ONLY		= 0x45,
	VIRTIO_FREEHINT_S_EXCLUDED		= 0x46,
	VIRTIO_FREEHINT_S_BACKING		= 0x47,
};

/* The first of the statuses that refuse a range; the other name is an old one. */
#define VIRTIO_FREEHINT_S_REFUSED		VIRTIO_FREEHINT_S_EMPTY
#define VIRTIO_FREEHINT_S_NEVER			VIRTIO_FREEHINT_S_REFUSED

/*
 * Flags of a flush, section "Flush".
 *
 * COMPACT: move memory in use together first.
 */
#define VIRTIO_FREEHINT_FLUSH_F_COMPACT		(1 << 0)

/* Section "Flush". Zero is no result. */
enum virtio_freehint_flush_result {
	/* All that can be hinted was hinted, and answered. */
	VIRTIO_FREEHINT_FLUSH_DONE		= 1,
	/* flush_timeout_ms have passed. */
	VIRTIO_FREEHINT_FLUSH_TIMEOUT		= 2,
	/* The driver does not hint; driver_status says why. */
	VIRTIO_FREEHINT_FLUSH_REFUSED		= 3,
};

/**
 * struct virtio_freehint_gauges - the guest's word on its memory, in bytes
 * @free: free, and not in flight
 * @pending: free in whole granules, will be hinted
 * @hinted: free, and discarded
 * @in_flight: named in buffers that are not used
 * @stuck: free, but not in whole granules
 * @reused: in use again soon after it was hinted; a sum
 * @rest_ms: for how long memory stays free before it is hinted for good, at present
 * @reserved: 0
 *
 * Device-readable. Section "Gauges".
 */
struct virtio_freehint_gauges {
	__le64 free;
	__le64 pending;
	__le64 hinted;
	__le64 in_flight;
	__le64 stuck;
	__le64 reused;
	__le32 rest_ms;
	__le32 reserved;
};

/**
 * struct virtio_freehint_flush_done - the driver's answer to a flush
 * @id: value of flush_id in the configuration
 * @result: enum virtio_freehint_flush_result
 * @hinted: bytes that were hinted for it and answered
 * @gauges: what is left
 *
 * Device-readable. Section "Flush".
 */
struct virtio_freehint_flush_done {
	__le32 id;
	__le32 result;
	__le64 hinted;
	struct virtio_freehint_gauges gauges;
};

#endif /* _LINUX_VIRTIO_FREEHINT_H */
