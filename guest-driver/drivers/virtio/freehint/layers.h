/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Virtio free memory hint driver: policy on top of the loop. Each layer is a file that
 * can be left out; the functions that the loop calls of it do nothing then.
 */
#ifndef _VIRTIO_FREEHINT_LAYERS_H
#define _VIRTIO_FREEHINT_LAYERS_H

#include "vfh.h"

/* pace.c */
#ifdef CONFIG_VIRTIO_FREEHINT_PACE
void vfh_pace_bounds(struct vfh *fh);
void vfh_pace_tick(struct vfh *fh);
void vfh_pace_limits(struct vfh_pace *pace, unsigned int min_ms,
		     unsigned int max_ms);
void vfh_pace_judge(struct vfh_pace *pace, const struct vfh_reuse *reuse,
		    unsigned long now);
#else
static inline void vfh_pace_bounds(struct vfh *fh)
{
	WRITE_ONCE(fh->pace.age_ms, fh->config.min_age_ms);
}

static inline void vfh_pace_tick(struct vfh *fh)
{
}
#endif

/* gauges.c */
#ifdef CONFIG_VIRTIO_FREEHINT_GAUGES
bool vfh_gauges_send(struct vfh *fh);
void vfh_gauges_rest(struct vfh *fh);
bool vfh_gauges_worth_telling(const struct vfh *fh);
#else
static inline bool vfh_gauges_send(struct vfh *fh)
{
	return false;
}

static inline void vfh_gauges_rest(struct vfh *fh)
{
}

static inline bool vfh_gauges_worth_telling(const struct vfh *fh)
{
	return false;
}
#endif

/* flush.c */
#ifdef CONFIG_VIRTIO_FREEHINT_FLUSH
void vfh_flush_init(struct vfh *fh);
void vfh_flush_cancel(struct vfh *fh);
void vfh_flush_ask(struct vfh *fh);
void vfh_flush_step(struct vfh *fh);
void vfh_flush_answered(struct vfh *fh, const struct vfh_msg *msg);
void vfh_flush_round_over(struct vfh *fh);
void vfh_flush_forget(struct vfh *fh);

/* Whether hints are for a flush, and contain memory of any age. */
static inline bool vfh_flushing(const struct vfh *fh)
{
	return fh->flush.stage == VFH_FLUSH_HINTING;
}
#else
static inline void vfh_flush_init(struct vfh *fh)
{
}

static inline void vfh_flush_cancel(struct vfh *fh)
{
}

static inline void vfh_flush_ask(struct vfh *fh)
{
}

static inline void vfh_flush_step(struct vfh *fh)
{
}

static inline void vfh_flush_answered(struct vfh *fh, const struct vfh_msg *msg)
{
}

static inline void vfh_flush_round_over(struct vfh *fh)
{
}

static inline void vfh_flush_forget(struct vfh *fh)
{
}

static inline bool vfh_flushing(const struct vfh *fh)
{
	return false;
}
#endif

/* compact.c */
#ifdef CONFIG_VIRTIO_FREEHINT_COMPACT
void vfh_compact_init(struct vfh *fh);
void vfh_compact_cancel(struct vfh *fh);
void vfh_compact_look(struct vfh *fh);
void vfh_compact_slice(struct vfh *fh);
bool vfh_compact_due(struct vfh_compact *compact, const struct vfh_load *load);
void vfh_compact_rest(struct vfh_compact *compact, const struct vfh_load *load,
		      unsigned long gained);
#else
static inline void vfh_compact_init(struct vfh *fh)
{
}

static inline void vfh_compact_cancel(struct vfh *fh)
{
}

static inline void vfh_compact_look(struct vfh *fh)
{
}
#endif

#endif /* _VIRTIO_FREEHINT_LAYERS_H */
