"""``spapr timeline``: a machine's timeline as a page, two of them side by side, a picture, a trace for Perfetto."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from pytest_spapr.cli.run import Areas, Run
from pytest_spapr.errors import ConfigError
from pytest_spapr.report.timeline import run as runs
from pytest_spapr.report.timeline.divergence import Difference, diverge
from pytest_spapr.report.timeline.page import page
from pytest_spapr.report.timeline.perfetto import trace
from pytest_spapr.report.timeline.svg import picture

_SUFFIXES: Final = {"html": ".html", "perfetto": ".perfetto.json", "svg": ".svg"}
_WINDOW: Final = re.compile(r"(-?\d+(?:\.\d+)?)?:(-?\d+(?:\.\d+)?)?")
_SAME, _PARTED = 0, 1


def add(areas: Areas, common: argparse.ArgumentParser) -> None:
    """Add the area ``timeline`` to the command."""
    parser = areas.add_parser(
        "timeline",
        parents=[common],
        help="a machine's timeline as a page, or two side by side",
        description="Make a page of one timeline that a test left: lanes, states of the connectors, every record; zoom, search and "
        "filters. Of two timelines the page has both side by side, and the first thing that is not the same in both is marked.",
        epilog="Exit status: 0, or with two timelines 1 where they part; 2 for an error.",
    )
    parser.add_argument(
        "first", type=Path, metavar="TIMELINE", help="a timeline.jsonl, or the directory of artefacts that has it"
    )
    parser.add_argument("second", type=Path, nargs="?", metavar="OTHER", help="another one, to be compared with it")
    parser.add_argument(
        "--format",
        choices=tuple(_SUFFIXES),
        default="html",
        help="a page (the default), a trace for ui.perfetto.dev, or a picture",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: beside the timeline, or timelines.html for two")
    parser.add_argument(
        "--window", type=_window, default=(None, None), metavar="FROM:TO", help="seconds that a picture shows (default: the test)"
    )
    parser.set_defaults(run=_timeline)


def _timeline(run: Run) -> int:
    arguments = run.arguments
    if arguments.second is not None:
        return _side_by_side(arguments)
    one = runs.read(arguments.first)
    match arguments.format:
        case "html":
            text = page([one])
        case "perfetto":
            text = trace(one)
        case _:
            text = picture(one, *arguments.window)
    file = arguments.first / runs.FILE if arguments.first.is_dir() else arguments.first
    print(_written(arguments.output or file.with_suffix(_SUFFIXES[arguments.format]), text))
    return 0


def _side_by_side(arguments: argparse.Namespace) -> int:
    if arguments.format != "html":
        raise ConfigError(f"--format={arguments.format} is for one timeline: of two there is only the page.")
    paths = (arguments.first, arguments.second)
    a, b = (runs.read(path) for path in paths)
    a, b = (replace(run, name=name) for run, name in zip((a, b), _names(a, b, *paths), strict=True))
    found = diverge(a, b)
    print(_written(arguments.output or Path("timelines.html"), page([a, b], divergence=found)))
    if found.first is None:
        print("no divergence in what counts")
        return _SAME
    for line in _words(found.first, (a, b)):
        print(line)
    return _PARTED


def _words(first: Difference, pair: tuple[runs.Run, runs.Run]) -> list[str]:
    lines = [f"first divergence, in {first.where}:"]
    for run, seq, words in zip(pair, (first.a, first.b), first.words, strict=True):
        lines.append(f"  {run.name}: {words}" + ("" if seq is None else f" ({run.records[seq].time:.4f} s, record {seq})"))
    return lines


def _names(a: runs.Run, b: runs.Run, *paths: Path) -> tuple[str, str]:
    """Return what tells two runs apart: their QEMUs if those differ, else where their paths do."""
    qemus = a.about.get("qemu", ""), b.about.get("qemu", "")
    if all(qemus) and qemus[0] != qemus[1]:
        return qemus
    parts = [list(path.absolute().parts) for path in paths]
    while len(parts[0]) > 1 and len(parts[1]) > 1 and parts[0][-1] == parts[1][-1]:
        for one in parts:
            one.pop()
    first, second = (one[-1] for one in parts)
    return (first, second) if first != second else (f"{first} (1)", f"{second} (2)")


def _written(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file with --output.") from error
    return path


def _window(text: str) -> tuple[float | None, float | None]:
    match = _WINDOW.fullmatch(text)
    begin, end = (None if match is None or part is None else float(part) for part in (match.groups() if match else (None, None)))
    if match is None or (begin is not None and end is not None and begin >= end):
        raise argparse.ArgumentTypeError(f"{text!r} is no window: expected two times in seconds, the earlier first, as 1.5:4")
    return begin, end
