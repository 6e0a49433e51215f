//! Scenes with unsettled tasks: in doubt, refused, left in NATS and read again.

use taskpipeline_contract::{CorrelationId, EventData, NewTask, Task, TaskPatch, Timestamp};

use super::task::BYTES_PER_TASK;
use super::*;
use crate::fold::Version;
use crate::fold_reference::base;

const SETTLE_AFTER: Duration = Duration::from_secs(30);

#[test]
fn what_the_feed_still_has_of_a_task_that_was_settled_ahead_of_it_is_not_written() {
    let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), Some(EVERYTHING), settle_after, now);
    let id = TaskId::new("a").unwrap();
    unsettled.changed(&id, deleted(&id, 1), now);
    unsettled.sent(&id);
    assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
    let later = now + settle_after;
    assert_eq!(unsettled.take_doubtful(9, later), std::slice::from_ref(&id));
    unsettled.read_again(&id, deleted(&id, 52));
    unsettled.sent(&id);
    assert_eq!(unsettled.landed(&id, later), Landed::Settled);
    unsettled.settle(&id, Revision(52));
    assert_eq!(unsettled.settled(), Revision(1));
    for old in [45, 52] {
        unsettled.changed(&id, deleted(&id, old), later);
        assert!(unsettled.record(&id).is_none(), "{old} was to be written");
    }
    assert_eq!(unsettled.settled(), Revision(52));
    assert!(unsettled.reach.is_level());
    unsettled.changed(&id, deleted(&id, 60), later);
    assert!(unsettled.record(&id).is_some());
}

#[test]
fn as_many_deferred_tasks_as_there_may_be_are_not_taken_for_writes_that_wait() {
    let now = Instant::now();
    let nothing = Limits { write: 1_000_000, others: Limits::default().others.map(|(share, _)| (share, 0)) };
    let mut unsettled = Unsettled::new(&nothing, Revision(0), None, Duration::from_secs(30), now);
    let hour = Some(now + Duration::from_secs(3_600));
    let mut revision = 0;
    while unsettled.has_room() {
        revision += 1;
        let id = TaskId::new(format!("task-{revision}")).unwrap();
        assert_eq!(unsettled.read(&id, deleted(&id, revision), hour, now), Taken::Left);
    }
    assert_eq!(unsettled.deferred(), 229_000);
    assert!(unsettled.has_room_for(Share::Write), "nothing waits for KV, and the writer has not stalled");
}

/// A record in the ledger: the content of this event, with this version and revision.
fn known(data: &EventData, version: u64, revision: u64) -> Known {
    let (version, cause) = (Version::new(1, version), CorrelationId::new("c").unwrap());
    let record = Record::of(version, Timestamp::UNIX_EPOCH, cause, data);
    Known { record: Arc::new(record), revision: Revision(revision) }
}

fn created(id: &TaskId, version: u64, revision: u64) -> Known {
    let Task { id, title, description, status, .. } = base(id);
    known(&EventData::Created(NewTask { id, title, description, status }), version, revision)
}

fn deleted(id: &TaskId, revision: u64) -> Known {
    known(&EventData::Deleted(id.clone()), revision, revision)
}

fn updated(id: &TaskId, revision: u64) -> Known {
    let patch = TaskPatch { id: id.clone(), title: None, description: None, status: None };
    known(&EventData::Updated(patch), revision, revision)
}

#[test]
fn a_refusal_does_not_end_the_doubt_about_what_was_sent_before_it() {
    let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), None, settle_after, now);
    let id = TaskId::new("a").unwrap();
    unsettled.changed(&id, deleted(&id, 1), now);
    unsettled.sent(&id);
    unsettled.failed(&id, true, now);
    // The next change is refused, and kept as a dead letter. The first may still take effect.
    unsettled.changed(&id, deleted(&id, 2), now);
    unsettled.sent(&id);
    assert!(unsettled.refused(&id));
    unsettled.buried(&id, Revision(2), now);
    assert_eq!(unsettled.settled(), Revision(0));
    // The change after it is written at once, and again after the doubt.
    assert_eq!(unsettled.read(&id, deleted(&id, 3), None, now), Taken::In);
    unsettled.sent(&id);
    assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
    unsettled.buried(&id, Revision(3), now + settle_after);
    assert_eq!(unsettled.settled(), Revision(3));
}

#[test]
fn a_refusal_of_an_older_value_says_nothing_of_what_the_task_is_now() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), None, Duration::from_secs(30), now);
    let id = TaskId::new("a").unwrap();
    assert!(!unsettled.refused(&id), "nothing is known of it");
    unsettled.changed(&id, deleted(&id, 1), now);
    unsettled.sent(&id);
    unsettled.changed(&id, deleted(&id, 2), now);
    assert!(!unsettled.refused(&id));
    unsettled.sent(&id);
    assert!(unsettled.refused(&id));
    assert!(!unsettled.refused(&id), "it is sent no more");
}

