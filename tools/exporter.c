/*
 * freehint-exporter: figures of VMs with virtio-freehint, for Prometheus
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <locale.h>
#include <string.h>
#include <glib/gstdio.h>
#include "report.h"

#define DRIVERS "/sys/bus/virtio/drivers/virtio_freehint"

/* Within this time all readers get the same answer. */
#define KEEP_US G_USEC_PER_SEC

/* Requests that are longer, or stall for longer, are refused. */
#define MAX_REQUEST 8192
#define REQUEST_SECONDS 5
#define MAX_READERS 8

static char **arguments, **domains, *textfile;
static char *listen_at = (char *)"127.0.0.1", *drivers = (char *)DRIVERS;
static double interval;
static int timeout_s = 2, port = 9967;
static gboolean guest;

static GOptionEntry options[] = {
    { "domain", 'd', 0, G_OPTION_ARG_STRING_ARRAY, &domains,
      "a libvirt domain, asked through virsh, which marks it as tainted;"
      " may be given several times", "NAME" },
    { "listen", 'l', 0, G_OPTION_ARG_STRING, &listen_at,
      "where to serve /metrics (default: 127.0.0.1)", "ADDRESS" },
    { "port", 'p', 0, G_OPTION_ARG_INT, &port,
      "its port; 0 for any free one (default: 9967)", "PORT" },
    { "textfile", 'f', 0, G_OPTION_ARG_FILENAME, &textfile,
      "write to a file instead of serving", "FILE" },
    { "interval", 'i', 0, G_OPTION_ARG_DOUBLE, &interval,
      "with --textfile: write again after each such interval (default: write"
      " once)", "SECONDS" },
    { "timeout", 't', 0, G_OPTION_ARG_INT, &timeout_s,
      "how long to wait for each answer from QEMU (default: 2)", "SECONDS" },
    { "guest", 'g', 0, G_OPTION_ARG_NONE, &guest,
      "run in a guest: export what only its driver knows", NULL },
    { "sysfs", 0, 0, G_OPTION_ARG_FILENAME, &drivers,
      "with --guest: the driver's folder (default: " DRIVERS ")", "FOLDER" },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &arguments, NULL,
      "[[NAME=]SOCKET...]" },
    { NULL }
};

/* Prometheus refuses two VMs with the same name. */
static void tell_apart(GPtrArray *samples)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < samples->len; i++) {
        Sample *sample = samples->pdata[i];

        if (!g_hash_table_add(names, sample->name)) {
            char *name = g_strdup_printf("%s (pid %" G_GINT64_FORMAT ", %u)",
                                         sample->name, sample->pid, i);

            g_free(sample->name);
            sample->name = name;
        }
    }
}

static char *take_metrics(void)
{
    g_autoptr(GPtrArray) sources = NULL, samples = NULL;

    if (guest) {
        return report_guest(drivers, g_get_host_name());
    }
    sources = sources_list(arguments, domains);
    samples = samples_take(sources, timeout_s);
    tell_apart(samples);
    return report_metrics(samples);
}

/* Replace the file atomically: it may be read at any time. */
static int write_textfile(void)
{
    do {
        g_autofree char *text = take_metrics();
        g_autoptr(GError) error = NULL;

        if (!g_file_set_contents_full(textfile, text, -1,
                                      G_FILE_SET_CONTENTS_CONSISTENT, 0644,
                                      &error)) {
            g_printerr("freehint-exporter: %s\n", error->message);
            return 1;
        }
        g_usleep(interval * G_USEC_PER_SEC);
    } while (interval > 0);
    return 0;
}

/* Each reader has a thread. */
static char *cached_metrics(void)
{
    static GMutex lock;
    static char *text;
    static gint64 taken;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&lock);

    if (!text || g_get_monotonic_time() - taken > KEEP_US) {
        g_free(text);
        text = take_metrics();
        taken = g_get_monotonic_time();
    }
    return g_strdup(text);
}

/* Read the head of a request. Returns FALSE if it is not complete. */
static gboolean read_request(GInputStream *input, char head[MAX_REQUEST])
{
    gsize size = 0;
    gssize got;

    while ((got = g_input_stream_read(input, head + size,
                                      MAX_REQUEST - 1 - size, NULL,
                                      NULL)) > 0) {
        size += got;
        head[size] = '\0';
        if (strstr(head, "\r\n\r\n")) {
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean serve(GThreadedSocketService *service,
                      GSocketConnection *connection, GObject *source,
                      gpointer opaque)
{
    GIOStream *stream = G_IO_STREAM(connection);
    g_autofree char *body = NULL, *answer = NULL;
    char head[MAX_REQUEST];
    const char *status = "200 OK";

    g_socket_set_timeout(g_socket_connection_get_socket(connection),
                         REQUEST_SECONDS);
    if (!read_request(g_io_stream_get_input_stream(stream), head)) {
        status = "400 Bad Request";
    } else if (g_str_has_prefix(head, "GET /metrics ")) {
        body = cached_metrics();
    } else if (g_str_has_prefix(head, "GET / ")) {
        body = g_strdup("freehint-exporter: see /metrics\n");
    } else {
        status = "404 Not Found";
    }
    answer = g_strdup_printf(
        "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8"
        "\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", status,
        body ? strlen(body) : 0, body ? body : "");
    g_output_stream_write_all(g_io_stream_get_output_stream(stream), answer,
                              strlen(answer), NULL, NULL, NULL);
    return TRUE;
}

static int serve_all(void)
{
    g_autoptr(GSocketService) service =
        g_threaded_socket_service_new(MAX_READERS);
    g_autoptr(GSocketAddress) bound = NULL, address =
        g_inet_socket_address_new_from_string(listen_at, port);
    g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;

    if (!address ||
        !g_socket_listener_add_address(G_SOCKET_LISTENER(service), address,
                                       G_SOCKET_TYPE_STREAM,
                                       G_SOCKET_PROTOCOL_TCP, NULL, &bound,
                                       &error)) {
        g_printerr("freehint-exporter: %s: %s\n", listen_at,
                   error ? error->message : "not an address");
        return 1;
    }
    g_signal_connect(service, "run", G_CALLBACK(serve), NULL);
    text = g_socket_connectable_to_string(G_SOCKET_CONNECTABLE(bound));
    g_print("freehint-exporter: http://%s/metrics\n", text);
    fflush(stdout);
    g_main_loop_run(loop);
    return 0;
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(
        "- figures of VMs with virtio-freehint devices, for Prometheus");
    g_autoptr(GError) error = NULL;

    setlocale(LC_ALL, "");
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        g_printerr("freehint-exporter: %s\n", error->message);
        return 2;
    }
    if (timeout_s < 1 || interval < 0 || port < 0 || port > 65535 ||
        (interval && !textfile) || (guest && (arguments || domains))) {
        g_printerr("freehint-exporter: these options exclude each other, or a"
                   " value is out of range; see --help\n");
        return 2;
    }
    return textfile ? write_textfile() : serve_all();
}
