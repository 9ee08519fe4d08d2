//! How a signer's batches of one author and epoch hang together. Sending: each names the one before it by hash.
//! Receiving: what is old news, what contradicts what came before, and who sends more than a swarm bears.
//!
//! Rules of [`Chains`]; what is not `New` is not delivered, and none of it is lost for good, since a hole in an author's
//! numbers is repaired over streams:
//!
//! 1. Numbers that all came already are `Stale`, whoever sends them again and when. So is a head below the newest
//!    head, or one that came already.
//! 2. An epoch that nobody has heard of yet is `Stale` while a later one (by `started`) of the same signer and author is
//!    alive: it is a recording. An author whose clock went back between two epochs looks the same, so what it says is
//!    dropped until its former epoch has been silent for a minute ([`FORGET`]), and comes over streams after that.
//! 3. Of two neighbouring batches the later names the earlier, else the one that comes second is a `BadChain`: its signer
//!    has made two of one. A chain that was begun anew (another `started`: the signer forgot, or is a new process) is
//!    not compared with the old one.
//! 4. An author beyond [`RATE`] is `OverRate`. Only what is `New` counts, so nobody can use up an author's rate by
//!    sending its batches again.
//!
//! Memory is bounded; who is forgotten is a stranger again, whose batches are `New`: what was had already is dropped
//! further on, where sequences are kept. Pure: no pyo3 or tokio, and time is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use iroh::PublicKey;

use crate::batch::{HASH, Header, Kind, hash};

/// Chains of a swarm: the signers and authors that were not heard for longest are forgotten first.
pub const CHAINS: usize = 1_024;
/// Epochs of one signer and author, so that nobody drives out others by beginning epochs.
pub const EPOCHS: usize = 4;
/// Batches of a chain that the next ones are compared with.
pub const RECENT: usize = 256;
/// Stretches of numbers without a hole that are remembered of a chain; the lowest go first.
pub const SPANS: usize = 256;
/// Heads that are remembered of a chain, so that none with the newest number is heard again.
pub const HEADS: usize = 64;
/// How long the newest epoch may be silent before an older one is believed. An author's heads come every 10 s, and
/// iroh-gossip itself takes the same message only once in 90 s.
pub const FORGET: Duration = Duration::from_secs(60);
/// Points a second that an author may spend in a swarm: an event is one, a batch (its signature is what costs us) 8.
/// That is 44,000 lone events or some 300,000 in batches of 30, several times what one core can check.
pub const RATE: f64 = 400_000.0;
/// Points that an author may have saved up.
pub const BURST: f64 = 2.0 * RATE;
const BATCH_POINTS: u64 = 8;

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver it.
    New,
    /// Nothing in it is new, or its epoch is over.
    Stale,
    /// It contradicts another of the same signer.
    BadChain,
    /// Its author sends too much.
    OverRate,
}

/// What came of a swarm's chains.
#[derive(Debug, Default)]
pub struct Chains {
    pairs: HashMap<(PublicKey, PublicKey), Pair>,
    buckets: HashMap<PublicKey, Bucket>,
}

impl Chains {
    /// Judges an opened batch of `count` events whose bytes have this hash, and remembers it when it is new. `now` is any
    /// clock that does not go back.
    pub fn check(
        &mut self,
        header: &Header,
        count: u64,
        hash: [u8; HASH],
        now: Duration,
    ) -> Verdict {
        let batch = Batch::new(header, count, &hash);
        let key = (header.signer, header.author);
        let verdict = match self.pairs.get(&key) {
            Some(pair) => pair.judge(header, &batch, now),
            None => Verdict::New,
        };
        if verdict != Verdict::New {
            return verdict;
        }
        if !self.spend(header.author, BATCH_POINTS + count, now) {
            return Verdict::OverRate;
        }
        self.make_room(&key, header.epoch, now);
        let pair = self.pairs.entry(key).or_default();
        pair.remember(header, batch, now);
        Verdict::New
    }

    fn spend(&mut self, author: PublicKey, points: u64, now: Duration) -> bool {
        if self.buckets.len() >= CHAINS && !self.buckets.contains_key(&author) {
            forget_oldest(&mut self.buckets, |bucket| bucket.at);
        }
        let bucket = self.buckets.entry(author).or_insert(Bucket {
            points: BURST,
            at: now,
        });
        bucket.spend(points, now)
    }

