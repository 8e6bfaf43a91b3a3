"""A QEMU build, a guest image and machines that are none: what the plugin does with them needs no QEMU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_spapr.errors import MachineDied
from pytest_spapr.hotplug.attempt import Attempt, Views
from pytest_spapr.hotplug.outcome import Kind, Outcome, Presence
from pytest_spapr.starts import Started
from pytest_spapr.timeline import Lane, Timeline

KERNEL = "6.1.0-50-powerpc64le"


def build(version: tuple[int, int, int] = (7, 2, 22), accelerators: frozenset[str] = frozenset({"tcg"})) -> Any:
    text = ".".join(map(str, version))
    return SimpleNamespace(
        name=text,
        version=version,
        version_text=f"QEMU {text} (Debian 1:7.2)",
        package="Debian 1:7.2",
        binary=Path("/somewhere/qemu-system-ppc64"),
        accelerators=accelerators,
        kvm_properties=(),
        features=frozenset(),
        machines=frozenset({"pseries", "pseries-7.2"}),
        unprobed=None,
    )


def image(name: str = "debian-12") -> Any:
    return SimpleNamespace(
        name=name, kernel_release=KERNEL, kernel_text=f"Linux {KERNEL}", lacks=(), directory=Path("/somewhere") / name
    )


def attempt(outcome: Outcome, kind: Kind = Kind.CORE) -> Attempt:
    views = Views(qemu=Presence.ABSENT, guest=Presence.ABSENT)
    return Attempt(
        device="core1",
        kind=kind,
        outcome=outcome,
        cause=None,
        asked=True,
        reply=None,
        events=(),
        evidence=(),
        views=views,
        elapsed=0.1,
        began=0,
        ended=1,
    )


class StubGuest:
    """Answers every command."""

    kernel_release = KERNEL
    usable = True

    def run(self, command: str, *, seconds: float | None = None) -> Any:
        return SimpleNamespace(stdout=f"output of {command}\n", status=0)

    def ssh_command(self) -> str:
        return "ssh -p 2222 root@127.0.0.1"


class StubQmp:
    """Takes every command."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def execute(self, command: str, arguments: Any = None) -> None:
        self._timeline.record(Lane.QMP, f"-> {command}", {"execute": command, "arguments": arguments})


class StubMachine:
    """As much of a machine as the plugin and the tests in here touch."""

    def __init__(self, spec: Any, image: Any, timeline: Timeline, build: Any) -> None:
        self.spec = spec
        self.image = image
        self.timeline = timeline
        self.build = build
        self.attempts: list[Attempt] = []
        self.observers: list[Callable[[Attempt], None]] = []
        self.at_end: list[Callable[[], None]] = []
        self.at_move: list[Callable[[], None]] = []
        self.process = SimpleNamespace(argv=("qemu-system-ppc64", "-m", "1G with blanks"), pid=4242, exit_status=None)
        self.guest = StubGuest()
        self.has_guest = image is not None
        self.backdoor: Path | None = None
        self.qmp = StubQmp(timeline)
        self.ended = ""

    def unplug(self, outcome: str) -> Attempt:
        made = self._attempt(Outcome(outcome))
        self.timeline.step("unplug core1")
        for observer in self.observers:
            observer(made)
        return made

    def _attempt(self, outcome: Outcome) -> Attempt:
        self.attempts.append(replace(attempt(outcome), began=self.timeline.mark()))
        return self.attempts[-1]

    def follow(self, one: Attempt, outcome: str) -> None:
        """Have another verdict on an attempt."""
        self.attempts.append(replace(one, outcome=Outcome(outcome)))

    def die(self) -> None:
        """End as a QEMU does that crashes, and fail as every wait does then."""
        self._attempt(Outcome.REMOVED)
        error = MachineDied("QEMU was killed by SIGSEGV", -11, ("a last word",))
        self.timeline.record(Lane.STDERR, "a last word")
        self.timeline.end(error)
        raise error

    def close(self) -> None:
        self.ended = "closed"

    def release(self) -> None:
        self.ended = "released"


def start(shared: Any, spec: Any, image: Any, timeline: Timeline, *, boot: bool) -> StubMachine:
    timeline.record(Lane.CONSOLE, "SLOF says hello")
    timeline.record(Lane.KERNEL, "Linux version 6.1")
    timeline.record(Lane.QMP, "<- qmp_capabilities")
    return StubMachine(spec, image if boot else None, timeline, shared.build)


class StubStarter:
    """Starts stubs at once, and never has a template."""

    start_stub = staticmethod(start)

    def __init__(self, cache: Any, max_size: int) -> None: ...

    def close(self) -> None: ...

    def boot(
        self, shared: Any, spec: Any, image: Any, timeline: Timeline, *, boot: bool = True, why: str | None = None
    ) -> Started:
        machine: Any = self.start_stub(shared, spec, image, timeline, boot=boot)
        return Started(machine, "boot", why)

    def start(self, shared: Any, spec: Any, image: Any, timeline: Timeline, progress: Any) -> Started:
        machine: Any = self.start_stub(shared, spec, image, timeline, boot=True)
        return Started(machine, "clone")

    def clone(self, shared: Any, spec: Any, image: Any, timeline: Timeline) -> None:
        return None


SHARED = SimpleNamespace(build=build())


@contextmanager
def harness(build: Any, accelerator: str, *, keep: bool = False, backdoors: bool = False) -> Iterator[Any]:
    yield SimpleNamespace(build=build, keep=keep, backdoors=backdoors)
