//! The projector of mode `Durable`: one replica at a time writes the state of the ledger to KV.
//!
//! Two replicas may project for a short time. The correctness of KV does not depend on there being
//! only one.
//!
//! This module connects [`Projection`], which decides, to the clock and the network. It carries out
//! the actions, and reports the results.

pub(crate) mod deferred;
pub(crate) mod jobs;
pub(crate) mod lag;
pub(crate) mod progress;
pub(crate) mod projection;
mod reach;
pub(crate) mod rests;
pub(crate) mod shares;
pub(crate) mod unsettled;

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State as NatsState;
use async_nats::jetstream::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::durable::bucket::Revision;
use crate::durable::clock::now as wall;
use crate::durable::control::holder::{Holder, Lease};
use crate::durable::dead_letters::DeadLetters;
use crate::durable::drain::{deadline, stopped};
use crate::durable::ledger::Ledger;
use crate::durable::ledger::feed::{Change, Feed};
use crate::durable::names::Names;
use crate::durable::projector::jobs::{Done, Tools};
use crate::durable::projector::projection::{Action, Leaving, Outside, Projection, Setup, Term, tenth};
use crate::durable::projector::rests::Rests;
use crate::durable::projector::shares::Limits;
use crate::requests::Requests;
use crate::schedule::Schedule;
use crate::settings::Tuning;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;
use taskpipeline_kv::BulkApi;

/// The most changes that are taken in between two turns.
const TAKE_IN: usize = 256;

/// How long a replica leaves the control record to others after a stall.
const AFTER_A_STALL: Duration = Duration::from_secs(10);

/// The parts of the projector of a replica, whether or not the replica is the writer.
pub(crate) struct Parts<K> {
    pub(crate) kv: K,
    pub(crate) tuning: Tuning,
    /// The settings after each change.
    pub(crate) changes: watch::Receiver<Tuning>,
    pub(crate) settle_after: Duration,
    /// How long the settled record of a missing task lives; `None` means indefinitely.
    pub(crate) memory: Option<Duration>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) holder: Holder,
    pub(crate) letters: DeadLetters,
    pub(crate) names: Arc<Names>,
    pub(crate) jetstream: Context,
    pub(crate) connections: watch::Receiver<u64>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Arc<Health>,
}

impl<K> Parts<K> {
    fn setup(&self) -> Setup {
        Setup {
            settle_after: self.settle_after,
            memory: self.memory,
            read_ahead: self.holder.ahead,
            target: self.holder.target.clone(),
            limits: Limits::default(),
            names: Arc::clone(&self.names),
            metrics: Arc::clone(&self.metrics),
            health: Arc::clone(&self.health),
        }
    }

