"""The board Overview. Not here: the others, and how a board is drawn (grafana/draw.py)."""

from __future__ import annotations

from typing import Final

from grafana.boards.words import AT_BOTH
from grafana.panel import Board, Panel

__all__ = ["OVERVIEW"]

OVERVIEW: Final = Board(
    uid="overview",
    title="Overview",
    text="Is it healthy, who is slow, what was lost.",
    rows={
        "Health": [
            Panel(
                title="Hubs down",
                unit="none",
                kind="stat",
                width=4,
                bad=1,
                queries={
                    "hubs": 'count(last_over_time(up{job="hub"}[5m]) unless on (job, node) (up{job="hub"} == 1))'
                    " or vector(0)"
                },
                text="Of those that were there in the last five minutes.",
            ),
            Panel(
                title="Targets down",
                unit="none",
                kind="stat",
                width=4,
                bad=1,
                queries={"down": "count(last_over_time(up[5m]) unless (up == 1)) or vector(0)"},
                text="Targets that Prometheus cannot reach, and those that have vanished in the last five minutes:"
                " a container that is gone has no address any more.",
            ),
            Panel(
                title="Spokes connected",
                unit="none",
                kind="stat",
                width=4,
                queries={"spokes": "sum(broker_spokes_connected)"},
            ),
            Panel(
                title="Events lost",
                unit="none",
                kind="stat",
                width=4,
                bad=1,
                queries={"lost": "sum(broker_observer_events_lost_total)"},
                text="As the observer sees it.",
            ),
            Panel(
                title="Sequences lost or unknown",
                unit="none",
                kind="stat",
                width=4,
                bad=1,
                queries={"not whole": 'sum(broker_observer_sequences{verdict=~"lost|unknown"})'},
                text="As the observer sees it; all others are complete, repaired, or still waited for.",
            ),
            Panel(
                title="Alerts firing",
                unit="none",
                kind="stat",
                width=4,
                bad=1,
                queries={"alerts": 'count(ALERTS{alertstate="firing"}) or vector(0)'},
            ),
        ],
        "Traffic": [
            Panel(
                title="Events published",
                unit="cps",
                width=12,
                stacked=True,
                queries={
                    "{{instance}} {{carrier}}": "sum by (instance, carrier) (rate(broker_events_published_total[30s]))"
                },
                text=AT_BOTH,
            ),
            Panel(
                title="Deliveries",
                unit="cps",
                width=12,
                stacked=True,
                queries={
                    "{{instance}} {{carrier}}": "sum by (instance, carrier) (rate(broker_events_delivered_total[30s]))"
                },
            ),
        ],
        "Who is slow": [
            Panel(
                title="Slow consumers",
                unit="none",
                warn=1,
                queries={"{{instance}}": "broker_slow_consumers"},
                text="Subscribers that lag and are read from a ring.",
            ),
            Panel(title="Queued bytes", unit="bytes", queries={"{{instance}}": "broker_queue_bytes"}),
            Panel(
                title="Loop lag, 99th percentile",
                unit="s",
                warn=0.1,
                bad=0.25,
                queries={"{{instance}}": 'instance:broker_loop_lag_seconds:p99{job="hub"}'},
            ),
        ],
        "What was lost": [
            Panel(
                title="Deliveries dropped and lost",
                unit="cps",
                bad=0.001,
                queries={
                    "dropped": "sum(rate(broker_events_dropped_total[30s]))",
                    "lost": "sum(rate(broker_events_lost_total[30s]))",
                },
            ),
            Panel(title="Repaired", unit="cps", queries={"repaired": "sum(rate(broker_events_repaired_total[30s]))"}),
            Panel(
                title="Verdicts",
                unit="none",
                stacked=True,
                queries={"{{verdict}}": "sum by (verdict) (broker_observer_sequences)"},
            ),
        ],
    },
)
