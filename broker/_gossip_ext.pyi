"""The Rust extension: an iroh endpoint, framed streams, a batch inbox, fan-out of shared buffers. This is its manual.

It moves bytes and decides nothing: who may connect is a pair of sets given from Python, everything else is policy
elsewhere. Network work happens in one tokio runtime; nothing here calls back into Python. A program either
lets :func:`start_thread` run it beside any asyncio loop, or drives it from the loop's own thread with :func:`drive`.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, final

__all__ = [
    "BATCH", "CALLS", "CLOSED", "DATAGRAM", "DIAL_FAILED", "DRAINED", "FRAMES", "HEAD", "LAGGED", "NEIGHBOUR",
    "OPENED", "SWARM_DRAINED", "TOPICS", "ConnectionStats", "Endpoint", "Frames", "Group", "Overview", "Relay",
    "Swarm", "drive", "event_hash", "forget", "generate_secret", "node_id", "open_batch", "runtime_stats", "sign",
    "start_thread", "topic_id", "verify",
]  # fmt: skip

# Inbox item kinds: the first member of each tuple that Endpoint.drain returns.
OPENED: Final[int]  # (OPENED, conn: int, node_id: str, incoming: bool, token: int)
FRAMES: Final[int]  # (FRAMES, conn: int, frames: list[bytes])  payloads without their length prefix, in order
CLOSED: Final[int]  # (CLOSED, conn: int, code: int | None, reason: str, remote: bool)  last item of a connection
# code: the application close code of whoever closed (remote: the peer); 0 also for a peer that finished its stream at a
# frame border and said nothing for 1 s; None when the path died (reason "idle timeout") or the stream was reset.
# Codes given here, each with a reason that names the fault: 1 going away, 16 empty frame, 17 frame too large, 18 frame
# cut short, 32 not admitted, 33 banned, 36 second stream, 37 no stream or first frame in time (or too many silent
# peers), 39 frame too slow.
DRAINED: Final[int]  # (DRAINED, conn: int)  a lane that refused a send has room again
DIAL_FAILED: Final[int]  # (DIAL_FAILED, token: int, kind: str, code: int | None, message: str)
DATAGRAM: Final[int]  # (DATAGRAM, conn: int, payload: bytes)
NEIGHBOUR: Final[int]  # (NEIGHBOUR, swarm: int, node_id: str, up: bool)
BATCH: Final[int]  # (BATCH, swarm: int, author: str, epoch: str, first_seq: int, events: list | tuple | int)
# A checked batch of consecutive events, maybe out of order: JSON messages, and (size, event_hash) for those above the
# message limit, to be had by stream. Joined for ``parts``: codec.Parts, if all have them; for ``count``: their number.
HEAD: Final[int]  # (HEAD, swarm: int, author: str, epoch: str, seq: int)  the author's newest number, signed
LAGGED: Final[int]  # (LAGGED, swarm: int)  gossip overran this program: batches are gone, nobody knows which
SWARM_DRAINED: Final[int]  # (SWARM_DRAINED, swarm: int)  a swarm that refused a publish has room again

# Lanes of a connection's writer. Everything in CALLS goes before anything in TOPICS.
CALLS: Final[int]
TOPICS: Final[int]

def generate_secret() -> bytes:
    """A new Ed25519 secret key, 32 bytes."""

def node_id(secret: bytes) -> str:
    """The NodeId (public key, 64 hex digits) of a secret key. ValueError unless it is 32 bytes."""

def sign(secret: bytes, message: bytes) -> bytes:
    """Ed25519 signature, 64 bytes."""

def verify(node_id: str, message: bytes, signature: bytes) -> bool:
    """Whether the signature is the NodeId's. False for a malformed NodeId or signature, never an exception."""

def topic_id(realm_secret: bytes, topic: str, generation: int) -> bytes:
    """The swarm id of a topic, 32 bytes: BLAKE3 keyed with the realm's secret (32 bytes). Who knows it may join."""

def event_hash(message: bytes) -> bytes:
    """BLAKE3 of an event as it travels, 32 bytes."""

