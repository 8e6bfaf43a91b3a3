"""Makes templates: boots a machine, lets it come to rest, saves it, and tries a clone of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_spapr.cache import Cache, cache_errors, megabytes
from pytest_spapr.errors import CacheError, DeadlineExpired, LaunchFailed, MachineDied, MachineError, QmpRefused, SpaprError
from pytest_spapr.hotplug.defects import crash_defect
from pytest_spapr.hotplug.device import Device
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.progress import Progress
from pytest_spapr.qemu.snapshot import Snapshot
from pytest_spapr.templates import store
from pytest_spapr.templates.key import facts, key_of, shape_text, unsuitable
from pytest_spapr.templates.store import BOOT, DEVICES, GUEST_LANES, KIND, RAM, Damaged, NoTemplate, Template
from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.deadline import Budgets
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Harness
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.qemu.build import QemuBuild

_MIB: Final = 1 << 20
# A line of HMP's `info roms`: what QEMU read from a file has that file's path for its name.
_ROM: Final = re.compile(r'name="(?P<path>/.*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be made. :ivar facts: what it depends on. :ivar cache: where to."""

    harness: Harness
    spec: MachineSpec
    image: GuestImage
    facts: dict[str, Any]
    cache: Cache


class _Unsound(SpaprError):
    """Such machines cannot be cloned, however often it is tried."""


def key_for(build: QemuBuild, spec: MachineSpec, image: GuestImage) -> str:
    """Return the name of the template for such machines."""
    return key_of(facts(build, spec, image))


def existing(cache: Cache, key: str, spec: MachineSpec) -> Template | None:
    """Return the template if it is in the cache as it was written.

    :raises NoTemplate: there is none and can be none.
    """
    if reason := unsuitable(spec):
        raise NoTemplate(reason)
    try:
        return store.find(cache, key)
    except Damaged:
        return None


def obtain(
    cache: Cache, harness: Harness, spec: MachineSpec, image: GuestImage, progress: Progress, timeline: Timeline
) -> Template:
    """Return the template for such machines, made now if need be, once, however many runs ask at the same time.

    A damaged one is made anew. Costs 5 ms, or a boot and 2 s more under TCG where it has to be made.

    :param timeline: gets what was seen of a boot that failed.
    :raises NoTemplate: there can be none; boot instead. :raises MachineError: the machine does not even boot.
    """
    if reason := unsuitable(spec):
        raise NoTemplate(reason)
    plan = _Plan(harness, spec, image, facts(harness.build, spec, image), cache)
    key = key_of(plan.facts)
    try:
        with cache.lock(store.lock_of(key), progress):
            if template := _whole(cache, key):
                return template
            progress.phase(f"making the template of such machines ({shape_text(spec)})")
            _make(key, plan, timeline)
            progress.done()
            template = store.find(cache, key)
    except (CacheError, Damaged) as error:
        raise NoTemplate(str(error)) from error
    except OSError as error:
        raise NoTemplate(f"the cache {cache.root} cannot be used: {error}") from error
    if template is None:
        raise NoTemplate(f"the template {key} was removed as soon as it was made")
    return template


def _whole(cache: Cache, key: str) -> Template | None:
    """Return the template that is there; remove what is there and is not whole. The caller holds the lock."""
    try:
        return store.find(cache, key)
    except Damaged as error:
        if not store.remove(cache, key):
            raise NoTemplate(f"{error}; it is made anew once no other run uses it") from error
        return None


def _make(key: str, plan: _Plan, timeline: Timeline) -> None:
    _require_space(plan)
    with plan.cache.publish(KIND, key) as directory:
        told: dict[str, Any] = {
            "shape": shape_text(plan.spec),
            "build": plan.harness.build.version_text,
            "image": plan.image.name,
            "kernel_release": plan.image.kernel_release,
            "facts": plan.facts,
            "made": time.time(),
        }
        try:
            firmware = _save(plan, directory, timeline)
            _try_clone(plan, directory)
        except _Unsound as error:
            store.write_unsound(directory, told, str(error))
        else:
            store.write_manifest(directory, told, firmware)


