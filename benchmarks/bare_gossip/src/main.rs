//! iroh-gossip alone: one author, N spokes with an endpoint each, one event a message, iroh-gossip's own settings except
//! for the message size. No hub, no signature, no sequence and no repair: what is lost stays lost.
//!
//! `bare_gossip SPOKES EVENTS SIZE RATE` (events a second; 0: flat out) prints one line of JSON. The author has a thread
//! of its own, the spokes share two, as in the run that it stands beside.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointId, RelayMode};
use iroh_gossip::api::{Event, GossipTopic, JoinOptions};
use iroh_gossip::net::Gossip;
use n0_future::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const SPOKE_THREADS: usize = 2;
const MESSAGE_BYTES: usize = 4_096;
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// The overlay comes to rest before it is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// What has not come so long after the last delivery is missing.
const QUIET: Duration = Duration::from_secs(3);
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// A message that is not taken for so long never will be: the actors of two members wait for room at each other, and none
/// of them reads meanwhile. Seen flat out in 3 runs of 9 on a busy machine. What was published until then counts.
const STUCK: Duration = Duration::from_secs(10);
/// Messages before the first that counts: plumtree finds its tree with them.
const WARM: u64 = 200;
const WARM_PAUSE: Duration = Duration::from_millis(20);
const WARM_NUMBER: u64 = u64::MAX;
const HEADER: usize = 16;
/// Events that one subscription may lag behind, the default of iroh-gossip.
const CAPACITY: usize = 2_048;

#[derive(Clone, Copy)]
struct Run {
    spokes: usize,
    events: u64,
    size: usize,
    rate: f64,
}

