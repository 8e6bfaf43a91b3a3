"""The bound on running machines, with real processes: what counts is what the kernel gives back and to whom."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from pytest_spapr import slots as module
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import ConfigError, DeadlineExpired
from pytest_spapr.progress import NullProgress
from pytest_spapr.slots import Lease, Slots

SECONDS = 20.0
_CHILD = """
    import os, signal, sys
    from pathlib import Path
    from pytest_spapr.deadline import Deadline
    from pytest_spapr.progress import NullProgress
    from pytest_spapr.slots import Slots

    def say(*words):
        print(*words, flush=True)

    class Aloud(NullProgress):
        def phase(self, text):
            say(text)

    slots = Slots(Path(sys.argv[1]), int(sys.argv[2]), 1024, patience=0)
    """


class Child:
    """A process of its own with ``slots``, which says its lines and ends with its input."""

    def __init__(self, directory: Path, count: int, script: str) -> None:
        code = textwrap.dedent(_CHILD) + textwrap.dedent(script)
        # A shell's background job ignores SIGINT, and so would the child.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(directory), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        signal.signal(signal.SIGINT, before)
        self._watchdog = threading.Timer(SECONDS, self.process.kill)
        self._watchdog.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self._watchdog.cancel()
        self.process.communicate()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def dies(self) -> None:
        self.process.kill()
        self.process.wait()


HOLDER = (
    "lease = slots.take({weight}); say('has', lease.weight); sys.stdin.readline(); lease.release(); say('gave'); sys.stdin.read()"
)
TAKER = "lease = slots.take({weight}, progress=Aloud()); say('has', lease.weight); sys.stdin.read()"


class Heard(NullProgress):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.spoke = threading.Event()

    def phase(self, text: str) -> None:
        self.said.append(text)
        self.spoke.set()


class Watched(Slots):
    """Tells when a wait has come to the slots themselves."""

    def __init__(self, directory: Path, count: int, mib: int, *, patience: float) -> None:
        super().__init__(directory, count, mib, patience=patience)
        self.collects = threading.Event()

    def _await(self, collection: module._Collection, names: Iterable[str], wait: module._Wait) -> None:
        if names is self._slots:
            self.collects.set()
        super()._await(collection, names, wait)


class Taker:
    """A take() in a thread of this process."""

    def __init__(self, slots: Slots, weight: int, *, release: bool = False) -> None:
        self.lease: Lease | None = None
        self.heard = Heard()
        self._release = release
        self._thread = threading.Thread(target=self._take, args=(slots, weight), daemon=True)
        self._thread.start()

    def _take(self, slots: Slots, weight: int) -> None:
        self.lease = slots.take(weight, deadline=Deadline(SECONDS), progress=self.heard)
        if self._release:
            self.lease.release()

    def waits(self) -> bool:
        return self.heard.spoke.wait(SECONDS) and self.lease is None

    def served(self) -> Lease:
        self._thread.join(SECONDS)
        assert self.lease is not None
        return self.lease


Make = Callable[..., Slots]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Each call makes the slots of one more process, as far as the lock files can tell."""
    return lambda count=2, patience=0.0: Slots(tmp_path, count, 1024, patience=patience)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, *, weight: int = 1, count: int = 2) -> Child:
        children.append(Child(tmp_path, count, script.replace("{weight}", str(weight))))
        return children[-1]

    yield start
    for one in children:
        one.__exit__(None, None, None)


def free(slots: Slots) -> int:
    """Return how many slots are free once helper threads that have no more use for one have given theirs back."""
    for thread in threading.enumerate():
        if thread.name.startswith("spapr-slot") or thread.name in ("spapr-gate", "spapr-beyond"):
            thread.join(SECONDS)
            assert not thread.is_alive()
    count = 0
    leases = []
    while count < slots.count and (lease := slots.try_take(1)):
        leases.append(lease)
        count += 1
    for lease in leases:
        lease.release()
    return count


@pytest.mark.parametrize(
    ("cpus", "mib", "shares"),
    [(2, 24105, (4, 6026)), (8, 7900, (7, 1128)), (64, 3000, (2, 1500)), (4, 900, (1, 900)), (1, 65536, (2, 32768))],
)
def test_a_cpu_has_two_slots_where_memory_is_not_short(cpus: int, mib: int, shares: tuple[int, int]) -> None:
    assert module._shares(cpus, mib) == shares


@pytest.mark.parametrize(
    ("cpus", "memory", "weight"),
    [(1, 1024, 1), (1, 256, 1), (3, 1024, 3), (1, 1025, 2), (2, 4096, 4), (8, 1024, 4), (1, 1 << 20, 4)],
)
def test_a_machine_weighs_its_vcpus_or_its_memory_and_never_more_than_all(
    make: Make, cpus: int, memory: int, weight: int
) -> None:
    assert make(4).weight(cpus, memory) == weight


