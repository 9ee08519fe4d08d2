//! How an endpoint uses relays: what it believes of them, and what it asks of them. Not here: being one (relay.rs).

use std::sync::Arc;

use iroh::dns::DnsResolver;
use iroh::tls::CaTlsConfig;
use iroh::{NetReportConfig, RelayConfig, RelayUrl};
use iroh_relay::RelayQuicConfig;
use iroh_relay::defaults::DEFAULT_RELAY_QUIC_PORT;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{Error, Result};

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

/// To believe these authorities and nobody else.
pub fn roots(pem: &[u8]) -> Result<CaTlsConfig> {
    certificates(pem)
        .map(CaTlsConfig::custom_roots)
        .map_err(|error| match error {
            Error::Value(text) => Error::Value(format!("relay_ca: {text}")),
            other => other,
        })
}
