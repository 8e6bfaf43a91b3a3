"""Every error this package raises on purpose.

One root, so that a caller can tell our errors from a bug. A test's own failure is an ``AssertionError`` and never one of these:
CI can tell a broken contract from broken infrastructure.

::

    SpaprError
    ├── ConfigError           the user named something that is wrong or missing
    ├── CacheError            the cache directory cannot serve (disk full, not writable, damaged entry)
    ├── MirrorError           packages cannot be had from the mirror
    ├── VerificationError     something downloaded or stored is not what its signature or hash says
    ├── ImageError            a guest image or its recipe is unusable
    ├── BuildError            a QEMU build is unusable
    ├── DeadlineExpired       a wait ran out of time
    ├── MachineError          a running machine
    │   ├── LaunchFailed      QEMU did not start
    │   ├── MachineDied       QEMU ended while it was needed
    │   └── BootFailed        the guest did not come up
    ├── QmpRefused            QEMU answered a command with an error
    └── GuestError            the guest seen through its shells
        ├── SshFailed         no connection, wrong host key, connection lost
        │   └── LoginRefused  the server is up and does not take the user
        ├── ShellFailed       no answer from the guest's console shell
        └── CommandFailed     a guest command ended with another status than 0
"""

from __future__ import annotations

from collections.abc import Sequence


class SpaprError(Exception):
    """Root of the package's errors. The text says what was wrong, what was expected and what to do."""


class ConfigError(SpaprError):
    """An option, mark, environment variable or ini value names something wrong or missing."""


class CacheError(SpaprError):
    """The cache directory cannot be read or written, or an entry in it is damaged."""


class MirrorError(SpaprError):
    """No package mirror is known, or the mirror does not serve what is needed."""


class VerificationError(SpaprError):
    """A signature, hash or size does not match. Nothing of the refused data is used."""


class ImageError(SpaprError):
    """A guest image or an image recipe is unusable."""


class BuildError(SpaprError):
    """A QEMU build is missing, not executable, for another target, or too broken to probe."""


class DeadlineExpired(SpaprError):
    """A wait ended without what it waited for.

    :ivar what: what was waited for, in words.
    :ivar seconds: the budget of the wait.
    """

    def __init__(self, what: str, seconds: float, detail: str = "") -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"waited {seconds:.1f} s in vain for {what}" + (f": {detail}" if detail else ""))


class MachineError(SpaprError):
    """Something about a running machine."""


class _Ended(MachineError):
    """A QEMU process that ended.

    :ivar exit_status: as ``Popen.returncode``: negative is the number of the signal.
    :ivar stderr: the last lines that QEMU wrote to its standard error.
    """

    def __init__(self, message: str, exit_status: int | None, stderr: Sequence[str] = ()) -> None:
        self.exit_status = exit_status
        self.stderr = tuple(stderr)
        tail = "\n".join(f"  {line}" for line in self.stderr)
        super().__init__(message + (f"\nQEMU's last words:\n{tail}" if tail else "\nQEMU said nothing on stderr."))


class LaunchFailed(_Ended):
    """QEMU did not start, or ended before its monitor answered."""


class MachineDied(_Ended):
    """QEMU ended while a test still needed it."""


class BootFailed(MachineError):
    """The guest did not come up: it panicked, hung, or its ssh server never answered.

    :ivar phase: the boot phase that was reached last.
    """

    def __init__(self, message: str, phase: str) -> None:
        self.phase = phase
        super().__init__(message)


class QmpRefused(SpaprError):
    """QEMU answered a QMP command with an error; nothing is known to have changed.

    :ivar command: the command's name.
    :ivar error_class: QAPI error class, e.g. ``GenericError`` or ``DeviceNotFound``.
    :ivar description: QEMU's own words.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        self.description = description
        super().__init__(f"{command}: {error_class}: {description}")


class GuestError(SpaprError):
    """The guest, seen through ssh or its console shell."""


class SshFailed(GuestError):
    """The ssh connection could not be made or was lost; whether a running command took effect is unknown."""


class LoginRefused(SshFailed):
    """The guest's ssh server is up, and does not take the user with this key or password."""


class ShellFailed(GuestError):
    """The guest's console shell does not answer or ended; whether a command in it took effect is unknown."""


class CommandFailed(GuestError):
    """A guest command ended with another status than 0.

    :ivar command: the shell command. :ivar status: its exit status. :ivar stdout: :ivar stderr: all it wrote.
    """

    def __init__(self, command: str, status: int, stdout: str, stderr: str) -> None:
        self.command = command
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        words = (stderr or stdout).strip()
        super().__init__(f"guest command `{command}` ended with status {status}" + (f": {words}" if words else ""))
