//! Node, which runs wrangler: from PATH, a checked release, or npm's copy of that release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::download::{Archive, Release, platform};
use super::version::Version;
use crate::run;

const VERSION: Version = Version(22, 23, 3);
/// The version that wrangler requires.
const OLDEST: Version = Version(22, 12, 0);

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(found) = run::on_path("node").filter(|path| Version::of(path) >= Some(OLDEST)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("node-{VERSION}"), |folder, _| {
        shop.progress.step(&format!("get Node {VERSION}"), || {
            let Some((os, arch)) = platform() else {
                bail!("Node {OLDEST} or newer is not on PATH, and has no release for this platform");
            };
            let Err(why) = RELEASE.unpack(folder) else { return Ok(()) };
            let arch = if arch == "amd64" { "x64" } else { arch };
            let Some(npm) = run::on_path("npm") else {
                return Err(why).context(format!(
                    "cannot install Node; install {OLDEST} or newer, so that it is on PATH"
                ));
            };
            from_npm(&npm, &format!("node-{os}-{arch}"), folder)
        })
    })?;
    let program = entry.join("bin/node");
    if Version::of(&program) != Some(VERSION) {
        bail!(
            "{} does not run; remove its folder to get it again, or install Node {OLDEST}",
            program.display()
        );
    }
    Ok(program)
}

/// Installs Node from npm. The registry has each release of Node as one package for each platform, and npm checks its sum.
fn from_npm(npm: &Path, package: &str, folder: &Path) -> Result<()> {
    run::output(
        Command::new(npm)
            .args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix"])
            .arg(folder)
            .arg(format!("{package}@{VERSION}"))
            .current_dir(folder),
    )?;
    std::os::unix::fs::symlink(format!("node_modules/{package}/bin"), folder.join("bin"))
        .context("cannot link Node's bin folder")
}

pub(super) const RELEASE: Release = Release {
    base: "https://nodejs.org/dist/v22.23.3",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "node-v22.23.3-linux-x64.tar.gz",
            sha256: "1084aa36196bba4c3a5e69a1ee388a6e4ff729dad09445fbcd434b28fe3c24af",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "node-v22.23.3-linux-arm64.tar.gz",
            sha256: "5ced2d48d1d7198739b7f86804de0171aefb6823b684b12341d3321afc3cb0b2",
        },
        Archive {
            platform: ("darwin", "amd64"),
            name: "node-v22.23.3-darwin-x64.tar.gz",
            sha256: "8a677b0219178efd6eb0e475457c4afb452b521a92f6e67845a73bd85727f2a8",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "node-v22.23.3-darwin-arm64.tar.gz",
            sha256: "23b25245dcfb9af7262f8ff142e9e2e0af025368117329e7a7458a51e5922f53",
        },
    ],
};
