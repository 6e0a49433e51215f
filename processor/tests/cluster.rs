//! Mode `Durable` on a cluster of three nats-servers that all replicate every stream.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::HashMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::StreamExt;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{NatsCluster, Processor, ProcessorOptions, eventually, store, stored_task};

/// The time limit for an election in the cluster and its consequences.
const PATIENCE: Duration = Duration::from_secs(60);

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsCluster, kv: &Simulator) -> ProcessorOptions {
    nats.serves(ProcessorOptions::new(nats.node(0).unwrap(), kv))
        .set("RUST_LOG", "warn,taskpipeline_pipeline=info")
        .set("REQUEST_BUDGET", "1000000/5m")
        .set("MIN_WRITE_INTERVAL", "50ms")
}

async fn start(options: &ProcessorOptions, count: usize) -> Vec<Processor> {
    let mut replicas = Vec::with_capacity(count);
    for _ in 0..count {
        let replica = Processor::spawn(options).unwrap();
        replica.wait_ready(PATIENCE).await.unwrap();
        replicas.push(replica);
    }
    replicas
}

fn titled(id: &str, title: &str) -> Value {
    let data = json!({"id": id, "title": title, "description": "", "status": "pending"});
    json!({"correlationId": "c", "data": data})
}

async fn sum(replicas: &[Processor], metric: &str) -> f64 {
    let mut sum = 0.0;
    for replica in replicas {
        sum += replica.metric(metric).await.unwrap();
    }
    sum
}

fn logged(replicas: &[Processor], what: &str) -> usize {
    replicas
        .iter()
        .map(|replica| replica.process().lines().iter().filter(|line| line.contains(what)).count())
        .sum()
}

