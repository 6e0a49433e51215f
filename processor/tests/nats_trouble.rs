//! NATS is down, refuses the processor, or is faster than KV: the processor recovers by itself, and every loss is reported.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, Rule, Scope, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, publish, publish_creates,
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn nats_killed_and_restarted_five_times_under_load_and_every_loss_is_counted() {
    let mut nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).core().set("RUST_LOG", "warn");
    let replica = Processor::start(&options).await.unwrap();

    let client = nats.client().await.unwrap();
    let (published, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let producer = tokio::spawn({
        let (published, stop) = (Arc::clone(&published), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = published.fetch_add(1, Ordering::Relaxed);
                publish(&client, "created", &created(&format!("task-{n}"))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            client.flush().await.unwrap();
        }
    });

    let mut kills = 0;
    for _ in 0..5 {
        let before = replica.received().await.unwrap();
        eventually(SOON, async || {
            let received = replica.received().await?;
            ensure!(received > before + 100.0, "no load: {received} received, {before} before");
            Ok(())
        })
        .await
        .unwrap();
        nats.kill().await.unwrap();
        kills += 1;
        eventually(SOON, async || {
            let (ready, _) = replica.get("/readyz").await?;
            let (health, _) = replica.get("/health").await?;
            ensure!(ready == 503 && health == 503, "/readyz {ready}, /health {health} without NATS");
            Ok(())
        })
        .await
        .unwrap();
        nats.restart().await.unwrap();
        replica.wait_ready(SOON).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    producer.await.unwrap();

    // Every received event has landed: wait until the counters no longer change.
    eventually(SOON, async || {
        let (received, landed) = (replica.received().await?, replica.landed().await?);
        let waiting = replica.metric("taskpipeline_events_waiting").await?;
        ensure!(received == landed && waiting == 0.0, "{received} received, {landed} landed");
        Ok(())
    })
    .await
    .unwrap();
    let published = published.load(Ordering::Relaxed);
    let landed = kv.keys().len();
    println!(
        "{kills} kills, {published} published, {landed} landed, {} lost between producer and replica",
        published as usize - landed
    );
    assert_eq!(kills, 5);
    assert_eq!(landed as f64, replica.received().await.unwrap(), "what the replica received, it wrote");
    assert_eq!(replica.metric("taskpipeline_events_dropped_total").await.unwrap(), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_told_and_tried_again_until_it_is_mended() {
    let mut nats = NatsServer::start_with(&["--user", "app", "--pass", "right"]).await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv)
        .core()
        .set("NATS_USER", "app")
        .set("NATS_PASSWORD", "wrong-password");
    let mut replica = Processor::spawn(&options).unwrap();
    eventually(SOON, async || {
        let (_, health) = replica.get("/health").await?;
        let health: Value = serde_json::from_str(&health)?;
        let message = health["services"]["nats"]["message"].as_str().unwrap_or_default().to_lowercase();
        ensure!(message.contains("authorization"), "{health}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(replica.get("/readyz").await.unwrap().0, 503);

    nats.kill().await.unwrap();
    nats.set_arguments(&["--user", "app", "--pass", "wrong-password"]);
    nats.restart().await.unwrap();
    replica.wait_ready(SOON).await.unwrap();
    assert!(replica.terminate(SOON).await.unwrap().success());
    assert!(!replica.process().lines().join("\n").contains("wrong-password"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_faster_than_kv_takes_them_are_dropped_one_by_one_counted_and_logged() {
    const EVENTS: u32 = 700;
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    kv.inject(Rule::new(Fault::Hang).on(Scope::Writes).named("stuck"));
    let options = ProcessorOptions::new(&nats, &kv).core().set("RUST_LOG", "warn");
    let mut replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    // Each event has nearly a megabyte, which soon fills 512 MiB in the ledger and 64 MiB before it.
    let ballast = "x".repeat(1_000_000);
    for n in 0..EVENTS {
        let mut event = created(&format!("task-{n}"));
        event["ballast"] = json!(ballast);
        publish(&client, "created", &event).await.unwrap();
        // Beyond 64 MiB in flight to one client, nats-server cuts the connection, which is another loss.
        if n % 20 == 19 {
            eventually(SOON, async || {
                let received = replica.received().await?;
                ensure!(received == f64::from(n + 1), "{received} of {} received", n + 1);
                Ok(())
            })
            .await
            .unwrap();
        }
    }
    let dropped = replica.metric("taskpipeline_events_dropped_total").await.unwrap();
    kv.remove_faults("stuck");
    eventually(SOON, async || {
        let landed = replica.landed().await?;
        ensure!(landed + dropped == f64::from(EVENTS), "{landed} landed, {dropped} dropped");
        Ok(())
    })
    .await
    .unwrap();
    println!("{EVENTS} published, {} landed, {dropped} dropped and counted", kv.keys().len());
    assert!(dropped > 0.0, "nothing was dropped: the test proves nothing");
    assert_eq!(kv.keys().len() as f64 + dropped, f64::from(EVENTS));
    assert!(replica.terminate(SOON).await.unwrap().success());
    let logged: u64 = replica
        .process()
        .lines()
        .iter()
        .filter(|line| line.contains("dropped events"))
        .filter_map(|line| line.split_once(" count=")?.1.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(logged as f64, dropped, "the log reports each of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_allows_few_unacknowledged_messages_and_small_pulls_is_used_within_its_limits() {
    const EVENTS: u32 = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nats.conf");
    let limits = "jetstream { limits { max_ack_pending: 500, max_request_batch: 20 } }";
    std::fs::write(&file, limits).unwrap();
    let nats = NatsServer::start_with(&["--config", file.to_str().unwrap()]).await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let options =
        ProcessorOptions::new(&nats, &kv).set("RUST_LOG", "warn,taskpipeline_pipeline::durable=info");
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    publish_creates(&client, EVENTS).await.unwrap();
    publish(&client, "created", &json!({"correlationId": "bad", "data": {}})).await.unwrap();
    client.flush().await.unwrap();
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(
            there == EVENTS as usize,
            "{there} of {EVENTS} tasks are in KV\n{}",
            replica.process().tail()
        );
        Ok(())
    })
    .await
    .unwrap();
    let output = options.command(&["dead-letters", "list", "--json"]).unwrap().output().await.unwrap();
    let letters: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(letters.len(), 1, "{output:?}");
    let stream = async_nats::jetstream::new(client).get_stream("TASKS").await.unwrap();
    let info = stream.consumer_info("tasks-processor-1").await.unwrap();
    let said = |part: &str| replica.process().lines().iter().filter(|line| line.contains(part)).count();
    println!(
        "{EVENTS} events with max_ack_pending {}, warned of pulls {} times, of acks {} times",
        info.config.max_ack_pending,
        said("max_request_batch"),
        said("max_ack_pending")
    );
    assert!((1..=500).contains(&info.config.max_ack_pending));
    assert!((1..=10).contains(&said("max_request_batch")), "{}", replica.process().tail());
}
