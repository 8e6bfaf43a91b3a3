from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_spapr.errors import ImageError
from pytest_spapr.images import kernel
from tests.unit.debian_archive import elf, module, vmlinux


def test_the_release_is_read_from_the_banner_not_from_a_format_string() -> None:
    assert kernel.release(vmlinux("6.12.3-rc1+"), "vmlinux") == "6.12.3-rc1+"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"MZ" + b"\0" * 2000, "bzImage"),
        (b"\0" * 0x202 + b"HdrS" + b"\0" * 500, "bzImage"),
        (b"\x1f\x8b garbage", "no ELF file"),
        (b"", "no ELF file"),
        (elf(machine=62, kind=2), "another machine"),
        (b"\x7fELF\x02\x02" + b"\0" * 100, "64-bit little-endian"),
        (module(), "not an executable"),
        (elf(kind=2), "no `Linux version`"),
    ],
)
def test_what_pseries_cannot_boot_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        kernel.release(data, "/some/file")
    assert "/some/file" in str(caught.value)
    assert "vmlinux" in str(caught.value)


def bzimage(version: bytes = b"6.1.0-50-amd64 (debian-kernel@lists.debian.org) #1 SMP", offset: int = 0x3000) -> bytes:
    """Return the beginning of an x86 kernel."""
    header = bytearray(0x200 + offset)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = offset.to_bytes(2, "little")
    return bytes(header) + version + b"\0"


def test_the_release_of_an_x86_kernel_is_where_its_boot_protocol_has_it() -> None:
    assert kernel.x86_release(bzimage(), "vmlinuz") == "6.1.0-50-amd64"


@pytest.mark.parametrize("data", [b"", vmlinux("6.1.0"), bzimage(offset=0), bzimage(b""), bzimage()[:0x210]])
def test_what_is_no_x86_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"/some/file .* no bzImage"):
        kernel.x86_release(data, "/some/file")


def test_a_module_of_another_machine_is_refused() -> None:
    available = {"vfio": lambda: module()}
    with pytest.raises(ImageError, match="vfio is not a module for amd64"):
        kernel.select_modules(["vfio"], available, "amd64")


def test_the_page_size_is_what_the_config_says() -> None:
    assert kernel.page_size(b"CONFIG_PPC64=y\nCONFIG_PPC_64K_PAGES=y\n") == 65536
    assert kernel.page_size(b"# CONFIG_PPC_64K_PAGES is not set\nCONFIG_PPC_4K_PAGES=y\n") == 4096
    assert kernel.page_size(None) is None


def test_modules_come_after_what_they_depend_on() -> None:
    available = {
        "virtio_net": lambda: module("virtio", "net_failover"),
        "net_failover": lambda: module("failover"),
        "failover": lambda: module(),
        "virtio": lambda: module("virtio_ring"),
        "virtio_ring": lambda: module(),
        "unasked": lambda: module(),
    }
    chosen = kernel.select_modules(["virtio-net", "built-in", "virtio"], available)
    assert list(chosen) == ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]


def test_a_circle_of_dependencies_ends() -> None:
    available = {"a": lambda: module("b"), "b": lambda: module("a")}
    chosen = kernel.select_modules(["a"], available)
    assert set(chosen) == {"a", "b"}
    assert kernel.modules_dep(chosen).startswith("b.ko: a.ko\n")


def test_modprobe_is_told_all_that_a_module_needs_the_first_last() -> None:
    available = {
        "uas": lambda: module("usb_storage", "usbcore", "built_in"),
        "usb_storage": lambda: module("usbcore"),
        "usbcore": lambda: module("usb_common"),
        "usb_common": lambda: module(),
    }
    *_, uas = kernel.modules_dep(kernel.select_modules(["uas"], available)).splitlines()
    assert uas == "uas.ko: usb_storage.ko usbcore.ko usb_common.ko"


@pytest.mark.parametrize("data", [b"garbage", elf(machine=62, kind=1, sections={".modinfo": b"depends=\0"}), elf(kind=1)])
def test_what_is_no_module_for_ppc64_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="module bad"):
        kernel.select_modules(["bad"], {"bad": lambda: data})


def test_packed_modules_are_unpacked(tmp_path: Path) -> None:
    below = tmp_path / "lib/modules/6.1/kernel/drivers"
    below.mkdir(parents=True)
    (below / "a-b.ko.xz").write_bytes(lzma.compress(module()))
    (below / "plain.ko").write_bytes(module("a-b"))
    assert list(kernel.select_modules(["plain"], kernel.modules_below(tmp_path, "6.1"))) == ["a_b", "plain"]


@pytest.mark.parametrize(("tool", "suffix"), [("zstd", ".zst"), ("gzip", ".gz")])
def test_modules_packed_with_a_tool_are_unpacked(tool: str, suffix: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    packed = subprocess.run([tool, "-c"], input=module(), capture_output=True, check=True).stdout
    assert kernel.unpacked(packed, f"x.ko{suffix}") == module()
    with pytest.raises(ImageError, match="cannot be unpacked"):
        kernel.unpacked(b"garbage", f"x.ko{suffix}")


def test_a_damaged_packed_module_is_refused() -> None:
    with pytest.raises(ImageError, match=r"x\.ko\.xz cannot be unpacked"):
        kernel.unpacked(b"garbage", "x.ko.xz")


@pytest.mark.parametrize("given", [".", "lib", "lib/modules", "lib/modules/6.1"])
def test_modules_are_found_from_any_directory_that_leads_to_them(tmp_path: Path, given: str) -> None:
    below = tmp_path / "lib/modules/6.1"
    below.mkdir(parents=True)
    (below / "x.ko").write_bytes(module())
    assert list(kernel.modules_below(tmp_path / given, "6.1")) == ["x"]


def test_modules_of_another_kernel_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lib/modules/6.1").mkdir(parents=True)
    with pytest.raises(ImageError, match=r"no modules for the kernel 6\.2"):
        kernel.modules_below(tmp_path, "6.2")
