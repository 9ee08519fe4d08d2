"""Who is banned, as hubs that decide by themselves can agree on it: a number for each NodeId, of decisions about it.

Rules:
1. A ban and its taking back raise the NodeId's number by one: odd is banned, even is not. 0 is not kept.
2. Of two hubs' numbers the higher counts. It is the later decision by one who knew the other, and equal numbers mean
   the same. So it does not matter in which order, by which way or how often hubs tell each other.
3. What has no number, from a hub or a file that knows none, is a ban like any new one.
4. What was taken back stays as a number, so that nobody brings the ban again. Of those the oldest are forgotten first.

Not here: who may decide, and how it is kept (hub/admission.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["MOST", "Bans", "banned", "decide", "merge", "numbered", "trimmed"]

MOST: Final = 2**53
"""Of a number: what every JSON reader keeps."""

Bans = Mapping[str, int]
"""In the order of the decisions, as this hub has them."""


def banned(bans: Bans) -> frozenset[str]:
    """Those who are banned now."""
    return frozenset(node_id for node_id, number in bans.items() if number % 2)


def decide(bans: Bans, node_id: str, ban: bool) -> dict[str, int]:
    """After a decision; the same when it says what is so already."""
    number = bans.get(node_id, 0)
    if bool(number % 2) == ban:
        return dict(bans)
    rest = {one: known for one, known in bans.items() if one != node_id}
    return {**rest, node_id: number + 1}


def merge(mine: Bans, others: Bans, most: int) -> dict[str, int]:
    """Of both the higher. ValueError when more than ``most`` are banned then; of those that are not, the oldest go."""
    found = dict(mine)
    for node_id, number in others.items():
        if number > found.get(node_id, 0):
            found.pop(node_id, None)
            found[node_id] = number
    if len(banned(found)) > most:
        raise ValueError(f"more than {most} NodeIds are banned")
    return trimmed(found, most)


def trimmed(bans: Bans, most: int) -> dict[str, int]:
    """At most ``most`` that are not banned any more, the newest."""
    back = [node_id for node_id, number in bans.items() if not number % 2]
    old = set(back[: max(len(back) - most, 0)])
    return {node_id: number for node_id, number in bans.items() if node_id not in old}


def numbered(bans: Bans, names: Iterable[str], known: Any) -> dict[str, int]:
    """What a list of banned NodeIds says, if ``known`` are its numbers, and ``bans`` what is known here. ValueError
    when those are no numbers."""
    if known is None:
        return {one: bans.get(one, 0) + 1 - bans.get(one, 0) % 2 for one in names}
    if not isinstance(known, dict) or not all(type(one) is int and 0 < one < MOST for one in known.values()):
        raise ValueError("the numbers of bans are whole numbers from 1")
    return dict(known)
