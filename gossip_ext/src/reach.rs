//! Whether this endpoint can be reached through a relay: a second endpoint, which has no other way than that relay, dials
//! it. It never shares the relay connection whose health is in question, and proves what a peer would see. Not here: what
//! follows from it.
//!
//! The second endpoint has an identity of its own, made from the first one's. A relay that admits only whom it knows takes
//! it on the first one's word: a token, signed by it (relay_access.rs).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use iroh::endpoint::{Connection, presets};
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh::{
    EndpointAddr, NetReportConfig, PublicKey, RelayConfig, RelayMap, RelayMode, RelayUrl,
    SecretKey, TransportAddr,
};
use iroh_relay::client::{ClientBuilder, ConnectError};
use iroh_relay::protos::handshake;
use rustls::crypto::ring;
use tokio::time::{Instant, timeout};

use crate::error::{Error, Result};
use crate::relays::{self, Authorities};
use crate::token;

/// What a prober asks for. A peer that asks for it is closed with what any stranger gets.
pub const PROBE: &[u8] = b"broker/probe/1";

/// To find out of a relay that did not bring the prober through what is wrong with it.
const DIAGNOSIS: Duration = Duration::from_secs(2);

const UNBELIEVED: &str =
    "its certificate is signed by nobody who is believed here; relay_ca (--relay-ca) names who is";

/// For the prober to hang up.
const HOLD: Duration = Duration::from_secs(5);

/// How a probe ended.
#[derive(Debug, Clone)]
pub struct Probed {
    /// `ok`; `unreachable`: the relay itself; `silent`: the relay is there, and this endpoint is not behind it; `refused`:
    /// the relay does not let the prober in, so that nothing is known.
    pub kind: &'static str,
    /// Seconds that it took.
    pub seconds: f64,
    /// What is wrong.
    pub message: String,
}

/// The second endpoint, of one endpoint.
#[derive(Debug)]
pub struct Prober {
    owner: PublicKey,
    secret: SecretKey,
    token: String,
    authorities: Authorities,
    endpoint: tokio::sync::Mutex<Option<iroh::Endpoint>>,
    result: Mutex<Option<Probed>>,
}

impl Prober {
    /// Of the endpoint with this key.
    pub fn new(owner: &SecretKey, authorities: Authorities) -> Self {
        let secret = token::prober(owner);
        Self {
            owner: owner.public(),
            token: token::vouch(owner, &secret.public()),
            secret,
            authorities,
            endpoint: tokio::sync::Mutex::default(),
            result: Mutex::default(),
        }
    }

    /// Its identity.
    pub fn id(&self) -> PublicKey {
        self.secret.public()
    }

