//! Faults as data: a [`Rule`] selects the requests that a [`Fault`] affects, and how often. Pure.
//!
//! Rules have the same fields in JSON and in Rust: see [`Rule`].

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::operation::{Operation, Scope};

/// A fault of a request. The request has no effect, unless the variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Answers this status. Without code and message, `errors` is empty, as in an outage.
    Status {
        /// The status, 200 to 599; 500 instead of any other number.
        #[serde(deserialize_with = "status")]
        status: u16,
        /// Cloudflare's error code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i64>,
        /// The error's message.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// Answers 429 with this `Retry-After`, rounded up to seconds.
    ///
    /// The simulator admits requests as soon as the rule has ended. So a test sees clients that do not wait.
    Throttled {
        /// The time in `Retry-After`.
        #[serde(rename = "retry_after_ms", with = "millis")]
        retry_after: Duration,
    },
    /// Never answers; the connection remains open.
    Hang,
    /// Delays the effect and the answer by this time.
    Slow {
        /// The delay, in addition to the configured latency.
        #[serde(rename = "extra_ms", with = "millis")]
        extra: Duration,
    },
    /// Keeps the effect, but closes the connection without an answer.
    LostAnswer {
        /// A status to answer instead of closing the connection.
        #[serde(default, deserialize_with = "maybe_status", skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Only for writes: never answers, and applies the effect later, over newer writes.
    Late {
        /// The delay of the effect, from the time at which the answer is due.
        #[serde(rename = "after_ms", with = "millis")]
        after: Duration,
        /// A status to answer when the answer is due, such as 524.
        #[serde(default, deserialize_with = "maybe_status", skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Only for bulk put and bulk delete: answers 200, but omits the keys that the rule's `keys` match, or any
    /// keys.
    Partial {
        /// The most keys to omit, from the first one on; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_most: Option<usize>,
        /// The report of the omitted keys in the answer.
        #[serde(default)]
        report: Report,
    },
    /// Only for reads: answers from the state at this age, as Cloudflare's caches do ("up to 60 seconds or more").
    ///
    /// Seeded values exist at every age.
    Stale {
        /// The age of the state.
        #[serde(rename = "age_ms", with = "millis")]
        age: Duration,
    },
    /// Answers 401 with code 10000 at the check of the token. Does not count for the rate limit.
    RevokedToken,
    /// Answers 400 with codes 6003 and 6111 at the check of the token, as for a truncated or quoted token. Does not
    /// count for the rate limit.
    MalformedToken,
    /// Answers 400 with code 7003 at the check of the account.
    UnknownAccount,
    /// Answers 404 with code 10013 at the check of the namespace.
    MissingNamespace,
    /// Answers 302.
    Redirect {
        /// The `Location`; omitted if it does not fit a header.
        location: String,
    },
    /// Answers 200 with a page of HTML, as a proxy or a captive portal does.
    Html,
    /// Answers this status with a page of HTML, as a server in front of Cloudflare does.
    Page {
        /// The status, 200 to 599; 500 instead of any other number.
        #[serde(deserialize_with = "status")]
        status: u16,
    },
    /// Answers an error whose message quotes the request's `Authorization` header.
    EchoAuthorization {
        /// The status, 200 to 599; 500 instead of any other number.
        #[serde(deserialize_with = "status")]
        status: u16,
    },
    /// Answers 200 with bytes that are neither JSON nor UTF-8.
    Garbage,
    /// Keeps the effect, and sends only the first half of the body.
    Truncated,
    /// Only for bulk put and bulk delete: keeps the effect, and answers null in the place of every empty list.
    Nulls,
}

/// The report in the answer to a partial failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Correct: names the omitted keys, and counts the others.
    #[default]
    Right,
    /// Counts the others, but names no key: the counts do not add up.
    Unnamed,
    /// Names the omitted keys, but counts all keys: the counts do not add up.
    Overcounted,
}

/// The check of a request at which a fault applies, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Token,
    RateLimit,
    Account,
    Namespace,
    Contents,
}

impl Fault {
    /// A fault that answers this status without an error code.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self::Status { status, code: None, message: None }
    }

    /// The name in JSON, and in [`Seen::faults`](crate::Seen::faults) unless the rule has a name.
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

    fn can_affect(&self, operation: Operation) -> bool {
        match self {
            Self::Partial { .. } | Self::Nulls => operation.is_bulk_write(),
            Self::Stale { .. } => operation.is_read(),
            Self::Late { .. } => operation.is_write(),
            _ => true,
        }
    }
}

/// The keys that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyMatch {
    /// This key.
    Is(String),
    /// Keys with this prefix.
    StartsWith(String),
    /// Keys with this suffix.
    EndsWith(String),
    /// Keys that contain this text.
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

/// A fault, and the requests that it affects. By default it affects all requests, indefinitely.
///
/// In JSON, only `fault` is required. Unknown fields are errors:
///
/// ```json
/// {"name": "outage", "on": "writes", "times": 3, "lasting_ms": 5000, "keys": {"ends_with": "7"},
///  "value_containing": "marker", "fault": {"status": {"status": 503}}}
/// ```
///
/// `on` is `all`, `writes`, `reads` or `{"only": ["bulk_put", "get"]}`; a fault without settings is
/// only its name, such as `"fault": "hang"`.
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
    /// A rule with this fault for every request that it can affect, indefinitely.
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

    /// A rule that refuses every write whose values contain the marker, with this status, such as 400 or 413.
    ///
    /// The rule's name is `poison`.
    #[must_use]
    pub fn poison(marker: &str, status: u16) -> Self {
        Self::new(Fault::status(status)).on(Scope::Writes).value_containing(marker).named("poison")
    }

    /// Sets the name under which the rule is counted and removed, instead of the fault's name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Limits the rule to these operations.
    #[must_use]
    pub fn on(self, scope: impl Into<Scope>) -> Self {
        Self { on: scope.into(), ..self }
    }

    /// Ends the rule after this many requests.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Ends the rule this long after it is set.
    #[must_use]
    pub fn lasting(self, lasting: Duration) -> Self {
        Self { lasting: Some(lasting), ..self }
    }

    /// Limits the rule to requests with a matching key. A list has no keys.
    #[must_use]
    pub fn keys(self, keys: KeyMatch) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// Limits the rule to writes with a value that contains the marker.
    #[must_use]
    pub fn value_containing(self, marker: &str) -> Self {
        Self { value_containing: Some(marker.to_owned()), ..self }
    }

    /// The name under which the rule is counted and removed.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.fault.name())
    }

    /// The fault of the rule.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The check at which the rule applies. A rule on keys or values applies when they are known.
    pub(crate) fn place(&self) -> Place {
        if self.keys.is_some() || self.value_containing.is_some() {
            Place::Contents
        } else {
            self.fault.place()
        }
    }

    pub(crate) fn is_about(&self, operation: Operation) -> bool {
        self.on.covers(operation) && self.fault.can_affect(operation)
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
        Err(serde::de::Error::custom(format!("invalid status {status}: expected 200 to 599")))
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
    fn an_invalid_rule_is_refused() {
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
    fn every_fault_has_the_same_name_as_in_json() {
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
    fn a_rule_on_contents_applies_when_they_are_known() {
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
