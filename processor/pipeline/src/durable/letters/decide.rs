//! Decides whether a letter may be replayed. Pure: it takes the letter and the state of its task.
//!
//! A refusal says what was refused, why, and what to do.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::HashSet;
use std::time::Duration;

use taskpipeline_contract::{DecodeError, Event, TaskId};

use super::store::Opened;
use super::text::line;
use crate::durable::names::Names;
use crate::fold::Version;
use crate::reason::Reason;

/// How to replay a letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Publish its original bytes again.
    Publish,
    /// Write the present task of the ledger to KV again.
    Touch(TaskId),
}

/// The facts besides the letter that the decision depends on.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// The newest version of the task in the ledger.
    pub(super) newest: Option<Version>,
    /// The sequences of events that this command has published. They are not newer than the
    /// letters, which are replayed in their own order.
    pub(super) own: &'a HashSet<u64>,
    /// The number of events that are not in the ledger yet.
    pub(super) behind: u64,
    /// How long the stream keeps events, and so how long the ledger remembers deletes at least;
    /// `None` means indefinitely.
    pub(super) memory: Option<Duration>,
    /// How long ago the event was received.
    pub(super) age: Duration,
    /// Whether to publish the event as the newest one without these checks.
    pub(super) as_new: bool,
}

/// Why a letter is not replayed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "this version of taskpipeline cannot read the message as a dead letter. Read it with `show`, and delete it with `drop`"
    )]
    Foreign,
    #[error(
        "{} of its {expected} parts are missing ({}), so its payload is incomplete. If a replica is storing it right now, \
         try again. Otherwise have its producer publish the event again, and drop the letter",
        .missing.len(), list(.missing)
    )]
    Incomplete { missing: Vec<usize>, expected: usize },
    #[error("it belongs to the queue group {}, and only the ledger of that group knows its task. Set QUEUE_GROUP to that \
             group", line(.0))]
    OtherGroup(String),
    #[error("its subject {} does not belong to this pipeline. Set SUBJECT_PREFIX to the prefix of the subject", line(.0))]
    OtherSubject(String),
    #[error(
        "its payload is still not a valid event ({0}), so it would become a dead letter again. Publish a corrected event \
         (`taskpipeline publish`) and drop the letter. If newer processors accept it, replay it with --as-new"
    )]
    Undecodable(DecodeError),
    #[error(
        "the task {} has a newer event (version {newest}, the letter has {version}), so a replay would restore an old \
         state. Drop the letter, or pass --as-new to replay it as the newest event",
        line(.task.as_str())
    )]
    Newer { task: TaskId, newest: Version, version: Version },
    #[error(
        "events wait in the stream ({events}), and newer ones of the task {} may be among them. Try again when the \
         replicas have caught up, or pass --as-new to replay the letter as the newest event",
        line(.task.as_str())
    )]
    Behind { events: u64, task: TaskId },
    #[error(
        "the ledger knows the task {}, and the letter has no version (mode Core), so a replay may restore an old state. \
         Drop the letter, or pass --as-new to replay it as the newest event",
        line(.0.as_str())
    )]
    NoVersion(TaskId),
    #[error(
        "the ledger has no record of the task {}, and the event is older than the memory of deleted tasks ({} h), so a \
         replay may restore a deleted task. Drop the letter, or pass --as-new to replay it as the newest event",
        line(.0.as_str()), .1.as_secs() / 3_600
    )]
    Forgotten(TaskId, Duration),
    #[error(
        "the task {} was deleted and the ledger has no record of it, so nothing remains to be written. Drop the letter",
        line(.0.as_str())
    )]
    NoRecord(TaskId),
    #[error(
        "KV holds a value under tasks:{} that is not a task, so its updates counted as updates of a missing task. A \
         replay would change nothing. Publish a tasks.created for it (`taskpipeline publish created`), which replaces the \
         value, and drop the letter",
        line(.0.as_str())
    )]
    UnreadableInKv(TaskId),
    #[error(
        "its payload is an unreadable record of the ledger, which the next event of the task {} replaced. It has no event \
         to replay. Compare it with the task, publish the missing changes (`taskpipeline publish`), and drop the letter",
        line(.0.as_str())
    )]
    UnreadableInLedger(TaskId),
}

/// The task that the letter is about.
pub(super) fn task_of(letter: &Opened, names: &Names) -> Option<TaskId> {
    let envelope = letter.envelope.as_ref()?;
    if let Some(id) = &envelope.origin.task_id {
        return Some(id.clone());
    }
    let kind = names.kind(&envelope.subject)?;
    Event::decode(kind, &letter.payload).ok().map(|event| event.task_id().clone())
}

