//! Packages of Debian, for a bare machine that cannot reach where the ordinary ways get things from.

use std::fs::{self, File};
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

/// Lays the files of packages, and of no others, into a folder, and installs nothing.
pub(super) fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    if !Path::new("/etc/debian_version").exists() || run::on_path("apt-get").is_none() {
        bail!("Debian's {} is for Debian", packages.join(", "));
    }
    let archives = into.join(".packages");
    fs::create_dir_all(&archives).with_context(|| format!("cannot make {}", archives.display()))?;
    apt_get(&[&["download"], packages].concat(), &archives)?;
    for archive in fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let archive = archive.with_context(|| format!("cannot read {}", archives.display()))?.path();
        run::output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(into))?;
    }
    fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
}

/// Two at a time, of one machine, would find the lists or dpkg locked, and fail.
fn alone() -> Option<File> {
    let file = File::create(std::env::temp_dir().join("taskpipeline-apt.lock")).ok()?;
    file.lock().ok().map(|()| file)
}

/// What fails is tried again with new lists.
fn apt_get(wanted: &[&str], folder: &Path) -> Result<()> {
    let _alone = alone();
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
