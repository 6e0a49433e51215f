//! Node, which runs wrangler: from PATH, a checked release, or npm's copy of that release.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::download::{Release, platform};
use super::version::Version;
use crate::run;

const VERSION: Version = Version(22, 23, 3);
/// What wrangler asks for.
const OLDEST: Version = Version(22, 12, 0);

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(found) = run::on_path("node").filter(|path| Version::of(path) >= Some(OLDEST)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("node-{VERSION}"), |folder, _| {
        shop.progress.step(&format!("get Node {VERSION}"), || {
            let Some((os, arch)) = platform().map(|(os, arch)| (os, node_arch(arch))) else {
                bail!("no Node {OLDEST} or newer on PATH, and no release of it for this platform");
            };
            let Err(why) = release(os, arch).unpack(folder) else { return Ok(()) };
            let Some(npm) = run::on_path("npm") else {
                return Err(why)
                    .context(format!("no Node: install {OLDEST} or newer, so that it is on PATH"));
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

/// The registry has each release of Node as a package a platform; npm checks its sum.
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

fn node_arch(arch: &str) -> &str {
    if arch == "amd64" { "x64" } else { arch }
}

fn release(os: &str, arch: &str) -> Release {
    Release {
        base: format!("https://nodejs.org/dist/v{VERSION}"),
        archive: format!("node-v{VERSION}-{os}-{arch}.tar.gz"),
        sums: "SHASUMS256.txt".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_a_platform() {
        assert_eq!(release("darwin", node_arch("arm64")).archive, "node-v22.23.3-darwin-arm64.tar.gz");
        assert_eq!(release("linux", node_arch("amd64")).archive, "node-v22.23.3-linux-x64.tar.gz");
    }
}
