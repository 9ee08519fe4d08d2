//! What has arrived and Python has not fetched: one ordered batch an endpoint, one wake-up for all of it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use iroh::PublicKey;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use rustix::event::{EventfdFlags, eventfd};

use crate::batch::{self, epoch_text};
use crate::batch_py;
use crate::close::Ended;
use crate::connection::{InboxShare, Link};
use crate::error::Result;
use crate::event::Template;
use crate::metrics::Counters;
use crate::runtime;
use crate::swarm::{Shared, Telling};

/// Item kinds, the first member of each tuple.
pub const OPENED: u8 = 0;
/// Payloads of one connection.
pub const FRAMES: u8 = 1;
/// A connection's last item.
pub const CLOSED: u8 = 2;
/// A lane that refused has room.
pub const DRAINED: u8 = 3;
/// A dial that came to nothing.
pub const DIAL_FAILED: u8 = 4;
/// One datagram.
pub const DATAGRAM: u8 = 5;
/// A swarm's neighbour came or went.
pub const NEIGHBOUR: u8 = 6;
/// Events of one author, by gossip.
pub const BATCH: u8 = 7;
/// An author's newest number, by gossip.
pub const HEAD: u8 = 8;
/// Gossip overran the program.
pub const LAGGED: u8 = 9;
/// A swarm that refused has room.
pub const SWARM_DRAINED: u8 = 10;

/// Bytes of frames that one drain hands out: some ms of Python work, so that timers and other callbacks get their turn.
const DRAIN_BYTES: usize = 4 * 1024 * 1024;

/// What an undrained frame costs beside its payload (the slice here, the bytes object after drain). Without it a peer
/// that sends one-byte frames would hold 60 times the bound.
pub const FRAME_COST: usize = 64;

/// Undrained items at which new connections and datagrams are turned away: Python is far behind, and a peer that
/// connects and leaves in a loop must not fill memory with OPENED and CLOSED.
const CROWDED_ITEMS: usize = 65_536;

/// One thing that has arrived. It holds no connection: that would hold the socket, after close, until somebody drains.
#[derive(Debug)]
pub enum Item {
    /// A connection is usable.
    Opened {
        /// Its id.
        conn: u64,
        /// The peer.
        peer: PublicKey,
        /// Whether the peer dialled.
        incoming: bool,
        /// The dial's token, 0 for an incoming one.
        token: i64,
    },
    /// Payloads, in order.
    Frames {
        /// Whose.
        conn: u64,
        /// Its share.
        share: Arc<InboxShare>,
        /// The payloads.
        frames: Vec<Bytes>,
        /// What they count against inbox_bytes.
        cost: usize,
    },
    /// A connection ended.
    Closed {
        /// Its id.
        conn: u64,
        /// How.
        ended: Ended,
    },
    /// A lane that refused has room.
    Drained {
        /// Whose.
        conn: u64,
    },
    /// A dial came to nothing.
    DialFailed {
        /// The dial's token.
        token: i64,
        /// `unreachable`, `refused` or `closed`.
        kind: &'static str,
        /// The peer's close code.
        code: Option<u64>,
        /// For a human.
        message: String,
    },
    /// One datagram.
    Datagram {
        /// Whose.
        conn: u64,
        /// Its share.
        share: Arc<InboxShare>,
        /// Its payload.
        payload: Bytes,
    },
    /// Something from a swarm.
    Swarm {
        /// Whose.
        swarm: Arc<Shared>,
        /// What.
        told: Told,
        /// What it counts against the swarm's inbox_bytes.
        cost: usize,
    },
}

/// What a swarm tells.
#[derive(Debug)]
pub enum Told {
    /// A neighbour came or went.
    Neighbour {
        /// It.
        peer: PublicKey,
        /// Whether it came.
        up: bool,
    },
    /// Events of one author, by number; those above the message limit by size and hash. Whatever other swarms of the
    /// process hear the same batch may hold it too.
    Batch(Arc<batch::Opened>),
    /// An author's newest number.
    Head {
        /// Whose.
        author: PublicKey,
        /// Of the sequence.
        epoch: u64,
        /// The number.
        seq: u64,
    },
    /// Batches are gone.
    Lagged,
    /// There is room again.
    Drained,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// Items ever taken out: an item's number is this plus its place.
    taken: u64,
    closed: bool,
}

/// The inbox of one endpoint.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    filled: AtomicBool,
    /// Nobody waits for the eventfd until somebody has asked for it; loop-driven programs never do, and pay no system call.
    armed: AtomicBool,
    event: OwnedFd,
    counters: Arc<Counters>,
}

impl Inbox {
    /// An empty inbox.
    pub fn new(counters: Arc<Counters>) -> Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            filled: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            counters,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item.
    pub fn push(&self, item: Item) {
        let mut state = self.lock();
        if !state.closed {
            state.items.push_back(item);
            self.fill();
        }
    }

    /// Adds payloads, to the connection's own item when that is still here.
    pub fn push_frames(&self, link: &Link, mut frames: Vec<Bytes>) {
        let cost = frames.iter().map(|frame| frame.len() + FRAME_COST).sum();
        link.inbox.add(cost);
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let number = link.inbox.item.load(Ordering::Relaxed);
        let place = number.checked_sub(state.taken + 1);
        let open = place.and_then(|place| state.items.get_mut(usize::try_from(place).ok()?));
        if let Some(Item::Frames {
            frames: open,
            cost: total,
            ..
        }) = open
        {
            open.append(&mut frames);
            *total += cost;
            return;
        }
        state.items.push_back(Item::Frames {
            conn: link.id,
            share: link.inbox.clone(),
            frames,
            cost,
        });
        // One above its number, so that 0 means none.
        let number = state.taken + state.items.len() as u64;
        link.inbox.item.store(number, Ordering::Relaxed);
        self.fill();
    }

