/*
 * freehint-top: VMs with virtio-freehint devices, live
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <curses.h>
#include <glib-unix.h>
#include "report.h"

#define HISTORY 512
#define MAX_NAME 24
#define ESCAPE 27

/* Figures with history bars. */
enum { BAR_HOST, BAR_FREE, BAR_RATE, N_BARS };

/* A VM's row. It is made anew from each sample. */
typedef struct Vm {
    char *key;
    Sample *sample;
    gint64 rate;
    /* Oldest value first. */
    gint64 history[N_BARS][HISTORY];
} Vm;

typedef struct Column {
    const char *title;
    FigureId figure;
} Column;

/* Columns that do not show a figure. */
enum { COLUMN_NAME = 0, COLUMN_RATE = 7, COLUMN_STATE = 8, N_COLUMNS = 9 };

static const Column columns[N_COLUMNS] = {
    { "NAME", 0 }, { "MEMORY", VM_MEMORY }, { "HOST", HOST_RESIDENT },
    { "FREE", GUEST_FREE }, { "HINTED", GUEST_HINTED },
    { "LAZY", HOST_LAZY_FREE }, { "STUCK", GUEST_STUCK }, { "DISC/s", 0 },
    { "STATE", WORKS },
};

/* Indexed by WORKS - UNKNOWN. */
static const char *const verdicts[] = {
    "unknown", "not working", "partly working", "working"
};

static char **arguments, **domains;
static double interval = 2;
static int timeout_s = 2;
static gboolean once, json;

static GOptionEntry options[] = {
    { "domain", 'd', 0, G_OPTION_ARG_STRING_ARRAY, &domains,
      "a libvirt domain, asked through virsh, which marks it as tainted;"
      " may be given several times", "NAME" },
    { "interval", 'i', 0, G_OPTION_ARG_DOUBLE, &interval,
      "time between two looks (default: 2)", "SECONDS" },
    { "timeout", 't', 0, G_OPTION_ARG_INT, &timeout_s,
      "how long to wait for each answer from QEMU (default: 2)", "SECONDS" },
    { "once", '1', 0, G_OPTION_ARG_NONE, &once,
      "look twice, print the result and exit; the status is 1 if a monitor"
      " could not be asked", NULL },
    { "json", 'j', 0, G_OPTION_ARG_NONE, &json, "with --once: all figures as"
      " JSON", NULL },
    { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &arguments, NULL,
      "[[NAME=]SOCKET...]" },
    { NULL }
};

static GMainLoop *loop;
static GPtrArray *vms;
static int sort_column = COLUMN_STATE;
static gboolean reversed, on_page, on_map, sampling;
static char *selected;
static guint first_row, timer;

/* VMs */

static void vm_free(gpointer data)
{
    Vm *vm = data;

    g_free(vm->key);
    sample_free(vm->sample);
    g_free(vm);
}

static gint64 vm_value(const Vm *vm, int column)
{
    return column == COLUMN_RATE ? vm->rate :
           vm->sample->figures[columns[column].figure];
}

static int compare(gconstpointer left, gconstpointer right)
{
    const Vm *a = *(Vm *const *)left, *b = *(Vm *const *)right;
    int order = 0;

    if (sort_column != COLUMN_NAME) {
        gint64 x = vm_value(a, sort_column), y = vm_value(b, sort_column);

        /* Large values come first, and VMs that do not work. */
        order = sort_column == COLUMN_STATE ? (x > y) - (x < y) :
                                              (x < y) - (x > y);
    }
    if (!order) {
        order = g_utf8_collate(a->sample->name, b->sample->name);
    }
    if (!order) {
        order = strcmp(a->key, b->key);
    }
    return reversed ? -order : order;
}

static Vm *find_vm(GPtrArray *list, const char *key)
{
    for (guint i = 0; list && i < list->len; i++) {
        Vm *vm = list->pdata[i];

        if (!g_strcmp0(vm->key, key)) {
            return vm;
        }
    }
    return NULL;
}

