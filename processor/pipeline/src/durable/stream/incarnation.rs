//! Decides which incarnation of the stream a message belongs to. Pure: it takes facts and returns a
//! judgement.
//!
//! A stream that was created again hands out the same sequences again. So does a stream that lost
//! its newest messages to a power failure or a restore. A version is therefore (incarnation,
//! sequence), and each incarnation has a higher number than the one before.
//!
//! The *high water* shows that an incarnation has ended. It is the newest message that a replica
//! has taken in. Every replica records it before the content of the message goes to the ledger.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use serde::{Deserialize, Serialize};

use crate::fold::Version;

/// The newest message that a replica has taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HighWater {
    pub(crate) incarnation: u32,
    pub(crate) sequence: u64,
    /// When the stream stored it, in ns since 1970.
    pub(crate) time: i64,
}

impl HighWater {
    /// Returns whether this high water covers the other. A later incarnation outranks all sequences
    /// of an earlier one.
    pub(crate) fn is_at_least(self, other: Self) -> bool {
        (self.incarnation, self.sequence) >= (other.incarnation, other.sequence)
    }

    /// The higher of the two.
    pub(crate) fn max(self, other: Self) -> Self {
        if self.is_at_least(other) { self } else { other }
    }
}

/// One incarnation of the stream. It begins at a sequence and ends where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) incarnation: u32,
    /// The first sequence of the incarnation.
    pub(crate) from: u64,
    /// The first sequence that its consumer reads: messages that the earlier consumer had not
    /// acknowledged are read again.
    pub(crate) read_from: u64,
}

/// The recorded state of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// When the stream was created, in ns since 1970.
    pub(crate) created: i64,
    /// The incarnations of the messages in the stream, oldest first; never empty.
    pub(crate) lives: Vec<Life>,
    /// The highest high water of all replicas when they were last gathered.
    pub(crate) high: Option<HighWater>,
    /// The prefix of the subjects of events. `None` if an earlier version has written the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
}

/// The present state of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    /// When the stream was created, in ns since 1970.
    pub(crate) created: i64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The relation of the stream to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// The stream is the same.
    Same,
    /// The stream was deleted and created again.
    Recreated,
    /// The stream lost its newest messages.
    TailLost {
        /// When the last known lost message was stored. Messages that were stored later are new.
        after: i64,
        /// A message with at least this sequence is new, whatever the clocks of the servers say.
        /// The message that had this sequence before was another one.
        new_from: u64,
    },
}

impl Judgement {
    /// Both together. Of two losses, the messages after the later one are new, and those from the
    /// lower sequence on.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Same, other) => other,
            (
                Self::TailLost { after, new_from },
                Self::TailLost { after: other_after, new_from: other_new_from },
            ) => Self::TailLost { after: after.max(other_after), new_from: new_from.min(other_new_from) },
            (judged, _) => judged,
        }
    }
}

impl Source {
    /// The record of a stream without a known past. All its messages belong to this incarnation.
    pub(crate) fn begun(created: i64, incarnation: u32) -> Self {
        Self { created, lives: vec![Life { incarnation, from: 0, read_from: 0 }], high: None, prefix: None }
    }

    /// Claims the ledger for a pipeline with this subject prefix.
    ///
    /// # Errors
    /// If the ledger belongs to another pipeline; the error is its prefix.
    pub(crate) fn claim(&mut self, prefix: &str) -> Result<(), String> {
        match &self.prefix {
            Some(other) if other != prefix => Err(other.clone()),
            Some(_) => Ok(()),
            None => {
                self.prefix = Some(prefix.to_owned());
                Ok(())
            }
        }
    }

    /// The present incarnation.
    pub(crate) fn current(&self) -> Life {
        self.lives.last().copied().unwrap_or(Life { incarnation: 1, from: 0, read_from: 0 })
    }

    /// The version of the message with this sequence.
    pub(crate) fn version(&self, sequence: u64) -> Version {
        let life = self.lives.iter().rev().find(|life| life.from <= sequence).copied();
        Version::new(life.unwrap_or_else(|| self.current()).incarnation, sequence)
    }

    /// Adds the high water of a replica. A high water of an earlier incarnation does not matter any
    /// more.
    pub(crate) fn raise(&mut self, high: HighWater) {
        let current = self.current().incarnation;
        if high.incarnation == current && self.high.is_none_or(|known| known.sequence < high.sequence) {
            self.high = Some(high);
        }
    }

    /// Compares the stream with the record.
    ///
    /// `time_at_high`: when the stream stored the message that now has the sequence of the high
    /// water, or `None` without such a message.
    pub(crate) fn judge(&self, present: Present, time_at_high: Option<i64>) -> Judgement {
        if present.created != self.created {
            return Judgement::Recreated;
        }
        match self.high {
            None => Judgement::Same,
            Some(high) if high.sequence > present.last => {
                Judgement::TailLost { after: high.time, new_from: present.last + 1 }
            }
            // The message has aged out.
            Some(high) if high.sequence < present.first => Judgement::Same,
            Some(high) if time_at_high == Some(high.time) => Judgement::Same,
            Some(high) => Judgement::TailLost { after: high.time, new_from: high.sequence },
        }
    }

    /// Compares the stream with a mark that is not the highest.
    ///
    /// The highest mark alone can hide a loss: a replica that reads on before it learns of the loss
    /// raises its mark over the new messages. A missing message proves nothing here, because an ack
    /// may delete it.
    pub(crate) fn judge_mark(mark: HighWater, present: Present, time_at_mark: Option<i64>) -> Judgement {
        match time_at_mark {
            _ if mark.sequence > present.last => {
                Judgement::TailLost { after: mark.time, new_from: present.last + 1 }
            }
            Some(time) if time != mark.time => {
                Judgement::TailLost { after: mark.time, new_from: mark.sequence }
            }
            _ => Judgement::Same,
        }
    }

