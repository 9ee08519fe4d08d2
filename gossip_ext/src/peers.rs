//! Who may gossip with this endpoint, and the connections on which they do, so that whoever is taken off the list is cut
//! off at once. It knows nothing of swarms.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::PublicKey;
use iroh::endpoint::{Connection, WeakConnectionHandle};
use tokio::time::Instant;

use crate::close::{self, Close};
use crate::overview::{Quic, Reading};

/// Live gossip connections with one peer. Two are usual when both dial at once, and iroh-gossip leaves the older one
/// behind when it dials again; a peer that opens more than this loses its oldest.
const CONNECTIONS_A_PEER: usize = 4;

/// What QUIC had counted of a connection, and since when.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    count: u64,
    /// When it last grew.
    pub at: Instant,
}

impl Seen {
    fn new(at: Instant) -> Self {
        Self { count: 0, at }
    }

    fn look(&mut self, count: u64, now: Instant) {
        if count != self.count {
            *self = Self { count, at: now };
        }
    }
}

/// One gossip connection. Weak, since it must not live for longer than iroh-gossip wants it.
#[derive(Debug, Clone)]
pub struct Live {
    /// Of the connection, while there is one.
    pub handle: WeakConnectionHandle,
    /// The peer.
    pub peer: PublicKey,
    /// When the handshake was done.
    pub opened: Instant,
    /// Frames to the peer that QUIC answers: data and probes.
    pub asked: Seen,
    /// Since when none of them was answered.
    pub unanswered: Option<Instant>,
    /// Datagrams from the peer: whether it is there.
    pub heard: Seen,
    /// Stream frames to the peer: whether it reads.
    pub written: Seen,
    /// Stream frames from the peer.
    pub read: Seen,
    /// What QUIC counted, when it was last read.
    quic: Quic,
    congestion: Arc<AtomicU64>,
}

impl Live {
    fn new(connection: &Connection) -> Self {
        let now = Instant::now();
        Self {
            handle: connection.weak_handle(),
            peer: connection.remote_id(),
            opened: now,
            asked: Seen::new(now),
            unanswered: None,
            heard: Seen::new(now),
            written: Seen::new(now),
            read: Seen::new(now),
            quic: Quic::default(),
            congestion: Arc::default(),
        }
    }

    /// The connection, unless it has ended.
    pub fn connection(&self) -> Option<Connection> {
        self.handle
            .upgrade()
            .filter(|connection| connection.close_reason().is_none())
    }

    /// What it is like now; `None` when nobody holds it any more.
    fn reading(&mut self) -> Option<Reading> {
        let reading = Reading::of(&self.handle.upgrade()?, &self.congestion);
        self.quic = reading.quic;
        Some(reading)
    }

    /// Adds what QUIC has counted of it to what ended connections have. False: it is to be forgotten.
    fn retire(&mut self, ended: &mut Quic) -> bool {
        self.reading();
        ended.add(&self.quic);
        false
    }

    /// Ends it.
    pub fn close(&self, close: &Close) {
        if let Some(connection) = self.connection() {
            connection.close(close.code.into(), close.reason.as_bytes());
        }
    }

    /// Reads QUIC's counters. False when the connection has ended.
    fn look(&mut self, now: Instant, pause: Duration) -> bool {
        let Some(connection) = self.connection() else {
            return false;
        };
        let stats = connection.stats();
        self.quic = Reading::of(&connection, &self.congestion).quic;
        // An acknowledgement alone is never answered. What goes on without an answer is asked again and again.
        let asked = stats.frame_tx.stream + stats.frame_tx.ping;
        self.asked.look(asked, now);
        self.heard.look(stats.udp_rx.datagrams, now);
        if self.heard.at == now {
            self.unanswered = None;
        } else if let Some(since) = &mut self.unanswered {
            *since = (*since + pause).min(now);
        } else if self.asked.at == now {
            self.unanswered = Some(now);
        }
        self.written.look(stats.frame_tx.stream, now);
        self.read.look(stats.frame_rx.stream, now);
        true
    }
}

#[derive(Debug, Default)]
struct State {
    allowed: HashSet<PublicKey>,
    /// They may connect on `alkhub/1` too.
    framed: bool,
    /// Those that sent too much that does not hold, with the swarms that found it.
    shunned: HashMap<PublicKey, HashSet<u64>>,
    live: HashMap<PublicKey, Vec<Live>>,
    /// What QUIC counted of connections that are no more in `live`.
    ended: Quic,
    /// Those that iroh-gossip is made to lose: it must not dial them now.
    doomed: HashSet<PublicKey>,
}

impl State {
    fn refusal(&self, peer: &PublicKey) -> Option<Close> {
        if self.shunned.contains_key(peer) {
            return Some(close::shunned());
        }
        (!self.allowed.contains(peer)).then(|| close::no_peer(peer))
    }

    fn cut(&mut self, peer: &PublicKey, close: &Close) -> usize {
        let mut live = self.live.remove(peer).unwrap_or_default();
        for live in &mut live {
            live.close(close);
            live.retire(&mut self.ended);
        }
        live.len()
    }
}

