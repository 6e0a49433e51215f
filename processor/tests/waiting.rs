//! No kind of work delays another: a new create of another task is in KV within seconds, whatever waits, in bounded
//! memory. The waiting tasks are written in the end.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use async_nats::Client;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, KeyMatch, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, publish, store, stored_task,
};
use tokio::time::Instant;

/// The time limit of the issue: a new create of another task is in KV within this.
const PROMPTLY: Duration = Duration::from_secs(5);

/// The limit of a replica's resident memory, in MB.
const MOST_MEMORY: f64 = 100.0;

/// Starts a simulator with Cloudflare's latency and limit.
async fn cloudflare() -> Simulator {
    Simulator::start(Config::default()).await.unwrap()
}

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv).set("RUST_LOG", "error")
}

fn updated(id: &str, title: &str, description: &str) -> (&'static str, Value) {
    let data = json!({"id": id, "title": title, "description": description});
    ("updated", json!({"correlationId": format!("u-{id}"), "data": data}))
}

async fn all_stored(replica: &Processor, events: u32) {
    eventually(Duration::from_secs(120), || async {
        let stored = replica.metric("taskpipeline_events_stored_total").await?;
        ensure!(stored >= f64::from(events), "{stored} of {events} events are in the ledger");
        Ok(())
    })
    .await
    .unwrap();
}

