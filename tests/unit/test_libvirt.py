"""libvirt's packages, a daemon of our own made of a script, and what a domain is in XML. A real one: tests/hotplug/test_management.py."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.builds import store
from pytest_spapr.cache import Cache
from pytest_spapr.errors import BuildError, ConfigError, MachineError, MirrorError
from pytest_spapr.libvirt import daemon as daemon_module
from pytest_spapr.libvirt import guard, packages
from pytest_spapr.libvirt.daemon import Daemon, ordinary_user
from pytest_spapr.libvirt.domain import domain_xml
from pytest_spapr.libvirt.packages import Libvirt
from pytest_spapr.qemu.argv import MachineSpec
from tests.unit.debian_archive import HAS_APT, Archive, Signer, deb
from tests.unit.test_argv import BUILD, without

needs_apt = pytest.mark.skipif(not HAS_APT, reason="no apt or no gpg here")
TRIPLET = "x86_64-linux-gnu"
DRIVER = f"usr/lib/{TRIPLET}/libvirt/connection-driver/libvirt_driver_qemu.so"
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


@pytest.fixture
def archive(tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(tmp_path / "mirror", signer)
    made.add("libc6", deb({f"./lib/{TRIPLET}/ld-linux-x86-64.so.2": b"loader"}))
    made.add(
        "libvirt-daemon",
        deb({"./usr/sbin/libvirtd": b"", "./usr/share/libvirt/cpu_map/index.xml": b"<cpus/>"}),
        "9.0.0-4",
        depends="libc6",
    )
    made.add("libvirt-daemon-driver-qemu", deb({f"./{DRIVER}": b"driver"}))
    made.add("libvirt-clients", deb({"./usr/bin/virsh": b""}))
    made.publish()
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (signer.keyring,))
    monkeypatch.setattr(packages, "SUITE", "test")
    monkeypatch.setattr(store, "architecture", lambda: "amd64")
    return made


@needs_apt
def test_it_runs_through_its_own_loader_with_its_own_driver_and_files(archive: Archive, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "a & b")
    packages.fetch(cache, archive.url)
    cache.root.rename(tmp_path / "moved & well")
    found = packages.find(Cache(tmp_path / "moved & well"))
    assert found is not None
    root = tmp_path / "moved & well/libvirt/test-amd64/root"
    assert found.daemon[0] == found.virsh[0] == str(root / f"lib/{TRIPLET}/ld-linux-x86-64.so.2")
    assert (found.daemon[-1], found.virsh[-1]) == (str(root / "usr/sbin/libvirtd"), str(root / "usr/bin/virsh"))
    assert found.env == {"LIBVIRT_DRIVER_DIR": str((root / DRIVER).parent)}
    assert found.version == "9.0.0-4"
    assert found.catalog is not None
    rules = [tuple(rule.attrib.values()) for rule in ET.fromstring(found.catalog)]
    assert rules == [("/usr/share/libvirt/", f"{root}/usr/share/libvirt/")] * 2


@needs_apt
@pytest.mark.parametrize("missing", ["usr/sbin/libvirtd", "usr/bin/virsh", DRIVER, f"lib/{TRIPLET}/ld-linux-x86-64.so.2"])
def test_a_damaged_one_is_named_and_not_run(archive: Archive, tmp_path: Path, missing: str) -> None:
    cache = Cache(tmp_path / "cache")
    packages.fetch(cache, archive.url)
    (cache.root / "libvirt/test-amd64/root" / missing).unlink()
    with pytest.raises(BuildError, match=r"libvirt/test-amd64 is damaged .*remove the directory"):
        packages.find(cache)


@needs_apt
def test_what_the_mirror_lacks_is_an_error_and_leaves_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "NAMES", ("libvirt-daemon", "nonesuch"))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(MirrorError, match="nonesuch"):
        packages.fetch(cache, archive.url)
    assert packages.find(cache) is None


def test_the_hosts_own_counts_only_if_it_is_whole(tmp_path: Path) -> None:
    programs, libraries = tmp_path / "bin", tmp_path / "lib"
    driver = libraries / "libvirt/connection-driver/libvirt_driver_qemu.so"
    for path in (programs / "libvirtd", programs / "virsh", driver):
        assert packages.installed(str(programs), [libraries]) is None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    assert packages.installed(str(programs), [libraries]) == Libvirt((f"{programs}/libvirtd",), (f"{programs}/virsh",))


def script(directory: Path, name: str, text: str) -> tuple[str, ...]:
    path = directory / name
    path.write_text(text)
    return (sys.executable, "-I", "-S", str(path))


# Once it is ready, no process is in the middle of an exec any more, where it has no environment to be found by.
READY = """
import os, signal, socket, subprocess
child = subprocess.Popen(["sh", "-c", "echo begun; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
# In place of virsh: tells how it was called.
ECHO = "import os, sys; print(*sys.argv[1:], sorted(os.environ)); sys.exit('fail' in sys.argv)"


def running_below(home: Path) -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and guard._has(path.name, str(home))]


def test_a_daemon_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    """Also none that the daemon started and made independent of itself, as libvirt does with QEMU."""
    libvirt = Libvirt(
        script(tmp_path, "libvirtd", READY), script(tmp_path, "virsh", ECHO), {"LIBVIRT_DRIVER_DIR": "/d"}, "<catalog/>"
    )
    with Daemon(libvirt) as daemon:
        assert len(running_below(daemon.home)) == 2
        assert (daemon.home / "catalog.xml").read_text() == "<catalog/>"
        answer = daemon.virsh("list", "--all").check()
        assert answer.text.startswith("--connect qemu:///session list --all ['HOME', 'LC_ALL', 'LIBVIRT_AUTOSTART'")
        assert "'LIBVIRT_DRIVER_DIR', 'PATH', 'XDG_CACHE_HOME'" in answer.text
        assert answer.text.endswith("'XDG_STATE_HOME', 'XML_CATALOG_FILES']")
        with pytest.raises(MachineError, match="`virsh fail` failed: --connect"):
            daemon.virsh("fail").check()
        assert daemon.new_name() != daemon.new_name()
    assert running_below(daemon.home) == []
    assert not daemon.home.exists()


def test_a_daemon_that_ends_at_once_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(daemon_module, "LONGEST", 1000)
    with pytest.raises(MachineError, match=r"(?s)did not come up: it ended with status 3\. It said:\nno driver"):
        Daemon(Libvirt(("sh", "-c", "echo no driver; exit 3"), ()))
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_with_a_long_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ("x" * 50)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 50)))
    with pytest.raises(ConfigError, match="set TMPDIR"):
        Daemon(Libvirt((), ()))
    assert list((tmp_path / ("x" * 50)).iterdir()) == []


