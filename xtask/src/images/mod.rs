//! `cargo xtask image`: builds the images that pods run, from the Dockerfile, as archives for `docker load`, `kind
//! load` and containerd.
//!
//! The other images for the tests on a cluster are packed without an engine. This module loads no image anywhere.

mod bases;
mod buildah;
mod engine;
mod pack;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;
use bases::Bases;
pub(crate) use buildah::Buildah;
use engine::Engine;
pub(crate) use pack::Packed;

/// The prefix of a release's images; the chart's default.
const RELEASED: &str = "ghcr.io/taskpipeline";

/// The options of `image`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Begin the images' names with this prefix
    #[arg(long, default_value = RELEASED, value_name = "PREFIX")]
    prefix: String,
    /// Set the tag of the images [default: the version]
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Also build the images that `cargo xtask e2e --context` needs in a registry
    #[arg(long)]
    tests: bool,
}

/// An image, and the path of its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// The name with its tag.
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

/// The prefix and the tag of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    prefix: String,
    tag: String,
}

impl Names {
    pub(crate) fn new(prefix: &str, tag: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned(), tag: tag.to_owned() }
    }

    /// The names of a release of this version: the chart's defaults.
    pub(crate) fn released() -> Self {
        Self::new(RELEASED, env!("CARGO_PKG_VERSION"))
    }

    /// An image of this name, with prefix and tag.
    pub(crate) fn of(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.prefix, self.tag)
    }

    fn image(&self, shop: &Workshop, name: &str) -> Result<Image> {
        let folder = shop.workspace.target.join("images");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Image { name: self.of(name), archive: folder.join(format!("{name}.tar")) })
    }
}

/// The Dockerfile's targets, each with the name of its image.
const TARGETS: [(&str, &str); 2] = [("taskpipeline", PROCESSOR), ("demo", DEMO)];

/// The processor and the operator.
pub(crate) const PROCESSOR: &str = "taskpipeline";

/// The simulator of Cloudflare KV, with the pages.
pub(crate) const DEMO: &str = "taskpipeline-demo";

/// nats-server and a producer, for the tests.
pub(crate) const TOOLS: &str = "taskpipeline-e2e";

/// The processor of the version that the tests upgrade from.
pub(crate) const EARLIER: &str = "taskpipeline-earlier";

/// Builds the images, and prints their paths and sizes.
///
/// # Errors
/// If no engine exists, or something does not build.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let names = Names::new(&options.prefix, &options.tag);
    let mut images = built(shop, &names)?;
    if options.tests {
        images.extend(of_tests(shop, &names)?);
    }
    for image in &images {
        say(format_args!("{:<50}{:>9}   {}", image.name, image.size()?, image.archive.display()));
    }
    Ok(ExitCode::SUCCESS)
}

impl Image {
    /// Removes the archive of an earlier build. Podman would add to the archive, and buildah refuses an existing one.
    fn discard(&self) -> Result<()> {
        if self.archive.exists() {
            fs::remove_file(&self.archive)
                .with_context(|| format!("cannot replace {}", self.archive.display()))?;
        }
        Ok(())
    }

    /// The size of the archive's uncompressed content, for people.
    pub(crate) fn size(&self) -> Result<String> {
        let archive = self.archive.metadata();
        let bytes = archive.with_context(|| format!("cannot read {}", self.archive.display()))?.len();
        Ok(format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000))
    }
}

/// Gets the tools and base images of a build.
///
/// # Errors
/// If something cannot be obtained.
pub(crate) fn prepare(shop: &Workshop) -> Result<()> {
    Engine::find(shop)?;
    shop.earlier_release().map(drop)
}

/// Builds the images of the Dockerfile.
///
/// # Errors
/// If no engine exists, or something does not build.
pub(crate) fn built(shop: &Workshop, names: &Names) -> Result<Vec<Image>> {
    let engine = Engine::find(shop)?;
    TARGETS
        .iter()
        .map(|(target, name)| {
            let image = names.image(shop, name)?;
            shop.progress.step(&format!("build the image {name} by {engine}"), || {
                engine.build(shop, target, &image)
            })?;
            Ok(image)
        })
        .collect()
}

/// Builds a target of the Dockerfile by buildah, into its store, and returns the image's name.
///
/// The image of the edge needs a base with Node.
///
/// # Errors
/// If something does not build.
pub(crate) fn by_buildah(shop: &Workshop, buildah: &Buildah, target: &str) -> Result<String> {
    let bases = Bases::assembled(shop, buildah)?;
    if target == "edge" {
        bases.with_node(shop, buildah)?;
    }
    let name = format!("localhost/taskpipeline-{target}:compose");
    engine::bud(shop, buildah, &bases, target, &name)?;
    Ok(name)
}

