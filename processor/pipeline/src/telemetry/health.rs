//! The health of a replica: the last observed states, and readiness, which a round trip to NATS
//! proves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State as NatsConnectionState;
use serde_json::{Value, json};

use crate::round_trip::round_trip;

/// How long the report shows a message that was set aside because no client can read it.
const UNREADABLE_REMEMBERED: Duration = Duration::from_secs(60);

/// How long the connection for pulls may be away before the report shows it. Messages that no
/// client can read cut this connection briefly.
const PULLS_AWAY: Duration = Duration::from_secs(5);

/// How long a replica reports a stall: long enough to stall once more.
const STALL_REMEMBERED: Duration = Duration::from_secs(60);

/// The connection to NATS as last observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatsState {
    /// Not connected yet, with the error of the last attempt if there is one.
    Connecting(Option<String>),
    /// Connected.
    Connected,
    /// Disconnected, and why. The replica was connected before.
    Disconnected(String),
}

/// KV as its last answer showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvState {
    /// The replica has not sent a request yet.
    Unknown,
    /// The last request succeeded.
    Reachable,
    /// The last answer was an error that may pass by itself.
    Failing(String),
    /// The last answer was an error that a person must repair.
    Misconfigured(String),
}

/// The state of a replica in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overall {
    /// Everything works.
    Ok,
    /// The replica takes no more events, and writes the tasks in flight.
    Draining,
    /// A person must look at something.
    Degraded,
}

impl Overall {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Draining => "draining",
            Self::Degraded => "degraded",
        }
    }
}

/// The state of a replica and of its surroundings, as last observed.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    nats: Mutex<NatsState>,
    kv: Mutex<KvState>,
    /// Keys that KV refuses although it accepts other requests.
    refused: Mutex<Option<String>>,
    /// Why events may soon be lost to their age.
    late: Mutex<Option<String>>,
    /// The streams that are nearly full.
    filling: Mutex<Option<String>>,
    /// Why the projector makes no progress although work waits, and when the replica last observed
    /// this.
    stalled: Mutex<Option<(String, Instant)>>,
    /// The last message that no client can read, and when the replica set it aside.
    unreadable: Mutex<Option<(String, Instant)>>,
    /// Since when the connection for pulls is away, and why.
    pulls_away: Mutex<Option<(Instant, String)>>,
    /// The number of dead letters, or `None` if the replica has not counted them.
    dead_letters: Mutex<Option<u64>>,
    /// How long the oldest event has waited to be taken in.
    oldest_event: Mutex<Duration>,
    /// How long the oldest change has waited to be settled in KV.
    oldest_change: Mutex<Duration>,
    writing: AtomicBool,
    draining: AtomicBool,
    client: OnceLock<Client>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            nats: Mutex::new(NatsState::Connecting(None)),
            kv: Mutex::new(KvState::Unknown),
            refused: Mutex::new(None),
            late: Mutex::new(None),
            filling: Mutex::new(None),
            stalled: Mutex::new(None),
            unreadable: Mutex::new(None),
            pulls_away: Mutex::new(None),
            dead_letters: Mutex::new(None),
            oldest_event: Mutex::default(),
            oldest_change: Mutex::default(),
            writing: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            client: OnceLock::new(),
        }
    }
}

