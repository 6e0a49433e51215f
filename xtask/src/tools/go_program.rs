//! A program that is written in Go: from PATH, a checked release, or built by Go, for machines that reach nothing but the
//! registries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::download::{Release, platform};
use super::version::Version;
use crate::run;

/// Which, and where it comes from.
pub(super) struct GoProgram {
    pub(super) name: &'static str,
    /// The one that is got.
    pub(super) version: Version,
    /// One on PATH may be as old as this.
    pub(super) oldest: Version,
    /// How it is asked for its version.
    pub(super) ask: &'static [&'static str],
    /// Its package, without a version.
    pub(super) package: &'static str,
    /// The variable that its own build sets to the version; Go sets none.
    pub(super) stamp: Option<&'static str>,
    /// Its release for a system and an architecture.
    pub(super) release: fn(&str, &str) -> Release,
}

impl GoProgram {
    pub(super) fn find(&self, shop: &Workshop) -> Result<PathBuf> {
        let Self { name, version, oldest, ask, package, stamp, release } = self;
        if let Some(found) = run::on_path(name).filter(|path| Version::said(path, ask) >= Some(*oldest)) {
            return Ok(found);
        }
        let entry = shop.cache.entry(&format!("{name}-{version}"), |folder, _| {
            shop.progress.step(&format!("get {name} {version}"), || {
                let downloaded = match platform() {
                    Some((os, arch)) => release(os, arch).unpack(folder),
                    None => Err(anyhow::anyhow!("there is no release of {name} for this platform")),
                };
                let Err(why) = downloaded else { return Ok(()) };
                let Some(go) = run::on_path("go") else {
                    return Err(why).context(format!(
                        "no {name}: install {oldest} or newer, or Go to build it with, so that it is on PATH"
                    ));
                };
                // Go checks what it fetches against its sum database.
                let source = format!("{package}@v{version}");
                let flags = stamp.map(|variable| format!("-ldflags=-X {variable}={version}"));
                let mut install = Command::new(go);
                install.args(["install", "-trimpath"]).args(flags).arg(&source).env("GOBIN", folder);
                run::output(&mut install).map(drop)
            })
        })?;
        let program = entry.join(name);
        // A build by Go does not know its patch version by itself.
        if Version::said(&program, ask) < Some(*oldest) {
            bail!("{} does not run; remove its folder to get it again", program.display());
        }
        Ok(program)
    }
}
