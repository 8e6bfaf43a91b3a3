"""What a run leaves and says: artefacts, sections, junit properties, the summary, kept machines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_spapr.hotplug import defects
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.report.artefacts import Launch, excerpt
from pytest_spapr.report.summary import Summary, facts
from pytest_spapr.report.timeline.run import read
from pytest_spapr.timeline import Lane, Timeline

from . import stubs

pytestmark = pytest.mark.usefixtures("stubbed")

FAILS = """
def test_it(machine):
    machine.unplug("removed")
    machine.unplug("refused")
    assert 0, "for a reason"
"""
FILES = {"timeline.jsonl", "timeline.txt", "timeline.html", "console.txt", "qmp.txt", "kernel.txt", "argv.txt", "dmesg.txt"}


def left(pytester: pytest.Pytester) -> Path:
    """Return the only directory of artefacts that the run left."""
    (directory,) = (path for path in (pytester.path / "artefacts").glob("*/*") if path.is_dir())
    return directory


def test_a_failed_test_leaves_its_files_and_shows_the_timeline(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    directory = left(pytester)
    assert {path.name for path in directory.iterdir()} == FILES
    assert "SLOF says hello" in (directory / "console.txt").read_text()
    assert "Linux version" in (directory / "kernel.txt").read_text()
    assert "qmp_capabilities" in (directory / "qmp.txt").read_text()
    assert "'1G with blanks'" in (directory / "argv.txt").read_text()
    assert (directory / "dmesg.txt").read_text() == "output of dmesg\n\n"
    steps = [json.loads(line)["text"] for line in (directory / "timeline.jsonl").read_text().splitlines()]
    assert "the test begins" in steps
    result.stdout.fnmatch_lines(["*- spapr timeline -*", "*unplug core1*", f"The whole of it, and more: {directory}"])


def test_a_passed_test_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(machine): pass")
    pytester.runpytest().assert_outcomes(passed=1)
    assert not (pytester.path / "artefacts").exists()


def test_a_machine_that_does_not_start_leaves_its_files_too(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_spapr.errors import BootFailed

    def no_boot(shared: object, spec: object, image: object, timeline: object, *, boot: bool) -> None:
        raise BootFailed("the guest did not come up", "init: started")

    monkeypatch.setattr(stubs.StubStarter, "start_stub", staticmethod(no_boot))
    pytester.makepyfile("def test_it(machine): pass")
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["tested * QEMU 7.2.22 (Debian 1:7.2), Linux 6.1.0-*, tcg", "machines * 1 started"])
    directory = left(pytester)
    assert {path.name for path in directory.iterdir()} == FILES
    assert "did not start; it was to be MachineSpec(cpus=1" in (directory / "argv.txt").read_text()
    assert "no guest was up" in (directory / "dmesg.txt").read_text()


def test_a_failure_in_teardown_leaves_its_files_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def broken(machine):
            yield
            assert 0
        def test_it(broken): pass
        """
    )
    pytester.runpytest().assert_outcomes(passed=1, errors=1)
    assert {path.name for path in left(pytester).iterdir()} == FILES


