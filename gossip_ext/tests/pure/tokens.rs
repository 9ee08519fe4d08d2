//! Tokens (token.rs): whose word counts, and for whom.

use crate::token::{prober, sponsor, vouch};
use iroh::SecretKey;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32])
}

#[test]
fn a_token_names_who_vouches_and_holds_for_its_guest_alone() {
    let (owner, guest, stranger) = (key(1), key(2), key(3));
    let token = vouch(&owner, &guest.public());
    assert_eq!(sponsor(&token, &guest.public()), Some(owner.public()));
    assert_eq!(sponsor(&token, &stranger.public()), None);
    assert_eq!(sponsor(&token, &owner.public()), None);
}

#[test]
fn nobody_vouches_in_the_name_of_another() {
    let (owner, guest, stranger) = (key(1), key(2), key(3));
    let own = vouch(&stranger, &guest.public());
    let forged = own.replace(&stranger.public().to_string(), &owner.public().to_string());
    assert_eq!(sponsor(&forged, &guest.public()), None);
}

#[test]
fn what_is_no_token_is_nobodys_word() {
    let guest = key(2).public();
    let token = vouch(&key(1), &guest);
    let cases = [
        String::new(),
        "vouch1.".to_owned(),
        "vouch1..".to_owned(),
        token.replace("vouch1", "vouch2"),
        token[..token.len() - 1].to_owned(),
        token[..token.len() - 2].to_owned(),
        format!("{token}00"),
        token.replace('.', "\u{e4}"),
        format!("vouch1.{}.{}", guest, "\u{e4}".repeat(64)),
    ];
    for case in cases {
        assert_eq!(sponsor(&case, &guest), None, "{case:?}");
    }
}

#[test]
fn the_prober_of_a_key_is_always_the_same_and_another_one() {
    assert_eq!(prober(&key(1)).public(), prober(&key(1)).public());
    assert_ne!(prober(&key(1)).public(), key(1).public());
    assert_ne!(prober(&key(1)).public(), prober(&key(2)).public());
}
