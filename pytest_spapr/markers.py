"""The marks, and what they ask for.

``@pytest.mark.spapr(cpus=1, max_cpus=8)`` shapes the machine; of several marks the closest to the test wins, key by key.
``@pytest.mark.spapr_defect("id")`` says that the test meets a known defect of QEMU.
``@pytest.mark.spapr_slow`` and ``@pytest.mark.spapr_vfio_nested`` keep a test out of a run that does not ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_spapr.errors import ConfigError, MachineDied

if TYPE_CHECKING:
    from pytest_spapr.hotplug.defects import KnownDefect
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild

MACHINE = "spapr"
DEFECT = "spapr_defect"
SLOW = "spapr_slow"
NESTED = "spapr_vfio_nested"

_NUMBER = (int,), "a whole number"
_TEXT = (str,), "a string"
_WORDS = (str, list, tuple), "a string or a list of strings"
SHAPE: Mapping[str, tuple[tuple[type, ...], str]] = {
    "cpus": _NUMBER,
    "max_cpus": _NUMBER,
    "threads": _NUMBER,
    "memory": _NUMBER,
    "slots": _NUMBER,
    "max_memory": _NUMBER,
    "numa": _NUMBER,
    "cpu": _TEXT,
    "machine": _TEXT,
    "kernel_args": _WORDS,
    "qemu_args": _WORDS,
    "firmware": _TEXT,
}
# The second is what pytest.raises() fails with.
_FAILED_ASSERTIONS: tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)
# How the test gets the machine, not what it is.
_START = "start"
_STARTS = ("clone", "boot")


def register(config: pytest.Config) -> None:
    """Make the marks known to ``pytest --markers`` and ``--strict-markers``."""
    keys = ", ".join(f"{key}=" for key in (*SHAPE, _START))
    config.addinivalue_line(
        "markers", f"{MACHINE}({keys}): the machine of the test; sizes in MiB. The closest mark wins, key by key."
    )
    config.addinivalue_line(
        "markers", f"{DEFECT}(id): the test meets this known defect; a strict xfail with the QEMU builds that have it."
    )
    config.addinivalue_line("markers", f"{SLOW}: the test takes minutes; it runs only where -m names this mark.")
    config.addinivalue_line(
        "markers",
        f"{NESTED}: the test boots an x86-64 host with an IOMMU under TCG and runs its machine in there, which takes minutes and up to "
        "3 GiB; it runs only where -m names this mark, as ci/vfio-nested does.",
    )


def without_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that take minutes, unless the run's ``-m`` says what is to become of them."""
    unasked = [mark for mark in (SLOW, NESTED) if mark not in config.option.markexpr]
    slow = [item for item in items if any(item.get_closest_marker(mark) for mark in unasked)]
    if slow:
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


def validate(items: Iterable[pytest.Item]) -> None:
    """Check the marks of all tests, before any runs.

    :raises pytest.UsageError: naming each test with a bad mark, once for all its parameters, and what is allowed.
    """
    wrong: dict[tuple[object, str], str] = {}
    for item in items:
        try:
            if any(item.iter_markers(MACHINE)):
                spec(start(shape(item), "")[1])
            defects(item)
        except ConfigError as error:
            wrong.setdefault((getattr(item, "function", item), str(error)), f"{item.nodeid}: {error}")
    if wrong:
        raise pytest.UsageError("\n".join(wrong.values()))


def shape(item: pytest.Item) -> dict[str, Any]:
    """Return what the marks of a test say about its machine.

    :raises ConfigError: for a positional argument, an unknown name or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers(MACHINE))):  # iter_markers starts with the closest
        if mark.args:
            raise ConfigError(f"@pytest.mark.{MACHINE} takes no positional arguments, got {mark.args[0]!r}. {_allowed()}")
        merged.update(checked(mark.kwargs, f"@pytest.mark.{MACHINE}"))
    return merged


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return machine settings with their argument lists as tuples; a string is split at its blanks.

    :raises ConfigError: for an unknown name or a value of the wrong type; ``where`` says who wrote it.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key == _START and value in _STARTS:
            result[key] = value
            continue
        if key == _START:
            raise ConfigError(f"{where}: {key} must be one of {', '.join(_STARTS)}, got {value!r}.")
        if key not in SHAPE:
            raise ConfigError(f"{where} knows no {key!r}. {_allowed()}")
        types, expected = SHAPE[key]
        # bool is an int to isinstance, but never a size or a count
        fits = isinstance(value, types) and not isinstance(value, bool)
        if not fits:
            raise ConfigError(f"{where}: {key} must be {expected}, got {value!r}.")
        if types == _WORDS[0]:
            result[key] = tuple(value.split()) if isinstance(value, str) else tuple(str(word) for word in value)
        else:
            result[key] = value
    return result


def start(values: Mapping[str, Any], default: str) -> tuple[str, dict[str, Any]]:
    """Return how a machine is to be started, ``clone`` or ``boot``, and what is left of the settings: the machine itself."""
    rest = dict(values)
    return rest.pop(_START, default), rest


def spec(values: Mapping[str, Any]) -> MachineSpec:
    """Return the machine that these settings describe.

    :raises ConfigError: when they contradict each other.
    """
    from pytest_spapr.qemu.argv import MachineSpec

    return MachineSpec(**values)


def defects(item: pytest.Item) -> list[KnownDefect]:
    """Return the known defects that a test is marked with.

    :raises ConfigError: for an unknown id, or anything else than one id in a mark.
    """
    marks = list(item.iter_markers(DEFECT))
    if not marks:
        return []
    from pytest_spapr.hotplug.defects import KNOWN_DEFECTS

    found = []
    for mark in marks:
        if len(mark.args) != 1 or mark.kwargs:
            raise ConfigError(f"@pytest.mark.{DEFECT} takes exactly one argument, the id of a known defect.")
        if not isinstance(mark.args[0], str) or mark.args[0] not in KNOWN_DEFECTS:
            raise ConfigError(
                f"@pytest.mark.{DEFECT} names the unknown defect {mark.args[0]!r}. Known: {', '.join(sorted(KNOWN_DEFECTS))}."
            )
        found.append(KNOWN_DEFECTS[mark.args[0]])
    return found


def expect_defects(item: pytest.Item, build: QemuBuild, accelerator: str, kernel: str | None) -> None:
    """Make a test a strict xfail for each of its known defects that this build has, with this kernel release.

    Only a failed assertion is the defect's symptom, or QEMU's death where the defect is fatal: a lost connection stays a failure.
    """
    for defect in defects(item):
        if defect.applies(build, accelerator, kernel):
            symptoms = _FAILED_ASSERTIONS + ((MachineDied,) if defect.fatal else ())
            item.add_marker(pytest.mark.xfail(reason=defect_reason(defect), raises=symptoms, strict=True))


def defect_reason(defect: KnownDefect) -> str:
    """Return a known defect in one line."""
    return f"known defect {defect.id}: {defect.summary} ({defect.reference})"


def _allowed() -> str:
    return f"Allowed: {', '.join(f'{key}=' for key in (*SHAPE, _START))}."
