//! nats-server: from PATH, a checked release, or Go.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Workshop;
use super::download::{Release, platform};
use super::version::Version;
use crate::run;

const VERSION: Version = Version(2, 15, 2);
/// What the durable mode's streams need.
const OLDEST: Version = Version(2, 11, 0);

pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    if let Some(found) = run::on_path("nats-server").filter(|path| Version::of(path) >= Some(OLDEST)) {
        return Ok(found);
    }
    let key = format!("nats-server-{VERSION}");
    let entry = shop.cache.entry(&key, |folder, _| {
        shop.progress.step(&format!("get nats-server {VERSION}"), || {
            let downloaded = match platform() {
                Some((os, arch)) => release(os, arch).unpack(folder),
                None => Err(anyhow::anyhow!("there is no release of nats-server for this platform")),
            };
            let Err(why) = downloaded else { return Ok(()) };
            let Some(go) = run::on_path("go") else {
                return Err(why).context(format!(
                    "no nats-server: install {OLDEST} or newer, or Go to build it with, so that it is on PATH"
                ));
            };
            // Go checks what it fetches against its sum database.
            let source = format!("github.com/nats-io/nats-server/v2@v{VERSION}");
            run::output(Command::new(go).args(["install", "-trimpath", &source]).env("GOBIN", folder))
                .map(drop)
        })
    })?;
    let program = entry.join("nats-server");
    if Version::of(&program) != Some(VERSION) {
        bail!("{} does not run; remove its folder to get it again", program.display());
    }
    Ok(program)
}

fn release(os: &str, arch: &str) -> Release {
    Release {
        base: format!("https://github.com/nats-io/nats-server/releases/download/v{VERSION}"),
        archive: format!("nats-server-v{VERSION}-{os}-{arch}.tar.gz"),
        sums: "SHA256SUMS",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_a_platform() {
        let release = super::release("linux", "amd64");
        assert_eq!(
            format!("{}/{}", release.base, release.archive),
            "https://github.com/nats-io/nats-server/releases/download/v2.15.2/\
             nats-server-v2.15.2-linux-amd64.tar.gz"
        );
    }
}
