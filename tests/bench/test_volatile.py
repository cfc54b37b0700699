# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of a volatile page cache follow from what was logged."""

import tempfile
import unittest
from pathlib import Path

import evictions
import pool_model
from evictions import Count, Run, Step
from pool_model import SLOTS, Cost, Pool, Setting, play

BINARY, DATABASE, LOG, FOLDER = 11, 12, 13, 14


def step(work: list[Run], reclaim: list[Run], writers: tuple[int, ...] = ()) -> Step:
    return Step(
        *("step", 1.0, work, reclaim),
        *(frozenset(writers), frozenset((FOLDER,)), 3, 0),
    )


DAY = [
    step(
        [Run("r", BINARY, 0, 8), Run("w", LOG, 0, 2), Run("r", FOLDER, 0, 1)],
        [
            *(Run("d", BINARY, 0, 8), Run("d", DATABASE, 0, 4)),
            *(Run("d", LOG, 0, 2), Run("d", FOLDER, 0, 1)),
        ],
        (DATABASE,),
    ),
    step(
        [Run("r", BINARY, 2, 4), Run("r", DATABASE, 1, 1), Run("w", LOG, 1, 1)],
        [Run("d", BINARY, 2, 4)],
    ),
    step([Run("r", BINARY, 2, 2), Run("r", LOG, 0, 1)], []),
]


def large_day() -> list[Step]:
    """Four granules are evicted, and read again."""
    pages = Run("d", BINARY, 0, 4 * SLOTS)
    return [step([], [pages]), step([pages._replace(kind="r")], [])]


class EvictionTest(unittest.TestCase):
    def test_what_is_read_again_counts_where_it_was_evicted(self) -> None:
        first, second, last = evictions.count(DAY)
        # Of the log's pages one is overwritten, and one read; nobody has it open before.
        self.assertEqual(first, Count(15, 1, 3, quiet=10, again=6, quiet_again=5, static_again=4))
        self.assertEqual(second, Count(4, 0, 3, quiet=4, again=2, quiet_again=2, static_again=2))
        self.assertEqual(last, Count(other=3))

    def test_what_cachelog_prints(self) -> None:
        runs, other, lost = evictions.parse_log("r 11 0 8\nd 11 2 1\nother 5\nlost 2\n")
        self.assertEqual(runs, [Run("r", 11, 0, 8), Run("d", 11, 2, 1)])
        self.assertEqual((other, lost), (5, 2))

    def test_a_day_survives_saving(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "day.json"
            evictions.save(DAY, path)
            self.assertEqual(evictions.load(path), DAY)

    def test_shares_are_of_all_that_was_evicted(self) -> None:
        total = evictions.table(DAY).splitlines()[-1]
        self.assertEqual(total, "| all | 0.1 | 35.7 % | 50.0 % | 28.6 % | 25.0 % | 21.4 % |")


class PoolTest(unittest.TestCase):
    def test_who_opens_a_file_for_writing_wipes_it(self) -> None:
        result = play(DAY, Setting(64, 0.0))
        # Not the log, which was written to before it was read.
        self.assertEqual((result.puts, result.hits, result.lost), (14, 6, 0))
        opened = [DAY[0], step([], [], (BINARY,)), *DAY[1:]]
        self.assertEqual(play(opened, Setting(64, 0.0)).hits, 2)

    def test_only_what_came_back_is_admitted(self) -> None:
        result = play(DAY, Setting(64, 0.0, admits="back"))
        self.assertEqual((result.puts, result.hits), (4, 2))

    def test_only_what_was_read_in_a_short_run_is_admitted(self) -> None:
        # At first the run of the binary is too long; the log was never read.
        result = play(DAY, Setting(64, 0.0, admits="short"))
        self.assertEqual((result.puts, result.hits), (4, 2))

    def test_the_oldest_granule_is_used_again(self) -> None:
        day = large_day()
        self.assertEqual(play(day, Setting(64, 0.0)).hits, 4 * SLOTS)
        self.assertEqual(play(day, Setting(4, 0.0)).hits, 2 * SLOTS)

    def test_what_the_host_took_is_lost(self) -> None:
        """The last granule is open, so that the host does not know of it."""
        result = play(large_day(), Setting(64, 1.0))
        self.assertEqual((result.hits, result.lost), (SLOTS, 3 * SLOTS))
        self.assertEqual((result.offered, result.taken), ([3, 0], 3))

    def test_the_host_takes_what_was_read_or_leaves_it(self) -> None:
        for host, share, hits in (("stable", 1.0, 2), ("touched", 1 / 3, 1)):
            with self.subTest(host=host):
                pool = Pool(Setting(64, share, host), seed=0)
                for page in Run("d", BINARY, 0, 3 * SLOTS + 1).pages():
                    pool.put(page)
                pool.get((BINARY, SLOTS))
                pool.host_is_short()
                pool.get((BINARY, SLOTS + 1))
                self.assertEqual(pool.result.hits, hits)

    def test_what_is_saved_and_spent(self) -> None:
        cost = Cost.parse("cost 300 400 900\n")
        result = pool_model.Result(puts=100, hits=10, lost=5, reads=2.5)
        self.assertAlmostEqual(result.spent_us(cost), 100 * 1.0 + 15 * 3.5)
        self.assertAlmostEqual(result.saved_us("NVMe"), 10 * 1.3 + 2.5 * 98.7)
        # A half of a run that takes two reads.
        day = [step([], [Run("d", BINARY, 0, 20)]), step([Run("r", BINARY, 0, 40)], [])]
        self.assertAlmostEqual(play(day, Setting(64, 0.0)).reads, 1.0)
        table = pool_model.cost_table([cost])
        self.assertIn("| NVMe | 1 | 100.0 | 1 % |", table)
        self.assertIn("| NVMe | 32 | 4.4 | never |", table)
        self.assertAlmostEqual(pool_model.page_us("NVMe", [1, 3]), 1.3 + 98.7 / 2)


if __name__ == "__main__":
    unittest.main()
