//! Binding and closing an endpoint: every transport setting is here.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::address_lookup::memory::MemoryLookup;
use iroh::address_lookup::{AddrFilter, PkarrPublisher, PkarrResolver};
use iroh::endpoint::{
    BindError, IdleTimeout, NetReportConfig, PortmapperConfig, QuicTransportConfig, presets,
};
use iroh::protocol::{IncomingFilterOutcome, Router};
use iroh::tls::CaTlsConfig;
use iroh::{RelayMode, RelayUrl, SecretKey};
use rustls::ClientConfig;
use rustls::crypto::ring;

use crate::admission::{Admission, Hook, Sets};
use crate::close;
use crate::error::{Error, Result};
use crate::gossip::{GOSSIP, Gossip, Handler};
use crate::hub::{ALPN, Core, Framed, Options};
use crate::inbox::Inbox;
use crate::metrics::Counters;
use crate::reach::{Answers, PROBE};
use crate::relays::{self, Authorities, Relays};
use crate::sockets::{FIRST, Socket, Sockets};
use crate::stand_in::{self, Published};
use crate::{relay_loss, watchdog};

/// What a peer may have sent on a stream that this side has not read. With SEND_WINDOW it is what lies beyond the lanes
/// when a reader is slow; at 1 MiB a path of 50 ms still carries 20 MB/s.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// The same for all streams of a connection: gossip has one a topic, alkhub/1 has one.
const RECEIVE_WINDOW: u32 = 2 * 1024 * 1024;

/// What QUIC holds of this side's bytes until they are acknowledged.
const SEND_WINDOW: u64 = 1024 * 1024;

/// One stream is the protocol; a second must be seen to be refused with a reason, and not just blocked.
const BIDI_STREAMS: u32 = 2;

/// iroh-gossip opens a unidirectional stream a topic and peer, and one that cannot be opened holds up all its topics: so
/// many topics may two peers have in common, and some that are being left. It costs nothing until streams are opened; on
/// `alkhub/1` the first one ends the connection.
const UNI_STREAMS: u32 = 1024;

/// Unreliable events that QUIC holds in each direction: about 200 of the size that fits.
const DATAGRAM_BUFFER: usize = 256 * 1024;

/// iroh's own upper bounds for a path; larger values are refused with a log line.
const PATH_IDLE_MOST: Duration = Duration::from_secs(15);
const KEEP_ALIVE_MOST: Duration = Duration::from_secs(5);

/// Keep-alives in an idle timeout: two may be lost.
const KEEP_ALIVES: u32 = 3;

/// With relays: a path that is silent for the idle timeout divided by this is left for another one (QUIC keeps the last),
/// and what was on its way over it is sent again: at once, or after 3.4 times as long again, where noq-proto takes the
/// silence for that path's round trip (docs/decisions/0011). At 2 that was more than a caller may have calls waiting.
const FALLS_BACK: u32 = 3;

/// Keep-alives in such a silence. Fewer than above, since QUIC asks for one that is lost again within some round trips,
/// and each goes over the idle relay's path too.
const PATH_KEEP_ALIVES: u32 = 2;

/// What `Endpoint.bind` was given.
#[derive(Debug)]
pub struct Settings {
    /// Identity.
    pub secret: SecretKey,
    /// Local address.
    pub bind: SocketAddr,
    /// Relays to use; none means that nobody is contacted.
    pub relay_urls: Vec<RelayUrl>,
    /// Who signs their certificates.
    pub relay_ca: Authorities,
    /// URL of a pkarr service where peers are looked up, and where who accepts says where it is; none: nowhere.
    pub lookup: Option<String>,
    /// Whether to take incoming connections.
    pub accept: bool,
    /// Whether to admit everybody who is not denied.
    pub open: bool,
    /// After which a silent connection is dead.
    pub idle_timeout: Duration,
    /// For the connections.
    pub options: Options,
    /// Of a gossip message; `None`: no gossip.
    pub gossip_message_bytes: Option<usize>,
}

