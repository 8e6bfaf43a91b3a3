"""What was done to a machine as a script: what is read from a timeline, and what the script does to a QEMU, here a fake one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.errors import MachineDied
from pytest_spapr.guest.completed import Completed, record_answer, record_command
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.qmp import event_text
from pytest_spapr.qemu.trace import parse_drc_event
from pytest_spapr.record.scenario import Await, Execute, InGuest, Scenario, Unrecordable, recorded
from pytest_spapr.record.script import script
from pytest_spapr.report import scripts
from pytest_spapr.timeline import Lane, Timeline

from . import fake_qemu

_SECONDS = 60.0
_ADD = {"driver": "virtio-rng-pci", "id": "rng0"}
_LEFT: dict[str, Any] = {"qom-list": [{"return": [{"name": "type"}, {"name": "rng0"}]}]}
_GONE: dict[str, Any] = {"qom-list": [{"return": [{"name": "type"}]}]}
_DELETED = {"event": ["DEVICE_DELETED", {"device": "rng0", "path": "/machine/peripheral/rng0"}]}
_REMOVED = Scenario(
    boots=False,
    steps=(
        Execute("device_add", _ADD, 0.0, None),
        Await(("configured 0x40000018",)),
        Execute("device_del", {"id": "rng0"}, 0.05, None),
        Await(("event DEVICE_DELETED rng0",)),
    ),
    left=(),
    lasts=0.0,
    dies=False,
)
_SOUND = {
    "device_add": [{"return": {}}, {"stderr": "spapr_drc_set_configured drc: 0x40000018"}],
    "device_del": [{"return": {}}, _DELETED],
    **_GONE,
}


class Told:
    """A timeline that is told what happens, at times of a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timeline = Timeline(clock=lambda: self.now)
        self._sent = 0

    def qmp(self, name: str, arguments: Mapping[str, Any] | None = None, error: str | None = None, seconds: float = 0.01) -> None:
        self._sent += 1
        asked: dict[str, Any] = {"execute": name, "id": str(self._sent)}
        if arguments:
            asked["arguments"] = dict(arguments)
        self.timeline.record(Lane.QMP, f"-> {name}", asked)
        self.now += seconds
        answer: dict[str, Any] = {"return": {}} if error is None else {"error": {"class": "GenericError", "desc": error}}
        self.timeline.record(Lane.QMP, "<-", {**answer, "id": asked["id"]})

    def guest(self, command: str, status: int = 0, lane: Lane = Lane.SSH) -> None:
        record_command(self.timeline, lane, command)
        self.now += 0.01
        record_answer(self.timeline, lane, Completed(command, status, "", ""), 0.01)

    def event(self, name: str, **data: str) -> None:
        body = {"event": name, "data": data}
        self.timeline.record(Lane.EVENT, event_text(body), body)

    def trace(self, line: str) -> None:
        self.timeline.record(Lane.DRC, line, parse_drc_event(line))

    def read(self, *, since: int = 0, left: tuple[str, ...] = (), dies: bool = False) -> Scenario:
        records = self.timeline.since(since)
        return recorded(records, boots=True, left=left, ended=self.now, dies=dies)


def _build(command: list[str]) -> QemuBuild:
    return QemuBuild(
        name="fake",
        command=tuple(command),
        env={"SPAPR_TEST": "1"},
        binary=Path("qemu"),
        version=(7, 2, 22),
        package=None,
        machines=frozenset({"pseries"}),
        accelerators=frozenset({"tcg"}),
        features=frozenset(),
        devices=frozenset(),
        sha256="0",
    )


