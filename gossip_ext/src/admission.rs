//! Who may connect: three sets given by Python, asked by iroh after each handshake, for every ALPN.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use iroh::endpoint::{
    AfterHandshakeOutcome, BeforeConnectOutcome, Connection, EndpointHooks, Side,
};
use iroh::{EndpointAddr, PublicKey};

use crate::close;
use crate::gossip::GOSSIP;
use crate::metrics::Counters;
use crate::peers::Peers;
use crate::reach::PROBE;

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
    /// Who may gossip, out of those who are not denied.
    pub peers: Peers,
    /// This endpoint's own prober; `None`: nobody may probe.
    prober: Option<PublicKey>,
    counters: Arc<Counters>,
}

impl Admission {
    /// With these sets.
    pub fn new(sets: Sets, counters: Arc<Counters>, prober: Option<PublicKey>) -> Self {
        Self {
            sets: RwLock::new(sets),
            peers: Peers::default(),
            prober,
            counters,
        }
    }

    /// From now on these sets.
    pub fn replace(&self, sets: Sets) {
        *self.sets.write().unwrap_or_else(PoisonError::into_inner) = sets;
    }

    /// The close with which this peer is refused whatever it wants, or `None`.
    pub fn denial(&self, peer: &PublicKey) -> Option<close::Close> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        sets.deny.contains(peer).then(close::banned)
    }

    /// The close with which this peer is refused on `alkhub/1`, or `None`.
    pub fn refusal(&self, peer: &PublicKey, incoming: bool) -> Option<close::Close> {
        let sets = self.sets.read().unwrap_or_else(PoisonError::into_inner);
        if sets.deny.contains(peer) {
            return Some(close::banned());
        }
        let admitted =
            !incoming || sets.open || sets.allow.contains(peer) || self.peers.framed(peer);
        (!admitted).then(|| close::not_admitted(peer))
    }

    /// The close with which whoever is not our prober is refused as such, or `None`.
    fn strange(&self, peer: &PublicKey) -> Option<close::Close> {
        (Some(*peer) != self.prober).then(|| close::not_admitted(peer))
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
        alpn: &'a [u8],
    ) -> BeforeConnectOutcome {
        let denied = self.0.denial(&remote.id).is_some();
        // On `alkhub/1` whoever is not denied may be dialled.
        let may = !denied && (alpn != GOSSIP || self.0.peers.may_dial(&remote.id));
        match may {
            true => BeforeConnectOutcome::Accept,
            false => BeforeConnectOutcome::Reject,
        }
    }

    async fn after_handshake<'a>(&'a self, conn: &'a Connection) -> AfterHandshakeOutcome {
        let incoming = conn.side() == Side::Server;
        let peer = conn.remote_id();
        let refusal = match conn.alpn() {
            GOSSIP => self.0.peers.enter(conn, || self.0.denial(&peer)),
            PROBE => self.0.strange(&peer),
            _ => self.0.refusal(&peer, incoming),
        };
        let Some(refusal) = refusal else {
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
