//! Compares the simulated NATS with a real one, of one server and of three. The same script of calls runs on both,
//! through the traits of the shipped code.
//!
//! The scripts avoid calls for which a cluster has several correct answers: which of two simultaneous writes is
//! refused in which way, and the answers during an election.

mod asked;
mod real;
mod simulated;
mod step;
mod trouble;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::jetstream::{self, AckKind};
use taskpipeline_testkit::{NatsCluster, NatsServer, eventually};

use self::asked::subject;
use self::real::{PATIENCE, Real};
use self::simulated::Simulated;
use self::step::{ALL, Step, drawn};
use self::trouble::{compare_elections, compare_full_store};
use super::bucket::Full;
use super::dice::Dice;
use crate::durable::bucket::Revision;
use crate::durable::bucket::records::Records;
use crate::durable::names::Names;
use crate::durable::stream::agreement::EventStream;
use crate::durable::stream::streams;

/// The number of steps in a script.
const STEPS: usize = 250;

/// The messages of a pull, or the unacked ones: sequences with the number of their deliveries.
type Delivered = BTreeMap<u64, i64>;

/// Counts of occurrences, so that a script without any is noticed.
type Seen = BTreeMap<&'static str, usize>;

struct Script {
    simulated: Simulated,
    real: Real,
    seen: Seen,
    /// The number of events and values so far.
    made: usize,
}

impl Script {
    async fn play(&mut self, seed: u64) {
        let mut dice = Dice::new(seed);
        for n in 0..STEPS {
            let step = drawn(&mut dice);
            let (simulated, real) = self.step(&step).await;
            self.count(&step, &simulated);
            let before = self.simulated.asked.said.join("\n");
            assert_eq!(simulated, real, "seed {seed}, step {n}: {step:?} (simulated, real), after\n{before}");
            self.simulated.asked.said.push(format!("{step:?}: {real}"));
        }
    }

    fn count(&mut self, step: &Step, said: &str) {
        let what = [
            ("has written the record", "conflicts"),
            ("is writing the record", "writes on their way"),
            ("maximum messages exceeded", "refused for want of room"),
            ("there: false", "events that are not there"),
            ("made: true", "consumers made"),
            (": 2", "deliveries again"),
        ];
        *self.seen.entry("calls").or_default() += 1;
        for (_, what) in what.iter().filter(|(part, _)| said.contains(part)) {
            *self.seen.entry(what).or_default() += 1;
        }
        let what = match step {
            Step::Expire { .. } => "expired",
            Step::Recreate => "recreated",
            Step::Letter { .. } => "letters",
            _ => return,
        };
        *self.seen.entry(what).or_default() += 1;
    }

