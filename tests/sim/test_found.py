"""Faults that the simulator has found, each as the small scenario that showed it. Not here: their seeds, which show
something else as soon as scenarios are drawn in another way."""

from __future__ import annotations

from broker.protocol.sequence import Sequences
from tests.sim.network import Weather
from tests.sim.runner import Run
from tests.sim.scenario import Action, Rings, Scenario, SpokeSpec, SubSpec


def play(
    seed: int,
    spokes: list[SpokeSpec],
    actions: list[Action],
    weather: Weather,
    rings: Rings,
    *,
    gentle: bool = False,
) -> Run:
    scenario = Scenario(
        seed=seed,
        gentle=gentle,
        weather=weather,
        rings=rings,
        spokes=tuple(spokes),
        actions=tuple(actions),
        length=6.0,
    )
    made = Run(scenario)
    made.run()
    return made


def test_who_hears_a_swarm_is_told_of_an_author_that_has_nothing_to_send_again() -> None:
    """The hub told only those whom it feeds by stream."""
    block = SubSpec(patterns=("t",), bound=2)
    play(
        208,
        [
            SpokeSpec(name="s4", subs=(SubSpec(patterns=("t",), since="start", bound=2),), unacked=10, retained=0,
                      rate=0.99, speed=1, gossips=True),
            SpokeSpec(name="s6", subs=(SubSpec(patterns=(">",), patience=0.0), block), gossips=True),
            SpokeSpec(name="s12", subs=(SubSpec(patterns=("t.a", "u"), since=3, patience=0.0),), unacked=2, retained=0,
                      rate=0.99, speed=1, pause=0.0, gossips=True),
        ],
        [
            Action(0.499, "publish", "s4", ("t", 40, 20)),
            Action(0.779, "publish", "s4", ("u", 3, 20)),
            Action(1.648, "crash", "h1", (20.0, 0.1, False)),
        ],
        Weather(latency=0.05, jitter=0.01, loss=0.02, room=1, burst=1, gossip_loss=0.02, message_bytes=300),
        Rings(events=10, bytes=4_000, carrier="gossip", gossips=True),
    )  # fmt: skip


def test_a_subscription_that_has_ended_asks_for_nothing() -> None:
    """It went on asking for its holes, and the hub went on answering, for half a minute."""
    ends = SubSpec(patterns=(">",), since="start", policy="disconnect", patience=0.0, bound=2)
    made = play(
        105,
        [SpokeSpec(name="s6", subs=(SubSpec(patterns=("t",), patience=0.0), ends), retained=0, rate=0.99, speed=1)],
        [Action(4.519, "publish", "s6", ("t.a", 40, 0))],
        Weather(latency=0.002, room=1, burst=64),
        Rings(events=3, bytes=4_000, patience=0.0),
    )
    spoke = made.spokes["s6"]
    assert spoke.subs[1]._sequences.verdicts()[0].missing, "it ended with a hole"
    assert spoke.subscriptions.repairs == 0


def test_an_author_does_not_wait_for_what_its_hub_has_given_up() -> None:
    """After a long split the hub had given up what the author then sent it, and never acknowledged that."""
    made = play(
        204,
        [
            SpokeSpec(name="s1", subs=(SubSpec(patterns=("t", "t.*"), patience=0.0, bound=10),), retained=0, rate=0.99,
                      speed=5, pause=0.3, gossips=True),
            SpokeSpec(name="s2", unacked=10, retained=5, rate=1.01, gossips=True),
            SpokeSpec(name="s4", subs=(SubSpec(patterns=("t.>",), policy="drop_oldest", bound=10),), gossips=True),
        ],
        [
            Action(2.557, "publish", "s2", ("t.b", 15, 0)),
            Action(3.046, "publish", "s2", ("t.b", 40, 400)),
            Action(3.285, "split", "net", (60.0, ("s1", "s2", "s4"))),
        ],
        Weather(latency=0.002, jitter=0.1, loss=0.02, room=1, burst=7, gossip_loss=0.3),
        Rings(events=3, bytes=600, carrier="gossip", gossips=True),
    )  # fmt: skip
    assert not made.spokes["s2"].publisher.unacknowledged


def test_a_new_sequence_begins_at_its_first_number_also_when_there_is_no_room() -> None:
    """A swarm's batch overtook the stream and found a full queue: the sequence began there, and called what came before
    settled. The verdict was ``complete``."""
    sequences: Sequences[str] = Sequences()
    sequences.left_out("t", "author", "epoch", 11, 0.0, new=True)
    verdict = sequences.verdict("t", "author", "epoch")
    assert verdict is not None
    assert (verdict.start, verdict.missing) == (1, ((1, 11),))


def test_what_one_hub_has_acknowledged_the_others_subscribers_need_not_have_had() -> None:
    """An author went to the other hub, whose subscribers began after what the first had acknowledged: a false
    complete."""
    at_two, at_one = ("h2", "h1"), ("h1", "h2")
    block = SubSpec(patterns=(">",), bound=10)
    made = play(
        53,
        [
            SpokeSpec(name="s4", subs=(SubSpec(patterns=(">",), policy="disconnect", bound=2),), unacked=10, rate=0.99,
                      speed=1, pause=0.0, gossips=True, ticket=at_two),
            SpokeSpec(name="s5", subs=(block,), unacked=10, retained=5, speed=5, pause=0.3, ticket=at_one),
        ],
        [
            Action(0.0, "join", "h2", ("h1",)),
            Action(0.130, "freeze", "h2", (9.0,)),
            Action(2.420, "publish", "s5", ("u", 1, 20)),
            Action(7.048, "crash", "h1", (20.0, 0.1, False)),
        ],
        Weather(latency=0.002, jitter=0.01, room=500, gossip_copies=0.1),
        Rings(carrier="auto", uplink=500.0, gossips=True),
    )  # fmt: skip
    assert [verdict.start for verdict in made.spokes["s4"].subs[0].verdicts] == [1]


