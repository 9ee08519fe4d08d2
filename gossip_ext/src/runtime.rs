//! The one tokio runtime of the process, and the two ways to run it: a thread of its own, or the event loop's thread.
//!
//! It is a current_thread runtime: measured, one thread beat two in latency and throughput (docs/decisions), and it is
//! what lets asyncio and tokio share a thread. A fork after first use is not supported.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::io::Interest;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::fd::{self, Watch};
use crate::{signal, spin};

static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
/// `drive` is running; `drive` is how this process runs the runtime.
static DRIVING: AtomicBool = AtomicBool::new(false);
static DRIVEN: AtomicBool = AtomicBool::new(false);
/// `start_thread` was called.
static THREAD: AtomicBool = AtomicBool::new(false);

/// Set when an inbox gets its first item (or keeps some after a drain), cleared when `drive` returns for it. News and not
/// a count of full inboxes: one that nobody drains (yet, or any more) must not turn `drive` into a busy loop.
static NEWS: AtomicBool = AtomicBool::new(false);
static ARRIVED: Notify = Notify::const_new();

/// Tasks that run before sockets and Python get their turn, 61 by default. In a process of 25 spokes those are milliseconds,
/// in which what has arrived for one waits for what is to be sent by all; and each hop of a message waits so.
const TASKS_A_TURN: u32 = 8;

/// Something with a writer task on the runtime: a connection, a swarm.
pub trait Writer: Send + Sync {
    /// True when this call made it dirty.
    fn mark_dirty(&self) -> bool;
    /// Lets the writer look at its queue.
    fn wake_writer(&self);
}

/// Connections and swarms whose writer has something new. One entry each at most (its flag sees to that).
static DIRTY: Mutex<Vec<Arc<dyn Writer>>> = Mutex::new(Vec::new());
static DIRTY_ADDED: Notify = Notify::const_new();

/// The runtime, started on first use.
pub fn runtime() -> Result<&'static Runtime> {
    let built = RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(TASKS_A_TURN)
            .thread_name("broker-blocking")
            .build()
            .map_err(|error| error.to_string())?;
        runtime.spawn(wake_writers());
        Ok(runtime)
    });
    built
        .as_ref()
        .map_err(|text| Error::Os(std::io::Error::other(text.clone())))
}

/// Waking a task from another thread costs a system call each. So senders only note whose it is, one wake-up serves
/// all that were noted meanwhile, and the writers are woken from inside.
async fn wake_writers() {
    loop {
        DIRTY_ADDED.notified().await;
        wake_dirty();
    }
}

fn wake_dirty() {
    let writers = std::mem::take(&mut *DIRTY.lock().unwrap_or_else(PoisonError::into_inner));
    for writer in writers {
        writer.wake_writer();
    }
}

/// Notes that this connection or swarm has something to write.
pub fn kick<W: Writer + 'static>(writer: &Arc<W>) {
    if writer.mark_dirty() {
        let mut dirty = DIRTY.lock().unwrap_or_else(PoisonError::into_inner);
        let first = dirty.is_empty();
        dirty.push(writer.clone());
        drop(dirty);
        // Between two calls of `drive` nobody runs the runtime, and the next call looks here first. Sequentially consistent
        // on both sides: either this sees that it is running, or it sees what was pushed above.
        if first && (!DRIVEN.load(Ordering::SeqCst) || DRIVING.load(Ordering::SeqCst)) {
            DIRTY_ADDED.notify_one();
        }
    }
}

/// An inbox has something for Python.
pub fn announce() {
    NEWS.store(true, Ordering::Release);
    ARRIVED.notify_waiters();
}

/// What tokio tells of the runtime, all endpoints together.
#[pyfunction]
pub fn runtime_stats() -> Result<HashMap<&'static str, f64>> {
    let metrics = runtime()?.metrics();
    let workers = 0..metrics.num_workers();
    let busy = |worker| metrics.worker_total_busy_duration(worker).as_secs_f64();
    let parks = |worker| metrics.worker_park_count(worker);
    Ok(HashMap::from([
        ("workers", workers.len() as f64),
        ("alive_tasks", metrics.num_alive_tasks() as f64),
        ("queue_depth", metrics.global_queue_depth() as f64),
        ("busy_seconds", workers.clone().map(busy).sum()),
        ("parks", workers.map(parks).sum::<u64>() as f64),
    ]))
}

