/*
 * What QEMU and the host report about VMs with a virtio-freehint device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <string.h>
#include <gio/gunixsocketaddress.h>
#include "monitor.h"

/* The most monitors that are asked at a time. */
#define MAX_THREADS 32

/* For the map of a VM without a device. */
#define DEFAULT_GRANULE (2 << 20)

#define STATS "stats."
#define GAUGES "guest-gauges."

const Figure figures[N_FIGURES] = {
    [MONITOR_UP] = { "freehint_monitor_up",
        "Whether QEMU answered on its monitor." },
    [WORKS] = { "freehint_works",
        "Whether the guest's free memory gets back to the host: 1 for all of"
        " it, 0.5 for some, 0 for none.",
        NULL, WORKS_WELL },
    [VM_MEMORY] = { "freehint_vm_memory_bytes",
        "Memory of the guest, plugged memory included." },
    [HOST_RESIDENT] = { "freehint_host_resident_bytes",
        "Host memory that QEMU uses (RSS)." },
    [HOST_LAZY_FREE] = { "freehint_host_lazy_free_bytes",
        "The part of the RSS that the host may take when it runs short." },
    [GUEST_FREE] = { "freehint_guest_free_bytes",
        "Free memory, guest-reported.", GAUGES "free" },
    [GUEST_PENDING] = { "freehint_guest_pending_bytes",
        "Free memory in whole granules that the guest has not hinted yet.",
        GAUGES "pending" },
    [GUEST_HINTED] = { "freehint_guest_hinted_bytes",
        "Free memory that was discarded.", GAUGES "hinted" },
    [GUEST_IN_FLIGHT] = { "freehint_guest_in_flight_bytes",
        "Memory in hints for which the guest has no answer yet.",
        GAUGES "in-flight" },
    [GUEST_STUCK] = { "freehint_guest_stuck_bytes",
        "Free memory in pieces smaller than the granule.",
        GAUGES "stuck" },
    [GUEST_REUSED] = { "freehint_guest_reused_bytes_total",
        "Memory that was used again soon after it was hinted.",
        GAUGES "reused" },
    [GUEST_REST] = { "freehint_guest_rest_seconds",
        "How long memory stays free before it is hinted.",
        GAUGES "rest-ms", 1e3 },
    [GUEST_AGE] = { "freehint_guest_gauges_age_seconds",
        "How long ago the guest reported the freehint_guest_ metrics.",
        GAUGES "age-ms", 1e3 },
    [POPULATED_HINTED] = { "freehint_populated_hinted_bytes",
        "Memory that the guest takes for discarded although the host has it.",
        "populated-hinted" },
    [GRANULE] = { "freehint_granule_bytes",
        "The unit in which memory is hinted.", "granule" },
    [RATE_LIMIT] = { "freehint_rate_limit_bytes",
        "Limit of memory discarded per second; 0 for none.",
        "rate-limit" },
    [LAST_HINT_AGE] = { "freehint_last_hint_age_seconds",
        "How long ago the last hint arrived.", "last-hint-age-ms", 1e3 },
    [HINTS] = { "freehint_hints_total",
        "Hints that the guest sent.", STATS "hints" },
    [MALFORMED] = { "freehint_malformed_total",
        "Messages that broke the device until the next reset.",
        STATS "malformed" },
    [UNSUPPORTED] = { "freehint_unsupported_total",
        "Messages of types that the device does not know.",
        STATS "unsupported" },
    [HINTED] = { "freehint_hinted_bytes_total",
        "Memory named in hints.", STATS "hinted.bytes" },
    [DISCARDED] = { "freehint_discarded_bytes_total",
        "Memory that was hinted and discarded.", STATS "discarded.bytes" },
    [DECLINED] = { "freehint_declined_bytes_total",
        "Memory that was refused for the time being.",
        STATS "declined.*.bytes" },
    [THROTTLED] = { "freehint_throttled_bytes_total",
        "Memory that was refused because too much was hinted at once.",
        STATS "throttled.bytes" },
    [OVER_RATE] = { "freehint_over_rate_bytes_total",
        "The part of throttled memory that was over rate-limit.",
        STATS "over-rate.bytes" },
    [REJECTED] = { "freehint_rejected_bytes_total",
        "Memory that was refused for good.", STATS "rejected.*.bytes" },
    [FAILED] = { "freehint_failed_bytes_total",
        "Memory that the host failed to discard.", STATS "failed.bytes" },
    [IN_FLIGHT] = { "freehint_in_flight_bytes",
        "Memory in hints that wait for the device's answer.",
        STATS "in-flight.bytes" },
    [DISCARD_CALLS] = { "freehint_discard_calls_total",
        "Calls that told the host to discard.", STATS "discard-calls" },
    [DISCARD_TIME] = { "freehint_discard_seconds_total",
        "Total time of those calls.", STATS "discard-time-ns", 1e9 },
    [LAZY_CALLS] = { "freehint_lazy_calls_total",
        "Calls that told the host that it may take memory when it runs short.",
        STATS "lazy-calls" },
    [LAZY_BYTES] = { "freehint_lazy_bytes_total",
        "Memory in those calls.", STATS "lazy-bytes" },
    [SKIPPED] = { "freehint_migration_skipped_bytes_total",
        "Memory that migrations did not send because it was discarded.",
        STATS "skipped-bytes" },
};

