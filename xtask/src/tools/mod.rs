//! The tools that build and run this project: from PATH, from the cache, or installed into the cache.
//!
//! Each tool has one file. Versions are pinned only here. A tool on PATH is used if its version is new enough.

mod cache;
mod cargo_install;
mod chromium;
mod compose;
mod debian;
mod download;
mod earlier;
mod foreign_crds;
mod go_program;
mod helm;
mod helm_docs;
mod kubernetes;
mod nats_server;
mod node;
mod npm;
mod peer;
mod prometheus;
mod promtool;
mod vale;
mod version;
mod wasm_target;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, anyhow, bail};

pub(crate) use cache::hex_sha256;
pub(crate) use cargo_install::{WASM_BINDGEN, WORKER_BUILD, WasmTools};
pub(crate) use earlier::Earlier;
pub(crate) use kubernetes::Programs;
pub(crate) use npm::NpmTools;
pub(crate) use peer::Peer;
pub(crate) use wasm_target::WasmRust;

use crate::progress::{Progress, complain, say};
use crate::workspace::Workspace;
use cache::Cache;

/// The context of each command: the clone, the cache of tools, and the progress.
pub(crate) struct Workshop {
    /// The clone.
    pub(crate) workspace: Workspace,
    /// Shows the steps.
    pub(crate) progress: Progress,
    cache: Cache,
}

impl Workshop {
    /// Opens the workshop for the current folder and environment.
    ///
    /// # Errors
    /// If no folder for the cache is known.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self { workspace: Workspace::find()?, progress: Progress::new(), cache: Cache::open()? })
    }

    /// Returns a `nats-server` with JetStream.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn nats_server(&self) -> Result<PathBuf> {
        nats_server::NATS_SERVER.find(self)
    }

    /// Returns Helm 4.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn helm(&self) -> Result<PathBuf> {
        helm::HELM.find(self)
    }

    /// Returns promtool.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn promtool(&self) -> Result<PathBuf> {
        promtool::find(self)
    }

    /// Returns Prometheus; a build on this machine has no pages.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn prometheus(&self) -> Result<PathBuf> {
        prometheus::PROMETHEUS.find(self)
    }

    /// Returns a folder with the CRDs of other projects whose objects our chart and examples contain.
    ///
    /// # Errors
    /// If the CRDs cannot be fetched.
    pub(crate) fn foreign_crds(&self) -> Result<PathBuf> {
        foreign_crds::find(self)
    }

    /// Returns Docker Compose: `docker`, to be called with `compose`, or `docker-compose`.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn compose(&self) -> Result<PathBuf> {
        compose::find(self)
    }

    /// Returns helm-docs.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn helm_docs(&self) -> Result<PathBuf> {
        helm_docs::HELM_DOCS.find(self)
    }

    /// Returns Node.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn node(&self) -> Result<PathBuf> {
        node::find(self)
    }

    /// Returns wrangler, esbuild and wasm-opt, with a Node that runs them.
    ///
    /// # Errors
    /// If Node or npm is missing, or the registry cannot be reached.
    pub(crate) fn npm_tools(&self) -> Result<NpmTools> {
        npm::install(self, &node::find(self)?)
    }

    /// Returns the benchmarks' peer, built, with a Node that runs it.
    ///
    /// # Errors
    /// If Node or npm is missing, the registry cannot be reached, or the peer does not build.
    pub(crate) fn peer(&self) -> Result<Peer> {
        peer::build(self, &node::find(self)?)
    }

    /// Returns Vale.
    ///
    /// # Errors
    /// If there is no Vale and no way to get it.
    pub(crate) fn vale(&self) -> Result<PathBuf> {
        vale::VALE.find(self)
    }

    /// Returns cargo-deny.
    ///
    /// # Errors
    /// If cargo cannot install it.
    pub(crate) fn cargo_deny(&self) -> Result<PathBuf> {
        cargo_install::deny(self)
    }

    /// Returns worker-build and the wasm-bindgen that fits Cargo.lock.
    ///
    /// # Errors
    /// If cargo cannot install them.
    pub(crate) fn wasm_tools(&self) -> Result<WasmTools> {
        cargo_install::find(self)
    }

    /// Returns a rustc that can build for wasm32.
    ///
    /// # Errors
    /// If the target is missing and cannot be installed.
    pub(crate) fn wasm_rust(&self) -> Result<WasmRust> {
        wasm_target::find(self)
    }

    /// Returns the programs of a Kubernetes node.
    ///
    /// # Errors
    /// If Go is missing, or something does not build.
    pub(crate) fn kubernetes(&self) -> Result<Programs> {
        kubernetes::find(self)
    }

    /// Installs the packages of Debian whose programs are missing.
    ///
    /// # Errors
    /// If this program may not install packages here.
    pub(crate) fn debian(&self, packages: &[(&str, &str)]) -> Result<()> {
        let missing: Vec<_> = packages
            .iter()
            .filter(|(program, _)| crate::run::on_path(program).is_none())
            .map(|(_, package)| *package)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.debian_packages(&missing)
    }

    /// Installs packages of Debian.
    ///
    /// # Errors
    /// If this program may not install packages here.
    pub(crate) fn debian_packages(&self, packages: &[&str]) -> Result<()> {
        let name = format!("install {}", packages.join(", "));
        if !debian::installs() {
            bail!("cannot {name}: this requires root on Debian; install their programs by hand");
        }
        self.progress.step(&name, || debian::install(packages))
    }

    /// Unpacks the files of these packages of Debian only into a folder, and installs nothing.
    ///
    /// # Errors
    /// If this machine does not run Debian, or a package cannot be obtained.
    pub(crate) fn debian_unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        debian::unpack(packages, into)
    }

    /// Returns a folder of the cache for work that may continue after an interruption.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub(crate) fn cache_folder(&self, key: &str) -> Result<PathBuf> {
        self.cache.folder(key)
    }

    /// Waits until no other process works on this part of the cache. The lock lasts until the file is dropped.
    ///
    /// # Errors
    /// If the part cannot be locked.
    pub(crate) fn cache_lock(&self, key: &str) -> Result<File> {
        self.cache.lock(key)
    }

    /// Returns the release that the tests upgrade from.
    ///
    /// # Errors
    /// If this clone lacks its commit, or it does not build.
    pub(crate) fn earlier_release(&self) -> Result<Earlier> {
        earlier::find(self)
    }

    /// Returns a headless browser.
    ///
    /// # Errors
    /// If it is missing and cannot be installed.
    pub(crate) fn chromium(&self) -> Result<PathBuf> {
        chromium::find(self)
    }
}

