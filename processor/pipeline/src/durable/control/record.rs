//! The control record: which replica projects, and up to where the ledger is settled in KV. Pure: what is read
//! and what is to be written; [`crate::durable::control::holder`] does both.
//!
//! There is one for each KV namespace. It is written by compare-and-set, at least every [`RENEWAL`] by its
//! holder. One that stands still for [`LEASE`] may be taken over. Clocks of two machines are never compared.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::durable::bucket::Revision;
use taskpipeline_kv::{Spare, UNKNOWN};

/// How often a holder renews it.
pub(crate) const RENEWAL: Duration = Duration::from_secs(1);

/// How long it has to stand still before another replica takes it.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// For how long after a renewal was begun its holder sends requests to KV: less than a lease, so that two
/// projectors overlap only where a process was stopped.
pub(crate) const MAY_SEND: Duration = Duration::from_secs(3);

/// The control record of one KV namespace: who projects, and up to where the ledger is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Control {
    /// The replica that projects; nothing where one has drained.
    pub(crate) holder: Option<String>,
    /// Goes up each time it is taken, or has to begin anew.
    pub(crate) term: u64,
    /// Each record of a task with this revision or a lower one is settled in KV.
    pub(crate) settled: Revision,
    /// No request that was sent of a record up to here, or before it, can take effect any more, unless that record
    /// is still the task's newest. At most what is settled: a record that was replaced counts as settled before
    /// the doubt about it is over.
    #[serde(default)]
    pub(crate) sure: Revision,
    /// The holder takes in no record with a later revision before it has said so here: what it may have sent is
    /// known thereby, though it is gone.
    #[serde(default = "Revision::last")]
    pub(crate) reading: Revision,
    /// How many requests of the budget the holder that let it go has left. While it is held there are none: they
    /// are the holder's.
    #[serde(default)]
    pub(crate) spare: u32,
    /// No request of the holder that let it go can take effect any more.
    pub(crate) clean: bool,
    /// Makes each renewal differ from the one before.
    pub(crate) beat: u64,
    /// When it was last renewed by its holder's clock, in ms since 1970. Only to see that it is days old.
    pub(crate) renewed: i64,
}

/// What a replica that wants to project may do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Claim {
    /// Write this. `doubt`: requests of the last holder may still take effect. `spare`: what it has left of the
    /// budget.
    Take { control: Control, doubt: Option<Doubt>, spare: Spare },
    /// Another holds it.
    Wait,
}

/// Up to where a holder knows what KV has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// As [`Control::settled`].
    pub(crate) settled: Revision,
    /// As [`Control::sure`].
    pub(crate) sure: Revision,
}

/// What a former holder may have sent without that its outcome is known: any record up to `up_to`, and none that
/// follows one up to `settled` and is later than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// All up to here is settled in KV.
    pub(crate) settled: Revision,
    /// The former holder has read no further.
    pub(crate) up_to: Revision,
}

impl Doubt {
    /// Whether an older record of the same task, or this one, may be on its way to KV.
    pub(crate) fn is_about(self, revision: Revision, follows: Revision) -> bool {
        revision <= self.up_to || follows > self.settled
    }
}

/// What a new holder has to know of itself and of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claimant<'a> {
    pub(crate) replica: &'a str,
    /// For how long the record has not changed, as far as this replica has seen.
    pub(crate) unchanged_for: Duration,
    /// The wall clock, in ms since 1970.
    pub(crate) now: i64,
    /// The ledger's newest revision: it may have been thrown back behind what is settled.
    pub(crate) newest: Revision,
    /// How far a holder may read before it has to say so.
    pub(crate) ahead: u64,
    /// How long the ledger remembers a delete after it was settled; for ever, if nothing.
    pub(crate) memory: Option<Duration>,
}

/// What is left of the budget: what the last holder has said; and what has come in since, but not while it may
/// have spent that itself.
pub(crate) fn inherited(found: Option<&Control>, unchanged_for: Duration) -> Spare {
    let Some(found) = found else {
        // The token may have been in use for another namespace until now.
        return Spare { requests: UNKNOWN, refilling: Duration::ZERO };
    };
    let spent_by_holder = if found.holder.is_some() { MAY_SEND } else { Duration::ZERO };
    Spare { requests: found.spare.into(), refilling: unchanged_for.saturating_sub(spent_by_holder) }
}

impl Claimant<'_> {
    /// Whether and how the record may be taken.
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
        // Never behind what a former holder may read that is stopped and goes on.
        control.reading = control.reading.max(found.reading.min(self.newest.plus(self.ahead)));
        Claim::Take { control, doubt, spare }
    }

    /// Whether what the record says is settled cannot be relied on.
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
    /// The next renewal, with what is settled by now, and how far is going to be read.
    pub(crate) fn renewed(&self, settled: Settled, reading: Revision, now: i64) -> Self {
        let (reading, Settled { settled, sure }) = (self.reading.max(reading), settled);
        Self { settled, sure, reading, spare: 0, beat: self.beat + 1, renewed: now, ..self.clone() }
    }

    /// The last renewal: whoever wants it may have it, and so many requests of the budget with it.
    pub(crate) fn released(&self, settled: Settled, clean: bool, spare: u32, now: i64) -> Self {
        Self { holder: None, clean, spare, ..self.renewed(settled, self.reading, now) }
    }

    /// As a command leaves it that has taken a part of the budget where nobody projects: nothing else changes, and
    /// whoever wants it may have it.
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

    /// As a former holder leaves it that has sent requests without knowing that it was one no more: what it has
    /// not seen settled while it was holder is to be written again.
    pub(crate) fn handed(&self, settled: Revision) -> Self {
        let (sure, settled) = (self.sure.min(settled), self.settled.min(settled));
        Self { settled, sure, clean: false, beat: self.beat + 1, ..self.clone() }
    }

    /// Whether a projector may rely on it that begins at this moment. `memory`: how long a delete is remembered after it
    /// was settled; indefinitely, if nothing. A tenth is added for the difference of two clocks.
    pub(crate) fn may_come_back(&self, now: i64, memory: Option<Duration>) -> bool {
        let age = Duration::from_millis(u64::try_from(now.saturating_sub(self.renewed)).unwrap_or(0));
        memory.is_none_or(|memory| age <= memory + memory / 10)
    }

    /// Whether it is this holder's, in this term.
    pub(crate) fn is_held_by(&self, holder: &Self) -> bool {
        self.holder.is_some() && self.holder == holder.holder && self.term == holder.term
    }

    /// The holder begins anew from what another has handed it.
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
