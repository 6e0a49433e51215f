//! Finds the clone, the target folder and the release binaries, and reads the clone's files.
//!
//! It reads only paths and texts, and builds nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The clone that this program works on.
pub(crate) struct Workspace {
    /// The top of the clone.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the clone from the current folder upwards, or the clone that this program was built from.
    ///
    /// # Errors
    /// If the current folder cannot be read.
    pub(crate) fn find() -> Result<Self> {
        let here = std::env::current_dir().context("cannot get the current folder")?;
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here
            .ancestors()
            .find(|dir| dir.join("xtask/Cargo.toml").is_file() && dir.join("edge").is_dir())
            .or_else(|| built_from.parent())
            .unwrap_or(&here)
            .to_path_buf();
        let named =
            std::env::var_os("CARGO_TARGET_DIR").or_else(|| std::env::var_os("CARGO_BUILD_TARGET_DIR"));
        let target = match named {
            Some(dir) => here.join(dir),
            None => built_into().unwrap_or_else(|| root.join("target")),
        };
        Ok(Self { root, target })
    }

    /// The folder of the Worker.
    pub(crate) fn edge(&self) -> PathBuf {
        self.root.join("edge")
    }

    /// The path of a program of this workspace, built in release.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// Reads a file of the clone as text.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn read(&self, file: &str) -> Result<String> {
        let path = self.root.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Returns `cargo`, which runs at the top of the clone.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Returns `cargo build` of these programs in release.
    ///
    /// `--workspace` gives their dependencies the same features as `cargo test --workspace`. Otherwise cargo would
    /// compile half of them twice.
    pub(crate) fn build(&self, programs: &[&str]) -> Command {
        let mut command = self.cargo();
        command.args(["build", "--quiet", "--release", "--workspace"]);
        for program in programs {
            command.args(["--bin", program]);
        }
        command
    }

    /// Returns the build of the processor for a trial on this machine.
    ///
    /// If nothing of the whole workspace is built so far, it leaves out the parts for a cluster. They are half of the
    /// build. Later, that would only build everything a second time.
    pub(crate) fn build_processor_to_try(&self) -> Command {
        if self.has_built("kube") {
            return self.build(&["taskpipeline"]);
        }
        let mut command = self.cargo();
        command.args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "taskpipeline-processor",
            "--no-default-features",
        ]);
        command
    }

    /// Whether this library was built before, with any features.
    fn has_built(&self, library: &str) -> bool {
        let start = format!("lib{library}-");
        let built = std::fs::read_dir(self.target.join("release/deps"));
        built.is_ok_and(|mut files| {
            files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with(&start)))
        })
    }
}

/// Returns `cargo` without the variables of a surrounding `cargo run` or `cargo test`.
///
/// These describe the package of the surrounding command. Build scripts that watch them (as in ring) would run again each time.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let describes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if describes.iter().any(|start| text.starts_with(start)) || text == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
    command
}

/// The target folder that contains this program. It reveals a `build.target-dir` of the user.
fn built_into() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let profile = program.parent()?;
    let known = ["debug", "release"].iter().any(|name| profile.file_name() == Some(name.as_ref()));
    known.then(|| profile.parent().map(Path::to_path_buf)).flatten()
}

/// The version of a package in the text of a Cargo.lock.
pub(crate) fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("\nname = \"{package}\"\n"))?;
    quoted(rest.lines().next()?, "version")
}

/// The id of a KV binding in the text of a wrangler.toml.
pub(crate) fn kv_namespace_id<'a>(config: &'a str, binding: &str) -> Option<&'a str> {
    config.split("[[kv_namespaces]]").skip(1).find_map(|table| {
        let lines = || table.lines().map(str::trim).take_while(|line| !line.starts_with('['));
        lines().any(|line| quoted(line, "binding") == Some(binding)).then_some(())?;
        lines().find_map(|line| quoted(line, "id"))
    })
}

/// The text between the quotes of `key = "text"`.
fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_locked_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"wasm-bindgen-macro\"\nversion = \"0.2.129\"\n\n\
                    [[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.130\"\nsource = \"registry\"\n";
        assert_eq!(locked_version(lock, "wasm-bindgen"), Some("0.2.130"));
        assert_eq!(locked_version(lock, "wasm"), None);
    }

    #[test]
    fn finds_the_namespace_of_a_binding() {
        let config = "name = \"x\"\nid = \"no\"\n[[kv_namespaces]]\nbinding = \"OTHER\"\nid = \"aa\"\n\
                      [[kv_namespaces]]\nid = \"bb\" # this one\nbinding = \"TASKS_KV\"\n[observability]\nid=\"no\"\n";
        assert_eq!(kv_namespace_id(config, "TASKS_KV"), Some("bb"));
        assert_eq!(kv_namespace_id(config, "OTHER"), Some("aa"));
        assert_eq!(kv_namespace_id(config, "NONE"), None);
    }

    #[test]
    fn the_clone_has_both() {
        let workspace = Workspace::find().unwrap();
        let lock = workspace.read("Cargo.lock").unwrap();
        assert!(locked_version(&lock, "wasm-bindgen").is_some());
        let config = workspace.read("edge/wrangler.toml").unwrap();
        assert_eq!(kv_namespace_id(&config, "TASKS_KV").map(str::len), Some(32));
    }
}