def test_a_second_machine_has_its_own_files(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(launch_machine):\n    launch_machine(), launch_machine(image=None)\n    assert 0")
    result = pytester.runpytest()
    assert {path.name for path in left(pytester).iterdir()} == FILES | {"machine-2"}
    assert {path.name for path in (left(pytester) / "machine-2").iterdir()} == FILES
    result.stdout.fnmatch_lines(["*spapr timeline of machine 1*", "*spapr timeline of machine 2*"])


def test_artefacts_that_cannot_be_written_do_not_hide_the_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    pytester.makefile(".txt", artefacts="a file, not a directory")
    result = pytester.runpytest("--spapr-artefacts=artefacts.txt")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*for a reason*", "*could not be saved in *artefacts.txt*: Not a directory*"])


def test_parametrized_tests_with_long_names_have_directories_of_their_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("word", ["x" * 200 + "/", "x" * 200 + ":"])
        def test_it(machine, word): assert 0
        """
    )
    pytester.runpytest().assert_outcomes(failed=2)
    names = [path.name for path in (pytester.path / "artefacts").glob("*/*") if path.is_dir()]
    assert len(set(names)) == 2
    assert all(len(name) < 100 for name in names)


def test_junit_properties(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    pytester.runpytest("--junitxml=junit.xml")
    (case,) = ElementTree.parse(pytester.path / "junit.xml").iter("testcase")
    found = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    assert found == {
        "spapr_qemu": "QEMU 7.2.22 (Debian 1:7.2)",
        "spapr_kernel": f"Linux {stubs.KERNEL}",
        "spapr_accel": "tcg",
        "spapr_outcomes": "refused=1 removed=1",
        "spapr_artefacts": str(left(pytester)),
    }


def test_the_summary_counts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_one=FAILS,
        test_two="""
        def test_two(launch_machine):
            launch_machine(boot=False)
            launch_machine().unplug("removed")
        """,
    )
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(
        [
            "*= spapr =*",
            "tested * QEMU 7.2.22 (Debian 1:7.2), Linux 6.1.0-50-powerpc64le, tcg",
            "machines * 3 started; 2 cloned in *",
            "attempts * 1 refused, 2 removed",
            "known defects met  none",
            "artefacts * (1 test)",
        ]
    )


def test_the_summary_counts_across_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    stub_conftest(pytester)
    pytester.makepyfile(test_one=FAILS, test_two=FAILS)
    result = pytester.runpytest_subprocess("-n2")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["machines * 2 started; *", "attempts * 2 refused, 2 removed", "artefacts * (2 tests)"])
    assert len(list((pytester.path / "artefacts").iterdir())) == 1


def test_a_bad_mark_fails_its_test_in_a_worker(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    stub_conftest(pytester)
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.spapr(cores=1)
        def test_bad(machine): pass
        def test_good(machine): pass
        """
    )
    result = pytester.runpytest_subprocess("-n2")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*ConfigError: @pytest.mark.spapr knows no 'cores'. Allowed: cpus=*")


