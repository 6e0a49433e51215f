//! The control record: which replica projects, and up to which revision the ledger is settled in
//! KV. Pure: it decides what to write; [`crate::durable::control::holder`] reads and writes.
//!
//! There is one record for each KV namespace. Its holder writes it by compare-and-set, at least
//! every [`RENEWAL`]. A record that does not change for [`LEASE`] may be taken over. Clocks of two
//! machines are never compared.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::bucket::Revision;
use taskpipeline_kv::{Spare, UNKNOWN};

/// The interval between two renewals.
pub(crate) const RENEWAL: Duration = Duration::from_secs(1);

/// How long the record must stay unchanged before another replica may take it.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// How long the holder may send requests to KV after the start of a renewal.
///
/// It is less than a lease, so that two projectors overlap only if a process was stopped.
pub(crate) const MAY_SEND: Duration = Duration::from_secs(3);

/// The control record of one KV namespace: its holder, and its watermark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Control {
    /// The replica that projects, or `None` after a drain.
    pub(crate) holder: Option<String>,
    /// Counts up when the record is taken, and when the holder must start again.
    pub(crate) term: u64,
    /// The watermark: each record of a task with at most this revision is settled in KV.
    pub(crate) settled: Revision,
    /// No request for a record up to here, or for an older one, can take effect any more.
    ///
    /// The exception is a record that is still the newest of its task.
    /// At most `settled`: a record that was replaced counts as settled before its doubt is over.
    #[serde(default)]
    pub(crate) sure: Revision,
    /// The holder reads no record with a later revision before it has written that revision here.
    /// So its successor knows which records it may have sent.
    #[serde(default = "Revision::last")]
    pub(crate) reading: Revision,
    /// The rest of the budget in requests that the last holder left. It is 0 while there is a
    /// holder, which has the budget.
    #[serde(default)]
    pub(crate) spare: u32,
    /// Whether no request of the last holder can take effect any more.
    pub(crate) clean: bool,
    /// Makes each renewal differ from the one before.
    pub(crate) beat: u64,
    /// When the holder last renewed the record, in ms since 1970 by its clock. Used only to see
    /// that the record is days old.
    pub(crate) renewed: i64,
}

/// The decision for a replica that wants to project.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Claim {
    /// Write this record. `doubt`: requests of the last holder that may still take effect. `spare`:
    /// its rest of the budget.
    Take { control: Control, doubt: Option<Doubt>, spare: Spare },
    /// Wait, because another replica holds the record.
    Wait,
}

/// The revisions up to which a holder knows the state of KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Like [`Control::settled`].
    pub(crate) settled: Revision,
    /// Like [`Control::sure`].
    pub(crate) sure: Revision,
}

/// The requests of a former holder with unknown outcomes: any record up to `up_to`.
///
/// A later record is free of doubt if it replaced one up to `settled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// The revision up to which everything is settled in KV.
    pub(crate) settled: Revision,
    /// The last revision that the former holder may have read.
    pub(crate) up_to: Revision,
}

impl Doubt {
    /// Returns whether this record, or an older one of the same task, may be on its way to KV.
    pub(crate) fn is_about(self, revision: Revision, follows: Revision) -> bool {
        revision <= self.up_to || follows > self.settled
    }
}

/// A replica that wants to project, and the state of its surroundings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant<'a> {
    pub(crate) replica: &'a str,
    /// How long this replica has seen the record unchanged.
    pub(crate) unchanged_for: Duration,
    /// The time of the wall clock, in ms since 1970.
    pub(crate) now: i64,
    /// The newest revision of the ledger, which may have been restored to a state before the
    /// watermark.
    pub(crate) newest: Revision,
    /// How many revisions a holder may read ahead before it must write that.
    pub(crate) ahead: u64,
    /// How long the ledger remembers a delete after it was settled; `None` means indefinitely.
    pub(crate) memory: Option<Duration>,
}

/// The rest of the budget: what the last holder left, and the inflow since, without the time in
/// which the holder may have spent it.
pub(crate) fn inherited(found: Option<&Control>, unchanged_for: Duration) -> Spare {
    let Some(found) = found else {
        // Another namespace may have used the same token until now.
        return Spare { requests: UNKNOWN, refilling: Duration::ZERO };
    };
    let spent_by_holder = if found.holder.is_some() { MAY_SEND } else { Duration::ZERO };
    Spare { requests: found.spare.into(), refilling: unchanged_for.saturating_sub(spent_by_holder) }
}

