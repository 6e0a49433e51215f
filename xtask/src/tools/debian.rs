//! Packages of Debian, for a bare machine that cannot reach where the ordinary ways get things from.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Whether this machine takes packages from us: a Debian, and we are root.
pub(super) fn installs() -> bool {
    let root = || run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    Path::new("/etc/debian_version").exists() && run::on_path("apt-get").is_some() && root()
}

/// Installs packages; the lists are fetched only when they are too old or missing.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let wanted = [&["install", "-y", "--no-install-recommends"], packages].concat();
    apt_get(&wanted, Path::new("/"))
}

/// Lays the files of a package, and of no other, into a folder, and installs nothing.
pub(super) fn unpack(package: &str, into: &Path) -> Result<()> {
    if !Path::new("/etc/debian_version").exists() || run::on_path("apt-get").is_none() {
        bail!("Debian's package {package} is for Debian");
    }
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    apt_get(&["download", package], into)?;
    let folder = fs::read_dir(into).with_context(|| format!("cannot read {}", into.display()))?;
    let mut files = folder.filter_map(|file| file.ok().map(|file| file.path()));
    let archive = files.find(|file| file.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.with_context(|| format!("apt-get has brought no package {package}"))?;
    run::output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(into)).map(drop)
}

/// What fails is tried again with new lists.
fn apt_get(wanted: &[&str], folder: &Path) -> Result<()> {
    let run = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments).current_dir(folder);
        run::output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if run(wanted).is_ok() {
        return Ok(());
    }
    run(&["update"])?;
    run(wanted).map(drop)
}
