//! The buffer between source and ingest, in mode `Core`.
//!
//! NATS core has no flow control, so the buffer drops messages that do not fit, and counts each.
//! The client's own buffer also drops messages, but counts them only roughly. Moving messages here
//! at once keeps that buffer from filling.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::message::Received;

/// How much the buffer may contain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Room {
    /// A few seconds of the highest rate that a replica can take in.
    pub(super) const CORE: Self = Self { messages: 262_144, bytes: 64 * 1024 * 1024 };
}

/// The message did not fit.
#[derive(Debug)]
pub(super) struct Full;

#[derive(Debug, Default)]
struct Buffered {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// The end of the source.
#[derive(Debug)]
pub(super) struct Input {
    room: Room,
    held: Arc<Buffered>,
    messages: mpsc::UnboundedSender<Received>,
}

/// The end of ingest.
#[derive(Debug)]
pub(super) struct Output {
    held: Arc<Buffered>,
    messages: mpsc::UnboundedReceiver<Received>,
}

/// Creates a buffer with this room.
pub(super) fn buffer(room: Room) -> (Input, Output) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let held = Arc::new(Buffered::default());
    (Input { room, held: Arc::clone(&held), messages: sender }, Output { held, messages: receiver })
}

impl Input {
    /// Puts a message into the buffer if there is room for it.
    ///
    /// An empty buffer takes a message larger than its room, because such a message would never
    /// fit.
    pub(super) fn put(&self, received: Received) -> Result<(), Full> {
        let bytes = received.payload.len();
        let messages_held = self.held.messages.load(Ordering::Relaxed);
        let bytes_held = self.held.bytes.load(Ordering::Relaxed);
        let fits = messages_held < self.room.messages && bytes_held + bytes <= self.room.bytes;
        if !fits && messages_held > 0 {
            return Err(Full);
        }
        self.held.messages.fetch_add(1, Ordering::Relaxed);
        self.held.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.messages.send(received).map_err(|_| Full)
    }
}

impl Output {
    /// Waits for the next message; `None` after the source has ended.
    pub(super) async fn next(&mut self) -> Option<Received> {
        let received = self.messages.recv().await?;
        self.held.messages.fetch_sub(1, Ordering::Relaxed);
        self.held.bytes.fetch_sub(received.payload.len(), Ordering::Relaxed);
        Some(received)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use taskpipeline_contract::{EventKind, Timestamp};

    use super::*;

    fn message(bytes: usize) -> Received {
        Received {
            kind: EventKind::Deleted,
            subject: "tasks.deleted".into(),
            headers: None,
            payload: Bytes::from(vec![0; bytes]),
            at: Timestamp::UNIX_EPOCH,
            taken: tokio::time::Instant::now(),
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_by_number_or_by_bytes_is_refused() {
        let (input, mut output) = buffer(Room { messages: 3, bytes: 100 });
        assert!(input.put(message(60)).is_ok());
        assert!(input.put(message(50)).is_err(), "110 bytes");
        assert!(input.put(message(1)).is_ok());
        assert!(input.put(message(1)).is_ok());
        assert!(input.put(message(1)).is_err(), "four messages");
        assert!(output.next().await.is_some());
        assert!(input.put(message(90)).is_ok());
        drop(input);
        let mut left = 0;
        while output.next().await.is_some() {
            left += 1;
        }
        assert_eq!(left, 3);
    }

    #[test]
    fn a_message_larger_than_the_room_passes_an_empty_buffer() {
        let (input, _output) = buffer(Room { messages: 3, bytes: 100 });
        assert!(input.put(message(101)).is_ok());
        assert!(input.put(message(1)).is_err());
    }
}