def test_what_another_hub_has_acknowledged_subscribers_have_not_had_also_when_no_hub_is_there() -> None:
    """The same, while the topic had no swarm among hubs: the other hub had been cut off, and died."""
    made = play(
        5452,
        [
            SpokeSpec(name="s1", offers=("count",), retained=5, pause=0.3, gossips=True, ticket=("h1", "h2")),
            SpokeSpec(name="s4", subs=(SubSpec(patterns=(">",), policy="drop_oldest", patience=0.0, bound=1_000),),
                      unacked=10, retained=0, rate=0.99, pause=0.3, gossips=True, ticket=("h1", "h2")),
            SpokeSpec(name="s5", offers=("count", "relay"), subs=(SubSpec(patterns=("t.>",), patience=0.0, bound=2),),
                      unacked=2, retained=10_000, offset=2_981.73, speed=1, pause=0.0, gossips=True, ticket=("h1",)),
        ],
        [
            Action(0.0, "join", "h2", ("h1",)),
            Action(0.615, "cut", "h2", (4.0, 4.0)),
            Action(0.959, "publish", "s5", ("t.a", 1, 0)),
            Action(0.965, "cut", "s5", (0.1, 4.0)),
            Action(1.627, "crash", "h2", (20.0, 12.0, False)),
            Action(4.506, "publish", "s1", ("t.a", 1, 0)),
        ],
        Weather(latency=0.002, jitter=0.01, loss=0.02, room=5, burst=1, gossip_loss=0.3, message_bytes=300),
        Rings(events=3, patience=0.0, carrier="stream", uplink=5_000.0, gossips=True),
    )  # fmt: skip
    assert {verdict.start for verdict in made.spokes["s4"].subs[0].verdicts} == {1}


def test_a_swarm_of_hubs_that_has_just_ended_is_there_again_when_the_other_hub_is() -> None:
    """The topic's swarm was about to end when the other hub came back, which was then never invited."""
    play(
        169,
        [SpokeSpec(name="s1", subs=(SubSpec(patterns=("t", "t.*"), patience=0.0, bound=2),), unacked=10, rate=0.99,
                   speed=5, ticket=("h1", "h2"))],
        [
            Action(1.274, "publish", "s1", ("t.a", 15, 20)),
            Action(2.064, "join", "h2", ("h1",)),
            Action(5.875, "cut", "h2", (0.0, 0.0)),
            Action(6.974, "publish", "s1", ("t.a", 1, 400)),
        ],
        Weather(latency=0.0003, jitter=0.1, loss=0.3, room=1, burst=64, message_bytes=300),
        Rings(carrier="stream", uplink=5_000.0, gossips=True),
    )  # fmt: skip


def test_what_an_author_out_of_reach_may_still_have_is_not_lost_by_its_members_word() -> None:
    """Its partition had just healed and its batch came by gossip, but not yet its connection: the hub believed the only
    member that it does not have what was missed, and lost that."""
    made = play(
        7614,
        [
            SpokeSpec(name="s2", subs=(SubSpec(patterns=("t", "t.*"), since=3, patience=0.0, bound=2),), unacked=2,
                      offset=25_361.0, rate=0.99, speed=1, pause=0.0, gossips=True),
            SpokeSpec(name="s3", subs=(SubSpec(patterns=("t.>",)),), unacked=2, speed=5, gossips=True),
        ],
        [
            Action(0.150, "publish", "s2", ("t.a", 1, 0)),
            Action(0.574, "split", "net", (25.0, ("s2",))),
            Action(1.161, "publish", "s2", ("u", 40, 20)),
            Action(1.320, "publish", "s2", ("t.a", 3, 0)),
        ],
        Weather(latency=0.05, jitter=0.01, room=5, burst=1, gossip_loss=0.02),
        Rings(carrier="gossip", uplink=500.0, gossips=True),
        gentle=True,
    )  # fmt: skip
    assert made.checker.counts["lost"] == 0


def test_what_nobody_has_is_lost_also_to_who_never_hears_a_swarm_for_long() -> None:
    """Each time it lost a swarm it went on by stream, and counted its questions anew: pending for ever."""
    made = play(
        13,
        [
            SpokeSpec(name="s2", subs=(SubSpec(patterns=(">",), patience=0.0, bound=2),), retained=0,
                      offset=31_214.0, rate=0.99, speed=1, pause=0.3, gossips=True),
            SpokeSpec(name="s3", subs=(SubSpec(patterns=(">",), since="start", policy="disconnect", patience=0.0),),
                      retained=0, rate=0.99, pause=0.0, gossips=True),
        ],
        [
            Action(0.751, "publish", "s2", ("t.b", 40, 400)),
            Action(0.881, "ban", "s2", ()),
            Action(2.069, "publish", "s3", ("u", 3, 0)),
            Action(5.976, "publish", "s3", ("t.a", 3, 20)),
        ],
        Weather(latency=0.0003, loss=0.3, room=50, burst=1, gossip_loss=0.3, gossip_copies=0.1),
        Rings(events=10, carrier="gossip", uplink=5_000.0, gossips=True),
    )  # fmt: skip
    assert made.checker.counts["lost"]
