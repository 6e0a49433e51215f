//! Helm, with the chart of this clone or of the previous release, and the images of the tests' pods.

use std::path::PathBuf;

use anyhow::{Context, bail};
use tokio::process::Command;

use crate::images::told;
use crate::{Image, Namespace};

/// A chart, and the image of its operator and its processor.
#[derive(Clone, Debug)]
pub struct Chart {
    path: PathBuf,
    processor: Image,
}

impl Chart {
    /// The chart of this clone.
    #[must_use]
    pub fn current() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/taskpipeline");
        Self { path: path.into(), processor: Image::Processor }
    }

    /// The chart of the previous release.
    ///
    /// # Errors
    /// If `cargo xtask e2e` did not set its path.
    pub fn earlier() -> anyhow::Result<Self> {
        Ok(Self { path: told("TASKPIPELINE_E2E_EARLIER_CHART")?.into(), processor: Image::Earlier })
    }

    /// The arguments that name the chart and its image.
    fn arguments(&self) -> anyhow::Result<Vec<String>> {
        let mut arguments = vec![self.path.to_string_lossy().into_owned()];
        for (value, image) in
            [("image", self.processor), ("demo.image", Image::Demo), ("nats.image", Image::Tools)]
        {
            let image = image.name()?;
            let (repository, tag) = image.rsplit_once(':').context("the image has no tag")?;
            // The tag is set as a string, because it may look like a number.
            arguments.push("--set-string".to_owned());
            arguments.push(format!("{value}.repository={repository},{value}.tag={tag}"));
        }
        arguments.extend(["--set".to_owned(), "nats.jetstream.size=100Mi".to_owned()]);
        Ok(arguments)
    }
}

/// A release in a namespace.
pub struct Helm {
    program: PathBuf,
    namespace: String,
    release: String,
}

impl Helm {
    /// A release in this namespace.
    ///
    /// # Errors
    /// If `cargo xtask e2e` did not set the path of Helm.
    pub fn new(namespace: &Namespace, release: &str) -> anyhow::Result<Self> {
        let program = told("TASKPIPELINE_HELM")?;
        Ok(Self { program: program.into(), namespace: namespace.name.clone(), release: release.to_owned() })
    }

    /// Installs the chart, and returns the notes. `values` are `name=value`.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn install(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<String> {
        self.run("install", &self.release_of(chart, values)?, &["--wait", "--timeout", "180s"]).await
    }

    /// Upgrades the release, with these values in addition to the existing ones.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn upgrade(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<String> {
        let more = ["--reset-then-reuse-values", "--wait", "--timeout", "180s"];
        self.run("upgrade", &self.release_of(chart, values)?, &more).await
    }

    /// Renders the manifests of an installation.
    ///
    /// # Errors
    /// If Helm fails, for example because the schema refuses a value.
    pub async fn template(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<String> {
        self.run("template", &self.release_of(chart, values)?, &["--include-crds"]).await
    }

    /// Returns the effects and the output of `helm install`, without Secrets.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn dry_run(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<String> {
        let more = ["--dry-run=server", "--hide-secret"];
        self.run("install", &self.release_of(chart, values)?, &more).await
    }

    /// Runs `helm lint --strict`.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn lint(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<String> {
        let mut arguments = chart.arguments()?;
        arguments.extend(set(values));
        self.run("lint", &arguments, &["--strict"]).await
    }

    /// Runs `helm test`, and returns its log.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn test(&self) -> anyhow::Result<String> {
        self.run("test", std::slice::from_ref(&self.release), &["--logs", "--timeout", "120s"]).await
    }

    /// Uninstalls the release.
    ///
    /// # Errors
    /// If Helm fails; the error has its output.
    pub async fn uninstall(&self) -> anyhow::Result<String> {
        self.run("uninstall", std::slice::from_ref(&self.release), &["--wait", "--timeout", "120s"]).await
    }

    fn release_of(&self, chart: &Chart, values: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut arguments = vec![self.release.clone()];
        arguments.extend(chart.arguments()?);
        arguments.extend(set(values));
        Ok(arguments)
    }

    async fn run(&self, what: &str, arguments: &[String], more: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.arg(what).args(arguments).args(more).args(["--namespace", &self.namespace]);
        let done = command.kill_on_drop(true).output().await.context("cannot run Helm")?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if !done.status.success() {
            bail!("helm {what} failed:\n{said}");
        }
        Ok(said)
    }
}

fn set(values: &[&str]) -> impl Iterator<Item = String> {
    values.iter().flat_map(|value| ["--set".to_owned(), (*value).to_owned()])
}
