//! Finds the keys that cause a refusal. Pure: it takes requests and answers, and returns the next
//! requests and the keys at fault.
//!
//! An *attempt* is a request and all the smaller ones that follow from its refusal. A key of the
//! attempt is at fault only if KV refuses it alone, and accepts others before and after. Without
//! such *witnesses* the cause may be the token, the address, or anything else beside the key.
//!
//! The first witness is a key of the attempt. The search tries one key at a time, because a few
//! single keys tell more than many halves. It ends after a few refusals, because each costs a
//! request of the budget.
//!
//! Another cause may begin after the first witness, and end as well. So after all other requests of
//! the attempt a *control* follows: a request that KV has no reason to refuse. Then all keys that
//! were refused alone are sent once more, and then another control. A key that is refused between
//! the two controls is at fault.

use std::collections::HashMap;

use taskpipeline_contract::TaskId;

/// The most refused requests of a write attempt before the first acceptance.
///
/// 14 halvings lead from 10,000 keys to one key. Ten more single keys find a witness even if nine
/// tasks in ten are at fault.
const MOST_REFUSALS: u32 = 24;

/// The limit for reads, which have only a tenth of the budget.
const MOST_REFUSED_READS: u32 = 4;

/// The limit while KV refused everything lately: the request itself, and one key of it.
const MOST_WHILE_PROBING: u32 = 2;

/// The number of an attempt.
pub(crate) type AttemptId = u64;

/// The kind of the first request of an attempt, which decides how long the search for a witness may
/// be.
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

/// The consequences of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// The requests to send next, within the same attempt.
    pub(crate) next: Vec<Vec<TaskId>>,
    /// Whether the next request is a control.
    pub(crate) control: bool,
    /// Keys refused alone while others were accepted: they are at fault.
    pub(crate) blamed: Vec<(TaskId, String)>,
    /// Keys refused alone while nothing else was accepted. The attempt is over, and proves nothing
    /// about them.
    pub(crate) unexplained: Vec<(TaskId, String)>,
    /// Keys never sent alone. The attempt is over, because KV accepted nothing of it.
    pub(crate) untried: Vec<TaskId>,
    /// Whether the attempt is over, KV accepted something of it, and refused no control.
    pub(crate) others_accepted: bool,
}

/// The stage of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// KV has accepted nothing yet.
    Search,
    /// KV has accepted a key.
    Witness,
    /// The first control is in flight.
    Control,
    /// The first control was accepted, and all keys that were refused alone are sent once more.
    Again,
    /// The second control is in flight.
    LastControl,
}

#[derive(Debug)]
struct Attempt {
    patience: Patience,
    stage: Stage,
    /// Whether KV ever accepted anything of the attempt.
    witnessed: bool,
    refusals: u32,
    /// The number of its requests without an answer.
    out: usize,
    /// Keys refused alone, with the message of KV.
    alone: Vec<(TaskId, String)>,
    /// Keys that wait for a witness.
    rest: Vec<TaskId>,
}

/// The attempts that are not over.
#[derive(Debug, Default)]
pub(crate) struct Blame {
    attempts: HashMap<AttemptId, Attempt>,
    begun: AttemptId,
}

impl Blame {
    /// Registers a request that follows from no other.
    pub(crate) fn begin(&mut self, patience: Patience) -> AttemptId {
        self.begun += 1;
        let attempt = Attempt {
            patience,
            stage: Stage::Search,
            witnessed: false,
            refusals: 0,
            out: 1,
            alone: Vec::new(),
            rest: Vec::new(),
        };
        self.attempts.insert(self.begun, attempt);
        self.begun
    }

    /// Learns that a request succeeded. `witness`: at least one of its keys was written or read.
    pub(crate) fn accepted(&mut self, id: AttemptId, witness: bool, dice: u64) -> Ruling {
        let mut ruling = Ruling::default();
        let Some(attempt) = self.answered(id) else { return ruling };
        match attempt.stage {
            Stage::Search if witness => {
                (attempt.stage, attempt.witnessed) = (Stage::Witness, true);
                let rest = std::mem::take(&mut attempt.rest);
                // If a culprit is suspected already, all other keys may be valid together.
                ruling.next = if attempt.alone.is_empty() { halves(rest) } else { whole(rest) };
            }
            Stage::Control if witness => {
                attempt.stage = Stage::Again;
                ruling.next =
                    std::mem::take(&mut attempt.alone).into_iter().map(|(id, _)| vec![id]).collect();
            }
            Stage::LastControl if witness => ruling.blamed = std::mem::take(&mut attempt.alone),
            _ => {}
        }
        attempt.out += ruling.next.len();
        self.go_on(id, ruling, dice)
    }

