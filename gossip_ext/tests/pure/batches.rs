//! An author, its events and their batches, for tests.

use std::sync::LazyLock;

use bytes::Bytes;
use iroh::{PublicKey, SecretKey};

use crate::batch::{self, Builder, Fault, Item, Opened, Push, epoch_text};
use crate::opening::template;

pub const TOPIC: &str = "plant.line-3.temperature";
pub const EPOCH: u64 = 0x0123_4567_89ab_cdef;
pub const LIMIT: usize = batch::usable(4_096);
pub const CUT_SHORT: Fault = Fault::Malformed("it is cut short");
pub const NOT_THIS_EVENT: Fault = Fault::Malformed("an event is not the one that its batch says");

/// SplitMix64: the same numbers in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

pub fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32])
}

/// Made once: a key costs more than all else that a test does for an event.
pub fn author() -> PublicKey {
    static AUTHOR: LazyLock<PublicKey> = LazyLock::new(|| secret(1).public());
    *AUTHOR
}

/// As orjson writes an event of ours; `more` follows the number.
pub fn event_of(topic: &str, seq: u64, detail: &str, more: &str) -> String {
    let (author, epoch) = (author(), epoch_text(EPOCH));
    format!(
        r#"{{"type":"{topic}","detail":{detail},"meta":{{"author":"{author}","epoch":"{epoch}","seq":{seq}{more}}}}}"#
    )
}

pub fn event(seq: u64, detail: &str) -> String {
    event_of(TOPIC, seq, detail, "")
}

pub fn builder(first: u64, limit: usize) -> Builder {
    Builder::new(TOPIC, author(), EPOCH, 7, first, limit).unwrap()
}

pub fn finish(builder: Builder) -> Bytes {
    builder.finish(&secret(1), [9; 32])
}

/// A batch of these messages, all of which it takes.
pub fn batch_of(first: u64, messages: &[String]) -> Bytes {
    let mut builder = builder(first, LIMIT);
    for message in messages {
        assert_eq!(builder.push(message.as_bytes()), Push::Added);
    }
    assert_eq!(builder.len(), messages.len());
    finish(builder)
}

/// Of what is only named: nothing.
pub fn messages(opened: &Opened) -> Vec<String> {
    whole(opened)
        .into_iter()
        .map(|item| match item {
            Item::Message(message) => String::from_utf8(message.to_vec()).unwrap(),
            _ => String::new(),
        })
        .collect()
}

/// Its items, those in parts made whole.
pub fn whole(opened: &Opened) -> Vec<Item> {
    let header = &opened.header;
    let make = |(seq, item): (u64, &Item)| match item.parts() {
        Some((detail, tail)) => {
            let mut message = Vec::new();
            template(TOPIC, header).join(&mut message, detail, seq, tail);
            Item::Message(message.into())
        }
        None => item.clone(),
    };
    (header.first..).zip(&opened.items).map(make).collect()
}

/// Bytes of what it holds of its events.
pub fn size(opened: &Opened) -> usize {
    opened.items.iter().map(Item::bytes).sum()
}

/// The batch with other bytes under the signature, signed again: what a member that means ill can send.
pub fn forged(batch: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = batch[..batch.len() - 64].to_vec();
    change(&mut body);
    let signed = [b"iroh-broker batch v1\0", &body[..]].concat();
    body.extend(secret(1).sign(&signed).to_bytes());
    body
}
