"""``spapr doctor``: each check is met once with what it is to find."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_spapr import cli, config, doctor
from pytest_spapr.builds import packages, store
from pytest_spapr.cache import Cache
from pytest_spapr.config import Settings
from pytest_spapr.doctor import examine, host, python, storage, supplies, tools
from pytest_spapr.doctor.check import Check, State, Theme, as_json, usable
from pytest_spapr.errors import BuildError, ConfigError, SpaprError
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images import store as image_store
from pytest_spapr.libvirt import daemon
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.build import QemuBuild
from tests.unit.cached_image import publish_image

_REQUIREMENTS = ("pytest>=9.2", "hypothesis>=6; extra == 'explore'", "pytest-xdist>=3.8; extra == 'parallel'")
_SCHEMA = Path(doctor.__file__).with_name("schema.json")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def settings(cache: Cache) -> Settings:
    return _settings(cache)


@pytest.fixture
def key_of_image(cache: Cache) -> Path:
    """The key of an image in the cache, as the recipe debian-12 would give it."""
    return cache.entry(image_store.KIND, publish_image(cache)) / image_store.CLIENT_KEY


def _settings(cache: Cache, **given: Any) -> Settings:
    return config.read({"cache_dir": str(cache.root), **given}, environment={})


def _build(*accelerators: str) -> QemuBuild:
    return QemuBuild(
        name="mine",
        command=("qemu",),
        env={},
        binary=Path("qemu"),
        version=(11, 1, 0),
        package=None,
        machines=frozenset({"pseries"}),
        accelerators=frozenset(accelerators or {"tcg"}),
        features=frozenset(),
        devices=frozenset(),
        sha256="0",
    )


def _one(found: Check | Iterable[Check], name: str | None = None) -> Check:
    if isinstance(found, Check):
        return found
    (check,) = (check for check in found if name in (None, check.name))
    return check


def _refuse(*_: object) -> NoReturn:
    raise BuildError("it is no QEMU")


# Python


def test_an_interpreter_that_is_too_old_is_told() -> None:
    assert python.interpreter((3, 11, 2), ">=3.11").state is State.FINE
    old = python.interpreter((3, 10, 12), ">=3.11")
    assert (old.state, old.found) == (State.BROKEN, "Python 3.10.12, expected >=3.11")
    assert old.remedy is not None
    assert "ci/setup" in old.remedy


def test_a_package_that_is_missing_or_too_old_is_told_with_the_command_that_brings_it() -> None:
    def installed(name: str) -> str:
        if name == "pytest":
            return "9.1"
        raise PackageNotFoundError(name)

    needed = python.needed(_REQUIREMENTS, installed)
    assert (needed.state, needed.found) == (State.BROKEN, "pytest is 9.1, expected >=9.2")
    assert needed.remedy == f"{sys.executable} -m pip install 'pytest>=9.2'"
    explore = _one(python.extras(_REQUIREMENTS, installed), "extra explore")
    assert (explore.state, explore.found, explore.needed_for) == (
        State.LACKING,
        "hypothesis is not installed",
        "spapr explore",
    )
    assert explore.remedy == f"{sys.executable} -m pip install 'hypothesis>=6'"


def test_what_is_installed_here_is_what_the_package_asks_for() -> None:
    assert python.needed().state is State.FINE
    assert [check.name for check in python.extras()] == [f"extra {name}" for name in python.EXTRAS]


def test_every_extra_of_the_package_is_looked_at() -> None:
    from importlib.metadata import metadata

    assert set(metadata(doctor.check.DISTRIBUTION).get_all("Provides-Extra") or ()) == set(python.EXTRAS)


# The host


def test_a_directory_of_lock_files_that_is_not_ours_is_told() -> None:
    def refused() -> NoReturn:
        raise ConfigError("it is not yours alone")

    assert host.slots().state is State.FINE
    broken = host.slots(refused)
    assert (broken.state, broken.found) == (State.BROKEN, "it is not yours alone")
    assert broken.remedy is not None
    assert "TMPDIR" in broken.remedy


@pytest.mark.parametrize(
    ("available", "bound", "state", "says"),
    [
        (3_000_000, "max", State.FINE, "2929 of 3906 MiB are available"),
        (1_000_000, "max", State.BROKEN, "976 of 3906 MiB are available: a machine has 1024 MiB"),
        (3_000_000, str(600 * 2**20), State.BROKEN, "may have 600 MiB (control group): a machine has 1024 MiB"),
        (3_000_000, str(2**31), State.FINE, "may have 2048 MiB (control group)"),
    ],
)
def test_memory_is_what_is_free_and_what_the_control_group_allows(
    tmp_path: Path, available: int, bound: str, state: State, says: str
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(f"MemTotal: 4000000 kB\nMemAvailable: {available} kB\n")
    (tmp_path / "self/cgroup").write_text("0::/user/job\n")
    (tmp_path / "cgroups/user/job").mkdir(parents=True)
    (tmp_path / "cgroups/user/memory.max").write_text(f"{bound}\n")
    (tmp_path / "cgroups/user/job/memory.max").write_text("max\n")
    found = host.memory(tmp_path, tmp_path / "cgroups")
    assert found.state is state
    assert found.found.endswith(says)


def test_kvm_is_of_use_on_ppc64_only_and_may_be_absent_or_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    assert host.kvm("x86_64", device).state is State.FINE
    assert host.kvm("ppc64le", device).remedy == "sudo modprobe kvm_hv"
    device.touch()
    device.chmod(0o660)
    assert host.kvm("ppc64le", device).state is State.FINE
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(host, "_group", lambda _: "kvm")
    monkeypatch.setattr(host, "_user", lambda: "somebody")
    forbidden = host.kvm("ppc64le", device)
    assert forbidden.state is State.LACKING
    assert forbidden.found == f"{device} is -rw-rw---- of group kvm: not for this user"
    assert forbidden.remedy == "sudo usermod --append --groups kvm somebody   # then log in anew"


def test_a_directory_for_temporary_files_must_be_writable_short_and_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [check.state for check in host.temporary(Path("/tmp"))] == [State.FINE, State.FINE]
    (tmp_path / "file").touch()
    assert _one(host.temporary(tmp_path / "file")).state is State.BROKEN
    long = tmp_path / ("x" * 90)
    long.mkdir()
    assert _one(host.temporary(long), "socket paths").state is State.BROKEN
    monkeypatch.setattr(host, "_TMP_BYTES", 1 << 62)
    assert _one(host.temporary(Path("/tmp")), "temporary files").remedy == "export TMPDIR=/tmp"


def test_a_directory_of_the_longest_length_still_has_room_for_a_socket() -> None:
    import socket
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        short = Path(base, "x" * (host.LONGEST_SOCKET - host._BEHIND_TMPDIR - len(base) - 1))
        short.mkdir()
        assert _one(host.temporary(short), "socket paths").found.endswith(": 0 to spare")
        with tempfile.TemporaryDirectory(prefix="spapr-", dir=short) as made, socket.socket(socket.AF_UNIX) as server:
            server.bind(str(Path(made, "qtest")))


def test_a_host_without_loopback_is_told() -> None:
    assert host.loopback().state is State.FINE
    # TEST-NET-1 of RFC 5737: nobody's address.
    lost = host.loopback("192.0.2.1")
    assert lost.state is State.BROKEN
    assert lost.remedy == "sudo ip link set lo up"


def test_too_few_open_files_are_told() -> None:
    assert host.descriptors().state is State.FINE
    assert host.descriptors(-1).found == "any number allowed"
    assert host.descriptors(64).remedy == "ulimit -n 256"


# The cache


def test_the_cache_is_looked_at_without_being_made(cache: Cache) -> None:
    found = list(storage.directory(cache, 0))
    assert [check.state for check in found] == [State.FINE, State.FINE]
    assert found[0].found == f"{cache.root}, made when it is needed"
    assert not cache.root.exists()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = _one(storage.directory(Cache(tmp_path / "file"), 0))
    assert found.state is State.BROKEN
    assert found.remedy is not None
    assert "SPAPR_CACHE_DIR" in found.remedy


def test_a_cache_without_room_is_told_and_so_is_one_with_less_than_templates_may_take(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2_000_000_000}))
    little = _one(storage.directory(cache, 8_000_000_000), "space")
    assert (little.state, little.remedy) == (State.LACKING, "export SPAPR_TEMPLATE_SPACE=953M")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    assert _one(storage.directory(cache, 0), "space").state is State.BROKEN


def test_a_path_that_configure_does_not_take_is_told(tmp_path: Path) -> None:
    assert storage.buildable(Cache(tmp_path)).state is State.FINE
    found = storage.buildable(Cache(tmp_path / "a b"))
    assert (found.state, found.needed_for) == (State.LACKING, "spapr qemu build")


# QEMU and images


def test_what_the_settings_name_must_be_there(cache: Cache) -> None:
    assert supplies.named(_settings(cache)).state is State.FINE
    broken = supplies.named(_settings(cache, kernel="/nonesuch/vmlinux"))
    assert broken.state is State.BROKEN
    assert "there is no such file" in broken.found


def test_the_build_under_test_is_told_and_so_is_why_it_cannot_be(cache: Cache) -> None:
    fine = supplies.build_under_test(_settings(cache), cache, lambda *_: _build())
    assert (fine.name, fine.found) == ("under test: the default", "QEMU 11.1.0, can do tcg, tcg")
    missing = supplies.build_under_test(_settings(cache, qemu="7.2"), cache, _refuse)
    assert (missing.state, missing.found, missing.remedy) == (State.BROKEN, "it is no QEMU", "spapr qemu install 7.2")
    no_kvm = supplies.build_under_test(_settings(cache, accel="kvm"), cache, lambda *_: _build())
    assert no_kvm.state is State.BROKEN
    assert "KVM was asked for" in no_kvm.found
    other = supplies.build_under_test(_settings(cache, qemu="./mine"), cache, _refuse)
    assert other.remedy is None, "nothing is known of how it was built"


def test_a_look_fetches_nothing_although_a_build_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it was fetched")

    monkeypatch.setattr(packages, "fetch", fetched)
    found = supplies.build_under_test(_settings(cache, qemu="7.2"), cache)
    assert found.state is State.BROKEN
    assert "`spapr doctor` forbids to fetch it" in found.found


@pytest.mark.skipif(platform.machine() not in ("x86_64", "ppc64le", "aarch64"), reason="no builds for this machine")
def test_stored_builds_are_told_with_those_that_are_missing_or_damaged(cache: Cache, settings: Settings) -> None:
    for name in ("7.2", "10.0", "mine"):
        with cache.publish(store.KIND, store.key_of(name, store.architecture())) as scratch:
            (scratch / store.MANIFEST).write_text("{")
    for path in ("7.2", "mine"):
        _complete(cache, path)
    found = {check.name: check for check in supplies.stored_builds(settings, cache, lambda *_: _build("tcg", "kvm"))}
    assert list(found) == ["5.2", "7.2", "10.0", "11.1", "mine"]
    assert [check.state for check in found.values()] == [State.LACKING, State.FINE, State.LACKING, State.LACKING, State.FINE]
    assert found["7.2"].found == "QEMU 11.1.0, can do kvm and tcg"
    assert found["5.2"].remedy == "spapr qemu install 5.2"
    assert found["10.0"].remedy == "spapr qemu remove 10.0 && spapr qemu install 10.0"
    broken = {check.name: check for check in supplies.stored_builds(settings, cache, _refuse)}
    assert broken["mine"].remedy == "spapr qemu remove mine"


def _complete(cache: Cache, name: str) -> None:
    here = store.architecture()
    entry = cache.entry(store.KIND, store.key_of(name, here))
    for path in (f"root/lib/{store.triplet_of(here)}/{store.loader_name(here)}", f"root/{store.BINARY}"):
        (entry / path).parent.mkdir(parents=True)
        (entry / path).write_bytes(b"elf")
    (entry / store.MANIFEST).write_text(json.dumps({"architecture": here, "packages": {"qemu-system-ppc": "1"}}))


def test_an_image_that_is_missing_is_told_with_the_command_that_builds_it(cache: Cache, settings: Settings) -> None:
    (found,) = supplies.image_under_test(settings, cache)
    assert (found.state, found.remedy) == (State.BROKEN, "spapr image build debian-12")
    listed = list(supplies.stored_images(cache))
    assert {check.state for check in listed} == {State.LACKING}
    assert [check.name for check in listed] == [name for name in recipes.names() if not recipes.load(name).host]


def test_a_damaged_image_is_told(cache: Cache, settings: Settings, key_of_image: Path) -> None:
    assert _one(supplies.image_under_test(settings, cache), "under test: debian-12").found == "debian-12, Linux 6.1-test"
    assert _one(supplies.stored_images(cache, ["debian-12"])).state is State.FINE
    (key_of_image.parent / image_store.VMLINUX).write_bytes(b"longer")
    assert _one(supplies.image_under_test(settings, cache)).state is State.BROKEN
    damaged = _one(supplies.stored_images(cache, ["debian-12"]))
    assert (damaged.state, damaged.remedy) == (State.LACKING, "spapr image build debian-12 --again")


def test_a_disk_of_the_users_own_is_told_as_what_it_is(cache: Cache, tmp_path: Path) -> None:
    disk = tmp_path / "mine.raw"
    disk.write_bytes(bytes(512))
    (found,) = supplies.image_under_test(_settings(cache, image=str(disk)), cache)
    assert (found.state, found.found.partition(";")[0]) == (State.FINE, "a disk of your own, raw, 0 GiB")


def test_a_key_that_others_may_read_is_told(cache: Cache, settings: Settings, key_of_image: Path) -> None:
    name = "key of debian-12"
    assert _one(supplies.image_under_test(settings, cache), name).state is State.FINE
    key_of_image.chmod(0o640)
    found = _one(supplies.image_under_test(settings, cache), name)
    assert (found.state, found.remedy) == (State.LACKING, f"chmod 600 {key_of_image}")
    assert "mode 640" in found.found


# Programs


def test_a_host_without_apt_is_told(settings: Settings) -> None:
    found = _one(tools.apt(settings, lambda _: None))
    assert found.state is State.LACKING
    assert "this machine has no apt-get" in found.found


def test_a_host_without_keys_or_without_a_mirror_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (Path("/nonesuch"),))
    keys = _one(tools.apt(_settings(cache, debian_mirror="nowhere"), str), "archive keys")
    assert keys.remedy == "sudo apt-get install debian-archive-keyring"
    assert _one(tools.apt(_settings(cache, debian_mirror="nowhere"), str), "mirror").state is State.LACKING
    assert _one(tools.apt(_settings(cache, debian_mirror="http://a.invalid"), str), "mirror").found == "http://a.invalid"
    offline = _one(tools.apt(_settings(cache, offline=True), str), "mirror")
    assert (offline.state, offline.found) == (State.LACKING, "--spapr-offline forbids to fetch anything")


def test_programs_that_only_some_commands_start_are_told(cache: Cache) -> None:
    assert {check.state for check in tools.programs(str)} == {State.FINE}
    missing = {check.name: check for check in tools.programs(lambda _: None)}
    assert missing["podman"].remedy == "sudo apt-get install podman"
    assert {check.state for check in missing.values()} == {State.LACKING}
    assert tools.browser(cache, lambda _: None).state is State.LACKING
    (cache.directory("chromium", "bookworm-amd64") / "chromium").touch()
    assert tools.browser(cache, lambda _: None).state is State.FINE


def test_a_machine_that_there_are_no_compilers_for_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert tools.compiler(cache).found == "to come with the first build, 73 MB of packages"
    cache.directory("toolchain", "bookworm-amd64")
    assert tools.compiler(cache).found == "toolchains of bookworm-amd64"
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert tools.compiler(cache).state is State.LACKING


def test_a_host_without_libvirt_or_where_it_cannot_run_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _one(tools.libvirt(cache, lambda: None), "libvirt").state is State.LACKING
    assert _one(tools.libvirt(cache, lambda: "a libvirt"), "libvirt").found == "the host's"
    monkeypatch.setattr(daemon, "ordinary_user", lambda: None)
    assert _one(tools.libvirt(cache, lambda: None), "libvirt's user").state is State.LACKING
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp/a-directory-with-a-long-name")
    paths = _one(tools.libvirt(cache, lambda: None), "libvirt's socket paths")
    assert (paths.state, paths.remedy) == (State.LACKING, "export TMPDIR=/tmp")


def test_a_cache_without_the_nested_host_is_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tools.nested_host(cache)
    assert (missing.state, missing.remedy) == (State.LACKING, "ci/vfio-nested")
    assert missing.found == "not in the cache: qemu-system-x86, image vfio-host"
    monkeypatch.setattr("pytest_spapr.nested.emulator.find", _refuse)
    assert tools.nested_host(cache).found == "it is no QEMU"


# All of it


def test_a_check_that_fails_itself_is_what_is_wrong() -> None:
    def failing() -> Iterator[Check]:
        yield Check(Theme.HOST, "one", State.FINE, "there")
        raise PermissionError(13, "Permission denied", "/proc/meminfo")

    first, second = examine.guarded(Theme.HOST, failing)
    assert first.name == "one"
    assert (second.state, second.theme) == (State.BROKEN, Theme.HOST)
    assert "Permission denied: '/proc/meminfo'" in second.found


def test_only_what_is_broken_keeps_tests_from_running() -> None:
    fine, lacking, broken = (Check(Theme.HOST, "x", state, "") for state in State)
    assert usable([fine, lacking])
    assert not usable([fine, broken])
    assert as_json([broken])["usable"] is False


def test_the_command_tells_what_is_missing_and_how_to_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_settings(monkeypatch)
    assert cli.main(["doctor", f"--cache-dir={tmp_path}/my cache", "--qemu=7.2"]) == 1
    out = capsys.readouterr().out
    assert "  NO  under test: 7.2" in out
    assert f"mend: SPAPR_CACHE_DIR='{tmp_path}/my cache' spapr qemu install 7.2" in out
    assert out.splitlines()[-1] == "tests cannot be run: under test: 7.2, under test: debian-12"


def test_the_json_is_as_its_schema_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_settings(monkeypatch)
    assert cli.main(["doctor", f"--cache-dir={tmp_path}/cache", "--json"]) == 1
    printed = tmp_path / "doctor.json"
    printed.write_text(capsys.readouterr().out)
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(_SCHEMA)]
    checked = subprocess.run([*command, str(printed)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    facts = json.loads(printed.read_text())
    assert {check["theme"] for check in facts["checks"]} == set(Theme)
    names = [(check["theme"], check["name"]) for check in facts["checks"]]
    assert len(set(names)) == len(names), "a reader finds each by its name"
    facts["checks"][0]["state"] = "splendid"
    printed.write_text(json.dumps(facts))
    assert subprocess.run([*command, str(printed)], capture_output=True, check=False).returncode == 1


def test_a_usable_host_is_status_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fine = Check(Theme.HOST, "memory", State.FINE, "enough \x1b[31m")
    lacking = Check(Theme.TOOLS, "podman", State.LACKING, "not on PATH", "sudo apt-get install podman", "ci/nightly --podman")
    monkeypatch.setattr("pytest_spapr.cli.doctor.examine", lambda *_: [fine, lacking])
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "host",
        "  ok  memory  enough \\x1b[31m",
        "tools",
        "  --  podman  not on PATH",
        "              for: ci/nightly --podman",
        "              mend: sudo apt-get install podman",
        "tests can be run; missing for some commands: podman",
    ]


def test_nothing_that_a_look_calls_makes_a_machine(settings: Settings, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a machine was started")

    monkeypatch.setattr("pytest_spapr.qemu.process.QemuProcess.__init__", started)
    found = list(examine.examine([settings], cache, NullProgress()))
    assert not [check for check in found if check.name == "examination"]
    assert not cache.root.exists(), "nothing is made"


def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in config.OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_errors_of_the_package_are_findings_and_not_the_commands() -> None:
    def broken() -> Check:
        raise SpaprError("the cache is damaged")

    assert _one(examine.guarded(Theme.CACHE, broken)).found == "it could not be examined: the cache is damaged"
