"""Makes templates: boots a machine, lets it come to rest, saves it, and tries a clone of it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.cache import Cache, full_disk
from pytest_spapr.errors import CacheError, MachineDied, MachineError, QmpRefused, SpaprError
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.snapshot import Snapshot
from pytest_spapr.templates import store
from pytest_spapr.templates.key import FORMAT, facts, key_of, shape_text, unsuitable
from pytest_spapr.templates.store import BOOT, DEVICES, GUEST_LANES, KIND, MANIFEST, RAM, Damaged, NoTemplate, Template
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be made. :ivar facts: what it depends on."""

    harness: Harness
    spec: MachineSpec
    image: GuestImage
    facts: Mapping[str, Any]


def key_for(build: QemuBuild, spec: MachineSpec, image: GuestImage) -> str:
    """Return the name of the template for such machines."""
    return key_of(facts(build, spec, image))


def existing(cache: Cache, key: str, spec: MachineSpec) -> Template | None:
    """Return the template if it is in the cache as it was written. A damaged one is removed, to be made anew.

    :raises NoTemplate: there is none and can be none.
    """
    if reason := unsuitable(spec):
        raise NoTemplate(reason)
    try:
        return store.find(cache, key)
    except Damaged as error:
        if not store.remove(cache, key):
            raise NoTemplate(f"{error}, and cannot be made anew while another run uses it") from error
        return None
    except CacheError as error:
        raise NoTemplate(str(error)) from error


def obtain(
    cache: Cache, harness: Harness, spec: MachineSpec, image: GuestImage, progress: Progress, timeline: Timeline
) -> Template:
    """Return the template for such machines, made now if need be, once, however many runs ask at the same time.

    Costs 10 ms, or a boot and 3 s more under TCG where it has to be made.

    :param timeline: gets what was seen of a boot that failed.
    :raises NoTemplate: there can be none; boot instead. :raises MachineError: the machine does not even boot.
    """
    found = facts(harness.build, spec, image)
    key = key_of(found)
    try:
        with cache.lock(f"template-{key}", progress):
            if template := existing(cache, key, spec):
                return template
            progress.phase(f"making the template of such machines ({shape_text(spec)})")
            _make(cache, key, _Plan(harness, spec, image, found), timeline)
            progress.done()
            template = existing(cache, key, spec)
    except CacheError as error:
        raise NoTemplate(str(error)) from error
    if template is None:
        raise NoTemplate(f"the template {key} was removed as soon as it was made")
    return template


def _make(cache: Cache, key: str, plan: _Plan, timeline: Timeline) -> None:
    # Memory that is mapped has no error for a full disk: the process that writes to it is killed.
    cache.require_space(plan.spec.memory * _MIB, "a template")
    with cache.publish(KIND, key) as directory:
        manifest: dict[str, Any] = {
            "shape": shape_text(plan.spec),
            "build": plan.harness.build.version_text,
            "image": plan.image.name,
            "kernel_release": plan.image.kernel_release,
            "facts": plan.facts,
            "made": time.time(),
        }
        with _full_disks(directory):
            reason = _save(plan, directory, timeline) or _unsound(plan, directory)
        if reason:
            for name in (RAM, DEVICES, BOOT):
                (directory / name).unlink(missing_ok=True)
            manifest["unsound"] = reason
            (directory / MANIFEST).write_text(json.dumps({**manifest, "format": FORMAT}, indent=1), encoding="utf-8")
        else:
            store.write_manifest(directory, manifest)


def _save(plan: _Plan, directory: Path, timeline: Timeline) -> str | None:
    """Boot a machine and save it; return why it cannot be saved, if so."""
    own = Timeline()
    try:
        machine = PseriesMachine.start(plan.harness, plan.spec, plan.image, own, ram=directory / RAM)
    except BaseException:
        timeline.adopt(own.history())
        raise
    try:
        machine.guest.rest()
        history = own.history(*GUEST_LANES)
        (directory / DEVICES).write_bytes(machine.save())
        machine.quit()
    except MachineDied as died:
        if died.exit_status == -signal.SIGBUS:
            raise
        return f"QEMU could not save such a machine: {str(died).splitlines()[0]}"
    except (MachineError, QmpRefused) as error:
        return f"QEMU cannot save such a machine: {error}"
    finally:
        machine.close()
    lines = (json.dumps([record.time, record.lane, record.text]) + "\n" for record in history)
    (directory / BOOT).write_text("".join(lines), encoding="utf-8")
    return None


def _unsound(plan: _Plan, directory: Path) -> str | None:
    """Return what is wrong with a clone, None if it can do what a booted machine can: take a device and give it up."""
    snapshot = Snapshot(directory / RAM, (directory / DEVICES).read_bytes())
    timeline = Timeline()
    machine: PseriesMachine | None = None
    try:
        machine = PseriesMachine.restore(plan.harness, plan.spec, plan.image, timeline, snapshot)
        device = _typical_device(machine)
        if device is None:
            return None
        attempt = device.unplug()
    except (SpaprError, AssertionError) as error:
        first, *_ = str(error).splitlines()
        return f"a clone of such a machine is unsound: {first}"
    finally:
        if machine is not None:
            machine.close()
    return None if attempt.outcome is Outcome.REMOVED else f"a clone of such a machine is unsound: {attempt}"


def _typical_device(machine: PseriesMachine) -> Device | None:
    if machine.spec.max_cpus > machine.spec.cpus:
        return machine.cores.plug()
    return machine.dimms.plug() if machine.spec.slots else None


@contextmanager
def _full_disks(directory: Path) -> Iterator[None]:
    """Say what it means that QEMU dies of its mapped memory."""
    try:
        yield
    except MachineDied as died:
        if died.exit_status == -signal.SIGBUS:
            raise CacheError(full_disk(directory)) from died
        raise
