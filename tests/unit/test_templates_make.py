"""Which template is whose, and what becomes of one that is made: with a machine that is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_spapr.cache import Cache
from pytest_spapr.deadline import budgets
from pytest_spapr.errors import BootFailed, DeadlineExpired, LaunchFailed, MachineDied, MachineError, QmpRefused, SshFailed
from pytest_spapr.hotplug.outcome import Outcome
from pytest_spapr.images.store import GuestImage
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.argv import MachineSpec
from pytest_spapr.qemu.build import QemuBuild
from pytest_spapr.templates import make, store
from pytest_spapr.templates.key import facts, key_of, shape_text, unsuitable
from pytest_spapr.templates.make import existing, key_for, obtain
from pytest_spapr.templates.store import NoTemplate, Template
from pytest_spapr.timeline import Lane, Timeline

SPEC = MachineSpec(memory=256, max_memory=1024)


def build(**changes: Any) -> QemuBuild:
    whole = QemuBuild(
        name="11.1",
        command=("/q/qemu-system-ppc64",),
        env={},
        binary=Path("/q/qemu-system-ppc64"),
        version=(11, 1, 0),
        package=None,
        machines=frozenset({"pseries", "pseries-11.1"}),
        accelerators=frozenset({"tcg"}),
        features=frozenset({"-sandbox", "x-vof", "set-action", "monitor-qmp"}),
        devices=frozenset(),
        sha256="1234",
    )
    return replace(whole, **changes)


def image(directory: str = "/images/one", **hashes: str) -> GuestImage:
    where = Path(directory)
    found = {"vmlinux": "aa", "initramfs.cpio": "bb", **hashes}
    files: Any = {name: {"sha256": digest} for name, digest in found.items()}
    return GuestImage(
        name="debian-12",
        directory=where,
        kernel=where / "vmlinux",
        initramfs=where / "initramfs.cpio",
        kernel_release="6.1",
        page_size=65536,
        client_key=where / "client_key",
        host_key="ssh-ed25519 AAAA",
        packages={},
        modules=(),
        manifest={"files": files},
        console_shell=True,
    )


class TestKeys:
    def test_the_same_machine_has_the_same_key_wherever_its_files_are(self) -> None:
        moved = build(
            command=("/elsewhere/ld.so", "/elsewhere/qemu"), binary=Path("/elsewhere/qemu"), name="mine", env={"A": "b"}
        )
        assert key_for(build(), SPEC, image()) == key_for(moved, SPEC, image("/images/two"))

    def test_another_process_finds_the_same_key(self) -> None:
        program = (
            "from tests.unit.test_templates_make import SPEC, build, image\n"
            "from pytest_spapr.templates.make import key_for\n"
            "print(key_for(build(), SPEC, image()))"
        )
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=root, env=environment, text=True, stdout=subprocess.PIPE, check=True
        )
        assert done.stdout.strip() == key_for(build(), SPEC, image())

    @pytest.mark.parametrize(
        ("one", "spec", "guest"),
        [
            (build(sha256="5678"), SPEC, image()),
            (build(), replace(SPEC, firmware="slof"), image()),
            (build(), replace(SPEC, memory=512), image()),
            (build(), replace(SPEC, kernel_args=("quiet",)), image()),
            (build(), replace(SPEC, max_cpus=2), image()),
            (build(), replace(SPEC, cpu="power8"), image()),
            (build(), replace(SPEC, machine="pseries-11.1"), image()),
            (build(), replace(SPEC, qemu_args=("-device", "virtio-rng-pci")), image()),
            (build(), replace(SPEC, accelerator="kvm"), image()),
            (build(), SPEC, image(vmlinux="cc")),
            (build(), SPEC, image(**{"initramfs.cpio": "cc"})),
        ],
        ids=[
            *("QEMU upgraded in place", "firmware", "memory", "kernel_args", "max_cpus", "cpu", "machine", "qemu_args"),
            *("accelerator", "kernel", "initramfs"),
        ],
    )
    def test_what_matters_makes_another_key(self, one: QemuBuild, spec: MachineSpec, guest: GuestImage) -> None:
        assert key_for(one, spec, guest) != key_for(build(), SPEC, image())

    def test_another_version_of_this_package_makes_another_key(self) -> None:
        found = facts(build(), SPEC, image())
        assert key_of({**found, "format": found["format"] + 1}) != key_of(found)

    def test_a_shape_in_words(self) -> None:
        assert shape_text(MachineSpec()) == "default"
        assert shape_text(MachineSpec(cpus=2, kernel_args=("a", "b"))) == "cpus=2 kernel_args=a b"

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (("-drive", "file=/tmp/x"), "qemu_args has -drive, which may depend on the host"),
            (("-device",), "qemu_args has -device"),
            (("-device", "vfio-pci,host=0:1"), "whose vfio is outside of the machine"),
            (("-device", "virtio-blk-pci,drive=d"), "whose drive is outside"),
            (("-device", "virtio-balloon-pci"), "would take pages out of the template's memory"),
        ],
    )
    def test_what_depends_on_the_host_has_no_template(self, arguments: tuple[str, ...], why: str) -> None:
        assert why in str(unsuitable(replace(SPEC, qemu_args=arguments)))

    def test_devices_that_are_whole_in_the_machine_do_no_harm(self) -> None:
        assert unsuitable(replace(SPEC, qemu_args=("-device", "virtio-rng-pci,id=rng0", "-global", "a.b=c"))) is None


class FakeMachine:
    """As much of a machine as a template takes. ``plan`` says what goes wrong, by step."""

    plan: dict[str, BaseException | Outcome]
    steps: list[str]

    def __init__(self, image: GuestImage, timeline: Timeline) -> None:
        self.spec = SPEC
        self.image = image
        self.budgets = budgets("tcg")
        self.timeline = timeline
        self.guest = SimpleNamespace(rest=lambda: self.step("rest"))
        self.qmp = SimpleNamespace(hmp=lambda command: f'addr=0 size=1 mem=ram name="{__file__}"\r\n')
        self.cores = SimpleNamespace(plug=self.plug)

    @classmethod
    def step(cls, name: str) -> None:
        cls.steps.append(name)
        trouble = cls.plan.get(name)
        if isinstance(trouble, BaseException):
            raise trouble

    @classmethod
    def start(cls, harness: Any, spec: Any, image: GuestImage, timeline: Timeline, *, ram: Path) -> FakeMachine:
        ram.write_bytes(b"memory")
        timeline.record(Lane.KERNEL, "Linux version 6.1")
        timeline.record(Lane.QMP, "-> cont")
        cls.step("start")
        return cls(image, timeline)

    @classmethod
    def restore(cls, harness: Any, spec: Any, image: GuestImage, timeline: Timeline, snapshot: Any) -> FakeMachine:
        assert snapshot.devices == b"devices"
        cls.step("restore")
        return cls(image, timeline)

    def save(self) -> bytes:
        self.step("save")
        return b"devices"

    def quit(self) -> None:
        self.step("quit")

    def close(self) -> None:
        self.steps.append("close")

    def plug(self) -> Any:
        self.step("plug")
        assert self.budgets.plug < budgets("tcg").plug, "a clone that is silent is given up sooner than a test's"
        outcome = self.plan.get("unplug", Outcome.REMOVED)
        return SimpleNamespace(unplug=lambda: SimpleNamespace(outcome=outcome, kind="core"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException | Outcome]:
    FakeMachine.plan, FakeMachine.steps = {}, []
    monkeypatch.setattr(make, "PseriesMachine", FakeMachine)
    return FakeMachine.plan


def asked(cache: Cache, timeline: Timeline | None = None, spec: MachineSpec = SPEC) -> Template:
    harness: Any = SimpleNamespace(build=build())
    return obtain(cache, harness, spec, image(), NullProgress(), timeline or Timeline())


def left(cache: Cache) -> list[str]:
    return [str(path) for path in cache.root.rglob("*") if not path.is_dir() and path.suffix != ".lock"]


def test_it_is_made_once(cache: Cache, plan: Any) -> None:
    made = asked(cache)
    assert FakeMachine.steps == ["start", "rest", "save", "quit", "close", "restore", "plug", "close"]
    assert [(record.lane, record.text) for record in made.boot] == [(Lane.KERNEL, "Linux version 6.1")]
    assert made.boot[0].time < 0
    assert list(made.manifest["firmware"]) == [__file__]
    again = asked(cache)
    assert len(FakeMachine.steps) == 8
    found = existing(cache, made.key, SPEC)
    assert found is not None
    for template in (made, again, found):
        template.close()


def test_the_one_just_made_stays_however_small_the_bound(cache: Cache, plan: Any) -> None:
    made = asked(cache)
    assert store.trim(cache, 0) == []
    made.require_unchanged()
    made.close()
    assert [entry.key for entry in store.trim(cache, 0)] == [made.key]


@pytest.mark.parametrize("harm", [store.MANIFEST, store.RAM, store.DEVICES, store.BOOT])
def test_a_damaged_one_is_made_anew(cache: Cache, plan: Any, harm: str) -> None:
    made = asked(cache)
    made.close()
    (made.directory / harm).unlink()
    assert existing(cache, made.key, SPEC) is None
    assert made.directory.exists(), "only who holds the lock removes it"
    asked(cache).close()
    assert FakeMachine.steps.count("start") == 2


def test_a_damaged_one_that_another_run_uses_stays(cache: Cache, plan: Any) -> None:
    made = asked(cache)
    os.truncate(made.directory / store.RAM, 1)
    with pytest.raises(NoTemplate, match="ram was changed since it was written; it is made anew once no other run uses it"):
        asked(cache)
    made.close()
    asked(cache).close()


def dead(number: int) -> MachineDied:
    return MachineDied(f"QEMU (pid 1) was killed by {signal.Signals(number).name}", -number, ())


LAUNCH = LaunchFailed("QEMU did not start: ended with status 1.", 1, ["qemu: a warning", "qemu: cannot map"])
UNSOUND = "a clone of such a machine is unsound: "


@pytest.mark.parametrize(
    ("step", "trouble", "why"),
    [
        ("save", MachineError("QEMU's migrate failed: no\nmore"), "QEMU cannot save such a machine: QEMU's migrate failed: no"),
        (
            "save",
            QmpRefused("migrate", "GenericError", "blocked"),
            "QEMU cannot save such a machine: migrate: GenericError: blocked",
        ),
        ("save", dead(signal.SIGSEGV), "QEMU cannot save such a machine: QEMU (pid 1) was killed by SIGSEGV"),
        ("restore", dead(signal.SIGABRT), f"{UNSOUND}QEMU (pid 1) was killed by SIGABRT"),
        ("restore", SshFailed("no answer"), f"{UNSOUND}no answer"),
        ("plug", DeadlineExpired("the guest", 1), f"{UNSOUND}waited 1.0 s in vain for the guest"),
        ("plug", AssertionError(), f"{UNSOUND}AssertionError()"),
        ("unplug", Outcome.PENDING, f"{UNSOUND}its core is {Outcome.PENDING} where it should be removed"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_an_unsound_one_is_remembered(cache: Cache, plan: Any, step: str, trouble: BaseException | Outcome, why: str) -> None:
    plan[step] = trouble
    tail = r"\(`spapr template remove (\w+)` has it tried again\)"
    with pytest.raises(NoTemplate, match=tail) as first:
        asked(cache)
    assert str(first.value).startswith(f"{why} (")
    starts = FakeMachine.steps.count("start")
    assert starts == 1
    assert FakeMachine.steps[-1] == "close" or step == "restore", "no machine stays behind"
    plan.clear()
    with pytest.raises(NoTemplate, match=tail) as second:
        asked(cache)
    assert str(second.value) == str(first.value)
    assert FakeMachine.steps.count("start") == 1
    assert [Path(path).name for path in left(cache)] == [store.MANIFEST]
    assert store.remove(cache, key_for(build(), SPEC, image()))
    asked(cache).close()


@pytest.mark.parametrize(("defect", "sound"), [("tcg-core-removal-heap", True), (None, False)])
def test_a_death_that_machines_that_were_booted_die_too_is_not_the_clones_fault(
    cache: Cache, plan: Any, monkeypatch: pytest.MonkeyPatch, defect: str | None, sound: bool
) -> None:
    monkeypatch.setattr(make, "crash_defect", lambda machine: defect)
    for step, how, why in (
        ("unplug", Outcome.CRASHED, "its core is crashed where it should be removed"),
        ("plug", dead(signal.SIGSEGV), f"{UNSOUND}QEMU .* was killed by SIGSEGV"),
    ):
        plan.clear()
        plan[step] = how
        with nullcontext() if sound else pytest.raises(NoTemplate, match=why):
            asked(cache).close()
        store.remove(cache, key_for(build(), SPEC, image()))


@pytest.mark.parametrize(
    ("step", "trouble", "why"),
    [
        ("start", LAUNCH, r"QEMU does not start with its memory in a file of .*/cache: qemu: cannot map$"),
        (
            "start",
            dead(signal.SIGBUS),
            r"a template needs up to 268\.4 MB in .*/cache, which has less left: free some, or set SPAPR_",
        ),
        ("rest", SshFailed("no answer"), "the guest did not come to rest: no answer"),
        ("rest", dead(signal.SIGBUS), "which has less left"),
        ("save", dead(signal.SIGBUS), "which has less left"),
        (
            "save",
            DeadlineExpired("QEMU's migrate", 30),
            r"QEMU did not save such a machine: waited 30\.0 s in vain for QEMU's migrate",
        ),
        ("save", OSError(28, "No space left on device"), "no space left while writing to .*SPAPR_CACHE_DIR"),
        ("save", OSError(5, "Input/output error"), "the cache .* cannot be used: .*Input/output error"),
        ("restore", LAUNCH, "QEMU does not start"),
        ("plug", dead(signal.SIGBUS), "which has less left"),
        ("save", dead(signal.SIGKILL), "something on this host killed QEMU, as Linux does where memory is short: QEMU"),
        ("plug", dead(signal.SIGKILL), "something on this host killed QEMU"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_what_the_host_lacks_is_told_and_not_remembered(
    cache: Cache, plan: Any, step: str, trouble: BaseException, why: str
) -> None:
    plan[step] = trouble
    seen = Timeline()
    with pytest.raises(NoTemplate, match=why) as told:
        asked(cache, seen)
    assert "\n" not in str(told.value)
    assert left(cache) == []
    assert seen.since() == [], "the machine is booted next, on this timeline"
    plan.clear()
    asked(cache).close()


@pytest.mark.parametrize(
    "trouble", [BootFailed("the guest did not come up", "nothing"), KeyboardInterrupt()], ids=["failed", "Ctrl-C"]
)
def test_a_boot_that_fails_is_the_tests_own(cache: Cache, plan: Any, trouble: BaseException) -> None:
    plan["start"] = trouble
    timeline = Timeline()
    timeline.step("machine for the test")
    with pytest.raises(type(trouble)) as failed:
        asked(cache, timeline)
    assert failed.value is trouble
    assert [record.text for record in timeline.since()] == ["machine for the test", "Linux version 6.1", "-> cont"]
    assert [record.seq for record in timeline.since()] == [0, 1, 2]
    assert left(cache) == []


def test_an_interrupt_leaves_nothing(cache: Cache, plan: Any) -> None:
    plan["plug"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        asked(cache)
    assert left(cache) == []
    assert FakeMachine.steps[-1] == "close"


def test_a_disk_that_is_too_small_is_told_before_a_boot(cache: Cache, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(NoTemplate, match="which has less left"):
        asked(cache)
    assert FakeMachine.steps == []


def test_a_cache_that_cannot_be_written_is_told(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoTemplate, match=r"cannot use the cache.*SPAPR_CACHE_DIR"):
        asked(Cache(tmp_path / "file"))
    assert FakeMachine.steps == []


def test_what_cannot_be_cloned_is_not_tried(cache: Cache, plan: Any) -> None:
    spec = replace(SPEC, qemu_args=("-drive", "if=none"))
    with pytest.raises(NoTemplate, match="qemu_args has -drive"):
        asked(cache, spec=spec)
    with pytest.raises(NoTemplate, match="qemu_args has -drive"):
        existing(cache, "key", spec)
    assert not cache.root.exists()


_BUILDER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from tests.unit import test_templates_make as here
from pytest_spapr.cache import Cache
from pytest_spapr.progress import PlainProgress

class Machine(here.FakeMachine):
    plan, steps = {}, []

    @classmethod
    def start(cls, *arguments, ram):
        print("booting", flush=True)
        sys.stdin.readline()
        return super().start(*arguments, ram=ram)

here.make.PseriesMachine = Machine
harness = SimpleNamespace(build=here.build())
template = here.obtain(Cache(Path(sys.argv[1])), harness, here.SPEC, here.image(), PlainProgress(sys.stdout), here.Timeline())
print("made" if Machine.steps else "found", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def builder(cache: Cache) -> Callable[[], subprocess.Popen[str]]:
    """Starts processes that ask for the same template; each boots when it is given a line."""
    root = Path(__file__).parents[2]

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _BUILDER, str(cache.root)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def says(process: subprocess.Popen[str], wanted: str) -> None:
    """Read what a process says up to a line that begins so."""
    assert process.stdout is not None
    assert any(line.startswith(wanted) for line in process.stdout), wanted


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_two_runs_one_makes_it_and_the_other_waits(builder: Callable[[], subprocess.Popen[str]]) -> None:
    with builder() as first:
        says(first, "booting")
        with builder() as second:
            says(second, "waiting for another run that holds template-")
            tell(first)
            says(first, "made")
            says(second, "found")
            for process in (first, second):
                process.communicate("\n", timeout=10)


def test_a_killed_build_is_taken_up_by_the_next_run(builder: Callable[[], subprocess.Popen[str]], cache: Cache) -> None:
    with builder() as first:
        says(first, "booting")
        first.kill()
        first.wait(10)
        first.communicate()
    [scratch] = (cache.root / "tmp").iterdir()
    assert store.listing(cache) == []
    with builder() as second:
        says(second, "booting")
        tell(second)
        says(second, "made")
        assert not scratch.exists()
        second.communicate("\n", timeout=10)
    assert [one.state for one in store.listing(cache)] == [""]


def test_the_manifest_says_what_it_is_for(cache: Cache, plan: Any) -> None:
    made = asked(cache)
    made.close()
    manifest = json.loads((made.directory / store.MANIFEST).read_text())
    assert manifest["facts"] == facts(build(), SPEC, image())
    assert manifest["build"] == "QEMU 11.1.0"
    assert manifest["kernel_release"] == "6.1"
