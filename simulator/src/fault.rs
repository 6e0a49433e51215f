//! What can be made to go wrong, as data: a [`Rule`] says which requests a [`Fault`] befalls, and how often.
//! Pure, and in JSON the same as in Rust (see [`Rule`]); it may not know how a request is carried out.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::operation::{Operation, Scope};

/// What befalls a request. Where nothing else is said, the request has no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// This status. Without code and message `errors` is empty, as behind an outage.
    Status {
        /// 200 to 599; anything else is answered as 500.
        #[serde(deserialize_with = "status")]
        status: u16,
        /// Cloudflare's error code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i64>,
        /// The error's message.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// 429 with this Retry-After, rounded up to seconds. The requests that follow are let in again as soon as
    /// the rule is over, so that a test sees who does not wait.
    Throttled {
        /// What Retry-After says.
        #[serde(rename = "retry_after_ms", with = "millis")]
        retry_after: Duration,
    },
    /// No answer ever; the connection stays open.
    Hang,
    /// The usual effect and answer, so much later.
    Slow {
        /// On top of the configured latency.
        #[serde(rename = "extra_ms", with = "millis")]
        extra: Duration,
    },
    /// The usual effect, but the answer is lost: the connection is closed without one.
    LostAnswer {
        /// Answered instead of closing the connection.
        #[serde(default, deserialize_with = "maybe_status", skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Only for writes: no answer ever, and the effect comes later, over whatever was written meanwhile.
    Late {
        /// From the moment at which the answer would have come.
        #[serde(rename = "after_ms", with = "millis")]
        after: Duration,
        /// Answered at once instead of never, such as 524.
        #[serde(default, deserialize_with = "maybe_status", skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Only for bulk put and bulk delete: a 200, but some keys are left out: those that the rule's `keys`
    /// match, or any.
    Partial {
        /// So many of them, the first ones; none: all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_most: Option<usize>,
        /// What the answer says of it.
        #[serde(default)]
        report: Report,
    },
    /// Only for reads: they answer with what was there so long ago, as Cloudflare's caches do ("up to 60
    /// seconds or more"). What was seeded has always been there.
    Stale {
        /// How long ago.
        #[serde(rename = "age_ms", with = "millis")]
        age: Duration,
    },
    /// 401 with code 10000, in place of the check of the token; does not count for the rate limit.
    RevokedToken,
    /// 400 with codes 6003 and 6111, as for a token that was cut off or quoted, in place of the check of the token; does
    /// not count for the rate limit.
    MalformedToken,
    /// 400 with code 7003, in place of the check of the account.
    UnknownAccount,
    /// 404 with code 10013, in place of the check of the namespace.
    MissingNamespace,
    /// 302.
    Redirect {
        /// Where to; left out of the answer where no header can carry it.
        location: String,
    },
    /// 200 with a page of HTML, as a proxy or a captive portal answers.
    Html,
    /// A page of HTML with this status, as something in front of Cloudflare answers.
    Page {
        /// 200 to 599; anything else is answered as 500.
        #[serde(deserialize_with = "status")]
        status: u16,
    },
    /// An error whose message quotes the request's Authorization header.
    EchoAuthorization {
        /// 200 to 599; anything else is answered as 500.
        #[serde(deserialize_with = "status")]
        status: u16,
    },
    /// 200 with bytes that are neither JSON nor UTF-8.
    Garbage,
    /// The usual effect, and the first half of the usual body.
    Truncated,
    /// Only for bulk put and bulk delete: the usual effect, and null wherever the answer holds an empty list.
    Nulls,
}

/// What the answer to a partial failure says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The truth: the keys left out are named, and the others counted.
    #[default]
    Right,
    /// The others are counted, but nothing is named: the counts do not add up.
    Unnamed,
    /// The keys left out are named, and yet all are counted: the counts do not add up.
    Overcounted,
}

/// The place, in the order of a request's checks, at which a fault applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Token,
    RateLimit,
    Account,
    Namespace,
    Contents,
}

