//! Frames: 4 bytes, big-endian length N, then N bytes. Pure: no pyo3, iroh or tokio, so that a fuzzer takes this file by path.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a frame's length prefix.
pub const HEADER: usize = 4;

/// What a peer did against the frame rules. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A length of zero: an event is at least `{}`.
    Empty,
    /// A length above the limit, known from the header alone.
    TooLarge {
        /// The length that the header announced.
        size: u32,
        /// The largest length taken.
        limit: usize,
    },
}

/// Cuts a byte stream into payloads. It holds what has arrived of the unfinished frame and nothing else: memory follows
/// the bytes that came, never the length that a header announced.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// A decoder at a frame border. `limit` is the largest payload.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Adds received bytes.
    pub fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole payload; `None` when more bytes are needed. After a fault the decoder must not be used again.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(size) = self.announced() else {
            if self.buffer.is_empty() {
                // An idle connection must not keep the buffer of its last burst.
                self.buffer = BytesMut::new();
            }
            return Ok(None);
        };
        if size == 0 {
            return Err(Fault::Empty);
        }
        // u32 fits usize on every target that iroh builds for.
        let length = size as usize;
        if length > self.limit {
            return Err(Fault::TooLarge {
                size,
                limit: self.limit,
            });
        }
        if self.buffer.len() - HEADER < length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// The length in the header of the unfinished frame, once all four bytes are here.
    pub fn announced(&self) -> Option<u32> {
        self.buffer
            .first_chunk::<HEADER>()
            .map(|header| u32::from_be_bytes(*header))
    }

    /// Bytes of the unfinished frame that have arrived, header included. 0 at a frame border.
    pub fn held(&self) -> usize {
        self.buffer.len()
    }
}

/// Appends one frame.
pub fn encode(out: &mut BytesMut, payload: &[u8]) {
    // Callers have checked the payload against max_frame_bytes, which is far below u32::MAX.
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder) -> Result<Vec<Bytes>, Fault> {
        let mut out = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            out.push(frame);
        }
        Ok(out)
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let payloads: [&[u8]; 4] = [b"{}", b"x", &[7; 300], b"last"];
        let mut wire = BytesMut::new();
        for payload in payloads {
            encode(&mut wire, payload);
        }
        for step in 1..=wire.len() {
            let mut decoder = Decoder::new(300);
            let mut seen = Vec::new();
            for part in wire.chunks(step) {
                decoder.feed(part);
                seen.extend(all(&mut decoder).unwrap());
            }
            assert_eq!(seen, payloads, "step {step}");
            assert_eq!(decoder.held(), 0);
        }
    }

    #[test]
    fn zero_is_a_fault_and_the_frames_before_it_are_not_lost() {
        let mut decoder = Decoder::new(10);
        decoder.feed(&[0, 0, 0, 1, b'a', 0, 0, 0, 0]);
        assert_eq!(decoder.next_frame().unwrap().unwrap(), "a");
        assert_eq!(decoder.next_frame(), Err(Fault::Empty));
    }

    #[test]
    fn a_length_above_the_limit_is_refused_by_its_header() {
        let mut decoder = Decoder::new(10);
        decoder.feed(&[0xff; 3]);
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.feed(&[0xff]);
        assert_eq!(
            decoder.next_frame(),
            Err(Fault::TooLarge {
                size: u32::MAX,
                limit: 10
            })
        );
    }

    #[test]
    fn the_limit_itself_is_taken() {
        let mut decoder = Decoder::new(10);
        decoder.feed(&[0, 0, 0, 10]);
        decoder.feed(&[1; 10]);
        assert_eq!(decoder.next_frame().unwrap().unwrap().len(), 10);
    }

    #[test]
    fn an_unfinished_frame_is_held_and_costs_what_has_come() {
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(&[0, 15, 0, 0, 1, 2]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!((decoder.held(), decoder.announced()), (6, Some(983_040)));
        assert!(decoder.buffer.capacity() < 1024);
    }
}
