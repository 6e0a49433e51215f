//! The conditions that the writer reports: five about the pipeline, and one about its settings. Pure; [`super::report`] reads
//! and writes them. Messages contain no changing numbers, so that a steady state writes nothing.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::time::Duration;

use crate::api::{ConditionType, NewCondition};
use taskpipeline_pipeline::telemetry::health::{KvState, NatsState};

/// The longest normal wait. It is longer than the settle time, for which a task in doubt waits after a fail-over.
const PATIENCE: Duration = Duration::from_secs(90);

/// The state of the pipeline as a replica sees it.
#[derive(Clone, Debug)]
pub(super) struct PipelineState {
    pub(super) nats: NatsState,
    pub(super) kv: KvState,
    /// Why the stream may soon delete events because of their age.
    pub(super) late: Option<String>,
    /// The streams that are nearly full.
    pub(super) filling: Option<String>,
    /// Why the projector makes no progress although work waits.
    pub(super) stalled: Option<String>,
    /// How long the oldest event has waited for the ledger, or the oldest change for KV.
    pub(super) oldest: Duration,
    /// The number of dead letters, if it is known.
    pub(super) dead_letters: Option<u64>,
    /// Why the newest settings are not in effect.
    pub(super) refused: Option<String>,
}

/// A condition without its time.
struct Verdict {
    kind: ConditionType,
    /// None if it is unknown.
    is: Option<bool>,
    reason: &'static str,
    message: String,
}

/// The conditions that the writer reports. `old`: the present conditions. `generation`: the generation of the spec that the
/// replica has read.
pub(super) fn conditions(
    seen: &PipelineState,
    old: &[Condition],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    [nats(seen), kv(seen), caught_up(seen), room(seen), dead_letters(seen), settings(seen)]
        .into_iter()
        .map(|verdict| {
            let status = match verdict.is {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let before = old.iter().find(|before| before.type_ == verdict.kind.as_str());
            // A new writer has seen nothing yet, so the known condition stays.
            if let (None, Some(known)) = (verdict.is, before.filter(|before| before.status != "Unknown")) {
                return Condition { observed_generation: generation, ..known.clone() };
            }
            let Verdict { kind, reason, message, .. } = verdict;
            NewCondition { kind, status, reason, message }.condition(generation, old, now)
        })
        .collect()
}

fn verdict(
    kind: ConditionType,
    is: Option<bool>,
    reason: &'static str,
    message: impl Into<String>,
) -> Verdict {
    Verdict { kind, is, reason, message: message.into() }
}

fn nats(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::NatsConnected;
    match &seen.nats {
        NatsState::Connected => verdict(kind, Some(true), "Connected", "connected"),
        NatsState::Connecting(why) => {
            let why = why.clone().unwrap_or_else(|| "not connected yet".to_owned());
            verdict(kind, Some(false), "Connecting", why)
        }
        NatsState::Disconnected(why) => verdict(kind, Some(false), "Disconnected", why.clone()),
    }
}

fn kv(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::KvReachable;
    match &seen.kv {
        KvState::Unknown => verdict(kind, None, "NothingWritten", "no request was sent yet"),
        KvState::Reachable => verdict(kind, Some(true), "Reachable", "the last request succeeded"),
        KvState::Failing(why) => verdict(kind, Some(false), "Failing", why.clone()),
        KvState::Misconfigured(why) => verdict(kind, Some(false), "Misconfigured", why.clone()),
    }
}

fn caught_up(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::CaughtUp;
    if let Some(why) = &seen.stalled {
        return verdict(kind, Some(false), "Stalled", why.clone());
    }
    if seen.late.is_some() {
        let what = "events have waited for more than half the maxAge of the stream, which deletes them at maxAge: add replicas, \
                    or find the cause in the logs";
        return verdict(kind, Some(false), "Late", what);
    }
    if seen.oldest > PATIENCE {
        return verdict(kind, Some(false), "Behind", "events or changes have waited for more than 90 s");
    }
    verdict(kind, Some(true), "CaughtUp", "no event or change waits for more than 90 s")
}

fn room(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::RoomLeft;
    match &seen.filling {
        None => verdict(kind, Some(true), "Enough", "there is room in the streams"),
        Some(what) => verdict(
            kind,
            Some(false),
            "Filling",
            format!(
                "{what}; a full stream refuses messages, and plain publishers get no error: give it more room"
            ),
        ),
    }
}

fn dead_letters(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::DeadLettersEmpty;
    match seen.dead_letters {
        None => verdict(kind, None, "Unknown", "cannot count the dead letters"),
        Some(0) => verdict(kind, Some(true), "Empty", "there are no dead letters"),
        Some(_) => verdict(
            kind,
            Some(false),
            "NotEmpty",
            "there are dead letters: list them with `taskpipeline dead-letters list`",
        ),
    }
}

fn settings(seen: &PipelineState) -> Verdict {
    let kind = ConditionType::SettingsAccepted;
    match &seen.refused {
        None => verdict(kind, Some(true), "Accepted", "the newest settings are in effect"),
        Some(why) => {
            verdict(kind, Some(false), "Refused", format!("the last valid settings stay in effect: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn seen() -> PipelineState {
        PipelineState {
            nats: NatsState::Connected,
            kv: KvState::Reachable,
            late: None,
            filling: None,
            stalled: None,
            oldest: Duration::ZERO,
            dead_letters: Some(0),
            refused: None,
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_turns() {
        let first = conditions(&seen(), &[], Some(1), &time(1));
        assert!(first.iter().all(|condition| condition.status == "True"), "{first:?}");
        let same = conditions(&seen(), &first, Some(1), &time(2));
        assert_eq!(same, first, "nothing to be written");
        let kv = KvState::Misconfigured("CF_API_TOKEN is not valid".to_owned());
        let turned = conditions(&PipelineState { kv, ..seen() }, &first, Some(1), &time(3));
        let of = |name: &str| turned.iter().find(|condition| condition.type_ == name).unwrap();
        assert_eq!(
            (of("KvReachable").status.as_str(), &of("KvReachable").last_transition_time),
            ("False", &time(3))
        );
        assert_eq!(of("CaughtUp").last_transition_time, time(1));
    }

    #[test]
    fn what_a_new_holder_has_not_seen_yet_stays_as_it_was_known() {
        let first = conditions(&seen(), &[], Some(1), &time(1));
        let new = PipelineState { kv: KvState::Unknown, dead_letters: None, ..seen() };
        assert_eq!(conditions(&new, &first, Some(1), &time(2)), first);
        let unknown = conditions(&new, &[], Some(1), &time(1));
        assert_eq!(unknown[1].status, "Unknown", "nobody has known it");
    }

    #[test]
    fn what_waits_too_long_is_behind() {
        let status = |seen: &PipelineState| conditions(seen, &[], None, &time(0))[2].reason.clone();
        assert_eq!(status(&PipelineState { oldest: PATIENCE, ..seen() }), "CaughtUp");
        assert_eq!(status(&PipelineState { oldest: PATIENCE * 2, ..seen() }), "Behind");
        assert_eq!(status(&PipelineState { late: Some(String::new()), ..seen() }), "Late");
        assert_eq!(status(&PipelineState { stalled: Some(String::new()), ..seen() }), "Stalled");
    }
}