const Word words[N_WORDS] = {
    [PROBLEM] = { "problem", NULL, "freehint_problem",
        "1 for the reason why there are no figures of the device." },
    [DEVICE] = { "device", "id" },
    [STATE] = { "state", "state", "freehint_state",
        "1 for what the device does with hints." },
    [REASON] = { "reason", "reason" },
    [DRIVER] = { "driver_status", "driver-status", "freehint_driver_status",
        "1 for what the guest's driver reports about itself." },
    [DISCARD] = { "discard", "discard" },
    [IN_EFFECT] = { "discard_in_effect", "discard-in-effect" },
    [FLUSH] = { "last_flush", "flush.last.result", "freehint_last_flush",
        "1 for how the last flush ended." },
};

/* Sources */

void source_free(Source *source)
{
    g_free(source->name);
    g_free(source->path);
    g_free(source->domain);
    g_free(source);
}

/* Takes ownership of the strings. */
static void source_add(GPtrArray *sources, char *name, char *path, char *domain,
                       gint64 pid)
{
    const Source source = { name, path, domain, pid, FALSE };

    g_ptr_array_add(sources, g_memdup2(&source, sizeof(source)));
}

GPtrArray *sources_list(char **sockets, char **domains)
{
    GPtrArray *sources;

    if (!sockets && !domains) {
        return sources_find("/proc");
    }
    sources = g_ptr_array_new_with_free_func((GDestroyNotify)source_free);
    for (; sockets && *sockets; sockets++) {
        const char *end = strpbrk(*sockets, "=/");
        gboolean named = end && *end == '=';

        source_add(sources, named ? g_strndup(*sockets, end - *sockets) : NULL,
                   g_strdup(named ? end + 1 : *sockets), NULL, 0);
    }
    for (; domains && *domains; domains++) {
        source_add(sources, g_strdup(*domains), NULL, g_strdup(*domains), 0);
    }
    return sources;
}

/*
 * Only sockets that QEMU listens at. If it waits for its first client before it
 * starts the VM, that client must not be us.
 */
#define SERVER "(?=[^\n]*,server(?:=on|=yes|=true|=y)?(?:,|$))" \
               "(?=[^\n]*,(?:nowait|wait=off|wait=no|wait=false|wait=n)(?:,|$))"
#define VALUE "[^,\n]+"

