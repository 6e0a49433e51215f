//! A headless browser for the tests: from PATH, Chrome for Testing, or Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::download::reachable;
use super::version::Version;
use super::{Workshop, debian, node};
use crate::run;

const NAMES: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell"];
const APPLICATIONS: [&str; 2] = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
];
const SHELL: &str = "chrome-headless-shell";
const MILESTONE: &str = "150";
const INSTALLER: &str = "@puppeteer/browsers@3.2.6";
const DOWNLOADS: &str = "https://storage.googleapis.com";

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CHROME").map(PathBuf::from) {
        if works(&named) {
            return Ok(named);
        }
        bail!("CHROME names {}, which does not answer to --version", named.display());
    }
    if let Some(found) = present() {
        return Ok(found);
    }
    let why = match headless_shell(shop) {
        Ok(program) => return Ok(program),
        Err(why) => why,
    };
    if debian::installs() {
        shop.progress.step("get Debian's chromium", || debian::install(&["chromium"]))?;
        if let Some(found) = present() {
            return Ok(found);
        }
    }
    Err(why).context("no browser for the tests: install Chromium or Chrome, or set CHROME to one")
}

fn present() -> Option<PathBuf> {
    let named = NAMES.iter().filter_map(|name| run::on_path(name));
    named.chain(APPLICATIONS.iter().map(PathBuf::from)).find(|program| works(program))
}

fn works(program: &Path) -> bool {
    Version::of(program).is_some()
}

fn headless_shell(shop: &Workshop) -> Result<PathBuf> {
    let key = format!("{SHELL}-{MILESTONE}");
    if shop.cache.get(&key).is_none() && !reachable(DOWNLOADS) {
        bail!("{DOWNLOADS} cannot be reached");
    }
    let node = node::find(shop)?;
    let entry = shop.cache.entry(&key, |folder, _| {
        shop.progress.step(&format!("get {SHELL} {MILESTONE}"), || {
            let node_folder = node.parent().unwrap_or(Path::new(""));
            run::output(
                Command::new("npx")
                    .args(["--yes", INSTALLER, "install", &format!("{SHELL}@{MILESTONE}"), "--path"])
                    .arg(folder)
                    .current_dir(folder)
                    .env("PATH", run::path_with(&[node_folder])?),
            )
            .map(drop)
        })
    })?;
    let program = below(&entry, SHELL).with_context(|| format!("no {SHELL} in {}", entry.display()))?;
    if !works(&program) {
        bail!("{} does not run here; it lacks libraries of the system", program.display());
    }
    Ok(program)
}

/// The file of that name, some folders down: they are named by version and platform.
fn below(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.is_file() && path.file_name() == Some(name.as_ref()));
    here.cloned().or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| below(path, name)))
}
