"""QEMU's qtest protocol, as far as it lets a test play a guest's firmware calls: memory and RTAS.

qtest is made for QEMU's own unit tests, with an accelerator of its own. Next to TCG or KVM the same server answers the same commands, while
the guest's CPUs run or stand still (system/qtest.c; its ``rtas`` is hw/ppc/spapr_rtas.c).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pytest_spapr.errors import MachineError

# Somewhere in the machine's RAM.
_ARGUMENTS: Final = 0x1000000
_RESULTS: Final = 0x1001000
_BUFFER: Final = 0x1002000
_BUFFER_SIZE: Final = 1024
_CELL: Final = 4
# check-exception (LoPAR 7.3.3): of the guest's external interrupts, events of whatever kind.
_EXTERNAL: Final = 0x500
_ANY_EVENT: Final = 0xFFFFFFFF
_NO_MORE: Final = 1


class Qtest:
    """A connection to one QEMU's qtest server.

    For a machine without a guest: the cells of a call overwrite three pages of its memory, at 16 MiB.

    :param stream: the connection, unbuffered, with a timeout; closed by :meth:`close`.
    """

    def __init__(self, stream: socket.SocketIO) -> None:
        self._stream = stream

    @classmethod
    def at(cls, path: Path, seconds: float = 30.0) -> Self:
        """Connect to the socket that QEMU was started with, see :meth:`arguments`.

        :param seconds: a reply takes at most so long. :raises MachineError: nobody listens there.
        """
        return cls(cls._connect(path, seconds))

    def reconnect(self, path: Path, seconds: float = 30.0) -> None:
        """Leave this connection for another one: to the QEMU that a machine has moved to. As :meth:`at`."""
        stream = self._connect(path, seconds)
        self.close()
        self._stream = stream

    @staticmethod
    def _connect(path: Path, seconds: float) -> socket.SocketIO:
        # Closed here, it lives on in its stream.
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.settimeout(seconds)
                connection.connect(str(path))
            except OSError as error:
                raise MachineError(f"QEMU's qtest server does not answer: {error}; start it with Qtest.arguments()") from error
            return connection.makefile("rwb", buffering=0)

    @staticmethod
    def arguments(path: Path) -> tuple[str, ...]:
        """Return what is to be added to QEMU's command line (``qemu_args``).

        :param path: of the socket, at most 107 bytes long and without a comma.
        """
        return ("-qtest", f"unix:{path},server=on,wait=off", "-qtest-log", "none")

    def close(self) -> None:
        """Close the connection; the server waits for another one."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def rtas(self, name: str, arguments: Sequence[int], returns: int = 1) -> tuple[int, ...]:
        """Make an RTAS call as the guest would; 0.2 ms.

        :param name: e.g. ``set-indicator``. :param arguments: 32 bits each. :param returns: how many cells it returns.
        :return: those cells, signed: the status first, as LoPAR has it.
        :raises ValueError: QEMU has no such call. :raises: as :meth:`command`.
        """
        self.write(_ARGUMENTS, *arguments)
        if int(self.command(f"rtas {name} {len(arguments)} {_ARGUMENTS:#x} {returns} {_RESULTS:#x}"), 0) != 0:
            raise ValueError(f"QEMU has no RTAS call {name!r}")
        results = bytes.fromhex(self.command(f"read {_RESULTS:#x} {_CELL * returns:#x}").removeprefix("0x"))
        return struct.unpack(f">{returns}i", results)

    def take_events(self) -> int:
        """Take all that QEMU has to tell the guest (``check-exception``), as its kernel does, and return how many events that were.

        :raises: as :meth:`command`.
        """
        count = 0
        while self.rtas("check-exception", (_EXTERNAL, 0, _ANY_EVENT, 0, _BUFFER, _BUFFER_SIZE))[0] != _NO_MORE:
            count += 1
        return count

    def write(self, address: int, *cells: int) -> None:
        """Write to the machine's memory. :param cells: 32 bits each, big endian. :raises: as :meth:`command`."""
        data = struct.pack(f">{len(cells)}I", *cells)
        self.command(f"write {address:#x} {len(data)} 0x{data.hex()}")

    def command(self, line: str) -> str:
        """Send a command and return the last word of its answer.

        :raises ValueError: it failed. :raises EOFError: QEMU has ended. :raises OSError: it has just, or does not answer in time.
        """
        self._stream.write(f"{line}\n".encode())
        while (answer := self._line()).startswith("IRQ"):
            pass
        if not answer.startswith("OK"):
            raise ValueError(f"{line}: {answer.strip()}")
        return answer.split()[-1]

    def _line(self) -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError("QEMU has ended")
        return line.decode()
