"""Which device of a host can be passed through: a sysfs of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr.errors import ConfigError
from pytest_spapr.vfio.host import require_passable

_ADDRESS = "0000:01:00.0"


class Host:
    """A sysfs and a ``/dev`` with devices in IOMMU groups."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev = root / "sys", root / "dev"
        (self.sysfs / "bus/pci/devices").mkdir(parents=True)
        (self.dev / "vfio").mkdir(parents=True)

    def add(self, address: str, *, driver: str | None = "vfio-pci", group: str | None = "7") -> Host:
        device = self.sysfs / "devices/pci0000:00" / address
        device.mkdir(parents=True)
        (self.sysfs / "bus/pci/devices" / address).symlink_to(device)
        if driver is not None:
            (self.sysfs / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(self.sysfs / "bus/pci/drivers" / driver)
        if group is not None:
            members = self.sysfs / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(device)
            (device / "iommu_group").symlink_to(members.parent)
            (self.dev / "vfio" / group).touch()
        return self

    def require(self, address: str = _ADDRESS) -> None:
        require_passable(address, f"--spapr-vfio-host={address}", sysfs=self.sysfs, dev=self.dev)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("other", [None, "vfio-pci", "pci-stub", "pcieport"])
def test_a_device_whose_group_the_host_leaves_alone_will_do(host: Host, other: str | None) -> None:
    host.add(_ADDRESS).add("0000:01:00.1", driver=other).add("0000:02:00.0", driver="nvme", group="8").require()


@pytest.mark.parametrize("address", ["", "01:00.0", "0000:01:00", "0000:01:00.8", "0000:01:20.0", "../../x", "0000:01:00.0,x=y"])
def test_what_is_no_address_is_refused(host: Host, address: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a PCI function"):
        host.add(_ADDRESS).require(address)


def test_a_device_that_is_not_there(host: Host) -> None:
    with pytest.raises(ConfigError, match="has no such PCI function"):
        host.require()


def test_a_host_without_an_iommu(host: Host) -> None:
    with pytest.raises(ConfigError, match="in no IOMMU group: the host has no IOMMU"):
        host.add(_ADDRESS, group=None).require()


@pytest.mark.parametrize(("driver", "words"), [("nvme", "nvme"), (None, "none")])
def test_a_device_that_another_driver_has(host: Host, driver: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=f"its driver on the host is {words}, expected vfio-pci.*driver_override"):
        host.add(_ADDRESS, driver=driver).require()


def test_a_group_that_the_host_uses_itself(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"IOMMU group 7 is not viable: the host uses 0000:01:00\.1 \(e1000e\)"):
        host.add(_ADDRESS).add("0000:01:00.1", driver="e1000e").require()


def test_a_group_that_this_user_may_not_open(host: Host) -> None:
    host.add(_ADDRESS)
    (host.dev / "vfio/7").unlink()
    with pytest.raises(ConfigError, match="cannot be opened by this user"):
        host.require()