/// All tools that the tests need.
pub(crate) struct Everything {
    pub(crate) nats_server: PathBuf,
    pub(crate) chromium: PathBuf,
    npm: NpmTools,
    wasm: WasmTools,
    rust: WasmRust,
    helm: PathBuf,
    helm_docs: PathBuf,
    /// Docker Compose, as [`Workshop::compose`] returns it.
    pub(crate) compose: PathBuf,
}

impl Everything {
    /// Whether the rustc on PATH builds for wasm32 itself.
    pub(crate) fn ordinary_rust(&self) -> bool {
        matches!(self.rust, WasmRust::Ordinary)
    }

    /// The path of axe-core.
    pub(crate) fn axe_core(&self) -> PathBuf {
        self.npm.axe_core()
    }
}

/// Gets every tool: one thread waits for the network, the other compiles.
///
/// # Errors
/// If a tool is missing and cannot be installed.
pub(crate) fn everything(shop: &Workshop) -> Result<Everything> {
    thread::scope(|scope| {
        let fetched =
            scope.spawn(|| -> Result<_> { Ok((shop.npm_tools()?, shop.chromium()?, shop.wasm_rust()?)) });
        let compiled = shop.nats_server().and_then(|nats| {
            Ok((nats, shop.wasm_tools()?, shop.helm()?, shop.helm_docs()?, shop.compose()?))
        });
        let fetched = fetched.join().map_err(|_| anyhow!("the thread that gets the tools panicked"))?;
        if let (Err(error), Err(_)) = (&compiled, &fetched) {
            // Only one of two errors can be returned.
            complain(error);
        }
        let ((npm, chromium, rust), (nats_server, wasm, helm, helm_docs, compose)) = (fetched?, compiled?);
        Ok(Everything { nats_server, chromium, npm, wasm, rust, helm, helm_docs, compose })
    })
}

/// Gets every tool and prints its path.
///
/// # Errors
/// As [`everything`].
pub(crate) fn list(shop: &Workshop) -> Result<()> {
    let all = everything(shop)?;
    let rows = [
        ("nats-server", all.nats_server),
        ("node", all.npm.node()),
        ("wrangler", all.npm.wrangler()),
        ("esbuild", all.npm.esbuild()),
        ("wasm-opt", all.npm.wasm_opt()),
        ("axe-core", all.npm.axe_core()),
        ("worker-build", all.wasm.worker_build),
        ("wasm-bindgen", all.wasm.wasm_bindgen),
        ("chromium", all.chromium),
        ("helm", all.helm),
        ("helm-docs", all.helm_docs),
        ("compose", all.compose),
    ];
    for (name, path) in rows {
        say(format_args!("{name:<13} {}", path.display()));
    }
    say(format_args!("{:<13} {}", "wasm32", all.rust));
    Ok(())
}
