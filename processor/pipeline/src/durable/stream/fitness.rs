//! Decides whether an existing stream can be used. Pure: it takes the configuration, and returns
//! misfits and warnings.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};

use crate::durable::names::Names;

/// The consequences of a configuration for the pipeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fitness {
    /// Why the stream cannot be used.
    pub(crate) misfits: Vec<String>,
    /// Later problems with the stream.
    pub(crate) warnings: Vec<String>,
}

/// Checks the stream that captures the events.
pub(crate) fn of_events(config: &Config, names: &Names) -> Fitness {
    let mut fitness = of_any(config);
    let misfits = &mut fitness.misfits;
    for (subject, _) in &names.subjects {
        if !config.subjects.iter().any(|filter| captures(filter, subject)) {
            misfits.push(format!("it does not capture {subject}"));
        }
    }
    if let Some(transform) = &config.subject_transform
        && names.subjects.iter().any(|(subject, _)| captures_or_all(&transform.source, subject))
    {
        misfits.push(format!(
            "it stores events under other subjects (subject_transform from {:?} to {:?}), where the pipeline does not read them",
            transform.source, transform.destination
        ));
    }
    if config.max_messages_per_subject > 0 {
        misfits.push("it keeps only the newest events of each subject (max_msgs_per_subject)".to_owned());
    }
    let warnings = &mut fitness.warnings;
    if config.no_ack {
        warnings.push("it sends no acks, so JetStream publishers wait until they time out".to_owned());
    }
    if config.max_age == Duration::ZERO {
        warnings
            .push("it keeps events indefinitely, so the ledger keeps deleted tasks indefinitely".to_owned());
    }
    if let Some(limits) = limits(config)
        && config.discard == DiscardPolicy::Old
    {
        warnings.push(format!(
            "when it is full ({limits}, discard old), it drops the oldest events even if no replica has read them: set \
             discard new, or remove the limit"
        ));
    } else if config.max_messages > 0 {
        // A stream that nearly reaches max_bytes is reported elsewhere.
        warnings.push(format!(
            "when it is full (max_msgs {}, discard new), it refuses events, and plain publishers get no error",
            config.max_messages
        ));
    }
    fitness
}

/// Checks the stream of the ledger.
pub(crate) fn of_ledger(config: &Config, names: &Names) -> Fitness {
    let mut fitness = of_any(config);
    let misfits = &mut fitness.misfits;
    if !config.subjects.contains(&names.ledger_all()) {
        misfits.push(format!("it does not capture {}", names.ledger_all()));
    }
    if config.subject_transform.is_some() {
        misfits.push("it stores records under other subjects (subject_transform)".to_owned());
    }
    if !config.allow_message_ttl || !config.allow_direct || config.max_messages_per_subject != 1 {
        misfits.push(
            "it must allow direct gets and per-message TTL, and keep one message for each subject".to_owned(),
        );
    }
    if config.no_ack {
        misfits.push("it sends no acks, so no write is confirmed".to_owned());
    }
    if config.max_age > Duration::ZERO {
        misfits.push("it drops records that are older than max_age, even if KV lacks them".to_owned());
    }
    if let Some(limits) = limits(config)
        && config.discard == DiscardPolicy::Old
    {
        misfits.push(format!("when it is full ({limits}), it drops the oldest records: set discard new"));
    } else if config.max_messages > 0 {
        let most = config.max_messages;
        fitness.warnings.push(format!("when it is full (max_msgs {most}), events of new tasks wait"));
    }
    fitness
}

/// Checks the stream of the dead letters.
pub(crate) fn of_letters(config: &Config, names: &Names) -> Fitness {
    let mut fitness = of_any(config);
    let (subject, misfits) = (&names.dead_letter_subject, &mut fitness.misfits);
    if !config.subjects.iter().any(|filter| captures(filter, subject)) {
        misfits.push(format!("it does not capture {subject}: add the subject to it (its letters stay)"));
    }
    if config.subject_transform.as_ref().is_some_and(|it| captures_or_all(&it.source, subject)) {
        misfits.push("it stores letters under other subjects (subject_transform)".to_owned());
    }
    if config.no_ack {
        misfits.push("it sends no acks, so a replica cannot know whether a letter is stored".to_owned());
    }
    if config.max_age > Duration::ZERO {
        fitness
            .warnings
            .push("it drops letters that are older than max_age, even if nobody has read them".to_owned());
    }
    if let Some(limits) = limits(config)
        && config.discard == DiscardPolicy::Old
    {
        fitness.warnings.push(format!(
            "when it is full ({limits}), it drops the oldest letters, even if nobody has read them"
        ));
    } else if config.max_messages > 0 {
        let most = config.max_messages;
        fitness
            .warnings
            .push(format!("when it is full (max_msgs {most}), events that should become letters wait"));
    }
    fitness
}

