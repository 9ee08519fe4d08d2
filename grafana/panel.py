"""What a dashboard is made of. Not here: which there are (boards/), how they are drawn (draw.py, pictures.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Board", "Panel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture. ``queries`` are legend: expression; ``warn`` and ``bad`` colour a value from there on. ``empty``
    says why nothing may be there while all is well; without it, nothing there is a fault. ``profile``: the one of
    docker-compose.yml with which alone there is something. ``width``: of 24."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: Literal["series", "stat"] = "series"
    width: int = 8
    warn: float | None = None
    bad: float | None = None
    text: str = ""
    empty: str = ""
    profile: str = ""
    stacked: bool = False
    exemplars: bool = False
    """Single calls are marked, with their ids."""

    @property
    def nothing(self) -> str:
        """Why there may be nothing; no word, and there must be something."""
        return self.empty or (self.profile and f"there is none without the profile {self.profile}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """``variables`` are name: the metric whose label of that name is offered."""

    uid: str
    title: str
    text: str
    rows: dict[str, list[Panel]]
    variables: dict[str, str] = field(default_factory=dict)
