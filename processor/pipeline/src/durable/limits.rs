//! Adapts the consumer and its pulls to the limits of a server or an account: fewer unacknowledged
//! messages, smaller pulls.
//!
//! Without this a replica would repeat the same requests, and NATS would refuse all of them.

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
/// If NATS refuses the consumer for another reason, or even with one unacknowledged message.
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

/// The most messages of a pull that this error names, or `None` if it names no limit.
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
