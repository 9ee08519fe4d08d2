"""How commands read and write without stopping the loop, and what an error looks like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli.ndjson import Progress, json_lines
from broker.cli.output import LineWriter, dumps, error_lines, read_chunks, start_logging
from broker.errors import UsageError

QUIET = Progress(None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


async def test_a_full_pipe_does_not_stop_the_loop(pipe: tuple[int, int]) -> None:
    content = bytes(range(256)) * 4_000
    writing = asyncio.create_task(LineWriter(pipe[1]).write(content))
    for _ in range(10):
        await asyncio.sleep(0)  # the loop goes on
    assert not writing.done()
    received = b""
    async for chunk in read_chunks(pipe[0]):
        received += chunk
        if len(received) == len(content):
            break
    await writing
    assert received == content


async def test_a_writer_that_nobody_reads(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        await LineWriter(pipe[1]).write(b"x")


async def test_files_are_written_at_once(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        writer = LineWriter(file.fileno())
        await writer.json({"a": 1})
        await writer.lines([1, "é"])
    assert not writer.terminal
    assert (tmp_path / "f").read_text() == '{"a":1}\n1\n"é"\n'


async def read(file: str) -> list[list[Any]]:
    return [batch async for batch in json_lines(file, QUIET)]


async def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    values = [{"n": n, "pad": "x" * (n % 50)} for n in range(20_000)]
    path.write_bytes(b"".join(map(dumps, values)) + b"\n  \n[1]")
    batches = await read(str(path))
    assert [value for batch in batches for value in batch] == [*values, [1]]
    assert len(batches) > 1  # lazily: not all of it at once


@pytest.mark.parametrize(
    ("content", "good", "number"),
    [(b"1\n2\nx\n4\n", [1, 2], 3), (b"x", [], 1), (b"1\n\n\n{", [1], 4), (b"1\r\n2\r\n{'a': 1}", [1, 2], 3)],
)
async def test_a_bad_line_comes_after_the_good_ones(
    tmp_path: Path, content: bytes, good: list[int], number: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    lines = json_lines(str(path), QUIET)
    assert [value for _ in range(bool(good)) for value in await anext(lines)] == good
    with pytest.raises(UsageError, match=rf"{path}:{number}: not JSON"):
        await anext(lines)


async def test_an_empty_file_has_no_events(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert await read(str(tmp_path / "f")) == []


async def test_lines_of_a_pipe_come_as_they_are_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    writer = os.open(tmp_path / "f", os.O_RDWR)
    lines = json_lines(str(tmp_path / "f"), QUIET)
    os.write(writer, b"1\n2\n3")
    assert await anext(lines) == [1, 2]
    waiting = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    os.write(writer, b"4\n")
    assert await waiting == [34]
    os.close(writer)
    with pytest.raises(StopAsyncIteration):
        await anext(lines)


def test_an_error_has_three_lines_at_most() -> None:
    assert error_lines("gone", "TIMEOUT") == ["error: TIMEOUT: gone"]
    assert error_lines("a\n\nb\nc") == ["error: a", "b", "c"]
    assert error_lines("a\nb\nc\nd") == ["error: a", "b", "c …"]
    assert len(error_lines("x" * 10_000)[0]) < 600


def test_a_peer_cannot_write_to_the_terminal() -> None:
    assert error_lines("\x1b[2Jgone\x07") == ["error: �[2Jgone�"]


def test_logs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        start_logging("info", "json")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("broker.x").exception("what %d", 1)
        logging.getLogger("broker.x").debug("not this")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.getLogger("broker").setLevel(logging.NOTSET)
    (line,) = capsys.readouterr().err.splitlines()
    row = json.loads(line)
    assert (row["level"], row["logger"], row["message"]) == ("error", "broker.x", "what 1")
    assert "ValueError: why" in row["traceback"]
