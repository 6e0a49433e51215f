//! The programs of a Kubernetes node, built from source with Go, for machines without a container engine. Neither
//! kind nor k3d can run there.
//!
//! Each program is a separate entry of the cache, so that an interrupted build keeps the finished ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::version::Version;
use crate::run;

const KUBERNETES: Version = Version(1, 35, 4);
const ETCD: Version = Version(3, 6, 8);
const COREDNS: Version = Version(1, 15, 0);

/// The oldest Go that Kubernetes builds with.
const GO: &str = "1.26";

const COMPONENTS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// The path of each program.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// Returns the path of a program.
    ///
    /// # Errors
    /// If no program has this name.
    pub(crate) fn get(&self, name: &str) -> Result<PathBuf> {
        let found = self.folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        found.with_context(|| format!("the cluster has no program {name}"))
    }
}

/// Builds the missing programs; all take about twenty minutes on two cores.
///
/// # Errors
/// If Go is missing, or something does not build.
pub(super) fn find(shop: &Workshop) -> Result<Programs> {
    let mut folders = Vec::new();
    for component in COMPONENTS {
        folders.push(built(shop, component, KUBERNETES, |folder| kubernetes(shop, component, folder))?);
    }
    folders.push(built(shop, "pause", KUBERNETES, |folder| pause(shop, folder))?);
    folders.push(built(shop, "etcd", ETCD, |folder| {
        let module = format!("go.etcd.io/etcd/server/v3@v{ETCD}");
        // etcd replaces some of its modules, so Go cannot install it by its path.
        let source = shop.cache.folder(&format!("build-etcd-{ETCD}"))?;
        write(&source.join("go.mod"), &format!("module node\ngo {GO}\n"))?;
        go(&source, &["get", "-tool", &module])?;
        go(
            &source,
            &[
                "build",
                "-trimpath",
                "-ldflags",
                "-s -w",
                "-o",
                &text(&folder.join("etcd"))?,
                "go.etcd.io/etcd/server/v3",
            ],
        )
    })?);
    folders.push(built(shop, "coredns", COREDNS, |folder| {
        let module = format!("github.com/coredns/coredns@v{COREDNS}");
        let mut command = Command::new(go_program()?);
        command.args(["install", "-trimpath", &module]).env("GOBIN", folder).env("CGO_ENABLED", "0");
        run::output(&mut command).map(drop)
    })?);
    Ok(Programs { folders })
}

fn built(
    shop: &Workshop,
    name: &str,
    version: Version,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    shop.cache.entry(&format!("node-{name}-{version}"), |folder, _| {
        shop.progress.step(&format!("build {name} {version}"), || build(folder))
    })
}

/// Builds a component of Kubernetes in a module of ours.
///
/// The go.mod of Kubernetes points its staging modules at paths in its repository. Our module replaces each by its
/// published version, which has the same code.
fn kubernetes(shop: &Workshop, component: &str, folder: &Path) -> Result<()> {
    let source = module(shop)?;
    let version = format!("-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}");
    let (out, package) = (text(&folder.join(component))?, format!("k8s.io/kubernetes/cmd/{component}"));
    go(&source, &["build", "-trimpath", "-ldflags", &version, "-o", &out, &package])
}

fn module(shop: &Workshop) -> Result<PathBuf> {
    let source = shop.cache.folder(&format!("build-kubernetes-{KUBERNETES}"))?;
    let manifest = source.join("go.mod");
    if fs::read_to_string(&manifest).is_ok_and(|text| text.contains("tool ("))
        && source.join("go.sum").is_file()
    {
        return Ok(source);
    }
    let require = format!("module node\ngo {GO}\nrequire k8s.io/kubernetes v{KUBERNETES}\n");
    write(&manifest, &require)?;
    let upstream = upstream(&source)?;
    let upstream = fs::read_to_string(upstream.join("go.mod")).context("Kubernetes has no go.mod")?;
    let staging = upstream.lines().filter_map(|line| {
        let (module, path) = line.trim().split_once(" => ")?;
        let module = module.trim();
        let Version(_, minor, patch) = KUBERNETES;
        path.starts_with("./staging").then(|| format!("  {module} => {module} v0.{minor}.{patch}\n"))
    });
    let replaced: String = staging.collect();
    let tools: String =
        COMPONENTS.iter().map(|component| format!("  k8s.io/kubernetes/cmd/{component}\n")).collect();
    write(&manifest, &format!("{require}replace (\n{replaced})\ntool (\n{tools})\n"))?;
    go(&source, &["mod", "tidy"])?;
    Ok(source)
}

/// The folder in which Go keeps the source of Kubernetes.
fn upstream(source: &Path) -> Result<PathBuf> {
    let module = format!("k8s.io/kubernetes@v{KUBERNETES}");
    go(source, &["mod", "download", &module])?;
    let cache = run::output(Command::new(go_program()?).args(["env", "GOMODCACHE"]))?;
    Ok(Path::new(cache.trim()).join(module))
}

/// Builds the program that holds a pod's namespaces; the only one that is not written in Go.
fn pause(shop: &Workshop, folder: &Path) -> Result<()> {
    let source = upstream(&module(shop)?)?.join("build/pause/linux/pause.c");
    let Some(cc) = run::on_path("cc") else {
        bail!("cc is not on PATH; install a C compiler to build the pause container")
    };
    run::output(Command::new(cc).args(["-static", "-Os", "-o"]).arg(folder.join("pause")).arg(source))
        .map(drop)
}

fn go(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(go_program()?);
    command.args(arguments).current_dir(folder).env("CGO_ENABLED", "0");
    run::output(&mut command).map(drop)
}

fn go_program() -> Result<PathBuf> {
    run::on_path("go")
        .with_context(|| format!("go is not on PATH; install Go {GO} to build the cluster's programs"))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
