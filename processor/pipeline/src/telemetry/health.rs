//! The health of a replica: what the pipeline last saw, and whether it is ready, which a round trip to NATS proves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State as NatsConnectionState;
use serde_json::{Value, json};

use crate::round_trip::round_trip;

/// How long it is told that messages were set aside as unreadable.
const UNREADABLE_REMEMBERED: Duration = Duration::from_secs(60);

/// How long the connection for pulls may be away before it is told: messages that no client can read cut it.
const PULLS_AWAY: Duration = Duration::from_secs(5);

/// How long a replica that stalled says so: until it has had the time to stall once more.
const STALL_REMEMBERED: Duration = Duration::from_secs(60);

/// The connection to NATS as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatsState {
    /// Not once connected yet; why, where the last try said so.
    Connecting(Option<String>),
    /// Connected.
    Connected,
    /// Was connected.
    Disconnected(String),
}

/// KV as its last answer showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvState {
    /// Nothing was asked yet.
    Unknown,
    /// The last answer was good.
    Reachable,
    /// The last answer was an error that may pass.
    Failing(String),
    /// The last answer was an error that somebody has to mend.
    Misconfigured(String),
}

/// How a replica is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overall {
    /// All is well.
    Ok,
    /// It takes no more events, and writes what it has in hand.
    Draining,
    /// Something needs to be looked at.
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

/// The state of a replica and of its surroundings, as it last saw them.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    nats: Mutex<NatsState>,
    kv: Mutex<KvState>,
    /// What KV refuses though it takes requests.
    refused: Mutex<Option<String>>,
    /// Why events may be lost to their age soon.
    late: Mutex<Option<String>>,
    /// What is nearly full.
    filling: Mutex<Option<String>>,
    /// Why the projector does not move though work waits, and when that was seen last.
    stalled: Mutex<Option<(String, Instant)>>,
    /// The last message that no client can read, and when it was set aside.
    unreadable: Mutex<Option<(String, Instant)>>,
    /// Since when there is no connection for pulls, and why.
    pulls_away: Mutex<Option<(Instant, String)>>,
    /// How many dead letters there are, where somebody has counted.
    dead_letters: Mutex<Option<u64>>,
    /// How long the oldest event waits to be taken in, and the oldest change to be written.
    oldest_event: Mutex<Duration>,
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
    /// The connection changed.
    pub fn set_nats(&self, state: NatsState) {
        *self.nats.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// A try to connect failed, or the server complained.
    pub fn set_nats_error(&self, what: &str) {
        let mut nats = self.nats.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *nats {
            NatsState::Connected => {}
            NatsState::Connecting(why) => *why = Some(what.to_owned()),
            NatsState::Disconnected(why) => what.clone_into(why),
        }
    }

    /// KV answered.
    pub fn set_kv(&self, state: KvState) {
        *self.kv.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// KV refuses something, and nobody knows whether that is its fault; or no more.
    pub fn set_refused(&self, what: Option<String>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Events wait for so long that some may age out of the stream; or no more.
    pub fn set_late(&self, why: Option<String>) {
        *self.late.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Streams are nearly full; or no more.
    pub fn set_filling(&self, what: Option<String>) {
        *self.filling.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Which streams are nearly full.
    pub fn filling(&self) -> Option<String> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The projector does not move though work waits; or it does.
    pub fn set_stalled(&self, why: Option<String>) {
        let seen = why.map(|why| (why, Instant::now()));
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Why the projector does not move. A replica that has given up knows nothing of how others get on: its word is
    /// forgotten after a minute.
    pub fn stalled(&self) -> Option<String> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        stalled.as_ref().filter(|(_, seen)| seen.elapsed() < STALL_REMEMBERED).map(|(why, _)| why.clone())
    }

    /// A message that no client can read was set aside.
    pub fn set_unreadable(&self, what: &str) {
        let seen = Some((what.to_owned(), Instant::now()));
        *self.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// What was set aside last, for a minute.
    fn unreadable(&self) -> Option<String> {
        let unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        unreadable
            .as_ref()
            .filter(|(_, seen)| seen.elapsed() < UNREADABLE_REMEMBERED)
            .map(|(what, _)| what.clone())
    }

    /// The connection by which events are pulled is there; or it is not, and why.
    pub fn set_pulls(&self, away: Option<&str>) {
        let mut pulls = self.pulls_away.lock().unwrap_or_else(PoisonError::into_inner);
        *pulls =
            away.map(|why| (pulls.as_ref().map_or_else(Instant::now, |(since, _)| *since), why.to_owned()));
    }

    /// Why no events can be pulled, if that is so for a while.
    fn pulls_away(&self) -> Option<String> {
        let pulls = self.pulls_away.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.as_ref().filter(|(since, _)| since.elapsed() >= PULLS_AWAY).map(|(_, why)| why.clone())
    }

    /// So many dead letters were there when they were counted last.
    pub fn set_dead_letters(&self, count: u64) {
        *self.dead_letters.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
    }

    /// This replica writes to KV from now on; or no more.
    pub fn set_writing(&self, is_writing: bool) {
        self.writing.store(is_writing, Ordering::Relaxed);
    }

    /// Whether this replica writes to KV.
    pub fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// The oldest event that is not taken in waits for so long.
    pub fn set_oldest_event(&self, age: Duration) {
        *self.oldest_event.lock().unwrap_or_else(PoisonError::into_inner) = age;
    }

    /// How long the oldest event waits to be taken in.
    pub fn oldest_event(&self) -> Duration {
        *self.oldest_event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest change that is not settled in KV waits for so long.
    pub fn set_oldest_change(&self, age: Duration) {
        *self.oldest_change.lock().unwrap_or_else(PoisonError::into_inner) = age;
    }

    /// How long the oldest change waits to be settled in KV.
    pub fn oldest_change(&self) -> Duration {
        *self.oldest_change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it last saw of NATS.
    pub fn nats(&self) -> NatsState {
        self.nats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it last saw of KV.
    pub fn kv(&self) -> KvState {
        self.kv.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why events may be lost to their age soon.
    pub fn late(&self) -> Option<String> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many dead letters there are; nothing, where nobody has counted.
    pub fn dead_letters(&self) -> Option<u64> {
        *self.dead_letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subscriptions are made; from now on a round trip proves them.
    pub fn set_source(&self, client: Client) {
        let _ = self.client.set(client);
    }

    /// No more events are taken.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// For people: in a word, and what each part looks like.
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
            KvState::Unknown => service("unknown", Some("nothing was written yet".to_owned())),
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
        // Not degraded: what they send wrong does not keep anything else from landing.
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

    /// Whether events come and go: for probes.
    ///
    /// # Errors
    /// Why not.
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
