//! worker-build, wasm-bindgen and cargo-deny, which cargo installs as debug builds. A debug build takes a third of
//! the time, and is as fast for this work.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Workshop;
use super::version::Version;
use crate::run;
use crate::workspace::{cargo, locked_version};

/// The release that goes with the `worker` crate.
pub(crate) const WORKER_BUILD: &str = "0.8.7";

/// The package, with its own Cargo.lock, from which the program of wasm-bindgen is built.
pub(crate) const WASM_BINDGEN: &str = "xtask/wasm-bindgen";

/// The version of the program that checks our dependencies.
const CARGO_DENY: &str = "0.20.2";

/// The programs that turn the edge crate into a Worker.
pub(crate) struct WasmTools {
    /// Drives the build.
    pub(crate) worker_build: PathBuf,
    /// Writes the JavaScript side. Its version must equal the one in Cargo.lock.
    pub(crate) wasm_bindgen: PathBuf,
}

pub(super) fn find(shop: &Workshop) -> Result<WasmTools> {
    let lock = shop.workspace.read("Cargo.lock")?;
    let bindgen =
        locked_version(&lock, "wasm-bindgen").context("Cargo.lock does not contain wasm-bindgen")?;
    let own = shop.workspace.read(&format!("{WASM_BINDGEN}/Cargo.lock"))?;
    let built = locked_version(&own, "wasm-bindgen-cli");
    ensure!(
        built == Some(bindgen),
        "{WASM_BINDGEN} has wasm-bindgen-cli {}, and Cargo.lock wasm-bindgen {bindgen}: they must be the same",
        built.unwrap_or("in no version")
    );
    let worker_build = published(shop, "worker-build", WORKER_BUILD)?;
    let path = shop.workspace.root.join(WASM_BINDGEN);
    let path = path.to_str().context("the clone's path is not UTF-8")?;
    let wasm_bindgen = program(shop, "wasm-bindgen", bindgen, &["--path", path])?;
    Ok(WasmTools { worker_build, wasm_bindgen })
}

pub(super) fn deny(shop: &Workshop) -> Result<PathBuf> {
    published(shop, "cargo-deny", CARGO_DENY)
}

fn published(shop: &Workshop, name: &str, version: &str) -> Result<PathBuf> {
    program(shop, name, version, &[&format!("{name}@{version}")])
}

/// Builds a program from the packages in a Cargo.lock, checked against the sums there.
fn program(shop: &Workshop, name: &str, version: &str, what: &[&str]) -> Result<PathBuf> {
    if let Some(found) = run::on_path(name).filter(|path| Version::of(path) == Version::within(version)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("{name}-{version}"), |folder, _| {
        let step = format!("build {name} {version} (cargo install)");
        shop.progress.step(&step, || install(folder, &[&["--bin", name], what].concat()))
    })?;
    Ok(entry.join("bin").join(name))
}

fn install(folder: &Path, what: &[&str]) -> Result<()> {
    let target = folder.join("target");
    let mut command = cargo();
    command.args(["install", "--locked", "--quiet", "--debug", "--root"]).arg(folder).args(what);
    // The user's settings for other builds are not meant for these.
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
