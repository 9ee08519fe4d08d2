"""Commands as operations, without a spoke around them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from broker.cli.execute import MAX_OUTPUT_BYTES, Command
from broker.errors import ExecutionFailed, UsageError
from broker.spoke.operations import Call

CALL = Call("r1", "a.b", {})


def command(line: str) -> Command:
    return Command.parse(f"a.b={line}", "--exec")


async def once(line: str, value: Any = None) -> Any:
    return await command(line).once(value, CALL)


async def items(line: str, value: Any = None) -> list[Any]:
    return [item async for item in command(line).items(value, CALL)]


async def test_the_input_comes_out_of_cat() -> None:
    value = {"a": [1, None, "é"], "big": "x" * 500_000}
    assert await once("cat", value) == value
    assert await items("cat", value) == [value]


async def test_a_command_need_not_read_its_input() -> None:
    assert await once("echo 1", "x" * 900_000) == 1
    assert await items("seq 3", "x" * 900_000) == [1, 2, 3]


async def test_the_command_is_split_and_no_shell_sees_it() -> None:
    assert await once("""printf '"%s"' '$HOME; *'""") == "$HOME; *"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("false", "a.b: false ended with status 1"),
        ("sh -c 'echo one >&2; echo two >&2; exit 9'", "sh ended with status 9: one\ntwo"),
        ("sh -c 'kill -SEGV $$'", "sh was killed by signal 11"),
        ("echo hello", "echo did not print JSON"),
        ("true", "true did not print JSON"),
        ("sh -c 'yes | head -c 100000 >&2; exit 1'", "status 1: "),
        ("head -c 3000000 /dev/zero", f"printed more than {MAX_OUTPUT_BYTES} bytes"),
        ("yes", f"printed more than {MAX_OUTPUT_BYTES} bytes"),
    ],
)
async def test_what_goes_wrong_is_told(line: str, says: str) -> None:
    with pytest.raises(ExecutionFailed) as caught:
        await once(line)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 3_000


async def test_the_status_is_in_the_details() -> None:
    with pytest.raises(ExecutionFailed) as caught:
        await once("sh -c 'echo why >&2; exit 7'")
    assert caught.value.details == {"status": 7, "stderr": "why"}


async def test_a_stream_fails_after_its_items() -> None:
    stream = aiter(command("sh -c 'echo 1; echo; echo 2; exit 2'").items(None, CALL))
    assert [await anext(stream), await anext(stream)] == [1, 2]
    with pytest.raises(ExecutionFailed, match="status 2"):
        await anext(stream)
    with pytest.raises(ExecutionFailed, match="a line of more than"):
        await items("head -c 3000000 /dev/zero")


@pytest.mark.parametrize(
    "line", ["sh -c 'sleep 100 & echo $! > PID; wait'", "sh -c 'trap \"\" TERM; echo $$ > PID; sleep 100'"]
)
async def test_a_cancelled_call_kills_the_whole_group(tmp_path: Path, line: str) -> None:
    pid = tmp_path / "pid"
    running = asyncio.create_task(once(line.replace("PID", str(pid))))
    await asyncio.to_thread(wait_for, pid)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert_gone(int(pid.read_text()))


async def test_a_call_can_be_cancelled_at_any_moment() -> None:
    for turns in range(40):
        running = asyncio.create_task(once("sleep 100"))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


async def test_a_stream_that_is_left_kills_the_whole_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stream = command(f"sh -c 'sleep 100 & echo $! > {pid}; yes 1'").items(None, CALL)
    async with aclosing(cast("Any", stream)) as values:
        assert await anext(values) == 1
    assert_gone(int(pid.read_text()))


def wait_for(path: Path) -> None:
    while not path.exists() or not path.read_text():
        time.sleep(0.01)


def assert_gone(pid: int) -> None:
    """Waits for the end of a killed process; a zombie that nobody has waited for is as good as gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


async def test_what_a_command_leaves_behind_does_not_live_on(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert await once(f"sh -c 'sleep 100 >/dev/null 2>&1 & echo $! > {pid}; echo 5'") == 5
    assert_gone(int(pid.read_text()))


async def test_no_descriptor_is_left_open() -> None:
    await once("cat", 1)
    before = len(os.listdir("/proc/self/fd"))
    for line in ("cat", "echo 1", "echo 1"):
        await once(line)
    with pytest.raises(ExecutionFailed):
        await once("yes")
    await asyncio.sleep(0)  # pipes are closed by a callback
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("date", "NAME=COMMAND"),
        ("=date", "NAME=COMMAND"),
        ("a.b=", "empty"),
        ("a.b='", "cannot be split"),
        ("a.b=no-such-program", "no program 'no-such-program'"),
    ],
)
def test_wrong_commands(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"--exec") as caught:
        Command.parse(text, "--exec")
    assert says in str(caught.value)
