from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr.errors import ImageError
from pytest_spapr.images import recipe

TEXT = """
description = "a test"
suites = ["test"]
architecture = "amd64"
kernel_package = "linux-image"
kernel_files = ["linux-image-[0-9]*"]
packages = ["tools"]
modules = ["virtio_net"]
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
        ('architecture = "amd64"', 'architecture = "amd64"\nflavour = "x"', "unknown: flavour; known are"),
        ('"init" = "init"', '"init" = "gone"', "init: .*No such file"),
        ("[links]", "[links", "recipe.toml: "),
    ],
)
def test_what_is_wrong_is_named(directory: Path, old: str, new: str, says: str) -> None:
    (directory / "one/recipe.toml").write_text(TEXT.replace(old, new))
    with pytest.raises(ImageError, match=says) as caught:
        recipe.load("one", directory)
    assert "recipe.toml" in str(caught.value)


def test_an_unknown_name_says_which_are_known(directory: Path) -> None:
    with pytest.raises(ImageError, match="no guest image is called 'two': known are one"):
        recipe.load("two", directory)


def test_the_recipes_that_come_with_the_package_are_sound() -> None:
    assert "debian-12" in recipe.names()
    for name in recipe.names():
        assert recipe.load(name).modules
