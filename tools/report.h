/*
 * Samples as text, as JSON and as Prometheus metrics
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FREEHINT_REPORT_H
#define FREEHINT_REPORT_H

#include "monitor.h"

/* At most five characters; "-" if it is not known. */
char *report_size(gint64 bytes);

/* In the unit that its name ends in. */
void report_figure(FigureId id, gint64 value,
                   char text[G_ASCII_DTOSTR_BUF_SIZE]);

/* State, first obstacle and driver status in a few words. */
char *report_state(const Sample *sample);

/* Without control characters. */
char *report_text(const char *text);

/* @rates are bytes discarded per second, one for each sample. */
char *report_json(GPtrArray *samples, const gint64 *rates);

/* Prometheus' text format. */
char *report_metrics(GPtrArray *samples);

/* The same for the driver of this guest, from sysfs below @folder. */
char *report_guest(const char *folder, const char *vm);

#endif
