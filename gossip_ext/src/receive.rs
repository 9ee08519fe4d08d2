//! What a swarm hears: neighbours, batches and heads, each checked before Python sees it, and that gossip overran us.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use iroh::PublicKey;
use iroh_gossip::api::{Event, GossipReceiver, Message};
use n0_future::Stream;
use tokio::time::Instant;

use crate::batch::{Fault, HASH, Kind, Memory, Opened};
use crate::chain::{Chains, Verdict};
use crate::gossip::Gossip;
use crate::hub::Core;
use crate::inbox::Told;
use crate::run::{self, Checked};
use crate::swarm::{self, Shared};

/// Messages that are opened in one go, before other tasks get their turn. A signature costs 50 us, more than all the rest;
/// in a flood one answers for the batches that its own names, and that the one before names, and so on.
const TURN: usize = 16;

/// Bytes that a message may become in the inbox, as a multiple: what a batch leaves out comes back.
const GROWTH: usize = 4;

/// Messages that do not hold, first hand from one neighbour, within FORGET: more, and it is shunned.
const FAULTS: usize = 10;

/// After which faults are forgotten.
const FORGET: Duration = Duration::from_secs(10);

/// Neighbours whose faults are counted: more than a swarm has.
const SUSPECTS: usize = 64;

/// After an overrun the neighbours are asked anew, no more often than this.
const RENEW: Duration = Duration::from_secs(1);

/// Of all swarms of the process. The one thread of the runtime is who asks it.
static MEMORY: LazyLock<Mutex<Memory>> = LazyLock::new(Mutex::default);

/// How long a new subscription may take to name the neighbours that there are; iroh-gossip does so at once.
const NAMING: Duration = Duration::from_millis(500);

/// Hears until the swarm is left.
pub async fn run(
    core: &Core,
    gossip: &Arc<Gossip>,
    shared: &Arc<Shared>,
    receiver: GossipReceiver,
) {
    let mut hearing = Hearing {
        core,
        gossip,
        shared,
        receiver,
        chains: Chains::default(),
        began: Instant::now(),
        suspects: HashMap::new(),
        renewed: None,
        naming: None,
    };
    tokio::select! {
        () = hearing.run() => {}
        () = shared.left() => {}
    }
    hearing.end();
    shared.set_left();
}

fn size(event: &Event) -> usize {
    match event {
        Event::Received(message) => message.content.len(),
        _ => 0,
    }
}

/// The batches among the events, opened together.
fn open_all(topic: &str, turn: &[Event]) -> Vec<Option<Checked>> {
    let data: Vec<Option<&[u8]>> = turn
        .iter()
        .map(|event| match event {
            Event::Received(message) => Some(&*message.content),
            _ => None,
        })
        .collect();
    let mut memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    run::open(topic, &data, &mut memory)
}

struct Hearing<'a> {
    core: &'a Core,
    gossip: &'a Arc<Gossip>,
    shared: &'a Arc<Shared>,
    receiver: GossipReceiver,
    chains: Chains,
    began: Instant,
    /// When a neighbour's faults began, and how many there are.
    suspects: HashMap<PublicKey, (Instant, usize)>,
    /// When the subscription was renewed.
    renewed: Option<Instant>,
    /// The neighbours that it has named since, until when.
    naming: Option<(Instant, BTreeSet<PublicKey>)>,
}

