//! The calls of a replica to NATS and to its clock: each question is a call that waits in the world until it is carried out, and
//! a future that waits for its answer.

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

/// A question.
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
    /// To be woken then, in ms by the replica's clock.
    Sleep(u64),
}

impl Ask {
    pub(super) fn is_sleep(&self) -> bool {
        matches!(self, Self::Sleep(_))
    }

    /// For the trace.
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

/// A dead letter, as the world keeps it.
#[derive(Clone, Debug)]
pub(super) struct Stamped {
    pub(super) id: String,
    pub(super) reason: Reason,
    pub(super) task: Option<String>,
    pub(super) payload: bytes::Bytes,
}

/// An answer.
pub(super) enum Said {
    Stored(Option<Stored>),
    Many(Vec<Stored>),
    Newest(Revision),
    /// The stream's answer to a write, as it comes over the wire.
    Reply(Message),
    /// Whether the letter was stored.
    Letter(bool),
    Present(Present),
    Time(Option<i64>),
    Next(Option<(u64, i64)>),
    Floor(Option<u64>),
    /// Whether it was made just now.
    Consumer(bool),
    Names(Vec<String>),
    Done,
    /// Nobody answers.
    Silence,
}

#[derive(Default)]
struct State {
    said: Option<Said>,
    waker: Option<Waker>,
}

/// Where the answer to one call is laid.
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

    /// Whether somebody waits for the answer still.
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

/// How far a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// On its way.
    Out,
    /// A write that the leader has taken, and the cluster has not.
    Proposed,
    /// Whatever became of it, nobody answers, and its sender gives up then, in ms of the world.
    Silent(u64),
}

/// A call that waits in the world.
pub(super) struct Call {
    /// Of whom.
    pub(super) owner: u64,
    pub(super) ask: Ask,
    /// When it was made, in ms of the world.
    pub(super) since: u64,
    pub(super) stage: Stage,
    pub(super) slot: Slot,
}

/// The calls that are under way, in the order in which they were made.
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

    /// Of these owners, but not the sleeping ones; nothing of those whom nobody answers.
    pub(super) fn ready(&self, owner: impl Fn(u64) -> bool) -> Vec<u64> {
        let ready = |call: &Call| {
            !call.ask.is_sleep() && !matches!(call.stage, Stage::Silent(_)) && owner(call.owner)
        };
        self.open.iter().filter(|(_, call)| ready(call)).map(|(id, _)| *id).collect()
    }
}
