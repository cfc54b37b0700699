# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that migrates keeps what it wrote, and goes on giving memory back."""

import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import migration
from freehint_vm import MIB, PACKED_RING, FreehintVM
from guest_driver import GuestDriver, wait_for
from hint_trace import HintTrace
from migration import HOG_MIB, MEMORY_MIB, start_vm

# It has the name of the machine's own memory, so migration finds it.
SHARED_MEMORY = (
    *("-object", f"memory-backend-memfd,id=pc.ram,size={MEMORY_MIB}M,share=on"),
    *("-machine", "memory-backend=pc.ram"),
)


class MigrationTest(unittest.TestCase):
    def check_goes_on(self, *extra: str) -> None:
        """Migrate a busy guest to other memory and other settings."""
        props = "min-age-ms=250,delay-ms=40"
        with start_vm("", *extra) as source, start_vm(
            props, *SHARED_MEMORY, *extra, origin=source
        ) as target:
            epoch = source.query()["rehint-epoch"]
            churn = source.start("churn -m 64 -n 10 -p 200")
            time.sleep(2)
            migration.move(source, target)
            moved = target.query()
            self.assertNotEqual(moved["rehint-epoch"], epoch)
            self.assertEqual((moved["min-age-ms"], moved["delay-ms"]), (250, 40))
            result = target.finish(churn, timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)
            migration.check_returns(target)
            after = target.query()
            self.assertEqual((after["state"], after["driver-status"]), ("active",) * 2)
            self.assertGreater(after["stats"]["discarded"]["bytes"], HOG_MIB * MIB)

    def test_the_guest_goes_on(self) -> None:
        self.check_goes_on()

    def test_the_guest_goes_on_with_a_packed_ring(self) -> None:
        self.check_goes_on(*PACKED_RING)

    def test_a_destination_that_is_disabled(self) -> None:
        """The destination's setting holds until its operator changes it."""
        with start_vm() as source, start_vm("enabled=off", origin=source) as target:
            migration.move(source, target)
            target.check(f"memhog {HOG_MIB}m")
            moved = target.query()
            self.assertEqual((moved["state"], moved["reason"]), ("disabled", "operator"))
            self.assertEqual(moved["driver-status"], "waiting")
            self.assertEqual(moved["stats"]["discard-calls"], 0)
            before = target.settle()
            target.set_enabled(True)
            limit = before - HOG_MIB * MIB // 2
            self.assertIsNotNone(target.wait_rss_below(limit, timeout=30))

    def check_refused(self, source: FreehintVM, target: FreehintVM, why: str) -> None:
        """The destination ends with this message, and the source goes on."""
        with target, migration.socket_uri() as uri:
            # Without it, the source does not learn of the failure.
            for vm in source, target:
                migration.set_capabilities(vm, "return-path")
            migration.start(source, target, uri)
            migration.wait_for(source, "failed")
            target.machine.wait(timeout=30)
            self.assertEqual(target.machine.exitcode(), 1)
            self.assertIn(why, target.machine.get_log() or "")
        migration.wait_running(source)
        self.assertEqual(source.check("echo here"), "here")

    def test_a_destination_that_cannot_take_the_guest(self) -> None:
        with start_vm() as source:
            large = start_vm("x-granule=8M", origin=source)
            self.check_refused(source, large, "granule 0x200000")
            without = FreehintVM("none", memory_mib=MEMORY_MIB, origin=source)
            self.check_refused(source, without, "virtio-freehint")
            migration.check_returns(source)

    def check_not_sent(self, *memory: str, capabilities: tuple[str, ...] = ()) -> None:
        """Memory that is hinted again while precopy runs is not sent.

        Precopy is slow until the guest has hinted; how fast it would be does not matter
        here.
        """
        with start_vm("enabled=on", *memory) as source, start_vm(
            "enabled=off", *memory, origin=source
        ) as target:
            source.set_enabled(False)
            source.check(f"memhog {HOG_MIB}m")
            plain = self.send_to_nowhere(source)
            self.assertGreater(plain["ram"]["normal-bytes"], HOG_MIB * MIB)

            source.set_enabled(True)
            for vm in source, target:
                migration.set_capabilities(vm, *capabilities)
            with migration.socket_uri() as uri:
                migration.set_bandwidth(source, 2 * MIB)
                migration.start(source, target, uri)
                self.wait_skipped(source, HOG_MIB * MIB)
                # Wait until it has hinted all free memory, in whatever order.
                GuestDriver(source).settle()
                migration.set_bandwidth(source, 0)
                skipping = migration.wait_for(source, "completed")
            migration.wait_running(target)
            saved = plain["ram"]["transferred"] - skipping["ram"]["transferred"]
            self.assertGreater(saved, HOG_MIB * MIB * 8 // 10)
            pages = skipping["ram"]["normal"] + skipping["ram"]["duplicate"]
            everything = skipping["ram"]["total"]
            self.assertLess(pages * 4096, everything - HOG_MIB * MIB * 8 // 10)
            self.assertLess(target.memory.now().rss, everything - HOG_MIB * MIB // 2)
            self.assertEqual(target.run("churn -m 128 -n 2").status, 0)

    # -- the epoch alone: nothing else changes, and nothing becomes free --

    def start_idle(self, vm: FreehintVM, trace: HintTrace) -> set[int]:
        """Bring a guest to rest; return the granules that are free and hinted."""
        mark = trace.mark()
        vm.check(f"memhog {HOG_MIB}m")
        driver = GuestDriver(vm)
        driver.settle()
        self.granule = int(driver.attribute("granule"))
        hinted = trace.granules(self.granule, mark)
        self.assertGreater(len(hinted), HOG_MIB * MIB // self.granule * 3 // 4)
        # Too slow for the migration to end by itself.
        migration.set_bandwidth(vm, MIB)
        return hinted

    def wait_hinted_again(self, trace: HintTrace, mark: int, hinted: set[int]) -> None:
        def missing() -> int:
            return len(hinted - trace.granules(self.granule, mark))

        # Some of it may be in use by now, and some is kept as a reserve.
        wait_for("free memory is hinted again", lambda: missing() < len(hinted) // 4 + 4)

    def state_changes(self, vm: FreehintVM) -> list[Any]:
        events = vm.machine.get_qmp_events(wait=False)
        return [e for e in events if e["event"] == "FREEHINT_STATE_CHANGED"]

    def test_an_idle_guest_hints_again_when_precopy_begins_and_ends(self) -> None:
        trace = HintTrace()
        self.addCleanup(trace.close)
        with start_vm("", *trace.args) as vm:
            hinted = self.start_idle(vm, trace)
            steps: dict[str, dict[str, object]] = {
                "migrate": {"uri": "exec:cat >/dev/null"},
                "migrate_cancel": {},
            }
            for command, arguments in steps.items():
                mark, epoch = trace.mark(), vm.query()["rehint-epoch"]
                vm.machine.cmd(command, arguments)
                wait_for("the epoch moves", lambda: vm.query()["rehint-epoch"] != epoch)
                self.wait_hinted_again(trace, mark, hinted)
            migration.wait_for(vm, "cancelled")
            self.assertEqual(self.state_changes(vm), [], "so something else changed")

    def test_an_idle_guest_hints_again_where_it_has_gone(self) -> None:
        source_trace, target_trace = HintTrace(), HintTrace()
        self.addCleanup(source_trace.close)
        self.addCleanup(target_trace.close)
        with start_vm("", *source_trace.args) as source, start_vm(
            "", *target_trace.args, origin=source
        ) as target, migration.socket_uri() as uri:
            hinted = self.start_idle(source, source_trace)
            mark = source_trace.mark()
            migration.start(source, target, uri)
            # Let the guest hint here all that it is asked for when precopy begins.
            self.wait_hinted_again(source_trace, mark, hinted)
            GuestDriver(source).settle()
            migration.set_bandwidth(source, 0)
            migration.wait_for(source, "completed")
            migration.wait_running(target)
            self.wait_hinted_again(target_trace, 0, hinted)
            self.assertEqual(self.state_changes(target), [], "so something else changed")

    # -- what is not sent --

    def send_to_nowhere(self, vm: FreehintVM) -> dict[str, Any]:
        vm.machine.cmd("migrate", uri="exec:cat > /dev/null")
        answer = migration.wait_for(vm, "completed")
        vm.machine.cmd("cont")
        return answer

    def wait_skipped(self, vm: FreehintVM, wanted: int) -> None:
        deadline = time.monotonic() + 60
        while (skipped := vm.query()["stats"]["skipped-bytes"]) < wanted:
            self.assertLess(time.monotonic(), deadline, f"{skipped} bytes skipped")
            time.sleep(0.1)

    def test_freed_memory_is_not_sent(self) -> None:
        self.check_not_sent()

    def test_freed_shared_memory_is_not_sent(self) -> None:
        self.check_not_sent(*SHARED_MEMORY)

    def test_freed_memory_is_not_sent_by_many_threads(self) -> None:
        self.check_not_sent(capabilities=("multifd",))

    def test_postcopy(self) -> None:
        """Hints resume when all memory has arrived, without a query."""
        if not migration.has_userfaultfd():
            self.skipTest("no userfaultfd")
        with start_vm() as source, start_vm(origin=source) as target:
            for vm in source, target:
                migration.set_capabilities(vm, "postcopy-ram", "events")
            churn = source.start("churn -m 64 -n 10 -p 200")
            time.sleep(1)
            with migration.socket_uri() as uri:
                # So slow that postcopy moves most of the memory.
                migration.set_bandwidth(source, 4 * MIB)
                target.machine.cmd("migrate-incoming", uri=uri)
                source.machine.cmd("migrate", uri=uri)
                migration.wait_for(source, "active")
                source.machine.cmd("migrate-start-postcopy")
                self.check_vetoed_meanwhile(target)
                migration.set_bandwidth(source, 0)
                migration.wait_for(source, "completed")
            self.assertNotIn("reason", self.wait_state(target, "active"))
            result = target.finish(churn, timeout=300)
            self.assertEqual(result.status, 0, result.output)
            self.assertIn(" 0 bytes lost", result.output)
            migration.check_returns(target)

    def wait_state(self, vm: FreehintVM, state: str) -> dict[str, Any]:
        """Wait for an event: after a query, the device would look for itself.

        The timeout has to be a float, as event_wait() ignores an int.
        """
        event = vm.machine.events_wait(
            [("FREEHINT_STATE_CHANGED", {"data": {"state": state}})], timeout=60.0
        )
        assert event is not None
        data: dict[str, Any] = event["data"]
        return data

    def check_vetoed_meanwhile(self, vm: FreehintVM) -> None:
        self.assertEqual(self.wait_state(vm, "vetoed")["reason"], "incoming-postcopy")
        moved = vm.query()
        reasons = [obstacle["reason"] for obstacle in moved["obstacles"]]
        self.assertEqual(reasons, ["incoming-postcopy"])
        self.assertEqual(moved["stats"]["discard-calls"], 0)

    def test_background_snapshot(self) -> None:
        if not migration.has_userfaultfd():
            self.skipTest("no userfaultfd")
        with start_vm() as vm:
            migration.set_capabilities(vm, "background-snapshot")
            # It takes a while to write this memory.
            vm.start(f"toucher -m {HOG_MIB} -k 600000")
            vm.settle()
            epoch = vm.query()["rehint-epoch"]
            churn = vm.start("churn -m 64 -n 10 -p 200")
            vm.machine.cmd("migrate", uri="exec:cat > /dev/null")
            state = self.wait_state(vm, "vetoed")
            self.assertEqual(state["reason"], "background-snapshot")
            # So slow that it is still under way a second later. Such a migration starts
            # without a limit, whatever was set before.
            migration.wait_for(vm, "active")
            migration.set_bandwidth(vm, 4 * MIB)
            frozen = vm.query()["stats"]["discard-calls"]
            time.sleep(1)
            self.assertEqual(migration.info(vm)["status"], "active")
            self.assertEqual(vm.query()["stats"]["discard-calls"], frozen)
            migration.set_bandwidth(vm, 0)
            self.wait_state(vm, "active")
            self.assertNotEqual(vm.query()["rehint-epoch"], epoch)
            migration.wait_for(vm, "completed")
            result = vm.finish(churn, timeout=300)
            self.assertIn(" 0 bytes lost", result.output)
            migration.check_returns(vm)

    def test_saved_state(self) -> None:
        """savevm and loadvm, with the guest busy before and after."""
        with tempfile.TemporaryDirectory(prefix="freehint-") as folder:
            with start_vm() as vm:
                # TCG's TSC does not go back when a state is loaded. A kernel that measures
                # the TSC's rate meanwhile, soon after boot, would get it wrong.
                vm.settle(quiet=3)
                migration.add_image(vm, Path(folder) / "state.qcow2")
                churn = vm.start("churn -m 64 -n 8 -p 200")
                time.sleep(1)
                before = vm.query()["rehint-epoch"]
                self.assertEqual(migration.hmp(vm, "savevm saved"), "")
                self.assertNotEqual(vm.query()["rehint-epoch"], before)
                self.assertIn(" 0 bytes lost", vm.finish(churn).output)
                self.assertEqual(migration.hmp(vm, "loadvm saved"), "")
                # The guest knows the epoch that was saved with it.
                self.assertNotEqual(vm.query()["rehint-epoch"], before)
                # The guest is in the middle of churn again, which ends once more.
                churn.done.clear()
                self.assertIn(" 0 bytes lost", vm.finish(churn).output)
                migration.check_returns(vm)


if __name__ == "__main__":
    unittest.main()
