"""What KVM on this host cannot give a pseries machine.

Machine types ask for mitigations, page sizes and more by default (hw/ppc/spapr_caps.c), and QEMU starts none that KVM cannot give: on
processors and hypervisors that do not tell of mitigations, or inside of another guest. It says which property to set instead, one at a
time; so it is asked until it starts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

_HINT: Final = re.compile(r"Try appending -machine (?P<name>cap-[a-z-]+)=(?P<value>[\w.]+)")
# The one without a hint: spapr_check_pagesize().
_PAGES: Final = re.compile(r"Can't support \d+ kiB guest pages with (?P<size>\d+) kiB host pages")
_PAGE_SIZE: Final = "cap-hpt-max-page-size"
# More than there are capabilities.
_STARTS: Final = 20
_SECONDS: Final = 60.0
_QUIT: Final = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'


def lacking(command: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the properties that a machine must have to run under KVM here, e.g. ``("cap-cfpc=broken",)``; none on most hosts.

    Costs a start of QEMU, 0.3 s, and one more for each property. Where QEMU does not start for another reason, what is known by then is
    returned: who starts a machine is told the reason.

    :param command: how to run QEMU. :param env: additions to the environment.
    """
    found: dict[str, str] = {}
    for _ in range(_STARTS):
        machine = ",".join(["pseries", *_words(found)])
        hint = _hint(_refusal(command, env, machine))
        if hint is None or hint[0] in found:
            break
        found[hint[0]] = hint[1]
    return tuple(_words(found))


def _words(found: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in found.items()]


def _hint(said: str) -> tuple[str, str] | None:
    """Return the property that QEMU asks for, and its value."""
    if hint := _HINT.search(said):
        return hint["name"], hint["value"]
    if pages := _PAGES.search(said):
        return _PAGE_SIZE, f"{pages['size']}k"
    return None


def _refusal(command: Sequence[str], env: Mapping[str, str], machine: str) -> str:
    """Return what QEMU says when it does not start such a machine; nothing where it does."""
    arguments = ["-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "512M", "-S", "-qmp", "stdio"]
    arguments += ["-nodefaults", "-no-user-config", "-display", "none"]
    try:
        done = subprocess.run(
            [*command, *arguments],
            input=_QUIT,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **env},
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr if done.returncode else ""
