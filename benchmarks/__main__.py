"""``python -m benchmarks``: runs measurements, prints a line and a table each, and keeps both in results/."""

from __future__ import annotations

import asyncio
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.gossip import PARTS, GossipBench, build_bare
from benchmarks.measure import Bench
from benchmarks.processes import AGAINST
from benchmarks.report import goals, machine, markdown
from benchmarks.servers import OURS, certificates

RESULTS = Path(__file__).parent / "results"
FIGURES = ("calls", "direct", "fanout", "native", "cost", "memory", "scrape")
GOSSIP = "gossip"
"""Only when it is asked for: it builds a Rust program."""
console = Console(stderr=True)


def main(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIGURE]...", help=f"Of {', '.join(FIGURES)} (default: these), {GOSSIP}."),
    ] = None,
    systems: Annotated[str, typer.Option(help="Who takes part, with commas.")] = "driven,threaded,nats,redis",
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Turns of each system; the figure is their median.")] = 5,
    scale: Annotated[float, typer.Option(min=0.01, max=10, help="Times the usual number of calls and events.")] = 1.0,
    subscribers: Annotated[str, typer.Option(help="Numbers of subscribers for fanout and native.")] = "10,100",
    inflight: Annotated[str, typer.Option(help="Calls at a time.")] = "1,64",
    processes: Annotated[int, typer.Option(min=1, max=8, help="The subscribers are spread over so many.")] = 1,
    spokes: Annotated[int, typer.Option(min=10, max=5000, help="For memory and scrape.")] = 1000,
    gossip_spokes: Annotated[str, typer.Option(help="Numbers of spokes for gossip beside bare iroh-gossip.")] = "10,50",
    gossip_cost: Annotated[str, typer.Option(help="Numbers of spokes for what gossip costs the hub.")] = "10,50,200",
    gossip_parts: Annotated[str, typer.Option(help="Parts of gossip.")] = ",".join(PARTS),
    against: Annotated[
        str, typer.Option(help="Another checkout with its extension built: `before` among the systems.")
    ] = "",
    keep: Annotated[str, typer.Option(help="Name of the files in benchmarks/results; none: nothing is kept.")] = "",
) -> None:
    """Measures the hub beside NATS and Redis Streams in the same run, all with TLS, over loopback."""
    chosen = figures or list(FIGURES)
    if unknown := set(chosen) - {*FIGURES, GOSSIP}:
        raise typer.BadParameter(f"{', '.join(unknown)}: the figures are {', '.join(FIGURES)}, {GOSSIP}")
    names = systems.split(",")
    if against:
        os.environ[AGAINST] = against
    parts = gossip_parts.split(",")
    if wrong := set(parts) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(wrong)}: the parts of gossip are {', '.join(PARTS)}")
    bare = build_bare() if GOSSIP in chosen else None
    lines: list[dict[str, Any]] = [machine()]
    console.print(f"load {lines[0]['load']}; others: {', '.join(lines[0]['others']) or 'none'}")

    def tell(figure: dict[str, Any]) -> None:
        lines.append(figure)
        print(orjson.dumps(figure).decode(), flush=True)

    print(orjson.dumps(lines[0]).decode(), flush=True)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as directory:
        bench = Bench(certificates(Path(directory)), Path(directory), rounds, scale, tell)
        gossip = GossipBench(Path(directory) / "log", rounds, scale, tell)
        try:
            if bare is not None:
                asyncio.run(gossip.run(parts, _numbers(gossip_spokes), _numbers(gossip_cost), bare))
            asyncio.run(_measure(bench, chosen, names, _numbers(subscribers), _numbers(inflight), processes, spokes))
        except BaseException:
            console.print((Path(directory) / "log").read_text()[-6000:], markup=False)
            raise
        finally:
            if keep:  # also what a run has told that is ended early: the file says which figures it has
                RESULTS.mkdir(exist_ok=True)
                stem = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{keep}"
                stem.with_suffix(".json").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
                stem.with_suffix(".md").write_text(markdown(lines))
    table = Table("what", "goal", "reached", "ratio")
    for row in goals(lines):
        table.add_row(*row)
    console.print(table)


async def _measure(
    bench: Bench,
    chosen: list[str],
    names: list[str],
    subscribers: list[int],
    inflight: list[int],
    processes: int,
    spokes: int,
) -> None:
    ours = [name for name in names if name in OURS]
    if "calls" in chosen:
        for count in inflight:
            await bench.calls(names, count, 1_500 if count == 1 else 15_000)
    if "direct" in chosen:
        for system in ours:
            await bench.direct(system, 1_500)
    if "fanout" in chosen:
        for count in subscribers:
            await bench.fanout(names, count, max(1_000, min(20_000, 800_000 // count)), processes=processes)
    if "native" in chosen:
        for count in subscribers:
            await bench.fanout(
                ["bare", *(name for name in names if not name.startswith("redis"))],
                count,
                max(2_000, min(40_000, 2_000_000 // count)),
                native=True,
                processes=processes,
            )
    if "cost" in chosen:
        for system in ours:
            # Thirty bursts a pass: what is counted is the same in each, and a pass takes as long as its pauses.
            await bench.event_cost(system, (10, 100, 1_000), events=480, burst=16, pause=0.1)
    if "memory" in chosen:
        await bench.memory(ours, spokes, processes=4)
    if "scrape" in chosen:
        await bench.scrape(ours, spokes, processes=4)


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
