"""Histories with a guest: what a test would do to a machine, each unplug held against the contract of its situation.

A device is known to a history by a name of its own. An act that is not possible, in a part of a longer history, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, NoReturn

from pytest_spapr.errors import DeadlineExpired, MachineDied, QmpRefused, SpaprError
from pytest_spapr.explore.at_rest import Inventory, checks
from pytest_spapr.explore.faults import FAULTS
from pytest_spapr.explore.guest_script import BY_HAND, UNSOUND
from pytest_spapr.explore.history import AT_THE_END, Done, Play, Rest, Violated, Violation
from pytest_spapr.explore.instances import Instances
from pytest_spapr.explore.model import Expected
from pytest_spapr.explore.situation import Held, Moment
from pytest_spapr.explore.steps import Act, Step
from pytest_spapr.explore.world import state_file
from pytest_spapr.hotplug.attempt import Attempt
from pytest_spapr.hotplug.backend import Backend
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.defects import KnownDefect, crash_defect, first_that_applies, hang_defect
from pytest_spapr.hotplug.device import Device, NotConfigured
from pytest_spapr.hotplug.dimms import Dimm
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.hotplug.pci import PciBridge, PciDevice
from pytest_spapr.hotplug.phb import Phb
from pytest_spapr.hotplug.pseries import PseriesMachine
from pytest_spapr.timeline import Lane

_CARD: Final = "virtio-rng-pci"
_WORDS: Final = re.compile(r"\b(core|dimm|pci|phb|nvdimm)\d+\b")

# A guest that hangs is one thing, whichever command waits for it.
_OF_A_COMMAND: Final = re.compile(r"(its turn for )?the guest command `.*")
# Commands that only look.
_LOOKS: Final = re.compile(r"query-|qom-|human-monitor|xen-save|add-fd|remove-fd|trace-event|getfd|migrate")


class GuestPlay(Play):
    """A history on a machine whose guest is up.

    :ivar devices: by name. :ivar faults: those that are on. :ivar paused: whether the machine is.
    :ivar panicked: whether the guest's kernel is: QEMU has paused the machine then, and only a reset ends it.
    """

    def __init__(self, machine: PseriesMachine, contract: Contract) -> None:
        super().__init__()
        self.devices: dict[str, Held] = {}
        self.faults: dict[str, ExitStack] = {}
        self.paused = False
        self.panicked = False
        self._machine = machine
        self._contract = contract
        self._instances = Instances()
        self._code: list[str] = []
        self._shell: list[str] = []
        self._by_hand = ""
        self._heard = machine.timeline.mark()
        self._first = Inventory.of(machine)
        self._by_xics = "XICS" in machine.guest.read("/proc/interrupts")

    def shape(self, step: Step) -> str:
        if not isinstance(step, Act):
            return type(step).__name__
        held = self.devices.get(str(step.arguments.get("device")))
        return " ".join(filter(None, (step.name, str(step.arguments.get("fault", "")), str(held.device.kind) if held else "")))

    def pending(self) -> list[str]:
        """Return the names of the devices that QEMU waits for."""
        return [name for name, held in self.devices.items() if held.pending]

    def situation(self, held: Held) -> str | None:
        """Return the contract's name of what an unplug of a device meets now; None where no row speaks of it."""
        return Moment(self.devices, self.faults, self.paused).situation(held)

    def _forget(self) -> None:
        self.devices, self.faults, self.paused, self.panicked = {}, {}, False, False

    def _do(self, step: Step) -> None:
        assert isinstance(step, Act)
        act: Callable[..., bool] = getattr(self, f"_{step.name.replace(' ', '_')}")
        since = self._begin()
        self.done.append(Done(step, None, Expected(), self.shape(step)))
        try:
            done = self._tried(lambda: act(**step.arguments))
        except Violated as violated:
            self._complete(since)
            raise Violated(replace(violated.violation, done=tuple(self.done))) from violated
        self._complete(since)
        if not done:
            self.done.pop()

    def _begin(self) -> int:
        """Note from now on how something is done, for who wants to do it again; return where in the timeline it begins."""
        self._code, self._shell, self._by_hand = [], [], ""
        return self._machine.timeline.mark()

    def _complete(self, since: int) -> None:
        """Note how the last step was done."""
        self.done[-1] = replace(self.done[-1], code=tuple(self._code), sent=self._sent(since))

    def _sent(self, since: int) -> tuple[Mapping[str, Any] | str, ...]:
        return ({BY_HAND: self._by_hand},) if self._by_hand else (*self._commands(since), *self._shell)

    def _commands(self, since: int) -> Iterator[Mapping[str, Any]]:
        for record in self._machine.timeline.since(since, Lane.QMP):
            if record.data is not None and "execute" in record.data and not _LOOKS.match(record.data["execute"]):
                yield {name: record.data[name] for name in ("execute", "arguments") if name in record.data}

    def _tried(self, act: Callable[[], bool]) -> bool:
        """Do something that must go well, and see that the guest's kernel is sound; return whether it was done."""
        try:
            done = act()
            self._hear_kernel()
        except NotConfigured as error:
            self._violate(_first_line(error))
        except MachineDied as error:
            defect = crash_defect(self._machine)
            said = next((line for line in error.stderr if "ssert" in line or "corrupt" in line), "")
            self._violate(f"{_first_line(error)} {said}".strip(), ended=True, defect=defect)
        except DeadlineExpired as error:
            defect = hang_defect(self._machine)
            self._violate(_OF_A_COMMAND.sub("the answer to a guest command", _first_line(error)), defect=defect)
        except SpaprError as error:
            self._violate(f"{type(error).__name__}: {_first_line(error)}")
        return done

    def _violate(self, text: str, *, ended: bool = False, defect: KnownDefect | None = None) -> NoReturn:
        subject = self.done[-1].shape if self.done else ""
        raise Violated(
            Violation(tuple(self.done), _WORDS.sub(r"\1", text), subject, ended=ended, defect=defect.id if defect else None)
        )

    def _hear_kernel(self) -> None:
        if self.panicked:
            return
        records = self._machine.timeline.since(self._heard)
        self._heard = records[-1].seq + 1 if records else self._heard
        for record in records:
            if record.lane is Lane.KERNEL and UNSOUND.search(record.text):
                self._violate(f"the guest's kernel says: {record.text}")

    # -- what comes ------------------------------------------------------------------------------------------------------------

    def _plug_core(self, name: str) -> bool:
        return not self.paused and self._hold(name, self._machine.cores.plug, "machine.cores.plug()")

    def _plug_dimm(self, name: str, lmbs: int, backend: str) -> bool:
        def plug() -> Device:
            return self._machine.dimms.plug(256 * lmbs, backend=Backend(backend))

        return not self.paused and self._hold(name, plug, f"machine.dimms.plug({256 * lmbs}, backend=Backend({backend!r}))")

    def _plug_nvdimm(self, name: str) -> bool:
        return not self.paused and self._hold(name, self._machine.nvdimms.plug, "machine.nvdimms.plug()")

    def _plug_card(self, name: str, below: str = "") -> bool:
        if not self._drmgr_works():
            return False
        if not below:
            return self._hold(name, lambda: self._machine.pci.plug(_CARD), f"machine.pci.plug({_CARD!r})")
        held = self.devices.get(below)
        if held is None or held.pending or not isinstance(held.device, Phb | PciBridge):
            return False
        pci = held.device.pci
        return self._hold(name, lambda: pci.plug(_CARD), f"{below}.pci.plug({_CARD!r})", parent=below)

    def _plug_functions(self, name: str) -> bool:
        if not self._drmgr_works():
            return False
        other = f"{name}_1"
        self._code.append(f"{name}, {other} = machine.pci.plug_functions({_CARD!r})")
        zero, one = self._machine.pci.plug_functions(_CARD)
        self.devices[name], self.devices[other] = Held(zero), Held(one, parent=name)
        return True

    def _plug_bridge(self, name: str) -> bool:
        # One of them.
        plug = self._machine.pci.plug_bridge
        return not self._bridges() and self._drmgr_works() and self._hold(name, lambda: plug(1), "machine.pci.plug_bridge(1)")

    def _bridges(self) -> list[Held]:
        return [held for held in self.devices.values() if isinstance(held.device, PciBridge)]

    def _plug_phb(self, name: str) -> bool:
        return self._drmgr_works() and self._hold(name, self._machine.phbs.plug, "machine.phbs.plug()")

    def _drmgr_works(self) -> bool:
        return not self.paused and self.faults.keys().isdisjoint({"rtas_errd killed", "drmgr locked"})

    def _hold(self, name: str, plug: Callable[[], Device], code: str, parent: str = "") -> bool:
        self._code.append(f"{name} = {code}")
        device = plug()
        self.devices[name] = Held(device, parent=parent)
        self._instances.add(name, device.kind, bridge=isinstance(device, PciBridge))
        return True

    # -- what goes -------------------------------------------------------------------------------------------------------------

    def _unplug(self, device: str) -> bool:
        if (held := self.devices.get(device)) is None:
            return False
        situation = self.situation(held)
        promised = f" == contract.expect({device}.kind, {situation!r})" if situation else ""
        self._code.append(f"{device}_unplug = {device}.unplug()")
        if promised:
            self._code.append(f"assert {device}_unplug{promised}")
        attempt = held.device.unplug()
        self._check(attempt, situation)
        self._settle(device, attempt, situation)
        return True

    def _settle(self, name: str, attempt: Attempt, situation: str | None) -> None:
        held = self.devices[name]
        held.moved &= attempt.outcome is Outcome.REJECTED
        if attempt.outcome is Outcome.REMOVED:
            self._remove(name)
        elif attempt.outcome is Outcome.PENDING and held.pending is None:
            held.pending, held.cause = attempt, situation or ""
        elif attempt.outcome is Outcome.REFUSED:
            held.pending = None

    def _remove(self, name: str) -> None:
        """Forget a device, what is below it, and the other functions of its slot if it was function 0."""
        self.devices.pop(name, None)
        self._instances.remove(name)
        for below in [one for one, other in self.devices.items() if other.parent == name]:
            self._remove(below)

    def _check(self, attempt: Attempt, situation: str | None) -> None:
        if attempt.outcome is Outcome.CRASHED:
            defect = crash_defect(self._machine)
            words = next((line for line in attempt.evidence if "QEMU (pid" in line), "QEMU ended")
            self._violate(words, ended=True, defect=defect)
        if situation is None:
            return
        differences = self._contract.expect(attempt.kind, situation).differences(attempt)
        if differences:
            self._violate(f"not what the contract promises for {situation!r}: {'; '.join(differences)}")

    def _follow(self, name: str, situation: str) -> None:
        """See that a pending device goes now."""
        held = self.devices[name]
        assert held.pending is not None
        self._code.append(f"assert {name}.follow({name}_unplug) == contract.expect({name}.kind, {situation!r})")
        attempt = held.device.follow(held.pending)
        self._check(attempt, situation)
        self._settle(name, attempt, situation)

    # -- what the guest and its user do ----------------------------------------------------------------------------------------

    def _fault_on(self, fault: str) -> bool:
        if self.paused or fault in self.faults or self.pending():
            return False
        if fault == "CPU 0 offline" and not any(held.device.kind is Kind.CORE for held in self.devices.values()):
            # It is the last one.
            return False
        number = list(FAULTS).index(fault) + 1
        self._code += [f"fault{number} = ExitStack()", f"fault{number}.enter_context({FAULTS[fault].code})"]
        self._shell.append(FAULTS[fault].on)
        stack = ExitStack()
        stack.enter_context(FAULTS[fault].made(self._machine))
        self.faults[fault] = stack
        return True

    def _fault_off(self, fault: str) -> bool:
        if self.paused or fault not in self.faults:
            return False
        self._code.append(f"fault{list(FAULTS).index(fault) + 1}.close()")
        self._shell.append(FAULTS[fault].off)
        self.faults.pop(fault).close()
        if fault == "rtas_errd killed" and "drmgr locked" not in self.faults:
            # It reads what the kernel kept for it.
            for name in self._caused("silence: rtas_errd absent"):
                if name in self.devices:
                    self._follow(name, "removal")
        return True

    def _caused(self, cause: str) -> list[str]:
        # Function 0 takes its slot along; a PHB what is below it.
        return [name for name in self.pending() if self.devices[name].cause == cause]

    def _guest_remove(self, device: str) -> bool:
        """The guest gives a DIMM of one LMB back late, by itself."""
        held = self.devices.get(device)
        if self.paused or held is None or held.pending is None or not isinstance(held.device, Dimm) or self.faults:
            return False
        if held.cause != "silence: first LMB refused" or len(held.device.drcs) > 1:
            return False
        self._code.append(f"machine.guest.memory.remove({device}.drcs[0])")
        self._shell.append(f"echo 'memory remove index {held.device.drcs[0]:#x}' > /sys/kernel/dlpar")
        self._machine.guest.memory.remove(held.device.drcs[0])
        self._follow(device, "removal")
        return True

    def _pause(self) -> bool:
        if self.paused or self.faults or self.pending():
            return False
        self._code.append("machine.stop()")
        self._machine.stop()
        self.paused = True
        return True

    def _resume(self) -> bool:
        if not self.paused or self.panicked:
            return False
        self._code.append("machine.cont()")
        self._machine.cont()
        self.paused = False
        for name in self._caused("silence: machine paused"):
            held = self.devices.get(name)
            if held is not None and not held.of_boot and not (isinstance(held.device, PciDevice) and held.device.function):
                self._follow(name, "after: migration" if held.moved else "after: resume")
        return True

    def _panic(self) -> bool:
        if self.paused or self.faults or not self._boots_again():
            return False
        self._code.append("machine.panic()")
        # Later than this line's answer.
        self._shell.append("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 < /dev/null &")
        self._hear_kernel()
        self._machine.panic()
        self.paused = self.panicked = True
        return True

    def _reset(self) -> bool:
        if not self.panicked:
            return not self.paused and self._boot(self._machine.reset, "machine.reset()")
        since = self._machine.timeline.mark()
        done = self._boot(self._machine.reset, "machine.reset()")
        # What the kernel said of its panic is no trouble of the next one.
        reset = next((record for record in self._machine.timeline.since(since) if record.event == "RESET"), None)
        self._heard = max(self._heard, reset.seq + 1 if reset else since)
        return done

    def _reboot(self) -> bool:
        return not self.paused and self._boot(self._machine.reboot, "machine.reboot()", "reboot -f")

    def _boots_again(self) -> bool:
        # A bridge is none after a boot by VOF (known defect ``vof-bridge``).
        return not self._bridges() or not any("x-vof=on" in word for word in self._machine.process.argv)

    def _boot(self, begin: Callable[[], object], code: str, *shell: str) -> bool:
        if self.faults or not self._boots_again():
            return False
        pending = self.pending()
        self._code.append(code)
        self._shell += shell
        begin()
        self.paused = self.panicked = False
        for name in pending:
            if name in self.devices:
                self._follow(name, "after: reset")
        for held in self.devices.values():
            held.of_boot = True
        return True

    def _migrate(self, stored: bool = False) -> bool:
        if self.panicked or not self._instances.same_elsewhere or self._hangs_after_a_move():
            return False
        way = f'through=tmp_path / "state{len(self.done)}"' if stored else ""
        self._code.append(f"machine.migrate({way})")
        self._by_hand = (
            f"migrate the machine {'to a file, and from there ' * stored}to another QEMU, with its monitor at the same place"
        )
        with state_file(stored) as file:
            self._machine.migrate(through=file)
        for held in self.devices.values():
            held.moved = held.pending is not None
        return True

    def _hangs_after_a_move(self) -> bool:
        pending = self.pending()
        ids = []
        if any(self.devices[name].device.kind is Kind.CORE for name in pending):
            ids.append("tcg-pending-core-migration")
        if self._by_xics and self.paused and pending:
            # Of what was asked for before the pause the guest has heard.
            ids.append("tcg-xics-migration")
        return first_that_applies(ids, self._machine.build, self._machine.spec.accelerator, None) is not None

    def _device_del_of_nobody(self) -> bool:
        self._code += ["with pytest.raises(QmpRefused):", '    machine.qmp.execute("device_del", {"id": "nobody"})']
        reply = None
        try:
            self._machine.qmp.execute("device_del", {"id": "nobody"})
        except QmpRefused as error:
            reply = error.description
        if reply != "Device 'nobody' not found":
            self._violate(f"the reply to a device_del of what is not there: {reply}")
        return True

    # -- the end ---------------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        since = self._begin()
        try:
            self._tried(self._at_rest)
        except Violated as violated:
            rest = Rest(tuple(self._code), self._sent(since))
            # The last step may have nothing to do with it.
            raise Violated(replace(violated.violation, subject=AT_THE_END, rest=rest)) from violated

    def _at_rest(self) -> bool:
        """Lift what is on, then compare the views of all that is there, and the guest's resources."""
        if self.panicked:
            self._reset()
        self._resume()
        for fault in list(self.faults):
            self._fault_off(fault)
        for line, problem in checks(self._machine, self.devices, self._first):
            self._code.append(line)
            if problem:
                self._violate(problem)
        return True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
