//! The tools that this project runs or builds with: found on PATH, else in the cache, else got.
//!
//! One file a tool. Versions are pinned here and nowhere else; a tool on PATH is taken when its version will
//! do.

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

/// What each command works with: the clone, the cache of tools, and the place to show progress.
pub(crate) struct Workshop {
    /// The clone.
    pub(crate) workspace: Workspace,
    /// Where steps are shown.
    pub(crate) progress: Progress,
    cache: Cache,
}

impl Workshop {
    /// Opens it for the current folder and environment.
    ///
    /// # Errors
    /// When there is no place for the cache.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self { workspace: Workspace::find()?, progress: Progress::new(), cache: Cache::open()? })
    }

    /// A `nats-server` with JetStream.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn nats_server(&self) -> Result<PathBuf> {
        nats_server::NATS_SERVER.find(self)
    }

    /// Helm 4.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn helm(&self) -> Result<PathBuf> {
        helm::HELM.find(self)
    }

    /// promtool.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn promtool(&self) -> Result<PathBuf> {
        promtool::find(self)
    }

    /// Prometheus, without its pages where it is built here.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn prometheus(&self) -> Result<PathBuf> {
        prometheus::PROMETHEUS.find(self)
    }

    /// A folder with the CRDs of others whose objects our chart and examples hold.
    ///
    /// # Errors
    /// When there is no way to get them.
    pub(crate) fn foreign_crds(&self) -> Result<PathBuf> {
        foreign_crds::find(self)
    }

    /// Docker Compose: `docker`, to be told `compose`, or `docker-compose`.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn compose(&self) -> Result<PathBuf> {
        compose::find(self)
    }

    /// helm-docs.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn helm_docs(&self) -> Result<PathBuf> {
        helm_docs::HELM_DOCS.find(self)
    }

    /// Node.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn node(&self) -> Result<PathBuf> {
        node::find(self)
    }

    /// wrangler, esbuild and wasm-opt, with a Node that runs them.
    ///
    /// # Errors
    /// When there is no Node or npm, or the registry cannot be reached.
    pub(crate) fn npm_tools(&self) -> Result<NpmTools> {
        npm::install(self, &node::find(self)?)
    }

    /// The benchmarks' peer, built, with a Node that runs it.
    ///
    /// # Errors
    /// When there is no Node or npm, the registry cannot be reached, or it does not build.
    pub(crate) fn peer(&self) -> Result<Peer> {
        peer::build(self, &node::find(self)?)
    }

    /// Vale.
    ///
    /// # Errors
    /// If there is none and no way to get one.
    pub(crate) fn vale(&self) -> Result<PathBuf> {
        vale::VALE.find(self)
    }

    /// cargo-deny.
    ///
    /// # Errors
    /// When cargo cannot install it.
    pub(crate) fn cargo_deny(&self) -> Result<PathBuf> {
        cargo_install::deny(self)
    }

    /// worker-build and the wasm-bindgen that fits Cargo.lock.
    ///
    /// # Errors
    /// When cargo cannot install them.
    pub(crate) fn wasm_tools(&self) -> Result<WasmTools> {
        cargo_install::find(self)
    }

    /// A rustc that can build for wasm32.
    ///
    /// # Errors
    /// When the target is missing and there is no way to get it.
    pub(crate) fn wasm_rust(&self) -> Result<WasmRust> {
        wasm_target::find(self)
    }

    /// The programs of a Kubernetes node.
    ///
    /// # Errors
    /// When there is no Go, or something does not build.
    pub(crate) fn kubernetes(&self) -> Result<Programs> {
        kubernetes::find(self)
    }

    /// Installs those of Debian's packages whose programs are not there.
    ///
    /// # Errors
    /// When this machine takes no packages from us.
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
    /// When this machine takes no packages from us.
    pub(crate) fn debian_packages(&self, packages: &[&str]) -> Result<()> {
        let name = format!("install {}", packages.join(", "));
        if !debian::installs() {
            bail!("cannot {name}: this takes root on Debian; or install what they are for by hand");
        }
        self.progress.step(&name, || debian::install(packages))
    }

    /// Lays the files of Debian's packages, and of no others, into a folder, and installs nothing.
    ///
    /// # Errors
    /// Where this is no Debian, or a package cannot be had.
    pub(crate) fn debian_unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        debian::unpack(packages, into)
    }

    /// A folder of the cache for what may go on where it was left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn cache_folder(&self, key: &str) -> Result<PathBuf> {
        self.cache.folder(key)
    }

    /// Waits until nobody else works on this part of the cache; until the file is dropped.
    ///
    /// # Errors
    /// When it cannot be locked.
    pub(crate) fn cache_lock(&self, key: &str) -> Result<File> {
        self.cache.lock(key)
    }

    /// The release that the tests upgrade from.
    ///
    /// # Errors
    /// When this clone lacks its commit, or it does not build.
    pub(crate) fn earlier_release(&self) -> Result<Earlier> {
        earlier::find(self)
    }

    /// A headless browser.
    ///
    /// # Errors
    /// When there is none and no way to get one.
    pub(crate) fn chromium(&self) -> Result<PathBuf> {
        chromium::find(self)
    }
}

/// Everything the tests need.
pub(crate) struct Everything {
    /// nats-server.
    pub(crate) nats_server: PathBuf,
    /// The browser.
    pub(crate) chromium: PathBuf,
    npm: NpmTools,
    wasm: WasmTools,
    rust: WasmRust,
    helm: PathBuf,
    helm_docs: PathBuf,
    /// Docker Compose, as [`Workshop::compose`] has it.
    pub(crate) compose: PathBuf,
}

impl Everything {
    /// Whether the rustc on PATH builds for wasm32 itself.
    pub(crate) fn ordinary_rust(&self) -> bool {
        matches!(self.rust, WasmRust::Ordinary)
    }

    /// axe-core.
    pub(crate) fn axe_core(&self) -> PathBuf {
        self.npm.axe_core()
    }
}

/// Gets every tool: what waits for the network on one thread, what compiles on the other.
///
/// # Errors
/// When one of them is missing and cannot be got.
pub(crate) fn everything(shop: &Workshop) -> Result<Everything> {
    thread::scope(|scope| {
        let fetched =
            scope.spawn(|| -> Result<_> { Ok((shop.npm_tools()?, shop.chromium()?, shop.wasm_rust()?)) });
        let compiled = shop.nats_server().and_then(|nats| {
            Ok((nats, shop.wasm_tools()?, shop.helm()?, shop.helm_docs()?, shop.compose()?))
        });
        let fetched = fetched.join().map_err(|_| anyhow!("getting the tools fell over"))?;
        if let (Err(error), Err(_)) = (&compiled, &fetched) {
            // Only one of two can be returned.
            complain(error);
        }
        let ((npm, chromium, rust), (nats_server, wasm, helm, helm_docs, compose)) = (fetched?, compiled?);
        Ok(Everything { nats_server, chromium, npm, wasm, rust, helm, helm_docs, compose })
    })
}

/// Gets every tool and prints where each one is.
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
