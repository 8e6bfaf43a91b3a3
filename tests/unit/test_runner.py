"""The parts of ci/ppc64-runner that need no runner."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.runner import __main__ as command
from ci.runner import payload, verdict, wheels
from ci.runner.machine import IMAGE, SPEC, Runner, forget_others
from pytest_spapr import config
from pytest_spapr.cache import Cache
from pytest_spapr.errors import ConfigError, MachineError, SpaprError
from pytest_spapr.guest.completed import Completed
from pytest_spapr.images import build as images
from pytest_spapr.images import recipe, store
from pytest_spapr.images.cpio import file
from pytest_spapr.progress import NullProgress
from pytest_spapr.templates import store as templates
from pytest_spapr.templates.key import FORMAT, unsuitable
from tests.unit.cached_image import publish_image

ONLINE = config.read({}, environment={})
SUITE = wheels.ROOT / "tests/hotplug"
RAN_BY = '<properties><property name="spapr_accel" value="{accel}"/></properties>'
PASSED = f'<testcase classname="x" name="{{name}}" time="1.5">{RAN_BY}{{more}}</testcase>'


def an_image(directory: Path) -> store.GuestImage:
    cache = Cache(directory)
    return store.open_image(cache.entry(store.KIND, publish_image(cache)))


def report(tmp_path: Path, *cases: tuple[str, str, str]) -> list[verdict.Case]:
    text = "".join(PASSED.format(name=name, accel=accel, more=more) for name, accel, more in cases)
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    return verdict.read(path)


class TestVerdict:
    EXPECTED = (f"pytest_spapr.suite.test_mode::{verdict.PROOF}", "pytest_spapr.suite.test_dimms::test_a")
    GOOD = ((verdict.PROOF, "kvm", ""), ("test_a[1]", "kvm", ""), ("test_a[2]", "kvm", ""))

    def complaints(self, tmp_path: Path, *cases: tuple[str, str, str], status: int = 0) -> list[str]:
        return verdict.complaints(report(tmp_path, *cases), self.EXPECTED, status)

    def test_all_passed_on_kvm(self, tmp_path: Path) -> None:
        assert self.complaints(tmp_path, *self.GOOD) == []

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            (("test_a[1]", "kvm", "<failure/>"), ["test_a[1]: failed"]),
            (("test_a[1]", "kvm", "<error/>"), ["test_a[1]: error"]),
            (("test_a[1]", "kvm", '<skipped type="pytest.skip"/>'), ["test_a[1]: skipped"]),
            (("test_a[1]", "tcg", ""), ["test_a[1]: its machine was run by tcg, not by KVM"]),
            (("test_b", "kvm", '<skipped type="pytest.xfail"/>'), []),
        ],
        ids=["failure", "error", "skip", "TCG", "known defect"],
    )
    def test_each_test_counts(self, tmp_path: Path, bad: tuple[str, str, str], says: Sequence[str]) -> None:
        assert self.complaints(tmp_path, *self.GOOD, bad) == says

    @pytest.mark.parametrize("proof", [(verdict.PROOF, "tcg", ""), (verdict.PROOF, "kvm", "<failure/>"), ("test_c", "kvm", "")])
    def test_without_the_words_of_qemu_nothing_is_proven(self, tmp_path: Path, proof: tuple[str, str, str]) -> None:
        assert "no query-kvm of a machine said that KVM runs it" in self.complaints(tmp_path, proof, *self.GOOD[1:])

    def test_a_test_that_was_asked_for_must_have_run(self, tmp_path: Path) -> None:
        assert self.complaints(tmp_path, self.GOOD[0]) == ["test_a was not run"]

    def test_the_status_of_pytest_counts(self, tmp_path: Path) -> None:
        assert self.complaints(tmp_path, *self.GOOD, status=3) == ["pytest ended with status 3"]

    def test_no_report_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(verdict.NoReport, match="is no report"):
            verdict.read(tmp_path / "junit.xml")


class TestPayload:
    @pytest.mark.parametrize("test", ["tests/hotplug/test_a.py::test_b[1]", "test_a.py::test_b[1]"])
    def test_a_test_is_named_as_it_is_installed(self, test: str) -> None:
        assert payload.installed_name(test) == "pytest_spapr.suite.test_a::test_b[1]"
        assert payload.installed_name("test_a.py") == "pytest_spapr.suite.test_a"

    def test_wheels_image_and_settings_are_in_it(self, tmp_path: Path) -> None:
        wheel = tmp_path / "x-1-py3-none-any.whl"
        wheel.write_bytes(b"wheel")
        guest = an_image(tmp_path / "image")
        found = payload.tree([wheel], guest, ["t::one", "t::two"])
        assert found["payload/wheels/x-1-py3-none-any.whl"].data == b"wheel"
        assert found["payload/tests"].data == b"t::one\nt::two\n"
        assert stat.S_IMODE(found[f"payload/image/{store.CLIENT_KEY}"].mode) == 0o600
        assert {f"payload/image/{name}" for name in (*store.FILES, store.MANIFEST)} <= found.keys()
        script = f"{found['payload/settings'].data.decode()}echo $SPAPR_IMAGE $SPAPR_STRICT"
        assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "/payload/image yes\n"


class TestWheels:
    def test_all_that_the_package_needs_at_run_time_and_no_more(self) -> None:
        project = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())["project"]
        tools = [line.partition(";") for line in project["optional-dependencies"]["dev"]]
        extras = [f"{tool}; {f'({marker}) and ' if marker else ''}extra == 'dev'" for tool, _, marker in tools]
        found = wheels.required([*project["dependencies"], *extras])
        assert {"pytest", "pluggy", "paramiko", "invoke", "bcrypt", "cryptography", "cffi", "qemu-qmp", "pycdlib"} <= found
        assert found.isdisjoint({"ruff", "mypy", "sphinx", "hypothesis", "pytest-xdist", "six"})

    def test_tools_of_which_it_has_no_wheel_are_not_asked_for(self) -> None:
        tools = tomllib.loads((wheels.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
        assert {"ruff", "mypy"} <= (asked := set(wheels._asked(tools)))
        assert "playwright" not in asked

    def test_one_that_is_not_installed_is_named(self) -> None:
        with pytest.raises(wheels.NoWheels, match="no-such-package is not installed"):
            wheels.required(["no-such-package>=1"])

    def test_they_are_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def pip(words: Sequence[str], directory: Path) -> None:
            asked.append(words)
            (directory / "a-1-py3-none-any.whl").touch()

        monkeypatch.setattr(wheels, "_pip", pip)
        cache = Cache(tmp_path)
        wheel = tmp_path / "own.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(
                "own-1.dist-info/METADATA", "Name: own\nRequires-Dist: cryptography>=45\nRequires-Dist: pynacl\n\ntext\n"
            )
        first = wheels.needed(wheel, ONLINE, cache, NullProgress())
        assert wheels.needed(wheel, ONLINE, cache, NullProgress()) == first
        assert [path.name for path in first] == ["a-1-py3-none-any.whl"]
        [words] = asked
        assert {word.partition("==")[0] for word in words if "==" in word} == {"cryptography", "cffi", "pycparser"}
        monkeypatch.setattr(wheels, "_digest_of_sources", iter(["1", "1", "2"]).__next__)
        assert wheels.own(ONLINE, cache, NullProgress()) == wheels.own(ONLINE, cache, NullProgress())
        wheels.own(ONLINE, cache, NullProgress())
        assert len(asked) == 3, "another checkout has another wheel"
        offline = config.read({"offline": True}, environment={})
        assert wheels.needed(wheel, offline, cache, NullProgress()) == first
        monkeypatch.setattr(wheels, "_digest_of_sources", lambda: "3")
        with pytest.raises(
            ConfigError, match="this checkout's wheel is not in the cache, and --spapr-offline forbids to fetch it"
        ):
            wheels.own(offline, cache, NullProgress())
        assert len(asked) == 3

    def test_pips_words_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(wheels.NoWheels, match=r"pip wheel failed \(exit status 1\)"):
            wheels._pip(["wheel", "--no-index", str(tmp_path / "nothing")], tmp_path)


def test_the_image_has_from_debian_what_pypi_lacks() -> None:
    packages = recipe.load(IMAGE).packages
    assert {"python3-bcrypt", "python3-nacl", "python3-pip", "qemu-system-ppc"} <= set(packages)


def test_the_runner_can_be_a_template() -> None:
    assert unsuitable(SPEC) is None


@pytest.mark.parametrize("test", command.SMOKE)
def test_the_selection_is_in_the_suite(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^def {name}\(", (SUITE / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["init", "install_wheels", "run_suite"])
def test_a_script_of_the_image_is_one(name: str) -> None:
    path = recipe.recipes_directory() / IMAGE / name
    assert subprocess.run(["sh", "-n", str(path)], capture_output=True, check=False).returncode == 0


def test_images_and_templates_with_an_older_payload_go(tmp_path: Path) -> None:
    cache, plain = Cache(tmp_path), an_image(tmp_path / "any")
    with ExitStack() as hold:
        old, booted, held, current = (
            images.with_files(plain, "ppc64-runner+payload", {"payload/tests": file(name.encode())}, cache, on)
            for name, on in (("old", None), ("booted", None), ("held", hold), ("current", None))
        )
        for key, image in (("old", old), ("used", booted), ("another", replace(plain, name="debian-12"))):
            facts = {"initramfs": image.manifest["files"][store.INITRAMFS]["sha256"]}
            said = {"format": FORMAT, "image": image.name, "facts": facts, "unsound": "made by hand"}
            with cache.publish(templates.KIND, key) as directory:
                (directory / templates.MANIFEST).write_text(json.dumps(said))
        with cache.publish(store.KIND, "ppc64-runner-1"):
            pass
        with cache.using(templates.KIND, "used"):
            forget_others(cache, current)
        assert {entry.key for entry in cache.entries(templates.KIND)} == {"used", "another"}
        kept = {"ppc64-runner-1", *(image.directory.name for image in (booted, held, current))}
        assert {entry.key for entry in cache.entries(store.KIND)} == kept
    forget_others(cache, current)
    assert {entry.key for entry in cache.entries(store.KIND)} == {"ppc64-runner-1", current.directory.name}


def without_filter(method: Callable[..., object]) -> Callable[..., object]:
    def called(*arguments: object, **options: object) -> object:
        if "filter" in options:
            raise TypeError("an unexpected keyword argument 'filter'")
        return method(*arguments, **options)

    return called


@pytest.mark.parametrize("filters", [True, False], ids=["filters", "3.11.2"])
def test_results_are_brought_whatever_this_python_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool) -> None:
    """Debian 12's own Python has no filters for archives."""
    if not filters:
        for name in ("extract", "extractall"):
            monkeypatch.setattr(tarfile.TarFile, name, without_filter(getattr(tarfile.TarFile, name)))
    (tmp_path / "there" / "artefacts").mkdir(parents=True)
    (tmp_path / "there" / "artefacts" / "run").write_text("x")
    (tmp_path / "there" / "artefacts" / "run").chmod(0o750)
    (tmp_path / "there" / "latest").symlink_to("artefacts")

    def run(command: str, **_: object) -> Completed:
        here = command.replace("/results", str(tmp_path / "there"))
        done = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True)
        return Completed(command, 0, done.stdout, "")

    machine: Any = SimpleNamespace(machine=SimpleNamespace(guest=SimpleNamespace(run=run)))
    launch: Any = None
    Runner(machine, launch).fetch(tmp_path / "here")
    assert (tmp_path / "here" / "latest" / "run").read_text() == "x"
    assert stat.S_IMODE((tmp_path / "here" / "artefacts" / "run").stat().st_mode) == 0o750


def test_what_cannot_be_run_is_told_with_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise MachineError("no machine")

    monkeypatch.setattr(command, "_run", fail)
    assert issubclass(MachineError, SpaprError)
    assert command.main([]) == 2
    assert capsys.readouterr().err.endswith("ci/ppc64-runner: no machine\n")


def test_a_runner_that_is_to_be_fetched_is_refused_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPAPR_OFFLINE", "yes")
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(command, "supply_build", lambda *_: None)
    assert command.main([]) == 2
    assert "the runner's image is not in the cache, and SPAPR_OFFLINE=yes forbids to fetch it. Run" in capsys.readouterr().err
