//! What a swarm remembers of batches: chain.rs.

use std::collections::HashSet;
use std::time::Duration;

use crate::batch::{self, Builder, Header, Kind, MAX_SEQ, Push};
use crate::chain::Verdict::{BadChain, New, OverRate, Stale};
use crate::chain::{BURST, CHAINS, Chains, EPOCHS, FORGET, HEADS, OutChains, RATE, SPANS, Verdict};
use iroh::{PublicKey, SecretKey};

const NONE: [u8; 32] = [0; 32];
const START: Duration = Duration::from_secs(1_000);

fn key(number: u64) -> PublicKey {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_bytes(&secret).public()
}

/// A batch as the chain sees it; its hash is that of its name.
#[derive(Clone)]
struct Sent {
    header: Header,
    count: u64,
    hash: [u8; 32],
}

impl Sent {
    fn events(name: &str, first: u64, last: u64, previous: [u8; 32]) -> Self {
        Self {
            header: Header {
                signer: key(1),
                author: key(1),
                epoch: 1,
                first,
                started: 100,
                previous,
                kind: Kind::Events,
            },
            count: last - first + 1,
            hash: batch::hash(name.as_bytes()),
        }
    }

    fn head(name: &str, seq: u64) -> Self {
        let mut head = Self::events(name, seq, seq, NONE);
        head.header.kind = Kind::Head;
        head.count = 0;
        head
    }

    fn by(mut self, signer: u64, author: u64) -> Self {
        (self.header.signer, self.header.author) = (key(signer), key(author));
        self
    }

    fn epoch(mut self, epoch: u64, started: u64) -> Self {
        (self.header.epoch, self.header.started) = (epoch, started);
        self
    }
}

fn at(chains: &mut Chains, sent: &Sent, now: Duration) -> Verdict {
    chains.check(&sent.header, sent.count, sent.hash, now)
}

fn check(chains: &mut Chains, sent: &Sent) -> Verdict {
    at(chains, sent, START)
}

/// Batches of ten events each, every one naming the one before.
fn honest(batches: u64) -> Vec<Sent> {
    let mut previous = NONE;
    let next = |number: u64| {
        let first = number * 10 + 1;
        let sent = Sent::events(&format!("batch {number}"), first, first + 9, previous);
        previous = sent.hash;
        sent
    };
    (0..batches).map(next).collect()
}

#[test]
fn what_came_once_is_stale_the_second_time_in_any_order() {
    let sent = honest(6);
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]] {
        let mut chains = Chains::default();
        for index in order {
            assert_eq!(check(&mut chains, &sent[index]), New, "{order:?}");
            assert_eq!(check(&mut chains, &sent[index]), Stale);
        }
        for again in &sent {
            assert_eq!(check(&mut chains, again), Stale);
        }
    }
}

#[test]
fn duplicates_are_known_however_long_ago() {
    let mut chains = Chains::default();
    let sent = honest(2_000);
    for one in &sent {
        assert_eq!(check(&mut chains, one), New);
    }
    assert_eq!(check(&mut chains, &sent[0]), Stale);
    // Cut otherwise, as by a signer that sends again after a restart: still nothing new.
    assert_eq!(
        check(&mut chains, &Sent::events("other", 95, 12_000, NONE)),
        Stale
    );
    // One new event is enough.
    let more = Sent::events("more", 19_995, 20_001, NONE);
    assert_eq!(check(&mut chains, &more), New);
}

#[test]
fn a_gap_is_no_fault_and_what_fills_it_is_new() {
    let mut chains = Chains::default();
    let sent = honest(4);
    for index in [0, 3, 1, 2] {
        assert_eq!(check(&mut chains, &sent[index]), New);
    }
}

#[test]
fn two_batches_for_the_same_numbers_are_found_out_by_their_neighbours() {
    let sent = honest(3);
    let other = Sent::events("other", 11, 20, sent[0].hash);
    let mut chains = Chains::default();
    assert_eq!(check(&mut chains, &sent[0]), New);
    assert_eq!(check(&mut chains, &other), New);
    assert_eq!(check(&mut chains, &sent[1]), Stale);
    assert_eq!(
        check(&mut chains, &sent[2]),
        BadChain,
        "it names the other one"
    );

    let mut backwards = Chains::default();
    assert_eq!(check(&mut backwards, &sent[2]), New);
    assert_eq!(
        check(&mut backwards, &other),
        BadChain,
        "it is not the one that was named"
    );
    assert_eq!(check(&mut backwards, &sent[1]), New);
}

