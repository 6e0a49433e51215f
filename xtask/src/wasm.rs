//! Builds the Worker: worker-build turns edge/ into wasm and JavaScript in edge/build, with tools of pinned versions.
//!
//! wrangler calls this at each start and each edit, so the build of an unchanged Worker must be almost free.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::run;
use crate::tools::{NpmTools, WORKER_BUILD, WasmRust, WasmTools, Workshop, hex_sha256};

/// The files that worker-build creates and wrangler uses.
const OUTPUT: [&str; 2] = ["index.js", "index_bg.wasm"];
const STAMP: &str = ".fingerprint";
/// The parts of edge/ and contract/ that are built from the sources, or have no effect on the wasm.
const APART: [&str; 6] = ["build", ".wrangler", "node_modules", "tests", "wrangler.toml", "package.json"];

/// Builds the Worker, unless edge/build fits its sources, and returns whether it built.
///
/// # Errors
/// If a tool cannot be installed or the build fails.
pub(crate) fn build(shop: &Workshop) -> Result<bool> {
    let fingerprint = fingerprint(&shop.workspace.root)?;
    let out = shop.workspace.edge().join("build");
    if is_of(&out, &fingerprint) {
        return Ok(false);
    }
    let target = shop.workspace.target.join("worker");
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let lock = File::create(target.join(".lock")).context("cannot create the lock of the Worker's build")?;
    lock.lock().context("cannot lock the Worker's build")?;
    // The target folder may outlive the clone; then the last build is still here.
    let kept = target.join("kept");
    if is_of(&kept, &fingerprint) && !is_of(&out, &fingerprint) {
        copy(&kept, &out, &fingerprint)?;
    }
    if is_of(&out, &fingerprint) {
        return Ok(false);
    }
    let (npm, tools, rust) = get(shop)?;
    shop.progress.step("build the Worker (wasm)", || {
        let _ = fs::remove_file(out.join(STAMP));
        worker_build(shop, &target, &npm, &tools, &rust)?;
        if let Some(missing) = OUTPUT.iter().find(|file| !out.join(file).is_file()) {
            bail!("worker-build succeeded but did not create {missing} in {}", out.display());
        }
        fs::write(out.join(STAMP), &fingerprint).with_context(|| format!("cannot write to {}", out.display()))
    })?;
    copy(&out, &kept, &fingerprint)?;
    Ok(true)
}

/// Gets the tools. npm waits for the network while cargo compiles.
fn get(shop: &Workshop) -> Result<(NpmTools, WasmTools, WasmRust)> {
    thread::scope(|scope| {
        let npm = scope.spawn(|| shop.npm_tools());
        let compiled = shop.wasm_rust().and_then(|rust| Ok((rust, shop.wasm_tools()?)));
        let npm = npm.join().map_err(|_| anyhow!("the thread that gets the npm tools panicked"))??;
        let (rust, tools) = compiled?;
        Ok((npm, tools, rust))
    })
}

fn worker_build(
    shop: &Workshop,
    target: &Path,
    npm: &NpmTools,
    tools: &WasmTools,
    rust: &WasmRust,
) -> Result<()> {
    let folders: Vec<_> = rust.bin().into_iter().chain([npm.node_folder()]).collect();
    let mut command = Command::new(&tools.worker_build);
    command
        .arg("--release")
        .current_dir(shop.workspace.edge())
        .env("PATH", run::path_with(&folders)?)
        .env("WASM_BINDGEN_BIN", &tools.wasm_bindgen)
        .env("WASM_OPT_BIN", npm.wasm_opt())
        .env("ESBUILD_BIN", npm.esbuild())
        // A small Worker that starts fast is the goal at the edge. The target folder is separate: another profile, or
        // another rustc in the fallback, would make cargo compile the ordinary one again each time.
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    // The user's settings for native builds (a linker, a processor) are wrong for wasm.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC"] {
        command.env_remove(name);
    }
    rust.apply(&mut command);
    run::output(&mut command).map(drop)
}

fn is_of(folder: &Path, fingerprint: &str) -> bool {
    OUTPUT.iter().all(|file| folder.join(file).is_file())
        && fs::read_to_string(folder.join(STAMP)).is_ok_and(|stamp| stamp == fingerprint)
}

fn copy(from: &Path, to: &Path, fingerprint: &str) -> Result<()> {
    let copied = fs::create_dir_all(to)
        .and_then(|()| OUTPUT.iter().try_for_each(|file| fs::copy(from.join(file), to.join(file)).map(drop)))
        .and_then(|()| fs::write(to.join(STAMP), fingerprint));
    copied.with_context(|| format!("cannot copy the Worker from {} to {}", from.display(), to.display()))
}

/// Hashes everything that the output depends on: the sources, their dependencies, the tools.
fn fingerprint(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for folder in ["edge", "contract"] {
        collect(&root.join(folder), &mut files)?;
    }
    files.extend(["Cargo.toml", "Cargo.lock", ".cargo/config.toml"].map(|file| root.join(file)));
    files.sort();
    let rustc = run::output(Command::new("rustc").arg("-vV"))?;
    let mut facts = format!("worker-build {WORKER_BUILD}\n{rustc}\n");
    for file in files {
        let content = File::open(&file).and_then(hex_sha256);
        let sum = content.with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        writeln!(facts, "{sum} {}", name.display()).context("cannot write to memory")?;
    }
    hex_sha256(facts.as_bytes()).context("cannot hash")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot read {}", entry.path().display()))?;
        if APART.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_the_sources_and_nothing_else() {
        let root = std::env::temp_dir().join(format!("taskpipeline-wasm-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for file in
            ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", "edge/src/lib.rs", "contract/src/lib.rs"]
        {
            write(file, "one");
        }
        let first = fingerprint(&root).unwrap();
        write("edge/build/index.js", "made");
        write("edge/wrangler.toml", "name");
        write("contract/tests/properties.rs", "tests");
        assert_eq!(fingerprint(&root).unwrap(), first);
        write("edge/templates/list.html", "<h1>");
        let second = fingerprint(&root).unwrap();
        assert_ne!(second, first);
        write("contract/src/lib.rs", "two");
        assert_ne!(fingerprint(&root).unwrap(), second);
        fs::remove_dir_all(root).unwrap();
    }
}
