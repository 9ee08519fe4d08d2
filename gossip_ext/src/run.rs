//! Opens batches that came together. A signature costs more to check than all the rest, and one is enough for a chain: who
//! signs a batch says with it which bytes its previous one was. Pure, as opening.rs is.

use std::collections::HashSet;

use crate::batch::{HASH, Memory, hash, open_vouched};
use crate::opening::{Fault, Opened};

/// A message, opened, and its hash.
#[derive(Debug)]
pub struct Checked {
    /// The batch, or why it is none.
    pub opened: Result<Opened, Fault>,
    /// Of the whole message.
    pub hash: [u8; HASH],
}

/// Opens each, the last first: a batch whose signature holds vouches for the one that it names as its signer's previous,
/// at whose signature nobody needs to look then, and so on. Nobody can vouch for batches of another signer.
pub fn open(topic: &str, run: &[Option<&[u8]>], memory: &mut Memory) -> Vec<Option<Checked>> {
    let mut vouched = HashSet::new();
    let mut open_one = |data: &[u8]| {
        let hash = hash(data);
        let known = memory.holds(&hash);
        let opened = open_vouched(topic, data, memory, |signer| {
            known || vouched.contains(&(*signer, hash))
        });
        if let Ok(opened) = &opened {
            memory.held(hash);
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