impl Fault {
    /// This status, without an error code.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status { status, code: None, message: None }
    }

    /// Its name in JSON, and in [`Seen::faults`](crate::Seen::faults) unless the rule has another.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Throttled { .. } => "throttled",
            Self::Hang => "hang",
            Self::Slow { .. } => "slow",
            Self::LostAnswer { .. } => "lost_answer",
            Self::Late { .. } => "late",
            Self::Partial { .. } => "partial",
            Self::Stale { .. } => "stale",
            Self::RevokedToken => "revoked_token",
            Self::MalformedToken => "malformed_token",
            Self::UnknownAccount => "unknown_account",
            Self::MissingNamespace => "missing_namespace",
            Self::Redirect { .. } => "redirect",
            Self::Html => "html",
            Self::Page { .. } => "page",
            Self::EchoAuthorization { .. } => "echo_authorization",
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::Nulls => "nulls",
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::RevokedToken | Self::MalformedToken => Place::Token,
            Self::Throttled { .. } => Place::RateLimit,
            Self::UnknownAccount => Place::Account,
            Self::MissingNamespace => Place::Namespace,
            _ => Place::Contents,
        }
    }

    fn can_befall(&self, operation: Operation) -> bool {
        match self {
            Self::Partial { .. } | Self::Nulls => operation.is_bulk_write(),
            Self::Stale { .. } => operation.is_read(),
            Self::Late { .. } => operation.is_write(),
            _ => true,
        }
    }
}

/// Which keys a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyMatch {
    /// This key.
    Is(String),
    /// Keys that begin so.
    StartsWith(String),
    /// Keys that end so.
    EndsWith(String),
    /// Keys with this in them.
    Contains(String),
}

impl KeyMatch {
    fn matches(&self, key: &str) -> bool {
        match self {
            Self::Is(whole) => key == whole,
            Self::StartsWith(part) => key.starts_with(part.as_str()),
            Self::EndsWith(part) => key.ends_with(part.as_str()),
            Self::Contains(part) => key.contains(part.as_str()),
        }
    }
}

/// Which requests a fault befalls. For all of them and for ever, unless more is said.
///
/// In JSON only `fault` must be there; unknown fields are refused:
///
/// ```json
/// {"name": "outage", "on": "writes", "times": 3, "lasting_ms": 5000, "keys": {"ends_with": "7"},
///  "value_containing": "marker", "fault": {"status": {"status": 503}}}
/// ```
///
/// `on` is `all`, `writes`, `reads` or `{"only": ["bulk_put", "get"]}`; a fault without settings is only its
/// name, such as `"fault": "hang"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default)]
    on: Scope,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<u64>,
    #[serde(default, rename = "lasting_ms", with = "maybe_millis", skip_serializing_if = "Option::is_none")]
    pub(crate) lasting: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys: Option<KeyMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_containing: Option<String>,
    fault: Fault,
}

impl Rule {
    /// This fault for every request that it can befall, for ever.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self {
            name: None,
            on: Scope::All,
            times: None,
            lasting: None,
            keys: None,
            value_containing: None,
            fault,
        }
    }

    /// A value that KV does not take: a write that holds the marker is refused whole with this status (400,
    /// 413). It is counted as `poison`.
    #[must_use]
    pub fn poison(marker: &str, status: u16) -> Self {
        Self::new(Fault::status(status)).on(Scope::Writes).value_containing(marker).named("poison")
    }

    /// Counted, and mended, under this name instead of the fault's.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Only these operations.
    #[must_use]
    pub fn on(self, scope: impl Into<Scope>) -> Self {
        Self { on: scope.into(), ..self }
    }

    /// Only so many requests; the rule is over then.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only for so long from when it is set; the rule is over then.
    #[must_use]
    pub fn lasting(self, lasting: Duration) -> Self {
        Self { lasting: Some(lasting), ..self }
    }

    /// Only requests with such a key among theirs. A list has no keys.
    #[must_use]
    pub fn keys(self, keys: KeyMatch) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// Only writes with such a value among theirs.
    #[must_use]
    pub fn value_containing(self, marker: &str) -> Self {
        Self { value_containing: Some(marker.to_owned()), ..self }
    }

    /// What it is counted and mended under.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.fault.name())
    }

    /// What befalls the requests.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// A rule that asks for keys or values must wait until they are known, whatever its fault.
    pub(crate) fn place(&self) -> Place {
        if self.keys.is_some() || self.value_containing.is_some() {
            Place::Contents
        } else {
            self.fault.place()
        }
    }

    pub(crate) fn is_about(&self, operation: Operation) -> bool {
        self.on.covers(operation) && self.fault.can_befall(operation)
    }

    pub(crate) fn matches_key(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.matches(key))
    }

    pub(crate) fn matches_contents<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a str>,
        mut values: impl Iterator<Item = &'a [u8]>,
    ) -> bool {
        (self.keys.is_none() || keys.any(|key| self.matches_key(key)))
            && self.value_containing.as_deref().is_none_or(|marker| {
                values.any(|value| marker.is_empty() || contains(value, marker.as_bytes()))
            })
    }
}

