//! Signed batches, version 1: consecutive events of one author as one gossip message, or a head, which tells the
//! newest number alone. Built and signed here, opened in opening.rs; every number is big-endian.
//!
//! ```text
//! 1 version   1 kind   32 signer   32 author   8 epoch   8 first seq (head: the newest)   8 started
//! 32 BLAKE3 of the signer's previous batch of this kind    1 topic length, the topic   2 count
//! count times: 1 form, then  0: 4 length, the message    1: 4 length, the detail, 2 length, the tail (event.rs)
//!                            2: 4 size, 32 BLAKE3 of a message that fits no batch
//! 64 Ed25519 by the signer over "iroh-broker batch v1\0" and all of the above
//! ```
//!
//! Pure: no pyo3 or tokio, no clock. Not here: who may sign for whom, duplicates and rates.

use bytes::{BufMut, Bytes, BytesMut};
use iroh::{PublicKey, SecretKey};

use crate::event::Template;

pub use crate::opening::{Fault, Item, Memory, Opened, open, open_vouched};

pub(crate) const VERSION: u8 = 1;
pub(crate) const CONTEXT: &[u8] = b"iroh-broker batch v1\0";
/// JSON readers keep integers exact up to here.
pub const MAX_SEQ: u64 = (1 << 53) - 1;
const MAX_TOPIC_BYTES: usize = 255;
pub(crate) const HASH: usize = 32;
pub(crate) const SIGNATURE: usize = 64;
const EPOCH_DIGITS: usize = 16;

const SIGNER_AT: usize = 2;
const PREVIOUS_AT: usize = SIGNER_AT + 2 * HASH + 3 * 8;
/// Up to the topic's bytes.
const FIXED: usize = PREVIOUS_AT + HASH + 1;

pub(crate) const RAW: u8 = 0;
pub(crate) const TEMPLATED: u8 = 1;
pub(crate) const REFERENCE: u8 = 2;
pub(crate) const RAW_BYTES: usize = 1 + 4;
const TEMPLATED_BYTES: usize = 1 + 4 + 2;
const REFERENCE_BYTES: usize = 1 + 4 + HASH;

/// Largest batch that iroh-gossip carries in messages of `message_bytes`, over any number of hops. It writes a message
/// as postcard: the layer and the kind (1 byte each), the id (32), the content's length (a varint), the content, the
/// scope (1) and its round (a u16 varint that grows with the hops, 3 at most); and it refuses `message_bytes` itself,
/// by ending the connection. At 4,096 that leaves 4,055 (4,057 when the round is below 128).
pub const fn usable(message_bytes: usize) -> usize {
    let length = if message_bytes <= 1 << 14 { 2 } else { 3 };
    message_bytes.saturating_sub(1 + 1 + 32 + length + 1 + 3 + 1)
}

/// BLAKE3.
pub fn hash(data: &[u8]) -> [u8; HASH] {
    blake3::hash(data).into()
}

/// An epoch as it is written in JSON.
pub fn epoch_text(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// The epoch of 16 lower-case hex digits, the only way in which it comes back the same.
pub fn epoch_of(text: &str) -> Option<u64> {
    let digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == EPOCH_DIGITS && text.bytes().all(digit))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

/// What a batch tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Consecutive events.
    Events,
    /// The newest number.
    Head,
}

/// What a batch says before its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Who signed it.
    pub signer: PublicKey,
    /// Whose events these are.
    pub author: PublicKey,
    /// The author's epoch.
    pub epoch: u64,
    /// Of the first event; of a head, the newest number (0: none yet).
    pub first: u64,
    /// The signer's clock in ms when it began its chain of batches of this epoch.
    pub started: u64,
    /// Hash of the signer's previous batch of this kind in that chain (chain.rs); zeros in the first.
    pub previous: [u8; HASH],
    /// Of what kind it is.
    pub kind: Kind,
}

/// What [`Builder::push`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// The event is in the batch.
    Added,
    /// It is not: finish this batch first, an empty one takes it.
    Full,
}

/// One open batch of events.
#[derive(Debug)]
pub struct Builder {
    /// With the context before it, since that is what gets signed.
    out: BytesMut,
    template: Template,
    first: u64,
    count: u16,
    references: u16,
    limit: usize,
    count_at: usize,
}

impl Builder {
    /// An empty batch whose first event is `first`, of at most `limit` bytes. `None` when there cannot be one: a topic of
    /// more than 255 bytes, a limit that takes not even a reference, no such number.
    pub fn new(
        topic: &str,
        author: PublicKey,
        epoch: u64,
        started: u64,
        first: u64,
        limit: usize,
    ) -> Option<Self> {
        let least = FIXED + topic.len() + 2 + REFERENCE_BYTES + SIGNATURE;
        if topic.len() > MAX_TOPIC_BYTES || limit < least || !(1..=MAX_SEQ).contains(&first) {
            return None;
        }
        let out = begin(topic, Kind::Events, author, epoch, started, first, limit);
        Some(Self {
            count_at: out.len() - 2,
            out,
            template: Template::new(topic, author.to_string(), epoch_text(epoch)),
            first,
            count: 0,
            references: 0,
            limit: limit + CONTEXT.len() - SIGNATURE,
        })
    }

