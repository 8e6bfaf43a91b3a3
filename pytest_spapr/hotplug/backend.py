"""Where the memory of a DIMM or an NVDIMM comes from: QEMU's ``memory-backend-*`` objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_spapr.errors import QmpRefused

if TYPE_CHECKING:
    from pytest_spapr.machine import Machine


class Backend:
    """A memory backend to be made, of any size: ``Backend("memfd", share=True)``, ``Backend("ram", policy="bind", host_nodes=[0])``.

    The same one can be given to several plugs; each makes an object of its own.

    :ivar kind: ``ram``, ``file`` or ``memfd``, or what else the build has a ``memory-backend-`` of.
    :ivar properties: QEMU's, as they are. :param properties: the same with ``_`` for ``-``.
    """

    def __init__(self, kind: str = "ram", **properties: Any) -> None:
        self.kind = kind
        self.properties = {name.replace("_", "-"): value for name, value in properties.items()}

    def __repr__(self) -> str:
        return " ".join((self.kind, *(f"{name}={value}" for name, value in self.properties.items())))

    @contextmanager
    def made(self, machine: Machine, backend_id: str, size: int) -> Iterator[None]:
        """Make the backend, for the ``with`` block to plug the device that maps it. If QEMU refuses that, the backend is deleted again.

        :param size: in bytes.
        :raises QmpRefused: QEMU refused the backend; or what the block raised.
        """
        arguments = {"qom-type": f"memory-backend-{self.kind}", "id": backend_id, "size": size, **self.properties}
        machine.qmp.execute("object-add", arguments)
        try:
            yield
        except QmpRefused:
            machine.qmp.execute("object-del", {"id": backend_id})
            raise


#: RAM of its own, as QEMU makes it if nobody says more.
RAM = Backend()
