//! Classifies the answers of the API. Pure: takes a status, headers and a body.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The wait after a 429 without a `Retry-After`.
///
/// It is short compared with Cloudflare's block of five minutes, because an early retry costs only one request.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The longest wait after a 429, even if the answer names a longer one.
///
/// Cloudflare blocks for five minutes. A wait of more than three times that is a mistake, and must not stop the
/// pipeline.
pub const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// The reason why a request failed, by the action that it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A retry may succeed: a connection error, 425, 5xx, or an answer that cannot be read.
    #[error("{0}")]
    Transient(String),
    /// A retry may succeed, and a smaller request may help: a timeout, 408, 504, 524.
    #[error("{0}")]
    TooSlow(String),
    /// 429: no request may be sent for this time.
    #[error("too many requests: retry after {} s", .0.as_secs())]
    Throttled(Duration),
    /// No request can succeed until someone corrects the token, the namespace or the plan.
    #[error("{0}")]
    Config(String),
    /// The plan's daily quota is used up: no write can succeed until 00:00 UTC, or until someone upgrades the plan.
    #[error("{0}")]
    DailyQuota(String),
    /// KV refuses this request: 400.
    #[error("{0}")]
    Refused(String),
    /// The request is too large for KV: 413, or code 10012.
    #[error("{0}")]
    TooLarge(String),
}

/// The envelope of every answer of the API. All fields but `success` may be missing or null.
#[derive(Deserialize)]
struct Envelope<T> {
    success: bool,
    #[serde(default, deserialize_with = "errors")]
    errors: Vec<ApiError>,
    #[serde(default = "none")]
    result: Option<T>,
    #[serde(default)]
    result_info: Option<PageInfo>,
}

#[derive(Deserialize)]
struct PageInfo {
    #[serde(default)]
    cursor: Option<String>,
}

fn none<T>() -> Option<T> {
    None
}

struct ApiError {
    code: i64,
    message: String,
}

/// Deserializes errors of any shape, so that an error without a code does not hide the whole answer.
fn errors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ApiError>, D::Error> {
    let errors = match Value::deserialize(deserializer)? {
        Value::Array(errors) => errors,
        _ => Vec::new(),
    };
    let read = |error: &Value| ApiError {
        code: match &error["code"] {
            Value::String(code) => code.trim().parse().unwrap_or_default(),
            code => code.as_i64().unwrap_or_default(),
        },
        message: error["message"].as_str().unwrap_or_default().to_owned(),
    };
    // The cause of a general error ("Invalid request headers") may be in its chain.
    let chained = errors.iter().filter_map(|error| error["error_chain"].as_array()).flatten();
    Ok(errors.iter().chain(chained).map(read).collect())
}

#[derive(Deserialize)]
struct BulkResult {
    #[serde(default)]
    successful_key_count: Option<usize>,
    /// Null means the same as an empty list.
    #[serde(default)]
    unsuccessful_keys: Option<HashSet<String>>,
}

#[derive(Deserialize)]
struct BulkValues {
    #[serde(default)]
    values: Option<HashMap<String, Option<String>>>,
}

/// One page of a namespace's keys.
#[derive(Debug)]
pub struct KeyPage {
    /// The keys, in their order. An empty page is not always the last one.
    pub keys: Vec<ListedKey>,
    /// The start of the next page; `None` after the last page.
    pub cursor: Option<String>,
}

/// A key in the answer to a list.
#[derive(Debug, Deserialize)]
pub struct ListedKey {
    /// The key.
    pub name: String,
    /// The key's metadata.
    #[serde(default)]
    pub metadata: Option<Value>,
}

/// A value, with its metadata if the server sends it. Some v4-shaped servers do not.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// The value and the metadata, which is `None` if the key has none.
    Whole {
        /// The value.
        value: String,
        /// The metadata.
        metadata: Option<Value>,
    },
    /// The value without its metadata.
    Value(String),
}

#[derive(Deserialize)]
struct BulkEntries {
    #[serde(default)]
    values: Option<HashMap<String, Option<Entry>>>,
}

/// Parses a page of keys.
pub(super) fn page(body: &[u8]) -> Result<KeyPage, Failure> {
    let envelope = envelope::<Vec<ListedKey>>(body)?;
    let keys =
        envelope.result.ok_or_else(|| Failure::Transient("KV answered a list without keys".to_owned()))?;
    let cursor = envelope.result_info.and_then(|info| info.cursor).filter(|cursor| !cursor.is_empty());
    Ok(KeyPage { keys, cursor })
}