    /// Adds the event [`Self::next_seq`], a whole JSON message. What fits no batch goes in as a reference, and so does what
    /// does not say that it is this event: receivers would refuse it.
    pub fn push(&mut self, message: &[u8]) -> Push {
        let seq = self.next_seq();
        if self.count == u16::MAX || seq > MAX_SEQ {
            return Push::Full;
        }
        let added = match self.inline(message, seq) {
            Some(form) => self.room(form.bytes()) && self.write(form),
            None => self.room(REFERENCE_BYTES) && self.refer(message),
        };
        if !added {
            return Push::Full;
        }
        self.count += 1;
        Push::Added
    }

    /// The shortest form that holds the whole event; `None` when not even an empty batch has room for it.
    fn inline<'a>(&self, message: &'a [u8], seq: u64) -> Option<Form<'a>> {
        let form = match self.template.split(message, seq) {
            Some((detail, tail)) if tail.len() <= usize::from(u16::MAX) => Form::Templated {
                detail: &message[detail],
                tail: &message[tail],
            },
            _ => Form::Raw(message),
        };
        let fits = self.count_at + 2 + form.bytes() <= self.limit;
        (fits && self.template.fits(message, seq)).then_some(form)
    }

    fn room(&self, bytes: usize) -> bool {
        self.out.len() + bytes <= self.limit
    }

    // The lengths below are under the limit, which is far under u32::MAX.
    fn write(&mut self, form: Form<'_>) -> bool {
        match form {
            Form::Raw(message) => {
                self.out.put_u8(RAW);
                self.out.put_u32(message.len() as u32);
                self.out.put_slice(message);
            }
            Form::Templated { detail, tail } => {
                self.out.put_u8(TEMPLATED);
                self.out.put_u32(detail.len() as u32);
                self.out.put_slice(detail);
                self.out.put_u16(tail.len() as u16);
                self.out.put_slice(tail);
            }
            Form::Reference { size, hash } => {
                self.out.put_u8(REFERENCE);
                self.out.put_u32(size);
                self.out.put_slice(&hash);
            }
        }
        true
    }

    fn refer(&mut self, message: &[u8]) -> bool {
        self.references += 1;
        self.write(Form::Reference {
            size: u32::try_from(message.len()).unwrap_or(u32::MAX),
            hash: hash(message),
        })
    }

    /// Events in it.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// How many of them went in as references.
    pub fn references(&self) -> usize {
        usize::from(self.references)
    }

    /// The number of the event that [`Self::push`] takes next.
    pub fn next_seq(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The batch, signed. Of an empty builder it is one that nobody opens.
    pub fn finish(mut self, secret: &SecretKey, previous: [u8; HASH]) -> Bytes {
        self.out[self.count_at..self.count_at + 2].copy_from_slice(&self.count.to_be_bytes());
        seal(self.out, secret, previous)
    }
}

/// A signed head: the newest number of an author's epoch (0: none yet). iroh-gossip takes two equal messages for one, so
/// `previous` must differ in each head ([`crate::chain::OutChains`] sees to it). `None` as in [`Builder::new`].
pub fn head(
    topic: &str,
    secret: &SecretKey,
    author: PublicKey,
    epoch: u64,
    started: u64,
    seq: u64,
    previous: [u8; HASH],
) -> Option<Bytes> {
    (topic.len() <= MAX_TOPIC_BYTES && seq <= MAX_SEQ).then(|| {
        let size = FIXED + topic.len() + 2 + SIGNATURE;
        let out = begin(topic, Kind::Head, author, epoch, started, seq, size);
        seal(out, secret, previous)
    })
}

/// Up to the count (0), with room for signer and previous hash, which are known at the end.
fn begin(
    topic: &str,
    kind: Kind,
    author: PublicKey,
    epoch: u64,
    started: u64,
    first: u64,
    size: usize,
) -> BytesMut {
    let mut out = BytesMut::with_capacity(CONTEXT.len() + size);
    out.put_slice(CONTEXT);
    out.put_u8(VERSION);
    out.put_u8(kind as u8);
    out.put_bytes(0, HASH);
    out.put_slice(author.as_bytes());
    out.put_u64(epoch);
    out.put_u64(first);
    out.put_u64(started);
    out.put_bytes(0, HASH);
    // Checked by both callers: at most 255.
    out.put_u8(topic.len() as u8);
    out.put_slice(topic.as_bytes());
    out.put_u16(0);
    out
}

fn seal(mut out: BytesMut, secret: &SecretKey, previous: [u8; HASH]) -> Bytes {
    let signer_at = CONTEXT.len() + SIGNER_AT;
    out[signer_at..signer_at + HASH].copy_from_slice(secret.public().as_bytes());
    let previous_at = CONTEXT.len() + PREVIOUS_AT;
    out[previous_at..previous_at + HASH].copy_from_slice(&previous);
    let signature = secret.sign(&out);
    out.put_slice(&signature.to_bytes());
    // A copy of its own size: batches are kept, and the buffer has room for a full one.
    Bytes::copy_from_slice(&out[CONTEXT.len()..])
}

/// An event as it lies in a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form<'a> {
    Raw(&'a [u8]),
    Templated { detail: &'a [u8], tail: &'a [u8] },
    Reference { size: u32, hash: [u8; HASH] },
}

impl Form<'_> {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Raw(message) => RAW_BYTES + message.len(),
            Self::Templated { detail, tail } => TEMPLATED_BYTES + detail.len() + tail.len(),
            Self::Reference { .. } => REFERENCE_BYTES,
        }
    }
}