fn transport(idle_timeout: Duration, relays: bool) -> Result<QuicTransportConfig> {
    let idle = IdleTimeout::try_from(idle_timeout).map_err(Error::value)?;
    let keep_alive = (idle_timeout / KEEP_ALIVES).min(KEEP_ALIVE_MOST);
    let path_idle = match relays {
        true => idle_timeout / FALLS_BACK,
        false => idle_timeout,
    }
    .min(PATH_IDLE_MOST);
    let path_keep_alive = match relays {
        true => path_idle / PATH_KEEP_ALIVES,
        false => path_idle / KEEP_ALIVES,
    }
    .min(KEEP_ALIVE_MOST);
    // No ack_frequency_config: noq-proto 1.4.0 writes that frame past the end of packets that are too short for it, and a
    // peer that falls silent after its handshake ends the process (docs/decisions/0005, tests/faults/test_silent_peers.py).
    Ok(QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(keep_alive)
        .default_path_max_idle_timeout(path_idle)
        .default_path_keep_alive_interval(path_keep_alive)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(BIDI_STREAMS.into())
        .max_concurrent_uni_streams(UNI_STREAMS.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .build())
}

/// What each of an endpoint's sockets is made with.
#[derive(Debug)]
pub struct Recipe {
    /// As given.
    pub settings: Settings,
    admission: Arc<Admission>,
    relays: Option<Arc<Relays>>,
    /// Where gossip's peers are.
    places: MemoryLookup,
    /// Says where it is, until close.
    publisher: Mutex<Option<PkarrPublisher>>,
}

impl Recipe {
    fn new(
        settings: Settings,
        admission: Arc<Admission>,
        relays: Option<Arc<Relays>>,
    ) -> Result<Self> {
        let recipe = Self {
            settings,
            admission,
            relays,
            places: MemoryLookup::new(),
            publisher: Mutex::default(),
        };
        if let Some(url) = recipe.lookup()?.filter(|_| recipe.settings.accept) {
            // All addresses: there may be no relay, and whoever configures this means to be found.
            let publisher = PkarrPublisher::builder(url.into())
                .addr_filter(AddrFilter::unfiltered())
                .dns_resolver(relays::resolver())
                .build(recipe.settings.secret.clone(), recipe.tls()?);
            *recipe.publisher() = Some(publisher);
        }
        Ok(recipe)
    }

    fn publisher(&self) -> MutexGuard<'_, Option<PkarrPublisher>> {
        let publisher = self.publisher.lock();
        publisher.unwrap_or_else(PoisonError::into_inner)
    }

    /// Says no more where it is.
    pub fn release(&self) {
        *self.publisher() = None;
    }

    /// Through iroh's type for a URL; it gives the general one.
    fn lookup(&self) -> Result<Option<RelayUrl>> {
        let parse = |url: &String| {
            url.parse()
                .map_err(|error| Error::Value(format!("lookup: not a URL: {url:?} ({error})")))
        };
        self.settings.lookup.as_ref().map(parse).transpose()
    }

    fn authorities(&self) -> CaTlsConfig {
        match &self.relays {
            Some(_) => self.settings.relay_ca.config(),
            None => CaTlsConfig::default(),
        }
    }

    fn tls(&self) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        Ok(self.authorities().client_config(provider)?)
    }

    /// Binds one, and accepts nobody yet.
    pub async fn socket(&self, number: u64, bind: SocketAddr) -> Result<Socket> {
        let settings = &self.settings;
        let retired = Arc::new(AtomicBool::new(false));
        let mut builder = iroh::Endpoint::builder(presets::Minimal)
            .secret_key(settings.secret.clone())
            .transport_config(transport(settings.idle_timeout, self.relays.is_some())?)
            .hooks(Hook(self.admission.clone()))
            .portmapper_config(PortmapperConfig::Disabled)
            .dns_resolver(relays::resolver())
            .clear_ip_transports()
            .bind_addr(bind)
            .map_err(|error| Error::Bind(format!("{bind}: {error:#}")))?;
        builder = match &self.relays {
            None => builder
                .relay_mode(RelayMode::Disabled)
                .net_report_config(NetReportConfig::minimal()),
            Some(relays) => builder
                .relay_mode(RelayMode::Custom(relays.map()))
                .net_report_config(relays::reports())
                .ca_tls_config(stand_in::until(retired.clone(), self.authorities())),
        };
        if settings.gossip_message_bytes.is_some() {
            builder = builder.address_lookup(self.places.clone());
        }
        if let Some(url) = self.lookup()? {
            let resolver = PkarrResolver::builder(url.into()).dns_resolver(relays::resolver());
            builder = builder.address_lookup(resolver.build(self.tls()?));
        }
        if let Some(publisher) = self.publisher().clone() {
            let retired = retired.clone();
            builder = builder.address_lookup(Published { retired, publisher });
        }
        let iroh = builder
            .bind()
            .await
            .map_err(|error| bind_error(bind, &error))?;
        Ok(Socket {
            number,
            iroh,
            retired,
        })
    }
}

