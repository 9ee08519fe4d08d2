//! The newest signed batches of one swarm, up to a bound of bytes, for whoever asks for a range of them. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use iroh::PublicKey;

/// What a kept batch costs beside its bytes. Without it heads and lone events would hold several times the bound.
const BATCH_COST: usize = 128;

#[derive(Debug)]
struct Batch {
    author: PublicKey,
    epoch: u64,
    first: u64,
    last: u64,
    bytes: Bytes,
}

/// The ring.
#[derive(Debug)]
pub struct Kept {
    batches: VecDeque<Batch>,
    bytes: usize,
    limit: usize,
}

impl Kept {
    /// Keeps `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    /// Bytes of batches that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes - self.batches.len() * BATCH_COST
    }

    /// Keeps the batch of `first..=last`, and lets the oldest go.
    pub fn push(&mut self, author: PublicKey, epoch: u64, first: u64, last: u64, bytes: Bytes) {
        self.bytes += bytes.len() + BATCH_COST;
        self.batches.push_back(Batch {
            author,
            epoch,
            first,
            last,
            bytes,
        });
        while self.bytes > self.limit
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.bytes.len() + BATCH_COST;
        }
    }

    /// The batches that hold any of `first..=last`, in order, without those that add nothing (an event may be in a batch of
    /// its author's and in a hub's), `max_bytes` of them at most, but at least one.
    pub fn range(
        &self,
        author: &PublicKey,
        epoch: u64,
        first: u64,
        last: u64,
        max_bytes: usize,
    ) -> Vec<Bytes> {
        let wanted = |batch: &&Batch| {
            batch.author == *author
                && batch.epoch == epoch
                && batch.first <= last
                && batch.last >= first
        };
        let mut found: Vec<&Batch> = self.batches.iter().filter(wanted).collect();
        found.sort_by_key(|batch| (batch.first, std::cmp::Reverse(batch.last)));
        let (mut out, mut bytes, mut next) = (Vec::new(), 0, first);
        for batch in found {
            if batch.last < next {
                continue;
            }
            if !out.is_empty() && bytes + batch.bytes.len() > max_bytes {
                break;
            }
            bytes += batch.bytes.len();
            next = batch.last + 1;
            out.push(batch.bytes.clone());
        }
        out
    }
}