/* For QEMU's command line, with one argument per line. */
static const char *const monitor_patterns[] = {
    "^--?qmp(?:-pretty)?\nunix:" SERVER "(?:path=)?(?<path>" VALUE ")",
    "^--?chardev\nsocket" SERVER "(?=[^\n]*,id=(?<id>" VALUE "))"
    "[^\n]*,path=(?<path>" VALUE ")",
};

static const char qemu_pattern[] =
    "\\A(?:[^\n]*/)?(?:qemu-system-[^/\n]+|qemu-kvm|kvm)\n";

static const char name_pattern[] =
    "^--?name\n(?:(?:[^\n]*,)?guest=)?(?<name>" VALUE ")";

/* Find the first match of a pattern, or the next one if there is @info. */
static gboolean find(const char *pattern, const char *text, GMatchInfo **info)
{
    g_autoptr(GRegex) regex = NULL;

    if (*info) {
        return g_match_info_next(*info, NULL);
    }
    regex = g_regex_new(pattern, G_REGEX_MULTILINE | G_REGEX_RAW, 0, NULL);
    return g_regex_match(regex, text, 0, info);
}

/* Whether a chardev is a QMP monitor. One without an ID is. */
static gboolean is_monitor(const char *text, const char *id)
{
    g_autofree char *word = g_regex_escape_string(id ? id : "", -1);
    g_autofree char *pattern = g_strdup_printf(
        "^--?mon\n(?=[^\n]*mode=control(?:,|$))(?:[^\n]*chardev=)?%s(?:,|$)",
        word);
    g_autoptr(GMatchInfo) info = NULL;

    return !id || !*id || find(pattern, text, &info);
}

/* One of its QMP sockets, if possible one that nobody is connected to. */
static char *find_socket(const char *text, const char *cwd)
{
    char *path = NULL;

    for (gsize i = 0; i < G_N_ELEMENTS(monitor_patterns); i++) {
        g_autoptr(GMatchInfo) info = NULL;

        while (find(monitor_patterns[i], text, &info)) {
            g_autofree char *id = g_match_info_fetch_named(info, "id");
            g_autofree char *found = g_match_info_fetch_named(info, "path");

            if (is_monitor(text, id) &&
                (!path || socket_is_taken(path, NULL))) {
                g_free(path);
                path = g_canonicalize_filename(found, cwd);
            }
        }
    }
    return path;
}

static void find_in_process(const char *proc, const char *pid,
                            GPtrArray *sources)
{
    g_autofree char *file = g_build_filename(proc, pid, "cmdline", NULL);
    g_autofree char *link = g_build_filename(proc, pid, "cwd", NULL);
    g_autofree char *cwd = NULL, *text = NULL;
    g_autoptr(GMatchInfo) qemu = NULL, name = NULL;
    gsize size;

    if (!g_file_get_contents(file, &text, &size, NULL)) {
        return;
    }
    for (gsize i = 0; i < size; i++) {
        text[i] = text[i] ? text[i] : '\n';
    }
    if (find(qemu_pattern, text, &qemu)) {
        cwd = g_file_read_link(link, NULL);
        find(name_pattern, text, &name);
        source_add(sources, g_match_info_fetch_named(name, "name"),
                   find_socket(text, cwd ? cwd : "/"), NULL,
                   g_ascii_strtoll(pid, NULL, 10));
    }
}

GPtrArray *sources_find(const char *proc)
{
    GPtrArray *sources =
        g_ptr_array_new_with_free_func((GDestroyNotify)source_free);
    g_autoptr(GDir) dir = g_dir_open(proc, 0, NULL);
    const char *entry;

    while (dir && (entry = g_dir_read_name(dir))) {
        if (g_ascii_isdigit(entry[0])) {
            find_in_process(proc, entry, sources);
        }
    }
    return sources;
}

/* Samples */

