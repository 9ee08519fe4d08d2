//! What must hold of the decoder for any input. Shared by the fuzzer (frames.rs) and by tests/pure, which replays the
//! corpora under `cargo test`; whoever takes this file has `frame` beside it.
//!
//! An input: a byte for the limit, a count of cuts, a byte for each cut, then the stream. tests/fuzz has the same layout for
//! the reader in Python, so one corpus serves both.

use crate::frame::{Decoder, Fault, HEADER};

/// What a stream holds: its frames, then the fault that ended it or the bytes of the frame that is not whole.
#[derive(Debug, PartialEq)]
struct Read {
    frames: Vec<Vec<u8>>,
    fault: Option<Fault>,
    held: usize,
}

/// Panics unless any split of the stream into chunks gives what the rules say, within the limits.
pub fn frames(data: &[u8]) {
    let (limit, cuts, stream) = layout(data);
    let expected = by_the_rules(stream, limit);
    assert_eq!(in_chunks(stream, &[], limit), expected);
    assert_eq!(in_chunks(stream, &cuts, limit), expected);
    let everywhere: Vec<usize> = (0..stream.len()).collect();
    assert_eq!(in_chunks(stream, &everywhere, limit), expected);
}

/// The input's parts. A byte that is not there is zero.
fn layout(data: &[u8]) -> (usize, Vec<usize>, &[u8]) {
    let byte = |at: usize| usize::from(data.get(at).copied().unwrap_or(0));
    let (limit, count) = (1 + byte(0) % 64, byte(1) % 16);
    let stream = data.get(2 + count..).unwrap_or(&[]);
    let mut cuts: Vec<usize> = (2..2 + count)
        .map(|at| byte(at).min(stream.len()))
        .collect();
    cuts.sort_unstable();
    (limit, cuts, stream)
}

fn in_chunks(stream: &[u8], cuts: &[usize], limit: usize) -> Read {
    let mut decoder = Decoder::new(limit);
    let mut frames = Vec::new();
    let (mut start, mut fed) = (0, 0);
    for end in cuts.iter().copied().chain([stream.len()]) {
        decoder.feed(&stream[start..end]);
        fed += end - start;
        start = end;
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!((1..=limit).contains(&frame.len()));
                    frames.push(frame.to_vec());
                }
                Ok(None) => break,
                Err(fault) => {
                    return Read {
                        frames,
                        fault: Some(fault),
                        held: 0,
                    };
                }
            }
        }
        let taken: usize = frames.iter().map(|frame| HEADER + frame.len()).sum();
        assert_eq!(
            decoder.held(),
            fed - taken,
            "it holds what has come and nothing else"
        );
        assert!(decoder.held() < HEADER + limit);
        assert_eq!(decoder.announced().is_some(), decoder.held() >= HEADER);
    }
    Read {
        frames,
        fault: None,
        held: decoder.held(),
    }
}

/// The rules once more, all at once.
fn by_the_rules(mut stream: &[u8], limit: usize) -> Read {
    let mut frames = Vec::new();
    loop {
        let whole = |fault| Read {
            frames: Vec::new(),
            fault,
            held: 0,
        };
        let Some((header, rest)) = stream.split_first_chunk::<HEADER>() else {
            return Read {
                frames,
                held: stream.len(),
                ..whole(None)
            };
        };
        let size = u32::from_be_bytes(*header);
        let length = size as usize;
        if size == 0 {
            return Read {
                frames,
                ..whole(Some(Fault::Empty))
            };
        }
        if length > limit {
            return Read {
                frames,
                ..whole(Some(Fault::TooLarge { size, limit }))
            };
        }
        if rest.len() < length {
            return Read {
                frames,
                held: stream.len(),
                ..whole(None)
            };
        }
        frames.push(rest[..length].to_vec());
        stream = &rest[length..];
    }
}
