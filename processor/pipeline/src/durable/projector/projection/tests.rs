//! Scenes with a single projection: the test answers for NATS and KV.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::Config;
use taskpipeline_contract::{CorrelationId, EventData, NewTask, Task};
use taskpipeline_kv::{Failure, Operation, Spare};

use super::*;
use crate::durable::control::holder::Renewal;
use crate::durable::control::record::Control;
use crate::durable::ledger::record::{Due, Record};
use crate::durable::simulation::settings::limits;
use crate::fold::Version;
use crate::fold_reference::{at, base};
use crate::schedule::{Answer, KeyOutcome, Reply, Request};

/// Few, so that tasks wait for each other and requests overlap.
const MOST_KEYS: u16 = 2;

const ROUND: Duration = Duration::from_millis(300);

fn projection(now: Instant) -> Projection {
    let (metrics, health) = (Arc::new(Metrics::new().unwrap()), Arc::new(Health::default()));
    let setup = Setup {
        settle_after: Duration::from_secs(10),
        memory: None,
        read_ahead: 2,
        target: Target::new("http://kv"),
        limits: limits(),
        names: Arc::new(Names::of("TASKS", "tasks-processor", "tasks")),
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
    };
    let mut tuning = Tuning {
        // So long that a task which changes again during its rest waits in NATS.
        min_write_interval: Duration::from_secs(4),
        max_keys: NonZeroU16::new(MOST_KEYS).unwrap(),
        ..Tuning::default()
    };
    tuning.request_budget.requests = NonZeroU32::new(1_000_000).unwrap();
    let control = Control {
        holder: None,
        term: 1,
        settled: Revision(0),
        sure: Revision(0),
        reading: Revision::last(),
        spare: 0,
        clean: true,
        beat: 0,
        renewed: 0,
    };
    let spare = Spare { requests: 1_000_000.0, refilling: Duration::ZERO };
    let held = Lease { control, revision: Revision(1), since: now, doubt: None, spare, shared: false };
    let schedule = Schedule::new(&tuning, tenth(tuning.request_budget), metrics, health, 1, now);
    Projection::new(setup, tuning, schedule, Rests::new(now), held, now)
}

/// Takes a turn. Returns the requests and jobs.
fn turn(projection: &mut Projection, stopping: bool, now: Instant) -> (Vec<Flight>, Vec<Job>) {
    projection.turn(stopping, now);
    let (mut flights, mut jobs) = (Vec::new(), Vec::new());
    while let Some(action) = projection.action() {
        match action {
            Action::Send(flight) => flights.push(flight),
            Action::Begin(job) => jobs.push(job),
            Action::FollowLeft(_) | Action::LeaveLeft | Action::Restart(_) => {
                unreachable!("nothing is looked up, and nothing is lost")
            }
        }
    }
    (flights, jobs)
}

fn task(n: usize) -> TaskId {
    TaskId::new(format!("task-{n}")).unwrap()
}

/// The record of a create.
fn created(n: usize, sequence: u64) -> Known {
    let Task { id, title, description, status, .. } = base(&task(n));
    let data = EventData::Created(NewTask { id, title, description, status });
    let record = Record::of(Version::new(1, sequence), at(0), CorrelationId::new("c").unwrap(), &data);
    Known { record: Arc::new(record), revision: Revision(sequence) }
}

