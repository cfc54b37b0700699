/*
 * Virtio free memory hint device: monitor commands of a QEMU without the device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-freehint.h"

static void freehint_lacks_device(const char *id, Error **errp)
{
    error_setg(errp, "there is no virtio-freehint device '%s'", id);
}

FreehintInfoList *qmp_query_freehint(Error **errp)
{
    return NULL;
}

void qmp_freehint_set(FreehintSettings *new, Error **errp)
{
    freehint_lacks_device(new->id, errp);
}

FreehintFlushStarted *qmp_freehint_flush(const char *id,
                                         bool has_timeout_ms,
                                         uint32_t timeout_ms,
                                         bool has_compact, bool compact,
                                         Error **errp)
{
    freehint_lacks_device(id, errp);
    return NULL;
}

void hmp_info_freehint(Monitor *mon, const QDict *qdict)
{
    monitor_printf(mon, "there is no virtio-freehint device\n");
}
