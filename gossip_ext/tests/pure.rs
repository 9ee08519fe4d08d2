//! The unit tests of the files that need neither Python nor a network. They are compiled here, by path, because a test
//! binary of the whole crate would have to link libpython, which an extension module must not.

#[allow(dead_code)]
#[path = "../src/frame.rs"]
mod frame;
#[allow(dead_code)]
#[path = "../src/outbox.rs"]
mod outbox;
