//! Whether the projector moves forward. Pure: what is seen in, a verdict out.
//!
//! A projector that stands still though work waits, and nothing excuses it, is a defect or has lost something that it needs.
//! It says so, and then gives up the control record: another replica, or the same one anew, begins from the watermark.

use std::time::Duration;

use tokio::time::Instant;

use super::bucket::Revision;

/// Longer than anything that the projector waits for without an excuse: NATS answers within 5 s, or the connection is lost.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// For so long the writer says that it has stalled, before it gives up: conditions are written every other second.
const GIVES_UP_AFTER: Duration = Duration::from_secs(36);

/// What is seen of the projector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    /// How far the feed has read, up to where all is settled, and how many writes and look-ups were answered. Any of them
    /// changes when the projector moves.
    pub(super) position: (Revision, Revision, u64),
    /// Since when the ledger's changes cannot be read.
    pub(super) unread_since: Option<Instant>,
    /// Whether tasks could be sent, or changes wait for room in memory.
    pub(super) waits: bool,
    /// Whether something else has to happen first: an answer of KV, the budget, the end of a `Retry-After`, KV to be
    /// available again.
    pub(super) excused: bool,
}

/// Why it stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stall {
    /// The ledger's changes cannot be read.
    Unread,
    /// Tasks wait, and none is written.
    Unwritten,
}

/// How it gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// It moves, or has no reason to.
    Well,
    Stalled(Stall),
    /// It has stalled for so long that another should try.
    GivesUp(Stall),
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Progress {
    position: (Revision, Revision, u64),
    /// Since when it has not moved without an excuse.
    since: Instant,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        Self { position: (Revision::default(), Revision::default(), 0), since: now }
    }

    pub(super) fn see(&mut self, signs: &Signs, now: Instant) -> Course {
        if signs.position != self.position || !signs.waits || signs.excused {
            (self.position, self.since) = (signs.position, now);
        }
        let unread = signs.unread_since.map(|since| (Stall::Unread, now.saturating_duration_since(since)));
        let unwritten = (Stall::Unwritten, now.saturating_duration_since(self.since));
        match unread.into_iter().chain([unwritten]).max_by_key(|(_, time)| *time) {
            Some((stall, time)) if time >= GIVES_UP_AFTER => Course::GivesUp(stall),
            Some((stall, time)) if time >= STALLED_AFTER => Course::Stalled(stall),
            _ => Course::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(position: u64) -> Signs {
        let position = (Revision(position), Revision(position), position);
        Signs { position, unread_since: None, waits: true, excused: false }
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
        let unread = Signs { waits: false, unread_since: Some(start), ..signs(1) };
        assert_eq!(progress.see(&unread, start + Duration::from_secs(29)), Course::Well);
        assert_eq!(progress.see(&unread, start + Duration::from_secs(31)), Course::Stalled(Stall::Unread));
    }
}