def open_batch(
    topic: str, data: bytes, hubs: Sequence[str] = ...
) -> tuple[str, str, int, list[bytes | tuple[int, bytes]]]:
    """(author, epoch, first_seq, frames) of a batch that came another way than by gossip. ValueError, beginning with
    the counter's name (``malformed``, ``wrong_topic``, ``bad_signature``, ``not_allowed``), if it does not hold."""

def start_thread() -> None:
    """Runs the runtime on a thread of its own; a second call does nothing."""

def drive(fd: int, timeout: float | None, keep: bool = False) -> bool:
    """Runs the runtime on this thread until items arrive in an inbox (or a drain left some), ``fd`` (an epoll
    descriptor, open for the whole call) is readable, a signal arrives, or ``timeout`` seconds have passed (None: no
    limit; 0 or less: one turn). It may return early without any of these. Without the GIL. RuntimeError while another
    thread is in here. An inbox that nobody drains ends one call, not every one. For signals it puts a descriptor
    of its own into ``signal.set_wakeup_fd`` while nobody else's is there; a handler that raises, raises from here.
    True: ``fd`` may be readable. ``keep``: the same ``fd`` comes again, and :func:`forget` before it is closed. While
    news come often it stays awake for 0.4 ms before it sleeps."""

def forget(fd: int) -> None:
    """Ends what ``keep`` of :func:`drive` began."""

def runtime_stats() -> dict[str, float]:
    """tokio's runtime, which all endpoints of the process share. Now: workers, alive_tasks, queue_depth (tasks that
    were woken from outside and wait for their turn). Since it began: busy_seconds, parks (times that it found nothing
    to do)."""

@final
class ConnectionStats:
    """A reading of one connection. Bytes and frames count since it opened; times are seconds."""

    path: str
    """``direct`` or ``relay``: the path in use. While none has been chosen what the open ones are, ``mixed`` if they
    are both; ``none`` without any. A connection that has moved to a direct path keeps the other one to fall back to."""
    remote_addr: str
    rtt: float
    bytes_sent: int
    bytes_received: int
    lost_packets: int
    frames_sent: int
    frames_received: int
    queued_bytes: int
    """In the writer's two lanes, not yet handed to QUIC."""
    queued_frames: int
    inbox_bytes: int
    """Read from the peer and not yet drained by Python, plus 64 for each frame: what ``inbox_bytes`` bounds."""

@final
class Overview:
    """A reading of a whole endpoint. Its dicts have a key for each protocol: ``alkhub/1`` and ``/iroh-gossip/1``."""

    quic: dict[str, dict[str, int]]
    """Since bind, over live and ended connections: datagrams_in, datagrams_out, bytes_in, bytes_out (UDP payloads),
    packets_out, packets_lost, bytes_lost (in lost packets: what QUIC sends again) and congestion_events. They never go
    down; of gossip, what an ended connection did in its last half second may be missing, and so may the congestion
    events of a path that has closed."""
    rtt: dict[str, dict[str, tuple[list[int], float]]]
    """Round trips of live connections by path (:attr:`ConnectionStats.path`): how many are within each bound and above
    the one before, those above all bounds last; and their sum in seconds."""
    paths: list[tuple[int, str]]
    """(conn, path) of every framed connection."""
    queued_bytes: int
    """In the writers of all framed connections."""
    queued_frames: int
    inbox_bytes: int
    sockets: list[str]
    """Local addresses ``ip:port`` of the UDP sockets; empty after close."""

