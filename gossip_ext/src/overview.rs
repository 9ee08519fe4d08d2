//! A reading of a whole endpoint, for whoever scrapes it: one walk over its connections, and what QUIC counted over those
//! that have ended. Nothing is counted here as it happens: QUIC does that anyway.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iroh::TransportAddr;
use iroh::endpoint::Connection;
use pyo3::prelude::*;

use crate::gossip::GOSSIP;
use crate::hub::{ALPN, Core};
use crate::paths;

const KINDS: usize = 8;

/// What [`Quic`] counts, in its order.
const NAMES: [&str; KINDS] = [
    "datagrams_in",
    "datagrams_out",
    "bytes_in",
    "bytes_out",
    "packets_out",
    "packets_lost",
    "bytes_lost",
    "congestion_events",
];

/// What QUIC has counted, of one connection or of many.
#[derive(Debug, Default, Clone, Copy)]
pub struct Quic([u64; KINDS]);

impl Quic {
    /// Adds what `other` counts.
    pub fn add(&mut self, other: &Self) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(sum, n)| *sum += n);
    }

    /// Whichever of both is more, one by one.
    pub fn most(&mut self, other: &Self) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(most, n)| *most = n.max(*most));
    }

    fn named(&self) -> HashMap<&'static str, u64> {
        NAMES.into_iter().zip(self.0).collect()
    }
}

/// What a connection is like now, and what QUIC has counted of it.
#[derive(Debug)]
pub struct Reading {
    /// `direct`, `relay`, `mixed` or `none`, see [`paths::kind`].
    pub path: &'static str,
    /// Where the peer is on the path in use; `None` without one.
    pub remote: Option<TransportAddr>,
    /// Of the path in use.
    pub rtt: Duration,
    /// Since it opened.
    pub quic: Quic,
}

impl Reading {
    /// Now. `congestion` keeps the events that were seen: QUIC counts them by path, and forgets a path that has closed.
    pub fn of(connection: &Connection, congestion: &AtomicU64) -> Self {
        let paths = connection.paths();
        let mut events = 0;
        let (mut remote, mut rtt) = (None, Duration::ZERO);
        for path in paths.iter() {
            let stats = path.stats();
            events += stats.congestion_events;
            if path.is_selected() || remote.is_none() {
                remote = Some(path.remote_addr().clone());
                rtt = stats.rtt;
            }
        }
        let events = congestion.fetch_max(events, Ordering::Relaxed).max(events);
        let stats = connection.stats();
        Self {
            path: paths::kind(&paths),
            remote,
            rtt,
            quic: Quic([
                stats.udp_rx.datagrams,
                stats.udp_tx.datagrams,
                stats.udp_rx.bytes,
                stats.udp_tx.bytes,
                stats.sent_packets,
                stats.lost_packets,
                stats.lost_bytes,
                events,
            ]),
        }
    }
}

/// Round trips of the connections with one kind of path: how many are within each bound and above the one before, those
/// above all bounds last, and their sum.
type Trips = (Vec<u64>, f64);

/// One protocol's connections.
#[derive(Default)]
struct Protocol {
    quic: Quic,
    trips: HashMap<&'static str, Trips>,
}

impl Protocol {
    fn count(&mut self, reading: &Reading, bounds: &[f64]) {
        self.quic.add(&reading.quic);
        let rtt = reading.rtt.as_secs_f64();
        let (counts, sum) = self
            .trips
            .entry(reading.path)
            .or_insert_with(|| (vec![0; bounds.len() + 1], 0.0));
        counts[bounds.partition_point(|bound| *bound < rtt)] += 1;
        *sum += rtt;
    }
}

/// A reading of one endpoint.
#[pyclass(frozen, get_all, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct Overview {
    quic: HashMap<&'static str, HashMap<&'static str, u64>>,
    rtt: HashMap<&'static str, HashMap<&'static str, Trips>>,
    paths: Vec<(u64, &'static str)>,
    queued_bytes: usize,
    queued_frames: usize,
    inbox_bytes: usize,
    sockets: Vec<String>,
}

impl Overview {
    /// Now, with round trips counted by these bounds (seconds, ascending).
    pub fn read(core: &Core, bounds: &[f64]) -> Self {
        let (links, ended) = core.links_and_ended();
        let mut framed = Protocol {
            quic: ended,
            ..Protocol::default()
        };
        let (mut paths, mut queued, mut inbox_bytes) = (Vec::with_capacity(links.len()), (0, 0), 0);
        for link in &links {
            let reading = Reading::of(&link.quic, &link.congestion);
            framed.count(&reading, bounds);
            paths.push((link.id, reading.path));
            let (bytes, frames) = link.outbox().queued();
            queued = (queued.0 + bytes, queued.1 + frames);
            inbox_bytes += link.inbox.bytes();
        }
        let (live, ended) = core.admission.peers.readings();
        let mut gossip = Protocol {
            quic: ended,
            ..Protocol::default()
        };
        live.iter()
            .for_each(|reading| gossip.count(reading, bounds));
        {
            // A connection that ends between the two looks at it must not make a total smaller.
            let mut shown = core.shown.lock().unwrap_or_else(PoisonError::into_inner);
            for (protocol, shown) in [&mut framed, &mut gossip].into_iter().zip(shown.iter_mut()) {
                shown.most(&protocol.quic);
                protocol.quic = *shown;
            }
        }
        let alpns = [ALPN, GOSSIP].map(|alpn| std::str::from_utf8(alpn).unwrap_or("?"));
        Self {
            quic: HashMap::from([
                (alpns[0], framed.quic.named()),
                (alpns[1], gossip.quic.named()),
            ]),
            rtt: HashMap::from([(alpns[0], framed.trips), (alpns[1], gossip.trips)]),
            paths,
            queued_bytes: queued.0,
            queued_frames: queued.1,
            inbox_bytes,
            sockets: core
                .sockets
                .bound()
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}
