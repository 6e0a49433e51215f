//! Decides whether the projector makes progress. Pure: it takes signs and returns a verdict.
//!
//! A projector that stands still without an excuse although work waits has a bug, or has lost
//! something that it needs. It reports a stall, and then gives up the control record. Another
//! replica, or the same one again, starts from the watermark.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use tokio::time::Instant;

use crate::durable::bucket::Revision;

/// Longer than any wait of the projector without an excuse: NATS answers within 5 s, or the
/// connection is lost.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The writer reports the stall for 6 s before it gives up, because conditions are written every
/// other second.
const GIVES_UP_AFTER: Duration = Duration::from_secs(36);

/// The signs of progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs {
    /// The last revision read, the settled revision, and the number of answered writes and reads.
    /// Progress changes at least one.
    pub(crate) position: (Revision, Revision, u64),
    /// Whether NATS is reachable and the control record is surely held. Otherwise there is nothing
    /// to judge.
    pub(crate) may_work: bool,
    /// Whether the changes of the ledger cannot be read.
    pub(crate) unread: bool,
    /// Whether tasks could be sent, or changes wait until others are written.
    pub(crate) waits: bool,
    /// Whether something must happen first: an answer of KV, or a time such as that of the next
    /// attempt.
    pub(crate) excused: bool,
}

/// Why the projector stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// The changes of the ledger cannot be read.
    Unread,
    /// Tasks wait, and none is written.
    Unwritten,
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// The projector makes progress, or has nothing to do.
    Well,
    Stalled(Stall),
    /// The stall has lasted so long that another replica should try.
    GivesUp(Stall),
}

/// Watches whether the projector makes progress while work waits.
#[derive(Debug)]
pub(crate) struct Progress {
    position: (Revision, Revision, u64),
    /// Since when it has made no progress without an excuse.
    unwritten_since: Instant,
    /// Since when the changes cannot be read although NATS is reachable.
    unread_since: Instant,
}

impl Progress {
    pub(crate) fn new(now: Instant) -> Self {
        let position = (Revision::default(), Revision::default(), 0);
        Self { position, unwritten_since: now, unread_since: now }
    }

    pub(crate) fn see(&mut self, signs: &Signs, now: Instant) -> Course {
        if signs.position != self.position || !signs.waits || signs.excused || !signs.may_work {
            (self.position, self.unwritten_since) = (signs.position, now);
        }
        if !signs.unread || !signs.may_work {
            self.unread_since = now;
        }
        // If nothing can be read, that is also why nothing is written.
        let (since, stall) = if self.unread_since <= self.unwritten_since {
            (self.unread_since, Stall::Unread)
        } else {
            (self.unwritten_since, Stall::Unwritten)
        };
        match now.saturating_duration_since(since) {
            time if time >= GIVES_UP_AFTER => Course::GivesUp(stall),
            time if time >= STALLED_AFTER => Course::Stalled(stall),
            _ => Course::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(position: u64) -> Signs {
        let position = (Revision(position), Revision(position), position);
        Signs { position, may_work: true, unread: false, waits: true, excused: false }
    }

    #[test]
    fn work_that_waits_without_an_excuse_stalls_and_then_gives_up() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(progress.see(&signs(1), at(0)), Course::Well);
        assert_eq!(progress.see(&signs(1), at(29)), Course::Well);
        assert_eq!(progress.see(&signs(1), at(30)), Course::Stalled(Stall::Unwritten));
        assert_eq!(progress.see(&signs(2), at(31)), Course::Well, "it has moved");
        assert_eq!(progress.see(&Signs { excused: true, ..signs(2) }, at(100)), Course::Well);
        assert_eq!(progress.see(&Signs { waits: false, ..signs(2) }, at(200)), Course::Well);
        assert_eq!(progress.see(&signs(2), at(236)), Course::GivesUp(Stall::Unwritten));
    }

    #[test]
    fn changes_that_cannot_be_read_are_no_less_a_stall_though_nothing_is_known_to_wait() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let at = |second| start + Duration::from_secs(second);
        let unread = Signs { waits: false, unread: true, ..signs(1) };
        assert_eq!(progress.see(&unread, at(29)), Course::Well);
        assert_eq!(progress.see(&unread, at(31)), Course::Stalled(Stall::Unread));
        assert_eq!(progress.see(&Signs { waits: false, ..signs(1) }, at(32)), Course::Well);
        assert_eq!(progress.see(&unread, at(61)), Course::Well, "counted from when they could be read last");
    }

    #[test]
    fn the_time_without_nats_does_not_count_when_it_is_back() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let at = |second| start + Duration::from_secs(second);
        let away = Signs { may_work: false, unread: true, ..signs(1) };
        assert_eq!(progress.see(&away, at(100)), Course::Well);
        // The feed has not noticed yet.
        let back = Signs { may_work: true, ..away };
        assert_eq!(progress.see(&back, at(102)), Course::Well);
        assert_eq!(progress.see(&back, at(136)), Course::GivesUp(Stall::Unread));
    }
}
