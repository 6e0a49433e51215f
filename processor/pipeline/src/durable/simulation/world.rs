//! The simulated world: NATS, KV, replicas, commands, and the time of each.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use taskpipeline_contract::TaskId;

use super::calls::{Call, Stage};
use super::dice::Dice;
use super::events::Ack;
use super::kv::{Door, Fate, Kv};
use super::net::{Link, Net, Node, nanos};
use super::replica::{Common, Intake, Out, Replica, Role, Tag};
use super::settings::{LONGEST_AWAY, MAX_AGE, REPLICAS, Setting, TASKS, TICK};
use super::truth::Truth;
use crate::durable::bucket::Revision;
use crate::durable::control::record::Control;
use crate::durable::names::{Names, Target};
use crate::fold_reference::base;

pub(super) fn task(n: usize) -> TaskId {
    TaskId::new(format!("task-{n}")).unwrap()
}

/// A KV namespace, and what is known of its writers.
pub(super) struct Namespace {
    pub(super) name: Target,
    pub(super) subject: String,
    pub(super) kv: Arc<Mutex<Kv>>,
    pub(super) control: Option<(Control, Revision)>,
    /// Whether a former holder has sent a request.
    pub(super) ghosts: bool,
}

/// A command that borrows requests of the budget.
pub(super) struct Command {
    pub(super) node: Arc<Node>,
    pub(super) future: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// The simulated world, in which a history is played.
pub(super) struct World {
    pub(super) setting: Setting,
    pub(super) names: Arc<Names>,
    common: Common,
    pub(super) net: Arc<Mutex<Net>>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) replicas: Vec<Replica>,
    pub(super) commands: Vec<Command>,
    pub(super) uids: u64,
    pub(super) dice: Dice,
    pub(super) truth: Truth,
    /// The number of acks that are lost next.
    pub(super) acks_to_lose: usize,
    /// How often each fault has happened.
    pub(super) seen: BTreeMap<&'static str, u64>,
    /// The first violation.
    pub(super) wrong: Option<String>,
    /// The trace of the history, if it is recorded.
    pub(super) trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(setting: &Setting, seed: u64, common: &Common, names: &Arc<Names>) -> Self {
        let net = Arc::new(Mutex::new(Net::new(names, setting.clustered)));
        let namespaces = (0..1 + usize::from(setting.two_namespaces)).map(|n| {
            let name = Target::new(&format!("http://kv/{n}"));
            let mut kv = Kv::default();
            for n in (0..TASKS).filter(|n| setting.known[*n]) {
                let value = serde_json::to_string(&base(&task(n))).unwrap();
                kv.set(format!("tasks:task-{n}"), Some(value));
            }
            let subject = names.control(&name);
            Namespace { name, subject, kv: Arc::new(Mutex::new(kv)), control: None, ghosts: false }
        });
        let mut world = Self {
            setting: setting.clone(),
            names: Arc::clone(names),
            common: common.clone(),
            net,
            namespaces: namespaces.collect(),
            replicas: Vec::new(),
            commands: Vec::new(),
            uids: 0,
            dice: Dice::new(seed),
            truth: Truth::default(),
            acks_to_lose: 0,
            seen: BTreeMap::new(),
            wrong: None,
            trace: None,
        };
        for p in 0..REPLICAS + usize::from(setting.two_namespaces) {
            let replica = world.replica(usize::from(p >= REPLICAS), 0);
            world.replicas.push(replica);
        }
        world
    }

    /// Creates a new process.
    pub(super) fn replica(&mut self, target: usize, clock: u64) -> Replica {
        let link = self.link(clock);
        let namespace = &self.namespaces[target];
        let door = Door { kv: Arc::clone(&namespace.kv), node: Arc::clone(&link.node) };
        Replica::new(link, door, (target, &namespace.name), self.setting.tuning, &self.common)
    }

