//! Faults of KV over real HTTP: each class of error, and the fate of the events.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use futures_util::StreamExt;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, KeyMatch, Latency, Operation, Report, Rule, Scope, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, letter_payload, publish, publish_creates,
    stored_task,
};

const SOON: Duration = Duration::from_secs(30);

struct Bench {
    kv: Simulator,
    replica: Processor,
    client: async_nats::Client,
    letters: async_nats::Subscriber,
    _nats: NatsServer,
}

impl Bench {
    async fn start(latency: Latency) -> Self {
        let nats = NatsServer::start().await.unwrap();
        let kv = Simulator::start(Config { latency, ..Config::default() }).await.unwrap();
        let replica = Processor::start(&ProcessorOptions::new(&nats, &kv).core()).await.unwrap();
        let client = nats.client().await.unwrap();
        let letters = client.subscribe("dead-letters.tasks").await.unwrap();
        client.flush().await.unwrap();
        Self { kv, replica, client, letters, _nats: nats }
    }

    async fn letter(&mut self) -> Value {
        let letter =
            tokio::time::timeout(Duration::from_secs(60), self.letters.next()).await.unwrap().unwrap();
        serde_json::from_slice(&letter.payload).unwrap()
    }

    /// How many requests met the fault. If none did, the test proves nothing.
    fn befell(&self, fault: &str) -> u64 {
        let times = self.kv.seen().fault(fault);
        assert!(times > 0, "{fault} did not happen");
        times
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_with_retry_after_7_silences_everything_for_7_seconds() {
    let bench = Bench::start(Latency::NONE).await;
    bench.kv.inject(Rule::new(Fault::Throttled { retry_after: Duration::from_secs(7) }).times(1));
    for n in 0..70 {
        publish(&bench.client, "created", &created(&format!("task-{n}"))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.replica.wait_landed(70, SOON).await.unwrap();
    let requests = bench.kv.requests();
    let silence = requests[1].at - requests[0].at;
    println!(
        "429 {} time, then silence for {silence:?}, then {} keys",
        bench.befell("throttled"),
        requests[1].key_count
    );
    assert_eq!(requests[0].answered, Some(429));
    assert!(silence >= Duration::from_secs(7), "{silence:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_told_clearly_waits_and_goes_on_unaided_when_it_is_mended() {
    let bench = Bench::start(Latency::NONE).await;
    bench.kv.inject(Rule::new(Fault::RevokedToken));
    publish_creates(&bench.client, 20).await.unwrap();
    eventually(SOON, async || {
        let (status, health) = bench.replica.get("/health").await?;
        let kv = serde_json::from_str::<Value>(&health)?["services"]["kv"].clone();
        ensure!(status == 503 && kv["status"] == "misconfigured", "{status} {health}");
        let message = kv["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("CF_API_TOKEN") && message.contains("Workers KV Storage: Edit"),
            "{message}"
        );
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let requests = bench.kv.requests().len();
    bench.kv.remove_faults("revoked_token");
    bench.replica.wait_landed(20, Duration::from_secs(40)).await.unwrap();
    println!("{requests} requests while the token was revoked, {} landed", bench.kv.keys().len());
    assert!(requests as u64 >= bench.befell("revoked_token") && requests <= 2, "{requests}");
    assert_eq!(bench.kv.keys().len(), 20);
    assert_eq!(bench.replica.metric("taskpipeline_dead_letters_total").await.unwrap(), 0.0);
    assert_eq!(
        bench.replica.metric("taskpipeline_kv_key_retries_total").await.unwrap(),
        0.0,
        "no attempt is used"
    );
    let told = bench.replica.process().lines().iter().filter(|line| line.contains("KV unavailable")).count();
    assert_eq!(told, 1, "the warning comes at most once a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_100_keys_in_a_bulk_7_fail_and_only_those_are_sent_again() {
    // The first event is written alone; a hundred gather behind it.
    let bench = Bench::start(Latency { least: Duration::from_millis(500), ..Latency::NONE }).await;
    let partial = Fault::Partial { at_most: Some(7), report: Report::Right };
    publish(&bench.client, "created", &created("first")).await.unwrap();
    eventually(SOON, async || {
        ensure!(bench.kv.requests().len() == 1, "no request yet");
        Ok(())
    })
    .await
    .unwrap();
    bench.kv.inject(
        Rule::new(partial)
            .on(Operation::BulkPut)
            .keys(KeyMatch::StartsWith("tasks:task-".to_owned()))
            .times(1),
    );
    publish_creates(&bench.client, 100).await.unwrap();
    bench.replica.wait_landed(101, SOON).await.unwrap();
    let requests = bench.kv.requests();
    let sizes: Vec<_> = requests.iter().map(|request| request.key_count).collect();
    println!("partial failure: {}, keys in each request: {sizes:?}", bench.befell("partial"));
    assert_eq!(sizes, [1, 100, 7]);
    let again: HashSet<_> = requests[2].keys.iter().collect();
    assert!(again.iter().all(|key| requests[1].keys.contains(key)));
    assert_eq!(bench.kv.keys().len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_10000_values_one_is_refused_9999_land_and_one_is_a_dead_letter() {
    let mut bench = Bench::start(Latency::NONE).await;
    bench.kv.inject(Rule::poison("Task task-6789\"", 400).named("poison"));
    let poisonous = created("task-6789").to_string();
    publish_creates(&bench.client, 10_000).await.unwrap();
    let letter = bench.letter().await;
    bench.replica.wait_landed(9_999, SOON).await.unwrap();
    println!(
        "refused {} times, {} landed, 1 dead letter, {} requests",
        bench.befell("poison"),
        bench.kv.keys().len(),
        bench.kv.requests().len()
    );
    assert_eq!(bench.kv.keys().len(), 9_999);
    assert_eq!(bench.replica.metric("taskpipeline_dead_letters_total").await.unwrap(), 1.0);
    assert_eq!(letter["reason"], "refused-by-kv");
    assert_eq!(letter_payload(&letter).unwrap(), poisonous.as_bytes(), "the original bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_exhausted_make_a_dead_letter_with_bytes_headers_reason_and_attempts() {
    let mut bench = Bench::start(Latency::NONE).await;
    bench.kv.inject(Rule::new(Fault::status(503)).on(Scope::Writes));
    let event = created("a").to_string();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "original");
    bench.client.publish_with_headers("tasks.created", headers, event.clone().into()).await.unwrap();
    let letter = bench.letter().await;
    println!("503 {} times: {letter}", bench.befell("status"));
    assert_eq!(bench.befell("status"), 5);
    assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("retries-exhausted"), &json!(5)));
    assert!(letter["detail"].as_str().unwrap().contains("503"));
    assert_eq!(letter["headers"], json!({"Nats-Msg-Id": ["original"]}));
    assert_eq!(letter_payload(&letter).unwrap(), event.as_bytes());
    let lines = bench.replica.process().lines();
    assert!((1..=5).all(|n| lines.iter().any(|line| line.ends_with(&format!("[c-a] Attempt {n}/5")))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_a_hang_and_garbage_are_tried_again_until_the_task_is_there() {
    let bench = Bench::start(Latency::NONE).await;
    bench.kv.inject(Rule::new(Fault::LostAnswer { status: None }).times(1));
    bench.kv.inject(Rule::new(Fault::Garbage).times(1));
    publish(&bench.client, "created", &created("a")).await.unwrap();
    bench.replica.wait_landed(1, SOON).await.unwrap();
    bench.kv.inject(Rule::new(Fault::Hang).times(1));
    let update = json!({"correlationId": "u", "data": {"id": "a", "title": "new"}});
    publish(&bench.client, "updated", &update).await.unwrap();
    bench.replica.wait_landed(2, SOON).await.unwrap();
    for fault in ["lost_answer", "garbage", "hang"] {
        println!("{fault}: {}", bench.befell(fault));
    }
    assert_eq!(stored_task(&bench.kv, "a").unwrap()["title"], "new");
}
