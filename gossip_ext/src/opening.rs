//! Opens signed batches (batch.rs has their layout): layout, topic, signature, and that every event is the one that
//! its batch says. Pure: no pyo3 or tokio, no clock. Not here: who may sign for whom, duplicates and rates.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use iroh::PublicKey;

use crate::batch::{
    CONTEXT, Form, HASH, Header, Kind, MAX_SEQ, RAW, RAW_BYTES, REFERENCE, SIGNATURE, TEMPLATED,
    VERSION, epoch_text,
};
use crate::event::{self, Template};

/// Why bytes are no batch of this topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They break the layout, or an event says of itself what its batch does not.
    Malformed(&'static str),
    /// Another topic's.
    WrongTopic,
    /// Not the signer's signature.
    BadSignature,
}

impl Fault {
    /// The counter's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::WrongTopic => "wrong_topic",
            Self::BadSignature => "bad_signature",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name();
        match self {
            Self::Malformed(what) => write!(out, "{name}: {what}"),
            Self::WrongTopic => write!(out, "{name}: the batch is another topic's"),
            Self::BadSignature => write!(out, "{name}: the signature is not the signer's"),
        }
    }
}

/// One event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The whole JSON message. It says of itself that it is this topic's, author's, epoch's and number's; whether the
    /// rest of it is JSON has not been looked at.
    Message(Bytes),
    /// What its batch does not say of it, a detail and a tail (event.rs) that no decoder reads otherwise; whether they are
    /// JSON has not been looked at.
    Parts {
        /// One after the other.
        text: Bytes,
        /// Where the tail begins.
        tail: usize,
    },
    /// An event that fits no batch, to be had over a stream.
    Reference {
        /// Of the message.
        size: u32,
        /// BLAKE3 of the message.
        hash: [u8; HASH],
    },
}

impl Item {
    /// Of what of it is here.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Message(text) | Self::Parts { text, .. } => text.len(),
            Self::Reference { .. } => 0,
        }
    }

    /// Whether it came, and was not only named.
    pub fn is_here(&self) -> bool {
        !matches!(self, Self::Reference { .. })
    }

    /// Detail and tail, when it has these.
    pub fn parts(&self) -> Option<(&[u8], &[u8])> {
        match self {
            Self::Parts { text, tail } => Some(text.split_at(*tail)),
            _ => None,
        }
    }
}

/// A batch whose layout and signature hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What it says of itself.
    pub header: Header,
    /// The events from `header.first` on; none in a head.
    pub items: Vec<Item>,
}

impl Opened {
    /// Of memory.
    fn bytes(&self) -> usize {
        let texts: usize = self.items.iter().map(Item::bytes).sum();
        size_of::<Self>() + self.items.len() * size_of::<Item>() + texts
    }
}

/// Keys that a [`Memory`] has ready, of 200 bytes each: more authors than speak at the same time.
const KEYS: usize = 256;

/// Batches whose signature a [`Memory`] knows to hold, and as many older ones: what is under way in all swarms of a process.
const HELD: usize = 512;

/// Opened batches that a [`Memory`] keeps, a second of a flood, in bytes and in number.
const KEPT_BYTES: usize = 2 * 1024 * 1024;
const KEPT: usize = 64;

/// An opened batch that was heard more than once.
#[derive(Debug)]
struct Kept {
    hash: [u8; HASH],
    topic: String,
    opened: Arc<Opened>,
    bytes: usize,
}

/// What is known of batches. One for all swarms of a process: its spokes hear the same ones.
#[derive(Debug, Default)]
pub struct Memory {
    /// Public keys, made ready to check signatures with, which takes a tenth of a check each time; a batch needs its
    /// signer's twice and its author's once.
    keys: HashMap<[u8; HASH], VerifyingKey>,
    /// Hashes of whole batches, signature and all: whoever brings the same bytes brings the same answer.
    held: HashSet<[u8; HASH]>,
    older: HashSet<[u8; HASH]>,
    /// The newest last.
    kept: VecDeque<Kept>,
    /// Of all that is kept.
    bytes: usize,
}

