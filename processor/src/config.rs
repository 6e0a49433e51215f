//! The settings of `taskpipeline run`, from the environment. Reads and checks, and does nothing else.
//!
//! Every variable at fault is reported at once, by name, with what it should be. Secrets are wrapped where
//! they are read, so that no Debug or log can show them.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32};
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use crate::api::{Room, Size, TaskPipelineSpec};
use crate::kv::{MAX_KEYS_PER_WRITE, RequestBudget};
use crate::retry::RetryPolicy;

pub(crate) mod login;
mod nats;

pub(crate) use nats::scheme_fault;
pub use nats::{NatsAuth, NatsConnection, NatsTls};

/// The longest duration that a setting may have: ten years. Longer ones are mistakes, and sums of them cannot be counted.
pub(crate) const LONGEST_DURATION: Duration = Duration::from_hours(10 * 365 * 24);

const CLOUDFLARE_API: &str = "https://api.cloudflare.com/client/v4";

/// Where commands other than `run` look for NATS.
const LOCAL_NATS: &str = "nats://127.0.0.1:4222";

/// Everything `taskpipeline run` needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where events come from.
    pub nats: NatsSettings,
    /// Where tasks go.
    pub kv: KvSettings,
    /// What is promised about events: `DELIVERY_MODE`.
    pub delivery: Delivery,
    /// What paces and repeats the writes.
    pub tuning: Tuning,
    /// Where health and metrics are served: `HOST`, every address of this machine if it is not set, and `PORT`, 0 for any
    /// free one.
    pub http: (Option<IpAddr>, u16),
    /// How logs look: `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// How long a drain may take: `SHUTDOWN_GRACE`.
    pub shutdown_grace: Duration,
}

/// What is promised about events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing is lost: events wait in a stream, tasks in a ledger.
    Durable(DurableSettings),
    /// At most once: NATS core, state in memory.
    Core(CoreSettings),
}

impl Delivery {
    /// How long a request to KV may take at most: in mode `Durable` a third of `SETTLE_AFTER`. What times out may have
    /// waited as long on its way, and may take as long again to take effect: after the settle time it is taken for over, and
    /// a write that took effect later would stay.
    #[must_use]
    pub fn longest_request(&self) -> Duration {
        match self {
            Self::Durable(durable) => durable.settle_after / 3,
            Self::Core(_) => Duration::MAX,
        }
    }

    /// Whether these settings go together with the delivery.
    ///
    /// # Errors
    /// What does not, and what to do.
    pub fn admits(&self, tuning: &Tuning) -> Result<(), String> {
        let (timeout, most) = (tuning.request_timeout, self.longest_request());
        if timeout <= most {
            return Ok(());
        }
        let shown = |duration| humantime::format_duration(duration);
        Err(format!(
            "must be at most a third of SETTLE_AFTER (spec.kv.settleAfter), which is {}, and is {}: a request that takes \
             effect later could put an old task over a newer one for good. Make it shorter, or SETTLE_AFTER longer",
            shown(most.saturating_mul(3)),
            shown(timeout)
        ))
    }
}

/// What a replica in mode `Core` cannot find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreSettings {
    /// `CORE_REPLICAS`: how many replicas share the request budget.
    pub replicas: NonZeroU32,
}

/// The stream that captures the events, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableSettings {
    /// `STREAM_NAME`: created if it is missing.
    pub stream: String,
    /// `STREAM_REPLICAS`, for streams that are created.
    pub replicas: usize,
    /// `STREAM_MAX_AGE`, for a stream that is created: how long an event may wait to be taken in.
    pub max_age: Duration,
    /// `STREAM_MAX_EVENT_BYTES`, for a stream that is created: the largest event, with its headers.
    pub max_event_bytes: i32,
    /// `STREAM_MAX_BYTES`, `LEDGER_MAX_BYTES` and `DEAD_LETTERS_MAX_BYTES`, as far as they are set.
    pub room: Room,
    /// `ACK_WAIT`: after how long another replica gets an event that one has taken and not acknowledged.
    pub ack_wait: Duration,
    /// `SETTLE_AFTER`: how long after it was sent a request may still take effect at Cloudflare's. What was
    /// in doubt is written again then.
    pub settle_after: Duration,
}

