"""One QEMU process with its monitor and its streams. No guest runs here."""

from __future__ import annotations

import gc
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import LaunchMachine, PseriesMachine, QemuBuild, QmpRefused
from pytest_spapr.cells import Cell
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, LaunchFailed, MachineDied
from pytest_spapr.private import private_directory
from pytest_spapr.timeline import Lane, Record

_SECONDS = 30.0
_BLOCKED = re.compile(r"spapr-(slot-\d+|gate|beyond)")


@pytest.fixture
def machine(launch_machine: LaunchMachine) -> PseriesMachine:
    """A machine at ``-S``."""
    return launch_machine(image=None, boot=False)


def await_text(machine: PseriesMachine, pattern: str, *lanes: Lane, since: int = 0) -> Record:
    def decide(record: Record) -> Record | None:
        return record if record.lane in lanes and re.search(pattern, record.text) else None

    return machine.timeline.wait(decide, since=since, deadline=Deadline(_SECONDS), what=pattern)


def texts(machine: PseriesMachine, since: int, *lanes: Lane) -> list[str]:
    return [record.text for record in machine.timeline.since(since, *lanes)]


def held() -> tuple[Counter[str], set[threading.Thread]]:
    """Return what this process has open, and its threads. A socket or a pipe has a number of its own, that no later one gets.

    Not those that are blocked on lock files of slots (``Slots``), for as long as other runs hold these.
    """
    threads = set(threading.enumerate())
    blocked = {thread for thread in threads if _BLOCKED.fullmatch(thread.name)}
    descriptors: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        # That of this very look at them, at least, is closed by now.
        with suppress(FileNotFoundError):
            descriptors[str(descriptor.readlink())] += 1
    descriptors -= Counter(str(private_directory() / thread.name.removeprefix("spapr-")) for thread in blocked)
    return descriptors, threads - blocked


@contextmanager
def nothing_left(cell: Cell) -> Iterator[None]:
    """Have all descriptors and threads that are made inside the ``with`` block end with it. Older ones may end meanwhile."""
    # The next test's machine is made meanwhile.
    if cell.ahead is not None:
        cell.ahead.drop()
    gc.collect()
    descriptors, threads = held()
    yield
    gc.collect()
    descriptors_now, threads_now = held()
    assert descriptors_now - descriptors == Counter()
    assert threads_now - threads == set()


class TestStart:
    def test_it_waits_before_the_first_instruction(self, machine: PseriesMachine) -> None:
        assert machine.status() == "prelaunch"
        assert texts(machine, 0, Lane.CONSOLE) == []

    def test_it_has_the_shape_that_was_asked_for(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(image=None, boot=False, cpus=2, max_cpus=4, memory=512, slots=2, max_memory=1024)
        slots = machine.qmp.execute("query-hotpluggable-cpus")
        assert len(slots) == 4
        assert sum("qom-path" in slot for slot in slots) == 2
        assert machine.qmp.execute("query-memory-size-summary")["base-memory"] == 512 << 20

    def test_seccomp_confines_it(self, machine: PseriesMachine, qemu_build: QemuBuild) -> None:
        if "-sandbox" not in qemu_build.features:
            pytest.skip(f"{qemu_build.version_text} was built without seccomp")
        status = Path(f"/proc/{machine.process.pid}/status").read_text()
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)

    def test_without_an_image_it_has_no_network(self, machine: PseriesMachine) -> None:
        assert machine.qmp.hmp("info network") == ""
        assert machine.qmp.hmp("info usernet") == ""

    def test_nothing_was_deprecated_or_warned_of(self, machine: PseriesMachine) -> None:
        assert texts(machine, 0, Lane.STDERR) == []

    def test_two_at_once_are_strangers(self, launch_machine: LaunchMachine) -> None:
        one, other = launch_machine(image=None, boot=False), launch_machine(image=None, boot=False)
        one.kill()
        assert one.timeline.ended is not None
        assert other.timeline.ended is None
        assert other.status() == "prelaunch"


