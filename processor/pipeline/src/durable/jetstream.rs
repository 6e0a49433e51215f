//! The client of JetStream, with its time-out and limits.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;

/// The longest time that JetStream may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// The most publishes without an ack.
const MOST_IN_FLIGHT: usize = 16_384;

/// Creates a JetStream context on this connection.
pub(crate) fn context(client: &Client) -> Context {
    ContextBuilder::new()
        .timeout(ANSWER)
        .max_ack_inflight(MOST_IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone())
}
