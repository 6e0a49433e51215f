//! promtool, which checks metrics, alert rules, and the rules' unit tests.
//!
//! It comes from PATH, from Prometheus' release, or from Debian's package on machines that reach only the registries.
//! Go does not build it: with all its clients, that takes over ten minutes on two cores.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::download::{Archive, Release};
use super::version::Version;
use super::{Workshop, debian};
use crate::run;

pub(super) const VERSION: Version = Version(3, 15, 0);

/// The version of Debian 12, which checks the features that we use in the same way.
const OLDEST: Version = Version(2, 42, 0);

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(found) = run::on_path("promtool").filter(|path| Version::of(path) >= Some(OLDEST)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("promtool-{VERSION}"), |folder, _| {
        shop.progress.step(&format!("get promtool {VERSION}"), || {
            RELEASE.unpack(folder).or_else(|why| {
                debians(folder).with_context(|| {
                    format!("{why:#}; install promtool {OLDEST} or newer, so that it is on PATH")
                })
            })
        })
    })?;
    let program = entry.join("promtool");
    if Version::of(&program) < Some(OLDEST) {
        bail!("{} does not run; remove its folder to get it again", program.display());
    }
    Ok(program)
}

pub(super) const RELEASE: Release = Release {
    base: "https://github.com/prometheus/prometheus/releases/download/v3.15.0",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "prometheus-3.15.0.linux-amd64.tar.gz",
            sha256: "2a542df32eac02ee17b9d844fb2aa1de00dafa5476579ba8a3ba862e9d572ea0",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "prometheus-3.15.0.linux-arm64.tar.gz",
            sha256: "f1f90ec08e849d494ca66c611470afc50192f0355f1a61c33f2cbde02d067823",
        },
        Archive {
            platform: ("darwin", "amd64"),
            name: "prometheus-3.15.0.darwin-amd64.tar.gz",
            sha256: "2d79e744c2d7e505db936fbc898e05abc74fcb6e437c25befd26e9c9f00aa58b",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "prometheus-3.15.0.darwin-arm64.tar.gz",
            sha256: "920df4d17e78b3b0175af144eb318b0c74d1cf7b1d1251b326966f0e81977260",
        },
    ],
};

/// Takes promtool out of the package. An installed package would start a Prometheus.
fn debians(folder: &Path) -> Result<()> {
    let package = folder.join("debian");
    debian::unpack(&["prometheus"], &package)?;
    fs::rename(package.join("usr/bin/promtool"), folder.join("promtool"))
        .context("Debian's package prometheus contains no promtool")?;
    fs::remove_dir_all(&package).with_context(|| format!("cannot remove {}", package.display()))
}
