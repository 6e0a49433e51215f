//! Whose fault a refusal is. Pure: what was sent and how KV answered in; what to send next, and which keys are at fault,
//! out.
//!
//! An *attempt* is a request and all the smaller ones that follow from its refusal. A key of it is at fault only if it is
//! refused alone and another key of the same attempt was accepted: without such a *witness* the refusal may be about
//! the token, the address, or anything else that has nothing to do with the key. What was refused before there was a
//! witness is sent once more: what was wrong may have been repaired between the two. The witness is looked for one key at
//! a time, since a few single keys tell more than many halves, and the search ends after a few refusals, since each
//! costs a request of the budget.

use std::collections::HashMap;

use taskpipeline_contract::TaskId;

/// The most requests of an attempt that may be refused before any is accepted: 14 halvings lead from 10,000 keys to one
/// key, and ten keys beside it find a witness also where nine tasks in ten are at fault.
const MOST_REFUSALS: u32 = 24;

/// The same for reads, which have only a tenth of the budget.
const MOST_REFUSED_READS: u32 = 4;

/// The same while nothing was accepted lately: the request itself, and one key of it.
const MOST_WHILE_PROBING: u32 = 2;

/// What an attempt is called.
pub(crate) type AttemptId = u64;

/// What sort of request an attempt began with, and how patiently it looks for a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// A write.
    Write,
    /// A read.
    Read,
    /// Any request while KV refused everything lately.
    Probe,
}

impl Patience {
    fn most_refusals(self) -> u32 {
        match self {
            Self::Write => MOST_REFUSALS,
            Self::Read => MOST_REFUSED_READS,
            Self::Probe => MOST_WHILE_PROBING,
        }
    }
}

/// What follows from an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// The requests to send next, within the same attempt.
    pub(crate) next: Vec<Vec<TaskId>>,
    /// Refused alone, while others were accepted: their own fault.
    pub(crate) blamed: Vec<(TaskId, String)>,
    /// Refused alone, while nothing was accepted: the attempt is over, and proves nothing about them.
    pub(crate) unexplained: Vec<(TaskId, String)>,
    /// Never sent alone: the attempt is over, as nothing of it was accepted.
    pub(crate) untried: Vec<TaskId>,
}

#[derive(Debug)]
struct Attempt {
    patience: Patience,
    /// Whether anything was accepted.
    witness: bool,
    refusals: u32,
    /// How many of its requests have no answer yet.
    out: usize,
    /// Refused alone, before there was a witness.
    alone: Vec<(TaskId, String)>,
    /// Waits until there is a witness.
    rest: Vec<TaskId>,
}

/// The attempts that are not over. See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Blame {
    attempts: HashMap<AttemptId, Attempt>,
    begun: AttemptId,
}

impl Blame {
    /// A request is sent that follows from no other.
    pub(crate) fn begin(&mut self, patience: Patience) -> AttemptId {
        self.begun += 1;
        let attempt =
            Attempt { patience, witness: false, refusals: 0, out: 1, alone: Vec::new(), rest: Vec::new() };
        self.attempts.insert(self.begun, attempt);
        self.begun
    }

    /// A request was answered with success. `witness`: at least one of its keys was written or read.
    pub(crate) fn accepted(&mut self, id: AttemptId, witness: bool, dice: u64) -> Ruling {
        let mut ruling = Ruling::default();
        let Some(attempt) = self.answered(id) else { return ruling };
        if witness {
            attempt.witness = true;
            // They were refused before anything was accepted: what was wrong may have been repaired between.
            let alone: Vec<_> = std::mem::take(&mut attempt.alone).into_iter().map(|(id, _)| id).collect();
            let rest = std::mem::take(&mut attempt.rest);
            // Where a culprit is suspected already, the others may be good together.
            ruling.next = if alone.is_empty() { halves(rest) } else { whole(rest) };
            ruling.next.extend(whole(alone));
            attempt.out += ruling.next.len();
        }
        self.go_on(id, ruling, dice)
    }

    /// A request was refused. `too_large`: for its size, so that halves of it may do.
    pub(crate) fn refused(
        &mut self,
        id: AttemptId,
        mut ids: Vec<TaskId>,
        what: &str,
        too_large: bool,
        dice: u64,
    ) -> Ruling {
        let mut ruling = Ruling::default();
        let Some(attempt) = self.answered(id) else { return ruling };
        attempt.refusals += 1;
        match (ids.len(), attempt.witness) {
            (0, _) => {}
            (1, true) => ruling.blamed = ids.into_iter().map(|id| (id, what.to_owned())).collect(),
            (1, false) => attempt.alone.extend(ids.into_iter().map(|id| (id, what.to_owned()))),
            (_, true) => ruling.next = halves(ids),
            (keys, false) if too_large && attempt.patience != Patience::Probe => {
                attempt.rest.append(&mut ids.split_off(keys / 2));
                ruling.next = whole(ids);
            }
            (_, false) => attempt.rest.append(&mut ids),
        }
        attempt.out += ruling.next.len();
        self.go_on(id, ruling, dice)
    }

