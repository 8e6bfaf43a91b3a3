"""What the errors say, and that callers can tell them apart."""

from __future__ import annotations

import inspect
import re

import pytest

from pytest_spapr import errors


def classes() -> list[type[Exception]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_all_have_one_root_and_none_is_a_tests_own_failure() -> None:
    assert classes()
    for kind in classes():
        assert issubclass(kind, errors.SpaprError)
        assert not issubclass(kind, AssertionError)


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {kind.__name__ for kind in classes() if not kind.__name__.startswith("_")} - {"SpaprError"}


@pytest.mark.parametrize("kind", [errors.LaunchFailed, errors.MachineDied])
def test_the_end_of_a_qemu(kind: type[errors.MachineDied]) -> None:
    error = kind("QEMU was killed by SIGABRT", -6, ["free(): invalid pointer", "second"])
    assert str(error) == "QEMU was killed by SIGABRT\nQEMU's last words:\n  free(): invalid pointer\n  second"
    assert error.exit_status == -6
    assert error.stderr == ("free(): invalid pointer", "second")
    assert str(kind("QEMU ended", 1)) == "QEMU ended\nQEMU said nothing on stderr."


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.DeadlineExpired("the guest", 1.25), "waited 1.2 s in vain for the guest"),
        (errors.DeadlineExpired("the guest", 60, "it sleeps"), "waited 60.0 s in vain for the guest: it sleeps"),
        (
            errors.QmpRefused("device_del", "DeviceNotFound", "Device 'x' not found"),
            "device_del: DeviceNotFound: Device 'x' not found",
        ),
        (errors.CommandFailed("ls /x", 1, "out\n", "no such file\n"), "guest command `ls /x` ended with status 1: no such file"),
        (errors.CommandFailed("false", 1, "out\n", ""), "guest command `false` ended with status 1: out"),
        (errors.CommandFailed("false", 1, "", ""), "guest command `false` ended with status 1"),
        (errors.BootFailed("it hangs", "init: started"), "it hangs"),
    ],
)
def test_what_an_error_says(error: errors.SpaprError, text: str) -> None:
    assert str(error) == text


def test_a_boot_that_failed_knows_its_phase() -> None:
    assert errors.BootFailed("it hangs", "init: started").phase == "init: started"
