//! A simulated replica: the shipped code and its futures. The world decides when each future proceeds.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::kv::Door;
use super::net::{Acking, Link};
use super::settings::{CACHE, Knobs, MEMORY, READ_AHEAD, SETTLE_AFTER, limits};
use crate::durable::bucket::Revision;
use crate::durable::control::holder::{Holder, Lease};
use crate::durable::intake::ingest::{Ingest, IngestError};
use crate::durable::intake::mark::Mark;
use crate::durable::intake::storage::{Refusal, Storage};
use crate::durable::intake::suspects::Suspects;
use crate::durable::intake::waiting::{Kept, Round, Waiting};
use crate::durable::ledger::Ledger;
use crate::durable::ledger::cache::Cache;
use crate::durable::names::Target;
use crate::durable::projector::jobs::{Done, Tools};
use crate::durable::projector::projection::{Projection, Setup, tenth};
use crate::durable::projector::rests::Rests;
use crate::durable::stream::error::SessionError;
use crate::durable::stream::incarnation::Source;
use crate::schedule::Answer;
use crate::schedule::{AttemptId, Schedule};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The parts that all replicas of a thread share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
}

/// The state of a future.
pub(super) enum Out {
    Joined(Result<Option<(Source, Arc<str>)>, SessionError>),
    Begun(Box<Source>, Arc<str>),
    TakenIn(Result<(), IngestError>),
    Tried { round: Round, left: std::collections::BTreeSet<usize>, why: Option<Refusal> },
    Acquired { acquired: Result<Option<Lease>, String>, seen: Option<(Revision, Instant)> },
    Done(Done),
    Answered { answer: Answer, sent: Instant, attempt: AttemptId },
    HandedOver,
    Released,
}

/// The purpose of a future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Session,
    Take,
    Try,
    Job,
    Request,
    Hold,
}

pub(super) struct Task {
    pub(super) tag: Tag,
    future: Pin<Box<dyn Future<Output = Out> + Send>>,
}

/// The part of a replica that takes in events.
pub(super) enum Intake {
    /// Without a session; it tries to begin one at this time, in ms of the replica's clock.
    Away {
        again_at: u64,
    },
    Joining,
    Working(Box<Working>),
    /// The process drains, and has released all events.
    Ended,
}

/// A running session.
pub(super) struct Working {
    pub(super) ingest: Ingest<Link, Link, Acking>,
    pub(super) consumer: Arc<str>,
    pub(super) waiting: Waiting<Acking>,
    pub(super) kept: mpsc::UnboundedReceiver<Kept<Acking>>,
    /// Set if the session should end: since when, in ms of the replica's clock.
    pub(super) ending: Option<u64>,
    /// The connection of the replica with which the session began.
    pub(super) connection: u64,
}

/// The part of a replica that writes to KV.
pub(super) enum Role {
    Waiting { seen: Option<(Revision, Instant)> },
    Projecting(Box<Projecting>),
    HandingOver,
    Releasing,
}

/// A term as writer.
pub(super) struct Projecting {
    pub(super) projection: Projection,
    /// The position of the feed.
    pub(super) position: Revision,
    /// The position of the second feed, if it exists.
    pub(super) second: Option<Revision>,
    pub(super) stopping: bool,
}

/// A simulated replica: its clock, its connection, and the shipped code.
pub(super) struct Replica {
    pub(super) link: Link,
    pub(super) door: Door,
    /// The namespace that it writes to.
    pub(super) target: usize,
    /// Set if it is stopped: since when, in ms of the world.
    pub(super) stopped: Option<u64>,
    pub(super) cut_off: Option<u64>,
    /// The number of its connections to NATS so far.
    pub(super) connection: u64,
    /// The connection with which its session began.
    pub(super) session_connection: u64,
    pub(super) draining: bool,
    /// For the next calls, whose answers are lost: whether they are carried out.
    pub(super) loses: Vec<bool>,
    pub(super) knobs: Knobs,
    pub(super) tools: Tools<Link, Link>,
    pub(super) storage: Storage<Link, Link>,
    pub(super) suspects: Arc<Suspects<Link>>,
    pub(super) tasks: Vec<Task>,
    pub(super) intake: Intake,
    pub(super) role: Role,
    /// The parts that outlive a term.
    pub(super) parts: Option<(Schedule, Rests)>,
    /// Whether it has sent a request as a former holder, and has not handed it over.
    pub(super) spoils: bool,
    common: Common,
}

