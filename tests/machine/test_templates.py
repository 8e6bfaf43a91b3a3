"""Templates with a real QEMU and a real guest, in a cache of their own."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr import BootFailed, GuestImage, LaunchMachine, MachineSpec, PseriesMachine
from pytest_spapr.cache import Cache
from pytest_spapr.errors import MachineError
from pytest_spapr.machine import Harness
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.snapshot import Snapshot
from pytest_spapr.templates import make, store
from pytest_spapr.templates.store import NoTemplate, Template
from pytest_spapr.timeline import Lane, Timeline


class Maker:
    """Asks for templates in a cache of its own."""

    def __init__(self, cache: Cache, harness: Harness, image: GuestImage, accelerator: str) -> None:
        self.cache = cache
        self.harness = harness
        self.image = image
        self.accelerator = accelerator

    def spec(self, **shape: Any) -> MachineSpec:
        return MachineSpec(accelerator=self.accelerator, **shape)

    def obtain(self, spec: MachineSpec, timeline: Timeline | None = None) -> Template:
        return make.obtain(self.cache, self.harness, spec, self.image, NullProgress(), timeline or Timeline())

    def clone(self, spec: MachineSpec, snapshot: Snapshot) -> PseriesMachine:
        return PseriesMachine.restore(self.harness, spec, self.image, Timeline(), snapshot)

    def left(self) -> list[Path]:
        return [path for path in self.cache.root.rglob("*") if not path.is_dir() and path.suffix != ".lock"]


@pytest.fixture
def maker(spapr_harness: Harness, spapr_accelerator: str, guest_image: GuestImage, tmp_path: Path) -> Maker:
    return Maker(Cache(tmp_path / "cache"), spapr_harness, guest_image, spapr_accelerator)


@contextmanager
def clone_of(maker: Maker, spec: MachineSpec, snapshot: Snapshot) -> Iterator[PseriesMachine]:
    machine = maker.clone(spec, snapshot)
    try:
        yield machine
    finally:
        machine.close()


def test_the_clones_of_a_template_leave_it_as_it_was(maker: Maker) -> None:
    spec = maker.spec(max_cpus=2)
    made = maker.obtain(spec)
    found = store.find(maker.cache, made.key)
    assert found is not None
    firmware = [Path(path).name for path in found.manifest["firmware"]]
    assert firmware in (["vof.bin"], ["slof.bin"])
    # A guest of 1 GiB touches about 130 MB of its memory by the time it is up.
    [entry] = maker.cache.entries(store.KIND)
    assert entry.size < 300 << 20
    with clone_of(maker, spec, found.snapshot) as machine:
        machine.guest.run("dd if=/dev/zero of=/dev/shm/x bs=1M count=16 || dd if=/dev/zero of=/tmp/x bs=1M count=16").check()
        found.require_unchanged()
    found.require_unchanged()
    found.close()
    made.close()


def test_a_boot_that_fails_is_told_as_any_other(maker: Maker, launch_machine: LaunchMachine) -> None:
    spec = maker.spec(kernel_args=("rdinit=/nonexistent",))
    timeline = Timeline()
    with pytest.raises(BootFailed) as failed:
        maker.obtain(spec, timeline)
    with pytest.raises(BootFailed) as booted:
        launch_machine(start="boot", kernel_args=spec.kernel_args)
    assert str(failed.value).splitlines()[0] == str(booted.value).splitlines()[0]
    assert failed.value.phase == booted.value.phase
    assert any("Kernel panic" in record.text for record in timeline.since(0, Lane.KERNEL, Lane.CONSOLE))
    assert maker.left() == []


def test_memory_that_may_not_be_a_file_is_no_reason_to_fail(maker: Maker) -> None:
    """The limit of a file's size is what a file system without room or without mappings looks like to QEMU."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 20, hard))
    try:
        with pytest.raises(NoTemplate, match="QEMU does not start with its memory in a file of ") as told:
            maker.obtain(maker.spec())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)
    assert maker.left() == []


@pytest.fixture
def snapshot(maker: Maker) -> Iterator[Snapshot]:
    made = maker.obtain(maker.spec())
    yield made.snapshot
    made.close()


def test_timers_go_on_in_each_clone(maker: Maker, snapshot: Snapshot) -> None:
    """QEMU before 8.2 forgets when TCG's next timer interrupt is due; what sleeps then sleeps for ever."""
    for _ in range(3):
        with clone_of(maker, maker.spec(), snapshot) as machine:
            assert machine.guest.run("usleep 300000 && echo woken", seconds=30).stdout == "woken\n"


def test_a_state_that_is_none_is_told_at_once(maker: Maker, snapshot: Snapshot) -> None:
    """What the hashes do not catch, QEMU does; nothing stays behind."""
    half = snapshot.devices[: len(snapshot.devices) // 2]
    for devices in (half, os.urandom(1 << 20), b""):
        began = time.monotonic()
        with pytest.raises(MachineError):
            maker.clone(maker.spec(), Snapshot(snapshot.ram, devices)).close()
        assert time.monotonic() - began < 5
