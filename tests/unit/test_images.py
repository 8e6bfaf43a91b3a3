"""The whole way from a recipe and a signed archive to an image, with small packages made by hand."""

from __future__ import annotations

import dataclasses
import json
import lzma
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_spapr.cache import Cache
from pytest_spapr.errors import ImageError, VerificationError
from pytest_spapr.images import build as images
from pytest_spapr.images import cpio, store
from pytest_spapr.images import recipe as recipes
from pytest_spapr.images.recipe import Recipe
from tests.unit.debian_archive import HAS_APT, Archive, Content, Signer, deb, elf, module, vmlinux
from tests.unit.test_cpio import entries
from tests.unit.test_kernel import bzimage
from tests.unit.test_recipe import DISK, TEXT

pytestmark = pytest.mark.skipif(not HAS_APT, reason="no apt or no gpg here")

LIBRARIES: dict[str, Content] = {
    "./lib/x/libc.so.6": elf(interpreter=""),
    "./lib/x/ld64.so.2": elf(),
    "./lib64/ld64.so.2": "/lib/x/ld64.so.2",
    "./usr/lib/x/librtas.so.2.0.0": elf(needed=("libc.so.6",)),
    "./usr/lib/x/librtas.so.2": "librtas.so.2.0.0",
    "./usr/lib/x/libunused.so.1": elf(),
}
TOOL = elf(needed=("librtas.so.2", "libc.so.6"), interpreter="/lib64/ld64.so.2")
KERNEL: dict[str, Content] = {
    "./boot/vmlinux-6.1.0-test": vmlinux(),
    "./boot/config-6.1.0-test": b"CONFIG_PPC_64K_PAGES=y\n",
    "./lib/modules/6.1.0-test/kernel/virtio_net.ko": module("virtio"),
    "./lib/modules/6.1.0-test/kernel/virtio.ko": module(),
    "./lib/modules/6.1.0-test/kernel/spare.ko": module("virtio"),
    "./lib/modules/6.1.0-test/kernel/unasked.ko": module(),
}


@pytest.fixture
def archive(tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(tmp_path / "mirror", signer, architecture="ppc64el")
    made.add("tools", deb({"./usr/bin/tool": TOOL, **LIBRARIES}, {"./usr/bin/tool": 0o755}), depends="unwanted")
    made.add("unwanted", deb({"./usr/bin/unwanted": b"x"}))
    made.add("linux-image", deb({}), depends="linux-image-6.1")
    made.add("linux-image-6.1", deb(KERNEL))
    made.publish()
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (signer.keyring,))
    return made


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    directory = tmp_path / "recipes"
    (directory / "one").mkdir(parents=True)
    (directory / "one/recipe.toml").write_text(TEXT)
    (directory / "one/init").write_text("#!/bin/sh\n")
    return recipes.load("one", directory)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def image(recipe: Recipe, cache: Cache, archive: Archive) -> store.GuestImage:
    return images.build(recipe, cache, lambda: archive.url)


def no_mirror() -> str:
    raise AssertionError("asked for a mirror")


def tree(image: store.GuestImage) -> dict[str, tuple[int, bytes]]:
    return {name: (fields["mode"], data) for name, fields, data in entries(image.initramfs.read_bytes())}


