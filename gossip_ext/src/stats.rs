//! A reading of one connection.

use pyo3::prelude::*;

use crate::connection::Link;
use crate::overview::Reading;
use crate::relays;

/// A reading of one connection.
#[pyclass(frozen, get_all, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct ConnectionStats {
    path: &'static str,
    remote_addr: String,
    rtt: f64,
    bytes_sent: u64,
    bytes_received: u64,
    lost_packets: u64,
    frames_sent: u64,
    frames_received: u64,
    queued_bytes: usize,
    queued_frames: usize,
    inbox_bytes: usize,
}

impl ConnectionStats {
    /// Now.
    pub fn read(link: &Link) -> Self {
        let quic = link.quic.stats();
        let reading = Reading::of(&link.quic, &link.congestion);
        let (queued_bytes, queued_frames) = link.outbox().queued();
        Self {
            path: reading.path,
            remote_addr: reading
                .remote
                .as_ref()
                .map(relays::shown)
                .unwrap_or_default(),
            rtt: reading.rtt.as_secs_f64(),
            bytes_sent: quic.udp_tx.bytes,
            bytes_received: quic.udp_rx.bytes,
            lost_packets: quic.lost_packets,
            frames_sent: link.frames_out.get(),
            frames_received: link.frames_in.get(),
            queued_bytes,
            queued_frames,
            inbox_bytes: link.inbox.bytes(),
        }
    }
}
