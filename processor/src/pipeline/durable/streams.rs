//! The three streams: the one that captures the events, the one under the ledger, and that of the dead letters.
//! Makes what is missing, uses what fits, and refuses what does not, saying why.

use async_nats::jetstream::context::{AccountErrorKind, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use tracing::{info, warn};

use super::fitness::{self, Fitness};
use super::names::Names;
use crate::config::DurableSettings;

/// Per-message time to live and sound compare-and-set with replicas came with it.
const OLDEST_SERVER: (u64, u64) = (2, 11);

/// Why the streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamsError {
    /// It may work in a moment.
    #[error("{0}")]
    Away(String),
    /// Someone has to change something.
    #[error("{0}")]
    Unfit(String),
}

/// Makes sure that the server can do what this mode needs, and that all three streams are there.
pub(super) async fn ensure(
    jetstream: &Context,
    names: &Names,
    settings: &DurableSettings,
) -> Result<Stream, StreamsError> {
    check_server(jetstream).await?;
    let events = ensure_one(jetstream, events(names, settings)).await?;
    use_of(&events, &fitness::of_events(&events.cached_info().config, names), "name another in STREAM_NAME")?;
    let ledger = ensure_one(jetstream, ledger(names, settings)).await?;
    let other = "set another QUEUE_GROUP, which begins with a new ledger";
    use_of(&ledger, &fitness::of_ledger(&ledger.cached_info().config, names), other)?;
    let letters = ensure_one(jetstream, dead_letters(names, settings)).await?;
    use_of(
        &letters,
        &fitness::of_letters(&letters.cached_info().config, names),
        "delete it when its letters are dealt with",
    )?;
    Ok(events)
}

/// Refuses a stream that does not fit, and tells what may go wrong with one that does.
fn use_of(stream: &Stream, fitness: &Fitness, or_else: &str) -> Result<(), StreamsError> {
    let name = &stream.cached_info().config.name;
    for warning in &fitness.warnings {
        warn!("the stream {name}: {warning}");
    }
    if fitness.misfits.is_empty() {
        return Ok(());
    }
    Err(StreamsError::Unfit(format!(
        "the stream {name} is there and cannot be used: {}. Change it, or {or_else}",
        fitness.misfits.join("; ")
    )))
}

async fn check_server(jetstream: &Context) -> Result<(), StreamsError> {
    let no_jetstream = || {
        StreamsError::Unfit(
            "this NATS server has no JetStream (for this account): turn it on, or set DELIVERY_MODE=Core, \
             which delivers at most once"
                .to_owned(),
        )
    };
    match jetstream.query_account().await {
        Ok(_) => {}
        Err(error) => {
            return Err(match error.kind() {
                AccountErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED
                        || error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
                {
                    no_jetstream()
                }
                AccountErrorKind::JetStreamUnavailable => no_jetstream(),
                _ => StreamsError::Away(format!("JetStream does not answer: {error}")),
            });
        }
    }
    let version = jetstream.client().server_info().version;
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST_SERVER {
        let (major, minor) = OLDEST_SERVER;
        return Err(StreamsError::Unfit(format!(
            "this NATS server is {version}: {major}.{minor} or newer is needed, or DELIVERY_MODE=Core, which \
             delivers at most once"
        )));
    }
    Ok(())
}

async fn ensure_one(jetstream: &Context, config: Config) -> Result<Stream, StreamsError> {
    let (name, subjects) = (config.name.clone(), config.subjects.join(", "));
    match jetstream.get_stream(&name).await {
        Ok(stream) => return Ok(stream),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            _ => return Err(StreamsError::Away(format!("the stream {name} cannot be looked up: {error}"))),
        },
    }
    match jetstream.create_stream(config).await {
        Ok(stream) => {
            info!("made the stream {name} on {subjects}");
            Ok(stream)
        }
        Err(error) => Err(match error.kind() {
            // Another replica was first.
            CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                StreamsError::Away(format!("the stream {name} was made by someone else just now"))
            }
            CreateStreamErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
            {
                StreamsError::Unfit(format!(
                    "another stream captures some of {subjects} already: name it in STREAM_NAME if it \
                     captures all of the events, or take them out of it"
                ))
            }
            CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => {
                StreamsError::Away(format!("the stream {name} cannot be made: {error}"))
            }
            CreateStreamErrorKind::JetStream(error) if may_pass(&error) => StreamsError::Away(format!(
                "the stream {name} cannot be made: {error}. It is tried again; are enough servers up and in the \
                 cluster for STREAM_REPLICAS, and is there room on them?"
            )),
            _ => StreamsError::Unfit(format!("the stream {name} cannot be made: {error}")),
        }),
    }
}

/// Whether it is the state that a cluster is in at the moment: without a leader, or with servers away.
fn may_pass(error: &async_nats::jetstream::Error) -> bool {
    const CODES: [ErrorCode; 7] = [
        ErrorCode::CLUSTER_INCOMPLETE,
        ErrorCode::CLUSTER_NO_PEERS,
        ErrorCode::CLUSTER_NOT_ACTIVE,
        ErrorCode::CLUSTER_NOT_ASSIGNED,
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_LEADER,
        ErrorCode::STREAM_OFFLINE,
    ];
    CODES.contains(&error.error_code())
}

fn events(names: &Names, settings: &DurableSettings) -> Config {
    Config {
        name: names.stream.clone(),
        subjects: names.subjects.iter().map(|(subject, _)| subject.clone()).collect(),
        description: Some("Task events, until the replicas have taken them in".to_owned()),
        max_age: settings.max_age,
        num_replicas: settings.replicas,
        allow_direct: true,
        ..Config::default()
    }
}

fn ledger(names: &Names, settings: &DurableSettings) -> Config {
    Config {
        name: names.ledger_stream.clone(),
        subjects: vec![names.ledger_all()],
        description: Some("The latest state of each task".to_owned()),
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        num_replicas: settings.replicas,
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        // Without `subject_delete_marker_ttl`, which would put empty markers where a record expires.
        allow_message_ttl: true,
        ..Config::default()
    }
}

fn dead_letters(names: &Names, settings: &DurableSettings) -> Config {
    Config {
        name: names.dead_letter_stream.clone(),
        subjects: vec![names.dead_letter_subject.clone()],
        description: Some("Events that could not go on, until someone looks at them".to_owned()),
        num_replicas: settings.replicas,
        allow_direct: true,
        ..Config::default()
    }
}