    async fn step(&mut self, step: &Step) -> (String, String) {
        self.made += 1;
        let value = self.made.to_string();
        let Self { simulated, real, .. } = self;
        match step {
            Step::Set { .. }
            | Step::Overwrite { .. }
            | Step::Read { .. }
            | Step::ReadAt { .. }
            | Step::ReadAll => {
                let said = simulated.answered(simulated.asked.ledger(step, &value));
                (said, real.asked.ledger(step, &value).await)
            }
            Step::Both { .. } => {
                let said = simulated.answered(simulated.asked.ledger(step, &value));
                let mut found = real.asked.ledger(step, &value).await;
                // The second write may arrive before or after the first is complete.
                if real.is_cluster
                    && found.contains("has written the record")
                    && said.contains("is writing the record")
                {
                    found = found.replace("has written the record", "is writing the record");
                    *self.seen.entry("second writes that came late").or_default() += 1;
                }
                (said, found)
            }
            Step::ReadMany => {
                let said = simulated.answered(simulated.asked.ledger(step, &value));
                let mut found = real.asked.ledger(step, &value).await;
                while real.is_cluster && found != said && real.late < 1_000 {
                    real.late += 1;
                    found = real.asked.ledger(step, &value).await;
                }
                (said, found)
            }
            Step::Letter { .. } => {
                let said = simulated.answered(simulated.asked.ledger(step, &value));
                let found = real.asked.ledger(step, &value).await;
                let count = real.asked.letters.count().await;
                let kept = simulated.net.lock().unwrap().letters.len();
                (format!("{said}, {kept} kept"), format!("{found}, {} kept", count.unwrap()))
            }
            Step::Expire { subject: n } => self.expire(step, *n, &value).await,
            Step::Full | Step::Room => {
                simulated.full = matches!(step, Step::Full);
                let full = simulated.full.then_some((Full::NewRecords, u64::MAX));
                simulated.net.lock().unwrap().bucket.full = full;
                real.limit(simulated.full).await;
                (String::new(), String::new())
            }
            Step::Publish => {
                let sequence = simulated.publish(&value, self.made);
                let ack = real.jetstream.publish("tasks.created", value.into()).await.unwrap().await.unwrap();
                (sequence.to_string(), ack.sequence.to_string())
            }
            Step::Present
            | Step::Event { .. }
            | Step::Consumer { .. }
            | Step::DeleteConsumer { .. }
            | Step::Consumers => {
                let said = simulated.answered(simulated.asked.events(step, &simulated.asked.bucket));
                if let Step::DeleteConsumer { incarnation } = step {
                    real.open.retain(|(of, _), _| of != incarnation);
                }
                (said, real.asked.events(step, &real.events()).await)
            }
            Step::Pull { incarnation, most } => self.pull(*incarnation, *most).await,
            Step::Ack { incarnation, which } => {
                let Some(message) = self.delivered(*incarnation, *which) else { return same() };
                let sequence = message.info().unwrap().stream_sequence;
                message.double_ack().await.unwrap();
                let consumer = self.real.asked.names.consumer(*incarnation);
                self.simulated.answer(&consumer, sequence, AckKind::Ack);
                let said = self.simulated.answered(self.simulated.asked.bucket.ack_floor(&consumer));
                let found = self.real.events().ack_floor(&consumer).await;
                (format!("{sequence}, floor {said:?}"), format!("{sequence}, floor {found:?}"))
            }
            Step::Nak { incarnation, which } => {
                let Some(message) = self.delivered(*incarnation, *which) else { return same() };
                let sequence = message.info().unwrap().stream_sequence;
                message.ack_with(AckKind::Nak(None)).await.unwrap();
                let consumer = self.real.asked.names.consumer(*incarnation);
                self.simulated.answer(&consumer, sequence, AckKind::Nak(None));
                self.pull(*incarnation, ALL).await
            }
            Step::Recreate => {
                simulated.recreate();
                real.open.clear();
                let name = &real.asked.names.stream;
                real.jetstream.delete_stream(name).await.unwrap();
                let (jetstream, names) = (&real.jetstream, &real.asked.names);
                real.streams = streams::ensure(jetstream, names, &real.settings).await.unwrap();
                (String::new(), String::new())
            }
        }
    }

    /// Returns a message that was delivered and not acked.
    fn delivered(&mut self, incarnation: u32, which: usize) -> Option<jetstream::Message> {
        let of_it: Vec<_> = self.real.open.keys().filter(|(of, _)| *of == incarnation).copied().collect();
        let key = of_it.get(which % of_it.len().max(1))?;
        self.real.open.remove(key)
    }

    async fn pull(&mut self, incarnation: u32, most: usize) -> (String, String) {
        let consumer = self.real.asked.names.consumer(incarnation);
        let Some((said, mut numbers)) = self.simulated.pull(&consumer, most) else {
            let found = self.real.streams.events.get_consumer::<jetstream::consumer::pull::Config>(&consumer);
            return (
                "no such consumer".to_owned(),
                match found.await {
                    Ok(_) => "it is there".to_owned(),
                    Err(_) => "no such consumer".to_owned(),
                },
            );
        };
        let (found, mut real_numbers) = self.real.pull(incarnation, most, said.len()).await;
        numbers.sort_unstable();
        real_numbers.sort_unstable();
        (format!("{said:?} {numbers:?}"), format!("{found:?} {real_numbers:?}"))
    }

