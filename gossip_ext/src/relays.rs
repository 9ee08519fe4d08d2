//! How an endpoint uses relays: what it believes of them, and what it asks of them. Not here: being one (relay.rs).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::dns::DnsResolver;
use iroh::tls::CaTlsConfig;
use iroh::{
    EndpointAddr, NetReportConfig, RelayConfig, RelayMap, RelayUrl, SecretKey, TransportAddr,
    Watcher,
};
use iroh_relay::RelayQuicConfig;
use iroh_relay::defaults::DEFAULT_RELAY_QUIC_PORT;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Error, Result};
use crate::reach::{PROBE, Probed, Prober};

/// For the one packet that makes iroh connect to a relay.
const TOUCH: Duration = Duration::from_millis(500);

/// The UDP port at which a relay tells who asks by QUIC what its public address is: the URL's own port, so that a relay
/// needs one port; iroh's for a URL without. `None` without TLS, since QUIC has none either then.
pub fn quic_port(url: &RelayUrl) -> Option<u16> {
    (url.scheme() == "https").then(|| url.port().unwrap_or(DEFAULT_RELAY_QUIC_PORT))
}

/// A relay as iroh wants to have it described.
pub fn config(url: RelayUrl) -> Arc<RelayConfig> {
    let quic = quic_port(&url).map(RelayQuicConfig::new);
    Arc::new(RelayConfig::new(url, quic))
}

/// What is asked of relays. Their latency by https too, which is all that there is where UDP is blocked; nothing that looks
/// for a captive portal.
pub fn reports() -> NetReportConfig {
    let mut config = NetReportConfig::minimal();
    config.https_probes = true;
    config
}

/// Names of relays are looked up as the system says and nowhere else: iroh's own goes on to public resolvers when the
/// system's does not answer.
pub fn resolver() -> DnsResolver {
    DnsResolver::builder()
        .with_system_defaults()
        .disable_fallback()
        .build()
}

/// Certificates from a PEM file's content.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(Error::value("there is no PEM certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(Error::Value(format!("not PEM: {error}"))),
    }
}

/// Who is believed about the relays' certificates.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Option<CaTlsConfig>);

impl Authorities {
    /// These and nobody else. `None`: those that browsers believe.
    pub fn new(pem: Option<&[u8]>) -> Result<Self> {
        let roots = pem
            .map(certificates)
            .transpose()
            .map_err(|error| match error {
                Error::Value(text) => Error::Value(format!("relay_ca: {text}")),
                other => other,
            })?;
        Ok(Self(roots.map(CaTlsConfig::custom_roots)))
    }

    /// For iroh.
    pub fn config(&self) -> CaTlsConfig {
        self.0.clone().unwrap_or_default()
    }
}

/// A relay's URL without what [`Relays::renew`] adds to tell connections apart.
pub fn plain(url: &RelayUrl) -> RelayUrl {
    if url.fragment().is_none() {
        return url.clone();
    }
    let mut plain = (**url).clone();
    plain.set_fragment(None);
    plain.into()
}

/// An address as it is shown.
pub fn shown(addr: &TransportAddr) -> String {
    match addr {
        TransportAddr::Ip(addr) => addr.to_string(),
        TransportAddr::Relay(url) => plain(url).to_string(),
        other => format!("{other:?}"),
    }
}

/// The relays of one endpoint. iroh keeps a connection a URL, and has no way to say that one is to be made anew: so each is
/// known to iroh by a URL with a fragment, which goes nowhere, and a new connection is another fragment.
#[derive(Debug)]
pub struct Relays {
    prober: Arc<Prober>,
    /// By URL, without what tells connections apart.
    known: Mutex<HashMap<RelayUrl, Known>>,
    /// Held by whoever changes what iroh knows of them: one change at a time, and the whole of it at one endpoint.
    turn: tokio::sync::Mutex<()>,
    /// Those that are gone, until Python has heard of it.
    lost: Mutex<HashSet<RelayUrl>>,
    /// How making a stand-in went, until Python has heard of it.
    made: Mutex<Option<Option<String>>>,
}

#[derive(Debug)]
struct Known {
    /// The URL that iroh knows it by.
    spelled: RelayUrl,
    renewals: u64,
    /// It may be home.
    chosen: bool,
}