/* Takes ownership of @sample. */
static Vm *vm_next(const Vm *last, const char *key, Sample *sample)
{
    Vm *vm = g_new0(Vm, 1);
    gint64 now = sample->figures[DISCARDED];

    vm->key = g_strdup(key);
    vm->sample = sample;
    vm->rate = UNKNOWN;
    if (last) {
        gint64 before = last->sample->figures[DISCARDED];
        gint64 passed = sample->when - last->sample->when;

        /* It is lower if another QEMU listens at the socket now. */
        if (before != UNKNOWN && now >= before && passed > 0) {
            vm->rate = (double)(now - before) * G_USEC_PER_SEC / passed;
        }
    }
    for (int bar = 0; bar < N_BARS; bar++) {
        const gint64 values[] = { sample->figures[HOST_RESIDENT],
                                  sample->figures[GUEST_FREE], vm->rate };

        for (int i = 0; i < HISTORY - 1; i++) {
            vm->history[bar][i] = last ? last->history[bar][i + 1] : UNKNOWN;
        }
        vm->history[bar][HISTORY - 1] = values[bar];
    }
    return vm;
}

static char *source_key(const Source *source)
{
    return g_strdup_printf("%s %s %" G_GINT64_FORMAT,
                           source->path ? source->path : "",
                           source->domain ? source->domain : "", source->pid);
}

/* Merge the samples of a look with the rows of the last one. */
static void take_over(GPtrArray *sources, GPtrArray *samples)
{
    GPtrArray *next = g_ptr_array_new_with_free_func(vm_free);

    for (guint i = 0; i < sources->len; i++) {
        g_autofree char *key = source_key(sources->pdata[i]);

        g_ptr_array_add(next, vm_next(find_vm(vms, key), key,
                                      samples->pdata[i]));
        samples->pdata[i] = NULL;
    }
    g_ptr_array_set_free_func(samples, NULL);
    g_clear_pointer(&vms, g_ptr_array_unref);
    vms = next;
    g_ptr_array_sort(vms, compare);
    if (!find_vm(vms, selected)) {
        const Vm *vm = vms->len ? vms->pdata[0] : NULL;

        g_free(selected);
        selected = vm ? g_strdup(vm->key) : NULL;
        on_page = FALSE;
    }
}

/* Text */

/* "12 VMs: 10 working, 2 not working; memory 16G, host 4.1G, ..." */
static char *summary(void)
{
    GString *text = g_string_new(NULL);
    guint counts[G_N_ELEMENTS(verdicts)] = { 0 };
    gint64 sums[N_COLUMNS] = { 0 };
    const char *comma = ":";

    for (guint i = 0; i < vms->len; i++) {
        const Vm *vm = vms->pdata[i];

        counts[vm->sample->figures[WORKS] - UNKNOWN]++;
        for (int column = 0; column < N_COLUMNS; column++) {
            sums[column] += MAX(vm_value(vm, column), 0);
        }
    }
    g_string_append_printf(text, "%u VM%s", vms->len, vms->len == 1 ? "" : "s");
    for (int i = G_N_ELEMENTS(verdicts) - 1; i >= 0; i--) {
        if (counts[i]) {
            g_string_append_printf(text, "%s %u %s", comma, counts[i],
                                   verdicts[i]);
            comma = ",";
        }
    }
    for (int column = COLUMN_NAME + 1; column < COLUMN_STATE; column++) {
        g_autofree char *size = report_size(sums[column]);
        g_autofree char *title = g_ascii_strdown(columns[column].title, -1);

        g_string_append_printf(text, "%s %s %s", column == 1 ? ";" : ",",
                               title, size);
    }
    return g_string_free(text, FALSE);
}

static int name_width(void)
{
    glong width = strlen(columns[COLUMN_NAME].title);

    for (guint i = 0; i < vms->len; i++) {
        const Vm *vm = vms->pdata[i];

        width = MAX(width, g_utf8_strlen(vm->sample->name, -1));
    }
    return MIN(width, MAX_NAME);
}

