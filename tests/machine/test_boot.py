"""The guest's life: how it comes up, how it does not, how it ends, and what a test sees of each."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_spapr import Guest, GuestImage, LaunchMachine, PseriesMachine
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import BootFailed, CommandFailed, DeadlineExpired, MachineDied, MachineError, SshFailed
from pytest_spapr.timeline import Lane, Record

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NO_INIT = "the kernel or its firmware wrote to the console, init never started"
#: A wait ends with QEMU's death, at the latest so many seconds after it.
_AT_ONCE = 2.0
#: A lost connection waits 2 s for news of QEMU's death before it counts as what it is.
_TOLD = 4.0


def await_text(machine: PseriesMachine, pattern: str, lane: Lane, since: int = 0) -> Record:
    def decide(record: Record) -> Record | None:
        return record if record.lane is lane and re.search(pattern, record.text) else None

    return machine.timeline.wait(decide, since=since, deadline=Deadline(machine.budgets.boot), what=pattern)


def boot_failure(machine: PseriesMachine) -> BootFailed:
    with pytest.raises(BootFailed) as failed:
        machine.boot()
    return failed.value


class TestBootsThatFail:
    @pytest.mark.parametrize(
        ("rdinit", "why"),
        [("/nonexistent", "VFS: Unable to mount root fs"), ("/bin/false", "Attempted to kill init!")],
        ids=["no init", "init ends"],
    )
    def test_a_panic_is_told_and_the_guest_stays(self, launch_machine: LaunchMachine, rdinit: str, why: str) -> None:
        machine = launch_machine(boot=False, kernel_args=(f"rdinit={rdinit}",))
        failed = boot_failure(machine)
        assert f"the guest did not come up: its kernel panicked: {why}" in str(failed)
        assert failed.phase == _NO_INIT
        await_text(machine, "^GUEST_PANICKED", Lane.EVENT)
        assert machine.status() == "guest-panicked"
        with pytest.raises(MachineError, match="not running"):
            machine.guest.run("true")

    def test_an_init_that_hangs_is_given_up(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(boot=False, kernel_args=("rdinit=/bin/cat", "loglevel=7"))
        machine.cont()
        await_text(machine, "Run /bin/cat as init process", Lane.CONSOLE)
        machine.budgets = replace(machine.budgets, boot=0.5)
        with pytest.raises(BootFailed, match=r"it was not ready within 0\.5 s") as failed:
            machine.await_ready(0)
        assert failed.value.phase == _NO_INIT
        assert "Run /bin/cat as init process" in str(failed.value)

    def test_a_boot_without_any_sign_of_life(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(boot=False)
        machine.budgets = replace(machine.budgets, boot=0.05)
        # It was never let run: SLOF writes its first line within a millisecond.
        with pytest.raises(BootFailed) as failed:
            machine.await_ready(machine.timeline.mark())
        assert failed.value.phase == "nothing was ever written to the console"

    def test_what_init_cannot_do_is_told(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(boot=False, kernel_args=("module_blacklist=virtio_net",))
        failed = boot_failure(machine)
        assert "its init says 'failed: module virtio_net cannot be loaded'" in str(failed)

    def test_a_qemu_that_dies_meanwhile_is_the_reason(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(boot=False)
        machine.timeline.listen(kill_at(machine, "init: started"))
        with pytest.raises(MachineDied, match="was killed by SIGKILL"):
            machine.boot()


def test_slof_boots_it_too(launch_machine: LaunchMachine) -> None:
    machine = launch_machine(firmware="slof", start="boot", kernel_args=("spapr.test=here",))
    assert "spapr.test=here" in machine.guest.read("/proc/cmdline").split()
    assert any("SLOF" in record.text for record in machine.timeline.since(0, Lane.CONSOLE))


def test_the_guest_is_what_its_image_says(guest: Guest, guest_image: GuestImage) -> None:
    assert guest.read("/proc/sys/kernel/osrelease") == guest_image.kernel_release
    pages = re.search(r"^KernelPageSize: +(\d+) kB$", guest.read("/proc/self/smaps"), re.MULTILINE)
    assert pages
    # None: a user's own kernel does not say before it runs.
    assert guest_image.page_size in (None, int(pages[1]) * 1024)
    loaded = {line.split()[0] for line in guest.read("/proc/modules").splitlines()}
    assert loaded == {name.replace("-", "_") for name in guest_image.modules}


class TestCommands:
    def test_status_streams_and_size(self, guest: Guest) -> None:
        done = guest.run("echo out; echo err >&2; exit 3")
        assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
        with pytest.raises(CommandFailed, match="ended with status 3: err"):
            done.check()
        size = 1 << 20
        flood = f"head -c {size} /dev/zero | tr '\\0'"
        done = guest.run(f"{flood} o; {flood} e >&2; {flood} O")
        assert done.status == 0
        # Not compared by assert itself, which would show megabytes.
        assert (len(done.stdout), len(done.stderr)) == (2 * size, size)
        assert (set(done.stdout[:size]), set(done.stdout[size:]), set(done.stderr)) == ({"o"}, {"O"}, {"e"})

    def test_a_deadline_tells_what_there_was_and_the_connection_stays(self, guest: Guest) -> None:
        guest.run("true")
        with pytest.raises(DeadlineExpired, match=r"waited 2\.0 s in vain for the guest command .*it wrote 'half'"):
            guest.run("printf half; exec sleep 600", seconds=2)
        with pytest.raises(DeadlineExpired):
            guest.run("yes", seconds=2)
        assert guest.run("echo whole").stdout == "whole\n"

    def test_a_signal_is_no_lost_connection(self, guest: Guest) -> None:
        with pytest.raises(SshFailed, match=r"ended without an exit status: .* killed by a signal"):
            guest.run("kill -9 $$")
        assert guest.run("true").status == 0

    def test_testinfra(self, guest: Guest) -> None:
        assert guest.host.file("/proc/sys/kernel/osrelease").content_string.strip() == guest.kernel_release
        assert guest.host.file("/sys/kernel/debug").is_directory
        assert guest.host.run("exit %s", "4").rc == 4
        assert guest.host.check_output("echo %s", "a 'b'") == "a 'b'"
        assert guest.host.sysctl("kernel.panic") == 0
        assert guest.host.mount_point("/sys/kernel/debug").filesystem == "debugfs"

    def test_a_paused_guest_is_not_asked(self, machine: PseriesMachine, guest: Guest) -> None:
        with machine.paused(), pytest.raises(MachineError, match=r"continue it with machine\.cont\(\)"):
            guest.run("true")
        assert guest.run("true").status == 0


class TestSshd:
    """A guest that runs and cannot be reached."""

    @pytest.mark.parametrize(
        ("signal_name", "words"),
        [("KILL", "cannot log in to the guest on port "), ("STOP", "ssh server did not answer within 0.5 s")],
        ids=["killed", "stopped"],
    )
    def test_none_that_answers(self, machine: PseriesMachine, guest: Guest, signal_name: str, words: str) -> None:
        guest.leave(f"killall -{signal_name} dropbear; echo silenced >/dev/hvc2")
        await_text(machine, "^silenced$", Lane.SERVICE)
        # Only now: the connection made before may take as long as it needs.
        guest._budgets = replace(guest._budgets, ssh=0.5)
        with pytest.raises(SshFailed, match=words):
            guest.run("true")
        assert machine.running


class TestEnds:
    def test_qemu_dies_during_a_command(self, machine: PseriesMachine, guest: Guest) -> None:
        kill = kill_at(machine, "under way")
        machine.timeline.listen(kill)
        with pytest.raises(MachineDied, match=f"QEMU \\(pid {machine.process.pid}\\) was killed by SIGKILL"):
            guest.run("echo under way >/dev/hvc2; sleep 600")
        assert time.monotonic() - kill.at < _AT_ONCE
        for act in (lambda: guest.run("true"), machine.status, guest.dmesg, machine.cores.plug):
            with pytest.raises(MachineDied):
                act()

    def test_the_guest_powers_itself_off(self, machine: PseriesMachine, guest: Guest) -> None:
        """It stays to be looked at, and ``quit`` ends it."""
        since = machine.timeline.mark()
        guest.leave("poweroff -f")
        await_text(machine, "^SHUTDOWN .*reason=guest-shutdown", Lane.EVENT, since)
        assert not machine.running
        with pytest.raises(MachineError, match="not running"):
            guest.run("true")
        machine.quit()
        assert machine.process.exit_status == 0

    def test_reboot_and_reset_make_a_new_guest(self, machine: PseriesMachine, guest: Guest) -> None:
        boots = [guest.read(_BOOT_ID)]
        for act in (machine.reboot, machine.reset):
            act()
            boots.append(guest.read(_BOOT_ID))
        assert len(set(boots)) == 3
        assert len([record for record in machine.timeline.since(0, Lane.SERVICE) if record.text == "init: ready"]) == 3

    @pytest.mark.parametrize(
        ("command", "event"),
        [("echo c >/proc/sysrq-trigger", "GUEST_PANICKED"), ("poweroff -f; sleep 600", "SHUTDOWN")],
        ids=["panic", "poweroff"],
    )
    def test_a_guest_that_halts_during_a_command_is_not_waited_for(
        self, machine: PseriesMachine, guest: Guest, command: str, event: str
    ) -> None:
        guest.run("true")
        with pytest.raises(MachineError, match=r"the machine stopped running during .*: its guest panicked or shut down"):
            guest.run(command)
        halted = await_text(machine, f"^{event}", Lane.EVENT)
        asked = [record for record in machine.timeline.since(0, Lane.SSH) if command in record.text]
        assert len(asked) == 1
        assert machine.timeline.step("told").time - halted.time < _TOLD
        assert not machine.running
        with pytest.raises(MachineError, match=r"not running.*machine\.reset\(\)"):
            guest.run("true")
        machine.reset()
        assert guest.run("echo back").stdout == "back\n"


class TestNetwork:
    def test_nobody_but_this_host_reaches_in_and_the_guest_reaches_nobody(self, machine: PseriesMachine, guest: Guest) -> None:
        guest.run("true").check()
        [port] = re.findall(r"-p (\d+)", guest.ssh_command())
        assert listening(machine.process.pid) == {f"127.0.0.1:{port}"}
        # 10.0.2.2 is the host's loopback to the guest, where nothing forbids it.
        with ExitStack() as made:
            servers = [made.enter_context(socket.create_server((address, 0))) for address in ("127.0.0.1", "0.0.0.0")]
            for server in servers:
                number = server.getsockname()[1]
                assert guest.run(f"echo hello | nc -w 3 10.0.2.2 {number}").status != 0
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.accept()


class kill_at:  # noqa: N801 - used as a function
    """A timeline's listener that kills QEMU as soon as a guest says ``words``. :ivar at: when it did."""

    def __init__(self, machine: PseriesMachine, words: str) -> None:
        self.at = 0.0
        self._machine = machine
        self._words = words

    def __call__(self, record: Record) -> None:
        if record.lane is Lane.SERVICE and record.text == self._words and not self.at:
            self.at = time.monotonic()
            os.kill(self._machine.process.pid, signal.SIGKILL)


def listening(pid: int) -> set[str]:
    """Return the addresses that a process listens on: TCP that accepts, and any UDP, of IPv4 and IPv6."""
    mine = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in mine and fields[3] in states:
                address, port = fields[1].split(":")
                # IPv4 addresses stand there as a number in the host's byte order.
                shown = socket.inet_ntoa(int(address, 16).to_bytes(4, "little")) if len(address) == 8 else address
                found.add(f"{shown}:{int(port, 16)}")
    return found