def test_what_changes_something_is_a_step_and_what_came_of_it_is_awaited() -> None:
    told = Told()
    told.qmp("query-status")
    for name in ("add-fd", "xen-save-devices-state", "remove-fd"):
        told.qmp(name, {"fdset-id": 1})
    told.qmp("device_add", _ADD)
    told.trace("spapr_drc_set_configured drc: 0x40000018")
    told.timeline.record(Lane.SERVICE, "drmgr: end 0 -c pci -a -s 0x40000018")
    told.timeline.record(Lane.KERNEL, "pci 0000:00:03.0: BAR 0: assigned")
    told.timeline.record(Lane.KERNEL, "pseries-hotplug-cpu: Successfully added CPU PowerPC,POWER9, drc index: 10000001")
    told.timeline.record(Lane.KERNEL, "Memory at 40000000 (drc index 80000004) was hot-added")
    told.guest("echo 1 > /sys/devices/system/memory/memory0/online", lane=Lane.SHELL)
    told.guest("cat /sys/devices/system/cpu/online", lane=Lane.SHELL)
    told.guest("false\ntrue | cat", status=3)
    told.now += 2
    told.qmp("device_del", {"id": "rng0"}, error="Device 'rng0' not found")
    told.event("DEVICE_DELETED", device="rng0", path="/machine/peripheral/rng0")
    told.event("NIC_RX_FILTER_CHANGED", path="/machine")
    told.now += 1.5
    assert told.read(left=("b", "a")) == Scenario(
        boots=True,
        steps=(
            Execute("device_add", _ADD, 0.0, None),
            Await(
                (
                    "configured 0x40000018",
                    "guest drmgr: end 0 -c pci -a -s 0x40000018",
                    "guest's kernel: pseries-hotplug-cpu: Successfully added CPU PowerPC,POWER9, drc index: 10000001",
                    "guest's kernel: Memory at 40000000 (drc index 80000004) was hot-added",
                )
            ),
            InGuest("echo 1 > /sys/devices/system/memory/memory0/online", 0.0, None),
            InGuest("false\ntrue | cat", 0.0, 3),
            Execute("device_del", {"id": "rng0"}, 2.0, "Device 'rng0' not found"),
            Await(("event DEVICE_DELETED rng0",)),
        ),
        left=("a", "b"),
        lasts=1.5,
        dies=False,
    )


def test_an_event_that_overtakes_its_commands_answer_is_awaited_behind_it() -> None:
    told = Told()
    told.timeline.record(Lane.QMP, "->", {"execute": "device_del", "arguments": {"id": "x"}, "id": "1"})
    told.event("DEVICE_DELETED", device="x")
    told.timeline.record(Lane.QMP, "<-", {"return": {}, "id": "1"})
    assert told.read().steps == (Execute("device_del", {"id": "x"}, 0.0, None), Await(("event DEVICE_DELETED x",)))


def test_only_what_came_after_the_machine_was_there_counts() -> None:
    told = Told()
    told.qmp("cont")
    since = told.timeline.mark()
    told.qmp("stop")
    assert [step.name for step in told.read(since=since).steps if isinstance(step, Execute)] == ["stop"]


@pytest.mark.parametrize("name", ["getfd", "migrate", "migrate-set-capabilities", "snapshot-save", "blockdev-add"])
def test_what_only_the_test_has_cannot_be_recorded(name: str) -> None:
    told = Told()
    told.qmp(name, {"name": "x"})
    with pytest.raises(Unrecordable, match=f"{name} refers to what only the test has"):
        told.read()


def test_what_was_never_answered_cannot_be_recorded_unless_qemu_died_of_it() -> None:
    told = Told()
    told.timeline.record(Lane.QMP, "->", {"execute": "stop", "id": "1"})
    with pytest.raises(Unrecordable, match="`stop` was never answered"):
        told.read()
    assert told.read(dies=True).steps == (Execute("stop", {}, 0.0, None),)
    other = Told()
    record_command(other.timeline, Lane.SSH, "sleep 1000")
    with pytest.raises(Unrecordable, match="`sleep 1000` was never answered"):
        other.read()


def test_a_monitor_line_that_asks_is_no_step_and_one_that_does_something_is() -> None:
    told = Told()
    told.qmp("human-monitor-command", {"command-line": "info qtree"})
    told.qmp("human-monitor-command", {"command-line": "nmi"})
    assert [step.arguments for step in told.read().steps if isinstance(step, Execute)] == [{"command-line": "nmi"}]


# The script


def _written(tmp_path: Path, scenario: Scenario, qemu: Mapping[str, Any]) -> Path:
    text = script(scenario, "What a test did.", "scenario.py", _build(fake_qemu.command(qemu)), MachineSpec(), None)
    path = tmp_path / "scenario.py"
    # What does not come is waited for.
    path.write_text(text.replace("SECONDS = 180.0", "SECONDS = 2.0").replace("SECONDS = 10.0", "SECONDS = 1.0"), encoding="utf-8")
    return path


