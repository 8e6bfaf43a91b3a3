"""What makes a machine, and its command line."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.errors import ConfigError
from pytest_spapr.qemu.argv import DEFAULT_KERNEL_ARGS, Channels, MachineSpec, Ram, argv
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.qemu.plugged import Plugged

BUILD = QemuBuild(
    name="7.2",
    command=("/q/ld.so", "--library-path", "/q/lib", "/q/qemu-system-ppc64"),
    env={},
    binary=Path("/q/qemu-system-ppc64"),
    version=(7, 2, 22),
    package="Debian 1:7.2",
    machines=frozenset({"pseries", "pseries-7.2", "powernv9", "none"}),
    accelerators=frozenset({"tcg"}),
    features=frozenset({"-sandbox", "x-vof", "set-action"}),
    devices=frozenset(),
    sha256="",
)
CHANNELS = Channels(qmp=10, console=11, kernel=12, service=13, shell=14)
IMAGE: Any = SimpleNamespace(kernel=Path("/i/vmlinux"), initramfs=Path("/i/initramfs.cpio"), disk=None)


def words(*, build: QemuBuild = BUILD, image: Any = IMAGE, **shape: Any) -> list[str]:
    return argv(build, MachineSpec(**shape), image, CHANNELS)


def values(option: str, line: list[str]) -> list[str]:
    return [value for name, value in pairwise(line) if name == option]


def without(*features: str) -> QemuBuild:
    return replace(BUILD, features=BUILD.features - set(features))


def test_the_whole_line() -> None:
    dyndbg = (
        '"dyndbg=file arch/powerpc/platforms/pseries/hotplug-cpu.c +p; file arch/powerpc/platforms/pseries/hotplug-memory.c +p; '
        'file arch/powerpc/platforms/pseries/dlpar.c +p"'
    )
    assert words() == [
        *("/q/ld.so", "--library-path", "/q/lib", "/q/qemu-system-ppc64"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "pseries,x-vof=on"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "power9", "-smp", "1,maxcpus=8"),
        *("-m", "1024M,slots=4,maxmem=4096M"),
        *("-action", "panic=pause,shutdown=pause"),
        *("-chardev", "socket,id=qmp,fd=10", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "socket,id=console,fd=11", "-device", "spapr-vty,chardev=console"),
        *("-chardev", "socket,id=kernel,fd=12", "-device", "spapr-vty,chardev=kernel"),
        *("-chardev", "socket,id=service,fd=13", "-device", "spapr-vty,chardev=service"),
        *("-chardev", "socket,id=shell,fd=14", "-device", "spapr-vty,chardev=shell"),
        *("-trace", "spapr_drc_*", "-trace", "-spapr_drc_realize*", "-trace", "-spapr_drc_reset"),
        *("-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile=,bus=pci.0,addr=0x0"),
        *("-kernel", "/i/vmlinux", "-initrd", "/i/initramfs.cpio"),
        *("-append", f"console=hvc0 loglevel=4 panic=0 memhp_default_state=online_movable {dyndbg}"),
    ]


@pytest.mark.parametrize(
    ("private", "share", "incoming"), [(False, "on", []), (True, "off", ["defer"])], ids=["template", "clone"]
)
def test_memory_in_a_file(private: bool, share: str, incoming: list[str]) -> None:
    line = argv(BUILD, MachineSpec(memory=512), IMAGE, CHANNELS, Ram(Path("/t/a,b"), private))
    assert values("-machine", line) == ["pseries,x-vof=on,memory-backend=ram"]
    assert values("-object", line) == [f"memory-backend-file,id=ram,size=512M,mem-path=/t/a,,b,share={share}"]
    assert values("-incoming", line) == incoming


def test_a_machine_that_comes_from_elsewhere() -> None:
    """Its memory is named as a clone's is, and is no file: the template's is not to be written to."""
    plugged = (
        Plugged("object-add", {"qom-type": "memory-backend-ram", "id": "memory1", "size": 1 << 28}),
        Plugged("device_add", {"driver": "pc-dimm", "id": "dimm1", "memdev": "memory1", "note": "a,b", "multifunction": True}),
    )
    line = argv(BUILD, MachineSpec(memory=512), IMAGE, CHANNELS, Ram(None), plugged)
    assert values("-object", line) == [
        "memory-backend-ram,id=ram,size=512M",
        "memory-backend-ram,id=memory1,size=268435456",
    ]
    assert values("-device", line)[-1] == "pc-dimm,id=dimm1,memdev=memory1,note=a,,b,multifunction=on"
    assert values("-incoming", line) == ["defer"]
    assert values("-incoming", argv(BUILD, MachineSpec(), IMAGE, CHANNELS, None, ())) == ["defer"]


def test_without_an_image_there_is_no_kernel_and_no_network() -> None:
    line = " ".join(words(image=None))
    assert "-kernel" not in line
    assert "-netdev" not in line
    assert "virtio-net" not in line


def test_the_shape_is_followed() -> None:
    line = words(cpus=2, max_cpus=4, memory=512, slots=2, max_memory=2048, cpu="power10", machine="pseries-7.2")
    assert values("-smp", line) == ["2,maxcpus=4"]
    assert values("-smp", words(cpus=2, max_cpus=4, threads=8)) == ["16,maxcpus=32,threads=8"]
    assert values("-m", line) == ["512M,slots=2,maxmem=2048M"]
    assert values("-cpu", line) == ["power10"]
    assert values("-machine", line) == ["pseries-7.2,x-vof=on"]


def test_a_machine_without_dimm_slots() -> None:
    assert values("-m", words(slots=0, max_memory=1024)) == ["1024M"]


def test_more_arguments_come_last_and_win() -> None:
    line = words(kernel_args=("loglevel=7", "quiet"), qemu_args=("-m", "2G"))
    assert line[-2:] == ["-m", "2G"]
    [append] = values("-append", line)
    # The kernel's quotes are a shell's, near enough.
    assert shlex.split(append)[-2:] == ["loglevel=7", "quiet"]
    assert len(shlex.split(append)) == len(DEFAULT_KERNEL_ARGS) + 2


def test_kvm() -> None:
    line = words(accelerator="kvm")
    assert (values("-accel", line), values("-cpu", line)) == (["kvm"], ["host"])


def test_a_machine_for_kvm_has_what_kvm_needs_here_unless_something_else_was_named() -> None:
    build = replace(BUILD, kvm_properties=("cap-cfpc=broken", "cap-ibs=broken"))
    assert values("-machine", words(build=build, accelerator="kvm")) == ["pseries,cap-cfpc=broken,cap-ibs=broken,x-vof=on"]
    assert values("-machine", words(build=build)) == ["pseries,x-vof=on"]
    named = words(build=build, accelerator="kvm", machine="pseries,cap-ibs=workaround")
    assert values("-machine", named) == ["pseries,cap-ibs=workaround,cap-cfpc=broken,x-vof=on"]


@pytest.mark.parametrize(
    ("version", "model"), [((5, 2, 0), "power8"), ((7, 1, 0), "power8"), ((7, 2, 0), "power9"), ((11, 1, 3), "power9")]
)
def test_a_cpu_that_the_build_is_sound_with(version: tuple[int, int, int], model: str) -> None:
    build = replace(BUILD, version=version)
    assert values("-cpu", words(build=build)) == [model]
    assert values("-cpu", words(build=build, cpu="power10")) == ["power10"]


@pytest.mark.parametrize(
    ("firmware", "image", "features", "expected"),
    [
        ("auto", IMAGE, {"x-vof"}, "pseries,x-vof=on"),
        ("auto", IMAGE, set(), "pseries"),
        # VOF with nothing to boot stops the machine.
        ("auto", None, {"x-vof"}, "pseries"),
        ("vof", IMAGE, {"x-vof"}, "pseries,x-vof=on"),
        ("vof", None, {"x-vof"}, "pseries,x-vof=on"),
        ("slof", IMAGE, {"x-vof"}, "pseries"),
    ],
)
def test_firmware(firmware: str, image: Any, features: set[str], expected: str) -> None:
    build = replace(BUILD, features=frozenset(features))
    assert values("-machine", words(build=build, image=image, firmware=firmware)) == [expected]


def test_a_build_without_seccomp_has_no_sandbox() -> None:
    assert "-sandbox" not in words(build=without("-sandbox"))


def test_an_old_build_keeps_its_halted_guests_too() -> None:
    line = words(build=without("set-action"))
    assert "-action" not in line
    assert "-no-shutdown" in line


def test_a_new_build_has_its_monitor_as_an_object() -> None:
    line = words(build=replace(BUILD, features=BUILD.features | {"monitor-qmp"}))
    assert values("-object", line) == ["monitor-qmp,id=monitor,chardev=qmp"]
    assert "-mon" not in line


def test_a_machine_type_that_the_build_lacks() -> None:
    with pytest.raises(ConfigError) as refusal:
        words(machine="pseries-99")
    assert str(refusal.value) == (
        "machine='pseries-99': 7.2 (QEMU 7.2.22 (Debian 1:7.2)) has no such machine type; it has pseries, pseries-7.2"
    )


def test_a_machine_type_with_properties() -> None:
    assert values("-machine", words(machine="pseries,ic-mode=xics")) == ["pseries,ic-mode=xics,x-vof=on"]
    with pytest.raises(ConfigError, match=r"machine='pserie,ic-mode=xics': .* has no such machine type"):
        words(machine="pserie,ic-mode=xics")


def test_a_firmware_that_the_build_lacks() -> None:
    with pytest.raises(ConfigError, match=r"firmware='vof': 7.2 .* has no Virtual Open Firmware \(QEMU 6.1 and later\)"):
        words(build=without("x-vof"), firmware="vof")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"cpus": 0}, "cpus=0: expected at least 1"),
        ({"cpus": "2"}, "cpus='2': expected a whole number"),
        ({"cpus": True}, "cpus=True: expected a whole number"),
        ({"memory": 1024.0}, "memory=1024.0: expected a whole number"),
        ({"threads": 3}, "threads=3: expected 1, 2, 4 or 8 for each core"),
        ({"cpus": 9}, "max_cpus=8: expected at least cpus, which is 9"),
        ({"memory": 1000}, "memory=1000: expected MiB in multiples of 256, the size of an LMB"),
        ({"memory": 0}, "memory=0: expected MiB in multiples of 256, the size of an LMB"),
        ({"memory": -256}, "memory=-256: expected MiB in multiples of 256, the size of an LMB"),
        ({"max_memory": 4000}, "max_memory=4000: expected MiB in multiples of 256, the size of an LMB"),
        ({"memory": 8192}, "max_memory=4096: expected at least memory, which is 8192 MiB"),
        (
            {"slots": 0},
            "slots=0: expected at least 1 where max_memory (4096 MiB) is more than memory (1024 MiB), and 0 where it is not",
        ),
        (
            {"max_memory": 1024},
            "slots=4: expected at least 1 where max_memory (1024 MiB) is more than memory (1024 MiB), and 0 where it is not",
        ),
        ({"slots": -1}, "slots=-1: expected at least 1 where max_memory"),
        ({"cpu": ""}, "cpu='': expected a name, e.g. power9, or None"),
        ({"machine": None}, "machine=None: expected a name, e.g. pseries"),
        ({"kernel_args": "quiet"}, "kernel_args='quiet': expected a tuple of strings"),
        ({"qemu_args": ("-m", 1)}, "qemu_args=('-m', 1): expected a tuple of strings"),
        ({"firmware": "bios"}, "firmware='bios': expected auto, vof or slof"),
        ({"accelerator": "tcg,thread=single"}, "accelerator='tcg,thread=single': expected tcg or kvm"),
    ],
)
def test_nonsense_is_refused_when_the_spec_is_made(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        MachineSpec(**shape)
    assert str(refusal.value).startswith(message)


def test_no_clone_can_write_to_its_template_where_qemu_knows_how() -> None:
    build = replace(BUILD, features=BUILD.features | {"memory-backend-file.rom"})
    line = argv(build, MachineSpec(), IMAGE, CHANNELS, Ram(Path("/t/ram"), private=True))
    assert values("-object", line) == ["memory-backend-file,id=ram,size=1024M,mem-path=/t/ram,share=off,readonly=on,rom=off"]


def test_lists_of_arguments_become_tuples() -> None:
    arguments: Any = ["-d", "unimp"]
    assert MachineSpec(qemu_args=arguments) == MachineSpec(qemu_args=("-d", "unimp"))


def test_the_first_numa_node_has_the_memory_of_the_boot() -> None:
    line = words(numa=3)
    assert values("-object", line) == ["memory-backend-ram,id=ram,size=1024M"]
    assert values("-numa", line) == ["node,nodeid=0,memdev=ram", "node,nodeid=1", "node,nodeid=2"]


def test_the_memory_of_a_clone_is_that_of_its_first_numa_node() -> None:
    line = argv(BUILD, MachineSpec(numa=2), IMAGE, CHANNELS, Ram(Path("/t/ram"), private=True))
    assert values("-machine", line) == ["pseries,x-vof=on"]
    assert values("-object", line) == ["memory-backend-file,id=ram,size=1024M,mem-path=/t/ram,share=off"]
    assert "node,nodeid=0,memdev=ram" in values("-numa", line)


def test_an_images_disk_is_read_only_and_takes_no_slot_of_pci() -> None:
    image: Any = SimpleNamespace(**{**vars(IMAGE), "disk": Path("/i,j/disk.raw")})
    line = argv(BUILD, MachineSpec(), image, CHANNELS)
    assert line[line.index("-drive") + 1] == "file=/i,,j/disk.raw,format=raw,if=none,id=root,readonly=on"
    assert [word for word in line if "root" in word and "bus=pci" in word] == []
    assert "scsi-hd,drive=root,bus=vscsi.0" in line
    assert "-drive" not in argv(BUILD, MachineSpec(), IMAGE, CHANNELS)
