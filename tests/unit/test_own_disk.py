"""Disks of the user's own: what is taken for one, what is written in its stead, who logs in, and what is told of a wrong word."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pycdlib
import pytest

from pytest_spapr import config
from pytest_spapr.cache import Cache
from pytest_spapr.deadline import Deadline
from pytest_spapr.errors import BootFailed, ConfigError, GuestError, ImageError, LoginRefused, SshFailed
from pytest_spapr.guest.boot import await_login
from pytest_spapr.guest.completed import Completed
from pytest_spapr.guest.ssh import Ssh
from pytest_spapr.guest.strange import prepare
from pytest_spapr.hotplug.contract import Contract
from pytest_spapr.hotplug.outcome import Kind, Outcome
from pytest_spapr.images import keys, seed
from pytest_spapr.images.disk import About, Overlay, OwnDisk, is_disk, open_disk, overlay_for, write_empty
from pytest_spapr.images.login import Login, given_login, require_host_key
from pytest_spapr.progress import NullProgress
from pytest_spapr.qemu.argv import Channels, MachineSpec, argv
from pytest_spapr.starts import Starter
from pytest_spapr.supply import check_named
from pytest_spapr.timeline import Lane, Timeline

from .ssh_server import SshServer
from .test_templates_make import build

ROOT = Login(key=Path("/key"))
MIB = 1 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "mine.raw"
    path.write_bytes(bytes(MIB))
    return path


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "private"
    directory.mkdir()
    monkeypatch.setattr("pytest_spapr.private.private_directory", lambda: directory)
    return directory


class TestWhatIsADisk:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.qcow2", bytes(512), "is no qcow2: it does not begin with QFI"),
            ("a.qcow2", b"QFI\xfb\0\0\0\x03", "is cut off: it has less than a qcow2's header"),
            ("a.raw", b"QFI\xfb" + bytes(508), "is a qcow2, whatever its name says"),
            ("a.raw", b"", "is no disk: 0 bytes are no whole sectors of 512"),
            ("a.raw", bytes(700), "is no disk: 700 bytes are no whole sectors of 512"),
            ("a.img", bytes(512), r"is neither a directory nor a qcow2, and its name does not end in \.qcow2 or \.raw"),
        ],
    )
    def test_what_is_none_is_told_with_what_was_expected(self, tmp_path: Path, name: str, content: bytes, words: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageError, match=f"{path} {words}.*Expected is a recipe's name .*NAME.qcow2 or NAME.raw"):
            open_disk(path, ROOT)

    def test_one_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"none.raw: No such file or directory\. Expected is"):
            open_disk(tmp_path / "none.raw", ROOT)

    def test_an_encrypted_one_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "a.qcow2"
        write_empty(path, MIB)
        with path.open("r+b") as stream:
            stream.seek(32)
            stream.write(struct.pack(">I", 1))
        with pytest.raises(ImageError, match="is encrypted"):
            open_disk(path, ROOT)

    def test_a_qcow2_is_known_by_its_beginning_and_says_its_size(self, tmp_path: Path) -> None:
        path = tmp_path / "no-suffix"
        write_empty(path, 7 * MIB)
        assert is_disk(str(path))
        found = open_disk(path, ROOT)
        assert (found.format, found.size) == ("qcow2", 7 * MIB)

    @pytest.mark.parametrize(("name", "disk"), [("a.qcow2", True), ("b/a.raw", True), ("debian-12", False), ("./", False)])
    def test_names(self, name: str, disk: bool) -> None:
        assert is_disk(name) is disk

    def test_it_has_nothing_of_an_image_and_says_so(self, raw: Path) -> None:
        disk = open_disk(raw, ROOT)
        for ask in ("kernel", "initramfs", "client_key"):
            with pytest.raises(ImageError, match=f"mine.raw is a disk of your own: this needs the {ask.replace('_', ' ')} of"):
                getattr(disk, ask)

    def test_what_a_boot_showed_is_told(self, raw: Path) -> None:
        disk = open_disk(raw, ROOT).known(About("6.1-x", 4096, ("rtas_errd", "drmgr")))
        assert disk.kernel_text == "Linux 6.1-x without rtas_errd and drmgr"
        assert (disk.page_size, disk.login) == (4096, ROOT)


class TestOverlay:
    @pytest.mark.parametrize(("size", "clusters"), [(512, 4), (512 * MIB, 4), (5 << 40, 5)])
    def test_an_empty_one_maps_as_much_as_the_disk_has(self, tmp_path: Path, size: int, clusters: int) -> None:
        path = tmp_path / "a.qcow2"
        write_empty(path, size)
        data = path.read_bytes()
        magic, version, backing, _, bits, said = struct.unpack(">4sIQIIQ", data[:32])
        assert (magic, version, backing, bits, said) == (b"QFI\xfb", 3, 0, 16, size)
        entries, mapping = struct.unpack(">IQ", data[36:48])
        assert entries * 512 * MIB >= size
        assert len(data) == clusters << 16 == mapping + ((clusters - 3) << 16)
        assert data[mapping:] == bytes(len(data) - mapping)
        assert data[2 << 16 : 3 << 16].rstrip(b"\0") == b"\0\1" * clusters

    def test_the_disk_is_only_read_and_its_format_is_named(self, tmp_path: Path, private: Path) -> None:
        path = tmp_path / "a,b.raw"
        path.write_bytes(bytes(512))
        line = " ".join(Overlay.of(open_disk(path, ROOT)).arguments)
        assert f"driver=file,node-name=own-file,filename={tmp_path}/a,,b.raw,read-only=on" in line
        assert "driver=raw,node-name=own,file=own-file,read-only=on" in line
        assert f"filename={private}/disk-{os.getpid()}-" in line
        assert "driver=qcow2,node-name=root,file=root-file,backing=own" in line
        assert "seed" not in line

    def test_what_killed_runs_left_is_removed_and_what_lives_is_not(self, raw: Path, private: Path) -> None:
        dead, alive = private / "disk-999999999-1.qcow2", private / f"disk-{os.getppid()}-1.qcow2"
        for path in (dead, alive):
            path.touch()
        Overlay.of(open_disk(raw, ROOT)).close()
        assert list(private.iterdir()) == [alive]

    def test_what_another_process_of_our_number_left_is_removed_and_ours_is_not(self, raw: Path, private: Path) -> None:
        """As in a container, in which pytest has the same number each time."""
        for number in range(100):
            (private / f"disk-{os.getpid()}-{number}.qcow2").touch()
        (private / f"disk-{os.getpid()}-0011aabb-1.qcow2").touch()
        first, second = Overlay.of(open_disk(raw, ROOT)), Overlay.of(open_disk(raw, ROOT))
        assert set(private.iterdir()) == {first.path, second.path}

    def test_it_goes_with_a_start_that_fails_and_else_with_the_machine(self, raw: Path, private: Path) -> None:
        at_end: list[Any] = []
        with pytest.raises(ZeroDivisionError), overlay_for(open_disk(raw, ROOT), at_end):
            raise ZeroDivisionError
        assert (at_end, list(private.iterdir())) == ([], [])
        with overlay_for(open_disk(raw, ROOT), at_end) as overlay:
            pass
        assert overlay is not None
        assert overlay.path.exists()
        at_end.pop()()
        assert not list(private.iterdir())

    def test_slof_boots_it_and_no_kernel_is_given(self, raw: Path, private: Path) -> None:
        disk = open_disk(raw, ROOT)
        overlay = Overlay.of(disk)
        line = argv(build(), MachineSpec(), disk, Channels(1, 2, 3, 4, 5), overlay=overlay)
        assert not {"-kernel", "-initrd", "-append"} & set(line)
        assert line[line.index("-machine") + 1] == "pseries"
        for shape in ({"firmware": "vof"}, {"kernel_args": ("quiet",)}):
            with pytest.raises(ConfigError, match="a disk of your own is booted by SLOF and its own boot loader"):
                argv(build(), MachineSpec(**shape), disk, Channels(1, 2, 3, 4, 5), overlay=overlay)

    def test_it_is_booted_and_not_cloned(self, raw: Path, tmp_path: Path) -> None:
        starter = Starter(Cache(tmp_path / "cache"), MIB)
        shared: Any = SimpleNamespace(build=build())
        template, why = starter._template(shared, MachineSpec(), open_disk(raw, ROOT), Timeline(), NullProgress())
        assert (template, why) == (None, "a disk of your own has no console shell, which gives a clone the time and entropy")


class TestOptions:
    def test_what_does_not_go_together_is_a_usage_error(self, raw: Path, tmp_path: Path) -> None:
        key, word = tmp_path / "key", tmp_path / "word"
        for path in (key, word):
            path.touch(mode=0o600)
            path.write_text("secret\n")
        disk = {"image": str(raw)}
        for given, words in (
            ({"ssh_key": str(key)}, "--spapr-ssh-key=.* is for a disk of your own: give it with --spapr-image=DISK.qcow2"),
            ({"image": "debian-12", "ssh_user": "me"}, "--spapr-ssh-user=me is for a disk of your own"),
            (disk | {"ssh_user": "me"}, "--spapr-ssh-user=me names a user but not how to log in: give --spapr-ssh-key or"),
            (disk | {"ssh_user": "-oX", "ssh_key": str(key)}, "--spapr-ssh-user=-oX: this is no name of a user"),
            (disk | {"ssh_key": str(key), "ssh_password_file": str(word)}, "give one of them, a key or a password"),
            (disk | {"ssh_key": str(tmp_path / "none")}, "--spapr-ssh-key=.*none: No such file or directory"),
            (disk | {"ssh_key": str(tmp_path)}, "--spapr-ssh-key=.*: this is no file"),
            (disk | {"kernel": str(key)}, "--spapr-kernel=.*mine.raw is a disk, which its own boot loader boots"),
            (disk | {"kernel_args": "quiet"}, "--spapr-kernel-args=quiet: .*mine.raw is a disk"),
            (disk | {"firmware": "vof"}, "--spapr-firmware=vof: .*mine.raw is a disk, which only SLOF boots"),
            ({"image": str(key)}, "--spapr-image=.*key is neither a directory nor a qcow2"),
        ):
            with pytest.raises(ConfigError, match=words):
                check_named(config.read(given, environment={}))

    @pytest.mark.parametrize("option", ["ssh_key", "ssh_password_file"])
    def test_a_file_that_others_can_read_is_refused(self, raw: Path, tmp_path: Path, option: str) -> None:
        path = tmp_path / "file"
        path.write_text("secret\n")
        path.chmod(0o640)
        with pytest.raises(ConfigError, match=r"others than its owner may read or write it \(mode 640\): chmod 600 it") as told:
            given_login(config.read({"image": str(raw), option: str(path)}, environment={}))
        assert "secret" not in str(told.value)

    @pytest.mark.parametrize(("text", "count"), [("", 0), ("\n", 1), ("one\ntwo\n", 2)])
    def test_a_password_is_one_line(self, raw: Path, tmp_path: Path, text: str, count: int) -> None:
        path = tmp_path / "word"
        path.touch(mode=0o600)
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"one line is expected, the password; it has {count}"):
            given_login(config.read({"image": str(raw), "ssh_password_file": str(path)}, environment={}))

    def test_a_password_is_shown_by_nothing(self, raw: Path, tmp_path: Path) -> None:
        path = tmp_path / "word"
        path.touch(mode=0o600)
        path.write_text("secret\n")
        login = given_login(config.read({"image": str(raw), "ssh_password_file": str(path), "ssh_user": "me"}, environment={}))
        assert login is not None
        assert (login.user, login.key, login.password) == ("me", None, "secret")
        assert "secret" not in repr(login)
        assert "secret" not in repr(open_disk(raw, login))


class TestHostKeys:
    def test_one_is_taken_without_its_comment(self) -> None:
        public = keys.generate().host_public
        assert require_host_key(f"{public} root@x\n", "here") == public

    @pytest.mark.parametrize("key", ["", "\n", "  "])
    def test_an_empty_one_is_refused(self, key: str) -> None:
        with pytest.raises(ConfigError, match="here: the ssh host key is empty; a line `ssh-ed25519 AAAA"):
            require_host_key(key, "here")

    def test_a_malformed_one_is_refused(self) -> None:
        public = keys.generate().host_public
        for key in ("ssh-ed25519", "ssh-ed25519 AAAA", public[:-8], public.replace("ssh-ed25519", "ssh-rsa"), "ssh-ed25519 *"):
            with pytest.raises(ConfigError, match=r"here: .* is no ssh host key; a line `ssh-ed25519 AAAA"):
                require_host_key(key, "here")


class TestSeed:
    def test_cloud_init_finds_its_files_and_we_know_the_keys(self, tmp_path: Path) -> None:
        made = seed.obtain(Cache(tmp_path))
        again = seed.obtain(Cache(tmp_path))
        assert made == again
        data = made.iso.read_bytes()
        # The volume's identifier in the first descriptor of ISO 9660.
        assert data[32768 + 40 : 32768 + 72].rstrip() == b"cidata"
        image = pycdlib.PyCdlib()
        image.open_fp(io.BytesIO(data))
        for facade in ("rr_path", "joliet_path"):
            texts = {}
            for name in ("meta-data", "user-data"):
                out = io.BytesIO()
                image.get_file_from_iso_fp(out, **{facade: f"/{name}"})
                texts[name] = out.getvalue().decode()
            assert texts["user-data"].startswith("#cloud-config\n")
            assert "instance-id: " in texts["meta-data"]
            assert made.host_key in texts["user-data"]
        assert made.login.key is not None
        for path in (made.login.key, made.iso):
            assert path.stat().st_mode & 0o077 == 0

    def test_it_says_what_cloud_init_reads(self) -> None:
        yaml = pytest.importorskip("yaml")
        fresh = keys.generate()
        said = yaml.safe_load(seed.user_data(fresh))
        assert said["ssh_authorized_keys"] == [fresh.client_public]
        assert said["disable_root"] is False
        assert said["ssh_keys"] == {
            "ed25519_private": fresh.host_openssh.decode(),
            "ed25519_public": fresh.host_public,
        }

    def test_a_damaged_one_is_told(self, tmp_path: Path) -> None:
        made = seed.obtain(Cache(tmp_path))
        (made.iso.parent / "host_key.pub").write_text("")
        with pytest.raises(ConfigError, match="the ssh host key is empty"):
            seed.obtain(Cache(tmp_path))

    def test_it_is_a_cd_beside_the_disk(self, raw: Path, private: Path) -> None:
        line = " ".join(Overlay.of(open_disk(raw, ROOT, seed=Path("/s.iso"))).arguments)
        assert "driver=file,node-name=seed-file,filename=/s.iso,read-only=on" in line
        assert line.endswith("-device scsi-cd,drive=seed,bus=vscsi.0")


class _Guest:
    """Answers as told. :ivar commands: what it was asked."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.commands: list[str] = []
        self._answers = list(answers)

    def run(self, command: str, *, seconds: float | None = None) -> Completed:
        self.commands.append(command)
        stdout, stderr = self._answers.pop(0)
        return Completed(command, 0, stdout, stderr)


