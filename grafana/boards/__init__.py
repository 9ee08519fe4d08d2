"""What the dashboards show, a file each: panels with their units, expressions and limits. Nothing here
knows how it is drawn.

Each expression is run on a real Prometheus with the testbed's data (tests/cluster). Not here: drawing (draw.py), and
what the metrics mean (docs/operations.md).
"""

from __future__ import annotations

from typing import Final

from grafana.boards.calls import CALLS
from grafana.boards.nodes import NODES
from grafana.boards.overview import OVERVIEW
from grafana.boards.topics import TOPICS
from grafana.panel import Board

__all__ = ["BOARDS"]

BOARDS: Final[tuple[Board, ...]] = (OVERVIEW, TOPICS, CALLS, NODES)