def test_the_guard_ends_what_is_left_when_its_parent_is_gone(tmp_path: Path) -> None:
    """And nothing else."""
    home = tmp_path / "home"
    home.mkdir()
    with (
        subprocess.Popen(["sleep", "1000"], env={**os.environ, "HOME": str(home)}) as ours,
        subprocess.Popen(["sleep", "1000"], env={**os.environ, "HOME": f"{home}2"}) as others,
    ):
        subprocess.run([sys.executable, "-I", "-S", guard.__file__, str(home)], stdin=subprocess.DEVNULL, check=True)
        assert ours.wait() == -9
        assert others.poll() is None
        others.kill()
    assert not home.exists()


@pytest.mark.parametrize(
    ("uid", "which", "status", "expected"),
    [
        (1000, None, 0, ()),
        (0, "/bin/unshare", 0, daemon_module._AS_ORDINARY_USER),
        (0, "/bin/unshare", 1, None),
        (0, None, 0, None),
    ],
)
def test_root_is_somebody_else_or_nobody(
    monkeypatch: pytest.MonkeyPatch, uid: int, which: str | None, status: int, expected: tuple[str, ...] | None
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("shutil.which", lambda _: which)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=status))
    assert ordinary_user() == expected


def domain(build: Any = BUILD, **shape: Any) -> ET.Element:
    image: Any = SimpleNamespace(kernel=Path("/i&/vmlinux"), initramfs=Path("/i/initramfs"), disk=None)
    paths = {"emulator": Path("/d/<qemu>"), "sockets": Path("/d,'s")}
    return ET.fromstring(domain_xml(build, MachineSpec(**shape), image, name="guest1", **paths))


def text(element: ET.Element, path: str) -> str | None:
    found = element.find(path)
    return None if found is None else found.text


def arguments(element: ET.Element) -> list[str | None]:
    return [argument.get("value") for argument in element.iter(f"{QEMU}arg")]


def test_a_domain_is_the_machine_that_was_asked_for() -> None:
    found = domain(cpus=2, max_cpus=4, memory=512, max_memory=2048, kernel_args=('x="<&>"',), machine="pseries-7.2")
    assert (text(found, "vcpu"), text(found, "memory"), text(found, "maxMemory")) == ("4", "512", "2048")
    assert [child.attrib for child in found.iter("vcpu")] == [{"current": "2"}]
    assert [child.attrib for child in found.iter("cell")] == [{"id": "0", "cpus": "0-3", "memory": "512", "unit": "MiB"}]
    assert (text(found, "os/kernel"), text(found, "devices/emulator")) == ("/i&/vmlinux", "/d/<qemu>")
    assert str(text(found, "os/cmdline")).endswith('x="<&>"')
    assert str(text(found, "os/cmdline")).startswith("console=hvc0")
    kind = found.find("os/type")
    assert kind is not None
    assert kind.attrib == {"arch": "ppc64", "machine": "pseries-7.2"}
    places = [source.get("path") for source in found.iter("source")]
    assert places == ["/d,'s/console", "/d,'s/kernel", "/d,'s/service", "/d,'s/shell"]
    assert "socket,id=witness,path=/d,,'s/qmp" in arguments(found)


def test_a_domain_of_one_size_has_no_slots() -> None:
    assert domain(memory=1024, slots=0, max_memory=1024).find("maxMemory") is None


def test_a_domain_has_the_firmware_and_the_cpu_that_the_build_is_sound_with() -> None:
    assert "x-vof=on" in arguments(domain())
    assert "x-vof=on" not in arguments(domain(without("x-vof")))
    assert "x-vof=on" not in arguments(domain(firmware="slof"))
    assert text(domain(), "cpu/model") == "POWER9"
    assert text(domain(replace(BUILD, version=(5, 2, 0))), "cpu/model") == "POWER8"
    with_kvm = domain(accelerator="kvm")
    assert with_kvm.get("type") == "kvm"
    assert with_kvm.find("cpu/model") is None
    assert arguments(domain(qemu_args=("-d", "unimp")))[-2:] == ["-d", "unimp"]
