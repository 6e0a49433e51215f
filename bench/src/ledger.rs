//! Measures how fast a replica takes stored events into the ledger.
//!
//! The address of KV refuses connections, so that only the way from the stream to the ledger is measured.

use std::time::Duration;

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, store};
use tokio::time::Instant;

/// The options of `ledger`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Store this many events before the clock starts
    #[arg(long, default_value_t = 300_000)]
    events: u32,
    /// Spread the events uniformly over this many ids
    #[arg(long, default_value_t = 100_000)]
    ids: u32,
    /// Start this many replicas
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Repeat the measurement this many times; the figure is the median
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

/// Runs the benchmark.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut rates = Vec::new();
    for round in 0..options.repeats {
        let (rate, took) = once(options, u64::try_from(round)?).await?;
        println!("round {}: {} events in {took:.2?}, {rate:.0} events/s", round + 1, options.events);
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    let (least, most) = (rates.first().context("no round")?, rates.last().context("no round")?);
    println!(
        "ledger: {:.0} events/s (median of {}, {least:.0} to {most:.0}); {} events of about 300 bytes, \
         50/40/10 created/updated/deleted, uniform over {} ids, {} replica(s), nats-server on the same {} cores",
        rates[rates.len() / 2],
        rates.len(),
        options.events,
        options.ids,
        options.replicas,
        std::thread::available_parallelism()?
    );
    Ok(())
}

async fn once(options: &Options, seed: u64) -> anyhow::Result<(f64, Duration)> {
    let nats = NatsServer::start().await?;
    let kv = Simulator::start(Config::default()).await?;
    kv.inject(Rule::new(Fault::status(401)).on(Scope::All));
    let settings = ProcessorOptions::new(&nats, &kv).set("RUST_LOG", "error");
    // The first replica creates the stream, and ends before the events come.
    let mut first = Processor::start(&settings).await?;
    first.terminate(Duration::from_secs(10)).await?;
    let mut dice = StdRng::seed_from_u64(seed);
    let events = (0..options.events).map(|n| event(&mut dice, n, options.ids));
    let stored = store(&nats.client().await?, events).await?;
    ensure!(stored == options.events, "{stored} of {} events are stored", options.events);

    let began = Instant::now();
    let mut replicas = Vec::new();
    for _ in 0..options.replicas {
        replicas.push(Processor::spawn(&settings)?);
    }
    loop {
        let mut taken = 0.0;
        for replica in &replicas {
            taken += replica.metric("taskpipeline_events_stored_total").await.unwrap_or(0.0);
        }
        if taken >= f64::from(options.events) {
            break;
        }
        ensure!(
            began.elapsed() < Duration::from_secs(300),
            "{taken} of {} events after 5 minutes",
            options.events
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = began.elapsed();
    Ok((f64::from(options.events) / took.as_secs_f64(), took))
}

/// An event of about 300 bytes.
fn event(dice: &mut StdRng, n: u32, ids: u32) -> (&'static str, Value) {
    let id = format!("task-{:06}", dice.random_range(0..ids));
    let correlation_id = format!("bench-{n:08}");
    match dice.random_range(0..10) {
        0..5 => {
            let data = json!({"id": id, "title": format!("Task number {n}"), "description": "d".repeat(170), "status": "pending"});
            ("created", json!({"correlationId": correlation_id, "data": data}))
        }
        5..9 => {
            let data = json!({"id": id, "status": "in_progress", "description": "u".repeat(190)});
            ("updated", json!({"correlationId": correlation_id, "data": data}))
        }
        _ => {
            ("deleted", json!({"correlationId": correlation_id, "data": {"id": id, "note": "x".repeat(220)}}))
        }
    }
}
