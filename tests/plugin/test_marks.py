"""Marks: whose word counts, and what is refused before any test runs."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("stubbed")


def test_the_closest_mark_wins_key_by_key(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.spapr(cpus=2, max_cpus=4, cpu="power8")

        @pytest.mark.spapr(cpus=3, memory=512)
        class TestIt:
            @pytest.mark.spapr(memory=768, kernel_args="nosmt debug", qemu_args=["-S", "a b"])
            def test_it(self, machine):
                spec = machine.spec
                assert (spec.cpus, spec.max_cpus, spec.cpu, spec.memory) == (3, 4, "power8", 768)
                assert spec.kernel_args == ("nosmt", "debug")
                assert spec.qemu_args == ("-S", "a b")
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_factory_wins_over_marks(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.spapr(cpus=2, max_cpus=4)
        def test_it(launch_machine):
            one, two = launch_machine(), launch_machine(cpus=1)
            assert (one.spec.cpus, two.spec.cpus, two.spec.max_cpus) == (2, 1, 4)
            with pytest.raises(Exception, match="launch_machine.. knows no 'cores'. Allowed: cpus="):
                launch_machine(cores=3)
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "marked", "hows"),
    [
        ((), "", "clone clone boot"),
        (("--spapr-start=boot",), "", "boot clone boot"),
        ((), "start='boot'", "boot clone boot"),
        (("--spapr-start=boot",), "start='clone'", "clone clone boot"),
    ],
)
def test_how_a_machine_is_started(pytester: pytest.Pytester, options: tuple[str, ...], marked: str, hows: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from pytest_spapr.case import CASE

        @pytest.mark.spapr({marked})
        def test_it(request, machine, launch_machine):
            launch_machine(start="clone")
            launch_machine(start="boot")
            assert " ".join(launch.how for launch in request.node.stash[CASE].launches) == {hows!r}
        """
    )
    pytester.runpytest(*options).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "shape", "firmware"),
    [
        ((), "", "auto"),
        (("--spapr-firmware=slof",), "", "slof"),
        (("--spapr-firmware=slof",), "firmware='vof'", "vof"),
        (("--spapr-firmware=vof",), "image=None", "auto"),
    ],
)
def test_which_firmware_boots(pytester: pytest.Pytester, options: tuple[str, ...], shape: str, firmware: str) -> None:
    pytester.makepyfile(f"def test_it(launch_machine): assert launch_machine({shape}).spec.firmware == {firmware!r}")
    pytester.runpytest(*options).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("shape", "machine"),
    [
        ("", ("pseries,ic-mode=xics", "power8", ("disable_radix",))),
        ("machine='pseries-7.2', cpu='power9', kernel_args='quiet'", ("pseries-7.2", "power9", ("disable_radix", "quiet"))),
        # Nobody is there to read them.
        ("image=None", ("pseries,ic-mode=xics", "power8", ())),
    ],
)
def test_the_options_shape_what_a_test_leaves_open(pytester: pytest.Pytester, shape: str, machine: tuple[object, ...]) -> None:
    pytester.makepyfile(
        f"""
        def test_it(launch_machine):
            spec = launch_machine({shape}).spec
            assert (spec.machine, spec.cpu, spec.kernel_args) == {machine!r}
        """
    )
    options = ("--spapr-machine=pseries,ic-mode=xics", "--spapr-cpu=power8", "--spapr-kernel-args=disable_radix")
    pytester.runpytest(*options).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("spapr(cores=2)", "@pytest.mark.spapr knows no 'cores'. Allowed: cpus=, max_cpus=, threads=, memory=, *"),
        ("spapr(2)", "@pytest.mark.spapr takes no positional arguments, got 2. Allowed: cpus=*"),
        ("spapr(cpus='two')", "@pytest.mark.spapr: cpus must be a whole number, got 'two'."),
        ("spapr(cpus=True)", "@pytest.mark.spapr: cpus must be a whole number, got True."),
        ("spapr(kernel_args=1)", "@pytest.mark.spapr: kernel_args must be a string or a list of strings, got 1."),
        ("spapr(cpus=9, max_cpus=8)", "*max_cpus*"),
        ("spapr(memory=100)", "*memory=100*"),
        ("spapr(firmware='bios')", "*firmware*"),
        ("spapr(start='copy')", "@pytest.mark.spapr: start must be one of clone, boot, got 'copy'."),
        ("spapr_defect('no-such')", "@pytest.mark.spapr_defect names the unknown defect 'no-such'. Known: *tcg-core-removal*"),
        ("spapr_defect(['no-such'])", "@pytest.mark.spapr_defect names the unknown defect [[]'no-such']. Known: *"),
        ("spapr_defect", "@pytest.mark.spapr_defect takes exactly one argument, the id of a known defect."),
    ],
)
def test_a_bad_mark_names_the_test_and_what_is_allowed(pytester: pytest.Pytester, mark: str, words: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test_it(machine): pass\ndef test_other(): pass")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: test_a_bad_mark*.py::test_it: {words}")
    result.stderr.no_fnmatch_line("*Traceback*")
    result.assert_outcomes()


