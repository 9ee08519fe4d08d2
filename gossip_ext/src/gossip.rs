//! iroh-gossip on this endpoint: its settings, its handler for the router, where peers can be dialled, and our own dials
//! before it asks a peer to let us join. Who may gossip is in peers.rs, topics are in swarm.rs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use iroh::address_lookup::EndpointInfo;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::Connection;
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh::{EndpointAddr, PublicKey, SecretKey};
use iroh_gossip::api::GossipSender;
use iroh_gossip::net::Gossip as Overlay;
use iroh_gossip::proto::{HyparviewConfig, PlumtreeConfig};
use tokio::sync::OnceCell;

use crate::admission::Admission;
use crate::metrics::Counters;
use crate::peers::Live;
use crate::sockets::Sockets;
use crate::swarm::Shared;

/// The protocol of iroh-gossip.
pub const GOSSIP: &[u8] = iroh_gossip::ALPN;

/// Below it iroh-gossip panics; above it one message is a second of a slow uplink.
pub const MESSAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_536;

/// Peers whose addresses are remembered: a large realm, some MB.
const LEARNT: usize = 10_000;

/// How long a peer may take to answer a dial of ours. A relay path needs a second or two.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// A connection with a peer that has carried a stream frame from us within this time is used for another swarm too. An
/// older one may be one half dead without anybody knowing (docs: iroh-gossip's send half ends on a message that is one
/// byte too long), so a new one is dialled beside it.
const FRESH: Duration = Duration::from_secs(3);

/// Messages that all swarms of this endpoint hand over before iroh-gossip's actor gets its turn. It takes what we publish
/// before what it hears, so a flood would keep it from hearing that a neighbour wants to join, to be spared duplicates or
/// to have a message again.
const BURST: u32 = 8;

/// How long closing may take, before everything is dropped.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// iroh-gossip keeps every payload for its own repair, 30 s by default: at 50,000 events/s of 256 B, some 1,400 batches
/// of 4 KiB, that is 170 MB a swarm. What its repair asks for is some round trips old, or as old as what a slow member has
/// queued; older holes are asked for over a stream.
const KEEP_PAYLOADS: Duration = Duration::from_secs(5);

/// How long it knows that it has seen a message, 90 s by default. It must outlive every way that a message can take:
/// payload caches, and the queues of members that are slow (with 15 s and a machine five times overloaded, messages came
/// round again and were flooded anew). At that rate it is 84,000 ids, 10 MB. What comes later still is flooded again but
/// not delivered: the chain calls it stale.
const KEEP_IDS: Duration = Duration::from_secs(60);

/// How long "I have these" is held, to be one packet for many messages: 5 ms by default. With it a member of 50 sent four
/// packets a delivery, and a machine with many members spent more on them than on the events.
const TELL_HAVING: Duration = Duration::from_millis(50);

/// How long after "I have it" a message is waited for before it is asked for, 80 ms by default, and after which a next
/// neighbour is asked, 40 ms. It is what mends a tree that broke, and every message that comes meanwhile is asked for by
/// itself, each maybe of another neighbour, which bends the tree anew: at 500 ms a young swarm of 50 took 5 s to come to rest
/// at 50 messages a second, at 150 one message. Shorter, and a flood brings more messages twice (docs/decisions/0006).
const ASK_FOR: Duration = Duration::from_millis(150);
const ASK_NEXT: Duration = Duration::from_millis(75);

/// How often payloads and ids are cleaned. It is also what the watchdog counts as a sign of life.
pub const EVICT: Duration = Duration::from_millis(500);

/// A neighbour that does not answer within 500 ms (the default) is taken for dead and forgotten; a first dial over a
/// relay, or a core that is busy, needs longer.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(2);

/// A peer's NodeId and addresses in the lists of peers that go round (shuffles): about 20 addresses. A list that is
/// larger than a message would end the send half of a connection, so small messages take short lists.
const PEER_BYTES: usize = 480;