Sample *sample_new(const char *name)
{
    Sample *sample = g_new0(Sample, 1);

    sample->name = g_strdup(name);
    sample->when = g_get_monotonic_time();
    for (int i = 0; i < N_FIGURES; i++) {
        sample->figures[i] = UNKNOWN;
    }
    return sample;
}

void sample_free(Sample *sample)
{
    for (int i = 0; i < N_WORDS; i++) {
        g_free(sample->words[i]);
    }
    g_clear_pointer(&sample->obstacles, json_array_unref);
    g_clear_pointer(&sample->map, map_free);
    g_free(sample->map_problem);
    g_free(sample->name);
    g_free(sample->detail);
    g_free(sample);
}

static void G_GNUC_PRINTF(3, 4)
set_problem(Sample *sample, const char *problem, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_free(sample->words[PROBLEM]);
    sample->words[PROBLEM] = g_strdup(problem);
    g_free(sample->detail);
    sample->detail = g_strdup_vprintf(format, args);
    va_end(args);
}

static JsonObject *object_of(JsonNode *node)
{
    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node)
                                                : NULL;
}

/* The member at a path like "stats.hinted.bytes", or NULL. */
static JsonNode *node_at(JsonNode *node, const char *path)
{
    g_auto(GStrv) names = g_strsplit(path, ".", -1);

    for (char **name = names; *name && node; name++) {
        JsonObject *object = object_of(node);

        node = object ? json_object_get_member(object, *name) : NULL;
    }
    return node;
}

static const char *string_at(JsonNode *node, const char *path)
{
    node = node_at(node, path);
    return node && JSON_NODE_HOLDS_VALUE(node) &&
           json_node_get_value_type(node) == G_TYPE_STRING ?
           json_node_get_string(node) : NULL;
}

/* UNKNOWN if it is not a number, or too large: guests can report anything. */
static gint64 number_at(JsonNode *node, const char *path)
{
    const char *star = strstr(path, ".*.");
    gint64 sum = 0;

    if (star) {
        g_autofree char *all = g_strndup(path, star - path);
        JsonObject *object = object_of(node_at(node, all));
        g_autoptr(GList) parts = object ? json_object_get_values(object) : NULL;

        for (GList *part = parts; part; part = part->next) {
            sum += MAX(number_at(part->data, star + strlen(".*.")), 0);
        }
        return object ? sum : UNKNOWN;
    }
    node = node_at(node, path);
    return node && JSON_NODE_HOLDS_VALUE(node) &&
           json_node_get_value_type(node) == G_TYPE_INT64 ?
           MAX(json_node_get_int(node), UNKNOWN) : UNKNOWN;
}

guint sample_obstacles(const Sample *sample)
{
    return sample->obstacles ? json_array_get_length(sample->obstacles) : 0;
}

const char *sample_obstacle(const Sample *sample, guint index,
                            const char *member)
{
    const char *text =
        string_at(json_array_get_element(sample->obstacles, index), member);

    return text ? text : "";
}

/* Whether all, some or none of the guest's freed memory gets back. */
static gint64 judge(const Sample *sample)
{
    static const char *const fatal[] = {
        "guest", "driver-not-ready", "vm-stopped", NULL
    };
    gint64 memory = sample->figures[VM_MEMORY], kept = 0;

    if (strcmp(sample->words[STATE], "active")) {
        return WORKS_NOT;
    }
    for (guint i = 0; i < sample_obstacles(sample); i++) {
        JsonNode *node = json_array_get_element(sample->obstacles, i);
        JsonNode *parts = node_at(node, "memory");
        JsonArray *array = parts && JSON_NODE_HOLDS_ARRAY(parts) ?
                           json_node_get_array(parts) : NULL;

        if (g_strv_contains(fatal, sample_obstacle(sample, i, "reason"))) {
            return WORKS_NOT;
        }
        for (guint n = 0; array && n < json_array_get_length(array); n++) {
            JsonNode *part = json_array_get_element(array, n);

            kept += MAX(number_at(part, "bytes"), 0);
        }
    }
    if (memory > 0 && kept >= memory) {
        return WORKS_NOT;
    }
    return sample_obstacles(sample) || strcmp(sample->words[DRIVER], "active") ?
           WORKS_PARTLY : WORKS_WELL;
}

