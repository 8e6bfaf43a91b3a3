"""A whole running machine, with all that runs in it, saved at one moment and taken back to it: QEMU's snapshots, in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import MachineError
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.qemu.qmp import Qmp

_FILE: Final = "snapshot-file"
_NODE: Final = "snapshots"
_JOB: Final = "rewind"
_TAG: Final = "saved"
# What it holds is the machines' state, not disk content.
_DISK_SIZE: Final = 1 << 20
_SECONDS: Final = 300.0


class Rewind:
    """Saves one machine, and takes it back, any number of times. Its disks must be read-only.

    :param file: is made, and has no name any more when this returns; gets as large as the memory that the machine has used.
    """

    def __init__(self, qmp: Qmp, timeline: Timeline, file: Path) -> None:
        self._qmp = qmp
        self._timeline = timeline
        name = str(file)
        self._run("blockdev-create", {"options": {"driver": "file", "filename": name, "size": 0}})
        self._qmp.execute("blockdev-add", {"driver": "file", "node-name": _FILE, "filename": name})
        self._run("blockdev-create", {"options": {"driver": "qcow2", "file": _FILE, "size": _DISK_SIZE}})
        self._qmp.execute("blockdev-add", {"driver": "qcow2", "node-name": _NODE, "file": _FILE})
        # QEMU has it open, and nothing is to stay behind, however this ends.
        file.unlink()

    def save(self) -> None:
        """Save the machine as it is now; it goes on. Once only. :raises MachineError: a device cannot be saved."""
        self._run("snapshot-save", {"tag": _TAG, "vmstate": _NODE, "devices": [_NODE]})

    def back(self) -> None:
        """Take the machine back to what it was when it was saved. Whoever it talks to must be where they were then.

        :raises MachineError: it was not saved.
        """
        self._run("snapshot-load", {"tag": _TAG, "vmstate": _NODE, "devices": [_NODE]})

    def _run(self, command: str, arguments: dict[str, Any]) -> None:
        """Run a command that is a job, to its end."""
        since = self._timeline.mark()
        self._qmp.execute(command, {"job-id": _JOB, **arguments})

        def concluded(data: dict[str, Any]) -> bool:
            return bool(data.get("id") == _JOB and data.get("status") == "concluded")

        self._timeline.wait(
            lambda record: True if record.event == "JOB_STATUS_CHANGE" and concluded((record.data or {})["data"]) else None,
            since=since,
            deadline=Deadline(_SECONDS),
            what=f"the end of {command}",
        )
        [job] = [job for job in self._qmp.execute("query-jobs") if job["id"] == _JOB]
        self._qmp.execute("job-dismiss", {"id": _JOB})
        if "error" in job:
            raise MachineError(f"QEMU's {command}: {job['error']}")
