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

/// What the images are called that are built here.
const PREFIX: &str = "taskpipeline.dev";

/// Their tag.
const TAG: &str = "e2e";

/// Without it the tests are not there.
pub(crate) const FEATURE: &str = "taskpipeline-e2e-cluster/cluster";

/// What `e2e` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run a Kubernetes node directly on this machine, which changes it while the tests run: root, on Debian
    #[arg(long, conflicts_with = "context")]
    host: bool,
    /// On a cluster that is there, by its context in the kubeconfig, in namespaces of the tests' own
    #[arg(long, requires = "images")]
    context: Option<String>,
    /// Where that cluster can pull what `cargo xtask image --tests --prefix PREFIX --tag e2e` has built
    #[arg(long, value_name = "PREFIX", requires = "context")]
    images: Option<String>,
    /// Only get what it takes: the cluster's programs, the images' bases, the release before this one
    #[arg(long)]
    prepare: bool,
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// Runs them.
///
/// # Errors
/// Where there is no cluster, and --host was not given.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let wanted = match (&options.context, options.host) {
        (Some(context), _) => Wanted::Context(context.clone()),
        (None, true) => Wanted::Host,
        (None, false) => Wanted::Harmless,
    };
    // Before anything else: without a cluster, nothing here may change the machine.
    let choice = cluster::choose(&wanted, Caller::Tests)?;
    if options.prepare {
        return prepare(shop, &choice).map(|()| ExitCode::SUCCESS);
    }
    let mut report = Report::begin();
    // The cluster first: it is what may be missing.
    let cluster = report.step(shop, "cluster", || Cluster::up(shop, &choice));
    if let Some(cluster) = &cluster {
        let names = Names::new(options.images.as_deref().unwrap_or(PREFIX), TAG);
        // Those of a registry are there.
        let brought = options.images.is_some()
            || report.step(shop, "images", || bring(shop, cluster, &names)).is_some();
        if brought {
            report.tests(shop, "e2e", |tally| {
                let asked = if options.filter.is_some() { Asked::Some } else { Asked::All };
                programs::streamed(&mut tests(shop, cluster, &names, options)?, asked, tally)?;
                ensure!(tally.passed > 0, "not a single test ran");
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

/// Builds the images, shows how large they are, and brings them to the cluster.
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
    // One at a time and each with all its pods is slow; all at once is too much for a small machine.
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
