//! Runs the projector of a replica like its driver: turns, feeds, jobs, requests. Makes no decisions of its own.

use std::sync::Arc;

use super::kv::Verdict;
use super::replica::{Out, Replica, Role, Tag};
use super::world::World;
use crate::durable::bucket::Revision;
use crate::durable::ledger::cache::Known;
use crate::durable::ledger::feed::Change;
use crate::durable::projector::projection::{Action, Leaving, Outside, Term};
use crate::schedule::Flight;
use crate::schedule::Reply;

impl World {
    /// Runs the projector of a replica when it is due.
    pub(super) fn projector_turn(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let (connected, draining) = (replica.is_connected(), replica.draining);
        match &mut replica.role {
            Role::Waiting { .. } if draining || replica.tasks.iter().any(|task| task.tag == Tag::Hold) => {}
            Role::Waiting { seen } if connected => {
                let (holder, mut seen) = (replica.tools.holder.clone(), *seen);
                replica.spawn(Tag::Hold, async move {
                    let acquired = holder.try_acquire(&mut seen).await;
                    Out::Acquired { acquired, seen }
                });
                self.poll(p);
            }
            Role::Waiting { .. } | Role::HandingOver | Role::Releasing => {}
            Role::Projecting(projecting) => {
                projecting.stopping |= draining;
                self.turn(p, false);
                let Some(projecting) = self.replicas[p].projecting() else { return };
                if projecting.stopping && projecting.projection.may_leave() && connected {
                    self.release(p);
                }
            }
        }
    }

    /// Runs a turn of the replica's projection. If `stuck`, the replica is stopped before it can send its requests.
    pub(super) fn turn(&mut self, p: usize, stuck: bool) {
        let connected = self.replicas[p].is_connected();
        let replica = &mut self.replicas[p];
        let (now, sent) = (replica.now(), replica.now());
        let Some(projecting) = replica.projecting() else { return };
        projecting.projection.turn(projecting.stopping, now);
        let mut actions = Vec::new();
        while let Some(action) = projecting.projection.action() {
            match action {
                Action::FollowLeft(after) => projecting.second = Some(after),
                Action::LeaveLeft => projecting.second = None,
                action => actions.push(action),
            }
        }
        let outside = Outside { broken: None, connected };
        let stalled = projecting.projection.has_given_up(&outside, now) && !projecting.stopping;
        check_accounts(projecting);
        projecting.projection.show(now);
        // Work that is due and stays due would keep the driver from sleeping. A replica that may leave does so at once.
        let wake_at = projecting.projection.next_wake(projecting.stopping, now);
        let leaves = projecting.stopping && projecting.projection.may_leave();
        assert!(leaves || wake_at >= now, "{:?} overdue", now - wake_at);
        if stalled {
            self.fail(format!("the projector of {p} does not move, and says that this is a bug"));
        }
        for action in actions {
            match action {
                Action::Send(Flight { request, attempt }) => {
                    self.note(|| {
                        format!("replica {p} sends {:?} of {:?}", request.operation(), request.ids())
                    });
                    self.kv(self.replicas[p].target).holds_back = stuck;
                    let replica = &mut self.replicas[p];
                    let door = replica.door.clone();
                    replica.spawn(Tag::Request, async move {
                        let answer = crate::requests::send(request, door).await;
                        Out::Answered { answer, sent, attempt }
                    });
                    // The first poll sends the request.
                    self.poll(p);
                    self.kv(self.replicas[p].target).holds_back = false;
                }
                Action::Begin(job) => {
                    let replica = &mut self.replicas[p];
                    let tools = replica.tools.clone();
                    replica.spawn(Tag::Job, async move { Out::Done(tools.run(job).await) });
                }
                Action::Restart(after) => {
                    self.note(|| format!("replica {p} begins again after {}", after.0));
                    self.count("terms begun again");
                    let replica = &mut self.replicas[p];
                    replica.abort(&[Tag::Job, Tag::Request]);
                    if let Some(projecting) = replica.projecting() {
                        (projecting.position, projecting.second) = (after, None);
                    }
                    self.lose_all_of(p, None);
                }
                Action::FollowLeft(_) | Action::LeaveLeft => {}
            }
        }
        self.note_ghost(p);
        self.poll(p);
    }

    /// Records whether the replica has just sent a request as a former holder.
    pub(super) fn note_ghost(&mut self, p: usize) {
        let replica = &mut self.replicas[p];
        let (uid, target) = (replica.uid(), replica.target);
        let Role::Projecting(projecting) = &replica.role else { return };
        let held = &projecting.projection.held().control;
        let namespace = &mut self.namespaces[target];
        let is_holder = namespace.control.as_ref().is_some_and(|(control, _)| control.is_held_by(held));
        let kv = namespace.kv.lock().unwrap();
        let out = kv.requests.iter().any(|it| it.owner == uid && it.lost.is_none() && !it.stuck);
        if !is_holder && out {
            namespace.ghosts = true;
            replica.spoils = true;
        }
    }

