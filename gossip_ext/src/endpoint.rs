//! The Python face of one endpoint: arguments in, errors out, and nothing else.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use iroh::{EndpointAddr, PublicKey, RelayUrl, TransportAddr};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::admission::Sets;
use crate::bind::{self, Settings};
use crate::close::{self, Close};
use crate::connection::{Bounds, Flown, Link, Sent};
use crate::error::{Error, Result};
use crate::fanout::{Frames, Group};
use crate::gossip::MESSAGE_BYTES;
use crate::hub::{Core, Options};
use crate::outbox::{CALLS, Shared, TOPICS};
use crate::overview::Overview;
use crate::relays::{Authorities, Relays};
use crate::stats::ConnectionStats;
use crate::swarm::Telling;
use crate::swarm_py::{Join, Swarm};
use crate::{keys, relays, runtime, spin, stand_in};

/// Seconds from Python as a duration.
pub fn seconds(name: &str, value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            Error::Value(format!(
                "{name} must be a positive number of seconds, not {value}"
            ))
        })
}

fn parse_all<T: FromStr<Err: std::fmt::Display>>(what: &str, texts: &[String]) -> Result<Vec<T>> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|error| Error::Value(format!("not {what}: {text:?} ({error})")))
    };
    texts.iter().map(parse).collect()
}

fn public_set(ids: &[String]) -> Result<HashSet<PublicKey>> {
    ids.iter().map(|id| keys::public(id)).collect()
}

fn check_payload(payload: &[u8], options: &Options) -> Result<()> {
    match payload.len() {
        0 => Err(Error::value("an empty payload cannot be sent")),
        size if size > options.max_frame_bytes => Err(Error::Value(format!(
            "a payload of {size} bytes is above max_frame_bytes ({})",
            options.max_frame_bytes
        ))),
        _ => Ok(()),
    }
}

/// One payload or several, checked.
pub fn payloads<'py>(
    frames: &Bound<'py, PyAny>,
    options: &Options,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let payloads = match frames.cast::<PyBytes>() {
        Ok(single) => vec![single.clone()],
        Err(_) => frames
            .try_iter()?
            .map(|payload| Ok(payload?.cast_into::<PyBytes>()?))
            .collect::<PyResult<Vec<_>>>()?,
    };
    for payload in &payloads {
        check_payload(payload.as_bytes(), options)?;
    }
    Ok(payloads)
}

fn relay(url: &str) -> Result<RelayUrl> {
    RelayUrl::from_str(url)
        .map_err(|error| Error::Value(format!("not a relay URL: {url:?} ({error})")))
}

/// Where a peer can be dialled.
fn address(node_id: &str, addrs: &[String], relay_urls: &[String]) -> Result<EndpointAddr> {
    let ips = parse_all("ip:port", addrs)?
        .into_iter()
        .map(TransportAddr::Ip);
    let relays = parse_all::<RelayUrl>("a relay URL", relay_urls)?;
    let places = ips.chain(relays.into_iter().map(TransportAddr::Relay));
    Ok(EndpointAddr::from_parts(keys::public(node_id)?, places))
}

/// One identity, and what it is reached at.
#[pyclass(frozen, module = "broker._gossip_ext")]
#[derive(Debug)]
pub struct Endpoint {
    core: Arc<Core>,
}

#[pymethods]
impl Endpoint {
    #[staticmethod]
    #[pyo3(signature = (
        secret, *, bind="127.0.0.1:0", relay_urls=Vec::new(), relay_ca=None, accept=false, open=false,
        max_frame_bytes=1_048_576, calls_queue_bytes=8_388_608, topics_queue_bytes=1_048_576,
        inbox_bytes=4_194_304, open_timeout=10.0, frame_timeout=30.0, idle_timeout=15.0,
        gossip_message_bytes=0, lookup="",
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn bind(
        py: Python<'_>,
        secret: &[u8],
        bind: &str,
        relay_urls: Vec<String>,
        relay_ca: Option<&[u8]>,
        accept: bool,
        open: bool,
        max_frame_bytes: usize,
        calls_queue_bytes: usize,
        topics_queue_bytes: usize,
        inbox_bytes: usize,
        open_timeout: f64,
        frame_timeout: f64,
        idle_timeout: f64,
        gossip_message_bytes: usize,
        lookup: &str,
    ) -> Result<Self> {
        if u32::try_from(max_frame_bytes).is_err() || max_frame_bytes == 0 {
            return Err(Error::value("max_frame_bytes must be 1 to 4294967295"));
        }
        let gossips = gossip_message_bytes != 0;
        if gossips && !MESSAGE_BYTES.contains(&gossip_message_bytes) {
            return Err(Error::Value(format!(
                "gossip_message_bytes must be 0 or {} to {}, not {gossip_message_bytes}",
                MESSAGE_BYTES.start(),
                MESSAGE_BYTES.end()
            )));
        }
        let settings = Settings {
            gossip_message_bytes: gossips.then_some(gossip_message_bytes),
            secret: keys::secret(secret)?,
            bind: SocketAddr::from_str(bind)
                .map_err(|error| Error::Value(format!("bind: not ip:port: {bind:?} ({error})")))?,
            relay_urls: parse_all("a relay URL", &relay_urls)?,
            relay_ca: Authorities::new(relay_ca)?,
            lookup: Some(lookup.to_owned()).filter(|url| !url.is_empty()),
            accept,
            open,
            idle_timeout: seconds("idle_timeout", idle_timeout)?,
            options: Options {
                max_frame_bytes,
                bounds: Bounds {
                    calls: calls_queue_bytes,
                    topics: topics_queue_bytes,
                    inbox: inbox_bytes,
                },
                open_timeout: seconds("open_timeout", open_timeout)?,
                frame_timeout: seconds("frame_timeout", frame_timeout)?,
            },
        };
        let core = py.detach(|| runtime::block_on(bind::bind(settings)))??;
        Ok(Self { core })
    }

