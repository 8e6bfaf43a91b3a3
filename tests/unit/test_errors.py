"""What the errors say and carry."""

from __future__ import annotations

import pytest

from pytest_spapr import errors
from pytest_spapr.errors import CommandFailed, DeadlineExpired, LaunchFailed, MachineDied, QmpRefused, SpaprError


def test_one_root_and_no_assertion_among_them() -> None:
    """CI tells a broken contract (AssertionError) from broken infrastructure by the class."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 10
    for made in classes:
        assert issubclass(made, SpaprError)
        assert not issubclass(made, AssertionError)


def test_the_tree_in_the_docstring_is_complete() -> None:
    assert errors.__doc__ is not None
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_"):
            assert name in errors.__doc__


def test_a_deadline_says_what_was_waited_for_and_how_long() -> None:
    error = DeadlineExpired("the guest's ssh port", 12.34)
    assert str(error) == "waited 12.3 s in vain for the guest's ssh port"
    assert (error.what, error.seconds) == ("the guest's ssh port", 12.34)
    assert str(DeadlineExpired("x", 1, "it wrote ''")) == "waited 1.0 s in vain for x: it wrote ''"


def test_an_end_has_the_last_words() -> None:
    died = MachineDied("QEMU (pid 7) was killed by SIGABRT", -6, ["one", "two"])
    assert str(died) == "QEMU (pid 7) was killed by SIGABRT\nQEMU's last words:\n  one\n  two"
    assert (died.exit_status, died.stderr) == (-6, ("one", "two"))


def test_a_silent_end_says_so() -> None:
    assert str(LaunchFailed("no", None)) == "no\nQEMU said nothing on stderr."


def test_a_refusal_keeps_qemus_words() -> None:
    refused = QmpRefused("device_del", "GenericError", "core 0 is busy")
    assert str(refused) == "device_del: GenericError: core 0 is busy"
    assert (refused.command, refused.error_class, refused.description) == ("device_del", "GenericError", "core 0 is busy")


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [("", "", ""), ("said\n", "", ": said"), ("said\n", "but\n", ": but")],
)
def test_a_failed_command_says_why(stdout: str, stderr: str, words: str) -> None:
    failed = CommandFailed("grep x /y", 2, stdout, stderr)
    assert str(failed) == f"guest command `grep x /y` ended with status 2{words}"
    assert (failed.command, failed.status, failed.stdout, failed.stderr) == ("grep x /y", 2, stdout, stderr)
