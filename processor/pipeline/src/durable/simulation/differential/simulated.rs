//! The simulated NATS without faults: it answers every call at once.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use async_nats::jetstream::AckKind;
use bytes::Bytes;

use super::super::events::{Ack, Event};
use super::super::net::{Link, Net, Node, nanos};
use super::Delivered;
use super::asked::Asked;
use crate::durable::names::Names;

/// The simulated NATS.
pub(super) struct Simulated {
    pub(super) asked: Asked<Link, Link>,
    pub(super) net: Arc<Mutex<Net>>,
    pub(super) full: bool,
}

impl Simulated {
    pub(super) fn new(names: &Arc<Names>, clustered: bool) -> Self {
        let net = Arc::new(Mutex::new(Net::new(names, clustered)));
        let link = Link { net: Arc::clone(&net), node: Node::new(0, 0, 0), names: Arc::clone(names) };
        Self { asked: Asked::new(link.clone(), link, names), net, full: false }
    }

    /// Runs a future, and answers its calls at once.
    pub(super) fn answered<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return answer;
            }
            let mut net = self.net.lock().unwrap();
            let ready = net.calls.ready(|_| true);
            assert!(!ready.is_empty(), "nothing can be answered");
            for id in ready {
                net.step(id, false);
            }
        }
    }

    /// Pulls messages. The second of two simultaneous pulls begins after the first.
    pub(super) fn pull(&self, consumer: &str, most: usize) -> Option<(Delivered, Vec<u64>)> {
        let mut net = self.net.lock().unwrap();
        let now = net.now;
        let delivered = net.stream.pull(consumer, most, now)?;
        let numbers = delivered.iter().map(|it| it.delivery).collect();
        Some((delivered.iter().map(|it| (it.sequence, it.deliveries)).collect(), numbers))
    }

    pub(super) fn publish(&self, payload: &str, nth: usize) -> u64 {
        let mut net = self.net.lock().unwrap();
        let (time, payload) = (nanos(net.now), Bytes::from(payload.to_owned()));
        net.stream.publish(Event { subject: "tasks.created", payload, time, nth })
    }

    pub(super) fn recreate(&self) {
        let mut net = self.net.lock().unwrap();
        net.now += 1_000;
        let created = nanos(net.now);
        net.stream.recreate(created);
    }

    /// Records expire; the ledger stays full or not.
    pub(super) fn pass_a_second(&self) {
        let mut net = self.net.lock().unwrap();
        net.now += 1_000;
        let (now, full) = (net.now, net.bucket.full);
        net.bucket.expire(now);
        net.bucket.full = full;
    }

    pub(super) fn answer(&self, consumer: &str, sequence: u64, kind: AckKind) {
        let mut net = self.net.lock().unwrap();
        let (owner, consumer, now) = (0, Arc::from(consumer), net.now);
        net.stream.answered(&Ack { owner, consumer, sequence, kind }, now);
    }
}
