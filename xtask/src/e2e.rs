//! `cargo xtask e2e`: the operator and running pods on a real cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Image, Wanted};
use crate::programs::Asked;
use crate::report::Report;
use crate::tools::Workshop;
use crate::{programs, run};

/// What the pods run, where it is packed here.
const IMAGE: &str = "taskpipeline.dev/e2e:1";

/// Without it the tests are not there.
pub(crate) const FEATURE: &str = "taskpipeline-e2e-cluster/cluster";

/// Where systems keep the CA certificates that they trust; the first is where the image has them.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What `e2e` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// On this very machine: root, on Debian
    #[arg(long, conflicts_with = "context")]
    host: bool,
    /// On a cluster that is there, by its context in the kubeconfig, in namespaces of the tests' own
    #[arg(long, requires = "image")]
    context: Option<String>,
    /// An image with the processor, the simulator, nats-server and e2e-load that the cluster can pull
    #[arg(long)]
    image: Option<String>,
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// Runs them.
///
/// # Errors
/// Where there is no cluster.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let mut report = Report::begin();
    let wanted = match (&options.context, options.host) {
        (Some(context), _) => Wanted::Context(context.clone()),
        (None, true) => Wanted::Host,
        (None, false) => Wanted::Any,
    };
    // The cluster first: it is what may be missing.
    let cluster = report.step(shop, "cluster", || Cluster::up(shop, &wanted));
    if let Some(cluster) = &cluster {
        let image = match &options.image {
            Some(image) => Some(image.clone()),
            None => report.step(shop, "image", || pack(shop, cluster)),
        };
        if let Some(image) = image {
            report.tests(shop, "e2e", |tally| {
                let asked = if options.filter.is_some() { Asked::Some } else { Asked::All };
                programs::streamed(&mut tests(shop, cluster, &image, options)?, asked, tally)?;
                ensure!(tally.passed > 0, "not a single test ran");
                Ok(())
            });
        }
    }
    drop(cluster);
    Ok(report.finish(true))
}

fn tests(shop: &Workshop, cluster: &Cluster, image: &str, options: &Options) -> Result<Command> {
    let mut command = shop.workspace.cargo();
    // One at a time and each with all its pods is slow; all at once is too much for a small machine.
    command.args(["test", "--workspace", "--release", "--no-fail-fast", "--features", FEATURE]);
    let api_server = cluster.api_server()?;
    for test in ["api_server", "helm", "monitoring", "operator", "pipeline", "rights", "steady", "values"] {
        command.args(["--test", test]);
    }
    if api_server.is_empty() {
        shop.progress.line("         without_api_server is left out: this API server is not ours to stop");
    } else {
        command.args(["--test", "without_api_server"]);
    }
    command.args(options.filter.iter());
    command.args(["--", "--show-output", "--test-threads", "4"]);
    command.env("TASKPIPELINE_E2E_IMAGE", image);
    command.env("KUBECONFIG", cluster.kubeconfig());
    command.env("TASKPIPELINE_HELM", shop.helm()?);
    command.env("TASKPIPELINE_PROMTOOL", shop.promtool()?);
    command.env("TASKPIPELINE_FOREIGN_CRDS", shop.foreign_crds()?);
    command.envs(api_server);
    Ok(command)
}

/// Builds the programs and brings them to the cluster as one image.
fn pack(shop: &Workshop, cluster: &Cluster) -> Result<String> {
    ensure!(
        cfg!(target_os = "linux"),
        "what is built here does not run in a Linux pod: name an image that does, by --image"
    );
    run::output(&mut shop.workspace.build(&["taskpipeline", "taskpipeline-simulator", "e2e-load"]))?;
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut programs = vec![("nats-server".to_owned(), shop.nats_server()?)];
    programs.extend(
        ["taskpipeline", "taskpipeline-simulator", "e2e-load"]
            .map(|name| (name.to_owned(), shop.workspace.binary(name))),
    );
    for (name, program) in programs {
        for library in libraries(&program)? {
            files.insert(library.to_string_lossy().into_owned(), library);
        }
        files.insert(format!("/{name}"), program);
    }
    let roots = CERTIFICATES.iter().map(Path::new).find(|file| file.exists());
    let roots = roots.context("there are no CA certificates here: install ca-certificates")?;
    files.insert(CERTIFICATES[0].to_owned(), roots.to_path_buf());
    let files: Vec<_> = files.iter().map(|(to, from)| (from.clone(), to.as_str())).collect();
    let archive = shop.workspace.target.join("e2e-image.tar");
    let image = Image { name: IMAGE, entrypoint: &["/taskpipeline"], user: "65532:65532", files: &files };
    image.write(&archive)?;
    cluster.load(&archive)?;
    Ok(IMAGE.to_owned())
}

/// The shared libraries that a program needs, its loader too; none where it is linked statically.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // ldd fails for a static program.
    let Ok(told) = run::output(Command::new("ldd").arg(program)) else { return Ok(Vec::new()) };
    told.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(|library| {
            let library = PathBuf::from(library);
            library
                .exists()
                .then_some(library)
                .with_context(|| format!("{} needs what is not there", program.display()))
        })
        .collect()
}
