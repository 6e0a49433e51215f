//! The durable consumer by which all replicas read one incarnation of the stream. Decides its
//! configuration, and whether an existing one fits. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};

use crate::durable::names::Names;
use crate::durable::stream::fitness::captures;
use crate::durable::stream::incarnation::Life;

/// The most unacknowledged events of all replicas. It limits how many NATS delivers again if all
/// replicas die.
const MOST_UNACKNOWLEDGED: i64 = 20_000;

/// How to proceed with an existing consumer.
#[derive(Debug, PartialEq)]
pub(crate) enum Existing {
    Fits,
    /// Change it to this configuration.
    Change(Box<Config>),
    /// It cannot be used, for this reason.
    Unfit(String),
}

/// The consumer of this incarnation. `filter`: the subjects that it delivers; empty means all.
pub(crate) fn wanted(names: &Names, life: Life, filter: Vec<String>, ack_wait: Duration) -> Config {
    Config {
        durable_name: Some(names.consumer(life.incarnation)),
        description: Some("The replicas of a task pipeline".to_owned()),
        deliver_policy: match life.read_from {
            0 | 1 => DeliverPolicy::All,
            start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
        },
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        // Without limit: a replica itself stores invalid messages as dead letters.
        max_deliver: -1,
        max_ack_pending: MOST_UNACKNOWLEDGED,
        filter_subjects: filter,
        ..Config::default()
    }
}

/// Checks an existing consumer. Limits that somebody has set on it stay.
pub(crate) fn judge(found: &Config, wanted: &Config, names: &Names) -> Existing {
    let mut unfit = Vec::new();
    let filter = filter(found);
    let ours = |filter: &String| names.subjects.iter().any(|(subject, _)| captures(filter, subject));
    if !filter.is_empty() && !filter.iter().any(ours) {
        unfit.push(format!(
            "its filter {} has none of the subjects of this pipeline: another pipeline uses the queue group {}",
            filter.join(", "),
            names.queue_group
        ));
    }
    if found.ack_policy != AckPolicy::Explicit {
        unfit.push(format!("its ack policy is {:?}, not explicit", found.ack_policy));
    }
    if matches!(
        found.deliver_policy,
        DeliverPolicy::New
            | DeliverPolicy::Last
            | DeliverPolicy::LastPerSubject
            | DeliverPolicy::ByStartTime { .. }
    ) {
        unfit.push(format!("it skips older events ({:?})", found.deliver_policy));
    }
    if found.headers_only {
        unfit.push("it delivers headers without the events".to_owned());
    }
    if !unfit.is_empty() {
        return Existing::Unfit(unfit.join("; "));
    }
    let fits = found.ack_wait == wanted.ack_wait
        && found.max_deliver <= 0
        && found.backoff.is_empty()
        && found.inactive_threshold.is_zero()
        && filter_fits(&filter, &wanted.filter_subjects, names);
    if fits {
        return Existing::Fits;
    }
    Existing::Change(Box::new(Config {
        durable_name: wanted.durable_name.clone(),
        ack_wait: wanted.ack_wait,
        max_deliver: wanted.max_deliver,
        backoff: Vec::new(),
        inactive_threshold: Duration::ZERO,
        filter_subject: String::new(),
        filter_subjects: wanted.filter_subjects.clone(),
        ..found.clone()
    }))
}

fn filter(config: &Config) -> Vec<String> {
    let one = Some(config.filter_subject.clone()).filter(|filter| !filter.is_empty());
    config.filter_subjects.iter().cloned().chain(one).collect()
}

/// Returns whether the filter delivers all events of the pipeline, and nothing else if the stream
/// has other subjects.
fn filter_fits(found: &[String], wanted: &[String], names: &Names) -> bool {
    let all_ours = || {
        let through = |subject: &String| found.iter().any(|filter| captures(filter, subject));
        names.subjects.iter().all(|(subject, _)| through(subject))
    };
    match (found.is_empty(), wanted.is_empty()) {
        (true, true) => true,
        // The consumer was created when the stream had other subjects as well.
        (false, true) => all_ours(),
        (true, false) => false,
        (false, false) => all_ours() && found.iter().all(|filter| wanted.contains(filter)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK_WAIT: Duration = Duration::from_secs(30);

    fn names() -> Names {
        Names::of("TASKS", "tasks-processor", "tasks")
    }

    fn life() -> Life {
        Life { incarnation: 1, from: 0, read_from: 0 }
    }

    fn ours() -> Vec<String> {
        names().subjects.into_iter().map(|(subject, _)| subject).collect()
    }

    fn judged(found: &Config, filter: Vec<String>) -> Existing {
        judge(found, &wanted(&names(), life(), filter, ACK_WAIT), &names())
    }

    fn made(filter: Vec<String>) -> Config {
        wanted(&names(), life(), filter, ACK_WAIT)
    }

    #[test]
    fn the_one_that_was_made_fits_and_what_somebody_has_limited_is_left() {
        assert_eq!(judged(&made(Vec::new()), Vec::new()), Existing::Fits);
        assert_eq!(judged(&made(ours()), ours()), Existing::Fits);
        assert_eq!(judged(&made(ours()), Vec::new()), Existing::Fits);
        let limited = Config { max_ack_pending: 100, max_batch: 50, ..made(Vec::new()) };
        assert_eq!(judged(&limited, Vec::new()), Existing::Fits);
    }

    #[test]
    fn one_that_would_give_events_up_or_let_others_through_is_changed() {
        let change = |found: Config, filter: Vec<String>| match judged(&found, filter.clone()) {
            Existing::Change(changed) => {
                assert_eq!(
                    (changed.max_deliver, changed.filter_subjects, changed.ack_wait),
                    (-1, filter, ACK_WAIT)
                );
            }
            other => panic!("{other:?}"),
        };
        change(Config { max_deliver: 5, ..made(Vec::new()) }, Vec::new());
        change(Config { ack_wait: Duration::from_secs(1), ..made(ours()) }, ours());
        change(Config { backoff: vec![ACK_WAIT], ..made(Vec::new()) }, Vec::new());
        // Other subjects were added to the stream since, or the filter lacks one of the pipeline.
        change(made(Vec::new()), ours());
        change(made(ours()[..2].to_vec()), Vec::new());
    }

    #[test]
    fn one_of_another_pipeline_or_that_passes_over_events_is_refused() {
        let refused = |found: Config| match judged(&found, Vec::new()) {
            Existing::Unfit(why) => why,
            other => panic!("{other:?}"),
        };
        let other = vec!["orders.created".to_owned()];
        assert!(refused(made(other)).contains("another pipeline uses the queue group tasks-processor"));
        refused(Config { deliver_policy: DeliverPolicy::New, ..made(Vec::new()) });
        refused(Config { ack_policy: AckPolicy::None, ..made(Vec::new()) });
        refused(Config { headers_only: true, ..made(Vec::new()) });
    }
}
