//! Hand-written histories: single faults that a drawn history meets too rarely to rely on.

use std::sync::Arc;

use async_nats::jetstream::consumer::pull::Config;
use bytes::Bytes;
use taskpipeline_contract::{Description, EventData, NewTask, Status, Title};

use super::kv::Verdict;
use super::net::{Acking, Link, nanos};
use super::replica::{Intake, Out, Tag};
use super::runner::played;
use super::settings::{ACK_WAIT, Knobs, REPLICAS, Setting, TICK};
use super::steps::{Drawn, Step};
use super::truth::Message;
use super::world::{World, task};
use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::raw::Raw;
use crate::durable::intake::ingest::{HandedOut, Ingest};
use crate::durable::stream::incarnation::HighWater;
use crate::fold::Version;
use crate::header_block::HeaderFault;
use crate::reason::Reason;

const SETTING: Setting = Setting {
    clustered: false,
    two_namespaces: false,
    known: [false; 3],
    poison: false,
    long: false,
    workers: 1,
    tuning: Knobs {
        budget: (1_000_000, 300),
        min_write_interval: 1,
        max_keys: 2,
        retry_after: 1,
        attempts: 2,
    },
};

impl World {
    fn step(&mut self, step: Step) {
        self.take(&Drawn { step, seed: 1 });
        assert_eq!(self.wrong, None);
    }

    fn create(&mut self, title: &str) {
        let (id, title) = (task(0), Title::new(title).unwrap());
        let payload = format!(
            r#"{{"correlationId":"c","data":{{"id":"{}","title":"{}","description":"","status":"pending"}}}}"#,
            id.as_str(),
            title.as_str()
        );
        let description = Description::new(String::new()).unwrap();
        let data = EventData::Created(NewTask { id, title, description, status: Status::Pending });
        self.publish_message(&Message { subject: "tasks.created", payload, data: Some(data) });
    }

    /// Whether this replica waits for the answer to a renewal.
    fn renews(&self, uid: u64) -> bool {
        let net = self.net.lock().unwrap();
        net.calls
            .open
            .values()
            .any(|call| call.owner == uid && call.ask.describe().starts_with("write control"))
    }

    fn in_kv(&self) -> String {
        self.kv(0).get("tasks:task-0").unwrap_or_default().to_owned()
    }

    /// Restores the stream without an event that the replicas took in. They have lost their connections, and are cut off.
    fn lose_the_last_event(&mut self) {
        self.live(12);
        self.create("kept");
        self.live(12);
        self.step(Step::BackUp);
        self.create("lost");
        self.live(12);
        (0..REPLICAS).for_each(|p| self.step(Step::CutOff(p)));
        self.step(Step::Restore);
    }

    /// Runs everything without faults for this many ticks.
    fn live(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.settle_down();
            assert_eq!(self.wrong, None);
        }
    }
}

/// A former holder was about to send, and slept with its clock. Meanwhile another took over and settled its doubts.
#[test]
fn a_former_holder_that_is_drained_before_it_sees_what_it_is_hands_over_all_the_same() {
    played(&SETTING, |world| {
        world.live(12);
        let former = world.which(REPLICAS);
        world.create("old");
        (0..6).for_each(|_| world.tick(true));
        world.step(Step::Feed(former, 9));
        // It may send as soon as it has renewed, and it receives that answer when it wakes.
        let uid = world.replicas[former].uid();
        for _ in 0..8 {
            if world.renews(uid) {
                break;
            }
            world.tick(true);
        }
        world.step(Step::Stop { replica: former, in_request: false });
        world.live(24);
        world.create("new");
        world.live(50);
        let successor = world.which(REPLICAS);
        assert_ne!(successor, former);
        assert!(world.in_kv().contains("new"), "{}", world.in_kv());
        world.step(Step::Continue { replica: former, slept: true });
        // It also checks whether a command requests part of the budget.
        (0..2).for_each(|_| world.tick(true));
        assert!(world.namespaces[0].ghosts);
        let which = world.kv(0).requests.iter().position(|request| request.owner == uid).unwrap();
        world.answer(0, which, Verdict::Landed);
        assert!(world.in_kv().contains("old"), "the old value has come last: {}", world.in_kv());
        world.step(Step::Drain(former));
        world.recover();
        world.check_end();
        assert_eq!(world.wrong, None);
        assert!(world.in_kv().contains("new"), "{}", world.in_kv());
    });
}