impl Known {
    fn new(url: RelayUrl) -> Self {
        Self {
            spelled: url,
            renewals: 0,
            chosen: true,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relays {
    /// With these to begin with.
    pub fn new(secret: &SecretKey, authorities: Authorities, urls: Vec<RelayUrl>) -> Self {
        let urls = urls.iter().map(plain);
        Self {
            prober: Arc::new(Prober::new(secret, authorities)),
            known: Mutex::new(urls.map(|url| (url.clone(), Known::new(url))).collect()),
            turn: tokio::sync::Mutex::default(),
            lost: Mutex::default(),
            made: Mutex::default(),
        }
    }

    /// Waits until nobody else changes them.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// As they were given.
    pub fn urls(&self) -> Vec<RelayUrl> {
        lock(&self.known).keys().cloned().collect()
    }

    /// Those that may be home.
    pub fn chosen(&self) -> Vec<RelayUrl> {
        let known = lock(&self.known);
        let chosen = known.iter().filter(|(_, known)| known.chosen);
        chosen.map(|(url, _)| url.clone()).collect()
    }

    /// The same for iroh's builder.
    pub fn map(&self) -> RelayMap {
        let known = lock(&self.known);
        let chosen = known.values().filter(|known| known.chosen);
        chosen.map(|known| config(known.spelled.clone())).collect()
    }

    /// Whoever probes.
    pub fn prober(&self) -> &Arc<Prober> {
        &self.prober
    }

    fn current(&self, url: &RelayUrl) -> RelayUrl {
        let url = plain(url);
        let known = lock(&self.known);
        known.get(&url).map_or(url, |known| known.spelled.clone())
    }

    /// An address whose relays are those that iroh is connected to.
    pub fn translate(&self, addr: EndpointAddr) -> EndpointAddr {
        let places = addr.addrs.into_iter().map(|place| match place {
            TransportAddr::Relay(url) => TransportAddr::Relay(self.current(&url)),
            other => other,
        });
        EndpointAddr::from_parts(addr.id, places.collect::<Vec<_>>())
    }

    fn choose<T>(&self, url: &RelayUrl, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = lock(&self.known);
        let url = plain(url);
        change(known.entry(url.clone()).or_insert_with(|| Known::new(url)))
    }

    /// The relay may be chosen.
    pub async fn insert(&self, endpoint: &iroh::Endpoint, url: RelayUrl) {
        let current = self.choose(&url, |known| {
            known.chosen = true;
            known.spelled.clone()
        });
        endpoint
            .insert_relay(current.clone(), config(current))
            .await;
    }

    /// It may not be chosen, and another one is.
    pub async fn remove(&self, endpoint: &iroh::Endpoint, url: &RelayUrl) {
        let current = self.choose(url, |known| {
            known.chosen = false;
            known.spelled.clone()
        });
        endpoint.remove_relay(&current).await;
    }

    /// A new connection to it takes the place of the one that there is.
    pub async fn renew(&self, endpoint: &iroh::Endpoint, url: &RelayUrl) {
        let (before, now) = self.choose(url, |known| {
            known.renewals += 1;
            let mut now = (*plain(url)).clone();
            now.set_fragment(Some(&known.renewals.to_string()));
            let before = std::mem::replace(&mut known.spelled, now.into());
            (before, known.spelled.clone())
        });
        endpoint.insert_relay(now.clone(), config(now)).await;
        endpoint.remove_relay(&before).await;
    }

    /// This endpoint has no relays any more: another one has.
    pub async fn leave(&self, endpoint: &iroh::Endpoint) {
        for url in self.urls() {
            endpoint.remove_relay(&self.current(&url)).await;
        }
    }

    /// A connection to it has ended, and it does not let anybody in.
    pub fn lose(&self, url: RelayUrl) {
        lock(&self.lost).insert(url);
    }

    /// Those, once.
    pub fn lost(&self) -> HashSet<RelayUrl> {
        std::mem::take(&mut *lock(&self.lost))
    }

    /// A stand-in was made, or what went wrong.
    pub fn made(&self, error: Option<String>) {
        *lock(&self.made) = Some(error);
    }

    /// The same, once.
    pub fn rebuilt(&self) -> Option<Option<String>> {
        lock(&self.made).take()
    }

    /// What is wrong with any of these, as far as it can be found out in two seconds.
    pub async fn why(&self, endpoint: &iroh::Endpoint, urls: Vec<RelayUrl>) -> Option<String> {
        let connected = home(endpoint).filter(|(_, connected, ..)| *connected);
        let home = connected.map(|(url, ..)| url);
        // Where it is at home, the relay lets it in.
        let others = urls.iter().filter(|url| Some(*url) != home.as_ref());
        let asked = others.map(|url| self.prober.why(url));
        let found = n0_future::join_all(asked).await;
        let found: Vec<_> = found.into_iter().flatten().collect();
        (!found.is_empty()).then(|| found.join("; "))
    }

    /// Begins a probe. When it does not come through, this endpoint is soon there at its other relays.
    pub async fn probe(&self, endpoint: &iroh::Endpoint, url: RelayUrl, limit: Duration) {
        let url = plain(&url);
        if !self.prober.clone().probe(url.clone(), limit).await {
            let others = self.urls().into_iter().filter(|other| *other != url);
            self.touch(endpoint, others.collect());
        }
    }

    /// Connects to these relays, if it is not yet, for a minute: iroh connects to one when something is to be sent there.
    /// It is for a NodeId that nobody has: what is for one that was heard of at another relay would go there.
    pub fn touch(&self, endpoint: &iroh::Endpoint, urls: Vec<RelayUrl>) {
        for url in urls {
            let place = TransportAddr::Relay(self.current(&url));
            let nobody = EndpointAddr::from_parts(SecretKey::generate().public(), [place]);
            let endpoint = endpoint.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(TOUCH, endpoint.connect(nobody, PROBE)).await;
            });
        }
    }

    /// What the last probe found, once.
    pub fn probed(&self) -> Option<Probed> {
        self.prober.take()
    }
}

/// The relay that an endpoint is at home on: its URL, whether it is connected, and what is wrong. True: the relay will not
/// have this NodeId.
pub fn home(endpoint: &iroh::Endpoint) -> Option<(RelayUrl, bool, Option<String>, bool)> {
    let status = endpoint.home_relay_status().get().into_iter().next()?;
    let denied = status.auth_denied_reason().map(ToOwned::to_owned);
    let error = status.last_error().map(|error| format!("{error:#}"));
    let refused = denied.is_some();
    Some((
        plain(status.url()),
        status.is_connected(),
        denied.or(error),
        refused,
    ))
}
