"""A scenario as a program: its steps as data that a person can read, and the player behind them."""

from __future__ import annotations

import inspect
import pprint
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from pytest_spapr.images.store import GuestImage
from pytest_spapr.qemu.argv import Channels, MachineSpec, argv
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.record import player
from pytest_spapr.record.scenario import Scenario, Unrecordable, as_data

_WIDTH: Final = 120
_HEAD: Final = '''\
#!/usr/bin/env python3
"""{story}

Usage: {name} [--image DIRECTORY] [QEMU [ARGUMENT...]]
where QEMU is a qemu-system-ppc64, by default the one that this was recorded with. It needs qemu.qmp (`pip install qemu.qmp`){needs}.
Exit status: 0 it goes as it was recorded, 1 it does not.
"""

from __future__ import annotations

import sys

SCENARIO = {{
    # How QEMU was run, with its arguments; what it had in its environment; where the guest image was.
    "command": {command},
    "machine": {machine},
    "environment": {environment},
    "image": {image!r},
    # Whether the guest is up before the first step.
    "boots": {boots!r},
    "steps": {steps},
    # Seconds after the last step, the devices that are there then, and whether QEMU dies of it all, with which exit status.
    "lasts": {lasts!r},
    "left": {left!r},
    "dies": {dies!r},
    "status": {status!r},
}}

'''
_TAIL: Final = """

if __name__ == "__main__":
    sys.exit(main(SCENARIO))
"""


def script(scenario: Scenario, story: str, name: str, build: QemuBuild, spec: MachineSpec, image: GuestImage | None) -> str:
    """Return a program that plays a scenario, for whoever has Python, qemu.qmp, a QEMU and the image.

    :param story: what it is about. :param name: of its file. :raises Unrecordable: the machine cannot be started by a script.
    """
    if any("qtest" in word for word in spec.qemu_args):
        raise Unrecordable("its guest's calls are played by the test")
    if image is not None and not image.console_shell:
        raise Unrecordable(f"the image {image.name} keeps no shell on a console")
    line = argv(build, spec, image, Channels(*range(len(Channels._fields))))
    return (
        _HEAD.format(
            story="\n".join(textwrap.wrap(story, _WIDTH)),
            name=name,
            needs="" if image is None else f"\nand the guest image {image.name}",
            command=_literal(_by_option(build.command)),
            machine=_literal(_by_option(map(partial(_settled, image), line[len(build.command) :]))),
            image="" if image is None else str(image.directory),
            environment=_literal(dict(build.env)),
            boots=scenario.boots,
            steps=_literal(as_data(scenario.steps)),
            lasts=scenario.lasts,
            left=list(scenario.left),
            dies=scenario.dies,
            status=scenario.status,
        )
        + _player()
    )


def _player() -> str:
    """Return the player's text without its docstring, its future and its own way to be called."""
    source = inspect.getsource(player)
    _, _, body = source.partition("from __future__ import annotations\n")
    return body.strip("\n") + "\n" + _TAIL


def _by_option(words: Iterable[str]) -> list[str]:
    """Return a command line in pieces that a shell would read, each of which begins with an option."""
    lines: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]


def _settled(image: GuestImage | None, word: str) -> str:
    """Return an argument with the descriptors' names in place of their numbers, and the image's directory so that it can be another."""
    if image is not None and word in (str(image.kernel), str(image.initramfs)):
        return f"@image@/{Path(word).name}"
    for number, channel in enumerate(Channels._fields):
        if word == f"socket,id={channel},fd={number}":
            return f"socket,id={channel},fd=@{channel}@"
    return word


def _literal(value: Sequence[object] | Mapping[str, object]) -> str:
    text = pprint.pformat(list(value) if isinstance(value, tuple) else value, width=_WIDTH - 8, sort_dicts=False)
    return textwrap.indent(text, " " * 8).strip()
