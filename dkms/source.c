// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio free memory hint driver for kernels as distributions build them: what
 * include/linux/freehint.h promises, on free page reporting in place of mm/freehint/. All
 * kernels that have a virtio balloon have that.
 *
 * A work item of page reporting goes over the free lists, takes blocks off them, and
 * calls report() with some at a time. They are the offer: the driver collects it, in as
 * many batches as it likes, and report() returns when all of them are back. There is one
 * answer for the whole offer, so what is to be tried again takes the rest along.
 *
 * Left to itself the work item waits for 2 s before each pass, and gives a 16th of a list
 * in it. It is in a structure of ours, as is how long it waits; so freehint_age() and
 * freehint_collect() have it run when they want more. A pass that nobody wants is turned
 * away before it has taken more than one offer.
 */
#include <linux/freehint.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>
#include <linux/sort.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/vmstat.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

/* How often to look whether page reporting wants to run; on a CPU that is awake. */
#define LOOK_TIME	max(HZ / 20, 1)

/* Longest wait for an offer, in jiffies: the time of a pass in a busy guest. */
#define MAX_WAITS	max(HZ / 4, 2)

/* An offer that nobody collects is withdrawn after this time. */
#define OFFER_TIME	max(HZ / 4, 1)

/* A list takes 16 passes. */
#define MAX_PASSES	20

/* A pass without an offer has looked at all blocks: pause for 1 ms per so many. */
#define BLOCKS_PER_MS	64

/* Delay before an offer is retried. It doubles each time, up to this many times. */
#define RETRY_TIME	max(HZ / 4, 1)
#define MAX_RETRIES	6U

/*
 * There is no way to ask whether another device is still registered, so for this long it
 * counts as registered. It has to be less than the time between two tries of the driver.
 */
#define OTHER_TIME	(4 * HZ)

static struct page_reporting_dev_info reporting;
static struct timer_list look_timer;
static unsigned int granule_order;
static void (*wake_user)(void *data);
static void *user_data;
static unsigned long other_until = INITIAL_JIFFIES;

/* Blocks that page reporting has taken off the free lists, and waits for. */
static struct {
	spinlock_t lock;		/* protects all members */
	wait_queue_head_t changed;	/* an offer was made, or part of it is back */
	unsigned int nr;		/* ranges not collected yet */
	struct freehint_range ranges[PAGE_REPORTING_CAPACITY];	/* by ascending address */
	unsigned long held;		/* pages collected and not back */
	unsigned long lost;		/* pages of these not expected back */
	bool failed;			/* some of it has to be retried */
	bool withdrawn;			/* some of it was not collected */
	bool stopped;			/* no more offers */
	u64 returned;			/* pages returned as discarded, in all */
} offer = {
	.lock = __SPIN_LOCK_UNLOCKED(offer.lock),
	.changed = __WAIT_QUEUE_HEAD_INITIALIZER(offer.changed),
};

/* When to have a pass over the free lists. */
static struct {
	bool awaited;			/* the user is collecting */
	bool again;			/* page reporting was turned away */
	bool told;			/* the user was woken for that */
	bool fruitful;			/* this pass made an offer */
	bool rested;			/* a whole period has passed */
	unsigned int left;		/* passes left in this round */
	unsigned int retries;		/* offers that failed in a row */
	unsigned long not_before;	/* jiffies */
} pass;

/*
 * Offers.
 */

static int by_address(const void *a, const void *b)
{
	const struct freehint_range *left = a, *right = b;

	return left->pfn < right->pfn ? -1 : left->pfn > right->pfn;
}

static bool adjoin(const struct freehint_range *low, const struct freehint_range *high)
{
	return low->pfn + low->nr_pages == high->pfn &&
	       pfn_to_section_nr(low->pfn) == pfn_to_section_nr(high->pfn);
}

