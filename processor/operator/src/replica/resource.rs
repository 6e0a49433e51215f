//! A replica's own resource in the cluster: its settings are taken over as they change, and what the replica sees is said
//! in its status, by the one that writes to KV. The pipeline does not depend on it: while the API server is away the last
//! settings hold, which a restarted container finds in its state directory.

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

/// How long a start waits for the API server before it goes on with what it knows.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which resource.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where the last settings are kept, if anywhere.
    pub state: Option<PathBuf>,
}

impl Own {
    fn file(&self) -> Option<PathBuf> {
        self.state.as_ref().map(|directory| directory.join("pipeline.json"))
    }

    /// The resource as it is, or as it was when it was seen last.
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

    /// Keeps it for a restart.
    fn keep(&self, pipeline: &TaskPipeline) {
        let Some(file) = self.file() else { return };
        let kept = serde_json::to_vec(pipeline)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&file, bytes));
        if let Err(error) = kept {
            debug!(file = %file.display(), %error, "cannot keep the settings in a file");
        }
    }

    /// Takes over what changes in the resource, for ever, and shows it to `latest`.
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
/// Where there is none.
pub async fn client() -> Result<Client, kube::Error> {
    // One crypto provider for the whole process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_default().await
}

/// Hands the settings of a resource over to the pipeline that runs; in mode Core a replica takes its part of them. Answers
/// whether they can be used at all.
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

/// How many replicas there are or will be in a moment, whichever is more: together they must not overspend.
fn replicas(pipeline: &TaskPipeline) -> NonZeroU32 {
    let there = pipeline.status.as_ref().map_or(0, |status| status.replicas);
    let wanted = pipeline.spec.replicas.unwrap_or(0);
    u32::try_from(wanted.max(there)).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}
