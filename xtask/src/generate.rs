//! `cargo xtask generate`: writes the generated files of the clone, or lists those that are out of date.
//!
//! Knows the sources and the tool of each file.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;

/// The options of `generate`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing, and fail if a file is out of date
    #[arg(long)]
    check: bool,
}

/// A generated file and its text.
#[derive(Debug, PartialEq, Eq)]
struct Generated {
    /// The path from the top of the clone.
    path: &'static str,
    text: String,
}

/// The paths of the CRD: for kubectl, and for Helm.
const CRDS: [&str; 2] = ["manifests/crd/taskpipelines.yaml", "charts/taskpipeline/crds/taskpipelines.yaml"];

/// The folder of the chart.
const CHART: &str = "charts/taskpipeline";

/// A part of the chart that is also a manifest for kubectl.
struct Manifest {
    path: &'static str,
    release: &'static str,
    chart: &'static str,
    namespace: &'static str,
    /// Whether the manifest fits any namespace; otherwise it names its own.
    anywhere: bool,
    values: &'static [&'static str],
}

/// The user's own Secrets, in place of generated ones.
const LOGINS: &str = "auth.processorSecret=tasks-nats-processor,auth.producers[0].name=producer,\
                      auth.producers[0].secretName=tasks-nats-producer,auth.routesSecret=tasks-nats-routes";

const MANIFESTS: [Manifest; 3] = [
    Manifest {
        path: "manifests/install/operator.yaml",
        release: "taskpipeline",
        chart: CHART,
        namespace: "taskpipeline-system",
        anywhere: false,
        values: &["crds.upgrade=false,operator.allNamespaces=true,pipeline.enabled=false,nats.enabled=false"],
    },
    Manifest {
        path: "manifests/nats/nats.yaml",
        release: "tasks",
        chart: "charts/taskpipeline/charts/nats",
        namespace: "default",
        anywhere: true,
        values: &[LOGINS],
    },
    Manifest {
        path: "manifests/nats-three/nats.yaml",
        release: "tasks",
        chart: "charts/taskpipeline/charts/nats",
        namespace: "default",
        anywhere: true,
        values: &[LOGINS, "replicas=3"],
    },
];

/// Writes the files that are out of date, or fails because of them.
///
/// # Errors
/// If a tool is missing or fails, a file cannot be written, or a checked file is out of date.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    shop.progress.step("build", || run::output(&mut shop.workspace.build(&["taskpipeline"])))?;
    if options.check {
        check(shop)?;
        return Ok(ExitCode::SUCCESS);
    }
    let files = all(shop)?;
    for Generated { path, text } in stale(&files, |path| kept(&shop.workspace.root, path)) {
        let file = shop.workspace.root.join(path);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        say(path);
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that every generated file is up to date. Requires a built `taskpipeline`.
///
/// # Errors
/// Names each file that is out of date. Also if a tool is missing or fails.
pub(crate) fn check(shop: &Workshop) -> Result<()> {
    let files = all(shop)?;
    let stale: Vec<_> = stale(&files, |path| kept(&shop.workspace.root, path)).map(|it| it.path).collect();
    ensure!(stale.is_empty(), "out of date: {}; run `cargo xtask generate`", stale.join(", "));
    Ok(())
}

fn kept(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok()
}

/// Lists the files that differ from the clone, or are missing from it.
fn stale(files: &[Generated], kept: impl Fn(&str) -> Option<String>) -> impl Iterator<Item = &Generated> {
    files.iter().filter(move |file| kept(file.path).as_ref() != Some(&file.text))
}

fn all(shop: &Workshop) -> Result<Vec<Generated>> {
    let crd = run::output(Command::new(shop.workspace.binary("taskpipeline")).arg("crd"))?;
    let mut files: Vec<_> = CRDS.map(|path| Generated { path, text: crd.clone() }).into();
    let helm = shop.helm()?;
    for manifest in &MANIFESTS {
        files.push(Generated { path: manifest.path, text: manifest.render(shop, &helm)? });
    }
    files.push(Generated { path: "charts/taskpipeline/README.md", text: readme(shop)? });
    Ok(files)
}

impl Manifest {
    fn render(&self, shop: &Workshop, helm: &Path) -> Result<String> {
        let mut template = Command::new(helm);
        template.current_dir(&shop.workspace.root).args(["template", self.release, self.chart]);
        template.args(["--namespace", self.namespace]);
        for values in self.values {
            template.args(["--set", values]);
        }
        let text = plain(&run::output(&mut template)?, self.anywhere.then_some(self.namespace));
        // A generated Secret would differ each time, or be known to everyone.
        ensure!(!text.lines().any(|line| line == "kind: Secret"), "{} would contain a Secret", self.path);
        Ok(text)
    }
}

/// Returns the output of Helm as a plain manifest, without the parts only for Helm and without this namespace.
fn plain(rendered: &str, namespace: Option<&str>) -> String {
    let namespace = namespace.map(|namespace| format!("  namespace: {namespace}"));
    let of_helm = ["# Source: ", "helm.sh/", "app.kubernetes.io/managed-by: "];
    let mut text =
        "# Generated from charts/taskpipeline by `cargo xtask generate`; do not edit it by hand.\n"
            .to_owned();
    for line in rendered.lines() {
        let is_helms = of_helm.iter().any(|start| line.trim_start().starts_with(start));
        if !is_helms && namespace.as_deref() != Some(line) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Generates the chart's README from its template, with a table of its values and the subchart's.
fn readme(shop: &Workshop) -> Result<String> {
    let mut docs = Command::new(shop.helm_docs()?);
    docs.current_dir(&shop.workspace.root);
    docs.args(["--chart-search-root", CHART, "--chart-to-generate", CHART, "--document-dependency-values"]);
    docs.args([
        "--sort-values-order",
        "file",
        "--skip-version-footer",
        "--log-level",
        "warning",
        "--dry-run",
    ]);
    let text = run::output(&mut docs)?;
    // If helm-docs cannot read something, it warns and still exits with 0.
    ensure!(!text.trim().is_empty(), "{} generated nothing; run it by hand to see why", run::describe(&docs));
    Ok(format!("{}\n", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_or_is_missing_is_stale() {
        let files = ["a", "b", "c"].map(|path| Generated { path, text: "new".to_owned() });
        let kept = |path: &str| match path {
            "a" => Some("new".to_owned()),
            "b" => Some("old".to_owned()),
            _ => None,
        };
        let stale: Vec<_> = stale(&files, kept).map(|file| file.path).collect();
        assert_eq!(stale, ["b", "c"]);
    }

    #[test]
    fn what_is_helms_alone_is_left_out() {
        let rendered = [
            "---",
            "# Source: taskpipeline/templates/a.yaml",
            "metadata:",
            "  namespace: default",
            "  labels:",
            "    app.kubernetes.io/name: a",
            "    app.kubernetes.io/managed-by: Helm",
            "    helm.sh/chart: a-1",
            "spec: {namespace: default}",
        ];
        let left = |namespace| {
            let text = plain(&rendered.join("\n"), namespace);
            text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let kept = [0, 2, 3, 4, 5, 8].map(|line| rendered[line]);
        assert_eq!(left(None), kept);
        assert_eq!(left(Some("default")), [0, 2, 4, 5, 8].map(|line| rendered[line]));
    }
}
