"""Options: what is checked before any test runs, and what is an error or a skip."""

from __future__ import annotations

import pytest

from pytest_spapr import cells
from pytest_spapr.errors import BuildError, MirrorError

from . import stubs

NEEDS_MACHINE = "def test_it(machine): pass"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--spapr-qemu=no/such/qemu", "--spapr-qemu=no/such/qemu: there is no such file"),
        ("--spapr-image=no/such/image", "--spapr-image=no/such/image: there is no such file or directory"),
        ("--spapr-kernel=no/vmlinux", "--spapr-kernel=no/vmlinux: there is no such file"),
        ("--spapr-modules=no/modules", "--spapr-modules=no/modules names modules but no kernel"),
        ("--spapr-vfio-host=ffff:ff:1f.7", "--spapr-vfio-host=ffff:ff:1f.7: the host has no such PCI function"),
        (
            "--spapr-image=none.qcow2",
            "--spapr-image=none.qcow2: *none.qcow2: No such file or directory. Expected is a recipe's name",
        ),
        (
            "--spapr-ssh-user=me",
            "--spapr-ssh-user=me is for a disk of your own: give it with --spapr-image=DISK.qcow2 or DISK.raw.",
        ),
        ("--spapr-contract=no/rows.toml", "*no/rows.toml cannot be read: No such file or directory"),
    ],
)
def test_a_named_thing_that_is_missing_ends_the_run_before_it_begins(pytester: pytest.Pytester, option: str, words: str) -> None:
    pytester.makepyfile("def test_unrelated(): pass")
    result = pytester.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {words}*")
    result.stderr.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "--spapr-qemu=8.8",
            "--spapr-qemu=8.8: no packaged build has this name (there are *7.2*), none that `spapr qemu build` made (there are none)*",
        ),
        ("--spapr-image=fedora-99", "no guest image is called 'fedora-99': known are *debian-12*"),
        (
            "--spapr-machine=pserie,ic-mode=xics",
            "--spapr-machine=pserie,ic-mode=xics: 7.2.22 (*) has no such machine type; it has pseries, pseries-7.2",
        ),
    ],
)
def test_an_unknown_name_ends_the_run_with_what_there_is(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str, words: str
) -> None:
    if "qemu" not in option:
        monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: stubs.build())
    pytester.makepyfile(NEEDS_MACHINE)
    result = pytester.runpytest(option, *(["--spapr-qemu=7.2"] if "machine" in option else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {words}")
    result.assert_outcomes()


def test_a_named_thing_is_not_looked_for_when_no_test_needs_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_unrelated(): pass")
    pytester.runpytest("--spapr-qemu=8.8", "--spapr-image=fedora-99").assert_outcomes(passed=1)


def test_a_qemu_that_is_none_ends_the_run_in_one_paragraph(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(NEEDS_MACHINE)
    script = pytester.path / "qemu"
    script.write_text("#!/bin/sh\necho I am no QEMU >&2\nexit 3\n")
    script.chmod(0o755)
    result = pytester.runpytest("--spapr-qemu=./qemu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: *is not a QEMU*I am no QEMU*")
    result.stderr.no_fnmatch_line("*Traceback*")


@pytest.fixture
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No QEMU on PATH, an empty cache, and a network that must not be used."""
    monkeypatch.setattr("shutil.which", lambda name: None)

    def forbidden(setting: object) -> str:
        raise AssertionError("the network was to be used")

    monkeypatch.setattr("pytest_spapr.debian.mirror.find_mirror", forbidden)


@pytest.mark.usefixtures("nothing_at_hand")
class TestWithoutQemu:
    """What a run does that asks for nothing, and where nothing is at hand."""

    def test_it_skips_with_the_reason_and_the_remedy(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(NEEDS_MACHINE)
        result = pytester.runpytest("-rs")
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(
            "SKIPPED*no qemu-system-ppc64 is on PATH*not in the cache. Give --spapr-qemu=PATH, or --spapr-qemu=*"
        )

    def test_strict_turns_the_skip_into_a_failure(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(NEEDS_MACHINE)
        result = pytester.runpytest("--spapr-strict")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines("*no qemu-system-ppc64 is on PATH*")

    def test_offline_is_an_error_once_something_was_named(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(NEEDS_MACHINE)
        result = pytester.runpytest("--spapr-qemu=7.2", "--spapr-offline")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines("ERROR: the QEMU build 7.2 is not in the cache, and --spapr-offline forbids to fetch it.*")


def test_a_default_image_that_is_not_built_skips(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: stubs.build())
    pytester.makepyfile(NEEDS_MACHINE)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        "SKIPPED*the guest image debian-12 is not in the cache. Give *--spapr-image=debian-12 to build it*"
    )


def test_an_ini_file_may_ask_for_machines(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_mirror(settings: object, cache: object, progress: object) -> None:
        raise MirrorError("no mirror is known")

    monkeypatch.setattr(cells, "supply_build", no_mirror)
    pytester.makeini("[pytest]\nspapr_image = debian-12")
    pytester.makepyfile(NEEDS_MACHINE)
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: no mirror is known")


def test_a_default_that_is_broken_fails_the_tests_that_need_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: object, cache: object, progress: object) -> None:
        raise BuildError("qemu-system-ppc64 has no pseries machine")

    monkeypatch.setattr(cells, "supply_build", broken)
    pytester.makepyfile(f"{NEEDS_MACHINE}\ndef test_unrelated(): pass")
    result = pytester.runpytest()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines("qemu-system-ppc64 has no pseries machine")


@pytest.mark.usefixtures("stubbed")
def test_kvm_named_and_absent_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(NEEDS_MACHINE)
    result = pytester.runpytest("--spapr-accel=kvm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: --spapr-accel=kvm: KVM was asked for, but QEMU 7.2.22 * can only do tcg here.*")


@pytest.mark.parametrize(("can", "taken"), [(frozenset({"tcg"}), "tcg"), (frozenset({"tcg", "kvm"}), "kvm")])
@pytest.mark.usefixtures("stubbed")
def test_auto_takes_what_qemu_can(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, can: frozenset[str], taken: str
) -> None:
    monkeypatch.setattr(cells, "supply_build", lambda settings, cache, progress: stubs.build(accelerators=can))
    pytester.makepyfile(f"def test_it(machine): assert machine.spec.accelerator == {taken!r}")
    pytester.runpytest().assert_outcomes(passed=1)


@pytest.mark.usefixtures("stubbed")
def test_the_command_line_wins_over_the_environment(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPAPR_ACCEL", "kvm")
    pytester.makepyfile(NEEDS_MACHINE)
    pytester.runpytest("--spapr-accel=tcg").assert_outcomes(passed=1)


@pytest.mark.parametrize("ini", ["spapr_keep = sometimes", "spapr_offline = perhaps"])
def test_a_bad_ini_value_is_named(pytester: pytest.Pytester, ini: str) -> None:
    pytester.makeini(f"[pytest]\n{ini}")
    pytester.makepyfile("def test_unrelated(): pass")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {ini.replace(' ', '')}: must be *")


@pytest.mark.usefixtures("stubbed")
def test_a_run_says_what_it_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(NEEDS_MACHINE)
    result = pytester.runpytest("--spapr-image=debian-12")
    result.stdout.fnmatch_lines(
        ["spapr: image debian-12 (command line)*", "spapr: cache *", "spapr: QEMU 7.2.22 *, tcg, image debian-12, Linux 6.1.0-*"]
    )


def test_an_unrelated_run_says_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_unrelated(): pass")
    pytester.runpytest().stdout.no_fnmatch_line("spapr:*")


def test_a_collection_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pytest_spapr import Contract, Guest, Outcome, PseriesMachine

        pytestmark = pytest.mark.spapr(cpus=2, max_cpus=4)

        @pytest.mark.spapr_defect("tcg-core-removal")
        def test_it(machine: PseriesMachine, guest: Guest, contract: Contract): pass
        """
    )
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            heavy = {"paramiko", "avocado", "qemu.qmp"} & set(sys.modules)
            print("imported:", ", ".join(sorted(heavy)) or "nothing heavy")
        """
    )
    # Without testinfra's own plugin, which is not ours to answer for.
    result = pytester.runpytest_subprocess("--collect-only", "-s", "--spapr-image=debian-12")
    assert result.ret == 0
    result.stdout.fnmatch_lines("imported: nothing heavy")
