//! Publishes events at a steady rate from this process.
//!
//! It is for loads for which the time of publishing must be known. They are so light that the publisher's own CPU
//! time does not matter.

use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use bytes::BytesMut;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::events::{Kind, encode};

/// Publishes this many events a second plainly, and calls `published` with the place and the time just before each.
/// If it falls behind, it catches up, as real producers would.
pub(crate) async fn publish(
    client: &Client,
    rate: u64,
    events: u64,
    mut at: impl FnMut(u64) -> (Kind, u64),
    mut published: impl FnMut(u64, Instant),
) -> anyhow::Result<()> {
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    let mut clock = interval(Duration::from_secs_f64(1.0 / crate::stats::count(rate.max(1))));
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for place in 0..events {
        clock.tick().await;
        let (kind, task) = at(place);
        let event = encode(&mut buffer, kind, place, task);
        published(place, Instant::now());
        client.publish(format!("tasks.{}", kind.name()), event).await.context("cannot publish")?;
    }
    client.flush().await.context("cannot flush")
}
