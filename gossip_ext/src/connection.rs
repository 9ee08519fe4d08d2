//! The state of one framed connection, shared by its tasks, its endpoint and the groups it is in.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use iroh::PublicKey;
use iroh::endpoint::{Connection, SendDatagramError};
use tokio::sync::Notify;

use crate::close::Close;
use crate::metrics::{Counter, Counters};
use crate::outbox::{Outbox, Push, Shared};
use crate::runtime::{self, Writer};

/// How long a close waits for the peer's QUIC to acknowledge what CALLS held. A LAN needs 1 ms, a far relay 300 ms; a
/// peer that does not read must not keep a connection for longer.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Queued.
    Queued,
    /// The lane is full.
    Full,
    /// The connection has ended or is ending.
    Gone,
}

/// What became of a datagram on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flown {
    /// QUIC has it, and sends it once.
    Handed,
    /// QUIC holds as many as it may; another would push out the oldest, and nobody would know.
    Full,
    /// Above the limit of the connection's path.
    TooLarge,
    /// The peer takes none.
    Unsupported,
    /// The connection has ended or is ending.
    Gone,
}

/// A connection's share of the inbox, or a swarm's.
#[derive(Debug)]
pub struct InboxShare {
    bytes: AtomicUsize,
    limit: usize,
    room: Notify,
    /// Where its open FRAMES item is; owned by the inbox, used under its lock.
    pub item: AtomicU64,
}

impl InboxShare {
    /// With nothing undrained.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            limit,
            room: Notify::new(),
            item: AtomicU64::new(0),
        }
    }

    /// Undrained bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// More is undrained.
    pub fn add(&self, cost: usize) {
        self.bytes.fetch_add(cost, Ordering::AcqRel);
    }

    /// That much was drained. The reader goes on below half the bound: at the bound itself it would be woken for each frame.
    pub fn release(&self, cost: usize) {
        let before = self.bytes.fetch_sub(cost, Ordering::AcqRel);
        let border = self.limit / 2;
        if before > border && before - cost <= border {
            self.room.notify_one();
        }
    }

    /// What may still be read.
    pub fn left(&self) -> usize {
        self.limit.saturating_sub(self.bytes())
    }

    /// Whether the reader must stop.
    pub fn full(&self) -> bool {
        self.bytes() >= self.limit
    }

    /// Returns when there is room.
    pub async fn room(&self) {
        while self.bytes() > self.limit / 2 {
            self.room.notified().await;
        }
    }
}

/// One framed connection.
#[derive(Debug)]
pub struct Link {
    /// Unique in its endpoint.
    pub id: u64,
    /// The number of the socket that it goes by.
    pub socket: u64,
    /// The peer.
    pub peer: PublicKey,
    /// Whether the peer dialled.
    pub incoming: bool,
    /// QUIC.
    pub quic: Connection,
    /// Its undrained bytes.
    pub inbox: Arc<InboxShare>,
    /// Frames are counted and dropped.
    pub count_only: AtomicBool,
    /// The peer takes any number of small writes.
    pub at_once: AtomicBool,
    /// Frames read.
    pub frames_in: Counter,
    /// Frames handed to QUIC.
    pub frames_out: Counter,
    /// Congestion events that were seen (overview.rs).
    pub congestion: AtomicU64,
    outbox: Mutex<Outbox>,
    written: Notify,
    dirty: AtomicBool,
    gone: AtomicBool,
    ending: OnceLock<Close>,
    flushed: Notify,
}

/// The bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of the CALLS lane.
    pub calls: usize,
    /// Of the TOPICS lane.
    pub topics: usize,
    /// Of the undrained bytes.
    pub inbox: usize,
}

