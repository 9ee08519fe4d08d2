//! One error type inside, one conversion to Python's. The classes are those of `broker.errors`.

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

pyo3::import_exception!(broker.errors, BindError);
pyo3::import_exception!(broker.errors, Closed);
pyo3::import_exception!(broker.errors, EventTooLarge);

/// Whatever this crate reports to its caller in Python.
#[derive(Debug)]
pub enum Error {
    /// An argument that cannot be right.
    Value(String),
    /// The local address cannot be bound.
    Bind(String),
    /// A datagram above the path's limit (0: the peer takes none).
    Datagram {
        /// Of the payload.
        size: usize,
        /// Of the path, now.
        limit: usize,
    },
    /// Used after close.
    Closed,
    /// `drive` is running on another thread.
    Busy,
    /// Bound without gossip.
    NoGossip,
    /// Bound without relays.
    NoRelays,
    /// The operating system refused something that is not an address.
    Os(std::io::Error),
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A `ValueError` with this text.
    pub fn value(text: impl std::fmt::Display) -> Self {
        Self::Value(text.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Os(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Os(error.into())
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Value(text) => PyValueError::new_err(text),
            Error::Bind(text) => BindError::new_err(text),
            Error::Datagram { size, limit } => too_large(size, limit),
            Error::Closed => Closed::new_err("the endpoint is closed"),
            Error::Busy => PyRuntimeError::new_err("drive() is already running on another thread"),
            Error::NoGossip => PyRuntimeError::new_err(
                "this endpoint does not gossip: bind it with gossip_message_bytes",
            ),
            Error::NoRelays => {
                PyRuntimeError::new_err("this endpoint has no relays: bind it with relay_urls")
            }
            Error::Os(error) => PyOSError::new_err((error.raw_os_error(), error.to_string())),
        }
    }
}

/// EventTooLarge takes keyword-only arguments, which `new_err` cannot pass.
fn too_large(size: usize, limit: usize) -> PyErr {
    Python::attach(|py| {
        let text = format!(
            "a datagram of {size} bytes is above the path's limit of {limit}: send it on the stream instead"
        );
        let build = || -> PyResult<Bound<'_, PyAny>> {
            let fields = PyDict::new(py);
            fields.set_item("size", size)?;
            fields.set_item("limit", limit)?;
            py.get_type::<EventTooLarge>().call((text,), Some(&fields))
        };
        build().map_or_else(|error| error, PyErr::from_value)
    })
}