/* The row of a VM, or the titles if @vm is NULL. */
static char *row_text(const Vm *vm)
{
    g_autofree char *name = report_text(vm ? vm->sample->name
                                           : columns[COLUMN_NAME].title);
    g_autofree char *state = vm ? report_state(vm->sample)
                                : g_strdup(columns[COLUMN_STATE].title);
    g_autofree char *clean = report_text(state);
    GString *text = g_string_new(NULL);
    int width = name_width();
    glong length = g_utf8_strlen(name, -1);

    if (length > width) {
        *g_utf8_offset_to_pointer(name, width) = '\0';
    }
    g_string_append_printf(text, "%s%*s", name, (int)MAX(width - length, 0),
                           "");
    for (int column = COLUMN_NAME + 1; column < COLUMN_STATE; column++) {
        g_autofree char *size = vm ? report_size(vm_value(vm, column))
                                   : g_strdup(columns[column].title);

        g_string_append_printf(text, " %6s", size);
    }
    g_string_append_printf(text, "  %s", clean);
    return g_string_free(text, FALSE);
}

/* What keeps the VM from shrinking, as a sentence; NULL if nothing does. */
static char *complaint(const Vm *vm)
{
    const Sample *sample = vm->sample;

    if (sample->detail || !sample_obstacles(sample)) {
        return sample->detail ? report_text(sample->detail) : NULL;
    }
    return report_text(sample_obstacle(sample, 0, "detail"));
}

/* The screen */

/* Cut off what does not fit; ncurses would continue on the next line. */
static void put(int row, int column, int attributes, const char *text)
{
    glong room = MAX(COLS - column, 0);
    const char *end = g_utf8_strlen(text, -1) > room ?
                      g_utf8_offset_to_pointer(text, room) : strchr(text, '\0');

    if (row < LINES) {
        attrset(attributes);
        mvaddnstr(row, column, text, end - text);
    }
}

/* Wrap the text. Returns the row after it. */
static int put_lines(int row, int attributes, const char *text)
{
    glong length = g_utf8_strlen(text, -1);

    for (glong at = 0; at < length; at += COLS) {
        put(row++, 0, attributes, g_utf8_offset_to_pointer(text, at));
    }
    return row;
}

static int colour(const Vm *vm)
{
    return COLOR_PAIR(1 + vm->sample->figures[WORKS] - UNKNOWN);
}

static void draw_list(void)
{
    g_autofree char *titles = row_text(NULL), *sums = summary();
    guint rows = MAX(LINES - 5, 1), current = 0;
    const char *title = columns[sort_column].title;
    const char *sorted = g_strrstr(titles, title);

    put(0, 0, A_BOLD, sums);
    put(2, 0, A_UNDERLINE, titles);
    put(2, sorted - titles, A_REVERSE, title);
    for (guint i = 0; i < vms->len; i++) {
        const Vm *vm = vms->pdata[i];

        current = strcmp(vm->key, selected) ? current : i;
    }
    first_row = CLAMP(first_row, current >= rows ? current - rows + 1 : 0,
                      current);
    for (guint i = first_row; i < MIN(vms->len, first_row + rows); i++) {
        const Vm *vm = vms->pdata[i];
        g_autofree char *row = row_text(vm);

        put(3 + i - first_row, 0,
                 colour(vm) | (i == current ? A_REVERSE : 0), row);
    }
    if (vms->len) {
        g_autofree char *text = complaint(vms->pdata[current]);

        put(LINES - 2, 0, colour(vms->pdata[current]), text ? text : "");
    } else {
        put(3, 0, A_NORMAL, "no QEMU process is visible here");
    }
    put(LINES - 1, 0, A_REVERSE, " q quit  Up/Down select  Enter one VM"
        "  s/S sort  r reverse  Space now ");
}

static gboolean utf8(void)
{
    return !strcmp(nl_langinfo(CODESET), "UTF-8");
}