async fn all_acknowledged(jetstream: &jetstream::Context, consumer: &str) {
    eventually(PATIENCE, async || {
        let stream = jetstream.get_stream("TASKS").await?;
        let last = stream.cached_info().state.last_sequence;
        let consumer: PullConsumer = jetstream.get_consumer_from_stream(consumer, "TASKS").await?;
        let info = consumer.get_info().await?;
        let floor = info.ack_floor.stream_sequence;
        ensure!(info.num_pending == 0 && info.num_ack_pending == 0, "{floor} of {last} acknowledged");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_that_write_the_same_three_tasks_on_three_servers_do_not_have_events_come_again() {
    const EVENTS: u32 = 3_000;
    let (nats, kv) = (NatsCluster::start().await.unwrap(), fast_kv().await);
    let replicas = start(&options(&nats, &kv), 3).await;
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    nats.whole().await.unwrap();
    let ids = ["a", "b", "c"];
    let began = tokio::time::Instant::now();
    // The portions are small, so that all replicas have events of each task in flight at the same time.
    for portion in 0..EVENTS / 30 {
        let events = (0..30).map(|n| {
            let n = portion * 30 + n;
            ("created", titled(ids[usize::try_from(n).unwrap() % 3], &format!("title {n}")))
        });
        store(&client, events).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let published = began.elapsed();
    all_acknowledged(&jetstream, "tasks-processor-1").await;
    let acknowledged = began.elapsed();
    eventually(PATIENCE, async || {
        for (n, id) in ids.iter().enumerate() {
            let title = format!("title {}", EVENTS - 3 + u32::try_from(n)?);
            let task = stored_task(&kv, id).context("not there")?;
            ensure!(task["title"] == title, "{id} is {}, not {title}", task["title"]);
        }
        Ok(())
    })
    .await
    .unwrap();
    let (redelivered, stored) = (
        sum(&replicas, "taskpipeline_events_redelivered_total").await,
        sum(&replicas, "taskpipeline_events_stored_total").await,
    );
    let conflicts = sum(&replicas, "taskpipeline_ledger_conflicts_total").await;
    let restarts = logged(&replicas, "looking at the stream again");
    println!(
        "{EVENTS} events of 3 tasks to 3 replicas in {published:.1?}: all acknowledged after {acknowledged:.1?}, \
         {stored} stored, {conflicts} conflicts, {redelivered} redelivered, {restarts} sessions begun again"
    );
    assert_eq!(restarts, 0, "{}", replicas[0].process().tail());
    assert!(redelivered <= 3.0, "{redelivered} events were delivered again");
    assert!(conflicts > 100.0, "the replicas did not collide: the test proves nothing");
}

/// Publishes until it is told to stop, each event until the stream has acknowledged it. Returns the number of events.
async fn produce(url: &str, stop: &AtomicBool) -> u32 {
    let client = async_nats::connect(url.split(',').collect::<Vec<_>>()).await.unwrap();
    let jetstream = jetstream::new(client);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("task-{}", n % 40);
        let (kind, event) = match n % 7 {
            6 => ("deleted", json!({"correlationId": "c", "data": {"id": id}})),
            _ => ("created", titled(&id, &format!("title {n}"))),
        };
        loop {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", n.to_string());
            let sent = jetstream
                .publish_with_headers(format!("tasks.{kind}"), headers, event.to_string().into())
                .await;
            let stored = match sent {
                Ok(ack) => tokio::time::timeout(Duration::from_secs(2), ack.into_future()).await,
                Err(_) => continue,
            };
            if let Ok(Ok(_)) = stored {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        n += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    n
}

/// Replays the stream: the title of each task, or `None` if it is deleted. Also returns the number of events.
async fn replay(jetstream: &jetstream::Context) -> anyhow::Result<(u64, HashMap<String, Option<Value>>)> {
    let stream = jetstream.get_stream("TASKS").await?;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let (mut events, mut tasks, total) = (0, HashMap::new(), stream.cached_info().state.messages);
    while events < total {
        let mut batch =
            consumer.batch().max_messages(1_000).expires(Duration::from_secs(2)).messages().await?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| anyhow::anyhow!("{error}"))?;
            let event: Value = serde_json::from_slice(&message.payload)?;
            let id = event["data"]["id"].as_str().context("no id")?.to_owned();
            let title = (*message.subject == *"tasks.created").then(|| event["data"]["title"].clone());
            tasks.insert(id, title);
            events += 1;
        }
    }
    Ok((events, tasks))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_three_servers_is_killed_in_turn_under_load_and_kv_equals_the_replay() {
    let (mut nats, kv) = (NatsCluster::start().await.unwrap(), fast_kv().await);
    let options =
        options(&nats, &kv).set("ACK_WAIT", "3s").set("SETTLE_AFTER", "3s").set("REQUEST_TIMEOUT", "1s");
    let replicas = start(&options, 2).await;
    nats.whole().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut kills = 0;
    let producer = {
        let (url, stop) = (nats.url(), Arc::clone(&stop));
        tokio::spawn(async move { produce(&url, &stop).await })
    };
    let mut led = 0;
    for n in 0..nats.size() {
        let before = sum(&replicas, "taskpipeline_events_stored_total").await;
        eventually(PATIENCE, async || {
            let stored = sum(&replicas, "taskpipeline_events_stored_total").await;
            ensure!(stored > before + 100.0, "no load: {before}, then {stored}");
            Ok(())
        })
        .await
        .unwrap();
        led += usize::from(nats.leader_of("KV_TASKS--tasks-processor").await.unwrap() == n);
        led += usize::from(nats.leader_of("TASKS").await.unwrap() == n);
        nats.kill(n).await.unwrap();
        kills += 1;
        // Events are stored while the server is down.
        let before = sum(&replicas, "taskpipeline_events_stored_total").await;
        eventually(PATIENCE, async || {
            let stored = sum(&replicas, "taskpipeline_events_stored_total").await;
            ensure!(
                stored > before + 100.0,
                "no event is stored while server {n} is down: {before}, {stored}"
            );
            Ok(())
        })
        .await
        .unwrap();
        nats.restart(n).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let published = producer.await.unwrap();
    let jetstream = jetstream::new(nats.client().await.unwrap());
    all_acknowledged(&jetstream, "tasks-processor-1").await;
    let (events, tasks) = replay(&jetstream).await.unwrap();
    eventually(PATIENCE, async || {
        for (id, title) in &tasks {
            let there = stored_task(&kv, id).map(|task| task["title"].clone());
            ensure!(there == *title, "{id} is {there:?}, not {title:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
    let redelivered = sum(&replicas, "taskpipeline_events_redelivered_total").await;
    let letters = sum(&replicas, "taskpipeline_dead_letters_total").await;
    println!(
        "{kills} servers killed, {led} times one that led events or ledger; {published} events published and \
         acknowledged, {events} in the stream, {redelivered} redelivered, {letters} dead letters; {} tasks as replayed",
        tasks.len()
    );
    assert!(led >= 2, "only {led} servers were leaders");
    assert_eq!(events, u64::from(published), "an acknowledged event is gone");
    assert_eq!(letters, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_three_servers_events_of_a_stream_made_anew_win_over_those_of_the_old_one() {
    const TASKS: u32 = 200;
    let (nats, kv) = (NatsCluster::start().await.unwrap(), fast_kv().await);
    let replicas = start(&options(&nats, &kv).set("ACK_WAIT", "3s"), 2).await;
    nats.whole().await.unwrap();
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let all = |title: &'static str| (0..TASKS).map(move |n| ("created", titled(&format!("task-{n}"), title)));
    let all_titled = async |title: &str| {
        eventually(PATIENCE, async || {
            let other = (0..TASKS)
                .map(|n| stored_task(&kv, &format!("task-{n}")).map(|task| task["title"].clone()))
                .find(|there| there.as_ref().is_none_or(|there| there != title));
            ensure!(other.is_none(), "{other:?} instead of {title}");
            Ok(())
        })
        .await
        .unwrap();
    };
    for title in ["zero", "one", "old"] {
        store(&client, all(title)).await.unwrap();
    }
    all_acknowledged(&jetstream, "tasks-processor-1").await;
    all_titled("old").await;
    let old = jetstream.get_stream("TASKS").await.unwrap().cached_info().state.last_sequence;
    jetstream.delete_stream("TASKS").await.unwrap();
    eventually(PATIENCE, async || {
        jetstream.get_stream("TASKS").await?;
        Ok(())
    })
    .await
    .unwrap();
    eventually(PATIENCE, async || {
        // A new stream may have no leader yet.
        store(&client, all("new")).await.map(drop)
    })
    .await
    .unwrap();
    all_titled("new").await;
    let new = jetstream.get_stream("TASKS").await.unwrap();
    let replicas_of_it = new.cached_info().config.num_replicas;
    let new = new.cached_info().state.last_sequence;
    println!("{TASKS} tasks on three servers; the old stream ended at {old}, the new one is at {new}");
    assert!(new < old && replicas_of_it == 3);
    all_acknowledged(&jetstream, "tasks-processor-2").await;
    assert_eq!(logged(&replicas, "ERROR"), 0, "{}", replicas[0].process().tail());
}
