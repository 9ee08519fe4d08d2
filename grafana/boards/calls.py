"""The board Calls. Not here: the others, and how a board is drawn (grafana/draw.py)."""

from __future__ import annotations

from typing import Final

from grafana.panel import Board, Panel

__all__ = ["CALLS"]

CALLS: Final = Board(
    uid="calls",
    title="Calls",
    text="Rates, codes and percentiles.",
    variables={"operation": "broker_calls_total"},
    rows={
        "Rates": [
            Panel(
                title="Calls by code",
                unit="cps",
                width=12,
                stacked=True,
                queries={"{{code}}": 'sum by (code) (rate(broker_calls_total{operation=~"$operation"}[30s]))'},
            ),
            Panel(
                title="Calls by operation",
                unit="cps",
                width=12,
                queries={
                    "{{operation}}": "topk(20, sum by (operation)"
                    ' (rate(broker_calls_total{operation=~"$operation"}[30s])))'
                },
            ),
        ],
        "Time": [
            Panel(
                title="Time of a call",
                unit="s",
                width=12,
                exemplars=True,
                text="The points are single calls; their trace_id is the requestId that the caller gave.",
                warn=0.5,
                bad=1,
                queries={
                    f"p{share * 100:g}": f"histogram_quantile({share}, sum by (le) "
                    '(rate(broker_call_seconds_bucket{operation=~"$operation"}[1m])))'
                    for share in (0.5, 0.9, 0.99)
                },
            ),
            Panel(
                title="99th percentile by operation",
                unit="s",
                width=12,
                queries={
                    "{{operation}}": "histogram_quantile(0.99, sum by (operation, le)"
                    " (rate(broker_call_seconds_bucket[1m])))"
                },
            ),
        ],
        "In flight and astray": [
            Panel(title="In flight", unit="none", queries={"{{instance}}": "broker_calls_in_flight"}),
            Panel(
                title="Answers astray",
                unit="cps",
                queries={"{{instance}}": "rate(broker_stray_answers_total[30s])"},
                text="Answers to calls that were over, unknown, or another's.",
            ),
            Panel(
                title="Limits met",
                unit="cps",
                queries={"{{limit}}": "sum by (limit) (rate(broker_limited_total[30s]))"},
                empty="no limit has been met since the hubs started",
            ),
        ],
    },
)