static int draw_bars(const Vm *vm, int row, int bar, int height)
{
    static const char *const titles[] = { "host", "guest free", "discarded/s" };
    const char *levels = utf8() ? " ▁▂▃▄▅▆▇█" : " ..::||##";
    const gint64 *values = vm->history[bar];
    int width = CLAMP(COLS - 20, 0, HISTORY);
    gint64 most = bar == BAR_RATE ? 1 : vm->sample->figures[VM_MEMORY];
    g_autofree char *size = report_size(values[HISTORY - 1]);
    g_autofree char *title = g_strdup_printf("%-11s %6s ", titles[bar], size);

    put(row + height - 1, 0, A_NORMAL, title);
    for (int i = HISTORY - width; i < HISTORY; i++) {
        most = MAX(most, values[i]);
    }
    for (int i = 0; i < width; i++) {
        gint64 value = MAX(values[HISTORY - width + i], 0);
        int level = (double)value / most * 8 * height + 0.999;

        for (int line = 0; line < height; line++) {
            int part = CLAMP(level - 8 * (height - 1 - line), 0, 8);
            const char *block = g_utf8_offset_to_pointer(levels, part);

            mvaddnstr(row + line, 20 + i, block,
                      g_utf8_next_char(block) - block);
        }
    }
    return row + height;
}

static void draw_figures(const Vm *vm, int row)
{
    int across = MAX(COLS / 40, 1);

    for (int id = VM_MEMORY; id < N_FIGURES; id++) {
        int place = id - VM_MEMORY;
        gint64 value = vm->sample->figures[id];
        const char *name = figures[id].metric + strlen("freehint_");
        char number[G_ASCII_DTOSTR_BUF_SIZE];
        g_autofree char *size = report_size(value), *line = NULL;

        report_figure(id, value, number);
        line = g_strdup_printf(
            "%-30s %7.7s", name, strstr(name, "bytes") || value == UNKNOWN ?
            size : number);
        if (row + place / across < LINES - 1) {
            put(row + place / across, place % across * 40, A_NORMAL, line);
        }
    }
}

/* If there are more granules than cells, a cell shows the mean of several. */
static void draw_map(const Map *map, int row)
{
    const char *levels = utf8() ? "·░▒▓█" : ".-+*#";
    guint rows = MAX(LINES - 3 - row, 1), n = map->parts->len;
    guint each = MAX((n + rows * COLS - 1) / (rows * COLS), 1);
    g_autofree char *granule = report_size(map->granule), *text =
        g_strdup_printf("map: a cell is %" G_GUINT64_FORMAT " granule%s of %s;"
                        " %.*s not in host memory, %s all of it",
                        each * map->step, each * map->step > 1 ? "s" : "",
                        granule, (int)(g_utf8_next_char(levels) - levels),
                        levels, g_utf8_offset_to_pointer(levels, 4));

    put(row, 0, A_NORMAL, text);
    for (guint cell = 0; cell * each < n; cell++) {
        guint last = MIN(n, (cell + 1) * each), sum = 0, level;
        const char *block;

        for (guint i = cell * each; i < last; i++) {
            sum += map->parts->data[i];
        }
        /* The first level means none at all, the last one all of it. */
        level = sum ? 1 + 3 * sum / (255 * (last - cell * each)) : 0;
        block = g_utf8_offset_to_pointer(levels, level);
        mvaddnstr(row + 1 + cell / COLS, cell % COLS, block,
                  g_utf8_next_char(block) - block);
    }
}

