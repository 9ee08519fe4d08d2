//! What iroh-gossip does not see by itself: a neighbour that takes nothing and so holds up its one actor, neighbours that are
//! gone, and connections that it has left behind. It closes connections and decides nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use iroh::{PublicKey, SecretKey};
use iroh_gossip::TopicId;
use iroh_gossip::api::GossipTopic;
use tokio::time::Instant;

use crate::close;
use crate::gossip::{EVICT, Gossip};
use crate::hub::Core;
use crate::peers::Live;
use crate::swarm::Shared;

/// How often it looks. The actor's timers tick as often, whatever else happens.
const LOOK: Duration = EVICT;

/// Looks without a tick of the actor, after which peers that do not answer are cut: 2 s. Counted in looks and not in
/// time, since a program may run the runtime in slices, and then nobody had a turn.
const STALLED: u32 = 4;

/// And after which one that answers is cut, the one to which nothing was written for longest: 4 s, and another every look.
/// Later, since it may only be held up itself, by a peer that it is about to cut.
const HELD_UP: u32 = 2 * STALLED;

/// QUIC goes on asking a peer that does not answer; for how long without a word, for it to count as gone while the actor
/// hangs. A healthy peer that nobody says anything to is silent too.
const UNANSWERED: Duration = Duration::from_secs(1);

/// The same while the actor does not hang (yet): each member that has the peer for a neighbour would hang in its turn, as
/// soon as the one before it goes on. Programs that pause for 2 s are usual.
const GONE: Duration = Duration::from_secs(3);

/// How long its actor may take to open the topic that we watch.
const ANSWER: Duration = Duration::from_secs(1);

/// How long it may take iroh-gossip to notice that a peer is gone, once it is told.
const BURIAL: Duration = Duration::from_secs(1);

/// For how long nobody has used a connection that is closed for it. Hubs say something in each swarm every 2 s.
const UNUSED: Duration = Duration::from_secs(30);

/// Looks at which a peer was no neighbour in any swarm, after which its connections are closed, used or not: 2 s. To become
/// one takes a round trip, and who is slower dials again. After 10 s they were part of the tree already, which then broke.
const STRANGE: u32 = 4;

/// Runs until the endpoint closes.
pub async fn run(core: Weak<Core>) {
    let mut watch = Watch::default();
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(core) = core.upgrade() else { return };
        let Some(gossip) = core.gossip() else { return };
        let now = Instant::now();
        let pause = (now - last).saturating_sub(LOOK);
        last = now;
        let live = core.admission.peers.look(now, pause);
        watch.look(&core, &gossip, &live, now).await;
        let neighbours = neighbours(&gossip);
        watch.sweep(&core, &neighbours, &live);
        watch.bury(&core, neighbours, &live);
    }
}

#[derive(Default)]
struct Watch {
    /// A topic of our own that nobody joins, so that the actor has a timer that ticks.
    pulse: Option<GossipTopic>,
    ticks: u64,
    /// Looks since the last one.
    still: u32,
    /// Neighbours without a connection, at the last look.
    lost: HashSet<PublicKey>,
    /// Peers with a connection that are no neighbours, and at how many looks in a row.
    strange: HashMap<PublicKey, u32>,
}

impl Watch {
    /// Neighbours that had no connection at two looks in a row are gone.
    fn bury(
        &mut self,
        core: &Arc<Core>,
        neighbours: HashMap<PublicKey, Arc<Shared>>,
        live: &[Live],
    ) {
        let connected: HashSet<_> = live.iter().map(|live| live.peer).collect();
        let mut lost = HashSet::new();
        for (peer, swarm) in neighbours {
            if connected.contains(&peer) {
                continue;
            }
            if self.lost.contains(&peer) {
                tokio::spawn(bury(core.clone(), peer, swarm));
            } else {
                lost.insert(peer);
            }
        }
        self.lost = lost;
    }

