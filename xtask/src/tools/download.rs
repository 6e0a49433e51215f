//! Releases: fetched by `curl`, checked against the sums in this repository, and unpacked by `tar` if they are archives.
//!
//! A list of sums beside an archive proves nothing: anyone who can replace the archive can replace the list.
//!
//! The time to connect is short: a machine without internet has other ways, and should try them soon.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::hex_sha256;
use crate::run;

const ARCHIVE: &str = ".tar.gz";

/// A version of a tool, as its project publishes it.
pub(super) struct Release {
    /// The URL of the archives' folder, without a slash at the end.
    pub(super) base: &'static str,
    /// The archives whose sums are known.
    pub(super) archives: &'static [Archive],
}

/// An archive, or a single program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// The system and the processor of the archive, as [`platform`] returns them.
    pub(super) platform: (&'static str, &'static str),
    /// The name of the file.
    pub(super) name: &'static str,
    /// The sum of the file, which more than one party must have published.
    pub(super) sha256: &'static str,
}

impl Release {
    /// Puts the program into the folder under this name, with the other files of the archive for this machine.
    ///
    /// # Errors
    /// If no archive fits, it cannot be fetched, or its sum differs from the one in this repository.
    pub(super) fn bring(&self, into: &Path, name: &str) -> Result<()> {
        self.here()?.bring(self.base, into, name)
    }

    /// Unpacks the archive for this machine into the folder. If the archive consists of one folder, that folder's
    /// content is unpacked.
    ///
    /// # Errors
    /// As [`Self::bring`].
    pub(super) fn unpack(&self, into: &Path) -> Result<()> {
        self.here()?.unpack(self.base, into)
    }

    fn here(&self) -> Result<&'static Archive> {
        platform().and_then(|here| self.of(here)).with_context(|| {
            format!("this repository has no sum of an archive for this platform: {}", self.base)
        })
    }

    fn of(&self, platform: (&str, &str)) -> Option<&'static Archive> {
        self.archives.iter().find(|archive| archive.platform == platform)
    }
}

impl Archive {
    fn bring(&self, base: &str, into: &Path, name: &str) -> Result<()> {
        if self.name.ends_with(ARCHIVE) {
            return self.unpack(base, into);
        }
        let (fetched, program) = (self.fetch(base, into)?, into.join(name));
        fs::rename(&fetched, &program)
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot move {} into its place", program.display()))
    }

    fn unpack(&self, base: &str, into: &Path) -> Result<()> {
        let archive = self.fetch(base, into)?;
        let names = run::output(Command::new("tar").arg("-tzf").arg(&archive))?;
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(into);
        if is_one_folder(&names) {
            unpack.args(["--strip-components", "1"]);
        }
        run::output(&mut unpack)?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
    }

    /// Fetches the file into the folder and checks its sum.
    fn fetch(&self, base: &str, into: &Path) -> Result<PathBuf> {
        let (file, url) = (into.join(".fetched"), format!("{base}/{}", self.name));
        fetch(&url, &file)?;
        self.check(&url, &file)?;
        Ok(file)
    }

    /// Removes the file at once if its sum differs from the one in this repository.
    fn check(&self, url: &str, file: &Path) -> Result<()> {
        let found = File::open(file).and_then(hex_sha256).context("cannot read the fetched file")?;
        if found == self.sha256 {
            return Ok(());
        }
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
        bail!(
            "{url} has changed: its SHA-256 is {found}, and {} in this repository. Someone may have replaced the file; \
             none of it was run",
            self.sha256
        )
    }
}

fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"]);
    command.args(["--connect-timeout", "5"]);
    command
}

/// Fetches one file, unchecked.
pub(super) fn fetch(url: &str, file: &Path) -> Result<()> {
    run::output(curl().args(["--retry", "1", "--output"]).arg(file).arg(url)).map(drop)
}

/// Whether a server can be reached. For tools that would wait much longer for it than this program.
pub(super) fn reachable(url: &str) -> bool {
    if run::on_path("curl").is_none() {
        // curl is missing, so let the tool try.
        return true;
    }
    // Any response counts, a 404 too.
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

/// Whether all names of an archive are in the same folder.
fn is_one_folder(names: &str) -> bool {
    let mut folders = names.lines().map(|name| name.split_once('/').map(|(folder, _)| folder));
    let first = folders.next().flatten();
    first.is_some() && folders.all(|folder| folder == first)
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
    use crate::tools::{compose, helm, helm_docs, nats_server, node, promtool, vale};

    /// An attacker replaces an archive on the release server, and its sum in the list beside it.
    #[test]
    fn an_archive_that_was_exchanged_is_refused_though_the_list_beside_it_names_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("tool-linux-amd64");
        let theirs = Archive {
            platform: ("linux", "amd64"),
            name: "tool-linux-amd64",
            sha256: "8aa9f7d9ee1ac6b7d1ae4fb7d9e2c2ec3c25e5b6ce0cd6d6ffd5cd0a0a6a5f5b",
        };
        fs::write(&file, "#!/bin/sh\necho stolen\n").unwrap();
        let sum = File::open(&file).and_then(hex_sha256).unwrap();
        fs::write(folder.path().join("SHA256SUMS"), format!("{sum}  tool-linux-amd64\n")).unwrap();
        let refused = theirs.check("https://example.org/tool-linux-amd64", &file).unwrap_err().to_string();
        assert!(refused.contains(&sum) && refused.contains(theirs.sha256), "{refused}");
        assert!(!file.exists(), "the refused file still exists");

        fs::write(&file, "").unwrap();
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        Archive { sha256: empty, ..theirs }.check("https://example.org/tool", &file).unwrap();
    }

    #[test]
    fn every_archive_has_a_sum_and_the_version_of_its_release() {
        let releases = [
            nats_server::RELEASE,
            helm::RELEASE,
            helm_docs::RELEASE,
            compose::RELEASE,
            promtool::RELEASE,
            node::RELEASE,
            vale::RELEASE,
        ];
        let mut count = 0;
        for release in releases {
            assert!(release.base.starts_with("https://") && !release.base.ends_with('/'), "{}", release.base);
            for archive in release.archives {
                let is_sum =
                    archive.sha256.len() == 64 && archive.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                assert!(is_sum, "{archive:?}");
                let (os, _) = archive.platform;
                assert!(archive.name.to_lowercase().contains(os), "{archive:?}");
                count += 1;
            }
            assert!(release.of(("linux", "amd64")).is_some() && release.of(("plan9", "amd64")).is_none());
        }
        println!("{count} archives, each with its sum");
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
