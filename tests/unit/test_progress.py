from __future__ import annotations

import io

import pytest

from pytest_spapr.progress import NullProgress, PlainProgress, TerminalProgress, finished, progress_for


def test_a_terminal_gets_one_line_per_phase_that_is_rewritten() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream, columns=30)
    progress.phase("fetching 90 packages")
    progress.update(3, 90, "(12 %) and much more than fits in a line")
    progress.done()
    assert stream.getvalue().count("\n") == 1
    assert all(len(line) <= 30 for line in stream.getvalue().rstrip("\n").replace("\x1b[K", "").split("\r"))
    assert stream.getvalue().endswith(" s\n")


def test_a_log_gets_plain_lines_and_not_too_many() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=1000)
    progress.phase("fetching")
    for number in range(100):
        progress.update(number, 100, "package")
    progress.phase("unpacking")
    progress.done()
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["fetching ...", "fetching", "unpacking ...", "unpacking"]
    assert "\x1b" not in stream.getvalue()


def test_a_log_hears_of_a_long_phase_while_it_lasts() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0)
    progress.phase("fetching")
    progress.update(3, 90, "busybox")
    assert "fetching: 3 of 90 busybox\n" in stream.getvalue()


def test_the_last_phase_is_closed_by_an_error_too() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="x"), finished(PlainProgress(stream)) as progress:
        progress.phase("fetching")
        raise ValueError("x")
    assert len(stream.getvalue().splitlines()) == 2


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(progress_for(io.StringIO()), PlainProgress)


def test_nothing_is_said_by_the_null_progress() -> None:
    progress = NullProgress()
    progress.phase("x")
    progress.update(1, 2, "y")
    progress.done()
