//! Differences from an in-order replay: creates, updates and deletes of few ids, published in a known order by one
//! connection to several replicas.
//!
//! At the end, the content of KV is compared with the events in their order.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use taskpipeline_simulator::Latency;

use super::setup;
use crate::events::scattered;
use crate::fleet::Fleet;
use crate::measurement::{Findings, Knobs};
use crate::stage::Stage;
use crate::stats::count;
use crate::system::System;

/// The number of ids.
const IDS: u64 = 10;
/// The rate, in events a second.
const RATE: u64 = 200;

/// The fields of a task, as far as events set them.
type Task = BTreeMap<String, Value>;

/// Makes one measurement.
pub(crate) async fn measure(system: System, knobs: &Knobs) -> anyhow::Result<Findings> {
    let events = knobs.events_or(2_000);
    let rate = if knobs.rate == 0 { RATE } else { knobs.rate };
    let limited = !knobs.unlimited;
    let stage = Stage::new(limited, Latency::LIKELY).await?;
    let fleet = Fleet::start(system, &setup(limited, knobs), &stage).await?;
    let client = stage.nats.client().await?;
    let mut clock = tokio::time::interval(Duration::from_secs_f64(1.0 / count(rate)));
    let mut expected = BTreeMap::new();
    for place in 0..events {
        clock.tick().await;
        let (id, kind, data) = event(place, events);
        apply(&mut expected, &id, kind, &data);
        let event = json!({"correlationId": format!("bench-{place}"), "data": data}).to_string();
        client.publish(format!("tasks.{kind}"), event.into()).await?;
    }
    client.flush().await?;
    // The time is longer than the longest delay between two attempts of the peer.
    let settled = stage.quiet(Duration::from_secs(12), Duration::from_secs(90)).await;
    let mut findings = Findings::default();
    let mut wrong = 0_u32;
    for number in 0..IDS {
        let id = format!("hot-{number}");
        let found = stage.task(&id);
        if let Some(difference) = difference(expected.get(&id), found.as_ref()) {
            wrong += 1;
            findings.note(format!("{id}: {difference}"));
        }
    }
    findings.figure("tasks that differ", f64::from(wrong));
    findings.figure("tasks", count(IDS));
    findings.figure("events", count(events));
    findings.figure("written too soon", count(stage.kv.seen().writes_too_soon));
    if !settled {
        findings.note("the system still wrote 90 s after the last event");
    }
    drop(fleet);
    Ok(findings)
}

/// The event at this place. The last event of each id is an update, so that most tasks exist at the end.
fn event(place: u64, events: u64) -> (String, &'static str, Value) {
    let dice = scattered(place);
    let id = format!("hot-{}", place % IDS);
    let title = format!("Title {place}");
    let status =
        ["pending", "in_progress", "completed", "cancelled"][usize::from((dice >> 8).to_le_bytes()[0] % 4)];
    let last = place + IDS >= events;
    match dice % 20 {
        // The first event of each id is a create, and one in ten is a delete.
        _ if place < IDS => {
            (id.clone(), "created", json!({"id": id, "title": title, "description": "", "status": status}))
        }
        0..2 if !last => (id.clone(), "deleted", json!({"id": id})),
        2..8 if !last => {
            (id.clone(), "created", json!({"id": id, "title": title, "description": "", "status": status}))
        }
        8..12 => (id.clone(), "updated", json!({"id": id, "title": title})),
        12..16 => (id.clone(), "updated", json!({"id": id, "status": status})),
        _ => (id.clone(), "updated", json!({"id": id, "description": title})),
    }
}

/// The replay: a create sets all fields, an update its own fields if the task exists, and a delete removes the task.
fn apply(tasks: &mut BTreeMap<String, Task>, id: &str, kind: &str, data: &Value) {
    let fields = || data.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone()));
    match kind {
        "created" => {
            tasks.insert(id.to_owned(), fields().collect());
        }
        "updated" => {
            if let Some(task) = tasks.get_mut(id) {
                task.extend(fields());
            }
        }
        _ => {
            tasks.remove(id);
        }
    }
}

/// Describes the difference in KV, if any.
fn difference(expected: Option<&Task>, found: Option<&Value>) -> Option<String> {
    match (expected, found) {
        (None, None) => None,
        (Some(_), None) => Some("missing in KV".to_owned()),
        (None, Some(_)) => Some("in KV, though deleted".to_owned()),
        (Some(task), Some(found)) => {
            let wrong: Vec<_> = task
                .iter()
                .filter(|(name, value)| found.get(name.as_str()) != Some(*value))
                .map(|(name, value)| format!("{name} is {}, not {value}", found[name.as_str()]))
                .collect();
            (!wrong.is_empty()).then(|| wrong.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_goes_by_the_order() {
        let mut tasks = BTreeMap::new();
        apply(&mut tasks, "a", "updated", &json!({"id": "a", "title": "unseen"}));
        assert!(tasks.is_empty());
        apply(&mut tasks, "a", "created", &json!({"id": "a", "title": "1", "status": "pending"}));
        apply(&mut tasks, "a", "updated", &json!({"id": "a", "title": "2"}));
        let good = json!({"id": "a", "title": "2", "status": "pending", "createdAt": "whenever"});
        assert_eq!(difference(tasks.get("a"), Some(&good)), None);
        let bad = json!({"id": "a", "title": "1", "status": "pending"});
        assert!(difference(tasks.get("a"), Some(&bad)).is_some());
        apply(&mut tasks, "a", "deleted", &json!({"id": "a"}));
        assert_eq!((difference(tasks.get("a"), None), difference(None, Some(&bad)).is_some()), (None, true));
    }

    #[test]
    fn the_load_has_all_kinds_and_ends_with_updates() {
        let kinds: Vec<_> = (0..500).map(|place| event(place, 500).1).collect();
        for kind in ["created", "updated", "deleted"] {
            assert!(kinds.iter().filter(|it| **it == kind).count() > 10, "{kind}");
        }
        assert!(kinds.iter().rev().take(10).all(|kind| *kind == "updated"));
    }
}
