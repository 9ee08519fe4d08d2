//! The same bytes to many connections, framed once: to all of a group, or to one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::connection::{Flown, Link, Sent};
use crate::endpoint::payloads;
use crate::hub::Core;
use crate::outbox::{Shared, TOPICS};

/// Members from which the GIL is let go for the loop over them: below, taking it back costs more than the loop.
const DETACH_FROM: usize = 64;

/// Payloads that are framed once: all to whom they are sent share the buffer.
#[pyclass(frozen, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct Frames(pub Shared);

/// Connections that get the same bytes.
#[pyclass(frozen, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct Group {
    core: Arc<Core>,
    members: Mutex<HashMap<u64, Arc<Link>>>,
}

impl Group {
    /// An empty group of this endpoint's connections.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            members: Mutex::default(),
        }
    }

    /// The members, without those that have ended: a connection that ends leaves by itself.
    fn live(&self) -> MutexGuard<'_, HashMap<u64, Arc<Link>>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|_, link| !link.is_gone());
        members
    }

    /// Members, those that have ended and not yet left among them.
    fn count(&self) -> usize {
        let members = self.members.lock();
        members.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// (handed to QUIC, not taken). Whatever becomes of it, a member stays one.
    fn fly(&self, payload: &Bytes) -> (usize, usize) {
        let (mut handed, mut left) = (0, 0);
        for link in self.live().values() {
            match link.send_datagram(&self.core.counters, payload.clone()) {
                Flown::Handed => handed += 1,
                Flown::Gone => {}
                Flown::Full | Flown::TooLarge | Flown::Unsupported => left += 1,
            }
        }
        (handed, left)
    }

    fn spread(&self, shared: &Shared) -> Vec<u64> {
        let mut full = Vec::new();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|&id, link| match link.send_shared(TOPICS, shared) {
            Sent::Queued => true,
            Sent::Gone => false,
            Sent::Full => {
                full.push(id);
                false
            }
        });
        drop(members);
        self.core.counters.lane_full.add(full.len() as u64);
        full
    }
}

#[pymethods]
impl Group {
    fn add(&self, conn: u64) -> bool {
        match self.core.link(conn) {
            Some(link) if !link.is_gone() => {
                self.live().insert(conn, link);
                true
            }
            _ => false,
        }
    }

    fn remove(&self, conn: u64) -> bool {
        self.live().remove(&conn).is_some()
    }

    fn members(&self) -> Vec<u64> {
        self.live().keys().copied().collect()
    }

    fn __len__(&self) -> usize {
        self.live().len()
    }

    fn __contains__(&self, conn: u64) -> bool {
        self.live().contains_key(&conn)
    }

    fn datagram(&self, py: Python<'_>, payload: &[u8]) -> (usize, usize) {
        let payload = Bytes::copy_from_slice(payload);
        if self.count() < DETACH_FROM {
            self.fly(&payload)
        } else {
            py.detach(|| self.fly(&payload))
        }
    }

    fn send(&self, py: Python<'_>, frames: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
        let frames: Vec<Bound<'_, PyBytes>> = payloads(frames, &self.core.options)?;
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Shared::encode(frames.iter().map(|frame| frame.as_bytes()));
        Ok(if self.count() < DETACH_FROM {
            self.spread(&shared)
        } else {
            py.detach(|| self.spread(&shared))
        })
    }
}