/// A replica with old knowledge has created the consumer of a former incarnation again, and its deletion was lost.
#[test]
fn a_consumer_of_a_former_life_goes_with_the_next_session() {
    played(&SETTING, |world| {
        world.live(12);
        world.create("old");
        world.live(8);
        world.step(Step::Recreate);
        world.create("new");
        // The sessions end when they look for the missing consumer.
        world.live(24);
        let consumers = |world: &World| world.net.lock().unwrap().stream.consumers();
        assert_eq!(consumers(world), ["tasks-processor-2"]);
        let config = Config { durable_name: Some("tasks-processor-1".to_owned()), ..Config::default() };
        assert!(world.net.lock().unwrap().stream.consumer(&config));
        world.step(Step::CutOff(0));
        world.step(Step::Reconnect(0));
        world.live(24);
        assert_eq!(consumers(world), ["tasks-processor-2"]);
        assert!(world.in_kv().contains("new"), "{}", world.in_kv());
    });
}

/// A replica has read half of the records, and continues when the others have begun another incarnation.
#[test]
fn a_replica_that_is_stopped_while_it_agrees_joins_no_former_life() {
    played(&SETTING, |world| {
        world.lose_the_last_event();
        world.step(Step::Reconnect(0));
        let uid = world.replicas[0].uid();
        let reads = |world: &World| {
            let net = world.net.lock().unwrap();
            let open = net.calls.open.iter();
            open.filter(|(_, call)| call.owner == uid)
                .find(|(_, call)| {
                    let what = call.ask.describe();
                    what.starts_with("read source") || what.starts_with("read all high-water")
                })
                .map(|(id, _)| *id)
        };
        let first = (0..40).find_map(|_| {
            world.tick(false);
            reads(world)
        });
        world.call(first.unwrap());
        world.step(Step::Stop { replica: 0, in_request: false });
        (1..REPLICAS).for_each(|p| world.step(Step::Reconnect(p)));
        let consumers = |world: &World| world.net.lock().unwrap().stream.consumers();
        for _ in 0..40 {
            world.tick(true);
        }
        assert_eq!(consumers(world), ["tasks-processor-2"]);
        world.step(Step::Continue { replica: 0, slept: false });
        (0..4).for_each(|_| world.tick(true));
        assert_eq!(consumers(world), ["tasks-processor-2"]);
        world.create("new");
        world.live(24);
        assert!(world.in_kv().contains("new"), "{}", world.in_kv());
    });
}

/// A replica reads on in the restored stream before it learns of the loss, so that its mark is higher than the mark of the
/// replica that took in the lost event.
#[test]
fn a_loss_shows_though_a_higher_mark_hides_it() {
    played(&SETTING, |world| {
        world.lose_the_last_event();
        ["new", "newer", "newest"].into_iter().for_each(|title| world.create(title));
        let time = world.net.lock().unwrap().stream.events[&3].time;
        let mark = HighWater { incarnation: 1, sequence: 3, time };
        world.spoil(world.names.high_water("replica-of-old"), &serde_json::to_vec(&mark).unwrap());
        (0..REPLICAS).for_each(|p| world.step(Step::Reconnect(p)));
        world.live(40);
        assert_eq!(world.net.lock().unwrap().stream.consumers(), ["tasks-processor-2"]);
        assert!(world.in_kv().contains("newest"), "{}", world.in_kv());
    });
}

impl World {
    /// The intake of a replica that has a session.
    fn ingest(&self, p: usize) -> (Ingest<Link, Link, Acking>, Arc<str>) {
        let Intake::Working(working) = &self.replicas[p].intake else { panic!("{p} has no session") };
        (working.ingest.clone(), Arc::clone(&working.consumer))
    }

    /// Another program writes over a record.
    fn spoil(&self, subject: String, value: &[u8]) {
        let write = Write { subject, value: value.to_vec(), expected: None, time_to_live: None };
        let mut net = self.net.lock().unwrap();
        let now = net.now;
        net.bucket.commit(&write, now);
    }

