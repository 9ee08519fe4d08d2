//! A wait that stays awake for a moment. A core that falls asleep takes tens of microseconds to come back, twice in each
//! hop of a call; most answers come sooner than `MOST`. So whoever has just sent something of a call stays awake, and nobody
//! else: what comes in a swarm says nothing of when the next comes, and there a process that stays awake takes the core from
//! the others of its machine (docs/decisions/0005). Two things end it at once, and make the next waits sleep: nothing came
//! in time, or somebody else wanted this core. So an idle or a crowded machine sees next to nothing of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long: a call through a hub and back, on one machine, as its caller waits for it.
const MOST: Duration = Duration::from_micros(400);

/// A yielded core that was away for so long was doing somebody else's work.
const TAKEN: Duration = Duration::from_micros(20);

/// At so many bad waits the pauses grow no longer: 2 to this power.
const WORST: u32 = 6;

/// Bad waits, less the good ones since; waits to pass before the next try.
static BAD: AtomicU32 = AtomicU32::new(0);
static PAUSE: AtomicU32 = AtomicU32::new(0);

/// Something of a call was sent since the last wait.
static EXPECTING: AtomicBool = AtomicBool::new(false);

/// Something of a call is being sent: a call, or an answer, after which the next call comes.
pub fn expect() {
    EXPECTING.store(true, Ordering::Relaxed);
}

/// True when `news` said so meanwhile.
pub async fn wait(limit: Option<Duration>, mut news: impl FnMut() -> bool) -> bool {
    if !EXPECTING.swap(false, Ordering::Relaxed) {
        return false;
    }
    let pause = PAUSE.load(Ordering::Relaxed);
    if pause > 0 {
        PAUSE.store(pause - 1, Ordering::Relaxed);
        return false;
    }
    let most = limit.map_or(MOST, |limit| limit.min(MOST));
    let began = Instant::now();
    let mut now = began;
    while now - began < most {
        tokio::task::yield_now().await; // runs what is ready and polls the sockets
        if news() {
            BAD.store(
                BAD.load(Ordering::Relaxed).saturating_sub(1),
                Ordering::Relaxed,
            );
            return true;
        }
        let left = Instant::now();
        std::thread::yield_now();
        now = Instant::now();
        if now - left > TAKEN {
            break;
        }
    }
    let bad = (BAD.load(Ordering::Relaxed) + 1).min(WORST);
    BAD.store(bad, Ordering::Relaxed);
    PAUSE.store(1 << bad, Ordering::Relaxed);
    false
}
