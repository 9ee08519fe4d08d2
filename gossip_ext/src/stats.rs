//! A reading of one connection.

use pyo3::prelude::*;

use crate::connection::Link;

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
        let (queued_bytes, queued_frames) = link.outbox().queued();
        let (mut direct, mut relay) = (false, false);
        let (mut remote_addr, mut rtt) = (String::new(), 0.0);
        for path in link.quic.paths().iter() {
            direct |= path.is_ip();
            relay |= path.is_relay();
            if path.is_selected() || remote_addr.is_empty() {
                remote_addr = match path.remote_addr() {
                    iroh::TransportAddr::Ip(addr) => addr.to_string(),
                    iroh::TransportAddr::Relay(url) => url.to_string(),
                    other => format!("{other:?}"),
                };
                rtt = path.rtt().as_secs_f64();
            }
        }
        Self {
            path: match (direct, relay) {
                (true, false) => "direct",
                (false, true) => "relay",
                (true, true) => "mixed",
                (false, false) => "none",
            },
            remote_addr,
            rtt,
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