    /// A request came to nothing for a reason that says nothing about its keys.
    pub(crate) fn failed(&mut self, id: AttemptId) -> Ruling {
        if let Some(attempt) = self.answered(id) {
            // Whatever was wrong would be wrong with the next one too.
            attempt.refusals = attempt.patience.most_refusals();
        }
        self.go_on(id, Ruling::default(), 0)
    }

    /// A request was not sent, since nothing is left to be asked about its keys.
    pub(crate) fn vanished(&mut self, id: AttemptId, dice: u64) -> Ruling {
        self.answered(id);
        self.go_on(id, Ruling::default(), dice)
    }

    /// Forgets all attempts.
    pub(crate) fn clear(&mut self) {
        self.attempts.clear();
    }

    fn answered(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let attempt = self.attempts.get_mut(&id)?;
        attempt.out = attempt.out.saturating_sub(1);
        Some(attempt)
    }

    /// Looks on for a witness, or ends an attempt of which nothing is out.
    fn go_on(&mut self, id: AttemptId, mut ruling: Ruling, dice: u64) -> Ruling {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.out == 0) else {
            return ruling;
        };
        if !attempt.rest.is_empty() && attempt.refusals < attempt.patience.most_refusals() {
            let count = u64::try_from(attempt.rest.len()).unwrap_or(1);
            let place = usize::try_from(dice % count).unwrap_or_default();
            let one = attempt.rest.swap_remove(place);
            attempt.out = 1;
            ruling.next = vec![vec![one]];
        } else if let Some(attempt) = self.attempts.remove(&id) {
            (ruling.unexplained, ruling.untried) = (attempt.alone, attempt.rest);
        }
        ruling
    }
}

/// In two requests, or as few as it takes.
fn halves(mut ids: Vec<TaskId>) -> Vec<Vec<TaskId>> {
    let second = ids.split_off(ids.len() / 2);
    [ids, second].into_iter().filter(|half| !half.is_empty()).collect()
}

