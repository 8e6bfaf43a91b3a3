"""Virtual IO adapters (spapr-vio): a disk controller and a network card of the platform's own, which have no connectors."""

from __future__ import annotations

import pytest

from pytest_spapr import Guest, PseriesMachine, QmpRefused

from .inventory import nothing_changes
from .udev import await_udev

# Of a whole Debian's disk is the first one.
_REG = {"spapr-vscsi": "71000010", "spapr-vlan": "71000011"}
ADAPTERS = {"spapr-vscsi": f"v-scsi@{_REG['spapr-vscsi']}", "spapr-vlan": f"l-lan@{_REG['spapr-vlan']}"}


@pytest.mark.spapr(
    qemu_args=tuple(word for driver, reg in _REG.items() for word in ("-device", f"{driver},id={driver},reg=0x{reg}"))
)
def test_virtual_io_adapters_in_use_stay(machine: PseriesMachine, guest: Guest) -> None:
    """P21: QEMU refuses to take them, the guest finds no slot to give up, and they work on."""
    guest.run("modprobe ibmvscsi; modprobe ibmveth").check()
    await_udev(guest)
    name = guest.run(f"ls /sys/bus/vio/devices/{_REG['spapr-vlan']}/net").check().stdout.strip()
    guest.run(f"ifconfig {name} 192.0.2.1 up").check()
    with nothing_changes(machine):
        for driver, node in ADAPTERS.items():
            with pytest.raises(QmpRefused, match="Bus 'spapr-vio' does not support hotplugging"):
                machine.qmp.execute("device_del", {"id": driver})
            guest.run(
                f"test -d /proc/device-tree/vdevice/{node} -a ! -e /proc/device-tree/vdevice/{node}/ibm,my-drc-index"
            ).check()
            refused = guest.run(f"drmgr -c slot -r -s {driver}")
            assert refused.status != 0
            assert "There are no DR capable slots on this system" in refused.stdout + refused.stderr
    guest.run(f"test -d /sys/bus/vio/devices/{_REG['spapr-vscsi']}/host*").check()
    assert "UP" in guest.run(f"ifconfig {name}").check().stdout
