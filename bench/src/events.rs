//! The events of the benchmarks as bytes, and which event comes at which place of a load. Pure: the same
//! place gives the same event, so that a load can be checked afterwards.

use bytes::{BufMut, Bytes, BytesMut};

/// 150 bytes; it makes an event about 300 bytes long.
const DESCRIPTION: &str = "A description of the usual length: what is to be done, by whom and until when, and \
                           where more about it can be found, should anyone ask for that later";

/// What an event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `created`
    Created,
    /// `updated`, with a new title
    Updated,
    /// `deleted`
    Deleted,
}

impl Kind {
    /// The last token of its subject.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

/// Which events a load is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    /// Over how many ids the creates go round.
    pub(crate) ids: u64,
    /// Every tenth event is a delete, of a task created so many events before; 0: no deletes. It must be more
    /// than what can wait at a time, or a create and its delete become one write.
    pub(crate) delete_lag: u64,
}

impl Mix {
    /// The event at this place of the load: its kind and the number of its task.
    pub(crate) fn at(self, place: u64) -> (Kind, u64) {
        if self.delete_lag == 0 {
            return (Kind::Created, place % self.ids);
        }
        let (ten, rest) = (place / 10, place % 10);
        let creates_before = ten * 9 + rest.min(9);
        if rest < 9 {
            return (Kind::Created, creates_before % self.ids);
        }
        // Each delete takes the ninth create of a ten long gone: each task is deleted at most once a round.
        match (ten * 9 + 8).checked_sub(self.delete_lag) {
            Some(create) => (Kind::Deleted, create % self.ids),
            // Too early to delete anything: one create more, of an id of its own.
            None => (Kind::Created, self.ids + ten),
        }
    }
}

/// The id of a task.
pub(crate) fn task_id(number: u64) -> String {
    format!("task-{number:08}")
}

/// An event as it is published: about 300 bytes, a delete about 80.
pub(crate) fn encode(buffer: &mut BytesMut, kind: Kind, place: u64, task: u64) -> Bytes {
    buffer.reserve(400);
    let text = match kind {
        Kind::Created => format!(
            r#"{{"correlationId":"bench-{place:010}","data":{{"id":"task-{task:08}","title":"Task number {place}","description":"{DESCRIPTION}","status":"pending"}}}}"#
        ),
        Kind::Updated => format!(
            r#"{{"correlationId":"bench-{place:010}","data":{{"id":"task-{task:08}","title":"Change number {place}","status":"in_progress"}}}}"#
        ),
        Kind::Deleted => {
            format!(r#"{{"correlationId":"bench-{place:010}","data":{{"id":"task-{task:08}"}}}}"#)
        }
    };
    buffer.put_slice(text.as_bytes());
    buffer.split().freeze()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn creates_go_round_over_the_ids() {
        let mix = Mix { ids: 3, delete_lag: 0 };
        let tasks: Vec<_> = (0..5).map(|place| mix.at(place)).collect();
        assert_eq!(tasks, [0, 1, 2, 0, 1].map(|task| (Kind::Created, task)));
    }

    #[test]
    fn a_tenth_are_deletes_of_what_was_created_and_is_not_deleted_yet() {
        let mix = Mix { ids: 100_000, delete_lag: 180 };
        let (mut there, mut deletes) = (HashSet::new(), 0_u32);
        for place in 0..10_000 {
            let (kind, task) = mix.at(place);
            match kind {
                Kind::Created => assert!(there.insert(task), "{place}: {task} is there already"),
                _ => {
                    assert!(there.remove(&task), "{place}: {task} is not there");
                    deletes += 1;
                }
            }
        }
        assert_eq!(deletes, 980);
    }

    #[test]
    fn every_event_is_json_of_its_length() {
        let mut buffer = BytesMut::new();
        for (kind, least, most) in
            [(Kind::Created, 280, 330), (Kind::Updated, 100, 150), (Kind::Deleted, 60, 100)]
        {
            let bytes = encode(&mut buffer, kind, 7, 12);
            assert!((least..=most).contains(&bytes.len()), "{kind:?}: {}", bytes.len());
            let event: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(event["data"]["id"], task_id(12));
        }
    }
}