impl Memory {
    /// `None` when these bytes are no key.
    fn ready(&mut self, bytes: [u8; HASH]) -> Option<VerifyingKey> {
        if let Some(key) = self.keys.get(&bytes) {
            return Some(*key);
        }
        let key = VerifyingKey::from_bytes(&bytes).ok()?;
        if self.keys.len() >= KEYS {
            self.keys.clear();
        }
        self.keys.insert(bytes, key);
        Some(key)
    }

    /// Whether the signature of a batch of this hash is known to hold.
    pub fn holds(&self, hash: &[u8; HASH]) -> bool {
        self.held.contains(hash) || self.older.contains(hash)
    }

    /// It does.
    pub fn held(&mut self, hash: [u8; HASH]) {
        if self.held.len() >= HELD {
            self.older = std::mem::take(&mut self.held);
        }
        self.held.insert(hash);
    }

    /// A batch of this topic and hash, if it is kept: then these bytes have been opened, signature and all.
    pub fn opened(&self, topic: &str, hash: &[u8; HASH]) -> Option<Arc<Opened>> {
        let mut newest_first = self.kept.iter().rev();
        let found = newest_first.find(|kept| kept.hash == *hash && kept.topic == topic)?;
        Some(found.opened.clone())
    }

    /// Keeps it for the other swarms of the process, and lets go of the oldest.
    pub fn keep(&mut self, topic: &str, hash: [u8; HASH], opened: Arc<Opened>) {
        let bytes = opened.bytes();
        self.bytes += bytes;
        self.kept.push_back(Kept {
            hash,
            topic: topic.into(),
            opened,
            bytes,
        });
        let full = |(batches, bytes)| batches > KEPT || bytes > KEPT_BYTES;
        while full(self.kept()) {
            self.bytes -= self.kept.pop_front().map_or(0, |oldest| oldest.bytes);
        }
    }

    /// How much is kept: batches, and their bytes.
    pub fn kept(&self) -> (usize, usize) {
        (self.kept.len(), self.bytes)
    }
}

/// Opens a batch of `topic`. Total: whatever the bytes are, the answer is a batch or a fault. It allocates at most 64
/// times the input's size (tiny events that leave much to the template), and 10 times before the signature was right.
pub fn open(topic: &str, data: &[u8]) -> Result<Opened, Fault> {
    open_vouched(topic, data, &mut Memory::default(), |_| false)
}

/// The same, without a look at the signature when `vouched` says that it is known to hold, or that the signer has vouched
/// for these bytes another way: it has named their hash in a later batch whose signature was looked at.
pub fn open_vouched(
    topic: &str,
    data: &[u8],
    memory: &mut Memory,
    vouched: impl FnOnce(&PublicKey) -> bool,
) -> Result<Opened, Fault> {
    let Some((body, signature)) = data.split_last_chunk::<SIGNATURE>() else {
        return Err(Fault::Malformed("it is cut short"));
    };
    let mut reader = Reader(body);
    let (header, signer) = reader.header(memory)?;
    if reader.topic()? != topic.as_bytes() {
        return Err(Fault::WrongTopic);
    }
    let forms = reader.forms(&header)?;
    if !vouched(&header.signer) {
        let signed = [CONTEXT, body].concat();
        signer
            .verify_strict(&signed, &Signature::from_bytes(signature))
            .map_err(|_| Fault::BadSignature)?;
    }
    let items = items(topic, &header, &forms)?;
    Ok(Opened { header, items })
}

