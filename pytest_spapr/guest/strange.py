"""A guest that nobody prepared for us: what it is, and what is set in it, for as long as it runs, so that a test can see what it does."""

from __future__ import annotations

from typing import Final, Protocol

from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import GuestError
from pytest_spapr.guest.completed import Completed
from pytest_spapr.images.disk import About

# First, services are up that come after ssh. hvc1 gets the kernel's log, and the kernel's settings are those that our own images have from
# its command line (``qemu.argv``): what is added may be taken back, and hotplug says what it does.
_SCRIPT: Final = r"""
command -v systemctl >/dev/null && systemctl is-system-running --wait >/dev/null 2>&1
setsid sh -c 'exec 3<>/dev/hvc1; stty raw -echo <&3; while :; do cat /dev/kmsg; sleep 1; done >&3' >/dev/null 2>&1 </dev/null &
dmesg -n 4 2>/dev/null
echo online_movable >/sys/devices/system/memory/auto_online_blocks
mkdir -p /sys/kernel/debug
grep -q ' /sys/kernel/debug ' /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug
for name in hotplug-cpu hotplug-memory dlpar; do
    echo "file arch/powerpc/platforms/pseries/$name.c +p" >/sys/kernel/debug/dynamic_debug/control
done
for name in rpaphp rpadlpar_io memory-notifier-error-inject; do modprobe -q $name; done
if ! command -v usleep >/dev/null; then
    mkdir -p /usr/local/bin
    printf '#!/bin/sh\nexec sleep $(($1 / 1000000)).$(printf %%06d $(($1 %% 1000000)))\n' >/usr/local/bin/usleep
    chmod 755 /usr/local/bin/usleep
fi
exec 2>/dev/null
echo "release $(uname -r)"
echo "page $(getconf PAGESIZE)"
pid=$(pidof rtas_errd) && echo "has rtas_errd"
command -v drmgr >/dev/null && echo "has drmgr"
true
"""
_HOTPLUG: Final = ("rtas_errd", "drmgr")


class Runs(Protocol):
    """Runs commands as root."""

    def run(self, command: str, *, seconds: float | None = None) -> Completed: ...


def prepare(guest: Runs, deadline: Deadline) -> About:
    """Set up a guest that lets us in, and return what it is.

    :raises GuestError: what logs in is not root and cannot become it, or this is no Linux. :raises DeadlineExpired: its services do not
        come up.
    """
    who = guest.run("id -u")
    if who.stdout.strip() != "0":
        why = who.stderr.strip() or f"`id -u` says {who.stdout.strip()!r}"
        raise GuestError(
            f"commands do not run as root in the guest: {why}. A user other than root needs sudo without a password."
        )
    done = guest.run(_SCRIPT.strip(), seconds=deadline.require("the guest's services"))
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        said.setdefault(name, []).append(value)
    if not (release := "".join(said.get("release", []))):
        raise GuestError(f"the guest does not say which kernel it runs: {(done.stdout + done.stderr)[-300:]!r}")
    page = "".join(said.get("page", []))
    return About(
        release, int(page) if page.isdigit() else None, tuple(name for name in _HOTPLUG if name not in said.get("has", []))
    )