    /// For a chain that is not there yet.
    fn make_room(&mut self, key: &(PublicKey, PublicKey), epoch: u64, now: Duration) {
        if let Some(pair) = self.pairs.get_mut(key) {
            // Not the one to be forgotten.
            pair.heard = now;
            if pair.chains.iter().any(|chain| chain.epoch == epoch) {
                return;
            }
        }
        while self.chains() >= CHAINS {
            forget_oldest(&mut self.pairs, |pair| pair.heard);
        }
    }

    /// Chains remembered.
    pub fn chains(&self) -> usize {
        self.pairs.values().map(|pair| pair.chains.len()).sum()
    }
}

fn forget_oldest<K: Copy + Eq + std::hash::Hash, V, T: Ord>(
    map: &mut HashMap<K, V>,
    age: impl Fn(&V) -> T,
) {
    let oldest = map
        .iter()
        .min_by_key(|(_, value)| age(value))
        .map(|(key, _)| *key);
    if let Some(key) = oldest {
        map.remove(&key);
    }
}

#[derive(Debug)]
struct Bucket {
    points: f64,
    at: Duration,
}

impl Bucket {
    fn spend(&mut self, points: u64, now: Duration) -> bool {
        let gained = now.saturating_sub(self.at).as_secs_f64() * RATE;
        self.points = (self.points + gained).min(BURST);
        self.at = self.at.max(now);
        // A batch has at most 65,535 events: exact.
        let points = points as f64;
        if self.points < points {
            return false;
        }
        self.points -= points;
        true
    }
}

/// Half a hash: nobody finds another batch with the same 16 bytes, and 1,024 chains stay below 16 MB.
type Mark = [u8; 16];

fn mark(hash: &[u8; HASH]) -> Mark {
    std::array::from_fn(|index| hash[index])
}

/// What is remembered of one batch of events.
#[derive(Debug)]
struct Batch {
    first: u64,
    last: u64,
    started: u64,
    hash: Mark,
    previous: Mark,
}

impl Batch {
    fn new(header: &Header, count: u64, hash: &[u8; HASH]) -> Self {
        Self {
            first: header.first,
            last: header.first.saturating_add(count.saturating_sub(1)),
            started: header.started,
            hash: mark(hash),
            previous: mark(&header.previous),
        }
    }

    /// Whether this is the one that `next` must have named.
    fn is_before(&self, next: &Self) -> bool {
        self.started == next.started && self.last.checked_add(1) == Some(next.first)
    }
}

/// The epochs of one author as one signer tells them.
#[derive(Debug, Default)]
struct Pair {
    chains: Vec<Chain>,
    heard: Duration,
}

impl Pair {
    fn judge(&self, header: &Header, batch: &Batch, now: Duration) -> Verdict {
        if let Some(chain) = self.chains.iter().find(|chain| chain.epoch == header.epoch) {
            return match header.kind {
                Kind::Events => chain.judge(batch),
                Kind::Head => chain.judge_head(batch),
            };
        }
        let over = |chain: &Chain| {
            chain.started > header.started && now.saturating_sub(chain.heard) < FORGET
        };
        match self.chains.iter().any(over) {
            true => Verdict::Stale,
            false => Verdict::New,
        }
    }

    fn remember(&mut self, header: &Header, batch: Batch, now: Duration) {
        self.heard = now;
        let chain = self.chain(header.epoch);
        chain.heard = now;
        chain.started = chain.started.max(header.started);
        match header.kind {
            Kind::Events => chain.remember(batch),
            Kind::Head => chain.remember_head(batch),
        }
    }

    fn chain(&mut self, epoch: u64) -> &mut Chain {
        let known = self.chains.iter().position(|chain| chain.epoch == epoch);
        let index = known.unwrap_or_else(|| {
            if self.chains.len() >= EPOCHS {
                self.chains.sort_by_key(|chain| chain.heard);
                self.chains.remove(0);
            }
            self.chains.push(Chain::new(epoch));
            self.chains.len() - 1
        });
        &mut self.chains[index]
    }
}

#[derive(Debug)]
struct Chain {
    epoch: u64,
    /// The latest.
    started: u64,
    heard: Duration,
    spans: Spans,
    recent: VecDeque<Batch>,
    head: u64,
    heads: VecDeque<Mark>,
}

