/*
 * Samples as text, as JSON and as Prometheus metrics
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <string.h>
#include "report.h"

#define PREFIX "freehint_"

char *report_size(gint64 bytes)
{
    static const char units[] = "KMGTPE";
    double value = bytes / 1024.0;
    int unit = 0;

    if (bytes <= 0) {
        return g_strdup(bytes == UNKNOWN ? "-" : "0");
    }
    while (value >= 999.5 && units[unit + 1]) {
        value /= 1024;
        unit++;
    }
    return g_strdup_printf(value < 9.95 && unit ? "%.1f%c" : "%.0f%c", value,
                           units[unit]);
}

void report_figure(FigureId id, gint64 value,
                   char text[G_ASCII_DTOSTR_BUF_SIZE])
{
    if (figures[id].divisor) {
        g_ascii_formatd(text, G_ASCII_DTOSTR_BUF_SIZE, "%.12g",
                        value / figures[id].divisor);
    } else {
        g_snprintf(text, G_ASCII_DTOSTR_BUF_SIZE, "%" G_GINT64_FORMAT, value);
    }
}

char *report_text(const char *text)
{
    char *valid = g_utf8_make_valid(text, -1);

    for (char *at = valid; *at; at = g_utf8_next_char(at)) {
        if (!g_unichar_isprint(g_utf8_get_char(at))) {
            /* A character can have several bytes. */
            memset(at, '?', g_utf8_next_char(at) - at);
        }
    }
    return valid;
}

char *report_state(const Sample *sample)
{
    char *const *said = sample->words;
    guint obstacles = sample_obstacles(sample);
    GString *text;

    if (said[PROBLEM]) {
        return g_strdup(said[PROBLEM]);
    }
    text = g_string_new(said[STATE]);
    if (obstacles) {
        g_string_append_printf(text, ": %s",
                               sample_obstacle(sample, 0, "reason"));
    }
    /* A driver always waits while the device is not active. */
    if (strcmp(said[DRIVER], "active") &&
        (strcmp(said[DRIVER], "waiting") || !strcmp(said[STATE], "active"))) {
        g_string_append_printf(text, ", driver %s", said[DRIVER]);
    }
    if (obstacles > 1) {
        g_string_append_printf(text, ", %u more", obstacles - 1);
    }
    return g_string_free(text, FALSE);
}

/* JSON */

static void set_string(JsonObject *object, const char *name, const char *text)
{
    g_autofree char *valid = text ? g_utf8_make_valid(text, -1) : NULL;

    json_object_set_string_member(object, name, valid);
}

static void set_number(JsonObject *object, const char *name, gint64 value,
                       double divisor)
{
    if (value == UNKNOWN) {
        json_object_set_null_member(object, name);
    } else if (divisor) {
        json_object_set_double_member(object, name, value / divisor);
    } else {
        json_object_set_int_member(object, name, value);
    }
}

static JsonObject *sample_object(const Sample *sample, gint64 rate)
{
    JsonObject *object = json_object_new();

    set_string(object, "vm", sample->name);
    set_number(object, "pid", sample->pid > 0 ? sample->pid : UNKNOWN, 0);
    for (int i = 0; i < N_WORDS; i++) {
        set_string(object, words[i].name, sample->words[i]);
    }
    set_string(object, "problem_detail", sample->detail);
    json_object_set_array_member(object, "obstacles", sample->obstacles ?
        json_array_ref(sample->obstacles) : json_array_new());
    for (int i = 0; i < N_FIGURES; i++) {
        set_number(object, figures[i].metric + strlen(PREFIX),
                   sample->figures[i], figures[i].divisor);
    }
    set_number(object, "discarded_bytes_per_second", rate, 0);
    return object;
}

char *report_json(GPtrArray *samples, const gint64 *rates)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(JsonNode) root = json_node_new(JSON_NODE_OBJECT);
    JsonArray *vms = json_array_new();

    for (guint i = 0; i < samples->len; i++) {
        json_array_add_object_element(vms, sample_object(samples->pdata[i],
                                                         rates[i]));
    }
    json_object_set_array_member(object, "vms", vms);
    json_node_set_object(root, object);
    return json_to_string(root, TRUE);
}