#[test]
fn a_batch_that_names_nothing_contradicts_the_one_before_it() {
    let mut chains = Chains::default();
    assert_eq!(check(&mut chains, &honest(1)[0]), New);
    assert_eq!(
        check(&mut chains, &Sent::events("rootless", 11, 20, NONE)),
        BadChain
    );
}

#[test]
fn a_refused_batch_leaves_no_trace() {
    let sent = honest(2);
    let mut chains = Chains::default();
    check(&mut chains, &sent[0]);
    assert_eq!(
        check(&mut chains, &Sent::events("bad", 11, 20, NONE)),
        BadChain
    );
    assert_eq!(check(&mut chains, &sent[1]), New);
}

#[test]
fn a_signer_that_began_its_chain_anew_contradicts_nobody() {
    let mut chains = Chains::default();
    assert_eq!(check(&mut chains, &honest(1)[0]), New);
    for started in [101, 99] {
        let first = 10 * started;
        let before = Sent::events(&format!("before {started}"), first - 10, first - 1, NONE);
        assert_eq!(check(&mut chains, &before), New);
        let anew = Sent::events("anew", first, first + 9, NONE).epoch(1, started);
        assert_eq!(check(&mut chains, &anew), New, "started {started}");
    }
}

#[test]
fn chains_of_other_signers_and_authors_are_others() {
    let mut chains = Chains::default();
    let one = &honest(1)[0];
    for (signer, author) in [(1, 1), (2, 1), (2, 2), (1, 2)] {
        assert_eq!(check(&mut chains, &one.clone().by(signer, author)), New);
        assert_eq!(check(&mut chains, &one.clone().by(signer, author)), Stale);
    }
}

#[test]
fn recordings_of_an_epoch_that_is_over_are_stale() {
    let mut chains = Chains::default();
    assert_eq!(check(&mut chains, &honest(1)[0].clone().epoch(2, 200)), New);
    assert_eq!(
        check(&mut chains, &honest(1)[0].clone().epoch(1, 100)),
        Stale
    );
    assert_eq!(
        check(&mut chains, &Sent::head("head", 10).epoch(1, 100)),
        Stale
    );
    // The first one of an epoch that is no older.
    assert_eq!(check(&mut chains, &honest(1)[0].clone().epoch(3, 200)), New);
}

#[test]
fn a_known_epoch_goes_on_after_the_next_has_begun() {
    let mut chains = Chains::default();
    let old = honest(2);
    assert_eq!(check(&mut chains, &old[0]), New);
    assert_eq!(check(&mut chains, &honest(1)[0].clone().epoch(2, 200)), New);
    assert_eq!(check(&mut chains, &old[1]), New);
    assert_eq!(check(&mut chains, &old[1]), Stale);
}

#[test]
fn a_clock_that_went_back_a_day_silences_an_author_for_a_minute_only() {
    let day = 86_400_000;
    let mut chains = Chains::default();
    assert_eq!(
        check(&mut chains, &honest(1)[0].clone().epoch(1, 2 * day)),
        New
    );
    let back = honest(3)
        .into_iter()
        .map(|one| one.epoch(2, day))
        .collect::<Vec<_>>();
    let nearly = START + FORGET - Duration::from_millis(1);
    assert_eq!(at(&mut chains, &back[0], nearly), Stale);
    assert_eq!(at(&mut chains, &back[1], START + FORGET), New);
    // What was refused before then is not lost: it is not held to be known.
    assert_eq!(at(&mut chains, &back[0], START + FORGET), New);
    assert_eq!(at(&mut chains, &back[2], START + FORGET), New);
    // Nor can the old epoch's recordings bring the old state back.
    assert_eq!(
        at(
            &mut chains,
            &honest(1)[0].clone().epoch(1, 2 * day),
            START + FORGET
        ),
        Stale
    );
}

#[test]
fn an_epoch_that_is_alive_is_believed_however_long_it_lasts() {
    let mut chains = Chains::default();
    let mut now = START;
    for beat in 0..20 {
        let head = Sent::head(&format!("beat {beat}"), 5).epoch(2, 200);
        assert_eq!(at(&mut chains, &head, now), New);
        assert_eq!(at(&mut chains, &honest(1)[0], now), Stale, "a recording");
        now += FORGET / 2;
    }
}

