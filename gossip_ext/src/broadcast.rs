//! What a swarm sends: events become batches, batches and heads are signed and handed to iroh-gossip, in order.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use iroh::PublicKey;
use tokio::time::Instant;

use crate::batch::{self, Builder, Push};
use crate::chain::OutChains;
use crate::gossip::Gossip;
use crate::hub::Core;
use crate::inbox::Told;
use crate::pace::{HOLD, Pace};
use crate::swarm::{Outgoing, Phase, Shared};

/// How long leaving goes on sending what is queued.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Milliseconds of this machine's clock.
fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // Before 1970 the clock is wrong anyway.
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Sends until the swarm is to be left, and what is queued then.
pub async fn run(core: &Core, gossip: &Arc<Gossip>, shared: &Arc<Shared>) {
    let mut sending = Sending {
        core,
        gossip,
        shared,
        chains: OutChains::default(),
        open: None,
        pace: Pace::default(),
        began: Instant::now(),
    };
    let limit = async {
        shared.reached(Phase::Leaving).await;
        tokio::time::sleep(FLUSH_LIMIT).await;
    };
    tokio::select! {
        () = sending.run() => {}
        () = limit => {}
        // Of its own accord: iroh-gossip has ended.
        () = shared.left() => {}
    }
    shared.set_left();
}

/// A batch that is not full yet.
struct Open {
    builder: Builder,
    author: PublicKey,
    epoch: u64,
    since: Instant,
    /// Whether it waits for more.
    holds: bool,
    /// Of the events, as publish counted them.
    bytes: usize,
}

struct Sending<'a> {
    core: &'a Core,
    gossip: &'a Arc<Gossip>,
    shared: &'a Arc<Shared>,
    chains: OutChains,
    open: Option<Open>,
    pace: Pace,
    began: Instant,
}

/// iroh-gossip takes nothing more.
struct Ended;

impl Sending<'_> {
    async fn run(&mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Ended> {
        if let Some(outgoing) = self.shared.take() {
            return self.send(outgoing).await;
        }
        let leaving = self.shared.phase() != Phase::In;
        let due = self.open.as_ref().map(|open| match open.holds && !leaving {
            true => open.since + HOLD,
            false => open.since,
        });
        match due {
            Some(due) if due <= Instant::now() => self.close().await,
            Some(due) => {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.shared.work() => {}
                    () = self.shared.reached(Phase::Leaving) => {}
                }
                Ok(())
            }
            None if leaving => Err(Ended),
            None => {
                tokio::select! {
                    () = self.shared.work() => {}
                    () = self.shared.reached(Phase::Leaving) => {}
                }
                Ok(())
            }
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> Result<(), Ended> {
        match outgoing {
            Outgoing::Events {
                author,
                epoch,
                first,
                frames,
            } => {
                for (seq, frame) in (first..).zip(&frames) {
                    self.add(author, epoch, seq, frame).await?;
                }
                Ok(())
            }
            Outgoing::Head { author, epoch, seq } => {
                self.close().await?;
                self.head(author, epoch, seq).await
            }
        }
    }

    async fn add(
        &mut self,
        author: PublicKey,
        epoch: u64,
        seq: u64,
        frame: &Bytes,
    ) -> Result<(), Ended> {
        let continues = self.open.as_ref().is_some_and(|open| {
            open.author == author && open.epoch == epoch && open.builder.next_seq() == seq
        });
        if !continues {
            self.close().await?;
        }
        // An empty one takes everything.
        for _ in 0..2 {
            if self.open.is_none() {
                self.open = self.begin(author, epoch, seq);
            }
            if let Some(open) = &mut self.open
                && open.builder.push(frame) == Push::Added
            {
                open.bytes += frame.len();
                return Ok(());
            }
            self.close().await?;
        }
        // No batch can be made of it (join has checked the topic, publish the number): it is as if it had been lost.
        self.taken(1, frame.len());
        Ok(())
    }

    fn begin(&mut self, author: PublicKey, epoch: u64, first: u64) -> Option<Open> {
        let started = self.chains.started(&author, epoch, clock_ms);
        let limit = self.shared.payload_bytes;
        let builder = Builder::new(&self.shared.topic, author, epoch, started, first, limit)?;
        let since = Instant::now();
        Some(Open {
            builder,
            author,
            epoch,
            since,
            holds: self.pace.holds(since - self.began),
            bytes: 0,
        })
    }

    /// Signs and broadcasts the open batch.
    async fn close(&mut self) -> Result<(), Ended> {
        // An empty one would be a batch that nobody opens.
        let Some(open) = self.open.take().filter(|open| open.builder.len() > 0) else {
            return Ok(());
        };
        let (events, references) = (open.builder.len(), open.builder.references());
        let last = open.builder.next_seq() - 1;
        let first = last + 1 - events as u64;
        let previous = self.chains.previous(&open.author, open.epoch);
        let bytes = open.builder.finish(&self.gossip.secret, previous);
        self.chains.sent(&open.author, open.epoch, &bytes);
        let kept = bytes.clone();
        self.shared
            .kept()
            .push(open.author, open.epoch, first, last, kept);
        self.broadcast(bytes).await?;
        self.pace.sent(open.since - self.began, events);
        let totals = &self.shared.totals;
        totals.batches_out.inc();
        totals.events_out.add(events as u64);
        totals.references_out.add(references as u64);
        self.taken(events, open.bytes);
        Ok(())
    }

    async fn head(&mut self, author: PublicKey, epoch: u64, seq: u64) -> Result<(), Ended> {
        let started = self.chains.started(&author, epoch, clock_ms);
        let previous = self.chains.previous_of_head(&author, epoch);
        let secret = &self.gossip.secret;
        let topic = &self.shared.topic;
        let Some(bytes) = batch::head(topic, secret, author, epoch, started, seq, previous) else {
            return Ok(());
        };
        self.chains.head_sent(&author, epoch, &bytes);
        self.broadcast(bytes).await?;
        self.shared.totals.heads_out.inc();
        Ok(())
    }

    async fn broadcast(&self, bytes: Bytes) -> Result<(), Ended> {
        // One that is too long would be taken, never sent, and end the connections it was meant for.
        debug_assert!(bytes.len() <= self.shared.payload_bytes);
        let size = bytes.len() as u64;
        let sender = self.shared.sender().ok_or(Ended)?;
        if !self.gossip.broadcast(&sender, bytes).await {
            return Err(Ended);
        }
        self.shared.totals.bytes_out.add(size);
        Ok(())
    }

    fn taken(&self, events: usize, bytes: usize) {
        if self.shared.taken(events, bytes) {
            self.shared.tell(self.core, Told::Drained);
        }
    }
}

/// What one batch may hold of an event.
pub fn event_bytes(shared: &Shared) -> usize {
    let fixed = 2 + 2 * 32 + 3 * 8 + 32 + 1 + shared.topic.len() + 2 + 64;
    shared.payload_bytes.saturating_sub(fixed + 5)
}
