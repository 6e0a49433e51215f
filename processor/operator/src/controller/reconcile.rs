//! Reconciles one pipeline once: dereference -> validate -> build -> apply -> status. This module has the order of the steps and
//! handles their errors; each step has a module of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};

use super::apply::{ApplyError, apply};
use super::build::{Image, Objects, build};
use super::dereference::{DereferenceError, dereference};
use super::invalid::Invalid;
use super::metrics::OperatorMetrics;
use super::names::{FIELD_MANAGER, owned};
use super::policy::{Policy, TOO_MANY};
use super::replicas;
use super::status::{self, Outcome, is_said, status};
use super::validate::validate;
use crate::api::{PROCESSOR_MANAGER, TaskPipeline};

/// The interval between two reconciles without a change. The Secrets may have changed, and watching them would need the right
/// to list all Secrets.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The same interval for a pipeline above the limit of its namespace, because thousands of these must not delay the others.
const LOOK_AGAIN_AT_TOO_MANY: Duration = Duration::from_secs(600);

/// The wait after the first failure. It doubles after each further failure, and a part of it is random.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The longest wait.
const MOST_BACK_OFF: Duration = Duration::from_secs(60);

/// Why a reconcile failed; the operator retries.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error(transparent)]
    Dereference(#[from] DereferenceError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error("cannot write the replica count: {0}")]
    Replicas(#[source] kube::Error),
    #[error("cannot write the status: {0}")]
    Status(#[source] kube::Error),
    #[error("cannot read the Deployment: {0}")]
    Read(#[source] kube::Error),
}

/// The state that all reconciles share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) image: Image,
    pub(crate) policy: Policy,
    /// The watched pipelines.
    pub(crate) pipelines: Store<TaskPipeline>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: OperatorMetrics,
    /// The number of consecutive failures of each pipeline.
    pub(crate) failures: Mutex<HashMap<String, u32>>,
}

/// Reconciles one pipeline once: dereference, validate, build, apply, status.
///
/// # Errors
/// If a request to the API server fails.
pub(crate) async fn reconcile(
    pipeline: Arc<TaskPipeline>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let began = Instant::now();
    let name = status::name(&pipeline);
    let result = carry_out(&pipeline, &context).await;
    let outcome = match &result {
        Ok(None) => "applied",
        Ok(Some(_)) => "invalid",
        Err(_) => "failed",
    };
    context.metrics.reconciled(outcome, began.elapsed());
    let invalid = result?;
    context.failures().remove(&name);
    let is_too_many = invalid.is_some_and(|invalid| invalid.reason == TOO_MANY);
    Ok(Action::requeue(if is_too_many { LOOK_AGAIN_AT_TOO_MANY } else { LOOK_AGAIN }))
}

/// Schedules the retry of a failed reconcile.
#[allow(clippy::needless_pass_by_value)] // the controller's signature
pub(crate) fn after_failure(
    pipeline: Arc<TaskPipeline>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let name = status::name(&pipeline);
    let mut failures = context.failures();
    let failed = failures.entry(name.clone()).or_default();
    *failed += 1;
    let wait = back_off(*failed, rand::random());
    warn!(pipeline = name, %error, retry_in_seconds = wait.as_secs_f64(), "reconcile failed; retrying");
    Action::requeue(wait)
}

/// The wait after a number of consecutive failures. `dice`: a random number from 0 to 1, so that pipelines that failed together
/// are not retried together.
pub(crate) fn back_off(failed: u32, dice: f64) -> Duration {
    let doubled = BACK_OFF.saturating_mul(2_u32.saturating_pow(failed.saturating_sub(1).min(10)));
    doubled.min(MOST_BACK_OFF).mul_f64(0.5 + dice / 2.0)
}

impl Context {
    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn record_event(&self, pipeline: &TaskPipeline, type_: EventType, reason: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // The API server allows a kilobyte.
            note: Some(note.chars().take(900).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &pipeline.object_ref(&())).await {
            warn!(pipeline = status::name(pipeline), %error, "cannot write an Event");
        }
    }
}

/// Applies the pipeline and writes its status. Returns the fault that a user has to correct first, if there is one.
async fn carry_out(pipeline: &TaskPipeline, context: &Context) -> Result<Option<Invalid>, ReconcileError> {
    // The garbage collector deletes the owned objects.
    if pipeline.meta().deletion_timestamp.is_some() {
        return Ok(None);
    }
    let done = apply_all(pipeline, context).await;
    let live = match &done {
        Ok(Ok(deployment)) => Some(deployment.clone()),
        _ => live(pipeline, context).await?,
    };
    match done {
        Ok(Ok(deployment)) => {
            write_status(pipeline, context, &Outcome::Applied(&deployment)).await?;
            Ok(None)
        }
        Ok(Err(invalid)) => {
            write_status(pipeline, context, &Outcome::Invalid(&invalid, live.as_ref())).await?;
            Ok(Some(invalid))
        }
        Err(error) => {
            write_status(pipeline, context, &Outcome::Failed(&error.to_string(), live.as_ref())).await?;
            Err(error)
        }
    }
}

async fn apply_all(
    pipeline: &TaskPipeline,
    context: &Context,
) -> Result<Result<Deployment, Invalid>, ReconcileError> {
    let client = &context.client;
    // The limit of the namespace and the claims to Secrets depend on the other pipelines. Without a watch, there are none.
    let _ = context.pipelines.wait_until_ready().await;
    let all = context.pipelines.state();
    if let Err(invalid) = context.policy.admits(pipeline, &all) {
        return Ok(Err(invalid));
    }
    let found = dereference(client, pipeline, &all).await?;
    let validated = match validate(pipeline, &found, &context.policy) {
        Ok(validated) => validated,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let Objects { service_account, role, role_binding, service, disruption_budget, deployment } =
        build(pipeline, &validated, &context.image);
    apply(client, &service_account).await?;
    apply(client, &role).await?;
    apply(client, &role_binding).await?;
    apply(client, &service).await?;
    apply(client, &disruption_budget).await?;
    let mut live = apply(client, &deployment).await?;
    let (spec, suspend) = (pipeline.spec.replicas, pipeline.spec.suspend);
    if let Some(count) = replicas::wanted(spec, suspend, Some(&live)) {
        live = replicas::set(client, &live, count).await.map_err(ReconcileError::Replicas)?;
    }
    Ok(Ok(live))
}

async fn live(pipeline: &TaskPipeline, context: &Context) -> Result<Option<Deployment>, ReconcileError> {
    let namespace = pipeline.namespace().unwrap_or_default();
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &namespace);
    deployments.get_opt(&owned(&pipeline.name_any())).await.map_err(ReconcileError::Read)
}

/// Writes the status, and an Event if Degraded has begun, changed or ended.
async fn write_status(
    pipeline: &TaskPipeline,
    context: &Context,
    outcome: &Outcome<'_>,
) -> Result<(), ReconcileError> {
    let now = Time(k8s_openapi::jiff::Timestamp::now());
    let wanted = status(pipeline, outcome, &now);
    if let Some(conditions) = status::unknown(pipeline, wanted.ready_replicas, &now) {
        patch_status(pipeline, context, PROCESSOR_MANAGER, &json!({"conditions": conditions})).await?;
    }
    if is_said(pipeline, &wanted) {
        return Ok(());
    }
    let before = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    for condition in wanted.conditions.iter().filter(|condition| condition.type_ == "Degraded") {
        let was = before.iter().find(|before| before.type_ == condition.type_);
        let is_news =
            was.is_none_or(|was| (&was.status, &was.message) != (&condition.status, &condition.message));
        match condition.status.as_str() {
            "True" if is_news => {
                context
                    .record_event(pipeline, EventType::Warning, &condition.reason, &condition.message)
                    .await;
            }
            "False" if was.is_some_and(|was| was.status == "True") => {
                context
                    .record_event(
                        pipeline,
                        EventType::Normal,
                        "Recovered",
                        "the pipeline is no longer degraded",
                    )
                    .await;
            }
            _ => {}
        }
    }
    patch_status(pipeline, context, FIELD_MANAGER, &json!(wanted)).await?;
    info!(pipeline = status::name(pipeline), ready = %wanted.ready, "reconciled");
    Ok(())
}

async fn patch_status(
    pipeline: &TaskPipeline,
    context: &Context,
    manager: &str,
    status: &serde_json::Value,
) -> Result<(), ReconcileError> {
    let name = pipeline.name_any();
    let api: Api<TaskPipeline> =
        Api::namespaced(context.client.clone(), &pipeline.namespace().unwrap_or_default());
    let body = json!({
        "apiVersion": TaskPipeline::api_version(&()),
        "kind": TaskPipeline::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    let params = PatchParams::apply(manager).force();
    api.patch_status(&name, &params, &Patch::Apply(&body)).await.map_err(ReconcileError::Status)?;
    Ok(())
}
