/*
 * QTest test cases for virtio-freehint: QEMU ends
 *
 * What the device asks about goes away before the last turn of its bottom half
 * runs. It takes the address sanitizer to notice when that goes wrong.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/module.h"
#include "libqtest-single.h"
#include "libqos/qgraph.h"
#include "libqos/virtio-freehint.h"

/*
 * Discards that are disabled and enabled keep the device busy, and a drive
 * that has to be flushed makes QEMU poll at its end.
 */
static void *setup_busy_end(GString *cmd_line, void *arg)
{
    g_string_append(cmd_line, " -drive if=none,id=drive0,driver=null-co,"
                    "latency-ns=20000000");
    return qfreehint_setup_veto(cmd_line, arg);
}

static void quit_with_turn_to_take(void)
{
    g_autofree char *out = qtest_hmp(global_qtest,
                                     "qemu-io drive0 \"write 0 512\"");

    qfreehint_set_prop("veto0", "flapping", true);
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'quit' }");
    qtest_wait_qemu(global_qtest);
    qos_invalidate_command_line();
}

static void test_running(void *obj, void *data, QGuestAllocator *alloc)
{
    quit_with_turn_to_take();
}

static void test_paused(void *obj, void *data, QGuestAllocator *alloc)
{
    qtest_qmp_assert_success(global_qtest, "{ 'execute': 'stop' }");
    quit_with_turn_to_take();
}

static void register_virtio_freehint_exit_test(void)
{
    QOSGraphTestOptions busy = { .before = setup_busy_end };

    qos_add_test("exit/running", "virtio-freehint", test_running, &busy);
    qos_add_test("exit/paused", "virtio-freehint", test_paused, &busy);
}

libqos_init(register_virtio_freehint_exit_test);