    /// Ends what nobody needs. iroh-gossip drops its side of a connection when a topic with the peer is left, dials again for
    /// the next topic, and neither side ever closes the old one. And a peer that was let go of and whose last word came
    /// after that (that it has a message twice, or lacks one) is told of all messages from then on, or sent them, as if
    /// it were a neighbour: only the end of its connection makes iroh-gossip forget it.
    fn sweep(&mut self, core: &Core, neighbours: &HashMap<PublicKey, Arc<Shared>>, live: &[Live]) {
        let strangers = live
            .iter()
            .map(|live| live.peer)
            .filter(|peer| !neighbours.contains_key(peer));
        let strangers: HashSet<_> = strangers.collect();
        self.strange.retain(|peer, _| strangers.contains(peer));
        for peer in strangers {
            *self.strange.entry(peer).or_default() += 1;
        }
        for one in live {
            let used = one.opened.max(one.read.at).max(one.written.at);
            let unused = used.elapsed() >= UNUSED && superseded(one, live);
            let looks = self.strange.get(&one.peer).copied().unwrap_or_default();
            let strange = looks >= STRANGE && one.opened.elapsed() >= STRANGE * LOOK;
            if unused || strange {
                core.counters.gossip_unused.inc();
                one.close(&close::unused());
            }
        }
    }

    async fn look(&mut self, core: &Core, gossip: &Gossip, live: &[Live], now: Instant) {
        if self.pulse.is_none() {
            // The actor answers at once unless it hangs; then what follows finds who holds it up.
            if let Ok(pulse) = tokio::time::timeout(ANSWER, pulse(gossip)).await {
                self.pulse = pulse;
                return;
            }
        }
        let ticks = gossip.overlay.metrics().actor_tick_main.get();
        self.still = match ticks == self.ticks {
            true => self.still + 1,
            false => 0,
        };
        self.ticks = ticks;
        let limit = match self.still < STALLED {
            true => GONE,
            false => UNANSWERED,
        };
        let gone = |live: &&Live| live.unanswered.is_some_and(|since| now - since >= limit);
        let mut culprits: Vec<_> = live.iter().filter(gone).collect();
        if culprits.is_empty() && self.still >= HELD_UP {
            culprits.extend(live.iter().min_by_key(|live| live.written.at));
        }
        for live in culprits {
            core.counters.gossip_stalled.inc();
            live.close(&close::stalled(
                now.saturating_duration_since(live.heard.at),
            ));
        }
    }
}

/// The neighbours in any swarm, and one swarm for each.
fn neighbours(gossip: &Gossip) -> HashMap<PublicKey, Arc<Shared>> {
    let mut neighbours = HashMap::new();
    for swarm in gossip.swarms() {
        for peer in swarm.neighbours().iter() {
            neighbours.insert(*peer, swarm.clone());
        }
    }
    neighbours
}

/// Makes iroh-gossip see that a peer is gone: it forgets a connection, and so does not notice its end, when one of the
/// topics on it is left, as a peer does that leaves many before it goes. It notices dials that fail.
async fn bury(core: Arc<Core>, peer: PublicKey, swarm: Arc<Shared>) {
    let peers = &core.admission.peers;
    peers.doom(peer, true);
    if let Some(sender) = swarm.sender() {
        let dialled = async {
            // It fails when iroh-gossip is shut down.
            let _ = sender.join_peers(vec![peer]).await;
            while swarm.neighbours().contains(&peer) {
                tokio::time::sleep(BURIAL / 100).await;
            }
        };
        let _ = tokio::time::timeout(BURIAL, dialled).await;
    }
    peers.doom(peer, false);
}

/// Nobody else knows its id. The first message starts its timers.
async fn pulse(gossip: &Gossip) -> Option<GossipTopic> {
    let id = TopicId::from_bytes(SecretKey::generate().to_bytes());
    let mut topic = gossip.overlay.subscribe(id, Vec::new()).await.ok()?;
    topic.broadcast(Bytes::from_static(b"pulse")).await.ok()?;
    Some(topic)
}

/// Whether both directions have moved on to other connections with the same peer. When both ends dialled at once, each
/// may go on sending on a connection of its own.
fn superseded(one: &Live, live: &[Live]) -> bool {
    let others = || live.iter().filter(|other| other.peer == one.peer);
    others().any(|other| other.read.at > one.read.at)
        && others().any(|other| other.written.at > one.written.at)
}
