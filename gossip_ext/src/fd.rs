//! The one unsafe line of this crate: waiting on a file descriptor that Python owns.
#![expect(
    unsafe_code,
    reason = "tokio cannot know that the descriptor stays open: its owner is Python"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The caller's descriptor: named, not owned.
#[derive(Debug)]
pub struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// A descriptor that is watched for readability.
pub type Watch = AsyncFd<Borrowed>;

/// Watches a descriptor for readability.
pub fn watch(fd: RawFd) -> io::Result<Watch> {
    // SAFETY: it must stay open and the same file while it is watched. The contract of `drive` puts that on its caller: for
    // one call, or, if it was to be kept, until `forget`. A caller that breaks it (closes its selector on another thread
    // meanwhile) gets a missed or a needless wake-up from epoll: nothing is read or written through the descriptor.
    let watched = unsafe { AsyncFd::register_with_interest(Borrowed(fd), Interest::READABLE) };
    watched.map_err(io::Error::from)
}
