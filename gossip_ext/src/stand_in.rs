//! Another iroh endpoint in place of the one that talks to relays, where nothing less helps: the one task of iroh's that
//! fills the queues of all relays can wait for one that is dead, for a minute and more (docs/decisions/0008). It has the
//! same key and serves the same protocols, at a free port. What is direct stays where it is. Not here: whether one is
//! needed (broker/protocol/reachability.py).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::Watcher;
use iroh::address_lookup::{AddressLookup, EndpointData, PkarrPublisher};
use iroh::protocol::Router;
use iroh::tls::CaTlsConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::error::Result;
use crate::hub::Core;
use crate::relays::Relays;
use crate::sockets::{FIRST, Socket};
use crate::{bind, close, relay_loss};

/// For the stand-in to be connected to a relay, before whoever comes by relay is sent to it.
const CONNECTS: Duration = Duration::from_secs(2);

/// Makes one, and says how that went: [`Relays::rebuilt`].
pub async fn make(core: Arc<Core>, relays: Arc<Relays>) {
    let _turn = relays.turn().await;
    let made = replace(&core, &relays).await;
    relays.made(made.err().map(|error| format!("{error:?}")));
}

async fn replace(core: &Arc<Core>, relays: &Relays) -> Result<()> {
    if core.closed.load(Ordering::Acquire) {
        return Ok(());
    }
    let recipe = &core.recipe;
    let anywhere = SocketAddr::new(recipe.settings.bind.ip(), 0);
    let socket = recipe.socket(core.next_id(), anywhere).await?;
    // Without waiting for a report on which relay is near.
    relays.touch(&socket.iroh, relays.chosen());
    let router = bind::router(core, &socket);
    tokio::spawn(bring_over(core.clone(), socket.clone()));
    match core.sockets.stand_in(socket, router) {
        Some((first, _)) if first.number == FIRST => relays.leave(&first.iroh).await,
        Some((replaced, router)) => {
            tokio::spawn(end(core.clone(), replaced.number, router));
        }
        None => (),
    }
    Ok(())
}

/// What comes by relay comes to the stand-in from now on, so connections that go by one are dead on the others. Their
/// peers come back when they hear of it.
async fn bring_over(core: Arc<Core>, to: Socket) {
    let mut home = to.iroh.home_relay_status();
    let number = to.number;
    drop(to); // its socket stays open for as long as anybody has it
    let connected = async {
        while !home.get().iter().any(|relay| relay.is_connected()) {
            if home.updated().await.is_err() {
                return; // closed
            }
        }
    };
    // Too late is no matter: they have no other way.
    let _ = tokio::time::timeout(CONNECTS, connected).await;
    let links = core.links();
    for link in links.iter().filter(|link| link.socket != number) {
        if relay_loss::relay_of(link).is_some() {
            core.counters.relay_cut.inc();
            link.abort(close::relay_lost(
                "this node has connected to its relays anew",
            ));
        }
    }
}

/// Closes a stand-in that was replaced.
async fn end(core: Arc<Core>, number: u64, router: Router) {
    let links = core.links().into_iter();
    let links = links.filter(|link| link.socket == number);
    let ends = links.map(|link| link.finish(close::going_away()));
    n0_future::join_all(ends).await;
    // It fails only when the router's task panicked, and then there is nothing left to shut down.
    let _ = router.shutdown().await;
    core.sockets.closed(number);
}

/// Believes about certificates what another one does, until its endpoint is retired. iroh goes on trying to connect to a
/// relay that was ever at home there, also when it is taken off the list; and a relay sends what is for a NodeId to
/// whoever of that name came last. So who is retired is not to come in again.
#[derive(Debug)]
struct Until {
    retired: Arc<AtomicBool>,
    verifier: Arc<dyn ServerCertVerifier>,
}

impl ServerCertVerifier for Until {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if self.retired.load(Ordering::Acquire) {
            let text = "another endpoint of this node has its relays";
            return Err(rustls::Error::General(text.to_owned()));
        }
        self.verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// For iroh: lets nobody believe a relay once this is set.
pub fn until(retired: Arc<AtomicBool>, authorities: CaTlsConfig) -> CaTlsConfig {
    CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider| {
        Ok(Arc::new(Until {
            retired: retired.clone(),
            verifier: authorities.server_cert_verifier(provider)?,
        }))
    }))
}

/// Says where this node is, at a lookup service, until its endpoint is retired: the record is one for all.
#[derive(Debug)]
pub struct Published {
    /// Its endpoint is.
    pub retired: Arc<AtomicBool>,
    /// Whoever says it, one for all.
    pub publisher: PkarrPublisher,
}

impl AddressLookup for Published {
    fn publish(&self, data: &EndpointData) {
        if !self.retired.load(Ordering::Acquire) {
            self.publisher.update_endpoint_data(data);
        }
    }
}