/// Runs one of our own futures to its end on the calling thread.
pub fn block_on<F: Future>(future: F) -> Result<F::Output> {
    wake_dirty();
    Ok(runtime()?.block_on(future))
}

/// Runs the runtime on a thread of its own.
#[pyfunction]
pub fn start_thread() -> Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    THREAD.store(true, Ordering::SeqCst);
    DRIVEN.store(false, Ordering::SeqCst);
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
#[pyo3(signature = (fd, timeout, keep=false))]
pub fn drive(py: Python<'_>, fd: RawFd, timeout: Option<f64>, keep: bool) -> PyResult<bool> {
    let timeout = timeout.map(wait_limit).transpose()?;
    let runtime = runtime()?;
    if DRIVING.swap(true, Ordering::SeqCst) {
        return Err(Error::Busy.into());
    }
    DRIVEN.store(!THREAD.load(Ordering::Relaxed), Ordering::SeqCst);
    let result = drive_once(py, runtime, fd, timeout, keep);
    DRIVING.store(false, Ordering::SeqCst);
    result
}

fn drive_once(
    py: Python<'_>,
    runtime: &Runtime,
    fd: RawFd,
    mut timeout: Option<Duration>,
    keep: bool,
) -> PyResult<bool> {
    if timeout != Some(Duration::ZERO) {
        let _inside = runtime.enter();
        if !signal::listen(py)? {
            timeout = Some(timeout.map_or(signal::RENEW, |limit| limit.min(signal::RENEW)));
        }
    }
    let readable = py.detach(|| runtime.block_on(turn(fd, timeout, keep)))?;
    py.check_signals()?;
    Ok(readable)
}

/// asyncio may hand over a negative timeout for a timer that is already late. (Not `max`: it would turn NaN into 0.)
fn wait_limit(seconds: f64) -> Result<Duration> {
    if seconds <= 0.0 {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds).map_err(Error::value)
}

/// The descriptor that `drive` was told to keep. To watch it anew for each wait would be two system calls a wait.
static KEPT: Mutex<Option<Watch>> = Mutex::new(None);

fn kept() -> MutexGuard<'static, Option<Watch>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the watch on a descriptor that was kept and is about to be closed.
#[pyfunction]
pub fn forget(fd: RawFd) {
    kept().take_if(|watch| watch.as_raw_fd() == fd);
}

async fn turn(fd: RawFd, timeout: Option<Duration>, keep: bool) -> Result<bool> {
    wake_dirty();
    let before = kept()
        .take()
        .filter(|watch| keep && watch.as_raw_fd() == fd);
    let watch = match before {
        Some(watch) => watch,
        None => fd::watch(fd)?,
    };
    wait(&watch, timeout).await?;
    let readable = seen(&watch);
    if keep && !readable {
        *kept() = Some(watch);
    } // Else it is watched anew: readiness is told by its edge, and the program may leave something unread.
    Ok(readable)
}

fn seen(watch: &Watch) -> bool {
    watch.try_io(Interest::READABLE, |_| Ok(())).is_ok()
}

async fn wait(watch: &Watch, timeout: Option<Duration>) -> Result<()> {
    // Made before the check: notify_waiters reaches every future that exists.
    let arrived = ARRIVED.notified();
    if NEWS.swap(false, Ordering::AcqRel) || timeout == Some(Duration::ZERO) {
        // One turn: it runs what is ready (writers, then QUIC's drivers, which send) and polls the sockets.
        tokio::task::yield_now().await;
        return Ok(());
    }
    let began = Instant::now();
    let news = || NEWS.swap(false, Ordering::AcqRel) || seen(watch);
    if spin::wait(timeout, news).await {
        return Ok(());
    }
    let limit = async {
        match timeout {
            Some(limit) => tokio::time::sleep(limit.saturating_sub(began.elapsed())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = arrived => {
            NEWS.store(false, Ordering::Release);
            Ok(())
        }
        ready = watch.readable() => ready.map(|_| ()).map_err(Error::from),
        signal = signal::arrived() => signal,
        () = limit => Ok(()),
    }
}