/// Publishes a create of another task every half second, and returns the longest time until one was in KV.
async fn slowest_create(client: &Client, kv: &Simulator, name: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for n in 0..12 {
        let id = format!("{name}-{n}");
        let began = Instant::now();
        publish(client, "created", &created(&id)).await.unwrap();
        client.flush().await.unwrap();
        eventually(Duration::from_secs(60), || async {
            ensure!(stored_task(kv, &id).is_some(), "{id} is not in KV");
            Ok(())
        })
        .await
        .unwrap();
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_12000_unknown_tasks_with_2_kb_each_do_not_end_all_writing() {
    const UPDATES: u32 = 12_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let replica = Processor::start(&options(&nats, &kv).set("REQUEST_BUDGET", "100000/5m")).await.unwrap();
    let client = nats.client().await.unwrap();
    // All events are in the ledger before the first look-up has an answer.
    kv.inject(Rule::new(Fault::status(503)).on(Scope::Reads).named("away"));
    let description = "x".repeat(2_000);
    let updates = (0..UPDATES).map(|n| updated(&format!("unknown-{n}"), "An update", &description));
    store(&client, updates).await.unwrap();
    all_stored(&replica, UPDATES).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let away = kv.seen().fault("away");
    assert!(away > 0);
    kv.remove_faults("away");
    eventually(Duration::from_secs(60), || async {
        let answered = replica.metric("taskpipeline_updates_of_unknown_tasks_total").await?;
        ensure!(answered >= f64::from(UPDATES), "{answered} of {UPDATES} updates were looked up");
        Ok(())
    })
    .await
    .unwrap();
    let slowest = slowest_create(&client, &kv, "other").await;
    println!(
        "{UPDATES} updates of unknown tasks looked up after {away} reads had failed; then 12 creates, the slowest in KV after {slowest:.1?}"
    );
    assert!(slowest < PROMPTLY, "{slowest:?}");
    eventually(Duration::from_secs(20), || async {
        let unsettled = replica.metric("taskpipeline_projector_unsettled_tasks").await?;
        ensure!(unsettled == 0.0, "{unsettled} tasks are not settled");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_in_kv_within_5_s_while_100_000_unknown_updates_wait() {
    const UPDATES: u32 = 100_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), cloudflare().await);
    // KV knows one task in a hundred: look-ups must also be right.
    for n in (0..UPDATES).step_by(100) {
        let value = json!({
            "id": format!("task-{n}"), "title": "Before", "description": "", "status": "pending",
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z",
        });
        kv.seed(&format!("tasks:task-{n}"), value.to_string());
    }
    let replica = Processor::start(&options(&nats, &kv)).await.unwrap();
    let client = nats.client().await.unwrap();
    store(&client, (0..UPDATES).map(|n| updated(&format!("task-{n}"), "After", "y"))).await.unwrap();
    all_stored(&replica, UPDATES).await;
    let slowest = slowest_create(&client, &kv, "other").await;
    let looked_up = replica.metric("taskpipeline_updates_of_unknown_tasks_total").await.unwrap();
    let memory = replica.process().resident_megabytes().unwrap();
    let known = (0..UPDATES)
        .step_by(100)
        .filter(|n| stored_task(&kv, &format!("task-{n}")).is_some_and(|task| task["title"] == "After"))
        .count();
    println!(
        "{UPDATES} updates of unknown tasks, {looked_up} looked up and {known} of those that KV knows written meanwhile; 12 \
         creates, the slowest in KV after {slowest:.1?}; {memory:.0} MB; 429: {}",
        kv.seen().fault("throttled")
    );
    assert!(looked_up < f64::from(UPDATES) / 2.0, "no task waited");
    assert!(looked_up > 0.0 && known > 0, "look-ups do not continue");
    assert!(slowest < PROMPTLY, "{slowest:?}");
    assert!(memory <= MOST_MEMORY, "{memory} MB");
}

/// A pipeline's file with this shortest interval between two writes of a task.
fn file(folder: &tempfile::TempDir, nats: &NatsServer, interval: &str) -> PathBuf {
    let path = folder.path().join("pipeline.yaml");
    let spec = format!(
        "apiVersion: taskpipeline.dev/v1alpha1\nkind: TaskPipeline\nmetadata: {{name: tasks}}\nspec:\n  nats: {{url: \"{}\"}}\n  \
         kv:\n    secretRef: {{name: kv}}\n    minWriteInterval: {interval}\n    requestBudget: {{requests: 100000, period: 5m}}\n",
        nats.url()
    );
    std::fs::write(&path, spec).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_in_kv_within_5_s_while_100_000_tasks_rest_for_an_hour() {
    const TASKS: u32 = 100_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let folder = tempfile::tempdir().unwrap();
    let options = options(&nats, &kv).following(&file(&folder, &nats, "1h"));
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    store(&client, (0..TASKS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    let titled = |title: &str| {
        let is = |n: &u32| stored_task(&kv, &format!("task-{n}")).is_some_and(|task| task["title"] == title);
        (0..TASKS).filter(is).count()
    };
    eventually(Duration::from_secs(60), || async {
        let there = kv.keys().len();
        ensure!(there == usize::try_from(TASKS)?, "{there} of {TASKS} tasks are in KV");
        Ok(())
    })
    .await
    .unwrap();
    let before = replica.process().resident_megabytes().unwrap();
    store(&client, (0..TASKS).map(|n| updated(&format!("task-{n}"), "Changed", "y"))).await.unwrap();
    all_stored(&replica, 2 * TASKS).await;
    let slowest = slowest_create(&client, &kv, "other").await;
    let (waiting, early) =
        (replica.metric("taskpipeline_projector_unsettled_tasks").await.unwrap(), titled("Changed"));
    let memory = replica.process().resident_megabytes().unwrap();
    println!(
        "{TASKS} tasks changed again in their rest of an hour, {waiting} wait, {early} were written early; 12 creates, the \
         slowest in KV after {slowest:.1?}; {before:.0} MB before, {memory:.0} MB now"
    );
    assert!(waiting >= f64::from(TASKS), "no task waited");
    assert_eq!(early, 0);
    assert!(slowest < PROMPTLY, "{slowest:?}");
    assert!(memory <= MOST_MEMORY, "{memory} MB");
    // A live edit ends the rests.
    file(&folder, &nats, "1s");
    let edited = Instant::now();
    eventually(Duration::from_secs(60), || async {
        let there = titled("Changed");
        ensure!(there == usize::try_from(TASKS)?, "{there} of {TASKS} are as they were changed");
        Ok(())
    })
    .await
    .unwrap();
    println!("all of them written {:.1?} after the interval was shortened", edited.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_in_kv_within_5_s_while_1000_keys_are_retried() {
    const KEYS: u32 = 5_000;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let failing = Rule::new(Fault::Partial { at_most: None, report: taskpipeline_simulator::Report::Right });
    kv.inject(
        failing.keys(KeyMatch::StartsWith("tasks:failing-".to_owned())).on(Scope::Writes).named("failing"),
    );
    let options = options(&nats, &kv).set("REQUEST_BUDGET", "100000/5m").set("RETRY_DELAYS", "4s");
    let replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    let events = (0..KEYS).flat_map(|n| [format!("failing-{n}"), format!("good-{n}")]);
    store(&client, events.map(|id| ("created", created(&id)))).await.unwrap();
    all_stored(&replica, 2 * KEYS).await;
    let slowest = slowest_create(&client, &kv, "other").await;
    let good = (0..KEYS).filter(|n| stored_task(&kv, &format!("good-{n}")).is_some()).count();
    let retries = replica.metric("taskpipeline_kv_key_retries_total").await.unwrap();
    let deferred = replica.metric("taskpipeline_projector_deferred_tasks").await.unwrap();
    let memory = replica.process().resident_megabytes().unwrap();
    println!(
        "{KEYS} keys named as not written in {} requests, {retries} retries, {deferred} of them wait in NATS; {good} others in \
         KV; 12 creates, the slowest in KV after {slowest:.1?}; {memory:.0} MB",
        kv.seen().fault("failing")
    );
    assert!(retries >= 1_000.0 && deferred > 0.0);
    assert_eq!(good, usize::try_from(KEYS).unwrap());
    assert!(slowest < PROMPTLY, "{slowest:?}");
    assert!(memory <= MOST_MEMORY, "{memory} MB");
    kv.remove_faults("failing");
    eventually(Duration::from_secs(40), || async {
        let there = (0..KEYS).filter(|n| stored_task(&kv, &format!("failing-{n}")).is_some()).count();
        ensure!(there == usize::try_from(KEYS)?, "{there} of {KEYS} are in KV");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_in_kv_within_5_s_while_one_task_in_ten_is_poison() {
    const ROUNDS: u32 = 150;
    const TASKS: u32 = 10;
    let (nats, kv) = (NatsServer::start().await.unwrap(), fast_kv().await);
    let poison = Rule::new(Fault::status(413)).keys(KeyMatch::StartsWith("tasks:poison-".to_owned()));
    kv.inject(poison.on(Scope::Writes).named("poison"));
    let replica = Processor::start(&options(&nats, &kv).set("REQUEST_BUDGET", "100000/5m")).await.unwrap();
    let client = nats.client().await.unwrap();
    let load = async {
        for round in 0..ROUNDS {
            for n in 0..TASKS {
                let id = if n == 0 { format!("poison-{round}") } else { format!("good-{round}-{n}") };
                publish(&client, "created", &created(&id)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ((), slowest) = tokio::join!(load, slowest_create(&client, &kv, "other"));
    let good = usize::try_from(ROUNDS * (TASKS - 1)).unwrap();
    eventually(Duration::from_secs(60), || async {
        let there = kv.keys().len() - 12;
        ensure!(there == good, "{there} of {good} good tasks are in KV");
        let letters = replica.metric("taskpipeline_dead_letters_total").await?;
        ensure!(letters == f64::from(ROUNDS), "{letters} of {ROUNDS} dead letters");
        Ok(())
    })
    .await
    .unwrap();
    let memory = replica.process().resident_megabytes().unwrap();
    println!(
        "{ROUNDS} of {} tasks poison, {} requests refused; all the others in KV, each poison one a dead letter; 12 creates \
         meanwhile, the slowest in KV after {slowest:.1?}; {memory:.0} MB",
        ROUNDS * TASKS,
        kv.seen().fault("poison")
    );
    assert!(kv.seen().fault("poison") >= u64::from(ROUNDS));
    assert!(slowest < PROMPTLY, "{slowest:?}");
    assert!(memory <= MOST_MEMORY, "{memory} MB");
}
