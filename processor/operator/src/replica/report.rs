//! Writes the conditions of the writer into the status of the pipeline's resource. Writes only changes, and tolerates an
//! unreachable API server, because the pipeline does not depend on the status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::conditions::{PipelineState, conditions};
use super::resource::OwnResource;
use crate::api::{Mode, PROCESSOR_MANAGER, TaskPipeline};
use taskpipeline_pipeline::telemetry::Telemetry;

/// The interval between two checks of the conditions.
const LOOK: Duration = Duration::from_secs(2);

/// The least time between two corrections in mode Core. There every replica is a writer, and two replicas with different
/// views could correct each other endlessly.
const CORRECTION: Duration = Duration::from_secs(30);

/// Writes the conditions of the writing replica into the resource's status, when they have changed.
pub struct Report {
    /// The resource with the status.
    pub own: OwnResource,
    /// A client with the rights of this pod.
    pub client: Client,
    /// The health of this replica.
    pub telemetry: Telemetry,
    /// Why the newest settings are not in effect.
    pub refused: watch::Receiver<Option<String>>,
    /// The last known resource.
    pub latest: watch::Receiver<Option<TaskPipeline>>,
}

impl Report {
    /// Checks and writes the conditions, indefinitely.
    pub async fn run(mut self) {
        let mut said: Option<(Vec<Condition>, Instant)> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(pipeline) = self.latest.borrow_and_update().clone() else { continue };
            if !self.telemetry.health.is_writing() {
                said = None;
                continue;
            }
            let old = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let now = Time(k8s_openapi::jiff::Timestamp::now());
            let wanted = conditions(&self.seen(), old, pipeline.metadata.generation, &now);
            let is_said = wanted.iter().all(|condition| old.contains(condition));
            // A recent write may not be visible yet, or another replica may have corrected it.
            let pause = if pipeline.spec.delivery.mode == Mode::Core { CORRECTION } else { LOOK * 2 };
            let is_on_its_way =
                said.as_ref().is_some_and(|(said, at)| same(said, &wanted) && at.elapsed() < pause);
            if is_said || is_on_its_way {
                continue;
            }
            match self.write(&pipeline, &wanted).await {
                Ok(()) => said = Some((wanted, Instant::now())),
                Err(error) => debug!(%error, "cannot write the conditions"),
            }
        }
    }

    fn seen(&self) -> PipelineState {
        let health = &self.telemetry.health;
        PipelineState {
            nats: health.nats(),
            kv: health.kv(),
            late: health.late(),
            filling: health.filling(),
            stalled: health.stalled(),
            oldest: health.oldest_event().max(health.oldest_change()),
            dead_letters: health.dead_letters(),
            refused: self.refused.borrow().clone(),
        }
    }

    async fn write(&self, pipeline: &TaskPipeline, conditions: &[Condition]) -> Result<(), kube::Error> {
        let name = pipeline.name_any();
        let api: Api<TaskPipeline> = Api::namespaced(self.client.clone(), &self.own.namespace);
        let body = json!({
            "apiVersion": TaskPipeline::api_version(&()),
            "kind": TaskPipeline::kind(&()),
            "metadata": {"name": name},
            "status": {"conditions": conditions},
        });
        let params = PatchParams::apply(PROCESSOR_MANAGER).force();
        api.patch_status(&name, &params, &Patch::Apply(&body)).await.map(drop)
    }
}

/// Whether two lists of conditions are equal, apart from the times.
fn same(one: &[Condition], other: &[Condition]) -> bool {
    let what = |condition: &Condition| {
        let Condition { type_, status, reason, message, observed_generation, .. } = condition.clone();
        (type_, status, reason, message, observed_generation)
    };
    one.iter().map(what).eq(other.iter().map(what))
}
