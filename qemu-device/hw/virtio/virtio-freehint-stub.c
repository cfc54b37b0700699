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

void qmp_freehint_set(const char *id, bool has_enabled, bool enabled,
                      bool has_delay_ms, uint32_t delay_ms,
                      bool has_min_age_ms, uint32_t min_age_ms, Error **errp)
{
    error_set(errp, ERROR_CLASS_DEVICE_NOT_FOUND,
              "there is no virtio-freehint device '%s'", id);
}
