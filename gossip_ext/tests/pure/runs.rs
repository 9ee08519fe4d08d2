//! Batches opened together (run.rs): one signature answers for the chain before it, and for nobody else's.

use std::sync::Arc;

use crate::batch::{self, Builder, Fault, Memory, Push, hash};
use crate::batches::*;
use crate::run;
use bytes::Bytes;
use iroh::{PublicKey, SecretKey};

/// `count` batches of one event each, every one naming the one before.
fn chain(count: u64) -> Vec<Bytes> {
    let mut previous = [0; 32];
    let link = |seq| {
        let mut builder = builder(seq, LIMIT);
        builder.push(event(seq, "1").as_bytes());
        let data = builder.finish(&secret(1), previous);
        previous = hash(&data);
        data
    };
    (1..=count).map(link).collect()
}

/// What each of them is: its first number, or a fault.
fn opened(run: &[&[u8]]) -> Vec<Result<u64, Fault>> {
    let run: Vec<_> = run.iter().map(|data| Some(*data)).collect();
    let checked = run::open(TOPIC, &run, &mut Memory::default())
        .into_iter()
        .map(Option::unwrap);
    let first = |one: run::Checked| one.opened.map(|opened| opened.header.first);
    checked.map(first).collect()
}

/// With a signature that does not hold.
fn unsigned(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    *data.last_mut().unwrap() ^= 1;
    data
}

#[test]
fn a_run_opens_as_its_batches_do_alone_in_any_order() {
    let chain = chain(4);
    let forward: Vec<&[u8]> = chain.iter().map(|data| &**data).collect();
    assert_eq!(opened(&forward), [Ok(1), Ok(2), Ok(3), Ok(4)]);
    let backward: Vec<&[u8]> = forward.iter().rev().copied().collect();
    assert_eq!(opened(&backward), [Ok(4), Ok(3), Ok(2), Ok(1)]);
}

#[test]
fn what_is_no_batch_keeps_its_place() {
    let chain = chain(2);
    let checked = run::open(
        TOPIC,
        &[None, Some(&chain[0]), None, Some(b"x"), Some(&chain[1])],
        &mut Memory::default(),
    );
    let there: Vec<_> = checked.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, true, false, true, true]);
    assert_eq!(checked[1].as_ref().unwrap().hash, hash(&chain[0]));
}

#[test]
fn other_bytes_than_the_signer_named_are_not_vouched_for() {
    let chain = chain(3);
    let forged = unsigned(&chain[1]);
    let run: [&[u8]; 3] = [&chain[0], &forged, &chain[2]];
    assert_eq!(opened(&run), [Ok(1), Err(Fault::BadSignature), Ok(3)]);
}

#[test]
fn a_batch_that_does_not_hold_vouches_for_nobody() {
    let chain = chain(2);
    let first = unsigned(&chain[0]);
    let mut builder = builder(2, LIMIT);
    builder.push(event(2, "1").as_bytes());
    let second = unsigned(&builder.finish(&secret(1), hash(&first)));
    assert_eq!(opened(&[&first, &second]), [Err(Fault::BadSignature); 2]);
}

#[test]
fn nobody_vouches_for_batches_of_another_signer() {
    let victim = unsigned(&chain(1)[0]);
    let mut builder = Builder::new(TOPIC, secret(2).public(), EPOCH, 7, 2, LIMIT).unwrap();
    builder.push(b"1");
    let named = builder.finish(&secret(2), hash(&victim));
    assert_eq!(
        opened(&[&victim, &named]),
        [Err(Fault::BadSignature), Ok(2)]
    );
}

#[test]
fn a_signature_that_was_vouched_for_is_not_looked_at() {
    // The one case in which it can be told: a signer that names bytes of its own whose signature does not hold.
    let first = unsigned(&chain(1)[0]);
    let mut builder = builder(2, LIMIT);
    builder.push(event(2, "1").as_bytes());
    let second = builder.finish(&secret(1), hash(&first));
    assert_eq!(opened(&[&first, &second]), [Ok(1), Ok(2)]);
}