    /// Lets the feeds of a replica read this many changes. If `stuck`, the replica is stopped before it can send the
    /// requests that follow.
    pub(super) fn feed(&mut self, p: usize, most: usize, stuck: bool) {
        if !self.replicas[p].is_connected() {
            return;
        }
        let net = Arc::clone(&self.net);
        let changes = |after: Revision| {
            let changes = net.lock().unwrap().bucket.changes(after);
            changes.into_iter().take(most).map(|(id, record, revision)| Change {
                id,
                known: Known { record, revision },
                behind: 0,
            })
        };
        let replica = &mut self.replicas[p];
        let now = replica.now();
        let Some(projecting) = replica.projecting().filter(|projecting| !projecting.stopping) else { return };
        if projecting.projection.wants_changes() {
            let changes: Vec<_> = changes(projecting.position).collect();
            projecting.position = changes.last().map_or(projecting.position, |last| last.known.revision);
            projecting.projection.changes(changes, now);
        }
        if let Some(position) = projecting.second.filter(|_| projecting.projection.wants_left()) {
            let left: Vec<_> = changes(position).collect();
            projecting.second = Some(left.last().map_or(position, |last| last.known.revision));
            projecting.projection.left(left, now);
        }
        self.turn(p, stuck);
    }

    /// Lets KV answer a request, if its sender waits for it.
    pub(super) fn answer(&mut self, target: usize, which: usize, verdict: Verdict) {
        let kv = Arc::clone(&self.namespaces[target].kv);
        let owner = {
            let mut kv = kv.lock().unwrap();
            let request = &kv.requests[which];
            let owner = request.owner;
            let runs = self.replicas.iter().any(|replica| replica.uid() == owner && replica.runs());
            if !runs || request.lost.is_some() || request.stuck {
                return;
            }
            let what = format!("{:?} of {:?}", request.operation, request.keys);
            let verdict = kv.answer(which, verdict, &mut self.dice);
            drop(kv);
            self.note(|| format!("KV answers {owner}: {what}: {verdict:?}"));
            owner
        };
        if let Some(p) = self.replicas.iter().position(|replica| replica.uid() == owner) {
            self.poll(p);
        }
    }

    pub(super) fn projector_over(&mut self, p: usize, out: Out) {
        let seed = self.dice.next();
        let replica = &mut self.replicas[p];
        let (now, wall) = (replica.now(), replica.link.node.wall());
        match out {
            Out::Acquired { acquired: Ok(Some(held)), .. } => {
                self.note(|| format!("replica {p} projects from {}", held.control.settled.0));
                self.count("terms");
                self.replicas[p].project(held, seed);
                self.turn(p, false);
            }
            Out::Acquired { seen, .. } => replica.role = Role::Waiting { seen },
            Out::Done(done) => {
                let Some(projecting) = replica.projecting() else { return };
                if projecting.projection.done(done, now) == Term::Lost {
                    self.count("terms lost");
                    self.hand_over(p);
                } else {
                    self.turn(p, false);
                }
            }
            Out::Answered { answer, sent, attempt } => {
                let Some(projecting) = replica.projecting() else { return };
                let reply = Reply { answer, sent, attempt, allowance: None };
                projecting.projection.answered(reply, now, wall);
                self.turn(p, false);
            }
            Out::HandedOver => {
                self.replicas[p].abort(&[Tag::Job, Tag::Request]);
                self.lose_all_of(p, None);
                let replica = &mut self.replicas[p];
                replica.spoils = false;
                replica.role = Role::Waiting { seen: None };
            }
            Out::Released => {
                let replica = &mut self.replicas[p];
                replica.role = Role::Waiting { seen: None };
                if !replica.draining {
                    self.replace(p, None);
                }
            }
            _ => unreachable!("of the intake"),
        }
    }

    /// Hands over, because another replica has the control record.
    fn hand_over(&mut self, p: usize) {
        self.note(|| format!("replica {p} has lost its term"));
        let replica = &mut self.replicas[p];
        let Role::Projecting(projecting) = std::mem::replace(&mut replica.role, Role::HandingOver) else {
            return;
        };
        let (holder, held) = (replica.tools.holder.clone(), projecting.projection.held().clone());
        replica.spawn(Tag::Hold, async move {
            holder.hand_over(&held).await;
            Out::HandedOver
        });
        replica.parts = Some(parts(*projecting));
    }

    /// Releases the control record, and ends the process.
    pub(super) fn release(&mut self, p: usize) {
        self.note(|| format!("replica {p} releases"));
        let replica = &mut self.replicas[p];
        let now = replica.now();
        let Role::Projecting(projecting) = &mut replica.role else { return };
        let Leaving { held, settled, clean, spare } = projecting.projection.leaving(now);
        replica.abort(&[Tag::Job, Tag::Request]);
        let holder = replica.tools.holder.clone();
        replica.role = Role::Releasing;
        replica.spawn(Tag::Hold, async move {
            holder.release(held, settled, clean, spare).await;
            Out::Released
        });
        self.lose_all_of(p, None);
        self.poll(p);
    }

    /// The replica that writes to a namespace, as far as it knows.
    pub(super) fn writer(&self, target: usize) -> usize {
        let writes =
            |replica: &Replica| replica.target == target && matches!(replica.role, Role::Projecting(_));
        self.replicas.iter().rposition(writes).unwrap_or(0)
    }
}

fn parts(
    projecting: super::replica::Projecting,
) -> (crate::schedule::Schedule, crate::durable::projector::rests::Rests) {
    let (mut schedule, rests) = projecting.projection.into_parts();
    schedule.restart();
    (schedule, rests)
}

/// Checks that nothing is left of settled tasks: neither bytes nor entries.
fn check_accounts(projecting: &super::replica::Projecting) {
    let unsettled = projecting.projection.unsettled();
    if unsettled.len() == 0 {
        let shown = unsettled.accounts();
        assert!(shown.is_empty(), "{shown}");
    }
    assert!(unsettled.has_room(), "three tasks fill the memory");
}