@final
class Endpoint:
    """One identity, one UDP socket (two after :meth:`rebuild`), a router for every ALPN. Close it, or it closes when it
    is dropped."""

    @staticmethod
    def bind(
        secret: bytes,
        *,
        bind: str = "127.0.0.1:0",
        relay_urls: Sequence[str] = ...,
        relay_ca: bytes | None = None,
        accept: bool = False,
        open: bool = False,
        max_frame_bytes: int = 1_048_576,
        calls_queue_bytes: int = 8_388_608,
        topics_queue_bytes: int = 1_048_576,
        inbox_bytes: int = 4_194_304,
        open_timeout: float = 10.0,
        frame_timeout: float = 30.0,
        idle_timeout: float = 15.0,
        gossip_message_bytes: int = 0,
        lookup: str = "",
    ) -> Endpoint:
        """Binds ``bind`` (``ip:port``, ``[v6]:port``; port 0 is a free one) and contacts nobody, unless relays are
        given. Those are asked by QUIC for this endpoint's public address, at the UDP port of their URL (7842 for one
        without); their names are looked up as the system says. ``relay_ca``: PEM, the only authorities to believe
        about relays, in place of those that browsers believe. ``accept`` takes incoming connections; ``open`` admits
        every NodeId that is not denied (default: only the allow set). ``*_queue_bytes`` bound each connection's lanes;
        ``inbox_bytes`` bounds what a connection may have read ahead of Python, then its reader stops and QUIC pushes
        back on the peer. ``open_timeout``: an accepted connection must bring its stream and the header of its first
        frame in time; before that it is unknown to Python. ``frame_timeout``: a frame once begun must be whole in time
        (when this side did not read is not counted). ``idle_timeout``: after which a peer that fell silent is dead;
        keep-alives go out every third of it, 5 s at most. With relays a path is left for another after half of that
        silence. Measured with ``kill -9``: noticed after idle_timeout while sending, up to 1.3 times that while idle. A
        peer that starts again on the same port is noticed no sooner: iroh draws the key of its stateless resets anew in
        each process. Without ``accept`` all who come are refused. ``gossip_message_bytes``: of a gossip message, the
        same in the whole realm (512 to 65,536; 0: this endpoint does not gossip). With it ``/iroh-gossip/1`` is
        accepted, from the peers of :meth:`admit_peers` alone.
        ``lookup``: URL of a pkarr service. Peers whose addresses are not known are asked for there, and with ``accept``
        this endpoint says there where it is; empty, nobody is asked or told.
        Raises broker.errors.BindError (names the address), ValueError for malformed arguments."""

    @property
    def node_id(self) -> str: ...
    def addrs(self) -> list[str]:
        """Direct addresses ``ip:port`` at which it can be dialled (the bound socket; for 0.0.0.0, the interfaces' and
        what relays say of a public one)."""

    def relay_urls(self) -> list[str]:
        """The relay that this endpoint is at home on: peers reach it there. All that it has, before that is known."""

    def home_relay(self) -> tuple[str, bool, str | None, bool] | None:
        """The same: (URL, connected, what is wrong as far as it is known, whether the relay refuses this NodeId)."""

    def insert_relay(self, url: str) -> None:
        """From now on the relay may be chosen. This and all that follow: ValueError for a malformed URL, RuntimeError
        for an endpoint that was bound without relays."""

    def remove_relay(self, url: str) -> None:
        """The relay is not chosen any more, and another one takes its place. What goes over it now may go on for up to
        a minute."""

    def renew_relay(self, url: str) -> None:
        """A new connection to the relay takes the place of the one that there is, which may be dead."""

    def renew_relays(self) -> None:
        """All of them. Nothing happens without any."""

    def rebuild(self) -> None:
        """Another socket, at a free port of the same local address and with the same identity, has the relays from now
        on, and dials. What is direct stays where it is, and the first socket's port is dialled as before; connections
        that go by relay are ended, with the reason, once the other is connected to one. Next time that other one is
        replaced, and its connections end with code 1. RuntimeError for an endpoint that was bound without relays."""

    def rebuilt(self) -> str | None:
        """How that ended, once: empty, or what went wrong and left everything as it was."""

    def lost_relays(self) -> list[str]:
        """Relays that a connection was lost to and that let nobody in, once each time. For an endpoint with several."""

    def probe(self, url: str, timeout: float) -> None:
        """Dials this endpoint through one relay, as a stranger would who has no other way. One at a time; it takes up
        to 2 s more than ``timeout`` to find out why nobody answered, and ends in :meth:`probed`. The NodeId that
        probes is another one, made from the secret; our own relays let it in on this one's word."""

    def probed(self) -> tuple[str, float, str] | None:
        """The end of a probe, once: ``ok``; ``unreachable`` (the relay), ``silent`` (the relay is there, and does not
        bring us through), or ``refused`` (it lets no probe in); the seconds, and what is wrong."""

    def network_change(self) -> None:
        """Addresses or routes may have changed: look at them again. iroh watches them itself, so this is for systems
        that do not tell it."""

    def fileno(self) -> int:
        """An eventfd, readable while the inbox has items: for ``loop.add_reader``."""

    def pending(self) -> bool:
        """Whether the inbox has items. One atomic read."""

    def drain(self) -> list[tuple[Any, ...]]:
        """Everything that has arrived, in order per connection, and lowers the eventfd. At most ~4 MiB of frames a
        call: the eventfd stays up when there is more. Frames handed out no longer count against ``inbox_bytes``."""

    def dial(
        self, token: int, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str] = ..., timeout: float = 10.0
    ) -> None:
        """Connects, opens the stream and reports OPENED with ``token``, or DIAL_FAILED: ``unreachable``, ``refused``
        (with the close code, if the peer gave one) or ``closed`` (this endpoint). The stream is opened at once, but the
        peer sees it only when something is sent. The dialler's handshake is done before the peer's, so a peer that
        does not admit us is usually OPENED first and then CLOSED with its code; DIAL_FAILED with it is possible.
        ValueError for a malformed NodeId or address, broker.errors.Closed after close."""

    def send(self, conn: int, frames: bytes | Sequence[bytes] | Frames, lane: int = ...) -> bool:
        """Queues one payload, or several in one go, all or none. False: the lane is full (DRAINED follows) or the
        connection is gone (its CLOSED is in the inbox or was). ValueError for an empty payload or one above
        max_frame_bytes. ``lane`` is CALLS unless given. A lane with nothing queued takes any single send whose payloads
        are within max_frame_bytes."""

    def pack(self, frames: Sequence[bytes]) -> Frames:
        """Frames payloads once, to be sent to one connection after the other: they share the buffer. ValueError as for
        :meth:`send`."""

    def send_datagram(self, conn: int, payload: bytes) -> bool:
        """One QUIC datagram, no order, no repair. True: QUIC sends it once, and whether it arrives nobody is told.
        False: the connection is gone, or QUIC holds 256 KiB of its datagrams already. broker.errors.EventTooLarge names
        the path's limit (0: the peer takes none)."""

    def max_datagram_size(self, conn: int) -> int | None:
        """What one datagram holds on this connection's path now. None: the peer takes none, or it is gone."""

    def group(self) -> Group:
        """A new, empty set of this endpoint's connections for fan-out."""

    def close_connection(self, conn: int, code: int, reason: str) -> None:
        """Ends one connection when the peer's QUIC has acknowledged what its CALLS lane held, or after 1 s. TOPICS is
        left behind. Only the first close of a connection counts; unknown ids are ignored."""

    def count_only(self, conn: int) -> None:
        """From now on this connection's frames are counted (ConnectionStats.frames_received) and dropped: a native
        subscriber for measurements."""

    def write_at_once(self, conn: int) -> None:
        """The peer takes any number of small writes unread: they are not gathered for 5 ms when it sends nothing."""

    def stats(self, conn: int) -> ConnectionStats | None:
        """None when the connection is gone."""

    def paths(self, conn: int) -> list[tuple[str, bool, int]]:
        """The open paths of a connection: QUIC's name, whether it is by relay, and the datagrams that came over it (one
        every third of ``idle_timeout`` at least while it lives). Empty when the connection is gone."""

    def queued(self) -> list[tuple[int, int]]:
        """(conn, queued bytes) of every connection that has any."""

    def admit(self, *, open: bool, allow: Sequence[str], deny: Sequence[str]) -> list[int]:
        """Replaces the admission sets; deny beats allow beats open. Checked after the handshake of each incoming
        connection for every ALPN: a refused one is closed with code 32 (``not admitted``) or 33 (``banned``) and
        costs no Python. Returns the live connections that the new sets no longer admit, and closes them."""

    def admit_peers(
        self, add: Sequence[str], remove: Sequence[str] = ..., *, full: bool = False, framed: bool = False
    ) -> None:
        """Who may gossip with this endpoint, in either direction; ``full``: ``add`` takes the place of the whole set.
        Who is removed, and whoever :meth:`admit` denies, has its gossip connections closed at once (33). Asked in the
        handshake: a NodeId that is not in the set is refused with 32 before gossip sees it. A swarm that gets more than
        10 batches in 10 s that do not hold from one neighbour's own hand refuses it (33) until the swarm is left.
        ``framed``: from now on all of the set may connect on ``alkhub/1`` too, as if :meth:`admit` had them; who leaves
        the set is not cut there."""

    def learn(self, node_id: str, addrs: Sequence[str], relay_urls: Sequence[str] = ...) -> None:
        """Where a peer can be dialled by gossip, in place of what was learnt before. The newest 10,000 stay."""

    def join(
        self,
        topic: str,
        id: bytes,
        peers: Sequence[str],
        *,
        hubs: Sequence[str] = ...,
        authors: Sequence[str] | None = None,
        inbox_bytes: int = 4_194_304,
        keep_bytes: int = 1_048_576,
        events: Literal["frames", "parts", "count"] = "frames",
    ) -> Swarm:
        """Joins a topic's swarm by way of ``peers`` (NodeIds whose addresses were learnt; none: others join by way of
        us). ``hubs`` may publish, and sign on behalf of other authors; ``authors``: who else may publish (None: all).
        ``inbox_bytes`` bounds what was received and not drained: beyond it gossip overruns us and LAGGED says so.
        ``keep_bytes`` of the newest signed batches are kept for :meth:`Swarm.batches`. Joining a second id of a topic
        beside the first is allowed (a new generation). RuntimeError without gossip_message_bytes."""

    def overview(self, rtt_bounds: Sequence[float]) -> Overview:
        """One walk over all connections, for whoever scrapes: about 2 us each. ``rtt_bounds``: seconds, ascending."""

    def counters(self) -> dict[str, int]:
        """Totals since bind: accepted, dialled, refused_not_admitted, refused_banned, bad_frames, stream_timeouts,
        frame_timeouts, second_streams, frames_in, frames_out, bytes_in, bytes_out, wakeups, drained_items, lane_full,
        datagrams_in, datagrams_out, datagrams_dropped (received, and no room for it), datagrams_full,
        datagrams_too_large, datagrams_unsupported (not sent, and why), connections_opened, connections_closed (of all
        protocols), udp_datagrams_in, udp_batches_in (system calls), holepunch_attempts, relay_connects,
        relay_connects_failed, relay_disconnects, relay_bytes_in, relay_bytes_out, direct_bytes_in, direct_bytes_out,
        paths_to_direct, paths_to_relay (framed connections that went over), relay_cut (framed ones ended because their
        relay was gone and there was another, or by :meth:`rebuild`), gossip_dials_failed, gossip_cut (connections of
        removed, denied or shunned peers), gossip_stalled (of peers that held up all others: 38), gossip_unused;
        refusals on ``/iroh-gossip/1`` count as refused_not_admitted and refused_banned too. While it gossips, what
        iroh-gossip counts: gossip_control_in, _out, _bytes_in, _bytes_out, gossip_data_in, _out, _bytes_in, _bytes_out,
        gossip_neighbours_up, gossip_neighbours_down. And now: gossip_connections."""

    def close(self, timeout: float = 2.0) -> None:
        """Closes all connections (code 1) and the socket; for ``timeout`` s at most peers may hear it. Idempotent."""

