//! Publishes one event and returns its outcome, for `publish` and `check`.
//!
//! It needs only the permission to publish, and to receive the reply.

use std::fmt;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::publish::PublishAck;
use async_nats::{Client, Event as NatsEvent, ServerError};
use bytes::Bytes;
use tokio::sync::watch;

use taskpipeline_pipeline::connect_options;
use taskpipeline_pipeline::settings::NatsConnection;

/// The most time for the ack of a stream. In mode Core no stream sends one.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection that publishes one event at a time.
pub(crate) struct Producer {
    client: Client,
    /// The last permission error of NATS.
    forbidden: watch::Receiver<Option<String>>,
    url: String,
}

/// The outcome of publishing an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// A stream has stored the event.
    Stored {
        /// The name of the stream.
        stream: String,
        /// The sequence of the event in the stream.
        sequence: u64,
    },
    /// A client subscribes to the subject, and no stream has sent an ack.
    NotAcknowledged,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored { stream, sequence } => write!(f, "as event {sequence} of the stream {stream}"),
            Self::NotAcknowledged => f.write_str("and no stream acknowledged it, as in mode Core"),
        }
    }
}

/// An event was not published, or is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProducerError {
    /// NATS cannot be reached, or refuses the connection.
    #[error("cannot publish to NATS at {url}: {reason}. Check that NATS runs, and check NATS_URL")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// The error of the client.
        reason: String,
    },
    /// The login lacks the permission.
    #[error(
        "cannot publish {subject} to NATS at {url}: {reason}. Grant the user of NATS_USER or NATS_CREDS the right to publish it"
    )]
    Forbidden {
        /// The subject of the event.
        subject: String,
        /// The servers, without credentials.
        url: String,
        /// The error of the server.
        reason: String,
    },
    /// Nothing subscribes to the subject.
    #[error(
        "the event is lost: nothing subscribes to {subject} at {url}. Check that the pipeline runs, and check SUBJECT_PREFIX"
    )]
    NobodyListens {
        /// The subject of the event.
        subject: String,
        /// The servers, without credentials.
        url: String,
    },
}

impl Producer {
    /// Connects to NATS.
    ///
    /// # Errors
    /// If NATS cannot be reached, or refuses the login.
    pub(crate) async fn connect(connection: &NatsConnection) -> Result<Self, ProducerError> {
        let url = connection.to_string();
        let failed = |reason: String| ProducerError::Nats { url: url.clone(), reason };
        let (said, forbidden) = watch::channel(None);
        let options = connect_options(connection).event_callback(move |event| {
            if let NatsEvent::ServerError(ServerError::Other(reason)) = event {
                said.send_replace(Some(reason));
            }
            std::future::ready(())
        });
        let client = options.connect(connection.servers.as_slice()).await;
        let client = client.map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, forbidden, url })
    }

    /// Publishes an event, and waits for the ack of a stream.
    ///
    /// # Errors
    /// If the login lacks the permission, or nothing subscribes to the subject.
    pub(crate) async fn publish(&self, subject: &str, event: Bytes) -> Result<Published, ProducerError> {
        let (url, subject) = (self.url.clone(), subject.to_owned());
        let mut forbidden = self.forbidden.clone();
        let request = async_nats::Request::new().payload(event).timeout(Some(PATIENCE));
        let answer = tokio::select! {
            answer = self.client.send_request(subject.clone(), request) => answer,
            Ok(reason) = forbidden.wait_for(Option::is_some) => {
                let reason = reason.clone().unwrap_or_default();
                return Err(ProducerError::Forbidden { subject, url, reason });
            }
        };
        match answer {
            Ok(answer) => match serde_json::from_slice::<PublishAck>(&answer.payload) {
                Ok(PublishAck { stream, sequence, .. }) => Ok(Published::Stored { stream, sequence }),
                // A reply of another client, or a refusal of a stream: its text has the reason.
                Err(_) => {
                    let reason = String::from_utf8_lossy(&answer.payload).into_owned();
                    Err(ProducerError::Nats { url, reason })
                }
            },
            Err(error) => match error.kind() {
                RequestErrorKind::TimedOut => Ok(Published::NotAcknowledged),
                RequestErrorKind::NoResponders => Err(ProducerError::NobodyListens { subject, url }),
                _ => Err(ProducerError::Nats { url, reason: error.to_string() }),
            },
        }
    }
}
