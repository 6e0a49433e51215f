//! Simulates a namespace of Cloudflare KV.
//!
//! Requests land at once, late or never. The answers are all those that KV and proxies before it are known to give;
//! the shipped code reads them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use taskpipeline_contract::TaskKey;
use taskpipeline_kv::{BulkApi, Failure, Operation, PutBody, Response};

use super::dice::Dice;
use super::net::Node;
use super::settings::SETTLE_AFTER;

/// KV refuses a title with this text.
pub(super) const POISON: &str = "poison";

/// The longest delay of a read behind the writes, in ms.
const STALE: u64 = 60_000;

/// The time at which a request without an answer takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Now,
    /// After this percentage of its remaining time.
    Later(u64),
    Never,
}

impl Fate {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        match dice.below(6) {
            0 => Self::Never,
            1 => Self::Now,
            _ => Self::Later(dice.between(40, 100)),
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Landed,
    /// Everything lands except the first key, which the answer names.
    Partly,
    /// Everything lands except the first key, which the answer only counts.
    Miscounted,
    Throttled {
        retry_after: Option<&'static str>,
    },
    DailyQuota,
    /// Cloudflare refuses with this status and code, and nothing is done.
    Refused(u16, i64),
    /// A proxy returns a page with this status.
    Page(u16, Fate),
    /// Cloudflare returns a status that does not tell whether the request was done.
    Broken(u16, Fate),
    /// The request gets no answer.
    Silent(Fate),
}

impl Verdict {
    /// Draws a verdict that does not depend on the content of the request.
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let fate = Fate::draw(dice);
        match dice.below(30) {
            0..=13 => Self::Landed,
            14 | 15 => Self::Partly,
            16 => Self::Miscounted,
            17 => Self::Throttled { retry_after: dice.pick(&[Some("1"), Some("3"), None]) },
            18 => Self::Refused(dice.pick(&[401, 403, 400]), dice.pick(&[10_000, 9_109, 6_111])),
            19 => Self::Refused(404, dice.pick(&[10_013, 7_003])),
            20 => Self::Refused(413, 10_012),
            21 => Self::Page(dice.pick(&[400, 403, 502, 200]), fate),
            22..=24 => Self::Broken(dice.pick(&[500, 503, 524, 504, 408]), fate),
            25 if dice.chance(20) => Self::DailyQuota,
            _ => Self::Silent(fate),
        }
    }

    /// The time of the effect, if the answer does not show it; otherwise `None`.
    fn fate(self) -> Option<Fate> {
        match self {
            Self::Page(200 | 500.., fate) | Self::Broken(_, fate) | Self::Silent(fate) => Some(fate),
            Self::Miscounted => Some(Fate::Now),
            _ => None,
        }
    }
}

/// An answer in the format of the wire.
pub(super) struct Raw {
    status: u16,
    retry_after: Option<&'static str>,
    body: Vec<u8>,
}

/// The place for the answer to a request; the inner `None` means that no answer comes.
type Slot = Arc<Mutex<Option<Option<Raw>>>>;

struct Answer(Slot);