    async fn expire(&mut self, step: &Step, n: usize, value: &str) -> (String, String) {
        let Self { simulated, real, .. } = self;
        let said = simulated.answered(simulated.asked.ledger(step, value));
        let found = real.asked.ledger(step, value).await;
        simulated.pass_a_second();
        let gone = simulated
            .answered(Records::get(&simulated.asked.bucket, &subject(&simulated.asked.names, n)))
            .is_ok_and(|it| it.is_none());
        let written = !found.contains("NATS");
        if written {
            eventually(PATIENCE, async || {
                anyhow::ensure!(real.asked.revision(n).await == Revision(0), "it is still there");
                Ok(())
            })
            .await
            .unwrap();
        }
        // Removed records make room for a new record.
        if simulated.full {
            real.limit(true).await;
        }
        (format!("{said}, gone: {gone}"), format!("{found}, gone: {written}"))
    }
}

fn same() -> (String, String) {
    (String::new(), String::new())
}

fn names() -> Arc<Names> {
    Arc::new(Names::of("TASKS", "tasks-processor", "tasks"))
}

async fn compare(client: &async_nats::Client, replicas: usize, seeds: std::ops::Range<u64>) -> Seen {
    let names = names();
    let mut seen = Seen::new();
    for seed in seeds {
        let simulated = Simulated::new(&names, replicas > 1);
        let real = Real::new(client, &names, replicas).await;
        let mut script = Script { simulated, real, seen: Seen::new(), made: 0 };
        script.play(seed).await;
        *script.seen.entry("reads of a replica that was behind").or_default() += script.real.late;
        for (what, count) in script.seen {
            *seen.entry(what).or_default() += count;
        }
        let streams = [&names.stream, &names.ledger_stream, &names.dead_letter_stream];
        for stream in streams {
            script.real.jetstream.delete_stream(stream).await.unwrap();
        }
    }
    seen
}

#[tokio::test]
async fn one_real_server_answers_as_the_simulated_one() {
    let nats = NatsServer::start().await.unwrap();
    let seen = compare(&nats.client().await.unwrap(), 1, 1..7).await;
    println!("1 server, no difference: {seen:?}");
    for what in ["conflicts", "refused for want of room", "deliveries again", "expired", "recreated"] {
        assert!(seen.get(what).is_some_and(|count| *count > 0), "this never happened: {what}");
    }
    let (nats, _folder) = small(async |file| NatsServer::start_with(&["-c", file]).await).await;
    compare_full_store(&nats.client().await.unwrap(), 1).await;
}

#[tokio::test]
async fn three_real_servers_answer_as_the_simulated_cluster() {
    let nats = NatsCluster::start().await.unwrap();
    let client = nats.client().await.unwrap();
    let seen = compare(&client, 3, 11..14).await;
    println!("3 servers, no difference: {seen:?}");
    for what in ["conflicts", "writes on their way", "refused for want of room", "deliveries again"] {
        assert!(seen.get(what).is_some_and(|count| *count > 0), "this never happened: {what}");
    }
    compare_elections(&client).await;
    let (nats, _folder) = small(async |file| NatsCluster::start_with(&["-c", file]).await).await;
    compare_full_store(&nats.client().await.unwrap(), 3).await;
}

/// Starts a NATS with little room for streams.
async fn small<N>(start: impl AsyncFn(&str) -> anyhow::Result<N>) -> (N, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    std::fs::write(&file, "jetstream { max_file_store: 2MB }").unwrap();
    (start(file.to_str().unwrap()).await.unwrap(), folder)
}
