//! Docker Compose, which reads docker-compose.yml: `docker compose` where that is there, else `docker-compose`. Reading needs
//! no engine.

use std::path::PathBuf;

use anyhow::Result;

use super::Workshop;
use super::download::Release;
use super::go_program::GoProgram;
use super::version::Version;
use crate::run;

/// The newest that Go 1.26.8 builds.
const VERSION: Version = Version(5, 6, 0);

const COMPOSE: GoProgram = GoProgram {
    name: "docker-compose",
    version: VERSION,
    // The first with configs whose content stands in the file.
    oldest: Version(2, 23, 1),
    ask: &["version"],
    package: "github.com/docker/compose/v5/cmd",
    as_part: true,
    stamp: Some("github.com/docker/compose/v5/internal.Version"),
    release,
};

/// `docker`, to be told `compose`, or `docker-compose`.
pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    let newer = |docker: &PathBuf| Version::said(docker, &["compose", "version"]) >= Some(COMPOSE.oldest);
    match run::on_path("docker").filter(newer) {
        Some(docker) => Ok(docker),
        None => COMPOSE.find(shop),
    }
}

fn release(os: &str, arch: &str) -> Release {
    let arch = if arch == "amd64" { "x86_64" } else { "aarch64" };
    Release {
        base: format!("https://github.com/docker/compose/releases/download/v{VERSION}"),
        archive: format!("docker-compose-{os}-{arch}"),
        sums: "checksums.txt".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_release_of_a_platform() {
        assert_eq!(super::release("linux", "amd64").archive, "docker-compose-linux-x86_64");
        assert_eq!(super::release("darwin", "arm64").archive, "docker-compose-darwin-aarch64");
    }
}
