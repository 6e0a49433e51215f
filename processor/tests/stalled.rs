//! A writer that makes no progress while work waits reports it, gives up, and continues when the cause is gone.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{Config as StreamConfig, DiscardPolicy};
use serde_json::Value;
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, publish, stored_task,
};
use tokio::time::Instant;

const LEDGER: &str = "KV_TASKS--tasks-processor";

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_cannot_read_the_ledgers_changes_says_so_gives_up_and_goes_on_when_it_can() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
    let client = nats.client().await.unwrap();
    let stream = jetstream::new(client.clone());
    // The account allows one consumer, and another client has it.
    let ledger = StreamConfig {
        name: LEDGER.to_owned(),
        subjects: vec!["$KV.TASKS--tasks-processor.>".to_owned()],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        allow_message_ttl: true,
        max_consumers: 1,
        ..StreamConfig::default()
    };
    let ledger = stream.create_stream(ledger).await.unwrap();
    let foreign = pull::Config { durable_name: Some("foreign".to_owned()), ..pull::Config::default() };
    ledger.create_consumer(foreign).await.unwrap();

    let replica = Processor::start(&ProcessorOptions::new(&nats, &kv)).await.unwrap();
    publish(&client, "created", &created("waits")).await.unwrap();
    let began = Instant::now();
    eventually(Duration::from_secs(60), || async {
        let (status, health) = replica.get("/health").await?;
        let projector = serde_json::from_str::<Value>(&health)?["services"]["projector"].clone();
        ensure!(status == 503 && projector["status"] == "stalled", "{status} {health}");
        let message = projector["message"].as_str().unwrap_or_default();
        ensure!(message.contains("consumers limit") && message.contains("NATS account"), "{message}");
        Ok(())
    })
    .await
    .unwrap();
    let said = began.elapsed();
    eventually(Duration::from_secs(30), || async {
        let stalls = replica.metric("taskpipeline_projector_stalls_total").await?;
        ensure!(stalls >= 1.0, "the writer has not given up");
        Ok(())
    })
    .await
    .unwrap();
    let gave_up = began.elapsed();
    assert!(stored_task(&kv, "waits").is_none());

    ledger.delete_consumer("foreign").await.unwrap();
    let there_again = Instant::now();
    eventually(Duration::from_secs(60), || async {
        let (status, health) = replica.get("/health").await?;
        ensure!(
            stored_task(&kv, "waits").is_some(),
            "not written yet: {health}\n{}",
            replica.process().tail()
        );
        ensure!(status == 200, "{health}");
        Ok(())
    })
    .await
    .unwrap();
    println!(
        "stalled, as /health says after {said:.0?}; gave up after {gave_up:.0?}; written and well {:.0?} after the consumer's \
         place was free",
        there_again.elapsed()
    );
}