fn contains(value: &[u8], marker: &[u8]) -> bool {
    value.windows(marker.len()).any(|part| part == marker)
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let status = u16::deserialize(deserializer)?;
    if (200..600).contains(&status) {
        Ok(status)
    } else {
        Err(serde::de::Error::custom(format!("{status} is no status of an answer: 200 to 599")))
    }
}

fn maybe_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    struct Checked(#[serde(deserialize_with = "status")] u16);
    Ok(Option::<Checked>::deserialize(deserializer)?.map(|checked| checked.0))
}

mod millis {
    use super::{Deserialize, Deserializer, Duration};

    pub(super) fn serialize<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

mod maybe_millis {
    use super::{Deserialize, Deserializer, Duration, millis};

    pub(super) fn serialize<S: serde::Serializer>(
        duration: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => millis::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_is_the_same_in_json_and_in_rust() {
        let rule = Rule::new(Fault::Partial { at_most: Some(7), report: Report::Unnamed })
            .named("seven")
            .on(Operation::BulkPut)
            .times(3)
            .lasting(Duration::from_secs(5))
            .keys(KeyMatch::EndsWith("7".to_owned()))
            .value_containing("x");
        let json = json!({
            "name": "seven", "on": {"only": ["bulk_put"]}, "times": 3, "lasting_ms": 5_000,
            "keys": {"ends_with": "7"}, "value_containing": "x",
            "fault": {"partial": {"at_most": 7, "report": "unnamed"}},
        });
        assert_eq!(serde_json::to_value(&rule).unwrap(), json);
        assert_eq!(serde_json::from_value::<Rule>(json).unwrap(), rule);
        let least = json!({"fault": "hang"});
        assert_eq!(serde_json::from_value::<Rule>(least).unwrap(), Rule::new(Fault::Hang));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for json in [
            json!({}),
            json!({"fault": "unheard_of"}),
            json!({"fault": "hang", "time": 3}),
            json!({"fault": {"status": {"status": 42}}}),
            json!({"fault": {"status": {"status": 503, "sode": 1}}}),
            json!({"fault": {"late": {"after_ms": 1, "status": 100}}}),
        ] {
            assert!(serde_json::from_value::<Rule>(json.clone()).is_err(), "{json}");
        }
        let late = json!({"fault": {"late": {"after_ms": 1, "status": 524}}});
        let expected = Fault::Late { after: Duration::from_millis(1), status: Some(524) };
        assert_eq!(serde_json::from_value::<Rule>(late).unwrap(), Rule::new(expected));
    }

    #[test]
    fn every_fault_is_named_as_in_json() {
        let (after, at_most) = (Duration::ZERO, None);
        for fault in [
            Fault::status(500),
            Fault::Throttled { retry_after: after },
            Fault::Hang,
            Fault::Slow { extra: after },
            Fault::LostAnswer { status: None },
            Fault::Late { after, status: None },
            Fault::Partial { at_most, report: Report::Right },
            Fault::Stale { age: after },
            Fault::RevokedToken,
            Fault::MalformedToken,
            Fault::UnknownAccount,
            Fault::MissingNamespace,
            Fault::Redirect { location: "/".to_owned() },
            Fault::Html,
            Fault::Page { status: 400 },
            Fault::EchoAuthorization { status: 500 },
            Fault::Garbage,
            Fault::Truncated,
            Fault::Nulls,
        ] {
            let json = serde_json::to_value(&fault).unwrap();
            let name = json.as_str().or_else(|| json.as_object()?.keys().next().map(String::as_str));
            assert_eq!(name, Some(fault.name()));
            assert_eq!(serde_json::from_value::<Fault>(json).unwrap(), fault);
        }
    }

    #[test]
    fn a_rule_on_contents_waits_for_them() {
        let rule = Rule::new(Fault::RevokedToken);
        assert_eq!(rule.place(), Place::Token);
        assert_eq!(rule.keys(KeyMatch::Is("a".to_owned())).place(), Place::Contents);
    }

    #[test]
    fn keys_and_values_must_both_match() {
        let rule = Rule::poison("bad", 400).keys(KeyMatch::StartsWith("tasks:".to_owned()));
        let matches = |key: &'static str, value: &'static str| {
            rule.matches_contents([key].into_iter(), [value.as_bytes()].into_iter())
        };
        assert!(matches("tasks:1", "a bad one"));
        assert!(!matches("other:1", "a bad one"));
        assert!(!matches("tasks:1", "a good one"));
        assert!(!matches("tasks:1", ""));
    }
}
