//! `resync`: writes the whole ledger to a KV namespace, or compares the two and repairs
//! differences.
//!
//! It does not write to KV itself. All writes go through the projector, so that its guarantees of
//! order and budget hold. Either the control record is reset ([`course`]), or single records of the
//! ledger are written again. This module joins the steps.

mod compare;
mod course;
mod progress;
mod reader;
mod report;
mod scan;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use futures_util::{StreamExt, TryStreamExt, stream};
use taskpipeline_contract::{CorrelationId, TaskId, Timestamp};
use tokio::sync::watch;

use crate::connection::connect;
use crate::durable::bucket::{ReadError, WriteError};
use crate::durable::control::holder::Holder;
use crate::durable::ledger::LedgerError;
use crate::durable::ledger::record::Record;
use crate::durable::member::Member;
use crate::durable::names::Target;
use crate::durable::projector::Parts;
use crate::error::RunError;
use crate::settings::{Delivery, Settings, Tuning};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::Namespace;

use self::compare::Class;
use self::course::Course;
use self::progress::Progress;
use self::reader::{Count, Counted, Reader};
use self::scan::Scan;

pub use self::report::Report;

/// How long the connection to NATS may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The most records that are written again at a time.
const AT_A_TIME: usize = 64;

/// The correlation id in logs of tasks that only KV had and that are deleted.
const CORRELATION_ID: &str = "taskpipeline-resync";

/// Why a resync did not finish. Its work so far stays, and the command may run again.
#[derive(Debug, thiserror::Error)]
pub enum ResyncError {
    /// Mode Core has no ledger to write from.
    #[error("resync needs DELIVERY_MODE=Durable, which keeps a ledger; Core keeps none")]
    Core,
    /// The error of a part that `run` also has.
    #[error(transparent)]
    Run(#[from] RunError),
    /// There is no stream with this name.
    #[error(
        "stream {0} not found. Check that `taskpipeline run` has run on this server, and that STREAM_NAME and QUEUE_GROUP \
         are the same"
    )]
    NoLedger(String),
    /// KV cannot be read.
    #[error("cannot read KV: {0}")]
    Kv(String),
    /// NATS failed a read or a write.
    #[error("{0}")]
    Ledger(String),
    /// The command was interrupted.
    #[error("interrupted; the same command starts again")]
    Stopped,
    /// The command was interrupted while it wrote to KV.
    #[error("interrupted at change {settled} of {up_to}; the same command continues from there")]
    Interrupted {
        /// The revision up to which everything is settled.
        settled: u64,
        /// The revision up to which everything should be settled.
        up_to: u64,
    },
}

impl From<LedgerError> for ResyncError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error.to_string())
    }
}

impl From<ReadError> for ResyncError {
    fn from(error: ReadError) -> Self {
        Self::Ledger(error.to_string())
    }
}

impl From<WriteError> for ResyncError {
    fn from(error: WriteError) -> Self {
        Self::Ledger(error.to_string())
    }
}

/// The options of the command.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Only compare.
    pub verify: bool,
    /// Compare values too.
    pub values: bool,
    /// Repair all differences that are not [`Class::Unmanaged`].
    pub repair: bool,
    /// Delete tasks that only KV has.
    pub delete_unmanaged: bool,
    /// Start again instead of continuing an interrupted resync.
    pub restart: bool,
    /// How old answers of KV may be.
    pub recheck_after: Duration,
}

impl Wanted {
    fn compares(&self) -> bool {
        self.verify || self.repairs()
    }

    fn repairs(&self) -> bool {
        self.repair || self.delete_unmanaged
    }

    fn mends_class(&self, class: Class) -> bool {
        match class {
            Class::Missing | Class::Stale | Class::Extra => self.repair,
            Class::Unmanaged => self.delete_unmanaged,
        }
    }
}

/// Runs the command. Returns the last comparison, if the options request one.
///
/// # Errors
/// If it does not finish. `shutdown` ends it in an orderly way.
pub async fn run(
    settings: Settings,
    wanted: &Wanted,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Report>, ResyncError> {
    let progress = Progress::new();
    let setting_up = Resync::new(&settings, *wanted, &progress);
    let mut resync = tokio::select! {
        resync = setting_up => resync?,
        () = &mut shutdown => return Err(ResyncError::Stopped),
    };
    let done = if wanted.compares() {
        resync.compare(shutdown).await.map(Some)
    } else {
        resync.write_all(shutdown).await.map(|()| None)
    };
    progress.end();
    done
}

/// The parts that all steps share.
struct Resync<'a> {
    wanted: Wanted,
    member: Member,
    holder: Holder,
    kv: Counted,
    reader: Reader,
    tuning: Tuning,
    settle_after: Duration,
    max_age: Option<Duration>,
    grace: Duration,
    progress: &'a Progress,
}