static void draw_page(const Vm *vm)
{
    const Sample *sample = vm->sample;
    g_autofree char *state = report_state(sample);
    g_autofree char *title = g_strdup_printf(
        "%s, device %s, pid %" G_GINT64_FORMAT ": %s (%s)", sample->name,
        sample->words[DEVICE] ? sample->words[DEVICE] : "-", sample->pid, state,
        verdicts[sample->figures[WORKS] - UNKNOWN]);
    g_autofree char *clean = report_text(title);
    int row = put_lines(0, colour(vm) | A_BOLD, clean);
    int height = CLAMP((LINES - 24) / N_BARS, 1, 6);

    if (sample->detail) {
        g_autofree char *detail = report_text(sample->detail);

        row = put_lines(row, colour(vm), detail);
    }
    for (guint i = 0; i < sample_obstacles(sample); i++) {
        g_autofree char *text = g_strdup_printf(
            "%s: %s", sample_obstacle(sample, i, "reason"),
            sample_obstacle(sample, i, "detail"));
        g_autofree char *detail = report_text(text);

        row = put_lines(row, colour(vm), detail);
    }
    for (int bar = 0; bar < N_BARS; bar++) {
        row = draw_bars(vm, row + 1, bar, height) - (bar < N_BARS - 1);
    }
    row++;
    if (!on_map) {
        draw_figures(vm, row);
    } else if (sample->map) {
        draw_map(sample->map, row);
    } else {
        g_autofree char *problem = g_strdup_printf("map: %s",
            sample->map_problem ? sample->map_problem : "looking...");
        g_autofree char *text = report_text(problem);

        put_lines(row, A_NORMAL, text);
    }
    put(LINES - 1, 0, A_REVERSE, " q/Esc back  Up/Down other VM"
        "  m map or figures  Space look now ");
}

static void draw(void)
{
    erase();
    if (!vms) {
        put(0, 0, A_NORMAL, "looking...");
    } else if (on_page) {
        draw_page(find_vm(vms, selected));
    } else {
        draw_list();
    }
    refresh();
}

/* Events */

static gboolean look(gpointer opaque);

static void look_thread(GTask *task, gpointer object, gpointer data,
                        GCancellable *cancellable)
{
    GPtrArray *sources = data;

    g_task_return_pointer(task, samples_take(sources, timeout_s),
                          (GDestroyNotify)g_ptr_array_unref);
}

static void looked(GObject *object, GAsyncResult *result, gpointer opaque)
{
    g_autoptr(GPtrArray) samples =
        g_task_propagate_pointer(G_TASK(result), NULL);

    take_over(g_task_get_task_data(G_TASK(result)), samples);
    sampling = FALSE;
    draw();
    timer = g_timeout_add(interval * 1000, look, NULL);
}

/* In a thread, so that keys work while a VM does not answer. */
static gboolean look(gpointer opaque)
{
    if (!sampling) {
        g_autoptr(GTask) task = g_task_new(NULL, NULL, looked, NULL);
        GPtrArray *sources = sources_list(arguments, domains);

        g_clear_handle_id(&timer, g_source_remove);
        sampling = TRUE;
        for (guint i = 0; on_page && on_map && i < sources->len; i++) {
            Source *source = sources->pdata[i];
            g_autofree char *key = source_key(source);

            source->wants_map = !strcmp(key, selected);
        }
        g_task_set_task_data(task, sources,
                             (GDestroyNotify)g_ptr_array_unref);
        g_task_run_in_thread(task, look_thread);
    }
    return G_SOURCE_REMOVE;
}

static void select_other(int step)
{
    for (guint i = 0; vms && i < vms->len; i++) {
        const Vm *vm = vms->pdata[i];

        if (!g_strcmp0(vm->key, selected)) {
            vm = vms->pdata[CLAMP((int)i + step, 0, (int)vms->len - 1)];
            g_free(selected);
            selected = g_strdup(vm->key);
            break;
        }
    }
}

static gboolean handle_key(int key)
{
    switch (key) {
    case 'q':
    case ESCAPE:
    case KEY_BACKSPACE:
    case KEY_LEFT:
        if (!on_page && key == 'q') {
            return FALSE;
        }
        on_page = FALSE;
        break;
    case '\n':
    case '\r':
    case KEY_ENTER:
    case KEY_RIGHT:
        on_page = vms && vms->len;
        break;
    case KEY_UP:
    case 'k':
        select_other(-1);
        break;
    case KEY_DOWN:
    case 'j':
        select_other(1);
        break;
    case 's':
    case 'S':
        sort_column += key == 's' ? 1 : N_COLUMNS - 1;
        sort_column %= N_COLUMNS;
        break;
    case 'r':
        reversed = !reversed;
        break;
    case 'm':
        on_map ^= on_page;
        break;
    case ' ':
        look(NULL);
        break;
    }
    if (vms) {
        g_ptr_array_sort(vms, compare);
    }
    if (on_page && on_map) {
        look(NULL);
    }
    draw();
    return TRUE;
}

