"""Known defects: whose they are, which death is whose, and what a person pastes."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.errors import MachineDied
from pytest_spapr.hotplug.defects import Reproducer, crash_defect, hang_defect
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.timeline import Lane, Timeline


def dead(version: tuple[int, int, int], words: str = "", *, status: int = -6, kind: Kind = Kind.CORE) -> Any:
    """A machine whose QEMU died after a removal."""
    timeline = Timeline()
    timeline.end(MachineDied("QEMU died", status, (words,)))
    attempt = SimpleNamespace(kind=kind, outcome=Outcome.REMOVED)
    build = SimpleNamespace(version=version)
    return SimpleNamespace(timeline=timeline, attempts=[attempt], build=build, spec=SimpleNamespace(accelerator="tcg"))


_HEAP = "free(): corrupted unsorted chunks"


@pytest.mark.parametrize(
    ("version", "words", "defect"),
    [
        ((7, 2, 22), "", "tcg-core-removal"),
        ((7, 2, 22), _HEAP, "tcg-core-removal-heap"),
        ((10, 0, 13), _HEAP, "tcg-core-removal-heap"),
        ((10, 0, 13), "", "tcg-core-removal-heap"),
        ((11, 1, 3), _HEAP, None),
    ],
)
def test_a_death_after_a_cores_removal_is_a_known_defect_where_there_is_one(
    version: tuple[int, int, int], words: str, defect: str | None
) -> None:
    found = crash_defect(dead(version, words))
    assert (found and found.id) == defect


_PLUG = {"execute": "device_add", "arguments": {"driver": "power8_v2.0-spapr-cpu-core", "id": "core1", "core-id": 1}}
_CARD = {"execute": "device_add", "arguments": {"driver": "virtio-rng-pci", "id": "pci1"}}


@pytest.mark.parametrize(
    ("version", "status", "said", "defect"),
    [
        ((5, 2, 0), -11, [_PLUG], "tcg-core-add"),
        ((5, 2, 0), -11, [_PLUG, {"event": "RESUME"}], "tcg-core-add"),
        ((5, 2, 0), -11, [_PLUG, {"return": {}}], None),
        ((5, 2, 0), -11, [_PLUG, {"return": {}}, _CARD], None),
        ((5, 2, 0), -11, [], None),
        ((5, 2, 0), -6, [_PLUG], None),
        ((7, 2, 0), -11, [_PLUG], None),
    ],
)
def test_a_death_during_a_cores_plug(
    version: tuple[int, int, int], status: int, said: list[dict[str, Any]], defect: str | None
) -> None:
    timeline = Timeline()
    for message in said:
        timeline.record(Lane.EVENT if "event" in message else Lane.QMP, "", message)
    timeline.end(MachineDied("QEMU died", status, ()))
    machine: Any = SimpleNamespace(
        timeline=timeline, attempts=[], build=SimpleNamespace(version=version), spec=SimpleNamespace(accelerator="tcg")
    )
    found = crash_defect(machine)
    assert (found and found.id) == defect


@pytest.mark.parametrize(
    ("version", "said", "known"),
    [
        ((5, 2, 0), [_CARD], True),
        ((5, 2, 0), [_CARD, {"event": "RESUME"}], True),
        ((5, 2, 0), [_CARD, {"return": {}}], False),
        ((5, 2, 0), [_CARD, {"error": {"class": "GenericError", "desc": "no"}}], False),
        ((5, 2, 0), [{"execute": "query-status"}], False),
        ((5, 2, 0), [], False),
        ((7, 2, 22), [_CARD], False),
    ],
)
def test_a_plug_that_is_never_answered(version: tuple[int, int, int], said: list[dict[str, Any]], known: bool) -> None:
    timeline = Timeline()
    for message in said:
        timeline.record(Lane.EVENT if "event" in message else Lane.QMP, "", message)
    machine: Any = SimpleNamespace(
        timeline=timeline, build=SimpleNamespace(version=version), spec=SimpleNamespace(accelerator="tcg")
    )
    found = hang_defect(machine)
    assert (found and found.id) == ("tcg-busy-vcpu-device-add" if known else None)


@pytest.mark.parametrize("other", [{"status": -9}, {"status": 1}, {"kind": Kind.DIMM}])
def test_any_other_death_is_news(other: dict[str, Any]) -> None:
    assert crash_defect(dead((7, 2, 22), **other)) is None


def test_a_reproducer_is_one_shell_command() -> None:
    reproducer = Reproducer(("-m", "1G with blanks"), (("device_del", {"id": "it's"}),), "dies")
    echo = ["sh", "-c", 'printf "%s|" "$@"; cat', "sh"]
    said = subprocess.run(["sh", "-c", reproducer.shell(echo)], capture_output=True, text=True, check=True).stdout
    words, _, sent = said.rpartition("|")
    assert words.split("|") == reproducer.argv([])
    assert [json.loads(line) for line in sent.splitlines()] == [
        {"execute": "qmp_capabilities"},
        {"execute": "device_del", "arguments": {"id": "it's"}},
        {"execute": "quit"},
    ]
