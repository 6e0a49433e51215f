//! Docker Compose, which reads docker-compose.yml: `docker compose` if it exists, otherwise `docker-compose`. Reading
//! needs no engine.

use std::path::PathBuf;

use anyhow::Result;

use super::Workshop;
use super::download::{Archive, Release};
use super::go_program::GoProgram;
use super::version::Version;
use crate::run;

/// The newest version that Go 1.26.8 builds.
const VERSION: Version = Version(5, 6, 0);

const COMPOSE: GoProgram = GoProgram {
    name: "docker-compose",
    version: VERSION,
    // The first version with configs whose content is in the file.
    oldest: Version(2, 23, 1),
    ask: &["version"],
    package: "github.com/docker/compose/v5/cmd",
    module: None,
    tags: "",
    as_part: true,
    stamp: Some("github.com/docker/compose/v5/internal.Version"),
    release: &RELEASE,
};

/// Returns `docker`, to be called with `compose`, or `docker-compose`.
pub(super) fn find(shop: &Workshop) -> Result<PathBuf> {
    let newer = |docker: &PathBuf| Version::said(docker, &["compose", "version"]) >= Some(COMPOSE.oldest);
    match run::on_path("docker").filter(newer) {
        Some(docker) => Ok(docker),
        None => COMPOSE.find(shop),
    }
}

pub(super) const RELEASE: Release = Release {
    base: "https://github.com/docker/compose/releases/download/v5.6.0",
    archives: &[
        Archive {
            platform: ("linux", "amd64"),
            name: "docker-compose-linux-x86_64",
            sha256: "40343e21ca777173e69cff5dbafeb37c6f81f3b0d57d9e597f036e95eb63e76a",
        },
        Archive {
            platform: ("linux", "arm64"),
            name: "docker-compose-linux-aarch64",
            sha256: "733ec76717ceb59052a9609b9dadfb523b2df8eab57a54212872d10a58078ea2",
        },
        Archive {
            platform: ("darwin", "arm64"),
            name: "docker-compose-darwin-aarch64",
            sha256: "bd714a42b46e51757fc1121085b3096b9064e3f80d3ca5a991e33f44df4f43c9",
        },
    ],
};
