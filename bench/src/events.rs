//! The events of the benchmarks as bytes, and the event at each place of a load.
//!
//! Pure: the same place gives the same event, so that a load can be checked afterwards.

use bytes::{BufMut, Bytes, BytesMut};

/// About 175 bytes, which makes an event about 300 bytes long.
const DESCRIPTION: &str = "A description of the usual length: what is to be done, by whom and until when, and \
                           where more about it can be found, should anyone ask for that later or want to know the reason";

/// The kind of an event.
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
    /// The last token of the subject.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }
}

/// The events of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    /// The number of ids over which the creates rotate.
    pub(crate) ids: u64,
    /// The distance, in events, between a task's create and its delete, for every tenth event; 0: no deletes.
    ///
    /// It must exceed the number of events that can wait at a time. Otherwise a create and its delete become one write.
    pub(crate) delete_lag: u64,
    /// The number of existing tasks that every third event updates; 0: no updates. The creates are of tasks beyond these.
    pub(crate) existing: u64,
    /// The number of tasks beyond those that the creates leave out.
    pub(crate) skip: u64,
}

/// A prime by which updates step through the tasks, so that neighbors are not updated one after the other.
const STRIDE: u64 = 7_919;

impl Mix {
    /// A load of creates only, each of a distinct task until the ids are used up.
    pub(crate) fn creates(ids: u64) -> Self {
        Self { ids, delete_lag: 0, existing: 0, skip: 0 }
    }

    /// The last place before `end` at which this task is created, for a load of creates only.
    pub(crate) fn last_create(self, task: u64, end: u64) -> Option<u64> {
        let rounds = end.checked_sub(task + 1)? / self.ids;
        Some(task + rounds * self.ids)
    }

    /// The event at this place of the load: its kind and the number of its task.
    pub(crate) fn at(self, place: u64) -> (Kind, u64) {
        if self.existing > 0 {
            let third = place / 3;
            return if place % 3 == 2 {
                (Kind::Updated, third * STRIDE % self.existing)
            } else {
                (Kind::Created, self.existing + self.skip + (third * 2 + place % 3) % self.ids)
            };
        }
        if self.delete_lag == 0 {
            return (Kind::Created, place % self.ids);
        }
        let (ten, rest) = (place / 10, place % 10);
        let creates_before = ten * 9 + rest.min(9);
        if rest < 9 {
            return (Kind::Created, creates_before % self.ids);
        }
        // Each delete takes the ninth create of a group of ten long before: each task is deleted at most once in a rotation.
        match (ten * 9 + 8).checked_sub(self.delete_lag) {
            Some(create) => (Kind::Deleted, create % self.ids),
            // No task is old enough to delete, so this is another create, with its own id.
            None => (Kind::Created, self.ids + ten),
        }
    }
}

/// Returns 50 % creates, 40 % updates and 10 % deletes, spread over this many ids.
///
/// The order looks random, and is the same for every system.
pub(crate) fn mixed(place: u64, ids: u64) -> (Kind, u64) {
    let dice = scattered(place);
    let kind = match dice % 10 {
        0..5 => Kind::Created,
        5..9 => Kind::Updated,
        _ => Kind::Deleted,
    };
    (kind, (dice >> 32) % ids)
}

/// Scatters a number as if by chance (splitmix64).
pub(crate) fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The id of a task.
pub(crate) fn task_id(number: u64) -> String {
    format!("task-{number:08}")
}

/// Encodes an event as published: about 300 bytes, a delete about 80.
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
        let mix = Mix::creates(3);
        let tasks: Vec<_> = (0..5).map(|place| mix.at(place)).collect();
        assert_eq!(tasks, [0, 1, 2, 0, 1].map(|task| (Kind::Created, task)));
    }

    #[test]
    fn a_tenth_are_deletes_of_what_was_created_and_is_not_deleted_yet() {
        let mix = Mix { delete_lag: 180, ..Mix::creates(100_000) };
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
    fn the_last_create_of_a_task() {
        let mix = Mix::creates(3);
        let lasts: Vec<_> = (0..4).map(|task| mix.last_create(task, 5)).collect();
        assert_eq!(lasts, [Some(3), Some(4), Some(2), Some(3)]);
        assert_eq!((mix.last_create(1, 1), mix.last_create(1, 2)), (None, Some(1)));
    }

    #[test]
    fn a_third_are_updates_of_what_is_there_each_of_another_task() {
        let mix = Mix { existing: 1_000, ..Mix::creates(1_000_000) };
        let (updates, creates): (Vec<_>, Vec<_>) =
            (0..3_000).map(|place| mix.at(place)).partition(|(kind, _)| *kind == Kind::Updated);
        let different = |events: &[(Kind, u64)]| events.iter().map(|(_, task)| *task).collect::<HashSet<_>>();
        assert_eq!((updates.len(), different(&updates).len()), (1_000, 1_000));
        assert_eq!((creates.len(), different(&creates).len()), (2_000, 2_000));
        assert!(
            updates.iter().all(|(_, task)| *task < 1_000) && creates.iter().all(|(_, task)| *task >= 1_000)
        );
    }

    #[test]
    fn the_mixed_load_has_its_shares() {
        let kinds: Vec<_> = (0..10_000).map(|place| mixed(place, 100).0).collect();
        let share = |kind| kinds.iter().filter(|it| **it == kind).count() / 100;
        assert!((48..=52).contains(&share(Kind::Created)) && (9..=11).contains(&share(Kind::Deleted)));
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
