"""The guest's parts over a shell that answers from a script: what they send, what they read, what they clean up."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_spapr.errors import CommandFailed, GuestError
from pytest_spapr.guest import kernel_log
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.cpus import GuestCpus
from pytest_spapr.guest.memory import GuestMemory
from pytest_spapr.guest.pci import GuestPci, PciFunction
from pytest_spapr.guest.services import DRMGR_BEGAN, DRMGR_ENDED, Drmgr, ErrdState, LockHolder, RtasErrd
from pytest_spapr.guest.shell import first_lines, parse_ranges
from pytest_spapr.timeline import Lane, Record

_CPUS = "/sys/devices/system/cpu"

Answer = Callable[[str], tuple[int, str]]


class ScriptedShell:
    """A guest's shell that answers by a function and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.commands: list[str] = []
        self.usable = True

    def run(self, command: str) -> Completed:
        self.commands.append(command)
        status, out = self.answer(command)
        return Completed(command, status, out, "")

    def read(self, path: str) -> str:
        return self.run(f"cat {path}").check().stdout.strip()


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("0", {0}), ("0-3", {0, 1, 2, 3}), ("0,2-3,7", {0, 2, 3, 7}), ("5\n", {5})]
)
def test_ranges(text: str, numbers: set[int]) -> None:
    assert parse_ranges(text) == numbers


def test_first_lines_are_read_by_a_real_shell(tmp_path: Path) -> None:
    for name, text in (("a1", "one\ntwo\n"), ("a2", "\n"), ("b", "no\n")):
        (tmp_path / name).write_text(text)

    def answer(command: str) -> tuple[int, str]:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    shell = ScriptedShell(answer)
    assert first_lines(shell, f"{tmp_path}/a*") == {f"{tmp_path}/a1": "one", f"{tmp_path}/a2": ""}
    for nothing in ("nothing*", "a1 {}/nothing"):
        with pytest.raises(CommandFailed):
            first_lines(shell, f"{tmp_path}/{nothing.format(tmp_path)}")


def test_cpus_by_hardware_id() -> None:
    base = _CPUS
    listing = f"{base}/present:0,12\n{base}/cpu0/physical_id:0\n{base}/cpu12/physical_id:8\n{base}/cpu3/physical_id:0\n"
    assert GuestCpus(ScriptedShell(lambda _: (0, listing))).by_hardware_id() == {0: 0, 8: 12}


def cpu_lists(ranges: str) -> str:
    return f"{_CPUS}/online:{ranges}\n{_CPUS}/present:{ranges}\n"


def cpus_that_obey() -> ScriptedShell:
    online = {0, 1}

    def answer(command: str) -> tuple[int, str]:
        if "read" in command:
            now = ",".join(map(str, sorted(online)))
            return 0, f"{_CPUS}/present:0-1\n" if "present" in command else f"{_CPUS}/online:{now}\n"
        cpu = int(command.rsplit("/cpu", 1)[1].split("/")[0])
        if "echo 1" in command:
            online.add(cpu)
        else:
            online.discard(cpu)
        return 0, ""

    return ScriptedShell(answer)


def test_offline_cpus_come_back_also_when_the_test_fails() -> None:
    shell = cpus_that_obey()
    cpus = GuestCpus(shell)
    with pytest.raises(ZeroDivisionError), cpus.offline(0):
        assert cpus.online() == {1}
        _ = 1 // 0
    assert cpus.online() == {0, 1}


def test_a_cpu_that_stays_online_is_no_fault_to_test_with() -> None:
    shell = ScriptedShell(lambda command: (0, cpu_lists("0-1") if "read" in command else ""))
    with pytest.raises(GuestError, match=r"CPUs \[0\] are online although"), GuestCpus(shell).offline(0):
        pytest.fail("the block must not run")


def test_nothing_is_sent_to_a_guest_that_cannot_answer() -> None:
    shell = cpus_that_obey()
    with GuestCpus(shell).offline(0):
        shell.usable = False
        sent = len(shell.commands)
    assert len(shell.commands) == sent


def test_memory_blocks_and_total() -> None:
    base = "/sys/devices/system/memory"
    blocks = ScriptedShell(lambda _: (0, f"{base}/memory0/state:online\n{base}/memory4/state:going-offline\n"))
    assert GuestMemory(blocks).blocks() == {0: "online", 4: "going-offline"}
    assert GuestMemory(ScriptedShell(lambda _: (0, "MemTotal:        1000 kB\nMemFree: 1 kB"))).total() == 1_024_000
    with pytest.raises(ValueError, match="no MemTotal"):
        GuestMemory(ScriptedShell(lambda _: (0, "MemFree: 1 kB"))).total()