/// The connection to NATS and the subjects.
#[derive(Debug)]
pub struct NatsSettings {
    /// `NATS_URL` and how to log in.
    pub connection: NatsConnection,
    /// `SUBJECT_PREFIX`: `tasks` makes `tasks.created` and so on.
    pub subject_prefix: String,
    /// `QUEUE_GROUP`: each event goes to one of the replicas that share it.
    pub queue_group: String,
}

/// A pipeline in mode `Durable`, for commands that look at it and do not run it.
#[derive(Debug)]
pub struct Pipeline {
    /// The connection to NATS and the subjects.
    pub nats: NatsSettings,
    /// The stream, after which all else is named.
    pub durable: DurableSettings,
}

/// The KV namespace and the token for it.
#[derive(Debug)]
pub struct KvSettings {
    /// `{base}[/accounts/{account}]/storage/kv/namespaces/{namespace}`
    pub namespace_url: Url,
    /// `CF_API_TOKEN`
    pub token: SecretString,
}

impl KvSettings {
    /// Why the token is not safe on its way; nothing where it is encrypted or stays on this machine.
    #[must_use]
    pub fn unencrypted(&self) -> Option<String> {
        let host = self.namespace_url.host_str()?;
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        (self.namespace_url.scheme() == "http" && !is_loopback).then(|| {
            format!(
                "CF_API_BASE_URL is http:// and {host} is not this machine: the token is sent unencrypted"
            )
        })
    }
}

/// What may change while the pipeline runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// When failed writes are tried again.
    pub retry: RetryPolicy,
    /// How many requests KV may see.
    pub request_budget: RequestBudget,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// The least time between two writes of one task: KV allows about one a second.
    pub min_write_interval: Duration,
    /// The most keys of one bulk write. It begins with fewer.
    pub max_keys: NonZeroU16,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            request_budget: RequestBudget::default(),
            request_timeout: Duration::from_secs(10),
            min_write_interval: Duration::from_secs(1),
            max_keys: MAX_KEYS_PER_WRITE,
        }
    }
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line a step, for people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json".to_owned()),
        }
    }
}

/// Every variable at fault, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment is not right:\n{}", .0.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Settings {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// Every variable that is missing or wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&mut Environment::new(&|name| std::env::var(name).ok()))
    }

    /// As [`Self::from_env`], with what a resource says in front of the environment; secrets and addresses to listen on
    /// are the environment's.
    ///
    /// # Errors
    /// Every variable that is missing or wrong.
    pub fn of(spec: &TaskPipelineSpec, tuning: Tuning) -> Result<Self, ConfigError> {
        let said = said(spec);
        let lookup = |name: &str| said.get(name).cloned().or_else(|| std::env::var(name).ok());
        Ok(Self { tuning, ..Self::read(&mut Environment::new(&lookup))? })
    }

    fn read(env: &mut Environment<'_>) -> Result<Self, ConfigError> {
        let nats = env.nats(None);
        let delivery = env.delivery(&nats.queue_group);
        let kv = env.kv();
        let tuning = env.tuning(&delivery);
        if let Err(what) = delivery.admits(&tuning) {
            env.problem("REQUEST_TIMEOUT", what);
        }
        let http = (env.host(), env.parsed("PORT", "a port number", 3001));
        let log_format = env.log_format();
        let shutdown_grace = env.duration("SHUTDOWN_GRACE", Duration::from_secs(25));
        match kv {
            Some(kv) if env.problems.is_empty() => {
                Ok(Self { nats, delivery, kv, tuning, http, log_format, shutdown_grace })
            }
            _ => Err(ConfigError(std::mem::take(&mut env.problems))),
        }
    }
}

impl Pipeline {
    /// What a command needs that looks at a pipeline in NATS: the same variables as for `run`, with a server on
    /// this machine as the default, and nothing of KV.
    ///
    /// # Errors
    /// Every variable that is wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::read(&mut Environment::new(&|name| std::env::var(name).ok()))
    }

    fn read(env: &mut Environment<'_>) -> Result<Self, ConfigError> {
        let nats = env.nats(Some(LOCAL_NATS));
        let durable = env.durable();
        env.check_names(&durable.stream, &nats.queue_group);
        if env.problems.is_empty() {
            Ok(Self { nats, durable })
        } else {
            Err(ConfigError(std::mem::take(&mut env.problems)))
        }
    }
}