    /// The result of the last probe, once.
    pub fn take(&self) -> Option<Probed> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.take()
    }

    /// Dials its owner through this relay. Whether that came through.
    pub async fn probe(self: Arc<Self>, url: RelayUrl, limit: Duration) -> bool {
        let began = Instant::now();
        let (kind, message) = match self.reaches(&url, limit).await {
            Ok(()) => ("ok", String::new()),
            Err(silence) => {
                self.forget().await;
                self.diagnose(&url, silence).await
            }
        };
        let probed = Probed {
            kind,
            seconds: began.elapsed().as_secs_f64(),
            message,
        };
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        *result = Some(probed);
        kind == "ok"
    }

    async fn reaches(&self, url: &RelayUrl, limit: Duration) -> std::result::Result<(), String> {
        let endpoint = match self.endpoint().await {
            Ok(endpoint) => endpoint,
            Err(error) => return Err(format!("the probe could not be made: {error:?}")),
        };
        let config = RelayConfig::new(url.clone(), None).with_auth_token(self.token.clone());
        endpoint.insert_relay(url.clone(), Arc::new(config)).await;
        let owner = EndpointAddr::from_parts(self.owner, [TransportAddr::Relay(url.clone())]);
        match timeout(limit, endpoint.connect(owner, PROBE)).await {
            Ok(Ok(connection)) => {
                connection.close(0_u8.into(), b"there");
                Ok(())
            }
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err(format!("no answer in {} s", limit.as_secs_f64())),
        }
    }

    async fn endpoint(&self) -> Result<iroh::Endpoint> {
        let mut endpoint = self.endpoint.lock().await;
        if let Some(endpoint) = &*endpoint {
            return Ok(endpoint.clone());
        }
        let made = iroh::Endpoint::builder(presets::Minimal)
            .secret_key(self.secret.clone())
            .clear_ip_transports()
            .relay_mode(RelayMode::Custom(RelayMap::empty()))
            .net_report_config(NetReportConfig::minimal())
            .portmapper_config(iroh::endpoint::PortmapperConfig::Disabled)
            .dns_resolver(relays::resolver())
            .ca_tls_config(self.authorities.config())
            .bind()
            .await
            .map_err(|error| Error::Bind(format!("{error:#}")))?;
        Ok(endpoint.insert(made).clone())
    }

    /// The next probe begins anew: a prober that is stuck itself must not be held against its owner.
    pub async fn forget(&self) {
        if let Some(endpoint) = self.endpoint.lock().await.take() {
            tokio::spawn(async move { endpoint.close().await });
        }
    }

    /// Why a relay may not have brought a dial through; `None` when it is not the relay's fault.
    pub async fn why(&self, url: &RelayUrl) -> Option<String> {
        let (kind, message) = self.diagnose(url, String::new()).await;
        match kind {
            "unreachable" => Some(format!("the relay {url} cannot be used: {message}")),
            "refused" => Some(format!("the relay {url} refuses this NodeId: {message}")),
            _ => None,
        }
    }

    /// What a relay says to whoever comes without any endpoint.
    async fn diagnose(&self, url: &RelayUrl, silence: String) -> (&'static str, String) {
        let provider = Arc::new(ring::default_provider());
        let tls = match self.authorities.config().client_config(provider) {
            Ok(tls) => tls,
            Err(error) => return ("unreachable", error.to_string()),
        };
        let client = ClientBuilder::new(url.clone(), self.secret.clone(), relays::resolver())
            .tls_client_config(tls)
            .auth_token(self.token.clone());
        match timeout(DIAGNOSIS, client.connect()).await {
            Ok(Ok(_)) => ("silent", silence),
            Ok(Err(ConnectError::Handshake {
                source: handshake::Error::ServerDeniedAuth { reason, .. },
                ..
            })) => ("refused", reason),
            Ok(Err(error)) => ("unreachable", words(&format!("{error:#}"))),
            Err(_) => (
                "unreachable",
                format!(
                    "it takes the connection and says nothing for {} s",
                    DIAGNOSIS.as_secs()
                ),
            ),
        }
    }
}

/// What is wrong with a relay, for people: errors bring the names of their types, and TLS has only its own words.
fn words(error: &str) -> String {
    let known = [
        ("UnknownIssuer", UNBELIEVED),
        ("BadSignature", UNBELIEVED), // by an authority of the same name
        (
            "NotValidForName",
            "its certificate is for another name than its URL's",
        ),
        ("Expired", "its certificate has expired"),
        (
            "NotValidYet",
            "its certificate is not valid yet, or this machine's clock is wrong",
        ),
    ];
    let certificate = error.contains("invalid peer certificate");
    let found = known
        .iter()
        .find(|(word, _)| certificate && error.contains(word));
    if let Some((_, text)) = found {
        return (*text).to_owned();
    }
    let parts = error
        .split(": ")
        .filter(|part| !part.contains("::") || part.contains(' '));
    let plain = parts.collect::<Vec<_>>().join(": ");
    plain.replace("invalid peer certificate", "its certificate")
}

/// What answers probes.
#[derive(Debug)]
pub struct Answers;

impl ProtocolHandler for Answers {
    async fn accept(&self, connection: Connection) -> std::result::Result<(), AcceptError> {
        // The handshake was the answer. Whoever hangs up first, the prober should.
        let _ = timeout(HOLD, connection.closed()).await;
        Ok(())
    }
}