static gboolean on_input(gint fd, GIOCondition condition, gpointer opaque)
{
    int key = ERR;

    while (!(condition & (G_IO_HUP | G_IO_ERR)) && (key = getch()) != ERR) {
        if (!handle_key(key)) {
            condition = G_IO_HUP;
        }
    }
    if (condition & (G_IO_HUP | G_IO_ERR)) {
        g_main_loop_quit(loop);
    }
    return G_SOURCE_CONTINUE;
}

static gboolean on_resize(gpointer opaque)
{
    struct winsize size;

    if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size)) {
        resizeterm(size.ws_row, size.ws_col);
    }
    draw();
    return G_SOURCE_CONTINUE;
}

static gboolean on_end(gpointer opaque)
{
    g_main_loop_quit(loop);
    return G_SOURCE_CONTINUE;
}

static int run_live(void)
{
    static const short colours[] = { COLOR_MAGENTA, COLOR_RED, COLOR_YELLOW,
                                     COLOR_GREEN };

    set_escdelay(25);
    initscr();
    cbreak();
    noecho();
    nodelay(stdscr, TRUE);
    keypad(stdscr, TRUE);
    curs_set(0);
    start_color();
    use_default_colors();
    for (gsize i = 0; i < G_N_ELEMENTS(colours); i++) {
        init_pair(1 + i, colours[i], -1);
    }
    loop = g_main_loop_new(NULL, FALSE);
    g_unix_fd_add(STDIN_FILENO, G_IO_IN | G_IO_HUP | G_IO_ERR, on_input, NULL);
    g_unix_signal_add(SIGWINCH, on_resize, NULL);
    g_unix_signal_add(SIGINT, on_end, NULL);
    g_unix_signal_add(SIGTERM, on_end, NULL);
    draw();
    look(NULL);
    g_main_loop_run(loop);
    endwin();
    return 0;
}

static int run_once(void)
{
    g_autoptr(GPtrArray) sources = sources_list(arguments, domains);
    g_autoptr(GPtrArray) samples = g_ptr_array_new();
    g_autoptr(GArray) rates = g_array_new(FALSE, FALSE, sizeof(gint64));
    g_autofree char *text = NULL;
    int status = 0;

    /* The rate of discards takes two looks. */
    for (int i = 0; i < 2; i++) {
        g_autoptr(GPtrArray) taken = NULL;

        g_usleep(i * interval * G_USEC_PER_SEC);
        taken = samples_take(sources, timeout_s);
        take_over(sources, taken);
    }
    for (guint i = 0; i < vms->len; i++) {
        const Vm *vm = vms->pdata[i];

        g_ptr_array_add(samples, vm->sample);
        g_array_append_val(rates, vm->rate);
        if (vm->sample->figures[MONITOR_UP] != 1) {
            g_printerr("freehint-top: %s: %s\n", vm->sample->name,
                       vm->sample->detail);
            status = 1;
        }
    }
    if (json) {
        text = report_json(samples, (const gint64 *)rates->data);
        g_print("%s\n", text);
        return status;
    }
    for (guint i = 0; i <= vms->len; i++) {
        g_autofree char *row = row_text(i ? vms->pdata[i - 1] : NULL);

        g_print("%s\n", row);
    }
    text = summary();
    g_print("%s\n", text);
    return status;
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context =
        g_option_context_new("- VMs with virtio-freehint devices, live");
    g_autoptr(GError) error = NULL;

    setlocale(LC_ALL, "");
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        g_printerr("freehint-top: %s\n", error->message);
        return 2;
    }
    if (interval < 0.1 || timeout_s < 1 || (json && !once)) {
        g_printerr("freehint-top: %s\n", json && !once ?
                   "--json needs --once" :
                   "the interval or the timeout is too short");
        return 2;
    }
    if (once) {
        return run_once();
    }
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
        g_printerr("freehint-top: not a terminal; see --once\n");
        return 2;
    }
    return run_live();
}
