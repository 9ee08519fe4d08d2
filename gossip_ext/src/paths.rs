//! Which way a connection's packets take: directly, or by a relay.

use std::sync::Arc;

use iroh::endpoint::PathList;
use n0_future::StreamExt;

use crate::connection::Link;
use crate::hub::Core;

/// `direct` or `relay`: the path in use. While none has been chosen, what the open ones are, `mixed` when they are both; and
/// `none` without any. A connection that has moved to a direct path keeps the one by relay, to fall back to.
pub fn kind(paths: &PathList<'_>) -> &'static str {
    let (mut direct, mut relay) = (false, false);
    for path in paths.iter() {
        if path.is_selected() {
            return if path.is_relay() { "relay" } else { "direct" };
        }
        direct |= path.is_ip();
        relay |= path.is_relay();
    }
    match (direct, relay) {
        (true, false) => "direct",
        (false, true) => "relay",
        (true, true) => "mixed",
        (false, false) => "none",
    }
}

/// Counts the changes of one connection, until it ends. Only where there are relays: without, its kind does not change.
pub async fn count(core: Arc<Core>, link: Arc<Link>) {
    // Made before the first look: no change is missed in between.
    let mut events = link.quic.path_events();
    let handle = link.quic.weak_handle();
    drop(link);
    let mut last = "none";
    loop {
        let Some(connection) = handle.upgrade() else {
            return;
        };
        let now = kind(&connection.paths());
        drop(connection);
        if now != last && matches!(now, "direct" | "relay") {
            match (last, now) {
                ("none", _) => {} // the first way is no change
                (_, "direct") => core.counters.paths_to_direct.inc(),
                _ => core.counters.paths_to_relay.inc(),
            }
            last = now;
        }
        if events.next().await.is_none() {
            return;
        }
    }
}
