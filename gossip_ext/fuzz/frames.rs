//! libFuzzer's entry. frame.rs is taken by path: the fuzzer builds neither iroh nor pyo3.

#![no_main]

mod check;
#[allow(dead_code)] // its encoder is not fuzzed
#[path = "../src/frame.rs"]
mod frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::frames(data));