    #[getter]
    fn node_id(&self) -> String {
        self.core.id.to_string()
    }

    fn addrs(&self) -> Vec<String> {
        let addrs = self.core.sockets.addrs();
        addrs.iter().map(ToString::to_string).collect()
    }

    fn relay_urls(&self) -> Vec<String> {
        let (Some(endpoint), Some(relays)) = (self.core.endpoint(), &self.core.relays) else {
            return Vec::new();
        };
        let urls = match relays::home(&endpoint) {
            Some((url, ..)) => vec![url],
            None => relays.urls(),
        };
        urls.iter().map(ToString::to_string).collect()
    }

    fn home_relay(&self) -> Option<(String, bool, Option<String>, bool)> {
        let endpoint = self.core.endpoint()?;
        let (url, connected, trouble, denied) = relays::home(&endpoint)?;
        Some((url.to_string(), connected, trouble, denied))
    }

    fn insert_relay(&self, url: &str) -> Result<()> {
        let url = relay(url)?;
        self.with_relays(|relays, endpoint| async move { relays.insert(&endpoint, url).await })
    }

    fn remove_relay(&self, url: &str) -> Result<()> {
        let url = relay(url)?;
        self.with_relays(|relays, endpoint| async move { relays.remove(&endpoint, &url).await })
    }

    fn renew_relay(&self, url: &str) -> Result<()> {
        let url = relay(url)?;
        self.with_relays(|relays, endpoint| async move { relays.renew(&endpoint, &url).await })
    }

    fn renew_relays(&self) -> Result<()> {
        if self.core.relays.is_none() || self.core.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.with_relays(|relays, endpoint| async move {
            for url in relays.urls() {
                relays.renew(&endpoint, &url).await;
            }
        })
    }

    fn rebuild(&self) -> Result<()> {
        let relays = self.relays()?;
        runtime::runtime()?.spawn(stand_in::make(self.core.clone(), relays));
        Ok(())
    }

    fn rebuilt(&self) -> Option<String> {
        let made = self.core.relays.as_ref()?.rebuilt()?;
        Some(made.unwrap_or_default())
    }

    fn lost_relays(&self) -> Vec<String> {
        let lost = self.core.relays.as_ref().map(|relays| relays.lost());
        let lost = lost.unwrap_or_default();
        lost.iter().map(ToString::to_string).collect()
    }

    #[pyo3(signature = (url, timeout))]
    fn probe(&self, url: &str, timeout: f64) -> Result<()> {
        let limit = seconds("timeout", timeout)?;
        let url = relay(url)?;
        let relays = self.relays()?;
        let core = self.core.clone();
        runtime::runtime()?.spawn(async move {
            if let Some(endpoint) = core.endpoint() {
                relays.probe(&endpoint, url, limit).await;
            }
        });
        Ok(())
    }

    fn probed(&self) -> Option<(&'static str, f64, String)> {
        let probed = self.core.relays.as_ref()?.probed()?;
        Some((probed.kind, probed.seconds, probed.message))
    }

    fn network_change(&self) -> Result<()> {
        for socket in self.core.sockets.staying() {
            runtime::runtime()?.spawn(async move { socket.iroh.network_change().await });
        }
        Ok(())
    }

    fn fileno(&self) -> RawFd {
        self.core.inbox.fileno()
    }

    fn pending(&self) -> bool {
        self.core.inbox.pending()
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.core.inbox.drain(py)
    }

