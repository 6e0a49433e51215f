//! The dead letters about tasks and records.

use bytes::Bytes;
use taskpipeline_contract::TaskId;

use super::cache::Known;
use crate::dead_letters::{Letter, Origin};
use crate::durable::bucket::Stored;
use crate::durable::clock::{now, timestamp};
use crate::durable::names::Names;
use crate::reason::Reason;

impl Letter {
    /// The letter of a task that cannot be written as the ledger has it.
    ///
    /// It is not about a single event, so it has no payload. It has the task and the versions of
    /// the events that the task was built from.
    pub(crate) fn of_task(
        names: &Names,
        id: &TaskId,
        known: &Known,
        reason: Reason,
        detail: &str,
        attempts: u32,
    ) -> Self {
        let group = &names.queue_group;
        Self {
            id: format!("{group}-task-{}", known.revision.0),
            reason,
            detail: detail.to_owned(),
            faults: Vec::new(),
            attempts,
            subject: names.task(id),
            received_at: known.record.last.value.at,
            headers: None,
            header_block: None,
            payload: Bytes::new(),
            origin: Origin {
                version: Some(known.record.last.version),
                queue_group: Some(group.clone()),
                task_id: Some(id.clone()),
                task: known.record.task.visible(id),
                sources: known.record.task.sources(),
                ..Origin::default()
            },
        }
    }

    /// The letter of an unreadable record, which something else has overwritten.
    pub(crate) fn of_record(names: &Names, id: &TaskId, stored: &Stored, detail: &str) -> Self {
        let group = &names.queue_group;
        Self {
            id: format!("{group}-record-{}", stored.revision.0),
            reason: Reason::UnreadableInLedger,
            detail: detail.to_owned(),
            faults: Vec::new(),
            attempts: 1,
            subject: stored.subject.clone(),
            received_at: timestamp(now().saturating_mul(1_000_000)),
            headers: None,
            header_block: None,
            payload: stored.value.clone(),
            origin: Origin {
                queue_group: Some(group.clone()),
                task_id: Some(id.clone()),
                ..Origin::default()
            },
        }
    }
}
