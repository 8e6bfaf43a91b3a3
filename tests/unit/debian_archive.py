"""Debian packages and a signed Debian archive, made by hand in a temporary directory."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HAS_APT = all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb", "gpg", "gpgv"))

Content = bytes | str  # a file's bytes, or a symlink's target


def deb(files: Mapping[str, Content], modes: Mapping[str, int] | None = None) -> bytes:
    """Return a .deb with these files; names are taken as they are, also bad ones."""
    control = _tar({"./control": b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@localhost>\nDescription: x\n"}, {})
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": gzip.compress(control), "data.tar": _tar(files, modes or {})}
    return b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in parts.items())


def _ar_member(name: str, data: bytes) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)


def source(
    upstream: Mapping[str, Content], patches: Mapping[str, str], version: str = "1:5.2-1", package: str = "qemu"
) -> dict[str, bytes]:
    """Return the files of a source package of format 3.0 (quilt), by name."""
    whole = version.rpartition(":")[2]
    number = whole.rpartition("-")[0]
    names = (f"{package}_{number}.orig.tar.xz", f"{package}_{whole}.debian.tar.xz")
    changes = {"debian/patches/series": "".join(f"{name}\n" for name in patches).encode()}
    changes |= {f"debian/patches/{name}": text.encode() for name, text in patches.items()}
    archives = [
        lzma.compress(_tar({f"{package}-{number}/{name}": data for name, data in upstream.items()}, {})),
        lzma.compress(_tar(changes, {})),
    ]
    listed = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n" for name, data in zip(names, archives, strict=True)
    )
    dsc = f"Format: 3.0 (quilt)\nSource: {package}\nVersion: {version}\nChecksums-Sha256:\n{listed}"
    return {f"{package}_{whole}.dsc": dsc.encode(), **dict(zip(names, archives, strict=True))}


def _tar(files: Mapping[str, Content], modes: Mapping[str, int]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = modes.get(name, 0o644)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class Signer:
    """A throw-away archive key. :ivar keyring: its public half, as debian-archive-keyring would bring it."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        self._gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
        self._home = home
        self.keyring = home / "archive.gpg"
        self._run("--quick-gen-key", "archive@localhost", "ed25519", "sign", "never")
        self._run("--output", str(self.keyring), "--export")

    def sign(self, text: bytes) -> bytes:
        return self._run("--clearsign", stdin=text)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "gpg-agent"], check=False)

    def _run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run([*self._gpg, *arguments], input=stdin, capture_output=True, check=True).stdout


@dataclass
class Archive:
    """One suite of a mirror below ``root``; ``publish`` writes what ``add`` collected."""

    root: Path
    signer: Signer
    architecture: str = "amd64"
    suite: str = "test"
    _stanzas: list[str] = field(default_factory=list)
    _sources: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"file://{self.root}"

    @property
    def in_release(self) -> Path:
        return self.root / f"dists/{self.suite}/InRelease"

    @property
    def packages_index(self) -> Path:
        return self.root / f"dists/{self.suite}/main/binary-{self.architecture}/Packages"

    def add(self, name: str, data: bytes, version: str = "1.0", depends: str = "") -> Path:
        file = f"pool/{name}_{version}_{self.architecture}.deb"
        (self.root / "pool").mkdir(parents=True, exist_ok=True)
        (self.root / file).write_bytes(data)
        self._stanzas.append(
            f"Package: {name}\nVersion: {version}\nArchitecture: {self.architecture}\nMaintainer: x <x@localhost>\n"
            + (f"Depends: {depends}\n" if depends else "")
            + f"Filename: {file}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\nDescription: x\n"
        )
        return self.root / file

    def add_source(self, files: Mapping[str, bytes], version: str = "1:5.2-1", package: str = "qemu") -> None:
        """Add a source package, from :func:`source`; its files stand in ``pool/``."""
        (self.root / "pool").mkdir(parents=True, exist_ok=True)
        listed = ""
        for name, data in files.items():
            (self.root / "pool" / name).write_bytes(data)
            listed += f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
        self._sources.append(
            f"Package: {package}\nBinary: {package}\nVersion: {version}\nMaintainer: x <x@localhost>\nFormat: 3.0 (quilt)\n"
            f"Directory: pool\nChecksums-Sha256:\n{listed}"
        )

    def publish(self) -> None:
        index = "\n".join(self._stanzas).encode()
        sources = "\n".join(self._sources).encode()
        (self.root / f"dists/{self.suite}/main/source").mkdir(parents=True, exist_ok=True)
        (self.root / f"dists/{self.suite}/main/source/Sources").write_bytes(sources)
        self.packages_index.parent.mkdir(parents=True, exist_ok=True)
        self.packages_index.write_bytes(index)
        path = f"main/binary-{self.architecture}/Packages"
        release = (
            f"Origin: Debian\nLabel: Debian\nSuite: {self.suite}\nCodename: {self.suite}\nDate: Sat, 21 Nov 2026 00:00:00 UTC\n"
            f"Architectures: {self.architecture}\nComponents: main\nSHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} {path}\n"
            f" {hashlib.sha256(sources).hexdigest()} {len(sources)} main/source/Sources\n"
        )
        self.in_release.write_bytes(self.signer.sign(release.encode()))


def elf(
    *,
    machine: int = 21,
    kind: int = 3,
    needed: tuple[str, ...] = (),
    interpreter: str = "",
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return a small 64-bit little-endian ELF file: a library or program that asks for ``needed``, or a module with sections."""
    header_size, segment_size, section_size = 64, 56, 64
    sections = {"": b"", **(sections or {}), ".shstrtab": b""}
    names = b"".join(name.encode() + b"\0" for name in sections)
    sections[".shstrtab"] = names
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    offsets = [strings.index(name.encode() + b"\0") for name in needed]
    body = header_size + 3 * segment_size
    dynamic_at = body + len(strings) + len(interpreter) + 1
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets) + struct.pack("<QQQQ", 5, 0x10000 + body, 0, 0)
    data = strings + interpreter.encode() + b"\0" + dynamic
    end = body + len(data)
    segments = (
        (1, 0, 0x10000, end),
        (2 if needed else 0, dynamic_at, 0x10000 + dynamic_at, len(dynamic)),
        (3 if interpreter else 0, body + len(strings), 0x10000 + body + len(strings), len(interpreter) + 1),
    )
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, 5, at, address, address, size, size, 8) for kind, at, address, size in segments
    )
    content, headers, name_at = b"", b"", 0
    for name, section in sections.items():
        headers += struct.pack("<IIQQQQIIQQ", name_at, 1 if name else 0, 0, 0, end + len(content), len(section), 0, 0, 1, 0)
        content, name_at = content + section, name_at + len(name) + 1
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    header += struct.pack("<HHIQQQIHHH", kind, machine, 1, 0, header_size, end + len(content), 0, header_size, segment_size, 3)
    header += struct.pack("<HHH", section_size, len(sections), len(sections) - 1)
    return header + table + data + content + headers


def module(*depends: str) -> bytes:
    """Return a kernel module for ppc64le."""
    return elf(
        kind=1, sections={".text": b"code", ".modinfo": b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"}
    )


def vmlinux(release: str = "6.1.0-test") -> bytes:
    """Return what looks enough like a ppc64le kernel."""
    return elf(
        kind=2, sections={".rodata": f"Linux version %s (x)\0Linux version {release} (builder@localhost) #1 SMP\0".encode()}
    )