    /// Whether so much waits that new connections are turned away.
    pub fn crowded(&self) -> bool {
        self.lock().items.len() >= CROWDED_ITEMS
    }

    /// Under the lock, so that the eventfd never disagrees with the items.
    fn fill(&self) {
        if !self.filled.swap(true, Ordering::AcqRel) {
            self.counters.wakeups.inc();
            self.raise();
            runtime::announce();
        }
    }

    fn raise(&self) {
        if self.armed.load(Ordering::Acquire) {
            // It fails only when the counter is full, and then it is readable.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn lower(&self) {
        if self.filled.swap(false, Ordering::AcqRel) && self.armed.load(Ordering::Acquire) {
            // It fails only when nothing was written, which is as well.
            let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        }
    }

    /// The eventfd; from now on it is kept.
    pub fn fileno(&self) -> RawFd {
        let _state = self.lock();
        if !self.armed.swap(true, Ordering::AcqRel) && self.filled.load(Ordering::Acquire) {
            self.raise();
        }
        self.event.as_raw_fd()
    }

    /// Whether there are items.
    pub fn pending(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Drops everything and takes nothing more: the endpoint is gone, and nobody will drain it.
    pub fn shut(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.items.clear();
        self.lower();
    }

    fn take(&self) -> Vec<Item> {
        let mut state = self.lock();
        let (mut out, mut bytes) = (Vec::with_capacity(state.items.len().min(1024)), 0);
        while bytes < DRAIN_BYTES
            && let Some(item) = state.items.pop_front()
        {
            if let Item::Frames { cost, .. } | Item::Swarm { cost, .. } = &item {
                bytes += cost;
            }
            out.push(item);
        }
        state.taken += out.len() as u64;
        if state.items.is_empty() {
            self.lower();
        } else {
            runtime::announce();
        }
        out
    }

    /// Everything that has arrived, as Python objects.
    pub fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let items = self.take();
        self.counters.drained_items.add(items.len() as u64);
        let out = PyList::empty(py);
        for item in items {
            out.append(convert(py, item)?)?;
        }
        Ok(out)
    }
}

fn convert(py: Python<'_>, item: Item) -> PyResult<Bound<'_, PyTuple>> {
    match item {
        Item::Frames {
            conn,
            share,
            frames,
            cost,
        } => {
            let list = PyList::new(py, frames.iter().map(|frame| PyBytes::new(py, frame)))?;
            drop(frames);
            share.release(cost);
            (FRAMES, conn, list).into_pyobject(py)
        }
        Item::Opened {
            conn,
            peer,
            incoming,
            token,
        } => (OPENED, conn, peer.to_string(), incoming, token).into_pyobject(py),
        Item::Closed { conn, ended } => {
            (CLOSED, conn, ended.code, ended.reason, ended.remote).into_pyobject(py)
        }
        Item::Drained { conn } => (DRAINED, conn).into_pyobject(py),
        Item::DialFailed {
            token,
            kind,
            code,
            message,
        } => (DIAL_FAILED, token, kind, code, message).into_pyobject(py),
        Item::Datagram {
            conn,
            share,
            payload,
        } => {
            share.release(payload.len() + FRAME_COST);
            (DATAGRAM, conn, PyBytes::new(py, &payload)).into_pyobject(py)
        }
        Item::Swarm { swarm, told, cost } => {
            let tuple = convert_told(py, &swarm, told);
            swarm.inbox.release(cost);
            tuple
        }
    }
}

fn convert_told<'py>(py: Python<'py>, swarm: &Shared, told: Told) -> PyResult<Bound<'py, PyTuple>> {
    let id = swarm.id;
    match told {
        Told::Neighbour { peer, up } => (NEIGHBOUR, id, peer.to_string(), up).into_pyobject(py),
        Told::Batch(opened) => {
            let batch::Opened { header, items } = &*opened;
            let (author, epoch) = (header.author.to_string(), epoch_text(header.epoch));
            let first = header.first;
            match swarm.events {
                Telling::Parts => {
                    if let Some(parts) = batch_py::parts(py, items) {
                        return (BATCH, id, author, epoch, first, parts?).into_pyobject(py);
                    }
                }
                Telling::Count if items.iter().all(batch::Item::is_here) => {
                    return (BATCH, id, author, epoch, first, items.len()).into_pyobject(py);
                }
                Telling::Count | Telling::Frames => {}
            }
            let template = Template::new(&swarm.topic, author.clone(), epoch.clone());
            let frames = batch_py::frames(py, &template, first, items)?;
            (BATCH, id, author, epoch, first, frames).into_pyobject(py)
        }
        Told::Head { author, epoch, seq } => {
            (HEAD, id, author.to_string(), epoch_text(epoch), seq).into_pyobject(py)
        }
        Told::Lagged => {
            swarm.lag_told();
            (LAGGED, id).into_pyobject(py)
        }
        Told::Drained => (SWARM_DRAINED, id).into_pyobject(py),
    }
}
