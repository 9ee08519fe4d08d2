//! Groups: the same bytes to many connections, framed once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::connection::{Link, Sent};
use crate::endpoint::payloads;
use crate::hub::Core;
use crate::outbox::Shared;

/// Members from which the GIL is let go for the loop over them: below, taking it back costs more than the loop.
const DETACH_FROM: usize = 64;

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

    fn spread(&self, shared: &Shared) -> Vec<u64> {
        let mut full = Vec::new();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|&id, link| match link.send_shared(shared) {
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

    fn send(&self, py: Python<'_>, frames: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
        let frames: Vec<Bound<'_, PyBytes>> = payloads(frames, &self.core.options)?;
        if frames.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Shared::encode(frames.iter().map(|frame| frame.as_bytes()));
        let count = self
            .members
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len();
        Ok(if count < DETACH_FROM {
            self.spread(&shared)
        } else {
            py.detach(|| self.spread(&shared))
        })
    }
}
