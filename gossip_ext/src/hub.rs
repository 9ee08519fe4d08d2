//! What one endpoint's tasks share, and the two ways in which connections come to be: accepted and dialled.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh::endpoint::{
    ConnectError, ConnectWithOptsError, ConnectingError, Connection, ConnectionError, RecvStream,
    SendStream,
};
use iroh::protocol::{AcceptError, ProtocolHandler};
use iroh::{EndpointAddr, PublicKey};
use n0_future::task::AbortOnDropHandle;

use crate::admission::Admission;
use crate::bind::Recipe;
use crate::close::{self, Close};
use crate::connection::{Bounds, Link};
use crate::frame::{Decoder, HEADER};
use crate::gossip::Gossip;
use crate::inbox::{Inbox, Item};
use crate::metrics::Counters;
use crate::overview::{Quic, Reading};
use crate::relays::{self, Relays};
use crate::sockets::Sockets;
use crate::{paths, stream};

/// The protocol of framed streams.
pub const ALPN: &[u8] = b"alkhub/1";

/// Connections that have done the handshake and sent nothing. Each costs 90 KiB and no Python; a hub of 10,000 spokes
/// that restarts sees them arrive with their first frame one round trip after the handshake, so few are here at a time.
const SILENT_LIMIT: usize = 1024;

/// What an endpoint was bound with.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Largest payload.
    pub max_frame_bytes: usize,
    /// Of each connection.
    pub bounds: Bounds,
    /// For the stream and the first frame's header.
    pub open_timeout: Duration,
    /// For a frame once begun.
    pub frame_timeout: Duration,
}

/// The shared part of an endpoint.
#[derive(Debug)]
pub struct Core {
    /// This endpoint's identity.
    pub id: PublicKey,
    /// QUIC, until close.
    pub sockets: Arc<Sockets>,
    /// How they are made.
    pub recipe: Recipe,
    /// For Python.
    pub inbox: Inbox,
    /// Totals.
    pub counters: Arc<Counters>,
    /// Who may connect.
    pub admission: Arc<Admission>,
    /// As bound.
    pub options: Options,
    /// Those that it uses; `None`: bound without.
    pub relays: Option<Arc<Relays>>,
    /// Close was called.
    pub closed: AtomicBool,
    /// Until close, since it holds a socket; `None` also when it does not gossip.
    gossip: Mutex<Option<Arc<Gossip>>>,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    /// What QUIC counted of connections that are no more in `links`. Under its lock.
    ended: Mutex<Quic>,
    /// The totals that were last shown, by protocol.
    pub shown: Mutex<[Quic; 2]>,
    next_id: AtomicU64,
    silent: AtomicUsize,
}

