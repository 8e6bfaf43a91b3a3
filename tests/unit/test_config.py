"""Settings: precedence, parsing, and words for what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import config
from pytest_spapr.config import Source
from pytest_spapr.errors import ConfigError


def read(
    command_line: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    ini: dict[str, object] | None = None,
    ini_directory: Path | None = None,
) -> config.Settings:
    return config.read(command_line, ini, environment=environment or {}, ini_directory=ini_directory)


def test_the_command_line_wins_over_the_environment_and_that_over_the_ini_file() -> None:
    command_line: dict[str, object] = {"qemu": "a"}
    environment = {"SPAPR_QEMU": "b", "SPAPR_IMAGE": "b"}
    ini: dict[str, object] = {"qemu": "c", "image": "c", "accel": "tcg"}
    settings = read(command_line, environment, ini)
    assert (settings.qemu.value, settings.qemu.source) == ("a", Source.COMMAND_LINE)
    assert (settings.image.value, settings.image.source) == ("b", Source.ENVIRONMENT)
    assert (settings.accel.value, settings.accel.source) == ("tcg", Source.INI)
    assert (settings.keep.value, settings.keep.source) == ("never", Source.DEFAULT)


def test_a_mark_wins_over_everything_and_zero_is_a_value() -> None:
    layers = {Source.MARK: {"cpus": 0}, Source.COMMAND_LINE: {"cpus": 2}}
    assert config.decide("cpus", layers, 1).value == 0


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_value_is_none(empty: str | None) -> None:
    settings = read({"qemu": None}, {"SPAPR_QEMU": empty or ""}, {"qemu": empty})
    assert not settings.qemu.named
    assert not settings.asked


def test_labels_say_what_the_user_wrote() -> None:
    settings = read({"qemu": "7.2", "offline": True}, {"SPAPR_IMAGE": "debian-12"}, {"debian_mirror": "http://m.invalid/debian"})
    labels = [settings.qemu.label, settings.offline.label, settings.image.label, settings.debian_mirror.label]
    assert labels == [
        "--spapr-qemu=7.2",
        "--spapr-offline",
        "SPAPR_IMAGE=debian-12",
        "spapr_debian_mirror=http://m.invalid/debian",
    ]


def test_relative_paths_start_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read(
        {"kernel": "vmlinux"}, {"SPAPR_QEMU": "build/qemu"}, {"image": "images/x", "cache_dir": "c"}, Path("/project")
    )
    assert settings.kernel.value == tmp_path / "vmlinux"
    assert settings.qemu.value == f"{tmp_path}/build/qemu"
    assert settings.image.value == "/project/images/x"
    assert settings.cache_dir.value == Path("/project/c")


def test_a_name_without_a_slash_stays_a_name() -> None:
    assert read({"qemu": "7.2"}).qemu.value == "7.2"


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("yes", True), ("On", True), ("0", False), ("no", False), ("false", False)]
)
def test_flags(text: str, value: bool) -> None:
    assert read(environment={"SPAPR_OFFLINE": text}).offline.value is value


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ("2K", 2048), ("1.5m", 3 << 19), ("8G", 8 << 30), ("1TiB", 1 << 40), (" 3 ", 3)]
)
def test_sizes(text: str, size: int) -> None:
    assert read(environment={"SPAPR_TEMPLATE_SPACE": text}).template_space.value == size


@pytest.mark.parametrize("text", ["many", "-1", "1X", "G", "1,5G", "1e9"])
def test_a_size_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--spapr-template-space=.*: '.*' is no size: expected a number .* e\.g\. 8G"):
        read({"template_space": text})


def test_how_machines_start_by_default() -> None:
    settings = read()
    assert (settings.start.value, settings.firmware.value, settings.template_space.value) == ("clone", "auto", 8 << 30)


def test_a_flag_that_is_neither_yes_nor_no_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SPAPR_OFFLINE=perhaps: must be yes or no"):
        read(environment={"SPAPR_OFFLINE": "perhaps"})


def test_a_value_outside_its_choices_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SPAPR_ACCEL=xen: must be one of tcg, kvm, auto"):
        read(environment={"SPAPR_ACCEL": "xen"})


def test_modules_need_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--spapr-modules=.* names modules but no kernel"):
        read({"modules": str(tmp_path)})
    assert read({"modules": str(tmp_path), "kernel": "vmlinux"}).modules.value == tmp_path


@pytest.mark.parametrize("name", ["qemu", "image", "kernel"])
def test_naming_any_part_of_a_machine_asks_for_machines(name: str) -> None:
    assert read(ini={name: "something"}).asked
    assert not read(ini={"accel": "tcg", "strict": "yes", "cache_dir": "/c"}).asked


def test_the_cache_is_in_the_users_cache_directory_by_default() -> None:
    setting = read().cache_dir
    assert setting.value.name == "pytest-spapr"
    assert not setting.named


def test_the_table_names_every_setting_with_its_source() -> None:
    table = {name: (value, source) for name, value, source in config.table([read({"qemu": "7.2"})])}
    assert set(table) == {option.name for option in config.OPTIONS}
    assert table["qemu"] == ("7.2", Source.COMMAND_LINE)
    assert table["kernel"] == ("-", Source.DEFAULT)


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPAPR_KEEP", "failed")
    assert config.read().keep.value == "failed"


def pairs(
    command_line: dict[str, object] | None = None, environment: dict[str, str] | None = None, ini: dict[str, object] | None = None
) -> list[tuple[str | None, str | None]]:
    cells = config.read_cells(command_line, ini, environment=environment or {})
    return [(cell.qemu.value, cell.image.value) for cell in cells]


def test_each_build_is_paired_with_each_image_and_those_of_a_build_stay_together() -> None:
    named: dict[str, object] = {"qemu": ["7.2", "11.1"], "image": ["debian-13", "debian-12"]}
    assert pairs(named) == [("7.2", "debian-13"), ("7.2", "debian-12"), ("11.1", "debian-13"), ("11.1", "debian-12")]


@pytest.mark.parametrize(
    ("named", "label"),
    [({"qemu": ["~no-such-user/qemu"]}, "--spapr-qemu"), ({"cache_dir": "~no-such-user/x"}, "--spapr-cache-dir")],
)
def test_a_home_directory_of_nobody_is_refused(named: dict[str, Any], label: str) -> None:
    with pytest.raises(ConfigError, match=f"{label}=~no-such-user/.*: there is no user with such a home directory"):
        config.read_cells(named, environment={})


def test_several_may_come_from_anywhere_and_replace_those_below() -> None:
    assert pairs({"qemu": ["7.2"]}, {"SPAPR_QEMU": "10.0 11.1"}) == [("7.2", None)]
    assert pairs(environment={"SPAPR_QEMU": "10.0, 11.1"}, ini={"qemu": ["7.2"]}) == [("10.0", None), ("11.1", None)]
    assert pairs({"qemu": [""]}, ini={"qemu": ["7.2", "11.1"]}) == [("7.2", None), ("11.1", None)]
    assert pairs() == [(None, None)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7.2", ["7.2"]),
        (" 7.2,11.1 ", ["7.2", "11.1"]),
        ("7.2\n11.1", ["7.2", "11.1"]),
        ("'/my builds/qemu' 11.1", ["/my builds/qemu", "11.1"]),
        ("/builds/#1/qemu", ["/builds/#1/qemu"]),
    ],
)
def test_several_in_the_environment(text: str, values: list[str]) -> None:
    assert [qemu for qemu, _ in pairs(environment={"SPAPR_QEMU": text})] == values


@pytest.mark.parametrize(
    ("command_line", "environment", "words"),
    [
        ({"qemu": ["7.2", "11.1", "7.2"]}, "", "--spapr-qemu=7.2 is given twice"),
        ({}, "'7.2", "SPAPR_QEMU='7.2: No closing quotation. Write blanks or commas"),
        ({}, " , ", "SPAPR_QEMU= , : names nothing"),
    ],
)
def test_a_list_that_makes_no_sense_is_named(command_line: dict[str, object], environment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        pairs(command_line, {"SPAPR_QEMU": environment})


def test_each_cell_has_the_label_of_its_own_value_and_all_else_in_common() -> None:
    one, two = config.read_cells({"qemu": ["7.2", "11.1"], "keep": "failed"}, environment={})
    assert (one.qemu.label, two.qemu.label) == ("--spapr-qemu=7.2", "--spapr-qemu=11.1")
    assert one.keep == two.keep
    assert ("qemu", "7.2 and 11.1", Source.COMMAND_LINE) in config.table([one, two])