@final
class Frames:
    """What :meth:`Endpoint.pack` makes."""

@final
class Group:
    """Connections that get the same bytes. Membership is by conn id; a connection that ends leaves by itself."""

    def add(self, conn: int) -> bool:
        """False when the connection is gone."""

    def remove(self, conn: int) -> bool: ...
    def members(self) -> list[int]: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: int, /) -> bool: ...
    def send(self, frames: Sequence[bytes]) -> list[int]:
        """Queues the payloads on every member's TOPICS lane: framed once, one shared buffer, all or none for each
        member. Returns the members whose lane was full: they got nothing, and have left the group (DRAINED follows
        when there is room)."""

    def datagram(self, payload: bytes) -> tuple[int, int]:
        """One datagram to every member: how many QUIC sends, and how many were left out, each counted in
        Endpoint.counters (datagrams_full, datagrams_too_large, datagrams_unsupported). Nobody leaves the group."""

@final
class Relay:
    """A relay server for iroh: NodeIds that connect to it reach each other through it, whatever NAT they are behind. It
    sees who talks to whom and how much, and nothing of what they say. Close it, or it closes when it is dropped."""

    @staticmethod
    def start(
        *,
        bind: str = "127.0.0.1:0",
        tls_cert: bytes | None = None,
        tls_key: bytes | None = None,
        open: bool = False,
        allow: Sequence[str] = ...,
    ) -> Relay:
        """Serves https at ``bind`` (``ip:port``) and QUIC address discovery at the same port of UDP (at 7842 beside
        443, which no URL names). ``tls_cert`` is a PEM chain, ``tls_key`` its PEM key; without both it is plain http,
        for a lab: whoever listens in sees who is there, and nobody behind NAT learns its address, so all stays with
        the relay. ``open`` admits every NodeId, else ``allow`` alone. Raises broker.errors.BindError (names the
        address), ValueError for a certificate or key that cannot be right (it begins with ``tls_cert:`` or
        ``tls_key:``)."""

    def address(self) -> str:
        """``ip:port`` of TCP."""

    def quic_address(self) -> str | None:
        """``ip:port`` of UDP; None without TLS."""

    def admit(self, *, open: bool, allow: Sequence[str]) -> int:
        """Replaces who is admitted, and ends the connections of the others, within 30 s at worst for one that is just
        being made. Returns how many NodeIds that cuts off."""

    def certify(self, tls_cert: bytes, tls_key: bytes) -> None:
        """Shows this certificate to whoever connects from now on. ValueError as from :meth:`start`; then the one before
        stays."""

    def counters(self) -> dict[str, int]:
        """Totals: accepted and refused (connections), cut (NodeIds no longer admitted), bytes_in, bytes_out,
        packets_in, packets_out, packets_dropped (nobody of that NodeId was there). And now: clients (NodeIds),
        connections."""

    def close(self, timeout: float = 2.0) -> None:
        """Ends all connections and frees the ports. A second call does nothing."""

