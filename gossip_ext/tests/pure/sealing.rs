//! Signed batches, what is sent and comes back: batch.rs, opening.rs, event.rs.

use crate::batch::{
    self, Builder, Fault, Header, Item, Kind, MAX_SEQ, Push, epoch_of, epoch_text, open,
};
use crate::batches::*;

#[test]
fn a_batch_comes_back_as_it_was() {
    let sent: Vec<String> = (5..9)
        .map(|seq| event(seq, r#"{"celsius":21.5}"#))
        .collect();
    let opened = open(TOPIC, &batch_of(5, &sent)).unwrap();
    assert_eq!(messages(&opened), sent);
    let expected = Header {
        signer: author(),
        author: author(),
        epoch: EPOCH,
        first: 5,
        started: 7,
        previous: [9; 32],
        kind: Kind::Events,
    };
    assert_eq!(opened.header, expected);
}

#[test]
fn a_hub_signs_on_behalf_of_an_author() {
    let mut builder = builder(1, LIMIT);
    builder.push(event(1, "1").as_bytes());
    let opened = open(TOPIC, &builder.finish(&secret(2), [0; 32])).unwrap();
    assert_eq!(
        (opened.header.signer, opened.header.author),
        (secret(2).public(), author())
    );
}

#[test]
fn the_layout_is_that_of_version_1() {
    let message = event_of(TOPIC, 3, "null", r#","ts":1"#);
    let raw = message
        .replace(r#","detail""#, r#", "detail""#)
        .replace("\"seq\":3", "\"seq\":4");
    let batch = batch_of(3, &[message, raw.clone()]);
    let expected = [
        &[1, 0][..],
        author().as_bytes(),
        author().as_bytes(),
        &EPOCH.to_be_bytes(),
        &3_u64.to_be_bytes(),
        &7_u64.to_be_bytes(),
        &[9; 32],
        &[TOPIC.len() as u8],
        TOPIC.as_bytes(),
        &[0, 2],
        &[1, 0, 0, 0, 4],
        b"null",
        &[0, 9],
        br#","ts":1}}"#,
        &[0, 0, 0, 0, raw.len() as u8],
        raw.as_bytes(),
    ]
    .concat();
    assert_eq!(batch[..batch.len() - 64], expected);
    assert_eq!(
        open(TOPIC, &batch).unwrap().items,
        [
            Item::Parts {
                text: r#"null,"ts":1}}"#.into(),
                tail: 4
            },
            Item::Message(raw.into())
        ]
    );
}

#[test]
fn a_head_tells_the_newest_number() {
    for seq in [0, 1, MAX_SEQ] {
        let head = batch::head(TOPIC, &secret(2), author(), EPOCH, 7, seq, [0; 32]).unwrap();
        let opened = open(TOPIC, &head).unwrap();
        assert_eq!((opened.header.kind, opened.header.first), (Kind::Head, seq));
        assert!(opened.items.is_empty());
    }
    assert!(batch::head(TOPIC, &secret(2), author(), EPOCH, 7, MAX_SEQ + 1, [0; 32]).is_none());
    assert!(batch::head(&"a".repeat(256), &secret(2), author(), EPOCH, 7, 1, [0; 32]).is_none());
}

#[test]
fn epochs_have_one_spelling() {
    for epoch in [0, 1, EPOCH, u64::MAX] {
        assert_eq!(epoch_of(&epoch_text(epoch)), Some(epoch));
    }
    for text in [
        "",
        "0123456789abcde",
        "0123456789abcdef0",
        "0123456789ABCDEF",
        "+123456789abcdef",
    ] {
        assert_eq!(epoch_of(text), None, "{text}");
    }
}

/// Details and tails in which the words of the template occur, whole, cut and nested.
#[test]
fn whatever_the_detail_holds_the_message_comes_back_the_same() {
    let mut random = Random(1);
    for round in 0..2_000 {
        let first = *random.pick(&[1, 9, 99, 1 << 32, MAX_SEQ - 9]);
        let sent: Vec<String> = (first..first + 1 + random.below(9) as u64)
            .map(|seq| event_of(TOPIC, seq, &value(&mut random, seq, 3), &tail(&mut random)))
            .collect();
        let mut builder = builder(first, 1 << 20);
        for message in &sent {
            assert_eq!(builder.push(message.as_bytes()), Push::Added);
        }
        assert_eq!(builder.references(), 0, "round {round}");
        let whole: usize = sent.iter().map(String::len).sum();
        let batch = finish(builder);
        assert!(
            batch.len() < 123 + TOPIC.len() + 2 + 64 + whole - 100 * sent.len(),
            "templated"
        );
        let opened = open(TOPIC, &batch).unwrap();
        assert_eq!(messages(&opened), sent, "round {round}");
    }
}

/// The tail has 2 bytes for its length, the detail 4.
#[test]
fn a_long_detail_that_holds_its_own_words_still_leaves_out_what_it_can() {
    let inner = event(1, "1");
    let message = event(1, &format!(r#"[{inner},"{}"]"#, "x".repeat(70_000)));
    let mut builder = builder(1, 1 << 20);
    builder.push(message.as_bytes());
    let batch = finish(builder);
    let around = 123 + TOPIC.len() + 2 + 64;
    assert!(batch.len() - around < message.len() - 100);
    assert_eq!(messages(&open(TOPIC, &batch).unwrap()), [message]);
}

/// JSON as orjson writes it, full of traps for whoever searches it for a message's end.
fn value(random: &mut Random, seq: u64, depth: usize) -> String {
    let traps = [
        "null".to_string(),
        "-1.5e300".to_string(),
        r#""""#.to_string(),
        r#""\\\"}],{""#.to_string(),
        r#""\u0000é\u2028""#.to_string(),
        format!(
            r#"",\"meta\":{{\"author\":\"{}\",\"seq\":{seq}}}""#,
            author()
        ),
    ];
    if depth == 0 || random.below(3) == 0 {
        return random.pick(&traps).clone();
    }
    match random.below(3) {
        0 => format!(
            "[{},{}]",
            value(random, seq, depth - 1),
            value(random, seq, depth - 1)
        ),
        1 => event_of(TOPIC, seq, &value(random, seq, depth - 1), &tail(random)),
        _ => format!(r#"{{"type":"x","meta":{}}}"#, value(random, seq, depth - 1)),
    }
}

fn tail(random: &mut Random) -> String {
    let tails = [
        "",
        r#","ts":1790000000000"#,
        r#","id":"}},\"meta\":{","ts":1"#,
        r#","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01""#,
    ];
    random.pick(&tails).to_string()
}

#[test]
fn what_orjson_would_write_otherwise_goes_in_whole() {
    let (author, epoch) = (author(), epoch_text(EPOCH));
    let meta = format!(r#""meta":{{"author":"{author}","epoch":"{epoch}","seq":1}}"#);
    let topic = format!(r#""type":"{TOPIC}""#);
    for message in [
        format!(r#"{{ {topic} , "detail" : 1 , {meta} }}"#),
        format!("\n{{{meta},\t{topic},\"other\":[1,{{}},\"]\"]}}\r "),
        format!("{{{topic},{meta}}}"),
        format!(
            r#"{{{topic},"detail":1,"meta":{{"seq":1,"epoch":"{epoch}","x":{{}},"author":"{author}"}}}}"#
        ),
        format!(r#"{{{topic},"detail":1,{meta},"more":1}}"#),
        event_of(TOPIC, 1, "1", &format!(r#","id":"{}""#, "x".repeat(70_000))),
    ] {
        let mut builder = builder(1, 1 << 20);
        builder.push(message.as_bytes());
        let opened = open(TOPIC, &finish(builder)).unwrap();
        assert_eq!(whole(&opened), [Item::Message(message.into())]);
    }
}

#[test]
fn numbers_end_where_json_readers_lose_count() {
    let mut builder = builder(MAX_SEQ - 1, LIMIT);
    assert_eq!(
        builder.push(event(MAX_SEQ - 1, "1").as_bytes()),
        Push::Added
    );
    assert_eq!(builder.push(event(MAX_SEQ, "1").as_bytes()), Push::Added);
    assert_eq!(builder.push(event(MAX_SEQ + 1, "1").as_bytes()), Push::Full);
    let batch = finish(builder);
    assert_eq!(open(TOPIC, &batch).unwrap().items.len(), 2);
    let beyond = forged(&batch, |body| {
        body[74..82].copy_from_slice(&MAX_SEQ.to_be_bytes())
    });
    assert_eq!(
        open(TOPIC, &beyond),
        Err(Fault::Malformed("its numbers cannot be"))
    );
    for first in [0, MAX_SEQ + 1, u64::MAX] {
        assert!(
            Builder::new(TOPIC, author(), EPOCH, 7, first, LIMIT).is_none(),
            "{first}"
        );
    }
}

#[test]
fn an_event_of_exactly_the_room_goes_in_and_one_byte_more_by_reference() {
    let empty = 123 + TOPIC.len() + 2 + 64;
    let most = LIMIT - empty - (1 + 4 + 2) - 2 - "\"\"".len();
    for (detail, inline) in [(most, true), (most + 1, false), (900 * 1024, false)] {
        let message = event(1, &format!("\"{}\"", "x".repeat(detail)));
        let mut builder = builder(1, LIMIT);
        assert_eq!(builder.push(message.as_bytes()), Push::Added);
        assert_eq!(
            (builder.len(), builder.references()),
            (1, usize::from(!inline))
        );
        let batch = finish(builder);
        assert!(batch.len() <= LIMIT);
        assert_eq!(batch.len() == LIMIT, inline);
        let expected = match inline {
            true => Item::Message(message.into()),
            false => Item::Reference {
                size: message.len() as u32,
                hash: batch::hash(message.as_bytes()),
            },
        };
        assert_eq!(whole(&open(TOPIC, &batch).unwrap()), [expected]);
    }
}

#[test]
fn a_full_batch_is_left_as_it_was_and_the_next_takes_the_event() {
    for limit in [400, LIMIT, 65_000] {
        let (mut seq, mut batches, mut full) = (1, Vec::new(), 0);
        let mut open_one = builder(seq, limit);
        let mut random = Random(limit as u64);
        let mut sent = Vec::new();
        while seq <= 500 {
            let size = random.below(limit + limit / 10);
            let message = event(seq, &format!("\"{}\"", "x".repeat(size)));
            if open_one.push(message.as_bytes()) == Push::Full {
                assert_eq!(open_one.next_seq(), seq);
                batches.push(finish(std::mem::replace(
                    &mut open_one,
                    builder(seq, limit),
                )));
                assert_eq!(open_one.len(), 0);
                assert_eq!(open_one.push(message.as_bytes()), Push::Added);
                full += 1;
            }
            sent.push(message);
            seq += 1;
        }
        batches.push(finish(open_one));
        assert!(full > 10);
        let mut expected = 1;
        for batch in &batches {
            assert!(batch.len() <= limit);
            let opened = open(TOPIC, batch).unwrap();
            assert_eq!(opened.header.first, expected);
            for item in whole(&opened) {
                let message = &sent[expected as usize - 1];
                match item {
                    Item::Message(bytes) => assert_eq!(bytes, message),
                    Item::Reference { size, .. } => assert_eq!(size as usize, message.len()),
                    Item::Parts { .. } => unreachable!("they are whole"),
                }
                expected += 1;
            }
        }
        assert_eq!(expected, 501);
    }
}

#[test]
fn a_limit_that_takes_no_reference_makes_no_builder() {
    let longest = "a".repeat(255);
    for topic in ["t", TOPIC, &longest] {
        let least = 123 + topic.len() + 2 + 37 + 64;
        assert!(Builder::new(topic, author(), EPOCH, 7, 1, least - 1).is_none());
        let mut builder = Builder::new(topic, author(), EPOCH, 7, 1, least).unwrap();
        assert_eq!(builder.push(&[b'x'; 1_000]), Push::Added);
        assert_eq!(builder.push(&[b'x'; 1_000]), Push::Full);
        let batch = finish(builder);
        assert_eq!(batch.len(), least);
        assert_eq!(open(topic, &batch).unwrap().items.len(), 1);
    }
    assert!(Builder::new(&"a".repeat(256), author(), EPOCH, 7, 1, LIMIT).is_none());
}

#[test]
fn a_batch_counts_to_65535() {
    let mut builder = builder(1, 1 << 22);
    for seq in 1..=65_535 {
        assert_eq!(builder.push(event(seq, "0").as_bytes()), Push::Added);
    }
    assert_eq!(builder.push(event(65_536, "0").as_bytes()), Push::Full);
    assert_eq!(open(TOPIC, &finish(builder)).unwrap().items.len(), 65_535);
}

/// iroh-gossip would deliver two equal messages as one.
#[test]
fn equal_payloads_are_different_events_in_different_batches() {
    let mut batches = std::collections::HashSet::new();
    let mut events = std::collections::HashSet::new();
    for seq in 1..=1_000 {
        let batch = batch_of(seq, &[event(seq, r#"{"same":true}"#)]);
        events.extend(messages(&open(TOPIC, &batch).unwrap()));
        batches.insert(batch::hash(&batch));
    }
    assert_eq!((batches.len(), events.len()), (1_000, 1_000));
}
