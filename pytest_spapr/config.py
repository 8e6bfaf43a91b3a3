"""Settings: what can be set, where from, and who wins.

One function decides for every setting: mark > command line > environment > ini file > default. This is the only module that
reads the process's environment. Settings are those of one cell, a QEMU build with a guest image: where several of either are named,
there are as many cells as pairs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import platformdirs

from pytest_spapr.errors import ConfigError
from pytest_spapr.size import parse_size

T = TypeVar("T")
Keep = Literal["never", "failed", "always"]
Start = Literal["clone", "boot"]
Firmware = Literal["auto", "vof", "slof"]
TimelinePages = Literal["on", "off", "retain-on-failure"]


class Source(StrEnum):
    """Where a value comes from, in order of precedence."""

    MARK = "mark"
    COMMAND_LINE = "command line"
    ENVIRONMENT = "environment"
    INI = "ini file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and where it comes from.

    :ivar label: how the user wrote it, for messages: ``--spapr-qemu=7.2``, ``SPAPR_QEMU=7.2``.
    """

    value: T
    source: Source
    label: str = ""

    @property
    def named(self) -> bool:
        """Whether the user named it: then it is an error when it is missing, where a default is a skip."""
        return self.source is not Source.DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One setting as the user meets it.

    :ivar kind: ``place`` is a name, or a path when it has a slash; ``path`` always a path. Relative paths start at the current
        directory, those of an ini file at that file's directory.
    :ivar many: whether several may be given, one for each cell: the option is repeated, the ini file has one on each line, and the
        environment has them with blanks or commas between them, quoted as in a shell.
    """

    name: str
    kind: Literal["text", "place", "path", "choice", "flag", "size"]
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def option(self) -> str:
        return "--spapr-" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"SPAPR_{self.name.upper()}"

    @property
    def dest(self) -> str:
        """The name in an ini file, and the attribute of parsed command line options."""
        return f"spapr_{self.name}"

    def label(self, source: Source, value: object) -> str:
        """Return the setting as the user wrote it."""
        if source is Source.COMMAND_LINE:
            return self.option if self.kind == "flag" else f"{self.option}={value}"
        return f"{self.variable if source is Source.ENVIRONMENT else self.dest}={value}"


OPTIONS = (
    Option(
        name="qemu",
        kind="place",
        metavar="PATH|NAME",
        help="QEMU under test: a qemu-system-ppc64 binary, or the name of a packaged build, e.g. 7.2. "
        "Default: qemu-system-ppc64 on PATH, else the newest packaged build. Repeat it to run the tests with several",
        many=True,
    ),
    Option(
        name="image",
        kind="place",
        metavar="NAME|DIRECTORY|DISK",
        help="guest image: a recipe's name, e.g. debian-12 (built when it is not in the cache), the directory of a built image, or a "
        "disk of your own (.qcow2, .raw), which is never written. Repeat it to run the tests with several",
        many=True,
    ),
    Option(name="ssh_user", kind="text", metavar="USER", help="who logs in to a disk: root (the default), or one with sudo"),
    Option(name="ssh_key", kind="path", metavar="FILE", help="private key for that login. Else cloud-init is given a key"),
    Option(name="ssh_password_file", kind="path", metavar="FILE", help="a file (mode 600) with the password for that login"),
    Option(name="kernel", kind="path", metavar="VMLINUX", help="boot this guest kernel instead of the image's"),
    Option(
        name="modules",
        kind="path",
        metavar="DIR",
        help="modules for --spapr-kernel, as `make modules_install INSTALL_MOD_PATH=DIR` leaves them",
    ),
    Option(
        name="contract",
        kind="path",
        metavar="FILE",
        help="contract rows of your own (TOML), which stand above those of the package: what a patched QEMU is to do",
    ),
    Option(
        name="accel",
        kind="choice",
        choices=("tcg", "kvm", "auto"),
        help="accelerator; auto (the default) is KVM where QEMU says that it can, else TCG",
    ),
    Option(
        name="start",
        kind="choice",
        choices=("clone", "boot"),
        help="how a test gets its machine: a clone of a template that was booted once (the default), or a boot of its own",
    ),
    Option(
        name="firmware",
        kind="choice",
        choices=("auto", "vof", "slof"),
        help="what boots the guest: vof (fast), slof, or auto (the default), which is VOF where QEMU has it",
    ),
    Option(
        name="machine",
        kind="text",
        metavar="TYPE[,PROPERTY=VALUE...]",
        help="machine type and properties of tests that say nothing of them, as QEMU's -machine: pseries-7.2, pseries,ic-mode=xics",
    ),
    Option(name="cpu", kind="text", metavar="MODEL", help="CPU model of tests that name none, as QEMU's -cpu, e.g. power9"),
    Option(
        name="kernel_args",
        kind="text",
        metavar="ARGS",
        help="arguments for the kernel of every guest, before those of the test, e.g. disable_radix",
    ),
    Option(
        name="console",
        kind="flag",
        help="show what guests say on their consoles, and their kernels' logs, on the terminal as it comes, past pytest's capturing",
    ),
    Option(
        name="backdoor",
        kind="flag",
        help="give each machine a second monitor, a socket for qmp-shell, and say on the terminal where it is",
    ),
    Option(
        name="vfio_host",
        kind="text",
        metavar="ADDRESS",
        help="a PCI function of this host that its vfio-pci driver has, e.g. 0000:01:00.0: the unplug of it is tested too",
    ),
    Option(
        name="template_space",
        kind="size",
        metavar="SIZE",
        help="bytes that templates may take in the cache, with a suffix K, M, G or T; those not used for longest go first. Default: 8G",
    ),
    Option(
        name="debian_mirror",
        kind="text",
        metavar="URL",
        help="mirror for Debian packages. Default: the one of this machine's apt configuration",
    ),
    Option(
        name="keep",
        kind="choice",
        choices=("never", "failed", "always"),
        help="leave machines running after their test and print how to reach them. Such a machine outlives pytest, "
        "also one that is killed: end it yourself with the command shown",
    ),
    Option(name="artefacts", kind="path", metavar="DIR", help="where failed tests leave their files. Default: artefacts/RUN"),
    Option(
        name="timeline",
        kind="choice",
        choices=("on", "off", "retain-on-failure"),
        help="make a page of each machine's timeline, and one of the run that links to them: of every test (on), of those that fail "
        "(retain-on-failure, the default), or of none (off)",
    ),
    Option(
        name="record",
        kind="flag",
        help="leave, with the artefacts, a script for each machine that does what the test did to it, with nothing but qemu.qmp",
    ),
    Option(
        name="coverage",
        kind="flag",
        help="leave on record, with the artefacts, what the run drove QEMU's connectors through; `spapr coverage --drc` reads it",
    ),
    Option(name="cache_dir", kind="path", metavar="DIR", help="cache of QEMU builds, packages and guest images"),
    Option(name="offline", kind="flag", help="never use the network; what is not in the cache is missing"),
    Option(name="strict", kind="flag", help="fail a test where it would be skipped because QEMU or a guest image is missing"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of one cell, decided. The names are those of :data:`OPTIONS`."""

    qemu: Setting[str | None]
    image: Setting[str | None]
    ssh_user: Setting[str | None]
    ssh_key: Setting[Path | None]
    ssh_password_file: Setting[Path | None]
    kernel: Setting[Path | None]
    modules: Setting[Path | None]
    contract: Setting[Path | None]
    accel: Setting[str]
    start: Setting[Start]
    firmware: Setting[Firmware]
    machine: Setting[str | None]
    cpu: Setting[str | None]
    kernel_args: Setting[str | None]
    console: Setting[bool]
    backdoor: Setting[bool]
    vfio_host: Setting[str | None]
    template_space: Setting[int]
    debian_mirror: Setting[str | None]
    keep: Setting[Keep]
    artefacts: Setting[Path | None]
    timeline: Setting[TimelinePages]
    record: Setting[bool]
    coverage: Setting[bool]
    cache_dir: Setting[Path]
    offline: Setting[bool]
    strict: Setting[bool]

    @property
    def asked(self) -> bool:
        """Whether the user asked for machines by naming any part of one: only then may something be downloaded."""
        return self.qemu.named or self.image.named or self.kernel.named