    pub(super) fn link(&mut self, clock: u64) -> Link {
        let node = Node::new(self.uids, clock, self.now());
        self.uids += 1;
        Link { net: Arc::clone(&self.net), node, names: Arc::clone(&self.names) }
    }

    pub(super) fn now(&self) -> u64 {
        self.net.lock().unwrap().now
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.is_some() {
            let line = format!("{:>7} {}", self.now(), what());
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn fail(&mut self, what: String) {
        self.note(|| format!("WRONG: {what}"));
        self.wrong.get_or_insert(what);
    }

    pub(super) fn kv(&self, target: usize) -> std::sync::MutexGuard<'_, Kv> {
        self.namespaces[target].kv.lock().unwrap()
    }

    fn position(&self, uid: u64) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.uid() == uid)
    }

    // Futures and their calls.

    /// Advances the futures of a replica.
    pub(super) fn poll(&mut self, p: usize) {
        while self.wrong.is_none() && self.replicas[p].runs() {
            let outs = self.replicas[p].poll();
            if outs.is_empty() {
                return;
            }
            for out in outs {
                self.over(p, out);
            }
        }
    }

    fn over(&mut self, p: usize, out: Out) {
        match out {
            Out::Joined(_) | Out::Begun(..) | Out::TakenIn(_) | Out::Tried { .. } => self.intake_over(p, out),
            Out::Acquired { .. } | Out::Done(_) | Out::Answered { .. } | Out::HandedOver | Out::Released => {
                self.projector_over(p, out);
            }
        }
    }

    /// Advances the process that has made a call.
    fn poll_owner(&mut self, uid: u64) {
        if let Some(p) = self.position(uid) {
            return self.poll(p);
        }
        let mut context = Context::from_waker(Waker::noop());
        self.commands.retain_mut(|command| {
            command.node.uid != uid || command.future.as_mut().poll(&mut context).is_pending()
        });
    }

    /// Whether the calls of this process reach NATS.
    fn reaches_nats(&self, uid: u64) -> bool {
        self.position(uid).is_none_or(|p| self.replicas[p].cut_off.is_none())
    }

    /// The calls that can proceed.
    pub(super) fn open_calls(&self) -> Vec<u64> {
        self.net.lock().unwrap().calls.ready(|uid| self.reaches_nats(uid))
    }

    /// Advances a call.
    pub(super) fn call(&mut self, id: u64) {
        let owner = {
            let net = self.net.lock().unwrap();
            let Some(call) = net.calls.open.get(&id) else { return };
            call.owner
        };
        let p = self.position(owner);
        let lost = p.and_then(|p| self.replicas[p].loses.pop());
        if self.trace.is_some() {
            let what = self.net.lock().unwrap().calls.open[&id].ask.describe();
            let lost = lost.map_or("", |done| if done { ", answer lost" } else { ", lost" });
            self.note(|| format!("  {owner}: {what}{lost}"));
        }
        let late = self.dice.chance(20);
        match lost {
            Some(done) => {
                self.count("answers lost");
                self.net.lock().unwrap().silence(id, done);
            }
            None => drop(self.net.lock().unwrap().step(id, late)),
        }
        self.look_at_controls();
        self.poll_owner(owner);
    }

    /// Advances all calls that are open now, in any order.
    fn call_all(&mut self) {
        let mut open = self.open_calls();
        while !open.is_empty() && self.wrong.is_none() {
            let id = open.swap_remove(self.dice.below(open.len()));
            self.call(id);
        }
    }

    /// Reads the control records, which may have changed.
    pub(super) fn look_at_controls(&mut self) {
        for n in 0..self.namespaces.len() {
            let changed = {
                let net = self.net.lock().unwrap();
                let known = self.namespaces[n].control.as_ref().map(|(_, revision)| *revision);
                let found = net.bucket.records.get(&self.namespaces[n].subject);
                found
                    .filter(|entry| known != Some(entry.revision))
                    .map(|entry| (serde_json::from_slice::<Control>(&entry.value).unwrap(), entry.revision))
            };
            if let Some((control, revision)) = changed {
                self.note(|| format!("  control of {n} at {}: {control:?}", revision.0));
                let settled = control.settled;
                self.namespaces[n].control = Some((control, revision));
                if !self.namespaces[n].ghosts {
                    self.check_settled(n, settled);
                }
            }
        }
    }

    // Time.

    /// Passes time. Calls from before proceed, and old requests time out.
    pub(super) fn tick(&mut self, pulls: bool) {
        let now = {
            let mut net = self.net.lock().unwrap();
            net.now += TICK;
            let now = net.now;
            net.bucket.expire(now);
            net.stream.age_out(nanos(now.saturating_sub(MAX_AGE)));
            net.stream.settle();
            now
        };
        for namespace in &self.namespaces {
            let mut kv = namespace.kv.lock().unwrap();
            kv.now = now;
            kv.apply_what_is_late();
        }
        for p in 0..self.replicas.len() {
            if self.replicas[p].cut_off.is_some_and(|since| since + LONGEST_AWAY < now) {
                self.reconnect(p);
            }
            if self.replicas[p].stopped.is_some_and(|since| since + LONGEST_AWAY < now) {
                self.go_on(p, false);
            }
            if self.replicas[p].runs() {
                self.replicas[p].link.node.pass(TICK, false);
            }
        }
        self.commands.iter().for_each(|command| command.node.pass(TICK, false));
        self.deliver_acks();
        self.call_all();
        self.wake();
        self.time_out_requests();
        for p in 0..self.replicas.len() {
            self.take_turn(p, pulls);
        }
    }

    /// Wakes the processes whose sleep ends, and lets calls without an answer time out.
    fn wake(&mut self) {
        let (due, owners) = {
            let mut net = self.net.lock().unwrap();
            let clock = |uid: u64| {
                let replica = self.replicas.iter().find(|replica| replica.uid() == uid);
                let command = self.commands.iter().find(|command| command.node.uid == uid);
                let node = replica.map(|it| &it.link.node).or(command.map(|it| &it.node));
                node.map_or(u64::MAX, |node| node.clock())
            };
            let is_due = |call: &Call| match call.ask {
                super::calls::Ask::Sleep(until) => clock(call.owner) >= until,
                _ => false,
            };
            let due: Vec<u64> =
                net.calls.open.iter().filter(|(_, call)| is_due(call)).map(|(id, _)| *id).collect();
            for id in &due {
                if let Some(call) = net.calls.open.remove(id) {
                    call.slot.fill(super::calls::Said::Done);
                }
            }
            let dice = &mut self.dice;
            net.give_up(|| dice.chance(50));
            let owners: Vec<u64> = self.replicas.iter().map(Replica::uid).collect();
            (due, owners)
        };
        if !due.is_empty() || !owners.is_empty() {
            for uid in
                owners.into_iter().chain(self.commands.iter().map(|it| it.node.uid).collect::<Vec<_>>())
            {
                self.poll_owner(uid);
            }
        }
    }

    fn deliver_acks(&mut self) {
        let acks: Vec<Ack> = std::mem::take(&mut self.net.lock().unwrap().acks);
        for ack in acks {
            let lost = self.acks_to_lose > 0 || !self.reaches_nats(ack.owner);
            self.acks_to_lose = self.acks_to_lose.saturating_sub(1);
            if lost {
                self.count("acks lost");
                continue;
            }
            // Some pulls are late.
            let mut net = self.net.lock().unwrap();
            if self.dice.chance(5) {
                net.acks.push(ack);
            } else {
                let now = net.now;
                net.stream.answered(&ack, now);
            }
        }
    }

    fn time_out_requests(&mut self) {
        for p in 0..self.replicas.len() {
            if !self.replicas[p].runs() {
                continue;
            }
            let (uid, clock) = (self.replicas[p].uid(), self.replicas[p].link.node.clock());
            let timeout = super::kv::millis(self.replicas[p].knobs.tuning().request_timeout);
            loop {
                let fate = Fate::draw(&mut self.dice);
                let mut kv = self.kv(self.replicas[p].target);
                let over = kv.requests.iter().position(|request| {
                    let out = request.owner == uid && request.lost.is_none() && !request.stuck;
                    out && clock.saturating_sub(request.sent_at) >= timeout
                });
                let Some(which) = over else { break };
                kv.silence(which, fate);
                drop(kv);
                self.count("requests timed out");
            }
            self.poll(p);
        }
    }

    // Processes.

    pub(super) fn reconnect(&mut self, p: usize) {
        if self.replicas[p].cut_off.take().is_some() {
            self.replicas[p].connection += 1;
            self.note(|| format!("replica {p} is connected again"));
        }
    }

    /// Continues a stopped process. With `slept`, its clock was stopped too.
    pub(super) fn go_on(&mut self, p: usize, slept: bool) {
        let Some(since) = self.replicas[p].stopped.take() else { return };
        self.note(|| format!("replica {p} continues"));
        let now = self.now();
        let replica = &self.replicas[p];
        replica.link.node.pass(now - since, slept);
        let (uid, clock) = (replica.uid(), replica.link.node.clock());
        let mut sends = false;
        {
            let mut kv = self.kv(replica.target);
            let now = kv.now;
            let mut sent = 0;
            for request in kv.requests.iter_mut().filter(|request| request.owner == uid && request.stuck) {
                (request.stuck, request.sent, request.sent_at, sends) = (false, now, clock, true);
                sent += 1;
            }
            kv.sent.extend(std::iter::repeat_n(now, sent));
        }
        if sends {
            self.note_ghost(p);
        }
        self.poll(p);
    }

    /// Makes the process stop waiting for the answers to its requests.
    pub(super) fn lose_all_of(&mut self, p: usize, fate: Option<Fate>) {
        let (uid, target) = (self.replicas[p].uid(), self.replicas[p].target);
        let kv = Arc::clone(&self.namespaces[target].kv);
        let mut kv = kv.lock().unwrap();
        kv.requests.retain(|request| !(request.owner == uid && request.stuck));
        while let Some(which) =
            kv.requests.iter().position(|request| request.owner == uid && request.lost.is_none())
        {
            let fate = fate.unwrap_or_else(|| Fate::draw(&mut self.dice));
            kv.lose(which, fate);
        }
    }

    /// Ends the process and starts another in its place.
    pub(super) fn replace(&mut self, p: usize, fate: Option<Fate>) {
        self.note(|| format!("replica {p} ends"));
        self.lose_all_of(p, fate);
        let (uid, clock) = (self.replicas[p].uid(), self.replicas[p].link.node.clock());
        let (target, knobs) = (self.replicas[p].target, self.replicas[p].knobs);
        let mut next = self.replica(target, clock);
        next.knobs = knobs;
        self.replicas[p] = next;
        // Requests that it has sent may still arrive.
        let mut net = self.net.lock().unwrap();
        let of_it: Vec<u64> =
            net.calls.open.iter().filter(|(_, call)| call.owner == uid).map(|(id, _)| *id).collect();
        for id in of_it {
            let call = &net.calls.open[&id];
            if call.ask.is_sleep() || call.stage != Stage::Proposed && self.dice.chance(50) {
                net.drop_call(id);
            }
        }
        drop(net);
        self.look_at_controls();
    }

    /// Runs the driver of a replica for the work that is due.
    fn take_turn(&mut self, p: usize, pulls: bool) {
        if !self.replicas[p].runs() || self.wrong.is_some() {
            return;
        }
        self.intake_turn(p);
        if pulls {
            self.pull(p, 4);
        }
        self.projector_turn(p);
        let replica = &self.replicas[p];
        let idle = matches!(replica.role, Role::Waiting { .. }) && replica.has(Tag::Hold) == 0;
        if replica.draining && idle && matches!(replica.intake, Intake::Ended) {
            self.replace(p, None);
        }
    }
}
