"""A pytest plugin: writes down every attempt that kept its promise, with the test that compared them.

``pytest -p ci.contracts.record --record-contracts=DIRECTORY``; each process writes a file of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import pytest

from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.expectation import Expectation

_NAME = "contract-record"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-contracts", metavar="DIRECTORY", required=False, help="where kept promises are written")


def pytest_configure(config: pytest.Config) -> None:
    directory = config.getoption("--record-contracts")
    if directory is not None:
        config.pluginmanager.register(_Recorder(Path(directory)), _NAME)


class _Recorder:
    """Listens at the only place where an attempt is held against a promise."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{os.getpid()}.jsonl"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._path.open("a", encoding="utf-8") as stream, overheard(item.nodeid, stream):
            return (yield)


@contextmanager
def overheard(test: str, stream: TextIO) -> Iterator[None]:
    plain = Expectation.__eq__

    def compare(promised: Expectation, other: object) -> bool:
        same = plain(promised, other)
        if same is True and isinstance(other, Attempt):
            stream.write(json.dumps({"test": test, "promised": asdict(promised), "attempt": asdict(other)}) + "\n")
        return same

    Expectation.__eq__ = compare  # type: ignore[method-assign]
    try:
        yield
    finally:
        Expectation.__eq__ = plain  # type: ignore[method-assign]
