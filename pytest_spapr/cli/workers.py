"""Spreads tasks over processes of this program: fresh interpreters, which end with it however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from pytest_spapr.errors import MachineError

G = TypeVar("G")
T = TypeVar("T")
R = TypeVar("R")


def spread(work: Callable[[Connection, G], None], given: G, count: int, tasks: Iterator[T]) -> Iterator[tuple[T, R]]:
    """Give tasks to processes, and yield each with its result as it comes.

    A task is taken from ``tasks`` when a process is free for it, after all results up to then were yielded: so they can depend on them.
    An error or Ctrl-C ends all processes.

    :param work: what a process does, a function of a module: :func:`serve` with what it needs. :param given: for all of them.
    :raises MachineError: a process ended before its task did, or before there was one for it.
    """
    with _workers(work, given, count) as workers:
        busy: dict[Connection, T] = {}
        idle = list(workers)
        while True:
            while idle and (task := next(tasks, None)) is not None:
                busy[connection := idle.pop()] = task
                _send(connection, task, workers[connection], f"was to play {task}")
            if not busy:
                return
            for connection in _ready(busy):
                task = busy.pop(connection)
                try:
                    result: R = connection.recv()
                except (EOFError, ConnectionError):
                    # The latter where it had not even read its task.
                    raise _ended(workers[connection], f"played {task}") from None
                idle.append(connection)
                yield task, result


def serve(connection: Connection, act: Callable[[T], R]) -> None:
    """Be a worker: act on what comes, until None comes or whoever sends is gone."""
    with suppress(ConnectionError, EOFError):
        while (task := connection.recv()) is not None:
            connection.send(act(task))


def _begin(work: Callable[[Connection, G], None], connection: Connection, given: G) -> None:
    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, name="spapr-worker-parent", daemon=True).start()
    work(connection, given)


@contextmanager
def _workers(work: Callable[[Connection, G], None], given: G, count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    # A fresh interpreter for each: this one has threads.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_begin, args=(work, theirs, given), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
        yield workers
        for connection, process in workers.items():
            _send(connection, None, process, "had no more to play")
        for process in workers.values():
            process.join()
    finally:
        # QEMU dies with the process that started it.
        for process in workers.values():
            process.terminate()
        for connection, process in workers.items():
            process.join()
            connection.close()


def _ready(busy: Iterable[Connection]) -> list[Connection]:
    ready = wait(list(busy))
    return [connection for connection in busy if connection in ready]


def _send(connection: Connection, task: object, process: SpawnProcess, what: str) -> None:
    """Give a process a task, or None. :param what: the process was to do, in words. :raises MachineError: it has ended."""
    try:
        connection.send(task)
    except ConnectionError:
        raise _ended(process, what) from None


def _ended(process: SpawnProcess, what: str) -> MachineError:
    process.join()
    return MachineError(f"the process that {what} ended with status {process.exitcode}")


def _die_with_parent() -> None:
    """Kill this process, and with it its machine, once the one that started it has died of whatever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
