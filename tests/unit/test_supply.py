"""What a run is supplied with: who is asked first, what is fetched, and what is never."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr import config, supply
from pytest_spapr.builds import packages, store
from pytest_spapr.cache import Cache
from pytest_spapr.errors import ConfigError, ImageError, MirrorError, VerificationError
from pytest_spapr.libvirt import packages as libvirt
from pytest_spapr.progress import NullProgress
from pytest_spapr.supply import Unavailable


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A host with nothing on PATH, nothing in the cache and a mirror that serves everything; it notes what was fetched."""
    world = SimpleNamespace(path={}, cached=[], fetched=[], mirrors=[])

    def mirror(setting: str | None) -> str:
        world.mirrors.append(setting)
        return setting or "http://apt.invalid/debian"

    def fetch(name: str, cache: Cache, url: str, progress: object) -> Any:
        world.fetched.append((name, url))
        return _package(name)

    monkeypatch.setattr("shutil.which", lambda name: world.path.get(name))
    monkeypatch.setattr("pytest_spapr.debian.mirror.find_mirror", mirror)
    monkeypatch.setattr(store, "find", lambda cache, name: next((one for one in world.cached if one.name == name), None))
    monkeypatch.setattr(store, "names", lambda cache: [one.name for one in world.cached])
    monkeypatch.setattr(packages, "fetch", fetch)
    # By import, not by attribute path: pytester forgets modules that its in-process runs imported.
    monkeypatch.setattr(
        import_module("pytest_spapr.qemu.build"), "probe", lambda command, env, binary, cache, name: (command, name)
    )
    return world


def _package(name: str) -> Any:
    return SimpleNamespace(name=name, command=("ld.so", f"qemu-{name}"), env={}, binary=Path(f"/cache/{name}"))


def _build(tmp_path: Path, **command_line: Any) -> Any:
    return supply.supply_build(config.read(command_line, environment={}), Cache(tmp_path), NullProgress())


def test_a_qemu_on_path_comes_before_packages(world: SimpleNamespace, tmp_path: Path) -> None:
    world.path["qemu-system-ppc64"] = "/usr/bin/qemu-system-ppc64"
    world.cached.append(_package(packages.DEFAULT_BUILD))
    assert _build(tmp_path) == (("/usr/bin/qemu-system-ppc64",), "qemu-system-ppc64")


def test_a_cached_build_is_used_although_nothing_was_asked_for(world: SimpleNamespace, tmp_path: Path) -> None:
    world.cached.append(_package(packages.DEFAULT_BUILD))
    assert _build(tmp_path, offline=True) == (("ld.so", f"qemu-{packages.DEFAULT_BUILD}"), packages.DEFAULT_BUILD)
    assert not world.mirrors


def test_nothing_is_fetched_unless_a_part_of_a_machine_was_named(world: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"Give --spapr-qemu=PATH, or --spapr-qemu=11\.1 to fetch the build\."):
        _build(tmp_path, accel="tcg", strict=True)
    assert not world.mirrors


@pytest.mark.parametrize("named", [{"image": "debian-12"}, {"kernel": "vmlinux"}])
def test_naming_another_part_allows_to_fetch_the_default_build(
    world: SimpleNamespace, tmp_path: Path, named: dict[str, str]
) -> None:
    _build(tmp_path, **named)
    assert world.fetched == [(packages.DEFAULT_BUILD, "http://apt.invalid/debian")]


def test_a_named_build_is_fetched_from_the_named_mirror(world: SimpleNamespace, tmp_path: Path) -> None:
    world.path["qemu-system-ppc64"] = "/usr/bin/qemu-system-ppc64"
    _build(tmp_path, qemu="7.2", debian_mirror="http://mine.invalid/debian")
    assert world.fetched == [("7.2", "http://mine.invalid/debian")]


def test_offline_is_a_skip_for_a_default_and_an_error_for_a_name(world: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="--spapr-offline forbids to fetch it"):
        _build(tmp_path, offline=True)
    with pytest.raises(ConfigError, match=r"the QEMU build 7\.2 is not in the cache, and --spapr-offline forbids to fetch it"):
        _build(tmp_path, offline=True, qemu="7.2")
    assert not world.mirrors


@pytest.mark.usefixtures("world")
def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    binary = tmp_path / "qemu-system-ppc64"
    binary.touch()
    assert _build(tmp_path, qemu=str(binary)) == ((str(binary),), str(binary))


def test_a_command_on_path_may_be_named(world: SimpleNamespace, tmp_path: Path) -> None:
    world.path["qemu-system-ppc64-devel"] = "/opt/bin/qemu-system-ppc64-devel"
    assert _build(tmp_path, qemu="qemu-system-ppc64-devel") == (
        ("/opt/bin/qemu-system-ppc64-devel",),
        "qemu-system-ppc64-devel",
    )


