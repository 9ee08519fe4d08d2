"""The dashboards and alerts as files: current, complete, and with somewhere to read on. That their expressions give
data is seen on a real Prometheus (tests/cluster)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from grafana.boards import BOARDS
from grafana.draw import FOLDER, dashboard
from grafana.panel import Board
from grafana.pictures import FOLDER as PICTURES
from grafana.pictures import amount, legend, query, rows, step

ROOT = Path(__file__).parent.parent
ALERTS = (ROOT / "grafana/prometheus/alerts.yml").read_text()
by_uid = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


@by_uid
def test_the_json_is_current(board: Board) -> None:
    assert (FOLDER / f"{board.uid}.json").read_text() == dashboard(board), "`make dashboards` writes it"


def test_no_dashboard_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {board.uid for board in BOARDS}


@by_uid
def test_panels_have_what_grafana_needs(board: Board) -> None:
    drawn: dict[str, Any] = json.loads(dashboard(board))
    panels = [panel for panel in drawn["panels"] if panel["type"] != "row"]
    assert len(panels) == sum(len(row) for row in board.rows.values())
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "prometheus"
        assert panel["targets"], panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert drawn["links"][0]["tags"] == drawn["tags"]
    assert drawn["annotations"]["list"][0]["expr"]
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in panels])))
    assert used <= {variable["name"] for variable in drawn["templating"].get("list", ())}, (
        "a variable that nobody defines"
    )


@by_uid
def test_readers_without_grafana_see_a_picture(board: Board) -> None:
    picture = PICTURES / f"{board.uid}.png"
    assert picture.read_bytes().startswith(b"\x89PNG"), "`make pictures` draws it"
    assert picture.stat().st_size < 400_000
    assert f"(images/{board.uid}.png)" in (ROOT / "docs/operations.md").read_text()


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in PICTURES.iterdir()} == {board.uid for board in BOARDS}


@by_uid
def test_a_picture_has_every_panel_once_and_in_its_place(board: Board) -> None:
    drawn = rows(board)
    assert [panel for _, panels in drawn for panel in panels] == [
        panel for panels in board.rows.values() for panel in panels
    ]
    assert all(sum(panel.width for panel in panels) <= 24 for _, panels in drawn)
    assert [title for title, _ in drawn if title] == list(board.rows)
    assert "$" not in "".join(query(one) for _, row in drawn for panel in row for one in panel.queries.values())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "none", "0"),
        (12_345, "none", "12.3 k"),
        (1_500, "cps", "1.5 k/s"),
        (2 * 1024**2, "bytes", "2 MiB"),
        (2_048, "Bps", "2 KiB/s"),
        (0.0123, "s", "12.3 ms"),
        (0.000_04, "s", "40 µs"),
        (75, "s", "75 s"),
        (0, "s", "0 s"),
        (0.995, "percentunit", "99.5%"),
        (0.0123, "percentunit", "1.23%"),
        (1, "percentunit", "100%"),
    ],
)
def test_a_picture_says_amounts_as_grafana_does(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


@pytest.mark.parametrize(
    ("top", "unit", "between"),
    [
        *[(0.0007, "s", 0.0002), (1, "none", 0.2), (13, "none", 5), (999, "none", 200), (4_000, "cps", 1_000)],
        *[(90 * 1024, "bytes", 20 * 1024), (0.5, "bytes", 0.2)],
    ],
)
def test_ticks_are_round(top: float, unit: str, between: float) -> None:
    assert step(top, unit) == pytest.approx(between)


def test_a_picture_names_lines_as_grafana_does() -> None:
    assert legend("{{instance}} {{ way }}", {"instance": "hub1", "way": "in"}) == "hub1 in"
    assert legend("p99 {{path}}", {}) == "p99"
    assert legend("{{path}}", {}) == "value"


def test_every_alert_has_a_runbook_entry() -> None:
    runbook = (ROOT / "docs/operations.md").read_text()
    names = re.findall(r"- alert: (\w+)", ALERTS)
    links = re.findall(r"runbook: docs/operations\.md#(\w+)", ALERTS)
    assert len(names) > 10
    assert [name.lower() for name in names] == links
    assert re.findall(r"^#### (\w+)$", runbook, re.MULTILINE) == names, "the runbook has each alert, in their order"
