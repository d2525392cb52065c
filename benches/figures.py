"""From figures to the table: pure functions of what was measured."""

import re
from dataclasses import dataclass
from statistics import median, quantiles

HIGHLIGHT = "ultari"


@dataclass(frozen=True)
class Goal:
    """At most `limit` times the figure of `of`; of nobody: at most `limit` itself."""

    of: str
    limit: float
    strictly: bool = False

    def met(self, value):
        # As it is printed, so that no line contradicts itself.
        value = round(value, 2)
        return value < self.limit if self.strictly else value <= self.limit


@dataclass(frozen=True)
class Row:
    title: str
    unit: str
    # What is added up: names in `times` (medians, in ms) or one in `counts`.
    of: tuple
    goals: tuple


ROWS = [
    Row("run /bin/true", "ms", ("run",),
        (Goal("floor", 1.25), Goal("crun", 0.55), Goal("crun-static", 0.7), Goal("runc", 0.2))),
    Row("the same on cgroup v2, in the VM", "ms", ("vm",), (Goal("crun", 0.5),)),
    Row("run after a pause of 200 ms", "ms", ("paused",), (Goal("crun", 0.6),)),
    Row("run with Docker's seccomp profile", "ms", ("seccomp",), (Goal("ultari without", 1.1),)),
    Row("create + start + delete", "ms", ("create", "start", "delete"), (Goal("crun", 0.5),)),
    Row("exec /bin/true", "ms", ("exec",), (Goal("crun", 0.5),)),
    Row("state", "ms", ("state",), (Goal("crun", 0.6),)),
    Row("100 containers, 8 at a time", "ms", ("many",), (Goal("crun", 0.6),)),
    Row("run with 200 bind mounts", "ms", ("binds",), (Goal("crun", 0.6),)),
    Row("system calls of run", "", ("syscalls",), (Goal("", 320),)),
    Row("the same on cgroup v2, in the VM", "", ("vm syscalls",), ()),
    Row("peak memory of run (RSS)", "KiB", ("memory",), (Goal("crun", 0.7),)),
    Row("held between create and start (PSS)", "KiB", ("held",), (Goal("crun-static", 1.0),)),
    Row("the same, each of 20 at once", "KiB", ("held_each",), (Goal("crun-static", 1.0),)),
    Row("program and its libraries", "KiB", ("binary",), (Goal("crun", 1.0, strictly=True),)),
]
# The methods of measure.Measure.
MEASURES = ["run", "paused", "seccomp", "cycle", "exec", "state", "many", "binds", "syscalls", "memory", "held", "binary"]
STEPS = ["create", "start", "delete"]


def medians(result, name):
    """Figures by contender: of times the medians in ms."""
    if name in ("vm", "vm syscalls"):
        there = {"vm": "run", "vm syscalls": "syscalls"}[name]
        return medians(result["vm"], there) if result.get("vm") else {}
    if name in result["counts"]:
        return result["counts"][name]
    return {contender: median(times) * 1000 for contender, times in result["times"].get(name, {}).items()}


def sums(result, names):
    """The sums of some figures of each contender that has all of them."""
    parts = [medians(result, name) for name in names]
    return {contender: sum(part[contender] for part in parts) for contender in parts[0] if all(contender in part for part in parts)}


def number(value, unit):
    if value is None:
        return "-"
    return f"{value:.2f}" if unit == "ms" and value < 100 else f"{value:.0f}"


def lines(result, row, contenders):
    """The cells of a row: the figures, then a line a goal."""
    values = sums(result, row.of)
    ours = values.get(HIGHLIGHT)
    figures = [row.title + (f", {row.unit}" if row.unit else "")]
    figures += [number(values.get(contender), row.unit) for contender in contenders]
    if not row.goals:
        yield figures + [""] * 4
    for goal in row.goals:
        limit = f"{'<' if goal.strictly else '≤'} {goal.limit:g}"
        base = values.get(goal.of) if goal.of else 1
        if ours is None or not base:
            verdict = ["-", goal.of, limit, "not measured"]
        else:
            ratio = ours / base
            verdict = [f"{ratio:.2f}" if goal.of else number(ratio, ""), goal.of, limit, "yes" if goal.met(ratio) else "no"]
        yield figures + verdict
        # Once is enough.
        figures = [""] * len(figures)


