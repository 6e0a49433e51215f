//! Says in the status of a pipeline's resource what the replica that writes to KV sees. Writes only what has changed, and
//! does not mind when nobody listens: the pipeline goes on without.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::conditions::{Seen, conditions};
use super::resource::Own;
use crate::api::{Mode, PROCESSOR_MANAGER, TaskPipeline};
use taskpipeline_pipeline::telemetry::Telemetry;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);

/// In mode Core each replica writes to KV, and any of them may say what it sees; two that see different things do not
/// correct each other more often than this.
const CORRECTION: Duration = Duration::from_secs(30);

/// Writes the conditions of the writing replica into the resource's status, when they have changed.
pub struct Report {
    /// Whose status.
    pub own: Own,
    /// As this pod.
    pub client: Client,
    /// What is seen.
    pub telemetry: Telemetry,
    /// Why the newest settings are not in effect.
    pub refused: watch::Receiver<Option<String>>,
    /// The resource, as it was seen last.
    pub latest: watch::Receiver<Option<TaskPipeline>>,
}

impl Report {
    /// Looks and writes, for ever.
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
            // What was written a moment ago has not been seen yet, or was another replica's to correct.
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

    fn seen(&self) -> Seen {
        let health = &self.telemetry.health;
        Seen {
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

/// Whether two say the same, whenever it was.
fn same(one: &[Condition], other: &[Condition]) -> bool {
    let what = |condition: &Condition| {
        let Condition { type_, status, reason, message, observed_generation, .. } = condition.clone();
        (type_, status, reason, message, observed_generation)
    };
    one.iter().map(what).eq(other.iter().map(what))
}
