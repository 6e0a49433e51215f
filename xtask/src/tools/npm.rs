//! wrangler, esbuild, wasm-opt and axe-core, which `npm ci` installs from edge/package-lock.json outside the clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Workshop, hex_sha256};
use crate::run;

const MANIFESTS: [&str; 2] = ["edge/package.json", "edge/package-lock.json"];

/// Programs that run on Node.
pub(crate) struct NpmTools {
    node: PathBuf,
    modules: PathBuf,
}

impl NpmTools {
    /// The path of the Node that runs them.
    pub(crate) fn node(&self) -> PathBuf {
        self.node.clone()
    }

    /// The folder of that Node. It must be first on PATH for programs that begin with `env node`.
    pub(crate) fn node_folder(&self) -> &Path {
        self.node.parent().unwrap_or(Path::new(""))
    }

    /// wrangler's script, which Node runs.
    pub(crate) fn wrangler(&self) -> PathBuf {
        self.modules.join("wrangler/bin/wrangler.js")
    }

    /// The path of esbuild.
    pub(crate) fn esbuild(&self) -> PathBuf {
        self.modules.join(".bin/esbuild")
    }

    /// The path of Binaryen's optimizer.
    pub(crate) fn wasm_opt(&self) -> PathBuf {
        self.modules.join(".bin/wasm-opt")
    }

    /// axe-core as one script, which the tests put into pages.
    pub(crate) fn axe_core(&self) -> PathBuf {
        self.modules.join("axe-core/axe.min.js")
    }
}

pub(super) fn install(shop: &Workshop, node: &Path) -> Result<NpmTools> {
    let lock = shop.workspace.read(MANIFESTS[1])?;
    let sum = hex_sha256(lock.as_bytes()).context("cannot hash the lock file")?;
    let entry = shop.cache.entry(&format!("npm-{}", &sum[..16]), |folder, _| {
        shop.progress.step("get wrangler, esbuild and wasm-opt (npm ci)", || {
            for file in MANIFESTS {
                let name = file.trim_start_matches("edge/");
                fs::copy(shop.workspace.root.join(file), folder.join(name))
                    .with_context(|| format!("cannot copy {file} to {}", folder.display()))?;
            }
            ci(node, folder)
        })
    })?;
    Ok(NpmTools { node: node.to_path_buf(), modules: entry.join("node_modules") })
}

/// Returns `npm` for this Node: the npm beside it, or the one on PATH.
///
/// # Errors
/// If npm is missing.
pub(super) fn command(node: &Path) -> Result<Command> {
    let folder = node.parent().unwrap_or(Path::new(""));
    let bundled = folder.join("npm");
    let npm = if bundled.is_file() { Some(bundled) } else { run::on_path("npm") };
    let npm = npm.context("Node has no npm; install npm, so that it is on PATH")?;
    let mut command = Command::new(npm);
    command.env("PATH", run::path_with(&[folder])?);
    Ok(command)
}

/// Installs the packages in the lock file of this folder, without install scripts.
///
/// The scripts of esbuild and workerd only check or copy files that exist already.
///
/// # Errors
/// If npm is missing, or the registry cannot be reached.
pub(super) fn ci(node: &Path, folder: &Path) -> Result<()> {
    let mut npm = command(node)?;
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
    run::output(&mut npm).map(drop)
}
