//! One topic's swarm: what its tasks and Python share. What Python asks of it is in swarm_py.rs, what is sent in broadcast.rs,
//! what comes in receive.rs; it decides nothing about order, holes or who should be in it.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use iroh::PublicKey;
use iroh_gossip::TopicId;
use iroh_gossip::api::{GossipSender, JoinOptions};
use tokio::sync::{Notify, watch};

use crate::batch;
use crate::connection::InboxShare;
use crate::error::{Error, Result};
use crate::gossip::Gossip;
use crate::hub::Core;
use crate::inbox::{FRAME_COST, Item, Told};
use crate::kept::Kept;
use crate::metrics::Totals;
use crate::runtime::{self, Writer};
use crate::swarm_py::Join;
use crate::{broadcast, event, keys, receive};

/// What publish may have queued beyond what iroh-gossip has taken (64 batches more): some ms of a flood. A queue with
/// nothing in it takes any single publish.
const QUEUE_BYTES: usize = 1024 * 1024;

/// The same in events.
const QUEUE_EVENTS: usize = 4096;

/// Messages that iroh-gossip may queue for one subscription beside its ring of 256, when it is unlimited: a burst. Fewer
/// when messages are so large that this would hold more than inbox_bytes.
const SUBSCRIPTION: usize = 1024;

/// Fewest of them: some turns of its forwarding task, which moves 64 a turn.
const SUBSCRIPTION_LEAST: usize = 128;

/// What Python is told of a batch's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// Whole messages.
    Frames,
    /// What their batch does not say of them, where that can be told apart.
    Parts,
    /// How many they are, where all of them are here.
    Count,
}

impl Telling {
    /// By its name in Python.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "frames" => Ok(Self::Frames),
            "parts" => Ok(Self::Parts),
            "count" => Ok(Self::Count),
            _ => Err(Error::Value(format!(
                "events are told as frames, parts or count, not {name:?}"
            ))),
        }
    }
}

/// Who may say what in a swarm.
#[derive(Debug)]
pub struct Rules {
    /// Who may sign for others.
    pub hubs: HashSet<PublicKey>,
    /// Who may publish beside the hubs; `None`: every member.
    pub authors: Option<HashSet<PublicKey>>,
}

impl Rules {
    fn parse(hubs: &[String], authors: Option<&[String]>) -> Result<Self> {
        let parse = |ids: &[String]| ids.iter().map(|id| keys::public(id)).collect::<Result<_>>();
        Ok(Self {
            hubs: parse(hubs)?,
            authors: authors.map(parse).transpose()?,
        })
    }

    /// Whether this signer may speak for this author.
    pub fn allow(&self, signer: &PublicKey, author: &PublicKey) -> bool {
        let signs = signer == author || self.hubs.contains(signer);
        let publishes = self
            .authors
            .as_ref()
            .is_none_or(|authors| authors.contains(author));
        signs && (publishes || self.hubs.contains(author))
    }
}

/// Something to broadcast.
#[derive(Debug)]
pub enum Outgoing {
    /// Consecutive events.
    Events {
        /// Whose.
        author: PublicKey,
        /// Of the sequence.
        epoch: u64,
        /// Of the first.
        first: u64,
        /// Whole messages.
        frames: VecDeque<Bytes>,
    },
    /// The newest number.
    Head {
        /// Whose.
        author: PublicKey,
        /// Of the sequence.
        epoch: u64,
        /// The number.
        seq: u64,
    },
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Outgoing>,
    /// Events that were queued and not yet taken by iroh-gossip, and their bytes.
    events: usize,
    bytes: usize,
    /// A publish was refused.
    refused: bool,
}

/// How far leaving has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Phase {
    /// Joined.
    In,
    /// What is queued is being sent.
    Leaving,
    /// Out.
    Left,
}

