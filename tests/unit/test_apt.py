"""apt against a small signed archive of our own: what is sound is taken, and what was tampered with is refused."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_spapr.cache import Cache
from pytest_spapr.debian.apt import AptState
from pytest_spapr.errors import CacheError, MirrorError, VerificationError
from pytest_spapr.progress import NullProgress
from tests.unit.debian_archive import HAS_APT, Archive, Signer, deb

pytestmark = pytest.mark.skipif(not HAS_APT, reason="no apt or no gpg here")

CONTENT = deb({"./usr/bin/tool": b"elf"})
Make = Callable[..., AptState]


class Heard(NullProgress):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.waits = threading.Event()

    def phase(self, text: str) -> None:
        self.phases.append(text)
        if text.startswith("waiting"):
            self.waits.set()


@pytest.fixture
def archive(tmp_path: Path, signer: Signer) -> Archive:
    made = Archive(tmp_path / "mirror", signer)
    made.add("tool", CONTENT, version="2:1.0-1~x", depends="lib")
    made.add("lib", deb({"./usr/lib/lib.so": b"so"}))
    made.publish()
    return made


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def make(tmp_path: Path, archive: Archive, heard: Heard) -> Make:
    def state(**changes: object) -> AptState:
        arguments = {"suites": ["test"], "keyring": archive.signer.keyring, "sleep": lambda _seconds: None, **changes}
        return AptState(Cache(tmp_path / "cache"), archive.url, architecture="amd64", progress=heard, **arguments)  # type: ignore[arg-type]

    return state


def test_packages_come_with_all_that_they_depend_on(make: Make) -> None:
    apt = make()
    assert not apt.has_lists
    apt.update()
    assert apt.has_lists
    packages = apt.resolve(["tool"])
    assert sorted((package.name, package.version) for package in packages) == [("lib", "1.0"), ("tool", "2:1.0-1~x")]
    debs = dict(zip([package.name for package in packages], apt.download(packages), strict=True))
    assert debs["tool"].read_bytes() == CONTENT


def test_what_another_run_is_writing_is_waited_for(make: Make, tmp_path: Path, archive: Archive, heard: Heard) -> None:
    apt, cache = make(), Cache(tmp_path / "cache")
    apt.update()
    packages = [package for package in apt.resolve(["tool"]) if package.name == "tool"]
    shutil.rmtree(archive.root / "pool")
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.extend(apt.download(packages)))
    # As of other suites, whose packages are in the same directory.
    with cache.lock("packages-amd64"):
        path = cache.entry("packages", "amd64") / packages[0].file
        path.write_bytes(CONTENT[:10])
        second.start()
        assert heard.waits.wait(20)
        path.write_bytes(CONTENT)
    second.join(20)
    assert found == [path]


def test_what_was_downloaded_is_not_fetched_again(make: Make, archive: Archive, heard: Heard) -> None:
    apt = make()
    apt.update()
    packages = apt.resolve(["tool"])
    apt.download(packages)
    for path in (archive.root / "pool").iterdir():
        path.unlink()
    heard.phases.clear()
    assert len(make().download(packages)) == 2
    assert heard.phases == []


def test_a_cached_package_that_was_changed_is_fetched_again(make: Make) -> None:
    apt = make()
    apt.update()
    packages = apt.resolve(["lib"])
    (path,) = apt.download(packages)
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + b"!")
    assert apt.download(packages)[0].read_bytes() == sound


def test_a_package_that_was_tampered_with_is_refused(make: Make, archive: Archive, tmp_path: Path) -> None:
    apt = make()
    apt.update()
    packages = apt.resolve(["lib"])
    target = next((archive.root / "pool").glob("lib_*"))
    target.write_bytes(target.read_bytes()[:-1] + b"!")
    with pytest.raises(VerificationError, match=r"does not (match|have)"):
        apt.download(packages)
    assert list((tmp_path / "cache/packages").rglob("lib_*")) == []


def test_an_index_that_was_tampered_with_is_refused(make: Make, archive: Archive, heard: Heard) -> None:
    archive.packages_index.write_bytes(archive.packages_index.read_bytes().replace(b"Version: 1.0", b"Version: 9.9"))
    apt = make()
    with pytest.raises(VerificationError, match=r"does not match its signed hash.*another mirror") as caught:
        apt.update()
    assert archive.url in str(caught.value)
    assert [phase.rpartition("(")[2] for phase in heard.phases[1:]] == ["attempt 2 of 3)", "attempt 3 of 3)"]
    assert not apt.has_lists


def test_a_mirror_in_mid_update_is_tried_again(make: Make, archive: Archive, heard: Heard) -> None:
    sound = archive.packages_index.read_bytes()
    archive.packages_index.write_bytes(sound + b"\n")

    def next_day(_seconds: float) -> None:
        archive.packages_index.write_bytes(sound)

    make(sleep=next_day).update()
    assert len(heard.phases) == 2


def test_a_release_file_that_was_tampered_with_is_refused(make: Make, archive: Archive) -> None:
    archive.in_release.write_bytes(archive.in_release.read_bytes().replace(b"Suite: test", b"Suite: best"))
    with pytest.raises(VerificationError, match="not signed as it must be"):
        make().update()


def test_an_unsigned_archive_is_refused(make: Make, archive: Archive) -> None:
    text = archive.in_release.read_bytes()
    body = text.split(b"\n\n", 1)[1].split(b"-----BEGIN PGP SIGNATURE", 1)[0]
    archive.in_release.unlink()
    (archive.in_release.parent / "Release").write_bytes(body)
    apt = make()
    with pytest.raises(VerificationError, match="not signed as it must be"):
        apt.update()
    with pytest.raises(MirrorError):
        apt.resolve(["tool"])


def test_an_archive_signed_with_another_key_is_refused(make: Make) -> None:
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        other = Signer(Path(home))
        try:
            with pytest.raises(VerificationError, match="does not have the key"):
                make(keyring=other.keyring).update()
        finally:
            other.close()


def test_the_hosts_laxness_and_hooks_do_not_apply(
    make: Make, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = tmp_path / "apt.conf"
    lax.write_text(
        'Acquire::AllowInsecureRepositories "true"; APT::Get::AllowUnauthenticated "true"; APT::Default-Release "other";\n'
        f'APT::Update::Pre-Invoke {{ "touch {tmp_path}/ran"; }}; APT::Update::Post-Invoke {{ "touch {tmp_path}/ran"; }};\n'
        f'APT::Update::Post-Invoke-Success {{ "touch {tmp_path}/ran"; }}; DPkg::Post-Invoke {{ "touch {tmp_path}/ran"; }};\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(lax))
    apt = make()
    apt.update()
    assert not (tmp_path / "ran").exists()
    assert apt.resolve(["lib"])
    archive.in_release.rename(archive.in_release.with_name("Release"))
    for state in (apt, make(keyring=_copy(archive.signer.keyring, tmp_path))):  # one that knows it signed, and a new one
        with pytest.raises(VerificationError, match="not signed as it must be"):
            state.update()


def test_the_hosts_proxy_and_login_settings_go_on_working(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "apt.conf"
    host.write_text('Acquire::http::Proxy "http://proxy.invalid:3128"; Acquire::https::CaInfo "/etc/own-ca.pem";\n')
    monkeypatch.setenv("APT_CONFIG", str(host))
    command = ["apt-config", "-c", str(make()._state / "apt.conf"), "dump"]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'Acquire::http::Proxy "http://proxy.invalid:3128";' in dump
    assert 'Acquire::https::CaInfo "/etc/own-ca.pem";' in dump
    assert 'Dir::Etc::netrcparts "auth.conf.d";' in dump
    assert 'Dir::Etc::sourceparts "/dev/null";' in dump


def _copy(keyring: Path, directory: Path) -> Path:
    """The same keys under another name: apt's state goes by the name, so it is a new one."""
    (directory / "keys.gpg").write_bytes(keyring.read_bytes())
    return directory / "keys.gpg"


