//! Ed25519 keys, NodeIds and signatures.

use iroh::{PublicKey, SecretKey, Signature};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{Error, Result};

/// Hex digits of a NodeId.
const NODE_ID_DIGITS: usize = 64;

/// A secret key from its 32 bytes.
pub fn secret(bytes: &[u8]) -> Result<SecretKey> {
    bytes
        .try_into()
        .map(|array: [u8; 32]| SecretKey::from_bytes(&array))
        .map_err(|_| Error::Value(format!("a secret key has 32 bytes, not {}", bytes.len())))
}

/// A NodeId from its hex digits. iroh's own parser takes base32 as well, which would give one peer two names.
pub fn public(node_id: &str) -> Result<PublicKey> {
    let malformed = || {
        Error::Value(format!(
            "not a NodeId (64 hex digits of a key): {node_id:?}"
        ))
    };
    if node_id.len() != NODE_ID_DIGITS {
        return Err(malformed());
    }
    node_id.parse().map_err(|_| malformed())
}

/// A new secret key.
#[pyfunction]
pub fn generate_secret(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &SecretKey::generate().to_bytes())
}

/// The NodeId of a secret key.
#[pyfunction]
#[pyo3(signature = (secret))]
pub fn node_id(secret: &[u8]) -> Result<String> {
    Ok(self::secret(secret)?.public().to_string())
}

/// An Ed25519 signature.
#[pyfunction]
#[pyo3(signature = (secret, message))]
pub fn sign<'py>(py: Python<'py>, secret: &[u8], message: &[u8]) -> Result<Bound<'py, PyBytes>> {
    let signature = self::secret(secret)?.sign(message);
    Ok(PyBytes::new(py, &signature.to_bytes()))
}

/// Whether the signature is the NodeId's.
#[pyfunction]
#[pyo3(signature = (node_id, message, signature))]
pub fn verify(node_id: &str, message: &[u8], signature: &[u8]) -> bool {
    let Ok(key) = public(node_id) else {
        return false;
    };
    Signature::try_from(signature).is_ok_and(|signature| key.verify(message, &signature).is_ok())
}
