//! Changes of the stream under running replicas: it is created again, restored from an older copy, or paused until
//! events get old.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use serde_json::json;
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, store, stored_task,
};

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv)
        .set("RUST_LOG", "warn,taskpipeline_pipeline=info")
        .set("REQUEST_BUDGET", "1000000/5m")
        .set("MIN_WRITE_INTERVAL", "50ms")
        .set("ACK_WAIT", "3s")
        .set("LOG_FORMAT", "text")
}

/// This many tasks with this title.
fn titled(count: u32, title: &str) -> impl Iterator<Item = (&'static str, serde_json::Value)> {
    (0..count).map(move |n| {
        let data = json!({"id": format!("task-{n}"), "title": title, "description": "", "status": "pending"});
        ("created", json!({"correlationId": "c", "data": data}))
    })
}

async fn all_titled(kv: &Simulator, count: u32, title: &str) {
    eventually(Duration::from_secs(30), || async {
        let there = (0..count)
            .filter(|n| stored_task(kv, &format!("task-{n}")).is_some_and(|task| task["title"] == title));
        let there = u32::try_from(there.count())?;
        ensure!(there == count, "{there} of {count} tasks have the title {title}");
        Ok(())
    })
    .await
    .unwrap();
}

async fn all_acknowledged(stream: &jetstream::Context, consumer: &str) {
    eventually(Duration::from_secs(20), || async {
        let consumer: PullConsumer = stream.get_consumer_from_stream(consumer, "TASKS").await?;
        let info = consumer.get_info().await?;
        ensure!(info.num_pending == 0 && info.num_ack_pending == 0, "{} pending", info.num_pending);
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_stream_made_anew_while_replicas_run_win_over_those_of_the_old_one() {
    const TASKS: u32 = 300;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replicas = [
        Processor::start(&options(&nats, &kv)).await.unwrap(),
        Processor::start(&options(&nats, &kv)).await.unwrap(),
    ];
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    // The old stream reaches higher sequences than the new one will.
    for title in ["zero", "one", "old"] {
        store(&client, titled(TASKS, title)).await.unwrap();
    }
    all_acknowledged(&stream, "tasks-processor-1").await;
    all_titled(&kv, TASKS, "old").await;
    let old = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    stream.delete_stream("TASKS").await.unwrap();
    // The replicas create the stream again.
    eventually(Duration::from_secs(20), || async {
        stream.get_stream("TASKS").await?;
        Ok(())
    })
    .await
    .unwrap();
    store(&client, titled(TASKS, "new")).await.unwrap();
    all_titled(&kv, TASKS, "new").await;
    let new = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    println!("{TASKS} tasks; the old stream ended at {old}, the new one is at {new}; incarnation 2 wins");
    assert!(new < old);
    all_acknowledged(&stream, "tasks-processor-2").await;
    for replica in &replicas {
        assert!(
            !replica.process().lines().iter().any(|line| line.contains("ERROR")),
            "{}",
            replica.process().tail()
        );
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_events_win_in_a_stream_restored_from_an_older_copy_of_its_files() {
    const TASKS: u32 = 300;
    let (mut nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let _replicas = [
        Processor::start(&options(&nats, &kv)).await.unwrap(),
        Processor::start(&options(&nats, &kv)).await.unwrap(),
    ];
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    store(&client, titled(TASKS, "kept")).await.unwrap();
    all_acknowledged(&stream, "tasks-processor-1").await;
    nats.stop().await.unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy(&nats.stream_dir("TASKS"), backup.path());
    nats.restart().await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    // These events will be lost.
    for title in ["lost", "lost too"] {
        store(&client, titled(TASKS, title)).await.unwrap();
    }
    all_acknowledged(&stream, "tasks-processor-1").await;
    all_titled(&kv, TASKS, "lost too").await;
    let before = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    nats.stop().await.unwrap();
    std::fs::remove_dir_all(nats.stream_dir("TASKS")).unwrap();
    copy(backup.path(), &nats.stream_dir("TASKS"));
    nats.restart().await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    let after = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    // These events are published before any replica can have checked, on sequences that were used before.
    store(&client, titled(TASKS, "new")).await.unwrap();
    all_titled(&kv, TASKS, "new").await;
    println!("{TASKS} tasks; the stream was thrown back from {before} to {after}; every new event won");
    assert!(after < before, "nothing was lost");
    all_acknowledged(&stream, "tasks-processor-2").await;
}

/// Subscribes to all marks of replicas, as they are written.
async fn marks(nats: &NatsServer) -> async_nats::Subscriber {
    let client = nats.client().await.unwrap();
    let marks = client.subscribe("$KV.TASKS--tasks-processor.high-water.*").await.unwrap();
    client.flush().await.unwrap();
    marks
}

/// The marks that were written since the last call, in their order.
async fn written(marks: &mut async_nats::Subscriber) -> Vec<(String, u64)> {
    let mut written = Vec::new();
    while let Ok(Some(mark)) = tokio::time::timeout(Duration::from_millis(200), marks.next()).await {
        let high: serde_json::Value = serde_json::from_slice(&mark.payload).unwrap();
        written.push((mark.subject.to_string(), high["sequence"].as_u64().unwrap()));
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_high_water_never_falls_and_ends_at_the_last_event() {
    const BURSTS: u32 = 30;
    const EVENTS: u32 = 1_500;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica = Processor::start(&options(&nats, &kv).set("RUST_LOG", "warn")).await.unwrap();
    let mut marks = marks(&nats).await;
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    let (mut falls, mut behind, mut writes, mut last) = (0, 0, 0, 0);
    for burst in 0..BURSTS {
        store(&client, titled(EVENTS, &format!("burst {burst}"))).await.unwrap();
        all_acknowledged(&stream, "tasks-processor-1").await;
        let end = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
        for (_, sequence) in written(&mut marks).await {
            falls += u32::from(sequence < last);
            writes += 1;
            last = sequence;
        }
        behind += u32::from(last < end);
    }
    println!(
        "{BURSTS} bursts of {EVENTS} events: {writes} marks, {falls} lower than the one before; {behind} bursts ended \
         with a mark below the last event"
    );
    assert_eq!((falls, behind), (0, 0));
    drop(replica);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tail_is_seen_after_an_old_event_was_delivered_again() {
    const TASKS: u32 = 300;
    let (mut nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    store(&client, titled(TASKS, "kept")).await.unwrap();
    all_acknowledged(&stream, "tasks-processor-1").await;
    // Another client takes one event and does not acknowledge it, so that it comes again after all others.
    replica.process().signal(Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await; // until the replica's pulls are over
    store(&client, [("created", created("again"))].into_iter()).await.unwrap();
    let consumer: PullConsumer = stream.get_consumer_from_stream("tasks-processor-1", "TASKS").await.unwrap();
    let mut taken = consumer.fetch().max_messages(1).messages().await.unwrap();
    let taken = taken.next().await.unwrap().unwrap().info().unwrap().stream_sequence;
    replica.process().signal(Signal::SIGCONT).unwrap();
    replica.wait_ready(Duration::from_secs(10)).await.unwrap();
    let kept = taken + 5;
    store(&client, titled(5, "kept")).await.unwrap();
    eventually(Duration::from_secs(10), || async {
        let info = consumer.get_info().await?;
        ensure!(info.num_ack_pending == 1 && info.delivered.stream_sequence == kept, "not yet: {info:?}");
        Ok(())
    })
    .await
    .unwrap();
    // The copy that will be restored ends here.
    nats.stop().await.unwrap();
    let backup = tempfile::tempdir().unwrap();
    copy(&nats.stream_dir("TASKS"), backup.path());
    nats.restart().await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    let mut marks = marks(&nats).await;
    replica.wait_ready(Duration::from_secs(10)).await.unwrap();
    store(&client, titled(TASKS, "lost")).await.unwrap();
    all_titled(&kv, TASKS, "lost").await;
    // By now, that event has come again.
    all_acknowledged(&stream, "tasks-processor-1").await;
    let again = replica.metric("taskpipeline_events_redelivered_total").await.unwrap();
    let before = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    let marks = written(&mut marks).await;
    nats.stop().await.unwrap();
    std::fs::remove_dir_all(nats.stream_dir("TASKS")).unwrap();
    copy(backup.path(), &nats.stream_dir("TASKS"));
    nats.restart().await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    let after = stream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    store(&client, titled(20, "new")).await.unwrap();
    let highest = marks.iter().map(|(_, sequence)| *sequence).max();
    let last = marks.last().map(|(_, sequence)| *sequence);
    println!(
        "event {taken} was delivered again ({again} redeliveries) after event {before} was taken in: the highest mark was \
         {highest:?}, the last one {last:?}; then the stream was thrown back from {before} to {after}"
    );
    assert!(again >= 1.0 && after < before, "nothing came again, or nothing was lost");
    all_titled(&kv, 20, "new").await;
    all_acknowledged(&stream, "tasks-processor-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_near_max_age_are_reported_while_none_has_expired() {
    const EVENTS: u32 = 100;
    const MAX_AGE: Duration = Duration::from_secs(16);
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica =
        Processor::start(&options(&nats, &kv).set("STREAM_MAX_AGE", "16s").set("SETTLE_AFTER", "5s"))
            .await
            .unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    // A replica that makes no progress: here its consumer is paused.
    let events = stream.get_stream("TASKS").await.unwrap();
    let until = time::OffsetDateTime::now_utc() + Duration::from_secs(60);
    events.pause_consumer("tasks-processor-1", until).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    store(&client, (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    let stored = std::time::Instant::now();
    eventually(MAX_AGE, || async {
        let (status, body) = replica.get("/health").await?;
        ensure!(status == 503 && body.contains("late"), "{status}: {body}");
        Ok(())
    })
    .await
    .unwrap();
    let reported = stored.elapsed();
    let left = stream.get_stream("TASKS").await.unwrap().cached_info().state.messages;
    println!(
        "{EVENTS} events: reported when the oldest was {reported:?} old of {MAX_AGE:?}, {left} still there"
    );
    assert_eq!(left, u64::from(EVENTS));
    assert!(reported >= MAX_AGE / 2);
    assert!(
        replica.metric("taskpipeline_oldest_event_age_seconds").await.unwrap() >= MAX_AGE.as_secs_f64() / 2.0
    );
    assert!(replica.process().lines().iter().any(|line| line.contains("ERROR") && line.contains("max_age")));
    events.resume_consumer("tasks-processor-1").await.unwrap();
    eventually(Duration::from_secs(10), || async {
        let there = kv.keys().len();
        ensure!(there == usize::try_from(EVENTS)?, "{there} of {EVENTS} tasks are in KV");
        let (status, body) = replica.get("/health").await?;
        ensure!(status == 200, "{status}: {body}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_above_64_kib_is_refused_and_its_jetstream_publisher_hears_of_it() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    let producer = jetstream::new(client.clone());
    let sized = |id: &str, size: usize| {
        let mut event = created(id);
        let missing = size - event.to_string().len() - ",\"more\":\"\"".len();
        event["more"] = json!("x".repeat(missing));
        assert_eq!(event.to_string().len(), size);
        event.to_string()
    };
    let publish = async |event: String| producer.publish("tasks.created", event.into()).await.unwrap().await;
    publish(sized("fits", 65_536)).await.unwrap();
    let refused = publish(sized("large", 65_537)).await.unwrap_err().to_string();
    // A plain publisher gets no error, and nothing of the event is stored.
    client.publish("tasks.created", sized("plain", 900_000).into()).await.unwrap();
    publish(created("after").to_string()).await.unwrap();
    eventually(Duration::from_secs(30), async || {
        let keys = kv.keys();
        ensure!(keys == ["tasks:after", "tasks:fits"], "{keys:?}\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    let stored = producer.get_stream("TASKS").await.unwrap().cached_info().state.messages;
    println!("65,536 bytes are stored, 65,537 are refused: {refused}; {stored} messages in the stream");
    assert!(refused.contains("exceeds maximum"), "{refused}");
    assert_eq!(stored, 2);
}
