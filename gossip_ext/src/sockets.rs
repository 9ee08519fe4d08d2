//! The iroh endpoints behind one endpoint of ours: the first, whose port is in tickets and address books and which stays
//! as long as we do; and a stand-in, if there was need of one (stand_in.rs), which has the relays then. Not here: how they
//! are made and served (bind.rs).

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh::metrics::SocketMetrics;
use iroh::protocol::Router;

/// The number of the first.
pub const FIRST: u64 = 0;

/// One iroh endpoint.
#[derive(Debug, Clone)]
pub struct Socket {
    /// Tells them apart.
    pub number: u64,
    /// QUIC.
    pub iroh: iroh::Endpoint,
    /// Another one has the relays.
    pub retired: Arc<AtomicBool>,
}

impl Socket {
    fn metrics(&self) -> Totals {
        totals(&self.iroh.metrics().socket)
    }
}

/// What iroh counts, by the names that Python knows.
pub type Totals = [(&'static str, u64); 12];

fn totals(socket: &SocketMetrics) -> Totals {
    [
        ("connections_opened", socket.num_conns_opened.get()),
        ("connections_closed", socket.num_conns_closed.get()),
        ("udp_datagrams_in", socket.recv_datagrams.get()),
        ("udp_batches_in", socket.recv_gro_datagrams.get()),
        ("holepunch_attempts", socket.holepunch_attempts.get()),
        ("relay_connects", socket.relay_conns_success.get()),
        ("relay_connects_failed", socket.relay_conns_failed.get()),
        ("relay_disconnects", socket.relay_conns_closed.get()),
        ("relay_bytes_in", socket.recv_data_relay.get()),
        ("relay_bytes_out", socket.send_relay.get()),
        (
            "direct_bytes_in",
            socket.recv_data_ipv4.get() + socket.recv_data_ipv6.get(),
        ),
        (
            "direct_bytes_out",
            socket.send_ipv4.get() + socket.send_ipv6.get(),
        ),
    ]
}

fn add(sum: &mut Totals, more: &Totals) {
    for ((_, sum), (_, more)) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

#[derive(Debug)]
struct Served {
    socket: Socket,
    /// `None`: not yet. Nobody is accepted then.
    router: Option<Router>,
}

/// None of them once they are released: a UDP socket is closed only when the last clone of its endpoint is dropped, and
/// Python may hold the rest for longer.
#[derive(Debug)]
struct Held {
    first: Option<Served>,
    stand_in: Option<Served>,
    /// Those that were replaced, until they have closed.
    leaving: Vec<Served>,
    /// What those had counted that have closed.
    ended: Totals,
}

impl Held {
    fn served(&self) -> impl Iterator<Item = &Served> {
        self.first.iter().chain(&self.stand_in).chain(&self.leaving)
    }

    fn take(&mut self, number: u64) -> Option<Served> {
        let it = |served: &mut Served| served.socket.number == number;
        let staying = self.first.take_if(it).or_else(|| self.stand_in.take_if(it));
        staying.or_else(|| self.leaving.extract_if(.., it).next())
    }

    fn current(&self) -> Option<&Served> {
        self.stand_in.as_ref().or(self.first.as_ref())
    }

    fn totals(&self) -> Totals {
        let mut sum = self.ended;
        self.served()
            .for_each(|served| add(&mut sum, &served.socket.metrics()));
        sum
    }
}

/// All of one endpoint.
#[derive(Debug)]
pub struct Sockets(Mutex<Held>);

impl Sockets {
    /// With the first.
    pub fn new(first: Socket) -> Self {
        Self(Mutex::new(Held {
            ended: first.metrics().map(|(name, _)| (name, 0)),
            first: Some(Served {
                socket: first,
                router: None,
            }),
            stand_in: None,
            leaving: Vec::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This router serves the first.
    pub fn serve(&self, router: Router) {
        if let Some(first) = &mut self.lock().first {
            first.router = Some(router);
        }
    }

    /// The one that has the relays, and dials. `None` when released.
    pub fn current(&self) -> Option<Socket> {
        self.lock().current().map(|served| served.socket.clone())
    }

    /// Those that are to stay, the first before the stand-in.
    pub fn staying(&self) -> Vec<Socket> {
        let held = self.lock();
        let staying = held.first.iter().chain(&held.stand_in);
        staying.map(|served| served.socket.clone()).collect()
    }

    /// From now on this one has the relays. Whom it takes the place of: the first stays all the same, a stand-in is to be
    /// closed, see [`Self::closed`].
    pub fn stand_in(&self, socket: Socket, router: Router) -> Option<(Socket, Router)> {
        let mut held = self.lock();
        let before = held.current().map(|served| {
            served.socket.retired.store(true, Ordering::Release);
            (served.socket.clone(), served.router.clone())
        });
        let replaced = held.stand_in.replace(Served {
            socket,
            router: Some(router),
        });
        held.leaving.extend(replaced);
        before.and_then(|(socket, router)| Some((socket, router?)))
    }

    /// It has closed, and is let go of. What it counted is kept.
    pub fn closed(&self, number: u64) {
        let mut held = self.lock();
        if let Some(served) = held.take(number) {
            add(&mut held.ended, &served.socket.metrics());
        }
    }

    /// What iroh has counted, since bind.
    pub fn totals(&self) -> Totals {
        self.lock().totals()
    }

    /// How often a connection to a relay has ended.
    pub fn relay_disconnects(&self) -> u64 {
        let totals = self.totals();
        let found = totals.iter().find(|(name, _)| *name == "relay_disconnects");
        found.map_or(0, |(_, count)| *count)
    }

    /// Local addresses.
    pub fn bound(&self) -> Vec<SocketAddr> {
        let held = self.lock();
        let bound = held
            .served()
            .flat_map(|served| served.socket.iroh.bound_sockets());
        bound.collect()
    }

    /// Where to be dialled. With a stand-in it is the first's port all the same. What relays say of a public address is
    /// of the stand-in's, though: only who asks them is told.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        let staying = self.staying();
        let Some((first, others)) = staying.split_first() else {
            return Vec::new();
        };
        let mut found = reached_at(first);
        let interfaces: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
        for other in others.iter().filter(|_| any_address(first)) {
            let learned = reached_at(other);
            found.extend(learned.iter().filter(|at| !interfaces.contains(&at.ip())));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The number of each, its local addresses and its router.
    pub fn served(&self) -> Vec<(u64, Vec<SocketAddr>, Option<Router>)> {
        let held = self.lock();
        let served = held.served().map(|served| {
            let socket = &served.socket;
            (
                socket.number,
                socket.iroh.bound_sockets(),
                served.router.clone(),
            )
        });
        served.collect()
    }

    /// Lets go of all of them; what they have counted is kept.
    pub fn release(&self) {
        let mut held = self.lock();
        *held = Held {
            first: None,
            stand_in: None,
            leaving: Vec::new(),
            ended: held.totals(),
        };
    }
}

fn any_address(socket: &Socket) -> bool {
    let bound = socket.iroh.bound_sockets();
    bound.iter().any(|bound| bound.ip().is_unspecified())
}

fn reached_at(socket: &Socket) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for bound in socket.iroh.bound_sockets() {
        match bound.ip().is_unspecified() {
            true => found.extend(socket.iroh.addr().ip_addrs()),
            false => found.push(bound),
        }
    }
    found
}
