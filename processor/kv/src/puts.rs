//! The body of a bulk put: JSON in pieces, built task by task.
//!
//! A whole body can have 5 MB. Sending frees piece after piece, and the allocator reuses them for the next body.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::Serialize;
use taskpipeline_contract::{Task, TaskId, TaskKey, TaskMetadata};

use super::Failure;

/// The length of a piece, in bytes. A piece may be longer by one task.
const PIECE: usize = 64 * 1024;

/// Builds the body of one bulk put.
#[derive(Debug, Default)]
pub struct Puts {
    ids: Vec<TaskId>,
    pieces: VecDeque<Bytes>,
    filling: Vec<u8>,
    /// The JSON of one task; a buffer, kept for its capacity.
    value: Vec<u8>,
    error: Option<serde_json::Error>,
}

impl Puts {
    /// Adds a task.
    pub fn push(&mut self, task: &Task) {
        if let Err(error) = self.write(task) {
            self.error = Some(error);
        }
        self.ids.push(task.id.clone());
        if self.filling.len() >= PIECE {
            self.pieces.push_back(std::mem::take(&mut self.filling).into());
        }
    }

    fn write(&mut self, task: &Task) -> Result<(), serde_json::Error> {
        /// A key and its value in the body of a bulk put.
        #[derive(Serialize)]
        struct Pair<'a> {
            key: TaskKey,
            #[serde(serialize_with = "as_text")]
            value: &'a [u8],
            metadata: TaskMetadata,
        }
        self.value.clear();
        serde_json::to_writer(&mut self.value, task)?;
        let key = TaskKey::new(task.id.clone());
        let pair = Pair { key, value: &self.value, metadata: TaskMetadata::from(task) };
        if self.filling.capacity() == 0 {
            self.filling.reserve(PIECE + PIECE / 8);
        }
        self.filling.push(if self.ids.is_empty() { b'[' } else { b',' });
        serde_json::to_writer(&mut self.filling, &pair)
    }

    /// The ids of the tasks, in the order of their addition.
    pub fn ids(&self) -> &[TaskId] {
        &self.ids
    }

    /// Whether no task was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Completes the body. Returns the ids of its tasks, and the body.
    ///
    /// # Errors
    /// If a task cannot be written as JSON; every valid task can.
    pub fn finish(mut self) -> (Vec<TaskId>, Result<PutBody, Failure>) {
        self.filling.push(b']');
        self.pieces.push_back(self.filling.into());
        let left = self.pieces.iter().map(Bytes::len).sum::<usize>();
        let body = PutBody { pieces: self.pieces, keys: self.ids.len(), left };
        let body = match self.error {
            None => Ok(body),
            Some(error) => Err(Failure::Refused(format!("a task cannot be written as JSON: {error}"))),
        };
        (self.ids, body)
    }
}

fn as_text<S: serde::Serializer>(json: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(std::str::from_utf8(json).map_err(serde::ser::Error::custom)?)
}

/// The body of a bulk put. Its length is known, so that it is not sent in chunks.
#[derive(Debug)]
pub struct PutBody {
    pieces: VecDeque<Bytes>,
    keys: usize,
    left: usize,
}

impl PutBody {
    /// The number of keys.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// The whole body, for test doubles of KV.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces.iter().flatten().copied().collect()
    }

    /// The whole body as JSON, or null if it is not JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.to_vec()).unwrap_or_default()
    }
}

impl http_body::Body for PutBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.left -= piece.as_ref().map_or(0, Bytes::len);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::try_from(self.left).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use taskpipeline_contract::{Status, Timestamp};

    use super::*;

    fn task(number: usize) -> Task {
        Task {
            id: TaskId::new(format!("a/\"{number}")).unwrap(),
            title: "Say \"hello\"".parse().unwrap(),
            description: "line\nline \\ \u{1f600}".repeat(20).parse().unwrap(),
            status: Status::Pending,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_body_in_pieces_has_the_pairs_in_order_and_its_exact_length() {
        let tasks: Vec<Task> = (0..500).map(task).collect();
        let mut puts = Puts::default();
        tasks.iter().for_each(|task| puts.push(task));
        let (ids, body) = puts.finish();
        let mut body = body.unwrap();
        assert_eq!((ids.len(), body.keys()), (500, 500));
        assert!(body.pieces.len() > 2, "{} pieces", body.pieces.len());
        let pairs = body.to_json();
        for (task, pair) in tasks.iter().zip(pairs.as_array().unwrap()) {
            assert_eq!(pair["key"], TaskKey::new(task.id.clone()).to_string());
            assert_eq!(serde_json::from_str::<Task>(pair["value"].as_str().unwrap()).unwrap(), *task);
            let metadata: TaskMetadata = serde_json::from_value(pair["metadata"].clone()).unwrap();
            assert_eq!(metadata, TaskMetadata::from(task));
        }

        let announced = http_body::Body::size_hint(&body).exact().unwrap();
        let mut sent = 0;
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) =
            http_body::Body::poll_frame(Pin::new(&mut body), &mut context)
        {
            sent += frame.into_data().unwrap().len();
        }
        assert_eq!(u64::try_from(sent).unwrap(), announced);
        assert!(http_body::Body::is_end_stream(&body));
    }
}
