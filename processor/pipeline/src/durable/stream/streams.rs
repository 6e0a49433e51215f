//! The three streams: events, ledger and dead letters.
//!
//! Creates missing streams, each with a limit. Uses existing streams that fit, and refuses the
//! others with the reason.

use async_nats::jetstream::context::{
    AccountErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use tracing::{info, warn};

use crate::durable::names::Names;
use crate::durable::stream::fitness::{self, Fitness};
use crate::durable::stream::kind::Kind;
use crate::durable::stream::limit;
use crate::settings::DurableSettings;
use crate::settings::Size;

/// The oldest NATS version with per-message TTL and sound compare-and-set in a cluster.
const OLDEST_SERVER: (u64, u64) = (2, 11);

/// Why the streams cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamsError {
    /// A later attempt may succeed.
    #[error("{0}")]
    Away(String),
    /// A person must change something.
    #[error("{0}")]
    Unfit(String),
}

/// The streams of the events, the ledger and the dead letters, checked.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) events: Stream,
    ledger: Stream,
    dead_letters: Stream,
}

impl Streams {
    pub(crate) fn all(&self) -> [(Kind, &Stream); 3] {
        [(Kind::Events, &self.events), (Kind::Ledger, &self.ledger), (Kind::DeadLetters, &self.dead_letters)]
    }
}

/// Ensures that the server has the features of this mode, and that all three streams exist.
pub(crate) async fn ensure(
    jetstream: &Context,
    names: &Names,
    settings: &DurableSettings,
) -> Result<Streams, StreamsError> {
    check_server(jetstream).await?;
    let mut maker = Maker { jetstream, settings, smaller: 0 };
    let events = maker.ensure(Kind::Events, events(names, settings)).await?;
    use_of(&events, &fitness::of_events(&events.cached_info().config, names), "set another STREAM_NAME")?;
    let ledger = maker.ensure(Kind::Ledger, ledger(names, settings)).await?;
    let other = "set another QUEUE_GROUP, which starts a new ledger";
    use_of(&ledger, &fitness::of_ledger(&ledger.cached_info().config, names), other)?;
    let letters = maker.ensure(Kind::DeadLetters, dead_letters(names, settings)).await?;
    use_of(
        &letters,
        &fitness::of_letters(&letters.cached_info().config, names),
        "delete it after you have handled its letters",
    )?;
    Ok(Streams { events, ledger, dead_letters: letters })
}

/// Refuses a stream that does not fit, and logs the warnings about one that fits.
fn use_of(stream: &Stream, fitness: &Fitness, or_else: &str) -> Result<(), StreamsError> {
    let name = &stream.cached_info().config.name;
    for warning in &fitness.warnings {
        warn!(stream = name, warning, "the stream does not fit well");
    }
    if fitness.misfits.is_empty() {
        return Ok(());
    }
    Err(StreamsError::Unfit(format!(
        "the existing stream {name} cannot be used: {}. Change it, or {or_else}",
        fitness.misfits.join("; ")
    )))
}

async fn check_server(jetstream: &Context) -> Result<(), StreamsError> {
    let no_jetstream = || {
        StreamsError::Unfit(
            "this NATS server has no JetStream (for this account): enable it, or set DELIVERY_MODE=Core, \
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
            "this NATS server is version {version}: use {major}.{minor} or newer, or set DELIVERY_MODE=Core, which \
             delivers at most once"
        )));
    }
    Ok(())
}

/// The next smaller size in sixteenths, if there is no room. It is small enough that the next
/// streams find room too. It is not a power of two, because the size of a store usually is.
const LESS: u64 = 3;

/// Creates missing streams.
struct Maker<'a> {
    jetstream: &'a Context,
    settings: &'a DurableSettings,
    /// How many times an earlier stream was made smaller to find room.
    smaller: u32,
}