fn membership(message_bytes: usize) -> HyparviewConfig {
    // Ourselves, 3 of the active view and 4 of the passive, when they fit.
    let listed = (message_bytes / PEER_BYTES).saturating_sub(1);
    let defaults = HyparviewConfig::default();
    let active = defaults.shuffle_active_view_count.min(listed);
    HyparviewConfig {
        neighbor_request_timeout: NEIGHBOUR_LIMIT,
        shuffle_active_view_count: active,
        shuffle_passive_view_count: defaults.shuffle_passive_view_count.min(listed - active),
        ..defaults
    }
}

fn broadcast() -> PlumtreeConfig {
    PlumtreeConfig {
        message_cache_retention: KEEP_PAYLOADS,
        message_id_retention: KEEP_IDS,
        cache_evict_interval: EVICT,
        dispatch_timeout: TELL_HAVING,
        graft_timeout_1: ASK_FOR,
        graft_timeout_2: ASK_NEXT,
        ..PlumtreeConfig::default()
    }
}

/// Where peers can be dialled, newest last.
#[derive(Debug, Default)]
struct Places {
    order: VecDeque<PublicKey>,
    known: HashSet<PublicKey>,
}

type Dial = Arc<OnceCell<bool>>;

/// Gossip on one endpoint.
#[derive(Debug)]
pub struct Gossip {
    /// iroh-gossip.
    pub overlay: Overlay,
    /// Of a message, as agreed in the realm.
    pub message_bytes: usize,
    /// Signs our batches.
    pub secret: SecretKey,
    sockets: Arc<Sockets>,
    admission: Arc<Admission>,
    counters: Arc<Counters>,
    places: Mutex<Places>,
    lookup: MemoryLookup,
    dials: Mutex<HashMap<PublicKey, Dial>>,
    swarms: Mutex<HashMap<u64, Weak<Shared>>>,
    /// Messages handed over in this turn.
    burst: tokio::sync::Mutex<u32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gossip {
    /// Starts iroh-gossip, which keeps to the first of the sockets. `lookup` is what that was built with.
    pub fn start(
        sockets: Arc<Sockets>,
        first: &iroh::Endpoint,
        message_bytes: usize,
        secret: SecretKey,
        lookup: MemoryLookup,
        admission: Arc<Admission>,
        counters: Arc<Counters>,
    ) -> Self {
        let overlay = Overlay::builder()
            .max_message_size(message_bytes)
            .membership_config(membership(message_bytes))
            .broadcast_config(broadcast())
            .spawn(first.clone());
        Self {
            overlay,
            message_bytes,
            secret,
            sockets,
            admission,
            counters,
            places: Mutex::default(),
            lookup,
            dials: Mutex::default(),
            swarms: Mutex::default(),
            burst: tokio::sync::Mutex::default(),
        }
    }

    /// Where a peer can be dialled; what was known is replaced.
    pub fn learn(&self, addr: EndpointAddr) {
        let mut places = lock(&self.places);
        if !places.known.insert(addr.id) {
            places.order.retain(|peer| *peer != addr.id);
        }
        places.order.push_back(addr.id);
        if places.order.len() > LEARNT
            && let Some(oldest) = places.order.pop_front()
        {
            places.known.remove(&oldest);
            self.lookup.remove_endpoint_info(oldest);
        }
        self.lookup.set_endpoint_info(addr);
    }

    /// Sees to it that there is a connection with the peer. iroh-gossip dials by itself too, but once a dial of its own has
    /// failed it keeps what it wanted to say and never dials that peer again; a connection that we bring cures that.
    pub async fn connect(&self, peer: PublicKey) -> bool {
        let fresh = |live: &Live| live.written.at.elapsed() < FRESH;
        if self.admission.peers.connected(&peer, fresh) {
            return true;
        }
        // Many swarms want the same peer at once: one dial for all.
        let dial = lock(&self.dials).entry(peer).or_default().clone();
        let connected = *dial.get_or_init(|| self.dial(peer)).await;
        let mut dials = lock(&self.dials);
        if dials
            .get(&peer)
            .is_some_and(|here| Arc::ptr_eq(here, &dial))
        {
            dials.remove(&peer);
        }
        connected
    }

    async fn dial(&self, peer: PublicKey) -> bool {
        // With the addresses and not by NodeId alone: iroh asks a lookup only while it has no path to the peer, and one that
        // has died counts for a while.
        let known = self.lookup.get_endpoint_info(peer);
        let addr = known.map_or_else(|| peer.into(), EndpointInfo::into_endpoint_addr);
        let connecting = async {
            let socket = self.sockets.current()?;
            socket.iroh.connect(addr, GOSSIP).await.ok()
        };
        let connected = tokio::time::timeout(DIAL_LIMIT, connecting).await;
        if let Ok(Some(connection)) = connected
            && self.overlay.handle_connection(connection).await.is_ok()
        {
            return true;
        }
        self.counters.gossip_dials_failed.inc();
        false
    }

    /// Hands a message over. It waits while iroh-gossip is behind: that is the back pressure. Whoever makes iroh-gossip hang,
    /// the watchdog ends. False when it has ended.
    pub async fn broadcast(&self, sender: &GossipSender, message: Bytes) -> bool {
        let mut burst = self.burst.lock().await;
        *burst += 1;
        if *burst >= BURST {
            *burst = 0;
            tokio::task::yield_now().await;
        }
        sender.broadcast(message).await.is_ok()
    }

    /// A swarm that is joined.
    pub fn enter(&self, swarm: &Arc<Shared>) {
        lock(&self.swarms).insert(swarm.id, Arc::downgrade(swarm));
    }

    /// It is left.
    pub fn forget(&self, swarm: u64) {
        lock(&self.swarms).remove(&swarm);
        self.admission.peers.forgive(swarm);
    }

    /// Every swarm that is joined.
    pub fn swarms(&self) -> Vec<Arc<Shared>> {
        lock(&self.swarms)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// What iroh-gossip counts of its own messages and neighbours, over all swarms.
    pub fn counters(&self) -> [(&'static str, u64); 10] {
        let metrics = self.overlay.metrics();
        [
            ("gossip_control_in", metrics.msgs_ctrl_recv.get()),
            ("gossip_control_out", metrics.msgs_ctrl_sent.get()),
            ("gossip_control_bytes_in", metrics.msgs_ctrl_recv_size.get()),
            (
                "gossip_control_bytes_out",
                metrics.msgs_ctrl_sent_size.get(),
            ),
            ("gossip_data_in", metrics.msgs_data_recv.get()),
            ("gossip_data_out", metrics.msgs_data_sent.get()),
            ("gossip_data_bytes_in", metrics.msgs_data_recv_size.get()),
            ("gossip_data_bytes_out", metrics.msgs_data_sent_size.get()),
            ("gossip_neighbours_up", metrics.neighbor_up.get()),
            ("gossip_neighbours_down", metrics.neighbor_down.get()),
        ]
    }

    /// Leaves every swarm and ends iroh-gossip, within bounds.
    pub async fn close(&self) {
        let swarms = self.swarms();
        swarms.iter().for_each(|swarm| swarm.leave());
        let left = async {
            for swarm in &swarms {
                swarm.left().await;
            }
        };
        // Too late is no matter: the endpoint ends every connection.
        let _ = tokio::time::timeout(CLOSE_LIMIT, left).await;
        // An actor that hangs on a neighbour would hang here too; it ends when the endpoint does.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.overlay.shutdown()).await;
    }
}

/// `/iroh-gossip/1` for iroh's routers. None of them ends it: one may be replaced.
#[derive(Debug)]
pub struct Handler(pub Overlay);

impl ProtocolHandler for Handler {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let handled = self.0.handle_connection(connection).await;
        handled.map_err(AcceptError::from_err)
    }
}
