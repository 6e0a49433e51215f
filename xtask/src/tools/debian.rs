//! Packages of Debian, for a bare machine that cannot reach where the ordinary ways get things from.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::run;

/// Whether this machine takes packages from us: a Debian, and we are root.
pub(super) fn installs() -> bool {
    let root = || run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    Path::new("/etc/debian_version").exists() && run::on_path("apt-get").is_some() && root()
}

/// Installs packages; the lists are fetched only when they are too old or missing.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
        run::output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let wanted = [&["install", "-y", "--no-install-recommends"], packages].concat();
    if apt_get(&wanted).is_ok() {
        return Ok(());
    }
    apt_get(&["update"])?;
    apt_get(&wanted).map(drop)
}
