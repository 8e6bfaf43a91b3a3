"""A whole Debian as an archive, of small packages made by hand."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from pytest_spapr.debian.unpack import control
from pytest_spapr.errors import VerificationError
from pytest_spapr.images import cpio, rootfs
from pytest_spapr.progress import NullProgress
from tests.unit.debian_archive import Content, deb

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg here")

TOOLS: dict[str, Content] = {
    "./bin/": b"",
    "./bin/tool": b"tool",
    "./sbin/link": "../bin/tool",
    "./usr/share/doc/tools/copyright": b"words",
    "./etc/": b"",
    "./etc/tool.conf": b"packaged",
}


def _write(place: Path, *files: dict[str, Content]) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    debs = []
    for number, content in enumerate(files):
        debs.append(place / f"p{number}_1_all.deb")
        debs[-1].write_bytes(deb(content, {"./bin/tool": 0o6755}))
    own = {"etc/tool.conf": cpio.file(b"ours"), "lib/ours": cpio.file(b"x", 0o755)}
    rootfs.write(place / "rootfs.tar", debs, ["usr/share/doc/*"], own, "ppc64el", NullProgress())
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(place / "rootfs.tar") as stream:
        for member in stream:
            data = stream.extractfile(member) if member.isfile() else None
            found[member.name] = (member, data.read() if data else b"")
    return found


def test_packages_are_unpacked_into_a_merged_usr(tmp_path: Path) -> None:
    found = _write(tmp_path, TOOLS)
    for name in ("bin", "sbin", "lib"):
        assert found[name][0].issym()
        assert found[name][0].linkname == f"usr/{name}"
    assert found["usr/bin/tool"][1] == b"tool"
    # Whose group it would be is not known: set-user-id is root's, set-group-id nobody's.
    assert found["usr/bin/tool"][0].mode == 0o4755
    assert found["usr/sbin/link"][0].linkname == "../bin/tool"
    assert found["usr/lib/ours"][0].mode == 0o755
    assert found["etc/tool.conf"][1] == b"ours", "what comes last wins"
    assert not [name for name in found if "doc/tools" in name]


def test_dpkg_is_told_that_they_are_unpacked_and_to_be_configured(tmp_path: Path) -> None:
    found = _write(tmp_path, TOOLS)
    assert found["var/lib/dpkg/status"][1].startswith(b"Package: x\nStatus: install ok unpacked\nVersion: 1\n")
    assert found["var/lib/dpkg/info/format"][1] == b"1\n"
    assert found["var/lib/dpkg/info/x.list"][1].splitlines()[:3] == [b"/.", b"/bin", b"/bin/tool"]
    assert found["var/lib/dpkg/arch"][1] == b"ppc64el\n"
    # dpkg wants it to be there although it is in the list only.
    assert "var/lib/dpkg/updates" in found


def test_each_directory_is_there_once_and_before_what_is_in_it(tmp_path: Path) -> None:
    _write(tmp_path, TOOLS, {"./etc/": b"", "./etc/deep/er/file": b""})
    with tarfile.open(tmp_path / "rootfs.tar") as stream:
        names = [member.name for member in stream if member.isdir()]
        assert len(names) == len(set(names))
        seen: set[str] = {".", ""}
    with tarfile.open(tmp_path / "rootfs.tar") as stream:
        for member in stream:
            assert str(Path(member.name).parent) in seen, member.name
            if member.isdir():
                seen.add(member.name)


def test_a_package_without_a_whole_control_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(VerificationError, match="not a whole Debian package"):
        control(tmp_path / "x.deb")
