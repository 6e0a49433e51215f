//! SIGTERM and SIGINT: the replica takes no more events, and writes those in flight or turns them into dead letters.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::{Duration, Instant};

use anyhow::ensure;
use async_nats::Subscriber;
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use taskpipeline_simulator::{Config, Fault, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, eventually, publish_creates};

const EVENTS: u32 = 5_000;
const SOON: Duration = Duration::from_secs(20);

/// A replica with 5,000 events in flight, none of them written, and a subscription to dead letters.
struct Loaded {
    nats: NatsServer,
    kv: Simulator,
    replica: Processor,
    letters: Subscriber,
}

impl Loaded {
    async fn start(faults: &[Rule], grace: &str) -> Self {
        let nats = NatsServer::start().await.unwrap();
        // The latency is high enough that nothing can land before the signal.
        let latency = Latency { least: Duration::from_secs(3), ..Latency::NONE };
        let kv = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
        let options = ProcessorOptions::new(&nats, &kv)
            .core()
            .set("SHUTDOWN_GRACE", grace)
            .set("RUST_LOG", "warn,taskpipeline=info");
        let replica = Processor::start(&options).await.unwrap();
        let client = nats.client().await.unwrap();
        let letters = client.subscribe("dead-letters.tasks").await.unwrap();
        client.flush().await.unwrap();
        for rule in faults {
            kv.inject(rule.clone());
        }
        let loaded = Self { nats, kv, replica, letters };
        let before = loaded.sent().await.unwrap();
        publish_creates(&client, EVENTS).await.unwrap();
        eventually(SOON, async || {
            let sent = loaded.sent().await? - before;
            ensure!(sent >= u64::from(EVENTS), "nats-server has delivered {sent} of {EVENTS}");
            Ok(())
        })
        .await
        .unwrap();
        assert!(loaded.kv.keys().is_empty(), "some had landed before the signal: the test proves nothing");
        loaded
    }

    async fn sent(&self) -> anyhow::Result<u64> {
        self.nats.sent_to("taskpipeline").await
    }

    /// The number of dead letters that have been published.
    async fn count_letters(&mut self) -> usize {
        let mut count = 0;
        while tokio::time::timeout(Duration::from_millis(500), self.letters.next()).await.is_ok() {
            count += 1;
        }
        count
    }

    async fn terminate(mut self) -> (usize, usize) {
        let status = self.replica.terminate(Duration::from_secs(40)).await.unwrap();
        assert!(status.success(), "{status}\n{}", self.replica.process().tail());
        let letters = self.count_letters().await;
        let written = self.kv.keys().len();
        println!("{EVENTS} delivered, then SIGTERM: {written} in KV, {letters} dead letters, {status}");
        (written, letters)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_5000_delivered_events_sigterm_loses_none() {
    let (written, letters) = Loaded::start(&[], "25s").await.terminate().await;
    assert_eq!((written, letters), (EVENTS as usize, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_5000_delivered_events_sigterm_loses_none_while_kv_answers_503_for_5_seconds() {
    let outage = Rule::new(Fault::status(503)).on(Scope::Writes).lasting(Duration::from_secs(5));
    let loaded = Loaded::start(&[outage], "25s").await;
    let kv_seen = || loaded.kv.seen().fault("status");
    eventually(SOON, async || {
        ensure!(kv_seen() > 0, "KV has not failed yet");
        Ok(())
    })
    .await
    .unwrap();
    let (written, letters) = loaded.terminate().await;
    assert_eq!(written + letters, EVENTS as usize);
    assert!(written > 0, "KV was back within the grace");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_within_the_grace_becomes_dead_letters() {
    let hang = Rule::new(Fault::Hang).on(Scope::Writes);
    let started = Instant::now();
    let (written, letters) = Loaded::start(&[hang], "5s").await.terminate().await;
    assert_eq!((written, letters), (0, EVENTS as usize));
    assert!(started.elapsed() < Duration::from_secs(25));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let mut loaded = Loaded::start(&[Rule::new(Fault::Hang).on(Scope::Writes)], "25s").await;
    loaded.replica.process().signal(Signal::SIGINT).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = Instant::now();
    let status = loaded.replica.terminate(SOON).await.unwrap();
    println!("ended {:?} after the second signal: {status}", second.elapsed());
    assert_eq!(status.code(), Some(128 + 15));
    assert!(second.elapsed() < Duration::from_secs(3));
}