def _run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where this package cannot be imported."""
    code = (
        "import runpy, sys; sys.modules['pytest_spapr'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)


def test_a_script_does_again_what_was_done_and_needs_nothing_of_this_package(tmp_path: Path) -> None:
    done = _run(_written(tmp_path, _REMOVED, _SOUND))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "device_add {'driver': 'virtio-rng-pci', 'id': 'rng0'}"
    # An event may come before the answer.
    assert sorted(lines[1:3]) == ["    -> accepted", "    configured 0x40000018"]
    assert lines[3] == "device_del {'id': 'rng0'}"
    assert sorted(lines[4:6]) == ["    -> accepted", "    event DEVICE_DELETED rng0"]
    assert lines[6:] == ["as it was recorded"]


@pytest.mark.parametrize(
    ("qemu", "says"),
    [
        ({"device_del": [{"error": ["GenericError", "no"]}]}, "DIFFERENT: device_del was accepted"),
        ({"device_del": [{"return": {}}]}, "DIFFERENT: did not come: event DEVICE_DELETED rng0"),
        ({"device_add": [{"return": {}}]}, "DIFFERENT: did not come: configured 0x40000018"),
        (
            {"device_del": [{"return": {}}, _DELETED, _DELETED]},
            "DIFFERENT: came, and was not recorded: event DEVICE_DELETED rng0",
        ),
        (_LEFT, "DIFFERENT: devices left: none when it was recorded, now rng0"),
        ({"device_del": [{"signal": 11}]}, "DIFFERENT: QEMU lived when it was recorded"),
        ({"device_del": [{"return": {}}, {"exit": 1}]}, "DIFFERENT: QEMU lived when it was recorded"),
        (
            {"device_del": [{"hang_up": True}]},
            "DIFFERENT: QEMU's monitor broke off, and QEMU lives: Disconnected",
        ),
        ({"device_del": [{"hang": True}]}, "DIFFERENT: device_del was not answered within 2 s"),
    ],
)
def test_a_qemu_that_does_otherwise_is_told(tmp_path: Path, qemu: Mapping[str, Any], says: str) -> None:
    done = _run(_written(tmp_path, _REMOVED, {**_SOUND, **qemu}))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == says
    assert done.stderr == ""


def test_a_death_is_reproduced(tmp_path: Path) -> None:
    steps = (Execute("device_add", _ADD, 0.0, None), Execute("device_del", {"id": "rng0"}, 0.0, None))
    dying = Scenario(boots=False, steps=steps, left=(), lasts=0.0, dies=True, status=-11)
    done = _run(_written(tmp_path, dying, {"device_del": [{"signal": 11}]}))
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["QEMU ended with status -11", "as it was recorded"])
    lives = _run(_written(tmp_path, dying, _GONE))
    assert lives.stdout.splitlines()[-1] == "DIFFERENT: QEMU ended when it was recorded"


@pytest.mark.parametrize(
    ("qemu", "says"),
    [
        (
            {"device_add": [{"signal": 11}]},
            "DIFFERENT: QEMU ended after 1 of the 2 commands that it had when it was recorded",
        ),
        (
            {"device_add": [{"return": {}}, {"exit": 1}]},
            "DIFFERENT: QEMU ended after 1 of the 2 commands that it had when it was recorded",
        ),
        ({"device_del": [{"signal": 6}]}, "DIFFERENT: QEMU ended with status -11 when it was recorded"),
        ({"device_del": [{"exit": 1}]}, "DIFFERENT: QEMU ended with status -11 when it was recorded"),
    ],
)
def test_another_death_than_the_one_on_record_is_told(tmp_path: Path, qemu: Mapping[str, Any], says: str) -> None:
    # What came after the deadly command had been sent is no command: it may come or not.
    steps = (Execute("device_add", _ADD, 0.0, None), Await(("event RESET",)), Execute("device_del", {"id": "rng0"}, 0.0, None))
    reset = {"event": ["RESET", {}]}
    sound = {"device_add": [{"return": {}}, reset], "device_del": [{"signal": 11}]}
    dying = Scenario(boots=False, steps=(*steps, Await(("event RESET",))), left=(), lasts=0.0, dies=True, status=-11)
    assert _run(_written(tmp_path, dying, sound)).returncode == 0
    done = _run(_written(tmp_path, dying, {**sound, **qemu}))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, says)


def test_a_script_whose_reader_has_seen_enough_ends_at_once_with_its_qemu(tmp_path: Path) -> None:
    path = _written(tmp_path, _REMOVED, _SOUND)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, str(path)], stdout=writer, stderr=subprocess.PIPE, timeout=_SECONDS, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_qemu_can_be_given(tmp_path: Path) -> None:
    path = _written(tmp_path, _REMOVED, _SOUND)
    refuses = fake_qemu.command({**_SOUND, "device_add": [{"error": ["GenericError", "no"]}]})
    assert _run(path, *refuses).stdout.splitlines()[-1] == "DIFFERENT: device_add was accepted"


def test_an_event_more_of_a_kind_that_was_recorded_is_told_too(tmp_path: Path) -> None:
    silent = Scenario(boots=False, steps=_REMOVED.steps[:3], left=("rng0",), lasts=0.2, dies=False)
    done = _run(_written(tmp_path, silent, {**_SOUND, **_LEFT}))
    assert done.stdout.splitlines()[-1] == "DIFFERENT: came, and was not recorded: event DEVICE_DELETED rng0"


def test_the_image_may_be_elsewhere_and_the_line_is_read_as_a_shell_would() -> None:
    directory = Path("/some where/debian-12")
    image: Any = SimpleNamespace(
        name="debian-12",
        console_shell=True,
        directory=directory,
        kernel=directory / "vmlinux",
        initramfs=directory / "initramfs.cpio",
        disk=None,
    )
    text = script(_REMOVED, "", "x", _build(["qemu", "-L", "a b"]), MachineSpec(), image)
    assert "\"command\": ['qemu', \"-L 'a b'\"]" in text
    assert "'-kernel @image@/vmlinux'" in text
    assert "\"image\": '/some where/debian-12'" in text
    assert "/vmlinux'" not in text.replace("@image@/vmlinux'", "")


def test_a_machine_whose_guest_is_played_or_whose_image_has_no_shell_has_no_script() -> None:
    build = _build(["qemu"])
    with pytest.raises(Unrecordable, match="played by the test"):
        script(_REMOVED, "", "x", build, MachineSpec(qemu_args=("-qtest", "unix:/x")), None)
    image: Any = SimpleNamespace(name="mine", console_shell=False)
    with pytest.raises(Unrecordable, match="keeps no shell"):
        script(_REMOVED, "", "x", build, MachineSpec(), image)


# Of a test


class Machine:
    """As much of a machine as a script is made from."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.qmp = self

    def execute(self, name: str, arguments: Any) -> Any:
        self.told.qmp(name, arguments)
        return [{"name": "type"}, {"name": "rng0"}]