/// What a resource says, as the variables that say the same.
fn said(spec: &TaskPipelineSpec) -> HashMap<&'static str, String> {
    let stream = spec.delivery.stream.clone().unwrap_or_default();
    let room = spec.delivery.room.unwrap_or_default();
    // An empty one counts as not set.
    let size = |size: Option<Size>| size.map(|size| size.to_string()).unwrap_or_default();
    HashMap::from([
        ("STREAM_MAX_BYTES", size(room.events)),
        ("LEDGER_MAX_BYTES", size(room.ledger)),
        ("DEAD_LETTERS_MAX_BYTES", size(room.dead_letters)),
        ("NATS_URL", spec.nats.url.clone()),
        ("SUBJECT_PREFIX", spec.nats.subject_prefix.clone()),
        ("QUEUE_GROUP", spec.nats.queue_group.clone()),
        ("DELIVERY_MODE", format!("{:?}", spec.delivery.mode)),
        ("STREAM_NAME", stream.name),
        ("STREAM_REPLICAS", stream.replicas.to_string()),
        ("STREAM_MAX_AGE", stream.max_age.to_string()),
        ("STREAM_MAX_EVENT_BYTES", stream.max_event_bytes.to_string()),
        ("SETTLE_AFTER", spec.kv.settle_after.to_string()),
        ("REQUEST_TIMEOUT", spec.kv.request_timeout.to_string()),
    ])
}

impl LogFormat {
    /// `LOG_FORMAT` alone, so that logging can begin before the rest is read; JSON where it is not set.
    #[must_use]
    pub fn from_env() -> Self {
        std::env::var("LOG_FORMAT").ok().and_then(|text| text.parse().ok()).unwrap_or(Self::Json)
    }
}

/// The environment, with the problems found in it so far. Each method answers something usable even where
/// there is a problem, so that one pass finds them all.
struct Environment<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

