"""The kernel's own selftests of hotplug, run in the guest: the same scripts that the kernel's authors run."""

from __future__ import annotations

import re

import pytest

from pytest_spapr import Guest, GuestImage, PseriesMachine
from pytest_spapr.cells import Cell
from pytest_spapr.fixtures import give_up
from pytest_spapr.images.selftests import Selftests
from pytest_spapr.rig import progress_at_need
from pytest_spapr.supply import Unavailable, supply_selftests


@pytest.fixture
def selftests(request: pytest.FixtureRequest, spapr_cell: Cell, guest_image: GuestImage) -> Selftests:
    """The selftests of the guest's kernel; about 150 MB are fetched once for each."""
    try:
        with progress_at_need(request.config) as progress:
            return supply_selftests(spapr_cell.settings, spapr_cell.cache(), guest_image, progress)
    except Unavailable as error:
        give_up(spapr_cell, error)


# The guest has no bc. The scripts have one use for it: so many per cent of a number, rounded up.
BC = "bc() { local product; IFS=';' read -r product _; echo $(((${product#a=} + 99) / 100)); }; export -f bc"


def run(guest: Guest, selftests: Selftests, name: str, arguments: str = "") -> str:
    """Run a script in the guest, require that it passes, and return all that it says."""
    script = (selftests.directory / name).read_text()
    guest.run(f"cat > /tmp/selftest <<'THE END'\n{script}\nTHE END").check()
    return guest.run(f"bash 2>&1 <<'THE END'\n{BC}; bash /tmp/selftest {arguments}\nTHE END", seconds=120).check().stdout


def test_the_kernels_test_of_cpus_passes(machine: PseriesMachine, guest: Guest, selftests: Selftests) -> None:
    """C32: a hot-plugged CPU goes offline and comes back, and the script found nothing unexpected."""
    core = machine.cores.plug()
    said = run(guest, selftests, "cpu-hotplug/cpu-on-off-test.sh")
    assert "online to offline to online: cpu 1" in said
    assert "unexpected" not in said
    assert core.configured


def test_the_kernels_test_of_memory_passes(machine: PseriesMachine, guest: Guest, selftests: Selftests) -> None:
    """M29, M30: blocks go offline and come back; one whose notifier refuses stays as it was, in both directions."""
    dimm = machine.dimms.plug(768)
    blocks = guest.memory.blocks()
    said = run(guest, selftests, "memory-hotplug/mem-on-off-test.sh", f"-r {100 * len(dimm.blocks) // len(blocks)}")
    assert said.count("-> Success") == len(dimm.blocks)
    assert not re.search("unexpected|FAILED|skip extra", said)
    assert guest.memory.blocks() == blocks
