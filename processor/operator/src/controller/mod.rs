//! The controller: runs a processor for each TaskPipeline. This file only starts and stops the parts.

mod apply;
mod build;
mod client;
mod covers;
mod dereference;
mod invalid;
mod leadership;
mod lease_owner;
mod metrics;
mod names;
mod policy;
mod reconcile;
#[cfg(test)]
mod reconcile_tests;
mod replicas;
mod seniority;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod validate;
mod watched;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ListParams};
use kube::runtime::controller::{Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Client, Resource};
use tracing::{debug, info, warn};

use crate::api::TaskPipeline;

use self::build::Image;
use self::leadership::Candidate;
use self::metrics::OperatorMetrics;
use self::names::FIELD_MANAGER;
use self::policy::Policy;
use self::reconcile::{Context, after_failure, reconcile};
use self::server::State;

/// How many pipelines are reconciled at a time.
const CONCURRENCY: u16 = 4;

/// The time in which changes of a pipeline are collected before a reconcile.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// The interval between two checks whether the CRD is installed.
const CRD: Duration = Duration::from_secs(5);

/// The options of `taskpipeline operator`.
#[derive(Clone, Debug, clap::Args)]
pub struct Operator {
    /// Reconcile the pipelines of all namespaces, not only of its own
    #[arg(long)]
    all_namespaces: bool,
    /// The namespace of the operator and of its Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The Lease by which one of several operators becomes leader
    #[arg(long, env = "LEASE_NAME", default_value = "taskpipeline-operator")]
    lease: String,
    /// The Deployment of the operator, which becomes the owner of the Lease
    #[arg(long, env = "OPERATOR_DEPLOYMENT")]
    deployment: Option<String>,
    /// The name of this operator in the Lease
    #[arg(long, env = "POD_NAME", default_value_t = uuid::Uuid::new_v4().simple().to_string())]
    identity: String,
    /// The image of the replicas
    #[arg(long, env = "PROCESSOR_IMAGE")]
    image: String,
    /// The pull policy of the image: Always, IfNotPresent or Never
    #[arg(long, env = "PROCESSOR_IMAGE_PULL_POLICY")]
    image_pull_policy: Option<String>,
    /// The Secrets with which the image is pulled, separated by commas
    #[arg(long, env = "PROCESSOR_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    image_pull_secrets: Vec<String>,
    #[command(flatten)]
    policy: Policy,
    /// The listen address of /livez, /readyz and /metrics [default: all addresses]
    #[arg(long, env = "HOST")]
    host: Option<IpAddr>,
    /// The listen port
    #[arg(long, env = "PORT", default_value_t = 3002)]
    port: u16,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The API server cannot be reached.
    #[error(
        "cannot connect to the API server. In a cluster, check the service account; elsewhere, the kubeconfig"
    )]
    Client(#[from] kube::Error),
    /// The configuration of the client is invalid.
    #[error("cannot find the cluster")]
    Infer(#[from] kube::config::InferConfigError),
    /// The metrics cannot be registered.
    #[error("cannot register metrics")]
    Metrics(#[from] prometheus::Error),
    /// Leases cannot be used.
    #[error("cannot use Leases")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
    /// The Lease is lost, so another operator may be the leader.
    #[error("lost the Lease: the operator exits, and its pod starts again")]
    Lost,
}

/// An operator that has found its cluster and has not started yet.
pub struct Prepared {
    operator: Operator,
    client: Client,
    metrics: OperatorMetrics,
    state: Arc<State>,
}

impl Operator {
    /// The listen address and port of `/livez`, `/readyz` and `/metrics`. No address means all addresses.
    #[must_use]
    pub fn address(&self) -> (Option<IpAddr>, u16) {
        (self.host, self.port)
    }

    /// Finds the cluster.
    ///
    /// # Errors
    /// If no cluster is configured.
    pub async fn prepare(self) -> Result<Prepared, OperatorError> {
        let metrics = OperatorMetrics::new()?;
        let client = client::client(&metrics).await?;
        Ok(Prepared { operator: self, client, metrics, state: Arc::default() })
    }
}

impl Prepared {
    /// The HTTP endpoints of the operator.
    pub fn routes(&self) -> axum::Router {
        server::routes(Arc::clone(&self.state), self.metrics.registry.clone())
    }

    /// Works until `shutdown` resolves.
    ///
    /// # Errors
    /// If the Lease is lost.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + Sync + 'static,
    ) -> Result<(), OperatorError> {
        let Self { operator, client, metrics, state } = self;
        operator.work(client, metrics, state, shutdown).await
    }
}

impl Operator {
    async fn work(
        self,
        client: Client,
        metrics: OperatorMetrics,
        state: Arc<State>,
        shutdown: impl Future<Output = ()> + Send + Sync + 'static,
    ) -> Result<(), OperatorError> {
        let mut shutdown = Box::pin(shutdown);
        let candidate = Candidate {
            namespace: self.namespace.clone(),
            lease: self.lease.clone(),
            identity: self.identity.clone(),
        };
        let leadership = tokio::select! {
            // A standby operator is ready too.
            led = async {
                self.crd_is_there(&client, &state).await;
                state.ready();
                leadership::lead(client.clone(), candidate.clone()).await
            } => led?,
            () = &mut shutdown => return Ok(()),
        };
        metrics.leader.set(1);
        // In the background, because the work does not need it.
        if let Some(deployment) = self.deployment.clone() {
            tokio::spawn(lease_owner::hand_over(client.clone(), candidate, deployment));
        }
        let reporter =
            Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(self.identity.clone()) };
        let (kept, changes) = watched::pipelines(self.api(&client));
        let controller = Controller::for_stream(changes, kept);
        let context = Arc::new(Context {
            client: client.clone(),
            image: Image {
                name: self.image.clone(),
                pull_policy: self.image_pull_policy.clone(),
                pull_secrets: self.image_pull_secrets.clone(),
            },
            policy: self.policy.clone(),
            pipelines: controller.store(),
            recorder: Recorder::new(client.clone(), reporter),
            metrics,
            failures: Default::default(),
        });
        tokio::select! {
            () = self.control(controller, client, context, shutdown) => Ok(()),
            () = leadership.lost() => Err(OperatorError::Lost),
        }
    }

    /// The objects of a kind in the namespaces of this operator.
    fn api<T>(&self, client: &Client) -> Api<T>
    where
        T: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        if self.all_namespaces {
            Api::all(client.clone())
        } else {
            Api::namespaced(client.clone(), &self.namespace)
        }
    }

    async fn crd_is_there(&self, client: &Client, state: &State) {
        let pipelines: Api<TaskPipeline> = self.api(client);
        loop {
            match pipelines.list(&ListParams::default().limit(1)).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let what =
                        "the CRD of TaskPipelines is not installed: `taskpipeline crd | kubectl apply -f -`";
                    warn!(
                        error = what,
                        retry_in_seconds = CRD.as_secs(),
                        "cannot list TaskPipelines; retrying"
                    );
                    state.waits_for(what);
                }
                Err(error) => {
                    warn!(%error, retry_in_seconds = CRD.as_secs(), "cannot list TaskPipelines; retrying");
                    state.waits_for("cannot list TaskPipelines");
                }
            }
            tokio::time::sleep(CRD).await;
        }
    }

    async fn control(
        &self,
        controller: Controller<TaskPipeline>,
        client: Client,
        context: Arc<Context>,
        shutdown: impl Future<Output = ()> + Send + Sync + 'static,
    ) {
        let ours =
            || watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={FIELD_MANAGER}"));
        controller
            .with_config(Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE))
            .owns(self.api::<Deployment>(&client), ours())
            .owns(self.api::<ServiceAccount>(&client), ours())
            .owns(self.api::<Role>(&client), ours())
            .owns(self.api::<RoleBinding>(&client), ours())
            .owns(self.api::<Service>(&client), ours())
            .owns(self.api::<PodDisruptionBudget>(&client), ours())
            .graceful_shutdown_on(shutdown)
            .run(reconcile, after_failure, context)
            .for_each(|result| async move {
                match result {
                    Ok((pipeline, _)) => debug!(%pipeline, "reconciled"),
                    // The step that failed has logged it at a higher level.
                    Err(error) => debug!(%error, "the controller reports an error"),
                }
            })
            .await;
        info!("the operator has ended");
    }
}
