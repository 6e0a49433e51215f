//! Keeps room in the store. This module reads and writes NATS; [`limit`] and [`trim`] decide.
//!
//! Each stream gets a limit. Acknowledged events are purged before they fill their stream. A stream
//! that is nearly full is reported before NATS refuses a message.

mod trim;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{DiscardPolicy, Info, Stream};
use futures_util::TryStreamExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use self::trim::Contents;
use crate::durable::stream::kind::Kind;
use crate::durable::stream::limit::{self, Change, Filling};
use crate::durable::stream::streams::Streams;
use crate::settings::{Room, Size};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The interval between two reports, and the shorter one on the writer, which reports to the
/// resource.
const LOOK: Duration = Duration::from_secs(10);
const LOOK_OF_WRITER: Duration = Duration::from_secs(1);

/// The interval of the writer between two checks for events to purge. A burst between two checks
/// has half of the room.
const DROP: Duration = Duration::from_millis(250);

/// The pause after a failed purge. A cluster without a leader also fails to purge, for seconds.
const REFUSED: Duration = Duration::from_secs(60);

/// Keeps room in the store of the streams. One for all sessions of a replica.
pub(crate) struct Rooms {
    pub(crate) jetstream: Context,
    pub(crate) room: Room,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    /// The last warning about each stream, so that it is logged once.
    pub(crate) warned: Mutex<HashMap<Kind, String>>,
    /// The streams whose update NATS did not answer. The login probably lacks the permission.
    pub(crate) silent: Mutex<HashSet<Kind>>,
}

