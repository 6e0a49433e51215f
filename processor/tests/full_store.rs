//! Room in NATS: acknowledged events do not fill it, streams do not take each other's room, and warnings come before refusals.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy, Info};
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsCluster, NatsServer, Processor, ProcessorOptions, created, eventually, publish, store, stored_task,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const STREAMS: [&str; 3] = ["TASKS", "KV_TASKS--tasks-processor", "TASKS-DEAD-LETTERS"];
const MIB: u64 = 1 << 20;

/// Starts a server with this configuration, which lives as long as the folder.
async fn nats_with(configuration: &str) -> (NatsServer, TempDir) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("nats.conf");
    std::fs::write(&file, configuration).unwrap();
    (NatsServer::start_with(&["--config", file.to_str().unwrap()]).await.unwrap(), folder)
}

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv).set("RUST_LOG", "warn").set("REQUEST_BUDGET", "1000000/5m")
}

/// An event of this task with a description of `size` bytes.
fn sized(id: &str, title: &str, size: usize) -> Value {
    let mut event = created(id);
    event["data"]["title"] = json!(title);
    event["data"]["description"] = json!("x".repeat(size));
    event
}

async fn info(client: &async_nats::Client, stream: &str) -> Info {
    jetstream::new(client.clone()).get_stream(stream).await.unwrap().cached_info().clone()
}

async fn titled(kv: &Simulator, id: &str, title: &str) -> anyhow::Result<()> {
    eventually(SOON, async || {
        let task = stored_task(kv, id);
        ensure!(task.as_ref().is_some_and(|task| task["title"] == title), "{id}: {task:?}");
        Ok(())
    })
    .await
}

async fn metric(replica: &Processor, name: &str) -> f64 {
    replica.metric(&format!("taskpipeline_{name}")).await.unwrap()
}