impl Replica {
    pub(super) fn new(
        link: Link,
        door: Door,
        (target, name): (usize, &Target),
        knobs: Knobs,
        common: &Common,
    ) -> Self {
        let (names, metrics) = (Arc::clone(&link.names), Arc::clone(&common.metrics));
        let replica: Arc<str> = format!("replica-{}", link.node.uid).into();
        let cache = Cache::of(CACHE);
        let ledger = Arc::new(Ledger::new(
            link.clone(),
            Arc::clone(&names),
            link.clone(),
            Arc::clone(&metrics),
            cache,
        ));
        let mark = Mark::new(link.clone(), &names, &replica);
        let suspects = Suspects::new(link.clone(), Arc::clone(&names));
        let storage = Storage { ledger: Arc::clone(&ledger), letters: link.clone(), mark };
        let holder = Holder {
            bucket: link.clone(),
            names,
            target: name.clone(),
            replica,
            memory: Some(MEMORY),
            ahead: READ_AHEAD,
        };
        let tools = Tools { ledger, letters: link.clone(), holder, metrics };
        Self {
            link,
            door,
            target,
            stopped: None,
            cut_off: None,
            connection: 0,
            session_connection: 0,
            draining: false,
            loses: Vec::new(),
            knobs,
            tools,
            storage,
            suspects,
            tasks: Vec::new(),
            intake: Intake::Away { again_at: 0 },
            role: Role::Waiting { seen: None },
            parts: None,
            spoils: false,
            common: common.clone(),
        }
    }

    pub(super) fn uid(&self) -> u64 {
        self.link.node.uid
    }

    pub(super) fn now(&self) -> Instant {
        self.link.node.now()
    }

    pub(super) fn runs(&self) -> bool {
        self.stopped.is_none()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.runs() && self.cut_off.is_none()
    }

    pub(super) fn spawn(&mut self, tag: Tag, future: impl Future<Output = Out> + Send + 'static) {
        self.tasks.push(Task { tag, future: Box::pin(future) });
    }

    pub(super) fn has(&self, tag: Tag) -> usize {
        self.tasks.iter().filter(|task| task.tag == tag).count()
    }

    pub(super) fn abort(&mut self, tags: &[Tag]) {
        self.tasks.retain(|task| !tags.contains(&task.tag));
    }

    /// Polls each future as far as it can proceed, and returns the results of those that have ended.
    pub(super) fn poll(&mut self) -> Vec<Out> {
        let mut context = Context::from_waker(Waker::noop());
        let mut outs = Vec::new();
        self.tasks.retain_mut(|task| match task.future.as_mut().poll(&mut context) {
            Poll::Ready(out) => {
                outs.push(out);
                false
            }
            Poll::Pending => true,
        });
        outs
    }

    pub(super) fn projecting(&mut self) -> Option<&mut Projecting> {
        match &mut self.role {
            Role::Projecting(projecting) if self.stopped.is_none() => Some(projecting),
            _ => None,
        }
    }

    /// Begins a term.
    pub(super) fn project(&mut self, held: Lease, seed: u64) {
        let (now, tuning) = (self.now(), self.knobs.tuning());
        let Common { metrics, health } = self.common.clone();
        let (schedule, rests) = self.parts.take().unwrap_or_else(|| {
            let reads = tenth(tuning.request_budget);
            let schedule =
                Schedule::new(&tuning, reads, Arc::clone(&metrics), Arc::clone(&health), seed, now);
            (schedule, Rests::new(now))
        });
        let setup = Setup {
            settle_after: SETTLE_AFTER,
            memory: Some(MEMORY),
            read_ahead: READ_AHEAD,
            target: self.tools.holder.target.clone(),
            limits: limits(),
            names: Arc::clone(&self.link.names),
            metrics,
            health,
        };
        let position = held.control.settled;
        let mut projection = Projection::new(setup, tuning.clone(), schedule, rests, held, now);
        projection.retune(tuning, now);
        let projecting = Projecting { projection, position, second: None, stopping: false };
        self.role = Role::Projecting(Box::new(projecting));
    }

    /// Changes the settings.
    pub(super) fn retune(&mut self, knobs: Knobs) {
        self.knobs = knobs;
        let now = self.now();
        if let Some(projecting) = self.projecting() {
            projecting.projection.retune(knobs.tuning(), now);
        }
    }
}