#[test]
fn a_look_up_that_fails_says_nothing_of_a_write_that_is_under_way() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), None, Duration::from_secs(30), now);
    let id = TaskId::new("a").unwrap();
    unsettled.changed(&id, updated(&id, 1), now);
    unsettled.wait_for(&id, Share::LookUp);
    assert_eq!(unsettled.look_up_failed(&id), Some(1));
    // The task is deleted while the next look-up is in flight.
    unsettled.changed(&id, deleted(&id, 2), now);
    unsettled.sent(&id);
    assert_eq!(unsettled.look_up_failed(&id), None);
    assert_eq!(unsettled.landed(&id, now), Landed::Settled);
}

#[test]
fn a_look_up_that_was_left_and_is_read_from_an_old_copy_is_replaced_by_what_is_read_again() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), None, Duration::from_secs(30), now);
    let id = TaskId::new("a").unwrap();
    unsettled.changed(&id, updated(&id, 3), now);
    // The newer change was handled already, and is not read again.
    unsettled.read_again(&id, deleted(&id, 7));
    assert_eq!(unsettled.record(&id).unwrap().due(&id), Due::Delete);
    unsettled.read_again(&id, updated(&id, 3));
    assert_eq!(unsettled.record(&id).unwrap().due(&id), Due::Delete);
}

#[test]
fn what_the_last_holder_cannot_have_sent_is_written_once() {
    let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
    let doubt = Doubt { settled: Revision(10), up_to: Revision(20) };
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(10), Some(doubt), settle_after, now);
    let mut landed = |revision, follows, at| {
        let id = TaskId::new(format!("task-{revision}")).unwrap();
        let (version, cause) = (Version::new(1, revision), CorrelationId::new("c").unwrap());
        let mut record = Record::of(version, Timestamp::UNIX_EPOCH, cause, &EventData::Deleted(id.clone()));
        record.follows = Revision(follows);
        unsettled.changed(&id, Known { record: Arc::new(record), revision: Revision(revision) }, at);
        unsettled.sent(&id);
        unsettled.landed(&id, at)
    };
    assert_eq!(landed(15, 0, now), Landed::InDoubt);
    assert_eq!(landed(25, 15, now), Landed::InDoubt);
    assert_eq!(landed(26, 0, now), Landed::Settled);
    assert_eq!(landed(27, 9, now), Landed::Settled);
    assert_eq!(landed(30, 15, now + settle_after), Landed::Settled);
}

const EVERYTHING: Doubt = Doubt { settled: Revision(0), up_to: Revision(u64::MAX) };

#[test]
fn as_many_tasks_in_doubt_as_there_may_be_do_not_keep_themselves_from_being_written_again() {
    let (now, settle_after) = (Instant::now(), Duration::from_secs(30));
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), Some(EVERYTHING), settle_after, now);
    let mut revision = 0;
    while unsettled.has_room() && unsettled.has_room_for(Share::Doubt) {
        revision += 1;
        let id = TaskId::new(format!("task-{revision}")).unwrap();
        let cause = CorrelationId::new("c").unwrap();
        let record = Record::of(
            Version::new(1, revision),
            Timestamp::UNIX_EPOCH,
            cause,
            &EventData::Deleted(id.clone()),
        );
        unsettled.changed(&id, Known { record: Arc::new(record), revision: Revision(revision) }, now);
        unsettled.sent(&id);
        assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
    }
    let len = unsettled.len();
    assert_eq!(unsettled.occupied.total(), len * BYTES_PER_TASK, "no record is kept in memory");
    assert!(len > 13_000, "{len}");
    assert!(unsettled.has_room() && unsettled.has_room_to_come_back());
    assert_eq!(unsettled.take_doubtful(500, now + settle_after).len(), 500);
    assert_eq!(unsettled.settled(), Revision(0));
}

#[test]
fn a_task_that_landed_twice_in_one_doubt_is_to_be_read_again_once() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), Some(EVERYTHING), SETTLE_AFTER, now);
    let id = TaskId::new("a").unwrap();
    for revision in 1..=2 {
        unsettled.changed(&id, created(&id, revision, revision), now);
        unsettled.sent(&id);
        assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
    }
    // If it were requested twice, it would be found once, and count as missing the second time.
    assert_eq!(unsettled.take_doubtful(9, now + SETTLE_AFTER), [id]);
    assert!(unsettled.take_doubtful(9, now + SETTLE_AFTER).is_empty());
}

#[test]
fn what_the_feed_had_read_before_does_not_replace_what_was_read_again_since() {
    let now = Instant::now();
    let mut unsettled = Unsettled::new(&Limits::default(), Revision(0), Some(EVERYTHING), SETTLE_AFTER, now);
    let id = TaskId::new("a").unwrap();
    unsettled.changed(&id, created(&id, 1, 1), now);
    unsettled.sent(&id);
    assert_eq!(unsettled.landed(&id, now), Landed::InDoubt);
    let later = now + SETTLE_AFTER;
    assert_eq!(unsettled.take_doubtful(9, later), std::slice::from_ref(&id));
    // Deleted as 7 and created again as 9: the read after the doubt sees 9 before the feed reaches
    // 7.
    unsettled.read_again(&id, created(&id, 3, 9));
    unsettled.changed(&id, deleted(&id, 7), later);
    let found = unsettled.known(&id).unwrap();
    assert_eq!(found.revision, Revision(9));
    assert_eq!(
        found.record.last.version,
        Version::new(1, 3),
        "or the delete is recorded in place of the create"
    );
}
