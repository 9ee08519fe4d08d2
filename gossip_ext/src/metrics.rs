//! Totals of one endpoint since it was bound, and of one swarm since it was joined.

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
    ($(#[$what:meta])* $group:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$what])*
        #[derive(Debug, Default)]
        pub struct $group {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl $group {
            /// Every counter with its name.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// What `Endpoint.counters` reports, by these names.
    Counters {
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
        /// Connections that went over from a relay to a direct path.
        paths_to_direct,
        /// Connections that went over from a direct path to a relay.
        paths_to_relay,
        /// Connections ended because the relay that they went over was gone, and there was another.
        relay_cut,
        /// Datagrams not sent because QUIC holds as many as it may of that connection.
        datagrams_full,
        /// Datagrams not sent because they were above the limit of that connection's path.
        datagrams_too_large,
        /// Datagrams not sent because that peer takes none.
        datagrams_unsupported,
        /// Dials of ours for gossip that came to nothing.
        gossip_dials_failed,
        /// Gossip connections ended because their peer was removed, denied or shunned.
        gossip_cut,
        /// Gossip connections ended because their peer held up everybody else.
        gossip_stalled,
        /// Gossip connections ended because nobody used them.
        gossip_unused,
    }
}

counters! {
    /// What `Swarm.counters` reports, by these names, beside what is now.
    Totals {
        /// Batches broadcast.
        batches_out,
        /// Events in them.
        events_out,
        /// Of these, by reference.
        references_out,
        /// Heads broadcast.
        heads_out,
        /// Batches that held, and were new.
        batches_in,
        /// Events in them.
        events_in,
        /// Heads that held.
        heads_in,
        /// Bytes of messages received, whatever they were.
        bytes_in,
        /// Bytes of batches and heads broadcast.
        bytes_out,
        /// Times that gossip overran us.
        lagged,
        /// Not a batch.
        malformed,
        /// A batch of another topic.
        wrong_topic,
        /// Its signature does not hold.
        bad_signature,
        /// Signed by somebody who may not.
        not_allowed,
        /// It does not continue the signer's chain.
        bad_chain,
        /// Seen before, or of an epoch that is over.
        stale,
        /// More than an author may send.
        over_rate,
        /// Neighbours that came.
        neighbours_up,
        /// Neighbours that went.
        neighbours_down,
        /// Publishes refused because the queue was full.
        publish_full,
    }
}