    fn tools(&self) -> Tools {
        Tools {
            ledger: Arc::clone(&self.ledger),
            letters: self.letters.clone(),
            holder: self.holder.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Reads the changes of the ledger after this revision.
    fn feed(&self, after: Revision) -> Feed {
        Feed::after(
            after,
            self.jetstream.clone(),
            Arc::clone(&self.names),
            self.connections.clone(),
            self.metrics.forged_answers.clone(),
        )
    }
}

/// The driver of one term.
struct Projector<K> {
    parts: Parts<K>,
    projection: Projection,
    requests: Requests<K>,
    feed: Feed,
    /// Reads the look-ups that were left in NATS, if there are any.
    second: Option<Feed>,
    /// The jobs: reads and writes of the ledger, dead letters, the renewal.
    beside: JoinSet<Done>,
}

/// How a term ended.
enum Ended {
    Drained,
    Lost,
    /// The projector made no progress although work waited.
    Stalled,
}

/// Projects in each term of this replica. `stop` is the deadline after which it must have ended.
pub(crate) async fn run<K: BulkApi>(parts: Parts<K>, mut stop: watch::Receiver<Option<Instant>>) {
    let begun = Instant::now();
    let mut schedule = Schedule::new(
        &parts.tuning,
        tenth(parts.tuning.request_budget),
        Arc::clone(&parts.metrics),
        Arc::clone(&parts.health),
        rand::random(),
        begun,
    );
    let mut requests = Requests::new(parts.kv.clone());
    let mut parts = parts;
    let mut rests = Rests::new(begun);
    loop {
        let Some(held) = parts.holder.acquire(&mut stop).await else { return };
        parts.health.set_writing(true);
        let mut projector = Projector::new(parts, requests, schedule, rests, held);
        projector.retune();
        let ended = projector.project(&mut stop).await;
        projector.parts.health.set_writing(false);
        projector.parts.metrics.unsettled_tasks.set(0);
        projector.parts.metrics.deferred_tasks.set(0);
        projector.parts.metrics.changes_behind.set(0);
        projector.parts.health.set_oldest_change(Duration::ZERO);
        match ended {
            Ended::Drained => return,
            Ended::Lost => {}
            Ended::Stalled => {
                projector.requests.abort();
                projector.release().await;
                // Closes the feeds: a consumer that becomes available must not go to a feed that
                // nobody reads.
                drop((projector.feed, projector.second));
                (parts, requests) = (projector.parts, projector.requests);
                (schedule, rests) = projector.projection.into_parts();
                schedule.restart();
                requests.restart();
                tokio::select! {
                    // Others may take the record first.
                    () = tokio::time::sleep(AFTER_A_STALL) => continue,
                    () = stopped(&mut stop) => return,
                }
            }
        }
        warn!("another replica is the writer now");
        let handover = projector.parts.holder.hand_over(projector.projection.held());
        tokio::select! {
            () = handover => {}
            () = deadline(&mut stop) => return,
        }
        (parts, requests) = (projector.parts, projector.requests);
        (schedule, rests) = projector.projection.into_parts();
        schedule.restart();
        requests.restart();
    }
}

impl<K: BulkApi> Projector<K> {
    fn new(parts: Parts<K>, requests: Requests<K>, schedule: Schedule, rests: Rests, held: Lease) -> Self {
        let feed = parts.feed(held.control.settled);
        let (setup, tuning) = (parts.setup(), parts.tuning.clone());
        let projection = Projection::new(setup, tuning, schedule, rests, held, Instant::now());
        Self { parts, projection, requests, feed, second: None, beside: JoinSet::new() }
    }

    async fn project(&mut self, stop: &mut watch::Receiver<Option<Instant>>) -> Ended {
        let (mut changes, mut left) = (Vec::with_capacity(TAKE_IN), Vec::new());
        let mut stopping = false;
        let mut until = stop.clone();
        let mut out_of_time = Box::pin(async move { deadline(&mut until).await });
        loop {
            let now = Instant::now();
            self.projection.turn(stopping, now);
            self.carry_out();
            if stopping && self.projection.may_leave() {
                self.release().await;
                return Ended::Drained;
            }
            if !stopping && self.has_given_up(now) {
                return Ended::Stalled;
            }
            self.projection.show(now);
            let wake_at = self.projection.next_wake(stopping, now);
            tokio::select! {
                () = self.feed.next(&mut changes, TAKE_IN), if !stopping && self.projection.wants_changes() => {
                    self.projection.changes(changes.drain(..), Instant::now());
                }
                () = next_left(&mut self.second, &mut left, TAKE_IN), if !stopping && self.projection.wants_left() => {
                    self.projection.left(left.drain(..), Instant::now());
                }
                Some(reply) = self.requests.next() => match reply {
                    Ok(reply) => self.projection.answered(reply, Instant::now(), wall()),
                    Err(error) => {
                        error!(%error, "a request to KV panicked");
                        return Ended::Lost;
                    }
                },
                Some(done) = self.beside.join_next() => match done {
                    Ok(done) => {
                        if self.projection.done(done, Instant::now()) == Term::Lost {
                            return Ended::Lost;
                        }
                    }
                    Err(error) => {
                        error!(%error, "a job of the projector panicked");
                        return Ended::Lost;
                    }
                },
                Ok(()) = self.parts.changes.changed() => self.retune(),
                () = tokio::time::sleep_until(wake_at) => {}
                () = stopped(stop), if !stopping => stopping = true,
                () = &mut out_of_time => {
                    self.requests.abort();
                    self.release().await;
                    return Ended::Drained;
                }
            }
        }
    }

    /// Applies changed settings.
    fn retune(&mut self) {
        let tuning = self.parts.changes.borrow_and_update().clone();
        self.requests.set_timeout(tuning.request_timeout);
        self.projection.retune(tuning.clone(), Instant::now());
        self.parts.tuning = tuning;
    }

    fn has_given_up(&mut self, now: Instant) -> bool {
        let outside = Outside {
            broken: self.feed.broken().or_else(|| self.second.as_ref().and_then(Feed::broken)),
            connected: self.parts.jetstream.client().connection_state() == NatsState::Connected,
        };
        self.projection.has_given_up(&outside, now)
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.projection.action() {
            match action {
                Action::Send(flight) => self.requests.send(flight),
                Action::Begin(job) => {
                    self.beside.spawn(self.parts.tools().run(job));
                }
                Action::FollowLeft(after) => self.second = Some(self.parts.feed(after)),
                Action::LeaveLeft => self.second = None,
                Action::Restart(after) => {
                    (self.feed, self.second) = (self.parts.feed(after), None);
                    self.requests.restart();
                    self.beside = JoinSet::new();
                }
            }
        }
    }

    async fn release(&mut self) {
        let Leaving { held, settled, clean, spare } = self.projection.leaving(Instant::now());
        self.parts.holder.release(held, settled, clean, spare).await;
    }
}

/// Waits for the next changes of the second feed, at least one.
async fn next_left(second: &mut Option<Feed>, into: &mut Vec<Change>, most: usize) {
    match second {
        Some(feed) => feed.next(into, most).await,
        None => std::future::pending().await,
    }
}
