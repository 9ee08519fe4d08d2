//! Totals of one endpoint since it was bound.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more. Relaxed: a reading needs no order with other memory.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The reading.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What `Endpoint.counters` reports, by these names.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Every counter with its name.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Incoming connections that were admitted.
    accepted,
    /// Outgoing connections that were made.
    dialled,
    /// Closed with 32.
    refused_not_admitted,
    /// Closed with 33.
    refused_banned,
    /// Frames against the rules: 16, 17, 18.
    bad_frames,
    /// Closed with 37.
    stream_timeouts,
    /// Closed with 39.
    frame_timeouts,
    /// Closed with 36.
    second_streams,
    /// Frames read.
    frames_in,
    /// Frames handed to QUIC.
    frames_out,
    /// Stream bytes read, headers included.
    bytes_in,
    /// Stream bytes handed to QUIC, headers included.
    bytes_out,
    /// Times that the inbox went from empty to not empty.
    wakeups,
    /// Items handed to Python.
    drained_items,
    /// Sends refused because a lane was full, one for each member of a group.
    lane_full,
    /// Datagrams put in the inbox.
    datagrams_in,
    /// Datagrams handed to QUIC.
    datagrams_out,
    /// Datagrams dropped here because Python was behind.
    datagrams_dropped,
}
