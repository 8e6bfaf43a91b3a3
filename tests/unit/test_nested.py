"""The nested host's parts that need none: its command line, the QEMU that is to run in it, and who stands in for that. The rest:
tests/hotplug/test_vfio_nested.py."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_spapr.builds import store
from pytest_spapr.builds.store import StoredQemu
from pytest_spapr.cache import Cache
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import BuildError
from pytest_spapr.images.recipe import recipes_directory
from pytest_spapr.nested import emulator, payload, relay
from pytest_spapr.nested.emulator import Emulator
from pytest_spapr.nested.host import IMAGE, Disk, argv, disk_path
from pytest_spapr.qemu.argv import Channels
from tests.unit.debian_archive import HAS_APT, Archive, Signer, deb, elf
from tests.unit.test_argv import IMAGE as GUEST
from tests.unit.test_cpio import entries

SECONDS = 20.0
needs_apt = pytest.mark.skipif(not HAS_APT, reason="no apt or no gpg here")


def test_arguments_are_translated_into_the_hosts_words() -> None:
    given = ["-chardev", "socket,id=qmp,fd=7", "-kernel", "/cache/image/vmlinux", "-object", "file,mem-path=/cache/ram,share=off"]
    words, channels = relay.translated(given, {"/cache/image/vmlinux": "/dev/vdb", "/cache/ram": "/dev/vdd"})
    assert words == [
        *("-chardev", "pipe,id=qmp,path=/dev/ports/nested-qmp"),
        *("-kernel", "/dev/vdb", "-object", "file,mem-path=/dev/vdd,share=off"),
    ]
    assert channels == {"qmp": 7}


def test_the_hosts_disks_have_their_letters_by_their_slots(tmp_path: Path) -> None:
    disks = [Disk("qemu", tmp_path / "a,b"), Disk("ram", tmp_path / "c")]
    line = argv(Emulator("x", "x 1", ("qemu",), {}), GUEST, Channels(1, 2, 3, 4, 5), tmp_path, disks)
    assert f"if=none,id=disk0,file={tmp_path}/a,,b,format=raw,readonly=on" in line
    slots = [int(word.rpartition("addr=")[2], 16) for word in line if word.startswith("virtio-blk-pci,")]
    assert slots == sorted(slots)
    assert [disk_path(number) for number in range(2)] == ["/dev/vda", "/dev/vdb"]


@pytest.fixture
def archive(tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Archive:
    made = Archive(tmp_path / "mirror", signer)
    made.add("libc6", deb({"./lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": b"loader"}))
    made.add("qemu-system-x86", deb({"./usr/bin/qemu-system-x86_64": b"qemu"}), "11.1-1", depends="libc6")
    made.publish()
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (signer.keyring,))
    monkeypatch.setattr(emulator, "SUITES", ("test",))
    monkeypatch.setattr(store, "architecture", lambda: "amd64")
    return made


@needs_apt
def test_the_hosts_hardware_is_fetched_once_and_runs_through_its_own_loader(archive: Archive, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert emulator.find(cache) is None
    emulator.fetch(cache, archive.url)
    cache.root.rename(tmp_path / "moved")
    found = emulator.fetch(Cache(tmp_path / "moved"), "file:///nowhere")
    root = tmp_path / "moved/qemu-x86/test-amd64/root"
    assert found.command[0] == str(root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    assert found.command[3] == str(root / "usr/bin/qemu-system-x86_64")
    assert found.version_text == "qemu-system-x86 11.1-1"


@needs_apt
def test_damaged_hardware_is_told_how_to_mend(archive: Archive, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    emulator.fetch(cache, archive.url)
    (cache.root / "qemu-x86/test-amd64/root/usr/bin/qemu-system-x86_64").unlink()
    with pytest.raises(BuildError, match=r"no loader or no QEMU in it.*remove the directory"):
        emulator.find(cache)


class Ports:
    """Plays the host: its ports, and ``keep_qemu`` behind one of them."""

    def __init__(self, directory: Path, act: Callable[[Ports, list[str]], None]) -> None:
        self.directory = directory
        self._act = act
        self._listeners = {name: self._listen(name) for name in (relay.CONTROL, f"{relay.PREFIX}qmp")}
        self.control: socket.socket
        self.qmp: socket.socket
        self.nonce = ""
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        for listener in self._listeners.values():
            listener.close()

    def say(self, text: str) -> None:
        self.control.sendall(text.encode())

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.directory}/{name}")
        listener.listen()
        listener.settimeout(SECONDS)
        return listener

    def _play(self) -> None:
        self.control, _ = self._listeners[relay.CONTROL].accept()
        with self.control, self.control.makefile("r") as lines:
            _, self.nonce = shlex.split(lines.readline())
            # What the one before has left.
            self.say(f"last words\n0123456789abcdef 137\n{self.nonce} ended\n")
            self.qmp, _ = self._listeners[f"{relay.PREFIX}qmp"].accept()
            with self.qmp:
                _, nonce, *command = shlex.split(lines.readline())
                assert nonce == self.nonce
                self._act(self, command)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], socket.socket]]]:
    with ExitStack() as made:

        def start(act: Callable[[Ports, list[str]], None]) -> tuple[subprocess.Popen[bytes], socket.socket]:
            ports = Ports(tmp_path, act)
            made.callback(ports.close)
            session = tmp_path / "session.json"
            session.write_text(json.dumps({"command": ["qemu"], "env": {"A": "b c"}, "files": {}, "ports": str(tmp_path)}))
            ours, theirs = socket.socketpair()
            made.enter_context(ours)
            ours.settimeout(SECONDS)
            command = [
                sys.executable,
                "-I",
                "-S",
                relay.__file__,
                str(session),
                "-chardev",
                f"socket,id=qmp,fd={theirs.fileno()}",
            ]
            with theirs:
                popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()])
            made.enter_context(popen)
            made.callback(popen.kill)
            return popen, ours

        yield start


def test_a_nested_qemu_is_a_qemu_to_whoever_starts_it(run: Callable[..., tuple[subprocess.Popen[bytes], socket.socket]]) -> None:
    def act(ports: Ports, command: list[str]) -> None:
        assert command == ["env", "A=b c", "qemu", "-chardev", "pipe,id=qmp,path=/dev/ports/nested-qmp"]
        ports.say("warning: in two ")
        assert ports.qmp.recv(100) == b"hello?"
        ports.say(f"parts\nlast words{ports.nonce} 3\n")

    popen, qmp = run(act)
    qmp.sendall(b"hello?")
    said, _ = popen.communicate(timeout=SECONDS)
    assert said == b"warning: in two parts\nlast words\n"
    assert popen.returncode == 3


def test_what_it_said_before_it_ended_arrives(run: Callable[..., tuple[subprocess.Popen[bytes], socket.socket]]) -> None:
    def act(ports: Ports, command: list[str]) -> None:
        ports.qmp.sendall(b"bye" * 200_000)
        ports.say(f"{ports.nonce} 0\n")

    popen, qmp = run(act)
    with qmp.makefile("rb") as stream:
        assert stream.read() == b"bye" * 200_000
    assert popen.wait(SECONDS) == 0


def test_it_ends_by_the_signal_that_the_nested_one_ended_by(
    run: Callable[..., tuple[subprocess.Popen[bytes], socket.socket]],
) -> None:
    popen, _ = run(lambda ports, _: ports.say(f"{ports.nonce} {128 + signal.SIGKILL}\n"))
    assert popen.wait(SECONDS) == -signal.SIGKILL


def test_it_says_so_when_the_host_is_gone(run: Callable[..., tuple[subprocess.Popen[bytes], socket.socket]]) -> None:
    popen, _ = run(lambda ports, _: None)
    said, _ = popen.communicate(timeout=SECONDS)
    assert b"the nested host does not answer" in said
    assert popen.returncode == 127


class Keeper:
    """``keep_qemu`` on a socket in place of a port."""

    def __init__(self, directory: Path) -> None:
        usleep = directory / "usleep"
        usleep.write_text("#!/bin/sh\nexec sleep 0.01\n")
        usleep.chmod(0o755)
        self.pidfile = directory / "pid"
        self.port, theirs = socket.socketpair()
        self.port.settimeout(SECONDS)
        env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "QEMU_PIDFILE": str(self.pidfile)}
        with theirs:
            script = recipes_directory() / IMAGE / "keep_qemu"
            port = theirs.fileno()
            self.popen = subprocess.Popen(["sh", str(script)], stdin=port, stdout=port, env=env, start_new_session=True)
        self.lines = self.port.makefile("rw")

    def ask(self, line: str) -> None:
        self.lines.write(f"{line}\n")
        self.lines.flush()

    def answer(self) -> str:
        return self.lines.readline().rstrip("\n")

    def pid(self) -> int:
        """Return the process number of what runs, which has said that it does."""
        assert self.answer() == "up"
        return int(self.pidfile.read_text())


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(tmp_path)
    yield keeper
    os.killpg(keeper.popen.pid, signal.SIGKILL)
    keeper.popen.wait()
    keeper.lines.close()
    keeper.port.close()


def gone(pid: int) -> bool:
    deadline = Deadline(SECONDS)
    while Path(f"/proc/{pid}").exists():
        deadline.require("the process to end")
        select.select([], [], [], 0.01)
    return True


def test_the_host_runs_what_it_is_told_to_and_says_how_that_ended(keeper: Keeper) -> None:
    keeper.ask("end N1")
    assert keeper.answer() == "N1 ended"
    keeper.ask("""run N1 sh -c 'echo "$1"; echo words >&2; exit 3' - 'two  words'""")
    assert [keeper.answer() for _ in range(3)] == ["two  words", "words", "N1 3"]
    assert not keeper.pidfile.exists()


def test_the_host_kills_the_one_before_for_the_next_one(keeper: Keeper) -> None:
    keeper.ask("run N1 sh -c 'echo up; exec sleep 1000'")
    pid = keeper.pid()
    keeper.ask("end N2")
    # Between them may stand what the shell has to say of it.
    said = [line for line in iter(keeper.answer, "N2 ended") if line.startswith("N")]
    assert said == ["N1 137"]
    assert gone(pid)


def test_the_host_kills_what_nobody_is_connected_to(keeper: Keeper) -> None:
    keeper.ask("run N1 sh -c 'echo up; exec sleep 1000'")
    pid = keeper.pid()
    keeper.port.shutdown(socket.SHUT_WR)
    assert gone(pid)


def stored(prefix: Path, needed: tuple[str, ...] = ("liba.so",)) -> StoredQemu:
    """Return a build of one program, two libraries and a loader."""
    library = prefix / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    (prefix / "usr/bin").mkdir()
    (prefix / "usr/share/qemu").mkdir(parents=True)
    binary = prefix / "usr/bin/qemu-system-ppc64"
    binary.write_bytes(elf(machine=62, needed=needed, interpreter="/lib64/ld-linux-x86-64.so.2"))
    (library / "liba.so").symlink_to("liba.so.1")
    (library / "liba.so.1").write_bytes(elf(machine=62, needed=("libb.so",)))
    (library / "libb.so").write_bytes(elf(machine=62))
    (library / "libunused.so").write_bytes(elf(machine=62))
    (library / "ld-linux-x86-64.so.2").write_bytes(b"loader")
    for name in ("vof.bin", "openbios-ppc"):
        (prefix / "usr/share/qemu" / name).write_bytes(b"firmware")
    return StoredQemu("mine", prefix, (), {}, binary, {})


def test_the_host_gets_a_qemu_with_what_it_needs_and_no_more(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path / "cache"), stored(tmp_path / "prefix")
    archive = payload.obtain(cache, build)
    files = {name for name, fields, _ in entries(archive.read_bytes()) if stat.S_ISREG(fields["mode"])}
    library = "qemu/usr/lib/x86_64-linux-gnu"
    assert files == {
        "qemu/usr/bin/qemu-system-ppc64",
        "qemu/usr/share/qemu/vof.bin",
        *(f"{library}/{name}" for name in ("ld-linux-x86-64.so.2", "liba.so", "libb.so")),
    }
    before = archive.stat()
    assert payload.obtain(cache, build).stat() == before, "it was made again"


def test_a_build_that_lacks_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"mine lacks libc\.so, which qemu-system-ppc64 needs"):
        payload.obtain(Cache(tmp_path / "cache"), stored(tmp_path / "prefix", needed=("libc.so",)))