fn whole(ids: Vec<TaskId>) -> Vec<Vec<TaskId>> {
    if ids.is_empty() { Vec::new() } else { vec![ids] }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use super::*;

    /// How an attempt ended.
    #[derive(Debug, Default)]
    struct Outcome {
        requests: usize,
        landed: usize,
        blamed: BTreeSet<String>,
        unexplained: usize,
        untried: usize,
    }

    /// Sends `count` keys to a KV that takes a request unless it has a key or a size that it refuses.
    fn attempt(count: usize, patience: Patience, poison: impl Fn(usize) -> bool, most: usize) -> Outcome {
        let mut blame = Blame::default();
        let ids: Vec<_> = (0..count).map(|n| TaskId::new(n.to_string()).unwrap()).collect();
        let id = blame.begin(patience);
        let (mut requests, mut outcome, mut dice) = (VecDeque::from([ids]), Outcome::default(), 7_u64);
        while let Some(ids) = requests.pop_front() {
            outcome.requests += 1;
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bad = ids.iter().any(|id| poison(id.as_str().parse().unwrap()));
            let ruling = if bad || ids.len() > most {
                blame.refused(id, ids, "no", !bad, dice >> 33)
            } else {
                outcome.landed += ids.len();
                blame.accepted(id, true, dice >> 33)
            };
            requests.extend(ruling.next);
            outcome.blamed.extend(ruling.blamed.into_iter().map(|(id, _)| id.as_str().to_owned()));
            outcome.unexplained += ruling.unexplained.len();
            outcome.untried += ruling.untried.len();
        }
        assert!(blame.attempts.is_empty(), "{blame:?}");
        let all = outcome.landed + outcome.blamed.len() + outcome.unexplained + outcome.untried;
        assert_eq!(all, count, "every key ends somewhere: {outcome:?}");
        outcome
    }

    #[test]
    fn one_key_in_10000_is_found_in_few_requests_and_the_others_land() {
        let outcome = attempt(10_000, Patience::Write, |n| n == 6_789, 10_000);
        assert_eq!((outcome.landed, outcome.blamed), (9_999, ["6789".to_owned()].into()));
        assert!(outcome.requests < 40, "{} requests", outcome.requests);
    }

    #[test]
    fn where_all_keys_are_refused_nobody_is_blamed_and_few_requests_are_spent() {
        for count in [1, 2, 3, 50, 10_000] {
            let outcome = attempt(count, Patience::Write, |_| true, 10_000);
            assert_eq!((outcome.landed, outcome.blamed.len()), (0, 0), "{count}");
            assert!(outcome.requests <= 24, "{} requests", outcome.requests);
            assert!(attempt(count, Patience::Probe, |_| true, 10_000).requests <= 2);
            assert!(attempt(count, Patience::Read, |_| true, 10_000).requests <= 4);
        }
    }

    #[test]
    fn one_good_key_among_few_bad_ones_is_witness_enough() {
        for bad in [[0, 1], [0, 2], [1, 2]] {
            let outcome = attempt(3, Patience::Write, |n| bad.contains(&n), 9);
            assert_eq!((outcome.landed, outcome.blamed.len()), (1, 2), "{bad:?}");
        }
    }

    #[test]
    fn nine_in_ten_at_fault_are_found() {
        let outcome = attempt(1_000, Patience::Write, |n| n % 10 != 3, 10_000);
        assert_eq!((outcome.landed, outcome.blamed.len()), (100, 900));
    }

    #[test]
    fn a_request_that_is_too_large_is_halved_until_it_is_taken_and_nobody_is_blamed() {
        let outcome = attempt(10_000, Patience::Write, |_| false, 700);
        assert_eq!((outcome.landed, outcome.blamed.len()), (10_000, 0));
        assert!(outcome.requests < 60, "{} requests", outcome.requests);
        let tiny = attempt(10_000, Patience::Write, |_| false, 0);
        assert_eq!((tiny.landed, tiny.blamed.len(), tiny.requests), (0, 0, 24));
    }

    #[test]
    fn an_attempt_that_fails_otherwise_or_vanishes_gives_its_keys_back() {
        let ids = |names: &[&str]| names.iter().map(|name| TaskId::new(*name).unwrap()).collect::<Vec<_>>();
        let mut blame = Blame::default();
        let id = blame.begin(Patience::Write);
        assert_eq!(blame.refused(id, ids(&["a", "b", "c"]), "no", false, 0).next, [ids(&["a"])]);
        assert_eq!(blame.vanished(id, 0).next, [ids(&["c"])]);
        assert_eq!(blame.refused(id, ids(&["c"]), "no", false, 0).next, [ids(&["b"])]);
        let ruling = blame.failed(id);
        assert_eq!((ruling.unexplained.len(), ruling.blamed.len()), (1, 0));
        assert!(blame.attempts.is_empty());
        let id = blame.begin(Patience::Write);
        blame.refused(id, ids(&["a", "b", "c"]), "no", false, 0);
        assert_eq!(blame.failed(id).untried.len(), 2);
    }

    #[test]
    fn what_was_refused_before_the_cause_was_repaired_is_not_blamed_when_others_are_accepted() {
        let ids = |names: &[&str]| names.iter().map(|name| TaskId::new(*name).unwrap()).collect::<Vec<_>>();
        let mut blame = Blame::default();
        let id = blame.begin(Patience::Write);
        assert_eq!(blame.refused(id, ids(&["a", "b", "c"]), "no", false, 0).next, [ids(&["a"])]);
        assert_eq!(blame.refused(id, ids(&["a"]), "no", false, 0).next, [ids(&["c"])]);
        // Repaired here.
        let ruling = blame.accepted(id, true, 0);
        assert_eq!((ruling.next, ruling.blamed.len()), (vec![ids(&["b"]), ids(&["a"])], 0));
        assert!(blame.accepted(id, true, 0).blamed.is_empty());
        assert_eq!(blame.accepted(id, true, 0), Ruling::default());
        assert!(blame.attempts.is_empty());
    }

    #[test]
    fn success_that_writes_no_key_is_no_witness() {
        let mut blame = Blame::default();
        let id = blame.begin(Patience::Write);
        let (a, b) = (TaskId::new("a").unwrap(), TaskId::new("b").unwrap());
        blame.refused(id, vec![a.clone(), b.clone()], "no", false, 0);
        assert_eq!(blame.refused(id, vec![a], "no", false, 0).next, [vec![b]]);
        let ruling = blame.accepted(id, false, 0);
        assert_eq!((ruling.unexplained.len(), ruling.blamed.len()), (1, 0));
    }
}
