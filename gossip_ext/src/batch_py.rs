//! What Python asks about batches and swarm ids without an endpoint.

use iroh::PublicKey;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batch::{self, Item, Kind};
use crate::error::{Error, Result};
use crate::keys;

const CONTEXT: &[u8] = b"iroh-broker swarm v1\0";

/// The swarm id of a topic: BLAKE3, keyed with the realm's secret, of the context, the topic, a zero byte and the
/// generation as 8 bytes, big-endian.
#[pyfunction]
#[pyo3(signature = (realm_secret, topic, generation))]
pub fn topic_id<'py>(
    py: Python<'py>,
    realm_secret: &[u8],
    topic: &str,
    generation: u64,
) -> Result<Bound<'py, PyBytes>> {
    let secret = realm_secret.try_into().map_err(|_| {
        let size = realm_secret.len();
        Error::Value(format!("a realm's secret has 32 bytes, not {size}"))
    })?;
    let mut hasher = blake3::Hasher::new_keyed(secret);
    for part in [CONTEXT, topic.as_bytes(), &[0], &generation.to_be_bytes()] {
        hasher.update(part);
    }
    Ok(PyBytes::new(py, hasher.finalize().as_bytes()))
}

type Frames<'py> = Vec<Option<Bound<'py, PyBytes>>>;

/// A batch that came another way than by gossip.
#[pyfunction]
#[pyo3(signature = (topic, data, hubs=Vec::new()))]
pub fn open_batch<'py>(
    py: Python<'py>,
    topic: &str,
    data: &[u8],
    hubs: Vec<String>,
) -> Result<(String, String, u64, Frames<'py>)> {
    let hubs: Vec<PublicKey> = hubs
        .iter()
        .map(|hub| keys::public(hub))
        .collect::<Result<_>>()?;
    let opened = batch::open(topic, data).map_err(Error::value)?;
    let header = opened.header;
    if header.kind == Kind::Head {
        return Err(Error::value("malformed: it is a head, and holds no events"));
    }
    if header.signer != header.author && !hubs.contains(&header.signer) {
        return Err(Error::value(
            "not_allowed: its signer is neither its author nor a hub",
        ));
    }
    let frame = |item: &Item| match item {
        Item::Message(message) => Some(PyBytes::new(py, message)),
        Item::Reference { .. } => None,
    };
    let frames = opened.items.iter().map(frame).collect();
    let epoch = batch::epoch_text(header.epoch);
    Ok((header.author.to_string(), epoch, header.first, frames))
}