    /// Learns that a request was refused. `too_large`: because of its size, so that halves of it
    /// may succeed.
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
        match (ids.len(), attempt.stage != Stage::Search) {
            // A control, which has no keys.
            (0, _) => {}
            (1, _) => attempt.alone.extend(ids.into_iter().map(|id| (id, what.to_owned()))),
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

    /// Learns that a request failed for a reason that proves nothing about its keys.
    pub(crate) fn failed(&mut self, id: AttemptId) -> Ruling {
        if let Some(attempt) = self.answered(id) {
            // The next request would probably fail for the same reason, and a control would prove
            // nothing.
            attempt.refusals = attempt.patience.most_refusals();
            attempt.stage = Stage::Search;
        }
        self.go_on(id, Ruling::default(), 0)
    }

    /// Learns that a request was not sent, because none of its keys needs a request any more.
    pub(crate) fn vanished(&mut self, id: AttemptId, dice: u64) -> Ruling {
        self.answered(id);
        self.go_on(id, Ruling::default(), dice)
    }

    pub(crate) fn clear(&mut self) {
        self.attempts.clear();
    }

    fn answered(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let attempt = self.attempts.get_mut(&id)?;
        attempt.out = attempt.out.saturating_sub(1);
        Some(attempt)
    }

    /// Continues the search for a witness, or ends an attempt that has no request in flight.
    fn go_on(&mut self, id: AttemptId, mut ruling: Ruling, dice: u64) -> Ruling {
        let Some(attempt) = self.attempts.get_mut(&id).filter(|attempt| attempt.out == 0) else {
            return ruling;
        };
        let may_go_on = attempt.refusals < attempt.patience.most_refusals();
        let control = match attempt.stage {
            Stage::Witness => Some(Stage::Control),
            Stage::Again => Some(Stage::LastControl),
            Stage::Search | Stage::Control | Stage::LastControl => None,
        };
        if !attempt.rest.is_empty() && may_go_on {
            let count = u64::try_from(attempt.rest.len()).unwrap_or(1);
            let place = usize::try_from(dice % count).unwrap_or_default();
            let one = attempt.rest.swap_remove(place);
            attempt.out = 1;
            ruling.next = vec![vec![one]];
        } else if let Some(stage) = control
            && !attempt.alone.is_empty()
            // A read has no use for a control, because nothing is concluded about it anyway.
            && attempt.patience != Patience::Read
        {
            (attempt.stage, attempt.out) = (stage, 1);
            ruling.control = true;
        } else if let Some(attempt) = self.attempts.remove(&id) {
            let refused_control = matches!(attempt.stage, Stage::Control | Stage::LastControl);
            ruling.others_accepted = attempt.witnessed && !refused_control;
            (ruling.unexplained, ruling.untried) = (attempt.alone, attempt.rest);
        }
        ruling
    }
}

/// Splits the keys into two requests, without empty ones.
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

    /// The end of an attempt.
    #[derive(Debug, Default)]
    struct Outcome {
        requests: usize,
        landed: usize,
        blamed: BTreeSet<String>,
        unexplained: usize,
        untried: usize,
    }

