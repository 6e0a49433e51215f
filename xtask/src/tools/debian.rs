//! Packages of Debian, for a bare machine that cannot reach the ordinary sources.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Whether this program may install packages here: on Debian, as root.
pub(super) fn installs() -> bool {
    let root = || run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    Path::new("/etc/debian_version").exists() && run::on_path("apt-get").is_some() && root()
}

/// Installs packages. Fetches the lists of packages only if they are too old or missing.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let wanted = [&["install", "-y", "--no-install-recommends"], packages].concat();
    apt_get(&wanted, Path::new("/"))
}

/// Unpacks the files of these packages only into a folder, and installs nothing.
pub(super) fn unpack(packages: &[&str], into: &Path) -> Result<()> {
    if !Path::new("/etc/debian_version").exists() || run::on_path("apt-get").is_none() {
        bail!("packages of Debian need Debian: {}", packages.join(", "));
    }
    let archives = into.join(".packages");
    fs::create_dir_all(&archives).with_context(|| format!("cannot create {}", archives.display()))?;
    apt_get(&[&["download"], packages].concat(), &archives)?;
    for archive in fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let archive = archive.with_context(|| format!("cannot read {}", archives.display()))?.path();
        run::output(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(into))?;
    }
    fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
}

/// Two runs on one machine would find the lists or dpkg locked, and fail.
fn alone() -> Option<File> {
    let file = File::create(std::env::temp_dir().join("taskpipeline-apt.lock")).ok()?;
    file.lock().ok().map(|()| file)
}

/// If apt-get fails, it runs again with new lists.
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
