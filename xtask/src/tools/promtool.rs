//! promtool, which checks metrics, alert rules, and the rules' unit tests: from PATH, Prometheus' release, or Debian's package
//! for machines that reach nothing but the registries. Not built by Go: with all that it can talk to, that takes over ten
//! minutes on two cores.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::download::{Release, platform};
use super::version::Version;
use super::{Workshop, debian};
use crate::run;

const VERSION: Version = Version(3, 16, 0);

/// Debian 12's, which checks what ours uses in the same way.
const OLDEST: Version = Version(2, 42, 0);

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(found) = run::on_path("promtool").filter(|path| Version::of(path) >= Some(OLDEST)) {
        return Ok(found);
    }
    let entry = shop.cache.entry(&format!("promtool-{VERSION}"), |folder, _| {
        shop.progress.step(&format!("get promtool {VERSION}"), || {
            let downloaded = match platform() {
                Some((os, arch)) => release(os, arch).unpack(folder),
                None => Err(anyhow!("there is no release of Prometheus for this platform")),
            };
            downloaded.or_else(|why| {
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

fn release(os: &str, arch: &str) -> Release {
    Release {
        base: format!("https://github.com/prometheus/prometheus/releases/download/v{VERSION}"),
        archive: format!("prometheus-{VERSION}.{os}-{arch}.tar.gz"),
        sums: "sha256sums.txt".to_owned(),
    }
}

/// Taken out of the package: installed, it would bring a Prometheus that runs.
fn debians(folder: &Path) -> Result<()> {
    let package = folder.join("debian");
    debian::unpack(&["prometheus"], &package)?;
    fs::rename(package.join("usr/bin/promtool"), folder.join("promtool"))
        .context("Debian's prometheus has no promtool")?;
    fs::remove_dir_all(&package).with_context(|| format!("cannot remove {}", package.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_a_platform() {
        let release = release("linux", "amd64");
        assert_eq!(
            format!("{}/{}", release.base, release.archive),
            "https://github.com/prometheus/prometheus/releases/download/v3.16.0/\
             prometheus-3.16.0.linux-amd64.tar.gz"
        );
    }
}
