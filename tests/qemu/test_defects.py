"""Reproducers of known defects: each build has those that are said of it, and no other."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack

import pytest

from pytest_spapr import KnownDefect, QemuBuild
from pytest_spapr.hotplug.defects import KNOWN_DEFECTS, Reproducer
from pytest_spapr.qemu.passthrough import DRIVER
from pytest_spapr.timeline import Timeline
from pytest_spapr.vfio.__main__ import MODELS
from pytest_spapr.vfio.peer import Peer

_SHOWN = [row for row in KNOWN_DEFECTS.values() if row.reproducer]
# A QEMU without the defect is done in 0.2 s.
_HANGS_AFTER = 8.0
_SECONDS = 60.0


def ends(build: QemuBuild, defect: KnownDefect) -> str:
    """Return how QEMU ends, with its last words."""
    assert defect.reproducer is not None
    with ExitStack() as stack:
        socket = ""
        if (model := defect.reproducer.server) is not None:
            if DRIVER not in build.devices:
                pytest.skip(f"{build.version_text} has no {DRIVER}")
            peer = Peer(model, MODELS[model](), Timeline(), descriptors=False)
            stack.callback(peer.close)
            socket = peer.address
        return _ends(build, defect.reproducer, socket)


def _ends(build: QemuBuild, reproducer: Reproducer, socket: str) -> str:
    hangs = reproducer.symptom == "hangs"
    try:
        result = subprocess.run(
            reproducer.argv(build.command, socket),
            input="".join(f"{line}\n" for line in reproducer.lines(socket)),
            env={**os.environ, **build.env},
            capture_output=True,
            text=True,
            timeout=_HANGS_AFTER if hangs else _SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if reproducer.symptom == "refuses" and '"error"' in result.stdout:
        return f"refuses: {result.stdout[-500:]}"
    return f"{'dies' if result.returncode < 0 else 'ends'} {result.returncode}: {result.stderr[-200:]} {result.stdout[-500:]}"


@pytest.mark.parametrize("defect", _SHOWN, ids=lambda row: row.id)
def test_a_reproducer_shows_what_it_says(defect: KnownDefect, qemu_build: QemuBuild) -> None:
    assert defect.reproducer is not None
    symptoms = {"dies": ("dies",), "hangs": ("hangs", "dies"), "refuses": ("refuses",)}[defect.reproducer.symptom]
    assert ends(qemu_build, defect).startswith(symptoms if defect.applies(qemu_build, "tcg", None) else "ends 0")