/* Prometheus */

static void add_head(GString *out, const char *metric, const char *help)
{
    g_string_append_printf(out, "# HELP %s %s\n# TYPE %s %s\n", metric, help,
                           metric, g_str_has_suffix(metric, "_total") ?
                                   "counter" : "gauge");
}

static void add_label(GString *out, const char *name, const char *value)
{
    g_autofree char *valid = g_utf8_make_valid(value ? value : "", -1);

    g_string_append_printf(out, "%s=\"", name);
    for (const char *at = valid; *at; at++) {
        if (*at == '\\' || *at == '"' || *at == '\n') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *at == '\n' ? 'n' : *at);
    }
    g_string_append_c(out, '"');
}

/* @label is an additional one, or NULL. */
static void add_value(GString *out, const char *metric, const char *vm,
                      const char *device, const char *label, const char *word,
                      const char *value)
{
    g_string_append_printf(out, "%s{", metric);
    add_label(out, "vm", vm);
    g_string_append_c(out, ',');
    add_label(out, "device", device);
    if (label) {
        g_string_append_c(out, ',');
        add_label(out, label, word);
    }
    g_string_append_printf(out, "} %s\n", value);
}

static void add_words(GString *out, GPtrArray *samples, const Word *word)
{
    add_head(out, word->metric, word->help);
    for (guint i = 0; i < samples->len; i++) {
        const Sample *sample = samples->pdata[i];
        const char *said = sample->words[word - words];

        if (said) {
            add_value(out, word->metric, sample->name, sample->words[DEVICE],
                      word->name, said, "1");
        }
    }
}

static void add_obstacles(GString *out, GPtrArray *samples)
{
    add_head(out, PREFIX "obstacle",
             "1 for each obstacle that keeps the VM from shrinking.");
    for (guint i = 0; i < samples->len; i++) {
        const Sample *sample = samples->pdata[i];

        for (guint n = 0; n < sample_obstacles(sample); n++) {
            add_value(out, PREFIX "obstacle", sample->name,
                      sample->words[DEVICE], "reason",
                      sample_obstacle(sample, n, "reason"), "1");
        }
    }
}

static void add_figures(GString *out, GPtrArray *samples, FigureId id)
{
    add_head(out, figures[id].metric, figures[id].help);
    for (guint i = 0; i < samples->len; i++) {
        const Sample *sample = samples->pdata[i];
        char value[G_ASCII_DTOSTR_BUF_SIZE];

        if (sample->figures[id] != UNKNOWN) {
            report_figure(id, sample->figures[id], value);
            add_value(out, figures[id].metric, sample->name,
                      sample->words[DEVICE], NULL, NULL, value);
        }
    }
}

char *report_metrics(GPtrArray *samples)
{
    GString *out = g_string_new(NULL);

    for (int i = 0; i < N_WORDS; i++) {
        if (words[i].metric) {
            add_words(out, samples, &words[i]);
        }
    }
    add_obstacles(out, samples);
    for (int i = 0; i < N_FIGURES; i++) {
        add_figures(out, samples, i);
    }
    return g_string_free(out, FALSE);
}

char *report_guest(const char *folder, const char *vm)
{
    static const char metric[] = PREFIX "driver_leaked_bytes";
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    GString *out = g_string_new(NULL);
    const char *device;

    add_head(out, metric, "Memory that the guest lacks until the device"
             " confirms its reset.");
    while (dir && (device = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(folder, device, "freehint",
                                                 "leaked_bytes", NULL);
        g_autofree char *text = NULL;

        if (g_file_get_contents(path, &text, NULL, NULL)) {
            add_value(out, metric, vm, device, NULL, NULL, g_strstrip(text));
        }
    }
    return g_string_free(out, FALSE);
}
