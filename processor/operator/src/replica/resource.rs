//! A replica's own resource in the cluster. The replica applies changes of its settings, and the writer reports its conditions
//! in the status. The pipeline does not depend on the API server. While the API server is unavailable, the last settings stay
//! in effect; a restarted container reads them from its state directory.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::Client;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tracing::{debug, warn};

use taskpipeline_pipeline::live::Live;
use taskpipeline_pipeline::settings::PipelineSettings;

use crate::api::TaskPipeline;

/// How long a start waits for the API server before it uses the last known settings.
const PATIENCE: Duration = Duration::from_secs(10);

/// The resource of this replica.
#[derive(Clone, Debug)]
pub struct OwnResource {
    /// The namespace of the resource.
    pub namespace: String,
    /// The name of the resource.
    pub name: String,
    /// The directory for the last settings, if there is one.
    pub state: Option<PathBuf>,
}

impl OwnResource {
    fn file(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|directory| directory.join("pipeline.json"))
    }

    /// The present resource, or the last known one if the API server does not answer.
    pub async fn read(&self, client: &Client) -> Option<TaskPipeline> {
        let api: Api<TaskPipeline> = Api::namespaced(client.clone(), &self.namespace);
        match tokio::time::timeout(PATIENCE, api.get(&self.name)).await {
            Ok(Ok(pipeline)) => return Some(pipeline),
            Ok(Err(error)) => warn!(pipeline = self.name, %error, "cannot read the TaskPipeline"),
            Err(_) => warn!(pipeline = self.name, error = "no answer", "cannot read the TaskPipeline"),
        }
        let known = serde_json::from_slice(&std::fs::read(self.file()?).ok()?).ok();
        if known.is_some() {
            warn!("continuing with the last known settings");
        }
        known
    }

    /// Stores the resource for a restart.
    fn keep(&self, pipeline: &TaskPipeline) {
        let Some(file) = self.file() else { return };
        let kept = serde_json::to_vec(pipeline)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&file, bytes));
        if let Err(error) = kept {
            debug!(file = %file.display(), %error, "cannot keep the settings in a file");
        }
    }

    /// Applies changes of the resource, indefinitely, and sends each version to `latest`.
    pub async fn follow(self, client: Client, live: Live, latest: watch::Sender<Option<TaskPipeline>>) {
        let api: Api<TaskPipeline> = Api::namespaced(client, &self.namespace);
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut changes = Box::pin(watcher(api, only).default_backoff().applied_objects());
        loop {
            match changes.try_next().await {
                Ok(Some(pipeline)) => {
                    if hand_over(&pipeline, &live) {
                        self.keep(&pipeline);
                    }
                    latest.send_replace(Some(pipeline));
                }
                Ok(None) => return,
                Err(error) => debug!(pipeline = self.name, %error, "cannot watch the TaskPipeline"),
            }
        }
    }
}

/// A client of the cluster that this pod runs in.
///
/// # Errors
/// If no cluster is configured.
pub async fn client() -> Result<Client, kube::Error> {
    // One crypto provider for the whole process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_default().await
}

/// Gives the settings of a resource to the running pipeline. In mode Core a replica takes its share of the budget. Returns
/// whether the settings are valid.
pub fn hand_over(pipeline: &TaskPipeline, live: &Live) -> bool {
    match PipelineSettings::try_from(&pipeline.spec) {
        Ok(settings) => live.accept_shared(settings.tuning, replicas(pipeline)),
        Err(error) => {
            live.refuse(&error.to_string());
            return false;
        }
    }
    true
}

/// The greater of the present and the wanted number of replicas, so that together they stay within the budget.
fn replicas(pipeline: &TaskPipeline) -> NonZeroU32 {
    let there = pipeline.status.as_ref().map_or(0, |status| status.replicas);
    let wanted = pipeline.spec.replicas.unwrap_or(0);
    u32::try_from(wanted.max(there)).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}
