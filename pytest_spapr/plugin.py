"""The pytest plugin: hooks only. What they do stands in ``rig``, ``case``, ``fixtures``, ``markers`` and ``report``.

Imported in every pytest run of an environment that has the package, so this module and what it imports at its top stay cheap.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pytest_spapr import config as settings
from pytest_spapr import hookspecs, markers
from pytest_spapr.case import CASE
from pytest_spapr.coverage import connectors
from pytest_spapr.errors import ConfigError
from pytest_spapr.fixtures import (  # noqa: F401 - pytest finds fixtures among a plugin's names
    contract,
    guest,
    guest_image,
    launch_machine,
    machine,
    prepare_next,
    qemu_build,
    qmp,
    spapr_accelerator,
    spapr_cell,
    spapr_harness,
)
from pytest_spapr.live import let_deadlines_wait
from pytest_spapr.report import artefacts
from pytest_spapr.report.index import Index
from pytest_spapr.rig import CELL, RIG, Rig, progress_past_capture
from pytest_spapr.supply import check_named

_ACCOUNT = "spapr-account"
_WORKER_INPUT = "spapr_run_directory"
_SIGTERM_STATUS = 128 + signal.SIGTERM


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("spapr", "pseries hot-unplug testing")
    for option in settings.OPTIONS:
        shape: dict[str, Any] = {"action": "store_true"} if option.kind == "flag" else {"metavar": option.metavar}
        if option.choices:
            shape = {"choices": option.choices}
        if option.many:
            shape["action"] = "append"
        text = f"{option.help}. [{option.variable}, ini {option.dest}]"
        group.addoption(option.option, dest=option.dest, default=None, help=text, **shape)
        if option.many:
            parser.addini(option.dest, f"As {option.option}, one on each line.", type="linelist", default=None)
        else:
            parser.addini(option.dest, f"As {option.option}.", type="string", default=None)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    markers.register(config)
    try:
        decided = settings.read_cells(
            {option.name: config.getoption(option.dest) for option in settings.OPTIONS},
            {option.name: config.getini(option.dest) for option in settings.OPTIONS},
            ini_directory=None if config.inipath is None else config.inipath.parent,
        )
        for cell in decided:
            check_named(cell)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    rig = Rig(decided, _run_directory(config, decided[0]))
    config.stash[RIG] = rig
    config.add_cleanup(rig.close)
    config.pluginmanager.register(_Account(config, rig), _ACCOUNT)


def pytest_report_header(config: pytest.Config) -> list[str]:
    rig = config.stash[RIG]
    if not rig.settings.asked:
        return []
    named = [
        f"{name} {value} ({source})"
        for name, value, source in settings.table([cell.settings for cell in rig.cells])
        if source is not settings.Source.DEFAULT and name != "cache_dir"
    ]
    return [f"spapr: {', '.join(named)}", f"spapr: cache {rig.settings.cache_dir.value}"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """With xdist, the process that collects nothing gets what was named, once, before its workers want it."""
    config = session.config
    if config.pluginmanager.hasplugin("dsession") and not config.option.collectonly:
        rig = config.stash[RIG]
        if rig.settings.asked:
            with progress_past_capture(config) as progress:
                rig.obtain(progress)
            _begin(config, rig)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for each cell, those of one cell together: pytest orders tests by the parameters of a session."""
    cells = metafunc.config.stash[RIG].cells
    if len(cells) > 1 and CELL in metafunc.fixturenames:
        metafunc.parametrize(CELL, cells, indirect=True, ids=[cell.id for cell in cells], scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A UsageError in one of xdist's workers is an INTERNALERROR of the run: there a bad mark fails its test.
    if not hasattr(config, "workerinput"):
        markers.validate(items)
    markers.without_slow(config, items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Get what the tests need before the first runs; here, because ``pytest_collection_finish`` is called after errors too."""
    config = session.config
    if config.option.collectonly or session.testsfailed or config.pluginmanager.hasplugin("dsession"):
        return
    rig = config.stash[RIG]
    with progress_past_capture(config) as progress:
        needed = rig.prepare(session.items, progress)
    if needed:
        _begin(config, rig)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before pytest itself looks at xfail marks."""
    if any(item.iter_markers(markers.DEFECT)):
        cell = item.config.stash[RIG].cell(item)
        if cell is not None and cell.has_build:
            markers.expect_defects(item, cell.build(), cell.accelerator(), cell.kernel_release())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    rig = item.config.stash[RIG]
    rig.item, rig.next_item = item, nextitem


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if case := item.stash.get(CASE, None):
        case.step("the test begins")
    prepare_next(item.config)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if case := item.stash.get(CASE, None):
        case.report(call, report)
    if CELL in getattr(item, "fixturenames", ()) and (cell := item.config.stash[RIG].cell(item)):
        report.spapr_cell = cell.id  # type: ignore[attr-defined]  # travels with the report, as its facts do
    return report


def pytest_enter_pdb(config: pytest.Config, pdb: Any) -> None:
    """Say how to reach the machines of the test that is debugged, and let no deadline run out while its reader thinks."""
    let_deadlines_wait(pdb)
    rig = config.stash[RIG]
    case = None if rig.item is None else rig.item.stash.get(CASE, None)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if case is not None and reporter is not None:
        for line in case.ways_in():
            reporter.write_line(line)


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    if op != "==":
        return None
    # By class name and home, so that comparing anything else imports nothing.
    for expectation, attempt in ((right, left), (left, right)):
        if _is_ours(expectation, "Expectation") and _is_ours(attempt, "Attempt"):
            return _explained(config.stash[RIG].item, attempt, expectation)
    return None


def _explained(item: pytest.Item | None, attempt: Any, expectation: Any) -> list[str]:
    if item is not None and (case := item.stash.get(CASE, None)):
        return case.explain(attempt, expectation)
    from pytest_spapr.report.failure import explain

    return explain(attempt, expectation)


def _is_ours(value: object, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.startswith("pytest_spapr.hotplug.")


class _Account:
    """Sums up the tests, in the process that has the terminal: reports of xdist's workers arrive there too."""

    def __init__(self, config: pytest.Config, rig: Rig) -> None:
        self._config = config
        self._bench = rig
        self._before = artefacts.present(rig.run_directory)
        self.workers: list[int] = []
        self._told = False
        self._index = Index()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        summary = self._bench.summary
        facts = getattr(report, "spapr", None)
        if facts is not None:
            summary.add(facts)
            self._index.add_facts(report.nodeid, facts)
        # The words that pytest's own last line has.
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        self._index.add_phase(report.nodeid, status[0], report.duration)
        if cell := getattr(report, "spapr_cell", ""):
            summary.add_verdict(cell, status[0])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """pytest calls no ``pytest_terminal_summary`` after ``pytest.exit``: a run that SIGTERM ended would not say what it left."""
        if not hasattr(session.config, "workerinput"):
            if self._bench.settings.coverage.value:
                self._record_connectors(session)
            self._write_index()
        result = yield
        if session.config.pluginmanager.hasplugin("dsession"):
            # Workers tell of tests by reports, and a test that was interrupted has none.
            for directory, kept in artefacts.left_since(self._bench.run_directory, self._before):
                self._bench.summary.add_artefacts(directory)
                self._bench.summary.add_kept(kept)
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            self.pytest_terminal_summary(reporter)
        return result

    def _record_connectors(self, session: pytest.Session) -> None:
        summary = self._bench.summary
        if not summary.drc:
            return
        try:
            summary.drc_record = str(connectors.write(self._bench.run_directory, summary.drc, summary.tested))
        except OSError as error:
            # It was asked for, and an error in here would hide how the tests ended.
            summary.drc_record = f"not on record: {error}"
            session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR

    def _write_index(self) -> None:
        if not self._index.has_pages:
            return
        summary = self._bench.summary
        try:
            summary.index = str(self._index.write(self._bench.run_directory, summary.tested))
        except OSError as error:
            summary.index = f"their index was not written: {error}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        summary = self._bench.summary
        if self._told or summary.empty:
            return
        self._told = True
        terminalreporter.section("spapr")
        for line in summary.lines(self._bench.run_directory):
            terminalreporter.write_line(line)
        if summary.kept:
            terminalreporter.section("machines left running")
            for text in summary.kept:
                terminalreporter.write_line(text)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        # xdist asked for it already, and keeps it for those who want it while the worker is busy.
        self.workers.append(node.gateway._rinfo().pid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """All of xdist's workers write below the one directory of the run."""
        node.workerinput[_WORKER_INPUT] = str(self._bench.run_directory)


def _begin(config: pytest.Config, rig: Rig) -> None:
    """Say what is tested, and end in good order from now on."""
    _exit_on_sigterm(config)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        for line in rig.facts():
            reporter.write_line(f"spapr: {line}")


def _run_directory(config: pytest.Config, decided: settings.Settings) -> Path:
    if decided.artefacts.value is not None:
        return decided.artefacts.value
    worker: dict[str, Any] = getattr(config, "workerinput", {})
    if _WORKER_INPUT in worker:
        return Path(worker[_WORKER_INPUT])
    return config.rootpath / "artefacts" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _exit_on_sigterm(config: pytest.Config) -> None:
    """Have SIGTERM end the run as Ctrl-C does, fixtures and all: CI cancels with it, and Python would just die.

    A second SIGTERM finds the old handler and ends the process at once; QEMU then dies with it.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        # xdist would send them SIGINT 5 s later, which a shell's background job ignores, and kill them after as long again.
        for pid in getattr(config.pluginmanager.get_plugin(_ACCOUNT), "workers", ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        pytest.exit("SIGTERM", returncode=_SIGTERM_STATUS)

    before = signal.signal(signal.SIGTERM, leave)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    config.add_cleanup(restore)