/// The peers set of one endpoint.
#[derive(Debug, Default)]
pub struct Peers(Mutex<State>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The close with which this peer is refused, or `None`.
    pub fn refusal(&self, peer: &PublicKey) -> Option<Close> {
        self.lock().refusal(peer)
    }

    /// Whether this peer may be dialled.
    pub fn may_dial(&self, peer: &PublicKey) -> bool {
        let state = self.lock();
        !state.doomed.contains(peer) && state.refusal(peer).is_none()
    }

    /// From now on, or no longer, peers may connect on `alkhub/1` too.
    pub fn frame(&self, framed: bool) {
        self.lock().framed = framed;
    }

    /// Whether this peer may connect on `alkhub/1`.
    pub fn framed(&self, peer: &PublicKey) -> bool {
        let state = self.lock();
        state.framed && state.refusal(peer).is_none()
    }

    /// From now on, or no longer, a dial to this peer fails at once.
    pub fn doom(&self, peer: PublicKey, doomed: bool) {
        let mut state = self.lock();
        match doomed {
            true => state.doomed.insert(peer),
            false => state.doomed.remove(&peer),
        };
    }

    /// Lets a connection in, unless its peer is refused here or by `denied`. That is asked under the lock: whoever
    /// changes a set and then cuts, finds the connection or has been asked.
    pub fn enter(
        &self,
        connection: &Connection,
        denied: impl FnOnce() -> Option<Close>,
    ) -> Option<Close> {
        let peer = connection.remote_id();
        let mut state = self.lock();
        if let Some(refusal) = denied().or_else(|| state.refusal(&peer)) {
            return Some(refusal);
        }
        let State { live, ended, .. } = &mut *state;
        let live = live.entry(peer).or_default();
        live.retain_mut(|live| live.connection().is_some() || live.retire(ended));
        if live.len() >= CONNECTIONS_A_PEER {
            let mut oldest = live.remove(0);
            oldest.close(&close::unused());
            oldest.retire(ended);
        }
        live.push(Live::new(connection));
        None
    }

    /// Changes the set; who is removed is cut. Returns how many connections that ended.
    pub fn admit(&self, add: HashSet<PublicKey>, remove: &HashSet<PublicKey>, full: bool) -> usize {
        let mut state = self.lock();
        let mut gone: Vec<_> = remove.iter().copied().collect();
        if full {
            let before = std::mem::take(&mut state.allowed);
            gone.extend(before.difference(&add));
        }
        state.allowed.extend(add);
        gone.iter().for_each(|peer| {
            state.allowed.remove(peer);
        });
        gone.iter()
            .map(|peer| state.cut(peer, &close::unpeered()))
            .sum()
    }

    /// Ends every connection for which `denied` has a close.
    pub fn cut_denied(&self, denied: impl Fn(&PublicKey) -> Option<Close>) -> usize {
        let mut state = self.lock();
        let peers: Vec<_> = state.live.keys().copied().collect();
        let cut = |peer: &PublicKey| denied(peer).map_or(0, |close| state.cut(peer, &close));
        peers.iter().map(cut).sum()
    }

    /// From now on this swarm wants nothing to do with the peer.
    pub fn shun(&self, peer: PublicKey, swarm: u64) {
        let mut state = self.lock();
        state.shunned.entry(peer).or_default().insert(swarm);
        state.cut(&peer, &close::shunned());
    }

    /// The swarm is left, and what it held against peers is forgotten.
    pub fn forgive(&self, swarm: u64) {
        self.lock().shunned.retain(|_, swarms| {
            swarms.remove(&swarm);
            !swarms.is_empty()
        });
    }

    /// Whether a connection with this peer is there that `fresh` takes for usable.
    pub fn connected(&self, peer: &PublicKey, fresh: impl Fn(&Live) -> bool) -> bool {
        let state = self.lock();
        let live = state.live.get(peer);
        live.is_some_and(|live| {
            live.iter()
                .any(|live| live.connection().is_some() && fresh(live))
        })
    }

    /// Reads the counters of every connection, forgets those that ended, and returns the others, oldest first for each
    /// peer. `pause`: for how long nobody ran the runtime, which is not the peers' fault.
    pub fn look(&self, now: Instant, pause: Duration) -> Vec<Live> {
        let mut state = self.lock();
        let State { live, ended, .. } = &mut *state;
        live.retain(|_, live| {
            live.retain_mut(|live| live.look(now, pause) || live.retire(ended));
            !live.is_empty()
        });
        live.values().flatten().cloned().collect()
    }

    /// A reading of each connection, and what QUIC counted of those that have ended. What one of them did after it was last
    /// read (half a second at most) is not in it.
    pub fn readings(&self) -> (Vec<Reading>, Quic) {
        let mut state = self.lock();
        let mut ended = state.ended;
        let mut readings = Vec::new();
        for live in state.live.values_mut().flatten() {
            match live.reading() {
                Some(reading) => readings.push(reading),
                None => ended.add(&live.quic),
            }
        }
        (readings, ended)
    }

    /// Live connections.
    pub fn count(&self) -> usize {
        let state = self.lock();
        let live = state.live.values().flatten();
        live.filter(|live| live.connection().is_some()).count()
    }
}
