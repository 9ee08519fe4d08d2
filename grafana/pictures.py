"""Draws what the dashboards of boards.py show, from the same queries, for readers who have no Grafana at hand.

    python -m grafana.pictures [--seconds 120]      writes docs/images/*.png

The only file here that needs matplotlib (the dependency group ``pictures``; `make pictures` installs it). Not here:
what is shown (boards/), and the testbed that it is taken of (stage.py).
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grafana.boards import BOARDS
from grafana.panel import Board, Panel
from grafana.stage import Prometheus, stage

__all__ = ["FOLDER", "amount", "legend", "main", "query", "rows", "step"]

FOLDER: Final = Path(__file__).parent.parent / "docs/images"
COLUMNS: Final = 24
WIDTH: Final = 17.0
HEIGHTS: Final = {"stat": 1.1, "series": 2.5}
"""Inches of a row of panels; a board is WIDTH wide."""
LEFT, RIGHT, TOP, BOTTOM = 0.75, 0.1, 0.35, 0.3
"""Inches around a panel's picture, for ticks and title."""
LEGEND: Final = 1.55
"""Inches beside it."""
HEAD: Final = 0.45
"""Inches of the board's title."""
DPI: Final = 80
COLOURS: Final = 64
"""Of a picture: enough for lines, and a fifth of the bytes."""
MOST_LINES: Final = 11
"""In one panel; a legend takes no more."""
POINTS: Final = 120
TICKS: Final = 5
GOOD, WARN, BAD, PALE = "#2b8a3e", "#e8890c", "#d6336c", "#868e96"


def query(expression: str) -> str:
    """With every variable of the dashboard set to all."""
    return re.sub(r"\$\w+", ".*", expression)


def legend(form: str, labels: dict[str, str]) -> str:
    """As Grafana fills it in."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), form).strip() or "value"


def amount(value: float, unit: str) -> str:
    """A value with its unit, in Grafana's words for units."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit in ("bytes", "Bps"):
        return _scaled(value, 1024, ("", "Ki", "Mi", "Gi", "Ti")) + ("B/s" if unit == "Bps" else "B")
    if unit == "s" and value:
        for size, word in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size * 0.9995:
                return f"{value / size:.3g} {word}"
    tail = {"cps": "/s", "s": " s"}.get(unit, "")
    return _scaled(value, 1000, ("", "k", "M", "G")).rstrip() + tail


def _scaled(value: float, base: int, words: tuple[str, ...]) -> str:
    size = 0
    while abs(value) >= base and size + 1 < len(words):
        value, size = value / base, size + 1
    return f"{value:.3g} {words[size]}"


def rows(board: Board) -> list[tuple[str, list[Panel]]]:
    """(title or nothing, panels that are beside each other), from the top."""
    found: list[tuple[str, list[Panel]]] = []
    for title, panels in board.rows.items():
        line: list[Panel] = []
        for panel in panels:
            if sum(one.width for one in line) + panel.width > COLUMNS:
                found.append((title, line))
                title, line = "", []
            line.append(panel)
        found.append((title, line))
    return found


def step(top: float, unit: str) -> float:
    """Between two ticks of an axis from 0 to ``top``: 1, 2 or 5 of something."""
    base = 1024 if unit in ("bytes", "Bps") else 1000
    size: float = 1
    while top / size >= base:
        size *= base
    while top / size < 1 and base == 1000:
        size /= base
    scaled = top / size / TICKS
    return size * next(one for one in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if one >= scaled)


def _colour(panel: Panel, value: float) -> str:
    if panel.bad is not None and value >= panel.bad:
        return BAD
    return WARN if panel.warn is not None and value >= panel.warn else GOOD