def test_a_skip_in_setup_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def picky(machine): pytest.skip("not today")
        def test_it(picky): pass
        """
    )
    pytester.runpytest().assert_outcomes(skipped=1)
    assert not (pytester.path / "artefacts").exists()


def test_the_excerpt_begins_with_the_last_attempt_and_is_no_flood() -> None:
    timeline = Timeline()
    machine = stubs.start(stubs.SHARED, None, None, timeline, boot=True)
    launch = Launch(machine.spec, stubs.build(), None, timeline, machine)  # type: ignore[arg-type]
    for number in range(100):
        timeline.record(Lane.KERNEL, f"before {number}.")
    assert len(excerpt(launch).splitlines()) == 40
    machine.attempts.append(replace(stubs.attempt(Outcome.PENDING), began=timeline.mark()))
    for number in range(20):
        timeline.record(Lane.KERNEL, f"during {number}.")
    assert len(excerpt(launch).splitlines()) == 20
    assert "during 0." in excerpt(launch).splitlines()[0]
    machine.attempts.append(replace(stubs.attempt(Outcome.PENDING), began=timeline.mark()))
    timeline.record(Lane.KERNEL, "x" * 1000)
    assert len(excerpt(launch).splitlines()) == 15
    assert all(len(line) <= 200 for line in excerpt(launch).splitlines())


def test_the_tightest_waits_are_told_once_each() -> None:
    summary = Summary()
    one = facts([])
    one["margins"] = [("boot", 50.0, 100.0), ("boot", 90.0, 100.0), ("plug", 1.0, 10.0), ("unplug", 0.0, 0.0), ("ssh", 0.1, 60.0)]
    summary.add(one)
    told = [line for line in summary.lines("here") if " of " in line]
    assert [line.split(None, 2)[-1] if line.startswith("tightest") else line.strip() for line in told] == [
        "unplug: 0.0 of 0 s",
        "boot: 90.0 of 100 s",
        "plug: 1.0 of 10 s",
    ]


def test_a_run_without_machines_has_no_summary(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    pytester.runpytest().stdout.no_fnmatch_line("*= spapr =*")


DIES = "def test_it(machine): machine.die()"


def crash_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "crash_defect", lambda machine: defects.KNOWN_DEFECTS["tcg-core-removal"])


def test_a_death_by_a_known_defect_is_an_xfail_that_is_counted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_is_known(monkeypatch)
    pytester.makepyfile(DIES)
    result = pytester.runpytest("-rx")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["known defects met *1 tcg-core-removal", "artefacts*", "XFAIL*known defect tcg-core-removal*"])
    assert left(pytester).is_dir()


def test_runxfail_shows_the_death_as_it_is(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_is_known(monkeypatch)
    pytester.makepyfile(DIES)
    pytester.runpytest("--runxfail").assert_outcomes(failed=1)


def test_a_known_defect_excuses_no_other_failure(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    crash_is_known(monkeypatch)
    pytester.makepyfile(FAILS)
    pytester.runpytest().assert_outcomes(failed=1)


def test_an_unknown_death_is_a_failure(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "crash_defect", lambda machine: None)
    pytester.makepyfile(DIES)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the machine ended: QEMU was killed by SIGSEGV*", "*a last word*"])


@pytest.mark.parametrize(
    ("keep", "ended"),
    [("never", "closed closed"), ("failed", "closed released"), ("always", "released released")],
)
def test_keep(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, keep: str, ended: str) -> None:
    machines: list[stubs.StubMachine] = []

    def start(*args: object, **shape: object) -> stubs.StubMachine:
        machines.append(stubs.start(*args, **shape))  # type: ignore[arg-type]
        return machines[-1]

    monkeypatch.setattr(stubs.StubStarter, "start_stub", staticmethod(start))
    pytester.makepyfile("def test_good(machine): pass\ndef test_bad(machine): assert 0")
    result = pytester.runpytest(f"--spapr-keep={keep}")
    assert " ".join(machine.ended for machine in machines) == ended
    assert result.outlines.count("  end it: kill 4242") == ended.count("released")
    if keep == "never":
        result.stdout.no_fnmatch_line("*machines left running*")
    else:
        result.stdout.fnmatch_lines(
            ["*machines left running*", "test_keep.py::test_bad", "  log in: ssh -p 2222 root@127.0.0.1", "  end it: kill 4242"]
        )


def test_a_machine_that_does_not_end_well_is_an_error(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_spapr.errors import MachineError

    def fail(machine: object) -> None:
        raise MachineError("cannot be ended")

    monkeypatch.setattr(stubs.StubMachine, "close", fail)
    pytester.makepyfile("def test_it(launch_machine): launch_machine(), launch_machine()")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*ending the test's machines (2 sub-exceptions)*")


def test_an_attempt_that_breaks_its_contract_is_explained(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("")
    pytester.makepyfile(
        f"""
        from {stubs.__name__} import attempt
        from pytest_spapr.hotplug.contract import Expectation
        from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence

        def test_it():
            promised = Expectation(kind=Kind.CORE, situation="removal", outcome=Outcome.REMOVED, asked=True,
                                   qemu=Presence.ABSENT, guest=(Presence.ABSENT,), source="the book")
            assert attempt(Outcome.PENDING) == promised
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*not what the contract promises for 'removal'*", "*outcome * removed * pending"])


