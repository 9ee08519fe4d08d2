//! How connections end: the application close codes, their reasons, and what an ending looks like to Python.

use std::time::Duration;

use iroh::PublicKey;
use iroh::endpoint::ConnectionError;

use crate::frame::Fault;

/// This side ends normally.
pub const NORMAL: u32 = 0;
/// The process or endpoint stops.
pub const GOING_AWAY: u32 = 1;
/// A frame of length 0.
pub const EMPTY_FRAME: u32 = 16;
/// A frame above the limit.
pub const FRAME_TOO_LARGE: u32 = 17;
/// The stream ended inside a frame.
pub const CUT_SHORT: u32 = 18;
/// The peer is not in the allow set.
pub const NOT_ADMITTED: u32 = 32;
/// The peer is in the deny set.
pub const BANNED: u32 = 33;
/// A stream beside the one that a connection has.
pub const SECOND_STREAM: u32 = 36;
/// No stream or no first frame in time.
pub const NO_STREAM: u32 = 37;
/// A gossip neighbour that does not read.
pub const SLOW_CONSUMER: u32 = 38;
/// A frame was not whole in time.
pub const SLOW_FRAME: u32 = 39;

/// A close code and its reason, as they go over the wire.
#[derive(Debug, Clone)]
pub struct Close {
    /// Application close code.
    pub code: u32,
    /// For a human.
    pub reason: String,
}

impl Close {
    /// From its parts.
    pub fn new(code: u32, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// The endpoint closes.
pub fn going_away() -> Close {
    Close::new(GOING_AWAY, "going away")
}

/// The peer is not in the allow set.
pub fn not_admitted(peer: &PublicKey) -> Close {
    Close::new(
        NOT_ADMITTED,
        format!("not admitted: NodeId {peer} is not on this node's allow list"),
    )
}

/// The peer is in the deny set.
pub fn banned() -> Close {
    Close::new(BANNED, "banned: this NodeId is on this node's deny list")
}

/// The peer is not in the peers set.
pub fn no_peer(peer: &PublicKey) -> Close {
    Close::new(
        NOT_ADMITTED,
        format!("not admitted: NodeId {peer} is not among the peers that this node gossips with"),
    )
}

/// The peer was in the peers set.
pub fn unpeered() -> Close {
    Close::new(
        BANNED,
        "removed: this NodeId is no longer among the peers that this node gossips with",
    )
}

/// The peer sent too much that does not hold.
pub fn shunned() -> Close {
    Close::new(
        BANNED,
        "shunned: too many batches that came from this NodeId first hand do not hold",
    )
}

/// Newer connections with the same peer have taken its place, or nobody uses it.
pub fn unused() -> Close {
    Close::new(NORMAL, "this gossip connection is not used any more")
}

/// The peer does not answer, or takes nothing, and holds up every swarm of this node.
pub fn stalled(silent: Duration) -> Close {
    Close::new(
        SLOW_CONSUMER,
        format!(
            "this peer takes no gossip and holds up everybody else's (last heard {:.1} s ago)",
            silent.as_secs_f64()
        ),
    )
}

/// The relay that brought everything is gone, and there are others.
pub fn relay_lost(why: &str) -> Close {
    Close::new(NORMAL, why)
}

/// A frame against the rules.
pub fn bad_frame(fault: Fault) -> Close {
    match fault {
        Fault::Empty => Close::new(
            EMPTY_FRAME,
            "a frame of length 0: a frame is at least 1 byte",
        ),
        Fault::TooLarge { size, limit } => Close::new(
            FRAME_TOO_LARGE,
            format!("a frame of {size} bytes is above the limit of {limit}"),
        ),
    }
}

/// The stream ended inside a frame.
pub fn cut_short(held: usize, announced: Option<u32>) -> Close {
    let whole = match announced {
        Some(size) => format!("{} bytes", u64::from(size) + 4),
        None => "its 4-byte header".to_owned(),
    };
    Close::new(
        CUT_SHORT,
        format!("the stream ended inside a frame: {held} of {whole} came"),
    )
}

/// A second stream.
pub fn second_stream(kind: &str) -> Close {
    Close::new(
        SECOND_STREAM,
        format!(
            "a second stream ({kind}): this protocol has one bidirectional stream a connection"
        ),
    )
}

/// No stream or no first frame in time.
pub fn no_stream(what: &str, limit: Duration) -> Close {
    Close::new(
        NO_STREAM,
        format!("no {what} within {} s", limit.as_secs_f64()),
    )
}

/// A frame was not whole in time.
pub fn slow_frame(held: usize, announced: Option<u32>, limit: Duration) -> Close {
    let whole = announced.map_or("header".to_owned(), |size| {
        (u64::from(size) + 4).to_string()
    });
    Close::new(
        SLOW_FRAME,
        format!(
            "a frame was not whole within {} s: {held} of {whole} bytes came",
            limit.as_secs_f64()
        ),
    )
}

/// A connection's end as the CLOSED item tells it.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Application close code; `None` when the path died without one.
    pub code: Option<u64>,
    /// For a human.
    pub reason: String,
    /// Whether the peer closed it.
    pub remote: bool,
}

impl Ended {
    /// This side closed it.
    pub fn here(close: &Close) -> Self {
        Self {
            code: Some(close.code.into()),
            reason: close.reason.clone(),
            remote: false,
        }
    }

    /// The peer finished its stream and said nothing else.
    pub fn finished() -> Self {
        Self {
            code: Some(NORMAL.into()),
            reason: String::new(),
            remote: true,
        }
    }

    /// What QUIC says.
    pub fn lost(error: &ConnectionError) -> Self {
        let (code, reason, remote) = match error {
            ConnectionError::ApplicationClosed(close) => (
                Some(close.error_code.into_inner()),
                String::from_utf8_lossy(&close.reason).into_owned(),
                true,
            ),
            ConnectionError::TimedOut => (None, "idle timeout".to_owned(), false),
            ConnectionError::Reset => (
                None,
                "reset: the peer does not know this connection any more".to_owned(),
                true,
            ),
            ConnectionError::LocallyClosed => (Some(NORMAL.into()), String::new(), false),
            ConnectionError::ConnectionClosed(close) => (None, close.to_string(), true),
            other => (None, other.to_string(), false),
        };
        Self {
            code,
            reason,
            remote,
        }
    }
}
