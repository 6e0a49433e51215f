//! worker-build, wasm-bindgen and cargo-deny: installed by cargo, in debug, which builds in a third of the time and is
//! as fast for what they do here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Workshop;
use super::version::Version;
use crate::run;
use crate::workspace::{cargo, locked_version};

/// The release that goes with the `worker` crate.
pub(crate) const WORKER_BUILD: &str = "0.8.7";

/// What checks the crates that we take.
const CARGO_DENY: &str = "0.20.2";

/// What turns the edge crate into a Worker.
pub(crate) struct WasmTools {
    /// Drives the build.
    pub(crate) worker_build: PathBuf,
    /// Writes the JavaScript side; of exactly the version in Cargo.lock.
    pub(crate) wasm_bindgen: PathBuf,
}

pub(super) fn find(shop: &Workshop) -> Result<WasmTools> {
    let lock = shop.workspace.read("Cargo.lock")?;
    let bindgen = locked_version(&lock, "wasm-bindgen").context("Cargo.lock does not have wasm-bindgen")?;
    let worker_build = program(shop, "worker-build", "worker-build", WORKER_BUILD, &["--locked"])?;
    // Not `--locked`: the lock it is published with names a crate that was withdrawn.
    let wasm_bindgen =
        program(shop, "wasm-bindgen-cli", "wasm-bindgen", bindgen, &["--no-default-features"])?;
    Ok(WasmTools { worker_build, wasm_bindgen })
}

pub(super) fn deny(shop: &Workshop) -> Result<PathBuf> {
    program(shop, "cargo-deny", "cargo-deny", CARGO_DENY, &["--locked"])
}

fn program(shop: &Workshop, package: &str, name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    if let Some(found) = run::on_path(name).filter(|path| Version::of(path) == Version::within(version)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("{package}-{version}"), |folder, _| {
        shop.progress.step(&format!("build {name} {version} (cargo install)"), || {
            install(folder, &["--bin", name, &format!("{package}@{version}")], options)
        })
    })?;
    Ok(entry.join("bin").join(name))
}

fn install(folder: &Path, what: &[&str], options: &[&str]) -> Result<()> {
    let target = folder.join("target");
    let mut command = cargo();
    command.args(["install", "--quiet", "--debug", "--root"]).arg(folder).args(options).args(what);
    // What the user sets for his own builds is not meant for these.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
    ] {
        command.env_remove(name);
    }
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "false").current_dir(folder);
    run::output(&mut command)?;
    std::fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
}