impl Hearing<'_> {
    async fn run(&mut self) {
        let shared = self.shared;
        loop {
            if shared.inbox.full() {
                shared.inbox.room().await;
            }
            let Some(event) = self.next().await else {
                return;
            };
            let turn = self.gather(event);
            let busy = turn.len() >= TURN;
            let opened = open_all(&shared.topic, &turn);
            for (event, opened) in turn.into_iter().zip(opened) {
                self.hear(event, opened).await;
            }
            if busy {
                tokio::task::yield_now().await;
            }
        }
    }

    /// This event and what else is there already, as far as there is room for it.
    fn gather(&mut self, event: Event) -> Vec<Event> {
        let mut room = self.shared.inbox.left() / GROWTH;
        let mut turn = vec![event];
        let mut context = Context::from_waker(Waker::noop());
        while turn.len() < TURN {
            room = room.saturating_sub(size(&turn[turn.len() - 1]));
            if room == 0 {
                break;
            }
            // Whoever waits next registers its own waker.
            match Pin::new(&mut self.receiver).poll_next(&mut context) {
                Poll::Ready(Some(Ok(event))) => turn.push(event),
                _ => break,
            }
        }
        turn
    }

    /// `None` when iroh-gossip has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let until = self.naming.as_ref().map(|(until, _)| *until);
            let receiver = &mut self.receiver;
            let next = std::future::poll_fn(|context| Pin::new(&mut *receiver).poll_next(context));
            let Some(until) = until else {
                return next.await?.ok();
            };
            match tokio::time::timeout_at(until, next).await {
                Ok(event) => return event?.ok(),
                Err(_) => self.named(),
            }
        }
    }

    async fn hear(&mut self, event: Event, opened: Option<Checked>) {
        match event {
            Event::NeighborUp(peer) => {
                if let Some((_, named)) = &mut self.naming {
                    named.insert(peer);
                }
                self.neighbour(peer, true);
            }
            Event::NeighborDown(peer) => {
                if let Some((_, named)) = &mut self.naming {
                    named.remove(&peer);
                }
                self.neighbour(peer, false);
            }
            Event::Received(message) => {
                if let Some(opened) = opened {
                    self.message(&message, opened);
                }
            }
            Event::Lagged => self.lagged().await,
        }
    }

    fn neighbour(&self, peer: PublicKey, up: bool) {
        let mut neighbours = self.shared.neighbours();
        let changed = match up {
            true => neighbours.insert(peer),
            false => neighbours.remove(&peer),
        };
        drop(neighbours);
        if changed {
            match up {
                true => self.shared.totals.neighbours_up.inc(),
                false => self.shared.totals.neighbours_down.inc(),
            }
            self.shared.tell(self.core, Told::Neighbour { peer, up });
        }
    }

    /// An overrun may have taken news of neighbours with it. A second subscription begins with those that there are.
    async fn lagged(&mut self) {
        if self.shared.lag() {
            self.shared.tell(self.core, Told::Lagged);
        }
        let now = Instant::now();
        if self.renewed.is_some_and(|renewed| now - renewed < RENEW) {
            return;
        }
        let options = swarm::options(self.shared);
        let overlay = &self.gossip.overlay;
        let subscribed = overlay.subscribe_with_opts(self.shared.topic_id, options);
        if let Ok(topic) = subscribed.await {
            let (sender, receiver) = topic.split();
            self.shared.set_sender(sender);
            self.receiver = receiver;
            self.renewed = Some(now);
            self.naming = Some((now + NAMING, BTreeSet::new()));
        }
    }

    /// Who was not named is no neighbour any more.
    fn named(&mut self) {
        let Some((_, named)) = self.naming.take() else {
            return;
        };
        let gone: Vec<_> = self
            .shared
            .neighbours()
            .difference(&named)
            .copied()
            .collect();
        gone.into_iter()
            .for_each(|peer| self.neighbour(peer, false));
    }

    fn message(&mut self, message: &Message, checked: Checked) {
        let totals = &self.shared.totals;
        totals.bytes_in.add(message.content.len() as u64);
        match checked.opened {
            Ok(opened) => self.opened(opened, checked.hash, &message.content),
            Err(fault) => {
                match fault {
                    Fault::Malformed(_) => totals.malformed.inc(),
                    Fault::WrongTopic => totals.wrong_topic.inc(),
                    Fault::BadSignature => totals.bad_signature.inc(),
                }
                // Honest neighbours pass on what others made up, since iroh-gossip does not ask us before it does.
                if message.scope.is_direct() {
                    self.suspect(message.delivered_from);
                }
            }
        }
    }

    fn suspect(&mut self, peer: PublicKey) {
        let now = Instant::now();
        if self.suspects.len() >= SUSPECTS {
            self.suspects.retain(|_, (since, _)| now - *since < FORGET);
        }
        let (since, faults) = self.suspects.entry(peer).or_insert((now, 0));
        if now - *since >= FORGET {
            (*since, *faults) = (now, 0);
        }
        *faults += 1;
        if *faults > FAULTS {
            self.suspects.remove(&peer);
            self.core.admission.peers.shun(peer, self.shared.id);
            self.core.counters.gossip_cut.inc();
        }
    }

    fn opened(&mut self, opened: Arc<Opened>, hash: [u8; HASH], bytes: &Bytes) {
        let Opened { header, items } = &*opened;
        let totals = &self.shared.totals;
        if !self.shared.rules().allow(&header.signer, &header.author) {
            totals.not_allowed.inc();
            return;
        }
        let count = items.len() as u64;
        match self.chains.check(header, count, hash, self.began.elapsed()) {
            Verdict::New => self.deliver(opened, bytes),
            Verdict::Stale => totals.stale.inc(),
            Verdict::BadChain => totals.bad_chain.inc(),
            Verdict::OverRate => totals.over_rate.inc(),
        }
    }

    fn deliver(&self, opened: Arc<Opened>, bytes: &Bytes) {
        let totals = &self.shared.totals;
        let (header, count) = (&opened.header, opened.items.len() as u64);
        let (author, epoch, first) = (header.author, header.epoch, header.first);
        let told = match header.kind {
            Kind::Head => {
                totals.heads_in.inc();
                let seq = first;
                Told::Head { author, epoch, seq }
            }
            Kind::Events => {
                totals.batches_in.inc();
                totals.events_in.add(count);
                let last = first + count - 1;
                self.shared
                    .kept()
                    .push(author, epoch, first, last, bytes.clone());
                Told::Batch(opened)
            }
        };
        self.shared.tell(self.core, told);
    }

    /// Left: there are no neighbours any more, and Python is told so.
    fn end(&self) {
        let gone = std::mem::take(&mut *self.shared.neighbours());
        let core = self.core;
        for peer in gone {
            self.shared.totals.neighbours_down.inc();
            self.shared.tell(core, Told::Neighbour { peer, up: false });
        }
    }
}
