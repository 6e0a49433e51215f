//! The calls of a replica to NATS and to its clock.
//!
//! Each is a call that waits in the world until it is carried out, and a future that waits for its answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use async_nats::Message;
use async_nats::jetstream::consumer::pull::Config;

use crate::durable::bucket::lanes::Write;
use crate::durable::bucket::{Revision, Stored};
use crate::durable::stream::incarnation::Present;
use crate::reason::Reason;

/// The request of a call.
pub(super) enum Ask {
    Get(String),
    GetAt(Revision),
    GetMany(Vec<String>),
    All(String),
    Newest,
    Write(Write),
    Letter(Stamped),
    Present,
    TimeAt(u64),
    NextFrom(u64),
    AckFloor(String),
    Consumer(Box<Config>),
    Consumers,
    DeleteConsumer(String),
    /// Wake at this time, in ms of the replica's clock.
    Sleep(u64),
}

impl Ask {
    pub(super) fn is_sleep(&self) -> bool {
        matches!(self, Self::Sleep(_))
    }

    /// Describes the request for the trace.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Write(Write { subject, expected, .. }) => {
                let (subject, expected) = (short(subject), expected.map(|it| it.0));
                format!("write {subject} over {expected:?}")
            }
            Self::Get(subject) => format!("read {}", short(subject)),
            Self::GetMany(subjects) => {
                format!("read {}", subjects.iter().map(|it| short(it)).collect::<Vec<_>>().join(", "))
            }
            Self::GetAt(revision) => format!("read revision {}", revision.0),
            Self::All(subjects) => format!("read all {}", short(subjects)),
            Self::Newest => "newest revision".to_owned(),
            Self::Letter(letter) => format!("store letter {}", letter.id),
            Self::Present => "look at the stream".to_owned(),
            Self::TimeAt(sequence) => format!("time of event {sequence}"),
            Self::NextFrom(sequence) => format!("event from {sequence}"),
            Self::AckFloor(name) => format!("ack floor of {name}"),
            Self::Consumer(config) => format!("consumer {:?}", config.durable_name.as_deref().unwrap_or("")),
            Self::Consumers => "list consumers".to_owned(),
            Self::DeleteConsumer(name) => format!("delete consumer {name}"),
            Self::Sleep(until) => format!("sleep until {until}"),
        }
    }
}

fn short(subject: &str) -> &str {
    subject.strip_prefix("$KV.TASKS--tasks-processor.").unwrap_or(subject)
}

/// A dead letter, as the world stores it.
#[derive(Clone, Debug)]
pub(super) struct Stamped {
    pub(super) id: String,
    pub(super) reason: Reason,
    pub(super) task: Option<String>,
    pub(super) payload: bytes::Bytes,
}

/// The answer of a call.
pub(super) enum Said {
    Stored(Option<Stored>),
    Many(Vec<Stored>),
    Newest(Revision),
    /// The stream's answer to a write, in the format of the wire.
    Reply(Message),
    /// Whether the letter was stored.
    Letter(bool),
    Present(Present),
    Time(Option<i64>),
    Next(Option<(u64, i64)>),
    Floor(Option<u64>),
    /// Whether the consumer was created by this call.
    Consumer(bool),
    Names(Vec<String>),
    Done,
    /// The call has no answer.
    Silence,
}

#[derive(Default)]
struct State {
    said: Option<Said>,
    waker: Option<Waker>,
}

/// The place for the answer to one call.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<State>>);

impl Slot {
    pub(super) fn fill(&self, said: Said) {
        let mut state = self.0.lock().unwrap();
        state.said = Some(said);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Whether a future still waits for the answer.
    pub(super) fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// The future of an answer.
pub(super) struct Answer(pub(super) Slot);

impl Future for Answer {
    type Output = Said;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Said> {
        let mut state = self.0.0.lock().unwrap();
        match state.said.take() {
            Some(said) => Poll::Ready(said),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The progress of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The call is in flight.
    Out,
    /// A write that the leader has accepted and the cluster has not.
    Proposed,
    /// The call gets no answer, whatever its effect. Its sender gives up at this time, in ms of the world.
    Silent(u64),
}

/// A call that waits in the world.
pub(super) struct Call {
    /// The process that made the call.
    pub(super) owner: u64,
    pub(super) ask: Ask,
    /// The time of the call, in ms of the world.
    pub(super) since: u64,
    pub(super) stage: Stage,
    pub(super) slot: Slot,
}

/// The calls in flight, in the order in which they were made.
#[derive(Default)]
pub(super) struct Calls {
    next: u64,
    pub(super) open: BTreeMap<u64, Call>,
}

impl Calls {
    pub(super) fn make(&mut self, owner: u64, ask: Ask, since: u64) -> Answer {
        let slot = Slot::default();
        let call = Call { owner, ask, since, stage: Stage::Out, slot: slot.clone() };
        self.open.insert(self.next, call);
        self.next += 1;
        Answer(slot)
    }

    /// Lists the calls of these owners that can proceed; not the sleeping ones, and not those without an answer.
    pub(super) fn ready(&self, owner: impl Fn(u64) -> bool) -> Vec<u64> {
        let ready = |call: &Call| {
            !call.ask.is_sleep() && !matches!(call.stage, Stage::Silent(_)) && owner(call.owner)
        };
        self.open.iter().filter(|(_, call)| ready(call)).map(|(id, _)| *id).collect()
    }
}
