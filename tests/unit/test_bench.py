"""The benchmark's pure parts: arithmetic, bars, the table, what is read from /proc, what runs of pytest said."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.benchmark import __main__ as command
from ci.benchmark import host, machines, memory, run, runs, table
from ci.benchmark.bars import BARS, PLUGIN_BARS, judge
from ci.benchmark.figures import MEASURES, PLUGIN_MEASURES, RATIOS, Figures, spread
from ci.benchmark.machines import JOBS
from ci.benchmark.subject import NotMeasured, WrongOutcome, column
from pytest_spapr import config
from pytest_spapr.errors import MachineDied, SpaprError
from pytest_spapr.progress import NullProgress
from pytest_spapr.timeline import Lane, Timeline

SMAPS = """\
55d0c0000000-55d0c0100000 r-xp 00000000 08:01 42                         /usr/bin/qemu-system-ppc64
Size:               1024 kB
Private_Clean:       100 kB
Private_Dirty:         0 kB
Shared_Clean:        900 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0040000000 rw-p 00000000 08:01 77                         /home/me/cache/templates/0a1b/ram
Size:            1048576 kB
Private_Clean:      5000 kB
Private_Dirty:      2000 kB
Anonymous:          2000 kB
Swap:                 30 kB
7f0050000000-7f0050100000 rw-p 00000000 00:00 0
Size:               1024 kB
Private_Clean:         4 kB
Private_Dirty:       500 kB
Anonymous:           504 kB
Swap:                  6 kB
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
Private_Dirty:        16 kB
"""


def figures(**values: list[float]) -> Figures:
    """Figures with one sample in each round."""
    made = Figures()
    for key, samples in values.items():
        for number, value in enumerate(samples):
            made.add(number, [(key, value)])
    return made


class TestFigures:
    def test_median_and_quartiles(self) -> None:
        found = figures(clone_ssh=[0.5, 0.3, 0.4, 9.0, 0.2])
        assert found.median("clone_ssh") == 0.4
        assert found.quartiles("clone_ssh") == (0.3, 0.5)
        assert found.median("vof_ssh") is None

    def test_spread_of_one_value(self) -> None:
        assert spread([3.0]) == (3.0, 3.0)

    def test_a_ratio_is_that_of_the_rounds(self) -> None:
        """A round in which all took twice as long says the same as the others."""
        found = figures(slof_running=[10, 20, 10], clone_running=[0.1, 0.2, 0.1])
        assert found.ratio(RATIOS[0]) == pytest.approx(100)

    def test_a_ratio_needs_both_in_one_round(self) -> None:
        found = Figures()
        found.add(0, [("slof_running", 10)])
        found.add(1, [("clone_running", 0.1)])
        assert found.ratio(RATIOS[0]) is None
        found.add(1, [("slof_running", 8), ("clone_running", 0.3)])
        assert found.ratio(RATIOS[0]) == pytest.approx(8 / 0.2)

    def test_nothing_is_divided_by_zero(self) -> None:
        assert figures(slof_running=[10], clone_running=[0]).ratio(RATIOS[0]) is None

    def test_a_measure_that_does_not_exist(self) -> None:
        with pytest.raises(KeyError, match="typo"):
            Figures().add(0, [("typo", 1.0)])

    def test_the_summary_is_json_and_complete(self) -> None:
        found = figures(slof_running=[10, 11], clone_running=[0.1, 0.1])
        found.missing["vof"] = "no VOF"
        summary = json.loads(json.dumps(found.summary()))
        assert summary["measures"]["slof_running"]["samples"] == [[0, 10], [1, 11]]
        assert summary["measures"]["slof_running"]["median"] == 10.5
        assert summary["ratios"]["slof_clone"]["value"] == pytest.approx(105)
        assert "vof_clone" not in summary["ratios"]
        assert summary["missing"] == {"vof": "no VOF"}

    def test_names_are_used_once_and_refer_to_something(self) -> None:
        keys = [measure.key for measure in (*MEASURES, *PLUGIN_MEASURES)] + [ratio.key for ratio in RATIOS]
        assert len(keys) == len(set(keys))
        assert {key for ratio in RATIOS for key in (ratio.above, ratio.below)} <= {measure.key for measure in MEASURES}
        assert {bar.key for bar in (*BARS, *PLUGIN_BARS)} <= set(keys)
        assert {way.key for way in (runs.FIRST_RUN, *runs.SUITE_RUNS)} <= set(keys)

    def test_every_measure_is_somebodys(self) -> None:
        prefixes = tuple(itertools.chain.from_iterable(job.keys for job in JOBS))
        unmeasured = {measure.key for measure in MEASURES if not measure.key.startswith(prefixes)}
        assert unmeasured == {way.key for way in (runs.FIRST_RUN, *runs.SUITE_RUNS)}


class TestBars:
    def test_both_sides(self) -> None:
        found = figures(clone_running=[0.1], slof_running=[5.9], clone_ssh=[0.5])
        holds = {verdict.bar.key: verdict.holds for verdict in judge(found)}
        assert holds["clone_running"] is True
        assert holds["clone_ssh"] is False
        assert holds["slof_clone"] is False
        assert holds["pci_rest"] is None

    def test_the_bound_itself_holds(self) -> None:
        assert {verdict.bar.key: verdict.holds for verdict in judge(figures(core_cycle=[0.8]))}["core_cycle"] is True

    def test_only_ratios_are_for_every_host(self) -> None:
        assert {bar.key for bar in BARS if bar.is_ratio} == {"slof_clone", "suite_vof_clone_2", "suite_slof_clone_2"}


class TestTable:
    def test_a_column_for_each_build(self) -> None:
        subjects = {"11.1": figures(clone_running=[0.1, 0.12], slof_running=[9.0, 9.0]), "7.2": figures(clone_running=[0.2])}
        subjects["7.2"].missing["cold boot, SLOF"] = "no firmware"
        plugin = Figures(PLUGIN_MEASURES)
        plugin.add(0, [("empty_test", 0.05)])
        lines = list(table.lines(subjects, plugin))
        head, *rows = lines
        assert head.split()[-2:] == ["11.1", "7.2"]
        clone = next(line for line in rows if line.startswith("clone: guest up"))
        assert clone.split()[3:] == ["s", "0.110", "(0.105", "to", "0.115)", "0.200"]
        assert next(line for line in rows if line.startswith("cold boot, SLOF: guest up")).endswith("-")
        assert not any("DIMM refused in silence, decided" in line for line in rows)
        assert "7.2: cold boot, SLOF was not measured: no firmware" in lines
        bar = next(line for line in rows if line.startswith("clone until it runs"))
        assert bar.split()[-4:] == ["0.110", "holds", "0.200", "MISSED"]
        assert all(line == line.rstrip() for line in lines)

    def test_of_nothing(self) -> None:
        assert any(line.startswith("bar") for line in table.lines({"11.1": Figures()}, Figures(PLUGIN_MEASURES)))


class TestMemory:
    def test_of_the_template_only_copies_count(self) -> None:
        assert memory.private_bytes(SMAPS) == (100 + 2000 + 30 + 504 + 6 + 16) * 1024

    def test_of_this_process(self) -> None:
        assert 1e6 < memory.private(os.getpid()) < 1e9

    def test_too_many_clones(self) -> None:
        assert memory.too_little_for(10**6)
        assert memory.too_little_for(-4) is None


class TestHost:
    @pytest.mark.parametrize(
        ("text", "model"),
        [
            ("processor : 0\nmodel name\t: AMD  EPYC 7\nflags : x\n", "AMD EPYC 7"),
            ("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n", "POWER9, altivec supported"),
            ("processor\t: 0\n", None),
        ],
    )
    def test_cpu_model(self, text: str, model: str | None) -> None:
        assert host.cpu_model(text) == model

    def test_facts_name_no_host(self) -> None:
        found = host.facts()
        assert found["cpus"] >= 1
        assert os.uname().nodename not in json.dumps(found).replace(found["kernel"], "")

    def test_a_busy_host_is_told(self) -> None:
        assert host.loaded({"load_at_start": 0.1}) is None
        assert "1.9" in (host.loaded({"load_at_start": 1.9}) or "")
        assert host.disturbed(0.02) is None
        assert "30%" in (host.disturbed(0.3) or "")

    def test_what_others_used(self) -> None:
        before, after = host.Used(at=100, all=50, own=10), host.Used(at=110, all=60, own=15)
        assert host.others_share(before, after, cpus=2) == pytest.approx(0.25)
        assert host.others_share(before, before, cpus=2) == 0
        assert host.others_share(before, host.Used(at=110, all=50, own=15), cpus=2) == 0

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("no clones: /home/me/.cache/x/ram is gone\nmore", "no clones: <path> is gone"),
            ("--spapr-qemu=/opt/q/bin/qemu ended", "--spapr-qemu=<path> ended"),
            ("'/tmp/x y' and 1/2 of a/b", "'<path> y' and 1/2 of a/b"),
            ("", ""),
        ],
    )
    def test_no_paths(self, text: str, left: str) -> None:
        assert host.without_paths(text) == left


class TestDrmgr:
    def test_its_own_time(self) -> None:
        now = [0.0]
        timeline = Timeline(clock=lambda: now[0])
        for seconds, text in ((1.0, "drmgr: begin -c pci -s 0x1"), (1.5, "rtas_errd: x"), (4.5, "drmgr: end 0 -c pci -s 0x1")):
            now[0] = seconds
            timeline.record(Lane.SERVICE, text)
        machine, attempt = SimpleNamespace(timeline=timeline), SimpleNamespace(began=0)
        assert machines.drmgr_seconds(machine, attempt) == pytest.approx(3.5)  # type: ignore[arg-type]
        timeline.record(Lane.SERVICE, "drmgr: begin -c pci -s 0x2")
        with pytest.raises(WrongOutcome, match="began 2 and ended 1"):
            machines.drmgr_seconds(machine, attempt)  # type: ignore[arg-type]


class TestRunsOfPytest:
    @pytest.mark.parametrize(
        ("output", "found"),
        [
            ("....\n92 passed, 3 xfailed in 275.87s (0:04:35)\n", {"passed": 92, "xfailed": 3}),
            ("= 1 failed, 2 passed, 1 error in 1.00s =\nspapr: 3 machines\n", {"failed": 1, "passed": 2, "error": 1}),
            ("no tests ran in 0.01s\n", {}),
        ],
    )
    def test_counts(self, output: str, found: dict[str, int]) -> None:
        assert runs.counts(output) == found

    @pytest.fixture
    def suite(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """The suite of a subject with a QEMU build of its own, whose last lines are ``output``."""
        world = SimpleNamespace(options=[], output="90 passed, 3 xfailed in 9.00s")

        def pytest_(options: list[str], directory: Path) -> tuple[float, str]:
            world.options.append(options)
            return 9.0, world.output

        monkeypatch.setattr(runs, "pytest", pytest_)
        settings = config.read({"qemu": "7.2", "cache_dir": "/cache", "offline": True}, environment={})
        world.subject = subject(settings=settings)
        return world

    def test_the_suite_runs_with_what_is_measured(self, suite: SimpleNamespace) -> None:
        for way in runs.SUITE_RUNS:
            assert runs.suite(suite.subject, way) == 9.0
            options = suite.options[-1]
            assert {"tests/hotplug", "--spapr-qemu=7.2", "--spapr-cache-dir=/cache", "--spapr-offline", *way.options} <= set(
                options
            )
            assert not any("--spapr-image" in option for option in options)
            assert ("-n" in options) is (way.workers > 1)
        assert suite.subject.figures.notes["suite_tests"]["suite_vof_2"] == [{"passed": 90, "xfailed": 3}]

    def test_a_suite_that_skips_is_no_figure(self, suite: SimpleNamespace) -> None:
        suite.output = "80 passed, 13 skipped in 9.00s"
        with pytest.raises(NotMeasured, match="13 tests"):
            runs.suite(suite.subject, runs.SUITE_RUNS[0])

    def test_a_suite_of_another_size_is_no_comparison(self, suite: SimpleNamespace) -> None:
        runs.suite(suite.subject, runs.SUITE_RUNS[0])
        suite.output = "89 passed, 4 xfailed in 9.00s"
        runs.suite(suite.subject, runs.SUITE_RUNS[1])
        suite.output = "94 passed in 9.00s"
        with pytest.raises(WrongOutcome, match="94 tests, and had 93"):
            runs.suite(suite.subject, runs.SUITE_RUNS[2])

    def test_a_run_that_passes_and_one_that_fails(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert False\n")
        common = ["-p", "no:cacheprovider", "--quiet", "--rootdir", str(tmp_path)]
        seconds, output = runs.pytest(["test_it.py::test_good", *common], tmp_path)
        assert runs.counts(output) == {"passed": 1}
        assert seconds > 0
        with pytest.raises(WrongOutcome, match="ended with status 1: 1 failed"):
            runs.pytest(["test_it.py", *common], tmp_path)
        assert "assert False" in capfd.readouterr().err

    def test_an_interrupt_ends_the_run_in_good_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever ends the wait: the run hears SIGTERM, and nothing of it is left."""
        (tmp_path / "test_it.py").write_text(
            textwrap.dedent("""
                import pathlib, signal

                def test_long():
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                    print("waiting", flush=True)
                    signal.sigwait([signal.SIGTERM])
                    pathlib.Path("ended").touch()
            """)
        )
        began: list[subprocess.Popen[str]] = []

        class Interrupted(subprocess.Popen[str]):
            def communicate(self, *args: Any, **options: Any) -> Any:
                if began:
                    return super().communicate(*args, **options)
                began.append(self)
                assert self.stdout is not None
                assert any("waiting" in line for line in iter(self.stdout.readline, ""))
                raise KeyboardInterrupt

        monkeypatch.setattr(subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.pytest(["-s", "test_it.py", "-p", "no:cacheprovider"], tmp_path)
        assert began[0].returncode == 0
        assert (tmp_path / "ended").exists()


def subject(name: str = "11.1", **options: Any) -> Any:
    """A subject that has no QEMU."""
    values: dict[str, Any] = {
        "name": name,
        "figures": Figures(),
        "started": [],
        "defects": {},
        "build": SimpleNamespace(features={"x-vof"}),
        "make_template": lambda: None,
        "facts": lambda: {"name": name},
    }
    return SimpleNamespace(**values | options)


class TestRun:
    @pytest.fixture
    def jobs(self, monkeypatch: pytest.MonkeyPatch) -> list[machines.Job]:
        jobs: list[machines.Job] = []
        monkeypatch.setattr(run, "JOBS", jobs)
        monkeypatch.setattr(runs, "plugin", lambda: iter([("empty_test", 0.1)]))
        return jobs

    def make(self, tmp_path: Path, *subjects: Any, rounds: int = 3) -> run.Run:
        return run.Run(
            plan=run.Plan(rounds, 0),
            subjects=subjects,
            progress=NullProgress(),
            stderr=io.StringIO(),
            file=tmp_path / "bench.json",
            host_facts=host.facts(),
        )

    def test_rounds_go_through_all_jobs_with_all_builds(self, tmp_path: Path, jobs: list[machines.Job]) -> None:
        order: list[str] = []

        def job(title: str) -> machines.Job:
            def measure(subject: Any) -> machines.Values:
                order.append(f"{title} {subject.name}")
                return [("reset", 1.0)]

            return machines.Job(title, ("reset",), 1, measure)

        jobs.extend([job("a"), job("b")])
        made = self.make(tmp_path, subject("x"), subject("y"), rounds=2)
        made.measure()
        assert order[:4] == ["a x", "a y", "b x", "b y"]
        assert sorted(order[4:]) == sorted(order[:4])
        assert order[4:] != order[:4]
        made.write()
        told = json.loads(made.file.read_text())
        assert told["complete"] is True
        assert told["subjects"][0]["measures"]["reset"]["samples"] == [[0, 1.0], [0, 1.0], [1, 1.0], [1, 1.0]]
        assert told["plugin"]["measures"]["empty_test"]["median"] == 0.1
        assert told["errors"] == []
        assert {bar["measure"] for bar in told["bars"]} == {bar.key for bar in (*BARS, *PLUGIN_BARS)}

    def test_what_fails_is_told_and_the_others_go_on(self, tmp_path: Path, jobs: list[machines.Job]) -> None:
        def bad(_: Any) -> machines.Values:
            yield "core_cycle", 0.1
            raise WrongOutcome("the core stayed, see /home/me/x/y\nmore")

        jobs.extend(
            [
                machines.Job("bad", ("core_cycle",), 1, bad),
                machines.Job("good", ("reset",), 1, lambda _: [("reset", 2.0)]),
                machines.Job("lacking", ("vof_",), 1, bad, lambda _: "no VOF"),
            ]
        )
        one = subject()
        made = self.make(tmp_path, one, rounds=1)
        made.measure()
        assert one.figures.median("reset") == 2.0
        assert one.figures.median("core_cycle") is None
        assert one.figures.missing == {"lacking": "no VOF"}
        assert [(error["what"], error["said"]) for error in made.errors] == [("bad", "the core stayed, see <path>")]
        assert made.errors[0]["error"] == "WrongOutcome"

    def test_a_known_defect_is_no_failure(
        self, tmp_path: Path, jobs: list[machines.Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "crash_defect", lambda machine: SimpleNamespace(id=machine))

        def dies(subject: Any) -> machines.Values:
            subject.started.append("tcg-core-removal")
            raise MachineDied("died", -signal.SIGSEGV)

        jobs.append(machines.Job("dies", ("core_cycle",), 1, dies))
        one = subject()
        made = self.make(tmp_path, one, rounds=2)
        made.measure()
        assert one.defects == {"tcg-core-removal": 2}
        assert made.errors == []

    def test_ctrl_c_leaves_what_there_is(
        self, tmp_path: Path, jobs: list[machines.Job], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(_: Any) -> machines.Values:
            yield "core_cycle", 0.1
            raise KeyboardInterrupt

        jobs.append(machines.Job("good", ("reset",), 1, lambda _: [("reset", 2.0)]))
        jobs.append(machines.Job("interrupted", ("core_cycle",), 1, interrupted))
        one = subject(
            build=SimpleNamespace(features=(), version_text="QEMU 1"),
            accelerator="tcg",
            image=SimpleNamespace(kernel_release="6.1"),
            spec=SimpleNamespace(memory=1024),
            facts=lambda: {"name": "11.1", "image": "debian-12"},
        )
        made = self.make(tmp_path, one)
        with pytest.raises(KeyboardInterrupt):
            command._measured(made, check=False)
        told = json.loads(made.file.read_text())
        assert told["complete"] is False
        assert told["subjects"][0]["measures"]["reset"]["median"] == 2.0
        assert "interrupted" in capsys.readouterr().out

    @pytest.mark.parametrize(("check", "status"), [(False, 0), (True, 1)])
    def test_only_a_ratio_fails_a_run_and_only_when_asked(
        self, tmp_path: Path, jobs: list[machines.Job], check: bool, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, "_show", lambda _: None)
        slow = [("slof_running", 5.0), ("clone_running", 1.0)]
        jobs.append(machines.Job("slow", ("slof_",), 1, lambda _: slow))
        assert command._measured(self.make(tmp_path, subject()), check=check) == status

    def test_a_time_fails_no_run(self, tmp_path: Path, jobs: list[machines.Job], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "_show", lambda _: None)
        jobs.append(machines.Job("slow", ("core_",), 1, lambda _: [("core_cycle", 99.0)]))
        assert command._measured(self.make(tmp_path, subject()), check=True) == 0

    def test_something_that_was_not_measured_fails_it(
        self, tmp_path: Path, jobs: list[machines.Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bad(_: Any) -> machines.Values:
            raise SpaprError("no")

        monkeypatch.setattr(command, "_show", lambda _: None)
        jobs.append(machines.Job("bad", ("core_",), 1, bad))
        assert command._measured(self.make(tmp_path, subject()), check=False) == 1

    def test_suites_come_last_and_the_first_makes_the_templates(
        self, tmp_path: Path, jobs: list[machines.Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []

        def suite(_: Any, way: runs.SuiteRun) -> float:
            order.append(way.key)
            return 1.0

        monkeypatch.setattr(runs, "suite", suite)
        jobs.append(machines.Job("a", ("reset",), 1, lambda _: [("reset", 1.0)]))
        with_vof, without = subject(), subject("5.2", build=SimpleNamespace(features=set()))
        made = self.make(tmp_path, with_vof, without, rounds=1)
        made.plan = run.Plan(1, 1)
        made.measure()
        assert order[:2] == ["suite_first_2"] * 2
        assert sorted(order[2:]) == sorted(
            [way.key for way in runs.SUITE_RUNS] + [way.key for way in runs.SUITE_RUNS if way.mode != "vof"]
        )
        assert set(without.figures.missing) == {"suite_vof_1", "suite_vof_2"}
        assert made.errors == []

    def test_the_plan_knows_what_it_takes(self) -> None:
        assert run.Plan(2, 0).seconds(1) == pytest.approx(2 * run.Plan(1, 0).seconds(1))
        assert run.Plan(1, 1).seconds(1) > run.Plan(1, 0).seconds(1) + 1000

    def test_rotation(self) -> None:
        assert [run.rotated("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
        assert run.rotated([], 3) == []


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--rounds=0"], "'0' is no number of rounds"),
            (["--rounds", "many"], "'many' is no number of rounds"),
            (["--suite=0"], "'0' is no number of rounds"),
            (["--suite", "--no-suite"], "not allowed with argument"),
            (["--quick"], "unrecognized arguments: --quick"),
        ],
    )
    def test_bad_arguments(self, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--qemu=/nowhere/qemu", "--json={}/x.json"], "--spapr-qemu=/nowhere/qemu: there is no such file"),
            (["--qemu=5.0", "--json={}/x.json"], "no packaged build has this name"),
            (["--json=/proc/nowhere/x.json"], "--json=/proc/nowhere/x.json: cannot be written"),
        ],
    )
    def test_what_cannot_be_had(
        self, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert command.main([argument.format(tmp_path) for argument in arguments]) == 2
        assert words in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_suite(self) -> None:
        parse = command._parser().parse_args
        assert [parse(words).suite for words in ([], ["--suite"], ["--suite", "3"], ["--no-suite"])] == [0, 1, 3, 0]

    def test_builds_of_the_same_version_get_numbers(self) -> None:
        def build(name: str, digest: str) -> Any:
            return SimpleNamespace(name=name, version=(11, 1, 3), sha256=digest)

        subjects = [
            SimpleNamespace(name=column(one), build=one) for one in (build("/a/q", "1"), build("/b/q", "2"), build("7.2", "3"))
        ]
        command._name_apart(subjects)  # type: ignore[arg-type]
        assert [one.name for one in subjects] == ["11.1.3", "11.1.3 (2)", "7.2"]
        with pytest.raises(SpaprError, match="named twice"):
            command._name_apart([*subjects, subjects[0]])  # type: ignore[list-item]