impl Chain {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            started: 0,
            heard: Duration::ZERO,
            spans: Spans::default(),
            recent: VecDeque::new(),
            head: 0,
            heads: VecDeque::new(),
        }
    }

    fn judge(&self, batch: &Batch) -> Verdict {
        if self.spans.cover(batch.first, batch.last) {
            return Verdict::Stale;
        }
        let contradicts = |known: &Batch| {
            known.is_before(batch) && known.hash != batch.previous
                || batch.is_before(known) && batch.hash != known.previous
        };
        match self.recent.iter().any(contradicts) {
            true => Verdict::BadChain,
            false => Verdict::New,
        }
    }

    fn judge_head(&self, head: &Batch) -> Verdict {
        match head.first < self.head || self.heads.contains(&head.hash) {
            true => Verdict::Stale,
            false => Verdict::New,
        }
    }

    fn remember(&mut self, batch: Batch) {
        self.spans.insert(batch.first, batch.last);
        push_bounded(&mut self.recent, batch, RECENT);
    }

    fn remember_head(&mut self, head: Batch) {
        if head.first > self.head {
            self.head = head.first;
        }
        push_bounded(&mut self.heads, head.hash, HEADS);
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, value: T, bound: usize) {
    if queue.len() >= bound {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// Sets of numbers as stretches without a hole, ascending, none touching the next.
#[derive(Debug, Default)]
struct Spans(Vec<(u64, u64)>);

impl Spans {
    fn cover(&self, first: u64, last: u64) -> bool {
        let after = self.0.partition_point(|span| span.0 <= first);
        after > 0 && last <= self.0[after - 1].1
    }

    fn insert(&mut self, first: u64, last: u64) {
        let from = self
            .0
            .partition_point(|span| span.1.saturating_add(1) < first);
        let to = self
            .0
            .partition_point(|span| span.0 <= last.saturating_add(1));
        let touched = &self.0[from..to];
        let first = touched.first().map_or(first, |span| span.0.min(first));
        let last = touched.last().map_or(last, |span| span.1.max(last));
        self.0.splice(from..to, [(first, last)]);
        if self.0.len() > SPANS {
            self.0.remove(0);
        }
    }
}

/// What a swarm sent, as far as the next batch must name it. Events name the events before them, since their order is
/// what receivers compare. A head names the head before it, so that no two heads are the same bytes: iroh-gossip would
/// take the second for the first.
#[derive(Debug, Default)]
pub struct OutChains {
    chains: HashMap<(PublicKey, u64), Sent>,
    started: u64,
    uses: u64,
}

#[derive(Debug)]
struct Sent {
    started: u64,
    events: [u8; HASH],
    heads: [u8; HASH],
    used: u64,
}

impl OutChains {
    /// When this chain began, in ms; it begins now if it is not there. Later than every other of this process, whatever
    /// the clock does, so that a chain that was forgotten and begun anew is told from the old one.
    pub fn started(
        &mut self,
        author: &PublicKey,
        epoch: u64,
        clock_ms: impl FnOnce() -> u64,
    ) -> u64 {
        self.uses += 1;
        if let Some(sent) = self.chains.get_mut(&(*author, epoch)) {
            sent.used = self.uses;
            return sent.started;
        }
        if self.chains.len() >= CHAINS {
            forget_oldest(&mut self.chains, |sent| sent.used);
        }
        self.started = clock_ms().max(self.started.saturating_add(1));
        let sent = Sent {
            started: self.started,
            events: [0; HASH],
            heads: [0; HASH],
            used: self.uses,
        };
        self.chains.insert((*author, epoch), sent);
        self.started
    }

    /// What the next batch of events names.
    pub fn previous(&self, author: &PublicKey, epoch: u64) -> [u8; HASH] {
        let sent = self.chains.get(&(*author, epoch));
        sent.map_or([0; HASH], |sent| sent.events)
    }

    /// What the next head names.
    pub fn previous_of_head(&self, author: &PublicKey, epoch: u64) -> [u8; HASH] {
        let sent = self.chains.get(&(*author, epoch));
        sent.map_or([0; HASH], |sent| sent.heads)
    }

    /// A batch of events went out.
    pub fn sent(&mut self, author: &PublicKey, epoch: u64, batch: &[u8]) {
        if let Some(sent) = self.chains.get_mut(&(*author, epoch)) {
            sent.events = hash(batch);
        }
    }

    /// A head went out.
    pub fn head_sent(&mut self, author: &PublicKey, epoch: u64, head: &[u8]) {
        if let Some(sent) = self.chains.get_mut(&(*author, epoch)) {
            sent.heads = hash(head);
        }
    }
}