def test_a_build_from_source_is_found_by_its_name_before_commands(world: SimpleNamespace, tmp_path: Path) -> None:
    world.path["mine"] = "/opt/bin/mine"
    world.cached.append(_package("mine"))
    assert _build(tmp_path, qemu="mine", offline=True) == (("ld.so", "qemu-mine"), "mine")
    assert not world.fetched


def test_an_unknown_name_lists_those_there_are(world: SimpleNamespace, tmp_path: Path) -> None:
    world.cached += [_package("7.2"), _package("mine")]
    with pytest.raises(ConfigError, match=r"there are 5\.2, 7\.2.*`spapr qemu build` made \(there are mine\)"):
        _build(tmp_path, qemu="nonesuch")


def _image(tmp_path: Path, **command_line: Any) -> Any:
    return supply.supply_image(config.read(command_line, environment={}), Cache(tmp_path), NullProgress())


@pytest.mark.usefixtures("world")
def test_the_default_image_is_not_built_unasked(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"Give --spapr-image=DIRECTORY, or --spapr-image=debian-12 to build it\."):
        _image(tmp_path)


@pytest.mark.usefixtures("world")
def test_an_image_directory_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError):
        _image(tmp_path, image=str(tmp_path / "empty"))


def test_the_users_kernel_goes_into_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pytest_spapr.images.build.resolve", lambda name, cache, mirror, progress, install: f"image {name}")
    monkeypatch.setattr("pytest_spapr.images.build.with_kernel", lambda *arguments: arguments[:3])
    kernel, modules = tmp_path / "vmlinux", tmp_path / "modules"
    assert _image(tmp_path, kernel=str(kernel), modules=str(modules)) == ("image debian-12", kernel, modules)


@pytest.mark.parametrize(
    ("accelerators", "wanted", "given"),
    [({"tcg"}, "auto", "tcg"), ({"tcg", "kvm"}, "auto", "kvm"), ({"tcg", "kvm"}, "tcg", "tcg"), ({"tcg", "kvm"}, "kvm", "kvm")],
)
def test_accelerators(accelerators: set[str], wanted: str, given: str) -> None:
    build: Any = SimpleNamespace(accelerators=accelerators, version_text="QEMU 7.2.22")
    assert supply.supply_accelerator(config.read({"accel": wanted}, environment={}), build) == given


@pytest.fixture
def libvirts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Where a libvirt may come from; none has one yet, and the mirror has none either."""
    libvirts = SimpleNamespace(cached=None, fetched=MirrorError("the mirror is down"), installed=None)

    def fetch(cache: Cache, url: str, progress: object) -> Any:
        if isinstance(libvirts.fetched, Exception):
            raise libvirts.fetched
        return f"{libvirts.fetched} from {url}"

    monkeypatch.setattr("pytest_spapr.debian.mirror.find_mirror", lambda setting: setting or "http://apt.invalid/debian")
    monkeypatch.setattr(libvirt, "find", lambda cache: libvirts.cached)
    monkeypatch.setattr(libvirt, "fetch", fetch)
    monkeypatch.setattr(libvirt, "installed", lambda: libvirts.installed)
    return libvirts


def _libvirt(tmp_path: Path, **command_line: Any) -> Any:
    return supply.supply_libvirt(config.read(command_line, environment={}), Cache(tmp_path), NullProgress())


def test_libvirt_comes_from_the_cache_the_mirror_or_the_host_in_this_order(libvirts: SimpleNamespace, tmp_path: Path) -> None:
    libvirts.installed = "the host's"
    assert _libvirt(tmp_path, qemu="7.2") == "the host's"
    libvirts.fetched = "9.0"
    assert _libvirt(tmp_path, qemu="7.2", debian_mirror="http://mine.invalid") == "9.0 from http://mine.invalid"
    assert _libvirt(tmp_path) == _libvirt(tmp_path, qemu="7.2", offline=True) == "the host's"
    libvirts.cached = "the cache's"
    assert _libvirt(tmp_path, qemu="7.2") == _libvirt(tmp_path, offline=True) == "the cache's"


@pytest.mark.usefixtures("libvirts")
def test_without_libvirt_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nothing may be fetched for this run\. Install libvirtd.*libvirt-daemon-driver-qemu"):
        _libvirt(tmp_path)
    with pytest.raises(Unavailable, match="the mirror is down"):
        _libvirt(tmp_path, image="debian-12")


def test_a_libvirt_that_was_tampered_with_is_no_skip(libvirts: SimpleNamespace, tmp_path: Path) -> None:
    libvirts.fetched, libvirts.installed = VerificationError("not signed"), "the host's"
    with pytest.raises(VerificationError):
        _libvirt(tmp_path, qemu="7.2")
