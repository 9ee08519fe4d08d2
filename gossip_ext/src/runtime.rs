//! The one tokio runtime of the process, and the two ways to run it: a thread of its own, or the event loop's thread.
//!
//! It is a current_thread runtime: measured, one thread beat two in latency and throughput (docs/decisions), and it is
//! what lets asyncio and tokio share a thread. A fork after first use is not supported.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::connection::Link;
use crate::error::{Error, Result};
use crate::fd;

/// Turns of the run queue that `drive` gives before it looks: the first runs what Python has sent since (writers, then
/// QUIC's drivers, which send), and polls the sockets; the second runs what the sockets brought.
const TURNS: usize = 2;

static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
static DRIVING: AtomicBool = AtomicBool::new(false);

/// Set when an inbox gets its first item (or keeps some after a drain), cleared when `drive` returns for it. News and not
/// a count of full inboxes: one that nobody drains (yet, or any more) must not turn `drive` into a busy loop.
static NEWS: AtomicBool = AtomicBool::new(false);
static ARRIVED: Notify = Notify::const_new();

/// Connections whose writer has something new. One entry a connection at most (its flag sees to that).
static DIRTY: Mutex<Vec<Arc<Link>>> = Mutex::new(Vec::new());
static DIRTY_ADDED: Notify = Notify::const_new();

/// The runtime, started on first use.
pub fn runtime() -> Result<&'static Runtime> {
    let built = RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("broker-net")
            .build()
            .map_err(|error| error.to_string())?;
        runtime.spawn(wake_writers());
        Ok(runtime)
    });
    built
        .as_ref()
        .map_err(|text| Error::Os(std::io::Error::other(text.clone())))
}

/// Waking a task from another thread costs a system call each. So senders only note the connection, one wake-up serves
/// all that were noted meanwhile, and the writers are woken from inside.
async fn wake_writers() {
    loop {
        DIRTY_ADDED.notified().await;
        let links = std::mem::take(&mut *DIRTY.lock().unwrap_or_else(PoisonError::into_inner));
        for link in links {
            link.wake_writer();
        }
    }
}

/// Notes that this connection has something to write.
pub fn kick(link: &Arc<Link>) {
    if link.mark_dirty() {
        let mut dirty = DIRTY.lock().unwrap_or_else(PoisonError::into_inner);
        let first = dirty.is_empty();
        dirty.push(link.clone());
        drop(dirty);
        if first {
            DIRTY_ADDED.notify_one();
        }
    }
}

/// An inbox has something for Python.
pub fn announce() {
    NEWS.store(true, Ordering::Release);
    ARRIVED.notify_waiters();
}

/// Runs the runtime on a thread of its own.
#[pyfunction]
pub fn start_thread() -> Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    let runtime = runtime()?;
    let mut failed = None;
    STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("broker-net".to_owned());
        if let Err(error) = thread.spawn(move || runtime.block_on(std::future::pending::<()>())) {
            failed = Some(error);
        }
    });
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Runs the runtime on this thread until there is something for Python to do.
#[pyfunction]
#[pyo3(signature = (fd, timeout))]
pub fn drive(py: Python<'_>, fd: RawFd, timeout: Option<f64>) -> Result<()> {
    // asyncio may hand over a negative timeout for a timer that is already late.
    let timeout = timeout
        .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).map_err(Error::value))
        .transpose()?;
    let runtime = runtime()?;
    if DRIVING.swap(true, Ordering::AcqRel) {
        return Err(Error::Busy);
    }
    let result = py.detach(|| runtime.block_on(turn(fd, timeout)));
    DRIVING.store(false, Ordering::Release);
    result
}

async fn turn(fd: RawFd, timeout: Option<Duration>) -> Result<()> {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    // Made before the check: notify_waiters reaches every future that exists.
    let arrived = ARRIVED.notified();
    if NEWS.swap(false, Ordering::AcqRel) || timeout == Some(Duration::ZERO) {
        return Ok(());
    }
    // Registered anew for each wait: adding a descriptor reports its present readiness, so nothing has to be remembered
    // between calls and a descriptor number that now means another file cannot be mistaken for the old one.
    let readable = fd::watch(fd)?;
    let limit = async {
        match timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = arrived => {
            NEWS.store(false, Ordering::Release);
            Ok(())
        }
        ready = readable.readable() => ready.map(|_| ()).map_err(Error::from),
        () = limit => Ok(()),
    }
}
