//! The API server is down, and everything that runs continues.
//!
//! This test is a separate program, because it stops the API server for all others.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::{Duration, SystemTime};

use anyhow::ensure;
use serde_json::json;
use taskpipeline_e2e_cluster::{
    Namespace, NatsPod, OperatorPods, Producer, SimulatorPod, condition, eventually, kv_secret, minimal,
};
use taskpipeline_operator::api::TaskPipeline;

const SOON: Duration = Duration::from_secs(60);
const GONE: Duration = Duration::from_secs(60);

/// Runs the command of `cargo xtask e2e` that stops or continues the API server.
fn api_server(variable: &str) {
    let command =
        std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set; run `cargo xtask e2e`"));
    let done = std::process::Command::new("sh").args(["-c", &command]).status().unwrap();
    assert!(done.success(), "{command}: {done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_gone_for_60_s_events_go_on_landing() {
    let namespace = Namespace::new("alone").await.unwrap();
    let (nats, kv, operator) = tokio::join!(
        NatsPod::start(&namespace, None),
        SimulatorPod::start(&namespace, "token-1"),
        OperatorPods::start(&namespace, 1),
    );
    operator.unwrap();
    let (_nats, kv) = (nats.unwrap(), kv.unwrap());
    kv_secret(&namespace, "kv", "token-1").await.unwrap();
    namespace.apply::<TaskPipeline>(minimal(&json!({}))).await.unwrap();
    eventually(SOON, async || condition(&namespace, "Ready", "True").await).await.unwrap();
    // The test reaches the pods through the API server, so the producer is a pod too.
    let producer = Producer::start(&namespace, "nats://nats:4222", None, "alone", 50).await.unwrap();
    eventually(SOON, async || {
        ensure!(kv.count("alone-").await? > 50, "the producer has not begun");
        Ok(())
    })
    .await
    .unwrap();

    api_server("TASKPIPELINE_E2E_STOP_API_SERVER");
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    tokio::time::sleep(GONE).await;
    let answers = tokio::time::timeout(Duration::from_secs(2), condition(&namespace, "Ready", "True")).await;
    let ended = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    api_server("TASKPIPELINE_E2E_CONTINUE_API_SERVER");
    assert!(answers.is_err(), "the API server answers: the test proves nothing");

    // Connections through the API server may have to be opened again.
    let landings = eventually(SOON, async || kv.landings_by_second().await).await.unwrap();
    let meanwhile: Vec<_> =
        (began + 1..ended).map(|second| landings.get(&second).copied().unwrap_or(0)).collect();
    let (all, silent) =
        (meanwhile.iter().sum::<u32>(), meanwhile.iter().filter(|landed| **landed == 0).count());
    println!(
        "the API server was down for {} s: {all} tasks landed meanwhile, {silent} seconds without any",
        ended - began
    );
    assert!(silent <= 5 && all > 500, "{meanwhile:?}");

    let stored = producer.stop().await.unwrap();
    kv.has_all("alone", stored, SOON).await.unwrap();
    println!("{stored} events stored in total, all in KV");
}
