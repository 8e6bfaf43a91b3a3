"""How a QEMU build takes a passed-through device: observed with a vfio-user server of our own, on a machine that runs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from pytest_spapr.errors import SpaprError
from pytest_spapr.qemu.bound import bound
from pytest_spapr.timeline import Timeline
from pytest_spapr.vfio.model import Idle
from pytest_spapr.vfio.peer import Peer

#: The device model whose host side is a vfio-user server.
DRIVER: Final = "vfio-user-pci"
#: A PHB with one such device, and no other, kills it: at its start, at a reset, or when the guest asks for EEH.
LONE_CONTAINER_ABORTS: Final = "vfio-lone-container-aborts"

_SECONDS: Final = 60.0
_MACHINE: Final = (
    "-machine",
    "pseries",
    "-accel",
    "tcg",
    "-m",
    "512M",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-S",
)
_PHB: Final = ("-device", "spapr-pci-host-bridge,index=1,id=alone,dma_win_size=0x1000000,ddw=off")
_SAID: Final = "".join(json.dumps({"execute": word}) + "\n" for word in ("qmp_capabilities", "query-status", "quit"))


class NotSeen(SpaprError):
    """The build did neither what a sound one does nor what the defect makes it do; the message says what."""


def lone_container_aborts(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Return whether a machine with one vfio-user device alone on its PHB dies before its first instruction. Costs 0.3 to 0.8 s.

    :param command: how to run a build that has the device. :param env: additions to the environment. :raises NotSeen: nobody can tell.
    """
    peer = Peer("probe", Idle(), Timeline())
    try:
        device = {"driver": DRIVER, "bus": "alone.0", "addr": "1.0", "socket": {"type": "unix", "path": peer.address}}
        arguments = [*command, *_MACHINE, *_PHB, "-device", json.dumps(device), "-qmp", "stdio"]
        result = subprocess.run(
            bound(arguments),
            input=_SAID,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotSeen(f"how it takes a vfio-user device could not be probed: it did not end within {_SECONDS:g} s") from error
    finally:
        peer.close()
    if result.returncode not in (0, -signal.SIGABRT):
        words = " | ".join(result.stderr.splitlines()[-2:]) or "nothing"
        raise NotSeen(f"how it takes a vfio-user device could not be probed: it ended with {result.returncode} and said: {words}")
    return result.returncode != 0
