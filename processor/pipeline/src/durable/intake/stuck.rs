//! Decides where to look for messages that keep the ack floor from moving. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::ops::RangeInclusive;

/// The messages that are examined at a time: as many as can be unacknowledged. Acknowledged ones
/// lie between them.
const WINDOW: u64 = 20_000;

/// The most windows that are examined before the ack floor has moved.
const MOST_WINDOWS: usize = 10;

/// The ack floor at the last check.
#[derive(Debug, Default)]
pub(crate) struct Floor(Option<u64>);

impl Floor {
    /// Sets the present ack floor. Returns whether it has not moved.
    pub(crate) fn is_stuck(&mut self, now: u64) -> bool {
        self.0.replace(now) == Some(now)
    }
}

/// The sequences above the ack floor that were handed out, in windows, newest first: the latest
/// pull was cut off.
pub(crate) fn windows(floor: u64, delivered: u64) -> impl Iterator<Item = RangeInclusive<u64>> {
    let mut end = delivered;
    let all = std::iter::from_fn(move || {
        let window = (end > floor).then(|| end.saturating_sub(WINDOW).max(floor) + 1..=end)?;
        end = window.start() - 1;
        Some(window)
    });
    all.take(MOST_WINDOWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_cover_what_was_handed_out_newest_first_and_end() {
        let all = |floor, delivered| windows(floor, delivered).collect::<Vec<_>>();
        assert_eq!(all(5, 5), []);
        assert_eq!(all(0, 3), [1..=3]);
        assert_eq!(all(10, 20_010), [11..=20_010]);
        assert_eq!(all(10, 20_011), [12..=20_011, 11..=11]);
        assert_eq!(all(0, u64::MAX).len(), MOST_WINDOWS);
    }

    #[test]
    fn a_floor_is_stuck_when_it_is_where_it_was() {
        let mut floor = Floor::default();
        let stuck: Vec<_> = [7, 7, 8, 8, 8].into_iter().map(|now| floor.is_stuck(now)).collect();
        assert_eq!(stuck, [false, true, false, true, true]);
    }
}
