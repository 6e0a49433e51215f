//! Forged reply subjects. A producer could use them to do harm by JetStream's acks of its events: the server sends
//! acks with its own permissions.
//!
//! This module lists the subjects; tests check the effects.

use serde_json::Value;

use crate::{NatsServer, http};

const LEDGER: &str = "KV_TASKS--tasks-processor";
const RECORDS: &str = "$KV.TASKS--tasks-processor";

/// Lists the subscriptions of the replicas. The monitoring port shows them to everyone who can reach it.
///
/// # Errors
/// If the monitoring port does not answer.
pub async fn subscriptions(server: &NatsServer) -> anyhow::Result<Vec<String>> {
    let url = format!("{}/connz?subs=1", server.monitor_url());
    let text = http().get(url).send().await?.text().await?;
    let known: Value = serde_json::from_str(&text)?;
    let connections = known["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    let replicas = connections
        .iter()
        .filter(|it| it["name"].as_str().is_some_and(|name| name.starts_with("taskpipeline")));
    let subscriptions = replicas.filter_map(|it| it["subscriptions_list"].as_array()).flatten();
    Ok(subscriptions.filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Lists every subject on which a misdirected ack could do harm, for a pipeline with the default names and these subscriptions.
#[must_use]
pub fn reply_subjects(subscriptions: &[String]) -> Vec<String> {
    let fixed = [
        format!("{RECORDS}.source"),
        format!("{RECORDS}.task.good"),
        format!("{RECORDS}.task.nobody"),
        format!("{RECORDS}.high-water.somebody"),
        format!("{RECORDS}.control.0000000000000000"),
        "dead-letters.tasks".to_owned(),
        "$JS.API.STREAM.PURGE.TASKS".to_owned(),
        format!("$JS.API.STREAM.PURGE.{LEDGER}"),
        format!("$JS.API.STREAM.DELETE.{LEDGER}"),
        "$JS.API.STREAM.MSG.DELETE.TASKS-DEAD-LETTERS".to_owned(),
        "$JS.API.CONSUMER.DELETE.TASKS.tasks-processor-1".to_owned(),
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.tasks-processor-1".to_owned(),
    ];
    let guessed = subscriptions.iter().filter(|subject| subject.contains("INBOX")).flat_map(|inbox| {
        (0..3).map(move |n| inbox.replace(".*.*", &format!(".{n}.0")).replace('*', &n.to_string()))
    });
    fixed.into_iter().chain(guessed).collect()
}
