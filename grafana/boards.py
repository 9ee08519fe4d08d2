"""What the dashboards show: panels with their units, expressions and limits. Nothing here knows how it is drawn.

Each expression is run on a real Prometheus with the testbed's data (tests/cluster). Not here: drawing (draw.py), and
what the metrics mean (docs/operations.md).
"""

from __future__ import annotations

from typing import Final

from grafana.panel import Board, Panel

__all__ = ["BOARDS"]


AT_BOTH: Final = "Each hub counts what comes to it: an event that gossip brings to two hubs is counted at both."
HUBS: Final = {"instance": "broker_build_info"}

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
                title="Overrun and left to repair",
                unit="cps",
                warn=0.001,
                queries={
                    "overrun": "sum(rate(broker_swarm_lagged_total[30s]))",
                    "left out": "sum(rate(broker_swarm_left_out_total[30s]))",
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

NODES: Final = Board(
    uid="nodes",
    title="Nodes and paths",
    text="What each process costs, how its bytes travel, who comes and goes.",
    variables=HUBS,
    rows={
        "Paths": [
            Panel(
                title="Spokes by path",
                unit="none",
                stacked=True,
                queries={"{{transport}} {{path}}": "sum by (transport, path) (broker_spokes_connected)"},
            ),
            Panel(
                title="Direct bytes",
                unit="Bps",
                queries={"{{job}} {{direction}}": "sum by (job, direction) (rate(broker_direct_bytes_total[30s]))"},
            ),
            Panel(
                title="Relay bytes",
                unit="Bps",
                queries={"{{job}} {{direction}}": "sum by (job, direction) (rate(broker_relay_bytes_total[30s]))"},
            ),
        ],
        "The network": [
            Panel(
                title="Round trips of the hubs' connections",
                unit="s",
                queries={
                    f"p{share * 100:g} {{{{path}}}}": f"histogram_quantile({share}, sum by (le, path)"
                    ' (broker_quic_rtt_seconds_bucket{job="hub", alpn="alkhub/1"}))'
                    for share in (0.5, 0.99)
                },
            ),
            Panel(
                title="Packets lost",
                unit="percentunit",
                warn=0.01,
                bad=0.05,
                queries={
                    "{{job}} {{alpn}}": "sum by (job, alpn) (rate(broker_quic_packets_lost_total[30s]))"
                    " / (sum by (job, alpn) (rate(broker_quic_packets_sent_total[30s])) > 0)"
                },
            ),
            Panel(
                title="Sent again, and slowed down",
                unit="none",
                queries={
                    "{{job}} bytes/s": "sum by (job) (rate(broker_quic_lost_bytes_total[30s]))",
                    "{{job}} congestion events/s": "sum by (job) (rate(broker_quic_congestion_events_total[30s]))",
                },
            ),
            Panel(
                title="Connections",
                unit="none",
                stacked=True,
                queries={
                    "{{job}} {{alpn}} {{path}}": "sum by (job, alpn, path) (broker_quic_connections)",
                },
                text="Each has two ends, and both are counted.",
            ),
            Panel(
                title="Dropped by the kernel",
                unit="cps",
                bad=0.001,
                queries={"{{job}}": "sum by (job) (rate(broker_udp_receive_drops_total[30s]))"},
                text="Datagrams that found the UDP socket's buffer full.",
            ),
            Panel(
                title="The network's own work",
                unit="percentunit",
                queries={"{{instance}}": 'rate(broker_tokio_busy_seconds_total{instance=~"$instance"}[30s])'},
                text="Share of a core that the tasks of iroh and of the extension take.",
            ),
        ],
        "Coming and going": [
            Panel(
                title="Spokes with a hub",
                unit="none",
                warn=1,
                queries={"connected": "sum(broker_spoke_connected)", "known": 'count(up{job=~"spoke|observer"})'},
            ),
            Panel(
                title="Connected and gone",
                unit="cps",
                queries={
                    "{{instance}} come": "rate(broker_connects_total[30s])",
                    "{{instance}} gone": "sum by (instance) (rate(broker_disconnects_total[30s]))",
                },
            ),
            Panel(
                title="Refused",
                unit="cps",
                warn=0.2,
                queries={"{{reason}}": "sum by (reason) (rate(broker_refused_total[30s]))"},
            ),
        ],
        "What it costs": [
            Panel(
                title="Processor",
                unit="percentunit",
                queries={"{{instance}}": 'instance:process_cpu:rate30s{instance=~"$instance"}'},
            ),
            Panel(
                title="Memory",
                unit="bytes",
                bad=2e9,
                queries={"{{instance}}": 'process_resident_memory_bytes{instance=~"$instance"}'},
            ),
            Panel(
                title="Loop lag, 99th percentile",
                unit="s",
                warn=0.1,
                bad=0.25,
                queries={"{{instance}}": "instance:broker_loop_lag_seconds:p99"},
            ),
            Panel(
                title="Items a wake-up brings",
                unit="none",
                width=12,
                queries={
                    "{{job}}, mean": "sum by (job) (rate(broker_border_batch_items_sum[30s]))"
                    " / sum by (job) (rate(broker_border_batch_items_count[30s]))"
                },
                text="How much work one hand-over from the extension brings: batching under load.",
            ),
            Panel(
                title="Breaches of the protocol",
                unit="cps",
                width=12,
                queries={"{{code}}": "sum by (code) (rate(broker_protocol_errors_total[30s]))"},
                empty="no peer has broken the protocol since the hubs started",
            ),
        ],
    },
)

BOARDS: Final = (OVERVIEW, TOPICS, CALLS, NODES)
