from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr.errors import ImageError
from pytest_spapr.images import recipe

TEXT = """
description = "a test"
suites = ["test"]
architecture = "ppc64el"
kernel_suites = ["test"]
kernel_package = "linux-image"
kernel_files = ["linux-image-[0-9]*"]
packages = ["tools"]
modules = ["virtio_net"]
spare_modules = ["spare"]
console_shell = true
applets = "sh\\ncat"
directories = ["proc"]
executable = ["init"]
[programs]
"bin/tool" = "usr/bin/tool"
[links]
"sbin" = "bin"
[files]
"init" = "init"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/recipe.toml").write_text(TEXT)
    (tmp_path / "one/init").write_text("#!/bin/sh\n")
    return tmp_path


def test_a_recipe_is_read(directory: Path) -> None:
    found = recipe.load("one", directory)
    assert recipe.names(directory) == ["one"]
    assert found.applets == ("sh", "cat")
    assert found.files == (recipe.File("init", directory / "one/init", 0o755),)
    assert found.key == f"one-{found.digest[:12]}"


def test_another_text_or_file_is_another_image(directory: Path) -> None:
    keys = {recipe.load("one", directory).key}
    (directory / "one/init").write_text("#!/bin/sh\nexit\n")
    keys.add(recipe.load("one", directory).key)
    (directory / "one/recipe.toml").write_text(TEXT + "# a word\n")
    keys.add(recipe.load("one", directory).key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('description = "a test"', "", "description is missing"),
        ('"a test"', "7", "description must be a string"),
        ('["test"]', '"test"', "suites must be a list of strings"),
        ("console_shell = true", "console_shell = 1", "console_shell must be true or false"),
        ('"sbin" = "bin"', '"sbin" = 7', "links must be a table of strings"),
        ("suites", "suits", "suites is missing"),
        ('architecture = "ppc64el"', 'architecture = "ppc64el"\nflavour = "x"', "unknown: flavour; known are"),
        ('"init" = "init"', '"init" = "gone"', "init: .*No such file"),
        ("[links]", "[links", "recipe.toml: "),
    ],
)
def test_what_is_wrong_is_named(directory: Path, old: str, new: str, says: str) -> None:
    (directory / "one/recipe.toml").write_text(TEXT.replace(old, new))
    with pytest.raises(ImageError, match=says) as caught:
        recipe.load("one", directory)
    assert "recipe.toml" in str(caught.value)


@pytest.fixture
def based(directory: Path) -> Path:
    """The recipe ``two``: its own kernel, everything else from a base."""
    (directory / "common").mkdir()
    lines = [line for line in TEXT.splitlines() if not line.startswith(("kernel", "description"))]
    (directory / "common/base.toml").write_text("\n".join(lines))
    (directory / "common/init").write_text("#!/bin/sh\n")
    (directory / "two").mkdir()
    (directory / "two/recipe.toml").write_text(
        'base = "common"\ndescription = "two"\nkernel_suites = ["two"]\nkernel_package = "two"\nkernel_files = ["two"]\n'
    )
    return directory


def test_a_base_says_what_the_recipe_does_not(based: Path) -> None:
    found = recipe.load("two", based)
    assert recipe.names(based) == ["one", "two"]
    assert (found.kernel_suites, found.suites, found.modules) == (("two",), ("test",), ("virtio_net",))
    assert found.files == (recipe.File("init", based / "common/init", 0o755),)


def test_a_recipe_wins_over_its_base_and_adds_to_its_tables(based: Path) -> None:
    path = based / "two/recipe.toml"
    path.write_text(
        path.read_text() + 'modules = ["e1000"]\n[programs]\n"bin/more" = "bin/more"\n[files]\n"init" = "mine"\n"x" = "x"\n'
    )
    for name in ("mine", "x"):
        (based / "two" / name).write_text(name)
    found = recipe.load("two", based)
    assert found.modules == ("e1000",)
    assert found.programs == {"bin/tool": "usr/bin/tool", "bin/more": "bin/more"}
    assert {file.path: file.source for file in found.files} == {"init": based / "two/mine", "x": based / "two/x"}


@pytest.mark.parametrize("name", ["base.toml", "init"])
def test_a_changed_base_is_another_image(based: Path, name: str) -> None:
    before = recipe.load("two", based).key
    path = based / "common" / name
    path.write_text(path.read_text() + "# a word\n")
    assert recipe.load("two", based).key != before


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        ("two/recipe.toml", '"common"', '"gone"', r"two/recipe\.toml: base must name .* not 'gone'; there are common"),
        ("two/recipe.toml", '"common"', "7", r"two/recipe\.toml: base must name .* not 7"),
        ("two/recipe.toml", "kernel_suites", "#", r"two/recipe\.toml: kernel_suites is missing"),
        ("common/base.toml", "suites", "#", r"two/recipe\.toml: suites is missing"),
        ("common/base.toml", '["test"]', '"test"', r"common/base\.toml: suites must be a list"),
        ("common/base.toml", "[programs]", "[programs]\nx = 7", r"common/base\.toml: programs must be a table of strings"),
        ("common/base.toml", "suites", 'base = "common"\nsuites', r"common/base\.toml: unknown: base"),
    ],
)
def test_what_is_wrong_in_a_base_is_named(based: Path, path: str, old: str, new: str, says: str) -> None:
    (based / path).write_text((based / path).read_text().replace(old, new, 1))
    with pytest.raises(ImageError, match=says):
        recipe.load("two", based)


def test_an_unknown_name_says_which_are_known(directory: Path) -> None:
    with pytest.raises(ImageError, match="no guest image is called 'two': known are one"):
        recipe.load("two", directory)


def test_the_recipes_that_come_with_the_package_are_sound() -> None:
    found = {name: recipe.load(name) for name in recipe.names()}
    assert list(found) == [
        "debian-12",
        "debian-12-disk",
        "debian-13",
        "debian-13-64k",
        "debian-sid",
        "debian-sid-64k",
        "ppc64-runner",
        "vfio-host",
    ]
    assert [name for name, one in found.items() if one.host] == ["ppc64-runner", "vfio-host"]
    assert len({one.key for one in found.values()}) == len(found)
    guests = [one for one in found.values() if not one.host and one.disk is None]
    assert len({(one.suites, one.packages, one.files, one.modules) for one in guests}) == 1, "one userland for all"


def test_trees_and_dependencies_are_there_for_who_asks_and_a_host_is_no_guest(directory: Path) -> None:
    plain = recipe.load("one", directory)
    assert (plain.trees, plain.dependencies, plain.host) == ({}, False, False)
    path = directory / "one/recipe.toml"
    path.write_text("dependencies = true\nhost = true\n" + TEXT + '[trees]\n"usr/lib/x" = "usr/lib/x"\n')
    found = recipe.load("one", directory)
    assert (found.trees, found.dependencies, found.host) == ({"usr/lib/x": "usr/lib/x"}, True, True)
    path.write_text('dependencies = "yes"\n' + TEXT)
    with pytest.raises(ImageError, match="dependencies must be true or false"):
        recipe.load("one", directory)


DISK = """
disk_packages = ["tools"]
disk_excluded = ["usr/share/doc/*"]
disk_configure = "configure"
disk_size = 3
disk_executable = ["usr/sbin/agent"]
[disk_files]
"usr/sbin/agent" = "agent"
"etc/agent" = "agent"
"""


def test_a_disk_is_part_of_its_recipe_with_all_its_files(directory: Path) -> None:
    plain = recipe.load("one", directory)
    path = directory / "one/recipe.toml"
    path.write_text(TEXT.replace("[programs]", DISK + "[programs]"))
    for name in ("agent", "configure"):
        (directory / "one" / name).write_text(name)
    found = recipe.load("one", directory)
    assert plain.disk is None
    assert found.disk is not None
    assert (found.disk.packages, found.disk.size) == (("tools",), 3 << 20)
    assert {file.path: file.mode for file in found.disk.files} == {"usr/sbin/agent": 0o755, "etc/agent": 0o644}
    keys = {plain.key, found.key}
    for name in ("agent", "configure"):
        (directory / "one" / name).write_text("another")
        keys.add(recipe.load("one", directory).key)
    assert len(keys) == 4, "each is another image"
    path.write_text(path.read_text().replace("disk_size = 3", 'disk_size = "3"'))
    with pytest.raises(ImageError, match="disk_size must be a number of MiB, not '3'"):
        recipe.load("one", directory)
