"""``python3 -m pytest_spapr.vfio MODEL SOCKET``: serve one device until its first client has left, for who reproduces a defect by hand."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pytest_spapr.timeline import Lane, Record, Timeline
from pytest_spapr.vfio.model import Idle, Model
from pytest_spapr.vfio.nvme import Nvme
from pytest_spapr.vfio.peer import Peer
from pytest_spapr.vfio.serial import Serial

#: The device models by the names that people give.
MODELS: Final[dict[str, Callable[[], Model]]] = {"idle": Idle, "nvme": Nvme, "serial": Serial}


def main() -> None:
    """Serve until the client has gone."""
    parser = argparse.ArgumentParser(prog="python3 -m pytest_spapr.vfio", description="Serve a vfio-user device to one client.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("socket", type=Path, help="where QEMU is to connect to; it must not exist, and is removed at the end")
    arguments = parser.parse_args()
    left = threading.Event()

    def hear(record: Record) -> None:
        if record.lane is Lane.VFIO and "DISCONNECT" in record.text:
            left.set()

    timeline = Timeline()
    timeline.listen(hear)
    peer = Peer(arguments.model, MODELS[arguments.model](), timeline, descriptors=False)
    try:
        arguments.socket.symlink_to(peer.address)
        try:
            left.wait()
        finally:
            arguments.socket.unlink()
    finally:
        peer.close()


if __name__ == "__main__":
    main()
