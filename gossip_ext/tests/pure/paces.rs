//! When a batch or a write is held: pace.rs.

use std::time::Duration;

use crate::pace::{HOLD, Pace, UNREAD_WRITES, Unread};

const MS: Duration = Duration::from_millis(1);

/// Publishes `events` one by one, `apart`, and returns the most that one was held and how many batches went.
fn publish(events: u32, apart: Duration, jitter: impl Fn(u32) -> Duration) -> (Duration, usize) {
    let mut pace = Pace::default();
    let (mut longest, mut batches) = (Duration::ZERO, 0);
    let mut open: Option<(Duration, Duration, usize)> = None;
    for number in 0..events {
        let now = apart * number + jitter(number);
        if let Some((began, due, count)) = open.take_if(|(_, due, _)| *due <= now) {
            pace.sent(began, count);
            longest = longest.max(due - began);
            batches += 1;
        }
        match &mut open {
            Some((_, _, count)) => *count += 1,
            None if pace.holds(now) => open = Some((now, now + HOLD, 1)),
            None => {
                pace.sent(now, 1);
                batches += 1;
            }
        }
    }
    (longest, batches + usize::from(open.is_some()))
}

#[test]
fn the_first_event_is_not_held_nor_one_after_a_rest() {
    let mut pace = Pace::default();
    assert!(!pace.holds(Duration::ZERO));
    pace.sent(Duration::ZERO, 3);
    assert!(!pace.holds(HOLD * 3));
}

#[test]
fn who_publishes_more_rarely_than_a_hold_is_never_held() {
    for apart in [5, 6, 10, 11, 50] {
        assert_eq!(
            publish(1_000, MS * apart, |_| Duration::ZERO),
            (Duration::ZERO, 1_000),
            "{apart} ms apart"
        );
    }
}

/// At 100 a second and a timer that is late now and then: what is held once does not hold the next.
#[test]
fn a_late_event_holds_one_more_at_most() {
    let (_, batches) = publish(1_000, MS * 10, |number| {
        if number % 100 == 99 {
            MS * 7
        } else {
            Duration::ZERO
        }
    });
    assert!(batches >= 990, "{batches}");
}

#[test]
fn a_stream_of_events_goes_in_batches() {
    let (longest, batches) = publish(1_000, MS, |_| Duration::ZERO);
    assert_eq!(longest, HOLD);
    assert!(batches <= 1_000 / 5 + 1, "{batches}");
    let (_, batches) = publish(1_000, MS / 10, |_| Duration::ZERO);
    assert!(batches <= 1_000 / 50 + 1, "{batches}");
}

/// Writes `bytes` every `apart` for `time` to a peer that reads nothing, and returns how many writes that made.
fn write(apart: Duration, time: Duration, bytes: usize) -> u32 {
    let mut unread = Unread::default();
    let (mut now, mut writes) = (Duration::ZERO, 0);
    while now < time {
        now += unread.wait(now, bytes).unwrap_or_default();
        unread.wrote(now, 0);
        writes += 1;
        now += apart;
    }
    writes
}

#[test]
fn a_peer_that_reads_nothing_is_not_written_many_small_pieces() {
    let writes = write(MS / 50, Duration::from_secs(8), 50);
    assert!(writes > UNREAD_WRITES && writes < 2_000, "{writes}");
}

#[test]
fn large_writes_and_rare_ones_are_not_held_back() {
    assert_eq!(write(MS / 50, MS * 20, 16 * 1024), 1_000);
    assert_eq!(write(MS * 5, MS * 5_000, 50), 1_000);
}

#[test]
fn who_sends_something_is_written_to_at_once() {
    let mut unread = Unread::default();
    for number in 0..10_000 {
        assert_eq!(unread.wait(Duration::ZERO, 50), None, "{number}");
        unread.wrote(Duration::ZERO, u64::from(number / (UNREAD_WRITES - 1)));
    }
}