/* If page reporting had another user, blocks can be smaller than a granule. */
static unsigned int write_ranges(struct freehint_range *ranges, struct scatterlist *sgl,
				 unsigned int nents)
{
	struct scatterlist *sg;
	unsigned int i, nr = 0, last = 0;

	for_each_sg(sgl, sg, nents, i) {
		unsigned long nr_pages = sg->length >> PAGE_SHIFT;

		if (nr_pages >> granule_order)
			ranges[nr++] = (struct freehint_range) {
				.pfn = page_to_pfn(sg_page(sg)),
				.nr_pages = nr_pages,
			};
	}
	sort(ranges, nr, sizeof(*ranges), by_address, NULL);
	for (i = 1; i < nr; i++) {
		if (adjoin(&ranges[last], &ranges[i]))
			ranges[last].nr_pages += ranges[i].nr_pages;
		else
			ranges[++last] = ranges[i];
	}
	return nr ? last + 1 : 0;
}

static void withdraw_offer(void)
{
	lockdep_assert_held(&offer.lock);
	offer.withdrawn |= offer.nr;
	offer.nr = 0;
}

/* Returns whether there is an offer. */
static bool make_offer(struct scatterlist *sgl, unsigned int nents)
{
	bool made;

	spin_lock(&offer.lock);
	offer.failed = false;
	offer.withdrawn = false;
	offer.nr = write_ranges(offer.ranges, sgl, nents);
	made = offer.nr;
	if (offer.stopped)
		withdraw_offer();
	spin_unlock(&offer.lock);
	return made;
}

/* Under the lock, because collecting moves pages from nr to held. */
static bool is_settled(void)
{
	bool settled;

	spin_lock(&offer.lock);
	settled = !offer.nr && !offer.held;
	spin_unlock(&offer.lock);
	return settled;
}

/*
 * Wait for as long as it takes if the device has some of the offer. If nobody collects,
 * for example because the driver was told to pause, the guest gets the memory back.
 */
static void await_answers(void)
{
	while (!wait_event_idle_timeout(offer.changed, is_settled(), OFFER_TIME)) {
		spin_lock(&offer.lock);
		if (!offer.held)
			withdraw_offer();
		spin_unlock(&offer.lock);
	}
}

/*
 * If an offer has to be retried again and again because of a few of its blocks, it counts
 * as reported in the end: all of it has been hinted.
 */
static int judge_offer(void)
{
	spin_lock(&offer.lock);
	if (!offer.withdrawn && (!offer.failed || pass.retries == MAX_RETRIES)) {
		spin_unlock(&offer.lock);
		pass.retries = 0;
		return 0;
	}
	spin_unlock(&offer.lock);
	/* The error ends the pass. */
	WRITE_ONCE(pass.awaited, false);
	WRITE_ONCE(pass.not_before, jiffies + (RETRY_TIME << pass.retries));
	WRITE_ONCE(pass.again, true);
	pass.retries = min(pass.retries + 1, MAX_RETRIES);
	return -EAGAIN;
}

/* Runs in page reporting's work item. Until it returns, it owns the blocks. */
static int report(struct page_reporting_dev_info *info, struct scatterlist *sgl,
		  unsigned int nents)
{
	if (!READ_ONCE(pass.awaited)) {
		WRITE_ONCE(pass.again, true);
		if (reporting.work.wq)
			return -EAGAIN;
		/* There is no way to start a pass later, see bring_forward(). */
		WRITE_ONCE(pass.awaited, true);
		wake_user(user_data);
	}
	if (!make_offer(sgl, nents))
		return 0;
	WRITE_ONCE(pass.fruitful, true);
	wake_up(&offer.changed);
	await_answers();
	return judge_offer();
}

/*
 * Passes.
 */

static bool is_due(void)
{
	return time_after_eq(jiffies, READ_ONCE(pass.not_before)) &&
	       (READ_ONCE(pass.again) || delayed_work_pending(&reporting.work));
}

