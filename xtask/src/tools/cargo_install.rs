//! worker-build, wasm-bindgen and cargo-deny: installed by cargo, in debug, which builds in a third of the time and is
//! as fast for what they do here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Workshop;
use super::version::Version;
use crate::run;
use crate::workspace::{cargo, locked_version};

/// The release that goes with the `worker` crate.
pub(crate) const WORKER_BUILD: &str = "0.8.7";

/// The package, with a Cargo.lock of its own, that wasm-bindgen's program is built of.
pub(crate) const WASM_BINDGEN: &str = "xtask/wasm-bindgen";

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

/// Built of what a Cargo.lock names, with the sums that stand there.
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