impl Core {
    /// With no connections.
    pub fn new(
        sockets: Arc<Sockets>,
        recipe: Recipe,
        inbox: Inbox,
        counters: Arc<Counters>,
        admission: Arc<Admission>,
        gossip: Option<Arc<Gossip>>,
        relays: Option<Arc<Relays>>,
    ) -> Self {
        Self {
            relays,
            gossip: Mutex::new(gossip),
            id: recipe.settings.secret.public(),
            options: recipe.settings.options,
            sockets,
            recipe,
            inbox,
            counters,
            admission,
            closed: AtomicBool::new(false),
            links: Mutex::default(),
            ended: Mutex::default(),
            shown: Mutex::default(),
            next_id: AtomicU64::new(1),
            silent: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The iroh endpoint that has the relays, and dials; `None` after close.
    pub fn endpoint(&self) -> Option<iroh::Endpoint> {
        Some(self.sockets.current()?.iroh)
    }

    /// Gossip; `None` after close, and without gossip_message_bytes.
    pub fn gossip(&self) -> Option<Arc<Gossip>> {
        let gossip = self.gossip.lock();
        gossip.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of gossip.
    pub fn release_gossip(&self) {
        let gossip = self.gossip.lock();
        *gossip.unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets go of all that holds a socket.
    pub fn release(&self) {
        self.release_gossip();
        self.sockets.release();
        self.recipe.release();
    }

    /// An id for a connection or a swarm.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A live connection.
    pub fn link(&self, id: u64) -> Option<Arc<Link>> {
        self.lock().get(&id).cloned()
    }

    /// Every live connection.
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.lock().values().cloned().collect()
    }

    /// Every live connection, and what QUIC counted of the others.
    pub fn links_and_ended(&self) -> (Vec<Arc<Link>>, Quic) {
        let links = self.lock();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (links.values().cloned().collect(), *ended)
    }

    /// It has ended.
    pub fn forget(&self, link: &Link) {
        let last = Reading::of(&link.quic, &link.congestion).quic;
        let mut links = self.lock();
        if links.remove(&link.id).is_some() {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.add(&last);
        }
    }

    /// A connection is usable from here on. None when the endpoint closed meanwhile.
    fn open(
        self: &Arc<Self>,
        socket: u64,
        quic: Connection,
        send: SendStream,
        recv: RecvStream,
        decoder: Decoder,
        token: Option<i64>,
    ) -> bool {
        let id = self.next_id();
        let link = Link::new(id, socket, quic, token.is_none(), self.options.bounds);
        {
            // Under the lock: close() sets the flag first and then takes what is in the map.
            let mut links = self.lock();
            if self.closed.load(Ordering::Acquire) {
                return false;
            }
            links.insert(id, link.clone());
        }
        match token {
            None => self.counters.accepted.inc(),
            Some(_) => self.counters.dialled.inc(),
        }
        self.inbox.push(Item::Opened {
            conn: id,
            peer: link.peer,
            incoming: link.incoming,
            token: token.unwrap_or(0),
        });
        if self.relays.is_some() {
            tokio::spawn(paths::count(self.clone(), link.clone()));
        }
        tokio::spawn(stream::run(self.clone(), link, send, recv, decoder));
        true
    }

    /// An address as iroh is to be told.
    pub fn translate(&self, addr: EndpointAddr) -> EndpointAddr {
        match &self.relays {
            Some(relays) => relays.translate(addr),
            None => addr,
        }
    }

    /// Waits for the stream and its first header; only then does the connection exist for Python.
    async fn accept(self: &Arc<Self>, socket: u64, quic: &Connection) -> Result<(), Close> {
        if self.inbox.crowded() {
            return Err(Close::new(
                close::NO_STREAM,
                "busy: this node is behind with its work",
            ));
        }
        let limit = self.options.open_timeout;
        let mut what = "stream";
        let first = tokio::time::timeout(limit, async {
            // Its end needs no close code of ours.
            let gone = || Close::new(close::NORMAL, "");
            let (send, mut recv) = quic.accept_bi().await.map_err(|_| gone())?;
            what = "first frame";
            let mut decoder = Decoder::new(self.options.max_frame_bytes);
            while decoder.held() < HEADER {
                match stream::fill(&mut recv, &mut decoder).await {
                    Ok(Some(count)) => self.counters.bytes_in.add(count as u64),
                    Ok(None) => {
                        self.counters.bad_frames.inc();
                        return Err(close::cut_short(decoder.held(), None));
                    }
                    Err(_) => return Err(gone()),
                }
            }
            Ok((send, recv, decoder))
        });
        let Ok(first) = first.await else {
            self.counters.stream_timeouts.inc();
            return Err(close::no_stream(what, limit));
        };
        let (send, recv, decoder) = first?;
        // The sets may have changed since the handshake.
        if let Some(refusal) = self.admission.refusal(&quic.remote_id(), true) {
            self.admission.count(&refusal);
            return Err(refusal);
        }
        if self.open(socket, quic.clone(), send, recv, decoder, None) {
            Ok(())
        } else {
            Err(close::going_away())
        }
    }

    /// If a dial takes longer than this, what is wrong with its relays.
    fn doubt(
        &self,
        addr: &EndpointAddr,
        after: Duration,
    ) -> Option<AbortOnDropHandle<Option<String>>> {
        let (relays, endpoint) = (self.relays.clone()?, self.endpoint()?);
        let urls: Vec<_> = addr.relay_urls().cloned().collect();
        if urls.is_empty() {
            return None;
        }
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            relays.why(&endpoint, urls).await
        })))
    }

    /// Connects and reports OPENED or DIAL_FAILED.
    pub async fn dial(self: Arc<Self>, token: i64, addr: EndpointAddr, limit: Duration) {
        let whereto = describe(&addr);
        let doubt = self.doubt(&addr, limit / 2);
        let addr = self.translate(addr);
        let Some(socket) = self.sockets.current() else {
            return; // Nobody waits: close() came between the call and this.
        };
        let connected = tokio::time::timeout(limit, async {
            let quic = socket.iroh.connect(addr, ALPN).await?;
            let (send, recv) = quic.open_bi().await.map_err(ConnectError::from)?;
            Ok::<_, ConnectError>((quic, send, recv))
        });
        let (kind, code, message) = match connected.await {
            Ok(Ok((quic, send, recv))) => {
                let decoder = Decoder::new(self.options.max_frame_bytes);
                let number = socket.number;
                if self.open(number, quic.clone(), send, recv, decoder, Some(token)) {
                    return;
                }
                let close = close::going_away();
                quic.close(close.code.into(), close.reason.as_bytes());
                ("closed", None, "this endpoint is closed".to_owned())
            }
            Ok(Err(error)) => dial_error(&error, &whereto),
            Err(_) => {
                let nobody = format!(
                    "nobody answered at {whereto} within {} s",
                    limit.as_secs_f64()
                );
                let why = doubt.filter(|doubt| doubt.is_finished());
                let why = match why {
                    Some(why) => why.await.ok().flatten(),
                    None => None,
                };
                let message = why.map_or_else(|| nobody.clone(), |why| format!("{nobody}; {why}"));
                ("unreachable", None, message)
            }
        };
        self.inbox.push(Item::DialFailed {
            token,
            kind,
            code,
            message,
        });
    }
}

