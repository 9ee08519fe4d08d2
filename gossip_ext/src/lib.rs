//! `broker._gossip_ext`: what Python sees of it. The manual is `broker/_gossip_ext.pyi`.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod admission;
mod bind;
mod close;
mod connection;
mod endpoint;
mod error;
mod fanout;
mod fd;
mod frame;
mod hub;
mod inbox;
mod keys;
mod metrics;
mod outbox;
mod runtime;
mod signal;
mod stats;
mod stream;

/// The module.
#[pyo3::pymodule]
mod _gossip_ext {
    #[pymodule_export]
    use crate::endpoint::Endpoint;
    #[pymodule_export]
    use crate::fanout::Group;
    #[pymodule_export]
    use crate::keys::{generate_secret, node_id, sign, verify};
    #[pymodule_export]
    use crate::runtime::{drive, start_thread};
    #[pymodule_export]
    use crate::stats::ConnectionStats;

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
    const CALLS: usize = outbox::CALLS;
    #[pymodule_export]
    const TOPICS: usize = outbox::TOPICS;
}
