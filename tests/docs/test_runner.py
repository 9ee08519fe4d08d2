"""The runner itself, on small documents: it runs what it should and, above all, fails when it should."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.docs.blocks import DocumentError, parse
from tests.docs.runner import Document, matches

MAKEFILE = "test: setup  ## tests\ndemo:\n"


def run(markdown: str, directory: Path, *, timeout: float = 20.0) -> None:
    with Document(directory, makefile=MAKEFILE, timeout=timeout) as document:
        for block in parse("sample.md", textwrap.dedent(markdown)):
            document.run(block)


def refused(markdown: str, directory: Path, match: str, *, timeout: float = 20.0) -> None:
    with pytest.raises(DocumentError, match=match):
        run(markdown, directory, timeout=timeout)


def test_blocks_have_tag_text_and_line() -> None:
    markdown = "# x\n```python\na\n```\n- item\n  ````text\n  ```inner\n  ````\n"
    assert [(b.line, b.tag, b.text) for b in parse("d", markdown)] == [(3, "python", "a"), (7, "text", "```inner")]


@pytest.mark.parametrize("markdown", ["```\nx\n```", "```pyhton\nx\n```"], ids=["no tag", "misspelt"])
def test_a_tag_nobody_knows_is_an_error(markdown: str, tmp_path: Path) -> None:
    refused(markdown, tmp_path, "sample.md:2: unknown tag")


def test_an_open_block_is_an_error() -> None:
    with pytest.raises(DocumentError, match=r"d:3: the block is never closed"):
        parse("d", "a\n```python\nx = 1\n")


def test_python_blocks_share_names_and_the_loop(tmp_path: Path) -> None:
    run(
        """
        ```python
        import asyncio
        queue = asyncio.Queue()
        await queue.put("first")
        ```
        ```python
        assert await queue.get() == "first"
        ```
        """,
        tmp_path,
    )


@pytest.mark.parametrize("code", ["1 / 0", "import asyncio; await asyncio.sleep(0); 1 / 0"], ids=["plain", "async"])
def test_a_python_exception_fails(code: str, tmp_path: Path) -> None:
    refused(f"```python\n{code}\n```", tmp_path, "sample.md:2: ZeroDivisionError")


def test_python_that_cannot_be_compiled_fails(tmp_path: Path) -> None:
    refused("```python\nx = = 1\n```", tmp_path, "SyntaxError")


def test_an_await_that_never_ends_fails(tmp_path: Path) -> None:
    refused("```python\nimport asyncio\nawait asyncio.Event().wait()\n```", tmp_path, "TimeoutError", timeout=0.2)


def test_shell_keeps_variables_and_the_directory(tmp_path: Path) -> None:
    run(
        """
        ```bash
        # a comment
        mkdir sub && cd sub
        NAME="two words"
        cat > file <<END
        $NAME

        END
        for i in 1 2; do
            echo $i >> file
        done
        test "$(head -1 file)" = "two words"
        ```
        ```bash
        $ test "$(basename "$PWD") $NAME" = "sub two words"
        $ grep -c . \\
        > file
        ```
        ```python
        from pathlib import Path
        assert Path("sub/file").read_text().split() == ["two", "words", "1", "2"]
        ```
        """,
        tmp_path,
    )


def test_the_shell_finds_this_environment_and_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_OPEN", "1")
    run('```bash\npython -c "import pytest"\ntest -z "${BROKER_OPEN-}"\ntest "$HOME" != ~root\n```', tmp_path)


@pytest.mark.parametrize(
    ("block", "match"),
    [
        ("true\nls /nowhere\ntrue", r"sample.md:3: 'ls /nowhere' ended with 2"),
        ("if true; then", "syntax error"),
        ("no-such-command-here", "ended with 127"),
        ("false | true; exit 3", "ended with 3"),
        ("cat @missing", "missing was not there within"),
        ("cat <(echo; cat /dev/zero) > /dev/null", "did not end within"),
    ],
)
def test_a_failing_command_fails(block: str, match: str, tmp_path: Path) -> None:
    refused(f"```bash\n{block}\n```", tmp_path, match, timeout=0.5)


def test_console_output_is_compared(tmp_path: Path) -> None:
    run('```console\n$ echo "id 4711 ok"; echo\nid ... ok\n$ true\n```', tmp_path)
    with pytest.raises(DocumentError, match="printed"):
        run("```console\n$ echo one\ntwo\n```", _sub(tmp_path))


def test_console_output_needs_a_command(tmp_path: Path) -> None:
    refused("```console\nhello\n```", tmp_path, "output before any command")


@pytest.mark.parametrize(
    ("pattern", "output", "expected"),
    [("a", "a  \n", True), ("a...", "a\nb", True), ("a...c", "abd", False), ("a.c", "abc", False), ("a", "ab", False)],
)
def test_matching(pattern: str, output: str, expected: bool) -> None:
    assert matches(pattern, output) is expected


def test_a_background_command_runs_until_the_end(tmp_path: Path) -> None:
    run(
        """
        ```bash
        bash -c 'echo $$ > pid; echo starting; echo ready; exec sleep 60' &  # until: ready
        kill -0 "$(cat pid)"
        (echo on; sleep 0.2; echo late > late) &
        echo @late
        cat late
        ```
        """,
        tmp_path,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "work/pid").read_text()), 0)


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("exit 4 &", "ended with 4 too early"),
        ("sleep 60 &", "did not print a line in"),
        ("(echo a; sleep 60) &  # until: ready", "did not print 'ready' in"),
        ("(echo up; sleep 0.1; exit 5) &\nsleep 0.3", "had ended with 5"),
    ],
)
def test_a_background_command_that_fails_fails(command: str, match: str, tmp_path: Path) -> None:
    refused(f"```bash\n{command}\n```", tmp_path, match, timeout=0.5)


def test_a_background_command_may_drain(tmp_path: Path) -> None:
    run(
        """
        ```bash
        cat > server.py <<END
        import pathlib, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("up")
        signal.sigwait([signal.SIGTERM])
        pathlib.Path("drained").touch()
        END
        python server.py &
        test ! -e drained
        ```
        """,
        tmp_path,
    )
    assert (tmp_path / "work/drained").exists()


def test_and_lists_are_not_background(tmp_path: Path) -> None:
    refused("```bash\ntrue && false\n```", tmp_path, "ended with 1")


def test_make_targets_must_exist(tmp_path: Path) -> None:
    run('```bash make\nmake test  # all\nmake demo ARGS="x"\n\n```', tmp_path)
    with pytest.raises(DocumentError, match=r"sample\.md:3: 'make tset' is not a make line"):
        run("```bash make\nmake test\nmake tset\n```", _sub(tmp_path))
    with pytest.raises(DocumentError, match="is not a make line"):
        run("```bash make\nrm -rf x\n```", _sub(tmp_path))


def test_what_is_not_code_is_not_run(tmp_path: Path) -> None:
    run("```text\nexit 1\n```\n```json\n{\n```\n", tmp_path)


def _sub(directory: Path) -> Path:
    sub = directory / f"sub-{len(list(directory.iterdir()))}"
    sub.mkdir()
    return sub
