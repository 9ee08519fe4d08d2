//! The tasks of one connection: a reader that fills the inbox, a writer that empties the lanes, a guard against extra streams.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::{ReadError, RecvStream, SendStream};
use tokio::time::Instant;

use crate::close::{self, Close, Ended};
use crate::connection::Link;
use crate::frame::Decoder;
use crate::hub::Core;
use crate::inbox::{FRAME_COST, Item};
use crate::pace::Unread;

/// Pieces of the stream taken in one read, a packet's payload each: about 150 KiB, a tenth of the stream's window.
const PIECES: usize = 128;

/// After the peer finished its stream, how long its close code may take. Ours finish first, so that nothing is lost, and
/// close when that is acknowledged: one round trip later.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Runs a connection to its end and reports it.
pub async fn run(
    core: Arc<Core>,
    link: Arc<Link>,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
) {
    let writer = tokio::spawn(write(core.clone(), link.clone(), send));
    let ended = tokio::select! {
        ended = read(&core, &link, recv, decoder) => ended,
        close = guard(&core, &link) => refuse(&link, close),
    };
    link.set_gone();
    writer.abort();
    core.forget(&link);
    core.inbox.push(Item::Closed {
        conn: link.id,
        ended,
    });
}

/// Closes the connection for what the peer did.
fn refuse(link: &Link, close: Close) -> Ended {
    let ended = Ended::here(&close);
    link.abort(close);
    ended
}

/// Adds what the stream has to the decoder; `None` at its end. The pieces live on the stack for one poll and not in the
/// task, which every idle connection has.
pub async fn fill(
    recv: &mut RecvStream,
    decoder: &mut Decoder,
) -> Result<Option<usize>, ReadError> {
    std::future::poll_fn(|context| {
        let mut pieces = [const { Bytes::new() }; PIECES];
        let read = pin!(recv.read_many_chunks(&mut pieces)).poll(context);
        read.map_ok(|count| {
            count.map(|count| {
                let pieces = &pieces[..count];
                pieces.iter().for_each(|piece| decoder.feed(piece));
                pieces.iter().map(Bytes::len).sum()
            })
        })
    })
    .await
}

async fn read(core: &Core, link: &Arc<Link>, mut recv: RecvStream, mut decoder: Decoder) -> Ended {
    // When the unfinished frame began; the time that this side did not read is not the peer's.
    let mut began = None;
    loop {
        let mut frames = Vec::new();
        let fault = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break None,
                Err(fault) => break Some(fault),
            }
        };
        if !frames.is_empty() {
            began = None;
            take(core, link, frames);
        }
        if let Some(fault) = fault {
            core.counters.bad_frames.inc();
            return refuse(link, close::bad_frame(fault));
        }
        if decoder.held() > 0 {
            began.get_or_insert_with(Instant::now);
        }
        if link.inbox.full() {
            let paused = Instant::now();
            link.inbox.room().await;
            began = began.map(|began| began + paused.elapsed());
        }
        let read = match began {
            None => fill(&mut recv, &mut decoder).await,
            Some(began) => {
                let deadline = began + core.options.frame_timeout;
                match tokio::time::timeout_at(deadline, fill(&mut recv, &mut decoder)).await {
                    Ok(read) => read,
                    Err(_) => {
                        core.counters.frame_timeouts.inc();
                        let (held, announced) = (decoder.held(), decoder.announced());
                        let limit = core.options.frame_timeout;
                        return refuse(link, close::slow_frame(held, announced, limit));
                    }
                }
            }
        };
        match read {
            Ok(Some(count)) => core.counters.bytes_in.add(count as u64),
            Ok(None) if decoder.held() > 0 => {
                core.counters.bad_frames.inc();
                return refuse(link, close::cut_short(decoder.held(), decoder.announced()));
            }
            Ok(None) => return finished(link).await,
            Err(error) => return lost(link, &error).await,
        }
    }
}

