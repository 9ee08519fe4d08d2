"""Every committed input through its target, as the fuzzer would run it; and faults planted to see that they are found.

Not here: the fuzzer itself (``make fuzz``), which needs atheris.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from broker.hub.limits import Limits
from broker.hub.readers import Readers
from broker.protocol import access, calls, codec, outcomes, place, registration, ring, routing, ticket, tracker
from broker.protocol.caller import Caller
from tests.fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).with_name("corpus")
INPUTS: Final = sorted((file.parent.name, file.name) for file in CORPUS.glob("*/*"))
MAX_FILES, MAX_BYTES = 400, 500_000

FAULTS: Final[dict[tuple[str, str], tuple[object, str, Any]]] = {
    ("messages", "nesting"): (codec, "_check_nesting", lambda _value: None),
    ("messages", "twice"): (registration, "_bad", lambda *_: ValueError("not a FrameError")),
    ("frames", "cut-short"): (codec.FrameReader, "finish", lambda _reader: None),
    ("batches", "other-events"): (place, "origin", lambda _meta: None),
    ("details", "no-request-id"): (calls, "request_id_of", lambda detail, _type: str(detail["requestId"])),
    ("offers", "never-balanced"): (registration._Offer, "pick", lambda offer: offer.peers[0]),
    ("calls", "late-children"): (calls.CallTable, "_remember_aborted", lambda _table, _id: None),
    ("calls", "unbounded"): (calls.CallLimits, "check_room", lambda *_: None),
    ("streams", "no-credit"): (Caller, "consumed", lambda *_: []),
    ("again", "items-not-counted"): (
        outcomes.Outcomes,
        "item",
        lambda memory, asked, item: memory._keep(asked, asked.life.sent, item),
    ),
    ("again", "credit-for-more"): (
        outcomes.Outcomes,
        "credited",
        lambda memory, life, one, n: memory._let_go(life.calls[one], min(n + 1, len(life.calls[one].frames))),
    ),
    ("subscriptions", "left-in-the-trie"): (routing.Subscriptions, "_prune", lambda *_: None),
    ("ring", "pauses-forgotten"): (ring.Ring, "pause", lambda *_: None),
    ("sequence", "losses-forgotten"): (tracker, "add_range", lambda *_: None),
    ("access", "all-match"): (access, "matches", lambda _one, _pattern: True),
    ("tickets", "unchecked"): (ticket, "_fault", lambda *_: None),
    ("hub", "left-in-the-rings"): (Readers, "gone", lambda *_: None),
    ("hub", "unlimited"): (Limits, "subscriptions", lambda _limits, _session, patterns: patterns),
}


def test_every_target_has_a_corpus_and_all_of_them_are_small() -> None:
    assert {target for target, _ in INPUTS} == TARGETS.keys()
    assert len(INPUTS) <= MAX_FILES
    assert sum((CORPUS / target / name).stat().st_size for target, name in INPUTS) <= MAX_BYTES


@pytest.mark.parametrize(("target", "name"), INPUTS, ids=["-".join(one) for one in INPUTS])
def test_no_input_of_the_corpus_fails(target: str, name: str) -> None:
    TARGETS[target]((CORPUS / target / name).read_bytes())


@pytest.mark.parametrize(("target", "fault"), FAULTS, ids=["-".join(one) for one in FAULTS])
def test_the_corpus_finds_a_fault(target: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts mean what they meant, and targets see what they saw, when the inputs were committed. After a change of a
    model or of the hub it may take a minute of ``make fuzz`` to have an input again that does."""
    monkeypatch.setattr(*FAULTS[target, fault])
    for file in sorted(CORPUS.joinpath(target).iterdir(), key=lambda file: file.name != f"kept-{fault}"):
        try:
            TARGETS[target](file.read_bytes())
        except Exception:
            return
    pytest.fail("every input passes")