void sample_parse(Sample *sample, JsonNode *returned)
{
    JsonArray *devices = JSON_NODE_HOLDS_ARRAY(returned) ?
                         json_node_get_array(returned) : NULL;
    JsonNode *device, *obstacles;

    sample->figures[MONITOR_UP] = 1;
    if (devices && !json_array_get_length(devices)) {
        set_problem(sample, "no-device",
                    "the VM has no virtio-freehint device");
        sample->figures[WORKS] = WORKS_NOT;
        return;
    }
    /* A VM has at most one. */
    device = devices ? json_array_get_element(devices, 0) : NULL;
    for (int i = 0; i < N_WORDS; i++) {
        if (words[i].path) {
            sample->words[i] = g_strdup(string_at(device, words[i].path));
        }
    }
    if (!sample->words[DEVICE]) {
        sample->words[DEVICE] = g_strdup(string_at(device, "qom-path"));
    }
    if (!sample->words[DEVICE] || !sample->words[STATE] ||
        !sample->words[DRIVER]) {
        set_problem(sample, "error",
                    "query-freehint has returned something unexpected");
        return;
    }
    for (int i = 0; i < N_FIGURES; i++) {
        if (figures[i].path) {
            sample->figures[i] = number_at(device, figures[i].path);
        }
    }
    obstacles = node_at(device, "obstacles");
    if (obstacles && JSON_NODE_HOLDS_ARRAY(obstacles)) {
        sample->obstacles = json_array_ref(json_node_get_array(obstacles));
    }
    sample->figures[WORKS] = judge(sample);
}

/* Asking */

/* A conversation with one VM's QEMU. */
typedef struct Channel {
    const Source *source;
    Sample *sample;
    unsigned timeout_s;
    GSocketConnection *connection;
    GDataInputStream *input;
    /* What query-memdev and x-query-ramblock have returned, for a map. */
    JsonNode *memdevs, *blocks;
    GError *map_error;
} Channel;

