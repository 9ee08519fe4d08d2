"""Draws the dashboards of boards.py with Grafana's own builders.

    python -m grafana.draw           writes dashboards/*.json
    python -m grafana.draw --check   exits with 1 when they are not current

Not here: what is shown (boards/), recording rules and alerts (prometheus/*.yml).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from grafana.boards import BOARDS
from grafana.panel import Board, Panel

FOLDER: Final = Path(__file__).with_name("dashboards")
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="prometheus")
TAG: Final = "broker"


def _thresholds(panel: Panel) -> builders.ThresholdsConfig:
    colours = (("orange", panel.warn), ("red", panel.bad))
    steps = [Threshold(value=None, color="green")]
    steps += [Threshold(value=value, color=colour) for colour, value in colours if value is not None]
    return builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _targets(panel: Panel) -> Iterator[prometheus.Dataquery]:
    for letter, (legend, expression) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(letter)
        query = query.exemplar(True) if panel.exemplars else query
        yield query.instant() if panel.kind == "stat" else query.range()


def _series(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    legend = legend.show_legend(True).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    drawn = timeseries.Panel().legend(legend).tooltip(tooltip).fill_opacity(10).height(8)
    return drawn.stacking(common.StackingConfig().mode(StackingMode.NORMAL)) if panel.stacked else drawn


def _number(_panel: Panel) -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).height(4)


def _draw(panel: Panel) -> stat.Panel | timeseries.Panel:
    drawn = _number(panel) if panel.kind == "stat" else _series(panel)
    drawn = drawn.title(panel.title).datasource(SOURCE).unit(panel.unit).span(panel.width)
    drawn = drawn.thresholds(_thresholds(panel)).no_value(panel.nothing or "no data")
    if text := "\n\n".join(filter(None, [panel.text, panel.nothing and f"May be empty: {panel.nothing}."])):
        drawn = drawn.description(text)
    for target in _targets(panel):
        drawn = drawn.with_target(target)
    return drawn


def _variable(name: str, metric: str) -> builders.QueryVariable:
    variable = builders.QueryVariable(name).label(name).datasource(SOURCE).query(f"label_values({metric}, {name})")
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).include_all(True).multi(True).all_value(".*")


def _restarts() -> builders.AnnotationQuery:
    """A line wherever a process began anew, however long it was away: where its start is new, not where it changes."""
    query = builders.AnnotationQuery().name("restarts").datasource(SOURCE).enable(True).icon_color("purple")
    return query.expr('process_start_time_seconds{job=~"hub|spoke|observer|relay"} > time() - 5')


def _chaos() -> builders.AnnotationQuery:
    """Where something was broken on purpose: the chaos profile says so itself."""
    query = builders.AnnotationQuery().name("chaos").datasource(SOURCE).enable(True).icon_color("red")
    return query.expr("broker_chaos_active == 1")


def dashboard(board: Board) -> str:
    """The dashboard as Grafana reads it, JSON."""
    drawn = builders.Dashboard(board.title).uid(board.uid).description(board.text).tags([TAG]).readonly()
    drawn = drawn.refresh("5s").time("now-15m", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    drawn = drawn.annotation(_restarts()).annotation(_chaos())
    others = builders.DashboardLink("Other dashboards").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    drawn = drawn.link(others.as_dropdown(False).keep_time(True).include_vars(True))
    for name, metric in board.variables.items():
        drawn = drawn.with_variable(_variable(name, metric))
    for title, panels in board.rows.items():
        drawn = drawn.with_row(builders.Row(title))
        for panel in panels:
            drawn = drawn.with_panel(_draw(panel))
    return str(JSONEncoder(sort_keys=True, indent=2).encode(drawn.build())) + "\n"


def main() -> int:
    stale = []
    for board in BOARDS:
        path, text = FOLDER / f"{board.uid}.json", dashboard(board)
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"not current: {', '.join(stale)}; `make dashboards` writes them\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
