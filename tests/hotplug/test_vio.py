"""Virtual IO adapters (spapr-vio): a disk controller and a network card of the platform's own, which have no connectors."""

from __future__ import annotations

import pytest

from pytest_spapr import Guest, PseriesMachine, QmpRefused

from .inventory import nothing_changes

ADAPTERS = {"spapr-vscsi": "v-scsi@71000005", "spapr-vlan": "l-lan@71000006"}


@pytest.mark.spapr(qemu_args=tuple(word for driver in ADAPTERS for word in ("-device", f"{driver},id={driver}")))
def test_virtual_io_adapters_in_use_stay(machine: PseriesMachine, guest: Guest) -> None:
    """P21: QEMU refuses to take them, the guest finds no slot to give up, and they work on."""
    guest.run("modprobe ibmvscsi; modprobe ibmveth").check()
    guest.run("ifconfig eth1 192.0.2.1 up").check()
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
    guest.run("test -e /sys/class/scsi_host/host0").check()
    assert "UP" in guest.run("ifconfig eth1").check().stdout
