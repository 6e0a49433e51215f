//! How JetStream is asked.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;

/// How long JetStream may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// How many publishes may wait for their acks.
const MOST_IN_FLIGHT: usize = 16_384;

/// JetStream by this connection.
pub(crate) fn context(client: &Client) -> Context {
    ContextBuilder::new()
        .timeout(ANSWER)
        .max_ack_inflight(MOST_IN_FLIGHT)
        .backpressure_on_inflight(true)
        .build(client.clone())
}
