"""Tests of what is pure in the benchmark: python3 benches/tests.py."""

import unittest
import xml.dom.minidom

import figures
import measure
import plot

RESULT = {
    "machine": {"kernel": "Linux 6", "cgroups": "v2", "processors": "1 × x", "commit": "", "load": [0, 1]},
    "contenders": {"floor": "", "ultari": "ultari 1", "crun": "crun 1"},
    "quick": False,
    "times": {
        "run": {"floor": [0.002] * 3, "ultari": [0.0025, 0.0025, 9], "crun": [0.005] * 3},
        "create": {"ultari": [0.003], "crun": [0.004]},
        "start": {"ultari": [0.001], "crun": [0.004]},
        "delete": {"ultari": [0.001], "crun": [0.002]},
    },
    "kernel": {},
    "counts": {"binary": {"ultari": 100, "crun": 100}, "syscalls": {"ultari": 320, "crun": 800}},
}


class Figures(unittest.TestCase):
    def row(self, title):
        row = next(row for row in figures.ROWS if row.title.startswith(title))
        return [cells[4:] for cells in figures.lines(RESULT, row, ["floor", "ultari", "crun"])]

    def test_medians_are_compared_with_each_goal(self):
        self.assertEqual(
            self.row("run /bin/true"),
            [
                ["1.25", "floor", "≤ 1.25", "yes"],
                ["0.50", "crun", "≤ 0.55", "yes"],
                ["-", "crun-static", "≤ 0.7", "not measured"],
                ["-", "runc", "≤ 0.2", "not measured"],
            ],
        )

    def test_the_steps_are_added_up(self):
        self.assertEqual(self.row("create"), [["0.50", "crun", "≤ 0.5", "yes"]])

    def test_smaller_means_not_equal(self):
        self.assertEqual(self.row("program"), [["1.00", "crun", "< 1", "no"]])

    def test_a_goal_may_be_a_number(self):
        self.assertEqual(self.row("system calls"), [["320", "", "≤ 320", "yes"]])

    def test_what_was_not_measured_is_not_met(self):
        self.assertEqual(self.row("the same on cgroup v2"), [["-", "crun", "≤ 0.5", "not measured"]])

    def test_the_report_has_every_row(self):
        text = figures.report(RESULT)
        for row in figures.ROWS:
            self.assertIn(row.title, text)

    def test_figures_replace_those_before(self):
        page = f"a\n{figures.BEGIN}\nold\n{figures.END}\nb"
        once = figures.inserted(page, "new \\1\n")
        self.assertEqual(once, f"a\n{figures.BEGIN}\n```\nnew \\1\n```\n{figures.END}\nb")
        self.assertEqual(figures.inserted(once, "new \\1\n"), once)
        with self.assertRaises(ValueError):
            figures.inserted("no marks", "new")

    def test_straces_table(self):
        table = "seconds calls syscall\n------- ----- -------\n 0.5 12 pread64\n 0.0 1 read\n------- ----- -------\n 0.5 13 total\n"
        self.assertEqual(measure.syscalls_in(table), {"pread64": (12, 0.5), "read": (1, 0.0)})

    def test_kernel_time_adds_up(self):
        text = figures.kernel_time({"a": [1, 0.001], "b": [2, 0.0005]}, {"b": [1, 0.002], "c": [3, 0.001]}, most=1)
        self.assertEqual([line.split() for line in text.splitlines()][1:], [
            ["a", "1", "1.00", "0", "0.00"],
            ["all", "others", "2", "0.50", "4", "3.00"],
            ["all", "3", "1.50", "4", "3.00"],
        ])


class Plot(unittest.TestCase):
    def test_is_xml_with_all_contenders(self):
        svg = plot.strips(RESULT["times"]["run"], "ultari")
        xml.dom.minidom.parseString(svg)
        for name in RESULT["times"]["run"]:
            self.assertIn(f">{name}<", svg)

    def test_ticks_are_round(self):
        self.assertEqual([plot.step(end) for end in (10, 18, 33, 70)], [1, 2, 5, 10])


if __name__ == "__main__":
    unittest.main()
