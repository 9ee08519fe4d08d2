//! What Python asks of one topic's swarm.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use iroh::PublicKey;
use iroh_gossip::TopicId;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batch::{self, MAX_SEQ};
use crate::error::{Error, Result};
use crate::gossip::Gossip;
use crate::hub::Core;
use crate::swarm::{self, Phase, Shared, Telling};
use crate::{broadcast, keys, runtime};

/// Bytes of a topic: its length is one byte on the wire.
const TOPIC_BYTES: usize = 255;

fn epoch_number(epoch: &str) -> Result<u64> {
    batch::epoch_of(epoch).ok_or_else(|| {
        Error::Value(format!(
            "not an epoch (16 lower-case hex digits): {epoch:?}"
        ))
    })
}

/// What `Endpoint.join` was given.
#[derive(Debug)]
pub struct Join {
    /// Name of the topic.
    pub topic: String,
    /// 32 bytes.
    pub id: Vec<u8>,
    /// NodeIds to join by way of.
    pub peers: Vec<String>,
    /// Who may sign for others.
    pub hubs: Vec<String>,
    /// Who may publish.
    pub authors: Option<Vec<String>>,
    /// Bound of what is not drained.
    pub inbox_bytes: usize,
    /// Bound of the kept batches.
    pub keep_bytes: usize,
    /// What is wanted of events.
    pub events: Telling,
}

/// One topic's gossip overlay, as this endpoint is in it.
#[pyclass(frozen, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct Swarm {
    core: Arc<Core>,
    shared: Arc<Shared>,
}

fn peers(core: &Core, ids: &[String]) -> Result<Vec<PublicKey>> {
    let mut peers = ids
        .iter()
        .map(|id| keys::public(id))
        .collect::<Result<Vec<_>>>()?;
    peers.retain(|peer| *peer != core.id);
    Ok(peers)
}

impl Swarm {
    /// Joins.
    pub fn join(core: &Arc<Core>, gossip: Arc<Gossip>, join: Join) -> Result<Self> {
        let id: [u8; 32] =
            join.id.as_slice().try_into().map_err(|_| {
                Error::Value(format!("a swarm id has 32 bytes, not {}", join.id.len()))
            })?;
        if join.topic.is_empty() || join.topic.len() > TOPIC_BYTES {
            return Err(Error::Value(format!(
                "a topic has 1 to {TOPIC_BYTES} bytes, not {}",
                join.topic.len()
            )));
        }
        let shared = Arc::new(Shared::new(core, &gossip, &join, TopicId::from_bytes(id))?);
        let peers = peers(core, &join.peers)?;
        gossip.enter(&shared);
        runtime::runtime()?.spawn(swarm::run(core.clone(), gossip, shared.clone(), peers));
        Ok(Self {
            core: core.clone(),
            shared,
        })
    }
}

#[pymethods]
impl Swarm {
    #[getter]
    fn id(&self) -> u64 {
        self.shared.id
    }

    #[getter]
    fn topic(&self) -> &str {
        &self.shared.topic
    }

    #[pyo3(signature = (epoch, first_seq, frames, *, author=None))]
    fn publish(
        &self,
        epoch: &str,
        first_seq: u64,
        frames: &Bound<'_, PyAny>,
        author: Option<&str>,
    ) -> PyResult<bool> {
        let (author, epoch) = (self.author(author)?, epoch_number(epoch)?);
        let mut out = VecDeque::new();
        for frame in frames.try_iter()? {
            let frame = frame?.cast_into::<PyBytes>()?;
            if frame.as_bytes().is_empty() {
                return Err(Error::value("an empty payload cannot be sent").into());
            }
            out.push_back(Bytes::copy_from_slice(frame.as_bytes()));
        }
        if first_seq == 0 || first_seq > MAX_SEQ - out.len() as u64 {
            return Err(
                Error::Value(format!("first_seq must be 1 to 2**53, not {first_seq}")).into(),
            );
        }
        self.check_in()?;
        Ok(out.is_empty() || self.shared.push(author, epoch, first_seq, out))
    }

    #[pyo3(signature = (epoch, seq, *, author=None))]
    fn head(&self, epoch: &str, seq: u64, author: Option<&str>) -> Result<()> {
        let (author, epoch) = (self.author(author)?, epoch_number(epoch)?);
        self.check_in()?;
        self.shared.push_head(author, epoch, seq);
        Ok(())
    }

    fn join_peers(&self, peers: Vec<String>) -> Result<()> {
        let peers = self::peers(&self.core, &peers)?;
        self.check_in()?;
        let gossip = self.core.gossip().ok_or(Error::Closed)?;
        let _inside = runtime::runtime()?.enter();
        swarm::ask(&gossip, &self.shared, peers);
        Ok(())
    }

    fn relay(&self, py: Python<'_>, message: Vec<u8>) -> Result<()> {
        self.check_in()?;
        let gossip = self.core.gossip().ok_or(Error::Closed)?;
        let sender = self.shared.sender().ok_or(Error::Closed)?;
        py.detach(|| runtime::block_on(gossip.broadcast(&sender, message.into())))?;
        Ok(())
    }

    #[pyo3(signature = (*, hubs, authors))]
    fn allow(&self, hubs: Vec<String>, authors: Option<Vec<String>>) -> Result<()> {
        self.shared.allow(&hubs, authors.as_deref())
    }

    #[pyo3(signature = (author, epoch, a, b, max_bytes=262_144))]
    fn batches<'py>(
        &self,
        py: Python<'py>,
        author: &str,
        epoch: &str,
        a: u64,
        b: u64,
        max_bytes: usize,
    ) -> Result<Vec<Bound<'py, PyBytes>>> {
        let (author, epoch) = (keys::public(author)?, epoch_number(epoch)?);
        let found = self.shared.kept().range(&author, epoch, a, b, max_bytes);
        Ok(found.iter().map(|batch| PyBytes::new(py, batch)).collect())
    }

    fn neighbours(&self) -> Vec<String> {
        let neighbours = self.shared.neighbours();
        neighbours.iter().map(ToString::to_string).collect()
    }

    fn message_bytes(&self) -> usize {
        broadcast::event_bytes(&self.shared)
    }

    fn counters(&self) -> HashMap<&'static str, u64> {
        let mut totals: HashMap<_, _> = self.shared.totals.read().into_iter().collect();
        totals.extend([
            ("neighbours", self.shared.neighbours().len() as u64),
            ("queued_events", self.shared.queued_events() as u64),
            ("kept_bytes", self.shared.kept().bytes() as u64),
        ]);
        totals
    }

    fn leave(&self) {
        self.shared.leave();
    }
}

impl Swarm {
    fn author(&self, author: Option<&str>) -> Result<PublicKey> {
        author.map_or(Ok(self.core.id), keys::public)
    }

    fn check_in(&self) -> Result<()> {
        match self.shared.phase() {
            Phase::In => Ok(()),
            _ => Err(Error::Closed),
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.shared.leave();
    }
}