/* By a deferrable timer, because an idle guest frees nothing. */
static void look(struct timer_list *timer)
{
	if (!READ_ONCE(pass.awaited) && !READ_ONCE(pass.told) && is_due()) {
		WRITE_ONCE(pass.told, true);
		wake_user(user_data);
	}
	mod_timer(timer, jiffies + LOOK_TIME);
}

/*
 * This has to be the workqueue that page reporting uses, which depends on the kernel:
 * on another one the work item could run twice at a time. It is known after page reporting
 * has queued the work for the first time. A kernel that was told to use no delay needs no
 * hurrying.
 */
static void bring_forward(void)
{
	struct workqueue_struct *wq = READ_ONCE(reporting.work.wq);

	WRITE_ONCE(pass.fruitful, false);
	pass.left--;
	if (wq)
		mod_delayed_work(wq, &reporting.work, 0);
}

/* Free blocks, or pages in them, of these orders. A pass looks at each block. */
static unsigned long count_free(unsigned int low, unsigned int high, bool pages)
{
	unsigned long nr = 0;
	int nid, i;

	for_each_online_node(nid) {
		for (i = 0; i < MAX_NR_ZONES; i++) {
			const struct zone *zone = &NODE_DATA(nid)->node_zones[i];
			unsigned int order;

			for (order = low; order < high; order++)
				nr += READ_ONCE(zone->free_area[order].nr_free) <<
				      (pages ? order : 0);
		}
	}
	return nr;
}

static void end_round(void)
{
	unsigned long blocks = count_free(granule_order, NR_PAGE_ORDERS, false);
	unsigned long rest = jiffies + msecs_to_jiffies(blocks / BLOCKS_PER_MS);

	WRITE_ONCE(pass.awaited, false);
	if (time_after(rest, pass.not_before))
		WRITE_ONCE(pass.not_before, rest);
}

/* The end of a pass cannot be seen; but without an offer it is short. */
static bool await_offer(void)
{
	unsigned int waits;

	for (waits = 0; waits < MAX_WAITS; waits++) {
		unsigned int busy = work_busy(&reporting.work.work);

		if (READ_ONCE(offer.nr))
			return true;
		if (!busy)
			return false;
		if (busy == WORK_BUSY_PENDING && timer_pending(&reporting.work.timer)) {
			if (!READ_ONCE(pass.fruitful) || !pass.left)
				return false;
			bring_forward();
		}
		wait_event_idle_timeout(offer.changed, READ_ONCE(offer.nr), 1);
	}
	return false;
}

/*
 * What the driver calls, see include/linux/freehint.h.
 */

const char *freehint_engine(void)
{
	return "page-reporting";
}

enum freehint_refusal freehint_refusal(unsigned int order)
{
	if (order > pageblock_order)
		return FREEHINT_NO_GRANULE;
	if (page_poisoning_enabled_static())
		return FREEHINT_NO_POISONING;
	if (debug_pagealloc_enabled_static() || IS_ENABLED(CONFIG_KMSAN))
		return FREEHINT_NO_DEBUGGING;
	if (time_before(jiffies, READ_ONCE(other_until)))
		return FREEHINT_NO_OTHER;
	return FREEHINT_CAN;
}

int freehint_start(unsigned int order, void (*wake)(void *data), void *data)
{
	int ret;

	granule_order = order;
	wake_user = wake;
	user_data = data;
	offer.stopped = false;
	memset(&pass, 0, sizeof(pass));
	pass.not_before = jiffies;
	/* All free memory is due. */
	pass.again = true;
	pass.rested = true;

	reporting = (struct page_reporting_dev_info) { .report = report, .order = order };
	ret = page_reporting_register(&reporting);
	if (ret) {
		WRITE_ONCE(other_until, jiffies + OTHER_TIME);
		return ret;
	}
	pr_info_once("virtio_freehint: free memory comes from page reporting, which does not report it again after an epoch change\n");
	timer_setup(&look_timer, look, TIMER_DEFERRABLE);
	mod_timer(&look_timer, jiffies + LOOK_TIME);
	return 0;
}

