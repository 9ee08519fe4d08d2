//! Who may connect: three sets given by Python, asked by iroh after each handshake, for every ALPN.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use iroh::endpoint::{
    AfterHandshakeOutcome, BeforeConnectOutcome, Connection, EndpointHooks, Side,
};
use iroh::{EndpointAddr, PublicKey};

use crate::close;
use crate::metrics::Counters;

/// The sets. Deny beats allow beats open.
#[derive(Debug, Default)]
pub struct Sets {
    /// Everybody who is not denied may connect.
    pub open: bool,
    /// Those who may connect.
    pub allow: HashSet<PublicKey>,
    /// Those who may not, in either direction.
    pub deny: HashSet<PublicKey>,
}

/// The live sets of one endpoint.
#[derive(Debug)]
pub struct Admission {
    sets: RwLock<Sets>,
    counters: Arc<Counters>,
}

impl Admission {
    /// With these sets.
    pub fn new(sets: Sets, counters: Arc<Counters>) -> Self {
        Self {
            sets: RwLock::new(sets),
            counters,
        }
    }

    /// From now on these sets.
    pub fn replace(&self, sets: Sets) {
        *self.sets.write().unwrap_or_else(PoisonError::into_inner) = sets;
    }

    /// The close with which this peer is refused, or `None`.
    pub fn refusal(&self, peer: &PublicKey, incoming: bool) -> Option<close::Close> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        if sets.deny.contains(peer) {
            return Some(close::banned());
        }
        let admitted = !incoming || sets.open || sets.allow.contains(peer);
        (!admitted).then(|| close::not_admitted(peer))
    }

    /// Counts a refusal by its code.
    pub fn count(&self, refusal: &close::Close) {
        match refusal.code {
            close::BANNED => self.counters.refused_banned.inc(),
            _ => self.counters.refused_not_admitted.inc(),
        }
    }
}

/// Admission as iroh asks for it. It must not hold the endpoint: the endpoint holds it.
#[derive(Debug)]
pub struct Hook(pub Arc<Admission>);

impl EndpointHooks for Hook {
    async fn before_connect<'a>(
        &'a self,
        remote: &'a EndpointAddr,
        _alpn: &'a [u8],
    ) -> BeforeConnectOutcome {
        match self.0.refusal(&remote.id, false) {
            Some(_) => BeforeConnectOutcome::Reject,
            None => BeforeConnectOutcome::Accept,
        }
    }

    async fn after_handshake<'a>(&'a self, conn: &'a Connection) -> AfterHandshakeOutcome {
        let incoming = conn.side() == Side::Server;
        let Some(refusal) = self.0.refusal(&conn.remote_id(), incoming) else {
            return AfterHandshakeOutcome::Accept;
        };
        if incoming {
            self.0.count(&refusal);
        }
        AfterHandshakeOutcome::Reject {
            error_code: refusal.code.into(),
            reason: refusal.reason.into_bytes(),
        }
    }
}