#[test]
fn heads_rise_and_each_counts_once() {
    let mut chains = Chains::default();
    let mut beat = |name: &str, seq| check(&mut chains, &Sent::head(name, seq));
    assert_eq!(beat("first", 0), New);
    assert_eq!(beat("first", 0), Stale);
    assert_eq!(beat("second", 0), New);
    assert_eq!(beat("third", 7), New);
    assert_eq!(beat("fourth", 7), New);
    for (name, seq) in [("first", 0), ("third", 7), ("late", 6)] {
        assert_eq!(beat(name, seq), Stale);
    }
    for number in 0..HEADS - 1 {
        assert_eq!(beat(&format!("beat {number}"), 7), New);
    }
    assert_eq!(beat("fourth", 7), Stale);
}

#[test]
fn a_head_says_nothing_about_which_events_came() {
    let mut chains = Chains::default();
    assert_eq!(check(&mut chains, &Sent::head("head", 20)), New);
    for sent in honest(2) {
        assert_eq!(check(&mut chains, &sent), New);
    }
}

#[test]
fn an_author_beyond_the_rate_is_refused_until_it_has_waited() {
    let mut chains = Chains::default();
    let mut seq = 1;
    let mut send = |now| {
        let sent = Sent::events(&format!("{seq}"), seq, seq + 991, NONE);
        let verdict = at(&mut chains, &sent, now);
        seq += 2_000;
        verdict
    };
    let affordable = (BURST / 1_000.0) as usize;
    for _ in 0..affordable {
        assert_eq!(send(START), New);
    }
    assert_eq!(send(START), OverRate);
    let later = START + Duration::from_millis(250);
    for _ in 0..(RATE / 4_000.0) as usize {
        assert_eq!(send(later), New);
    }
    assert_eq!(send(later), OverRate);
    assert_eq!(
        send(START),
        OverRate,
        "a clock that goes back gives nothing"
    );
    assert_eq!(send(later), OverRate, "nor when it goes on");
    let much_later = START + Duration::from_secs(3_600);
    for _ in 0..affordable {
        assert_eq!(send(much_later), New);
    }
    assert_eq!(send(much_later), OverRate, "rest is saved up to a bound");
    let other = Sent::events("other", 1, 1, NONE).by(2, 2);
    assert_eq!(
        at(&mut chains, &other, much_later),
        New,
        "another author's rate is its own"
    );
}

#[test]
fn what_was_over_rate_is_new_when_it_comes_again() {
    let mut chains = Chains::default();
    let burst = Sent::events("burst", 1, BURST as u64 - 8, NONE);
    let more = Sent::events("more", BURST as u64 - 7, BURST as u64, burst.hash);
    assert_eq!(check(&mut chains, &burst), New);
    assert_eq!(check(&mut chains, &more), OverRate);
    assert_eq!(at(&mut chains, &more, START + Duration::from_secs(1)), New);
}

#[test]
fn sending_an_authors_batches_again_does_not_use_up_its_rate() {
    let mut chains = Chains::default();
    let sent = honest(2);
    assert_eq!(check(&mut chains, &sent[0]), New);
    for _ in 0..BURST as usize / 10 {
        assert_eq!(check(&mut chains, &sent[0]), Stale);
    }
    assert_eq!(check(&mut chains, &sent[1]), New);
}

#[test]
fn memory_is_bounded_and_the_silent_are_forgotten_first() {
    let mut chains = Chains::default();
    let one = &honest(1)[0];
    let many = CHAINS as u64 + 50;
    for number in 1..=many {
        let now = START + Duration::from_millis(number);
        assert_eq!(at(&mut chains, &one.clone().by(number, number), now), New);
        assert!(chains.chains() <= CHAINS);
    }
    assert_eq!(chains.chains(), CHAINS);
    let now = START + Duration::from_secs(10);
    assert_eq!(at(&mut chains, &one.clone().by(many, many), now), Stale);
    assert_eq!(
        at(&mut chains, &one.clone().by(1, 1), now),
        New,
        "it was forgotten"
    );
}