/// Builds the images that only the tests on a cluster need.
///
/// # Errors
/// If something does not build, or this machine does not run Linux.
pub(crate) fn of_tests(shop: &Workshop, names: &Names) -> Result<[Image; 2]> {
    ensure!(
        cfg!(target_os = "linux"),
        "programs of this machine do not run in a Linux pod; run `cargo xtask image --tests` on Linux, and name the images by \
         --context and --images"
    );
    run::output(&mut shop.workspace.build(&["e2e-load", "e2e-copy"]))?;
    let (tools, earlier) = (names.image(shop, TOOLS)?, names.image(shop, EARLIER)?);
    let own = |name| (name, shop.workspace.binary(name));
    let programs = [("nats-server", shop.nats_server()?), own("e2e-load"), own("e2e-copy")];
    pack_programs(&tools, &programs)?;
    let processor = shop.earlier_release()?.processor();
    pack_programs(&earlier, &[("taskpipeline", processor)])?;
    Ok([tools, earlier])
}

/// Packs nats-server under the name of the chart's NATS image, for a node that can pull no image.
///
/// # Errors
/// If nats-server cannot be obtained or packed.
pub(crate) fn bundled_nats(shop: &Workshop) -> Result<Image> {
    let values = shop.workspace.read(NATS_VALUES)?;
    let name = nats_image(&values).with_context(|| format!("{NATS_VALUES} names no image with a tag"))?;
    let image = Image { name, ..Names::released().image(shop, "nats")? };
    pack_programs(&image, &[("nats-server", shop.nats_server()?)])?;
    Ok(image)
}

/// The values of the bundled NATS.
const NATS_VALUES: &str = "charts/taskpipeline/charts/nats/values.yaml";

/// Reads the full name of the image from the values.
fn nats_image(values: &str) -> Option<String> {
    let (_, image) = values.split_once("image:\n")?;
    let value = |key| {
        let mut lines = image.lines().take_while(|line| line.starts_with(' '));
        lines.find_map(|line| line.trim().strip_prefix(key)).map(str::trim)
    };
    let (repository, tag) = (value("repository:")?, value("tag:")?);
    // A container engine completes the name like this.
    let host = if repository.contains('/') { "" } else { "docker.io/library/" };
    Some(format!("{host}{repository}:{tag}"))
}

/// Packs programs of this machine as an image, with the shared libraries that they need. The image runs the first program.
fn pack_programs(image: &Image, programs: &[(&str, PathBuf)]) -> Result<()> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (name, program) in programs {
        for library in libraries(program)? {
            files.insert(library.to_string_lossy().into_owned(), library);
        }
        files.insert(format!("/{name}"), program.clone());
    }
    let roots = bases::CERTIFICATES.iter().map(Path::new).find(|file| file.exists());
    let roots = roots.context("this machine has no CA certificates; install ca-certificates")?;
    files.insert(bases::CERTIFICATES[0].to_owned(), roots.to_path_buf());
    let files: Vec<_> = files.iter().map(|(to, from)| (from.clone(), to.as_str())).collect();
    let entrypoint = format!("/{}", programs.first().context("an image without a program")?.0);
    let packed = Packed { name: &image.name, entrypoint: &[&entrypoint], user: "65532:65532", files: &files };
    packed.write(&image.archive)
}

/// Lists the shared libraries that a program needs, with its loader. The list is empty if the program is linked statically.
///
/// # Errors
/// If a library is missing.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // ldd fails for a static program.
    let Ok(told) = run::output(Command::new("ldd").arg(program)) else { return Ok(Vec::new()) };
    told.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(|library| {
            let library = PathBuf::from(library);
            library
                .exists()
                .then_some(library)
                .with_context(|| format!("{} needs a missing library", program.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_charts() {
        let names = Names::new("ghcr.io/taskpipeline/", "1.2.3");
        assert_eq!(names.of(PROCESSOR), "ghcr.io/taskpipeline/taskpipeline:1.2.3");
        let values = include_str!("../../../charts/taskpipeline/values.yaml");
        for name in [PROCESSOR, DEMO] {
            assert!(values.contains(&format!("repository: {RELEASED}/{name}\n")), "{name}");
        }
    }

    #[test]
    fn the_image_of_the_bundled_nats_is_found() {
        let values = include_str!("../../../charts/taskpipeline/charts/nats/values.yaml");
        let name = nats_image(values).unwrap();
        assert!(name.starts_with("docker.io/library/nats:2."), "{name}");
        assert_eq!(
            nats_image("image:\n  repository: r.example/nats\n  tag: 1\n").unwrap(),
            "r.example/nats:1"
        );
        assert_eq!(nats_image("image:\n  repository: nats\nother:\n  tag: 1\n"), None);
    }

    #[test]
    fn the_dockerfile_has_each_target() {
        let dockerfile = include_str!("../../../Dockerfile");
        for (target, _) in TARGETS {
            assert!(dockerfile.contains(&format!(" AS {target}\n")), "{target}");
        }
    }
}