/// They share one buffer: an inbox takes them all, and soon.
fn items(topic: &str, header: &Header, forms: &[Form<'_>]) -> Result<Vec<Item>, Fault> {
    let template = template(topic, header);
    let mut out = Vec::with_capacity(forms.iter().map(Form::bytes).sum());
    let mut cuts = Vec::with_capacity(forms.len());
    for (seq, form) in (header.first..).zip(forms) {
        let start = out.len();
        let mut tail_at = None;
        match form {
            Form::Templated { detail, tail } if event::parts(detail, tail) => {
                out.extend_from_slice(detail);
                out.extend_from_slice(tail);
                tail_at = Some(detail.len());
            }
            Form::Raw(message) => out.extend_from_slice(message),
            Form::Templated { detail, tail } => template.join(&mut out, detail, seq, tail),
            Form::Reference { .. } => {}
        }
        let whole = tail_at.is_none() && !matches!(form, Form::Reference { .. });
        if whole && !template.fits(&out[start..], seq) {
            return Err(Fault::Malformed(
                "an event is not the one that its batch says",
            ));
        }
        cuts.push((out.len() - start, tail_at));
    }
    let mut rest = Bytes::from(out);
    let mut cut = |(form, (size, tail)): (&Form<'_>, (usize, Option<usize>))| {
        let text = rest.split_to(size);
        match (form, tail) {
            (Form::Reference { size, hash }, _) => Item::Reference {
                size: *size,
                hash: *hash,
            },
            (_, Some(tail)) => Item::Parts { text, tail },
            _ => Item::Message(text),
        }
    };
    Ok(forms.iter().zip(cuts).map(&mut cut).collect())
}

/// What makes messages of the parts of a batch's events.
pub fn template(topic: &str, header: &Header) -> Template {
    Template::new(topic, header.author.to_string(), epoch_text(header.epoch))
}

/// What is left of the bytes under the signature.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(Fault::Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(Fault::Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn length<const N: usize>(&mut self) -> Result<usize, Fault> {
        let bytes = self.array::<N>()?;
        // N is at most 4: no target that iroh builds for has a smaller usize.
        Ok(bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn number(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn key(&mut self, memory: &mut Memory) -> Result<VerifyingKey, Fault> {
        memory
            .ready(self.array()?)
            .ok_or(Fault::Malformed("its signer or author is no key"))
    }

    /// And the signer's key, ready.
    fn header(&mut self, memory: &mut Memory) -> Result<(Header, VerifyingKey), Fault> {
        if self.array()? != [VERSION] {
            return Err(Fault::Malformed("its version is not 1"));
        }
        let kind = match self.array()? {
            [0] => Kind::Events,
            [1] => Kind::Head,
            _ => return Err(Fault::Malformed("its kind is unknown")),
        };
        let signer = self.key(memory)?;
        let header = Header {
            kind,
            signer: PublicKey::from_verifying_key(signer),
            author: PublicKey::from_verifying_key(self.key(memory)?),
            epoch: self.number()?,
            first: self.number()?,
            started: self.number()?,
            previous: self.array()?,
        };
        Ok((header, signer))
    }

    fn topic(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.length::<1>()?;
        self.take(length)
    }

    fn forms(&mut self, header: &Header) -> Result<Vec<Form<'a>>, Fault> {
        let count = self.length::<2>()?;
        let last = header.first.checked_add(count.saturating_sub(1) as u64);
        let right = match header.kind {
            Kind::Events => count > 0 && header.first > 0,
            Kind::Head => count == 0,
        };
        if !right || last.is_none_or(|last| last > MAX_SEQ) {
            return Err(Fault::Malformed("its numbers cannot be"));
        }
        if count > self.0.len() / RAW_BYTES {
            return Err(Fault::Malformed("it is cut short"));
        }
        let mut forms = Vec::with_capacity(count);
        for _ in 0..count {
            forms.push(self.form()?);
        }
        if !self.0.is_empty() {
            return Err(Fault::Malformed("there are bytes after its events"));
        }
        Ok(forms)
    }

    fn form(&mut self) -> Result<Form<'a>, Fault> {
        match self.array()? {
            [RAW] => {
                let length = self.length::<4>()?;
                Ok(Form::Raw(self.take(length)?))
            }
            [TEMPLATED] => {
                let length = self.length::<4>()?;
                let detail = self.take(length)?;
                let length = self.length::<2>()?;
                Ok(Form::Templated {
                    detail,
                    tail: self.take(length)?,
                })
            }
            [REFERENCE] => Ok(Form::Reference {
                size: u32::from_be_bytes(self.array()?),
                hash: self.array()?,
            }),
            _ => Err(Fault::Malformed("an event's form is unknown")),
        }
    }
}
