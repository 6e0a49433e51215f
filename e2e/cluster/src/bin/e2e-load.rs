//! A producer as a pod: it creates distinct tasks until it is told to stop. The stream acknowledges each event before the next.
//!
//! A client that connects to its port and writes `stored` or `stop` gets the number of stored events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use taskpipeline_e2e_cluster::{LOAD_PORT, create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The time limit for an ack. After it, the same event is published again.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Progress {
    stored: AtomicU32,
    stop: AtomicBool,
    stopped: AtomicBool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (url, prefix) = (arguments.next().context("no URL")?, arguments.next().context("no prefix")?);
    let pause = Duration::from_secs(1) / arguments.next().context("no rate")?.parse::<u32>()?;
    let mut options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    if let (Ok(user), Ok(password)) = (std::env::var("NATS_USER"), std::env::var("NATS_PASSWORD")) {
        options = options.user_and_password(user, password);
    }
    let progress = Arc::new(Progress::default());
    let publishing = Arc::clone(&progress);
    tokio::spawn(async move {
        let client = options.connect(url).await;
        match client {
            Ok(client) => publish(&jetstream::new(client), &prefix, pause, &publishing).await,
            Err(error) => eprintln!("cannot connect: {error}"),
        }
    });
    let listener = TcpListener::bind(("0.0.0.0", LOAD_PORT)).await?;
    loop {
        let (mut asker, _) = listener.accept().await?;
        let mut question = [0; 6];
        let read = asker.read(&mut question).await.unwrap_or(0);
        if question[..read].starts_with(b"stop") {
            progress.stop.store(true, Ordering::SeqCst);
            while !progress.stopped.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let stored = progress.stored.load(Ordering::SeqCst).to_string();
        let _ = asker.write_all(stored.as_bytes()).await;
    }
}

async fn publish(jetstream: &jetstream::Context, prefix: &str, pause: Duration, progress: &Progress) {
    let mut next = 0;
    // An event whose ack was lost may be stored, so the producer repeats it until it has an ack.
    while !progress.stop.load(Ordering::SeqCst) {
        let event = create(&format!("{prefix}-{next}"));
        loop {
            let acked = async { jetstream.publish("tasks.created", event.clone().into()).await?.await };
            if matches!(tokio::time::timeout(PATIENCE, acked).await, Ok(Ok(_))) {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        next += 1;
        progress.stored.store(next, Ordering::SeqCst);
        tokio::time::sleep(pause).await;
    }
    progress.stopped.store(true, Ordering::SeqCst);
}