/// The shared part of a swarm.
#[derive(Debug)]
pub struct Shared {
    /// Unique among the connections and swarms of its endpoint.
    pub id: u64,
    /// Its topic.
    pub topic: String,
    /// The topic's id in iroh-gossip.
    pub topic_id: TopicId,
    /// What a payload may hold.
    pub payload_bytes: usize,
    /// Messages that a subscription may hold.
    pub subscription: usize,
    /// What Python wants of events.
    pub events: Telling,
    /// Undrained bytes.
    pub inbox: InboxShare,
    /// Totals.
    pub totals: Totals,
    phase: watch::Sender<Phase>,
    rules: RwLock<Rules>,
    neighbours: Mutex<BTreeSet<PublicKey>>,
    kept: Mutex<Kept>,
    queue: Mutex<Queue>,
    dirty: AtomicBool,
    queued: Notify,
    lag_waits: AtomicBool,
    /// To iroh-gossip, while joined.
    sender: Mutex<Option<GossipSender>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Before anything of it runs.
    pub fn new(core: &Core, gossip: &Gossip, join: &Join, topic_id: TopicId) -> Result<Self> {
        let subscription =
            (join.inbox_bytes / gossip.message_bytes).clamp(SUBSCRIPTION_LEAST, SUBSCRIPTION);
        Ok(Self {
            id: core.next_id(),
            topic: join.topic.clone(),
            topic_id,
            payload_bytes: batch::usable(gossip.message_bytes),
            subscription,
            events: join.events,
            inbox: InboxShare::new(join.inbox_bytes),
            totals: Totals::default(),
            phase: watch::Sender::new(Phase::In),
            rules: RwLock::new(Rules::parse(&join.hubs, join.authors.as_deref())?),
            neighbours: Mutex::default(),
            kept: Mutex::new(Kept::new(join.keep_bytes)),
            queue: Mutex::default(),
            dirty: AtomicBool::new(false),
            queued: Notify::new(),
            lag_waits: AtomicBool::new(false),
            sender: Mutex::new(None),
        })
    }

    /// From now on these may say what.
    pub fn allow(&self, hubs: &[String], authors: Option<&[String]>) -> Result<()> {
        let rules = Rules::parse(hubs, authors)?;
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        Ok(())
    }

    /// Events that were queued and not yet taken.
    pub fn queued_events(&self) -> usize {
        lock(&self.queue).events
    }

    /// Who may say what.
    pub fn rules(&self) -> RwLockReadGuard<'_, Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept batches.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    /// The neighbours.
    pub fn neighbours(&self) -> MutexGuard<'_, BTreeSet<PublicKey>> {
        lock(&self.neighbours)
    }

    /// How far leaving has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns when leaving has come that far.
    pub async fn reached(&self, phase: Phase) {
        // It fails only when the sender is gone, and that is in here.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Returns when it is left.
    pub async fn left(&self) {
        self.reached(Phase::Left).await;
    }

    fn advance(&self, phase: Phase) -> bool {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
            }
            later
        })
    }

    /// Begins to leave, the first time.
    pub fn leave(&self) {
        self.advance(Phase::Leaving);
    }

    /// What was queued is sent, or it is too late for it.
    pub fn set_left(&self) {
        *lock(&self.sender) = None;
        self.advance(Phase::Left);
    }

    /// To iroh-gossip; `None` when it is left.
    pub fn sender(&self) -> Option<GossipSender> {
        lock(&self.sender).clone()
    }

    /// From now on this way to iroh-gossip, unless it is left.
    pub fn set_sender(&self, sender: GossipSender) {
        let mut here = lock(&self.sender);
        if self.phase() < Phase::Left {
            *here = Some(sender);
        }
    }

    /// The next thing to broadcast.
    pub fn take(&self) -> Option<Outgoing> {
        lock(&self.queue).waiting.pop_front()
    }

    /// Returns when there may be something to broadcast.
    pub async fn work(&self) {
        self.queued.notified().await;
    }

    /// iroh-gossip has taken that much. True when a publish that was refused may try again.
    pub fn taken(&self, events: usize, bytes: usize) -> bool {
        let mut queue = lock(&self.queue);
        queue.events -= events;
        queue.bytes -= bytes;
        // Half, so that a program that publishes one by one is not told of every single place.
        let room = queue.events <= QUEUE_EVENTS / 2 && queue.bytes <= QUEUE_BYTES / 2;
        room && std::mem::take(&mut queue.refused)
    }

    /// Queues events. False when there is no room.
    pub fn push(
        self: &Arc<Self>,
        author: PublicKey,
        epoch: u64,
        first: u64,
        frames: VecDeque<Bytes>,
    ) -> bool {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let mut queue = lock(&self.queue);
        let full = queue.events + frames.len() > QUEUE_EVENTS || queue.bytes + bytes > QUEUE_BYTES;
        if full && queue.events > 0 {
            queue.refused = true;
            self.totals.publish_full.inc();
            return false;
        }
        queue.events += frames.len();
        queue.bytes += bytes;
        match queue.waiting.back_mut() {
            Some(Outgoing::Events {
                author: whose,
                epoch: of,
                first: from,
                frames: here,
            }) if *whose == author && *of == epoch && *from + here.len() as u64 == first => {
                here.extend(frames);
            }
            _ => queue.waiting.push_back(Outgoing::Events {
                author,
                epoch,
                first,
                frames,
            }),
        }
        drop(queue);
        runtime::kick(self);
        true
    }

    /// Queues the newest number.
    pub fn push_head(self: &Arc<Self>, author: PublicKey, epoch: u64, seq: u64) {
        let mut queue = lock(&self.queue);
        // A head that still waits says less than this one. So heads cannot fill the queue either.
        queue.waiting.retain(|waiting| {
            !matches!(waiting, Outgoing::Head { author: whose, epoch: of, .. } if *whose == author && *of == epoch)
        });
        queue
            .waiting
            .push_back(Outgoing::Head { author, epoch, seq });
        drop(queue);
        runtime::kick(self);
    }

    /// Whether LAGGED must be put in the inbox: it is not there yet.
    pub fn lag(&self) -> bool {
        self.totals.lagged.inc();
        !self.lag_waits.swap(true, Ordering::AcqRel)
    }

    /// Python has heard of it.
    pub fn lag_told(&self) {
        self.lag_waits.store(false, Ordering::Release);
    }

    /// Of an event, here and when Python has it.
    fn cost(&self, seq: u64, item: &batch::Item) -> usize {
        let comes_back = match item.parts() {
            Some(_) if self.events == Telling::Frames => event::left_out(&self.topic, seq),
            _ => 0,
        };
        item.bytes() + comes_back + FRAME_COST
    }

    /// Puts something into the inbox.
    pub fn tell(self: &Arc<Self>, core: &Core, told: Told) {
        let frames = match &told {
            Told::Batch(opened) => (opened.header.first..)
                .zip(&opened.items)
                .map(|(seq, item)| self.cost(seq, item))
                .sum(),
            _ => 0,
        };
        let cost = frames + FRAME_COST;
        self.inbox.add(cost);
        core.inbox.push(Item::Swarm {
            swarm: self.clone(),
            told,
            cost,
        });
    }
}

