"""OVS-DPDK as Debian packages it, tracked: attached to, and spawned as the daemon that it is.

    python tests/autotests/ovs.py [attach] [daemon]

Installs openvswitch-switch-dpdk and openvswitch-common where they are missing, takes 1024 hugepages (2 GiB) and gives
them back; needs root. Every step compares what is tracked with what OVS itself says of DPDK's heap. Prints a line a step;
the exit status is 0 if all of them are right, there is no bad free, and nothing stays in OVS.

attach: 50 port cycles, a dump, leaving. daemon: spawned with `--detach --monitor` and --follow-fork; its worker is killed,
restarted by its monitor, and told to exit.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from frida_rtetrack import Host, Observer, Options
from frida_rtetrack.reports.dump import read_dump
from frida_rtetrack.tracking.badfree import BadFreeReport

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
PACKAGES = ("openvswitch-switch-dpdk", "openvswitch-common")
HUGEPAGES, HUGETLBFS = Path("/proc/sys/vm/nr_hugepages"), Path("/dev/hugepages")
PAGES_WANTED = 1024
CYCLES = 50
PATIENCE_S = 60.0


class Findings(Observer):
    """What the session tells of."""

    def __init__(self) -> None:
        self.bad: list[BadFreeReport] = []
        self.problems: list[str] = []

    def bad_free(self, report: BadFreeReport) -> None:
        self.bad.append(report)

    def problem(self, text: str) -> None:
        self.problems.append(text)


class Steps:
    """Prints each step and whether it is right."""

    def __init__(self) -> None:
        self.wrong = 0

    def check(self, right: bool, what: str) -> None:
        self.wrong += not right
        click.echo(f"{'ok  ' if right else 'BAD '} {what}")


class Switch:
    """One Open vSwitch in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {name: str(folder) for name in ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR")}
        self.database = f"unix:{folder}/db.sock"
        self.command("ovsdb-tool", "create", folder / "conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
        self.command(
            "ovsdb-server",
            folder / "conf.db",
            f"--remote=punix:{folder}/db.sock",
            "--detach",
            "-vconsole:off",
            "--pidfile",
            "--log-file",
        )
        self.vsctl("--no-wait", "init")
        other = ("dpdk-init=true", "dpdk-extra=--no-pci", "dpdk-socket-mem=512")
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *(f"other_config:{each}" for each in other))

    def command(self, *words: object) -> str:
        done = subprocess.run(
            list(map(str, words)), env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        if done.returncode:
            raise click.ClickException(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout

    def vsctl(self, *words: object) -> str:
        return self.command("ovs-vsctl", f"--db={self.database}", "--timeout=50", *words)

    def appctl(self, *words: object) -> str:
        return self.command("ovs-appctl", "-t", self.folder / "ctl", *words)

    @property
    def worker(self) -> int:
        """The pid of the process that has DPDK."""
        return int((self.folder / "ovs-vswitchd.pid").read_text())

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError, click.ClickException):
            return bool(self.appctl("dpdk/get-malloc-stats"))
        return False

    def busy_blocks(self) -> int:
        """How many blocks DPDK's own heaps have handed out."""
        return sum(map(int, re.findall(r"Alloc_count:\s*(\d+)", self.appctl("dpdk/get-malloc-stats"))))

    def add_bridge(self) -> None:
        self.vsctl("--may-exist", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")

    def cycle_port(self, number: int) -> None:
        name, device = f"p{number}", f"options:dpdk-devargs=net_null{number % 4}"
        self.vsctl("add-port", "br0", name, "--", "set", "Interface", name, "type=dpdk", device)
        self.vsctl("del-port", "br0", name)

    def close(self) -> None:
        """Ends its database, and what is left of it."""
        for name in ("ovs-vswitchd.pid", "ovsdb-server.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / name).read_text()), signal.SIGTERM)


def foreign(pid: int) -> list[str]:
    """What of Frida's or ours is mapped in a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [line for line in maps.splitlines() if re.search(r"frida|rtetrack-session|memfd:.*(agent|JIT)", line)]


def resident_mib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) >> 10 if found else 0


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise click.ClickException(f"It did not come true in {PATIENCE_S:.0f} s: {what}.")
        time.sleep(0.1)


def attach(switch: Switch, steps: Steps) -> None:
    """Attach, port cycles, dump, leave."""
    process = subprocess.Popen(
        [
            VSWITCHD,
            switch.database,
            f"--pidfile={switch.folder}/ovs-vswitchd.pid",
            f"--unixctl={switch.folder}/ctl",
            "--log-file",
        ],
        env=switch.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(switch.is_ready, "OVS answers")
        switch.add_bridge()
        pid, told = switch.worker, Findings()
        threads, before = len(os.listdir(f"/proc/{pid}/task")), resident_mib(pid)
        dump = switch.folder / "dump.csv"
        with Host.attach(pid, Options(verify=True, dump_path=dump), told) as host:
            check_verify(host, steps, f"attached, {host.tracking.live_blocks} blocks live")
            for number in range(CYCLES):
                switch.cycle_port(number)
                if number % 10 == 9:
                    check_verify(host, steps, f"{number + 1} port cycles")
            path, blocks = host.dump()
            rows = len(read_dump(path))
            steps.check(
                rows == blocks == switch.busy_blocks(), f"dump: {rows} rows, OVS says {switch.busy_blocks()} blocks"
            )
            during = resident_mib(pid)
            host.detach()
            steps.check(host.verified is not None and not host.verified, "left, verify was empty")
            steps.check(host.lost == 0, f"{host.lost} events lost")
        check_told(told, steps)
        eventually(lambda: not foreign(pid), "nothing of ours is mapped")
        now = len(os.listdir(f"/proc/{pid}/task"))
        steps.check(
            now <= threads,
            f"threads: {threads} before, {now} after; resident MiB: {before} before, {during} attached, {resident_mib(pid)} after",
        )
        switch.cycle_port(0)
        switch.appctl("exit")
        steps.check(process.wait(PATIENCE_S) == 0, "OVS works on and exits")
    finally:
        process.kill()
        process.wait()


def check_verify(host: Host, steps: Steps, when: str) -> None:
    found = host.verify()
    steps.check(
        found is not None and not found,
        f"{when}: verify "
        + (f"{len(found.missing)} missing, {len(found.unexpected)} unexpected" if found else "empty"),
    )


def check_told(told: Findings, steps: Steps) -> None:
    steps.check(not told.bad, f"{len(told.bad)} bad frees")
    steps.check(not told.problems, f"problems told: {told.problems or 'none'}")


def daemon(switch: Switch, steps: Steps) -> None:
    """Spawned, its worker killed and restarted, told to exit."""
    told = Findings()
    command = [
        VSWITCHD,
        switch.database,
        "--detach",
        "-vconsole:off",
        "--monitor",
        f"--pidfile={switch.folder}/ovs-vswitchd.pid",
        f"--unixctl={switch.folder}/ctl",
        "--log-file",
    ]
    os.environ.update(switch.environment)
    with Host.spawn(
        command, Options(verify=True, follow_fork=True, dump_path=switch.folder / "dump.csv"), told
    ) as host:
        eventually(switch.is_ready, "OVS answers")
        switch.add_bridge()
        check_count(host, switch, steps, "spawned")
        for number in range(10):
            switch.cycle_port(number)
        check_count(host, switch, steps, "10 port cycles")
        first = switch.worker
        os.kill(first, signal.SIGSEGV)
        eventually(lambda: switch.worker != first and switch.is_ready(), "the monitor has started another worker")
        check_count(host, switch, steps, f"worker {first} killed, {switch.worker} runs")
        for number in range(10):
            switch.cycle_port(number)
        check_count(host, switch, steps, "10 port cycles of the new worker")
        worker = switch.worker
        switch.appctl("exit")
        eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker has ended")
        steps.check(host.wait(PATIENCE_S), "everything has ended")
        found = host.verified
        steps.check(
            found is not None and not found,
            "exit: verify by the worker at its end "
            + (
                "not taken"
                if found is None
                else f"{len(found.missing)} missing, {len(found.unexpected)} unexpected of {found.busy}"
            ),
        )
        steps.check(host.lost == 0, f"{host.lost} events lost")
    check_told(told, steps)


def check_count(host: Host, switch: Switch, steps: Steps, when: str) -> None:
    """A forked child cannot be asked by us: OVS is."""
    deadline = time.monotonic() + 5
    while True:
        busy = switch.busy_blocks()
        host.sync()
        live = host.tracking.live_blocks
        if live == busy or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    steps.check(live == busy, f"{when}: {live} blocks live, OVS says {busy}")


@contextlib.contextmanager
def hugepages() -> Iterator[None]:
    """PAGES_WANTED free hugepages and a mount for them; given back afterwards."""
    before = HUGEPAGES.read_text()
    mounted = not os.path.ismount(HUGETLBFS)
    free = re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())
    HUGEPAGES.write_text(str(int(before) + max(PAGES_WANTED - int(free[1] if free else 0), 0)))
    try:
        if mounted:
            HUGETLBFS.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "hugetlbfs", "nodev", str(HUGETLBFS)], check=True)
        yield
    finally:
        for page in HUGETLBFS.glob("rtemap_*"):
            page.unlink()
        if mounted:
            subprocess.run(["umount", str(HUGETLBFS)])
        HUGEPAGES.write_text(before)


def install() -> None:
    """Debian's packages, without starting their services."""
    if not Path(VSWITCHD).exists() or not shutil.which("ovs-vsctl"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES], check=True, env=environment
        )


SCENARIOS: dict[str, Callable[[Switch, Steps], None]] = {"attach": attach, "daemon": daemon}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SCENARIOS)))
def main(names: tuple[str, ...]) -> None:
    """Track OVS-DPDK in the scenarios NAMES (default: all)."""
    if os.geteuid() != 0:
        raise click.ClickException("Hugepages and OVS-DPDK need root.")
    install()
    steps = Steps()
    for name in names or tuple(SCENARIOS):
        click.echo(f"== {name}")
        with hugepages(), tempfile.TemporaryDirectory() as folder:
            switch = Switch(Path(folder))
            try:
                SCENARIOS[name](switch, steps)
            finally:
                switch.close()
                time.sleep(1)
    click.echo(f"{steps.wrong} steps wrong")
    sys.exit(bool(steps.wrong))


if __name__ == "__main__":
    main()