def test_those_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    slots = Slots.of_host()
    assert 1 <= slots.count <= 2 * len(os.sched_getaffinity(0))
    assert slots.mib >= min(1024, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20)
    with slots.take(1):
        [directory] = tmp_path.iterdir()
        assert directory.name == f"pytest-spapr-{os.getuid()}"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


class TestTaking:
    def test_no_more_than_there_are(self, make: Make) -> None:
        mine, others = make(), make()
        with mine.take(1) as lease:
            assert lease.weight == 1
            assert others.try_take(2) is None
            assert free(others) == 1
        assert free(others) == 2

    def test_released_twice_takes_nothing_from_the_next(self, make: Make) -> None:
        slots = make(1)
        lease = slots.take(1)
        lease.release()
        with slots.take(1):
            lease.release()
            assert not lease.held
            assert make(1).try_take(1) is None

    def test_a_wait_ends_with_the_first_slots_that_are_given_back(self, make: Make) -> None:
        leases = [make().take(1) for _ in range(2)]
        taker = Taker(make(), 1)
        assert taker.waits()
        leases[1].release()
        assert taker.served().weight == 1
        leases[0].release()
        # The thread that waited for the other one gives it back.
        assert free(make()) == 1
        taker.served().release()
        assert free(make()) == 2

    def test_a_wait_says_for_what_and_for_whom(self, make: Make, child: Callable[..., Child]) -> None:
        holder = child(HOLDER, weight=2)
        assert holder.says() == "has 2"
        taker = Taker(make(), 1)
        assert taker.waits()
        assert taker.heard.said == [f"waiting for 1 of the 2 machine slots of this host, held by process {holder.process.pid}"]
        holder.goes_on()
        taker.served().release()

    def test_without_a_wait_nothing_is_said(self, make: Make) -> None:
        heard = Heard()
        make().take(2, progress=heard).release()
        assert heard.said == []

    def test_a_short_wait_is_no_news(self, make: Make) -> None:
        lease, heard = make().take(2), Heard()
        threading.Timer(0.01, lease.release).start()
        make(patience=SECONDS).take(1, progress=heard).release()
        assert heard.said == []

    def test_a_wait_for_the_gate_and_then_for_slots_is_told_once(self, make: Make) -> None:
        heard = Heard()
        with make(1).take(1):
            wait = module._Wait(1, Deadline(0), Deadline(0), heard)
            for _ in range(2):
                with module._Collection(1) as collection, pytest.raises(DeadlineExpired):
                    make(1)._await(collection, ["slot-0"], wait)
        assert len(heard.said) == 1

    def test_who_gave_all_back_holds_nothing(self, make: Make, child: Callable[..., Child]) -> None:
        make().take(2).release()
        holder = child(HOLDER, weight=2)
        assert holder.says() == "has 2"
        with pytest.raises(DeadlineExpired, match=f"held by process {holder.process.pid}$"):
            make().take(1, deadline=Deadline(0))
        holder.goes_on()
        assert holder.says() == "gave"
        assert make()._holders() == "held by others"

    def test_a_deadline_ends_a_wait_and_leaves_nothing(self, make: Make) -> None:
        mine, others = make(), make()
        with mine.take(1):
            with pytest.raises(
                DeadlineExpired, match=rf"0\.1 s in vain for 2 of the 2 machine slots.*held by process {os.getpid()}"
            ):
                others.take(2, deadline=Deadline(0.1))
            make().take(1, deadline=Deadline(SECONDS)).release()
        assert free(make()) == 2

    def test_waiters_for_all_do_not_block_each_other(self, make: Make) -> None:
        first = make().take(1)
        takers = [Taker(make(), 2, release=True) for _ in range(2)]
        assert all(taker.waits() for taker in takers)
        first.release()
        assert [taker.served().weight for taker in takers] == [2, 2]
        assert free(make()) == 2

    def test_who_wants_many_is_not_overtaken(self, make: Make, tmp_path: Path) -> None:
        holder = make().take(1)
        slots = Watched(tmp_path, 2, 1024, patience=0)
        heavy = Taker(slots, 2)
        assert slots.collects.wait(SECONDS)
        light = Taker(make(), 1)
        assert light.waits()
        assert make().try_take(1) is None
        holder.release()
        heavy.served().release()
        light.served().release()

    def test_many_waits_leave_one_thread_per_slot(self, make: Make) -> None:
        holder, slots = make().take(2), make()
        before = threading.active_count()
        for _ in range(20):
            with pytest.raises(DeadlineExpired):
                slots.take(1, deadline=Deadline(0.005))
        # One per slot; those of the last wait's gate may not have ended.
        assert threading.active_count() - before <= slots.count + 1
        taker = Taker(slots, 2)
        assert taker.waits()
        holder.release()
        taker.served().release()
        assert free(make()) == 2

    @pytest.mark.parametrize("weight", [0, 3])
    def test_a_weight_that_can_never_be_had(self, make: Make, weight: int) -> None:
        with pytest.raises(ValueError, match="there are 2 slots"):
            make().take(weight)