def table(rows):
    """Aligned columns: texts to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    left = {0, *range(len(widths) - 3, len(widths))}
    text = ""
    for row in rows:
        cells = (cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        text += "  ".join(cells).rstrip() + "\n"
    return text


def spread(times):
    """The fastest, then the three quartiles, in ms."""
    return [f"{value * 1000:.2f}" for value in [min(times), *quantiles(times, n=4, method="inclusive")]]


def report(result):
    machine, contenders = result["machine"], list(result["contenders"])
    text = f"{'kernel':<13}{machine['kernel']}, cgroups {machine['cgroups']}\n"
    text += f"{'machine':<13}{machine['processors']}\n"
    text += f"{'load':<13}{machine['load'][0]:.2f} before, {machine['load'][1]:.2f} after\n"
    for name, version in result["contenders"].items():
        if version:
            commit = f", commit {machine['commit']}" if name == HIGHLIGHT and machine["commit"] else ""
            text += f"{name:<13}{version}{commit}\n"
    if result["quick"]:
        text += "\nIn a hurry (QUICK=1): these figures say little.\n"
    rows = [["", *contenders, "ratio", "to", "goal", "met"]]
    for row in ROWS:
        rows += lines(result, row, contenders)
    text += "\n" + table(rows)
    if vm := result.get("vm"):
        text += f"\nIn the VM: {vm['machine']['kernel']}, cgroups {vm['machine']['cgroups']}, emulated processor.\n"
    text += details(result, contenders)
    return text


def details(result, contenders):
    """Behind the table: how far the times of run are spread, and the steps one by one."""
    text = ""
    if run := result["times"].get("run"):
        rows = [["run, ms", "runs", "fastest", "1st quartile", "median", "3rd quartile"]]
        rows += [
            [name, str(len(run[name])), *spread(run[name])]
            for name in contenders if name in run
        ]
        text += "\n" + plain(rows)
    if all(step in result["times"] for step in STEPS):
        steps = {step: medians(result, step) for step in STEPS}
        rows = [["the steps, ms", *STEPS]]
        rows += [[name, *(f"{steps[step][name]:.2f}" for step in STEPS)] for name in contenders if name in steps["create"]]
        text += "\n" + plain(rows)
    if ours := result["kernel"].get(HIGHLIGHT):
        text += "\n" + kernel_time(ours, result["kernel"].get("floor", {}))
    if without := medians(result, "seccomp").get("ultari without"):
        text += f"\nultari without a seccomp profile, in turns with it: {without:.2f} ms\n"
    return text


def kernel_time(ours, floor, most=16):
    """The system calls of a run that cost most, with those of the floor."""
    names = sorted(ours, key=lambda name: -ours[name][1])
    rest = names[most:]

    def row(title, names):
        both = [[sum(of.get(name, (0, 0))[part] for name in names) for part in (0, 1)] for of in (ours, floor)]
        return [title, *(cell for calls, seconds in both for cell in (f"{calls:.0f}", f"{1000 * seconds:.2f}"))]

    rows = [["kernel time", "calls", "ms", "floor's calls", "ms"], *(row(name, [name]) for name in names[:most])]
    return plain([*rows, row("all others", [*rest, *(floor.keys() - ours.keys())]), row("all", ours.keys() | floor.keys())])


def plain(rows):
    return "".join(f"{row[0]:<15}" + "".join(cell.rjust(14) for cell in row[1:]) + "\n" for row in rows)


BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def inserted(page, text, picture=None):
    """The page with new figures between its two marks, and the name of a picture."""
    shown = f"![The times of run, contender by contender]({picture})\n\n" if picture else ""
    new, times = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{shown}```\n{text}```\n{END}", page, flags=re.S
    )
    if times != 1:
        raise ValueError(f"the page needs the marks {BEGIN} and {END} once")
    return new
