//! The files of the library that know neither pyo3 nor tokio, taken by path since it keeps them private: their own unit
//! tests run here, without a second build of the whole library for tests, and so do those beside this file. One program
//! and not one for each: linking takes as long as compiling.

#![allow(dead_code, unused_imports)] // what of these files only the library uses

#[path = "../../src/batch.rs"]
mod batch;
#[path = "../../src/chain.rs"]
mod chain;
#[path = "../../fuzz/check.rs"]
mod check;
#[path = "../../src/event.rs"]
mod event;
#[path = "../../src/frame.rs"]
mod frame;
#[path = "../../src/opening.rs"]
mod opening;
#[path = "../../src/outbox.rs"]
mod outbox;
#[path = "../../src/pace.rs"]
mod pace;
#[path = "../../src/run.rs"]
mod run;
#[path = "../../src/token.rs"]
mod token;

mod batches;
mod chains;
mod faults;
mod frames;
mod paces;
mod runs;
mod sealing;
mod tokens;