impl<'a> Environment<'a> {
    fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, problems: Vec::new() }
    }

    fn problem(&mut self, name: &str, what: impl fmt::Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    /// A variable's text without the white space around it: a Secret made with `echo` ends in a line break.
    /// An empty one counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn required(&mut self, name: &str, what: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.problem(name, format!("is not set; it must be {what}"));
            String::new()
        })
    }

    fn parsed<T: FromStr>(&mut self, name: &str, what: &str, default: T) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.problem(name, format!("must be {what}"));
            default
        })
    }

    fn log_format(&mut self) -> LogFormat {
        self.parsed("LOG_FORMAT", "text or json", LogFormat::Json)
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let Some(text) = self.text(name) else { return default };
        duration(&text).unwrap_or_else(|| {
            self.problem(name, "must be a duration such as 25s or 1m, at most 87600h");
            default
        })
    }

    fn size(&mut self, name: &str) -> Option<Size> {
        let text = self.text(name)?;
        text.parse().map_err(|error| self.problem(name, error)).ok()
    }

    fn nats(&mut self, default: Option<&str>) -> NatsSettings {
        NatsSettings {
            connection: self.connection(default),
            subject_prefix: self.subject("SUBJECT_PREFIX", "tasks"),
            queue_group: self.subject("QUEUE_GROUP", "tasks-processor"),
        }
    }

    fn durable(&mut self) -> DurableSettings {
        DurableSettings {
            stream: self.text("STREAM_NAME").unwrap_or_else(|| "TASKS".to_owned()),
            replicas: usize::from(self.parsed("STREAM_REPLICAS", "1, 3 or 5", NonZeroU8::MIN).get()),
            max_age: self.duration("STREAM_MAX_AGE", Duration::from_hours(72)),
            max_event_bytes: self.max_event_bytes(),
            room: Room {
                events: self.size("STREAM_MAX_BYTES"),
                ledger: self.size("LEDGER_MAX_BYTES"),
                dead_letters: self.size("DEAD_LETTERS_MAX_BYTES"),
            },
            ack_wait: self.duration("ACK_WAIT", Duration::from_secs(30)),
            settle_after: self.duration("SETTLE_AFTER", Duration::from_secs(30)),
        }
    }

    fn max_event_bytes(&mut self) -> i32 {
        const RULE: &str = "a whole number of bytes, 1024 to 67108864";
        let default = crate::api::Stream::default().max_event_bytes;
        let bytes = self.parsed("STREAM_MAX_EVENT_BYTES", RULE, default);
        if !(1_024..=64 << 20).contains(&bytes) {
            self.problem("STREAM_MAX_EVENT_BYTES", format!("must be {RULE}"));
        }
        bytes
    }

    fn check_names(&mut self, stream: &str, queue_group: &str) {
        for (name, text) in [("STREAM_NAME", stream), ("QUEUE_GROUP", queue_group)] {
            if !is_name(text) {
                self.problem(
                    name,
                    "must be made of letters, digits, _ and single - between them, since the names \
                     of streams, buckets and consumers are made of it",
                );
            }
        }
    }

    fn core(&mut self) -> CoreSettings {
        CoreSettings { replicas: self.parsed("CORE_REPLICAS", "a number from 1", NonZeroU32::MIN) }
    }

    fn delivery(&mut self, queue_group: &str) -> Delivery {
        let settings = self.durable();
        match self.text("DELIVERY_MODE").as_deref() {
            Some("Core") => Delivery::Core(self.core()),
            Some("Durable") | None => {
                self.check_names(&settings.stream, queue_group);
                if settings.max_age <= settings.settle_after {
                    self.problem(
                        "STREAM_MAX_AGE",
                        "must be longer than SETTLE_AFTER: deletes are remembered for about as long, and have to \
                         outlive the requests that could undo them",
                    );
                }
                Delivery::Durable(settings)
            }
            Some(_) => {
                self.problem("DELIVERY_MODE", "must be Durable or Core");
                Delivery::Durable(settings)
            }
        }
    }

    fn host(&mut self) -> Option<IpAddr> {
        let text = self.text("HOST")?;
        let host = text.parse().ok();
        if host.is_none() {
            self.problem("HOST", "must be an IP address such as 0.0.0.0 or ::");
        }
        host
    }

    fn tuning(&mut self, delivery: &Delivery) -> Tuning {
        let mut default = Tuning::default();
        // Who sets SETTLE_AFTER alone gets a time-out that suits it.
        default.request_timeout = default.request_timeout.min(delivery.longest_request());
        let delays = self
            .text("RETRY_DELAYS")
            .map(|text| text.split(',').map(|part| duration(part.trim())).collect::<Option<Vec<_>>>());
        let delays = match delays {
            None => default.retry.delays,
            Some(Some(delays)) if !delays.is_empty() => delays,
            Some(_) => {
                self.problem("RETRY_DELAYS", "must be durations such as 1s,3s,10s, each at most 87600h");
                default.retry.delays
            }
        };
        let max_attempts = self.parsed("RETRY_MAX_ATTEMPTS", "a number from 1", default.retry.max_attempts);
        Tuning {
            retry: RetryPolicy { max_attempts, delays },
            request_budget: self.request_budget(default.request_budget),
            request_timeout: self.duration("REQUEST_TIMEOUT", default.request_timeout),
            min_write_interval: self.duration("MIN_WRITE_INTERVAL", default.min_write_interval),
            max_keys: self
                .parsed("BATCH_MAX_KEYS", "a number from 1 to 10000", default.max_keys)
                .min(MAX_KEYS_PER_WRITE),
        }
    }

    fn request_budget(&mut self, default: RequestBudget) -> RequestBudget {
        let Some(text) = self.text("REQUEST_BUDGET") else { return default };
        let parsed = text.split_once('/').and_then(|(requests, period)| {
            let period = duration(period.trim()).filter(|period| !period.is_zero())?;
            Some(RequestBudget { requests: requests.trim().parse().ok()?, period })
        });
        parsed.unwrap_or_else(|| {
            self.problem("REQUEST_BUDGET", "must be requests in a time, such as 1100/5m");
            default
        })
    }

    fn subject(&mut self, name: &str, default: &str) -> String {
        let text = self.text(name).unwrap_or_else(|| default.to_owned());
        let is_token = |token: &str| {
            !token.is_empty() && token.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        if !text.split('.').all(is_token) {
            self.problem(name, "must be made of letters, digits, - and _, with single dots between");
        }
        text
    }

    fn kv(&mut self) -> Option<KvSettings> {
        let base = self.text("CF_API_BASE_URL").unwrap_or_else(|| CLOUDFLARE_API.to_owned());
        let base = match Url::parse(&base) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => Some(url),
            _ => {
                self.problem("CF_API_BASE_URL", format!("must be an address such as {CLOUDFLARE_API}"));
                None
            }
        };
        let is_cloudflare = base
            .as_ref()
            .and_then(Url::host_str)
            .is_some_and(|host| host == "cloudflare.com" || host.ends_with(".cloudflare.com"));
        if is_cloudflare && base.as_ref().is_some_and(|url| url.scheme() == "http") {
            self.problem(
                "CF_API_BASE_URL",
                "must begin with https://: over http:// the token would be sent unencrypted",
            );
        }
        let account = self.text("CF_ACCOUNT_ID");
        if is_cloudflare && account.is_none() {
            self.required("CF_ACCOUNT_ID", "your Cloudflare account's id");
        }
        let namespace = self.required("CF_NAMESPACE_ID", "the KV namespace's id");
        let token = self.required("CF_API_TOKEN", "a token with Workers KV Storage: Edit");

        let mut url = base?;
        {
            let mut path = url.path_segments_mut().ok()?;
            path.pop_if_empty();
            if let Some(account) = &account {
                path.extend(["accounts", account]);
            }
            path.extend(["storage", "kv", "namespaces", &namespace]);
        }
        Some(KvSettings { namespace_url: url, token: token.into() })
    }
}

