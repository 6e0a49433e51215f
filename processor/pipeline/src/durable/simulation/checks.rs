//! The checks of a history.
//!
//! At any time, each change that is recorded as settled must be settled. After the faults, KV must equal an
//! independent replay of the stream, and dead letters must account for the rest. The budget must be kept, and nothing
//! may wait.

use std::collections::BTreeSet;

use super::kv::{POISON, Verdict, millis};
use super::replica::{Intake, Replica, Role};
use super::settings::{MEMORY, TASKS};
use super::truth::Message;
use super::world::{World, task};
use crate::durable::bucket::Revision;
use crate::durable::ledger::record::Due;
use crate::reason::Reason;
use taskpipeline_kv::Operation;

/// The longest time for everything to settle after the faults, in ms: a lease, doubts, redeliveries, and the longest
/// pause that KV requests.
const PATIENCE: u64 = 150_000;

/// The same time after KV has reported that the day's quota is used up.
const PATIENCE_AFTER_QUOTA: u64 = 700_000;

/// The number of tasks that KV accepts, which are written repeatedly while KV refuses others.
const WITNESSES: usize = 2;

impl World {
    /// Checks that each change that is recorded as settled is in KV, and that no request in flight can undo it.
    pub(super) fn check_settled(&mut self, n: usize, settled: Revision) {
        let mut wrong = None;
        {
            let net = self.net.lock().unwrap();
            let kv = self.namespaces[n].kv.lock().unwrap();
            for (id, record, _) in net.bucket.tasks().filter(|(.., revision)| *revision <= settled) {
                let key = format!("tasks:{}", id.as_str());
                let value = match record.due(id) {
                    Due::Put(task) => Some(serde_json::to_string(&task).unwrap()),
                    Due::Delete | Due::Nothing => None,
                    Due::LookUp => {
                        wrong = Some(format!("{key} waits for KV's answer, and counts as settled"));
                        break;
                    }
                };
                // A task that KV refuses becomes a dead letter.
                if value.as_ref().is_some_and(|value| value.contains(POISON)) {
                    continue;
                }
                if kv.get(&key) != value.as_deref() {
                    let found = kv.get(&key);
                    wrong =
                        Some(format!("{key} counts as settled at {settled:?}: {found:?} is not {value:?}"));
                    break;
                }
                let may_undo = kv.requests.iter().any(|request| {
                    let may_land = request.may_apply(kv.now) && request.lost.is_none_or(|at| at.is_some());
                    may_land
                        && request.operation != Operation::Get
                        && request.keys.iter().any(|(of, other)| *of == key && *other != value)
                });
                if may_undo {
                    wrong = Some(format!("{key} counts as settled, and a request may yet undo it"));
                    break;
                }
            }
        }
        if let Some(wrong) = wrong {
            self.fail(format!("namespace {n}: {wrong}"));
        }
    }

    /// Ends all faults, and runs every step at once until everything has settled.
    pub(super) fn recover(&mut self) {
        self.truth.faults = false;
        self.note(|| "no more faults".to_owned());
        let now = {
            let mut net = self.net.lock().unwrap();
            net.bucket.full = None;
            net.letters_full_until = 0;
            net.now
        };
        self.acks_to_lose = 0;
        for n in 0..self.namespaces.len() {
            self.kv(n).outage = None;
        }
        for p in 0..self.replicas.len() {
            self.go_on(p, false);
            self.reconnect(p);
            self.replicas[p].loses.clear();
        }
        let quota = self.seen.contains_key("daily quota");
        let patience = if quota { PATIENCE_AFTER_QUOTA } else { PATIENCE };
        let poisoned = !self.truth.poisoned().is_empty();
        let mut turns = 0_u64;
        while self.wrong.is_none() {
            // The interval varies: a fixed one might equal the interval at which KV refuses the others.
            if poisoned && (turns.is_multiple_of(20) || self.dice.chance(5)) {
                self.publish_witnesses();
            }
            turns += 1;
            self.settle_down();
            let why = self.unrest();
            if why.is_none() {
                break;
            }
            if self.now() > now + patience {
                if poisoned && self.waits_for_poison_alone() {
                    self.count("refused to the end");
                    break;
                }
                self.fail(format!("the world does not settle: {}", why.unwrap_or_default()));
            }
        }
    }

