//! The operator's part of a pipeline's status. Pure: computes conditions from the outcome of a reconcile. The time of a
//! condition changes only with its status.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::api::{ConditionType, NewCondition, TaskPipeline};

use super::invalid::Invalid;
use super::names::{owned, selector};

/// The outcome of the last reconcile.
#[derive(Clone, Debug)]
pub(crate) enum Outcome<'a> {
    /// All objects are applied.
    Applied(&'a Deployment),
    /// A user has to correct something first. Running replicas continue.
    Invalid(&'a Invalid, Option<&'a Deployment>),
    /// A request to the API server failed. The operator retries.
    Failed(&'a str, Option<&'a Deployment>),
}

/// The operator's fields of the status, for server-side apply.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperatorStatus {
    pub(crate) observed_generation: Option<i64>,
    pub(crate) replicas: i32,
    pub(crate) ready_replicas: i32,
    pub(crate) ready: String,
    pub(crate) selector: String,
    pub(crate) conditions: Vec<Condition>,
}

/// The operator's part of the status. A condition's time changes only with its status.
pub(crate) fn status(pipeline: &TaskPipeline, outcome: &Outcome<'_>, now: &Time) -> OperatorStatus {
    let deployment = match outcome {
        Outcome::Applied(deployment) => Some(*deployment),
        Outcome::Invalid(_, deployment) | Outcome::Failed(_, deployment) => *deployment,
    };
    let counts = Counts::of(deployment);
    let verdicts = [
        (ConditionType::Ready, ready(pipeline, outcome, &counts)),
        (ConditionType::Progressing, progressing(outcome, &counts)),
        (ConditionType::Degraded, degraded(outcome, deployment)),
    ];
    let old = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let labels: Vec<_> =
        selector(pipeline).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    OperatorStatus {
        observed_generation: pipeline.metadata.generation,
        replicas: counts.there,
        ready_replicas: counts.ready,
        ready: format!("{}/{}", counts.ready, counts.wanted),
        selector: labels.join(","),
        conditions: verdicts
            .into_iter()
            .map(|(kind, verdict)| condition(kind, verdict, pipeline.metadata.generation, old, now))
            .collect(),
    }
}

/// The processor's conditions as Unknown, while no replica is ready to report them. None if a replica is ready, or if they are
/// Unknown already.
pub(crate) fn unknown(pipeline: &TaskPipeline, ready: i32, now: &Time) -> Option<Vec<Condition>> {
    let old = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let kinds = ConditionType::OF_THE_PROCESSOR;
    let is_unknown = |kind: &ConditionType| {
        old.iter().any(|condition| condition.type_ == kind.as_str() && condition.status == "Unknown")
    };
    if ready > 0 || kinds.iter().all(is_unknown) {
        return None;
    }
    let verdict = || Verdict {
        status: "Unknown",
        reason: "NoReplica",
        message: "no replica is ready to report this condition".to_owned(),
    };
    let generation = pipeline.metadata.generation;
    Some(kinds.into_iter().map(|kind| condition(kind, verdict(), generation, old, now)).collect())
}

/// The status, reason and message of a condition.
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn verdict(is: bool, reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict { status: if is { "True" } else { "False" }, reason, message: message.into() }
}

/// The replica counts of a Deployment.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    wanted: i32,
    there: i32,
    ready: i32,
    /// Replicas of the newest template.
    updated: i32,
    /// Whether the Deployment's controller has seen the newest spec.
    seen: bool,
}

impl Counts {
    fn of(deployment: Option<&Deployment>) -> Self {
        let Some(deployment) = deployment else { return Self::default() };
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let Some(status) = &deployment.status else { return Self { wanted, ..Self::default() } };
        Self {
            wanted,
            there: status.replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            updated: status.updated_replicas.unwrap_or(0),
            seen: status.observed_generation >= deployment.metadata.generation,
        }
    }

