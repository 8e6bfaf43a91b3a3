"""How a QEMU build behaves on hot-unplug: observed on a machine whose guest the probe itself plays.

A machine without an operating system answers ``device_del`` as any other. What a guest would say to it, it says by RTAS calls, and those
can be made from outside through QEMU's own test protocol (``-qtest``, its command ``rtas``), under any accelerator and with no vCPU
running. So nothing has to be inferred from a version: a patched QEMU is known by what it does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from pytest_spapr.errors import SpaprError
from pytest_spapr.qemu.bound import bound
from pytest_spapr.qemu.passthrough import LONE_CONTAINER_ABORTS, NotSeen, lone_container_aborts
from pytest_spapr.qemu.qtest import Qtest

Version = tuple[int, int, int]

#: Every behaviour, as contract rows name it in ``needs`` and ``lacks``, and the version that brought it, for builds that cannot be
#: probed. None is a behaviour that no release has.
BEHAVIOURS: Final[Mapping[str, Version | None]] = {
    # A second device_del for a device that is pending is an error.
    "repeat-core-rejected": None,
    "repeat-dimm-rejected": (2, 5, 0),
    "repeat-pci-rejected": (6, 0, 0),  # e35dfbd227
    "repeat-phb-rejected": (6, 0, 0),  # 7420033ec4
    # A second device_del for a core tells the guest again: 2b18fc794f.
    "repeat-core-announced": (6, 0, 0),
    # QEMU stops waiting for a core by itself: 51254ffb32, taken back by d522cb52e6 before 6.0.
    "unplug-timer": None,
    # A guest that unisolates a connector, as Linux does since 5.13 and 5.14, refuses: 87758fed7a.
    "core-refusal-heard": (6, 1, 0),
    "dimm-refusal-heard": (6, 1, 0),
    # So does one that configures an LMB again, as every Linux does: fe1831eff8.
    "dimm-reconfigure-heard": (6, 0, 0),
    # One refusal of a DIMM is told by two events of the same name: d43f1670c7, 4b08cd567b.
    "dimm-refusal-doubled": (6, 2, 0),
    # Memory can be asked for before the first guest has told what it supports: 1e8b5b1aa1.
    "memory-unplug-before-cas": (6, 0, 0),
    # A passed-through device that is alone on its PHB kills it: there are such devices without hardware since 10.1.
    LONE_CONTAINER_ABORTS: (10, 1, 0),
}

_SECONDS: Final = 60.0
# Longer than any timer could reasonably be, in the nanoseconds of the virtual clock.
_AGES: Final = 3600 * 10**9
# The words of the RTAS interface: PAPR 7.3.5 and 13.5.3; hw/ppc/spapr_rtas.c, spapr_drc.c and spapr_events.c.
_ISOLATION_STATE: Final = 9001
_UNISOLATE: Final = 1
_LMB: Final = 256 << 20
_LMB_DRC: Final = 0x8 << 28
_PHB_DRC: Final = 0x2 << 28
_CORE_DRC: Final = 0x1 << 28
# Somewhere in the machine's RAM, beside what qtest needs for a call.
_BUFFER: Final = 0x1002000
_REMAINING: Final = "timeout remaining"
_QTEST: Final = "qtest"


class NotProbed(SpaprError):
    """The build does not let itself be asked; the message says why."""


def by_version(version: Version) -> frozenset[str]:
    """Return what a release of this version does, for a build that cannot be probed: unpatched, as far as one can know."""
    return frozenset(name for name, since in BEHAVIOURS.items() if since is not None and version >= since)


def observe(command: Sequence[str], env: Mapping[str, str], *, modern_monitor: bool, passthrough: bool = False) -> frozenset[str]:
    """Return which of :data:`BEHAVIOURS` a build has. Runs it once or twice, for 0.1 to 0.4 s each, and once more for 0.8 s.

    :param command: how to run it. :param env: additions to the environment.
    :param modern_monitor: whether it has ``monitor-qmp`` objects, which replace ``-mon``.
    :param passthrough: whether it has vfio-user devices.
    :raises NotProbed: it ends, or does not speak QMP and qtest as every QEMU since 2.9 does.
    """
    try:
        with _machine(command, env, "tcg", modern_monitor=modern_monitor) as machine:
            found = set(_before_a_guest(machine))
            apart = machine.has_qtest
            if not apart:
                found.update(_repeats_and_refusals(machine, clock=False))
        if apart:
            # Its virtual clock goes as the probe says. But 5.2 behaves there as if a guest had told what it supports.
            with _machine(command, env, _QTEST, modern_monitor=modern_monitor) as machine:
                found.update(_repeats_and_refusals(machine, clock=True))
        if passthrough and lone_container_aborts(command, env):
            found.add(LONE_CONTAINER_ABORTS)
        return frozenset(found)
    except NotSeen as error:
        raise NotProbed(str(error)) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise NotProbed(f"its behaviour could not be probed: {type(error).__name__}: {error}") from error


def _before_a_guest(machine: _Machine) -> Iterator[str]:
    machine.plug_memory("before")
    # Nobody has configured it, so that it goes at once, if it may.
    if machine.accepts("before"):
        yield "memory-unplug-before-cas"


def _repeats_and_refusals(machine: _Machine, *, clock: bool) -> Iterator[str]:
    """Unplug one device of each kind twice, and refuse.

    :param clock: whether the machine's virtual clock obeys the probe; else it stands still.
    """
    core_type = machine.execute("query-hotpluggable-cpus")[0]["type"]
    machine.execute("device_add", driver=core_type, id="core", **{"core-id": 1})
    dimm = _LMB_DRC | machine.plug_memory("dimm") // _LMB
    machine.execute("device_add", driver="spapr-pci-host-bridge", id="phb", index=1)
    machine.execute("device_add", driver="virtio-rng-pci", id="pci", bus="pci.0")
    # A reset gives the guest all that is there: from now on it is asked before anything is removed.
    machine.reset()
    words = {}
    for kind in ("core", "dimm", "pci", "phb"):
        machine.accepts(kind)
        machine.announced()
        words[kind] = machine.refusal(kind)
        if words[kind] is not None:
            yield f"repeat-{kind}-rejected"
        elif kind == "core" and machine.announced():
            yield "repeat-core-announced"
    if (rejected := words["core"]) is not None and (machine.gives_up("core") if clock else _REMAINING in rejected):
        yield "unplug-timer"
    yield from _refusals(machine, dimm, phb_repeats=words["phb"] is None)


def _refusals(machine: _Machine, dimm: int, *, phb_repeats: bool) -> Iterator[str]:
    """Refuse as Linux does. A PHB is heard as a core is, and unlike one its repeat tells whether QEMU still waits (6.1 has no event)."""
    machine.unisolate(_PHB_DRC | 1)
    phb_heard = not phb_repeats and machine.accepts("phb")
    if machine.unisolate(_CORE_DRC | 1) or phb_heard:
        yield "core-refusal-heard"
    told = machine.unisolate(dimm)
    if machine.accepts("dimm"):
        yield "dimm-refusal-heard"
    if told.count("DEVICE_UNPLUG_GUEST_ERROR") > 1:
        yield "dimm-refusal-doubled"
    machine.configure(dimm)
    if machine.accepts("dimm"):
        yield "dimm-reconfigure-heard"


class _Machine:
    """A machine that is asked and waits for the answer, nothing more. :ivar has_qtest: whether the build has the accelerator ``qtest``."""

    def __init__(self, qmp: socket.SocketIO, qtest: Qtest) -> None:
        self._qmp, self._qtest = qmp, qtest
        self._events: list[str] = []
        if "QMP" not in json.loads(_line(qmp)):
            raise ValueError("no QMP greeting")
        self.execute("qmp_capabilities")
        types = self.execute("qom-list-types", implements="accel", abstract=False)
        # Distributions may leave it out.
        self.has_qtest = any(entry["name"] == f"{_QTEST}-accel" for entry in types)

    def execute(self, name: str, **arguments: Any) -> Any:
        """Return the answer. :raises ValueError: it is an error."""
        answer = self._ask(name, arguments)
        if "error" in answer:
            raise ValueError(f"{name}: {answer['error']['desc']}")
        return answer["return"]

    def plug_memory(self, name: str) -> int:
        """Plug a DIMM of two LMBs and return its address."""
        backend = {"qom-type": "memory-backend-ram", "id": f"{name}-memory"}
        size = {"size": 2 * _LMB}
        if "error" in self._ask("object-add", {**backend, **size}):
            # Before QEMU 6.0 a backend's properties stood apart: 9151e59a8b.
            self.execute("object-add", **backend, props=size)
        self.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-memory")
        addresses = {device["data"].get("id"): device["data"]["addr"] for device in self.execute("query-memory-devices")}
        return int(addresses[name])

    def refusal(self, device: str) -> str | None:
        """Send ``device_del`` and return QEMU's words if it refuses."""
        answer = self._ask("device_del", {"id": device})
        return str(answer["error"]["desc"]) if "error" in answer else None

    def accepts(self, device: str) -> bool:
        """Send ``device_del`` and return whether QEMU accepts it."""
        return self.refusal(device) is None

    def reset(self) -> None:
        """Reset the machine and wait until that is done."""
        self.execute("system_reset")
        while "RESET" not in self._events:
            self._hear()

    def gives_up(self, device: str) -> bool:
        """Let an hour pass and return whether QEMU has stopped to wait for the guest."""
        self.execute("cont")
        self._qtest.command(f"clock_step {_AGES}")
        return self.accepts(device)

    def unisolate(self, drc: int) -> list[str]:
        """Say by RTAS that a connector is in use, and return the names of the events that come of it."""
        return self._rtas("set-indicator", _ISOLATION_STATE, drc, _UNISOLATE)[1]

    def configure(self, drc: int) -> None:
        """Ask by RTAS for the device's properties, as before it is taken into use."""
        self._qtest.write(_BUFFER, drc, 0)
        self._rtas("ibm,configure-connector", _BUFFER, 0)

    def announced(self) -> int:
        """Take all hotplug events that wait for the guest, and return how many they were."""
        return self._qtest.take_events()

    def _rtas(self, name: str, *arguments: int) -> tuple[int, list[str]]:
        """Make an RTAS call and return its status and the names of the events that came with it."""
        [status] = self._qtest.rtas(name, arguments)
        self._events.clear()
        # Not cleared by the query: what the call caused stands before its answer.
        self.execute("query-status")
        return status, list(self._events)

    def _ask(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        self._qmp.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while (answer := self._hear()) is None:
            pass
        return answer

    def _hear(self) -> Mapping[str, Any] | None:
        """Return the next answer, or None if an event came."""
        message: dict[str, Any] = json.loads(_line(self._qmp))
        if "event" not in message:
            return message
        self._events.append(message["event"])
        return None


def _line(stream: socket.SocketIO) -> bytes:
    line = stream.readline()
    if not line:
        raise EOFError("QEMU has ended")
    return line


@contextmanager
def _machine(command: Sequence[str], env: Mapping[str, str], accelerator: str, *, modern_monitor: bool) -> Iterator[_Machine]:
    monitor = ["-object", "monitor-qmp,id=monitor,chardev=qmp"] if modern_monitor else ["-mon", "chardev=qmp,mode=control"]
    with ExitStack() as stack:
        (qmp, its_qmp), (qtest, its_qtest) = _channel(stack), _channel(stack)
        words = stack.enter_context(tempfile.TemporaryFile())
        arguments = [
            *("-machine", "pseries", "-accel", accelerator, "-smp", "1,maxcpus=4", "-m", "512M,slots=4,maxmem=4G"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-chardev", f"socket,id=qmp,fd={its_qmp.fileno()}", *monitor),
            *("-chardev", f"socket,id=qtest,fd={its_qtest.fileno()}", "-qtest", "chardev:qtest", "-qtest-log", "none"),
        ]
        popen = subprocess.Popen(
            bound([*command, *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**os.environ, **env},
            pass_fds=(its_qmp.fileno(), its_qtest.fileno()),
            start_new_session=True,
        )
        try:
            its_qmp.close()
            its_qtest.close()
            yield _Machine(qmp, Qtest(qtest))
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            words.seek(0)
            said = " | ".join(words.read().decode(errors="replace").splitlines()[-2:]) or "nothing"
            raise NotProbed(f"its behaviour could not be probed: QEMU ended and said: {said}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


def _channel(stack: ExitStack) -> tuple[socket.SocketIO, socket.socket]:
    """Return our end of a channel to QEMU, and QEMU's."""
    ours, its = (stack.enter_context(end) for end in socket.socketpair())
    ours.settimeout(_SECONDS)
    # Unbuffered writes: nothing is left to be flushed to a QEMU that has ended.
    return stack.enter_context(ours.makefile("rwb", buffering=0)), its