    /// Sends `count` keys to a KV that refuses requests with a `poison` key or with more than
    /// `most` keys.
    fn attempt(count: usize, patience: Patience, poison: impl Fn(usize) -> bool, most: usize) -> Outcome {
        let mut blame = Blame::default();
        let ids: Vec<_> = (0..count).map(|n| TaskId::new(n.to_string()).unwrap()).collect();
        let id = blame.begin(patience);
        let (mut requests, mut outcome, mut dice) = (VecDeque::from([ids]), Outcome::default(), 7_u64);
        while let Some(ids) = requests.pop_front() {
            outcome.requests += 1;
            let is_control = ids.is_empty();
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bad = ids.iter().any(|id| poison(id.as_str().parse().unwrap()));
            let ruling = if bad || (ids.len() > most || most == 0 && is_control) {
                blame.refused(id, ids, "no", !bad, dice >> 33)
            } else {
                outcome.landed += ids.len();
                blame.accepted(id, true, dice >> 33)
            };
            requests.extend(ruling.next);
            requests.extend(ruling.control.then(Vec::new));
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

    fn ids(names: &[&str]) -> Vec<TaskId> {
        names.iter().map(|name| TaskId::new(*name).unwrap()).collect()
    }

    /// An attempt of a, b and c that was refused. Then c was accepted alone, and b and a are sent.
    fn witnessed() -> (Blame, AttemptId) {
        let mut blame = Blame::default();
        let id = blame.begin(Patience::Write);
        assert_eq!(blame.refused(id, ids(&["a", "b", "c"]), "no", false, 2).next, [ids(&["c"])]);
        assert_eq!(blame.accepted(id, true, 0).next, [ids(&["a"]), ids(&["b"])]);
        (blame, id)
    }

    #[test]
    fn a_key_is_at_fault_that_is_refused_between_two_controls_that_are_accepted() {
        let (mut blame, id) = witnessed();
        assert_eq!(blame.accepted(id, true, 0), Ruling::default());
        let ruling = blame.refused(id, ids(&["b"]), "no", false, 0);
        assert!(ruling.control && ruling.blamed.is_empty(), "{ruling:?}");
        assert_eq!(blame.accepted(id, true, 0).next, [ids(&["b"])]);
        assert!(blame.refused(id, ids(&["b"]), "no", false, 0).control);
        assert_eq!(blame.accepted(id, true, 0).blamed.len(), 1);
        assert!(blame.attempts.is_empty());
    }

    #[test]
    fn nobody_is_blamed_for_a_cause_that_begins_after_the_witness_whether_or_not_it_ends() {
        for ends in [false, true] {
            let (mut blame, id) = witnessed();
            // The other cause begins here.
            assert!(blame.refused(id, ids(&["a"]), "no", false, 0).blamed.is_empty());
            assert!(blame.refused(id, ids(&["b"]), "no", false, 0).control);
            if ends {
                assert_eq!(blame.accepted(id, true, 0).next, [ids(&["a"]), ids(&["b"])]);
                assert!(blame.accepted(id, true, 0).blamed.is_empty());
                assert_eq!(
                    blame.accepted(id, true, 0),
                    Ruling { others_accepted: true, ..Ruling::default() }
                );
            } else {
                let ruling = blame.refused(id, Vec::new(), "no", false, 0);
                assert_eq!((ruling.unexplained.len(), ruling.others_accepted), (2, false));
            }
            assert!(blame.attempts.is_empty());
        }
    }

    #[test]
    fn a_control_that_comes_to_nothing_or_writes_nothing_convicts_nobody() {
        for fails in [false, true] {
            let (mut blame, id) = witnessed();
            blame.accepted(id, true, 0);
            assert!(blame.refused(id, ids(&["b"]), "no", false, 0).control);
            let ruling = if fails { blame.failed(id) } else { blame.accepted(id, false, 0) };
            assert_eq!((ruling.unexplained.len(), ruling.blamed.len()), (1, 0), "{ruling:?}");
            assert!(blame.attempts.is_empty());
        }
    }

    #[test]
    fn what_was_refused_before_the_cause_was_repaired_is_not_blamed_when_others_are_accepted() {
        let mut blame = Blame::default();
        let id = blame.begin(Patience::Write);
        assert_eq!(blame.refused(id, ids(&["a", "b", "c"]), "no", false, 0).next, [ids(&["a"])]);
        assert_eq!(blame.refused(id, ids(&["a"]), "no", false, 0).next, [ids(&["c"])]);
        // The cause is repaired here.
        assert_eq!(blame.accepted(id, true, 0).next, [ids(&["b"])]);
        assert!(blame.accepted(id, true, 0).control);
        assert_eq!(blame.accepted(id, true, 0).next, [ids(&["a"])]);
        assert_eq!(blame.accepted(id, true, 0), Ruling { others_accepted: true, ..Ruling::default() });
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