    fn are_all_up(&self) -> bool {
        self.seen && self.there == self.wanted && self.updated == self.wanted && self.ready == self.wanted
    }
}

fn ready(pipeline: &TaskPipeline, outcome: &Outcome<'_>, counts: &Counts) -> Verdict {
    let of = format!("{} of {} replicas are ready", counts.ready, counts.wanted);
    match outcome {
        Outcome::Invalid(invalid, _) => verdict(false, invalid.reason, invalid.message.clone()),
        Outcome::Failed(what, _) => verdict(false, "ApplyFailed", *what),
        Outcome::Applied(_) if pipeline.spec.suspend => verdict(
            false,
            "Suspended",
            "spec.suspend is true: no replica runs, and events wait in the stream (in mode Core they are lost)",
        ),
        Outcome::Applied(_) if counts.wanted == 0 => {
            verdict(false, "ScaledToZero", "the Deployment is scaled to 0 replicas")
        }
        // Also during a rollout, if enough replicas are ready.
        Outcome::Applied(_) if counts.seen && counts.ready >= counts.wanted => {
            verdict(true, "ReplicasReady", of)
        }
        Outcome::Applied(_) => verdict(
            false,
            "ReplicasNotReady",
            format!("{of}; if this stays, read `kubectl logs deployment/{}`", owned(&pipeline.name_any())),
        ),
    }
}

fn progressing(outcome: &Outcome<'_>, counts: &Counts) -> Verdict {
    match outcome {
        Outcome::Applied(_) if !counts.are_all_up() => verdict(
            true,
            "RollingOut",
            format!(
                "{} of {} replicas have the newest settings and are ready",
                counts.updated.min(counts.ready),
                counts.wanted
            ),
        ),
        _ => verdict(false, "Settled", "no rollout is in progress"),
    }
}

fn degraded(outcome: &Outcome<'_>, deployment: Option<&Deployment>) -> Verdict {
    match outcome {
        Outcome::Invalid(invalid, _) => verdict(true, invalid.reason, invalid.message.clone()),
        Outcome::Failed(what, _) => verdict(true, "ApplyFailed", *what),
        Outcome::Applied(_) => match stuck(deployment) {
            Some(why) => verdict(true, "RolloutStuck", why),
            None => verdict(false, "AsExpected", "no action is needed"),
        },
    }
}

/// The message of a Deployment whose rollout makes no progress.
fn stuck(deployment: Option<&Deployment>) -> Option<String> {
    let conditions = deployment?.status.as_ref()?.conditions.as_ref()?;
    let stuck = conditions.iter().find(|condition| {
        (condition.type_ == "Progressing" && condition.status == "False")
            || (condition.type_ == "ReplicaFailure" && condition.status == "True")
    })?;
    Some(stuck.message.clone().unwrap_or_else(|| "the Deployment makes no progress".to_owned()))
}

fn condition(
    kind: ConditionType,
    verdict: Verdict,
    generation: Option<i64>,
    old: &[Condition],
    now: &Time,
) -> Condition {
    let Verdict { status, reason, message } = verdict;
    NewCondition { kind, status, reason, message }.condition(generation, old, now)
}

/// Whether the resource already has this status.
pub(crate) fn is_said(pipeline: &TaskPipeline, wanted: &OperatorStatus) -> bool {
    let Some(is) = &pipeline.status else { return false };
    (is.observed_generation, is.replicas, is.ready_replicas)
        == (wanted.observed_generation, wanted.replicas, wanted.ready_replicas)
        && is.ready.as_deref() == Some(&wanted.ready)
        && is.selector.as_deref() == Some(&wanted.selector)
        && wanted.conditions.iter().all(|condition| is.conditions.contains(condition))
}

/// The namespace and name, for logs.
pub(crate) fn name(pipeline: &TaskPipeline) -> String {
    format!("{}/{}", pipeline.namespace().unwrap_or_default(), pipeline.name_any())
}