/// What all threads see.
struct Shared {
    lookup: MemoryLookup,
    start: Instant,
    joined: AtomicUsize,
    received: AtomicU64,
    lagged: AtomicU64,
    /// When the last delivery was, in ns since `start`.
    last: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

async fn join(shared: &Shared, peers: Vec<EndpointId>) -> Result<(Endpoint, Router, GossipTopic)> {
    let endpoint = Endpoint::builder(presets::Minimal)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")?
        .relay_mode(RelayMode::Disabled)
        .address_lookup(shared.lookup.clone())
        .bind()
        .await?;
    shared.lookup.set_endpoint_info(endpoint.addr());
    let gossip = Gossip::builder()
        .max_message_size(MESSAGE_BYTES)
        .spawn(endpoint.clone());
    let router = Router::builder(endpoint.clone())
        .accept(iroh_gossip::ALPN, gossip.clone())
        .spawn();
    let options = JoinOptions {
        subscription_capacity: CAPACITY,
        ..JoinOptions::with_bootstrap(peers)
    };
    let topic = gossip.subscribe_with_opts([7; 32].into(), options).await?;
    Ok((endpoint, router, topic))
}

/// One spoke: takes what comes, and keeps how long each event took.
async fn spoke(shared: Arc<Shared>, author: EndpointId, late: mpsc::UnboundedSender<u64>) {
    let (_endpoint, _router, mut topic) = join(&shared, vec![author]).await.expect("a spoke joins");
    timeout(JOIN_LIMIT, topic.joined())
        .await
        .expect("a neighbour in time")
        .expect("a neighbour");
    shared.joined.fetch_add(1, Relaxed);
    while let Some(event) = topic.next().await {
        match event {
            Ok(Event::Received(message)) => {
                let field = |at: usize| {
                    u64::from_be_bytes(message.content[at..at + 8].try_into().expect("8 bytes"))
                };
                if field(0) != WARM_NUMBER {
                    let now = shared.now();
                    let _ = late.send(now - field(8));
                    shared.received.fetch_add(1, Relaxed);
                    shared.last.fetch_max(now, Relaxed);
                }
            }
            Ok(Event::Lagged) => {
                shared.lagged.fetch_add(1, Relaxed);
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn message(shared: &Shared, number: u64, size: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(number.to_be_bytes());
    bytes.extend(shared.now().to_be_bytes());
    bytes.resize(size.max(HEADER), b'x');
    bytes.into()
}

/// When publishing began and ended, and whether it ended early, stuck.
struct Published {
    began: u64,
    ended: u64,
    stuck: bool,
}

/// Publishes and waits for what comes.
async fn publish(shared: &Shared, run: Run, topic: GossipTopic) -> Result<Published> {
    let (sender, mut receiver) = topic.split();
    // Somebody must read it, or its queue is in the way.
    tokio::spawn(async move { while receiver.next().await.is_some() {} });
    let deadline = Instant::now() + JOIN_LIMIT;
    while shared.joined.load(Relaxed) < run.spokes {
        if Instant::now() > deadline {
            return Err(format!("{} of {} joined", shared.joined.load(Relaxed), run.spokes).into());
        }
        sleep(Duration::from_millis(10)).await;
    }
    sleep(SETTLE).await;
    for _ in 0..WARM {
        sender
            .broadcast(message(shared, WARM_NUMBER, run.size))
            .await?;
        sleep(WARM_PAUSE).await;
    }
    let began = shared.now();
    shared.last.store(began, Relaxed);
    let mut stuck = false;
    for number in 0..run.events {
        if run.rate > 0.0 {
            let due =
                Duration::from_nanos(began) + Duration::from_secs_f64(number as f64 / run.rate);
            tokio::time::sleep_until((shared.start + due).into()).await;
        }
        let sent = sender.broadcast(message(shared, number, run.size));
        let Ok(taken) = timeout(STUCK, sent).await else {
            stuck = true;
            break;
        };
        taken?;
    }
    let ended = if stuck {
        shared.last.load(Relaxed)
    } else {
        shared.now()
    };
    let expected = run.events * run.spokes as u64;
    while shared.received.load(Relaxed) < expected {
        let now = shared.now();
        let quiet = now - shared.last.load(Relaxed).max(ended).min(now);
        if quiet > QUIET.as_nanos() as u64 || now - began > RUN_LIMIT.as_nanos() as u64 {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(Published {
        began,
        ended,
        stuck,
    })
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn start_spokes(
    shared: &Arc<Shared>,
    count: usize,
    author: EndpointId,
    late: &mpsc::UnboundedSender<u64>,
) {
    for thread in 0..SPOKE_THREADS {
        let (shared, late) = (shared.clone(), late.clone());
        let share = count / SPOKE_THREADS + usize::from(thread < count % SPOKE_THREADS);
        // Not joined: the process ends when the figures are out.
        thread::spawn(move || {
            on_a_runtime(async {
                let all: Vec<_> = (0..share)
                    .map(|_| tokio::spawn(spoke(shared.clone(), author, late.clone())))
                    .collect();
                for one in all {
                    let _ = one.await;
                }
            });
        });
    }
}

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [spokes, events, size, rate] = given.as_slice() else {
        return Err("usage: bare_gossip SPOKES EVENTS SIZE RATE".into());
    };
    let run = Run {
        spokes: spokes.parse()?,
        events: events.parse()?,
        size: size.parse()?,
        rate: rate.parse()?,
    };
    let shared = Arc::new(Shared {
        lookup: MemoryLookup::new(),
        start: Instant::now(),
        joined: AtomicUsize::default(),
        received: AtomicU64::default(),
        lagged: AtomicU64::default(),
        last: AtomicU64::default(),
    });
    let (late, mut latencies) = mpsc::unbounded_channel();
    let published = on_a_runtime(async {
        let (endpoint, _router, topic) = join(&shared, vec![]).await?;
        start_spokes(&shared, run.spokes, endpoint.id(), &late);
        publish(&shared, run, topic).await
    })?;
    let mut all = Vec::new();
    while let Ok(one) = latencies.try_recv() {
        all.push(one);
    }
    all.sort_unstable();
    let pick = |percent: usize| {
        let at = (all.len() * percent / 100).min(all.len().saturating_sub(1));
        all.get(at).map_or(0.0, |ns| *ns as f64 / 1e6)
    };
    let last = shared.last.load(Relaxed).max(published.ended);
    let seconds = (last - published.began) as f64 / 1e9;
    println!(
        "{{\"received\":{},\"expected\":{},\"seconds\":{seconds:.4},\"stuck\":{},\"lagged\":{},\"p50_ms\":{:.3},\"p99_ms\":{:.3}}}",
        shared.received.load(Relaxed),
        run.events * run.spokes as u64,
        published.stuck,
        shared.lagged.load(Relaxed),
        pick(50),
        pick(99),
    );
    Ok(())
}
