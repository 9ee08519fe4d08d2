//! The corpora of the decoder of frames (frame.rs), which `make fuzz` adds to, are replayed.

use crate::check;
use std::fs;
use std::path::Path;

/// The inputs that the reader in Python is replayed on, too: they have one layout.
const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/frames");

#[test]
fn no_input_of_the_corpus_upsets_the_decoder() {
    let mut replayed = 0;
    for entry in fs::read_dir(Path::new(CORPUS)).expect("the corpus is committed") {
        check::frames(&fs::read(entry.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 4, "only {replayed} inputs");
}

#[test]
fn short_streams_of_every_kind_are_read_by_the_rules() {
    // A limit of 2, two cuts, and eight bytes of lengths around it: every header from empty to too large.
    for place in 0..8 {
        for length in 0..=4 {
            for (first, second) in [(0, 8), (1, 4), (3, 5), (4, 6)] {
                let mut input = vec![1, 2, first, second, 0, 0, 0, 1, b'a', 0, 0, 0];
                input[4 + place] = length;
                check::frames(&input);
            }
        }
    }
}
