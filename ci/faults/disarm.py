"""A pytest plugin: one verb by which tests break a passed-through device does nothing, and what became of the tests that use it is told.

``pytest -p ci.faults.disarm --disarm=VERB --disarm-record=FILE``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from pytest_spapr.hotplug.vfio import VfioFunction
from pytest_spapr.vfio.fault import Fault
from pytest_spapr.vfio.peer import Peer
from pytest_spapr.vfio.protocol import Message

#: Those that are set for a ``with`` block, and those that are done once.
LASTING: Final = ("held", "resets_unanswered", "unanswered", "all_ones", "refusing", "slow")
SUDDEN: Final = ("error", "vanish", "come_back")
_NAME: Final = "disarm"

Verb: TypeAlias = Callable[..., Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--disarm", choices=(*LASTING, *SUDDEN), help="the verb that does nothing")
    parser.addoption(
        "--disarm-record", metavar="FILE", type=Path, help="where it is written what became of each test that uses it"
    )


def pytest_configure(config: pytest.Config) -> None:
    if (verb := config.getoption("--disarm")) is not None:
        config.pluginmanager.register(_Disarmed(verb, config.getoption("--disarm-record")), _NAME)


class _Disarmed:
    def __init__(self, verb: str, record: Path) -> None:
        self._verb = verb
        self._record = record
        self._dead: list[Fault] = []
        self._used = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self._used, said = False, None
        with pytest.MonkeyPatch.context() as patch:
            self._disarm(patch)
            try:
                return (yield)
            except BaseException as error:
                said = f"{type(error).__name__}: {error}".partition("\n")[0]
                raise
            finally:
                if self._used:
                    with self._record.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps({"test": item.nodeid, "failed": said}) + "\n")

    def _disarm(self, patch: pytest.MonkeyPatch) -> None:
        verb: Verb = getattr(VfioFunction, self._verb)
        if self._verb in LASTING:
            patch.setattr(VfioFunction, self._verb, self._set_in_vain(verb))
            patch.setattr(Peer, "_take", self._take_as_if_well(Peer._take))
        else:
            patch.setattr(VfioFunction, self._verb, self._do_nothing)

    def _do_nothing(self, *_: object, **__: object) -> None:
        self._used = True

    def _set_in_vain(self, verb: Verb) -> Verb:
        @contextmanager
        def disarmed(function: VfioFunction, *arguments: Any, **named: Any) -> Iterator[Fault]:
            self._used = True
            with verb(function, *arguments, **named) as fault:
                self._dead.append(fault)
                yield fault

        return disarmed

    def _take_as_if_well(self, take: Callable[[Peer, Message], None]) -> Callable[[Peer, Message], None]:
        """Have messages that a dead fault befalls counted, so that it is not in vain, and answered as if there were no such fault."""

        def taken(peer: Peer, message: Message) -> None:
            faults = peer._faults
            for fault in faults:
                fault.hits += self._is_dead(fault) and message.command in fault.commands
            peer._faults = [fault for fault in faults if not self._is_dead(fault)]
            try:
                take(peer, message)
            finally:
                peer._faults = faults

        return taken

    def _is_dead(self, fault: Fault) -> bool:
        return any(one is fault for one in self._dead)