gboolean socket_is_taken(const char *path, const char *table)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!table && g_file_get_contents("/proc/net/unix", &text, NULL, NULL)) {
        table = text;
    }
    lines = g_strsplit(table ? table : "", "\n", -1);
    for (char **line = lines; *line; line++) {
        unsigned state;
        int at = 0;

        /* State 3 is "connected": QEMU has accepted a client. */
        if (sscanf(*line, "%*s %*x %*x %*x %*x %x %*u %n", &state, &at) == 1 &&
            at && state == 3 && !strcmp(*line + at, path)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* Takes ownership of @text, which is NULL if QEMU has hung up. */
static JsonNode *parse_message(char *text, GError **error)
{
    JsonNode *node = text ? json_from_string(text, NULL) : NULL;

    if (!object_of(node)) {
        g_clear_pointer(&node, json_node_unref);
        g_set_error(error, G_IO_ERROR, text ? G_IO_ERROR_INVALID_DATA :
                                              G_IO_ERROR_CONNECTION_CLOSED,
                    text ? "not a QMP monitor" : "QEMU has hung up");
    }
    g_free(text);
    return node;
}

static JsonNode *receive(Channel *channel, GError **error)
{
    GError *failure = NULL;
    char *line = g_data_input_stream_read_line(channel->input, NULL, NULL,
                                               &failure);

    if (failure) {
        g_propagate_error(error, failure);
        return NULL;
    }
    return parse_message(line, error);
}

static gboolean channel_open(Channel *channel, GError **error)
{
    const char *path = channel->source->path;
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(path);
    g_autoptr(GSocketClient) client = g_socket_client_new();
    g_autoptr(GCredentials) peer = NULL;
    g_autoptr(JsonNode) greeting = NULL;

    /* In the listen queue we would block the next client. */
    if (socket_is_taken(path, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY, "busy");
        return FALSE;
    }
    g_socket_client_set_enable_proxy(client, FALSE);
    g_socket_client_set_timeout(client, channel->timeout_s);
    channel->connection = g_socket_client_connect(
        client, G_SOCKET_CONNECTABLE(address), NULL, error);
    if (!channel->connection) {
        return FALSE;
    }
    channel->input = g_data_input_stream_new(
        g_io_stream_get_input_stream(G_IO_STREAM(channel->connection)));
    peer = g_socket_get_credentials(
        g_socket_connection_get_socket(channel->connection), NULL);
    if (peer && !channel->sample->pid) {
        channel->sample->pid = g_credentials_get_unix_pid(peer, NULL);
    }
    greeting = receive(channel, error);
    return greeting != NULL;
}

static JsonNode *ask_socket(Channel *channel, const char *command,
                            GError **error)
{
    g_autofree char *text = g_strdup_printf(
        "{ \"execute\": \"%s\", \"id\": \"%s\" }\n", command, command);
    GOutputStream *out =
        g_io_stream_get_output_stream(G_IO_STREAM(channel->connection));
    JsonNode *message = NULL;

    if (g_output_stream_write_all(out, text, strlen(text), NULL, NULL, error)) {
        /* Events can come before the answer. */
        while ((message = receive(channel, error)) &&
               g_strcmp0(string_at(message, "id"), command)) {
            json_node_unref(message);
        }
    }
    return message;
}

/* virsh has no timeout of its own. */
static JsonNode *ask_domain(Channel *channel, const char *command,
                            GError **error)
{
    g_autofree char *text = g_strdup_printf("{ \"execute\": \"%s\" }", command);
    g_autofree char *limit = g_strdup_printf("%u", channel->timeout_s);
    g_autofree char *err = NULL;
    char *out = NULL;
    g_autoptr(GSubprocess) virsh = g_subprocess_new(
        G_SUBPROCESS_FLAGS_STDOUT_PIPE | G_SUBPROCESS_FLAGS_STDERR_PIPE, error,
        "timeout", limit, "virsh", "qemu-monitor-command", "--domain",
        channel->source->domain, text, NULL);

    if (!virsh || !g_subprocess_communicate_utf8(virsh, NULL, NULL, &out, &err,
                                                 error)) {
        return NULL;
    }
    if (!g_subprocess_get_successful(virsh)) {
        gboolean late = g_subprocess_get_if_exited(virsh) &&
                        g_subprocess_get_exit_status(virsh) == 124;

        g_set_error(error, G_IO_ERROR, late ? G_IO_ERROR_TIMED_OUT :
                                              G_IO_ERROR_NOT_FOUND,
                    "virsh: %s", g_strstrip(err));
        g_free(out);
        return NULL;
    }
    return parse_message(out, error);
}

/* The result of a command; NULL if there was an error, now or before. */
static JsonNode *execute(Channel *channel, const char *command, GError **error)
{
    g_autoptr(JsonNode) message = NULL;
    JsonNode *returned;

    if (!*error) {
        message = channel->connection ? ask_socket(channel, command, error) :
                                        ask_domain(channel, command, error);
    }
    returned = node_at(message, "return");
    if (message && !returned) {
        gboolean unknown = !g_strcmp0(string_at(message, "error.class"),
                                      "CommandNotFound");

        g_set_error(error, G_IO_ERROR, unknown ? G_IO_ERROR_NOT_SUPPORTED :
                                                 G_IO_ERROR_FAILED,
                    "%s: %s", command, string_at(message, "error.desc"));
    }
    return returned ? json_node_ref(returned) : NULL;
}

static void ask(Channel *channel, GError **error)
{
    const Source *source = channel->source;
    Sample *sample = channel->sample;
    g_autoptr(JsonNode) done = NULL, name = NULL, size = NULL, info = NULL;

    if (source->path && channel_open(channel, error)) {
        done = execute(channel, "qmp_capabilities", error);
    }
    size = execute(channel, "query-memory-size-summary", error);
    if (size) {
        sample->figures[VM_MEMORY] = number_at(size, "base-memory") +
            MAX(number_at(size, "plugged-memory"), 0);
    }
    if (!sample->name) {
        name = execute(channel, "query-name", error);
        sample->name = g_strdup(string_at(name, "name"));
    }
    info = execute(channel, "query-freehint", error);
    if (info) {
        sample->when = g_get_monotonic_time();
        sample_parse(sample, info);
    }
    if (info && source->wants_map) {
        channel->memdevs = execute(channel, "query-memdev",
                                   &channel->map_error);
        channel->blocks = execute(channel, "x-query-ramblock",
                                  &channel->map_error);
    }
}

static void set_failure(Channel *channel, const GError *error)
{
    static const struct {
        int code;
        const char *problem;
    } problems[] = {
        { G_IO_ERROR_BUSY, "busy" },
        /* Its listen queue is full. */
        { G_IO_ERROR_WOULD_BLOCK, "busy" },
        { G_IO_ERROR_TIMED_OUT, "no-answer" },
        { G_IO_ERROR_NOT_FOUND, "gone" },
        { G_IO_ERROR_CONNECTION_REFUSED, "gone" },
        { G_IO_ERROR_CONNECTION_CLOSED, "gone" },
        { G_IO_ERROR_PERMISSION_DENIED, "denied" },
        { G_IO_ERROR_NOT_SUPPORTED, "no-command" },
    };
    const Source *source = channel->source;
    Sample *sample = channel->sample;
    const char *problem = "error";

    for (gsize i = 0; i < G_N_ELEMENTS(problems); i++) {
        if (g_error_matches(error, G_IO_ERROR, problems[i].code)) {
            problem = problems[i].problem;
        }
    }
    if (!strcmp(problem, "no-command")) {
        sample->figures[MONITOR_UP] = 1;
        sample->figures[WORKS] = WORKS_NOT;
    }
    set_problem(sample, problem, "%s: %s%s",
                source->path ? source->path : source->domain, error->message,
                !strcmp(problem, "busy") ? ": another client uses the monitor,"
                " which takes one at a time; give the VM a second one" :
                !strcmp(problem, "no-answer") ?
                ": QEMU hangs, or another client uses the monitor" : "");
}

/* The value of a line "NAME:   NUMBER kB" in a file of /proc/PID. */
static gint64 proc_figure(gint64 pid, const char *file, const char *name)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/%s",
                                            pid, file);
    g_autofree char *text = NULL;
    const char *line;

    if (pid <= 0 || !g_file_get_contents(path, &text, NULL, NULL)) {
        return UNKNOWN;
    }
    line = strstr(text, name);
    return line ? g_ascii_strtoll(line + strlen(name), NULL, 10) * 1024
                : UNKNOWN;
}

