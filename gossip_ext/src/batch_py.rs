//! What Python asks about batches and swarm ids without an endpoint, and what it is given of a batch.

use std::io::Write;

use iroh::PublicKey;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::batch::{self, Item, Kind};
use crate::error::{Error, Result};
use crate::event::{self, Template};
use crate::{keys, opening};

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

/// BLAKE3 of an event's bytes, as a batch that only names it has it.
#[pyfunction]
#[pyo3(signature = (message))]
pub fn event_hash<'py>(py: Python<'py>, message: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &batch::hash(message))
}

/// A batch's events: a message as bytes, a reference as (size, hash).
pub fn frames<'py>(
    py: Python<'py>,
    template: &Template,
    first: u64,
    items: &[Item],
) -> PyResult<Bound<'py, PyList>> {
    let mut joined = Vec::new();
    let frame = |(seq, item): (u64, &Item)| match item {
        Item::Message(message) => Ok(PyBytes::new(py, message).into_any()),
        Item::Parts { text, tail } => {
            let (detail, tail) = text.split_at(*tail);
            joined.clear();
            template.join(&mut joined, detail, seq, tail);
            Ok(PyBytes::new(py, &joined).into_any())
        }
        Item::Reference { size, hash } => Ok((*size, PyBytes::new(py, hash))
            .into_pyobject(py)?
            .into_any()),
    };
    let frames = (first..).zip(items).map(frame);
    PyList::new(py, frames.collect::<PyResult<Vec<_>>>()?)
}

/// A batch's events as one JSON list, of each its detail and an object with what it adds to `meta`, and how many events
/// these are. `None` when there are some that are not in parts.
pub fn parts<'py>(
    py: Python<'py>,
    items: &[Item],
) -> Option<PyResult<(usize, Bound<'py, PyBytes>)>> {
    let told: Vec<(&[u8], &[u8])> = items
        .iter()
        .map(|item| {
            item.parts()
                .map(|(detail, tail)| (detail, event::added(tail)))
        })
        .collect::<Option<_>>()?;
    let size = 1 + told
        .iter()
        .map(|(detail, added)| detail.len() + added.len() + 4)
        .sum::<usize>();
    let text = PyBytes::new_with(py, size, |mut out| {
        for (at, (detail, added)) in told.iter().enumerate() {
            for part in [
                if at == 0 { b"[" } else { b"," },
                *detail,
                b",{",
                added,
                b"}",
            ] {
                out.write_all(part)?;
            }
        }
        Ok(out.write_all(b"]")?)
    });
    Some(text.map(|text| (items.len(), text)))
}

/// A batch that came another way than by gossip.
#[pyfunction]
#[pyo3(signature = (topic, data, hubs=Vec::new()))]
pub fn open_batch<'py>(
    py: Python<'py>,
    topic: &str,
    data: &[u8],
    hubs: Vec<String>,
) -> Result<(String, String, u64, Bound<'py, PyList>)> {
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
    let template = opening::template(topic, &header);
    let frames = frames(py, &template, header.first, &opened.items).map_err(Error::value)?;
    let epoch = batch::epoch_text(header.epoch);
    Ok((header.author.to_string(), epoch, header.first, frames))
}
