"""Help for a person at a running test: consoles on the terminal, a second monitor, a debugger with machines alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr.deadline import working_time
from pytest_spapr.timeline import Lane

from . import stubs

pytestmark = pytest.mark.usefixtures("stubbed")

_TALKS = f"""
    from pytest_spapr.timeline import Lane

    def test_it(launch_machine):
        machine = launch_machine()
        print("captured")
        machine.timeline.record(Lane.KERNEL, "a CPU goes \\\\x1b")
        machine.timeline.record(Lane.QMP, "-> device_del")
        launch_machine().timeline.record(Lane.{Lane.SERVICE.name}, "drmgr: done")
    """
#: A person who thinks for 0.3 s, lets the test go on, and is a pdb.
_PERSON = """
    import pdb, threading
    from pathlib import Path

    class Person(pdb.Pdb):
        use_rawinput = False

        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.stdin, self.left = self, Path("typed").read_text().splitlines(keepends=True)

        def readline(self):
            threading.Event().wait(0.3)
            return self.left.pop(0)
    """


@pytest.fixture
def person(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the person types; pytest --pdbcls=person:Person has one."""
    pytester.makepyfile(person=_PERSON)
    monkeypatch.syspath_prepend(pytester.path)
    return pytester.path / "typed"


def test_consoles_are_shown_as_they_come_past_the_capturing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(_TALKS)
    result = pytester.runpytest("--spapr-console")
    result.assert_outcomes(passed=1)
    shown = [line.split(maxsplit=1)[1] for line in result.errlines if " kernel " in line or " console " in line]
    assert shown.count("kernel   a CPU goes \\x1b") == 1
    assert "console  SLOF says hello" in shown
    result.stderr.fnmatch_lines(["machine 2: * service  drmgr: done"])
    result.stderr.no_fnmatch_line("*device_del*")
    result.stderr.no_fnmatch_line("*captured*")


def test_nothing_is_shown_unless_it_is_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(_TALKS)
    assert "SLOF says hello" not in pytester.runpytest().stderr.str()


def test_consoles_reach_the_terminal_while_descriptors_are_captured(pytester: pytest.Pytester) -> None:
    """In a process of its own, where pytest puts a file in the place of descriptor 2."""
    pytester.makeconftest("")
    pytester.makepyfile(
        """
        from pytest_spapr.timeline import Lane, Timeline
        from pytest_spapr.rig import RIG

        def test_it(request):
            timeline = Timeline()
            request.config.stash[RIG].show(timeline, 1)
            timeline.record(Lane.KERNEL, "a CPU goes")
            import os
            os.write(2, b"captured")
        """
    )
    result = pytester.runpytest_subprocess("--spapr-console", "--capture=fd")
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines(["* kernel   a CPU goes"])
    assert "captured" not in result.stderr.str()


def test_what_a_clones_template_said_is_not_shown_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pytest_spapr.timeline import Lane, Timeline
        from pytest_spapr.rig import RIG

        def test_it(request):
            booted = Timeline()
            booted.record(Lane.KERNEL, "Linux version")
            clone = Timeline()
            clone.adopt(booted.history())
            clone.record(Lane.KERNEL, "renewed")
            request.config.stash[RIG].show(clone, 1)
            clone.record(Lane.KERNEL, "and on")
        """
    )
    lines = pytester.runpytest("--spapr-console").errlines
    assert [line.split("kernel   ")[1] for line in lines if "kernel" in line] == ["renewed", "and on"]


def test_a_second_monitor_is_told_where_it_is_and_again_where_it_has_moved_to(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = _with_backdoor(monkeypatch)
    pytester.makepyfile("def test_it(machine):\n for act in machine.at_move: act()")
    result = pytester.runpytest("--spapr-backdoor")
    result.assert_outcomes(passed=1)
    told = [line for line in result.errlines if "qmp-shell" in line]
    assert [line.partition("::")[2] for line in told] == [f"test_it: qmp-shell -p {machines[0].backdoor}"] * 2


def test_a_kept_machine_is_told_with_its_monitor(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_backdoor(monkeypatch)
    pytester.makepyfile("def test_it(machine): pass")
    result = pytester.runpytest("--spapr-keep=always", "--spapr-backdoor")
    result.stdout.fnmatch_lines(
        ["*log in: ssh -p 2222 root@127.0.0.1", "  monitor: qmp-shell -p /run/qmp-1", "  end it: kill 4242"]
    )


def test_a_debugger_has_the_machine_alive_and_says_how_to_reach_it(pytester: pytest.Pytester, person: Path) -> None:
    person.write_text("p 'it is ' + repr(machine.ended)\nc\n")
    pytester.makepyfile("def test_it(machine):\n    assert machine is None")
    result = pytester.runpytest("--pdb", "--pdbcls=person:Person")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["spapr: machine 1: log in: ssh -p 2222 root@127.0.0.1", "*\"it is ''\"*"])


def test_deadlines_stand_still_while_a_debugger_waits_for_its_user(pytester: pytest.Pytester, person: Path) -> None:
    """The person thinks for 0.6 s in all."""
    person.write_text("p 'left: ' + str(deadline.remaining > 0.2)\nc\n")
    pytester.makepyfile(
        """
        import threading
        from pytest_spapr.deadline import Deadline

        def test_it(machine):
            deadline = Deadline(0.5)
            breakpoint()
            assert not deadline.expired
            threading.Event().wait(0.5)
            assert deadline.expired, "time goes on"
        """
    )
    result = pytester.runpytest("--pdbcls=person:Person")
    result.stdout.fnmatch_lines(["*left: True*"])
    result.assert_outcomes(passed=1)


def test_what_is_typed_runs_by_deadlines(pytester: pytest.Pytester, person: Path) -> None:
    person.write_text("import threading; threading.Event().wait(0.5)\nc\n")
    pytester.makepyfile(
        """
        from pytest_spapr.deadline import Deadline

        def test_it(machine):
            deadline = Deadline(0.4)
            breakpoint()
            assert deadline.expired
        """
    )
    pytester.runpytest("--pdbcls=person:Person").assert_outcomes(passed=1)


def test_a_debugger_that_is_left_by_quit_lets_deadlines_go_on(pytester: pytest.Pytester, person: Path) -> None:
    person.write_text("q\n")
    pytester.makepyfile("def test_it(machine):\n    breakpoint()")
    assert pytester.runpytest("--pdbcls=person:Person").ret == pytest.ExitCode.INTERRUPTED
    assert working_time._state[1] is None


def test_a_debugger_without_a_machine_is_left_alone(pytester: pytest.Pytester, person: Path) -> None:
    person.write_text("c\n")
    pytester.makepyfile("def test_it():\n    breakpoint()")
    result = pytester.runpytest("--pdbcls=person:Person")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("spapr: machine*")


def _with_backdoor(monkeypatch: pytest.MonkeyPatch) -> list[stubs.StubMachine]:
    machines: list[stubs.StubMachine] = []

    def start(*args: object, **shape: object) -> stubs.StubMachine:
        machine = stubs.start(*args, **shape)  # type: ignore[arg-type]
        machine.backdoor = Path("/run/qmp-1")
        machines.append(machine)
        return machine

    monkeypatch.setattr(stubs.StubStarter, "start_stub", staticmethod(start))
    return machines