/// Serves what comes to a socket.
pub fn router(core: &Arc<Core>, socket: &Socket) -> Router {
    let mut router = Router::builder(socket.iroh.clone());
    if let Some(gossip) = core.gossip() {
        router = router.accept(GOSSIP, Handler(gossip.overlay.clone()));
    }
    if core.relays.is_some() {
        router = router.accept(PROBE, Answers);
    }
    let framed = Framed {
        core: core.clone(),
        socket: socket.number,
    };
    match core.recipe.settings.accept {
        true => router.accept(ALPN, framed),
        false => router.incoming_filter(Arc::new(|_| IncomingFilterOutcome::Reject)),
    }
    .spawn()
}

/// Binds, and starts to accept if asked to.
pub async fn bind(settings: Settings) -> Result<Arc<Core>> {
    let counters = Arc::new(Counters::default());
    let inbox = Inbox::new(counters.clone())?;
    let sets = Sets {
        open: settings.open,
        ..Sets::default()
    };
    let relays = (!settings.relay_urls.is_empty()).then(|| {
        let (authorities, urls) = (settings.relay_ca.clone(), settings.relay_urls.clone());
        Arc::new(Relays::new(&settings.secret, authorities, urls))
    });
    let prober = relays.as_ref().map(|relays| relays.prober().id());
    let admission = Arc::new(Admission::new(sets, counters.clone(), prober));
    let recipe = Recipe::new(settings, admission.clone(), relays.clone())?;
    let first = recipe.socket(FIRST, recipe.settings.bind).await?;
    let sockets = Arc::new(Sockets::new(first.clone()));
    let gossip = recipe.settings.gossip_message_bytes.map(|message_bytes| {
        Arc::new(Gossip::start(
            sockets.clone(),
            &first.iroh,
            message_bytes,
            recipe.settings.secret.clone(),
            recipe.places.clone(),
            admission.clone(),
            counters.clone(),
        ))
    });
    let gossips = gossip.is_some();
    let core = Arc::new(Core::new(
        sockets, recipe, inbox, counters, admission, gossip, relays,
    ));
    core.sockets.serve(router(&core, &first));
    if gossips {
        tokio::spawn(watchdog::run(Arc::downgrade(&core)));
    }
    if core.relays.is_some() {
        tokio::spawn(relay_loss::run(Arc::downgrade(&core)));
    }
    Ok(core)
}

fn bind_error(address: SocketAddr, error: &BindError) -> Error {
    let BindError::Sockets { source, .. } = error else {
        return Error::Bind(format!("cannot bind {address}: {error:#}"));
    };
    let hint = match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process uses that port; choose another, or 0 for a free one"
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege",
        _ => "",
    };
    Error::Bind(
        format!("cannot bind {address}: {source}\n{hint}")
            .trim_end()
            .to_owned(),
    )
}

/// Leaves every swarm, ends every connection with code 1 and closes the sockets.
pub async fn close(core: Arc<Core>) {
    let _turn = match &core.relays {
        // A stand-in that is being made is waited for, and none is made after it.
        Some(relays) => Some(relays.turn().await),
        None => None,
    };
    let gossip = core.gossip();
    if let Some(relays) = &core.relays {
        relays.prober().forget().await;
    }
    let leaving = tokio::spawn(async move {
        if let Some(gossip) = gossip {
            gossip.close().await;
        }
    });
    let ends: Vec<_> = core
        .links()
        .into_iter()
        .map(|link| tokio::spawn(link.finish(close::going_away())))
        .collect();
    for end in ends {
        // A task of ours that panicked has nothing left to end.
        let _ = end.await;
    }
    let _ = leaving.await;
    core.release_gossip();
    // Each by itself: a stand-in that was just made waits for dials that nobody answered, and the first one's port is what
    // a hub that restarts asks for.
    let ends = core.sockets.served().into_iter();
    let ends = ends.map(async |(number, bound, router)| {
        if let Some(router) = router {
            // It fails only when the router's task panicked, and then there is nothing left to shut down.
            let _ = router.shutdown().await;
        }
        core.sockets.closed(number);
        for address in bound {
            freed(address).await;
        }
    });
    n0_future::join_all(ends).await;
    core.release();
}

/// Returns when the port is free. iroh's last tasks drop the socket a moment after close has returned (about 1 ms), and a
/// hub that restarts in the same process would find its own port in use. The caller has a deadline.
async fn freed(address: SocketAddr) {
    while std::net::UdpSocket::bind(address).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