def test_refused_offlining_is_armed_after_the_first_blocks_and_disarmed() -> None:
    shell = ScriptedShell(lambda _: (0, ""))
    with GuestMemory(shell).offline_refused(after=(4,)):
        armed = list(shell.commands)
    assert [command.split(" > ")[0] for command in armed] == ["echo 0", "echo -12"]
    assert "/memory4/online" in armed[0]
    disarmed = shell.commands[len(armed) :]
    assert disarmed[0].startswith("echo 0 >")
    assert "/memory4/state" in disarmed[1]


def test_without_the_injector_the_fault_is_an_error() -> None:
    shell = ScriptedShell(lambda _: (1, "nonexistent directory"))
    with pytest.raises(CommandFailed, match="nonexistent directory"), GuestMemory(shell).offline_refused():
        pytest.fail("the block must not run")


def test_lmbs_are_removed_by_their_drc_index() -> None:
    shell = ScriptedShell(lambda _: (0, ""))
    GuestMemory(shell).remove(0x80000004)
    assert shell.commands == ["echo 'memory remove index 0x80000004' > /sys/kernel/dlpar"]


def test_pci_functions() -> None:
    shell = ScriptedShell(lambda _: (0, "0000:00:00.0 1af4:1000 virtio-pci\n0000:00:03.0 1af4:1005 \n"))
    assert GuestPci(shell).functions() == {
        "0000:00:00.0": PciFunction("0000:00:00.0", "1af4:1000", "virtio-pci"),
        "0000:00:03.0": PciFunction("0000:00:03.0", "1af4:1005", None),
    }


@pytest.mark.parametrize(
    ("answer", "state"),
    [("", ErrdState.ABSENT), ("State:\tT (stopped)\n", ErrdState.STOPPED), ("State:\tS (sleeping)\n", ErrdState.RUNNING)],
)
def test_the_state_of_rtas_errd(answer: str, state: ErrdState) -> None:
    assert RtasErrd(ScriptedShell(lambda _: (0, answer))).state() is state


def test_an_rtas_errd_that_does_not_die_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_spapr.guest.services._SETTLE_SECONDS", 0.05)
    errd = RtasErrd(ScriptedShell(lambda _: (0, "State:\tS (sleeping)\n")))
    with pytest.raises(GuestError, match="rtas_errd is running, expected absent"), errd.killed():
        pytest.fail("the block must not run")


def test_who_holds_the_lock_of_drmgr() -> None:
    assert Drmgr(ScriptedShell(lambda _: (0, "17 drmgr -c pci -i -s C0\n"))).lock_holder() == LockHolder(
        17, "drmgr -c pci -i -s C0"
    )
    assert Drmgr(ScriptedShell(lambda _: (1, ""))).lock_holder() is None


def test_kernel_log_lines() -> None:
    assert kernel_log.kmsg_text("6,339,5140900,-;NET: Registered; really") == "NET: Registered; really"
    assert kernel_log.kmsg_text(" SUBSYSTEM=pci") == " SUBSYSTEM=pci"
    kernel = Record(0, 0.0, Lane.KERNEL, "pseries-hotplug-cpu: Successfully added CPU PowerPC,POWER9, drc index: 10000001")
    match = kernel_log.says(kernel, kernel_log.CORE_ADDED)
    assert match is not None
    assert int(match["drc"], 16) == 0x10000001
    assert kernel_log.says(Record(0, 0.0, Lane.SSH, kernel.text), kernel_log.CORE_ADDED) is None


def test_drmgr_lines() -> None:
    began = DRMGR_BEGAN.match("drmgr: begin -c pci -a -s 0x40000018 -n -V")
    assert began is not None
    assert "0x40000018" in began["arguments"]
    ended = DRMGR_ENDED.match("drmgr: end 0 -c pci -a -s 0x40000018 -n -V")
    assert ended is not None
    assert ended["status"] == "0"


def test_a_cpu_that_was_removed_meanwhile_is_not_brought_back() -> None:
    def answer(command: str) -> tuple[int, str]:
        return 0, cpu_lists("0") if "read" in command else ""

    shell = ScriptedShell(answer)
    with GuestCpus(shell).offline(1):
        pass
    assert [command for command in shell.commands if "echo 1" in command] == []
