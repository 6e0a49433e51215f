//! KV is down for long: events continue into the ledger, memory stays flat, and everything is written later.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, eventually, store};
use tokio::time::Instant;

const WARM_UP: u32 = 500_000;
const EVENTS: u32 = 1_000_000;
/// The number of distinct tasks: more than any window or cache in memory.
const TASKS: u32 = 500_000;

/// The n-th event: each task is created, and created again later.
fn event(n: u32) -> (&'static str, Value) {
    let title = format!("The {n}. event, of about as many bytes as events have in real life");
    let description = "x".repeat(120);
    let data = json!({"id": format!("task-{}", n % TASKS), "title": title, "description": description, "status": "pending"});
    ("created", json!({"correlationId": format!("c-{n}"), "data": data}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_events_while_kv_is_down_leave_memory_flat_and_are_all_written_after() {
    let nats = NatsServer::start().await.unwrap();
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    let kv = Simulator::start(config).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv)
        .set("RUST_LOG", "error")
        .set("REQUEST_BUDGET", "1000000/5m")
        .set("RETRY_DELAYS", "100ms,300ms,1s")
        .set("SETTLE_AFTER", "6s");
    let replicas = [Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let client = nats.client().await.unwrap();

    // Before: under load, with KV down for a moment, so that caches and windows are full.
    kv.inject(Rule::new(Fault::status(503)).on(Scope::Writes).named("down"));
    store(&client, (0..WARM_UP).map(event)).await.unwrap();
    stored(&replicas, WARM_UP).await;
    let before = memory(&replicas);

    let began = Instant::now();
    store(&client, (WARM_UP..WARM_UP + EVENTS).map(event)).await.unwrap();
    stored(&replicas, WARM_UP + EVENTS).await;
    let took = began.elapsed();
    let failed = kv.seen().answered(taskpipeline_simulator::Operation::BulkPut, Some(503));
    assert!(kv.keys().is_empty(), "KV was not down");
    let after = memory(&replicas);

    kv.remove_faults("down");
    let mended = Instant::now();
    let last = event(WARM_UP + EVENTS - 1).1["data"]["id"].as_str().unwrap().to_owned();
    eventually(Duration::from_secs(240), || async {
        let there = kv.keys().len();
        ensure!(there == usize::try_from(TASKS)?, "{there} of {TASKS} tasks are in KV");
        Ok(())
    })
    .await
    .unwrap();
    // Each task has the state of its last event.
    eventually(Duration::from_secs(60), || async {
        let stale = (0..TASKS).filter(|task| {
            let n = (0..).map(|round| task + round * TASKS).take_while(|n| *n < WARM_UP + EVENTS).last();
            let wanted = event(n.unwrap_or(*task)).1["data"]["title"].clone();
            let value = kv.get(&format!("tasks:task-{task}")).map(|stored| stored.value);
            let value: Value =
                value.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
            value["title"] != wanted
        });
        let stale = stale.count();
        ensure!(stale == 0, "{stale} of {TASKS} tasks are stale");
        Ok(())
    })
    .await
    .unwrap();
    println!(
        "{EVENTS} events stored in {took:.1?} while KV answered 503 {failed} times; resident memory of the replicas \
         before {before:?} MB, after {after:?} MB; all {TASKS} tasks written {:.1?} after it came back, {last} too",
        mended.elapsed()
    );
    assert!(failed > 10, "{failed} requests failed");
    for (before, after) in before.iter().zip(&after) {
        assert!(*after <= before * 1.1, "the memory grew from {before} MB to {after} MB");
        assert!(*after <= 100.0, "{after} MB");
    }
}

async fn stored(replicas: &[Processor], events: u32) {
    eventually(Duration::from_secs(180), || async {
        let mut stored = 0.0;
        for replica in replicas {
            stored += replica.metric("taskpipeline_events_stored_total").await?;
        }
        ensure!(stored >= f64::from(events), "{stored} of {events} events are stored");
        Ok(())
    })
    .await
    .unwrap();
}

/// The resident memory of each, in MB.
fn memory(replicas: &[Processor]) -> Vec<f64> {
    replicas.iter().map(|replica| replica.process().resident_megabytes().unwrap()).collect()
}
