//! The jobs of a projector beside its turns: reads and writes of the ledger, dead letters, the
//! renewal.
//!
//! Each job waits for NATS, and returns its result to the projection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use taskpipeline_contract::{Task, TaskId};
use tracing::warn;

use crate::dead_letters::Letter;
use crate::durable::bucket::{Bucket, Revision};
use crate::durable::control::holder::{Holder, Lease, Renewal};
use crate::durable::control::loan::LoanRequest;
use crate::durable::control::record::Settled;
use crate::durable::control::register::Register;
use crate::durable::crash;
use crate::durable::dead_letters::DeadLetters;
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::record::Settler;
use crate::durable::ledger::store::{LetterBox, Store};
use crate::durable::ledger::{Ledger, LedgerError};
use crate::durable::projector::deferred::IdHash;
use crate::telemetry::metrics::Metrics;

/// The pause before another attempt at something that NATS did not accept.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// The most attempts to give a record its time to live. Afterwards the record stays in the ledger.
const EXPIRE_TRIES: usize = 5;

/// The records of tasks that wait in NATS, by their revisions.
pub(crate) type FoundAt = Result<HashMap<Revision, (TaskId, Known)>, LedgerError>;

/// A job. It ends with a [`Done`].
pub(crate) enum Job {
    /// Renew the control record, with the settled revisions and the last revision read.
    Renew { held: Lease, settled: Settled, read: Revision },
    /// Grant a command its requests.
    Lend { asked: LoanRequest, requests: u32 },
    /// Read the records of these tasks.
    Read(Vec<TaskId>),
    /// Read the records at these revisions.
    ReadAt(Vec<(IdHash, Revision)>),
    /// Record the task that KV had, after storing the letter if there is one.
    Join(Box<Join>),
    /// Store a letter about a task that KV refuses.
    Bury { id: TaskId, revision: Revision, letter: Box<Letter> },
    /// Give these records their time to live.
    Expire { records: Vec<(TaskId, Known)>, settler: Settler, memory: Duration },
}

/// A task as KV had it, to be recorded.
#[derive(Clone)]
pub(crate) struct Join {
    pub(crate) id: TaskId,
    /// The task, or `None` if KV does not have it.
    pub(crate) known: Option<Task>,
    /// A letter about an unreadable value in KV.
    pub(crate) letter: Option<Letter>,
    pub(crate) correlation_id: String,
}

/// The result of a [`Job`].
pub(crate) enum Done {
    /// The outcome of the renewal, and the open request of a command.
    Renewed(Renewal, Option<LoanRequest>),
    /// The requests were granted.
    Lent,
    /// These records have their time to live, or do not need it.
    Expired(Vec<(TaskId, Revision)>),
    /// The result of [`Job::Join`]: the replaced revision, `None` if nothing was written, or an
    /// error.
    Joined(TaskId, Result<Option<Revision>, LedgerError>),
    /// The result of [`Job::Read`].
    Read(Vec<TaskId>, Result<HashMap<TaskId, Known>, LedgerError>),
    /// The result of [`Job::ReadAt`].
    ReadAt(Vec<(IdHash, Revision)>, FoundAt),
    /// The letter of a task that KV refuses is stored.
    Buried(TaskId, Revision),
}

/// The parts that jobs use.
#[derive(Clone)]
pub(crate) struct Tools<S = Bucket, L = DeadLetters> {
    pub(crate) ledger: Arc<Ledger<S, L>>,
    pub(crate) letters: L,
    pub(crate) holder: Holder<S>,
    pub(crate) metrics: Arc<Metrics>,
}

impl<S: Store + Register, L: LetterBox> Tools<S, L> {
    /// Runs a job to its end.
    pub(crate) async fn run(self, job: Job) -> Done {
        match job {
            Job::Renew { held, settled, read } => {
                let renewal = self.holder.renew(held, settled, read).await;
                Done::Renewed(renewal, self.holder.asked().await)
            }
            Job::Lend { asked, requests } => {
                self.holder.grant(asked, requests).await;
                Done::Lent
            }
            Job::Read(ids) => {
                let known = self.ledger.read_surely(&ids).await;
                Done::Read(ids, known)
            }
            Job::ReadAt(due) => {
                let found = self.ledger.read_at(due.iter().map(|(_, revision)| *revision).collect()).await;
                Done::ReadAt(due, found)
            }
            Job::Join(join) => self.join(*join).await,
            Job::Bury { id, revision, letter } => {
                self.store(&letter).await;
                Done::Buried(id, revision)
            }
            Job::Expire { records, settler, memory } => self.expire(records, &settler, memory).await,
        }
    }

    async fn join(&self, join: Join) -> Done {
        let Join { id, known, letter, correlation_id } = join;
        if let Some(letter) = letter {
            self.store(&letter).await;
        }
        let recorded = self.ledger.join(&id, known.as_ref()).await;
        crash::point("joined");
        match &recorded {
            Ok(Some(_)) if known.is_none() => {
                self.metrics.updates_unknown.inc();
                warn!(correlation_id, task_id = %id, "the task does not exist; its update changes nothing");
            }
            Ok(_) => {}
            Err(error) => {
                warn!(task_id = %id, %error, "cannot record the value of a task that KV holds");
                self.pause().await;
            }
        }
        Done::Joined(id, recorded)
    }

    /// Stores a letter, however long that takes. Its task is settled only afterwards.
    async fn store(&self, letter: &Letter) {
        while let Err(error) = self.letters.store(letter).await {
            warn!(%error, "cannot store a dead letter");
            self.pause().await;
        }
    }

    async fn expire(&self, mut records: Vec<(TaskId, Known)>, settler: &Settler, memory: Duration) -> Done {
        let expired = records.iter().map(|(id, known)| (id.clone(), known.revision)).collect();
        for _ in 0..EXPIRE_TRIES {
            let (left, error) = self.ledger.expire(records, settler, memory).await;
            let Some(error) = error else { break };
            warn!(count = left.len(), %error, "cannot set the time to live of the records of deleted tasks");
            self.pause().await;
            records = left;
        }
        Done::Expired(expired)
    }

    async fn pause(&self) {
        self.ledger.bucket().sleep(PAUSE).await;
    }
}
