"""A domain of our own libvirtd: one of our QEMU builds with one of our guest images, and everything observed about both.

libvirt makes the command line and has its own monitor. Beside it QEMU gets a monitor of ours, which hears the events that libvirt hears,
and the consoles through which the guest speaks to the plugin.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import threading
import xml.etree.ElementTree as ET
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self
from xml.sax.saxutils import escape, quoteattr

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import DeadlineExpired, MachineDied, MachineError
from pytest_spapr.guest.boot import await_ready
from pytest_spapr.guest.console import ConsoleShell
from pytest_spapr.guest.guest import Guest
from pytest_spapr.guest.ssh import Ssh, forwarded_port
from pytest_spapr.guest.streams import listeners
from pytest_spapr.images.store import GuestImage
from pytest_spapr.libvirt.daemon import Answer, Daemon
from pytest_spapr.machine import Harness
from pytest_spapr.qemu.argv import DEFAULT_KERNEL_ARGS, MachineSpec, cpu_model, disk_arguments
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.channels import LineReader
from pytest_spapr.qemu.qmp import Qmp
from pytest_spapr.timeline import Lane, Record, Timeline

#: hvc0 to hvc3, as the guest's init has them.
_CONSOLES: Final = ("console", "kernel", "service", "shell")
_MONITOR: Final = "qmp"
_JOIN_SECONDS: Final = 5.0
_DEATH_NOTICE: Final = 2.0
_LAST_WORDS: Final = 15
# 2026-11-21 14:51:01.658+0000: event 'device-removed' for domain 'p1': dimm0
_EVENT: Final = re.compile(r"event '(?P<event>[^']+)' for domain '[^']+'(: (?P<detail>.*))?$")


def domain_xml(build: QemuBuild, spec: MachineSpec, image: GuestImage, *, name: str, emulator: Path, sockets: Path) -> str:
    """Return the domain that is the machine ``spec``; one thread for each core.

    :param emulator: what libvirt is to run. :param sockets: a directory in which somebody listens for QEMU's consoles and monitor.
    """
    consoles = "".join(
        f"<serial type='unix'><source mode='connect' path={quoteattr(str(sockets / console))}/>"
        f"<target type='spapr-vio-serial' port='{number}'/></serial>"
        for number, console in enumerate(_CONSOLES)
    )
    model = cpu_model(build, spec)
    cpu = f"<model fallback='forbid'>{escape(model.upper())}</model>" if model != "host" else ""
    mode = "custom' match='exact' check='none" if model != "host" else "host-passthrough"
    room = f"<maxMemory slots='{spec.slots}' unit='MiB'>{spec.max_memory}</maxMemory>" if spec.slots else ""
    extra = [
        "-chardev",
        f"socket,id=witness,path={str(sockets / _MONITOR).replace(',', ',,')}",
        "-mon",
        "chardev=witness,mode=control",
    ]
    if "x-vof" in build.features and spec.firmware != "slof":
        extra += ["-machine", "x-vof=on"]
    arguments = "".join(
        f"<qemu:arg value={quoteattr(argument)}/>" for argument in (*extra, *disk_arguments(image), *spec.qemu_args)
    )
    return f"""\
