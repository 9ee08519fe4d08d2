//! Signed batches, what is refused: opening.rs and event.rs.

use crate::batch::{self, Builder, Fault, Item, MAX_SEQ, Push, epoch_text, open};
use crate::batches::*;
use crate::event::{Template, added, left_out, parts};

/// What would have a reader take an event for another: another topic's, author's, epoch's, number's.
#[test]
fn an_event_that_says_otherwise_is_never_delivered() {
    let (author, other, epoch) = (author(), secret(2).public(), epoch_text(EPOCH));
    let good = event(1, "1");
    let meta = format!(r#"{{"author":"{author}","epoch":"{epoch}","seq":1}}"#);
    let lies = [
        String::new(),
        "1".into(),
        "{}".into(),
        "[]".into(),
        "{".into(),
        "{\"".into(),
        "{\"\\".into(),
        "{\"type\":[".into(),
        "{\"type\"}".into(),
        format!(r#"{{"type":"{TOPIC}"}}"#),
        format!(r#"{{"type":"{TOPIC}","meta":null}}"#),
        format!(r#"{{"meta":{meta}}}"#),
        format!(r#"{{"type":"{TOPIC}","meta":{{"author":"{author}","epoch":"{epoch}"}}}}"#),
        format!(r#"{{"type":"{TOPIC}","meta":"{meta}"}}"#),
        good.replace(TOPIC, "plant.other"),
        good.replace(&author.to_string(), &other.to_string()),
        good.replace(&author.to_string(), &author.to_string().to_uppercase()),
        good.replace(&epoch, &epoch_text(EPOCH + 1)),
        good.replace(r#""seq":1"#, r#""seq":2"#),
        good.replace(r#""seq":1"#, r#""seq":1.0"#),
        good.replace(r#""seq":1"#, r#""seq":"1""#),
        good.replace(r#""seq":1"#, r#""seq":1,"seq":2"#),
        good.replace(r#""seq":1"#, &format!(r#""seq":1,"author":"{other}""#)),
        good.replace(r#""seq":1"#, r#""seq":1,"\u0073eq":2"#),
        good.replace(r#""seq":1}"#, r#""seq":1},"meta":null"#),
        good.replace(r#""seq":1}"#, r#""seq":1},"m\u0065ta":{}"#),
        good.replace(r#""seq":1}"#, r#""seq":1},"type":"plant.other""#),
        good.replace(r#""detail":1"#, r#""detail":1,"type":"plant.other""#),
        good.replace(r#""detail":1"#, &format!(r#""detail":1,"meta":{meta}"#)),
        good.replace(r#""detail":1"#, r#""detail":"#),
        good.replace("plant", r"\u0070lant"),
        format!("{good}x"),
        format!("{good}{good}"),
        good[..good.len() - 1].into(),
    ];
    for lie in lies {
        let mut builder = builder(1, LIMIT);
        assert_eq!(builder.push(lie.as_bytes()), Push::Added);
        let batch = finish(builder);
        let reference = Item::Reference {
            size: lie.len() as u32,
            hash: batch::hash(lie.as_bytes()),
        };
        assert_eq!(open(TOPIC, &batch).unwrap().items, [reference], "{lie}");
        let item_at = batch.len() - 64 - 37;
        let raw = forged(&batch, |body| {
            body.truncate(item_at);
            body.push(0);
            body.extend((lie.len() as u32).to_be_bytes());
            body.extend(lie.as_bytes());
        });
        assert_eq!(open(TOPIC, &raw), Err(NOT_THIS_EVENT), "{lie}");
    }
}

/// A detail and a tail that do not keep to their places.
#[test]
fn a_template_cannot_be_broken_out_of() {
    let empty = batch_of(1, &[event(1, "1")]);
    let item_at = empty.len() - 64 - (7 + 1 + 2);
    let with = |detail: &str, tail: &str| {
        let forged = forged(&empty, |body| {
            body.truncate(item_at);
            body.push(1);
            body.extend((detail.len() as u32).to_be_bytes());
            body.extend(detail.as_bytes());
            body.extend((tail.len() as u16).to_be_bytes());
            body.extend(tail.as_bytes());
        });
        open(TOPIC, &forged)
    };
    assert!(with("1", "}}").is_ok());
    for (detail, tail) in [
        ("", "}}"),
        ("1", ""),
        ("1", "}"),
        ("1", "0}}"),
        ("1", "}}}"),
        ("1", r#","seq":2}}"#),
        ("1", r#"},"meta":{}}"#),
        ("1", r#"},"type":"x"}"#),
        (r#"1,"type":"x""#, "}}"),
        (r#"1,"meta":{"author":"x"}"#, "}}"),
        (r#"1}{"x":1"#, "}}"),
        (r#"""#, "}}"),
        ("[", "}}]"),
        ("1", r#","seq":1}}"#),
        ("1", r#","author":"x"}}"#),
        ("1", r#","\u0073eq":2}}"#),
    ] {
        assert_eq!(
            with(detail, tail),
            Err(NOT_THIS_EVENT),
            "{detail} and {tail}"
        );
    }
}

/// What goes into one list with others must not reach into them, nor say again what the batch says.
#[test]
fn parts_are_one_value_and_more_members_of_meta() {
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for detail in [
        "1",
        "null",
        r#""]}\",\"""#,
        "[1,[2]]",
        r#"{"a":{"b":[]}}"#,
        " 1",
        "tru",
    ] {
        assert!(parts(detail.as_bytes(), b"}}"), "{detail}");
    }
    assert!(parts(deep(64).as_bytes(), b"}}"));
    for tail in ["}}", r#","ts":1}}"#, r#","id":"}}","x":{"seq":[1]}}}"#] {
        assert!(parts(b"1", tail.as_bytes()), "{tail}");
    }
    for seq in [1, 10, MAX_SEQ] {
        let (detail, tail) = (&b"null"[..], &br#","ts":1}}"#[..]);
        let mut whole = Vec::new();
        let template = Template::new(TOPIC, author().to_string(), epoch_text(EPOCH));
        template.join(&mut whole, detail, seq, tail);
        let bytes = detail.len() + left_out(TOPIC, seq) + tail.len();
        assert_eq!(whole.len(), bytes, "{}", whole.escape_ascii());
    }
    assert_eq!(added(br#","ts":1,"id":"x"}}"#), br#""ts":1,"id":"x""#);
    assert_eq!(added(b"}}"), b"");
    for detail in [
        "",
        " ",
        "1,2",
        "1,",
        ",1",
        "1 2",
        "[1],[2]",
        "[1",
        "1]",
        "\"x",
        r#"1,"type":"x""#,
        &deep(65),
    ] {
        assert!(!parts(detail.as_bytes(), b"}}"), "{detail}");
    }
    for tail in [
        "",
        "}",
        "}}}",
        "} }",
        "}} ",
        " }}",
        ",}}",
        r#","ts"}}"#,
        r#","ts":}}"#,
        r#","ts":1,}}"#,
        r#""ts":1}}"#,
        r#","ts":1},"more":1}"#,
        r#","seq":1}}"#,
        r#","author":"x"}}"#,
        r#","ts":1,"epoch":""}}"#,
        r#","\u0073eq":1}}"#,
        &format!(r#","x":{}}}}}"#, deep(65)),
    ] {
        assert!(!parts(b"1", tail.as_bytes()), "{tail}");
    }
}

/// Whatever passes for parts of an event makes an event that says what its batch says.
#[test]
fn what_parts_make_fits() {
    let template = Template::new(TOPIC, author().to_string(), epoch_text(EPOCH));
    let pieces = [
        "1",
        "null",
        "\"",
        "\\",
        "[",
        "]",
        "{",
        "}",
        "}}",
        ",",
        ":",
        " ",
        r#""x":"#,
        r#""seq":"#,
        r#""meta":"#,
        r#","ts":1"#,
    ];
    let (mut random, mut made) = (Random(7), 0);
    for _ in 0..200_000 {
        let mut text = |most: usize| -> String {
            (0..random.below(most))
                .map(|_| *random.pick(&pieces))
                .collect()
        };
        let (detail, tail) = (text(6), format!("{}}}}}", text(6)));
        if parts(detail.as_bytes(), tail.as_bytes()) {
            let mut whole = Vec::new();
            template.join(&mut whole, detail.as_bytes(), 1, tail.as_bytes());
            assert!(template.fits(&whole, 1), "{detail} and {tail}");
            made += 1;
        }
    }
    assert!(made > 300, "{made}");
}

#[test]
fn no_flipped_bit_is_opened() {
    let head = batch::head(TOPIC, &secret(1), author(), EPOCH, 7, 9, [3; 32]).unwrap();
    let large = "x".repeat(5_000);
    let events = batch_of(
        1,
        &[
            event(1, "1"),
            event(2, &format!("\"{large}\"")),
            event(3, "[]"),
        ],
    );
    for batch in [head, events] {
        assert!(open(TOPIC, &batch).is_ok());
        for bit in 0..batch.len() * 8 {
            let mut flipped = batch.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(TOPIC, &flipped).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn no_cut_and_no_addition_is_opened() {
    let batch = batch_of(1, &[event(1, "1"), event(2, "2")]);
    for length in 0..batch.len() {
        assert!(open(TOPIC, &batch[..length]).is_err(), "{length} bytes");
    }
    assert!(open(TOPIC, &[&batch[..], b"x"].concat()).is_err());
}

#[test]
fn every_fault_has_its_name() {
    let good = batch_of(1, &[event(1, "1")]);
    let count_at = 123 + TOPIC.len();
    let replaced = |at: usize, bytes: &[u8]| {
        let forged = forged(&good, |body| {
            body[at..at + bytes.len()].copy_from_slice(bytes)
        });
        open(TOPIC, &forged)
    };
    let malformed = |what| Err(Fault::Malformed(what));
    assert_eq!(open(TOPIC, b""), Err(CUT_SHORT));
    assert_eq!(replaced(0, &[2]), malformed("its version is not 1"));
    assert_eq!(replaced(1, &[2]), malformed("its kind is unknown"));
    assert_eq!(
        replaced(1, &[1]),
        malformed("its numbers cannot be"),
        "a head with events"
    );
    assert_eq!(
        replaced(2, &[2; 32]),
        malformed("its signer or author is no key")
    );
    assert_eq!(
        replaced(34, &[2; 32]),
        malformed("its signer or author is no key")
    );
    assert_eq!(
        replaced(74, &[0; 8]),
        malformed("its numbers cannot be"),
        "seq 0"
    );
    assert_eq!(
        replaced(74, &(MAX_SEQ + 1).to_be_bytes()),
        malformed("its numbers cannot be")
    );
    assert_eq!(replaced(74, &[0xff; 8]), malformed("its numbers cannot be"));
    assert_eq!(
        replaced(count_at, &[0, 0]),
        malformed("its numbers cannot be")
    );
    assert_eq!(replaced(count_at, &[0, 2]), Err(CUT_SHORT));
    assert_eq!(replaced(count_at, &[0xff, 0xff]), Err(CUT_SHORT));
    assert_eq!(
        replaced(count_at + 2, &[3]),
        malformed("an event's form is unknown")
    );
    assert_eq!(replaced(count_at + 3, &[0xff; 4]), Err(CUT_SHORT));
    assert_eq!(
        open(TOPIC, &forged(&good, |body| body.push(0))),
        malformed("there are bytes after its events")
    );
    assert_eq!(open(&TOPIC.to_uppercase(), &good), Err(Fault::WrongTopic));
    assert_eq!(open("plant", &good), Err(Fault::WrongTopic));
    assert_eq!(
        replaced(2, secret(2).public().as_bytes()),
        Err(Fault::BadSignature)
    );
    let names = [CUT_SHORT, Fault::WrongTopic, Fault::BadSignature].map(|fault| {
        assert!(
            fault
                .to_string()
                .starts_with(&format!("{}: ", fault.name()))
        );
        fault.name()
    });
    assert_eq!(names, ["malformed", "wrong_topic", "bad_signature"]);
}

/// Bytes that are no batch, and those that nearly are: changed anywhere and signed again.
#[test]
fn whatever_the_bytes_are_the_answer_is_a_batch_or_a_fault() {
    let mut random = Random(7);
    let good = batch_of(
        1,
        &[
            event(1, "1"),
            event(2, r#""two""#),
            event_of(TOPIC, 3, "{}", r#","ts":1"#),
        ],
    );
    let (mut faults, mut opened) = (0, 0);
    for round in 0..20_000 {
        let bytes = match round % 4 {
            0 => (0..random.below(600))
                .map(|_| random.next() as u8)
                .collect(),
            1 => forged(&good, |body| {
                let at = random.below(body.len());
                body[at] = random.next() as u8;
            }),
            2 => forged(&good, |body| body.truncate(random.below(body.len()))),
            _ => forged(&good, |body| {
                let at = 123 + TOPIC.len() + 2 + random.below(body.len() - 123 - TOPIC.len() - 2);
                let removed = random.below(body.len() - at).min(5);
                let added: Vec<u8> = (0..random.below(9)).map(|_| random.next() as u8).collect();
                body.splice(at..at + removed, added);
            }),
        };
        match open(TOPIC, &bytes) {
            Err(_) => faults += 1,
            Ok(good) => {
                opened += 1;
                let size = size(&good);
                assert!(size <= 64 * bytes.len());
            }
        }
    }
    assert!(
        faults > 15_000 && opened > 10,
        "{faults} faults, {opened} opened"
    );
}

/// The batch that leaves most to the template, and one that announces more than it holds.
#[test]
fn what_a_batch_makes_us_hold_follows_its_size() {
    let longest = "a".repeat(255);
    let mut builder =
        Builder::new(&longest, author(), EPOCH, 7, MAX_SEQ - 65_535, 1 << 22).unwrap();
    while builder.push(event_of(&longest, builder.next_seq(), "1", "").as_bytes()) == Push::Added {}
    assert_eq!(builder.references(), 0);
    let batch = finish(builder);
    let opened = open(&longest, &batch).unwrap();
    let size = size(&opened);
    let items = opened.items.len() * size_of::<Item>();
    assert!(size + items + 64 * opened.items.len() < 64 * batch.len());
}