    fn reasons(&self) -> Vec<Reason> {
        self.net.lock().unwrap().letters.iter().map(|letter| letter.reason).collect()
    }
}

/// The next event of the task replaces the record, and a dead letter keeps it.
#[test]
fn a_record_that_another_program_has_written_over_is_set_aside() {
    played(&SETTING, |world| {
        world.live(12);
        world.create("old");
        world.live(12);
        assert!(world.in_kv().contains("old"), "{}", world.in_kv());
        world.spoil(world.names.task(&task(0)), b"{");
        world.live(12);
        assert_eq!(world.reasons(), []);
        world.create("new");
        world.live(24);
        assert_eq!(world.reasons(), [Reason::UnreadableInLedger]);
        assert!(world.in_kv().contains("new"), "{}", world.in_kv());
    });
}

/// The stream also captures subjects of another pipeline.
#[test]
fn a_message_of_another_pipeline_is_acknowledged_and_left_alone() {
    played(&SETTING, |world| {
        world.live(12);
        let before = world.replicas[0].tools.metrics.events_foreign.get();
        let payload = "another's".to_owned();
        world.publish_quietly(&Message { subject: "orders.created", payload, data: None });
        world.create("ours");
        world.live(24);
        assert_eq!(world.replicas[0].tools.metrics.events_foreign.get(), before + 1);
        assert!(world.in_kv().contains("ours"), "{}", world.in_kv());
        assert!(world.net.lock().unwrap().stream.is_done("tasks-processor-1"));
    });
}

/// NATS delivers the event four times, and seven trials of it are on record: then it becomes a dead letter without another trial.
#[test]
fn an_event_that_replicas_crashed_with_becomes_a_dead_letter() {
    played(&SETTING, |world| {
        world.live(12);
        world.spoil(world.names.suspect(Version::new(1, 1)), br#"{"begun":7}"#);
        world.acks_to_lose = usize::MAX;
        world.create("deadly");
        // Each ack is lost, so that the event is delivered again after each ack wait.
        let ack_waits = 4 * usize::try_from(ACK_WAIT.as_millis()).unwrap() / usize::try_from(TICK).unwrap();
        world.live(ack_waits);
        assert_eq!(world.reasons(), [Reason::MaxDeliveriesExceeded]);
        world.acks_to_lose = 0;
        world.live(ack_waits);
        assert!(world.net.lock().unwrap().stream.is_done("tasks-processor-1"));
    });
}

/// The salvage hands messages to the intake that the client could not read, and others that were handed out beside them.
#[test]
fn what_was_handed_out_unread_is_stored_or_becomes_a_dead_letter() {
    played(&SETTING, |world| {
        world.live(12);
        let (ingest, consumer) = world.ingest(0);
        let link = world.replicas[0].link.clone();
        let handed_out =
            |sequence: u64, subject: &str, payload: &str, fault: Option<HeaderFault>| HandedOut {
                raw: Raw {
                    subject: subject.to_owned(),
                    sequence,
                    time: nanos(0),
                    block: Some(Bytes::from_static(b"NATS/1.0\r\nno colon\r\n\r\n")),
                    payload: payload.to_owned().into(),
                },
                headers: fault.map_or(Ok(None), Err),
                acker: Acking { link: link.clone(), consumer: Arc::clone(&consumer), sequence },
            };
        let deleted = r#"{"correlationId":"c","data":{"id":"task-0"}}"#;
        let messages = vec![
            handed_out(1, "tasks.created", "unreadable", Some(HeaderFault::NoColon(1))),
            handed_out(2, "tasks.deleted", deleted, None),
            handed_out(3, "orders.created", "another's", Some(HeaderFault::NoColon(1))),
        ];
        world.replicas[0].spawn(Tag::Take, async move {
            Out::TakenIn(ingest.take_in_handed_out(messages).await.map(|all| assert!(all)))
        });
        world.live(12);
        assert_eq!(world.reasons(), [Reason::UnreadableHeaders]);
        let record = world.names.task(&task(0));
        assert!(world.net.lock().unwrap().bucket.get(&record).is_some(), "the delete is in the ledger");
    });
}