def test_every_bad_mark_is_told_at_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.spapr(1)
        def test_one(): pass
        @pytest.mark.spapr(a=1)
        def test_two(): pass
        """
    )
    pytester.runpytest().stderr.fnmatch_lines(["*::test_one: *", "*::test_two: *"])


def test_the_marks_are_registered(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.spapr(cpus=, *", "@pytest.mark.spapr_defect(id): *"])


DEFECT = """
import pytest

@pytest.mark.spapr_defect("tcg-core-removal")
def test_it(machine):
    assert {result}
"""


def test_a_known_defect_is_a_strict_xfail_where_the_build_has_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(DEFECT.format(result=False))
    result = pytester.runpytest("-rx")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["known defects met *1 tcg-core-removal", "XFAIL*known defect tcg-core-removal: *"])


def test_a_known_defect_that_is_mended_is_noticed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(DEFECT.format(result=True))
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("*XPASS(strict)*known defect tcg-core-removal*")


def test_a_known_defect_does_not_excuse_a_failure_of_another_kind(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(DEFECT.format(result="1 // 0"))
    pytester.runpytest().assert_outcomes(failed=1)


@pytest.mark.parametrize(("passes", "outcome"), [(True, "passed"), (False, "failed")])
def test_a_build_without_the_defect_gets_no_excuse(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, passes: bool, outcome: str
) -> None:
    from pytest_spapr import cells

    from . import stubs

    monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: stubs.build(version=(11, 1, 0)))
    pytester.makepyfile(DEFECT.format(result=passes))
    pytester.runpytest().assert_outcomes(**{outcome: 1})


@pytest.mark.parametrize(
    ("options", "outcomes"),
    [
        ((), {"passed": 2, "deselected": 3}),
        (("-m", "spapr_slow"), {"passed": 2, "deselected": 3}),
        (("-m", "spapr_slow or not spapr_slow"), {"passed": 4, "deselected": 1}),
        (("-m", "not spapr_slow"), {"passed": 2, "deselected": 3}),
        (("-m", "spapr_vfio_nested"), {"passed": 1, "deselected": 4}),
    ],
)
def test_slow_tests_run_where_they_are_asked_for(
    pytester: pytest.Pytester, options: tuple[str, ...], outcomes: dict[str, int]
) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_quick(): pass

        @pytest.mark.spapr_slow
        def test_slow(): pass

        @pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.spapr_slow)])
        def test_ladder(rounds): pass

        @pytest.mark.spapr_vfio_nested
        def test_nested(): pass
        """
    )
    pytester.runpytest("--strict-markers", *options).assert_outcomes(**outcomes)
