//! Carries out a call on the namespace and answers it, with the fault that applies, if any.
//!
//! It never waits. The caller chooses the fault.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{ApiError, ok, page};
use crate::call::{Call, Change};
use crate::fault::{Fault, Report, Rule};
use crate::keys::KeyId;
use crate::landings::unix_micros;
use crate::operation::Operation;
use crate::shared::Inner;
use crate::store::View;

/// One key in a page of a list.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

/// One value in the answer to a bulk get.
#[derive(Serialize)]
#[serde(untagged)]
enum Got<'a> {
    Alone(Cow<'a, str>),
    WithMetadata { value: Cow<'a, str>, metadata: Option<&'a RawValue> },
}

/// Carries out the call and answers it. A partial failure omits some changes.
///
/// `ids` are the numbers of the call's keys, in the same order.
pub(crate) fn carry_out(
    inner: &mut Inner,
    operation: Operation,
    call: Call,
    ids: Vec<KeyId>,
    rule: Option<&Rule>,
) -> Result<Response, ApiError> {
    let view = match rule.map(Rule::fault) {
        Some(Fault::Stale { age }) => View::back(*age),
        _ => View::of_now(),
    };
    match call {
        Call::Write { changes, bulk } => {
            let sent = changes.len();
            let (mut left_out, mut report) = (Vec::new(), Report::Right);
            let mut changes: Vec<_> = ids.into_iter().zip(changes).collect();
            if let Some(rule) = rule
                && let Fault::Partial { at_most, report: how } = rule.fault()
            {
                let most = at_most.unwrap_or(sent);
                (left_out, changes) = split(changes, |key| rule.matches_key(key), most);
                report = *how;
            }
            let now = Instant::now();
            inner.watch.wrote(changes.iter().map(|(id, _)| id), now);
            land(inner, operation, changes);
            Ok(ok(if bulk { bulk_result(sent, &left_out, report) } else { Value::Null }))
        }
        Call::Get(_) => {
            let then = inner.store.at(view);
            let entry = ids.first().and_then(|id| then.get(*id)).ok_or(ApiError::UnknownKey)?;
            let bytes = entry.value.to_vec();
            Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
        }
        Call::BulkGet { keys, with_metadata } => {
            let then = inner.store.at(view);
            let value = |id| {
                let entry = then.get(id)?;
                let (value, metadata) = (String::from_utf8_lossy(&entry.value), entry.metadata.as_deref());
                Some(if with_metadata { Got::WithMetadata { value, metadata } } else { Got::Alone(value) })
            };
            let values = keys.iter().zip(ids).map(|(key, id)| (&**key, value(id)));
            Ok(ok(BTreeMap::from([("values", values.collect::<BTreeMap<_, _>>())])))
        }
        Call::List(list) => {
            let Inner { store, keys, watch, .. } = inner;
            let found = store.list(keys, &list.prefix, &list.cursor, list.limit, view);
            let listed = |(name, metadata)| Listed { name, metadata };
            let listed: Vec<_> = found.keys.into_iter().map(listed).collect();
            watch.listed(listed.len());
            Ok(page(&listed, found.cursor.unwrap_or_default()))
        }
    }
}

/// Applies all changes at the same time.
pub(crate) fn land(
    inner: &mut Inner,
    operation: Operation,
    changes: impl IntoIterator<Item = (KeyId, Change)>,
) {
    let (now, unix_micros) = (Instant::now(), unix_micros());
    for (id, Change { to, .. }) in changes {
        inner.watch.landed(to.is_some());
        inner.landings.record(id, unix_micros, operation);
        inner.store.set(id, to, now);
    }
}

/// Splits changes: at most `most` keys that fail, and the changes that succeed.
fn split(
    changes: Vec<(KeyId, Change)>,
    fails: impl Fn(&str) -> bool,
    most: usize,
) -> (Vec<Arc<str>>, Vec<(KeyId, Change)>) {
    let (mut left_out, mut others) = (Vec::new(), Vec::new());
    for (id, change) in changes {
        if left_out.len() < most && fails(&change.key) {
            left_out.push(change.key);
        } else {
            others.push((id, change));
        }
    }
    (left_out, others)
}

fn bulk_result(sent: usize, left_out: &[Arc<str>], report: Report) -> Value {
    let written = sent - left_out.len();
    let (count, named) = match report {
        Report::Right => (written, left_out),
        Report::Unnamed => (written, &[][..]),
        Report::Overcounted => (sent, left_out),
    };
    let named: Vec<&str> = named.iter().map(|key| &**key).collect();
    json!({"successful_key_count": count, "unsuccessful_keys": named})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    #[test]
    fn a_partial_failure_omits_the_first_keys_that_match() {
        let mut keys = Keys::default();
        let changes = ["a1", "b", "a2", "a3"].map(|name| {
            let key = Arc::from(name);
            (keys.number(&key), Change { key, to: None })
        });
        let (left_out, others) = split(changes.into(), |key| key.starts_with('a'), 2);
        let names = left_out.iter().chain(others.iter().map(|(_, change)| &change.key));
        assert_eq!(names.map(|key| &**key).collect::<Vec<_>>(), ["a1", "a2", "b", "a3"]);
        assert_eq!(others.iter().map(|(id, _)| keys.name(*id).to_string()).collect::<String>(), "ba3");
        let result = |report| bulk_result(4, &left_out, report);
        let named = json!(["a1", "a2"]);
        assert_eq!(
            result(Report::Right),
            json!({"successful_key_count": 2, "unsuccessful_keys": named.clone()})
        );
        assert_eq!(result(Report::Unnamed), json!({"successful_key_count": 2, "unsuccessful_keys": []}));
        assert_eq!(
            result(Report::Overcounted),
            json!({"successful_key_count": 4, "unsuccessful_keys": named})
        );
    }
}