def test_lists_that_are_older_than_the_mirror_are_brought_up_to_date(make: Make, archive: Archive, heard: Heard) -> None:
    make().fetch(["lib"])
    next((archive.root / "pool").glob("lib_*")).unlink()
    archive.add("lib", deb({"./usr/lib/lib.so": b"newer"}), version="2.0")
    archive.publish()
    assert [package.version for package in make().fetch(["lib"])] == ["1.0"], "it is in the cache"
    for path in make()._packages.iterdir():
        path.unlink()
    heard.phases.clear()
    assert [package.version for package in make().fetch(["lib"])] == ["2.0"]
    assert [phase.split()[0] for phase in heard.phases] == ["fetching", "bringing", "fetching", "fetching"]


def test_the_newest_packages_are_had_on_request(make: Make, archive: Archive) -> None:
    make().fetch(["lib"])
    archive.add("lib", deb({"./usr/lib/lib.so": b"newer"}), version="2.0")
    archive.publish()
    assert [package.version for package in make().fetch(["lib"], newest=True)] == ["2.0"]


def test_only_what_is_wanted_is_downloaded(make: Make) -> None:
    assert [package.name for package in make().fetch(["tool"], lambda package: package.name != "lib")] == ["tool"]


def test_a_suite_that_the_mirror_lacks_is_named(make: Make) -> None:
    with pytest.raises(MirrorError, match=r"nonesuch.*does not serve what is needed.*--spapr-debian-mirror"):
        make(suites=["nonesuch"]).update()


def test_a_package_that_no_suite_has_is_named(make: Make) -> None:
    apt = make()
    apt.update()
    with pytest.raises(MirrorError, match=r"does not have what is asked for.*nonesuch"):
        apt.resolve(["nonesuch"])


def test_a_package_that_left_the_mirror_is_named_after_the_retries(make: Make, archive: Archive, heard: Heard) -> None:
    apt = make()
    apt.update()
    packages = apt.resolve(["lib"])
    next((archive.root / "pool").glob("lib_*")).unlink()
    heard.phases.clear()
    with pytest.raises(MirrorError, match=r"lib_1.0_amd64.deb"):
        apt.download(packages)
    assert len(heard.phases) == 3


def test_a_host_without_archive_keys_is_told_what_to_install(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_spapr.debian.apt._KEYRINGS", (tmp_path / "none.gpg",))
    with pytest.raises(VerificationError, match="install debian-archive-keyring"):
        AptState(Cache(tmp_path / "cache"), archive.url, ["test"], "amd64", NullProgress())


def test_a_full_disk_is_a_cache_error(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "bin"
    host.mkdir()
    (host / "apt-get").write_text("#!/bin/sh\necho 'E: Write error - write (28: No space left on device)'\nexit 100\n")
    (host / "apt-get").chmod(0o755)
    apt = make()
    monkeypatch.setenv("PATH", f"{host}:/usr/bin:/bin")
    with pytest.raises(CacheError, match=r"no space left.*SPAPR_CACHE_DIR"):
        apt.update()


def test_a_cache_whose_name_apt_cannot_take_is_refused(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(CacheError, match="SPAPR_CACHE_DIR"):
        AptState(Cache(tmp_path / 'a"b'), archive.url, ["test"], "amd64", NullProgress(), keyring=archive.signer.keyring)