impl Claimant<'_> {
    /// Decides whether and how the record may be taken.
    pub(crate) fn claim(&self, found: Option<&Control>) -> Claim {
        let Some(found) = found else {
            let spare = inherited(None, self.unchanged_for);
            return Claim::Take { control: self.control(1, Revision::default()), doubt: None, spare };
        };
        let free = found.holder.is_none() || found.holder.as_deref() == Some(self.replica);
        if !free && self.unchanged_for < LEASE {
            return Claim::Wait;
        }
        let settled = if self.is_forgotten(found) { Revision::default() } else { found.settled };
        let spare = inherited(Some(found), self.unchanged_for);
        let doubt =
            (!found.clean).then_some(Doubt { settled: found.sure.min(settled), up_to: found.reading });
        let mut control = self.control(found.term + 1, settled);
        control.sure = doubt.map_or(settled, |doubt| doubt.settled);
        // At least as high as a stopped former holder may still read when it continues.
        control.reading = control.reading.max(found.reading.min(self.newest.plus(self.ahead)));
        Claim::Take { control, doubt, spare }
    }

    /// Returns whether the watermark of the record cannot be trusted.
    pub(crate) fn is_forgotten(&self, found: &Control) -> bool {
        let age = u64::try_from(self.now.saturating_sub(found.renewed)).unwrap_or(0);
        found.settled > self.newest || self.memory.is_some_and(|memory| Duration::from_millis(age) > memory)
    }

    fn control(&self, term: u64, settled: Revision) -> Control {
        let holder = Some(self.replica.to_owned());
        Control {
            holder,
            term,
            settled,
            sure: settled,
            reading: settled.plus(self.ahead),
            spare: 0,
            clean: false,
            beat: 0,
            renewed: self.now,
        }
    }
}

impl Control {
    /// The next renewal, with the settled revisions and the last revision that may be read.
    pub(crate) fn renewed(&self, settled: Settled, reading: Revision, now: i64) -> Self {
        let (reading, Settled { settled, sure }) = (self.reading.max(reading), settled);
        Self { settled, sure, reading, spare: 0, beat: self.beat + 1, renewed: now, ..self.clone() }
    }

    /// The last renewal, which releases the record and passes on the rest of the budget.
    pub(crate) fn released(&self, settled: Settled, clean: bool, spare: u32, now: i64) -> Self {
        Self { holder: None, clean, spare, ..self.renewed(settled, self.reading, now) }
    }

    /// The record after a command has taken a part of the budget without a holder. Everything else
    /// stays, and any replica may take it.
    pub(crate) fn left(found: Option<&Self>, spare: u32, now: i64) -> Self {
        let nothing = Self {
            holder: None,
            term: 0,
            settled: Revision::default(),
            sure: Revision::default(),
            reading: Revision::default(),
            spare: 0,
            clean: true,
            beat: 0,
            renewed: now,
        };
        let found = found.cloned().unwrap_or(nothing);
        Self { holder: None, spare, beat: found.beat + 1, ..found }
    }

    /// The record after a former holder sent requests during the term of its successor.
    ///
    /// Changes that were unsettled during its own term are written again.
    pub(crate) fn handed(&self, settled: Revision) -> Self {
        let (sure, settled) = (self.sure.min(settled), self.settled.min(settled));
        Self { settled, sure, clean: false, beat: self.beat + 1, ..self.clone() }
    }

    /// Returns whether a projector that starts now may rely on the record.
    ///
    /// `memory`: how long a delete is remembered after it was settled; `None` means indefinitely. A
    /// tenth is added for the difference of two clocks.
    pub(crate) fn may_come_back(&self, now: i64, memory: Option<Duration>) -> bool {
        let age = Duration::from_millis(u64::try_from(now.saturating_sub(self.renewed)).unwrap_or(0));
        memory.is_none_or(|memory| age <= memory + memory / 10)
    }

    /// Returns whether this holder has the record in this term.
    pub(crate) fn is_held_by(&self, holder: &Self) -> bool {
        self.holder.is_some() && self.holder == holder.holder && self.term == holder.term
    }