def table(cells: Sequence[Settings]) -> list[tuple[str, str, Source]]:
    """Return (name, value, source) of every setting, for people; of what the cells differ in, all values."""
    rows = []
    for field in fields(Settings):
        settings: list[Setting[Any]] = [getattr(cell, field.name) for cell in cells]
        values = dict.fromkeys("-" if setting.value is None else str(setting.value) for setting in settings)
        rows.append((field.name, " and ".join(values), settings[0].source))
    return rows


def decide(name: str, layers: Mapping[Source, Mapping[str, Any]], default: T) -> Setting[Any | T]:
    """Return the value of the layer with the highest precedence that has one; None, "" and a list of such are none."""
    for source in Source:
        value = layers.get(source, {}).get(name)
        if isinstance(value, list):
            value = [one for one in value if one] or None
        if value is not None and value != "":
            return Setting(value, source)
    return Setting(default, Source.DEFAULT)


def read(
    command_line: Mapping[str, Any] | None = None,
    ini: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    ini_directory: Path | None = None,
) -> Settings:
    """Decide all settings, for who needs one cell: the first. See :func:`read_cells`."""
    return read_cells(command_line, ini, environment=environment, ini_directory=ini_directory)[0]


def read_cells(
    command_line: Mapping[str, Any] | None = None,
    ini: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    ini_directory: Path | None = None,
) -> tuple[Settings, ...]:
    """Decide all settings of each cell: of every named QEMU build with every named guest image, those of one build together.

    :param command_line: values by name (without ``spapr_``); absent or None where not given, a list where an option was repeated.
    :param ini: the same from an ini file. :param ini_directory: where its relative paths start.
    :param environment: instead of the process's own, for tests.
    :raises ConfigError: for a value outside its choices, one that is given twice, and for ``modules`` without ``kernel``. Nothing is
        looked up on disk.
    """
    environ = os.environ if environment is None else environment
    layers: dict[Source, Mapping[str, Any]] = {
        Source.COMMAND_LINE: command_line or {},
        Source.ENVIRONMENT: {option.name: environ.get(option.variable) for option in OPTIONS},
        Source.INI: ini or {},
    }
    defaults: dict[str, Any] = {
        "accel": "auto",
        "start": "clone",
        "firmware": "auto",
        "template_space": parse_size("8G"),
        "keep": "never",
        "console": False,
        "backdoor": False,
        "timeline": "retain-on-failure",
        "record": False,
        "coverage": False,
        "offline": False,
        "strict": False,
        "cache_dir": platformdirs.user_cache_path("pytest-spapr"),
    }
    values: dict[str, list[Setting[Any]]] = {}
    for option in OPTIONS:
        setting = decide(option.name, layers, defaults.get(option.name))
        base = ini_directory if setting.source is Source.INI and ini_directory else Path.cwd()
        values[option.name] = _settings(option, setting, base) if setting.named else [setting]
    # The first option varies slowest.
    cells = tuple(Settings(**dict(zip(values, cell, strict=True))) for cell in product(*values.values()))
    modules = cells[0].modules
    if modules.named and not cells[0].kernel.named:
        raise ConfigError(
            f"{modules.label} names modules but no kernel: give the vmlinux that they belong to with --spapr-kernel."
        )
    return cells


