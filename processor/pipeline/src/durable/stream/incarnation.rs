//! Which life of the stream a message belongs to. Pure: facts in, a judgement out.
//!
//! A stream that was deleted and recreated, or lost its tail to a power failure or a restore, hands out sequences
//! that it has handed out before. A version is therefore (incarnation, sequence), and each life of the stream
//! has a higher incarnation than the one before. That a life has ended is seen from the *high water*: the
//! newest message that a replica has taken in, which every replica records before it writes to the ledger what
//! the message says.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use serde::{Deserialize, Serialize};

use crate::fold::Version;

/// The newest message that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HighWater {
    pub(crate) incarnation: u32,
    pub(crate) sequence: u64,
    /// When the stream took it in, in ns since 1970.
    pub(crate) time: i64,
}

impl HighWater {
    /// Whether what is known by this one covers the other: a later life of the stream outranks all sequences of an
    /// earlier one.
    pub(crate) fn is_at_least(self, other: Self) -> bool {
        (self.incarnation, self.sequence) >= (other.incarnation, other.sequence)
    }

    /// The one that covers the other.
    pub(crate) fn max(self, other: Self) -> Self {
        if self.is_at_least(other) { self } else { other }
    }
}

/// A life of the stream: it begins at a sequence and ends where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) incarnation: u32,
    /// The first sequence that belongs to it.
    pub(crate) from: u64,
    /// The sequence that its consumer begins with: what an earlier life's consumer had not acknowledged is
    /// read again.
    pub(crate) read_from: u64,
}

/// What is recorded of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// When the stream was created, in ns since 1970.
    pub(crate) created: i64,
    /// The lives that messages in it belong to, oldest first; never empty.
    pub(crate) lives: Vec<Life>,
    /// The highest of the replicas' high waters, as of the last time they were gathered.
    pub(crate) high: Option<HighWater>,
    /// What the subjects of the events begin with. Nothing where an earlier version has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<String>,
}

/// The stream as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    /// When it was created, in ns since 1970.
    pub(crate) created: i64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// How the stream relates to what is recorded of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It is what it was.
    Same,
    /// It was deleted and recreated.
    Recreated,
    /// It was thrown back: what came after the message of this time is not what was there.
    TailLost {
        /// When the last message that is known to be lost had been taken in: what was taken in later is new.
        after: i64,
        /// A message with this sequence or a higher one is new, whatever the servers' clocks say: the message that had this
        /// sequence before was another one.
        new_from: u64,
    },
}

impl Source {
    /// Nothing is known of what was before this life of the stream, all of which belongs to it.
    pub(crate) fn begun(created: i64, incarnation: u32) -> Self {
        Self { created, lives: vec![Life { incarnation, from: 0, read_from: 0 }], high: None, prefix: None }
    }

    /// Makes it the pipeline's with these subjects; whose it is, if it is another's.
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

    /// The life that the stream is in.
    pub(crate) fn current(&self) -> Life {
        self.lives.last().copied().unwrap_or(Life { incarnation: 1, from: 0, read_from: 0 })
    }

    /// The version of the message with this sequence.
    pub(crate) fn version(&self, sequence: u64) -> Version {
        let life = self.lives.iter().rev().find(|life| life.from <= sequence).copied();
        Version::new(life.unwrap_or_else(|| self.current()).incarnation, sequence)
    }

    /// Takes in a replica's high water; that of an earlier life does not matter any more.
    pub(crate) fn raise(&mut self, high: HighWater) {
        let current = self.current().incarnation;
        if high.incarnation == current && self.high.is_none_or(|known| known.sequence < high.sequence) {
            self.high = Some(high);
        }
    }

    /// What has become of the stream; `time_at_high` is when the message at the high water's sequence was
    /// taken in, if there is one.
    pub(crate) fn judge(&self, present: Present, time_at_high: Option<i64>) -> Judgement {
        if present.created != self.created {
            return Judgement::Recreated;
        }
        match self.high {
            None => Judgement::Same,
            Some(high) if high.sequence > present.last => {
                Judgement::TailLost { after: high.time, new_from: present.last + 1 }
            }
            // It has aged out.
            Some(high) if high.sequence < present.first => Judgement::Same,
            Some(high) if time_at_high == Some(high.time) => Judgement::Same,
            Some(high) => Judgement::TailLost { after: high.time, new_from: high.sequence },
        }
    }

    /// A new life, in a recreated stream.
    pub(crate) fn recreated(&mut self, created: i64) {
        let incarnation = self.current().incarnation + 1;
        self.created = created;
        self.lives = vec![Life { incarnation, from: 0, read_from: 0 }];
        self.high = None;
    }

    /// A new life from this sequence on, in a stream that was thrown back. What was before keeps its versions.
    pub(crate) fn thrown_back(&mut self, from: u64, read_from: u64) {
        let incarnation = self.current().incarnation + 1;
        // A life that would begin at or after the new one has left nothing in the stream.
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
        // By a clock that was put back, all of them are older than the lost one: the fifth is new all the same.
        let lost = Judgement::TailLost { after: 77, new_from: 5 };
        assert_eq!(source(Some((5, 77))).judge(present(1, 9), Some(99)), lost);
        assert_eq!(source(Some((5, 77))).judge(present(1, 9), None), lost);
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
