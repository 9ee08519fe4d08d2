"""``python -m tests.fuzz``: every target for a bounded time each, one after another, and what came of it.

Targets in Python run under atheris, the extension's decoders under cargo-fuzz, and last the tests that draw with
Hypothesis again with many more examples. What is new goes to .fuzz/corpus, an input that fails to .fuzz/crashes.
``make fuzz`` installs what this needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[2]
WORK: Final = ROOT / ".fuzz"
COMMITTED: Final = Path(__file__).with_name("corpus")
WORDS: Final = Path(__file__).with_name("words.dict")
CRATE: Final = ROOT / "gossip_ext/fuzz"
IN_RUST: Final = {"extension": "frames", "batches": "batches"}
"""The extension's decoders, and which committed corpus is theirs: Python reads the same inputs."""
HYPOTHESIS: Final = "hypothesis"
NAMES: Final = (*dict.fromkeys((*TARGETS, *IN_RUST, HYPOTHESIS)),)
KEPT: Final = "kept-*"
"""Inputs that found a fault, real or planted (test_corpora.py): they stay, whatever they cover."""

LONGEST: Final = 1_024
"""Bytes of an input. A script of a machine is 200 steps at most, and a longer message has nothing new."""
SLOWEST: Final = 20
"""Seconds of one input, after which it counts as hanging. A slow one takes 0.1 s on a busy machine."""
TOLD_EVERY: Final = 5.0

_STATUS: Final = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+)")
_WRITTEN: Final = re.compile(r"Test unit written to (\S+)")


@dataclass(slots=True)
class Result:
    """What one target came to. ``failed`` says what to do about it."""

    name: str
    seconds: float = 0.0
    runs: int = 0
    edges: int = 0
    features: int = 0
    failed: str = ""

    def row(self) -> str:
        counts = f"{self.runs:>12,} {self.edges:>7,} {self.features:>9,}" if self.runs else " " * 30
        return f"{self.name:<14} {self.seconds:>6.0f} s {counts}  {self.failed or 'nothing found'}"


def corpus_of(name: str) -> Path:
    """Committed."""
    return COMMITTED / IN_RUST.get(name, name)


def command_of(name: str, flags: list[str], folders: list[Path]) -> list[str]:
    if name not in IN_RUST:
        return [sys.executable, "-m", "tests.fuzz.drive", name, *flags, *map(str, folders)]
    # Without a sanitizer it builds with a stable Rust; the crate forbids unsafe code, so there is little to sanitize.
    cargo = ["cargo", "fuzz", "run", "--fuzz-dir", str(CRATE), "--sanitizer", "none", IN_RUST[name]]
    return [*cargo, *map(str, folders), "--", *flags]


def flags_of(name: str) -> list[str]:
    flags = [f"-artifact_prefix={WORK / 'crashes'}/{name}-", f"-max_len={LONGEST}", f"-timeout={SLOWEST}"]
    return [*flags, "-rss_limit_mb=2048", "-len_control=20", f"-dict={WORDS}"]


