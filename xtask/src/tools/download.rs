//! Releases: fetched by `curl`, checked against the release's own list of sums, unpacked by `tar` if they are archives.
//!
//! The time to connect is short: a machine without internet has other ways, and should get to them soon.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::hex_sha256;
use crate::run;

const ARCHIVE: &str = ".tar.gz";

/// An archive or a bare program, and the list that says what its sum is.
pub(super) struct Release {
    /// The folder both lie in, without a slash at the end.
    pub(super) base: String,
    /// The archive's name, or the program's.
    pub(super) archive: String,
    /// The list's name.
    pub(super) sums: String,
}

impl Release {
    /// Puts the program into the folder under this name, with what else the archive holds.
    pub(super) fn bring(&self, into: &Path, name: &str) -> Result<()> {
        if self.archive.ends_with(ARCHIVE) {
            return self.unpack(into);
        }
        let (fetched, program) = (self.fetch(into)?, into.join(name));
        fs::rename(&fetched, &program)
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot put {} into its place", program.display()))
    }

    /// Unpacks the archive into the folder; without the one folder that it consists of, if it does.
    pub(super) fn unpack(&self, into: &Path) -> Result<()> {
        let archive = self.fetch(into)?;
        let names = run::output(Command::new("tar").arg("-tzf").arg(&archive))?;
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(into);
        if is_one_folder(&names) {
            unpack.args(["--strip-components", "1"]);
        }
        run::output(&mut unpack)?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
    }

    /// A file in the folder that has the sum it should have.
    fn fetch(&self, into: &Path) -> Result<PathBuf> {
        let (file, sums) = (into.join(".fetched"), into.join(".sums"));
        fetch(&format!("{}/{}", self.base, self.sums), &sums)?;
        fetch(&format!("{}/{}", self.base, self.archive), &file)?;
        let list = fs::read_to_string(&sums).with_context(|| format!("cannot read {}", sums.display()))?;
        let Some(expected) = sum_of(&list, &self.archive) else {
            bail!("{} of the release at {} does not list {}", self.sums, self.base, self.archive);
        };
        let found = File::open(&file).and_then(hex_sha256).context("cannot read again what was fetched")?;
        if found != expected {
            bail!("{}/{} has the SHA-256 {found}, its release says {expected}", self.base, self.archive);
        }
        fs::remove_file(&sums).with_context(|| format!("cannot remove {}", sums.display()))?;
        Ok(file)
    }
}

fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"]);
    command.args(["--connect-timeout", "5"]);
    command
}

/// One file, unchecked.
pub(super) fn fetch(url: &str, file: &Path) -> Result<()> {
    run::output(curl().args(["--retry", "1", "--output"]).arg(file).arg(url)).map(drop)
}

/// Whether a server can be reached at all; for tools that would wait for it much longer than we do.
pub(super) fn reachable(url: &str) -> bool {
    if run::on_path("curl").is_none() {
        // Nobody to ask; then let the tool try.
        return true;
    }
    // Any answer is one, a 404 too.
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--head",
        "--output",
        "/dev/null",
        "--connect-timeout",
        "5",
        "--max-time",
        "15",
        url,
    ]);
    run::output(&mut command).is_ok()
}

/// Whether all of an archive's names lie in the same folder.
fn is_one_folder(names: &str) -> bool {
    let mut folders = names.lines().map(|name| name.split_once('/').map(|(folder, _)| folder));
    let first = folders.next().flatten();
    first.is_some() && folders.all(|folder| folder == first)
}

fn sum_of<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.lines().find_map(|line| {
        let (sum, file) = line.split_once(char::is_whitespace)?;
        (file.trim_start().trim_start_matches('*') == name).then_some(sum)
    })
}

/// This machine's system and processor as release archives name them: (`linux`, `amd64`).
pub(super) fn platform() -> Option<(&'static str, &'static str)> {
    platform_of(std::env::consts::OS, std::env::consts::ARCH)
}

fn platform_of(os: &str, arch: &str) -> Option<(&'static str, &'static str)> {
    let os = match os {
        "linux" => "linux",
        "macos" => "darwin",
        _ => return None,
    };
    match arch {
        "x86_64" => Some((os, "amd64")),
        "aarch64" => Some((os, "arm64")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_sum_in_a_list() {
        let list = "aa  nats-server-v2.15.2-linux-amd64.zip\nbb  nats-server-v2.15.2-linux-amd64.tar.gz\ncc *other\n";
        assert_eq!(sum_of(list, "nats-server-v2.15.2-linux-amd64.tar.gz"), Some("bb"));
        assert_eq!(sum_of(list, "other"), Some("cc"));
        assert_eq!(sum_of(list, "nats-server"), None);
    }

    #[test]
    fn an_archive_is_one_folder_or_is_not() {
        assert!(is_one_folder(
            "nats-server-v2.15.2-linux-amd64/\nnats-server-v2.15.2-linux-amd64/nats-server\n"
        ));
        assert!(!is_one_folder("LICENSE\nREADME.md\nhelm-docs\n"));
        assert!(!is_one_folder("README.md\ndocs/a.md\n") && !is_one_folder("a/b\nc/d\n"));
        assert!(!is_one_folder(""));
    }

    #[test]
    fn names_the_platform() {
        assert_eq!(platform_of("linux", "x86_64"), Some(("linux", "amd64")));
        assert_eq!(platform_of("macos", "aarch64"), Some(("darwin", "arm64")));
        assert_eq!(platform_of("windows", "x86_64"), None);
        assert_eq!(platform_of("linux", "riscv64"), None);
    }
}