def test_hooks(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        def pytest_spapr_machine_args(spec):
            return ["-global", f"cores={spec.cpus}"]
        def pytest_spapr_machine_started(machine):
            machine.seen = []
        def pytest_spapr_unplug_finished(machine, attempt):
            machine.seen.append(attempt)
        """
    )
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.spapr(qemu_args="-S")
        def test_it(machine):
            assert machine.spec.qemu_args == ("-S", "-global", "cores=1")
            assert machine.seen == []
            attempt = machine.unplug("removed")
            assert machine.seen == [attempt]
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_fixtures_belong_together(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(machine, guest, qmp, qemu_build, guest_image, contract):
            assert guest is machine.guest
            assert qmp is machine.qmp
            assert machine.build is qemu_build
            assert machine.image is guest_image
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def stub_conftest(pytester: pytest.Pytester) -> None:
    """Put the stubs in place in a pytest of its own process."""
    root = Path(__file__).resolve().parents[2]
    pytester.makeconftest(
        f"""
        import sys
        sys.path.insert(0, {str(root)!r})
        from pytest_spapr import cells, rig, fixtures
        from tests.plugin import stubs

        cells.supply_build = lambda settings, cache, progress: stubs.build()
        cells.supply_image = lambda settings, cache, progress: stubs.image()
        rig.Starter = stubs.StubStarter
        fixtures.harness = stubs.harness
        """
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_the_run_with_its_fixtures_torn_down_and_all_said(pytester: pytest.Pytester, workers: int) -> None:
    stub_conftest(pytester)
    fifo = pytester.path / "begun"
    os.mkfifo(fifo)
    pytester.makepyfile(
        f"""
        import signal, pytest, pathlib
        @pytest.fixture
        def torn(machine):
            yield
            pathlib.Path("torn-down").touch()
        def test_it(torn):
            pathlib.Path({str(fifo)!r}).write_text("now")
            signal.pause()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", f"-n{workers}", "--spapr-keep=always", "--spapr-image=debian-12"],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        fifo.read_text()
        run.send_signal(signal.SIGTERM)
        assert run.stdout is not None
        said = run.stdout.read()
        assert run.wait(30) == 128 + signal.SIGTERM
    assert (pytester.path / "torn-down").exists()
    assert {path.name for path in left(pytester).iterdir()} == {*FILES, "kept.txt"}
    assert "spapr: QEMU 7.2.22 (Debian 1:7.2), /somewhere/qemu-system-ppc64, tcg, image debian-12" in said or not workers
    assert f"{left(pytester).parent} (1 test)" in said
    assert "end it: kill 4242" in said


def test_outcomes_are_words_of_the_contract() -> None:
    """``_crash`` compares by text, so as to import nothing for it."""
    assert str(Outcome.CRASHED) == "crashed"


def test_a_failed_assertion_tells_what_was_seen_and_where_its_page_is(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pytest_spapr.hotplug.outcome import Kind
        def test_it(machine, contract):
            assert machine.unplug("pending") == contract.expect(Kind.CORE, "removal")
        """
    )
    result = pytester.runpytest("-vv")
    result.assert_outcomes(failed=1)
    page = (left(pytester) / "timeline.html").as_uri()
    result.stdout.fnmatch_lines(
        [
            "E * assert core core1: not what the contract promises for 'removal' (0.100 s after device_del)",
            "E * expected * observed",
            "E * outcome * removed * pending",
            "E * events * DEVICE_DELETED x1 * none",
            "E * libvirt * would conclude: nothing for 10 s*",
            "E * contract *",
            f"E * see *{page}#r[1-9]*",
            "*- spapr timeline -*",
        ]
    )
    result.stdout.no_fnmatch_line("*the last attempt*")
    cut_off = pytester.runpytest()
    cut_off.stdout.fnmatch_lines(
        ["E * outcome * removed * pending", "*truncated*", "*- spapr: the last attempt -*", "see *#r[1-9]*"]
    )
    steps = next((pytester.path / "artefacts").glob("*/*/timeline.txt")).read_text()
    assert "failed: AssertionError: assert core core1: not what the contract promises for 'removal'" in steps


def test_another_failed_assertion_tells_of_the_last_attempt(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FAILS)
    result = pytester.runpytest()
    page = (left(pytester) / "timeline.html").as_uri()
    result.stdout.fnmatch_lines(
        [
            "*- spapr: the last attempt -*",
            "core core1: REFUSED after 0.100 s*",
            "libvirt * would conclude: *",
            f"see * {page}#r[1-9]*",
            "*- spapr timeline -*",
            f"As a page: {page}#r[1-9]*",
        ]
    )
    assert "failed: AssertionError: for a reason" in (left(pytester) / "timeline.txt").read_text()


@pytest.mark.parametrize(
    ("how", "passed", "failed"),
    [("on", True, True), ("retain-on-failure", False, True), ("off", False, False), ("", False, True)],
)
def test_pages_are_made_of_all_tests_of_those_that_fail_or_of_none(
    pytester: pytest.Pytester, how: str, passed: bool, failed: bool
) -> None:
    pytester.makepyfile(FAILS + "def test_good(machine): pass\ndef test_other(): pass")
    pytester.runpytest(*([f"--spapr-timeline={how}"] if how else [])).assert_outcomes(failed=1, passed=2)
    found = sorted(path.parent.name[:-9] for path in (pytester.path / "artefacts").glob("*/*/timeline.html"))
    module = next(pytester.path.glob("test_*.py")).stem.replace("_", "-")
    wanted = [f"{module}-py-test-good"] * passed + [f"{module}-py-test-it"] * failed
    assert found == wanted
    assert list((pytester.path / "artefacts").glob("*/index.html")) != [] or not wanted


def test_the_runs_page_lists_all_tests_and_leads_to_the_pages(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    stub_conftest(pytester)
    pytester.makepyfile(
        test_one=FAILS, test_two="def test_good(launch_machine): launch_machine(), launch_machine()\ndef test_none(): pass"
    )
    result = pytester.runpytest_subprocess("-n2", "--spapr-timeline=on")
    result.assert_outcomes(failed=1, passed=2)
    (index,) = (pytester.path / "artefacts").glob("*/index.html")
    result.stdout.fnmatch_lines(f"timelines * {index}")
    text = index.read_text()
    for test in ("test_one.py::test_it", "test_two.py::test_good", "test_two.py::test_none"):
        assert text.count(f">{test}<") == 1
    assert text.index('<tr data-word="failed"') < text.index('<tr data-word="passed"')
    assert "1 refused, 1 removed" in text
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == 3
    assert all((index.parent / link).is_file() for link in links)


def test_a_page_has_its_machines_end(pytester: pytest.Pytester) -> None:
    """It is written when the test fails, for who debugs it then, and again when all is over."""
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture
        def late(machine):
            yield
            machine.timeline.step("the very end")
        def test_it(late): assert 0
        """
    )
    pytester.runpytest().assert_outcomes(failed=1)
    assert "the very end" in (left(pytester) / "timeline.html").read_text()
    assert "the very end" in (left(pytester) / "timeline.jsonl").read_text()
    run = read(left(pytester))
    assert run.test == f"{next(pytester.path.glob('test_*.py')).name}::test_it"
    about = {"qemu": "QEMU 7.2.22 (Debian 1:7.2)", "accel": "tcg", "image": "debian-12", "kernel": f"Linux {stubs.KERNEL}"}
    assert run.about == about
    assert run.features == frozenset()


def test_a_page_that_cannot_be_written_hides_nothing_of_the_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_spapr.report.pages.write", full)
    pytester.makepyfile(FAILS)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*for a reason*",
            "*- spapr: the last attempt -*",
            "*- spapr timeline -*",
            "*spapr: could not report about the machines*",
            "*No space left*",
        ]
    )
    assert (left(pytester) / "timeline.jsonl").exists()


def test_an_attempt_that_was_followed_counts_once_with_what_came_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_it(machine):
            machine.unplug("removed")
            machine.follow(machine.unplug("pending"), "removed")
    """)
    pytester.runpytest().stdout.fnmatch_lines(["attempts           2 removed"])