def _save(plan: _Plan, directory: Path, timeline: Timeline) -> list[Path]:
    """Boot a machine and save it; return the files of its firmware.

    :raises _Unsound: QEMU cannot save such a machine. :raises NoTemplate: this host cannot.
    :raises MachineError: the machine does not come up.
    """
    own = Timeline()
    try:
        machine = PseriesMachine.start(plan.harness, plan.spec, plan.image, own, ram=directory / RAM)
    except BaseException as error:
        _give_up_if_the_hosts(error, plan)
        timeline.adopt(own.history())
        raise
    try:
        firmware = _firmware(machine)
        _come_to_rest(machine, plan)
        history = own.history(*GUEST_LANES)
        (directory / DEVICES).write_bytes(machine.save())
        machine.quit()
    except (MachineError, QmpRefused) as error:
        _give_up_if_the_hosts(error, plan)
        raise _Unsound(f"QEMU cannot save such a machine: {_first_line(error)}") from error
    except DeadlineExpired as error:
        raise NoTemplate(f"QEMU did not save such a machine: {_first_line(error)}") from error
    finally:
        machine.close()
    lines = (json.dumps([record.time, record.lane, record.text]) + "\n" for record in history)
    (directory / BOOT).write_text("".join(lines), encoding="utf-8")
    return firmware


def _come_to_rest(machine: PseriesMachine, plan: _Plan) -> None:
    try:
        machine.guest.rest()
    except SpaprError as error:
        _give_up_if_the_hosts(error, plan)
        raise NoTemplate(f"the guest did not come to rest: {_first_line(error)}") from error


def _try_clone(plan: _Plan, directory: Path) -> None:
    """Look whether a clone can do what a booted machine can: take a device and give it up.

    One that dies of a known defect is as good: a machine that was booted dies of it just as often (QEMU 5.2 of a core's coming, 10.0 of
    its going, under TCG).

    :raises _Unsound: it cannot. :raises NoTemplate: this host cannot tell.
    """
    snapshot = Snapshot(directory / RAM, (directory / DEVICES).read_bytes())
    machine: PseriesMachine | None = None
    try:
        machine = PseriesMachine.restore(plan.harness, plan.spec, plan.image, Timeline(), snapshot)
        machine.budgets = _impatient(machine.budgets)
        device = _typical_device(machine)
        attempt = None if device is None else device.unplug()
    except (SpaprError, AssertionError) as error:
        if machine is not None and crash_defect(machine):
            return
        _give_up_if_the_hosts(error, plan)
        raise _Unsound(f"a clone of such a machine is unsound: {_first_line(error)}") from error
    finally:
        if machine is not None:
            machine.close()
    if attempt is not None and attempt.outcome is not Outcome.REMOVED:
        if attempt.outcome is Outcome.CRASHED and crash_defect(machine):
            return
        raise _Unsound(
            f"a clone of such a machine is unsound: its {attempt.kind} is {attempt.outcome} where it should be removed"
        )


def _impatient(budgets: Budgets) -> Budgets:
    """A machine that is unsound shows it by silence, and its first run waits for that."""
    return replace(budgets, plug=budgets.plug / 4, unplug=budgets.unplug / 4)


def _typical_device(machine: PseriesMachine) -> Device | None:
    if machine.spec.max_cpus > machine.spec.cpus:
        return machine.cores.plug()
    return machine.dimms.plug() if machine.spec.slots else None


def _firmware(machine: PseriesMachine) -> list[Path]:
    """Return the files that QEMU loaded besides those which the machine's facts have the hashes of."""
    image = machine.image
    assert image is not None
    paths = (Path(found["path"]) for found in _ROM.finditer(machine.qmp.hmp("info roms").replace("\r", "")))
    return [path for path in paths if path.is_file() and path not in (image.kernel, image.initramfs)]


def _require_space(plan: _Plan) -> None:
    """Memory that is mapped has no error for a full disk: the process that writes to it is killed."""
    root, size = plan.cache.root, plan.spec.memory * _MIB
    with cache_errors(root):
        if shutil.disk_usage(root).free < size:
            raise _no_room(plan)


def _no_room(plan: _Plan) -> NoTemplate:
    return NoTemplate(
        f"a template needs up to {megabytes(plan.spec.memory * _MIB)} in {plan.cache.root}, which has less left: free some, or set "
        "SPAPR_CACHE_DIR to a larger file system"
    )


def _give_up_if_the_hosts(error: BaseException, plan: _Plan) -> None:
    """Raise NoTemplate for what is the host's fault: without a template, or another time, the machine may well come up."""
    if isinstance(error, LaunchFailed):
        words = error.stderr[-1] if error.stderr else _first_line(error)
        raise NoTemplate(f"QEMU does not start with its memory in a file of {plan.cache.root}: {words}") from error
    if isinstance(error, MachineDied) and error.exit_status == -signal.SIGBUS:
        raise _no_room(plan) from error
    if isinstance(error, MachineDied) and error.exit_status == -signal.SIGKILL:
        raise NoTemplate(
            f"something on this host killed QEMU, as Linux does where memory is short: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
