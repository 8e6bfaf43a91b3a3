"""Streams of lines."""

from __future__ import annotations

import os
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_spapr.qemu.channels import LineReader, LineSplitter


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.end())


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"o", b"ne\nt", b"wo"), ["one", "two"]),
        ((b"dos\r\n\r\n",), ["dos", ""]),
        ((b"grew \xc3", b"\xbcn\n"), ["grew \u00fcn"]),
        ((b"a\tb\x1b[0m\x00\n",), ["a\tb\\x1b[0m\\x00"]),
        ((b"\xff\xfe\n",), ["\\xff\\xfe"]),
        ((), []),
    ],
)
def test_lines(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert split(*chunks) == lines


def test_an_endless_line_is_cut_and_nothing_is_lost() -> None:
    lines = split(*[b"x" * 1000] * 100)
    assert "".join(lines) == "x" * 100_000
    assert max(map(len, lines)) <= 10_000


@given(st.lists(st.binary(max_size=50)))
def test_any_bytes_in_any_chunks_are_the_same_lines(chunks: list[bytes]) -> None:
    lines = split(*chunks)
    assert lines == split(b"".join(chunks))
    assert all(line.isprintable() or "\t" in line for line in lines)


class TestReader:
    """The thread."""

    def test_it_reads_until_the_end_and_closes_its_descriptor(self) -> None:
        heard: list[str] = []
        read, write = os.pipe()
        reader = LineReader(read, heard.append, name="test")
        os.write(write, b"one\ntwo\nrest")
        os.close(write)
        assert reader.join(10)
        assert heard == ["one", "two", "rest"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(read)

    def test_a_line_that_goes_on_in_another_stream_is_one(self) -> None:
        heard: list[str] = []
        readers, ends = [], []
        for _ in range(2):
            read, write = os.pipe()
            readers.append(LineReader(read, heard.append, name="test"))
            ends.append(write)
        one, other = readers
        os.write(ends[0], b"before\nbeg")
        one.keep_rest()
        os.close(ends[0])
        assert one.join(10)
        other.begin_with(one.rest)
        os.write(ends[1], b"un\n")
        os.close(ends[1])
        assert other.join(10)
        assert heard == ["before", "begun"]

    def test_a_line_is_told_when_it_is_there_not_at_the_end(self) -> None:
        told = threading.Event()
        read, write = os.pipe()
        reader = LineReader(read, lambda line: told.set(), name="test")
        assert not reader.join(0)
        os.write(write, b"one\n")
        assert told.wait(10)
        os.close(write)
        assert reader.join(10)

    def test_who_catches_up_has_all_that_was_written(self) -> None:
        """And no line twice or out of order, whichever of the two threads reads it; nor anything after the end."""
        heard: list[str] = []
        read, write = os.pipe()
        reader = LineReader(read, heard.append, name="test")
        lines = [str(number) for number in range(1000)]
        for line in lines:
            os.write(write, f"{line}\n".encode())
            reader.catch_up()
            assert heard[-1:] == [line]
        os.close(write)
        reader.catch_up()
        assert reader.join(10)
        reader.catch_up()
        assert heard == lines

    def test_who_catches_up_with_a_flood_does_not_wait_for_its_end(self) -> None:
        """It reads what was there when it was called, and here each line makes another one."""
        read, write = os.pipe()
        over = threading.Event()
        readers: list[int] = []

        def flood(_line: str) -> None:
            readers.append(threading.get_ident())
            if len(readers) < 1000:
                os.write(write, b"more\n")
            else:
                over.set()

        reader = LineReader(read, flood, name="test")
        os.write(write, b"more\n")
        reader.catch_up()
        assert readers.count(threading.get_ident()) <= 1
        assert over.wait(10)
        os.close(write)
        assert reader.join(10)

    def test_a_peer_that_was_killed_is_an_end(self) -> None:
        """It may reset the connection, where it had unread data."""
        server = socket.create_server(("127.0.0.1", 0))
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        heard: list[str] = []
        reader = LineReader(ours.detach(), heard.append, name="test")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        server.close()
        assert reader.join(10)
        assert heard == []
