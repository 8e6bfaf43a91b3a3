from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import config
from pytest_spapr.debian.mirror import find_mirror, mirror_of
from pytest_spapr.errors import ConfigError, MirrorError

DEBIAN = "http://mirror.invalid/debian/\tbookworm\tDebian\tDebian"
SECURITY = "http://mirror.invalid/debian-security/\tbookworm-security\tDebian\tDebian-Security"
UBUNTU = "http://mirror.invalid/ubuntu/\tnoble\tUbuntu\tUbuntu"
OTHER = "http://mirror.invalid/node/\tnodistro\tnode\tnode"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose apt-get prints what the test wrote into the files `with` and `without` (release information)."""
    for tool in ("apt-config", "dpkg-deb"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").write_text(
        f'#!/bin/sh\ncase "$2" in --release-info) cat {tmp_path}/with;; *) cat {tmp_path}/without;; esac\n'
    )
    for tool in ("apt-get", "apt-config", "dpkg-deb"):
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    say(tmp_path, [], [])
    return tmp_path


def say(host: Path, known: list[str], bare: list[str]) -> None:
    (host / "with").write_text("".join(f"{line}\n" for line in known))
    (host / "without").write_text("".join(f"{line}\n" for line in bare))


def unsaid(line: str) -> str:
    """What apt-get prints where it has no Release file: the variables stay as they are."""
    uri, release, *_ = line.split("\t")
    return f"{uri}\t{release}\t$(ORIGIN)\t$(LABEL)"


def test_the_hosts_own_debian_mirror_is_taken(apt: Path) -> None:
    say(apt, [OTHER, SECURITY, DEBIAN], [])
    assert find_mirror() == "http://mirror.invalid/debian"


def test_an_archive_whose_release_file_says_debian_is_taken_whatever_its_address(apt: Path) -> None:
    say(apt, ["http://cache.invalid/remote/deb-main/\tbookworm\tDebian\tDebian"], [])
    assert find_mirror() == "http://cache.invalid/remote/deb-main"


def test_without_downloaded_lists_the_address_decides(apt: Path) -> None:
    say(apt, [], [unsaid(OTHER), unsaid(SECURITY), unsaid(DEBIAN)])
    assert find_mirror() == "http://mirror.invalid/debian"


def test_a_mirror_list_file_is_taken(apt: Path) -> None:
    say(apt, [], ["mirror+file:/etc/apt/mirrors/debian.list\tbookworm\t$(ORIGIN)\t$(LABEL)"])
    assert find_mirror() == "mirror+file:/etc/apt/mirrors/debian.list"


@pytest.mark.parametrize("lines", [[], [UBUNTU, OTHER], [SECURITY]])
def test_a_host_without_debian_is_told_what_to_give_instead(apt: Path, lines: list[str]) -> None:
    say(apt, lines, [unsaid(line) for line in lines])
    with pytest.raises(MirrorError) as caught:
        find_mirror()
    for word in ("--spapr-debian-mirror", "SPAPR_DEBIAN_MIRROR", "--spapr-qemu", "--spapr-image=DIRECTORY"):
        assert word in str(caught.value)


def test_a_host_without_apt_is_told_what_to_give_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MirrorError, match=r"no apt-get.*--spapr-qemu=PATH and --spapr-image=DIRECTORY"):
        find_mirror()


def test_an_apt_that_fails_is_quoted(apt: Path) -> None:
    (apt / "apt-get").write_text("#!/bin/sh\necho 'E: Malformed entry 1' >&2\nexit 100\n")
    with pytest.raises(MirrorError, match="Malformed entry 1"):
        find_mirror()


def test_the_users_setting_wins_and_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mirror("https://mirror.invalid/debian/") == "https://mirror.invalid/debian"


@pytest.mark.parametrize("setting", ["mirror.invalid/debian", "/srv/debian", "ftp://mirror.invalid/debian"])
def test_a_setting_that_is_no_url_is_refused(setting: str) -> None:
    with pytest.raises(MirrorError, match="not an http:, https: or file: URL"):
        find_mirror(setting)


def test_offline_there_is_none() -> None:
    given = {"debian_mirror": "http://mirror.invalid/debian/"}
    assert mirror_of(config.read(given, environment={}), "a tool", "Run it") == "http://mirror.invalid/debian"
    words = r"^a tool is not in the cache, and --spapr-offline forbids to fetch it\. Run it once, online\.$"
    with pytest.raises(ConfigError, match=words):
        mirror_of(config.read({**given, "offline": True}, environment={}), "a tool", "Run it")
