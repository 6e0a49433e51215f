//! A producer of events, as `publish` and `check` are: publishes one and learns what became of it. Needs no right but to
//! publish and to hear the answer.

use std::fmt;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::jetstream::publish::PublishAck;
use async_nats::{Client, Event as NatsEvent, ServerError};
use bytes::Bytes;
use tokio::sync::watch;

use taskpipeline_pipeline::connect_options;
use taskpipeline_pipeline::settings::NatsConnection;

/// How long a stream may take to acknowledge; in mode Core there is none that would.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection by which events are published, one at a time.
pub(crate) struct Producer {
    client: Client,
    /// What NATS forbade last.
    forbidden: watch::Receiver<Option<String>>,
    url: String,
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is kept.
    Stored {
        /// The stream that has it.
        stream: String,
        /// Its number there.
        sequence: u64,
    },
    /// Somebody listens, and no stream has said that it keeps it.
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

/// Why an event was not published, or is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProducerError {
    /// NATS is not there, or does not let us.
    #[error("cannot publish to NATS at {url}: {reason}; is it running, and is NATS_URL right?")]
    Nats {
        /// The servers, without credentials.
        url: String,
        /// What the client says.
        reason: String,
    },
    /// The login has not the right.
    #[error(
        "cannot publish {subject} to NATS at {url}: {reason}; the user of NATS_USER or NATS_CREDS has no right to"
    )]
    Forbidden {
        /// Where the event was published.
        subject: String,
        /// The servers, without credentials.
        url: String,
        /// What the server says.
        reason: String,
    },
    /// It is lost.
    #[error(
        "nobody at {url} listens to {subject}, so the event is lost: does the pipeline run, and is SUBJECT_PREFIX right?"
    )]
    NobodyListens {
        /// Where the event was published.
        subject: String,
        /// The servers, without credentials.
        url: String,
    },
}

impl Producer {
    /// Connects.
    ///
    /// # Errors
    /// Where NATS is not there, or the login is refused.
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

    /// Publishes, and waits until a stream has it, as long as one may take.
    ///
    /// # Errors
    /// Where the login may not, or nobody listens.
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
                // Somebody's own answer, or a stream's refusal: that says why.
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
