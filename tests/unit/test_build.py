"""The probe of a QEMU build, against scripted ones."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.errors import BuildError
from pytest_spapr.qemu import behaviour, build
from pytest_spapr.qemu.behaviour import BEHAVIOURS, NotProbed, by_version
from pytest_spapr.qemu.build import QemuBuild, probe

from . import fake_qemu


def probed(binary: Path, cache: Path | None = None, env: dict[str, str] | None = None) -> QemuBuild:
    return probe([str(binary)], env or {}, binary, cache, "mine")


def answering(**answers: Any) -> fake_qemu.Script:
    return {name.replace("_", "-"): [{"return": answer}] for name, answer in answers.items()}


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return fake_qemu.install(tmp_path / "qemu-system-ppc64")


def test_what_a_build_can_do(binary: Path) -> None:
    found = probed(binary, env={"QEMU_MODULE_DIR": "/nowhere"})
    assert found.name == "mine"
    assert found.command == (str(binary),)
    assert found.env == {"QEMU_MODULE_DIR": "/nowhere"}
    assert found.version == (7, 2, 22)
    assert found.version_text == "QEMU 7.2.22 (Debian 1:7.2)"
    assert found.machines == {"pseries", "pseries-7.2", "pseries-7.1", "none"}
    assert found.accelerators == {"tcg"}
    # The fake has one answer for every qom-list-types.
    assert found.features - BEHAVIOURS.keys() == {"set-action", "DEVICE_DELETED", "-sandbox", "x-vof", "pc-dimm"}
    assert found.devices == {"pc-dimm"}


def test_a_build_without_a_package_name(tmp_path: Path) -> None:
    script = answering(query_version={"qemu": {"major": 11, "minor": 1, "micro": 50}, "package": ""})
    found = probed(fake_qemu.install(tmp_path / "qemu", script))
    assert found.package is None
    assert found.version_text == "QEMU 11.1.50"


@pytest.mark.parametrize(
    ("kvm", "expected"),
    [
        ({"present": False, "enabled": False}, {"tcg"}),
        ({"present": True, "enabled": False}, {"tcg"}),
        ({"present": True, "enabled": True}, {"tcg", "kvm"}),
    ],
)
def test_kvm_counts_only_where_it_works(tmp_path: Path, kvm: dict[str, bool], expected: set[str]) -> None:
    assert probed(fake_qemu.install(tmp_path / "qemu", answering(query_kvm=kvm))).accelerators == expected


class TestBehaviour:
    """What a build does on hot-unplug; the fake does nothing at all."""

    def test_of_one_that_cannot_be_asked_is_taken_from_its_version(self, binary: Path) -> None:
        found = probed(binary)
        assert found.features & BEHAVIOURS.keys() == by_version((7, 2, 22))
        assert found.unprobed is not None
        assert "could not be probed" in found.unprobed

    def test_of_one_that_ends_is_told_with_its_last_words(self, tmp_path: Path) -> None:
        script = {"start": [{"stderr": "no such machine"}, {"exit": 1}]}
        with pytest.raises(NotProbed, match="QEMU ended and said: no such machine"):
            behaviour.observe(fake_qemu.command(script), {}, modern_monitor=False)

    def test_is_remembered_and_that_it_was_not_observed_is_not(
        self, binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = tmp_path / "cache" / "probes"
        assert probed(binary, cache).unprobed
        asked: list[Any] = []

        def observe(*arguments: Any, **_: Any) -> frozenset[str]:
            asked.append(arguments)
            return frozenset({"unplug-timer"})

        monkeypatch.setattr(behaviour, "observe", observe)
        for _ in range(2):
            found = probed(binary, cache)
            assert found.features & BEHAVIOURS.keys() == {"unplug-timer"}
            assert found.unprobed is None
        assert len(asked) == 1

    @pytest.mark.parametrize(
        ("version", "has", "lacks"),
        [
            ((5, 2, 0), "repeat-dimm-rejected", "repeat-pci-rejected"),
            ((6, 0, 0), "dimm-reconfigure-heard", "core-refusal-heard"),
            ((6, 1, 0), "core-refusal-heard", "dimm-refusal-doubled"),
            ((99, 0, 0), "dimm-refusal-doubled", "unplug-timer"),
        ],
    )
    def test_of_releases(self, version: tuple[int, int, int], has: str, lacks: str) -> None:
        assert has in by_version(version)
        assert lacks not in by_version(version)


class TestCache:
    """Of the answers, by the binary's hash."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        return tmp_path / "cache" / "probes"

    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """How often a binary was run."""
        made: list[Any] = []
        run = build._run

        def counted(*arguments: Any) -> tuple[int, str, str]:
            made.append(arguments)
            return run(*arguments)

        monkeypatch.setattr(build, "_run", counted)
        return made

    def test_a_known_build_is_not_run(self, binary: Path, cache: Path, runs: list[Any]) -> None:
        first = probed(binary, cache)
        assert runs
        runs.clear()
        assert probed(binary, cache) == first
        assert not runs
        assert [path.suffix for path in cache.iterdir()] == [".json"]
        assert stat.S_IMODE(cache.parent.stat().st_mode) == 0o700

    def test_another_content_is_another_build(self, binary: Path, cache: Path) -> None:
        probed(binary, cache)
        times = binary.stat()
        size = times.st_size
        other = answering(query_version={"qemu": {"major": 7, "minor": 2, "micro": 23}, "package": ""})
        fake_qemu.install(binary, other)
        os.truncate(binary, max(size, binary.stat().st_size))
        os.utime(binary, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert probed(binary, cache).version == (7, 2, 23)

    def test_another_environment_is_another_build(self, binary: Path, cache: Path, runs: list[Any]) -> None:
        probed(binary, cache)
        runs.clear()
        probed(binary, cache, env={"QEMU_MODULE_DIR": "/nowhere"})
        assert runs

    @pytest.mark.parametrize("tamper", [lambda text: text[:-40], lambda text: text.replace("ppc64", "ppcxx"), lambda text: ""])
    def test_a_damaged_entry_is_none(self, binary: Path, cache: Path, runs: list[Any], tamper: Any) -> None:
        first = probed(binary, cache)
        [entry] = cache.iterdir()
        entry.write_text(tamper(entry.read_text()))
        runs.clear()
        assert probed(binary, cache) == first
        assert runs
        runs.clear()
        probed(binary, cache)
        assert not runs

    def test_kvm_is_asked_for_each_time_where_it_is_compiled_in(self, tmp_path: Path, cache: Path) -> None:
        """It may work today and not tomorrow: the kernel module, the permissions."""
        binary = tmp_path / "qemu"
        state = tmp_path / "kvm"
        works = fake_qemu.install(tmp_path / "works", answering(query_kvm={"present": True, "enabled": True}))
        fails = fake_qemu.install(tmp_path / "fails", answering(query_kvm={"present": True, "enabled": False}))
        binary.write_text(f'#!/bin/sh\nif [ -e {state} ]; then exec {works} "$@"; else exec {fails} "$@"; fi\n')
        binary.chmod(0o755)
        assert probed(binary, cache).accelerators == {"tcg"}
        state.touch()
        assert probed(binary, cache).accelerators == {"tcg", "kvm"}
        state.unlink()
        assert probed(binary, cache).accelerators == {"tcg"}

    def test_a_cache_that_cannot_be_written_is_no_error(self, binary: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert probed(binary, tmp_path / "file" / "probes").version == (7, 2, 22)


class TestUnusable:
    """Each with its own message, which says what to give instead."""

    def refused(self, binary: Path, cache: Path | None = None) -> str:
        with pytest.raises(BuildError) as refusal:
            probed(binary, cache)
        text = str(refusal.value)
        assert text.startswith(str(binary))
        assert "\n" not in text
        return text.removeprefix(str(binary))

    def test_no_such_file(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path / "none").startswith(": there is no such file. Give the path of a qemu-system-ppc64")

    def test_a_directory(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path).startswith(" is a directory, not a file. Give")

    def test_a_path_through_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert self.refused(tmp_path / "file" / "qemu").startswith(" cannot be read: Not a directory.")

    def test_not_executable(self, binary: Path) -> None:
        binary.chmod(0o644)
        assert self.refused(binary).startswith(" is not executable: `chmod +x` it")

    def test_of_another_architecture(self, tmp_path: Path) -> None:
        binary = tmp_path / "qemu"
        # An ELF header for a big-endian machine that is nobody's host.
        binary.write_bytes(b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02\xff\xff" + bytes(44))
        binary.chmod(0o755)
        assert self.refused(binary).startswith(" cannot be executed: Exec format error.")

    def test_not_a_qemu_but_talkative(self, tmp_path: Path) -> None:
        script = {"start": [{"stderr": "unknown option: -machine"}, {"exit": 1}]}
        assert self.refused(fake_qemu.install(tmp_path / "ls", script)).startswith(
            " is not a QEMU: asked for its QMP it ended with status 1 and said: unknown option: -machine. Give"
        )

    def test_not_a_qemu_and_silent(self, tmp_path: Path) -> None:
        script: fake_qemu.Script = {"start": [{"exit": 0}]}
        assert " is not a QEMU: asked for its QMP it ended with status 0 and said: nothing. Give" in self.refused(
            fake_qemu.install(tmp_path / "true", script)
        )

    @pytest.mark.parametrize("line", ['{"id": ["query-version"]}', "[1]", '{"id": "query-version"}', "\x00\xff{"])
    def test_not_a_qemu_but_speaks_json(self, tmp_path: Path, line: str) -> None:
        script = {"start": [{"stdout": line}, {"exit": 0}]}
        assert " is not a QEMU" in self.refused(fake_qemu.install(tmp_path / "jq", script))

    def test_for_another_target(self, tmp_path: Path) -> None:
        binary = fake_qemu.install(tmp_path / "qemu-system-x86_64", answering(query_target={"arch": "x86_64"}))
        assert self.refused(binary).startswith(" is a QEMU for x86_64, expected one for ppc64. Give")

    def test_without_pseries(self, tmp_path: Path) -> None:
        machines = [{"name": "none"}, {"name": "g3beige"}, {"name": "powernv9"}]
        binary = fake_qemu.install(tmp_path / "qemu", answering(query_machines=machines))
        assert self.refused(binary) == " has no pseries machine, only g3beige, none, powernv9. Build it with CONFIG_PSERIES=y."

    def test_crashing_at_once(self, tmp_path: Path) -> None:
        script = {"start": [{"stderr": "double free"}, {"signal": signal.SIGABRT}]}
        assert " is a QEMU that failed: asked for its QMP it was killed by SIGABRT and said: double free." in self.refused(
            fake_qemu.install(tmp_path / "qemu", script)
        )

    def test_crashing_at_a_question(self, tmp_path: Path) -> None:
        script = {"query-machines": [{"stderr": "boom"}, {"exit": 3}]}
        assert " is a QEMU that failed: asked for its QMP it ended with status 3 and said: boom." in self.refused(
            fake_qemu.install(tmp_path / "qemu", script)
        )

    def test_too_old_for_a_question(self, tmp_path: Path) -> None:
        script = {"query-target": [{"error": ["CommandNotFound", "The command query-target has not been found"]}]}
        text = self.refused(fake_qemu.install(tmp_path / "qemu", script))
        assert " is a QEMU that failed" in text

    def test_one_that_is_broken_is_not_remembered(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        self.refused(fake_qemu.install(tmp_path / "qemu", answering(query_target={"arch": "arm"})), cache)
        assert not cache.exists()

    def test_silent_for_ever(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is killed, with what it started: that would hold the pipes open."""
        monkeypatch.setattr(build, "_SECONDS", 0.5)
        child = tmp_path / "child"
        binary = fake_qemu.install(tmp_path / "qemu", {"start": [{"child": str(child)}, {"hang": True}]})
        assert " did not answer QMP within 0.5 s and was killed." in self.refused(binary)
        assert fake_qemu.gone(int(child.read_text()))