def test_an_image_has_what_the_recipe_names_and_the_libraries_for_it(image: store.GuestImage) -> None:
    files = tree(image)
    assert files["bin/tool"] == (stat.S_IFREG | 0o755, TOOL)
    assert files["lib/librtas.so.2"][1] == LIBRARIES["./usr/lib/x/librtas.so.2.0.0"]
    assert files["lib64/ld64.so.2"][1] == LIBRARIES["./lib/x/ld64.so.2"]
    assert "lib/libunused.so.1" not in files
    assert files["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert files["bin/cat"][1] == b"busybox"
    assert set(files) >= {"proc", "dev/console"}
    assert (image.kernel_release, image.page_size, image.modules) == ("6.1.0-test", 65536, ("virtio", "virtio_net"))
    assert image.packages == {"linux-image-6.1": "1.0", "tools": "1.0"}


def test_the_init_loads_some_modules_and_others_are_for_modprobe(image: store.GuestImage) -> None:
    files = tree(image)
    below = "lib/modules/6.1.0-test"
    assert files["etc/modules"][1].decode().split() == [f"/{below}/virtio.ko", f"/{below}/virtio_net.ko"]
    assert {name for name in files if name.endswith(".ko")} == {
        f"{below}/{name}.ko" for name in ("virtio", "virtio_net", "spare")
    }
    assert files[f"{below}/modules.dep"][1] == b"virtio.ko:\nvirtio_net.ko: virtio.ko\nspare.ko: virtio.ko\n"


def test_the_keys_are_for_their_owner_only_and_fit_together(image: store.GuestImage) -> None:
    files = tree(image)
    assert stat.S_IMODE(image.client_key.stat().st_mode) == 0o600
    assert files["root/.ssh/authorized_keys"][0] == stat.S_IFREG | 0o600
    assert files["etc/dropbear/dropbear_ed25519_host_key"][0] == stat.S_IFREG | 0o600
    assert str(image.host_key).startswith("ssh-ed25519 ")


def test_the_same_packages_give_the_same_bytes_and_other_keys(
    image: store.GuestImage, recipe: Recipe, archive: Archive, tmp_path: Path
) -> None:
    other = images.build(recipe, Cache(tmp_path / "other"), lambda: archive.url)
    one, two = ({part["name"]: part["sha256"] for part in which.manifest["parts"]} for which in (image, other))
    assert list(one) == ["userland", "modules", "keys"]
    assert (one["userland"], one["modules"]) == (two["userland"], two["modules"])
    assert one["keys"] != two["keys"]
    assert image.host_key != other.host_key
    assert image.client_key.read_bytes() != other.client_key.read_bytes()


def test_a_built_image_needs_no_mirror(image: store.GuestImage, recipe: Recipe, cache: Cache) -> None:
    assert images.build(recipe, cache, no_mirror) == image
    assert images.resolve(str(image.directory), cache, no_mirror) == image


def test_an_image_is_built_again_on_request_with_new_keys(
    image: store.GuestImage, recipe: Recipe, cache: Cache, archive: Archive
) -> None:
    again = images.build(recipe, cache, lambda: archive.url, again=True)
    assert again.directory == image.directory
    assert again.host_key != image.host_key


def test_an_image_is_built_from_cached_packages_when_the_mirror_is_gone(
    image: store.GuestImage, recipe: Recipe, cache: Cache, archive: Archive
) -> None:
    cache.remove(store.KIND, recipe.key)
    (archive.root / "pool").rename(archive.root / "gone")
    assert images.build(recipe, cache, lambda: archive.url).packages == image.packages


def test_a_kernel_of_another_suite_in_packages_of_its_own(recipe: Recipe, cache: Cache, archive: Archive, signer: Signer) -> None:
    """As Debian's 7.x has it."""
    newer = Archive(archive.root, signer, architecture="ppc64el", suite="newer")
    below = "./usr/lib/modules/7.2-test"
    newer.add("linux-image", deb({}), "2.0", depends="linux-base-7.2, linux-binary-7.2, linux-modules-7.2")
    newer.add("linux-base-7.2", deb({f"{below}/config": b"CONFIG_PPC_4K_PAGES=y\n"}))
    newer.add("linux-binary-7.2", deb({f"{below}/vmlinuz": vmlinux("7.2-test")}))
    newer.add("linux-modules-7.2", deb({f"{below}/kernel/virtio_net.ko.xz": lzma.compress(module())}))
    newer.publish()
    recipe = dataclasses.replace(recipe, kernel_suites=("newer",), kernel_files=("linux-b*", "linux-modules-*"))
    image = images.build(recipe, cache, lambda: archive.url)
    assert (image.kernel_release, image.page_size, image.modules) == ("7.2-test", 4096, ("virtio_net",))
    assert set(image.packages) == {"linux-base-7.2", "linux-binary-7.2", "linux-modules-7.2", "tools"}
    assert tree(image)["lib/modules/7.2-test/virtio_net.ko"][1] == module()


@pytest.mark.parametrize(
    ("package", "files", "says"),
    [
        ("tools", {"./usr/bin/other": b"x"}, "none of its packages has usr/bin/tool"),
        ("tools", {"./usr/bin/tool": TOOL}, "bin/tool needs .*, which is in none of its packages"),
        ("linux-image-6.1", {"./boot/nothing": b"x"}, "no kernel is in linux-image-6.1"),
        ("linux-image-6.1", {"./boot/vmlinux-1": b"garbage"}, "not a kernel that the pseries machine boots"),
        ("linux-image-6.1", {**KERNEL, "./lib/modules/6.1.0-test/kernel/virtio.ko": b"garbage"}, "module virtio is damaged"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left(
    recipe: Recipe, cache: Cache, archive: Archive, package: str, files: dict[str, Content], says: str
) -> None:
    archive.add(package, deb(files), "2.0", depends="")
    archive.publish()
    with pytest.raises(ImageError, match=says):
        images.build(recipe, cache, lambda: archive.url)
    assert cache.entries(store.KIND) == []


def test_a_users_kernel_takes_the_place_of_the_images_own(image: store.GuestImage, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux("7.0-rc1"))
    below = tmp_path / "staging/lib/modules/7.0-rc1/kernel"
    below.mkdir(parents=True)
    (below / "virtio_net.ko").write_bytes(module())
    mine = images.with_kernel(image, tmp_path / "vmlinux", tmp_path / "staging", cache)
    assert (mine.kernel_release, mine.page_size, mine.modules) == ("7.0-rc1", None, ("virtio_net",))
    assert mine.console_shell
    assert mine.kernel.read_bytes() == vmlinux("7.0-rc1")
    assert mine.client_key.read_bytes() == image.client_key.read_bytes()
    assert mine.host_key == image.host_key
    files = tree(mine)
    assert files["etc/modules"][1] == b"/lib/modules/7.0-rc1/virtio_net.ko\n"
    assert not any(name.endswith("/virtio.ko") for name in files)
    assert files["bin/tool"] == tree(image)["bin/tool"]
    assert files["root/.ssh/authorized_keys"] == tree(image)["root/.ssh/authorized_keys"]
    assert store.verify(mine.directory) == mine
    assert images.with_kernel(image, tmp_path / "vmlinux", tmp_path / "staging", cache) == mine, "the same from the cache"


def test_another_build_of_the_same_release_is_another_image(image: store.GuestImage, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    directories = set()
    for data in (vmlinux("7.0"), vmlinux("7.0") + b"patched"):
        path.write_bytes(data)
        directories.add(images.with_kernel(image, path, None, cache).directory)
    (tmp_path / "7.0").mkdir()
    (tmp_path / "7.0/virtio_net.ko").write_bytes(module())
    directories.add(images.with_kernel(image, path, tmp_path / "7.0", cache).directory)
    assert len(directories) == 3
    assert images.with_kernel(image, path, None, cache).modules == ()


def test_a_users_kernel_that_cannot_boot_is_refused(image: store.GuestImage, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"MZ" + b"\0" * 1000)
    with pytest.raises(ImageError, match="bzImage"):
        images.with_kernel(image, tmp_path / "bzImage", None, cache)
    with pytest.raises(ImageError, match="cannot read the kernel"):
        images.with_kernel(image, tmp_path / "gone", None, cache)


def test_nothing_is_added_to_an_image_that_does_not_say_what_it_is_made_of(
    image: store.GuestImage, cache: Cache, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux("7.0"))
    for fact in ("parts", "recipe", "wanted_modules"):
        others = {name: value for name, value in image.manifest.items() if name != fact}
        with pytest.raises(ImageError, match=rf"image.json does not say what the image is made of \({fact}\)"):
            images.with_kernel(replace(image, manifest=others), tmp_path / "vmlinux", None, cache)


@pytest.mark.parametrize("name", store.FILES)
def test_a_file_that_was_changed_is_found(image: store.GuestImage, name: str) -> None:
    assert store.verify(image.directory) == image
    path = image.directory / name
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(VerificationError, match=f"{name} was changed"):
        store.verify(image.directory)


def _manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def apply(directory: Path) -> object:
        path = directory / store.MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        return path.write_text(json.dumps(manifest))

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda directory: (directory / store.MANIFEST).unlink(), "is not a guest image.*spapr image build"),
        (lambda directory: (directory / store.MANIFEST).write_text("{"), "is damaged"),
        (lambda directory: (directory / store.MANIFEST).write_text("[]"), "has the format None, expected 3"),
        (_manifest(lambda manifest: manifest.update(format=99)), "has the format 99, expected 3"),
        (_manifest(lambda manifest: manifest.pop("kernel_release")), "is damaged.*kernel_release"),
        (_manifest(lambda manifest: manifest.update(files=7)), "is damaged"),
        (lambda directory: (directory / store.VMLINUX).unlink(), "vmlinux: No such file"),
        (lambda directory: (directory / store.INITRAMFS).write_bytes(b"half"), "initramfs.cpio has 4 bytes, expected"),
    ],
)
def test_a_broken_image_is_refused(image: store.GuestImage, damage: Callable[[Path], object], says: str) -> None:
    damage(image.directory)
    with pytest.raises(ImageError, match=says):
        store.open_image(image.directory)


def test_an_image_that_does_not_exist_is_named(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{tmp_path} is not a guest image"):
        images.resolve(str(tmp_path), cache, no_mirror)
    with pytest.raises(ImageError, match="no guest image is called 'nonesuch'"):
        images.resolve("nonesuch", cache, no_mirror)
    with pytest.raises(ImageError, match="vfio-host is not for a pseries machine, but for amd64"):
        images.resolve("vfio-host", cache, no_mirror)
    with pytest.raises(ImageError, match="ppc64-runner is not a guest to be tested: no guest: a ppc64 runner"):
        images.resolve("ppc64-runner", cache, no_mirror)
    with pytest.raises(ImageError, match=r"debian-12 is not in the cache .*spapr image build debian-12"):
        images.find("debian-12", cache)


def test_an_image_for_an_x86_machine_has_its_kernel_and_modules(
    tmp_path: Path, recipe: Recipe, cache: Cache, archive: Archive, signer: Signer
) -> None:
    other = Archive(archive.root, signer, suite="x86")
    kernel = {name.replace("vmlinux", "vmlinuz"): data for name, data in KERNEL.items() if not name.endswith(".ko")}
    modules = {name: elf(machine=62, kind=1, sections={".modinfo": b"depends=\0"}) for name in KERNEL if name.endswith(".ko")}
    other.add("tools", deb({"./usr/bin/tool": TOOL, **LIBRARIES}))
    other.add("linux-image", deb({**kernel, "./boot/vmlinuz-6.1.0-test": bzimage(), **modules}))
    other.publish()
    x86 = dataclasses.replace(
        recipe, architecture="amd64", suites=("x86",), kernel_suites=("x86",), kernel_files=("linux-image",)
    )
    found = images.build(x86, cache, lambda: other.url)
    assert found.kernel_release == "6.1.0-50-amd64"
    assert found.kernel.read_bytes() == bzimage()
    assert found.modules == ("virtio_net",)


def test_a_tree_is_taken_whole_with_links_and_the_libraries_of_its_programs(
    recipe: Recipe, cache: Cache, archive: Archive
) -> None:
    below = "./usr/share/data"
    files: dict[str, Content] = {
        f"{below}/a.py": b"pass",
        f"{below}/deep/b.so": elf(needed=("libunused.so.1",)),
        f"{below}/link": "deep/b.so",
    }
    archive.add("unwanted", deb({**files, "./usr/share/other/c": b"c"}), "2.0")
    archive.publish()
    recipe = dataclasses.replace(recipe, trees={"opt/data": "usr/share/data"}, dependencies=True)
    image = images.build(recipe, cache, lambda: archive.url)
    found = tree(image)
    assert found["opt/data/a.py"][1] == b"pass"
    assert found["opt/data/link"] == (stat.S_IFLNK | 0o777, b"deep/b.so")
    assert "lib/libunused.so.1" in found, "what a program of the tree needs"
    assert not any(path.startswith(("opt/data/c", "usr/share")) for path in found)
    assert "unwanted" in image.packages, "a package that another one depends on"


def test_a_tree_that_no_package_has_is_named(recipe: Recipe, cache: Cache, archive: Archive) -> None:
    recipe = dataclasses.replace(recipe, trees={"opt/data": "usr/share/data"})
    with pytest.raises(ImageError, match="none of its packages has anything below usr/share/data"):
        images.build(recipe, cache, lambda: archive.url)


def test_an_image_with_more_files_is_another_one_with_the_same_keys(image: store.GuestImage, cache: Cache) -> None:
    more = {"payload/settings": cpio.file(b"export X=1\n", 0o600)}
    found = images.with_files(image, "one+more", more, cache)
    assert tree(found) == {
        **tree(image),
        "payload": (stat.S_IFDIR | 0o755, b""),
        "payload/settings": (stat.S_IFREG | 0o600, b"export X=1\n"),
    }
    assert (found.name, found.kernel_release, found.modules) == ("one+more", image.kernel_release, image.modules)
    assert (found.host_key, found.client_key.read_bytes()) == (image.host_key, image.client_key.read_bytes())
    assert store.verify(found.directory) == found
    assert images.with_files(image, "one+more", more, cache) == found, "the same from the cache"
    other = images.with_files(image, "one+more", {"payload/settings": cpio.file(b"")}, cache)
    assert other.directory != found.directory


@pytest.fixture
def with_disk(tmp_path: Path, recipe: Recipe) -> Recipe:
    for name in ("agent", "configure"):
        (tmp_path / "recipes/one" / name).write_text(name)
    (tmp_path / "recipes/one/recipe.toml").write_text(TEXT.replace("[programs]", DISK + "[programs]"))
    return recipes.load("one", tmp_path / "recipes")


def test_a_disk_has_all_packages_and_is_part_of_the_image(
    with_disk: Recipe, cache: Cache, archive: Archive, tmp_path: Path
) -> None:
    found = {}

    def install(packed: Path, disk: Path) -> None:
        with tarfile.open(packed) as stream:
            found.update({member.name: member for member in stream})
        assert disk.stat().st_size == 3 << 20
        assert disk.read_bytes().count(0) == 3 << 20
        disk.write_bytes(b"a disk")

    image = images.build(with_disk, cache, lambda: archive.url, install=install)
    assert {"usr/bin/tool", "usr/bin/unwanted", "usr/lib/x/libunused.so.1", "usr/sbin/agent"} <= found.keys()
    assert "usr/lib/modules/6.1.0-test/spare.ko" in found
    assert "etc/modules" not in found
    assert image.disk is not None
    assert image.disk.read_bytes() == b"a disk"
    assert not list(image.directory.glob("*.tar"))
    assert tree(image)["etc/ssh/ssh_host_ed25519_key"][1].startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert image.packages == {"linux-image-6.1": "1.0", "tools": "1.0", "unwanted": "1.0"}
    own = tmp_path / "vmlinux"
    own.write_bytes(vmlinux("7.7.7-mine"))
    other = images.with_kernel(image, own, None, cache)
    assert other.disk is not None
    assert other.disk.samefile(image.disk)
    assert store.verify(other.directory) == other
    image.disk.write_bytes(b"a risk")
    with pytest.raises(VerificationError, match=r"disk\.raw was changed"):
        store.verify(image.directory)


def test_a_disk_that_cannot_be_made_leaves_no_image(with_disk: Recipe, cache: Cache, archive: Archive) -> None:
    def install(packed: Path, disk: Path) -> None:
        raise ImageError("the packages cannot be configured")

    with pytest.raises(ImageError, match="cannot be configured"):
        images.build(with_disk, cache, lambda: archive.url, install=install)
    assert cache.entries(store.KIND) == []
    with pytest.raises(ImageError, match="has a disk, which is made in a guest"):
        images.build(with_disk, cache, lambda: archive.url)