class TestSecondMachines:
    """A process that holds slots while it waits for more could wait for one that waits for it."""

    def test_one_process_may_go_beyond_the_bound_and_the_next_waits_for_it(self, make: Make) -> None:
        a, b = make(), make()
        held = a.take(1), b.take(1)
        beyond = [a.take(1), a.take(2)]
        assert [lease.weight for lease in beyond] == [0, 0]
        second = Taker(b, 1)
        assert second.waits()
        beyond[0].release()
        assert second.waits()
        beyond[1].release()
        assert second.served().weight == 0
        for lease in (*held, second.served()):
            lease.release()
        assert free(make()) == 2

    def test_it_does_not_queue_behind_one_that_waits_for_it(self, make: Make) -> None:
        a = make()
        held = a.take(1)
        heavy = Taker(make(), 2)
        assert heavy.waits()
        # The one slot left is collected by then or not.
        with a.take(1, deadline=Deadline(SECONDS)):
            pass
        held.release()
        heavy.served().release()

    def test_one_that_has_given_all_back_queues_again(self, make: Make) -> None:
        a = make(1)
        a.take(1).release()
        with make(1).take(1):
            taker = Taker(a, 1)
            assert taker.waits()
        assert taker.served().weight == 1
        taker.served().release()


class TestPreparation:
    def test_never_waits_and_keeps_no_part(self, make: Make) -> None:
        with make(3).take(2):
            assert make(3).try_take(2) is None
            assert free(make(3)) == 1

    def test_one_machine_of_the_host_beyond_the_slots(self, make: Make) -> None:
        a, b = make(1), make(1)
        with a.take(1):
            permission = a.preparation()
            assert permission is not None
            assert permission.weight == 0
            assert b.preparation() is None
            permission.release()
            with b.preparation() or pytest.fail("it is free"):
                assert a.preparation() is None

    def test_slots_for_it_are_waited_for_and_no_reason_to_go_beyond(self, make: Make) -> None:
        a = make(1)
        prepared = a.try_take(1)
        assert prepared is not None
        taker = Taker(a, 1)
        assert taker.waits()
        prepared.release()
        assert taker.served().weight == 1
        taker.served().release()

    def test_the_permission_is_no_reason_to_go_beyond(self, make: Make) -> None:
        """Who prepares a machine holds no slot that others wait for."""
        a = make(1)
        with make(1).take(1):
            permission = a.preparation()
            taker = Taker(a, 1)
            assert taker.waits()
        assert taker.served().weight == 1
        taker.served().release()
        assert permission is not None
        permission.release()