/// Decides how to replay the letter.
pub(super) fn decide(letter: &Opened, names: &Names, facts: &Facts<'_>) -> Result<Action, Refusal> {
    let envelope = letter.envelope.as_ref().ok_or(Refusal::Foreign)?;
    if !letter.missing.is_empty() {
        return Err(Refusal::Incomplete { missing: letter.missing.clone(), expected: envelope.parts });
    }
    if let Some(group) = envelope.origin.queue_group.as_ref().filter(|group| **group != names.queue_group) {
        return Err(Refusal::OtherGroup(group.clone()));
    }
    if let Some(task) = &envelope.origin.task_id {
        let task = task.clone();
        return match facts.newest {
            _ if envelope.reason == Reason::UnreadableInKv => Err(Refusal::UnreadableInKv(task)),
            _ if envelope.reason == Reason::UnreadableInLedger => Err(Refusal::UnreadableInLedger(task)),
            None => Err(Refusal::NoRecord(task)),
            Some(_) => Ok(Action::Touch(task)),
        };
    }
    let kind =
        names.kind(&envelope.subject).ok_or_else(|| Refusal::OtherSubject(envelope.subject.clone()))?;
    if facts.as_new {
        return Ok(Action::Publish);
    }
    let event = Event::decode(kind, &letter.payload).map_err(Refusal::Undecodable)?;
    let task = event.task_id().clone();
    match (facts.newest, envelope.origin.version) {
        (Some(newest), _) if facts.own.contains(&newest.sequence()) => {}
        (Some(newest), Some(version)) if newest > version => {
            return Err(Refusal::Newer { task, newest, version });
        }
        (Some(_), None) => return Err(Refusal::NoVersion(task)),
        (Some(_), Some(_)) => {}
        (None, _) => {
            if let Some(memory) = facts.memory.filter(|memory| facts.age > *memory) {
                return Err(Refusal::Forgotten(task, memory));
            }
        }
    }
    if facts.behind > 0 { Err(Refusal::Behind { events: facts.behind, task }) } else { Ok(Action::Publish) }
}