impl Rooms {
    /// Reports and purges until the session ends.
    pub(crate) fn watch(self: Arc<Self>, streams: Arc<Streams>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut filling = Filling::default();
            let (mut looked, mut checked, mut may_drop) = (None::<Instant>, None::<Instant>, Instant::now());
            loop {
                let is_writer = self.health.is_writing();
                let every = if is_writer { LOOK_OF_WRITER } else { LOOK };
                if looked.is_none_or(|looked| looked.elapsed() >= every) {
                    looked = Some(Instant::now());
                    self.look(&streams, &mut filling).await;
                }
                let every = if is_writer { DROP } else { LOOK_OF_WRITER };
                let is_due = checked.is_none_or(|checked| checked.elapsed() >= every);
                if is_due && Instant::now() >= may_drop {
                    checked = Some(Instant::now());
                    let dropped = self.drop_acknowledged(&streams.events, is_writer).await;
                    may_drop = Instant::now() + if dropped.is_err() { REFUSED } else { Duration::ZERO };
                }
                // A replica that becomes the writer checks at once, not after its last interval.
                tokio::time::sleep(DROP).await;
            }
        })
    }

    /// Sets the limits of the streams that a replica created. This happens before any write,
    /// because a full stream takes no record.
    pub(crate) async fn set_limits(&self, streams: &Streams) {
        let each = streams.all().map(|(kind, stream)| async move {
            // Each attempt would take as long as the time-out of an answer.
            if self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(&kind) {
                return;
            }
            // The session has just read the info of the stream.
            let info = stream.cached_info();
            match limit::change(kind, &info.config, info.state.bytes, &self.room) {
                Change::Nothing => {}
                Change::Refused(why) => self.warn_once(kind, why),
                Change::To(size) => self.set_limit(kind, info, size).await,
            }
        });
        futures_util::future::join_all(each).await;
    }

    async fn set_limit(&self, kind: Kind, info: &Info, size: Size) {
        let mut config = info.config.clone();
        config.max_bytes = limit::max_bytes(size);
        // A full stream refuses new messages: the sender knows that, and stored messages stay.
        config.discard = DiscardPolicy::New;
        let name = &config.name;
        match self.jetstream.update_stream(&config).await {
            Ok(_) => info!(stream = name, %size, "changed the size limit of the stream"),
            Err(error) => {
                if error.kind() == CreateStreamErrorKind::TimedOut {
                    self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(kind);
                }
                let what = format!(
                    "cannot set the limit of the stream {name} to {size} ({}): {error}. Without a limit, the stream may take \
                     the room of others. Allow the login of the processor to publish on $JS.API.STREAM.UPDATE.{name}, or set \
                     the limit with `nats stream edit {name} --max-bytes={size}B --discard=new`",
                    kind.setting()
                );
                self.warn_once(kind, what);
            }
        }
    }

    async fn look(&self, streams: &Streams, filling: &mut Filling) {
        for (kind, stream) in streams.all() {
            // While NATS does not answer, health reports that instead.
            let Ok(info) = stream.get_info().await else { return };
            let label = [kind.label()];
            let limit = u64::try_from(info.config.max_bytes).unwrap_or(0);
            self.metrics.stream_bytes.with_label_values(&label).set(clamped(info.state.bytes));
            self.metrics.stream_max_bytes.with_label_values(&label).set(clamped(limit));
            filling.see(&info.config.name, info.state.bytes, limit);
        }
        if let Ok(account) = self.jetstream.query_account().await {
            let (used, limit) = limit::of_account(&account, streams.events.cached_info());
            self.metrics.account_bytes.set(clamped(used));
            self.metrics.account_max_bytes.set(clamped(limit));
            filling.see(limit::ACCOUNT, used, limit);
        }
        let warned = filling.to_string();
        let warned = (!warned.is_empty()).then_some(warned);
        if self.health.filling() != warned {
            match &warned {
                Some(what) => {
                    error!(
                        error = %what,
                        "a stream is nearly full. A full stream refuses messages, and plain publishers get no error. Give it more \
                         room (spec.delivery.room, the limit of the NATS account, the volume)"
                    );
                }
                None => info!("there is enough room in NATS again"),
            }
            self.health.set_filling(warned);
        }
    }

    /// Purges events that all consumers have acknowledged, if they take up too much of the room.
    ///
    /// # Errors
    /// If the server refuses the purge.
    async fn drop_acknowledged(&self, stream: &Stream, is_writer: bool) -> Result<(), ()> {
        let Ok(info) = stream.get_info().await else { return Ok(()) };
        // Other readers may need the events of a stream that somebody else created.
        let may = limit::is_ours(Kind::Events, &info.config) && !info.config.deny_purge;
        let held = Contents::of(&info.state);
        let room = match u64::try_from(info.config.max_bytes) {
            Ok(limit) if limit > 0 => limit,
            // The stream contains too much to get a limit.
            _ => limit::wanted(Kind::Events, &self.room).bytes(),
        };
        if !may || !held.is_too_much(room, is_writer) {
            return Ok(());
        }
        let consumers = match consumers(stream).await {
            Ok(consumers) => consumers,
            Err(why) => {
                debug!(error = %why, "cannot read the ack floors of the consumers");
                return Ok(());
            }
        };
        let Some(up_to) = held.may_go(room, trim::acknowledged(&consumers, held.last)) else { return Ok(()) };
        match stream.purge().sequence(up_to).await {
            Ok(purged) => {
                self.metrics.events_trimmed.inc_by(purged.purged);
                debug!(events = purged.purged, up_to, "dropped events that the ledger holds");
                Ok(())
            }
            Err(error) => {
                let name = &info.config.name;
                self.warn_once(
                    Kind::Events,
                    format!(
                        "cannot purge events from the stream {name} although they are in the ledger: {error}. They stay until \
                         max_age, and may fill the stream. Allow the login of the processor to publish on \
                         $JS.API.STREAM.PURGE.{name}"
                    ),
                );
                Err(())
            }
        }
    }

    /// Logs a warning once while it stays the same.
    fn warn_once(&self, kind: Kind, what: String) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.get(&kind) != Some(&what) {
            warn!(error = %what, "cannot make room in a stream");
            warned.insert(kind, what);
        }
    }
}

/// The consumers of all readers, because others may read the same stream.
async fn consumers(stream: &Stream) -> Result<Vec<ConsumerInfo>, String> {
    let names: Vec<String> =
        stream.consumer_names().try_collect().await.map_err(|error| error.to_string())?;
    let mut infos = Vec::with_capacity(names.len());
    for name in names {
        infos.push(stream.consumer_info(&name).await.map_err(|error| error.to_string())?);
    }
    Ok(infos)
}

fn clamped(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
