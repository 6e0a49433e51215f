//! Runs the intake of a replica like its drivers: sessions, pulls, the retry queue. Makes no decisions of its own.

use std::sync::Arc;
use std::sync::Mutex;

use futures_util::FutureExt;

use super::events::Delivered;
use super::net::Acking;
use super::replica::{Intake, Out, Tag, Working};
use super::settings::ACK_WAIT;
use super::world::World;
use crate::durable::intake::ingest::{Arrival, Ingest};
use crate::durable::intake::retry_queue::RetryQueue;
use crate::durable::intake::waiting::Waiting;
use crate::durable::stream::agreement::{Agreement, Reading};
use crate::durable::stream::gaps::Gaps;

/// The delay before a session is tried again, in ms.
const AGAIN: u64 = 250;

/// The time for workers to finish their events, in ms.
const FINISH: u64 = 8_000;

impl World {
    /// Runs the supervisor, the workers and the retry loop of a replica when they are due.
    pub(super) fn intake_turn(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let clock = replica.link.node.clock();
        match &mut replica.intake {
            Intake::Away { .. } if replica.draining => replica.intake = Intake::Ended,
            Intake::Away { again_at } if *again_at <= clock && replica.cut_off.is_none() => {
                replica.intake = Intake::Joining;
                replica.session_connection = replica.connection;
                let link = replica.link.clone();
                let agreement = Agreement { bucket: link.clone(), names: Arc::clone(&link.names) };
                replica.spawn(Tag::Session, async move { Out::Joined(agreement.join(&link).await) });
                self.poll(p);
            }
            Intake::Away { .. } | Intake::Joining | Intake::Ended => {}
            Intake::Working(_) => {
                self.end_session(p);
                self.retry(p);
            }
        }
    }

    /// Ends a session that should end, once its workers have finished.
    fn end_session(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let clock = replica.link.node.clock();
        let takes = replica.has(Tag::Take);
        let Intake::Working(working) = &mut replica.intake else { return };
        if working.connection != replica.connection || replica.draining {
            working.ending.get_or_insert(clock);
        }
        let Some(since) = working.ending else { return };
        if takes > 0 && clock < since + FINISH {
            return;
        }
        let again_at = clock + if replica.draining { 0 } else { AGAIN };
        let Intake::Working(working) = std::mem::replace(&mut replica.intake, Intake::Away { again_at })
        else {
            return;
        };
        replica.abort(&[Tag::Take, Tag::Try]);
        let now = replica.now();
        let Working { ingest, mut waiting, mut kept, .. } = *working;
        drop(ingest);
        while let Ok(kept) = kept.try_recv() {
            waiting.keep(kept, now);
        }
        for kept in waiting.into_left() {
            kept.pending.give_back_now().now_or_never();
        }
        self.note(|| format!("session of {p} ends"));
        self.count("sessions ended");
    }

    /// Runs the retry loop for the events that are due.
    fn retry(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let now = replica.now();
        let Intake::Working(working) = &mut replica.intake else { return };
        while let Ok(kept) = working.kept.try_recv() {
            working.waiting.keep(kept, now);
        }
        for pending in working.waiting.due_to_extend(now) {
            pending.extend().now_or_never();
        }
        if let Some(round) = working.waiting.round(now) {
            let storage = replica.storage.clone();
            replica.spawn(Tag::Try, async move {
                let (left, why) = storage.store(round.high, round.work.clone(), round.fresh_until).await;
                Out::Tried { round, left, why }
            });
            self.count("tried again");
            self.poll(p);
        }
    }