/* When it is unregistered, page reporting waits for what is out. Nobody else may. */
void freehint_stop(void)
{
	bool is_out;

	timer_delete_sync(&look_timer);
	WRITE_ONCE(pass.awaited, false);
	spin_lock(&offer.lock);
	offer.stopped = true;
	withdraw_offer();
	is_out = offer.held;
	spin_unlock(&offer.lock);
	wake_up(&offer.changed);
	if (!is_out)
		page_reporting_unregister(&reporting);
}

bool freehint_age(unsigned int flags)
{
	bool due = is_due(), rested = pass.rested;

	WRITE_ONCE(pass.told, false);
	pass.rested = due && !rested;
	if (!(flags & FREEHINT_NOW) && !(due && rested))
		return pass.rested;
	pass.left = MAX_PASSES;
	WRITE_ONCE(pass.again, false);
	WRITE_ONCE(pass.awaited, true);
	bring_forward();
	return false;
}

unsigned int freehint_collect(struct freehint_batch *batch, unsigned long max_pages,
			      unsigned int flags)
{
	unsigned long granule = 1UL << granule_order;

	batch->nr_ranges = 0;
	batch->nr_pages = 0;
	batch->lost = false;
	if (!READ_ONCE(pass.awaited))
		return 0;
	if (!READ_ONCE(offer.held) && !await_offer()) {
		end_round();
		return 0;
	}

	max_pages = max(max_pages, granule);
	spin_lock(&offer.lock);
	while (offer.nr && batch->nr_ranges < batch->max_ranges) {
		struct freehint_range *last = &offer.ranges[offer.nr - 1];
		unsigned long room = round_down(max_pages - batch->nr_pages, granule);
		unsigned long nr_pages = min(last->nr_pages, room);

		if (!nr_pages)
			break;
		last->nr_pages -= nr_pages;
		batch->ranges[batch->nr_ranges++] = (struct freehint_range) {
			.pfn = last->pfn + last->nr_pages,
			.nr_pages = nr_pages,
		};
		batch->nr_pages += nr_pages;
		if (!last->nr_pages)
			offer.nr--;
	}
	offer.held += batch->nr_pages;
	spin_unlock(&offer.lock);
	if (batch->nr_ranges)
		batch->zone = page_zone(pfn_to_page(batch->ranges[0].pfn));
	return batch->nr_ranges;
}

void freehint_return(struct freehint_batch *batch)
{
	unsigned int i;
	bool last;

	spin_lock(&offer.lock);
	for (i = 0; i < batch->nr_ranges; i++) {
		if (batch->ranges[i].outcome == FREEHINT_DISCARDED)
			offer.returned += batch->ranges[i].nr_pages;
		else if (batch->ranges[i].outcome == FREEHINT_RETRY)
			offer.failed = true;
	}
	offer.held -= batch->nr_pages;
	if (batch->lost)
		offer.lost -= batch->nr_pages;
	last = offer.stopped && !offer.held;
	spin_unlock(&offer.lock);
	wake_up(&offer.changed);
	if (last)
		page_reporting_unregister(&reporting);
}

void freehint_lost(struct freehint_batch *batch)
{
	spin_lock(&offer.lock);
	batch->lost = true;
	offer.lost += batch->nr_pages;
	spin_unlock(&offer.lock);
}

/* Page reporting reports memory again only after it was allocated and freed. */
void freehint_rehint(void)
{
}

bool freehint_worth_a_look(void)
{
	return false;
}

/* Modules can neither drain per-CPU lists nor compact. */
void freehint_gather(bool compact, unsigned long deadline)
{
}

void freehint_get_stats(struct freehint_stats *stats)
{
	*stats = (struct freehint_stats) {
		.free = global_zone_page_state(NR_FREE_PAGES),
		.stuck = count_free(0, granule_order, true),
		.lost = READ_ONCE(offer.lost),
		.out = READ_ONCE(offer.held) - READ_ONCE(offer.lost),
		.returned = READ_ONCE(offer.returned),
	};
}
