"""The host: memory and slots for guests, KVM, the directory for temporary files, loopback, descriptors."""

from __future__ import annotations

import getpass
import grp
import os
import platform
import resource
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from pytest_spapr.doctor.check import Check, State, Theme
from pytest_spapr.errors import ConfigError
from pytest_spapr.slots import Slots

#: A default machine's memory.
_MACHINE_MIB: Final = 1024
#: Of the 108 bytes of a unix socket's path the last is a zero (unix(7)).
LONGEST_SOCKET: Final = 107
#: What stands behind the directory for temporary files in the longest such path of the package's own (``Qtest.at``).
_BEHIND_TMPDIR: Final = len("/spapr-12345678/qtest")
_TMP_BYTES: Final = 100_000_000
# A machine takes about a dozen in this process.
_DESCRIPTORS: Final = 256
_PPC64: Final = ("ppc64", "ppc64le")


def slots(of_host: Callable[[], Slots] = Slots.of_host) -> Check:
    """Check how many machines can run at the same time, and that this user can lock their slots."""
    try:
        found = of_host()
    except ConfigError as error:
        return Check(Theme.HOST, "slots", State.BROKEN, str(error), "export TMPDIR=/a/directory/of/yours")
    cpus = len(os.sched_getaffinity(0))
    return Check(Theme.HOST, "slots", State.FINE, f"{found.count} for machines of one vCPU and {found.mib} MiB; {cpus} CPUs")


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Check:
    """Check that a guest finds memory now. :param proc: :param cgroups: instead of the host's own, for tests."""
    total, available = _meminfo(proc)
    bound = _bound(proc, cgroups)
    found = f"{available} of {total} MiB are available"
    if bound is not None and bound < total:
        found += f", and this process and its machines may have {bound} MiB (control group)"
    if min(available, total if bound is None else bound) < _MACHINE_MIB:
        return Check(Theme.HOST, "memory", State.BROKEN, f"{found}: a machine has {_MACHINE_MIB} MiB")
    return Check(Theme.HOST, "memory", State.FINE, found)


def kvm(machine: str | None = None, device: Path = Path("/dev/kvm")) -> Check:
    """Check whether this user may use KVM, where that is of any use. What a build says of it stands with the build.

    :param machine: as ``uname -m`` says it. :param device: instead of the host's own, for tests.
    """
    machine = machine or platform.machine()
    if machine not in _PPC64:
        return Check(Theme.HOST, "kvm", State.FINE, f"not for ppc64 guests on {machine}: TCG emulates their CPUs")
    for_what = "--spapr-accel=kvm; TCG is 10 times slower"
    if not device.exists():
        found = f"{device} is not there: the module kvm_hv (inside of a virtual machine kvm_pr) is not loaded"
        return Check(Theme.HOST, "kvm", State.LACKING, found, "sudo modprobe kvm_hv", for_what)
    facts = device.stat()
    group = _group(facts.st_gid)
    rights = f"{device} is {stat.filemode(facts.st_mode)} of group {group}"
    if os.access(device, os.R_OK | os.W_OK):
        return Check(Theme.HOST, "kvm", State.FINE, rights, needed_for=for_what)
    remedy = f"sudo usermod --append --groups {group} {_user()}   # then log in anew"
    return Check(Theme.HOST, "kvm", State.LACKING, f"{rights}: not for this user", remedy, for_what)


def temporary(directory: Path | None = None) -> Iterator[Check]:
    """Check the directory for temporary files. :param directory: by default the one that Python takes."""
    remedy = "export TMPDIR=/tmp"
    try:
        directory = directory or Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=directory):
            free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    except OSError as error:
        yield Check(Theme.HOST, "temporary files", State.BROKEN, f"none can be written: {error}", remedy)
        return
    space = f"{directory}, {free / 1e6:.0f} MB free"
    state = State.FINE if free >= _TMP_BYTES else State.BROKEN
    yield Check(Theme.HOST, "temporary files", state, space, None if state is State.FINE else remedy)
    length = len(os.fsencode(directory))
    left = LONGEST_SOCKET - length - _BEHIND_TMPDIR
    sockets = f"{directory} is {length} bytes long"
    if left >= 0:
        yield Check(Theme.HOST, "socket paths", State.FINE, f"{sockets}: {left} to spare")
    else:
        found = f"{sockets}: {-left} too many, a socket's path has {LONGEST_SOCKET}"
        yield Check(Theme.HOST, "socket paths", State.BROKEN, found, remedy)


def loopback(address: str = "127.0.0.1") -> Check:
    """Check that a port of this host can be reached from it, as a guest's ssh server is. :param address: for tests."""
    try:
        with socket.socket() as server:
            server.bind((address, 0))
            server.listen(1)
            with socket.create_connection(server.getsockname(), timeout=5):
                pass
    except OSError as error:
        found = f"no connection to {address}: {error.strerror or error}"
        return Check(Theme.HOST, "loopback", State.BROKEN, found, "sudo ip link set lo up")
    return Check(Theme.HOST, "loopback", State.FINE, f"{address} answers")


def descriptors(limit: int | None = None) -> Check:
    """Check how many files this process may have open. :param limit: instead of its own, for tests."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS:
        return Check(Theme.HOST, "open files", State.FINE, f"{'any number' if soft == resource.RLIM_INFINITY else soft} allowed")
    found = f"{soft} allowed, expected {_DESCRIPTORS} at least"
    return Check(Theme.HOST, "open files", State.BROKEN, found, f"ulimit -n {_DESCRIPTORS}")


def _meminfo(proc: Path) -> tuple[int, int]:
    """Return all MiB of the host, and those that are to be had."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return kib["MemTotal:"] // 1024, kib["MemAvailable:"] // 1024


def _bound(proc: Path, cgroups: Path) -> int | None:
    """Return the MiB that this process's control group and those above it allow; None where there is no bound."""
    group = ""
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            # cgroups(7): the hierarchy of version 2 has the number 0.
            if line.startswith("0::"):
                group = line.removeprefix("0::").strip("/")
    bounds = []
    for part in (Path(group), *Path(group).parents):
        with suppress(OSError, ValueError):
            bounds.append(int((cgroups / part / "memory.max").read_text()) // 2**20)
    return min(bounds, default=None)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "USER"