impl Link {
    /// A live connection with empty queues.
    pub fn new(
        id: u64,
        socket: u64,
        quic: Connection,
        incoming: bool,
        bounds: Bounds,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            socket,
            peer: quic.remote_id(),
            incoming,
            quic,
            inbox: Arc::new(InboxShare::new(bounds.inbox)),
            count_only: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
            frames_in: Counter::default(),
            frames_out: Counter::default(),
            congestion: AtomicU64::new(0),
            outbox: Mutex::new(Outbox::new(bounds.calls, bounds.topics)),
            written: Notify::new(),
            dirty: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            ending: OnceLock::new(),
            flushed: Notify::new(),
        })
    }

    /// The lanes.
    pub fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(self: &Arc<Self>, push: impl FnOnce(&mut Outbox) -> Push) -> Sent {
        let pushed = {
            let mut outbox = self.outbox();
            if outbox.closing || self.is_gone() {
                return Sent::Gone;
            }
            push(&mut outbox)
        };
        match pushed {
            Push::Queued => {
                runtime::kick(self);
                Sent::Queued
            }
            Push::Full => Sent::Full,
        }
    }

    /// Queues payloads on a lane, all or none.
    pub fn send<'a>(
        self: &Arc<Self>,
        lane: usize,
        payloads: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Sent {
        self.queue(|outbox| outbox.push(lane, payloads))
    }

    /// Queues shared frames on a lane, all or none.
    pub fn send_shared(self: &Arc<Self>, lane: usize, shared: &Shared) -> Sent {
        self.queue(|outbox| outbox.push_shared(lane, shared))
    }

    /// Hands a datagram to QUIC, or counts why not.
    pub fn send_datagram(&self, counters: &Counters, payload: Bytes) -> Flown {
        if self.is_gone() || self.outbox().closing {
            return Flown::Gone;
        }
        let Some(limit) = self.quic.max_datagram_size() else {
            counters.datagrams_unsupported.inc();
            return Flown::Unsupported;
        };
        if payload.len() > limit {
            counters.datagrams_too_large.inc();
            return Flown::TooLarge;
        }
        // One look at what would wait for room: `send_datagram` makes room by dropping the oldest, and the room that
        // `datagram_send_buffer_space` tells of leaves out what each queued one costs beside its payload.
        let waiting = pin!(self.quic.send_datagram_wait(payload));
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                counters.datagrams_out.inc();
                Flown::Handed
            }
            Poll::Pending => {
                counters.datagrams_full.inc();
                Flown::Full
            }
            Poll::Ready(Err(SendDatagramError::ConnectionLost(_))) => Flown::Gone,
            // The path has shrunk just now.
            Poll::Ready(Err(SendDatagramError::TooLarge)) => {
                counters.datagrams_too_large.inc();
                Flown::TooLarge
            }
            Poll::Ready(Err(_)) => {
                counters.datagrams_unsupported.inc();
                Flown::Unsupported
            }
        }
    }

    /// Returns when the lanes may hold something.
    pub async fn writable(&self) {
        self.written.notified().await;
    }

    /// The peer has everything that CALLS held.
    pub fn tell_flushed(&self) {
        self.flushed.notify_one();
    }

    /// Whether it has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// From now on sends are refused.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Why this side closed it, if it did.
    pub fn ending(&self) -> Option<&Close> {
        self.ending.get()
    }

    /// Closes at once. Only the first close counts.
    pub fn abort(&self, close: Close) {
        let close = self.ending.get_or_init(|| close);
        self.quic.close(close.code.into(), close.reason.as_bytes());
    }

    /// Takes nothing more, and closes when the peer has what CALLS holds, or after FLUSH_LIMIT.
    pub async fn finish(self: Arc<Self>, close: Close) {
        self.outbox().closing = true;
        self.wake_writer();
        // Too late is no matter: the close below ends it either way.
        let _ = tokio::time::timeout(FLUSH_LIMIT, self.flushed.notified()).await;
        self.abort(close);
    }
}

impl Writer for Link {
    fn mark_dirty(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    fn wake_writer(&self) {
        self.dirty.store(false, Ordering::Release);
        self.written.notify_one();
    }
}
