//! What the limits of a server or an account ask of the consumer: fewer unacknowledged messages, smaller pulls. Without
//! them a replica would ask for the same again and again, and get nothing.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::stream::{
    ConsumerCreateStrictError, ConsumerCreateStrictErrorKind as Kind, Stream,
};
use tracing::warn;

/// Creates a consumer, with fewer unacknowledged messages if the server allows no more.
///
/// # Errors
/// Where it cannot be created even so.
pub(crate) async fn create_consumer(
    stream: &Stream,
    mut config: PullConfig,
) -> Result<PullConsumer, ConsumerCreateStrictError> {
    let wanted = config.max_ack_pending;
    loop {
        match stream.create_consumer_strict(config.clone()).await {
            Err(error) if config.max_ack_pending > 1 && is_excess(&error) => config.max_ack_pending /= 2,
            Err(other) => return Err(other),
            Ok(consumer) => {
                if config.max_ack_pending < wanted {
                    warn!(
                        wanted,
                        allowed = config.max_ack_pending,
                        "NATS allows few unacknowledged messages (max_ack_pending); this limits the intake under load"
                    );
                }
                return Ok(consumer);
            }
        }
    }
}

fn is_excess(error: &ConsumerCreateStrictError) -> bool {
    matches!(error.kind(), Kind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_MAX_PENDING_ACK_EXCESS)
}

/// How many messages a pull may ask for, if that is what an error says.
pub(crate) fn largest_pull(error: &str) -> Option<usize> {
    let (_, limit) = error.split_once("MaxRequestBatch of ")?;
    let digits = limit.find(|c: char| !c.is_ascii_digit()).unwrap_or(limit.len());
    limit[..digits].parse().ok().filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_pull_is_read_from_what_the_server_says() {
        let said =
            "error while processing messages from the stream: 409, Some(\"Exceeded MaxRequestBatch of 50\")";
        assert_eq!(largest_pull(said), Some(50));
        for other in
            ["409, Some(\"Exceeded MaxAckPending\")", "MaxRequestBatch of ", "MaxRequestBatch of 0", ""]
        {
            assert_eq!(largest_pull(other), None, "{other}");
        }
    }
}
