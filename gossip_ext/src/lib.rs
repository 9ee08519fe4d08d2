//! `broker._gossip_ext`: what Python sees of it. The manual is `broker/_gossip_ext.pyi`.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod admission;
mod batch;
mod batch_py;
mod bind;
mod broadcast;
mod chain;
mod close;
mod connection;
mod endpoint;
mod error;
mod event;
mod fanout;
mod fd;
mod frame;
mod gossip;
mod hub;
mod inbox;
mod kept;
mod keys;
mod metrics;
mod opening;
mod outbox;
mod overview;
mod pace;
mod paths;
mod peers;
mod reach;
mod receive;
mod relay;
mod relay_access;
mod relay_loss;
mod relays;
mod run;
mod runtime;
mod signal;
mod sockets;
mod spin;
mod stand_in;
mod stats;
mod stream;
mod swarm;
mod swarm_py;
mod token;
mod watchdog;

/// The module.
#[pyo3::pymodule]
mod _gossip_ext {
    #[pymodule_export]
    use crate::batch_py::{event_hash, open_batch, topic_id};
    #[pymodule_export]
    use crate::endpoint::Endpoint;
    #[pymodule_export]
    use crate::fanout::{Frames, Group};
    #[pymodule_export]
    use crate::keys::{generate_secret, node_id, sign, verify};
    #[pymodule_export]
    use crate::overview::Overview;
    #[pymodule_export]
    use crate::relay::Relay;
    #[pymodule_export]
    use crate::runtime::{drive, forget, runtime_stats, start_thread};
    #[pymodule_export]
    use crate::stats::ConnectionStats;
    #[pymodule_export]
    use crate::swarm_py::Swarm;

    use crate::{inbox, outbox};

    #[pymodule_export]
    const OPENED: u8 = inbox::OPENED;
    #[pymodule_export]
    const FRAMES: u8 = inbox::FRAMES;
    #[pymodule_export]
    const CLOSED: u8 = inbox::CLOSED;
    #[pymodule_export]
    const DRAINED: u8 = inbox::DRAINED;
    #[pymodule_export]
    const DIAL_FAILED: u8 = inbox::DIAL_FAILED;
    #[pymodule_export]
    const DATAGRAM: u8 = inbox::DATAGRAM;
    #[pymodule_export]
    const NEIGHBOUR: u8 = inbox::NEIGHBOUR;
    #[pymodule_export]
    const BATCH: u8 = inbox::BATCH;
    #[pymodule_export]
    const HEAD: u8 = inbox::HEAD;
    #[pymodule_export]
    const LAGGED: u8 = inbox::LAGGED;
    #[pymodule_export]
    const SWARM_DRAINED: u8 = inbox::SWARM_DRAINED;
    #[pymodule_export]
    const CALLS: usize = outbox::CALLS;
    #[pymodule_export]
    const TOPICS: usize = outbox::TOPICS;
}
