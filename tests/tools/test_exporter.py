# SPDX-License-Identifier: GPL-2.0-or-later
"""freehint-exporter, read by an HTTP client, promtool and Prometheus."""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from fake_qmp import FakeVM, QmpClient, recorded
from programs import EXPORTER, TOOLS, run, wait_for

MISSING = "Prometheus is not installed"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def values(text: str) -> dict[str, float]:
    """Values by metric and labels."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    pairs = (line.rsplit(" ", 1) for line in lines)
    return {name: float(value) for name, value in pairs}


class ExporterTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a program that runs until the end of the test."""
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def end() -> None:
            process.terminate()
            process.wait(timeout=30)
            assert process.stdout
            process.stdout.close()

        self.addCleanup(end)
        return process

    def export(self, *arguments: str | Path) -> str:
        """Start the exporter on a free port; return the URL of its metrics."""
        process = self.start(EXPORTER, "--port=0", "--timeout=1", *arguments)
        assert process.stdout
        return process.stdout.readline().split()[-1]

    def fake(self, name: str, answer: str, **options: Any) -> FakeVM:
        vm = FakeVM(self.folder, name, recorded(answer), **options)
        return self.enterContext(vm)

    def test_what_is_told(self) -> None:
        good, bad = self.fake("good", "active"), self.fake("bad", "locked")
        url = self.export(good.path, bad.path, "none=/nowhere")
        self.assertRegex(url, r"^http://127\.0\.0\.1:\d+/metrics$")
        text = fetch(url)
        found = values(text)
        for name, value in {
            'freehint_works{vm="good",device="fh0"}': 1,
            'freehint_works{vm="bad",device="fh0"}': 0,
            'freehint_monitor_up{vm="none",device=""}': 0,
            'freehint_problem{vm="none",device="",problem="gone"}': 1,
            'freehint_obstacle{vm="bad",device="fh0",reason="locked"}': 1,
            'freehint_guest_free_bytes{vm="good",device="fh0"}': 460546048,
            'freehint_guest_rest_seconds{vm="good",device="fh0"}': 0.1,
        }.items():
            self.assertEqual(found.get(name), value, name)
        self.assertNotIn('freehint_works{vm="none"', text)

    def test_a_vm_keeps_its_labels_while_it_cannot_be_asked(self) -> None:
        vm = self.fake("vm", "active")
        url = self.export(vm.path)
        self.assertEqual(values(fetch(url))['freehint_monitor_up{vm="vm",device="fh0"}'], 1)
        with QmpClient(vm.path):
            down = 'freehint_monitor_up{vm="vm",device="fh0"} 0'
            wait_for(down, lambda: down in fetch(url))

    def test_readers_at_once_cost_one_look(self) -> None:
        vm = self.fake("vm", "active")
        url = self.export(vm.path)
        for _ in range(20):
            fetch(url)
        self.assertLess(vm.asked, 10)

    def test_two_vms_of_one_name(self) -> None:
        for folder in ("a", "b"):
            (self.folder / folder).mkdir()
        answer = recorded("active")
        pair = [FakeVM(self.folder / folder, "vm", answer) for folder in ("a", "b")]
        paths = [self.enterContext(vm).path for vm in pair]
        found = values(fetch(self.export(*paths)))
        self.assertEqual(len([n for n in found if n.startswith("freehint_works")]), 2)

    def test_what_is_no_request_for_metrics(self) -> None:
        url = self.export(self.fake("vm", "active").path)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            fetch(url + "x")
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()
        port = urllib.parse.urlparse(url).port
        assert port
        for request in (b"", b"GET /metrics HTTP/1.1\r\n", b"x" * 20000):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                try:
                    client.sendall(request)
                    client.shutdown(socket.SHUT_WR)
                    self.assertIn(b" 400 ", client.recv(1000))
                except OSError:
                    # It may hang up before it has read all of a request that is too long.
                    pass
        self.assertIn("freehint_works", fetch(url))

    def test_a_file(self) -> None:
        vm = self.fake("vm", "active")
        file = self.folder / "freehint.prom"
        run(EXPORTER, f"--textfile={file}", vm.path)
        self.assertIn('freehint_works{vm="vm",device="fh0"} 1\n', file.read_text())
        self.assertEqual(file.stat().st_mode & 0o777, 0o644)
        # A reader that has it open keeps the old one.
        with file.open() as stream:
            self.start(EXPORTER, f"--textfile={file}", "--interval=0.1", vm.path)
            vm.answer = recorded("off")
            changed = 'freehint_works{vm="vm",device="fh0"} 0\n'
            wait_for(changed, lambda: changed in file.read_text())
            self.assertIn('freehint_works{vm="vm",device="fh0"} 1\n', stream.read())
        run(EXPORTER, "--textfile=/nowhere/at/all", vm.path, status=1)

    def test_in_a_guest(self) -> None:
        group = self.folder / "virtio3" / "freehint"
        group.mkdir(parents=True)
        (group / "leaked_bytes").write_text("2097152\n")
        url = self.export("--guest", f"--sysfs={self.folder}")
        name = f'freehint_driver_leaked_bytes{{vm="{socket.gethostname()}",'
        self.assertEqual(values(fetch(url)), {f'{name}device="virtio3"}}': 2097152})

    def test_what_makes_no_sense_is_refused(self) -> None:
        for options in (["--interval=1"], ["--port=65536"], ["-t0"], ["-g", "a"]):
            with self.subTest(options):
                self.assertTrue(run(EXPORTER, *options, status=2).stderr)
        done = run(EXPORTER, "--listen=nowhere", status=1)
        self.assertIn("nowhere", done.stderr)

    @unittest.skipUnless(shutil.which("promtool"), MISSING)
    def test_what_promtool_says(self) -> None:
        paths = [self.fake(name, name).path for name in ("active", "locked", "lazy")]
        text = fetch(self.export(*paths, "/nowhere"))
        self.assertEqual(run("promtool", "check", "metrics", input=text).stderr, "")
        run("promtool", "check", "rules", TOOLS / "alerts.yml")
        shutil.copy(TOOLS / "alerts.yml", self.folder)
        shutil.copy(Path(__file__).with_name("alerts-test.yml"), self.folder)
        run("promtool", "test", "rules", self.folder / "alerts-test.yml")

    @unittest.skipUnless(shutil.which("prometheus"), MISSING)
    def test_prometheus_reads_it(self) -> None:
        vm = self.fake("vm", "off")
        target = urllib.parse.urlparse(self.export(vm.path, "gone=/nowhere")).netloc
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = f"127.0.0.1:{free.getsockname()[1]}"
        config = self.folder / "prometheus.yml"
        scrape = {
            "job_name": "freehint",
            "scrape_interval": "1s",
            "static_configs": [{"targets": [target]}],
        }
        # JSON is YAML.
        rules = [str(TOOLS / "alerts.yml")]
        config.write_text(json.dumps({"rule_files": rules, "scrape_configs": [scrape]}))
        self.start(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address={place}",
        )

        def ask(query: str) -> Any:
            try:
                url = f"http://{place}/api/v1/{query}"
                return json.loads(fetch(url))["data"]
            except (OSError, urllib.error.URLError):
                return None

        def result(query: str) -> Any:
            answer = ask("query?query=" + urllib.parse.quote(query))
            return answer and answer["result"]

        found = wait_for("a figure", lambda: result("freehint_guest_free_bytes"))
        self.assertEqual(found[0]["value"][1], "460546048")
        self.assertEqual(found[0]["metric"]["vm"], "vm")
        self.assertTrue(wait_for("up", lambda: result("up == 1")))
        self.assertEqual(result("freehint_works")[0]["value"][1], "0")
        # Each query of the dashboard finds something, with the labels that the panel names.
        panels = json.loads((TOOLS / "dashboard.json").read_text())["panels"]
        queries = [(panel, part) for panel in panels for part in panel["targets"]]
        self.assertGreater(len(queries), 10)
        for panel, part in queries:
            query = part["expr"].replace("$vm", ".*").replace("$__rate_interval", "1m")
            with self.subTest(query):
                found = wait_for(f"an answer to {query}", lambda: result(query))
                labels = set().union(*(series["metric"] for series in found))
                named = set(re.findall(r"{{(\w+)}}", part["legendFormat"]))
                for change in panel.get("transformations", []):
                    named |= set(change["options"]["indexByName"])
                    self.assertLessEqual(labels, named | set(change["options"]["excludeByName"]))
                self.assertLessEqual(named, labels)
        # Its list of VMs, too.
        names = ask("label/vm/values?match[]=freehint_monitor_up")
        self.assertEqual(names, ["gone", "vm"])
        groups = wait_for("rules", lambda: ask("rules"))["groups"]
        names = [rule["name"] for group in groups for rule in group["rules"]]
        said = re.findall(r"- alert: (\w+)", (TOOLS / "alerts.yml").read_text())
        self.assertEqual(names, said)


if __name__ == "__main__":
    unittest.main()