class TestProcesses:
    def test_two_contend(self, child: Callable[..., Child]) -> None:
        holder = child(HOLDER, weight=2)
        assert holder.says() == "has 2"
        taker = child(TAKER)
        assert taker.says().startswith("waiting for 1 of the 2")
        holder.goes_on()
        assert taker.says() == "has 1"
        assert holder.says() == "gave"

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
    def test_a_holder_that_is_killed_frees_its_slots(self, child: Callable[..., Child], number: signal.Signals) -> None:
        holder = child(HOLDER, weight=2)
        assert holder.says() == "has 2"
        taker = child(TAKER, weight=2)
        assert taker.says().startswith("waiting for 2 of the 2")
        holder.process.send_signal(number)
        assert taker.says() == "has 2"

    def test_a_killed_waiter_frees_what_it_had_collected(self, make: Make, child: Callable[..., Child]) -> None:
        with make().take(1):
            waiter = child(TAKER, weight=2)
            assert waiter.says().startswith("waiting for 2")
            waiter.dies()
            taker = Taker(make(), 1)
            taker.served().release()

    @pytest.mark.parametrize("ahead", [0, 1], ids=["at the slots", "at the gate"])
    def test_ctrl_c_during_the_wait_leaves_nothing(self, make: Make, child: Callable[..., Child], ahead: int) -> None:
        holder = make().take(1)
        queue = [child(TAKER, weight=2) for _ in range(ahead)]
        assert all(one.says().startswith("waiting for 2") for one in queue)
        waiter = child(
            """
            try:
                slots.take({weight}, progress=Aloud())
            except KeyboardInterrupt:
                say("interrupted")
            sys.stdin.readline()
            # A thread of the wait may have what it waited for just now, until it sees that nobody wants it.
            say("slots", bool(slots.take(2)), bool(slots.try_take(1)))
            sys.stdin.read()
            """,
            weight=2,
        )
        assert waiter.says().startswith("waiting for 2")
        waiter.process.send_signal(signal.SIGINT)
        assert waiter.says() == "interrupted"
        for one in queue:
            one.dies()
        if not ahead:
            # It lives on, with threads that are blocked on the slot that is still held.
            make().take(1, deadline=Deadline(SECONDS)).release()
        holder.release()
        make().take(2, deadline=Deadline(SECONDS)).release()
        assert free(make()) == 2
        waiter.goes_on()
        assert waiter.says() == "slots True False"

    def test_no_program_that_is_started_inherits_a_slot(self, make: Make, child: Callable[..., Child]) -> None:
        holder = child(
            """
            import subprocess
            lease = slots.take(2)
            program = subprocess.Popen(["cat"], stdin=sys.stdin, close_fds=False)
            say(program.pid)
            signal.pause()
            """
        )
        assert int(holder.says()) > 0
        holder.dies()
        assert free(make()) == 2

    def test_no_fork_inherits_a_slot(self, make: Make, child: Callable[..., Child]) -> None:
        holder = child(
            """
            leases = [slots.take(1), slots.take(1)]
            ready, told = os.pipe()
            if os.fork() == 0:
                # Numbers of descriptors are used again: a release would close what is none of its.
                others = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
                leases[0].release()
                for other in others:
                    os.fstat(other)
                os.write(told, b"x")
                sys.stdin.read()
                os._exit(0)
            os.close(told)
            say(os.read(ready, 1).decode(), slots.try_take(1))
            signal.pause()
            """
        )
        assert holder.says() == "x None"
        holder.dies()
        assert free(make()) == 2


def test_the_sum_of_held_weights_stays_within_the_bound(make: Make) -> None:
    count, rounds = 3, 60
    held = 0
    worst = 0
    most = threading.Lock()
    errors: list[BaseException] = []

    def live(seed: int) -> None:
        nonlocal held, worst
        chance, slots = random.Random(seed), make(count)
        try:
            for _ in range(rounds):
                weight = chance.randint(1, count)
                lease = slots.try_take(weight) if chance.random() < 0.3 else slots.take(weight, deadline=Deadline(SECONDS))
                if lease is None:
                    continue
                with most:
                    held += lease.weight
                    worst = max(worst, held)
                assert lease.weight == weight
                with most:
                    held -= lease.weight
                lease.release()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=live, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS * 2)
    assert errors == []
    assert worst == count
    assert free(make(count)) == count


class TestDirectories:
    @pytest.fixture
    def place(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path / f"pytest-spapr-{os.getuid()}"

    def refused(self) -> str:
        with pytest.raises(ConfigError, match="TMPDIR") as refused:
            Slots.of_host()
        return str(refused.value)

    def test_a_symlink_is_not_followed(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
        assert "not a directory that is yours alone" in self.refused()

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o750], ids=oct)
    def test_one_that_others_may_use(self, place: Path, mode: int) -> None:
        place.mkdir()
        place.chmod(mode)
        assert str(place) in self.refused()

    def test_one_of_somebody_else(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        place.mkdir(mode=0o700)
        somebody = os.getuid() + 1
        place.rename(place.with_name(f"pytest-spapr-{somebody}"))
        monkeypatch.setattr(os, "getuid", lambda: somebody)
        assert "not a directory that is yours alone" in self.refused()

    def test_a_file(self, place: Path) -> None:
        place.write_text("")
        assert "not a directory that is yours alone" in self.refused()

    def test_nowhere_to_make_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        assert "cannot make a directory for lock files" in self.refused()

    def test_a_lock_file_that_is_a_symlink_is_refused(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "slot-0").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match=r"cannot open the lock file .*slot-0.*TMPDIR"):
            make(1).take(1)
        assert not (tmp_path / "elsewhere").exists()

    def test_an_error_of_a_helper_thread_ends_the_wait(self, make: Make, tmp_path: Path) -> None:
        with make(1).take(1):
            slots = make(1)
            collection = module._Collection(1)
            slots._directory = tmp_path / "gone"
            with pytest.raises(ConfigError, match="cannot open the lock file"):
                slots._await(collection, ["slot-0"], module._Wait(1, Deadline(SECONDS), Deadline(0), NullProgress()))
