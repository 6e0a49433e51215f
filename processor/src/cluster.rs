//! The commands and options for TaskPipelines, in a cluster or in a file.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Subcommand;
use taskpipeline_operator::api::{Mode, TaskPipelineSpec};
use taskpipeline_operator::controller::Operator;
use taskpipeline_operator::crd::{Crd, CrdError};
use taskpipeline_operator::replica::file;
use taskpipeline_operator::replica::report::Report;
use taskpipeline_operator::replica::resource::{self, OwnResource};
use taskpipeline_pipeline::live::Live;
use taskpipeline_pipeline::settings::{Delivery, Settings};
use taskpipeline_pipeline::telemetry::Telemetry;
use tokio::sync::watch;
use tracing::info;

use crate::environment::{self, LogFormat};
use crate::{http, logs, serve_and_run, shutdown};

/// The commands for a cluster.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the operator, which reconciles TaskPipelines into Deployments
    Operator(Box<Operator>),
    /// Print the CustomResourceDefinition of TaskPipelines, or apply it; exit status 2 if the cluster has a later one
    Crd(Crd),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Operator(operator) => {
                logs::start(LogFormat::from_env());
                let shutdown = shutdown()?;
                let address = operator.address();
                let prepared = operator.prepare().await?;
                let address = http::serve(address, prepared.routes()).await?;
                info!(version = env!("CARGO_PKG_VERSION"), %address, "serving health and metrics of the operator");
                Ok(prepared.run(shutdown).await?)
            }
            Self::Crd(crd) => {
                match crd.run().await {
                    Ok(said) => print!("{said}"),
                    // This error has its own exit status: unlike other errors, it does not go away with another try.
                    Err(newer @ CrdError::Newer { .. }) => {
                        eprintln!("error: {newer}");
                        std::process::exit(2);
                    }
                    Err(other) => return Err(other.into()),
                }
                Ok(())
            }
        }
    }
}

/// The TaskPipeline that a replica follows, if any.
#[derive(clap::Args)]
pub(crate) struct Followed {
    /// Read the settings from this file with a TaskPipeline, also when it changes; secrets stay in the environment
    #[arg(long, conflicts_with = "resource")]
    file: Option<PathBuf>,
    /// Read the settings from this TaskPipeline in the namespace POD_NAMESPACE, also when it changes
    #[arg(long)]
    resource: Option<String>,
}

impl Followed {
    /// Whether a TaskPipeline is followed.
    pub(crate) fn is_any(&self) -> bool {
        self.file.is_some() || self.resource.is_some()
    }

    /// Runs the pipeline with the settings of the TaskPipeline, until `shutdown` resolves.
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        match (self.file, self.resource) {
            (Some(path), _) => by_file(path, shutdown).await,
            (None, Some(name)) => by_resource(name, shutdown).await,
            (None, None) => Ok(()),
        }
    }
}

/// The file has all settings but secrets and listen addresses, which come from the environment.
async fn by_file(path: PathBuf, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let telemetry = Telemetry::new()?;
    let seen = file::look(&path);
    let (pipeline, mut settings) = file::read(&path)?;
    let spec = pipeline.spec;
    let lookup = |name: &str| beside_a_file(&spec, name, &environment::process);
    let environment::Run { settings: Settings { connection, kv, pipeline: around }, http } =
        environment::run(&lookup)?;
    settings.shutdown_grace = around.shutdown_grace;
    match (&mut settings.delivery, around.delivery) {
        (Delivery::Core(core), Delivery::Core(around)) => *core = around,
        (Delivery::Durable(durable), Delivery::Durable(around)) => durable.ack_wait = around.ack_wait,
        _ => {}
    }
    let (live, changes) =
        Live::new(settings.tuning.clone(), settings.delivery.clone(), Arc::clone(&telemetry.metrics));
    tokio::spawn(file::follow(path, seen, live));
    let settings = Settings { connection, kv, pipeline: settings };
    serve_and_run(environment::Run { settings, http }, changes, telemetry, shutdown).await
}

/// The variables that are read beside a file: secrets, addresses, and settings of the process. Every other variable
/// would contradict the file.
fn beside_a_file(
    spec: &TaskPipelineSpec,
    name: &str,
    process: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    match name {
        "NATS_URL" => Some(spec.nats.url.clone()),
        "DELIVERY_MODE" => Some(if spec.delivery.mode == Mode::Core { "Core" } else { "Durable" }.to_owned()),
        "ACK_WAIT" | "SHUTDOWN_GRACE" => spec.processor.env.get(name).cloned().or_else(|| process(name)),
        "CORE_REPLICAS" | "HOST" | "PORT" | "LOG_FORMAT" => process(name),
        _ if name.starts_with("CF_") || name.starts_with("NATS_") => process(name),
        _ => None,
    }
}

/// The environment has the settings that are fixed for the life of a pod; the resource has the others.
async fn by_resource(name: String, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let telemetry = Telemetry::new()?;
    let run = environment::run(&environment::process)?;
    let own = OwnResource {
        namespace: std::env::var("POD_NAMESPACE").context("POD_NAMESPACE is not set")?,
        name,
        state: std::env::var_os("STATE_DIRECTORY").map(PathBuf::from),
    };
    let client = resource::client().await?;
    let pipeline = own.read(&client).await;
    let pipeline_settings = &run.settings.pipeline;
    let (live, changes) = Live::new(
        pipeline_settings.tuning.clone(),
        pipeline_settings.delivery.clone(),
        Arc::clone(&telemetry.metrics),
    );
    if let Some(pipeline) = &pipeline {
        resource::hand_over(pipeline, &live);
    }
    let (latest, seen) = watch::channel(pipeline);
    let report = Report {
        own: own.clone(),
        client: client.clone(),
        telemetry: telemetry.clone(),
        refused: live.refused(),
        latest: seen,
    };
    tokio::spawn(report.run());
    tokio::spawn(own.follow(client, live, latest));
    serve_and_run(run, changes, telemetry, shutdown).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_hides_the_variables_that_would_set_what_it_sets() {
        let file = r#"
            apiVersion: taskpipeline.dev/v1alpha1
            kind: TaskPipeline
            metadata: {name: tasks}
            spec:
              nats: {url: "nats://n:4222"}
              kv: {secretRef: {name: kv}}
              processor: {env: {ACK_WAIT: 7s}}
        "#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipeline.yaml");
        std::fs::write(&path, file).unwrap();
        let (pipeline, _) = file::read(&path).unwrap();
        let process = |name: &str| match name {
            "STREAM_NAME" => Some("a.b".to_owned()),
            "SETTLE_AFTER" => Some("soon".to_owned()),
            "NATS_URL" => Some("nats://elsewhere".to_owned()),
            "ACK_WAIT" => Some("9s".to_owned()),
            "CF_ACCOUNT_ID" | "CF_NAMESPACE_ID" | "CF_API_TOKEN" => Some("x".to_owned()),
            _ => None,
        };
        let read = environment::run(&|name| beside_a_file(&pipeline.spec, name, &process)).unwrap();
        assert_eq!(read.settings.connection.to_string(), "n:4222");
        let Delivery::Durable(durable) = read.settings.pipeline.delivery else { panic!("not Durable") };
        assert_eq!(durable.ack_wait.as_secs(), 7);
        assert!(environment::run(&process).is_err(), "the same variables without a file");
    }
}
