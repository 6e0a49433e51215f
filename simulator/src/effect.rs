//! What a call does to the namespace and how it is answered, as it should be or as a fault has it. It takes
//! no time and may not wait; whether a fault befalls a call is decided before.

use std::collections::HashMap;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{ApiError, ok, page};
use crate::call::{Call, Change};
use crate::fault::{Fault, Report, Rule};
use crate::seen::Watch;
use crate::store::{Store, View};

/// Does what the call asks for, or as much of it as a partial failure leaves, and answers.
pub(crate) fn carry_out(
    store: &mut Store,
    watch: &mut Watch,
    call: Call,
    rule: Option<&Rule>,
) -> Result<Response, ApiError> {
    let view = match rule.map(Rule::fault) {
        Some(Fault::Stale { age }) => View::back(*age),
        _ => View::of_now(),
    };
    match call {
        Call::Write { changes, bulk } => {
            let sent = changes.len();
            let (left_out, changes) = match rule.map(|rule| (rule, rule.fault())) {
                Some((rule, Fault::Partial { at_most, .. })) => {
                    split(changes, |key| rule.matches_key(key), at_most.unwrap_or(sent))
                }
                _ => (Vec::new(), changes),
            };
            answered(watch, &changes);
            land(store, watch, changes);
            let report = match rule.map(Rule::fault) {
                Some(Fault::Partial { report, .. }) => *report,
                _ => Report::Right,
            };
            Ok(ok(if bulk { bulk_result(sent, &left_out, report) } else { Value::Null }))
        }
        Call::Get(key) => {
            let stored = store.get(&key, view).ok_or(ApiError::UnknownKey)?;
            let bytes = stored.value.clone();
            Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
        }
        Call::BulkGet(get) => {
            let value = |key: &str| {
                let stored = store.get(key, view)?;
                let text = String::from_utf8_lossy(&stored.value);
                Some(if get.with_metadata {
                    json!({"value": text, "metadata": stored.metadata})
                } else {
                    json!(text)
                })
            };
            let values: HashMap<_, _> = get.keys.iter().map(|key| (key, value(key))).collect();
            Ok(ok(json!({"values": values})))
        }
        Call::List(list) => {
            let found = store.list(&list.prefix, &list.cursor, list.limit, view);
            let key = |(name, metadata)| match metadata {
                Some(metadata) => json!({"name": name, "metadata": metadata}),
                None => json!({"name": name}),
            };
            let keys: Vec<_> = found.keys.into_iter().map(key).collect();
            Ok(page(&keys, &found.cursor.unwrap_or_default()))
        }
    }
}

/// Notes that a write of these keys is being answered as if done, whether it has landed or not: a client
/// can only pace itself by answers.
pub(crate) fn answered(watch: &mut Watch, changes: &[Change]) {
    let now = Instant::now();
    changes.iter().for_each(|change| watch.wrote(&change.key, now));
}

/// Makes the changes.
pub(crate) fn land(store: &mut Store, watch: &mut Watch, changes: Vec<Change>) {
    let now = Instant::now();
    for Change { key, to } in changes {
        if to.is_some() {
            watch.seen.keys_put += 1;
        } else {
            watch.seen.keys_deleted += 1;
        }
        store.set(key, to, now);
    }
}

/// The keys that fail, at most so many, and the changes that do not.
fn split(changes: Vec<Change>, fails: impl Fn(&str) -> bool, most: usize) -> (Vec<String>, Vec<Change>) {
    let (mut left_out, mut others) = (Vec::new(), Vec::new());
    for change in changes {
        if left_out.len() < most && fails(&change.key) {
            left_out.push(change.key);
        } else {
            others.push(change);
        }
    }
    (left_out, others)
}

fn bulk_result(sent: usize, left_out: &[String], report: Report) -> Value {
    let written = sent - left_out.len();
    let (count, named) = match report {
        Report::Right => (written, left_out),
        Report::Unnamed => (written, &[][..]),
        Report::Overcounted => (sent, left_out),
    };
    json!({"successful_key_count": count, "unsuccessful_keys": named})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_failure_leaves_out_the_first_that_match() {
        let changes = ["a1", "b", "a2", "a3"].map(|key| Change { key: key.to_owned(), to: None });
        let (left_out, others) = split(changes.into(), |key| key.starts_with('a'), 2);
        assert_eq!(left_out, ["a1", "a2"]);
        assert_eq!(others.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["b", "a3"]);
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
