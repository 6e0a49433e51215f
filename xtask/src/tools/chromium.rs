//! A headless browser for the tests: from PATH or macOS' applications, otherwise Debian's.
//!
//! Google publishes no sums of its downloads that this repository could contain, so none is fetched from there.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::version::Version;
use super::{Workshop, debian};
use crate::run;

const NAMES: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell"];
const APPLICATIONS: [&str; 2] = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
];

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
    if debian::installs() {
        shop.progress.step("get Debian's chromium", || debian::install(&["chromium"]))?;
        if let Some(found) = present() {
            return Ok(found);
        }
    }
    bail!("no browser for the tests; install Chromium or Chrome, or set CHROME to the path of one")
}

fn present() -> Option<PathBuf> {
    let named = NAMES.iter().filter_map(|name| run::on_path(name));
    named.chain(APPLICATIONS.iter().map(PathBuf::from)).find(|program| works(program))
}

fn works(program: &Path) -> bool {
    Version::of(program).is_some()
}
