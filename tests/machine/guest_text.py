"""The text of a guest's kernel, overwritten while it runs: what makes any function of it oops, or never end."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Final

from pytest_spapr import PseriesMachine

#: No instructions at all: who comes there dies by a program check.
NOTHING: Final = (0, 0, 0, 0)
#: li r0,0; mtmsrd r0,1; b . - the CPU takes no interrupt any more, and stays.
STUCK: Final = (0x38000000, 0x7C010164, 0x48000000)
# Past the two words that set up the TOC, which callers from within the kernel leave out [ELFv2].
_LOCAL_ENTRY: Final = 8
# book3s64 maps the kernel's own image there, at the physical address of the same offset.
_PAGE_OFFSET: Final = 0xC000000000000000
_SECONDS: Final = 20.0


def overwrite(machine: PseriesMachine, function: str, words: tuple[int, ...]) -> None:
    """Put ``words`` where a function of the guest's kernel begins; the machine stands still for it."""
    [line] = machine.guest.ask(f"grep ' T {function}$' /proc/kallsyms").check().stdout.splitlines()
    place = int(line.split()[0], 16) - _PAGE_OFFSET + _LOCAL_ENTRY
    data = b"".join(word.to_bytes(4, "little") for word in words)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "gdb")
        machine.qmp.hmp(f"gdbserver unix:{path},server=on,wait=off")
        try:
            with socket.socket(socket.AF_UNIX) as stub:
                stub.settimeout(_SECONDS)
                stub.connect(str(path))
                for command in ("Qqemu.PhyMemMode:1", f"M{place:x},{len(data):x}:{data.hex()}", "D"):
                    _ask(stub, command)
        finally:
            machine.qmp.hmp("gdbserver none")


def _ask(stub: socket.socket, command: str) -> None:
    """Have QEMU's gdb stub do a command, and see that it did."""
    stub.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
    answer = b""
    # An older one first says that the machine stopped.
    while b"$OK#" not in answer:
        more = stub.recv(4096)
        assert more, f"the stub has hung up after {command}: {answer!r}"
        answer += more
    stub.sendall(b"+")