def _launch(told: Told, **more: Any) -> Any:
    facts = {"machine": Machine(told), "timeline": told.timeline, "build": _build(["qemu"]), "spec": MachineSpec(), "image": None}
    return SimpleNamespace(**{**facts, "began": 0, "booted": False, **more})


def test_each_machine_of_a_test_has_a_script_beside_its_other_files(tmp_path: Path) -> None:
    first, second, third = Told(), Told(), Told()
    first.qmp("device_add", _ADD)
    second.qmp("stop")
    third.qmp("getfd", {"fdname": "x"})
    written, reasons = scripts.write(tmp_path, [_launch(one) for one in (first, second, third)], "test_it")
    assert written == [str(tmp_path / "scenario.py"), str(tmp_path / "machine-2/scenario.py")]
    assert reasons == ["getfd refers to what only the test has"]
    text = (tmp_path / "scenario.py").read_text()
    assert "What test_it did to machine 1: QEMU 7.2.22, tcg." in text
    assert "\"left\": ['rng0']" in text
    assert "pytest_spapr" not in text
    assert (tmp_path / "scenario.py").stat().st_mode & 0o100


def test_a_qemu_that_died_has_a_script_and_one_that_the_test_killed_has_none(tmp_path: Path) -> None:
    died, killed, quit_ = Told(), Told(), Told()
    died.qmp("device_add", _ADD)
    died.timeline.end(MachineDied("QEMU (pid 1) was killed by SIGABRT", -6))
    killed.timeline.end(MachineDied("QEMU (pid 1) was ended by the test, it was killed by SIGKILL", -9))
    quit_.timeline.record(Lane.QMP, "-> quit", {"execute": "quit", "id": "7"})
    quit_.timeline.end(MachineDied("QEMU (pid 1) was ended by the test, it ended with status 0", 0))
    written, reasons = scripts.write(tmp_path, [_launch(one) for one in (died, killed, quit_)], "test_it")
    assert len(written) == 2
    assert reasons == ["the test killed QEMU"]
    text = Path(written[0]).read_text()
    assert '"dies": True' in text
    assert '"status": -6' in text


def test_a_machine_that_did_not_start_has_none(tmp_path: Path) -> None:
    assert scripts.write(tmp_path, [_launch(Told(), machine=None)], "test_it") == ([], ["the machine did not start"])


def test_a_script_that_is_terminated_leaves_no_qemu(tmp_path: Path) -> None:
    hangs = {**_SOUND, "device_add": [{"hang": True}]}
    path = _written(tmp_path, _REMOVED, hangs)
    path.write_text(path.read_text().replace("SECONDS = 2.0", "SECONDS = 60.0"))
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("device_add")
        qemu = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        process.terminate()
        process.wait(_SECONDS)
    assert fake_qemu.gone(qemu)