def _settings(option: Option, setting: Setting[Any], base: Path) -> list[Setting[Any]]:
    """Return what was given, parsed: one setting for each of several values."""
    found: list[Setting[Any]] = []
    for given in _several(option, setting) if option.many else [setting.value]:
        label = option.label(setting.source, given)
        value = _parse(option, given, base, label)
        if any(value == other.value for other in found):
            raise ConfigError(f"{label} is given twice: name it once.")
        found.append(Setting(value, setting.source, label))
    return found


def _several(option: Option, setting: Setting[Any]) -> Sequence[Any]:
    """Return the values that were given for an option that takes several."""
    if setting.source is not Source.ENVIRONMENT:
        return [setting.value] if isinstance(setting.value, str) else list(setting.value)
    words = shlex.shlex(setting.value, posix=True, punctuation_chars=False)
    words.whitespace += ","
    words.whitespace_split = True
    words.commenters = ""
    try:
        found = list(words)
    except ValueError as error:
        raise ConfigError(
            f"{option.variable}={setting.value}: {error}. Write blanks or commas between values, and quotes around one with a blank."
        ) from error
    if not found:
        raise ConfigError(f"{option.variable}={setting.value}: names nothing. Write blanks or commas between values.")
    return found


def _parse(option: Option, value: Any, base: Path, label: str) -> Any:
    match option.kind:
        case "flag":
            return value if isinstance(value, bool) else _flag(str(value), label)
        case "choice" if value not in option.choices:
            raise ConfigError(f"{label}: must be one of {', '.join(option.choices)}.")
        case "path":
            return base / _at_home(str(value), label)
        case "place" if "/" in str(value):
            return str(base / _at_home(str(value), label))
        case "size":
            return parse_size(str(value), f"{label}: ")
    return str(value)


def _at_home(path: str, label: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{label}: there is no user with such a home directory. A file named so is ./{path}.") from error


def _flag(text: str, label: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{label}: must be yes or no.")
