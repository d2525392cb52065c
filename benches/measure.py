"""What is measured, and how: times by hyperfine, the rest by strace, time and /proc."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from contenders import fail

# How many containers wait at once in the second part of the measure `held`.
HELD = 20


def load():
    return float(Path("/proc/loadavg").read_text().split()[0])


def machine(repository):
    """What the figures depend on."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    release = re.match(r"[0-9.]*[0-9]", os.uname().release)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=repository, capture_output=True, text=True)
    return {
        "kernel": f"Linux {release[0]} {os.uname().machine}",
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1 or hybrid",
        "processors": f"{os.cpu_count()} × {cpu[1] if cpu else 'unknown'}",
        "commit": commit.stdout.strip(),
    }


class Measure:
    """One method a measure; each returns figures by contender."""

    def __init__(self, arena, quick, share):
        self.arena = arena
        self.quick = quick
        self.share = 0.1 if quick else share
        # Other work on the machine comes and goes, and should fall on all contenders alike.
        self.turns = 2 if quick else 10

    def all(self, names):
        result = {"times": {}, "counts": {}, "kernel": {}}
        for name in names:
            print(f"measuring {name}", file=sys.stderr)
            for kind, figures in getattr(self, name)().items():
                result[kind] |= figures
        return result

    def hyperfine(self, name, runs, commands, prepare=None, warmup=2):
        """Commands by contender in turns, each with what comes before every run of it; all times in
        seconds by contender."""
        each = max(2, round(runs * self.share / self.turns))
        output = self.arena.out / f"{name}.json"
        line = ["hyperfine", "--shell", "none", "--style", "none", "--warmup", str(warmup), "--runs", str(each)]
        line += ["--export-json", str(output)]
        order = list(commands) * self.turns
        for contender in order:
            if prepare:
                line += ["--prepare", shlex.join(prepare(contender))]
            line += [shlex.join(commands[contender])]
        ended = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if ended.returncode:
            fail(f"{name}: {ended.stdout}{ended.stderr}")
        times = defaultdict(list)
        for contender, result in zip(order, json.loads(output.read_text())["results"], strict=True):
            times[contender] += result["times"]
        return {"times": {name: dict(times)}}

    def run(self):
        return self.hyperfine("run", 200, {name: self.arena.run(name) for name in self.arena.names})

    def paused(self):
        commands = {name: self.arena.run(name) for name in self.arena.names}
        return self.hyperfine("paused", 60, commands, prepare=lambda _: ["sleep", "0.2"], warmup=0)

    def seccomp(self):
        commands = {name: self.arena.run(name, "seccomp") for name in self.arena.runtimes}
        if "ultari" in commands:
            commands["ultari without"] = self.arena.run("ultari")
        return self.hyperfine("seccomp", 200, commands)

    def many(self):
        return self.hyperfine("many", 10, {name: self.arena.many(name) for name in self.arena.names}, warmup=0)

    def binds(self):
        return self.hyperfine("binds", 60, {name: self.arena.run(name, "binds") for name in self.arena.runtimes})

    # ---- the life cycle, step by step, each on a container brought into place before ----

    def step(self, step, state, *args):
        commands = {name: self.arena.command(name, step, *args, "bench") for name in self.arena.runtimes}
        script = str(self.arena.repository / "benches/prepare")
        times = self.hyperfine(step, 40, commands, lambda name: [script, state, name, str(self.arena.out)])
        self.gone()
        return times["times"]

    def gone(self):
        for name in self.arena.runtimes:
            self.arena.call(name, "delete", "--force", "bench", check=False)

    def cycle(self):
        # The bundle is the contender's own, so that it can't be among the common arguments.
        runtimes = self.arena.runtimes
        script = str(self.arena.repository / "benches/prepare")
        sleep = {name: ["--bundle", str(self.arena.out / "bundles" / name / "sleep")] for name in runtimes}
        create = self.hyperfine(
            "create", 40,
            {name: self.arena.command(name, "create", *sleep[name], "bench") for name in runtimes},
            lambda name: [script, "gone", name, str(self.arena.out)],
        )["times"]
        self.gone()
        return {"times": create | self.step("start", "created") | self.step("delete", "stopped")}

    def in_running(self, step, *args):
        for name in self.arena.runtimes:
            self.created(name)
            self.arena.call(name, "start", "bench")
        commands = {name: self.arena.command(name, step, "bench", *args) for name in self.arena.runtimes}
        times = self.hyperfine(step, 100, commands)
        self.gone()
        return times

    def created(self, name):
        bundle = self.arena.out / "bundles" / name / "sleep"
        self.arena.call(name, "create", "--bundle", str(bundle), "bench")

    def exec(self):
        return self.in_running("exec", "/bin/true")

    def state(self):
        return self.in_running("state")

    # ---- what does not depend on the machine's load ----

    def syscalls(self):
        """All of all processes, from the runtime's execve to the exit of the container's program."""
        counts, kernel = {}, {}
        for name in self.arena.names:
            runs = [self.syscalls_of(name) for _ in range(max(2, round(20 * self.share)))]
            counts[name] = statistics.median(sum(calls for calls, _ in run.values()) for run in runs)
            if name in ("floor", "ultari"):
                # By system call: how many a run, and how long.
                calls = {call for run in runs for call in run}
                kernel[name] = {
                    call: [sum(run.get(call, (0, 0))[part] for run in runs) / len(runs) for part in (0, 1)]
                    for call in calls
                }
        return {"counts": {"syscalls": counts}, "kernel": kernel}

    def syscalls_of(self, name):
        output = self.arena.out / "strace"
        columns = "time-total,calls,name"
        self.quiet("strace", "-f", "-c", "-U", columns, "-o", str(output), *self.arena.run(name))
        return syscalls_in(output.read_text())

    def memory(self):
        """The largest process of all that took part. `time` itself is smaller than any of them."""
        return {"counts": {"memory": {name: self.median(self.peak_of, name) for name in self.arena.names}}}

    def peak_of(self, name):
        output = self.arena.out / "peak"
        self.quiet("time", "-f", "%M", "-o", str(output), *self.arena.run(name))
        return int(output.read_text())

    def held(self):
        """Between create and start: the processes that wait, and what the runtime left beside them; of
        one container alone, and for each of several, which share what they have of the program's file."""
        runtimes = self.arena.runtimes
        return {"counts": {
            "held": {name: self.median(self.held_by, name, 1) for name in runtimes},
            "held_each": {name: self.median(self.held_by, name, HELD) for name in runtimes},
        }}

    def held_by(self, name, number):
        for index in range(number):
            bundle = self.arena.out / "bundles" / name / f"many-{index}"
            self.arena.call(name, "create", "--bundle", str(bundle), f"many-{index}")
        inits = {json.loads(self.arena.call(name, "state", f"many-{index}"))["pid"] for index in range(number)}
        own = str(self.arena.out / "bin" / name)
        kib = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if int(process.name) in inits or words[0].decode(errors="replace") == own:
                    kib += int(re.search(r"^Pss:\s*(\d+)", (process / "smaps_rollup").read_text(), re.M)[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        for index in range(number):
            self.arena.call(name, "delete", "--force", f"many-{index}")
        return kib / number

    def binary(self):
        return {"counts": {"binary": {name: size(self.arena.programs[name]) for name in self.arena.runtimes}}}

    def median(self, measure, *args):
        return statistics.median(measure(*args) for _ in range(1 if self.quick else 5))

    def quiet(self, *command):
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if ended.returncode:
            fail(f"{shlex.join(command)}: {ended.returncode}: {ended.stderr}")


def syscalls_in(table):
    """Number and seconds of each system call in strace's table."""
    found = re.findall(r"^ *([0-9.]+) +([0-9]+) +([a-z0-9_]+)$", table, re.M)
    return {name: (int(calls), float(seconds)) for seconds, calls, name in found if name != "total"}


def size(program):
    """The file's size and that of all libraries it is linked with, in KiB."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    files = [program, *re.findall(r"(/\S+) \(0x", listed)]
    return sum(Path(file).stat().st_size for file in files) / 1024
