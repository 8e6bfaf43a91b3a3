"""``spapr completion`` and ``spapr manual``: what a shell and ``man`` are to know of the command, made from its own parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pytest_spapr.cli.run import Areas, Run
from pytest_spapr.doctor.check import DISTRIBUTION, own_version
from pytest_spapr.errors import ConfigError

#: Of those that shtab knows, the ones whose users most likely have this command.
SHELLS: Final = ("bash", "zsh", "fish")
_FILES, _DIRECTORIES = ("FILE", "VMLINUX", "TIMELINE", "OTHER"), ("DIR",)
_MISSING: Final = "needs {0}, which is not installed: pip install 'pytest-spapr[live]'."


def add(areas: Areas, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Add both to the command. :param whole: returns the whole command's parser."""
    completion = areas.add_parser(
        "completion",
        help="completion for a shell",
        description='Print what completes this command in a shell. bash: eval "$(spapr completion bash)"; zsh: the same, after compinit; '
        "fish: spapr completion fish | source.",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=lambda run: _completion(run, whole()))
    manual = areas.add_parser(
        "manual",
        help="manual pages",
        description="Write the manual pages of this command and of each of its areas, spapr.1, spapr-qemu.1 and so on. "
        "`man -M DIR spapr` shows them, of a DIR whose man1 they are in.",
    )
    manual.add_argument(
        "directory", type=Path, metavar="DIR", help="where they go, e.g. ~/.local/share/man/man1; made if need be"
    )
    manual.set_defaults(run=lambda run: _manual(run, whole()))


def _completion(run: Run, parser: argparse.ArgumentParser) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ConfigError(f"spapr completion {_MISSING.format('shtab')}") from error
    for action in _actions(parser):
        if action.metavar in _FILES or action.metavar in _DIRECTORIES:
            action.complete = shtab.FILE if action.metavar in _FILES else shtab.DIRECTORY  # type: ignore[attr-defined]  # shtab's own
    print(shtab.complete(parser, run.arguments.shell))


def _manual(run: Run, parser: argparse.ArgumentParser) -> None:
    try:
        from argparse_manpage.manpage import Manpage
    except ImportError as error:
        raise ConfigError(f"spapr manual {_MISSING.format('argparse-manpage')}") from error
    directory = run.arguments.directory.expanduser()
    names = []
    for name, summary, one in _pages(parser):
        page = Manpage(one)
        page.prog, page.description, page.manual = name, summary, DISTRIBUTION
        page.source = f"{DISTRIBUTION} {own_version() or ''}".strip()
        names.append(f"{name}.1")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / names[-1]).write_text(str(page), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{directory}: nothing can be written there: {error.strerror}.") from error
    print(f"{directory}: {', '.join(names)}")


def _pages(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield what has a page of its own: its name, what it is in a line, and its parser."""
    areas = _areas(parser)
    assert areas is not None
    yield parser.prog, "guest images, QEMU builds and machines for hot-unplug tests of pseries", parser
    # argparse has no public name for the help of a choice.
    summaries = {choice.dest: choice.help or "" for choice in areas._choices_actions}
    for name, one in areas.choices.items():
        yield f"{parser.prog}-{name}", summaries.get(name, ""), one


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all arguments of a parser and of those below it."""
    # argparse has no public way to look at them.
    yield from parser._actions
    if (areas := _areas(parser)) is not None:
        for one in areas.choices.values():
            yield from _actions(one)


def _areas(parser: argparse.ArgumentParser) -> Areas | None:
    return next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