fn take(core: &Core, link: &Arc<Link>, frames: Vec<Bytes>) {
    link.frames_in.add(frames.len() as u64);
    core.counters.frames_in.add(frames.len() as u64);
    if !link.count_only.load(Ordering::Relaxed) {
        core.inbox.push_frames(link, frames);
    }
}

/// The peer finished at a frame border: its close code follows if it is one of ours.
async fn finished(link: &Link) -> Ended {
    match tokio::time::timeout(CLOSE_GRACE, link.quic.closed()).await {
        Ok(error) => ended(link, &error),
        Err(_) => {
            link.abort(Close::new(close::NORMAL, ""));
            Ended::finished()
        }
    }
}

async fn lost(link: &Link, error: &ReadError) -> Ended {
    match error {
        ReadError::ConnectionLost(error) => ended(link, error),
        ReadError::Reset(code) => {
            let reason = format!("the peer reset the stream (code {code})");
            link.abort(Close::new(close::NORMAL, reason.clone()));
            Ended {
                code: None,
                reason,
                remote: true,
            }
        }
        other => {
            link.abort(Close::new(close::NORMAL, ""));
            Ended {
                code: None,
                reason: other.to_string(),
                remote: false,
            }
        }
    }
}

fn ended(link: &Link, error: &iroh::endpoint::ConnectionError) -> Ended {
    match (error, link.ending()) {
        (iroh::endpoint::ConnectionError::LocallyClosed, Some(close)) => Ended::here(close),
        _ => Ended::lost(error),
    }
}

/// Returns when the peer opens a stream that it must not. Datagrams are taken here too.
async fn guard(core: &Core, link: &Arc<Link>) -> Close {
    let second = tokio::select! {
        Ok(_) = link.quic.accept_bi() => "bidirectional",
        Ok(_) = link.quic.accept_uni() => "unidirectional",
        // The reader hears the end of the connection and reports it.
        () = datagrams(core, link) => return std::future::pending().await,
        else => return std::future::pending().await,
    };
    core.counters.second_streams.inc();
    close::second_stream(second)
}

async fn datagrams(core: &Core, link: &Arc<Link>) {
    while let Ok(payload) = link.quic.read_datagram().await {
        if link.inbox.full() || core.inbox.crowded() {
            core.counters.datagrams_dropped.inc();
            continue;
        }
        core.counters.datagrams_in.inc();
        link.inbox.add(payload.len() + FRAME_COST);
        core.inbox.push(Item::Datagram {
            conn: link.id,
            share: link.inbox.clone(),
            payload,
        });
    }
}

async fn write(core: Arc<Core>, link: Arc<Link>, mut send: SendStream) {
    let (began, mut unread) = (Instant::now(), Unread::default());
    loop {
        if !link.at_once.load(Ordering::Relaxed) {
            let queued = link.outbox().queued().0;
            if queued > 0
                && let Some(pause) = unread.wait(began.elapsed(), queued)
            {
                tokio::time::sleep(pause).await;
            }
        }
        let (batch, closing) = {
            let mut outbox = link.outbox();
            (outbox.take(), outbox.closing)
        };
        match batch {
            Some(mut batch) => {
                if send.write_all_chunks(&mut batch.chunks).await.is_err() {
                    // The reader hears the same and reports it.
                    link.set_gone();
                    return;
                }
                unread.wrote(began.elapsed(), link.frames_in.get());
                link.frames_out.add(batch.frames());
                core.counters.frames_out.add(batch.frames());
                core.counters.bytes_out.add(batch.bytes());
                if link.outbox().written(&batch) {
                    core.inbox.push(Item::Drained { conn: link.id });
                }
            }
            None if closing => {
                // Acknowledged by the peer's QUIC, or the connection is gone: either way there is nothing left to wait for.
                if send.finish().is_ok() {
                    let _ = send.stopped().await;
                }
                link.tell_flushed();
                return;
            }
            None => link.writable().await,
        }
    }
}
