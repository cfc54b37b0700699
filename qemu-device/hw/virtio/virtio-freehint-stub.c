/*
 * Virtio free memory hint device: QMP commands of a QEMU without the device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-freehint.h"

FreehintInfoList *qmp_query_freehint(Error **errp)
{
    return NULL;
}

static void no_such_device(const char *id, Error **errp)
{
    error_set(errp, ERROR_CLASS_DEVICE_NOT_FOUND,
              "there is no virtio-freehint device '%s'", id);
}

void qmp_freehint_set(FreehintSettings *new, Error **errp)
{
    no_such_device(new->id, errp);
}

FreehintFlushStarted *qmp_freehint_flush(const char *id,
                                         bool has_timeout_ms,
                                         uint32_t timeout_ms,
                                         bool has_compact, bool compact,
                                         Error **errp)
{
    no_such_device(id, errp);
    return NULL;
}