class TestFirmware:
    """Where there is nothing to boot."""

    def test_slof_stays_at_its_prompt(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(image=None)
        await_text(machine, "FW Version = ", Lane.CONSOLE)
        assert machine.running

    def test_vof_gives_up_and_the_machine_stays(self, launch_machine: LaunchMachine, qemu_build: QemuBuild) -> None:
        if "x-vof" not in qemu_build.features:
            pytest.skip(f"{qemu_build.version_text} has no VOF")
        machine = launch_machine(image=None, firmware="vof")
        await_text(machine, "^STOP", Lane.EVENT)
        assert not machine.running
        assert machine.timeline.ended is None

    def test_a_reset_begins_again(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(image=None)
        await_text(machine, "FW Version = ", Lane.CONSOLE)
        since = machine.timeline.mark()
        machine.reset()
        await_text(machine, "FW Version = ", Lane.CONSOLE, since=since)

    def test_stop_and_cont(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(image=None)
        with machine.paused():
            assert machine.status() == "paused"
        assert machine.status() == "running"


class TestMonitor:
    """What QEMU says, and when."""

    def test_a_plug_and_an_unplug_are_traced(self, machine: PseriesMachine, qemu_build: QemuBuild) -> None:
        """At ``-S`` no guest ever saw the device: QEMU takes it back at once, and tells before it answers."""
        if "memory-unplug-before-cas" not in qemu_build.features:
            pytest.skip(f"{qemu_build.version_text} lets no DIMM go before a guest said that it can")
        qmp = machine.qmp
        qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "mm", "size": 256 << 20})
        since = machine.timeline.mark()
        qmp.execute("device_add", {"driver": "pc-dimm", "id": "d", "memdev": "mm"})
        qmp.execute("device_del", {"id": "d"})
        assert texts(machine, since, Lane.QMP, Lane.EVENT) == [
            '-> device_add {"driver": "pc-dimm", "id": "d", "memdev": "mm"}',
            "<- {}",
            '-> device_del {"id": "d"}',
            "DEVICE_DELETED device=d path=/machine/peripheral/d",
            "<- {}",
        ]
        # The traces come through another pipe, a moment later or sooner.
        request = await_text(machine, "^spapr_drc_unplug_request", Lane.DRC, since=since)
        [attach] = [record for record in machine.timeline.since(since, Lane.DRC) if "attach" in record.text]
        assert attach.data is not None
        assert request.data == {"event": "spapr_drc_unplug_request", "drc": attach.data["drc"]}
        # The first LMB behind 1 GiB.
        assert attach.data == {"event": "spapr_drc_attach", "drc": 0x80000004}

    def test_a_refusal_has_qemus_words(self, machine: PseriesMachine) -> None:
        with pytest.raises(QmpRefused) as refusal:
            machine.qmp.execute("device_del", {"id": "nope"})
        assert (refusal.value.error_class, refusal.value.description) == ("DeviceNotFound", "Device 'nope' not found")
        assert machine.status() == "prelaunch"

    def test_a_large_answer(self, machine: PseriesMachine) -> None:
        assert len(machine.qmp.execute("query-qmp-schema")) > 500

    def test_from_many_threads(self, machine: PseriesMachine) -> None:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(machine.status())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["prelaunch"] * 8


class TestEnd:
    """However QEMU ends, whoever waits is told at once."""

    def test_quit(self, machine: PseriesMachine) -> None:
        machine.quit()
        assert machine.process.exit_status == 0
        with pytest.raises(MachineDied, match="was ended by the test, it ended with status 0"):
            machine.status()

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV], ids=lambda number: number.name)
    def test_killed_while_a_test_waits(self, machine: PseriesMachine, number: signal.Signals) -> None:
        waiting = threading.Event()
        killed: list[float] = []

        def kill() -> None:
            waiting.wait(_SECONDS)
            killed.append(time.monotonic())
            os.kill(machine.process.pid, number)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(MachineDied, match=f"QEMU \\(pid {machine.process.pid}\\) was killed by {number.name}"):
            machine.timeline.wait(lambda _: waiting.set(), since=0, deadline=Deadline(60), what="a thing that never comes")
        killer.join()
        assert time.monotonic() - killed[0] < 2
        with pytest.raises(MachineDied):
            machine.status()

    def test_closing_twice_and_after_death(self, machine: PseriesMachine) -> None:
        machine.kill()
        machine.close()
        machine.close()

    def test_nothing_stays_behind(self, launch_machine: LaunchMachine, spapr_cell: Cell) -> None:
        launch_machine(image=None, boot=False).close()
        with nothing_left(spapr_cell):
            for _ in range(3):
                machine = launch_machine(image=None)
                machine.close()
                assert not Path(f"/proc/{machine.process.pid}").exists()


_PARENT = textwrap.dedent(
    """
    import json, sys
    from pytest_spapr.qemu.process import QemuProcess
    from pytest_spapr.timeline import Timeline
    command, env = json.loads(sys.argv[1])
    process = QemuProcess([*command, "-machine", "none", "-nodefaults", "-display", "none", "-S"], Timeline(), env=env)
    print(process.pid, flush=True)
    sys.stdin.read()
    """
)


def test_it_dies_with_a_parent_that_is_killed(qemu_build: QemuBuild) -> None:
    given = json.dumps([qemu_build.command, dict(qemu_build.env)])
    with subprocess.Popen([sys.executable, "-c", _PARENT, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        qemu = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        # A descriptor of a process is readable when that has ended.
        assert select.select([qemu], [], [], _SECONDS)[0]
    finally:
        os.close(qemu)


class TestRefusedStart:
    """Of a machine that cannot be: clear words, and nothing left."""

    def test_a_machine_type_that_is_not_there(self, launch_machine: LaunchMachine, qemu_build: QemuBuild) -> None:
        with pytest.raises(ConfigError, match=r"machine='pseries-0\.1': .* has no such machine type; it has pseries, pseries-"):
            launch_machine(image=None, machine="pseries-0.1")

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ({"qemu_args": ("-nonsense",)}, "-nonsense: invalid option"),
            ({"cpu": "z80"}, "z80"),
            ({"max_cpus": 1 << 20}, "Invalid SMP CPUs 1048576"),
        ],
        ids=["option", "cpu", "cpus"],
    )
    def test_what_qemu_refuses(self, launch_machine: LaunchMachine, spapr_cell: Cell, shape: dict[str, Any], words: str) -> None:
        with nothing_left(spapr_cell), pytest.raises(LaunchFailed) as failed:
            launch_machine(image=None, **shape)
        text = str(failed.value)
        assert "QEMU did not start: ended with status 1." in text
        assert words in "\n".join(failed.value.stderr)
        [line] = re.findall(r"^It was started as: (.*)$", text, re.MULTILINE)
        assert "-nodefaults" in shlex.split(line)
