/*
 * What is said of samples: for people, in JSON, and to Prometheus
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FREEHINT_REPORT_H
#define FREEHINT_REPORT_H

#include "monitor.h"

/* Five characters at most; "-" for what nobody knows. */
char *report_size(gint64 bytes);

/* In the unit that the figure's name says. */
void report_figure(FigureId id, gint64 value,
                   char text[G_ASCII_DTOSTR_BUF_SIZE]);

/* State and reason in a few words. */
char *report_state(const Sample *sample);

/* Without what a terminal might take for orders. */
char *report_text(const char *text);

/* @rates has the bytes that each discarded in a second. */
char *report_json(GPtrArray *samples, const gint64 *rates);

/* Prometheus' text format. */
char *report_metrics(GPtrArray *samples);

/* The same of the driver in this guest, by what is in sysfs below @folder. */
char *report_guest(const char *folder, const char *vm);

#endif
