from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_spapr.debian.unpack import Kind, members, unpack
from pytest_spapr.errors import VerificationError
from pytest_spapr.progress import NullProgress
from tests.unit.debian_archive import Content, deb

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "x_1_all.deb"
    files: dict[str, Content] = {
        "./": b"",
        "./usr/bin/": b"",
        "./usr/bin/tool": b"elf",
        "./usr/bin/alias": "tool",
        "./usr/share/doc/x/copyright": b"words",
    }
    path.write_bytes(deb(files, {"./usr/bin/tool": 0o4755}))
    return path


def test_members_are_read_without_unpacking(package: Path) -> None:
    found = {member.path: member for member in members(package)}
    assert list(found) == ["usr/bin", "usr/bin/tool", "usr/bin/alias", "usr/share/doc/x/copyright"]
    assert (found["usr/bin/tool"].kind, found["usr/bin/tool"].data, found["usr/bin/tool"].mode) == (Kind.FILE, b"elf", 0o4755)
    assert (found["usr/bin/alias"].kind, found["usr/bin/alias"].target) == (Kind.SYMLINK, "tool")


def test_only_wanted_members_are_read(package: Path) -> None:
    assert [member.path for member in members(package, lambda path: path.endswith("tool"))] == ["usr/bin/tool"]


def test_a_reader_may_stop_early(package: Path) -> None:
    assert next(iter(members(package))).path == "usr/bin"


def test_packages_are_unpacked_with_modes_and_without_what_is_excluded(package: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    for _ in range(2):  # a second package may replace files of the first
        unpack([package], prefix, ["usr/share/doc/*"], NullProgress())
    assert (prefix / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755, "no set-user-id bit"
    assert (prefix / "usr/bin/alias").resolve() == prefix / "usr/bin/tool"
    assert not (prefix / "usr/share/doc/x").exists()


@pytest.mark.parametrize("size", [0, 100, 700, -600])  # the last cuts only what follows the tar archive's end
def test_a_package_that_is_cut_off_is_refused(package: Path, size: int) -> None:
    package.write_bytes(package.read_bytes()[:size])
    with pytest.raises(VerificationError, match="not a whole Debian package"):
        list(members(package))


@pytest.mark.parametrize("name", ["./../outside", "/etc/passwd", "./usr/../../outside"])
def test_a_member_outside_of_the_root_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.deb"
    path.write_bytes(deb({name: b"x"}))
    with pytest.raises(VerificationError, match="outside of its root"):
        list(members(path))


def test_a_symlink_does_not_lead_out_of_the_prefix(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "outside").mkdir()
    path = tmp_path / "bad.deb"
    path.write_bytes(deb({"./link": str(tmp_path / "outside"), "./link/file": b"x"}))
    with pytest.raises(VerificationError, match="through a symlink"):
        unpack([path], tmp_path / "prefix", [], NullProgress())
    assert list((tmp_path / "outside").iterdir()) == []
