"""Avocado's other plugins for the suite: what ``spapr:`` references are, what cells need, which tasks a job has, one junit for all.

And the settings of our own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from avocado.core.data_dir import get_job_results_dir
from avocado.core.exceptions import JobBaseException
from avocado.core.extension_manager import PluginPriority
from avocado.core.job import Job
from avocado.core.nrunner.runnable import Runnable
from avocado.core.plugin_interfaces import Init, JobPre, PreTest, Resolver, Result
from avocado.core.resolver import ReferenceResolution, ReferenceResolutionResult
from avocado.core.settings import settings

from pytest_spapr.avocado import container
from pytest_spapr.avocado.cell import NightCell, variant_cell
from pytest_spapr.avocado.night import Task, again, merged_junit
from pytest_spapr.avocado.runner import PYTEST, SUPPLY
from pytest_spapr.errors import ConfigError

#: What references to our test modules begin with: Avocado's own resolvers take other Python files for unittests.
PREFIX: Final = "spapr:"
_REPLAYED: Final = "job.replay.source_job_id"
_RESULTS: Final = "results.json"


class Settings(Init):  # type: ignore[misc]  # avocado is not typed
    """Tells Avocado of the settings that our runners look at."""

    name = "spapr"
    description = "Settings of pytest-spapr's runners"

    def initialize(self) -> None:
        for name, kind, default, text in (
            (container.IMAGE, str, "", "container image that pytest is run in a container of, by podman"),
            (container.MOUNTS, list, [], "more directories that such a container has"),
        ):
            section, _, key = name.rpartition(".")
            settings.register_option(section=section, key=key, key_type=kind, default=default, help_msg=text)


class SpaprResolver(Resolver):  # type: ignore[misc]  # avocado is not typed
    """Makes one task of each ``spapr:tests/hotplug/test_cores.py`` (and cell)."""

    name = "spapr"
    description = "Test resolver for modules of pytest-spapr's suite"

    def resolve(self, reference: str) -> ReferenceResolution:
        if not reference.startswith(PREFIX):
            return ReferenceResolution(reference, ReferenceResolutionResult.NOTFOUND, info=f"does not begin with {PREFIX}")
        module = reference.removeprefix(PREFIX)
        if not Path(module.partition("::")[0]).exists():
            return ReferenceResolution(reference, ReferenceResolutionResult.NOTFOUND, info=f"there is no {module}")
        return ReferenceResolution(reference, ReferenceResolutionResult.SUCCESS, [Runnable(PYTEST, module)])


class Supplies(PreTest):  # type: ignore[misc]  # avocado is not typed
    """Has the QEMU build and the guest image of a cell made before its tasks, once for all that need the same."""

    name = "spapr-supplies"
    description = "QEMU builds and guest images as dependencies of pytest-spapr's tests"
    # Of several tasks with one name, the first is run and the others wait for it.
    is_cacheable = True

    @staticmethod
    def pre_test_runnables(test_runnable: Runnable, suite_config: dict[str, Any] | None = None) -> list[Runnable]:  # noqa: ARG004
        if test_runnable.kind != PYTEST:
            return []
        return [
            Runnable(SUPPLY, supply.name, config=test_runnable.config, name=supply.name, options=json.dumps(supply.options))
            for supply in _cell(test_runnable).supplies()
        ]


class Cells(JobPre):  # type: ignore[misc]  # avocado is not typed
    """Leaves a job those tasks whose cell has their module; one that is replayed, those that were not fine."""

    name = "spapr-cells"
    description = "The tasks of pytest-spapr's matrix"

    def pre(self, job: Job) -> None:
        failed = self._failed(job)
        for suite in job.test_suites:
            suite.tests = [one for one in suite.tests if one.kind != PYTEST or self._wanted(one, failed)]

    def _wanted(self, runnable: Runnable, failed: set[str] | None) -> bool:
        if failed is not None and _name(runnable) not in failed:
            return False
        tests = _cell(runnable).tests
        return not tests or runnable.uri in tests

    @staticmethod
    def _failed(job: Job) -> set[str] | None:
        """Return the names of the tasks that a replay has again; None for a job that is no replay."""
        if not job.config.get("job.replay.enabled"):
            return None
        # Not the job's own: that one is of the job that is replayed.
        source = settings.as_dict()[_REPLAYED]
        directory = Path(get_job_results_dir(source)).resolve()
        if directory == Path(job.logdir).resolve():
            raise JobBaseException(f"{source} is the replay itself by now: name the job, by its directory or its id")
        results = directory / _RESULTS
        try:
            tests = json.loads(results.read_text(encoding="utf-8"))["tests"]
        except OSError as error:
            raise JobBaseException(f"{results} tells which tasks are to be run again: {error.strerror}") from error
        return {task.name for task in map(Task.from_result, tests) if again(task)}


class AllTests(Result):  # type: ignore[misc]  # avocado is not typed
    """Writes ``junit.xml`` with each test of each task; a task without a report is an error or a skipped test of its own."""

    name = "spapr-junit"
    description = "One junit file with every test of pytest-spapr's tasks"

    # Before those that write the results down.
    priority = PluginPriority.VERY_HIGH

    def render(self, result: Any, job: Job) -> None:
        # They come as they end. `avocado diff` compares lists: without order two nights that are the same differ.
        result.tests.sort(key=lambda one: _short(one["name"]))
        if any(runnable.kind == PYTEST for suite in job.test_suites for runnable in suite.tests):
            tasks = [Task.from_result({**one, "id": str(one["name"]), "name": _short(one["name"])}) for one in result.tests]
            Path(job.logdir, "junit.xml").write_bytes(merged_junit(tasks))


def _cell(runnable: Runnable) -> NightCell:
    try:
        return variant_cell(runnable.variant)
    except ConfigError as error:
        raise JobBaseException(str(error)) from error


def _name(runnable: Runnable) -> str:
    """Return what a task is called in results, without its number."""
    return f"{runnable.uri};{runnable.variant['variant_id']}" if runnable.variant else str(runnable.uri)


def _short(identifier: Any) -> str:
    return f"{identifier.name}{identifier.str_variant}"
