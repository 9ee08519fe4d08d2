//! An iroh relay of one's own: the crate's server, our certificate, our admission. Not here: using one (relays.rs).

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use iroh::PublicKey;
use iroh_relay::defaults::{DEFAULT_HTTPS_PORT, DEFAULT_RELAY_QUIC_PORT};
use iroh_relay::server::clients::Clients;
use iroh_relay::server::{
    CertConfig, QuicConfig, RelayConfig, Server, ServerConfig, SpawnError, TlsConfig,
};
use pyo3::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::endpoint::seconds;
use crate::error::{Error, Result};
use crate::relay_access::Admitted;
use crate::{keys, relays, runtime};

/// A free port has to be free for TCP and for UDP: so often another one is tried.
const FREE_PORT_TRIES: usize = 16;

/// Between looks at whether those who are not admitted any more are gone; a connection that was let in a moment before is
/// known to the crate a moment later.
const CUT_POLL: Duration = Duration::from_millis(20);

/// By then the crate has given up on a connection that was let in and never came to be.
const CUT_WITHIN: Duration = Duration::from_secs(30);

/// A certificate chain and its key, which may be replaced while the relay runs.
#[derive(Debug)]
struct Certificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(key.clone())
    }
}

fn certified(cert: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>> {
    let chain = relays::certificates(cert).map_err(|error| prefixed("tls_cert", error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
        Error::Value(format!(
            "tls_key: there is no PEM private key in it ({error})"
        ))
    })?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Error::value("tls_key: the key does not belong to the certificate")
            }
            other => Error::Value(format!("tls_key: {other}")),
        })
}

fn prefixed(name: &str, error: Error) -> Error {
    match error {
        Error::Value(text) => Error::Value(format!("{name}: {text}")),
        other => other,
    }
}

fn tls(certificate: Arc<Certificate>) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    Ok(rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::value)?
        .with_no_client_auth()
        .with_cert_resolver(certificate))
}

/// Where address discovery answers: on the port of https, so that one is to be opened. A URL cannot name https' own port,
/// so there it is where every iroh program looks that is told nothing.
fn quic_port(https: u16) -> u16 {
    match https {
        DEFAULT_HTTPS_PORT => DEFAULT_RELAY_QUIC_PORT,
        port => port,
    }
}

fn config(
    bind: SocketAddr,
    access: Arc<Admitted>,
    tls: Option<rustls::ServerConfig>,
) -> ServerConfig {
    let mut config = ServerConfig::default();
    let mut relay = match tls {
        None => RelayConfig::new(bind),
        Some(server_config) => {
            // The crate answers captive portal checks beside a relay with TLS, in plain text: nobody asks there.
            let mut relay = RelayConfig::new((Ipv4Addr::LOCALHOST, 0));
            relay.tls = Some(TlsConfig::new(bind, CertConfig::Manual { server_config }));
            let quic = SocketAddr::new(bind.ip(), quic_port(bind.port()));
            config.quic = Some(QuicConfig::new(quic));
            relay
        }
    };
    relay.access = access;
    config.relay = Some(relay);
    config
}

/// An address that is free for TCP and UDP. Whoever takes it before we do is found out when it is bound.
fn free(bind: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(bind)?;
    let address = listener.local_addr()?;
    std::net::UdpSocket::bind(address)?;
    Ok(address)
}

async fn spawn(
    bind: SocketAddr,
    access: &Arc<Admitted>,
    certificate: Option<&Arc<Certificate>>,
) -> Result<Server> {
    let mut left = FREE_PORT_TRIES;
    loop {
        left -= 1;
        let again = bind.port() == 0 && left > 0;
        let address = match free(bind) {
            Ok(free) => free,
            Err(_) if again => continue,
            Err(_) => bind, // let the crate say what is wrong
        };
        let tls = certificate.cloned().map(tls).transpose()?;
        match Server::spawn(config(address, access.clone(), tls)).await {
            Ok(server) => return Ok(server),
            Err(_) if again => {}
            Err(error) => return Err(bind_error(bind, &error)),
        }
    }
}

fn bind_error(address: SocketAddr, error: &SpawnError) -> Error {
    let mut text = format!("{error:#}");
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            text = match io.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "another program uses that port, for TCP or for UDP; choose another, or 0 for a free one".to_owned()
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "this machine has no such address".to_owned()
                }
                std::io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need a privilege".to_owned()
                }
                _ => io.to_string(),
            };
        }
        cause = error.source();
    }
    Error::Bind(format!("the relay cannot bind {address}\n{text}"))
}