#[test]
fn the_one_who_begins_an_epoch_is_not_forgotten_for_it() {
    let mut chains = Chains::default();
    let one = &honest(1)[0];
    for number in 1..=CHAINS as u64 {
        let (now, other) = (START + Duration::from_millis(number), one.clone());
        assert_eq!(at(&mut chains, &other.by(number, number), now), New);
    }
    let now = START + Duration::from_secs(10);
    assert_eq!(at(&mut chains, &one.clone().epoch(2, 100), now), New);
    assert_eq!(chains.chains(), CHAINS);
    assert_eq!(at(&mut chains, one, now), Stale);
}

#[test]
fn an_author_of_many_epochs_drives_out_its_own() {
    let mut chains = Chains::default();
    let one = &honest(1)[0];
    assert_eq!(check(&mut chains, &one.clone().by(2, 2)), New);
    for epoch in 1..3 * CHAINS as u64 {
        let now = START + Duration::from_millis(epoch);
        assert_eq!(at(&mut chains, &one.clone().epoch(epoch, epoch), now), New);
        assert!(chains.chains() <= EPOCHS + 1);
    }
    assert_eq!(check(&mut chains, &one.clone().by(2, 2)), Stale);
}

#[test]
fn an_author_that_leaves_holes_drives_out_its_own() {
    let mut chains = Chains::default();
    let of = |number: u64| Sent::events(&format!("{number}"), 2 * number, 2 * number, NONE);
    let last = 3 * SPANS as u64;
    for number in 1..=last {
        assert_eq!(check(&mut chains, &of(number)), New);
    }
    assert_eq!(check(&mut chains, &of(last - SPANS as u64 + 1)), Stale);
    assert_eq!(
        check(&mut chains, &of(last - SPANS as u64)),
        New,
        "it was forgotten"
    );
}

#[test]
fn the_largest_numbers_are_no_trouble() {
    let mut chains = Chains::default();
    for first in [u64::MAX, MAX_SEQ, 1] {
        let mut sent = Sent::events(&format!("{first}"), first, first, NONE);
        sent.count = u64::MAX - BURST as u64;
        assert_eq!(check(&mut chains, &sent), OverRate);
        sent.count = 10;
        assert_eq!(check(&mut chains, &sent), New);
        assert_eq!(check(&mut chains, &sent), Stale);
    }
}

/// What one side builds, the other takes: events by way of their neighbours, heads every time.
#[test]
fn what_a_swarm_sends_hangs_together() {
    let secret = SecretKey::from_bytes(&[1; 32]);
    let (mut out, mut chains) = (OutChains::default(), Chains::default());
    let (author, epoch) = (secret.public(), 5);
    let mut seen = HashSet::new();
    let mut told = |bytes: &[u8]| {
        assert!(
            seen.insert(batch::hash(bytes)),
            "iroh-gossip would send it once"
        );
        let opened = batch::open("t", bytes).unwrap();
        let hash = batch::hash(bytes);
        chains.check(&opened.header, opened.items.len() as u64, hash, START)
    };
    for seq in 1..50 {
        let started = out.started(&author, epoch, || 1_000 + seq);
        assert_eq!(started, 1_001, "once a chain");
        let mut builder = Builder::new("t", author, epoch, started, seq, 4_000).unwrap();
        assert_eq!(builder.push(b"goes by reference"), Push::Added);
        let bytes = builder.finish(&secret, out.previous(&author, epoch));
        out.sent(&author, epoch, &bytes);
        assert_eq!(told(&bytes), New);
        for _ in 0..seq % 3 {
            let previous = out.previous_of_head(&author, epoch);
            let head = batch::head("t", &secret, author, epoch, started, seq, previous).unwrap();
            out.head_sent(&author, epoch, &head);
            assert_eq!(told(&head), New);
        }
    }
}

#[test]
fn a_chain_that_was_forgotten_begins_later_whatever_the_clock_says() {
    let mut out = OutChains::default();
    let first = out.started(&key(1), 1, || 5_000);
    out.sent(&key(1), 1, b"batch");
    assert_eq!(out.previous(&key(1), 1), batch::hash(b"batch"));
    let mut last = first;
    for epoch in 2..=CHAINS as u64 + 1 {
        let started = out.started(&key(1), epoch, || 1_000);
        assert!(started > last);
        last = started;
    }
    assert_eq!(out.previous(&key(1), 1), NONE, "forgotten");
    assert!(out.started(&key(1), 1, || 1_000) > last);
}
