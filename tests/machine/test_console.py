"""The console shell: what the plugin itself asks of a guest, beside ssh."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pytest_spapr import Guest, LaunchMachine, PseriesMachine
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, GuestError, MachineDied, MachineError, ShellFailed
from pytest_spapr.timeline import Lane, Record

_LOST = "the guest's console shell is lost: ssh does its work until the next boot"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def texts(machine: PseriesMachine, lane: Lane, since: int = 0) -> list[str]:
    return [record.text for record in machine.timeline.since(since, lane)]


class TestCommands:
    def test_status_and_streams(self, guest: Guest) -> None:
        done = guest.ask("echo out; echo err >&2; exit 3")
        assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")

    def test_a_long_command_arrives_whole(self, guest: Guest) -> None:
        """The terminal's hardware takes 16 bytes at a time, its buffer 4096."""
        words = "".join(f"{number:06}" for number in range(4000))
        assert guest.ask(f"echo '{words}'").stdout == f"{words}\n"

    def test_a_flood_of_any_bytes_comes_back_whole(self, guest: Guest) -> None:
        size = 1 << 20
        done = guest.ask(f"head -c {size} /dev/zero; printf '\\001\\003\\004\\021\\023\\032\\r\\n\\r\\0\\377'")
        # Not compared by assert itself, which would show megabytes.
        assert len(done.stdout) == size + 11
        assert set(done.stdout[:size]) == {"\0"}
        assert done.stdout[size:] == "\x01\x03\x04\x11\x13\x1a\r\n\r\0\ufffd"

    def test_what_the_host_sends_is_no_terminals_business(self, guest: Guest) -> None:
        """No signal, no flow control, no echo, no end of the input."""
        words = "\x01\x03\x04\x11\x13\x1a\x1c\x7f\t\r\u00fc"
        assert guest.ask(f"printf %s '{words}'").stdout == words

    @pytest.mark.parametrize(
        "command", ["exit 4", "exec sh -c 'exit 4'", "if", ": > /nonexistent/x", "kill -9 $(sh -c 'echo $PPID')"]
    )
    def test_whatever_a_command_does_the_shell_stays(self, machine: PseriesMachine, guest: Guest, command: str) -> None:
        since = machine.timeline.mark()
        pid = guest.ask("echo $$").stdout
        assert guest.ask(command).status != 0
        assert guest.ask("echo $$").stdout == pid
        assert not texts(machine, Lane.SSH, since)

    def test_threads_take_turns(self, guest: Guest) -> None:
        with ThreadPoolExecutor(4) as pool:
            words = [str(number) for number in range(20)]
            assert [done.stdout for done in pool.map(lambda word: guest.ask(f"echo {word}"), words)] == [
                f"{word}\n" for word in words
            ]

    def test_it_is_in_nobodys_session(self, guest: Guest) -> None:
        [pid] = guest.ask("echo $$").stdout.split()
        fields = guest.ask(f"cat /proc/{pid}/stat").stdout.rpartition(")")[2].split()
        # Process group, session and controlling terminal.
        assert fields[2:5] == [pid, pid, "0"]

    def test_the_plugins_own_questions_need_no_connection(self, machine: PseriesMachine, guest: Guest) -> None:
        since = machine.timeline.mark()
        guest.settle()
        assert guest.cpus.online() == {0}
        assert guest.memory.blocks()
        assert guest.pci.functions()
        assert guest.rtas_errd.state() == "running"
        assert guest.drmgr.lock_holder() is None
        assert guest.read("/proc/sys/kernel/osrelease") == guest.kernel_release
        assert not texts(machine, Lane.SSH, since)


