//! What waits to be written to one connection: two bounded lanes. Pure: no pyo3, iroh or tokio.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::frame;

/// The lane that goes first: calls, answers, registrations.
pub const CALLS: usize = 0;
/// The lane that goes when CALLS is empty: topic events.
pub const TOPICS: usize = 1;

/// What TOPICS hands to QUIC in one go. A call that arrives meanwhile waits for at most this much (or one frame, if that is larger).
pub const TOPICS_TURN: usize = 64 * 1024;

/// A tail this long becomes a chunk of its own, so that a turn of TOPICS can end at a frame border near TOPICS_TURN.
const TAIL_CUT: usize = 32 * 1024;

/// Shared payloads below this are copied into the tail instead of queued by reference: a copy of 1 KiB costs less than a
/// reference count, a queue entry and a segment in QUIC's send buffer, and a queue of tiny entries would outgrow its bound.
const COPY_BELOW: usize = 1024;

/// How a push ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It is queued.
    Queued,
    /// The lane is full. `drained` will report when it has room.
    Full,
}

/// Bytes on their way to QUIC.
#[derive(Debug, Default)]
pub struct Batch {
    /// Whole frames, in order.
    pub chunks: Vec<Bytes>,
    /// The lane they came from.
    pub lane: usize,
    bytes: usize,
    frames: usize,
}

impl Batch {
    /// Frames in it.
    pub fn frames(&self) -> u64 {
        self.frames as u64
    }

    /// Bytes in it, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// Frames encoded once, to be queued on many connections.
#[derive(Debug)]
pub struct Shared {
    chunks: Vec<(Bytes, usize)>,
    bytes: usize,
}

impl Shared {
    /// Encodes the payloads, cut at frame borders.
    pub fn encode<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        let (mut open, mut frames) = (BytesMut::new(), 0);
        for payload in payloads {
            frame::encode(&mut open, payload);
            frames += 1;
            if open.len() >= TAIL_CUT {
                bytes += open.len();
                chunks.push((open.split().freeze(), frames));
                frames = 0;
            }
        }
        if !open.is_empty() {
            bytes += open.len();
            chunks.push((open.freeze(), frames));
        }
        Self { chunks, bytes }
    }
}

#[derive(Debug)]
struct Lane {
    chunks: VecDeque<(Bytes, usize)>,
    tail: BytesMut,
    tail_frames: usize,
    /// Queued and handed-out-but-unwritten bytes: what the bound is about.
    bytes: usize,
    frames: usize,
    limit: usize,
    refused: bool,
}

impl Lane {
    fn new(limit: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            tail_frames: 0,
            bytes: 0,
            frames: 0,
            limit,
            refused: false,
        }
    }

    /// A lane with nothing queued takes anything, or a payload above the bound could never be sent.
    fn admits(&mut self, bytes: usize) -> bool {
        let fits = self.bytes == 0 || self.bytes + bytes <= self.limit;
        self.refused |= !fits;
        fits
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let frames = std::mem::take(&mut self.tail_frames);
            self.chunks
                .push_back((std::mem::take(&mut self.tail).freeze(), frames));
        }
    }

    fn count(&mut self, bytes: usize, frames: usize) {
        self.bytes += bytes;
        self.frames += frames;
        if self.tail.len() >= TAIL_CUT {
            self.seal();
        }
    }

    fn take(&mut self, at_least: usize) -> (Vec<Bytes>, usize, usize) {
        self.seal();
        let (mut chunks, mut bytes, mut frames) = (Vec::new(), 0, 0);
        while bytes < at_least
            && let Some((chunk, count)) = self.chunks.pop_front()
        {
            bytes += chunk.len();
            frames += count;
            chunks.push(chunk);
        }
        if self.chunks.is_empty() {
            // An idle connection must not keep the ring of its last burst.
            self.chunks = VecDeque::new();
        }
        (chunks, bytes, frames)
    }
}

/// Both lanes of one connection.
#[derive(Debug)]
pub struct Outbox {
    lanes: [Lane; 2],
    /// Set by a close: what is in CALLS is still written, nothing else is taken.
    pub closing: bool,
}

impl Outbox {
    /// Empty lanes with their bounds in bytes.
    pub fn new(calls_limit: usize, topics_limit: usize) -> Self {
        Self {
            lanes: [Lane::new(calls_limit), Lane::new(topics_limit)],
            closing: false,
        }
    }

    /// Queues payloads, all or none.
    pub fn push<'a>(
        &mut self,
        lane: usize,
        payloads: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Push {
        let (mut bytes, mut frames) = (0, 0);
        for payload in payloads.clone() {
            bytes += frame::HEADER + payload.len();
            frames += 1;
        }
        let lane = &mut self.lanes[lane];
        if !lane.admits(bytes) {
            return Push::Full;
        }
        lane.tail.reserve(bytes);
        for payload in payloads {
            frame::encode(&mut lane.tail, payload);
        }
        lane.tail_frames += frames;
        lane.count(bytes, frames);
        Push::Queued
    }