impl Health {
    /// Records a change of the connection to NATS.
    pub fn set_nats(&self, state: NatsState) {
        *self.nats.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Records a failed attempt to connect, or an error of the server.
    pub fn set_nats_error(&self, what: &str) {
        let mut nats = self.nats.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *nats {
            NatsState::Connected => {}
            NatsState::Connecting(why) => *why = Some(what.to_owned()),
            NatsState::Disconnected(why) => what.clone_into(why),
        }
    }

    /// Records an answer of KV.
    pub fn set_kv(&self, state: KvState) {
        *self.kv.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Records that KV refuses something without proof of the cause; `None` ends this state.
    pub fn set_refused(&self, what: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Records that events may soon age out of the stream; `None` ends this state.
    pub fn set_late(&self, why: Option<String>) {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Records the streams that are nearly full; `None` ends this state.
    pub fn set_filling(&self, what: Option<String>) {
        *self.filling.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// The streams that are nearly full.
    pub fn filling(&self) -> Option<String> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that the projector makes no progress although work waits; `None` ends this state.
    pub fn set_stalled(&self, why: Option<String>) {
        let seen = why.map(|why| (why, Instant::now()));
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Why the projector makes no progress.
    ///
    /// The state expires after a minute: a replica that is not the writer any more cannot see the
    /// progress of its successor.
    pub fn stalled(&self) -> Option<String> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().filter(|(_, seen)| seen.elapsed() < STALL_REMEMBERED).map(|(why, _)| why.clone())
    }

    /// Records that a message that no client can read was set aside.
    pub fn set_unreadable(&self, what: &str) {
        let seen = Some((what.to_owned(), Instant::now()));
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// The message that was set aside last, for a minute.
    fn unreadable(&self) -> Option<String> {
        let unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        unreadable
            .as_ref()
            .filter(|(_, seen)| seen.elapsed() < UNREADABLE_REMEMBERED)
            .map(|(what, _)| what.clone())
    }

    /// Records whether the connection for pulls is away, and why; `None` if it is there.
    pub fn set_pulls(&self, away: Option<&str>) {
        let mut pulls = self.pulls_away.lock().unwrap_or_else(PoisonError::into_inner);
        *pulls =
            away.map(|why| (pulls.as_ref().map_or_else(Instant::now, |(since, _)| *since), why.to_owned()));
    }

    /// Why the connection for pulls is away, if it has been away for [`PULLS_AWAY`].
    fn pulls_away(&self) -> Option<String> {
        let pulls = self.pulls_away.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.as_ref().filter(|(since, _)| since.elapsed() >= PULLS_AWAY).map(|(_, why)| why.clone())
    }

    /// Records the last count of the dead letters.
    pub fn set_dead_letters(&self, count: u64) {
        *self.dead_letters.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    /// Records whether this replica writes to KV.
    pub fn set_writing(&self, is_writing: bool) {
        self.writing.store(is_writing, Ordering::Relaxed);
    }

    /// Returns whether this replica writes to KV.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// Records the age of the oldest event that is not taken in.
    pub fn set_oldest_event(&self, age: Duration) {
        *self.oldest_event.lock().unwrap_or_else(PoisonError::into_inner) = age;
    }

    /// How long the oldest event has waited to be taken in.
    pub fn oldest_event(&self) -> Duration {
        *self.oldest_event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the age of the oldest change that is not settled in KV.
    pub fn set_oldest_change(&self, age: Duration) {
        *self.oldest_change.lock().unwrap_or_else(PoisonError::into_inner) = age;
    }

    /// How long the oldest change has waited to be settled in KV.
    pub fn oldest_change(&self) -> Duration {
        *self.oldest_change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last observed state of NATS.
    pub fn nats(&self) -> NatsState {
        self.nats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last observed state of KV.
    pub fn kv(&self) -> KvState {
        self.kv.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why events may soon be lost to their age.
    pub fn late(&self) -> Option<String> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of dead letters, or `None` if the replica has not counted them.
    pub fn dead_letters(&self) -> Option<u64> {
        *self.dead_letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the client of the subscriptions. From now on a round trip of this client proves
    /// readiness.
    pub fn set_source(&self, client: Client) {
        let _ = self.client.set(client);
    }

    /// Records that the replica drains and takes no more events.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The report for people: the state in one word, and JSON with the state of each part.
    pub fn report(&self) -> (Overall, Value) {
        let (nats, kv, late, stalled) = (self.nats(), self.kv(), self.late(), self.stalled());
        let filling = self.filling();
        let draining = self.draining.load(Ordering::Relaxed);
        let pulls_away = self.pulls_away();
        let nats_up = nats == NatsState::Connected && pulls_away.is_none();
        let kv_up = matches!(kv, KvState::Unknown | KvState::Reachable);
        let overall = match () {
            () if draining => Overall::Draining,
            () if nats_up && kv_up && late.is_none() && filling.is_none() && stalled.is_none() => Overall::Ok,
            () => Overall::Degraded,
        };
        let nats = match nats {
            NatsState::Connecting(why) => service("connecting", why),
            NatsState::Connected => match pulls_away {
                None => service("connected", None),
                Some(why) => service("no connection for pulls", Some(why)),
            },
            NatsState::Disconnected(why) => service("disconnected", Some(why)),
        };
        let kv = match kv {
            KvState::Unknown => service("unknown", Some("no request to KV yet".to_owned())),
            KvState::Reachable => {
                service("reachable", self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            KvState::Failing(why) => service("failing", Some(why)),
            KvState::Misconfigured(why) => service("misconfigured", Some(why)),
        };
        let stream = match late {
            None => service("ok", None),
            Some(why) => service("late", Some(why)),
        };
        // Not degraded: messages with unreadable headers do not delay other events.
        let producers = match self.unreadable() {
            None => service("ok", None),
            Some(what) => service("unreadable headers", Some(what)),
        };
        let room = match filling {
            None => service("ok", None),
            Some(what) => service("filling", Some(what)),
        };
        let projector = match stalled {
            None => service("ok", None),
            Some(why) => service("stalled", Some(why)),
        };
        let report = json!({
            "status": overall.as_str(),
            "services": {
                "nats": nats, "kv": kv, "producers": producers, "stream": stream, "room": room, "projector": projector
            },
            "version": env!("CARGO_PKG_VERSION"),
            "uptime": self.started.elapsed().as_secs(),
        });
        (overall, report)
    }

    /// Returns whether events can flow, for probes.
    ///
    /// # Errors
    /// If the replica is not ready; the text is the reason.
    pub async fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        let client = self.client.get().ok_or("not subscribed yet")?;
        if client.connection_state() != NatsConnectionState::Connected {
            return Err("NATS: not connected".to_owned());
        }
        round_trip(client).await.map_err(|why| format!("NATS: {why}"))
    }
}

fn service(status: &str, message: Option<String>) -> Value {
    match message {
        None => json!({"status": status}),
        Some(message) => json!({"status": status, "message": message}),
    }
}