    /// Publishes tasks that KV accepts: a refused task is found out only beside such a task.
    fn publish_witnesses(&mut self) {
        for n in TASKS..TASKS + WITNESSES {
            let payload = format!(
                r#"{{"correlationId":"w","data":{{"id":"task-{n}","title":"w","description":"","status":"pending"}}}}"#
            );
            self.publish_quietly(&Message { subject: "tasks.created", payload, data: None });
        }
    }

    /// Whether only tasks that KV refuses are unsettled.
    ///
    /// While they never share a request with other tasks, nothing shows that they are at fault, and they wait. With
    /// so few tasks, all events may have one rhythm.
    fn waits_for_poison_alone(&mut self) -> bool {
        let poisoned = self.truth.poisoned();
        // The last events may wait for the request budget.
        (0..400).any(|_| {
            self.settle_down();
            let waits = |replica: &Replica| {
                let Role::Projecting(projecting) = &replica.role else { return true };
                let unsettled = projecting.projection.unsettled();
                let mut others =
                    (0..TASKS + WITNESSES).map(task).filter(|id| !poisoned.contains(id.as_str()));
                unsettled.len() <= poisoned.len() && others.all(|id| unsettled.record(&id).is_none())
            };
            let net = self.net.lock().unwrap();
            let done = self.consumer(&net).is_some_and(|consumer| net.stream.is_done(&consumer));
            done && self.replicas.iter().all(waits)
        })
    }

    /// Runs for a while, with every possible step.
    pub(super) fn settle_down(&mut self) {
        self.tick(true);
        for _ in 0..8 {
            let open = self.open_calls();
            if open.is_empty() || self.wrong.is_some() {
                break;
            }
            open.into_iter().for_each(|id| self.call(id));
        }
        for p in 0..self.replicas.len() {
            self.feed(p, usize::MAX, false);
        }
        for n in 0..self.namespaces.len() {
            let out = self.kv(n).requests.len();
            for which in (0..out).rev() {
                self.answer(n, which, Verdict::Landed);
            }
        }
    }

    /// Describes what still moves; `None` if everything has settled.
    fn unrest(&self) -> Option<String> {
        let net = self.net.lock().unwrap();
        let Some(consumer) = self.consumer(&net) else {
            return Some("no replica knows the stream".to_owned());
        };
        // The next session removes a consumer of a former incarnation, if its deletion was lost.
        let strays = net.stream.consumers_beside(&consumer);
        let may_stray = self.seen.contains_key("answers lost") || self.seen.contains_key("killed");
        if !net.stream.is_done(&consumer) || !strays.is_empty() && !may_stray {
            return Some(format!("events wait for {consumer}: {:?}", net.stream.open()));
        }
        let waiting = |replica: &Replica| match &replica.intake {
            Intake::Working(working) => {
                let old = working.connection != replica.connection;
                !working.waiting.is_empty() || working.ending.is_some() || old
            }
            _ => true,
        };
        if let Some(p) = self.replicas.iter().position(waiting) {
            return Some(format!("replica {p} still takes in"));
        }
        let newest = net.bucket.tasks().map(|(.., revision)| revision).max().unwrap_or_default();
        for (n, namespace) in self.namespaces.iter().enumerate() {
            let settled = namespace.control.as_ref().map(|(control, _)| control.settled);
            if settled.is_none_or(|settled| settled < newest) {
                return Some(format!("namespace {n}: {settled:?} of {newest:?} is settled"));
            }
            let writes = |role: &Role| matches!(role, Role::Projecting(_));
            let writers = self.replicas.iter().filter(|it| it.target == n && writes(&it.role)).count();
            if writers != 1 {
                return Some(format!("namespace {n} has {writers} writers"));
            }
            if !namespace.kv.lock().unwrap().requests.is_empty() {
                return Some(format!("namespace {n}: requests are out"));
            }
        }
        for (p, replica) in self.replicas.iter().enumerate() {
            if let Role::Projecting(projecting) = &replica.role
                && projecting.projection.unsettled().len() > 0
            {
                return Some(format!(
                    "replica {p}: {} tasks are unsettled",
                    projecting.projection.unsettled().len()
                ));
            }
        }
        (!self.commands.is_empty()).then(|| format!("{} commands wait for requests", self.commands.len()))
    }

