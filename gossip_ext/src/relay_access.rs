//! Who may use a relay of ours, and who does. Not here: the relay itself (relay.rs).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh::PublicKey;
use iroh_relay::server::{Access, AccessControl, ClientRequest, ConnectionId};

use crate::metrics::Counter;

const NOT_ADMITTED: &str =
    "this NodeId is not on the relay's list; whoever runs the relay can admit it";

#[derive(Debug, Default)]
struct State {
    open: bool,
    allow: HashSet<PublicKey>,
    /// Connections of each NodeId that was let in.
    live: HashMap<PublicKey, usize>,
}

impl State {
    fn admits(&self, id: &PublicKey) -> bool {
        self.open || self.allow.contains(id)
    }
}

/// The set of one relay, which may change while it runs.
#[derive(Debug, Default)]
pub struct Admitted {
    state: Mutex<State>,
    /// Connections that were let in.
    pub accepted: Counter,
    /// Connections that were not.
    pub refused: Counter,
    /// NodeIds that were cut off because they are admitted no longer.
    pub cut: Counter,
}

impl Admitted {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these.
    pub fn replace(&self, open: bool, allow: HashSet<PublicKey>) {
        let mut state = self.lock();
        state.open = open;
        state.allow = allow;
    }

    /// Who is connected and would not be let in any more.
    pub fn unwanted(&self) -> Vec<PublicKey> {
        let state = self.lock();
        let live = state.live.keys();
        live.filter(|id| !state.admits(id)).copied().collect()
    }

    /// NodeIds that are connected, and their connections.
    pub fn live(&self) -> (usize, usize) {
        let state = self.lock();
        (state.live.len(), state.live.values().sum())
    }
}

impl AccessControl for Admitted {
    async fn on_connect(&self, request: &ClientRequest) -> Access {
        let id = request.endpoint_id();
        let mut state = self.lock();
        if state.admits(&id) {
            *state.live.entry(id).or_default() += 1;
            self.accepted.inc();
            Access::Allow
        } else {
            self.refused.inc();
            Access::Deny {
                reason: Some(NOT_ADMITTED.to_owned()),
            }
        }
    }

    fn on_disconnect(&self, endpoint_id: PublicKey, _: ConnectionId) {
        let mut state = self.lock();
        if let Some(count) = state.live.get_mut(&endpoint_id) {
            *count -= 1;
            if *count == 0 {
                state.live.remove(&endpoint_id);
            }
        }
    }
}