/// A duration that can be counted.
fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST_DURATION)
}

/// The same for an argument of a command.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    duration(text).ok_or("must be a duration such as 25s or 1m, at most 87600h")
}

/// Whether a stream, bucket or consumer may be called so, and two such names joined by `--` can be told apart.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=64).contains(&text.len())
        && text.chars().all(allowed)
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("NATS_URL", "nats://127.0.0.1:4222"),
        ("CF_ACCOUNT_ID", "acc"),
        ("CF_NAMESPACE_ID", "ns"),
        ("CF_API_TOKEN", "secret-token\n"),
    ];

    fn read(changes: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let lookup = |name: &str| {
            let mut all = changes.iter().chain(&GOOD);
            all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        Settings::read(&mut Environment::new(&lookup))
    }

    #[test]
    fn four_variables_are_enough() {
        let settings = read(&[]).unwrap();
        assert_eq!(
            settings.kv.namespace_url.as_str(),
            "https://api.cloudflare.com/client/v4/accounts/acc/storage/kv/namespaces/ns"
        );
        assert_eq!(settings.nats.subject_prefix, "tasks");
        assert_eq!(settings.nats.queue_group, "tasks-processor");
        assert_eq!(settings.http.1, 3001);
        let Delivery::Durable(durable) = &settings.delivery else { panic!("{:?}", settings.delivery) };
        assert_eq!((durable.stream.as_str(), durable.replicas), ("TASKS", 1));
        assert_eq!(settings.log_format, LogFormat::Json);
    }

    #[test]
    fn a_local_base_url_needs_no_account() {
        let base = "http://127.0.0.1:8787/cdn-cgi/local/explorer/api/";
        let settings = read(&[("CF_API_BASE_URL", base), ("CF_ACCOUNT_ID", "")]).unwrap();
        assert_eq!(settings.kv.namespace_url.as_str(), format!("{base}storage/kv/namespaces/ns"));
        assert!(read(&[("CF_ACCOUNT_ID", "")]).is_err(), "Cloudflare's needs one");
    }

    #[test]
    fn the_token_is_never_sent_to_cloudflare_unencrypted_and_elsewhere_only_with_a_warning() {
        let error = read(&[("CF_API_BASE_URL", "http://api.cloudflare.com/client/v4")]).unwrap_err();
        assert!(
            error.0.iter().any(|line| line.contains("https://") && line.contains("unencrypted")),
            "{error:?}"
        );
        let warned = |base: &str| read(&[("CF_API_BASE_URL", base)]).unwrap().kv.unencrypted().is_some();
        assert!(
            warned("http://kv.example/v4") && warned("http://10.0.0.1") && warned("http://[2001:db8::1]:80")
        );
        for base in ["http://127.0.0.1:8787", "http://localhost", "http://[::1]:1", "https://kv.example"] {
            assert!(!warned(base), "{base}");
        }
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_refused() {
        for name in ["a--b", "-a", "a-", "a.b", "a b"] {
            assert!(read(&[("STREAM_NAME", name)]).is_err(), "{name}");
            assert!(read(&[("QUEUE_GROUP", name)]).is_err(), "{name}");
        }
        assert!(read(&[("QUEUE_GROUP", "a.b"), ("DELIVERY_MODE", "Core")]).is_ok());
    }

    #[test]
    fn tuning_is_read() {
        let tuning = read(&[
            ("RETRY_DELAYS", "100ms, 2s"),
            ("RETRY_MAX_ATTEMPTS", "7"),
            ("REQUEST_BUDGET", "500/1m"),
            ("BATCH_MAX_KEYS", "20000"),
        ])
        .unwrap()
        .tuning;
        assert_eq!(tuning.retry.delays, [Duration::from_millis(100), Duration::from_secs(2)]);
        assert_eq!(tuning.retry.max_attempts.get(), 7);
        assert_eq!(tuning.request_budget.requests.get(), 500);
        assert_eq!(tuning.request_budget.period, Duration::from_secs(60));
        assert_eq!(tuning.max_keys, MAX_KEYS_PER_WRITE, "Cloudflare takes no more");
    }

    #[test]
    fn every_variable_at_fault_is_named() {
        let error = read(&[
            ("DELIVERY_MODE", "Maybe"),
            ("STREAM_MAX_AGE", "long"),
            ("STREAM_MAX_EVENT_BYTES", "1000"),
            ("LEDGER_MAX_BYTES", "2GB"),
            ("REQUEST_BUDGET", "1100"),
            ("RETRY_DELAYS", "1s,soon"),
            ("NATS_URL", "http://x y"),
            ("CF_NAMESPACE_ID", " "),
            ("CF_API_BASE_URL", "ftp://x"),
            ("SUBJECT_PREFIX", "tasks.>"),
            ("PORT", "70000"),
            ("LOG_FORMAT", "xml"),
            ("SHUTDOWN_GRACE", "soon"),
            ("NATS_USER", "me"),
        ])
        .unwrap_err();
        let named: Vec<_> = error.0.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(
            named,
            [
                "NATS_URL",
                "NATS_USER",
                "SUBJECT_PREFIX",
                "STREAM_MAX_AGE",
                "STREAM_MAX_EVENT_BYTES",
                "LEDGER_MAX_BYTES",
                "DELIVERY_MODE",
                "CF_API_BASE_URL",
                "CF_NAMESPACE_ID",
                "RETRY_DELAYS",
                "REQUEST_BUDGET",
                "PORT",
                "LOG_FORMAT",
                "SHUTDOWN_GRACE"
            ]
        );
    }

    #[test]
    fn a_request_may_take_a_third_of_the_settle_time_and_no_more() {
        let fault = |changes: &[(&str, &str)]| read(changes).err().map(|error| error.0.join("\n"));
        let why = fault(&[("REQUEST_TIMEOUT", "11s")]).unwrap();
        assert!(
            why.starts_with("REQUEST_TIMEOUT: ") && why.contains("SETTLE_AFTER") && why.contains("30s"),
            "{why}"
        );
        assert_eq!(fault(&[("REQUEST_TIMEOUT", "10s")]), None);
        assert_eq!(fault(&[("REQUEST_TIMEOUT", "20s"), ("SETTLE_AFTER", "1m")]), None);
        assert_eq!(fault(&[("REQUEST_TIMEOUT", "11s"), ("DELIVERY_MODE", "Core")]), None);
        let settings = read(&[("SETTLE_AFTER", "6s")]).unwrap();
        assert_eq!(settings.tuning.request_timeout, Duration::from_secs(2), "the default goes with it");
    }

    #[test]
    fn durations_that_cannot_be_counted_are_refused() {
        for name in [
            "SHUTDOWN_GRACE",
            "STREAM_MAX_AGE",
            "ACK_WAIT",
            "SETTLE_AFTER",
            "REQUEST_TIMEOUT",
            "MIN_WRITE_INTERVAL",
        ] {
            for long in ["1000years", "18446744073709551615s", "99999999999999999999s", "87601h"] {
                let error = read(&[(name, long)]).unwrap_err();
                assert!(error.0.iter().any(|line| line.starts_with(name)), "{name}={long}: {error}");
            }
        }
        assert!(read(&[("RETRY_DELAYS", "1s,1000years")]).is_err());
        assert!(read(&[("REQUEST_BUDGET", "1100/1000years")]).is_err());
        assert!(read(&[("MIN_WRITE_INTERVAL", "87600h")]).is_ok());
    }

    #[test]
    fn debug_shows_no_secret() {
        let settings = read(&[
            ("NATS_URL", "nats://me:hidden-1@127.0.0.1:4222"),
            ("NATS_USER", "me"),
            ("NATS_PASSWORD", "hidden-2"),
        ])
        .unwrap();
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hidden") && !shown.contains("secret-token"), "{shown}");
    }
}
