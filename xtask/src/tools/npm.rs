//! wrangler, esbuild, wasm-opt and axe-core: installed by `npm ci` from edge/package-lock.json, outside the
//! clone.

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
    /// The Node that runs them.
    pub(crate) fn node(&self) -> PathBuf {
        self.node.clone()
    }

    /// The folder of that Node: to stand first on PATH, for programs that say `env node`.
    pub(crate) fn node_folder(&self) -> &Path {
        self.node.parent().unwrap_or(Path::new(""))
    }

    /// wrangler's script, for Node to run.
    pub(crate) fn wrangler(&self) -> PathBuf {
        self.modules.join("wrangler/bin/wrangler.js")
    }

    /// esbuild.
    pub(crate) fn esbuild(&self) -> PathBuf {
        self.modules.join(".bin/esbuild")
    }

    /// Binaryen's optimizer.
    pub(crate) fn wasm_opt(&self) -> PathBuf {
        self.modules.join(".bin/wasm-opt")
    }

    /// axe-core as one script, for the tests to put into pages.
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

/// `npm`, which runs on this Node: the one beside it, else the one on PATH.
///
/// # Errors
/// When there is none.
pub(super) fn command(node: &Path) -> Result<Command> {
    let folder = node.parent().unwrap_or(Path::new(""));
    let bundled = folder.join("npm");
    let npm = if bundled.is_file() { Some(bundled) } else { run::on_path("npm") };
    let npm = npm.context("there is a Node but no npm: install npm, so that it is on PATH")?;
    let mut command = Command::new(npm);
    command.env("PATH", run::path_with(&[folder])?);
    Ok(command)
}

/// Installs what the lock file of this folder says. No install scripts: those of esbuild and workerd only check or
/// copy what is there already.
///
/// # Errors
/// When there is no npm, or the registry cannot be reached.
pub(super) fn ci(node: &Path, folder: &Path) -> Result<()> {
    let mut npm = command(node)?;
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
    run::output(&mut npm).map(drop)
}
