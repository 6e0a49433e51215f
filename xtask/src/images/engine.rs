//! The program that runs the Dockerfile: Docker or Podman if one answers, otherwise Debian's buildah, which needs no engine.
//!
//! This module hides the differences between them.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::Image;
use super::bases::Bases;
use super::buildah::Buildah;
use crate::run;
use crate::tools::Workshop;

/// The program that runs the Dockerfile.
pub(super) enum Engine {
    Docker,
    Podman,
    /// buildah, with bases assembled on this machine, because no image registry can be reached.
    Buildah(Buildah, Bases),
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
            Self::Buildah(..) => "buildah",
        })
    }
}

impl Engine {
    /// Finds a program.
    ///
    /// # Errors
    /// If none exists, and none can be installed.
    pub(super) fn find(shop: &Workshop) -> Result<Self> {
        let bases = bases(&shop.workspace.read("Dockerfile")?);
        let mut why = anyhow!("neither Docker nor Podman answers");
        for (program, engine) in [("docker", Self::Docker), ("podman", Self::Podman)] {
            // A client without an engine is of no use.
            if run::output(Command::new(program).arg("info")).is_err() {
                continue;
            }
            match bases.iter().try_for_each(|base| get(program, base)) {
                Ok(()) => return Ok(engine),
                Err(error) => why = error,
            }
        }
        let none = || {
            format!(
                "cannot build images: {why:#}; start Docker, install Podman, or run this as root on Debian for buildah"
            )
        };
        let buildah = Buildah::find(shop).with_context(none)?;
        let bases = Bases::assembled(shop, &buildah)?;
        Ok(Self::Buildah(buildah, bases))
    }

    /// Builds a target of the Dockerfile, and packs it.
    ///
    /// # Errors
    /// If the engine fails.
    pub(super) fn build(&self, shop: &Workshop, target: &str, image: &Image) -> Result<()> {
        match self {
            Self::Docker | Self::Podman => {
                let program = if matches!(self, Self::Docker) { "docker" } else { "podman" };
                let mut build = Command::new(program);
                build.args(["build", "--target", target, "--tag", &image.name]).arg(&shop.workspace.root);
                run::output(&mut build)?;
                image.discard()?;
                let mut save = Command::new(program);
                save.arg("save");
                if matches!(self, Self::Podman) {
                    save.args(["--format", "docker-archive"]);
                }
                run::output(save.arg("--output").arg(&image.archive).arg(&image.name)).map(drop)
            }
            Self::Buildah(buildah, bases) => {
                bud(shop, buildah, bases, target, &image.name)?;
                image.discard()?;
                buildah.run(&["push", &image.name, &archive(&image.archive, &image.name)]).map(drop)
            }
        }
    }
}

/// Builds a target of the Dockerfile by buildah, into its store.
///
/// # Errors
/// If buildah fails.
pub(super) fn bud(shop: &Workshop, buildah: &Buildah, bases: &Bases, target: &str, name: &str) -> Result<()> {
    let mut build = buildah.command();
    // buildah reuses unchanged layers, as Docker and Podman do.
    build.args(["bud", "--pull-never", "--layers", "--target", target, "--tag", name]);
    for (argument, base) in BASES.iter().zip([&bases.rust, &bases.runtime]) {
        build.args(["--build-arg", &format!("{argument}={base}")]);
    }
    build.args(["--build-arg", &format!("NODE_IMAGE={}", bases.node)]).arg(&shop.workspace.root);
    run::output(&mut build).map(drop)
}

/// The Dockerfile's arguments for the bases of our images.
const BASES: [&str; 2] = ["RUST_IMAGE", "RUNTIME_IMAGE"];

/// The default values of the arguments.
fn bases(dockerfile: &str) -> Vec<String> {
    let arguments = dockerfile.lines().filter_map(|line| line.strip_prefix("ARG ")?.split_once('='));
    arguments.filter(|(name, _)| BASES.contains(name)).map(|(_, image)| image.to_owned()).collect()
}

/// Pulls an image, unless it exists.
fn get(program: &str, image: &str) -> Result<()> {
    if run::output(Command::new(program).args(["image", "inspect", image])).is_ok() {
        return Ok(());
    }
    run::output(Command::new(program).args(["pull", image])).map(drop)
}

/// The name in buildah's notation for a file that `docker load` reads.
fn archive(file: &Path, name: &str) -> String {
    format!("docker-archive:{}:{name}", file.display())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_dockerfile_takes_the_bases_and_has_defaults_with_tags() {
        let bases = super::bases(include_str!("../../../Dockerfile"));
        assert_eq!(bases.len(), super::BASES.len());
        assert!(bases.iter().all(|base| base.rsplit('/').next().unwrap().contains(':')), "{bases:?}");
    }
}