    #[pyo3(signature = (token, node_id, addrs, relay_urls=Vec::new(), timeout=10.0))]
    fn dial(
        &self,
        token: i64,
        node_id: &str,
        addrs: Vec<String>,
        relay_urls: Vec<String>,
        timeout: f64,
    ) -> Result<()> {
        let addr = address(node_id, &addrs, &relay_urls)?;
        let limit = seconds("timeout", timeout)?;
        self.check_open()?;
        runtime::runtime()?.spawn(self.core.clone().dial(token, addr, limit));
        Ok(())
    }

    #[pyo3(signature = (conn, frames, lane=CALLS))]
    fn send(&self, conn: u64, frames: &Bound<'_, PyAny>, lane: usize) -> PyResult<bool> {
        if lane > TOPICS {
            return Err(Error::Value(format!("lane must be CALLS or TOPICS, not {lane}")).into());
        }
        if lane == CALLS {
            spin::expect();
        }
        let options = &self.core.options;
        // The usual case by far: one payload, no list.
        let sent = if let Ok(single) = frames.cast::<PyBytes>() {
            check_payload(single.as_bytes(), options)?;
            self.queue(conn, |link| {
                link.send(lane, std::iter::once(single.as_bytes()))
            })
        } else if let Ok(packed) = frames.cast::<Frames>() {
            self.queue(conn, |link| link.send_shared(lane, &packed.get().0))
        } else {
            let frames = payloads(frames, options)?;
            if frames.is_empty() {
                return Ok(self.core.link(conn).is_some());
            }
            self.queue(conn, |link| {
                link.send(lane, frames.iter().map(|frame| frame.as_bytes()))
            })
        };
        Ok(sent)
    }

    fn pack(&self, frames: &Bound<'_, PyAny>) -> PyResult<Frames> {
        let frames = payloads(frames, &self.core.options)?;
        let payloads = frames.iter().map(|frame| frame.as_bytes());
        Ok(Frames(Shared::encode(payloads)))
    }

    fn send_datagram(&self, conn: u64, payload: &[u8]) -> Result<bool> {
        let Some(link) = self.core.link(conn) else {
            return Ok(false);
        };
        match link.send_datagram(&self.core.counters, Bytes::copy_from_slice(payload)) {
            Flown::Handed => Ok(true),
            Flown::Full | Flown::Gone => Ok(false),
            Flown::TooLarge | Flown::Unsupported => Err(Error::Datagram {
                size: payload.len(),
                limit: link.quic.max_datagram_size().unwrap_or(0),
            }),
        }
    }

    fn max_datagram_size(&self, conn: u64) -> Option<usize> {
        self.core.link(conn)?.quic.max_datagram_size()
    }

    fn group(&self) -> Group {
        Group::new(self.core.clone())
    }

    fn close_connection(&self, conn: u64, code: u32, reason: String) -> Result<()> {
        if let Some(link) = self.core.link(conn) {
            // A second close of the same connection would be a second task.
            if !std::mem::replace(&mut link.outbox().closing, true) {
                let runtime = runtime::runtime()?;
                runtime.spawn(link.finish(Close::new(code, reason)));
            }
        }
        Ok(())
    }

    fn count_only(&self, conn: u64) {
        if let Some(link) = self.core.link(conn) {
            link.count_only.store(true, Ordering::Relaxed);
        }
    }

    fn write_at_once(&self, conn: u64) {
        if let Some(link) = self.core.link(conn) {
            link.at_once.store(true, Ordering::Relaxed);
        }
    }

    fn stats(&self, conn: u64) -> Option<ConnectionStats> {
        self.core
            .link(conn)
            .map(|link| ConnectionStats::read(&link))
    }

    fn paths(&self, conn: u64) -> Vec<(String, bool, u64)> {
        let Some(link) = self.core.link(conn) else {
            return Vec::new();
        };
        let paths = link.quic.paths();
        let told = paths.iter().map(|path| {
            (
                path.id().to_string(),
                path.is_relay(),
                path.stats().udp_rx.datagrams,
            )
        });
        told.collect()
    }

    fn queued(&self) -> Vec<(u64, usize)> {
        let links = self.core.links();
        let queued = links.iter().map(|link| (link.id, link.outbox().queued().0));
        queued.filter(|(_, bytes)| *bytes > 0).collect()
    }

