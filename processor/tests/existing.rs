//! Streams and consumers that existed before, or that a user changes: no loss stays unnoticed.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config as StreamConfig, SubjectTransform};
use nix::sys::signal::Signal;
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, publish, store};

const SOON: Duration = Duration::from_secs(30);

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv).set("RUST_LOG", "warn").set("REQUEST_BUDGET", "1000000/5m")
}

fn stream(name: &str, subjects: &[&str]) -> StreamConfig {
    let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
    let max_age = Duration::from_secs(3_600);
    StreamConfig { name: name.to_owned(), subjects, max_age, ..StreamConfig::default() }
}

/// The error of a replica that does not start; `None` if it starts.
async fn refusal(options: &ProcessorOptions) -> Option<String> {
    let mut processor = Processor::spawn(options).unwrap();
    let ended = processor.wait(Duration::from_secs(8)).await.ok()?;
    (!ended.success()).then(|| processor.process().lines().join("\n"))
}

async fn has(kv: &Simulator, tasks: usize) -> anyhow::Result<()> {
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(there == tasks, "{there} of {tasks} tasks are in KV");
        Ok(())
    })
    .await
}

async fn acknowledged(jetstream: &jetstream::Context, stream: &str, consumer: &str) -> anyhow::Result<u64> {
    eventually(SOON, async || {
        let consumer: PullConsumer = jetstream.get_consumer_from_stream(consumer, stream).await?;
        let info = consumer.cached_info();
        ensure!(info.num_pending == 0 && info.num_ack_pending == 0, "{} pending", info.num_pending);
        Ok(info.ack_floor.stream_sequence)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_changes_the_subjects_of_events_is_refused_at_start() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let jetstream = jetstream::new(nats.client().await.unwrap());
    let transform =
        SubjectTransform { source: "tasks.*".to_owned(), destination: "moved.{{wildcard(1)}}".to_owned() };
    let config = StreamConfig { subject_transform: Some(transform), ..stream("TASKS", &["tasks.*"]) };
    jetstream.create_stream(config).await.unwrap();
    let said = refusal(&options(&nats, &kv)).await.expect("it starts");
    println!("{}", said.lines().last().unwrap());
    assert!(said.contains("subject_transform") && said.contains("STREAM_NAME"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_stream_begins_to_move_to_other_subjects_are_counted_and_told() {
    const EVENTS: u32 = 100;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    store(&client, [("created", created("before"))].into_iter()).await.unwrap();
    has(&kv, 1).await.unwrap();
    let mut config = jetstream.get_stream("TASKS").await.unwrap().cached_info().config.clone();
    config.subject_transform = Some(SubjectTransform {
        source: "tasks.*".to_owned(),
        destination: "moved.{{wildcard(1)}}".to_owned(),
    });
    jetstream.update_stream(config).await.unwrap();
    store(&client, (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    let floor = acknowledged(&jetstream, "TASKS", "tasks-processor-1").await.unwrap();
    let foreign = replica.metric("taskpipeline_events_foreign_total").await.unwrap();
    let told = replica.process().lines().iter().filter(|line| line.contains("moved.created")).count();
    println!(
        "{EVENTS} events moved to other subjects: acknowledged up to {floor}, {} tasks in KV, {foreign} counted as \
         foreign, {told} warnings",
        kv.keys().len()
    );
    assert_eq!(floor, u64::from(EVENTS) + 1);
    assert_eq!(kv.keys().len(), 1, "only the valid event is in KV");
    assert_eq!(foreign, f64::from(EVENTS));
    assert!(told >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_prefixes_do_not_share_a_queue_group_and_with_two_of_them_each_gets_all_of_its_own() {
    const EVENTS: usize = 1_000;
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    jetstream.create_stream(stream("SHARED", &["one.*", "two.*"])).await.unwrap();
    let letters =
        StreamConfig { max_age: Duration::ZERO, ..stream("SHARED-DEAD-LETTERS", &["dead-letters.*"]) };
    jetstream.create_stream(letters).await.unwrap();
    let with = |kv: &Simulator, prefix: &str| {
        options(&nats, kv).set("STREAM_NAME", "SHARED").set("SUBJECT_PREFIX", prefix).set("ACK_WAIT", "2s")
    };
    let _first = Processor::start(&with(&one, "one")).await.unwrap();
    let refused = refusal(&with(&two, "two")).await;
    let _second = Processor::start(&with(&two, "two").set("QUEUE_GROUP", "others")).await.unwrap();
    for n in 0..EVENTS {
        for prefix in ["one", "two"] {
            let event = created(&format!("{prefix}-{n}")).to_string();
            client.publish(format!("{prefix}.created"), event.into()).await.unwrap();
        }
    }
    client.flush().await.unwrap();
    let all = (has(&one, EVENTS).await, has(&two, EVENTS).await);
    println!(
        "a second prefix on the same queue group: {}; {EVENTS} events of each: {} and {} in KV",
        refused.as_deref().and_then(|said| said.lines().last()).unwrap_or("is accepted"),
        one.keys().len(),
        two.keys().len()
    );
    assert!(refused.is_some_and(|said| said.contains("QUEUE_GROUP")), "two prefixes share a queue group");
    all.0.unwrap();
    all.1.unwrap();
    assert!(one.keys().iter().all(|key| key.starts_with("tasks:one-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_stream_drops_before_it_was_taken_in_is_warned_of_at_start_and_counted() {
    const EVENTS: u32 = 1_000;
    const LIMIT: i64 = 100;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let subjects = ["tasks.created", "tasks.updated", "tasks.deleted"];
    let config = StreamConfig { max_messages: LIMIT, ..stream("TASKS", &subjects) };
    jetstream.create_stream(config).await.unwrap();
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let warned = replica.process().lines().iter().any(|line| line.contains("discard old"));
    store(&client, [("created", created("before"))].into_iter()).await.unwrap();
    has(&kv, 1).await.unwrap();
    replica.process().signal(Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await; // until its pulls are over
    store(&client, (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    replica.process().signal(Signal::SIGCONT).unwrap();
    let kept = usize::try_from(LIMIT).unwrap() + 1;
    has(&kv, kept).await.unwrap();
    let lost = replica.metric("taskpipeline_events_lost_total").await.unwrap();
    println!(
        "{EVENTS} events into a stream of {LIMIT}: {kept} tasks in KV, {lost} counted as lost, warned: {warned}"
    );
    assert!(warned, "{}", replica.process().tail());
    assert_eq!(lost, f64::from(EVENTS) - 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_would_give_events_up_is_mended_and_one_of_another_kind_is_refused() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let mut replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    replica.terminate(SOON).await.unwrap();
    let stream = jetstream.get_stream("TASKS").await.unwrap();
    let name = "tasks-processor-1";
    let mut consumer: PullConsumer = stream.get_consumer(name).await.unwrap();
    let config = pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_deliver: 3,
        filter_subject: "tasks.created".to_owned(),
        ..pull::Config::default()
    };
    stream.update_consumer(config.clone()).await.unwrap();
    let before = consumer.info().await.unwrap().config.max_deliver;
    let mut replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let after = consumer.info().await.unwrap().config.clone();
    publish(
        &client,
        "updated",
        &serde_json::json!({"correlationId": "c", "data": {"id": "a", "title": "b"}}),
    )
    .await
    .unwrap();
    let received = eventually(SOON, async || {
        let received = replica.received().await?;
        ensure!(received > 0.0, "nothing is received");
        Ok(received)
    })
    .await
    .unwrap_or_default();
    replica.terminate(SOON).await.unwrap();
    stream.delete_consumer(name).await.unwrap();
    let other = pull::Config { filter_subject: String::new(), headers_only: true, ..config };
    stream.create_consumer(other).await.unwrap();
    let said = refusal(&options(&nats, &kv)).await.unwrap_or_default();
    println!(
        "max_deliver {before} before, {} after, {received} update received; and of headers only: {}",
        after.max_deliver,
        said.lines().last().unwrap_or("is accepted")
    );
    assert_eq!((before, after.max_deliver, received), (3, -1, 1.0));
    assert!(after.filter_subject.is_empty());
    assert!(said.contains("QUEUE_GROUP") && said.contains("headers"), "{said}");
}