struct Running {
    server: Server,
    clients: Option<Clients>,
}

/// A relay server.
#[pyclass(frozen, module = "broker._gossip_ext")]
pub struct Relay {
    running: Mutex<Option<Running>>,
    access: Arc<Admitted>,
    certificate: Option<Arc<Certificate>>,
    address: SocketAddr,
    quic_address: Option<SocketAddr>,
    metrics: Arc<iroh_relay::server::Metrics>,
}

#[pymethods]
impl Relay {
    #[staticmethod]
    #[pyo3(signature = (*, bind="127.0.0.1:0", tls_cert=None, tls_key=None, open=false, allow=Vec::new()))]
    fn start(
        py: Python<'_>,
        bind: &str,
        tls_cert: Option<&[u8]>,
        tls_key: Option<&[u8]>,
        open: bool,
        allow: Vec<String>,
    ) -> Result<Self> {
        let bind = SocketAddr::from_str(bind)
            .map_err(|error| Error::Value(format!("bind: not ip:port: {bind:?} ({error})")))?;
        let certificate = match (tls_cert, tls_key) {
            (Some(cert), Some(key)) => {
                Some(Arc::new(Certificate(RwLock::new(certified(cert, key)?))))
            }
            (None, None) => None,
            _ => return Err(Error::value("tls_cert and tls_key go together")),
        };
        let access = Arc::new(Admitted::default());
        access.replace(open, ids(&allow)?);
        let server =
            py.detach(|| runtime::block_on(spawn(bind, &access, certificate.as_ref())))??;
        Ok(Self {
            access,
            certificate,
            address: server.https_addr().or(server.http_addr()).unwrap_or(bind),
            quic_address: server.quic_addr(),
            metrics: server.metrics().server.clone(),
            running: Mutex::new(Some(Running {
                clients: server
                    .relay_service()
                    .map(|service| service.clients().clone()),
                server,
            })),
        })
    }

    fn address(&self) -> String {
        self.address.to_string()
    }

    fn quic_address(&self) -> Option<String> {
        self.quic_address.map(|address| address.to_string())
    }

    #[pyo3(signature = (*, open, allow))]
    fn admit(&self, open: bool, allow: Vec<String>) -> Result<usize> {
        self.access.replace(open, ids(&allow)?);
        let unwanted = self.access.unwanted();
        self.access.cut.add(unwanted.len() as u64);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = running.as_ref().and_then(|running| running.clients.clone()) {
            runtime::runtime()?.spawn(cut(self.access.clone(), clients));
        }
        Ok(unwanted.len())
    }

    fn certify(&self, tls_cert: &[u8], tls_key: &[u8]) -> Result<()> {
        let fresh = certified(tls_cert, tls_key)?;
        let Some(certificate) = &self.certificate else {
            return Err(Error::value("this relay runs without TLS"));
        };
        *certificate
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn counters(&self) -> HashMap<&'static str, u64> {
        let (metrics, (clients, connections)) = (&self.metrics, self.access.live());
        HashMap::from([
            ("clients", clients as u64),
            ("connections", connections as u64),
            ("accepted", self.access.accepted.get()),
            ("refused", self.access.refused.get()),
            ("cut", self.access.cut.get()),
            ("bytes_in", metrics.bytes_recv.get()),
            ("bytes_out", metrics.bytes_sent.get()),
            ("packets_in", metrics.send_packets_recv.get()),
            ("packets_out", metrics.send_packets_sent.get()),
            ("packets_dropped", metrics.send_packets_dropped.get()),
        ])
    }

    #[pyo3(signature = (timeout=2.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> Result<()> {
        let limit = seconds("timeout", timeout)?;
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(running) = running {
            py.detach(|| {
                runtime::block_on(async {
                    // Too late is no matter: what is left ends when it is dropped.
                    let _ = tokio::time::timeout(limit, running.server.shutdown()).await;
                })
            })?;
        }
        Ok(())
    }
}

fn ids(texts: &[String]) -> Result<HashSet<PublicKey>> {
    texts.iter().map(|text| keys::public(text)).collect()
}

/// Ends the connections of all who are admitted no longer.
async fn cut(access: Arc<Admitted>, clients: Clients) {
    let all = async {
        loop {
            let unwanted = access.unwanted();
            if unwanted.is_empty() {
                return;
            }
            for id in unwanted {
                clients.disconnect(id, None);
            }
            tokio::time::sleep(CUT_POLL).await;
        }
    };
    let _ = tokio::time::timeout(CUT_WITHIN, all).await;
}