@final
class Swarm:
    """One topic's gossip overlay, as this endpoint is in it. It is left by :meth:`leave`, or when it is dropped."""

    @property
    def id(self) -> int:
        """What inbox items call it; never that of a connection."""

    @property
    def topic(self) -> str: ...
    def publish(self, epoch: str, first_seq: int, frames: Sequence[bytes], *, author: str | None = None) -> bool:
        """Queues consecutive events (whole JSON messages, numbered from ``first_seq``) to be batched, signed and
        broadcast; all or none. ``author``: on whose behalf, if not our own. Batches close at the message size, or 5 ms
        after their first event; after 5 ms of rest an event goes at once. False: the queue is full (SWARM_DRAINED
        follows). ValueError for malformed arguments. What is published here does not come back."""

    def head(self, epoch: str, seq: int, *, author: str | None = None) -> None:
        """Tells the swarm the newest number of a sequence, signed. It goes after what publish has queued."""

    def relay(self, message: bytes) -> None:
        """Broadcasts a message as it is, such as one of :meth:`batches`: it is believed for its own signature or not at
        all. Waits for room."""

    def join_peers(self, peers: Sequence[str]) -> None:
        """More peers to join by way of: after a silence, or when halves must find each other again. A peer with which
        nothing was exchanged for 3 s is dialled anew, where it was learnt to be last."""

    def allow(self, *, hubs: Sequence[str], authors: Sequence[str] | None) -> None:
        """Replaces who may sign for others, and who may publish."""

    def batches(self, author: str, epoch: str, a: int, b: int, max_bytes: int = 262_144) -> list[bytes]:
        """The kept signed batches that hold any of ``a..b``, in order; our own too."""

    def neighbours(self) -> list[str]: ...
    def message_bytes(self) -> int:
        """An event up to this size goes whole. A larger one goes by reference, unless it fits without what its batch
        says anyway (topic, author, epoch)."""

    def counters(self) -> dict[str, int]:
        """Totals since join: batches_out, events_out, references_out, heads_out, batches_in, events_in, heads_in,
        bytes_in, bytes_out, lagged, malformed, wrong_topic, bad_signature, not_allowed, bad_chain, stale, over_rate,
        neighbours_up, neighbours_down, publish_full; and now: neighbours, queued_events, kept_bytes."""

    def leave(self) -> None:
        """Leaves the swarm: neighbours are told, what is queued is sent first, for 1 s at most. A second call does
        nothing."""
