"""A violation with a guest as people and programs can have it again: QMP and shell lines, and a test for pytest."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_spapr.explore.history import Done, Rest, Violation

_WIDTH: Final = 120
_SCRIPT: Final = '''\
#!/usr/bin/env python3
"""{story}

Usage: {name} QMP-SOCKET [COMMAND...]
for a QEMU whose guest is up, started with {machine}
and -qmp unix:QMP-SOCKET,server=on,wait=off. It needs qemu.qmp (`pip install qemu.qmp`).
COMMAND, e.g. ssh -p 2222 root@localhost, runs a line in the guest. Without it you are asked to.
"""

import asyncio
import contextlib
import subprocess
import sys

from qemu.qmp import ExecuteError, QMPClient

# For the guest to do its part after each step: drmgr sleeps 3.
SECONDS = 8
HISTORY = [
{steps}
]


def in_the_guest(line):
    if sys.argv[2:]:
        done = subprocess.run([*sys.argv[2:], line], stdin=subprocess.DEVNULL)
        print("in the guest:", line, "-> status", done.returncode)
    else:
        input(f"in the guest: {{line}}   [Enter] ")


async def execute(qmp, name, arguments=None):
    try:
        return await qmp.execute(name, arguments)
    except ExecuteError as error:
        return f"error: {{error}}"


async def history(qmp):
    await qmp.connect(sys.argv[1])
    for step in HISTORY:
        if isinstance(step, str):
            await asyncio.to_thread(in_the_guest, step)
        elif "by hand" in step:
            await qmp.disconnect()
            await asyncio.to_thread(input, step["by hand"] + "   [Enter] ")
            await qmp.connect(sys.argv[1])
        else:
            print(step, "->", await execute(qmp, step["execute"], step.get("arguments")))
        await asyncio.sleep(SECONDS)
        for event in qmp.events.clear():
            print("   ", event["event"], event.get("data", {{}}))
    print("QEMU lives:", await execute(qmp, "query-status"))


async def main():
    qmp, status = QMPClient("history"), 0
    try:
        await history(qmp)
    except Exception as error:
        print(f"QEMU ended, most likely: {{type(error).__name__}}: {{error}}")
        status = 1
    with contextlib.suppress(Exception):
        await qmp.disconnect()
    sys.exit(status)


asyncio.run(main())
'''
_TEST: Final = '''\
"""{story}"""

from contextlib import ExitStack
{imports}
import pytest

from pytest_spapr import Backend, Contract, Presence, PseriesMachine, QmpRefused
from pytest_spapr.explore.guest_script import UNSOUND
from pytest_spapr.hotplug.attempt import Views


@pytest.mark.spapr({shape})
def test_{name}(machine: PseriesMachine, contract: Contract{fixtures}) -> None:
{steps}
    assert not [line for line in machine.guest.dmesg().splitlines() if UNSOUND.search(line)]
'''
_AT_FIRST: Final = "cpus, blocks = len(machine.guest.cpus.present()), len(machine.guest.memory.blocks())"

#: What a sound kernel does not say.
UNSOUND: Final = re.compile(
    r"Oops|BUG:|WARNING: (?!nvram)|Kernel panic|Unable to handle|soft lockup|LOCKUP|rcu.* self-detected|Call Trace"
)
#: What a step asks a person for, who then has a QEMU with its monitor at the same place.
BY_HAND: Final = "by hand"


def script(violation: Violation, story: str, name: str, machine: Sequence[str]) -> str:
    """Return a program that sends what was sent, for a QEMU and a guest of one's own.

    Exit status of that program: 0 if QEMU lives at its end, 1 if not. It takes 8 s for each command.

    :param name: of its file. :param machine: arguments of the QEMU that it was seen with.
    """
    steps = textwrap.indent("\n".join(f"{line}," for done in _all(violation) for line in _lines(done)), " " * 4)
    return _SCRIPT.format(story=_wrapped(story), name=name, machine=" ".join(machine), steps=steps)


def test(violation: Violation, story: str, name: str, shape: Mapping[str, Any]) -> str:
    """Return a test that fails where it broke. :param name: of the test, without ``test_``. :param shape: of its machine."""
    # What is there at rest is more than was there at first.
    code = [
        *([_AT_FIRST] if violation.rest.code else []),
        *(line for done in _all(violation) for line in done.code),
    ]
    steps = textwrap.indent("\n".join(code), " " * 4)
    given = ", ".join(f"{key}={value!r}" for key, value in shape.items())
    imports, fixtures = ("from pathlib import Path\n", ", tmp_path: Path") if "tmp_path" in steps else ("", "")
    return _TEST.format(story=_wrapped(story), name=name, shape=given, steps=steps, imports=imports, fixtures=fixtures)


def _all(violation: Violation) -> list[Done | Rest]:
    return [*violation.done, violation.rest]


def _lines(done: Done | Rest) -> Iterator[str]:
    # As Python has it, not JSON.
    for sent in done.sent:
        yield repr(json.loads(json.dumps(sent)))


def _wrapped(story: str) -> str:
    return "\n".join(textwrap.wrap(story, _WIDTH))