/// Parses the answer to a bulk read with metadata: the entry of each key, or `None`.
pub(super) fn entries(body: &[u8]) -> Result<HashMap<String, Option<Entry>>, Failure> {
    envelope::<BulkEntries>(body)?
        .result
        .and_then(|result| result.values)
        .ok_or_else(|| Failure::Transient("KV answered a read without values".to_owned()))
}

/// Parses the answer to a bulk write of `sent` keys: the keys that were not written.
///
/// `success: true` alone is not enough. If the answer counts fewer keys than were sent and does not name the
/// others, the whole write failed.
pub(super) fn written(body: &[u8], sent: usize) -> Result<HashSet<String>, Failure> {
    // Some v4-shaped servers send null as the result. Then `success` is enough.
    let Some(result) = succeeded::<BulkResult>(body)? else { return Ok(HashSet::new()) };
    let failed = result.unsuccessful_keys.unwrap_or_default();
    match result.successful_key_count {
        Some(count) if count + failed.len() < sent => Err(Failure::Transient(format!(
            "KV wrote {count} of {sent} keys and names only {} of the others",
            failed.len()
        ))),
        _ => Ok(failed),
    }
}

/// Parses the answer to a bulk read: the value of each key, or `None`.
pub(super) fn values(body: &[u8]) -> Result<HashMap<String, Option<String>>, Failure> {
    succeeded::<BulkValues>(body)?
        .and_then(|result| result.values)
        .ok_or_else(|| Failure::Transient("KV answered a read without values".to_owned()))
}

fn succeeded<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<Option<T>, Failure> {
    envelope(body).map(|envelope| envelope.result)
}

fn envelope<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<Envelope<T>, Failure> {
    let envelope: Envelope<T> = serde_json::from_slice(body)
        .map_err(|error| Failure::Transient(format!("KV's answer cannot be read: {error}")))?;
    if envelope.success { Ok(envelope) } else { Err(by_code(200, Some(&envelope.errors))) }
}

/// Classifies an answer whose status is not 2xx.
pub(super) fn failure(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Failure {
    let envelope = serde_json::from_slice::<Envelope<serde::de::IgnoredAny>>(body).ok();
    let errors = envelope.as_ref().map(|envelope| envelope.errors.as_slice());
    match status {
        429 if !errors.is_some_and(is_daily_quota) => {
            Failure::Throttled(retry_after.unwrap_or(DEFAULT_RETRY_AFTER).min(LONGEST_WAIT))
        }
        _ => by_code(status, errors),
    }
}

/// Classifies a failure by the codes of its errors, and then by its status.
///
/// Cloudflare reports some codes with more than one status. `errors` is `None` if the body is not from
/// Cloudflare's API.
fn by_code(status: u16, errors: Option<&[ApiError]>) -> Failure {
    let (is_cloudflare, errors) = (errors.is_some(), errors.unwrap_or_default());
    let what = describe(status, errors);
    // In an outage the codes describe a fault inside Cloudflare, and not a fault of the request.
    if matches!(status, 408 | 504 | 524) {
        return Failure::TooSlow(what);
    }
    if matches!(status, 425 | 500..) {
        return Failure::Transient(what);
    }
    if is_daily_quota(errors) {
        let advice = "the plan's daily quota is used up: wait until 00:00 UTC, or upgrade the plan";
        return Failure::DailyQuota(format!("{advice} ({what})"));
    }
    if let Some(advice) = errors.iter().find_map(|error| advice(error.code)) {
        return Failure::Config(format!("{advice} ({what})"));
    }
    if status == 413 || errors.iter().any(|error| error.code == TOO_MANY_PAIRS) {
        return Failure::TooLarge(what);
    }
    let advice = match status {
        200 | 429 => return Failure::Transient(what),
        400 if is_cloudflare => return Failure::Refused(what),
        401 | 403 => TOKEN,
        300..400 => {
            "redirects are not followed, so that the token does not go elsewhere: check CF_API_BASE_URL"
        }
        404 | 405 => {
            "this is not a KV namespace's address: check CF_API_BASE_URL, CF_ACCOUNT_ID and CF_NAMESPACE_ID"
        }
        _ => {
            "something in front of Cloudflare answered (a proxy, a gateway, a block page): check CF_API_BASE_URL, \
             HTTPS_PROXY, and whether the account may be used"
        }
    };
    Failure::Config(format!("{advice} ({what})"))
}

const TOKEN: &str =
    "Cloudflare refuses the token: check CF_API_TOKEN; it needs Workers KV Storage: Edit on this account";

/// The code for a request with too many pairs or a too large body.
const TOO_MANY_PAIRS: i64 = 10_012;

/// The advice for each code of Cloudflare that means a wrong setting.
///
/// Such a code comes with 400, 401, 403, 404 or 405, and never means an invalid task.
fn advice(code: i64) -> Option<&'static str> {
    Some(match code {
        6_003 | 6_103 | 6_111 => {
            "Cloudflare cannot read the token, as if it is truncated or has quotes around it: check CF_API_TOKEN"
        }
        9_106 | 9_109 | 10_000 => TOKEN,
        7_000 | 10_405 => {
            "Cloudflare's API has no such address: check CF_API_BASE_URL, CF_ACCOUNT_ID and CF_NAMESPACE_ID"
        }
        7_003 => {
            "Cloudflare does not know such an account or namespace: check CF_ACCOUNT_ID and CF_NAMESPACE_ID"
        }
        10_011 => "Cloudflare cannot read the namespace's id: check CF_NAMESPACE_ID and CF_ACCOUNT_ID",
        10_013 => "the namespace does not exist: check CF_NAMESPACE_ID and CF_ACCOUNT_ID",
        _ => return None,
    })
}