/*
 * smaps_rollup walks all mappings of a VM with its memory map locked, which
 * takes a while for a large one. Without lazy discards it has nothing to tell.
 */
static void ask_host(Sample *sample)
{
    gint64 *values = sample->figures;

    values[HOST_RESIDENT] = proc_figure(sample->pid, "status", "\nVmRSS:");
    values[HOST_LAZY_FREE] = values[LAZY_CALLS] > 0 ?
        proc_figure(sample->pid, "smaps_rollup", "\nLazyFree:") :
        values[LAZY_CALLS];
}

/* Comes after match_process(), because it needs the PID. */
static void take_map(Channel *channel)
{
    Sample *sample = channel->sample;
    const char *blocks = string_at(channel->blocks, "human-readable-text");
    gint64 granule = sample->figures[GRANULE];

    if (blocks) {
        sample->map = map_take("/proc", sample->pid,
                               granule == UNKNOWN ? DEFAULT_GRANULE : granule,
                               channel->memdevs, blocks, &channel->map_error);
    }
    if (channel->source->wants_map && !sample->map) {
        sample->map_problem = g_strdup(
            channel->map_error ? channel->map_error->message :
            "QEMU cannot be asked");
    }
    g_clear_error(&channel->map_error);
    g_clear_pointer(&channel->memdevs, json_node_unref);
    g_clear_pointer(&channel->blocks, json_node_unref);
}