    /// Lets a free worker of a replica pull at most this many events.
    pub(super) fn pull(&mut self, p: usize, most: usize) {
        if !self.replicas[p].is_connected() || self.wrong.is_some() {
            return;
        }
        let replica = &self.replicas[p];
        let Intake::Working(working) = &replica.intake else { return };
        let busy = replica.has(Tag::Take) >= self.setting.workers;
        let stale = working.connection != replica.connection;
        if working.ending.is_some() || stale || busy || !working.ingest.retry_queue.takes_more() {
            return;
        }
        let consumer = Arc::clone(&working.consumer);
        let pulled = {
            let mut net = self.net.lock().unwrap();
            let now = net.now;
            net.stream.pull(&consumer, most, now)
        };
        let Some(delivered) = pulled else {
            self.note(|| format!("replica {p} finds no consumer {consumer}"));
            let replica = &mut self.replicas[p];
            let clock = replica.link.node.clock();
            if let Intake::Working(working) = &mut replica.intake {
                working.ending.get_or_insert(clock);
            }
            return;
        };
        if delivered.is_empty() {
            return;
        }
        let arrivals = self.arrivals(p, &consumer, delivered);
        let replica = &mut self.replicas[p];
        let Intake::Working(working) = &replica.intake else { return };
        let (ingest, taken) = (working.ingest.clone(), replica.now());
        replica.spawn(Tag::Take, async move { Out::TakenIn(ingest.take_in(arrivals, taken).await) });
        self.poll(p);
    }

    fn arrivals(&mut self, p: usize, consumer: &Arc<str>, delivered: Vec<Delivered>) -> Vec<Arrival<Acking>> {
        let mut arrivals = Vec::with_capacity(delivered.len());
        for Delivered { event, sequence, deliveries, delivery } in delivered {
            if deliveries > 1 {
                self.count("redeliveries");
            }
            self.note(|| {
                format!("event {} ({consumer}, {sequence}, delivered {deliveries}) to {p}", event.nth)
            });
            // Some answers are lost.
            if self.dice.chance(2) && self.truth.faults {
                continue;
            }
            let message = async_nats::Message {
                subject: event.subject.into(),
                reply: None,
                length: event.payload.len(),
                payload: event.payload,
                headers: None,
                status: None,
                description: None,
            };
            let link = self.replicas[p].link.clone();
            let acker = Acking { link, consumer: Arc::clone(consumer), sequence };
            arrivals.push(Arrival { message, acker, sequence, time: event.time, deliveries, delivery });
        }
        arrivals
    }

    pub(super) fn intake_over(&mut self, p: usize, out: Out) {
        let replica = &mut self.replicas[p];
        let (clock, now) = (replica.link.node.clock(), replica.now());
        match out {
            Out::Joined(Ok(Some((source, consumer)))) => {
                let storage = replica.storage.clone();
                replica.spawn(Tag::Session, async move {
                    storage.begin(source.current().incarnation).await;
                    Out::Begun(Box::new(source), consumer)
                });
            }
            Out::Joined(_) => replica.intake = Intake::Away { again_at: clock + AGAIN },
            Out::Begun(source, consumer) => {
                let (retry_queue, kept) = RetryQueue::new();
                let gaps = Some(Mutex::new(Gaps::default()));
                let ingest = Ingest {
                    reading: Arc::new(Reading { source: *source, gaps }),
                    storage: replica.storage.clone(),
                    retry_queue,
                    suspects: Arc::clone(&replica.suspects),
                    names: Arc::clone(&self.names),
                    metrics: Arc::clone(&replica.tools.metrics),
                    ack_wait: ACK_WAIT,
                };
                let waiting = Waiting::new(ACK_WAIT, now);
                let (ending, connection) = (None, replica.session_connection);
                replica.intake = Intake::Working(Box::new(Working {
                    ingest,
                    consumer,
                    waiting,
                    kept,
                    ending,
                    connection,
                }));
            }
            Out::TakenIn(taken) => {
                if let (Err(error), Intake::Working(working)) = (&taken, &mut replica.intake) {
                    working.ending.get_or_insert(clock);
                    let what = error.to_string();
                    self.note(|| format!("taking in: {what}"));
                }
            }
            Out::Tried { round, left, why } => {
                let Intake::Working(working) = &mut replica.intake else { return };
                working.ingest.retry_queue.note(left.len() < round.work.len(), true);
                let tried = working.waiting.tried(&round, &left, why, now);
                for kept in &tried.stored {
                    kept.pending.ack().now_or_never();
                }
                if tried.over.is_some() {
                    working.ending.get_or_insert(clock);
                }
            }
            _ => unreachable!("of the projector"),
        }
    }
}
