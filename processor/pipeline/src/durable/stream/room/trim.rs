//! Decides which events a replica may purge from the stream: those that all consumers have
//! acknowledged, oldest first. Pure.
//!
//! While there is room, events stay, so that replicas can rebuild a lost ledger.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use async_nats::jetstream::consumer::{AckPolicy, Info};
use async_nats::jetstream::stream::State;

/// The contents of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Contents {
    pub(super) fn of(state: &State) -> Self {
        let State { first_sequence: first, last_sequence: last, messages, bytes, .. } = *state;
        Self { first, last, messages, bytes }
    }

    /// Returns whether the stream is too full. Replicas other than the writer wait longer, in case
    /// the writer does not purge.
    pub(super) fn is_too_much(&self, room: u64, is_writer: bool) -> bool {
        self.bytes > if is_writer { room / 2 } else { room / 8 * 5 }
    }

    /// The sequence below which events may be purged: down to three eighths of the room, and only
    /// `acknowledged` events.
    ///
    /// The last acknowledged event stays, because it shows whether the stream was restored from an
    /// older state.
    pub(super) fn may_go(&self, room: u64, acknowledged: u64) -> Option<u64> {
        let spare = self.bytes.saturating_sub(room / 8 * 3);
        if spare == 0 || self.bytes == 0 {
            return None;
        }
        // Assumes that all events have the same size. If they have not, the next check purges the
        // rest.
        let span = (self.last + 1).saturating_sub(self.first);
        let share = u128::from(spare) * u128::from(span) / u128::from(self.bytes);
        let up_to = self.first.saturating_add(u64::try_from(share).unwrap_or(u64::MAX)).min(acknowledged);
        (up_to > self.first).then_some(up_to)
    }
}

/// The sequence up to which all consumers have acknowledged; 0 without consumers, because one may
/// be about to be created.
///
/// `last`: the last event of the stream, from before the consumers were read.
pub(super) fn acknowledged(consumers: &[Info], last: u64) -> u64 {
    let floor = |info: &Info| {
        if info.num_pending == 0 && info.num_ack_pending == 0 {
            // A consumer with a narrow filter acknowledges rarely.
            return last;
        }
        match info.config.ack_policy {
            AckPolicy::None => info.delivered.stream_sequence,
            _ => info.ack_floor.stream_sequence,
        }
    };
    consumers.iter().map(floor).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOM: u64 = 800;

    fn held(first: u64, last: u64, bytes: u64) -> Contents {
        Contents { first, last, messages: last + 1 - first, bytes }
    }

    #[test]
    fn half_of_the_room_is_left_to_events_that_wait() {
        assert!(!held(1, 40, 400).is_too_much(ROOM, true));
        assert!(held(1, 41, 410).is_too_much(ROOM, true));
        assert!(!held(1, 50, 500).is_too_much(ROOM, false), "the writer does it");
        assert!(held(1, 51, 510).is_too_much(ROOM, false), "but it does not");
    }

    #[test]
    fn the_oldest_go_down_to_three_eighths_and_no_event_that_is_not_acknowledged() {
        assert_eq!(held(1, 60, 600).may_go(ROOM, 60), Some(31), "30 of 10 bytes each");
        assert_eq!(held(1, 60, 600).may_go(ROOM, 12), Some(12), "event 12 stays");
        assert_eq!(held(13, 60, 600).may_go(ROOM, 12), None);
        assert_eq!(held(1, 60, 600).may_go(ROOM, 0), None);
        assert_eq!(held(1, 30, 300).may_go(ROOM, 30), None, "it is little enough");
        assert_eq!(Contents { first: 61, last: 60, messages: 0, bytes: 0 }.may_go(ROOM, 60), None);
    }

    fn consumer(pending: u64, floor: u64, delivered: u64, policy: &str) -> Info {
        serde_json::from_value(serde_json::json!({
            "stream_name": "TASKS", "name": "c", "created": "2026-01-01T00:00:00Z",
            "config": {"deliver_policy": "all", "ack_policy": policy, "replay_policy": "instant"},
            "delivered": {"consumer_seq": delivered, "stream_seq": delivered},
            "ack_floor": {"consumer_seq": floor, "stream_seq": floor},
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 0, "num_pending": pending,
        }))
        .unwrap()
    }

    #[test]
    fn the_slowest_consumer_counts_and_one_that_lets_nothing_through_does_not() {
        let ours = consumer(5, 50, 55, "explicit");
        assert_eq!(acknowledged(&[ours.clone(), consumer(3, 20, 30, "explicit")], 60), 20);
        assert_eq!(acknowledged(&[ours.clone(), consumer(0, 0, 0, "explicit")], 60), 50);
        assert_eq!(acknowledged(&[ours, consumer(9, 0, 40, "none")], 60), 40);
        assert_eq!(acknowledged(&[consumer(0, 60, 60, "explicit")], 60), 60);
        assert_eq!(acknowledged(&[], 60), 0, "one may be about to be made");
    }

    proptest! {
        #[test]
        fn nothing_that_waits_ever_goes_and_what_goes_is_at_the_old_end(
            first in 1_u64..1_000, span in 0_u64..5_000, each in 1_u64..100_000,
            acknowledged in 0_u64..8_000, room in 1_u64..1_000_000_000,
        ) {
            let held = held(first, first + span, (span + 1) * each);
            if let Some(up_to) = held.may_go(room, acknowledged) {
                prop_assert!(up_to <= acknowledged && up_to > first && up_to <= held.last + 1);
            }
        }
    }
}
