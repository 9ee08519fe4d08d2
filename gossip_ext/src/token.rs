//! A NodeId's word for another one, to a relay that knows the first. Pure: no pyo3, tokio or sockets.

use std::str::FromStr;

use iroh::{PublicKey, SecretKey, Signature};

/// What a prober's key is made with, and what a token signs: neither can be taken for anything else that a key is used for.
const PROBER: &str = "iroh-broker 2026 relay prober";
const VOUCH: &[u8] = b"iroh-broker relay vouch 1\0";

/// How a token begins: the version of its form.
const PREFIX: &str = "vouch1.";

/// The identity of the prober of a key: always the same one.
pub fn prober(owner: &SecretKey) -> SecretKey {
    SecretKey::from_bytes(&blake3::derive_key(PROBER, &owner.to_bytes()))
}

fn message(guest: &PublicKey) -> Vec<u8> {
    [VOUCH, guest.as_bytes()].concat()
}

/// `sponsor` vouches for `guest`. Of no use to anybody else: a relay takes it from the guest alone, who proves to be it.
pub fn vouch(sponsor: &SecretKey, guest: &PublicKey) -> String {
    let signature = sponsor.sign(&message(guest));
    let hex: String = signature
        .to_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PREFIX}{}.{hex}", sponsor.public())
}

/// Who vouches for `guest` with this token; `None` when nobody does.
pub fn sponsor(token: &str, guest: &PublicKey) -> Option<PublicKey> {
    let (sponsor, hex) = token.strip_prefix(PREFIX)?.split_once('.')?;
    let sponsor = PublicKey::from_str(sponsor).ok()?;
    let signature = Signature::try_from(unhex(hex)?.as_slice()).ok()?;
    sponsor.verify(&message(guest), &signature).ok()?;
    Some(sponsor)
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}
