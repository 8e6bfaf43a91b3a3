"""A writer of deterministic cpio archives (newc), as the kernel reads them for an initramfs.

Paths are sorted, owners, times and inode numbers are fixed: the same tree gives the same bytes. Device nodes are entries like any
other, so none of it needs root. The kernel unpacks any number of archives that follow each other (Documentation/driver-api/
early-userspace/buffer-format.rst); later ones win.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Node:
    """What is at a path. :ivar mode: type and permission bits, as in st_mode. :ivar device: major and minor number."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, mode: int = 0o644) -> Node:
    return Node(stat.S_IFREG | mode, data)


def directory(mode: int = 0o755) -> Node:
    return Node(stat.S_IFDIR | mode)


def symlink(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Node:
    return Node(stat.S_IFCHR | mode, device=(major, minor))


def archive(tree: Mapping[str, Node]) -> bytes:
    """Return the archive of ``tree``, whose keys are paths without a slash in front; missing parent directories are added."""
    whole = dict(tree)
    for path in tree:
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                whole.setdefault(str(parent), directory())
    # Sorted by parts, a directory comes before what is in it.
    paths = sorted(whole, key=lambda path: PurePosixPath(path).parts)
    entries = [_entry(path, whole[path], number) for number, path in enumerate(paths, 1)]
    return b"".join([*entries, _entry("TRAILER!!!", Node(0), 0)])


def _entry(path: str, node: Node, inode: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(node.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
