"""Tasks that are spread over processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from pytest_spapr.cli.workers import serve, spread
from pytest_spapr.errors import MachineError

from .fake_qemu import gone


def adds(connection: Connection, given: int) -> None:
    """Be a worker that adds, and says who it is."""

    def act(task: int) -> tuple[int, int]:
        if task < 0:
            os._exit(7)
        return task + given, os.getpid()

    serve(connection, act)


def ends_unread(connection: Connection, given: int) -> None:
    """Be a worker that ends when there is a task, which it has not read."""
    connection.poll(None)
    os._exit(7)


def test_a_task_may_depend_on_the_results_before_it_and_no_process_stays() -> None:
    results: list[tuple[int, int]] = []

    def tasks() -> Iterator[int]:
        yield 1
        while results[-1][0] < 30:
            yield results[-1][0]

    played: Iterator[tuple[int, tuple[int, int]]] = spread(adds, 10, 1, tasks())
    for task, result in played:
        assert result[0] == task + 10
        results.append(result)
    assert [result for result, _ in results] == [11, 21, 31]
    assert all(gone(pid) for _, pid in results)


def test_a_process_that_ends_before_its_task_is_an_error_and_ends_the_others() -> None:
    pids = []

    def play() -> None:
        played: Iterator[tuple[int, tuple[int, int]]] = spread(adds, 10, 2, iter([1, 2, -1]))
        for _, result in played:
            pids.append(result[1])

    with pytest.raises(MachineError, match="the process that played -1 ended with status 7"):
        play()
    assert pids
    assert all(gone(pid) for pid in pids)


def test_a_process_that_ends_before_it_has_read_its_task_is_an_error() -> None:
    played: Iterator[tuple[int, int]] = spread(ends_unread, 10, 1, iter([1]))
    with pytest.raises(MachineError, match="the process that played 1 ended with status 7"):
        list(played)


@pytest.mark.parametrize(("left", "what"), [([2], "was to play 2"), ([], "had no more to play")])
def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_an_error(left: list[int], what: str) -> None:
    results: list[tuple[int, int]] = []

    def tasks() -> Iterator[int]:
        yield 1
        os.kill(results[0][1], signal.SIGKILL)
        assert gone(results[0][1])
        yield from left

    def play() -> None:
        played: Iterator[tuple[int, tuple[int, int]]] = spread(adds, 10, 1, tasks())
        for _, result in played:
            results.append(result)

    with pytest.raises(MachineError, match=f"the process that {what} ended with status -9"):
        play()
