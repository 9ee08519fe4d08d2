//! libFuzzer's entry for signed batches: what the decoder of gossip gives out for any bytes, also for bytes that a member
//! of a swarm has signed. The files are taken by path; of iroh they need its keys alone, so Cargo.toml renames iroh-base.
//!
//! An input: a byte of flags, a byte for the first number, then what stands in the batch behind its topic, or, with the
//! first flag, all of the batch. tests/fuzz has the same layout and replays the corpus through the built extension.

#![no_main]
#![allow(dead_code, unused_imports)] // what of these files only the library uses

#[path = "../src/batch.rs"]
mod batch;
#[path = "../src/event.rs"]
mod event;
#[path = "../src/opening.rs"]
mod opening;

use std::sync::LazyLock;

use opening::template;
use batch::{CONTEXT, Item, MAX_SEQ, epoch_text, open};
use iroh::{PublicKey, SecretKey};
use serde_json::Value;

const TOPIC: &str = "t";
const EPOCH: u64 = 0x0123_4567_89ab_cdef;
const RAW: u8 = 1;
const HEAD: u8 = 2;
const LATE: u8 = 4;

static SECRET: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_bytes(&[1; 32]));
static AUTHOR: LazyLock<PublicKey> = LazyLock::new(|| SECRET.public());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [flags, number, rest @ ..] = data else {
        return;
    };
    if flags & RAW != 0 {
        // Nobody signs it: not one of these opens.
        assert!(open(TOPIC, rest).is_err());
        return;
    }
    let first = match flags & LATE {
        0 => u64::from(*number),
        _ => MAX_SEQ - u64::from(*number),
    };
    let signed = signed(flags & HEAD != 0, first, rest);
    if let Ok(opened) = open(TOPIC, &signed) {
        assert_eq!(
            (opened.header.author, opened.header.first),
            (*AUTHOR, first)
        );
        assert!(first + opened.items.len() as u64 <= MAX_SEQ + 1);
        for (seq, item) in (first..).zip(&opened.items) {
            match (item, item.parts()) {
                (Item::Message(message), _) => says(message, seq),
                (_, Some((detail, tail))) => {
                    let mut message = Vec::new();
                    template(TOPIC, &opened.header).join(&mut message, detail, seq, tail);
                    says(&message, seq);
                    alone(detail, tail);
                }
                _ => {}
            }
        }
    }
    assert!(open("other", &signed).is_err());
});

fn signed(head: bool, first: u64, rest: &[u8]) -> Vec<u8> {
    let mut out = CONTEXT.to_vec();
    out.extend([1, u8::from(head)]);
    out.extend(AUTHOR.as_bytes());
    out.extend(AUTHOR.as_bytes());
    for number in [EPOCH, first, 0] {
        out.extend(number.to_be_bytes());
    }
    out.extend([0; 32]);
    out.push(TOPIC.len() as u8);
    out.extend(TOPIC.as_bytes());
    out.extend(rest);
    let signature = SECRET.sign(&out);
    out.extend(signature.to_bytes());
    out.split_off(CONTEXT.len())
}

/// Between others in a list that is JSON as a whole, the two are one value and one object each.
fn alone(detail: &[u8], tail: &[u8]) {
    let list = [b"[1,", detail, b",{", event::added(tail), b"},2]"].concat();
    if let Ok(list) = serde_json::from_slice::<Vec<Value>>(&list) {
        let added = list[2].as_object().expect("what is added to meta");
        assert_eq!((list.len(), &list[0], &list[3]), (4, &1.into(), &2.into()));
        assert!(["author", "epoch", "seq"].iter().all(|key| !added.contains_key(*key)));
    }
}

/// A message that is JSON at all says what its batch says, to a reader that knows nothing of batches.
fn says(message: &[u8], seq: u64) {
    let Ok(value) = serde_json::from_slice::<Value>(message) else {
        return;
    };
    let meta = &value["meta"];
    assert_eq!(value["type"], TOPIC);
    assert_eq!(meta["author"], AUTHOR.to_string());
    assert_eq!(meta["epoch"], epoch_text(EPOCH));
    assert_eq!(meta["seq"], seq);
}
