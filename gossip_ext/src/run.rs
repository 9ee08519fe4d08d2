//! Opens batches that came together. A signature costs more to check than all the rest, and one is enough for a chain: who
//! signs a batch says with it which bytes its previous one was. Pure, as opening.rs is.

use std::collections::HashSet;
use std::sync::Arc;

use iroh::PublicKey;

use crate::batch::{HASH, Memory, hash, open_vouched};
use crate::opening::{Fault, Opened};

/// A message, opened, and its hash.
#[derive(Debug)]
pub struct Checked {
    /// The batch, or why it is none.
    pub opened: Result<Arc<Opened>, Fault>,
    /// Of the whole message.
    pub hash: [u8; HASH],
}

/// Opens each, the last first: a batch whose signature holds vouches for the one that it names as its signer's previous,
/// at whose signature nobody needs to look then, and so on. Nobody can vouch for batches of another signer. One that comes
/// for the second time has another swarm of the process to hear it, and is kept for the third.
pub fn open(topic: &str, run: &[Option<&[u8]>], memory: &mut Memory) -> Vec<Option<Checked>> {
    let mut vouched = HashSet::new();
    let mut open_one = |data: &[u8]| {
        let hash = hash(data);
        let opened = match memory.opened(topic, &hash) {
            Some(opened) => Ok(opened),
            None => open_new(topic, data, hash, memory, &vouched),
        };
        if let Ok(opened) = &opened {
            vouched.insert((opened.header.signer, opened.header.previous));
        }
        Checked { opened, hash }
    };
    let mut checked: Vec<_> = run
        .iter()
        .rev()
        .map(|data| data.map(&mut open_one))
        .collect();
    checked.reverse();
    checked
}

fn open_new(
    topic: &str,
    data: &[u8],
    hash: [u8; HASH],
    memory: &mut Memory,
    vouched: &HashSet<(PublicKey, [u8; HASH])>,
) -> Result<Arc<Opened>, Fault> {
    let known = memory.holds(&hash);
    let opened = open_vouched(topic, data, memory, |signer| {
        known || vouched.contains(&(*signer, hash))
    });
    let opened = Arc::new(opened?);
    memory.held(hash);
    if known {
        memory.keep(topic, hash, opened.clone());
    }
    Ok(opened)
}