    /// Queues shared frames, all or none.
    pub fn push_shared(&mut self, lane: usize, shared: &Shared) -> Push {
        let lane = &mut self.lanes[lane];
        if !lane.admits(shared.bytes) {
            return Push::Full;
        }
        for (chunk, frames) in &shared.chunks {
            if chunk.len() < COPY_BELOW {
                lane.tail.extend_from_slice(chunk);
                lane.tail_frames += frames;
            } else {
                lane.seal();
                lane.chunks.push_back((chunk.clone(), *frames));
            }
            lane.count(chunk.len(), *frames);
        }
        Push::Queued
    }

    /// The next bytes to write: all of CALLS, else a turn of TOPICS. They stay counted until `written`.
    pub fn take(&mut self) -> Option<Batch> {
        for (lane, turn) in [(CALLS, usize::MAX), (TOPICS, TOPICS_TURN)] {
            if lane == TOPICS && self.closing {
                break;
            }
            let (chunks, bytes, frames) = self.lanes[lane].take(turn);
            if !chunks.is_empty() {
                return Some(Batch {
                    chunks,
                    lane,
                    bytes,
                    frames,
                });
            }
        }
        None
    }

    /// QUIC has the batch. True when its lane had refused a push and is now below half its bound.
    pub fn written(&mut self, batch: &Batch) -> bool {
        let lane = &mut self.lanes[batch.lane];
        lane.bytes -= batch.bytes;
        lane.frames -= batch.frames;
        let room = lane.refused && lane.bytes <= lane.limit / 2;
        if room {
            lane.refused = false;
        }
        room
    }

    /// Queued bytes and frames of both lanes.
    pub fn queued(&self) -> (usize, usize) {
        let [calls, topics] = &self.lanes;
        (calls.bytes + topics.bytes, calls.frames + topics.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(outbox: &mut Outbox, lane: usize, payloads: &[&[u8]]) -> Push {
        outbox.push(lane, payloads.iter().copied())
    }

    fn flat(batch: &Batch) -> Vec<u8> {
        batch.chunks.concat()
    }

    #[test]
    fn calls_go_before_topics() {
        let mut outbox = Outbox::new(100, 100);
        push(&mut outbox, TOPICS, &[b"t"]);
        push(&mut outbox, CALLS, &[b"c"]);
        assert_eq!(flat(&outbox.take().unwrap()), b"\0\0\0\x01c");
        assert_eq!(flat(&outbox.take().unwrap()), b"\0\0\0\x01t");
        assert!(outbox.take().is_none());
    }

    #[test]
    fn a_batch_counts_until_it_is_written_and_room_is_told_once() {
        let mut outbox = Outbox::new(10, 10);
        assert_eq!(push(&mut outbox, CALLS, &[b"123456"]), Push::Queued);
        assert_eq!(push(&mut outbox, CALLS, &[b"1"]), Push::Full);
        let batch = outbox.take().unwrap();
        assert_eq!(push(&mut outbox, CALLS, &[b"1"]), Push::Full);
        assert!(outbox.written(&batch));
        assert_eq!(outbox.queued(), (0, 0));
        assert_eq!(push(&mut outbox, CALLS, &[b"1"]), Push::Queued);
        let batch = outbox.take().unwrap();
        assert!(!outbox.written(&batch));
    }

    #[test]
    fn an_empty_lane_takes_what_is_above_its_bound() {
        let mut outbox = Outbox::new(10, 10);
        assert_eq!(push(&mut outbox, TOPICS, &[&[0; 50]]), Push::Queued);
        assert_eq!(push(&mut outbox, TOPICS, &[b"1"]), Push::Full);
    }

    #[test]
    fn a_turn_of_topics_ends_at_a_frame_border_near_its_size() {
        let mut outbox = Outbox::new(0, 1 << 20);
        for _ in 0..100 {
            push(&mut outbox, TOPICS, &[&[1; 5000]]);
        }
        let mut total = 0;
        while let Some(batch) = outbox.take() {
            assert!(batch.bytes < TOPICS_TURN + TAIL_CUT + 5004);
            assert_eq!(batch.bytes % 5004, 0);
            total += batch.frames;
            outbox.written(&batch);
        }
        assert_eq!(total, 100);
    }

    #[test]
    fn shared_frames_keep_their_place() {
        let mut outbox = Outbox::new(0, 1 << 20);
        let large = Shared::encode([&[9u8; 2000][..]].into_iter());
        let small = Shared::encode([&b"s"[..], b"u"].into_iter());
        push(&mut outbox, TOPICS, &[b"a"]);
        outbox.push_shared(TOPICS, &small);
        outbox.push_shared(TOPICS, &large);
        outbox.push_shared(TOPICS, &small);
        let batch = outbox.take().unwrap();
        let mut decoder = frame::Decoder::new(5000);
        decoder.feed(&flat(&batch));
        let mut sizes = Vec::new();
        while let Some(payload) = decoder.next_frame().unwrap() {
            sizes.push(payload.len());
        }
        assert_eq!(sizes, [1, 1, 1, 2000, 1, 1]);
        assert_eq!(batch.frames, 6);
    }

    #[test]
    fn closing_leaves_topics_behind() {
        let mut outbox = Outbox::new(100, 100);
        push(&mut outbox, TOPICS, &[b"t"]);
        push(&mut outbox, CALLS, &[b"c"]);
        outbox.closing = true;
        assert_eq!(outbox.take().unwrap().lane, CALLS);
        assert!(outbox.take().is_none());
    }
}