class TestEnds:
    def test_a_shell_that_is_killed_is_told_and_followed_by_another(self, machine: PseriesMachine, guest: Guest) -> None:
        for command in ("kill -9 $$", "kill -9 $$; sleep 600"):
            pid = guest.ask("echo $$").stdout.strip()
            with pytest.raises(ShellFailed, match="the guest's console shell was killed meanwhile"):
                guest.ask(command)
            assert guest.ask("echo $$").stdout.strip() != pid
            assert f"init: console shell {pid} ended" in texts(machine, Lane.SERVICE)
        assert _LOST not in texts(machine, Lane.STEP)

    def test_a_command_without_an_end_leaves_the_rest_to_ssh_until_the_next_boot(self, launch_machine: LaunchMachine) -> None:
        machine = launch_machine(boot=False)
        machine.budgets = replace(machine.budgets, command=3.0)
        machine.boot()
        guest = machine.guest
        with pytest.raises(DeadlineExpired, match=r"waited 3\.0 s in vain for the guest command .*: it wrote 'half'"):
            guest.ask("printf half; sleep 5; echo late")
        asked = len(texts(machine, Lane.SHELL))
        boot = guest.read(_BOOT_ID)
        # The answer to the first has come meanwhile; it is nobody's.
        assert guest.ask("sleep 2; echo whole").stdout == "whole\n"
        assert len(texts(machine, Lane.SHELL)) == asked
        assert texts(machine, Lane.STEP).count(_LOST) == 1
        machine.reset()
        assert guest.read(_BOOT_ID) != boot
        assert len(texts(machine, Lane.SHELL)) > asked

    @pytest.mark.parametrize("how", ["reset", "reboot"])
    def test_the_next_boots_shell_answers(self, machine: PseriesMachine, guest: Guest, how: str) -> None:
        boot = guest.read(_BOOT_ID)
        getattr(machine, how)()
        assert guest.read(_BOOT_ID) != boot

    def test_a_reset_ends_the_wait_and_what_was_not_read_is_not_run(self, machine: PseriesMachine, guest: Guest) -> None:
        guest.ask("true")
        with ThreadPoolExecutor(1) as pool:
            since = machine.timeline.mark()
            waiting = pool.submit(guest.ask, "echo under way >/dev/hvc2; sleep 600")
            await_record(machine, since, "under way")
            machine.reset(wait=False)
            with pytest.raises(ShellFailed, match="the guest was reset meanwhile"):
                waiting.result()
        machine.await_ready(since)
        assert guest.ask("echo new").stdout == "new\n"

    @pytest.mark.parametrize("command", ["echo c >/proc/sysrq-trigger", "poweroff -f; sleep 600"], ids=["panic", "poweroff"])
    def test_a_guest_that_halts_is_not_waited_for(self, machine: PseriesMachine, guest: Guest, command: str) -> None:
        guest.ask("true")
        with pytest.raises(MachineError, match=r"the machine stopped running during .*: its guest panicked or shut down"):
            guest.ask(command)
        with pytest.raises(MachineError, match=r"not running.*machine\.reset\(\)"):
            guest.ask("true")
        machine.reset()
        assert guest.ask("echo back").stdout == "back\n"

    def test_qemu_dies_during_a_command(self, machine: PseriesMachine, guest: Guest) -> None:
        with ThreadPoolExecutor(1) as pool:
            since = machine.timeline.mark()
            waiting = pool.submit(guest.ask, "echo under way >/dev/hvc2; sleep 600")
            await_record(machine, since, "under way")
            began = time.monotonic()
            machine.kill()
            with pytest.raises(MachineDied):
                waiting.result()
            assert time.monotonic() - began < 5

    def test_a_paused_guest_is_not_asked(self, machine: PseriesMachine, guest: Guest) -> None:
        with machine.paused(), pytest.raises(MachineError, match=r"continue it with machine\.cont\(\)"):
            guest.ask("true")
        assert guest.ask("true").status == 0


class TestRenewal:
    def test_the_guests_clock_is_the_hosts(self, guest: Guest) -> None:
        guest.ask("date -s @1000000000").check()
        guest.renew()
        before = time.time()
        shown = int(guest.ask("date +%s").stdout)
        assert int(before) - 1 <= shown <= time.time()

    def test_it_can_be_had_again(self, machine: PseriesMachine, guest: Guest) -> None:
        since = machine.timeline.mark()
        for _ in range(3):
            guest.renew()
        # rtas_errd has words of its own while it starts.
        assert [text for text in texts(machine, Lane.SERVICE, since) if text.startswith("renew")] == ["renew: done"] * 3

    def test_a_cpu_that_is_not_online_has_no_timers_to_go_on(self, guest: Guest) -> None:
        assert guest.renew((3, 0)) == {0}

    def test_a_time_that_the_kernel_does_not_take_is_told(self, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: -1_000_000_000)
        with pytest.raises(GuestError, match="refused"):
            guest.renew()


def await_record(machine: PseriesMachine, since: int, pattern: str) -> Record:
    def decide(record: Record) -> Record | None:
        return record if record.lane is Lane.SERVICE and re.search(pattern, record.text) else None

    return machine.timeline.wait(decide, since=since, deadline=Deadline(machine.budgets.boot), what=pattern)