    /// The record after its holder starts again from a handover.
    pub(crate) fn restarted(&self, now: i64) -> Self {
        Self {
            term: self.term + 1,
            ..self.renewed(Settled { settled: self.settled, sure: self.sure }, self.reading, now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(unchanged_for: Duration) -> Claimant<'static> {
        let memory = Some(Duration::from_secs(10));
        Claimant { replica: "b", unchanged_for, now: 100_000, newest: Revision(50), ahead: 10, memory }
    }

    fn held() -> Control {
        Control {
            holder: Some("a".to_owned()),
            term: 3,
            settled: Revision(40),
            sure: Revision(40),
            reading: Revision(70),
            spare: 0,
            clean: false,
            beat: 7,
            renewed: 99_000,
        }
    }

    fn both(revision: u64) -> Settled {
        Settled { settled: Revision(revision), sure: Revision(revision) }
    }

    fn taken(claim: Claim) -> (Control, bool) {
        match claim {
            Claim::Take { control, doubt, .. } => (control, doubt.is_some()),
            Claim::Wait => panic!("not taken"),
        }
    }

    #[test]
    fn a_new_namespace_begins_at_zero() {
        let (control, doubtful) = taken(claimant(Duration::ZERO).claim(None));
        assert_eq!((control.settled, doubtful), (Revision(0), false));
    }

    #[test]
    fn a_live_holder_keeps_it_and_a_silent_one_loses_it() {
        assert_eq!(claimant(LEASE / 2).claim(Some(&held())), Claim::Wait);
        let (control, doubtful) = taken(claimant(LEASE).claim(Some(&held())));
        assert_eq!((control.term, control.settled, doubtful), (4, Revision(40), true));
    }

    #[test]
    fn a_drained_one_is_taken_at_once_and_without_doubt() {
        let drained = held().released(both(45), true, 30, 99_500);
        let (control, doubtful) = taken(claimant(Duration::ZERO).claim(Some(&drained)));
        assert_eq!((control.settled, doubtful), (Revision(45), false));
    }

    #[test]
    fn in_doubt_is_what_the_last_holder_may_have_read_and_what_may_follow_that() {
        let Claim::Take { doubt: Some(doubt), .. } = claimant(LEASE).claim(Some(&held())) else {
            panic!("no doubt")
        };
        assert_eq!(doubt, Doubt { settled: Revision(40), up_to: Revision(70) });
        let is_about = |revision, follows| doubt.is_about(Revision(revision), Revision(follows));
        assert!(is_about(55, 0) && is_about(70, 12), "it may have been sent");
        assert!(is_about(80, 41), "the one before it may have been");
        assert!(!is_about(71, 0) && !is_about(90, 40));
        assert_eq!(held().renewed(both(45), Revision(65), 0).reading, Revision(70), "it never goes back");
    }

    #[test]
    fn the_budget_is_inherited_and_never_spent_twice() {
        let spare = |found: Option<&Control>, unchanged_for| match claimant(unchanged_for).claim(found) {
            Claim::Take { spare, .. } => (spare.requests, spare.refilling),
            Claim::Wait => panic!("not taken"),
        };
        assert_eq!(spare(None, LEASE), (UNKNOWN, Duration::ZERO));
        assert_eq!(
            spare(Some(&held()), LEASE),
            (0.0, LEASE - MAY_SEND),
            "until then the holder may have spent"
        );
        let drained = held().released(both(45), true, 30, 99_500);
        assert_eq!(spare(Some(&drained), Duration::from_millis(250)), (30.0, Duration::from_millis(250)));
        assert_eq!(drained.renewed(both(45), Revision(60), 99_600).spare, 0, "whoever holds it has it");
    }

    #[test]
    fn a_command_that_takes_of_the_budget_changes_nothing_else() {
        let left = Control::left(Some(&held()), 7, 500_000);
        assert_eq!((left.holder.as_deref(), left.spare, left.clean), (None, 7, false));
        assert_eq!((left.settled, left.renewed), (Revision(40), 99_000), "how old it is stays known");
        let (control, doubtful) = taken(claimant(Duration::ZERO).claim(Some(&left)));
        assert_eq!((control.settled, doubtful), (Revision(40), true));
        assert_eq!(Control::left(None, 3, 1).settled, Revision(0));
    }

    #[test]
    fn what_is_settled_is_not_believed_of_a_ledger_thrown_back_or_a_record_older_than_its_memory() {
        let ahead = Control { settled: Revision(51), ..held() };
        assert_eq!(taken(claimant(LEASE).claim(Some(&ahead))).0.settled, Revision(0));
        let old = Control { renewed: 80_000, ..held() };
        assert_eq!(taken(claimant(LEASE).claim(Some(&old))).0.settled, Revision(0));
    }

    #[test]
    fn the_record_of_another_namespace_counts_for_as_long_as_its_projector_may_rely_on_it() {
        let (memory, other) = (Some(Duration::from_secs(10)), held());
        assert!(other.may_come_back(99_000, memory) && other.may_come_back(110_000, memory));
        assert!(!other.may_come_back(110_001, memory));
        assert!(other.may_come_back(0, memory), "a clock that is behind");
        assert!(other.may_come_back(i64::MAX, None));
    }

    #[test]
    fn a_former_holder_takes_back_what_it_may_have_spoilt() {
        let mine = Control { holder: Some("b".to_owned()), term: 4, settled: Revision(48), ..held() };
        let handed = mine.handed(Revision(40));
        assert_eq!(handed.settled, Revision(40));
        assert!(handed.is_held_by(&mine));
        assert_eq!(mine.handed(Revision(60)).settled, Revision(48));
        assert!(!handed.restarted(0).is_held_by(&mine), "a new term");
    }
}