fn list(parts: &[usize]) -> String {
    /// Enough to see the extent.
    const MOST: usize = 10;
    let mut shown: Vec<_> = parts.iter().take(MOST).map(ToString::to_string).collect();
    if parts.len() > MOST {
        shown.push("…".to_owned());
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use taskpipeline_contract::Timestamp;

    use super::super::entry::tests::message;
    use super::*;
    use crate::settings::{DurableSettings, EventSettings};

    const EVENT: &[u8] = br#"{"correlationId":"c","data":{"id":"a"}}"#;

    fn names() -> Names {
        Names::new(&EventSettings::default(), &DurableSettings::default())
    }

    fn opened(payload: &[u8], change: impl Fn(&mut Value)) -> Opened {
        let mut envelope = message("tasks-processor-1-5", 1, 1, b"");
        envelope["subject"] = json!("tasks.deleted");
        change(&mut envelope);
        Opened {
            sequences: vec![1],
            stored: Timestamp::UNIX_EPOCH,
            missing: Vec::new(),
            envelope: Some(serde_json::from_value(envelope).unwrap()),
            payload: payload.to_vec(),
        }
    }

    fn an_event() -> Opened {
        opened(EVENT, |_| {})
    }

    fn a_task(reason: &str) -> Opened {
        opened(b"", |envelope| {
            envelope["taskId"] = json!("a");
            envelope["subject"] = json!("$KV.x.task.a");
            envelope["reason"] = json!(reason);
        })
    }

    fn facts(own: &HashSet<u64>) -> Facts<'_> {
        let memory = Some(Duration::from_secs(3_600));
        Facts { newest: None, own, behind: 0, memory, age: Duration::ZERO, as_new: false }
    }

    fn decided(letter: &Opened, change: impl Fn(&mut Facts<'_>)) -> Result<Action, Refusal> {
        let own = HashSet::from([77]);
        let mut facts = facts(&own);
        change(&mut facts);
        decide(letter, &names(), &facts)
    }

    fn a() -> TaskId {
        TaskId::new("a").unwrap()
    }

    #[test]
    fn an_event_is_published_unless_its_task_is_newer() {
        let version = |n| Version::new(1, n);
        assert_eq!(task_of(&an_event(), &names()), Some(a()));
        assert_eq!(decided(&an_event(), |_| {}), Ok(Action::Publish));
        for (newest, as_new, allowed) in [
            (version(4), false, true),
            (version(5), false, true),
            (version(6), false, false),
            (version(6), true, true),
            (Version::new(2, 1), false, false),
            (version(77), false, true),
        ] {
            let decision = decided(&an_event(), |facts| {
                facts.newest = Some(newest);
                facts.as_new = as_new;
            });
            let expected = if allowed {
                Ok(Action::Publish)
            } else {
                Err(Refusal::Newer { task: a(), newest, version: version(5) })
            };
            assert_eq!(decision, expected, "{newest} {as_new}");
        }
    }

    #[test]
    fn what_may_be_newer_though_the_ledger_does_not_say_so_is_refused_too() {
        assert_eq!(
            decided(&an_event(), |facts| facts.behind = 3),
            Err(Refusal::Behind { events: 3, task: a() })
        );
        let day = Duration::from_hours(24);
        let refused = decided(&an_event(), |facts| facts.age = day);
        assert_eq!(refused, Err(Refusal::Forgotten(a(), Duration::from_hours(1))));
        let known = decided(&an_event(), |facts| {
            facts.age = day;
            facts.newest = Some(Version::new(1, 2));
        });
        assert_eq!(known, Ok(Action::Publish));
        let for_ever = decided(&an_event(), |facts| {
            facts.age = day;
            facts.memory = None;
        });
        assert_eq!(for_ever, Ok(Action::Publish), "deleted tasks are never forgotten");
        let core = opened(EVENT, |envelope| envelope["version"] = Value::Null);
        assert_eq!(decided(&core, |_| {}), Ok(Action::Publish));
        let refused = decided(&core, |facts| facts.newest = Some(Version::new(1, 1)));
        assert_eq!(refused, Err(Refusal::NoVersion(a())));
    }

    #[test]
    fn bytes_that_still_are_no_event_are_published_only_as_new() {
        let letter = opened(b"{}", |_| {});
        assert!(matches!(decided(&letter, |_| {}), Err(Refusal::Undecodable(_))));
        assert_eq!(decided(&letter, |facts| facts.as_new = true), Ok(Action::Publish));
    }

    #[test]
    fn what_is_not_whole_or_not_ours_is_never_replayed() {
        let parts = Opened { missing: vec![2], ..an_event() };
        let other_group = opened(EVENT, |envelope| envelope["queueGroup"] = json!("other"));
        let other_subject = opened(EVENT, |envelope| envelope["subject"] = json!("orders.deleted"));
        let foreign = Opened { envelope: None, ..an_event() };
        for (letter, refusal) in [
            (parts, Refusal::Incomplete { missing: vec![2], expected: 1 }),
            (other_group, Refusal::OtherGroup("other".to_owned())),
            (other_subject, Refusal::OtherSubject("orders.deleted".to_owned())),
            (foreign, Refusal::Foreign),
        ] {
            assert_eq!(decided(&letter, |facts| facts.as_new = true), Err(refusal));
        }
    }

    #[test]
    fn a_refused_task_is_tried_again_as_the_ledger_has_it() {
        let newest = Some(Version::new(9, 9));
        let refused = a_task("refused-by-kv");
        assert_eq!(decided(&refused, |facts| facts.newest = newest), Ok(Action::Touch(a())));
        assert_eq!(decided(&refused, |_| {}), Err(Refusal::NoRecord(a())));
        let unreadable = a_task("unreadable-in-kv");
        assert_eq!(decided(&unreadable, |facts| facts.newest = newest), Err(Refusal::UnreadableInKv(a())));
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let version = Version::new(1, 1);
        for refusal in [
            Refusal::Foreign,
            Refusal::Incomplete { missing: (1..20).collect(), expected: 20 },
            Refusal::OtherGroup("g".to_owned()),
            Refusal::OtherSubject("s".to_owned()),
            Refusal::Undecodable(DecodeError::Malformed("no".to_owned())),
            Refusal::Newer { task: a(), newest: version, version },
            Refusal::Behind { events: 1, task: a() },
            Refusal::NoVersion(a()),
            Refusal::Forgotten(a(), Duration::from_hours(72)),
            Refusal::NoRecord(a()),
            Refusal::UnreadableInKv(a()),
        ] {
            let said = refusal.to_string().to_lowercase();
            let advice = ["drop", "--as-new", "set queue_group", "set subject_prefix"];
            assert!(advice.iter().any(|advice| said.contains(advice)), "{said}");
        }
    }
}
