//! The processor never shows a secret, whatever KV answers and whatever the log level is.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use taskpipeline_simulator::{Config, Fault, Latency, Rule, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, publish};

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "marker-7f3c9d2e-token";
const PASSWORD: &str = "marker-41aa90cc-password";

/// Runs one replica at `RUST_LOG=trace` through one fault, and returns its visible output.
async fn seen_through(nats: &NatsServer, fault: Fault) -> (String, bool) {
    let config = Config { token: TOKEN.to_owned(), latency: Latency::NONE, ..Config::default() };
    let kv = Simulator::start(config).await.unwrap();
    kv.inject(Rule::new(fault).named("fault"));
    let options = ProcessorOptions::new(nats, &kv)
        .core()
        .set("RUST_LOG", "trace")
        .set("NATS_USER", "app")
        .set("NATS_PASSWORD", PASSWORD)
        .set("SHUTDOWN_GRACE", "4s");
    let mut replica = Processor::start(&options).await.unwrap();
    let client = async_nats::ConnectOptions::with_user_and_password("app".to_owned(), PASSWORD.to_owned());
    let client = client.connect(nats.url()).await.unwrap();
    let mut letters = client.subscribe("dead-letters.tasks").await.unwrap();
    publish(&client, "created", &created("a")).await.unwrap();
    client.flush().await.unwrap();
    eventually(SOON, async || {
        let (_, health) = replica.get("/health").await?;
        ensure!(health.contains("failing") || health.contains("misconfigured"), "{health}");
        Ok(())
    })
    .await
    .unwrap();
    let happened = kv.seen().fault("fault") > 0;
    let mut seen = replica.get("/health").await.unwrap().1;
    seen.push_str(&replica.get("/metrics").await.unwrap().1);
    replica.terminate(SOON).await.unwrap();
    seen.push_str(&replica.process().lines().join("\n"));
    // Events that could not be written in time are in a dead letter, which must not contain the token either.
    use futures_util::StreamExt;
    let letter = tokio::time::timeout(SOON, letters.next()).await.unwrap().unwrap();
    seen.push_str(&String::from_utf8_lossy(&letter.payload));
    (seen, happened)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_token_shows_nowhere_through_401_500_redirect_and_trace_logs() {
    let nats = NatsServer::start_with(&["--user", "app", "--pass", PASSWORD]).await.unwrap();
    let elsewhere = format!("http://127.0.0.1:1/?token={TOKEN}");
    let faults = [
        Fault::EchoAuthorization { status: 401 },
        Fault::EchoAuthorization { status: 500 },
        Fault::EchoAuthorization { status: 200 },
        Fault::Redirect { location: elsewhere },
        Fault::Html,
        Fault::Garbage,
        Fault::RevokedToken,
    ];
    let mut shown = 0;
    for fault in faults {
        let name = format!("{fault:?}").replace(TOKEN, "...");
        let (seen, happened) = seen_through(&nats, fault).await;
        assert!(happened, "{name} did not happen");
        assert!(seen.contains("TRACE") && seen.lines().count() > 100, "this is not a trace log");
        for secret in [TOKEN, PASSWORD] {
            let at = seen.lines().position(|line| line.contains(secret));
            assert!(at.is_none(), "{name}: line {at:?} shows a secret");
        }
        // A basic login or a dump would hide the token in base64.
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(TOKEN);
        assert!(!seen.contains(&encoded[..24]), "{name}");
        shown += seen.lines().count();
        println!("{name}: {} lines, no secret", seen.lines().count());
    }
    println!("{shown} lines in total");
}
