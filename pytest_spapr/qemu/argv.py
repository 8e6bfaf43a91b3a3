"""What a machine is, and the one pure function that turns it into QEMU's command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pytest_spapr.errors import ConfigError

if TYPE_CHECKING:
    from pytest_spapr.images.disk import Overlay
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.qemu.build import QemuBuild
    from pytest_spapr.qemu.plugged import Plugged

#: MiB of an LMB: what pseries memory comes in.
LMB_MIB: Final = 256
#: Words in the names of devices that give memory back to the host. QEMU punches holes for them into the file of the RAM, also where that is
#: mapped privately (ram_block_discard_range): into the template of all clones.
DISCARDING: Final = ("balloon", "virtio-mem")
#: The feature of a build that can open a clone's file for reading only, and then punches no holes into it (QEMU 8.2).
READ_ONLY_RAM: Final = "memory-backend-file.rom"

_DEBUGGED: Final = "; ".join(
    f"file arch/powerpc/platforms/pseries/{name}.c +p" for name in ("hotplug-cpu", "hotplug-memory", "dlpar")
)

#: Errors and worse on the console, everything in the kernel log stream; a panicked guest stays as it is; hot-added memory holds nothing
#: that cannot be moved; and the ``pr_debug`` lines of the hotplug code, without which a core's removal leaves no trace in the guest.
#:
#: Memory in the zone Normal may be asked back in vain: with 4 KiB pages the memory map of a DIMM's second LMB (4 MiB) can lie in its
#: first one, which is the first to be removed [Linux 6.12: dumps the page as "unmovable", and the DIMM stays].
DEFAULT_KERNEL_ARGS: Final = (
    "console=hvc0",
    "loglevel=4",
    "panic=0",
    "memhp_default_state=online_movable",
    f'"dyndbg={_DEBUGGED}"',
)

# The tests get the other slots of the default PHB.
_NETWORK_SLOT: Final = "0x0"
#: Under TCG a POWER9 guest of 5.2 panics or hangs when a second core comes, a POWER8 guest is sound [5.2.0 with Linux 6.1].
#: 7.2 is the oldest that POWER9 was seen sound on.
SOUND_WITH_POWER9: Final = (7, 2, 0)
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Channels(NamedTuple):
    """QEMU's ends of the socket pairs, as file descriptors that it inherits."""

    qmp: int
    console: int
    kernel: int
    service: int
    shell: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSpec:
    """What a test asks of a machine.

    :ivar cpus: cores at boot. :ivar max_cpus: core slots. Under TCG also bounds all cores ever made in one process.
    :ivar threads: hardware threads of each core. TCG of QEMU 7.2 can have no more than one.
    :ivar memory: MiB at boot. :ivar slots: DIMM slots. :ivar max_memory: MiB with all DIMMs.
    :ivar numa: NUMA nodes. The first has the memory of the boot, the others what a DIMM's ``node`` gives them.
    :ivar cpu: model, as ``-cpu``; None for the one that the build is sound with, see :func:`cpu_model`.
    :ivar machine: type, and properties if need be, as ``-machine``, e.g. ``pseries-7.2`` or ``pseries,ic-mode=xics``.
    :ivar kernel_args: more of the guest's kernel command line. :ivar qemu_args: more of QEMU's command line.
    :ivar accelerator: ``tcg`` or ``kvm``. :ivar firmware: ``vof`` boots in 3 s, ``slof`` in 9 s under TCG; ``auto`` takes VOF
        where the build has it and there is a kernel to boot: without one, VOF stops the machine and SLOF stays at its prompt.
    :raises ConfigError: values that no machine can have, when the spec is made.
    """

    cpus: int = 1
    max_cpus: int = 8
    threads: int = 1
    memory: int = 1024
    slots: int = 4
    max_memory: int = 4096
    numa: int = 1
    cpu: str | None = None
    machine: str = "pseries"
    kernel_args: tuple[str, ...] = ()
    qemu_args: tuple[str, ...] = ()
    accelerator: str = "tcg"
    firmware: Literal["auto", "vof", "slof"] = "auto"

    def __post_init__(self) -> None:
        for name in ("cpus", "max_cpus", "threads", "memory", "slots", "max_memory", "numa"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: expected a whole number")
        for name in ("kernel_args", "qemu_args"):
            value = getattr(self, name)
            # A string is a sequence of strings too, of single letters: the usual slip.
            if isinstance(value, str) or not all(isinstance(part, str) for part in value):
                raise ConfigError(f"{name}={value!r}: expected a tuple of strings")
            object.__setattr__(self, name, tuple(value))
        self._check_sizes()
        for name, known in (("firmware", ("auto", "vof", "slof")), ("accelerator", ("tcg", "kvm"))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name}={value!r}: expected {', '.join(known[:-1])} or {known[-1]}")
        if self.cpu is not None and (not isinstance(self.cpu, str) or not self.cpu):
            raise ConfigError(f"cpu={self.cpu!r}: expected a name, e.g. power9, or None")
        if not isinstance(self.machine, str) or not self.machine:
            raise ConfigError(f"machine={self.machine!r}: expected a name, e.g. pseries")

    @property
    def vcpus(self) -> int:
        """vCPUs at boot."""
        return self.cpus * self.threads

    def _check_sizes(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"cpus={self.cpus}: expected at least 1")
        if self.max_cpus < self.cpus:
            raise ConfigError(f"max_cpus={self.max_cpus}: expected at least cpus, which is {self.cpus}")
        # spapr_set_vsmt_mode of hw/ppc/spapr.c: the threads of a core are a power of two; POWER8 to POWER10 have up to 8.
        if self.threads not in (1, 2, 4, 8):
            raise ConfigError(f"threads={self.threads}: expected 1, 2, 4 or 8 for each core")
        if self.numa < 1:
            raise ConfigError(f"numa={self.numa}: expected at least 1")
        for name in ("memory", "max_memory"):
            value = getattr(self, name)
            if value < LMB_MIB or value % LMB_MIB:
                raise ConfigError(f"{name}={value}: expected MiB in multiples of {LMB_MIB}, the size of an LMB")
        if self.max_memory < self.memory:
            raise ConfigError(f"max_memory={self.max_memory}: expected at least memory, which is {self.memory} MiB")
        if self.slots < 0 or (self.slots == 0) != (self.max_memory == self.memory):
            raise ConfigError(
                f"slots={self.slots}: expected at least 1 where max_memory ({self.max_memory} MiB) is more than memory "
                f"({self.memory} MiB), and 0 where it is not"
            )


class Ram(NamedTuple):
    """A machine's boot memory as a file: a template's, which it writes, or a clone's, which has a private copy of every page it writes.

    Without a path it is no file, but has the name that such memory has: for the state of a machine that had one.
    """

    path: Path | None
    private: bool = False


def cpu_model(build: QemuBuild, spec: MachineSpec) -> str:
    """Return the CPU model of a machine, as ``-cpu``: the one that was asked for, or else one that is sound.

    KVM has the host's and no other for sure. TCG has POWER9, and POWER8 where the build is older than those that POWER9 is known to be
    sound on.
    """
    if spec.cpu is not None:
        return spec.cpu
    if spec.accelerator == "kvm":
        return "host"
    return "power9" if build.version >= SOUND_WITH_POWER9 else "power8"


def argv(
    build: QemuBuild,
    spec: MachineSpec,
    image: GuestImage | None,
    channels: Channels,
    ram: Ram | None = None,
    plugged: Iterable[Plugged] | None = None,
    overlay: Overlay | None = None,
) -> list[str]:
    """Return the command line of a machine that waits at ``-S``.

    :param image: what to boot; None for a machine that stays in its firmware, which has no network either.
    :param channels: the ends that QEMU inherits. :param ram: None for RAM of its own; a private one also waits for a device state.
    :param plugged: what another machine was plugged with, for one that waits for that one's state; None for a machine of its own.
    :param overlay: what is written in place of the image's own disk, where that is what boots.
    :raises ConfigError: the build does not know the machine type, or has no VOF although it was asked for; arguments for the kernel of a
        disk, which its boot loader decides.
    """
    line = [*build.command, *_arguments(build, spec, image, channels, ram, overlay)]
    if plugged is not None:
        line += [word for one in plugged for word in one.options()]
    if plugged is not None or (ram and ram.private):
        line += ["-incoming", "defer"]
    return line


def _arguments(
    build: QemuBuild,
    spec: MachineSpec,
    image: GuestImage | None,
    channels: Channels,
    ram: Ram | None,
    overlay: Overlay | None,
) -> Iterator[str]:
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-S")
    if "-sandbox" in build.features:
        yield from ("-sandbox", _SANDBOX)
    machine = _machine(build, spec, has_kernel=image is not None and overlay is None)
    yield from ("-machine", f"{machine},memory-backend=ram" if ram and spec.numa == 1 else machine)
    if ram or spec.numa > 1:
        yield from _ram(build, spec, ram or Ram(None))
    if spec.numa > 1:
        # Not beside memory-backend=, which is the same for one node (numa_complete_configuration).
        yield from ("-numa", "node,nodeid=0,memdev=ram")
        yield from (word for node in range(1, spec.numa) for word in ("-numa", f"node,nodeid={node}"))
    # thread=single hangs at the removal of a core, in every version.
    yield from ("-accel", "tcg,thread=multi" if spec.accelerator == "tcg" else spec.accelerator)
    threads = f",threads={spec.threads}" if spec.threads > 1 else ""
    yield from ("-cpu", cpu_model(build, spec), "-smp", f"{spec.vcpus},maxcpus={spec.max_cpus * spec.threads}{threads}")
    room = f",slots={spec.slots},maxmem={spec.max_memory}M" if spec.slots else ""
    yield from ("-m", f"{spec.memory}M{room}")
    # A guest that panicked or powered itself off must stay to be looked at. QMP's quit still ends QEMU.
    yield from (("-action", "panic=pause,shutdown=pause") if "set-action" in build.features else ("-no-shutdown",))
    yield from ("-chardev", f"socket,id=qmp,fd={channels.qmp}")
    # 11.1 deprecates -mon.
    modern = "monitor-qmp" in build.features
    yield from (("-object", "monitor-qmp,id=monitor,chardev=qmp") if modern else ("-mon", "chardev=qmp,mode=control"))
    for name in ("console", "kernel", "service", "shell"):
        # No reg=: explicit ones collide with the NVRAM's and with each other's interrupts.
        yield from ("-chardev", f"socket,id={name},fd={getattr(channels, name)}", "-device", f"spapr-vty,chardev={name}")
    # Each machine makes and resets hundreds of connectors, most of them empty: that says nothing.
    yield from ("-trace", "spapr_drc_*", "-trace", "-spapr_drc_realize*", "-trace", "-spapr_drc_reset")
    if image is not None:
        yield from ("-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22")
        # romfile: some builds do not ship the boot ROM, and pseries has no use for it.
        yield from ("-device", f"virtio-net-pci,netdev=net,romfile=,bus=pci.0,addr={_NETWORK_SLOT}")
    if overlay is not None:
        if spec.kernel_args or spec.firmware == "vof":
            raise ConfigError(
                "a disk of your own is booted by SLOF and its own boot loader: it takes neither firmware='vof' nor kernel_args"
            )
        yield from overlay.arguments
    elif image is not None:
        kernel_args = " ".join((*DEFAULT_KERNEL_ARGS, *spec.kernel_args))
        yield from ("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", kernel_args)
        yield from disk_arguments(image)
    yield from spec.qemu_args


def disk_arguments(image: GuestImage) -> tuple[str, ...]:
    """Return the arguments for an image's disk, none where it has no disk.

    It is not on PCI, whose slots are the tests'. It is never written: what the guest writes is in its memory, and so in a template.
    """
    if image.disk is None:
        return ()
    path = str(image.disk).replace(",", ",,")
    drive = ("-drive", f"file={path},format=raw,if=none,id=root,readonly=on")
    return (*drive, "-device", "spapr-vscsi,id=vscsi", "-device", "scsi-hd,drive=root,bus=vscsi.0")


def _ram(build: QemuBuild, spec: MachineSpec, ram: Ram) -> Iterator[str]:
    if ram.path is None:
        yield from ("-object", f"memory-backend-ram,id=ram,size={spec.memory}M")
        return
    path = str(ram.path).replace(",", ",,")
    share = "on"
    if ram.private:
        share = "off,readonly=on,rom=off" if READ_ONLY_RAM in build.features else "off"
    yield from ("-object", f"memory-backend-file,id=ram,size={spec.memory}M,mem-path={path},share={share}")


def require_machine(build: QemuBuild, machine: str, where: str) -> None:
    """Check that the build knows a machine's type; what it makes of the properties shows when it starts.

    :param machine: as :attr:`MachineSpec.machine`. :param where: who wrote it, for the error. :raises ConfigError: it does not.
    """
    if machine.partition(",")[0] not in build.machines:
        known = ", ".join(sorted(name for name in build.machines if name.startswith("pseries")))
        raise ConfigError(f"{where}: {build.name} ({build.version_text}) has no such machine type; it has {known}")


def _machine(build: QemuBuild, spec: MachineSpec, *, has_kernel: bool) -> str:
    require_machine(build, spec.machine, f"machine={spec.machine!r}")
    if spec.firmware == "vof" and "x-vof" not in build.features:
        raise ConfigError(
            f"firmware='vof': {build.name} ({build.version_text}) has no Virtual Open Firmware (QEMU 6.1 and later)"
        )
    vof = spec.firmware == "vof" or (spec.firmware == "auto" and has_kernel and "x-vof" in build.features)
    return ",".join([spec.machine, *_lowered(build, spec), *(["x-vof=on"] if vof else [])])


def _lowered(build: QemuBuild, spec: MachineSpec) -> list[str]:
    """Return what KVM needs on this host, as far as nobody asked for something else."""
    if spec.accelerator != "kvm":
        return []
    named = {word.partition("=")[0] for word in spec.machine.split(",")}
    return [word for word in build.kvm_properties if word.partition("=")[0] not in named]
