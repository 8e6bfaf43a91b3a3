"""What KVM cannot give a machine here, as a QEMU says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr.qemu.build import probe
from pytest_spapr.qemu.capabilities import lacking

from . import fake_qemu

_CFPC = "Requested safe cache capability level not supported by KVM\\nTry appending -machine cap-cfpc=broken"
_CCF = "Requested count cache flush assist capability level not supported by KVM\\nTry appending -machine cap-ccf-assist=off"
_PAGES = "Can't support 64 kiB guest pages with 4 kiB host pages with this KVM implementation"


def qemu(path: Path, refusals: dict[str, str]) -> Path:
    """Write a QEMU that starts a machine only with each of the properties, of which it names one at a time, to the file ``started``."""
    checks = "".join(
        f'case "$*" in *{name}*) ;; *) printf "qemu-system-ppc64: {said}\\n" >&2; exit 1 ;; esac\n'
        for name, said in refusals.items()
    )
    path.write_text(f'#!/bin/sh\necho "$*" >>{path.parent}/started\n{checks}cat >/dev/null\n')
    path.chmod(0o755)
    return path


def test_most_hosts_lack_nothing(tmp_path: Path) -> None:
    assert lacking([str(qemu(tmp_path / "qemu", {}))], {}) == ()
    [line] = (tmp_path / "started").read_text().splitlines()
    assert "-machine pseries -accel kvm -cpu host" in line


def test_it_is_asked_until_it_starts(tmp_path: Path) -> None:
    binary = qemu(tmp_path / "qemu", {"cap-cfpc=broken": _CFPC, "cap-hpt-max-page-size=4k": _PAGES, "cap-ccf-assist=off": _CCF})
    assert lacking([str(binary)], {}) == ("cap-cfpc=broken", "cap-hpt-max-page-size=4k", "cap-ccf-assist=off")


@pytest.mark.parametrize("said", ["Could not access KVM kernel module", _CFPC], ids=["another reason", "the same again"])
def test_what_no_property_mends_ends_it(tmp_path: Path, said: str) -> None:
    assert len(lacking([str(qemu(tmp_path / "qemu", {"nothing": said}))], {})) <= 1
    assert len((tmp_path / "started").read_text().splitlines()) <= 2


def test_a_qemu_that_is_not_there_is_no_matter_of_this(tmp_path: Path) -> None:
    assert lacking([str(tmp_path / "gone")], {}) == ()


def test_a_build_knows_it_where_kvm_works(tmp_path: Path) -> None:
    works = {"query-kvm": [{"return": {"present": True, "enabled": True}}]}
    inner = fake_qemu.install(tmp_path / "inner", works)
    binary = qemu(tmp_path / "qemu", {})
    binary.write_text(
        f"""#!/bin/sh
case "$*" in
*"-machine pseries -accel kvm"*) printf 'Try appending -machine cap-ibs=broken\\n' >&2; exit 1 ;;
*) exec {inner} "$@" ;;
esac
"""
    )
    assert probe([str(binary)], {}, binary, None, "mine").kvm_properties == ("cap-ibs=broken",)
    plain = fake_qemu.install(tmp_path / "plain")
    assert probe([str(plain)], {}, plain, None, "mine").kvm_properties == ()