def _draw(board: Board, prometheus: Prometheus, start: float, end: float) -> bytes:
    """The board as a PNG."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    lines = rows(board)
    height = HEAD + sum(HEIGHTS[panels[0].kind] for _, panels in lines)
    figure = pyplot.figure(figsize=(WIDTH, height))
    figure.text(0.1 / WIDTH, 1 - 0.3 / height, f"{board.title}: {board.text}", fontsize=14, fontweight="bold")
    below = height - HEAD
    for title, panels in lines:
        tall = HEIGHTS[panels[0].kind]
        below -= tall
        left = 0.0
        for panel in panels:
            wide = panel.width / COLUMNS * WIDTH
            legends = 0 if panel.kind == "stat" else LEGEND
            box = (left + LEFT, below + BOTTOM, wide - LEFT - RIGHT - legends, tall - TOP - BOTTOM)
            axes = figure.add_axes([box[0] / WIDTH, box[1] / height, box[2] / WIDTH, box[3] / height])
            (_stat if panel.kind == "stat" else _series)(axes, panel, prometheus, start, end)
            axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold")
            if title and panel is panels[0]:
                at = (0.1 / WIDTH, (below + tall / 2) / height)
                figure.text(*at, title, fontsize=8, color=PALE, rotation=90, va="center")
            left += wide
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    pyplot.close(figure)
    image: Any = importlib.import_module("PIL.Image")
    small = io.BytesIO()
    image.open(buffer).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()


def _stat(axes: Any, panel: Panel, prometheus: Prometheus, _start: float, _end: float) -> None:
    axes.set_axis_off()
    values = [value for form in panel.queries.values() for _, value in prometheus.now(query(form))]
    text, colour = (amount(values[0], panel.unit), _colour(panel, values[0])) if values else ("no data", PALE)
    axes.text(0.0, 0.3, text, fontsize=24, color=colour, va="center", fontweight="bold")


def _series(axes: Any, panel: Panel, prometheus: Prometheus, start: float, end: float) -> None:
    found = [
        (legend(form, labels), points)
        for form, expression in panel.queries.items()
        for labels, points in prometheus.range(query(expression), start, end, (end - start) / POINTS)
    ]
    found = [(name, real) for name, points in found if (real := [one for one in points if one[1] == one[1]])]
    found.sort(key=lambda one: (-max(value for _, value in one[1]), one[0]))
    more, found = len(found) - MOST_LINES, found[:MOST_LINES]
    axes.set_xlim(0, end - start)
    axes.tick_params(labelsize=7, length=2)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:.0f} s")
    axes.yaxis.set_major_formatter(lambda value, _: amount(value, panel.unit))
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if not found:
        axes.text(0.5, 0.5, panel.nothing or "no data", transform=axes.transAxes, ha="center", va="center", color=PALE)
        axes.set_yticks([])
        return
    if panel.stacked:
        times = sorted({at for _, points in found for at, _ in points})
        heights = [[dict(points).get(at, 0.0) for at in times] for _, points in found]
        axes.stackplot([at - start for at in times], heights, labels=[name for name, _ in found], alpha=0.6)
        most: float = max(map(sum, zip(*heights, strict=True)))
    else:
        for name, points in found:
            axes.plot([at - start for at, _ in points], [value for _, value in points], label=name, linewidth=1.3)
        most = max(value for _, points in found for _, value in points)
    between = step(most, panel.unit) if most > 0 else 1.0
    top = max(most * 1.08, between)
    axes.set_ylim(0, top)
    axes.set_yticks([between * number for number in range(int(top / between) + 1)])
    for limit, colour in ((panel.warn, WARN), (panel.bad, BAD)):
        if limit is not None and limit < top:
            axes.axhline(limit, color=colour, linewidth=0.8, linestyle="--")
    title = f"and {more} more below" if more > 0 else None
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.04), "borderpad": 0.1, "handlelength": 1.0}
    axes.legend(**beside, fontsize=7, frameon=False, title=title, title_fontsize=7, labelspacing=0.25)


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(prog="python -m grafana.pictures", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long the testbed lives")
    seconds = parser.parse_args().seconds
    importlib.import_module("matplotlib").use("Agg")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="broker-pictures-") as directory:
        say(f"a testbed lives for {seconds:g} s; something happens to it")
        with stage(Path(directory) / "lab", seconds) as (prometheus, start, end):
            began = time.monotonic()
            for board in BOARDS:
                path = FOLDER / f"{board.uid}.png"
                path.write_bytes(_draw(board, prometheus, start, end))
                say(f"{path.relative_to(FOLDER.parent.parent)}: {path.stat().st_size // 1024} KiB")
            say(f"drawn in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
