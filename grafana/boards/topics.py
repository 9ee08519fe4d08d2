"""The board Topics and gossip. Not here: the others, and how a board is drawn (grafana/draw.py)."""

from __future__ import annotations

from typing import Final

from grafana.boards.words import AT_BOTH
from grafana.panel import Board, Panel

__all__ = ["TOPICS"]

TOPICS: Final = Board(
    uid="topics",
    title="Topics and gossip",
    text="Which way topics travel, what became of their events, and how the swarms are.",
    variables={"topic": "broker_events_published_total"},
    rows={
        "Topics": [
            Panel(
                title="Published by topic",
                unit="cps",
                width=12,
                queries={
                    "{{topic}}": 'topk(20, sum by (topic) (rate(broker_events_published_total{topic=~"$topic"}[30s])))'
                },
                text=AT_BOTH,
            ),
            Panel(
                title="Delivered by topic",
                unit="cps",
                width=12,
                queries={
                    "{{topic}}": 'topk(20, sum by (topic) (rate(broker_events_delivered_total{topic=~"$topic"}[30s])))'
                },
            ),
            Panel(
                title="Duplicates dropped",
                unit="cps",
                queries={"{{carrier}}": "sum by (carrier) (rate(broker_events_duplicates_total[30s]))"},
            ),
            Panel(title="Events kept", unit="none", queries={"{{instance}}": "broker_ring_events"}),
            Panel(title="Bytes kept", unit="bytes", queries={"{{instance}}": "broker_ring_bytes"}),
        ],
        "Gossip": [
            Panel(title="Topics by gossip", unit="none", queries={"{{instance}}": 'broker_swarms{job="hub"}'}),
            Panel(
                title="Members and neighbours",
                unit="none",
                queries={
                    "{{instance}} members": "broker_swarm_members",
                    "{{instance}} neighbours": 'broker_swarm_neighbours{job="hub"}',
                },
            ),
            Panel(
                title="Carrier switches",
                unit="none",
                queries={"to {{to}}": "sum by (to) (broker_carrier_switches_total)"},
            ),
            Panel(
                title="Batches",
                unit="cps",
                queries={"{{direction}}": "sum by (direction) (rate(broker_swarm_batches_total[30s]))"},
            ),
            Panel(
                title="Gossip bytes",
                unit="Bps",
                queries={"{{direction}}": "sum by (direction) (rate(broker_swarm_bytes_total[30s]))"},
            ),
            Panel(
                title="Bad batches",
                unit="cps",
                bad=0.1,
                queries={"{{reason}}": "sum by (reason) (rate(broker_swarm_bad_batches_total[30s]))"},
                text="stale is harmless: the same batch by two ways.",
            ),
            Panel(
                title="Repairs",
                unit="cps",
                queries={"{{direction}}": "sum by (direction) (rate(broker_swarm_repairs_total[30s]))"},
            ),
            Panel(
                title="Overrun, left out, left behind",
                unit="cps",
                warn=0.001,
                queries={
                    "overrun": "sum(rate(broker_swarm_lagged_total[30s]))",
                    "left out": "sum(rate(broker_swarm_left_out_total[30s]))",
                    "left behind": "sum(rate(broker_swarm_left_behind_total[30s]))",
                },
            ),
            Panel(
                title="Messages of the overlay",
                unit="cps",
                queries={
                    "{{kind}} {{direction}}": "sum by (kind, direction)"
                    ' (rate(broker_gossip_messages_total{job="hub"}[30s]))'
                },
                text="Control messages are what the overlay costs beside the events.",
            ),
            Panel(
                title="Joins, and neighbours that come and go",
                unit="cps",
                queries={
                    "joined by {{by}}": "sum by (by) (rate(broker_swarm_joins_total[30s]))",
                    "neighbours {{change}}": "sum by (change) (rate(broker_gossip_neighbour_changes_total[30s]))",
                },
            ),
            Panel(
                title="Gossip connections ended here",
                unit="cps",
                queries={
                    "{{reason}}": "sum by (reason) (rate(broker_gossip_connections_ended_total[30s]))",
                    "dials failed": "sum(rate(broker_gossip_dials_failed_total[30s]))",
                },
            ),
            Panel(
                title="The hubs' own verdicts",
                unit="none",
                stacked=True,
                queries={"{{verdict}}": "sum by (verdict) (broker_swarm_sequences)"},
            ),
        ],
    },
)