/* Find name and PID in the list of processes, also if the monitor is busy. */
static void match_process(const Source *source, Sample *sample)
{
    g_autoptr(GPtrArray) found = sample->pid && sample->name ?
        g_ptr_array_new() : sources_find("/proc");

    for (guint i = 0; i < found->len; i++) {
        const Source *process = found->pdata[i];

        if (sample->pid ? process->pid == sample->pid :
            source->path ? !g_strcmp0(process->path, source->path) :
            source->domain && !g_strcmp0(process->name, source->domain)) {
            sample->pid = process->pid;
            if (!sample->name) {
                sample->name = g_strdup(process->name);
            }
        }
    }
    if (!sample->name) {
        sample->name = source->path ? g_path_get_basename(source->path) :
            g_strdup_printf("pid %" G_GINT64_FORMAT, sample->pid);
    }
}

static void sample_take(gpointer data, gpointer opaque)
{
    Channel *channel = data;
    Sample *sample = channel->sample;
    g_autoptr(GError) error = NULL;

    sample->pid = channel->source->pid;
    sample->figures[MONITOR_UP] = 0;
    if (channel->source->path || channel->source->domain) {
        ask(channel, &error);
    } else {
        set_problem(sample, "no-monitor", "this QEMU has no QMP socket with a"
                    " path and wait=off; if libvirt runs it, see --domain");
    }
    if (error) {
        set_failure(channel, error);
    }
    match_process(channel->source, sample);
    ask_host(sample);
    take_map(channel);
    g_clear_object(&channel->input);
    g_clear_object(&channel->connection);
}

/* A VM that does not answer keeps the name and device it had before. */
static void remember(const Source *source, Sample *sample)
{
    static GHashTable *known;
    const char *key = source->path ? source->path : source->domain;
    char **told;

    if (!known) {
        known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                      (GDestroyNotify)g_strfreev);
    }
    if (key && sample->figures[MONITOR_UP] == 1) {
        const char *const now[] = { sample->name, sample->words[DEVICE], NULL };

        g_hash_table_insert(known, g_strdup(key), g_strdupv((char **)now));
        return;
    }
    told = key ? g_hash_table_lookup(known, key) : NULL;
    if (told) {
        g_free(sample->name);
        sample->name = g_strdup(told[0]);
        sample->words[DEVICE] = g_strdup(told[1]);
    }
}

GPtrArray *samples_take(GPtrArray *sources, unsigned timeout_s)
{
    GPtrArray *samples =
        g_ptr_array_new_with_free_func((GDestroyNotify)sample_free);
    g_autofree Channel *channels = g_new0(Channel, sources->len + 1);
    GThreadPool *pool = g_thread_pool_new(sample_take, NULL, MAX_THREADS, FALSE,
                                          NULL);

    for (guint i = 0; i < sources->len; i++) {
        Channel *channel = &channels[i];

        channel->source = sources->pdata[i];
        channel->sample = sample_new(channel->source->name);
        channel->timeout_s = timeout_s;
        g_ptr_array_add(samples, channel->sample);
        g_thread_pool_push(pool, channel, NULL);
    }
    g_thread_pool_free(pool, FALSE, TRUE);
    for (guint i = 0; i < sources->len; i++) {
        remember(sources->pdata[i], samples->pdata[i]);
    }
    return samples;
}