impl Maker<'_> {
    /// Denies purges of a stream that an earlier version created, as for a new stream. Without the
    /// permission, the stream stays as it is.
    async fn closed(&self, kind: Kind, wanted: &Config, stream: Stream) -> Stream {
        let mut config = stream.cached_info().config.clone();
        if !limit::is_ours(kind, &config) || !wanted.deny_purge || config.deny_purge {
            return stream;
        }
        close(&mut config);
        let changed = match self.jetstream.update_stream(&config).await {
            Ok(_) => self.jetstream.get_stream(&config.name).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        changed.unwrap_or_else(|error| {
            warn!(stream = config.name, error, "cannot deny purges of a stream that is never to be purged");
            stream
        })
    }

    async fn ensure(&mut self, kind: Kind, mut config: Config) -> Result<Stream, StreamsError> {
        let name = config.name.clone();
        match self.jetstream.get_stream(&name).await {
            Ok(stream) => return Ok(self.closed(kind, &config, stream).await),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                }
                _ => {
                    return Err(StreamsError::Away(format!("cannot look up the stream {name}: {error}")));
                }
            },
        }
        config.description = Some(kind.description().to_owned());
        config.discard = DiscardPolicy::New;
        let said = limit::said(kind, &self.settings.room);
        let wanted = limit::wanted(kind, &self.settings.room);
        let mut size = match said {
            Some(said) => said,
            None => (0..self.smaller).fold(wanted, |size, _| less(size)),
        };
        loop {
            config.max_bytes = limit::max_bytes(size);
            let error = match self.jetstream.create_stream(config.clone()).await {
                Ok(stream) => {
                    info!(stream = name, subjects = config.subjects.join(", "), %size, "created the stream");
                    if size < wanted {
                        warn!(stream = name, %size, setting = kind.setting(), "created the stream smaller than wanted: \
                             NATS has no more room. Give NATS more room, then raise the setting");
                    }
                    return Ok(stream);
                }
                Err(error) => error,
            };
            let CreateStreamErrorKind::JetStream(reason) = error.kind() else {
                return Err(cannot_be_made(&config, &error));
            };
            if !is_for_want_of_room(&reason) {
                return Err(cannot_be_made(&config, &error));
            }
            if said.is_some() || size == Size::within(0) {
                return Err(StreamsError::Unfit(format!(
                    "cannot create the stream {name}: {reason}. NATS has no room for {size}: give NATS more room \
                     (max_file_store, the limits of the account), or set a smaller {}",
                    kind.setting()
                )));
            }
            self.smaller += 1;
            size = less(size);
        }
    }
}

/// Denies purges of a stream that a replica never purges. Streams of an earlier version allow them.
fn close(config: &mut Config) {
    config.deny_purge = true;
    // NATS allows a rollup, which is a purge, only if it allows purges.
    config.allow_rollup = false;
}

fn less(size: Size) -> Size {
    Size::within(size.bytes() / 16 * LESS)
}

/// The error of a failed creation, which says whether a later attempt may succeed.
fn cannot_be_made(config: &Config, error: &CreateStreamError) -> StreamsError {
    let (name, subjects) = (&config.name, config.subjects.join(", "));
    match error.kind() {
        // Another replica was first.
        CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
            StreamsError::Away(format!("somebody else has just created the stream {name}"))
        }
        CreateStreamErrorKind::JetStream(error)
            if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
        {
            StreamsError::Unfit(format!(
                "another stream already captures some of {subjects}: set STREAM_NAME to that stream if it captures all of the \
                 events, or remove the subjects from it"
            ))
        }
        CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::JetStreamUnavailable => {
            StreamsError::Away(format!("cannot create the stream {name}: {error}"))
        }
        CreateStreamErrorKind::JetStream(error) if may_pass(&error) => StreamsError::Away(format!(
            "cannot create the stream {name}: {error}. The processor retries. Check that enough servers for \
             STREAM_REPLICAS are running in the cluster, and that they have room"
        )),
        _ => StreamsError::Unfit(format!("cannot create the stream {name}: {error}")),
    }
}

/// Returns whether NATS might grant a smaller limit.
fn is_for_want_of_room(error: &async_nats::jetstream::Error) -> bool {
    const CODES: [ErrorCode; 4] = [
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED,
    ];
    let code = error.error_code();
    // A cluster names the resource that each of its servers lacks.
    let says = |what| error.to_string().contains(what);
    CODES.contains(&code) || code == ErrorCode::CLUSTER_NO_PEERS && says("insufficient storage")
}

/// Returns whether the error may be a passing state of a cluster: no leader, or missing servers.
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
        max_age: settings.max_age,
        max_message_size: settings.max_event_bytes,
        num_replicas: settings.replicas,
        allow_direct: true,
        ..Config::default()
    }
}

fn ledger(names: &Names, settings: &DurableSettings) -> Config {
    Config {
        name: names.ledger_stream.clone(),
        subjects: vec![names.ledger_all()],
        max_messages_per_subject: 1,
        num_replicas: settings.replicas,
        allow_direct: true,
        deny_delete: true,
        deny_purge: true,
        // Without `subject_delete_marker_ttl`, which would put empty markers in place of expired
        // records.
        allow_message_ttl: true,
        ..Config::default()
    }
}

fn dead_letters(names: &Names, settings: &DurableSettings) -> Config {
    Config {
        name: names.dead_letter_stream.clone(),
        subjects: vec![names.dead_letter_subject.clone()],
        num_replicas: settings.replicas,
        allow_direct: true,
        deny_purge: true,
        ..Config::default()
    }
}
