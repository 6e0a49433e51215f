//! `cargo xtask e2e`: the operator and running pods on a real cluster.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};

use crate::cluster::{self, Caller, Choice, Cluster, Wanted};
use crate::compose;
use crate::images::{self, Names};
use crate::programs;
use crate::programs::Asked;
use crate::report::Report;
use crate::tools::Workshop;

/// The prefix of the images that are built here.
const PREFIX: &str = "taskpipeline.dev";

/// The tag of the images.
const TAG: &str = "e2e";

/// The feature that compiles the tests.
pub(crate) const FEATURE: &str = "taskpipeline-e2e-cluster/cluster";

/// The options of `e2e`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run a Kubernetes node directly on this machine, which changes the machine while the tests run; requires root and Debian
    #[arg(long, conflicts_with = "context")]
    host: bool,
    /// Use an existing cluster, by its context in the kubeconfig; the tests create their own namespaces
    #[arg(long, requires = "images")]
    context: Option<String>,
    /// Pull the images that `cargo xtask image --tests --prefix PREFIX --tag e2e` has built from this prefix
    #[arg(long, value_name = "PREFIX", requires = "context")]
    images: Option<String>,
    /// Get the programs of the cluster, the base images and the previous release, and run no test
    #[arg(long)]
    prepare: bool,
    /// Run only the tests whose names contain this text
    filter: Option<String>,
}

/// Runs the tests.
///
/// # Errors
/// If no cluster is possible and --host is not given.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let wanted = match (&options.context, options.host) {
        (Some(context), _) => Wanted::Context(context.clone()),
        (None, true) => Wanted::Host,
        (None, false) => Wanted::Harmless,
    };
    // This is first: without a cluster, nothing here may change the machine.
    let choice = cluster::choose(&wanted, Caller::Tests)?;
    if options.prepare {
        return prepare(shop, &choice).map(|()| ExitCode::SUCCESS);
    }
    let mut report = Report::begin();
    // The cluster is the first step, because it may be missing.
    let cluster = report.step(shop, "cluster", || Cluster::up(shop, &choice));
    if let Some(cluster) = &cluster {
        let names = Names::new(options.images.as_deref().unwrap_or(PREFIX), TAG);
        // If --images is given, the images are in a registry.
        let brought = options.images.is_some()
            || report.step(shop, "images", || bring(shop, cluster, &names)).is_some();
        if brought {
            report.tests(shop, "e2e", |tally| {
                let asked = if options.filter.is_some() { Asked::Some } else { Asked::All };
                programs::streamed(&mut tests(shop, cluster, &names, options)?, asked, tally)?;
                ensure!(tally.passed > 0, "no test ran");
                Ok(())
            });
        }
    }
    drop(cluster);
    if options.filter.is_none() && options.context.is_none() {
        compose::steps(shop, None, &mut report);
    }
    Ok(report.finish(true))
}

fn prepare(shop: &Workshop, choice: &Choice) -> Result<()> {
    cluster::prepare(shop, choice)?;
    images::prepare(shop)?;
    shop.promtool()?;
    shop.foreign_crds().map(drop)
}

/// Builds the images, prints their sizes, and loads them into the cluster.
fn bring(shop: &Workshop, cluster: &Cluster, names: &Names) -> Result<()> {
    let mut all = images::built(shop, names)?;
    all.extend(images::of_tests(shop, names)?);
    for image in &all {
        shop.progress.line(&format!("         {}: {}", image.name, image.size()?));
        cluster.load(&image.archive)?;
    }
    Ok(())
}

fn tests(shop: &Workshop, cluster: &Cluster, names: &Names, options: &Options) -> Result<Command> {
    let mut command = shop.workspace.cargo();
    // One test at a time, each with all its pods, is slow; all at once are too much for a small machine.
    command.args(["test", "--workspace", "--release", "--no-fail-fast", "--features", FEATURE]);
    let api_server = cluster.api_server()?;
    for test in ["together", "steady", "upgrade"] {
        command.args(["--test", test]);
    }
    if api_server.is_empty() {
        shop.progress.line("         without_api_server is left out: this API server is not ours to stop");
    } else {
        command.args(["--test", "without_api_server"]);
    }
    command.args(options.filter.iter());
    command.args(["--", "--show-output", "--test-threads", "4"]);
    for (variable, image) in [
        ("TASKPIPELINE_E2E_PROCESSOR", images::PROCESSOR),
        ("TASKPIPELINE_E2E_DEMO", images::DEMO),
        ("TASKPIPELINE_E2E_TOOLS", images::TOOLS),
        ("TASKPIPELINE_E2E_EARLIER", images::EARLIER),
    ] {
        command.env(variable, names.of(image));
    }
    command.env("TASKPIPELINE_E2E_EARLIER_CHART", shop.earlier_release()?.chart());
    command.env("KUBECONFIG", cluster.kubeconfig());
    command.env("TASKPIPELINE_HELM", shop.helm()?);
    command.env("TASKPIPELINE_PROMTOOL", shop.promtool()?);
    command.env("TASKPIPELINE_FOREIGN_CRDS", shop.foreign_crds()?);
    command.envs(api_server);
    Ok(command)
}
