//! Measures how long the oldest change has waited to be settled in KV. Pure.
//!
//! It is accurate to a few seconds, because it remembers positions of the feed instead of a time
//! for each task.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::durable::bucket::Revision;

/// The interval between two remembered positions.
const EVERY: Duration = Duration::from_secs(5);

/// Measures how long the oldest unsettled change has waited, to a few seconds.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// The revisions that were read at these times, while they are not settled.
    marks: VecDeque<(Instant, Revision)>,
}

impl Lag {
    /// Sets the last read and the settled revision. Returns how long the oldest unsettled change
    /// has waited at least.
    pub(crate) fn see(&mut self, read: Revision, settled: Revision, now: Instant) -> Duration {
        while self.marks.front().is_some_and(|(_, read)| *read <= settled) {
            self.marks.pop_front();
        }
        if read > settled && self.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= EVERY) {
            self.marks.push_back((now, read));
        }
        self.marks.front().map_or(Duration::ZERO, |(at, _)| now.duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_gets_older_until_it_is_settled_and_what_came_after_it_does_not_matter() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let mut see = |read, settled, second| {
            lag.see(Revision(read), Revision(settled), start + Duration::from_secs(second)).as_secs()
        };
        assert_eq!(see(5, 5, 0), 0, "all is settled");
        assert_eq!(see(9, 5, 1), 0);
        assert_eq!(see(50, 8, 31), 30);
        assert_eq!(see(60, 9, 32), 1, "the next that waits came at 31 s at the latest");
        assert_eq!(see(60, 60, 33), 0);
        assert_eq!(see(61, 60, 90), 0);
    }
}