/// Checks the rules for all streams of the pipeline.
fn of_any(config: &Config) -> Fitness {
    let mut misfits = Vec::new();
    if config.retention != RetentionPolicy::Limits {
        misfits.push(
            "its retention must be limits: any other removes messages that a replica still needs".to_owned(),
        );
    }
    if config.sealed {
        misfits.push("it is sealed".to_owned());
    }
    if config.mirror.is_some() {
        misfits.push("it is a mirror".to_owned());
    }
    Fitness { misfits, warnings: Vec::new() }
}

/// The limits at which the stream is full, as text; `None` without limits.
fn limits(config: &Config) -> Option<String> {
    let messages = (config.max_messages > 0).then(|| format!("max_msgs {}", config.max_messages));
    let bytes = (config.max_bytes > 0).then(|| format!("max_bytes {}", config.max_bytes));
    let limits: Vec<_> = messages.into_iter().chain(bytes).collect();
    (!limits.is_empty()).then(|| limits.join(", "))
}

/// An empty source of a transform means all subjects.
fn captures_or_all(filter: &str, subject: &str) -> bool {
    filter.is_empty() || captures(filter, subject)
}

/// Returns whether a subject filter with wildcards captures a subject without wildcards.
pub(crate) fn captures(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::SubjectTransform;

    use super::*;

    fn names() -> Names {
        Names::of("TASKS", "tasks-processor", "tasks")
    }

    fn events() -> Config {
        Config { subjects: vec!["tasks.>".to_owned()], max_age: Duration::from_secs(9), ..Config::default() }
    }

    fn ledger() -> Config {
        Config {
            subjects: vec![names().ledger_all()],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_direct: true,
            allow_message_ttl: true,
            ..Config::default()
        }
    }

    #[test]
    fn subjects_with_wildcards() {
        for filter in ["tasks.created", "tasks.*", "tasks.>", "*.created", ">"] {
            assert!(captures(filter, "tasks.created"), "{filter}");
        }
        for filter in ["tasks", "tasks.created.>", "tasks.updated", "*", "other.>"] {
            assert!(!captures(filter, "tasks.created"), "{filter}");
        }
    }

    #[test]
    fn what_fits_is_not_complained_of() {
        assert_eq!(of_events(&events(), &names()), Fitness::default());
        assert_eq!(of_ledger(&ledger(), &names()), Fitness::default());
        let letters = Config { subjects: vec!["dead-letters.tasks".to_owned()], ..Config::default() };
        assert_eq!(of_letters(&letters, &names()), Fitness::default());
    }

    #[test]
    fn a_stream_that_changes_the_events_subjects_is_unfit_and_one_that_changes_others_is_not() {
        let transformed = |source: &str| {
            let (source, destination) = (source.to_owned(), "changed.>".to_owned());
            let transform = Some(SubjectTransform { source, destination });
            of_events(&Config { subject_transform: transform, ..events() }, &names()).misfits.len()
        };
        assert_eq!((transformed(">"), transformed(""), transformed("tasks.deleted")), (1, 1, 1));
        assert_eq!(transformed("others.>"), 0);
    }

    #[test]
    fn limits_that_drop_what_is_needed_are_told_or_refused() {
        let full = |discard| Config { max_messages: 5, max_bytes: 9, discard, ..events() };
        let dropping = of_events(&full(DiscardPolicy::Old), &names());
        assert!(dropping.misfits.is_empty());
        assert!(dropping.warnings[0].contains("max_msgs 5, max_bytes 9, discard old"), "{dropping:?}");
        assert!(of_events(&full(DiscardPolicy::New), &names()).warnings[0].contains("refuses events"));
        let dropping = Config { max_bytes: 9, discard: DiscardPolicy::Old, ..ledger() };
        assert_eq!(of_ledger(&dropping, &names()).misfits.len(), 1);
        let aging = Config { max_age: Duration::from_secs(1), ..ledger() };
        assert_eq!(of_ledger(&aging, &names()).misfits.len(), 1);
    }

    #[test]
    fn no_stream_may_be_sealed_or_lose_what_is_acknowledged_by_somebody_else() {
        for retention in [RetentionPolicy::Interest, RetentionPolicy::WorkQueue] {
            let config = |config: Config| Config { retention, sealed: true, ..config };
            assert_eq!(of_events(&config(events()), &names()).misfits.len(), 2);
            assert_eq!(of_ledger(&config(ledger()), &names()).misfits.len(), 2);
        }
    }
}