class TestStrangers:
    @pytest.mark.parametrize(
        ("has", "lacks"),
        [("has rtas_errd\nhas drmgr\n", ()), ("has drmgr\n", ("rtas_errd",)), ("", ("rtas_errd", "drmgr"))],
    )
    def test_what_is_missing_for_pci_hotplug_is_found(self, has: str, lacks: tuple[str, ...]) -> None:
        guest = _Guest(("0\n", ""), (f"release 6.1.0-50-powerpc64le\npage 65536\n{has}", ""))
        assert prepare(guest, Deadline(9)) == About("6.1.0-50-powerpc64le", 65536, lacks)

    def test_who_is_not_root_is_told_of_sudo(self) -> None:
        with pytest.raises(
            GuestError, match=r"do not run as root in the guest: sudo: a password is required.*needs sudo without"
        ):
            prepare(_Guest(("", "sudo: a password is required\n")), Deadline(9))

    def test_a_kernel_that_says_nothing_of_itself_is_told(self) -> None:
        with pytest.raises(GuestError, match="does not say which kernel it runs"):
            prepare(_Guest(("0\n", ""), ("", "sh: syntax error")), Deadline(9))


def _echo(channel: Any, command: str) -> int:
    channel.sendall(f"{command}\n".encode())
    return 0