/// A batch of one event of somebody's own.
fn lone(number: u16) -> (PublicKey, Bytes) {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    let (secret, epoch) = (SecretKey::from_bytes(&bytes), batch::epoch_text(EPOCH));
    let author = secret.public();
    let mut builder = Builder::new(TOPIC, author, EPOCH, 1, 1, LIMIT).unwrap();
    let meta = format!(r#"{{"author":"{author}","epoch":"{epoch}","seq":1}}"#);
    let event = format!(r#"{{"type":"{TOPIC}","detail":1,"meta":{meta}}}"#);
    assert_eq!(builder.push(event.as_bytes()), Push::Added);
    (author, builder.finish(&secret, [0; 32]))
}

#[test]
fn a_key_that_is_remembered_or_forgotten_checks_the_same() {
    let mut memory = Memory::default();
    for _ in 0..2 {
        for number in 0..300 {
            // More signers than are remembered.
            let (author, data) = lone(number);
            let mut opened = |data: &[u8]| {
                let checked = run::open(TOPIC, &[Some(data)], &mut memory).pop().unwrap();
                checked.unwrap().opened.map(|opened| opened.header.clone())
            };
            let header = opened(&data).unwrap();
            assert_eq!((header.signer, header.author), (author, author));
            assert_eq!(opened(&unsigned(&data)), Err(Fault::BadSignature));
        }
    }
}

/// The bytes decide, and who brings them does not matter: so one check is enough for all spokes of a process.
#[test]
fn a_signature_that_is_known_to_hold_is_not_looked_at_until_that_is_forgotten() {
    let mut memory = Memory::default();
    let (author, data) = lone(1);
    let other = unsigned(&data);
    let open = |memory: &mut Memory, data: &[u8]| {
        let checked = run::open(TOPIC, &[Some(data)], memory).pop().unwrap();
        checked.unwrap().opened.map(|opened| opened.header.author)
    };
    for _ in 0..2 {
        assert_eq!(open(&mut memory, &other), Err(Fault::BadSignature));
    }
    assert_eq!(open(&mut memory, &data), Ok(author));
    assert!(memory.holds(&hash(&data)) && !memory.holds(&hash(&other)));
    memory.held(hash(&other)); // a lie, to see that nobody looks
    assert_eq!(open(&mut memory, &other), Ok(author));
    let mut wrong_topic = run::open("another", &[Some(&other)], &mut memory);
    let wrong_topic = wrong_topic.pop().unwrap().unwrap().opened;
    assert_eq!(wrong_topic, Err(Fault::WrongTopic));
    for number in 0..1_024_u64 {
        memory.held(hash(&number.to_be_bytes()));
    }
    crowd_out(&mut memory);
    assert_eq!(open(&mut memory, &other), Err(Fault::BadSignature));
}

/// So many batches that each come for the second time that nothing from before is kept.
fn crowd_out(memory: &mut Memory) {
    for number in 2..66 {
        let (_, data) = lone(number);
        run::open(TOPIC, &[Some(&data), Some(&data)], memory);
    }
}

/// Whose `opened` is kept is not opened again.
#[test]
fn a_batch_that_comes_again_is_opened_once_for_all_that_follow() {
    let mut memory = Memory::default();
    let (_, data) = lone(1);
    let open = |topic: &str, memory: &mut Memory| {
        let checked = run::open(topic, &[Some(&data)], memory).pop().unwrap();
        checked.unwrap().opened
    };
    let first = open(TOPIC, &mut memory).unwrap();
    assert_eq!(memory.kept(), (0, 0), "there may be one swarm alone");
    let second = open(TOPIC, &mut memory).unwrap();
    assert_eq!((memory.kept().0, &first), (1, &second));
    let third = open(TOPIC, &mut memory).unwrap();
    assert!(Arc::ptr_eq(&second, &third) && !Arc::ptr_eq(&first, &second));
    assert_eq!(open("another", &mut memory), Err(Fault::WrongTopic));
    crowd_out(&mut memory);
    let anew = open(TOPIC, &mut memory).unwrap();
    assert!(!Arc::ptr_eq(&second, &anew));
    assert_eq!(anew, second);
}

#[test]
fn a_batch_that_is_kept_vouches_for_the_one_before_it() {
    let mut memory = Memory::default();
    let first = unsigned(&chain(1)[0]);
    let mut builder = builder(2, LIMIT);
    builder.push(event(2, "1").as_bytes());
    let second = builder.finish(&secret(1), hash(&first));
    let open = |memory: &mut Memory, run: &[Option<&[u8]>]| {
        let checked = run::open(TOPIC, run, memory).remove(0).unwrap();
        checked.opened.map(|opened| opened.header.first)
    };
    for _ in 0..2 {
        assert_eq!(open(&mut memory, &[Some(&second)]), Ok(2));
    }
    assert_eq!(memory.kept().0, 1);
    assert_eq!(open(&mut memory, &[Some(&first)]), Err(Fault::BadSignature));
    assert_eq!(open(&mut memory, &[Some(&first), Some(&second)]), Ok(1));
}

#[test]
fn what_is_kept_is_bounded_in_number_and_in_bytes() {
    let mut memory = Memory::default();
    let detail = format!("\"{}\"", "x".repeat(60_000));
    let mut sizes = Vec::new();
    for seq in 1..200 {
        let mut builder = builder(seq, 65_000);
        assert_eq!(builder.push(event(seq, &detail).as_bytes()), Push::Added);
        let data = builder.finish(&secret(1), [0; 32]);
        run::open(TOPIC, &[Some(&data), Some(&data)], &mut memory);
        sizes.push(memory.kept());
    }
    assert!(sizes.iter().all(|(_, bytes)| *bytes <= 2 * 1024 * 1024));
    assert_eq!(*sizes.last().unwrap(), (34, 34 * sizes[0].1));
    for number in 0..200 {
        let (_, data) = lone(number);
        run::open(TOPIC, &[Some(&data), Some(&data)], &mut memory);
    }
    assert_eq!(memory.kept().0, 64);
}