/// The room in `/health`.
async fn room(replica: &Processor) -> Value {
    let (_, body) = replica.get("/health").await.unwrap();
    serde_json::from_str::<Value>(&body).unwrap()["services"]["room"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_do_not_fill_the_store() {
    const IDS: usize = 64;
    const EVENTS: usize = 80_000;
    // Half of the stream's room is for a burst between two checks.
    let (nats, _folder) = nats_with("jetstream { max_file_store: 96MB }").await;
    let kv = fast_kv().await;
    let options = options(&nats, &kv)
        .set("STREAM_MAX_BYTES", "64Mi")
        .set("LEDGER_MAX_BYTES", "16Mi")
        .set("DEAD_LETTERS_MAX_BYTES", "8Mi");
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    // Until then the replica leaves making room to the writer.
    eventually(SOON, async || {
        ensure!(metric(&replica, "projector_active").await == 1.0, "the replica is not the writer yet");
        Ok(())
    })
    .await
    .unwrap();
    let (mut stored, mut bytes, mut fullest) = (0, 0, 0);
    // In bursts of 4 MB, as fast as the replica takes them in.
    for first in (0..EVENTS).step_by(2_000) {
        let events: Vec<_> = (first..first + 2_000)
            .map(|n| ("created", sized(&format!("task-{}", n % IDS), &format!("version {n}"), 1_800)))
            .collect();
        bytes += events.iter().map(|(_, event)| event.to_string().len()).sum::<usize>();
        match store(&client, events.into_iter()).await {
            Ok(count) => stored += count,
            Err(error) => panic!(
                "after {stored} events of {bytes} bytes in total: {error:#}\n{}",
                replica.process().tail()
            ),
        }
        fullest = fullest.max(info(&client, "TASKS").await.state.bytes);
        eventually(SOON, async || {
            let taken = metric(&replica, "events_stored_total").await;
            ensure!(taken >= f64::from(stored), "{taken} of {stored} taken in");
            Ok(())
        })
        .await
        .unwrap();
    }
    publish(&client, "created", &json!({"correlationId": "bad", "data": {}})).await.unwrap();
    for n in EVENTS - IDS..EVENTS {
        titled(&kv, &format!("task-{}", n % IDS), &format!("version {n}")).await.unwrap();
    }
    eventually(SOON, async || {
        ensure!(info(&client, "TASKS-DEAD-LETTERS").await.state.messages == 1, "no dead letter");
        Ok(())
    })
    .await
    .unwrap();
    let trimmed = metric(&replica, "events_trimmed_total").await;
    println!(
        "{stored} events of {} MB through a stream of 64 MiB, at most {} MiB full: {trimmed} dropped when they were in the \
         ledger, {} lost; all {IDS} tasks in KV",
        bytes / 1_000_000,
        fullest / MIB,
        metric(&replica, "events_lost_total").await
    );
    assert!(bytes as u64 > 2 * 64 * MIB, "the events would have fit");
    assert!(trimmed > 0.0);
    assert_eq!(metric(&replica, "events_lost_total").await, 0.0);
    assert_eq!(metric(&replica, "events_redelivered_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_another_consumer_has_not_acknowledged_stay() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let replica = Processor::start(&options(&nats, &kv).set("STREAM_MAX_BYTES", "4Mi")).await.unwrap();
    let stream = jetstream::new(client.clone()).get_stream("TASKS").await.unwrap();
    let config = jetstream::consumer::pull::Config {
        durable_name: Some("archive".to_owned()),
        ..jetstream::consumer::pull::Config::default()
    };
    let archive = stream.create_consumer(config).await.unwrap();
    let events = (0..1_200).map(|n| ("created", sized(&format!("task-{}", n % 20), &n.to_string(), 1_900)));
    store(&client, events).await.unwrap();
    titled(&kv, "task-19", "1199").await.unwrap();
    // The events take more than half of the room, and the writer checks every second.
    let held = info(&client, "TASKS").await.state;
    assert!(held.bytes > 2 * MIB, "{held:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(info(&client, "TASKS").await.state.first_sequence, 1);
    let mut messages = archive.batch().max_messages(1_200).messages().await.unwrap();
    let mut seen = 0;
    while let Some(message) = futures_util::StreamExt::next(&mut messages).await {
        message.unwrap().ack().await.unwrap();
        seen += 1;
    }
    eventually(SOON, async || {
        let state = info(&client, "TASKS").await.state;
        ensure!(state.bytes <= 2 * MIB, "{} bytes are left", state.bytes);
        Ok(())
    })
    .await
    .unwrap();
    let left = info(&client, "TASKS").await.state;
    println!(
        "1200 events of {} bytes in 4 MiB: none was removed while another had to read it; {seen} read, {} left",
        held.bytes, left.messages
    );
    assert_eq!(seen, 1_200);
    assert!(left.messages > 300 && metric(&replica, "events_trimmed_total").await > 0.0, "{left:?}");
    // A later reader reads the events that are left, and does not count the others as lost.
    let others = fast_kv().await;
    let later = Processor::start(&options(&nats, &others).set("QUEUE_GROUP", "later")).await.unwrap();
    titled(&others, "task-19", "1199").await.unwrap();
    assert_eq!(metric(&later, "events_lost_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_fills_its_room_leaves_the_others_theirs_and_is_worked_off() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let options = options(&nats, &kv).set("STREAM_MAX_BYTES", "4Mi").set("ACK_WAIT", "2s");
    let mut replica = Processor::start(&options).await.unwrap();
    store(&client, [("created", created("first"))].into_iter()).await.unwrap();
    titled(&kv, "first", "Task first").await.unwrap();
    assert!(replica.terminate(SOON).await.unwrap().success());
    // No replica takes events in until the stream accepts no more.
    let jetstream = jetstream::new(client.clone());
    let mut stored = 0_usize;
    let refusal = loop {
        let payload = sized(&format!("task-{stored}"), "backlog", 1_800).to_string();
        match jetstream.publish("tasks.created", payload.into()).await.unwrap().await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 4_000, "the stream never fills");
    };
    // A plainly published event is not refused but lost. Therefore the warning must come before.
    publish(&client, "created", &sized("vanished", "gone", 2_000)).await.unwrap();
    client.flush().await.unwrap();
    let replica = Processor::start(&options).await.unwrap();
    titled(&kv, &format!("task-{}", stored - 1), "backlog").await.unwrap();
    eventually(SOON, async || {
        let payload = created("after").to_string();
        jetstream.publish("tasks.created", payload.into()).await?.await?;
        Ok(())
    })
    .await
    .unwrap();
    publish(&client, "created", &json!({"correlationId": "bad", "data": {}})).await.unwrap();
    titled(&kv, "after", "Task after").await.unwrap();
    eventually(SOON, async || {
        ensure!(info(&client, "TASKS-DEAD-LETTERS").await.state.messages == 1, "no dead letter");
        ensure!(room(&replica).await["status"] == "ok", "{}", room(&replica).await);
        Ok(())
    })
    .await
    .unwrap();
    let trimmed = metric(&replica, "events_trimmed_total").await;
    println!(
        "{stored} events filled 4 MiB, then: {refusal}. A replica took them in, {trimmed} were dropped, and the next is in KV; \
         {} of {} tasks",
        kv.keys().len(),
        stored + 2
    );
    assert!(trimmed > 0.0);
    assert_eq!(kv.keys().len(), stored + 2, "all that were stored, and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_fills_is_told_of_before_it_refuses_and_is_enlarged_by_its_setting() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let small = options(&nats, &kv).set("LEDGER_MAX_BYTES", "2Mi");
    let mut replica = Processor::start(&small).await.unwrap();
    let (mut stored, mut told_at) = (0_u32, None);
    while metric(&replica, "events_held").await == 0.0 {
        let events = (stored..stored + 20).map(|n| ("created", sized(&format!("task-{n}"), "kept", 1_800)));
        stored += store(&client, events).await.unwrap();
        if told_at.is_none() && room(&replica).await["status"] == "filling" {
            told_at = Some(stored);
        }
        assert!(stored < 3_000, "the stream never fills");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let of_ledger = |name: &str| format!("{name}{{stream=\"ledger\"}}");
    let used = metric(&replica, &of_ledger("stream_bytes")).await;
    let limit = metric(&replica, &of_ledger("stream_max_bytes")).await;
    let (status, said) = (replica.get("/health").await.unwrap().0, room(&replica).await);
    assert!(replica.terminate(SOON).await.unwrap().success());
    // Like an edit of spec.delivery.room.ledger, which rolls the pods.
    let replica = Processor::start(&small.set("LEDGER_MAX_BYTES", "64Mi")).await.unwrap();
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(there == usize::try_from(stored)?, "{there} of {stored} tasks");
        ensure!(room(&replica).await["status"] == "ok", "{}", room(&replica).await);
        Ok(())
    })
    .await
    .unwrap();
    println!(
        "a ledger of 2 MiB: warned after {told_at:?} events, refused after {stored} ({used} of {limit} bytes, {said}); with \
         64Mi all {stored} tasks are in KV"
    );
    assert!(told_at.is_some_and(|at| at < stored), "no warning came before");
    assert_eq!((status, limit), (503, 2.0 * MIB as f64));
    assert_eq!(said["status"], "filling");
    assert!(said["message"].as_str().unwrap().contains(STREAMS[1]), "{said}");
    assert_eq!(info(&client, "TASKS-DEAD-LETTERS").await.state.messages, 0);
    assert_eq!(info(&client, STREAMS[1]).await.config.max_bytes, 64 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_demands_limits_gets_them_and_its_own_is_told_of_before_it_is_reached() {
    let (nats, _folder) = nats_with(
        "jetstream: enabled
         accounts { A { users: [{user: a, password: a}]
           jetstream { max_file: 24MB, max_mem: 1MB, max_streams: 5, max_consumers: 50, max_bytes_required: true } } }
         no_auth_user: a",
    )
    .await;
    let kv = fast_kv().await;
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let without =
        StreamConfig { name: "X".to_owned(), subjects: vec!["x".to_owned()], ..StreamConfig::default() };
    let refused = jetstream.create_stream(&without).await.unwrap_err().to_string();
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let mut rooms = Vec::new();
    for stream in STREAMS {
        let config = info(&client, stream).await.config;
        assert_eq!(config.discard, DiscardPolicy::New, "{stream}");
        rooms.push(config.max_bytes / (1 << 20));
    }
    let others = StreamConfig { max_bytes: 2 << 20, ..without };
    jetstream.create_stream(&others).await.unwrap();
    store(&client, [("created", created("task"))].into_iter()).await.unwrap();
    titled(&kv, "task", "Task task").await.unwrap();
    let (used, limit) =
        (metric(&replica, "nats_account_bytes").await, metric(&replica, "nats_account_max_bytes").await);
    println!(
        "without a limit: {refused}. Ours have {rooms:?} MiB of {limit} bytes, of which {used} are used"
    );
    assert!(refused.contains("10113") || refused.contains("max bytes"), "{refused}");
    assert!(rooms.iter().sum::<i64>() <= 24 && rooms.iter().all(|room| *room >= 1), "{rooms:?}");
    assert_eq!(limit, 24.0 * MIB as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_little_room_gets_smaller_streams_and_one_with_none_is_told_so() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("nats.conf");
    std::fs::write(&file, "jetstream { max_file_store: 600MB }").unwrap();
    let cluster = NatsCluster::start_with(&["--config", file.to_str().unwrap()]).await.unwrap();
    let kv = fast_kv().await;
    let options = cluster.serves(options(cluster.node(0).unwrap(), &kv));
    let _replica = Processor::start(&options).await.unwrap();
    let client = cluster.client().await.unwrap();
    let mut rooms = Vec::new();
    for stream in STREAMS {
        rooms.push(info(&client, stream).await.config.max_bytes / (1 << 20));
    }
    let greedy = options.set("QUEUE_GROUP", "second").set("LEDGER_MAX_BYTES", "8Gi");
    let mut greedy = Processor::spawn(&greedy).unwrap();
    let ended = greedy.wait(SOON).await.unwrap();
    let said = greedy.process().lines().join("\n");
    println!("three servers of 600 MB each: {rooms:?} MiB; for 8Gi more: {}", said.lines().last().unwrap());
    assert!(rooms.iter().sum::<i64>() <= 600 && rooms.iter().all(|room| *room >= 1), "{rooms:?}");
    assert!(!ended.success() && said.contains("8Gi") && said.contains("LEDGER_MAX_BYTES"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_an_earlier_version_get_limits_and_those_of_others_are_left_alone() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let mut first = Processor::start(&options(&nats, &kv)).await.unwrap();
    assert!(first.terminate(SOON).await.unwrap().success());
    for stream in STREAMS {
        // The streams as version 0.2.0 created them.
        let config = info(&client, stream).await.config;
        let discard = if stream == STREAMS[1] { DiscardPolicy::New } else { DiscardPolicy::Old };
        jetstream.update_stream(StreamConfig { max_bytes: -1, discard, ..config }).await.unwrap();
    }
    let events = info(&client, "TASKS").await.config;
    let theirs = StreamConfig { description: Some("ours".to_owned()), max_bytes: 2 << 20, ..events };
    jetstream.update_stream(&theirs).await.unwrap();
    let replica = Processor::start(&options(&nats, &kv).set("STREAM_MAX_BYTES", "1Gi")).await.unwrap();
    eventually(SOON, async || {
        for stream in &STREAMS[1..] {
            let config = info(&client, stream).await.config;
            ensure!(config.max_bytes > 0, "{stream} has no limit");
            ensure!(config.discard == DiscardPolicy::New, "{stream} drops old messages");
        }
        let said = replica.process().lines().join("\n");
        ensure!(said.contains("somebody else created the stream"), "{said}");
        Ok(())
    })
    .await
    .unwrap();
    // Other readers may want the events that are already in the ledger.
    let events = (0..700).map(|n| ("created", sized(&format!("task-{}", n % 20), &n.to_string(), 1_900)));
    store(&client, events).await.unwrap();
    titled(&kv, "task-19", "699").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let theirs = info(&client, "TASKS").await;
    println!(
        "the ledger and the dead letters have limits; TASKS, which others describe, has {} bytes still, and {} of them used",
        theirs.config.max_bytes, theirs.state.bytes
    );
    assert_eq!((theirs.config.max_bytes, theirs.config.discard), (2 << 20, DiscardPolicy::Old));
    assert!(theirs.state.first_sequence == 1 && theirs.state.bytes > 5 << 18, "{:?}", theirs.state);
    assert_eq!(metric(&replica, "events_trimmed_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_may_not_purge_or_change_streams_is_told_what_it_lacks() {
    let (nats, _folder) = nats_with(
        r#"jetstream: enabled
           authorization { users: [
             {user: app, password: app, permissions: {publish: {deny: ["$JS.API.STREAM.PURGE.*", "$JS.API.STREAM.UPDATE.*"]}}}
             {user: admin, password: admin}
           ] }"#,
    )
    .await;
    let kv = fast_kv().await;
    let login =
        |user: &str| async_nats::ConnectOptions::with_user_and_password(user.to_owned(), user.to_owned());
    let client = login("admin").connect(nats.url()).await.unwrap();
    let options = options(&nats, &kv).set("NATS_USER", "app").set("NATS_PASSWORD", "app");
    let mut first = Processor::start(&options.clone().set("STREAM_MAX_BYTES", "4Mi")).await.unwrap();
    assert!(first.terminate(SOON).await.unwrap().success());
    let replica = Processor::start(&options.set("STREAM_MAX_BYTES", "5Mi")).await.unwrap();
    let events = (0..1_500).map(|n| ("created", sized(&format!("task-{}", n % 20), &n.to_string(), 1_900)));
    store(&client, events).await.unwrap();
    titled(&kv, "task-19", "1499").await.unwrap();
    eventually(SOON, async || {
        let said = replica.process().lines().join("\n");
        for right in ["$JS.API.STREAM.PURGE.TASKS", "$JS.API.STREAM.UPDATE.TASKS"] {
            ensure!(said.contains(right), "{right} is not named:\n{said}");
        }
        Ok(())
    })
    .await
    .unwrap();
    let said = replica.process().lines();
    let warned = said.iter().filter(|line| line.contains("$JS.API.STREAM.")).count();
    println!("{warned} warnings; events continue: 20 tasks in KV, the stream is unchanged");
    assert_eq!(info(&client, "TASKS").await.config.max_bytes, 4 << 20);
    assert!(warned <= 4, "{said:?}");
}
