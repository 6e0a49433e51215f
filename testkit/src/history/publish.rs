//! Publishes the events of a history in the two ways of producers: by JetStream until each is acked, and plainly.
//!
//! Other modules decide on the events and their times. A published event proves nothing: see `capture`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::events::Publication;
use crate::nats::{Login, client_options};

/// The time limit for one burst, including an outage of the server or the stream.
const PATIENCE: Duration = Duration::from_secs(60);

/// The number of publishes that wait for their acks at a time.
const MOST_UNACKED: usize = 2_000;

/// A producer.
#[derive(Debug)]
pub(crate) struct Producer {
    client: Client,
    jetstream: jetstream::Context,
    name: String,
    number: AtomicU64,
    repeated: AtomicU64,
    refused: AtomicU64,
    stored_up_to: AtomicU64,
}

/// Connects with short time limits for a server that is down, and many attempts.
///
/// # Errors
/// If the address is invalid.
pub(crate) async fn connect(url: &str, login: Option<Login>) -> anyhow::Result<(Client, jetstream::Context)> {
    let client = client_options(login)
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(50))
        .connect(url.split(',').collect::<Vec<_>>())
        .await?;
    let jetstream = jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_secs(2))
        .ack_timeout(Duration::from_secs(1))
        .build(client.clone());
    Ok((client, jetstream))
}

impl Producer {
    /// Connects a producer whose message ids begin with this name.
    ///
    /// # Errors
    /// As [`connect`].
    pub(crate) async fn new(url: &str, login: Option<Login>, name: String) -> anyhow::Result<Self> {
        let (client, jetstream) = connect(url, login).await?;
        let (number, repeated, refused, stored_up_to) = Default::default();
        Ok(Self { client, jetstream, name, number, repeated, refused, stored_up_to })
    }

    /// The highest sequence that the stream has acked; 0 again after the stream was replaced.
    pub(crate) fn stored_up_to(&self) -> u64 {
        self.stored_up_to.load(Ordering::Relaxed)
    }

    /// Forgets the acked sequence, because the stream was replaced.
    pub(crate) fn forget_promises(&self) {
        self.stored_up_to.store(0, Ordering::Relaxed);
    }

    /// The number of publishes that were repeated because they had no ack.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// The number of publishes that the stream has refused because it was full.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Publishes the events in this order, and repeats those without an ack.
    ///
    /// # Errors
    /// If some still have no ack after a long time.
    pub(crate) async fn acked(&self, publications: &[Publication]) -> anyhow::Result<()> {
        // The client allows a limited number of outstanding acks.
        for some in publications.chunks(MOST_UNACKED) {
            self.all_acked(some).await?;
        }
        Ok(())
    }

    async fn all_acked(&self, publications: &[Publication]) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let numbered = |publication| (self.number.fetch_add(1, Ordering::Relaxed), publication);
        let mut left: Vec<(u64, &Publication)> = publications.iter().map(numbered).collect();
        loop {
            let refused = self.attempt(&mut left).await;
            if left.is_empty() {
                return Ok(());
            }
            let why = refused.unwrap_or_default();
            ensure!(Instant::now() < deadline, "{} publishes have no ack: {why}", left.len());
            self.repeated.fetch_add(left.len() as u64, Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Publishes the remaining events, and keeps those without an ack. Returns why one of them has no ack.
    async fn attempt(&self, left: &mut Vec<(u64, &Publication)>) -> Option<String> {
        let mut acks = Vec::with_capacity(left.len());
        for (number, publication) in left.drain(..) {
            let message = PublishMessage::build()
                .payload(publication.payload.clone())
                .message_id(format!("{}-{number}", self.name));
            let sent = self.jetstream.send_publish(publication.kind.subject("tasks"), message).await;
            acks.push(async move {
                let acked = match sent {
                    Ok(ack) => ack.await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let acked = acked.map(|ack| self.stored_up_to.fetch_max(ack.sequence, Ordering::Relaxed));
                acked.map_err(|why| ((number, publication), why)).err()
            });
        }
        let mut refused = None;
        for (publication, why) in join_all(acks).await.into_iter().flatten() {
            left.push(publication);
            // The error text of nats-server. A missing answer does not mean that the stream is full.
            self.refused.fetch_add(u64::from(why.contains("maximum bytes exceeded")), Ordering::Relaxed);
            refused = Some(why);
        }
        refused
    }

    /// Publishes the events plainly, and once.
    ///
    /// # Errors
    /// If the client is closed.
    pub(crate) async fn plain(&self, publications: &[Publication]) -> anyhow::Result<()> {
        for Publication { kind, payload } in publications {
            let sent = self.client.publish(kind.subject("tasks"), payload.clone()).await;
            sent.context("cannot publish")?;
        }
        // The events may be lost with the server; a flush that waits for a server that is down tells nothing.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.client.flush()).await;
        Ok(())
    }
}
