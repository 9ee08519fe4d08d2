"""The board Nodes and paths. Not here: the others, and how a board is drawn (grafana/draw.py)."""

from __future__ import annotations

from typing import Final

from grafana.panel import Board, Panel

__all__ = ["NODES"]

NODES: Final = Board(
    uid="nodes",
    title="Nodes and paths",
    text="What each process costs, how its bytes travel, who comes and goes.",
    variables={"instance": "broker_build_info"},
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
        "Relays and NAT": [
            Panel(
                title="Paths of each hub's spokes",
                unit="none",
                stacked=True,
                queries={
                    "{{instance}} {{path}}": "sum by (instance, path) (broker_spokes_connected)",
                },
                text="Behind NAT all begin by way of a relay. Who stays on it is behind routers that draw ports, or has"
                " no UDP.",
            ),
            Panel(
                title="Changes of path",
                unit="cps",
                queries={
                    "{{job}} to {{to}}": "sum by (job, to) (rate(broker_path_changes_total[30s]))",
                },
                text="After a connection's first message. Each has two ends, and both are counted.",
            ),
            Panel(
                title="Holes tried, relays reached and lost",
                unit="cps",
                queries={
                    "{{job}} holes": "sum by (job) (rate(broker_holepunch_attempts_total[30s]))",
                    "{{job}} reached": "sum by (job) (rate(broker_relay_connects_total[30s]))",
                    "{{job}} lost": "sum by (job) (rate(broker_relay_disconnects_total[30s]))",
                    "{{job}} not reached": "sum by (job) (rate(broker_relay_connects_failed_total[30s]))",
                },
            ),
            Panel(
                title="Hubs reachable by relay",
                unit="none",
                profile="nat",
                queries={
                    "{{instance}} {{relay}}": "broker_relay_reachable",
                    "{{instance}} home {{relay}}": "broker_relay_home",
                },
                text="1: the hub's probe of itself came through. Nothing where that is not known.",
            ),
            Panel(
                title="Probes",
                unit="cps",
                profile="nat",
                queries={
                    "{{instance}} {{outcome}}": "sum by (instance, outcome) (rate(broker_relay_probes_total[30s]))",
                    "{{instance}} moves": "rate(broker_relay_moves_total[30s])",
                    "{{instance}} renewals": "rate(broker_relay_renewals_total[30s])",
                    "{{instance}} rebuilds": "rate(broker_relay_rebuilds_total[30s])",
                },
            ),
            Panel(
                title="Time of a probe",
                unit="s",
                profile="nat",
                warn=1,
                bad=2,
                queries={"{{instance}}": "broker_relay_probe_seconds"},
                text="From the hub through its relay back to itself. After 2 s it is given up.",
            ),
            Panel(
                title="Who uses the relay",
                unit="none",
                profile="nat",
                queries={
                    "{{instance}} NodeIds": "broker_relay_server_clients",
                    "{{instance}} connections": "broker_relay_server_connections",
                },
            ),
            Panel(
                title="What the relay passes on",
                unit="Bps",
                profile="nat",
                queries={
                    "{{instance}} {{direction}}": "sum by (instance, direction)"
                    " (rate(broker_relay_server_bytes_total[30s]))"
                },
            ),
            Panel(
                title="Let in, refused, dropped",
                unit="cps",
                profile="nat",
                warn=0.2,
                queries={
                    "let in": "sum(rate(broker_relay_server_accepted_total[30s]))",
                    "refused": "sum(rate(broker_relay_server_refused_total[30s]))",
                    "cut off": "sum(rate(broker_relay_server_cut_total[30s]))",
                    "packets dropped": "sum(rate(broker_relay_server_packets_dropped_total[30s]))",
                },
                text="Packets are dropped whose NodeId is not there.",
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
