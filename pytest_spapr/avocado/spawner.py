"""Avocado's process spawner for the suite: it hears of a runner that was killed, and knows by itself what the job has made.

Avocado 113 waits for ever for the last message of a task whose runner is gone (``Worker.monitor``), also past the job's timeout. And it
remembers dependencies in a file below the user's home, for all jobs to come (``dependencies/requirements/cache``): a build that somebody
removed from our cache would be there for it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from avocado.core.task.runtime import RuntimeTask
from avocado.core.teststatus import STATUSES_NOT_OK
from avocado.plugins.spawners.process import ProcessSpawner

from pytest_spapr.qemu.process import exit_in_words


class SpaprProcessSpawner(ProcessSpawner):  # type: ignore[misc]  # avocado is not typed
    """Spawns runners as processes, and says in their stead how they ended when they could not."""

    description = "Process based spawner that hears of runners that are killed"

    def __init__(self, config: dict[str, Any] | None = None, job: Any = None) -> None:
        super().__init__(config, job)
        self._watchers: set[asyncio.Task[None]] = set()
        self._given_up: set[str] = set()
        #: By kind and name, whether it is there or still being made.
        self._made: dict[tuple[str, str], bool] = {}

    async def spawn_task(self, runtime_task: RuntimeTask) -> bool:
        spawned: bool = await super().spawn_task(runtime_task)
        if spawned:
            watcher = asyncio.get_running_loop().create_task(self._watch(runtime_task))
            # The loop itself holds no reference.
            self._watchers.add(watcher)
            watcher.add_done_callback(self._watchers.discard)
        return spawned

    async def terminate_task(self, runtime_task: RuntimeTask) -> bool:
        # Avocado says itself what becomes of a task that it gives up.
        self._given_up.add(str(runtime_task.task.identifier))
        ended: bool = await super().terminate_task(runtime_task)
        return ended

    async def is_requirement_in_cache(self, runtime_task: RuntimeTask) -> bool | None:
        """Return whether the job has it, None where another task makes it."""
        if _key(runtime_task) not in self._made:
            return False
        return self._made[_key(runtime_task)] or None

    async def save_requirement_in_cache(self, runtime_task: RuntimeTask) -> None:
        self._made[_key(runtime_task)] = False

    async def update_requirement_cache(self, runtime_task: RuntimeTask, result: str) -> None:
        if result in STATUSES_NOT_OK:
            # The next task that needs it tries again.
            self._made.pop(_key(runtime_task), None)
        else:
            self._made[_key(runtime_task)] = True

    async def _watch(self, runtime_task: RuntimeTask) -> None:
        status = await runtime_task.spawner_handle.process.wait()
        task = runtime_task.task
        identifier = str(task.identifier)
        # A runner that has told everything ends with 0.
        if not status or identifier in self._given_up:
            return
        told = {"id": identifier, "job_id": task.job_id, "time": time.monotonic(), "status": "finished", "result": "error"}
        for service in task.status_services:
            service.post({**told, "fail_reason": f"the task's runner {exit_in_words(status)}"})


def _key(runtime_task: RuntimeTask) -> tuple[str, str]:
    runnable = runtime_task.task.runnable
    return str(runnable.kind), str(runnable.kwargs.get("name"))