impl Writer for Shared {
    fn mark_dirty(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    fn wake_writer(&self) {
        self.dirty.store(false, Ordering::Release);
        self.queued.notify_one();
    }
}

/// Subscribes, runs both directions until it is left, and forgets the swarm.
pub async fn run(core: Arc<Core>, gossip: Arc<Gossip>, shared: Arc<Shared>, peers: Vec<PublicKey>) {
    let subscribed = tokio::select! {
        subscribed = gossip.overlay.subscribe_with_opts(shared.topic_id, options(&shared)) => subscribed.ok(),
        () = shared.reached(Phase::Leaving) => None,
    };
    if let Some(topic) = subscribed {
        let (sender, receiver) = topic.split();
        shared.set_sender(sender);
        ask(&gossip, &shared, peers);
        let reading = receive::run(&core, &gossip, &shared, receiver);
        tokio::join!(broadcast::run(&core, &gossip, &shared), reading);
    }
    shared.set_left();
    gossip.forget(shared.id);
}

/// How iroh-gossip is to be subscribed. Nobody is asked yet: we dial first.
pub fn options(shared: &Shared) -> JoinOptions {
    JoinOptions {
        bootstrap: BTreeSet::new(),
        subscription_capacity: shared.subscription,
    }
}

/// Asks each peer to let us join, once there is a connection with it.
pub fn ask(gossip: &Arc<Gossip>, shared: &Arc<Shared>, peers: Vec<PublicKey>) {
    for peer in peers {
        let (gossip, shared) = (gossip.clone(), shared.clone());
        tokio::spawn(async move {
            let joining = async {
                if gossip.connect(peer).await
                    && let Some(sender) = shared.sender()
                {
                    // It fails when iroh-gossip is shut down.
                    let _ = sender.join_peers(vec![peer]).await;
                }
            };
            tokio::select! {
                () = joining => {}
                () = shared.reached(Phase::Leaving) => {}
            }
        });
    }
}
