//! Stores many events in the stream as fast as it accepts them.
//!
//! Each is acknowledged: plain publishes in such numbers would be lost.

use std::collections::VecDeque;
use std::future::IntoFuture;

use anyhow::Context;
use async_nats::Client;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use serde_json::Value;

/// The number of publishes that wait for their acks at a time.
const IN_FLIGHT: usize = 4_000;

/// Stores these events, `(kind, event)`, in their order, and waits until the stream has acknowledged all. Returns their number.
///
/// # Errors
/// If the stream refuses an event.
pub async fn store<'a>(
    client: &Client,
    events: impl Iterator<Item = (&'a str, Value)>,
) -> anyhow::Result<u32> {
    let jetstream = ContextBuilder::new()
        .max_ack_inflight(2 * IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone());
    let (mut waiting, mut stored) = (VecDeque::with_capacity(IN_FLIGHT), 0);
    for (kind, event) in events {
        let message = PublishMessage::build().payload(event.to_string().into());
        let sent = jetstream.send_publish(format!("tasks.{kind}"), message).await;
        waiting.push_back(sent.context("cannot publish an event")?);
        if waiting.len() == IN_FLIGHT
            && let Some(ack) = waiting.pop_front()
        {
            ack.into_future().await.context("an event is not acknowledged")?;
            stored += 1;
        }
    }
    for ack in waiting {
        ack.into_future().await.context("an event is not acknowledged")?;
        stored += 1;
    }
    Ok(stored)
}
