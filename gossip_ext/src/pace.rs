//! Whether a batch waits for more events. Pure: time is an argument.

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
