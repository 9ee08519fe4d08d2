//! Signals while `drive` waits. Python's handlers run in Python, so `drive` must return when one arrives; but epoll's EINTR
//! stays inside tokio, and asyncio gives Python a descriptor to write to only while it has signal handlers of its own.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// More than there are signals: what one wait may leave unread.
const UNREAD: usize = 128;

/// How long an answer of Python's holds: the longest that control-C can wait in the rare case that it no longer does.
pub const RENEW: Duration = Duration::from_secs(1);

struct Wakeup {
    /// Where Python's C handler writes a byte for each signal.
    python: StdStream,
    ours: UnixStream,
}

static WAKEUP: OnceLock<std::result::Result<Wakeup, String>> = OnceLock::new();

thread_local! {
    /// Whether this thread may set the wake-up descriptor: only the main thread may, and only it gets signals.
    static MAIN: Cell<bool> = const { Cell::new(true) };
    /// When `listen` last asked.
    static LISTENED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The pair of sockets. Inside the runtime only.
fn wakeup() -> Result<&'static Wakeup> {
    let made = WAKEUP.get_or_init(|| {
        let make = || -> std::io::Result<Wakeup> {
            let (python, ours) = StdStream::pair()?;
            python.set_nonblocking(true)?;
            ours.set_nonblocking(true)?;
            let ours = UnixStream::from_std(ours)?;
            Ok(Wakeup { python, ours })
        };
        make().map_err(|error| error.to_string())
    });
    made.as_ref()
        .map_err(|text| Error::Os(std::io::Error::other(text.clone())))
}

/// Makes Python write its signals here, unless they go to somebody else, who is then in the caller's descriptor. That can
/// change (asyncio takes the place and gives it back as its handlers come and go), so it is asked again, but not before
/// RENEW has passed: Python makes two system calls for it. False: not asked now, so wait for RENEW at most.
pub fn listen(py: Python<'_>) -> PyResult<bool> {
    static SET: PyOnceLock<(Py<PyAny>, Py<PyDict>)> = PyOnceLock::new();
    let fresh = LISTENED.get().is_some_and(|asked| asked.elapsed() < RENEW);
    if !MAIN.get() || fresh {
        return Ok(!MAIN.get());
    }
    LISTENED.set(Some(Instant::now()));
    let fd = wakeup()?.python.as_raw_fd();
    let (set, options) = SET.get_or_try_init(py, || {
        let set = py.import("signal")?.getattr("set_wakeup_fd")?.unbind();
        let options = PyDict::new(py);
        // A full socket has already woken us.
        options.set_item("warn_on_full_buffer", false)?;
        PyResult::Ok((set, options.unbind()))
    })?;
    let set = |fd| set.bind(py).call((fd,), Some(options.bind(py)));
    match set(fd) {
        Ok(before) => {
            let before: i32 = before.extract()?;
            if before != -1 && before != fd {
                set(before)?;
            }
        }
        Err(_) => MAIN.set(false),
    }
    Ok(true)
}

/// Returns when a signal has arrived.
pub async fn arrived() -> Result<()> {
    let ours = &wakeup()?.ours;
    ours.readable().await?;
    // An error means that there is nothing to read, which is what this is for.
    let _ = ours.try_read(&mut [0; UNREAD]);
    Ok(())
}