    #[pyo3(signature = (*, open, allow, deny))]
    fn admit(&self, open: bool, allow: Vec<String>, deny: Vec<String>) -> Result<Vec<u64>> {
        let (allow, deny) = (public_set(&allow)?, public_set(&deny)?);
        let admission = &self.core.admission;
        admission.replace(Sets { open, allow, deny });
        let cut = admission.peers.cut_denied(|peer| admission.denial(peer));
        self.core.counters.gossip_cut.add(cut as u64);
        let mut ended = Vec::new();
        for link in self.core.links() {
            if let Some(refusal) = admission.refusal(&link.peer, link.incoming) {
                admission.count(&refusal);
                ended.push(link.id);
                link.abort(refusal);
            }
        }
        Ok(ended)
    }

    #[pyo3(signature = (add, remove=Vec::new(), *, full=false, framed=false))]
    fn admit_peers(
        &self,
        add: Vec<String>,
        remove: Vec<String>,
        full: bool,
        framed: bool,
    ) -> Result<()> {
        let (add, remove) = (public_set(&add)?, public_set(&remove)?);
        self.core.admission.peers.frame(framed);
        let cut = self.core.admission.peers.admit(add, &remove, full);
        self.core.counters.gossip_cut.add(cut as u64);
        Ok(())
    }

    #[pyo3(signature = (node_id, addrs, relay_urls=Vec::new()))]
    fn learn(&self, node_id: &str, addrs: Vec<String>, relay_urls: Vec<String>) -> Result<()> {
        let addr = address(node_id, &addrs, &relay_urls)?;
        if let Some(gossip) = self.core.gossip() {
            gossip.learn(self.core.translate(addr));
        }
        Ok(())
    }

    #[pyo3(signature = (
        topic, id, peers, *, hubs=Vec::new(), authors=None, inbox_bytes=4_194_304, keep_bytes=1_048_576,
        events="frames",
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn join(
        &self,
        topic: String,
        id: Vec<u8>,
        peers: Vec<String>,
        hubs: Vec<String>,
        authors: Option<Vec<String>>,
        inbox_bytes: usize,
        keep_bytes: usize,
        events: &str,
    ) -> Result<Swarm> {
        self.check_open()?;
        let gossip = self.core.gossip().ok_or(Error::NoGossip)?;
        let join = Join {
            topic,
            id,
            peers,
            hubs,
            authors,
            inbox_bytes,
            keep_bytes,
            events: Telling::parse(events)?,
        };
        Swarm::join(&self.core, gossip, join)
    }

    fn overview(&self, rtt_bounds: Vec<f64>) -> Overview {
        Overview::read(&self.core, &rtt_bounds)
    }

    fn counters(&self) -> HashMap<&'static str, u64> {
        let mut totals: HashMap<_, _> = self.core.counters.read().into_iter().collect();
        if let Some(gossip) = self.core.gossip() {
            totals.extend(gossip.counters());
        }
        totals.extend(self.core.sockets.totals());
        totals.insert(
            "gossip_connections",
            self.core.admission.peers.count() as u64,
        );
        totals
    }

    #[pyo3(signature = (timeout=2.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> Result<()> {
        let limit = seconds("timeout", timeout)?;
        if self.begin_close() {
            let core = self.core.clone();
            py.detach(|| {
                runtime::block_on(async {
                    // Too late is no matter: dropping the routers ends what is left.
                    let _ = tokio::time::timeout(limit, bind::close(core.clone())).await;
                    core.release();
                })
            })?;
        }
        Ok(())
    }
}

impl Endpoint {
    fn relays(&self) -> Result<Arc<Relays>> {
        let relays = self.core.relays.clone().ok_or(Error::NoRelays)?;
        self.check_open()?;
        Ok(relays)
    }

    /// Spawns a change of what iroh knows of relays.
    fn with_relays<F: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Relays>, iroh::Endpoint) -> F + Send + 'static,
    ) -> Result<()> {
        let (core, relays) = (self.core.clone(), self.relays()?);
        runtime::runtime()?.spawn(async move {
            let _turn = relays.turn().await;
            if let Some(endpoint) = core.endpoint() {
                work(relays.clone(), endpoint).await;
            }
        });
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        match self.core.closed.load(Ordering::Acquire) {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    fn queue(&self, conn: u64, send: impl FnOnce(&Arc<Link>) -> Sent) -> bool {
        match self.core.link(conn).map_or(Sent::Gone, |link| send(&link)) {
            Sent::Queued => true,
            Sent::Gone => false,
            Sent::Full => {
                self.core.counters.lane_full.inc();
                false
            }
        }
    }

    /// True the first time.
    fn begin_close(&self) -> bool {
        !self.core.closed.swap(true, Ordering::AcqRel)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let (true, Ok(runtime)) = (self.begin_close(), runtime::runtime()) {
            self.core.inbox.shut();
            for link in self.core.links() {
                link.abort(close::going_away());
            }
            runtime.spawn(bind::close(self.core.clone()));
        }
    }
}