    /// Starts a new incarnation in a stream that was created again.
    pub(crate) fn recreated(&mut self, created: i64) {
        let incarnation = self.current().incarnation + 1;
        self.created = created;
        self.lives = vec![Life { incarnation, from: 0, read_from: 0 }];
        self.high = None;
    }

    /// Starts a new incarnation at this sequence, in a stream that lost its newest messages. Older
    /// messages keep their versions.
    pub(crate) fn thrown_back(&mut self, from: u64, read_from: u64) {
        let incarnation = self.current().incarnation + 1;
        // An incarnation that begins at or after the new one has no message in the stream any more.
        self.lives.retain(|life| life.from < from);
        self.lives.push(Life { incarnation, from, read_from: read_from.min(from) });
        self.high = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: i64 = 1_000;

    fn source(high: Option<(u64, i64)>) -> Source {
        let mut source = Source::begun(CREATED, 1);
        if let Some((sequence, time)) = high {
            source.raise(HighWater { incarnation: 1, sequence, time });
        }
        source
    }

    fn present(first: u64, last: u64) -> Present {
        Present { created: CREATED, first, last }
    }

    #[test]
    fn a_mark_covers_lower_sequences_and_all_of_earlier_lives() {
        let high = |incarnation, sequence| HighWater { incarnation, sequence, time: 0 };
        assert!(high(1, 5).is_at_least(high(1, 5)) && high(1, 5).is_at_least(high(1, 4)));
        assert!(high(2, 1).is_at_least(high(1, 9)));
        assert!(!high(1, 5).is_at_least(high(1, 6)) && !high(1, 9).is_at_least(high(2, 1)));
    }

    #[test]
    fn a_ledger_is_the_pipelines_that_claims_it_first() {
        let mut source = source(None);
        assert_eq!(source.claim("tasks"), Ok(()));
        assert_eq!(source.claim("tasks"), Ok(()));
        assert_eq!(source.claim("orders"), Err("tasks".to_owned()));
    }

    #[test]
    fn a_stream_that_goes_on_is_the_same() {
        assert_eq!(source(None).judge(present(0, 0), None), Judgement::Same);
        assert_eq!(source(Some((5, 77))).judge(present(1, 9), Some(77)), Judgement::Same);
        assert_eq!(source(Some((5, 77))).judge(present(6, 9), None), Judgement::Same, "aged out");
        assert_eq!(source(Some((5, 77))).judge(present(6, 5), None), Judgement::Same, "all aged out");
    }

    #[test]
    fn a_lost_tail_is_seen_however_far_the_stream_has_grown_since() {
        let lost = Judgement::TailLost { after: 77, new_from: 4 };
        assert_eq!(source(Some((5, 77))).judge(present(1, 3), None), lost);
        // By a clock that was set back, all messages are older than the lost one. The fifth is
        // still new.
        let lost = Judgement::TailLost { after: 77, new_from: 5 };
        assert_eq!(source(Some((5, 77))).judge(present(1, 9), Some(99)), lost);
        assert_eq!(source(Some((5, 77))).judge(present(1, 9), None), lost);
    }

    #[test]
    fn a_mark_below_the_highest_shows_a_loss_that_the_highest_hides() {
        let mark = |sequence, time| HighWater { incarnation: 1, sequence, time };
        let judge = |mark, time| Source::judge_mark(mark, present(1, 9), time);
        assert_eq!(judge(mark(5, 77), Some(77)), Judgement::Same);
        assert_eq!(judge(mark(5, 77), None), Judgement::Same, "an ack may delete a message");
        let lost = Judgement::TailLost { after: 77, new_from: 5 };
        assert_eq!(judge(mark(5, 77), Some(99)), lost);
        let beyond = Judgement::TailLost { after: 80, new_from: 10 };
        assert_eq!(judge(mark(12, 80), None), beyond);
        assert_eq!(lost.and(beyond), Judgement::TailLost { after: 80, new_from: 5 });
        assert_eq!(Judgement::Same.and(lost), lost);
        assert_eq!(lost.and(Judgement::Same), lost);
        assert_eq!(Judgement::Recreated.and(lost), Judgement::Recreated);
    }

    #[test]
    fn a_recreated_stream_begins_a_new_life() {
        let mut source = source(Some((5, 77)));
        let present = Present { created: 2_000, first: 1, last: 9 };
        assert_eq!(source.judge(present, Some(77)), Judgement::Recreated);
        source.recreated(present.created);
        assert_eq!(source.judge(present, None), Judgement::Same);
        assert_eq!(source.version(1), Version::new(2, 1));
        source.raise(HighWater { incarnation: 1, sequence: 5, time: 77 });
        assert_eq!(source.high, None, "an earlier life's");
    }

    #[test]
    fn what_survived_keeps_its_version_and_what_is_new_outranks_what_was_lost() {
        let mut source = source(Some((50, 77)));
        let lost = source.version(50);
        source.thrown_back(41, 30);
        assert_eq!(source.version(40), Version::new(1, 40));
        assert!(source.version(41) > lost);
        assert_eq!(source.current(), Life { incarnation: 2, from: 41, read_from: 30 });
        source.thrown_back(20, 45);
        assert_eq!(source.current(), Life { incarnation: 3, from: 20, read_from: 20 });
        assert_eq!(source.version(19), Version::new(1, 19));
        assert_eq!(source.version(30), Version::new(3, 30));
    }
}
