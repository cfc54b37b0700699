/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free memory hints: the engine.
 *
 * One thread does all that concerns hints: it collects, submits, takes answers
 * and gives back (round.c, flight.c). It never waits for memory, for the device
 * or for the engine's mutex, so whoever waits for what is in flight waits for
 * the device alone. What the device, the guest's administrator and other parties
 * want, and starting and stopping, is decided under the mutex (control.c).
 */
#ifndef _MM_FREEHINT_ENGINE_H
#define _MM_FREEHINT_ENGINE_H

#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/mutex.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "internal.h"

/**
 * struct fh_engine - the engine
 * @lock: who is registered, and whether the engine runs
 * @dev: the device, or NULL
 * @order: the granule
 * @active: the device wants hints
 * @allowed: so does the guest's administrator
 * @broken: the device is not to be talked to
 * @give_up: the driver says that the device is broken
 * @status: as last told to the driver
 *
 * @running: the thread may submit; written under @lock
 * @worker: the thread
 * @tick: a period has ended
 * @reap: the device has answered, or something else makes a round go on
 * @abort: the device has been reset; everything in flight comes back
 * @watch: fires when the oldest hint is overdue
 * @kick: from under a zone lock to @tick
 * @recover: resets the device; not in the thread, as it may take long
 *
 * @idle: the thread's: hints that can be filled
 * @flight: the thread's: hints that the device has, oldest first
 * @round: the thread's: a round is under way
 * @pace: the thread's: how long memory rests
 * @delay_ms: least time between two rounds
 * @pause_until: jiffies; nothing is submitted before
 * @in_flight: pages in @flight
 * @wait: woken whenever @in_flight falls
 * @stats: counters; written by the thread
 */
struct fh_engine {
	struct mutex lock; /* for what control decides */
	struct freehint_dev *dev;
	unsigned int order;
	bool active;
	bool allowed;
	bool broken;
	bool give_up;
	enum freehint_status status;

	bool running;
	struct kthread_worker *worker;
	struct kthread_delayed_work tick;
	struct kthread_work reap;
	struct kthread_work abort;
	struct kthread_delayed_work watch;
	struct irq_work kick;
	struct work_struct recover;

	struct list_head idle;
	struct list_head flight;
	bool round;
	struct fh_pace pace;
	unsigned int delay_ms;
	unsigned long pause_until;
	atomic_long_t in_flight;
	wait_queue_head_t wait;
	struct freehint_stats stats;
};

extern struct fh_engine fh_engine;

static inline u64 fh_bytes(unsigned long pages)
{
	return (u64)pages << PAGE_SHIFT;
}

/* round.c: periods and rounds */
extern bool fh_drain_allowed;
unsigned long fh_period(struct fh_engine *e);
void fh_next_period(struct fh_engine *e, unsigned long delay);
void fh_pump(struct fh_engine *e);
void fh_tick(struct kthread_work *work);
void fh_kick(struct irq_work *work);

/* flight.c: hints that the device has */
extern unsigned int fh_timeout_ms;
void fh_watch(struct fh_engine *e);
int fh_submit(struct fh_engine *e, struct freehint_hint *hint);
void fh_reap(struct kthread_work *work);
void fh_overdue(struct kthread_work *work);
void fh_abort(struct kthread_work *work);
void fh_reset_device(struct fh_engine *e);
bool fh_wait_in_flight(struct fh_engine *e, unsigned int ms);
int fh_flight_init(void);

#endif /* _MM_FREEHINT_ENGINE_H */
