//! Who may use a relay of ours, and who does. Not here: the relay itself (relay.rs).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh::PublicKey;
use iroh_relay::server::{Access, AccessControl, ClientRequest, ConnectionId};

use crate::metrics::Counter;
use crate::token;

const NOT_ADMITTED: &str =
    "this NodeId is not on the relay's list; whoever runs the relay can admit it";

#[derive(Debug, Default)]
struct State {
    open: bool,
    allow: HashSet<PublicKey>,
    /// Connections of each NodeId that was let in.
    live: HashMap<PublicKey, usize>,
    /// Those that are in on the word of another NodeId.
    guests: HashMap<PublicKey, PublicKey>,
}

impl State {
    fn listed(&self, id: &PublicKey) -> bool {
        self.open || self.allow.contains(id)
    }

    fn admits(&self, id: &PublicKey) -> bool {
        let sponsor = self.guests.get(id);
        self.listed(id) || sponsor.is_some_and(|sponsor| self.listed(sponsor))
    }

    fn enter(&mut self, id: PublicKey, token: Option<String>) -> bool {
        if !self.admits(&id) {
            let sponsor = token.and_then(|token| token::sponsor(&token, &id));
            let Some(sponsor) = sponsor.filter(|sponsor| self.listed(sponsor)) else {
                return false;
            };
            self.guests.insert(id, sponsor);
        }
        *self.live.entry(id).or_default() += 1;
        true
    }

    fn leave(&mut self, id: PublicKey) {
        if let Some(count) = self.live.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&id);
                self.guests.remove(&id);
            }
        }
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
        if self.lock().enter(id, request.auth_token()) {
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
        self.lock().leave(endpoint_id);
    }
}