proptest! {
    #![proptest_config(Config { cases: 500, failure_persistence: None, ..Config::default() })]
    #[test]
    fn a_task_that_changes_all_the_time_neither_starves_nor_is_starved(
        tasks in 1..12_usize,
        hot in proptest::collection::btree_set(0..12_usize, 0..6),
        rounds in proptest::collection::vec((any::<Index>(), prop::bool::weighted(0.3), 0..4_u32), 20..60),
    ) {
        let mut now = Instant::now();
        let mut projection = projection(now);
        let mut ledger: BTreeMap<TaskId, Known> = BTreeMap::new();
        let mut waits: BTreeMap<TaskId, usize> = BTreeMap::new();
        let (mut sequence, mut in_flight) = (0, VecDeque::new());
        for (which, cold, delay) in rounds {
            let mut changed: Vec<_> = hot.iter().filter(|n| **n < tasks).copied().collect();
            changed.extend(cold.then(|| which.index(tasks)));
            let mut changes = BTreeMap::new();
            for n in changed {
                sequence += 1;
                let mut known = created(n, sequence);
                if let Some(before) = ledger.get(&task(n)) {
                    let mut record = Record::clone(&before.record);
                    record.merge(&known.record);
                    known.record = Arc::new(record);
                }
                ledger.insert(task(n), known.clone());
                changes.insert(task(n), known);
                waits.entry(task(n)).or_default();
            }
            let mut changes: Vec<_> =
                changes.into_iter().map(|(id, known)| Change { id, known, behind: 0 }).collect();
            changes.sort_by_key(|change| change.known.revision);
            prop_assert!(projection.wants_changes());
            projection.changes(changes, now);
            // It holds the control record all the time.
            projection.held.since = now;
            loop {
                let (flights, jobs) = turn(&mut projection, false, now);
                for Flight { request, attempt } in flights {
                    let Request::Put(puts) = request else { panic!("nothing is looked up or deleted") };
                    let (ids, body) = puts.finish();
                    let pairs = body.unwrap().to_json();
                    for (n, id) in ids.iter().enumerate() {
                        let value = serde_json::from_str(pairs[n]["value"].as_str().unwrap()).unwrap();
                        let newest = ledger[id].record.due(id);
                        prop_assert_eq!(Due::Put(value), newest, "the value is read when it is sent");
                        waits.remove(id);
                    }
                    in_flight.push_back((ids, attempt, now));
                }
                let mut read = false;
                for job in jobs {
                    let Job::ReadAt(due) = job else { continue };
                    let found = ledger.iter().map(|(id, known)| (known.revision, (id.clone(), known.clone())));
                    projection.done(Done::ReadAt(due, Ok(found.collect())), now);
                    read = true;
                }
                if !read {
                    break;
                }
            }
            waits.values_mut().for_each(|waits| *waits += 1);
            // All tasks before it in the queue, its answer, its rest, and the tasks that return
            // before it.
            let most = tasks.div_ceil(usize::from(MOST_KEYS)) + 4 + 14 + tasks.div_ceil(3);
            prop_assert!(waits.values().all(|waits| *waits <= most), "{:?} of {}", waits, most);
            now += ROUND;
            while in_flight.front().is_some_and(|(.., sent)| now.duration_since(*sent) >= ROUND * delay) {
                let (ids, attempt, sent) = in_flight.pop_front().unwrap();
                let result = Ok(ids.iter().map(|_| KeyOutcome::Landed).collect());
                let answer = Answer { operation: Operation::Put, ids, result };
                projection.answered(Reply { answer, sent, attempt, allowance: None }, now, 0);
            }
        }
    }
}

/// A renewal takes longer than the time until the next one is due.
#[test]
fn a_replica_that_drains_leaves_though_each_renewal_takes_longer_than_a_second() {
    let mut now = Instant::now();
    let mut projection = projection(now);
    now += RENEWAL;
    let (_, mut jobs) = turn(&mut projection, false, now);
    let mut renewals = 0;
    while !projection.may_leave() {
        assert!(renewals < 3, "it renews, and does not leave");
        let Some(Job::Renew { held, .. }) = jobs.pop() else {
            panic!("nothing is under way, and it does not leave")
        };
        renewals += 1;
        let since = now;
        now += RENEWAL + Duration::from_millis(250);
        projection.done(Done::Renewed(Renewal::Renewed(Lease { since, ..held }), None), now);
        (_, jobs) = turn(&mut projection, true, now);
    }
    assert_eq!(renewals, 1);
}

/// A task waits for its retry. The renewal is not answered, so that nothing may be sent when the retry is due.
#[test]
fn a_projector_that_may_not_send_sleeps_until_it_hears_of_its_renewal() {
    let mut now = Instant::now();
    let mut projection = projection(now);
    projection.changes(vec![Change { id: task(1), known: created(1, 1), behind: 0 }], now);
    let (mut flights, _) = turn(&mut projection, false, now);
    let Flight { request, attempt } = flights.pop().unwrap();
    let answer = Answer {
        operation: Operation::Put,
        ids: request.ids().to_vec(),
        result: Err(Failure::Transient("status 500".to_owned())),
    };
    projection.answered(Reply { answer, sent: now, attempt, allowance: None }, now, 0);
    let mut slept = 0;
    for _ in 0..40 {
        now += ROUND;
        let (flights, jobs) = turn(&mut projection, slept > 20, now);
        assert!(flights.is_empty() || projection.may_send(now));
        drop(jobs);
        let wake_at = projection.next_wake(slept > 20, now);
        assert!(wake_at > now, "the driver would take turns without a pause");
        slept += u32::from(!projection.may_send(now));
    }
    assert!(slept > 0, "it may send all the time: the test shows nothing");
}
