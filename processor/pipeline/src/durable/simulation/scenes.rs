//! Hand-written histories: single faults that a drawn history meets too rarely to rely on.

use async_nats::jetstream::consumer::pull::Config;
use taskpipeline_contract::{Description, EventData, NewTask, Status, Title};

use super::kv::Verdict;
use super::runner::played;
use super::settings::{Knobs, REPLICAS, Setting};
use super::steps::{Drawn, Step};
use super::truth::Message;
use super::world::{World, task};

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
        world.live(12);
        world.create("kept");
        world.live(12);
        world.step(Step::BackUp);
        world.create("lost");
        world.live(12);
        (0..REPLICAS).for_each(|p| world.step(Step::CutOff(p)));
        world.step(Step::Restore);
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
