"""``broker lab chaos`` and ``havoc``: break a testbed on purpose and say how it ended.

Not here: how it is broken and judged (broker/lab), and the lab's other commands (lab.py).
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import Json
from broker.cli.output import LineWriter, note, table
from broker.cli.running import in_thread, run
from broker.errors import UsageError

if TYPE_CHECKING:
    from broker.lab.chaos import Judgement
    from broker.lab.cluster import Cluster
    from broker.lab.rounds import Rounds
    from broker.lab.scenario import Scenario

__all__ = ["DIRECTORY", "Directory", "chaos", "columns", "havoc"]

LOOK = 1.0
"""Seconds until the next look whether most spokes are here."""
DIRECTORY = Path(tempfile.gettempdir()) / "broker-lab"

Directory = Annotated[
    Path,
    typer.Option("--dir", envvar="BROKER_LAB_DIR", metavar="DIR", help="Where the lab keeps its state and logs."),
]
ScenarioNames = Annotated[
    list[str] | None,
    typer.Option(
        "--scenario",
        envvar="BROKER_LAB_SCENARIOS",
        metavar="NAME",
        help="Repeatable. [default: all]",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Who is hit.")]


def chaos(
    scenario: ScenarioNames = None,
    seed: Seed = 1,
    listing: Annotated[bool, typer.Option("--list", help="Says what there is, and does nothing.")] = False,
    directory: Directory = DIRECTORY,
    json: Json = False,
) -> int:
    """Breaks a lab on purpose and judges what is seen. Makes one of 2 hubs and 6 spokes for it if none is up, and one
    behind NAT for scenarios of that."""
    from broker.lab.cluster import STATE

    chosen = _chosen(scenario)
    if listing:
        return run(_list(chosen, json))
    if (directory / STATE).exists():
        return run(_break_what_is_up(chosen, scenario is None, seed, directory, json))
    return run(_break_own(chosen, seed, directory, json))


def havoc(
    hub: Annotated[str, typer.Argument(metavar="HUB", help="Whose network and processes are shared: hub1 or hub2.")],
    scenario: ScenarioNames = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="What is done, and who is hit.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=0, help="0: until it is stopped.")] = 0,
    rest: Annotated[float, typer.Option("--rest", metavar="S", min=0, help="Between two scenarios.")] = 15.0,
    prometheus: Annotated[str, typer.Option("--prometheus", metavar="HOST:PORT")] = "prometheus:9090",
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="Metrics and health.")] = "0.0.0.0:9465",
    shared: Annotated[
        Path | None,
        typer.Option(
            "--shared", metavar="DIR", help="To be found by Prometheus, and to take turns.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Breaks a hub of docker-compose.yml from inside its container, again and again, and judges what is seen."""
    from broker.lab.rounds import Rounds

    return run(_havoc(Rounds(hub, _chosen(scenario), seed, prometheus), rounds, rest, http, shared, json))


def columns(*keys: str) -> dict[str, Callable[[dict[str, Any]], Any]]:
    return {key: itemgetter(key) for key in keys}


def _chosen(names: list[str] | None) -> list[Scenario]:
    """All of them without names. UsageError for one that there is not."""
    from broker.lab.scenario import scenarios

    known = scenarios()
    if unknown := [name for name in names or () if name not in known]:
        raise UsageError(f"there is no scenario {unknown[0]}; they are {', '.join(known)}")
    return [known[name] for name in names or known]


async def _list(known: Iterable[Scenario], json: bool) -> int:
    rows = [{"scenario": one.name, "text": one.text, "verdict": one.verdict} for one in known]
    writer = LineWriter()
    if json or not writer.terminal:
        await writer.lines(rows)
    else:
        await writer.text(table("Scenarios", columns("scenario", "text", "verdict"), rows))
    return 0


async def _break_what_is_up(chosen: list[Scenario], fitting: bool, seed: int, directory: Path, json: bool) -> int:
    """``fitting``: only those that are for such a lab. Status 1 if one of them did not end as it should."""
    from broker.lab.cluster import Cluster

    cluster = Cluster.load(directory)
    nat = cluster.internet is not None
    return 1 if await _break(cluster, [one for one in chosen if not fitting or one.nat == nat], seed, json) else 0


async def _break_own(chosen: list[Scenario], seed: int, directory: Path, json: bool) -> int:
    """In a lab that is made for it, and one for those behind NAT. Status 1 if one did not end as it should."""
    from broker.lab.cluster import build

    failed = 0
    for nat in dict.fromkeys(one.nat for one in chosen):
        hubs = 1 if nat else 2
        cluster = build(directory, hubs=hubs, spokes=6, rate=10, size=0, calls=2, plain=False, nat=nat)
        try:
            failed += await _break(cluster, [one for one in chosen if one.nat == nat], seed, json)
        finally:
            cluster.down()
    return 1 if failed else 0


async def _break(cluster: Cluster, chosen: list[Scenario], seed: int, json: bool) -> int:
    """How many did not end as they should."""
    from broker.lab.chaos import Chaos
    from broker.lab.hands import LabHands

    writer, failed = LineWriter(), 0
    for one in chosen:
        note(f"{one.name}: {one.text}")
        stop = threading.Event()
        judged = Chaos(LabHands(cluster, seed), one, lambda text: note(f"  {text}"), stop=stop)
        failed += not await _tell(await in_thread(judged.run, stop), writer, json)
    return failed


async def _tell(judgement: Judgement, writer: LineWriter, json: bool) -> bool:
    """Whether it passed."""
    if json:
        await writer.json(judgement.row())
    else:
        note(f"{judgement.scenario}: {'passed' if judgement.passed else 'FAILED'}")
    return judgement.passed


async def _havoc(rounds: Rounds, count: int, rest: float, http: str, shared: Path | None, json: bool) -> int:
    """Status 1 if one of them did not end as it should."""
    from broker.hub.http import serve_http
    from broker.lab.rounds import announced, turn

    writer, done, failed = LineWriter(), 0, 0
    page = serve_http(http, registry=rounds.registry, not_ready=lambda: None, status=lambda: "broker lab havoc\n")
    async with page as address:
        with announced(shared, rounds.hub, address.rpartition(":")[2]):
            while not count or done < count:
                async with turn(shared):
                    if mine := await asyncio.to_thread(rounds.mine):
                        stop = threading.Event()
                        judgement = await in_thread(rounds.begin(done, note, stop).run, stop)
                        rounds.end(judgement)
                        failed += not await _tell(judgement, writer, json)
                        done += 1
                await asyncio.sleep(rest if mine else LOOK)
    return 1 if failed else 0
