"""Who takes part, and on what: programs, bundles, state folders."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What is known to have runc's command line, in the order of the table's columns.
RUNTIMES = ["crun", "crun-static", "runc", "youki"]
# How many containers there are at once in the measure `many`, and bind mounts in `binds`.
MANY = 100
BINDS = 200
HOSTNAME = "bench"


def fail(message):
    sys.exit(f"bench: {message}")


def in_memory():
    """A folder of a file system in memory."""
    kinds = {mount[1]: mount[2] for mount in map(str.split, Path("/proc/mounts").read_text().splitlines())}
    folders = [folder for folder in ["/run", "/dev/shm"] if kinds.get(folder) == "tmpfs"]
    return folders[0] if folders else fail("neither /run nor /dev/shm is a tmpfs")


class Arena:
    """The contenders and their bundles below a folder; leaves no container and no cgroup behind."""

    def __init__(self, out, repository, floor, ultari, peers, wanted):
        self.out, self.repository = out, repository
        self.programs = self.find(floor, ultari, Path(peers) if peers else None, wanted)
        self.names = list(self.programs)
        self.runtimes = [name for name in self.names if name != "floor"]
        self.config = json.loads((repository / "benches/bundle/config.json").read_text())

    @staticmethod
    def find(floor, ultari, peers, wanted):
        """Programs by name, in the order in which they take part."""
        found = {"floor": floor, "ultari": ultari}
        found |= {name: path for name in RUNTIMES if (path := shutil.which(name))}
        if peers:
            if not peers.is_dir():
                fail(f"PEERS: {peers} is no folder")
            for path in sorted(peers.iterdir()):
                # Names such as crun-1.27 are somebody's too.
                if path.is_file() and os.access(path, os.X_OK) and path.name.split("-")[0] in RUNTIMES:
                    found[path.name] = path
        if missing := [name for name in wanted if name not in found and not shutil.which(name)]:
            fail(f"{', '.join(missing)} missing: make deps-bench, or leave it out of CONTENDERS")
        family = {name: index for index, name in enumerate(["floor", "ultari", *RUNTIMES])}
        wanted = wanted or sorted(found, key=lambda name: (family.get(name, family[name.split("-")[0]]), name))
        return {name: Path(found.get(name) or shutil.which(name)).resolve() for name in wanted}

    def __enter__(self):
        for tool in ["hyperfine", "busybox"]:
            if not shutil.which(tool):
                fail(f"{tool} is missing: make deps-bench")
        shutil.rmtree(self.out, ignore_errors=True)
        (self.out / "bin").mkdir(parents=True)
        self.rootfs = self.out / "rootfs"
        subprocess.run([self.repository / "bundles/make-rootfs", self.rootfs], check=True)
        for number in range(BINDS):
            (self.rootfs / f"mnt/{number}").mkdir(parents=True)
        (self.out / "source").mkdir()
        for name, program in self.programs.items():
            if not os.access(program, os.X_OK):
                fail(f"{name}: there is no program {program}")
            (self.out / "bin" / name).symlink_to(program)
        try:
            # State is in memory, as in /run of any distribution: a disk's time is nobody's merit.
            (self.out / "state").symlink_to(tempfile.mkdtemp(prefix="ultari-bench-", dir=in_memory()))
            for name in self.runtimes:
                self.write_bundles(name)
            self.check()
        except BaseException:
            self.clean()
            raise
        return self

    def __exit__(self, *_):
        self.clean()

    def clean(self):
        for name in self.runtimes:
            state = self.out / "state" / name
            for container in state.iterdir() if state.is_dir() else []:
                self.call(name, "delete", "--force", container.name, check=False)
        if (self.out / "state").is_symlink():
            shutil.rmtree((self.out / "state").resolve(), ignore_errors=True)
        for folder in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
            for path, _, _ in os.walk(folder / "ultari-bench", topdown=False):
                try:
                    os.rmdir(path)
                except OSError as error:
                    print(f"bench: left behind: {error}", file=sys.stderr)

    def write_bundles(self, name):
        self.bundle(name, "true", ["/bin/true"])
        self.bundle(name, "sleep", ["/bin/sleep", "3600"])
        self.bundle(name, "check", ["/bin/sh", "-c", "echo inside $(hostname); exit 42"])
        self.bundle(name, "seccomp", ["/bin/true"], seccomp=self.docker_profile())
        binds = [
            # As `docker run -v` writes them; every other one read-only.
            {"type": "bind", "source": str(self.out / "source"), "destination": f"/mnt/{number}",
             "options": ["rbind", "rprivate"] + ["ro"] * (number % 2)}
            for number in range(BINDS)
        ]
        self.bundle(name, "binds", ["/bin/true"], mounts=binds)
        for number in range(MANY):
            self.bundle(name, f"many-{number}", ["/bin/true"], cgroup=f"many-{number}")

    def bundle(self, contender, name, args, seccomp=None, mounts=(), cgroup="run"):
        config = json.loads(json.dumps(self.config))
        config["root"]["path"] = str(self.rootfs)
        config["process"]["args"] = args
        config["mounts"] += mounts
        # Of one's own, so that containers of several contenders may exist at a time.
        config["linux"]["cgroupsPath"] = f"/ultari-bench/{contender}-{cgroup}"
        if seccomp:
            config["linux"]["seccomp"] = seccomp
        folder = self.out / "bundles" / contender / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1))

    def docker_profile(self):
        """What Docker 28 gave its runtime for `docker run`."""
        config = self.repository / "tests/data/configs/docker28-run-rm-echo.json"
        return json.loads(config.read_text())["linux"]["seccomp"]

    def command(self, name, *args):
        return [str(self.out / "bin" / name), "--root", str(self.out / "state" / name), *args]

    def run(self, name, bundle="true", container="bench"):
        """The command that runs a container from start to end."""
        if name == "floor":
            return [str(self.out / "bin/floor"), str(self.rootfs), "/bin/true"]
        return self.command(name, "run", "--bundle", str(self.out / "bundles" / name / bundle), container)

    def many(self, name, jobs=8):
        """A command that runs MANY containers, some at a time."""
        numbers = self.out / "numbers"
        numbers.write_text("".join(f"{number}\n" for number in range(MANY)))
        # Floors make cgroups of their own by themselves.
        one = [*self.run(name), "%"] if name == "floor" else self.run(name, "many-%", "many-%")
        return ["xargs", "-a", str(numbers), "-P", str(jobs), "-I", "%", *one]

    def call(self, name, *args, check=True):
        """Calls a runtime and returns what it prints. A created container holds its descriptors, so
        that there must be nothing to wait for in a pipe."""
        output = self.out / "output"
        with output.open("w") as file, (self.out / "errors").open("w") as errors:
            status = subprocess.run(self.command(name, *args), stdin=subprocess.DEVNULL, stdout=file, stderr=errors)
        if check and status.returncode:
            fail(f"{shlex.join(status.args)}: {status.returncode}: {(self.out / 'errors').read_text()}")
        return output.read_text()

    def check(self):
        """A contender that does nothing would win: does each of them make a container?"""
        for name in self.names:
            command = self.run(name, "check")
            if name == "floor":
                command = [*command[:2], "/bin/sh", "-c", "echo inside $(hostname); exit 42"]
            seen = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if seen.returncode != 42 or seen.stdout != f"inside {HOSTNAME}\n":
                fail(f"{name} makes no proper container: {seen.returncode}, {seen.stdout!r}, {seen.stderr!r}")

    def versions(self):
        found = {"floor": ""} if "floor" in self.names else {}
        for name in self.runtimes:
            output = subprocess.run([self.out / "bin" / name, "--version"], capture_output=True, text=True).stdout
            found[name] = output.partition("\n")[0]
        return found

    def digest(self):
        """Says which build of ultari it was."""
        program = self.programs.get("ultari")
        return hashlib.sha256(program.read_bytes()).hexdigest() if program else None
