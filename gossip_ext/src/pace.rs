//! Whether what could go waits for more to go with it: a batch for a swarm, a write to a stream. Pure: time is an argument.

use std::time::Duration;

/// How long a batch waits for more events after its first, at most.
pub const HOLD: Duration = Duration::from_millis(5);

/// The pace of what goes into one swarm from here, as the last batch tells it.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    began: Duration,
    events: usize,
}

impl Pace {
    /// Whether a batch that begins `now` is worth holding: at this pace another event comes within [`HOLD`]. It is asked of
    /// when the last batch began and not of when it went, or whoever publishes every 2 * HOLD would be held for ever after
    /// the first time.
    pub fn holds(&self, now: Duration) -> bool {
        self.last.as_ref().is_some_and(|last| {
            let events = u32::try_from(last.events).unwrap_or(u32::MAX);
            now.saturating_sub(last.began) < HOLD.saturating_mul(events)
        })
    }

    /// A batch that began then has gone.
    pub fn sent(&mut self, began: Duration, events: usize) {
        self.last = Some(Last { began, events });
    }
}

/// Writes to a peer that sends nothing, from which on they are held back. PyPI's `iroh` 1.2.0 closes a connection of which
/// its program has left some 2,050 small writes unread.
pub const UNREAD_WRITES: u32 = 256;

/// The time between two writes that are held back: who reads nothing for 9 s is not written that much.
pub const WRITE_GAP: Duration = Duration::from_millis(5);

/// With so much to write there is nothing to wait for: QUIC fills its packets.
const FULL_WRITE: usize = 16 * 1024;

/// What a peer may not have read of one connection. That it reads shows in what it sends: answers, acknowledgements,
/// credit.
#[derive(Debug, Default)]
pub struct Unread {
    writes: u32,
    heard: u64,
    last: Duration,
}

impl Unread {
    /// How long the next write waits, with that many bytes to write.
    pub fn wait(&self, now: Duration, bytes: usize) -> Option<Duration> {
        let gone = now.saturating_sub(self.last);
        (self.writes >= UNREAD_WRITES && bytes < FULL_WRITE && gone < WRITE_GAP)
            .then(|| WRITE_GAP - gone)
    }

    /// A write has gone, and the peer has sent that many frames since the connection began.
    pub fn wrote(&mut self, now: Duration, heard: u64) {
        self.last = now;
        self.writes = if heard == self.heard {
            self.writes.saturating_add(1)
        } else {
            1
        };
        self.heard = heard;
    }
}