class TestLogins:
    def test_a_host_key_that_nobody_knows_is_learnt_once(self) -> None:
        first, second = keys.generate(), keys.generate()
        login = Login(password="secret")
        for host in (first, second):
            server = SshServer(host, "", _echo, password="secret")
            try:
                ssh = Ssh(port=server.port, login=login, host_key=None, timeline=Timeline())
                ssh.connect(Deadline(20))
                # The server's key is the one that it calls its client's.
                assert ssh.host_key == host.client_public
                ssh.close()
                known = Ssh(port=server.port, login=login, host_key=first.client_public, timeline=Timeline())
                if host is second:
                    with pytest.raises(SshFailed, match=r"the guest's host key is .*, not the one that is known"):
                        known.connect(Deadline(20))
                else:
                    known.connect(Deadline(20))
                known.close()
            finally:
                server.close()

    def test_a_wrong_password_is_told_and_not_shown(self) -> None:
        server = SshServer(keys.generate(), "", _echo, password="right")
        try:
            ssh = Ssh(port=server.port, login=Login(password="secret"), host_key=None, timeline=Timeline())
            with pytest.raises(LoginRefused, match="it does not let root in with the password that was given") as told:
                ssh.connect(Deadline(20))
            assert "secret" not in str(told.value)
        finally:
            server.close()

    def test_another_user_than_root_becomes_root_for_each_command(self, tmp_path: Path) -> None:
        pair = keys.generate()
        key = tmp_path / "key"
        key.write_bytes(pair.client_private)
        server = SshServer(keys.generate(), pair.client_public, _echo, user="me")
        timeline = Timeline()
        try:
            ssh = Ssh(port=server.port, login=Login("me", key), host_key=None, timeline=timeline)
            ssh.connect(Deadline(20))
            assert ssh.run("echo it's", Deadline(20)).stdout == "sudo -n sh -c 'echo it'\"'\"'s'\n"
            assert ssh.command_line().endswith(" me@127.0.0.1")
            ssh.close()
        finally:
            server.close()