    /// Checks that the outcome equals the replay.
    pub(super) fn check_end(&mut self) {
        let poisoned = self.truth.poisoned();
        let mut wrong = Vec::new();
        for (n, namespace) in self.namespaces.iter().enumerate() {
            let kv = namespace.kv.lock().unwrap();
            for t in 0..TASKS {
                let expected = self.truth.expected(t, self.setting.known[t]);
                let expected = expected.map(|task| serde_json::to_string(&task).unwrap());
                // KV cannot have a value that it refuses. Its older value depends on the earlier writes.
                if poisoned.contains(&format!("task-{t}")) {
                    continue;
                }
                let found = kv.get(&format!("tasks:task-{t}"));
                if found != expected.as_deref() {
                    wrong.push(format!("namespace {n}, task-{t}: {found:?} is not {expected:?}"));
                }
            }
            let tuned = self.seen.contains_key("budget changed");
            let (requests, seconds) = self.setting.tuning.budget;
            let fullest = kv.fullest_window(std::time::Duration::from_secs(seconds));
            if !tuned && fullest > usize::try_from(requests).unwrap() {
                wrong.push(format!(
                    "namespace {n}: {fullest} requests in {seconds} s, and {requests} are allowed"
                ));
            }
        }
        self.check_letters(&poisoned, &mut wrong);
        for wrong in wrong {
            self.fail(wrong);
        }
    }

    /// Checks that dead letters account for exactly the invalid events and the tasks that KV refuses.
    fn check_letters(&self, poisoned: &BTreeSet<String>, wrong: &mut Vec<String>) {
        let net = self.net.lock().unwrap();
        let mut invalid: Vec<_> = self.truth.invalid.clone();
        let mut accounted: Vec<_> = Vec::new();
        for letter in &net.letters {
            match letter.reason {
                Reason::Invalid => match invalid.iter().position(|payload| *payload == letter.payload) {
                    Some(place) => accounted.push((invalid.swap_remove(place), &letter.id)),
                    // A late replica may create the consumer of the former incarnation again. The consumer of the new
                    // incarnation delivers the same message, so each incarnation has a letter.
                    None if accounted.iter().any(|(payload, id)| {
                        *payload == letter.payload && is_of_another_life(id, &letter.id)
                    }) => {}
                    None => wrong.push(format!("a dead letter of nothing, or one too many: {letter:?}")),
                },
                Reason::RefusedByKv => {
                    if !letter.task.as_ref().is_some_and(|task| poisoned.contains(task)) {
                        wrong.push(format!("a dead letter of what KV takes: {letter:?}"));
                    }
                }
                other => wrong.push(format!("a dead letter for {other:?}: {letter:?}")),
            }
        }
        for payload in invalid {
            wrong.push(format!("no dead letter of {payload:?}"));
        }
    }

    /// Lets replicas write the same records at the same time, without faults: no session may end because of that, and
    /// almost no event may be refused and tried again.
    pub(super) fn live_quietly(&mut self) {
        // A replica that still drains ends its session because of that.
        if self.replicas.iter().any(|replica| replica.draining) {
            return;
        }
        let trouble = |world: &Self| {
            ["sessions ended", "tried again"].map(|what| world.seen.get(what).copied().unwrap_or_default())
        };
        let before = trouble(self);
        for _ in 0..6 {
            for _ in 0..3 {
                self.publish();
            }
            self.tick(false);
            (0..self.replicas.len()).for_each(|p| self.pull(p, 1));
            // Each round gives one answer, so that writes of several replicas are in flight together.
            for _ in 0..20 {
                self.work(1);
            }
        }
        self.recover();
        let after = trouble(self);
        // One write may lose to others as often as it is tried.
        if after[0] > before[0] || after[1] > before[1] + 2 {
            self.fail(format!(
                "sessions ended or events were tried again without a fault: {after:?} after {before:?}"
            ));
        }
        self.check_end();
    }

    /// Lets tombstones expire, and checks that deleted tasks stay deleted.
    pub(super) fn outlive_the_memory(&mut self) {
        let end = self.now() + 2 * millis(MEMORY) + 5_000;
        while self.now() < end && self.wrong.is_none() {
            for _ in 0..3 {
                self.tick(true);
            }
            self.settle_down();
        }
        self.check_end();
    }
}

/// Whether these are ids of letters about one message that consumers of two incarnations delivered.
fn is_of_another_life(id: &str, other: &str) -> bool {
    match (id.rsplit_once('-'), other.rsplit_once('-')) {
        (Some((consumer, sequence)), Some((another, same))) => sequence == same && consumer != another,
        _ => false,
    }
}