fn describe(addr: &EndpointAddr) -> String {
    let mut places: Vec<String> = addr.ip_addrs().map(ToString::to_string).collect();
    places.extend(addr.relay_urls().map(|url| relays::plain(url).to_string()));
    match places.as_slice() {
        [] => "no address".to_owned(),
        _ => places.join(", "),
    }
}

fn dial_error(error: &ConnectError, whereto: &str) -> (&'static str, Option<u64>, String) {
    let quic = match error {
        ConnectError::Connection { source, .. } => Some(source),
        ConnectError::Connecting {
            source: ConnectingError::ConnectionError { source, .. },
            ..
        } => Some(source),
        ConnectError::Connecting {
            source: ConnectingError::LocallyRejected { .. },
            ..
        }
        | ConnectError::Connect {
            source: ConnectWithOptsError::LocallyRejected { .. },
            ..
        } => {
            let text = "the peer is on this node's own deny list".to_owned();
            return ("refused", Some(close::BANNED.into()), text);
        }
        ConnectError::Connect {
            source: ConnectWithOptsError::EndpointClosed { .. },
            ..
        } => return ("closed", None, "this endpoint is closed".to_owned()),
        _ => None,
    };
    match quic {
        Some(ConnectionError::ApplicationClosed(close)) => (
            "refused",
            Some(close.error_code.into_inner()),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        Some(ConnectionError::LocallyClosed) => {
            ("closed", None, "this endpoint is closed".to_owned())
        }
        Some(
            error @ (ConnectionError::ConnectionClosed(_) | ConnectionError::TransportError(_)),
        ) => ("refused", None, format!("{whereto}: {error}")),
        Some(ConnectionError::TimedOut) => {
            ("unreachable", None, format!("nobody answered at {whereto}"))
        }
        _ => ("unreachable", None, format!("{whereto}: {error:#}")),
    }
}

/// `alkhub/1` for one of iroh's routers.
#[derive(Debug)]
pub struct Framed {
    /// Whose connections they are.
    pub core: Arc<Core>,
    /// Where they arrive.
    pub socket: u64,
}

impl ProtocolHandler for Framed {
    async fn accept(&self, quic: Connection) -> Result<(), AcceptError> {
        let core = &self.core;
        let waiting = Silent::enter(&core.silent);
        let outcome = if waiting.count > SILENT_LIMIT {
            core.counters.stream_timeouts.inc();
            Err(Close::new(
                close::NO_STREAM,
                format!("busy: {SILENT_LIMIT} connections have not opened their stream yet"),
            ))
        } else {
            core.accept(self.socket, &quic).await
        };
        if let Err(close) = outcome {
            quic.close(close.code.into(), close.reason.as_bytes());
        }
        Ok(())
    }
}

/// One silent connection, counted for as long as this lives: the router may drop the future that holds it.
struct Silent<'a> {
    counter: &'a AtomicUsize,
    count: usize,
}

impl<'a> Silent<'a> {
    fn enter(counter: &'a AtomicUsize) -> Self {
        let count = counter.fetch_add(1, Ordering::AcqRel) + 1;
        Self { counter, count }
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::AcqRel);
    }
}
