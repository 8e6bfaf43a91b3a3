from __future__ import annotations

import stat

from pytest_spapr.images import cpio

TREE = {
    "init": cpio.file(b"#!/bin/sh\n", 0o755),
    "bin/busybox": cpio.file(b"elf", 0o755),
    "bin-extra": cpio.file(b""),
    "bin/sh": cpio.symlink("busybox"),
    "dev/null": cpio.character_device(1, 3, 0o666),
    "root": cpio.directory(0o700),
}


def entries(data: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    """A reader that follows the kernel's buffer-format.rst."""
    names = ("ino", "mode", "uid", "gid", "nlink", "mtime", "size", "major", "minor", "rmajor", "rminor", "namesize", "check")
    found, at = [], 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        assert at % 4 == 0
        fields = {name: int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n, name in enumerate(names)}
        name = data[at + 110 : at + 109 + fields["namesize"]].decode()
        start = at + 110 + fields["namesize"]
        start += -start % 4
        found.append((name, fields, data[start : start + fields["size"]]))
        at = start + fields["size"]
        at += -at % 4
    return found


def test_each_entry_is_as_the_kernel_reads_it() -> None:
    found = {name: (fields, data) for name, fields, data in entries(cpio.archive(TREE))}
    assert found["init"][1] == b"#!/bin/sh\n"
    assert found["init"][0]["mode"] == stat.S_IFREG | 0o755
    assert (found["bin/sh"][0]["mode"], found["bin/sh"][1]) == (stat.S_IFLNK | 0o777, b"busybox")
    assert found["root"][0]["mode"] == stat.S_IFDIR | 0o700
    null = found["dev/null"][0]
    assert (null["mode"], null["rmajor"], null["rminor"]) == (stat.S_IFCHR | 0o666, 1, 3)


def test_a_directory_comes_before_its_content_and_is_added_if_missing() -> None:
    names = [name for name, _fields, _data in entries(cpio.archive(TREE))]
    assert names == ["bin", "bin/busybox", "bin/sh", "bin-extra", "dev", "dev/null", "init", "root", "TRAILER!!!"]


def test_the_same_tree_gives_the_same_bytes_in_any_order() -> None:
    assert cpio.archive(TREE) == cpio.archive(dict(reversed(TREE.items())))
    assert all(fields["mtime"] == fields["uid"] == fields["gid"] == 0 for _name, fields, _data in entries(cpio.archive(TREE)))


def test_archives_follow_each_other_without_a_gap() -> None:
    one, two = cpio.archive(TREE), cpio.archive({"a": cpio.file(b"x")})
    assert [name for name, _fields, _data in entries(one + two)][-2:] == ["a", "TRAILER!!!"]