impl Future for Answer {
    type Output = Option<Raw>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Raw>> {
        self.0.lock().unwrap().take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// A request that is in flight, or that no sender waits for any more.
pub(super) struct Request {
    pub(super) owner: u64,
    pub(super) operation: Operation,
    /// The keys that it writes, with `None` for a delete; or the keys that it reads.
    pub(super) keys: Vec<(String, Option<String>)>,
    /// The time of sending, in ms of the world.
    pub(super) sent: u64,
    /// The time of sending by the sender's clock.
    pub(super) sent_at: u64,
    pub(super) applied: bool,
    /// Whether its sender was stopped before it could send the request.
    pub(super) stuck: bool,
    /// Set if no sender waits for the request: the time at which it takes effect, if ever.
    pub(super) lost: Option<Option<u64>>,
    slot: Slot,
}

impl Request {
    pub(super) fn may_apply(&self, now: u64) -> bool {
        !self.applied && !self.stuck && now < self.sent + millis(SETTLE_AFTER)
    }

    fn is_poisoned(&self) -> bool {
        self.keys.iter().any(|(_, value)| value.as_ref().is_some_and(|value| value.contains(POISON)))
    }
}

/// A simulated KV namespace, with its requests in flight.
#[derive(Default)]
pub(super) struct Kv {
    /// The values of each key with the times of their writes, the newest last.
    values: BTreeMap<String, Vec<(u64, Option<String>)>>,
    pub(super) requests: Vec<Request>,
    /// The time of each request.
    pub(super) sent: Vec<u64>,
    /// The verdict for all requests during an outage, and the end of the outage.
    pub(super) outage: Option<(Verdict, u64)>,
    /// Whether requests stay unsent, because their sender is about to be stopped.
    pub(super) holds_back: bool,
    pub(super) now: u64,
}

impl Kv {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.last()?.1.as_deref()
    }

    pub(super) fn set(&mut self, key: String, value: Option<String>) {
        self.values.entry(key).or_default().push((self.now, value));
    }

    /// Reads a value from a location that is this far behind.
    fn get_stale(&self, key: &str, behind: u64) -> Option<&str> {
        let before = self.now.saturating_sub(behind);
        let values = self.values.get(key)?;
        let (_, value) = values.iter().rev().find(|(since, _)| *since <= before).or(values.first())?;
        value.as_deref()
    }

    fn send(&mut self, node: &Node, operation: Operation, keys: Vec<(String, Option<String>)>) -> Answer {
        let slot = Slot::default();
        let (applied, lost) = (false, None);
        let request = Request {
            owner: node.uid,
            operation,
            keys,
            sent: self.now,
            sent_at: node.clock(),
            applied,
            stuck: self.holds_back,
            lost,
            slot: Arc::clone(&slot),
        };
        self.requests.push(request);
        if !self.holds_back {
            self.sent.push(self.now);
        }
        Answer(slot)
    }

    pub(super) fn apply(&mut self, which: usize, but_first: bool) {
        self.requests[which].applied = true;
        let keys = self.requests[which].keys.clone();
        if self.requests[which].operation != Operation::Get {
            for (key, value) in keys.into_iter().skip(usize::from(but_first)) {
                self.set(key, value);
            }
        }
    }

    /// Makes the sender stop waiting for the answer.
    pub(super) fn lose(&mut self, which: usize, fate: Fate) {
        let now = self.now;
        let request = &mut self.requests[which];
        let end = request.sent + millis(SETTLE_AFTER);
        let at = match fate {
            _ if !request.may_apply(now) || request.is_poisoned() => None,
            Fate::Now => Some(now),
            Fate::Later(hundredths) => Some((now + (end - now) * hundredths / 100).min(end - 1)),
            Fate::Never => None,
        };
        request.lost = Some(at);
        self.apply_what_is_late();
    }

    /// Applies late and lost requests whose time has come.
    pub(super) fn apply_what_is_late(&mut self) {
        for which in 0..self.requests.len() {
            let request = &self.requests[which];
            if request.lost.flatten().is_some_and(|at| at <= self.now) && !request.applied {
                self.apply(which, false);
            }
        }
        let now = self.now;
        self.requests.retain(|request| {
            request.lost.is_none_or(|at| {
                at.is_some() && !request.applied && now < request.sent + millis(SETTLE_AFTER)
            })
        });
        self.outage = self.outage.filter(|(_, until)| *until > now);
    }

    /// Leaves a request without an answer, whatever its effect.
    pub(super) fn silence(&mut self, which: usize, fate: Fate) {
        *self.requests[which].slot.lock().unwrap() = Some(None);
        self.lose(which, fate);
    }

    /// Answers a request, or leaves it without an answer.
    pub(super) fn answer(&mut self, which: usize, verdict: Verdict, dice: &mut Dice) -> Verdict {
        let request = &self.requests[which];
        let (operation, keys) = (request.operation, request.keys.len());
        let verdict = match self.outage {
            Some((outage, _)) => outage,
            None => verdict,
        };
        let verdict = match verdict {
            Verdict::Landed | Verdict::Partly | Verdict::Miscounted if request.is_poisoned() => {
                Verdict::Refused(400, 10_026)
            }
            Verdict::Partly | Verdict::Miscounted if operation == Operation::Get || keys == 0 => {
                Verdict::Landed
            }
            Verdict::Landed | Verdict::Partly | Verdict::Miscounted
                if !request.applied && !request.may_apply(self.now) =>
            {
                Verdict::Silent(Fate::Never)
            }
            Verdict::Partly if request.applied => Verdict::Landed,
            Verdict::Throttled { .. } | Verdict::DailyQuota | Verdict::Refused(..) | Verdict::Page(..)
                if request.applied =>
            {
                Verdict::Silent(Fate::Never)
            }
            verdict => verdict,
        };
        let body = match verdict {
            Verdict::Landed if operation == Operation::Get => self.values_of(which, dice),
            Verdict::Landed => format!(
                r#"{{"success":true,"errors":[],"messages":[],"result":{{"successful_key_count":{keys},"unsuccessful_keys":[]}}}}"#
            ),
            Verdict::Partly | Verdict::Miscounted => {
                let first = serde_json::to_string(&self.requests[which].keys[0].0).unwrap();
                let named = if verdict == Verdict::Partly { first } else { String::new() };
                format!(
                    r#"{{"success":true,"errors":[],"result":{{"successful_key_count":{},"unsuccessful_keys":[{named}]}}}}"#,
                    keys - 1
                )
            }
            Verdict::Throttled { .. } => error(971, "throttled"),
            Verdict::DailyQuota => error(0, "KV put() limit exceeded for the day."),
            Verdict::Refused(_, code) => error(code, "refused"),
            Verdict::Broken(..) => error(10_001, "internal error"),
            Verdict::Page(..) | Verdict::Silent(_) => "<html><body>no</body></html>".to_owned(),
        };
        let status = match verdict {
            Verdict::Landed | Verdict::Partly | Verdict::Miscounted => 200,
            Verdict::Throttled { .. } | Verdict::DailyQuota => 429,
            Verdict::Refused(status, _) | Verdict::Page(status, _) | Verdict::Broken(status, _) => status,
            Verdict::Silent(_) => 0,
        };
        let retry_after = match verdict {
            Verdict::Throttled { retry_after } => retry_after,
            _ => None,
        };
        if matches!(verdict, Verdict::Landed | Verdict::Partly | Verdict::Miscounted)
            && !self.requests[which].applied
        {
            self.apply(which, verdict != Verdict::Landed);
        }
        let raw = (status > 0).then(|| Raw { status, retry_after, body: body.into_bytes() });
        *self.requests[which].slot.lock().unwrap() = Some(raw);
        match verdict.fate() {
            Some(fate) => self.lose(which, fate),
            None => drop(self.requests.remove(which)),
        }
        verdict
    }

    fn values_of(&self, which: usize, dice: &mut Dice) -> String {
        let behind = if dice.chance(20) { dice.between(0, STALE) } else { 0 };
        let values: BTreeMap<_, _> =
            self.requests[which].keys.iter().map(|(key, _)| (key, self.get_stale(key, behind))).collect();
        format!(r#"{{"success":true,"result":{{"values":{}}}}}"#, serde_json::to_string(&values).unwrap())
    }

    /// The largest number of requests in any window of this length.
    pub(super) fn fullest_window(&self, period: Duration) -> usize {
        let (mut first, mut most) = (0, 0);
        for (last, sent) in self.sent.iter().enumerate() {
            while sent - self.sent[first] >= millis(period) {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        most
    }
}

fn error(code: i64, message: &str) -> String {
    format!(
        r#"{{"success":false,"errors":[{{"code":{code},"message":"{message}"}}],"messages":[],"result":null}}"#
    )
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

/// A namespace as one process sees it.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) kv: Arc<Mutex<Kv>>,
    pub(super) node: Arc<Node>,
}

impl Door {
    async fn ask(&self, operation: Operation, keys: Vec<(String, Option<String>)>) -> Result<Raw, Failure> {
        let answer = self.kv.lock().unwrap().send(&self.node, operation, keys);
        answer.await.ok_or_else(|| Failure::TooSlow("KV did not answer in time".to_owned()))
    }
}

impl Raw {
    fn response(&self) -> Response<'_> {
        Response { status: self.status, retry_after: self.retry_after, body: &self.body }
    }
}

fn names(keys: &[TaskKey]) -> Vec<(String, Option<String>)> {
    keys.iter().map(|key| (key.to_string(), None)).collect()
}

impl BulkApi for Door {
    async fn bulk_put(&self, body: PutBody) -> Result<HashSet<String>, Failure> {
        #[derive(Deserialize)]
        struct Pair {
            key: String,
            value: String,
        }
        let pairs: Vec<Pair> = serde_json::from_slice(&body.to_vec()).unwrap();
        let count = pairs.len();
        let keys = pairs.into_iter().map(|Pair { key, value }| (key, Some(value))).collect();
        let raw = self.ask(Operation::Put, keys).await?;
        raw.response().written(count, SystemTime::UNIX_EPOCH)
    }

    async fn bulk_delete(&self, keys: &[TaskKey]) -> Result<HashSet<String>, Failure> {
        let raw = self.ask(Operation::Delete, names(keys)).await?;
        raw.response().written(keys.len(), SystemTime::UNIX_EPOCH)
    }

    async fn bulk_get(&self, keys: &[TaskKey]) -> Result<HashMap<String, Option<String>>, Failure> {
        let raw = self.ask(Operation::Get, names(keys)).await?;
        raw.response().values(SystemTime::UNIX_EPOCH)
    }
}