impl<'a> Resync<'a> {
    async fn new(settings: &Settings, wanted: Wanted, progress: &'a Progress) -> Result<Self, ResyncError> {
        let Delivery::Durable(durable) = &settings.pipeline.delivery else { return Err(ResyncError::Core) };
        let metrics = Arc::new(Metrics::new().map_err(RunError::from)?);
        let health = Arc::new(Health::default());
        let namespace =
            Namespace::new(&settings.kv, settings.pipeline.tuning.request_timeout).map_err(RunError::from)?;
        let (connected, mut connections) = watch::channel(0);
        let client =
            connect(&settings.connection, Arc::clone(&health), Arc::clone(&metrics), connected).await?;
        // The client would retry indefinitely, which is right only for a replica.
        if tokio::time::timeout(CONNECT, connections.wait_for(|count| *count > 0)).await.is_err() {
            let url = settings.connection.to_string();
            let reason = format!(
                "no connection within {} s. Check that NATS runs, and check NATS_URL",
                CONNECT.as_secs()
            );
            return Err(RunError::Nats { url, reason }.into());
        }
        let member = Member::new(&client, &settings.pipeline.events, durable, connections, metrics, health);
        // A ledger that this command created would be empty, and not the wanted one.
        let _ = max_age(&member, &member.names.ledger_stream).await?;
        let max_age = max_age(&member, &member.names.stream).await?;
        let target = Target::new(settings.kv.namespace_url.as_str());
        let kv = Counted { namespace, count: Count::default() };
        let tuning = settings.pipeline.tuning.clone();
        let parts = member.projector(
            kv.clone(),
            watch::channel(tuning.clone()).1,
            durable.settle_after,
            target,
            max_age,
        );
        Ok(Self {
            wanted,
            reader: Reader::new(kv.clone(), parts.holder.clone(), tuning.clone()),
            holder: parts.holder,
            member,
            kv,
            tuning,
            settle_after: durable.settle_after,
            max_age,
            grace: settings.pipeline.shutdown_grace,
            progress,
        })
    }

    /// Writes the whole ledger to KV.
    async fn write_all(&self, shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<(), ResyncError> {
        let course = Course { holder: &self.holder, progress: self.progress, requests: &self.kv.count };
        let mut shutdown = shutdown;
        let marker = tokio::select! {
            marker = course.begin(self.wanted.restart) => marker?,
            () = &mut shutdown => return Err(ResyncError::Stopped),
        };
        course.settle(marker.up_to, self.projector(self.tuning.clone()), self.grace, shutdown).await?;
        course.finish().await
    }

    /// Compares. If the options request a repair, repairs and compares again.
    async fn compare(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Report, ResyncError> {
        let report = tokio::select! {
            report = self.scan() => report?,
            () = &mut shutdown => return Err(ResyncError::Stopped),
        };
        if !self.wanted.repairs() {
            return Ok(report);
        }
        let repaired = tokio::select! {
            repaired = self.repair(&report) => repaired?,
            () = &mut shutdown => return Err(ResyncError::Stopped),
        };
        if repaired == 0 {
            return Ok(report);
        }
        let parts = self.projector(self.tuning.clone());
        let course = Course { holder: &self.holder, progress: self.progress, requests: &self.kv.count };
        let up_to = course.newest_task().await?;
        course.settle(up_to, parts, self.grace, shutdown.as_mut()).await?;
        let report = tokio::select! {
            report = self.scan() => report?,
            () = &mut shutdown => return Err(ResyncError::Stopped),
        };
        Ok(Report { repaired, ..report })
    }

    async fn scan(&mut self) -> Result<Report, ResyncError> {
        let course = Course { holder: &self.holder, progress: self.progress, requests: &self.kv.count };
        let mut scan = Scan {
            member: &self.member,
            course: &course,
            reader: &mut self.reader,
            values: self.wanted.values,
            recheck_after: self.wanted.recheck_after,
        };
        scan.run().await
    }

    /// Writes records of the ledger again, so that the projector writes their tasks to KV. Returns
    /// how many.
    async fn repair(&self, report: &Report) -> Result<usize, ResyncError> {
        let correlation_id = CorrelationId::new(CORRELATION_ID)
            .map_err(|error| ResyncError::Ledger(format!("{CORRELATION_ID}: {error}")))?;
        let tombstone = &Record::tombstone(Timestamp::from(SystemTime::now()), correlation_id);
        let of = |class: &Class| report.of(*class).iter().map(|id| (*class, id)).collect::<Vec<_>>();
        let wanted: Vec<(Class, &TaskId)> =
            Class::ALL.iter().filter(|class| self.wanted.mends_class(**class)).flat_map(of).collect();
        if !wanted.is_empty() {
            self.progress.print(&format!("repairing {} differences", wanted.len()));
        }
        let ledger = &self.member.ledger;
        let written = stream::iter(wanted)
            .map(async |(class, id)| match class {
                Class::Unmanaged => ledger.write_tombstone(id, tombstone).await,
                Class::Missing | Class::Stale | Class::Extra => ledger.touch(id).await,
            })
            .buffer_unordered(AT_A_TIME)
            .try_fold(0, async |sum, written| Ok(sum + usize::from(written)))
            .await?;
        Ok(written)
    }

    fn projector(&self, tuning: Tuning) -> Parts<Counted> {
        let target = self.holder.target.clone();
        self.member.projector(
            self.kv.clone(),
            watch::channel(tuning).1,
            self.settle_after,
            target,
            self.max_age,
        )
    }
}

/// How long a stream keeps its messages; `None` if indefinitely.
async fn max_age(member: &Member, stream: &str) -> Result<Option<Duration>, ResyncError> {
    match member.jetstream.get_stream(stream).await {
        Ok(stream) => {
            let age = stream.cached_info().config.max_age;
            Ok((!age.is_zero()).then_some(age))
        }
        Err(error) => Err(match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                ResyncError::NoLedger(stream.to_owned())
            }
            _ => ResyncError::Ledger(format!("cannot look up the stream {stream}: {error}")),
        }),
    }
}