/// Whether the daily quota is used up: `KV put() limit exceeded for the day.` has no documented code.
fn is_daily_quota(errors: &[ApiError]) -> bool {
    errors.iter().any(|error| {
        let message = error.message.to_ascii_lowercase();
        message.contains("for the day") || message.contains("daily")
    })
}

fn describe(status: u16, errors: &[ApiError]) -> String {
    let mut what = format!("KV answered {status}");
    for error in errors.iter().take(3) {
        let message: String = error.message.escape_debug().take(200).collect();
        what.push_str(&format!(", {}: {message}", error.code));
    }
    what
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, message: &str) -> Vec<u8> {
        format!(r#"{{"success":false,"errors":[{{"code":{code},"message":"{message}"}}],"messages":[],"result":null}}"#)
            .into_bytes()
    }

    #[test]
    fn each_status_and_code_has_its_class() {
        let class = |status, body: &[u8]| match failure(status, None, body) {
            Failure::Transient(_) => "transient",
            Failure::TooSlow(_) => "too slow",
            Failure::Throttled(_) => "throttled",
            Failure::Config(_) => "config",
            Failure::DailyQuota(_) => "quota",
            Failure::Refused(_) => "refused",
            Failure::TooLarge(_) => "too large",
        };
        for status in [425, 500, 502, 503] {
            assert_eq!(class(status, b"<html>"), "transient", "{status}");
        }
        for status in [408, 504, 524] {
            assert_eq!(class(status, b"<html>"), "too slow", "{status}");
        }
        for status in [301, 400, 401, 402, 403, 404, 405, 407, 409, 421, 422, 431, 451] {
            assert_eq!(class(status, b"<html>"), "config", "{status}");
        }
        for code in [6_003, 6_103, 6_111, 7_000, 7_003, 9_106, 9_109, 10_000, 10_011, 10_013, 10_405] {
            for status in [400, 401, 403, 404, 405, 200] {
                assert_eq!(class(status, &error(code, "no")), "config", "{status} {code}");
            }
            assert_eq!(class(500, &error(code, "no")), "transient", "{code}");
        }
        assert_eq!(class(400, &error(10_026, "invalid value")), "refused");
        assert_eq!(class(400, br#"{"success":false,"errors":null}"#), "refused");
        assert_eq!(class(429, &error(971, "throttled")), "throttled");
        assert_eq!(class(429, &error(0, "KV put() limit exceeded for the day.")), "quota");
        assert_eq!(class(400, &error(10_012, "too many pairs")), "too large");
        assert_eq!(class(413, b""), "too large");
    }

    #[test]
    fn each_advice_names_the_setting() {
        for (code, setting) in [
            (6_003, "CF_API_TOKEN"),
            (6_111, "CF_API_TOKEN"),
            (9_106, "CF_API_TOKEN"),
            (7_000, "CF_API_BASE_URL"),
            (7_003, "CF_ACCOUNT_ID"),
            (10_011, "CF_NAMESPACE_ID"),
            (10_013, "CF_NAMESPACE_ID"),
            (10_405, "CF_API_BASE_URL"),
        ] {
            let what = failure(400, None, &error(code, "no")).to_string();
            assert!(what.contains(setting), "{code}: {what}");
        }
        let page = failure(400, None, b"<html>").to_string();
        assert!(page.contains("in front of Cloudflare") && page.contains("CF_API_BASE_URL"), "{page}");
    }

    #[test]
    fn a_null_counts_as_absent() {
        for errors in ["null", "[]", r#"[{"code":null,"message":null}]"#, "{}"] {
            for keys in ["null", "[]"] {
                let body = format!(
                    r#"{{"success":true,"errors":{errors},"messages":null,"result_info":null,
                        "result":{{"successful_key_count":3,"unsuccessful_keys":{keys}}}}}"#
                );
                assert_eq!(written(body.as_bytes(), 3), Ok(HashSet::new()), "{body}");
            }
        }
        let nothing = br#"{"success":true,"errors":null,"result":{"values":null}}"#;
        assert!(
            matches!(values(nothing), Err(Failure::Transient(_))),
            "null values do not mean that the keys are missing"
        );
        let text = br#"{"success":false,"errors":[{"code":"10013","message":"no"}]}"#;
        assert!(matches!(failure(404, None, text), Failure::Config(what) if what.contains("10013")));
    }

    #[test]
    fn a_429_waits_as_long_as_its_retry_after() {
        let seven = Duration::from_secs(7);
        assert_eq!(failure(429, Some(seven), b""), Failure::Throttled(seven));
        assert_eq!(failure(429, None, b""), Failure::Throttled(DEFAULT_RETRY_AFTER));
        assert_eq!(failure(429, Some(Duration::MAX), b""), Failure::Throttled(LONGEST_WAIT));
    }

    #[test]
    fn success_counts_only_if_the_counts_add_up() {
        let ok =
            br#"{"success":true,"errors":[],"result":{"successful_key_count":2,"unsuccessful_keys":["b"]}}"#;
        assert_eq!(written(ok, 3).unwrap(), HashSet::from(["b".to_owned()]));
        assert!(matches!(written(ok, 4), Err(Failure::Transient(_))), "one key is not accounted for");
        assert!(written(br#"{"success":true,"result":null}"#, 4).unwrap().is_empty());
        assert!(matches!(written(&error(10_000, "no"), 1), Err(Failure::Config(_))));
        assert!(matches!(written(b"<html>", 1), Err(Failure::Transient(_))));
    }

    #[test]
    fn a_page_without_a_cursor_is_the_last() {
        let read = |info: &str| {
            let body = format!(
                r#"{{"success":true,"result":[{{"name":"a"}},{{"name":"b","metadata":{{"x":1}}}}]{info}}}"#
            );
            let page = page(body.as_bytes()).unwrap();
            (page.keys.len(), page.cursor)
        };
        assert_eq!(read(r#","result_info":{"count":2,"cursor":"c"}"#), (2, Some("c".to_owned())));
        for last in ["", r#","result_info":{"cursor":""}"#, r#","result_info":{"count":2}"#] {
            assert_eq!(read(last), (2, None), "{last}");
        }
        assert!(matches!(page(br#"{"success":true,"result":null}"#), Err(Failure::Transient(_))));
    }

    #[test]
    fn entries_parse_with_and_without_metadata() {
        let body =
            br#"{"success":true,"result":{"values":{"a":{"value":"1","metadata":{}},"b":"2","c":null}}}"#;
        let entries = entries(body).unwrap();
        assert!(matches!(&entries["a"], Some(Entry::Whole { value, metadata: Some(_) }) if value == "1"));
        assert!(matches!(&entries["b"], Some(Entry::Value(value)) if value == "2"));
        assert!(entries["c"].is_none());
    }

    #[test]
    fn messages_of_the_server_are_escaped_and_cut() {
        let Failure::Transient(what) = failure(500, None, &error(1, &"x\\n".repeat(900))) else {
            panic!("not transient")
        };
        assert!(what.len() < 300 && !what.contains('\n'), "{what}");
    }
}