<domain type='{"kvm" if spec.accelerator == "kvm" else "qemu"}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{escape(name)}</name>
<memory unit='MiB'>{spec.memory}</memory>{room}
<vcpu current='{spec.cpus}'>{spec.max_cpus}</vcpu>
<os><type arch='ppc64' machine={quoteattr(spec.machine)}>hvm</type>
<kernel>{escape(str(image.kernel))}</kernel><initrd>{escape(str(image.initramfs))}</initrd>
<cmdline>{escape(" ".join((*DEFAULT_KERNEL_ARGS, *spec.kernel_args)))}</cmdline></os>
<cpu mode='{mode}'>{cpu}<topology sockets='{spec.max_cpus}' cores='1' threads='1'/>
<numa><cell id='0' cpus='0-{spec.max_cpus - 1}' memory='{spec.memory}' unit='MiB'/></numa></cpu>
<on_crash>preserve</on_crash>
<devices><emulator>{escape(str(emulator))}</emulator>{consoles}
<interface type='user'><model type='virtio'/><rom enabled='no'/></interface>
<controller type='usb' model='none'/><memballoon model='none'/></devices>
<qemu:commandline>{arguments}</qemu:commandline>
</domain>
"""


class Domain:
    """A running domain with a booted guest. Made by :meth:`start`, ended by :meth:`close`.

    :ivar build: :ivar spec: what it runs. :ivar timeline: all that was seen: libvirt's calls and events in the lane ``libvirt``.
    :ivar qmp: our own monitor. :ivar guest: its guest.
    """

    def __init__(self, daemon: Daemon, harness: Harness, spec: MachineSpec, name: str, timeline: Timeline) -> None:
        self.name = name
        self.build = harness.build
        self.spec = spec
        self.timeline = timeline
        self.qmp: Qmp
        self.guest: Guest
        self._daemon = daemon
        self._harness = harness
        # The first ends QEMU, the second reads what it says until its end.
        self._resources = ExitStack()
        self._streams = ExitStack()

    @classmethod
    def start(cls, daemon: Daemon, harness: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline) -> Self:
        """Start the domain and boot its guest: 3 s under TCG with VOF, and 2 s once for each daemon, which probes the build.

        On any error nothing stays behind.

        :raises MachineError: libvirt refused. :raises BootFailed: the guest did not come up.
        """
        domain = cls(daemon, harness, spec, daemon.new_name(), timeline)
        try:
            domain._launch(image)
        except BaseException:
            domain.close()
            raise
        return domain

    def virsh(self, command: str, *arguments: str, seconds: float = 60.0) -> Answer:
        """Run a command of virsh about this domain, e.g. ``virsh("setvcpus", "2", "--live")``.

        :raises DeadlineExpired: no answer in time.
        """
        self.timeline.record(Lane.LIBVIRT, f"-> {' '.join((command, *arguments))}")
        answer = self._daemon.virsh(command, self.name, *arguments, seconds=seconds)
        self.timeline.record(Lane.LIBVIRT, f"<- {answer}" if len(answer.text) < 500 else f"<- {len(answer.text)} characters")
        return answer

    def definition(self) -> ET.Element:
        """Return what libvirt says that the domain is now."""
        return ET.fromstring(self.virsh("dumpxml").check().text)  # noqa: S314 - our own daemon's

    def device_file(self, xml: str) -> str:
        """Return the name of a file with this XML, for virsh."""
        path = self._directory / "device.xml"
        path.write_text(xml)
        return str(path)

    def await_event(self, name: str, detail: str, since: int, deadline: Deadline) -> Record:
        """Return libvirt's event after the cursor, e.g. ``device-removed`` of ``dimm0``.

        :raises DeadlineExpired: libvirt has not told of it. :raises MachineDied: QEMU ended.
        """
        return self.timeline.wait(
            lambda record: record if _is_event(record, name, detail) else None,
            since=since,
            deadline=deadline,
            what=f"libvirt's event {name} of {detail}",
        )

    def events(self, since: int) -> list[tuple[str, str]]:
        """Return libvirt's events after the cursor, name and detail."""
        found = (record.data for record in self.timeline.since(since, Lane.LIBVIRT) if record.data is not None)
        return [(event["event"], event["detail"]) for event in found]

    def running(self) -> bool:
        """Whether the vCPUs run, as QEMU says now."""
        return bool(self.qmp.execute("query-status")["status"] == "running")

    def has_died(self) -> bool:
        """Whether QEMU has ended. One that is just about to is waited for: libvirt may have told of it before."""
        with suppress(DeadlineExpired, MachineDied):
            self.timeline.wait(lambda _: None, since=self.timeline.mark(), deadline=Deadline(_DEATH_NOTICE), what="QEMU's end")
        return self.timeline.ended is not None

    def close(self) -> None:
        """End the domain if it still runs and give back everything. Safe to call twice; never waits for the guest."""
        with self._streams:
            self._resources.close()

    @property
    def _directory(self) -> Path:
        return self._daemon.home / self.name

    def _launch(self, image: GuestImage) -> None:
        directory, deadline = self._directory, Deadline(self._harness.budgets.launch)
        directory.mkdir(exist_ok=True)
        emulator = _emulator(self.build, self._daemon.home)
        definition = directory / "domain.xml"
        definition.write_text(domain_xml(self.build, self.spec, image, name=self.name, emulator=emulator, sockets=directory))
        with ExitStack() as listening:
            listeners = {name: listening.enter_context(_listener(directory / name)) for name in (*_CONSOLES, _MONITOR)}
            self._daemon.virsh("create", str(definition)).check()
            by_libvirt = self._resources.enter_context(ExitStack())
            by_libvirt.callback(self._daemon.virsh, "destroy", self.name)
            ends = {name: _accepted(listener, name, deadline) for name, listener in listeners.items()}
        self._await_death(ends[_MONITOR])
        # libvirt sees it end, and forgets a domain that is nowhere defined: destroy would wait for it for 2 s.
        by_libvirt.pop_all()
        shell = self._read_consoles(ends)
        self.qmp = Qmp.connect(ends[_MONITOR], self._harness.loop, self.timeline, deadline, seconds=self._harness.budgets.qmp)
        self._resources.callback(self.qmp.close)
        self._hear_libvirt(deadline)
        self.guest = self._meet_guest(shell, ends["service"], image)
        await_ready(self.timeline, 0, Deadline(self._harness.budgets.boot))

    def _read_consoles(self, ends: dict[str, socket.socket]) -> ConsoleShell:
        """Put all that the guest says on the timeline, from now until QEMU's end."""
        for name, hear in listeners(self.timeline).items():
            reader = LineReader(ends[name].dup().detach(), hear, name=name)
            self.timeline.follow(reader.catch_up)
            self._streams.callback(reader.join, _JOIN_SECONDS)
            self._streams.callback(ends[name].close)
        shell = ConsoleShell(ends["shell"], self.timeline)
        self._streams.callback(shell.close)
        return shell

    def _meet_guest(self, shell: ConsoleShell, service: socket.socket, image: GuestImage) -> Guest:
        # libvirt has no XML for a forwarded port of this kind of network.
        self.qmp.hmp("hostfwd_add hostnet0 tcp:127.0.0.1:0-:22")
        port = forwarded_port(self.qmp.hmp("info usernet"))
        ssh = Ssh(port=port, login=image.login, host_key=image.host_key, timeline=self.timeline)
        self._resources.callback(ssh.close)
        guest = Guest(
            ssh,
            shell if image.console_shell else None,
            service.sendall,
            self.timeline,
            self._harness.budgets,
            kernel_release=image.kernel_release,
            running=self.running,
        )
        self.timeline.listen(guest.hear)
        return guest

    def _await_death(self, monitor: socket.socket) -> None:
        """Have a thread end the timeline when QEMU ends, which is no child of ours. Who connected to the socket is QEMU."""
        pid, _, _ = struct.unpack("3i", monitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise MachineError(f"QEMU ended at once. libvirt's log of it:\n{self._words()}") from None
        thread = threading.Thread(target=self._end_with, args=(pid, process), name="spapr-domain-exit", daemon=True)
        thread.start()
        self._streams.callback(os.close, process)
        self._streams.callback(thread.join)
        self._resources.callback(_kill, process)

    def _end_with(self, pid: int, process: int) -> None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll()
        self.timeline.end(MachineDied(f"QEMU (pid {pid}) of the domain {self.name} ended", None, self._words().splitlines()))

    def _words(self) -> str:
        log = self._daemon.home / "cache/libvirt/qemu/log" / f"{self.name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        # But for the command line, an argument for each line.
        return "\n".join([line for line in lines if not line.endswith("\\")][-_LAST_WORDS:])

    def _hear_libvirt(self, deadline: Deadline) -> None:
        """Put libvirt's events about this domain on the timeline from now on."""
        listener = subprocess.Popen(
            self._daemon.command("event", "--domain", self.name, "--all", "--loop", "--timestamp"),
            env=self._daemon.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert listener.stdout is not None
        with listener.stdout as pipe:
            reader = LineReader(os.dup(pipe.fileno()), self._hear_event, name="libvirt-events")
        self._resources.callback(reader.join, _JOIN_SECONDS)
        self._resources.callback(listener.wait)
        self._resources.callback(listener.kill)
        # It says nothing of when it begins to listen: something harmless is made to happen until it has heard of it.
        since = self.timeline.mark()
        while not any(name == "metadata-change" for name, _ in self.events(since)):
            deadline.require("virsh event to listen")
            self.virsh("desc", "--live", "heard").check()

    def _hear_event(self, line: str) -> None:
        if (match := _EVENT.search(line)) is not None:
            data = {"event": match["event"], "detail": match["detail"] or ""}
            self.timeline.record(Lane.LIBVIRT, f"event {data['event']} {data['detail']}".rstrip(), data)
        elif line:
            self.timeline.record(Lane.LIBVIRT, line)


def _is_event(record: Record, name: str, detail: str) -> bool:
    return record.lane is Lane.LIBVIRT and record.data == {"event": name, "detail": detail}


def _emulator(build: QemuBuild, home: Path) -> Path:
    """Return a program that is the build: libvirt takes one file for an emulator, and runs it with an environment of its own.

    The same one for all domains: libvirt probes each that it has not seen, or that has changed, for 2 s.
    """
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in build.env.items())
    text = f'#!/bin/sh\n{variables}exec {shlex.join(build.command)} "$@"\n'
    path = home / f"qemu-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not path.exists():
        path.write_text(text)
        path.chmod(0o755)
    return path


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _accepted(listener: socket.socket, name: str, deadline: Deadline) -> socket.socket:
    listener.settimeout(deadline.require(f"QEMU to connect its {name}"))
    try:
        end, _ = listener.accept()
    except TimeoutError as error:
        raise DeadlineExpired(f"QEMU to connect its {name}", deadline.seconds) from error
    end.setblocking(True)
    return end
