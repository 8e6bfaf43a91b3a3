"""Which shell a guest's command goes through, and when it is sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from pytest_spapr.deadline import Deadline, budgets
from pytest_spapr.errors import BootFailed, CommandFailed, DeadlineExpired, MachineError, ShellFailed
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.console import ShellAbsent
from pytest_spapr.guest.guest import Guest
from pytest_spapr.timeline import Lane, Timeline


class FakeShell:
    """ssh or console: remembers what it was asked, and answers or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.connected = True
        self.commands: list[str] = []
        self.told: list[Any] = []
        self.error = error

    def run(self, command: str, _: Deadline) -> Completed:
        self.commands.append(command)
        if self.error:
            raise self.error
        return Completed(command, 0, "", "")

    def forget(self) -> None:
        self.told.append("forget")

    def hang_up(self) -> None:
        self.told.append("hang up")

    def ended(self, pid: int) -> None:
        self.told.append(pid)


class Rig:
    def __init__(
        self, *, console: FakeShell | None, ssh: FakeShell | None = None, running: bool = True, boot: float = 20
    ) -> None:
        self.timeline = Timeline()
        self.ssh = ssh or FakeShell()
        self.console = console
        limits = replace(budgets("tcg"), boot=boot)
        # What a guest needs of its two shells, and no more.
        shells: tuple[Any, Any] = (self.ssh, console)
        self.guest = Guest(*shells, len, self.timeline, limits, kernel_release="6.1", running=lambda: running)
        self.timeline.listen(self.guest.hear)

    def event(self, name: str) -> None:
        self.timeline.record(Lane.EVENT, name, {"event": name})


def test_a_tests_commands_go_through_ssh_and_the_plugins_own_do_not() -> None:
    rig = Rig(console=FakeShell())
    rig.guest.run("mine")
    rig.guest.settle()
    rig.guest.read("/x")
    assert rig.console
    assert rig.ssh.commands == ["mine"]
    assert rig.console.commands == ["echo 1 > /sys/devices/system/memory/memory0/online", "cat /x"]


def test_an_image_without_a_console_shell_has_ssh() -> None:
    rig = Rig(console=None)
    for name in ("RESET", "SHUTDOWN"):
        rig.event(name)
    rig.guest.ask("x")
    assert rig.ssh.commands == ["x"]


def test_what_was_not_sent_goes_through_ssh() -> None:
    rig = Rig(console=FakeShell(ShellAbsent("no answer")))
    assert rig.guest.ask("x").status == 0
    assert rig.ssh.commands == ["x"]


@pytest.mark.parametrize("error", [ShellFailed("killed"), DeadlineExpired("x", 1)], ids=repr)
def test_what_may_have_been_done_is_not_done_again(error: Exception) -> None:
    rig = Rig(console=FakeShell(error))
    with pytest.raises(type(error)):
        rig.guest.ask("x")
    assert rig.ssh.commands == []


def test_a_machine_that_does_not_run_is_asked_nothing() -> None:
    rig = Rig(console=FakeShell(), running=False)
    for ask in (rig.guest.ask, rig.guest.run):
        with pytest.raises(MachineError, match="not running"):
            ask("x")
    assert rig.console
    assert rig.console.commands == rig.ssh.commands == []


def test_a_guest_that_was_reset_is_waited_for() -> None:
    rig = Rig(console=FakeShell())
    assert rig.console
    # Of the boot before.
    rig.timeline.record(Lane.SERVICE, "init: ready")
    rig.event("RESET")
    entered = threading.Event()

    def asked() -> Completed:
        entered.set()
        return rig.guest.ask("x")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asked)
        assert entered.wait(20)
        with pytest.raises(TimeoutError):
            future.result(0.2)
        assert rig.console.commands == []
        rig.timeline.record(Lane.SERVICE, "init: ready")
        assert future.result(20).command == "x"
    assert rig.guest.ask("y").command == "y"


def test_a_guest_boots_from_its_reset_or_its_inits_first_word_until_it_is_ready() -> None:
    """The second is what a kernel does that another one has booted: there is no reset."""
    rig = Rig(console=FakeShell())
    assert not rig.guest.booting
    for begin in (lambda: rig.event("RESET"), lambda: rig.timeline.record(Lane.SERVICE, "init: started")):
        begin()
        assert rig.guest.booting
        rig.timeline.record(Lane.SERVICE, "init: ready")
        assert not rig.guest.booting
    assert rig.console
    assert rig.console.told == ["forget", "forget"]


def test_a_guest_that_does_not_come_back_is_asked_nothing() -> None:
    rig = Rig(console=FakeShell(), boot=0.1)
    rig.event("RESET")
    with pytest.raises(BootFailed):
        rig.guest.ask("x")
    assert rig.console
    assert rig.console.commands == []


def test_the_console_shell_is_told_what_ends_a_wait() -> None:
    rig = Rig(console=FakeShell())
    for name in ("SHUTDOWN", "GUEST_PANICKED", "RESET", "STOP"):
        rig.event(name)
    for text in ("init: console shell 123 ended", "drmgr: | init: console shell 124 ended"):
        rig.timeline.record(Lane.SERVICE, text)
    assert rig.console
    assert rig.console.told == ["hang up", "hang up", "forget", 123]
    assert rig.ssh.told == ["hang up", "hang up"]


class CpusShell(FakeShell):
    """A guest of two CPUs, of which the second one may go, and whose taskset may fail."""

    def __init__(self, *, goes: bool) -> None:
        super().__init__()
        self.online, self.goes = "0-1", goes

    def run(self, command: str, deadline: Deadline) -> Completed:
        super().run(command, deadline)
        if "taskset" not in command:
            return Completed(command, 0, f"/sys/devices/system/cpu/online:{self.online}\n", "")
        if self.online == "0":
            return Completed(command, 0, " 21:          7   XIVE-IRQ 4096 Edge      RAS_HOTPLUG\n", "")
        if self.goes:
            self.online = "0"
        return Completed(command, 1, "", "taskset: can't set pid 0's affinity: Invalid argument")


def test_the_interrupts_of_a_cpu_that_goes_meanwhile_are_counted_on_the_others() -> None:
    shell = CpusShell(goes=True)
    assert Rig(console=shell).guest.hotplug_interrupts() == 7
    assert [command.partition(";")[0] for command in shell.commands if "taskset" in command] == [
        "for mask in 1 2",
        "for mask in 1",
    ]


def test_a_taskset_that_fails_for_another_reason_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="Invalid argument"):
        Rig(console=CpusShell(goes=False)).guest.hotplug_interrupts()
