//! Counts messages that the stream dropped before they were delivered: by a limit, by their age, or
//! by a purge. Pure.
//!
//! They show as gaps between two deliveries, if the consumer has no filter.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;

/// The number of remembered deliveries: more than the workers have in flight.
const REMEMBERED: usize = 8_192;

/// The stream sequences of first deliveries, by their delivery numbers in the consumer.
#[derive(Debug, Default)]
pub(crate) struct Gaps(BTreeMap<u64, u64>);

impl Gaps {
    /// Starts after this delivery, the last one of the consumer when the session begins.
    pub(crate) fn after(delivery: u64, sequence: u64) -> Self {
        Self(BTreeMap::from([(delivery, sequence)]))
    }

    /// Adds a first delivery. Returns the number of messages missing beside it.
    pub(crate) fn delivered(&mut self, delivery: u64, sequence: u64) -> u64 {
        if self.0.insert(delivery, sequence).is_some() {
            return 0;
        }
        let before = delivery.checked_sub(1).and_then(|before| self.0.get(&before));
        let missing_before = before.map_or(0, |before| sequence.saturating_sub(before + 1));
        let missing_after = self.0.get(&(delivery + 1)).map_or(0, |after| after.saturating_sub(sequence + 1));
        while self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
        missing_before + missing_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gap_is_counted_once_in_whatever_order_workers_see_its_two_sides() {
        let deliveries = [(11, 21), (12, 22), (13, 90), (14, 91)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let mut gaps = Gaps::after(10, 20);
            let missing: u64 = order.iter().map(|n| gaps.delivered(deliveries[*n].0, deliveries[*n].1)).sum();
            assert_eq!(missing, 67, "{order:?}");
            assert_eq!(gaps.delivered(13, 90), 0, "seen before");
        }
    }

    #[test]
    fn nothing_is_concluded_where_another_replica_has_the_other_side_or_an_event_came_again() {
        let mut gaps = Gaps::after(10, 20);
        assert_eq!(gaps.delivered(15, 500), 0);
        assert_eq!(gaps.delivered(17, 502), 0);
    }
}