def lines_of(command: list[str]) -> Iterator[str | int]:
    """What a program says, and last what it ends with. It is ended when nobody listens any more."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        try:
            yield from child.stdout
            yield child.wait()
        finally:
            if child.poll() is None:
                child.terminate()


def fuzz(name: str, seconds: int) -> Result:
    """One target under libFuzzer."""
    work = WORK / "corpus" / name
    for folder in (work, WORK / "crashes"):
        folder.mkdir(parents=True, exist_ok=True)
    flags = [*flags_of(name), f"-max_total_time={seconds}"]
    result, said, last, begun = Result(name), list[str](), 0.0, time.monotonic()
    folders = [work, *filter(Path.is_dir, [corpus_of(name)])]
    for line in lines_of(command_of(name, flags, folders)):
        result.seconds = time.monotonic() - begun
        if isinstance(line, int):
            if line:
                result.failed = _failure(name, said)
                say("".join(said[-60:]))
            break
        said = [*said[-200:], line]
        if status := _STATUS.match(line):
            result.runs, result.edges, result.features = map(int, status.groups())
            if result.seconds - last >= TOLD_EVERY:
                last = result.seconds
                say(result.row().removesuffix("  nothing found"))
    return result


def _failure(name: str, said: list[str]) -> str:
    written = [match[1] for line in said if (match := _WRITTEN.search(line))]
    if not written:
        return "it did not run; see above"
    file = os.path.relpath(written[-1], ROOT)
    return f"FAILED by {file}: python -m tests.fuzz --replay {file} {name}"


def hypothesis(arguments: list[str]) -> Result:
    """The tests of any input and the state machines, with many more and random examples."""
    result, begun = Result(HYPOTHESIS), time.monotonic()
    profile = ["-m", "hypothesis and not system", "--hypothesis-profile=fuzz", "--timeout=3600"]
    for line in lines_of([sys.executable, "-m", "pytest", *profile, *arguments]):
        if isinstance(line, str):
            say(line.rstrip())
        elif line:
            result.failed = "FAILED; see above"
    result.seconds = time.monotonic() - begun
    return result


def minimise(name: str) -> None:
    """Makes the committed corpus a small one that covers every edge which anything known covers, in each language."""
    committed = corpus_of(name)
    engines = dict.fromkeys([name, *(rust for rust, corpus in IN_RUST.items() if corpus == name)])
    sources = [one for one in (committed, *(WORK / "corpus" / engine for engine in engines)) if one.is_dir()]
    smallest = {file: content for engine in engines for file, content in merged(engine, sources).items()}
    kept = {*committed.glob(KEPT)}
    for old in committed.glob("*"):
        if old not in kept:
            old.unlink()
    committed.mkdir(parents=True, exist_ok=True)
    for file, content in smallest.items():
        (committed / file[:12]).write_bytes(content)
    files = list(committed.iterdir())
    say(f"{name}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


def merged(name: str, sources: list[Path]) -> dict[str, bytes]:
    """Few inputs that cover what all of ``sources`` do, by their names, which libFuzzer makes of their hashes."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-set_cover_merge=1", "-use_counters=0", *flags_of(name)]
        *said, code = lines_of(command_of(name, flags, [Path(folder), *sources]))
        if code:
            say("".join(map(str, said[-20:])))
            raise SystemExit(f"{name}: the corpus stays as it is")
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def replay(name: str, file: Path) -> None:
    """One input, here: the traceback is the answer."""
    if name in IN_RUST:
        raise SystemExit(subprocess.run(command_of(name, [], [file]), cwd=ROOT, check=False).returncode)
    TARGETS[name](file.read_bytes())
    say(f"{name}: {file} fails no more")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all unless named: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on this input, and nothing else")
    parser.add_argument("--minimise", action="store_true", help="put what was found in tests/fuzz/corpus, minimised")
    options = parser.parse_args()
    if unknown := set(options.targets).difference(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if options.replay and len(options.targets) != 1:
        parser.error("--replay needs the one target that the input is for")
    return options


def main() -> int:
    options = parsed()
    names: list[str] = options.targets or list(NAMES)
    if options.replay:
        replay(names[0], options.replay)
        return 0
    if importlib.util.find_spec("atheris") is None and not {*IN_RUST, HYPOTHESIS}.issuperset(names):
        raise SystemExit("atheris is not installed: make fuzz does it, or pip install --group fuzz")
    if options.minimise:
        for name in names:
            if name not in ("extension", HYPOTHESIS):
                minimise(name)
        return 0
    results = []
    for name in names:
        say(f"=== {name}")
        results.append(hypothesis([]) if name == HYPOTHESIS else fuzz(name, options.seconds))
    say(f"{'target':<14} {'time':>8} {'executions':>12} {'edges':>7} {'features':>9}")
    for result in results:
        say(result.row())
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
