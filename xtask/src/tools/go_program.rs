//! A program that is written in Go: from PATH, a checked release, or a build by Go for machines that reach only the registries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::download::Release;
use super::version::Version;
use crate::run;

/// A program and its sources.
pub(super) struct GoProgram {
    pub(super) name: &'static str,
    /// The version that is installed.
    pub(super) version: Version,
    /// The oldest version on PATH that is used.
    pub(super) oldest: Version,
    /// The arguments that print the version.
    pub(super) ask: &'static [&'static str],
    /// The package, without a version.
    pub(super) package: &'static str,
    /// The version of the Go module, if it differs.
    pub(super) module: Option<Version>,
    /// The build tags, as `go build -tags` takes them.
    pub(super) tags: &'static str,
    /// Whether the program's go.mod replaces or excludes modules. If so, Go cannot install it by its path, only as
    /// part of another module.
    pub(super) as_part: bool,
    /// The variable that the project's build sets to the version. Go sets none.
    pub(super) stamp: Option<&'static str>,
    /// The project's release.
    pub(super) release: &'static Release,
}

impl GoProgram {
    pub(super) fn find(&self, shop: &Workshop) -> Result<PathBuf> {
        let Self { name, version, oldest, ask, release, .. } = self;
        if let Some(found) = run::on_path(name).filter(|path| Version::said(path, ask) >= Some(*oldest)) {
            return Ok(found);
        }
        let entry = shop.cache.entry(&format!("{name}-{version}"), |folder, _| {
            shop.progress.step(&format!("get {name} {version}"), || {
                let Err(why) = release.bring(folder, name) else { return Ok(()) };
                let Some(go) = run::on_path("go") else {
                    return Err(why).context(format!(
                        "{name} is not on PATH; install {oldest} or newer, or Go to build it"
                    ));
                };
                self.build(&go, folder)
            })
        })?;
        let program = entry.join(name);
        // A build by Go does not know its patch version by itself.
        if Version::said(&program, ask) < Some(*oldest) {
            bail!("{} does not run; remove its folder to get it again", program.display());
        }
        Ok(program)
    }

    /// Builds the program. Go checks the modules against its sum database.
    fn build(&self, go: &Path, folder: &Path) -> Result<()> {
        let Self { name, version, module, tags, package, stamp, .. } = self;
        let flags = stamp.map(|variable| format!("-ldflags=-X {variable}={version}"));
        let go = |arguments: &[&str], within: &Path| {
            let mut command = Command::new(go);
            command.args(arguments).current_dir(within).env("GOBIN", folder);
            command
        };
        let wanted = format!("{package}@v{}", module.unwrap_or(*version));
        let flags = flags.into_iter().chain((!tags.is_empty()).then(|| format!("-tags={tags}")));
        if !self.as_part {
            let mut install = go(&["install", "-trimpath"], folder);
            return run::output(install.args(flags).arg(wanted)).map(drop);
        }
        let whole = folder.join("whole");
        fs::create_dir(&whole)
            .and_then(|()| fs::write(whole.join("go.mod"), "module whole\n"))
            .with_context(|| format!("cannot create a module in {}", whole.display()))?;
        run::output(go(&["get"], &whole).arg(wanted))?;
        let mut build = go(&["build", "-trimpath"], &whole);
        run::output(build.args(flags).arg("-o").arg(folder.join(name)).arg(package))?;
        fs::remove_dir_all(&whole).with_context(|| format!("cannot remove {}", whole.display()))
    }
}