class _Ssh:
    """Refuses so often. :ivar tries: how often it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.tries = 0
        self._errors = list(errors)

    def connect(self, deadline: Deadline) -> None:
        self.tries += 1
        if self._errors:
            raise self._errors.pop(0)


class TestComingUp:
    def test_it_is_asked_until_it_lets_us_in(self) -> None:
        ssh: Any = _Ssh(SshFailed("not up"), LoginRefused("not yet"))
        await_login(ssh, Timeline(), 0, Deadline(30))
        assert ssh.tries == 3

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("Kernel panic - not syncing: VFS: no root", "its kernel panicked: VFS: no root"),
            ("E3407: Load failed", "its firmware finds nothing to boot on the disk: E3407: Load failed"),
        ],
    )
    def test_what_cannot_come_up_ends_the_wait(self, line: str, words: str) -> None:
        timeline = Timeline()
        timeline.record(Lane.CONSOLE, line)
        ssh: Any = _Ssh(SshFailed("not up"))
        with pytest.raises(BootFailed, match=words):
            await_login(ssh, timeline, 0, Deadline(30))
        assert ssh.tries == 1

    def test_a_refusal_that_lasts_ends_the_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pytest_spapr.guest.boot._REFUSED_SECONDS", 0.0)
        ssh: Any = _Ssh(LoginRefused("does not let root in"))
        with pytest.raises(BootFailed, match="does not let root in"):
            await_login(ssh, Timeline(), 0, Deadline(30))

    def test_the_end_of_the_time_is_told_with_what_was_last(self) -> None:
        ssh: Any = _Ssh(SshFailed("no answer"))
        with pytest.raises(BootFailed, match="no answer"):
            await_login(ssh, Timeline(), 0, Deadline(0))


def test_who_has_no_rtas_errd_keeps_pci_devices_and_gives_up_others() -> None:
    guest = Contract(build().features, "6.1.0-50-powerpc64le", rtas_errd=False)
    card, core = SimpleNamespace(kind=Kind.PCI), SimpleNamespace(kind=Kind.CORE)
    assert guest.removal(card).outcome is Outcome.PENDING
    assert guest.removal(card) is guest.silence(card, cause="rtas_errd absent")
    assert guest.removal(SimpleNamespace(kind=Kind.PHB)).outcome is Outcome.PENDING
    assert guest.removal(core).outcome is Outcome.REMOVED


def test_own_disks_are_told_apart_by_what_they_are(raw: Path) -> None:
    disk = open_disk(raw, ROOT)
    assert isinstance(disk, OwnDisk)
    assert disk != open_disk(raw, ROOT)
    assert repr(disk) == f"<OwnDisk {raw}>"
