//! `cargo xtask image`: the images that pods run, built by the Dockerfile, as archives that `docker load`, `kind load` and
//! containerd take. What the tests on a cluster need beside those is packed without an engine. Brings nothing anywhere.

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

/// What the images of a release are called; the chart's defaults.
const RELEASED: &str = "ghcr.io/taskpipeline";

/// What it can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What stands before the images' names
    #[arg(long, default_value = RELEASED, value_name = "PREFIX")]
    prefix: String,
    /// Default: the version
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Also what `cargo xtask e2e --context` needs in a registry
    #[arg(long)]
    tests: bool,
}

/// An image, and where it is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// With its tag.
    pub(crate) name: String,
    pub(crate) archive: PathBuf,
}

/// What images are called.
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
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Image { name: self.of(name), archive: folder.join(format!("{name}.tar")) })
    }
}

/// The Dockerfile's targets, and what their images are called.
const TARGETS: [(&str, &str); 2] = [("taskpipeline", PROCESSOR), ("demo", DEMO)];

/// The processor and the operator.
pub(crate) const PROCESSOR: &str = "taskpipeline";

/// Cloudflare KV, simulated, with the pages.
pub(crate) const DEMO: &str = "taskpipeline-demo";

/// nats-server and a producer, for the tests.
pub(crate) const TOOLS: &str = "taskpipeline-e2e";

/// The processor of the version that the tests upgrade from.
pub(crate) const EARLIER: &str = "taskpipeline-earlier";

/// Builds them, and prints where they are and how large.
///
/// # Errors
/// Where there is no engine, or something does not build.
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
    /// Of an earlier build: Podman would add to it, and buildah takes none that is there.
    fn discard(&self) -> Result<()> {
        if self.archive.exists() {
            fs::remove_file(&self.archive)
                .with_context(|| format!("cannot replace {}", self.archive.display()))?;
        }
        Ok(())
    }

    /// Of the archive, for people: what is in it, uncompressed.
    pub(crate) fn size(&self) -> Result<String> {
        let archive = self.archive.metadata();
        let bytes = archive.with_context(|| format!("cannot read {}", self.archive.display()))?.len();
        Ok(format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000))
    }
}

/// Gets what building them takes.
///
/// # Errors
/// Where it cannot be got.
pub(crate) fn prepare(shop: &Workshop) -> Result<()> {
    Engine::find(shop)?;
    shop.earlier_release().map(drop)
}

/// Those of the Dockerfile.
///
/// # Errors
/// Where there is no engine, or something does not build.
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

/// Builds a target of the Dockerfile by buildah, into its store; the image's name. That of the edge takes a base with Node.
///
/// # Errors
/// Where something does not build.
pub(crate) fn by_buildah(shop: &Workshop, buildah: &Buildah, target: &str) -> Result<String> {
    let bases = Bases::assembled(shop, buildah)?;
    if target == "edge" {
        bases.with_node(shop, buildah)?;
    }
    let name = format!("localhost/taskpipeline-{target}:compose");
    engine::bud(shop, buildah, &bases, target, &name)?;
    Ok(name)
}

/// What only the tests on a cluster need.
///
/// # Errors
/// Where something does not build, or this is no Linux.
pub(crate) fn of_tests(shop: &Workshop, names: &Names) -> Result<[Image; 2]> {
    ensure!(
        cfg!(target_os = "linux"),
        "what is built here does not run in a Linux pod: run `cargo xtask image --tests` on Linux, and name the images by \
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
/// Where it cannot be got or packed.
pub(crate) fn bundled_nats(shop: &Workshop) -> Result<Image> {
    let values = shop.workspace.read(NATS_VALUES)?;
    let name = nats_image(&values).with_context(|| format!("{NATS_VALUES} names no image with a tag"))?;
    let image = Image { name, ..Names::released().image(shop, "nats")? };
    pack_programs(&image, &[("nats-server", shop.nats_server()?)])?;
    Ok(image)
}

/// The values of the bundled NATS.
const NATS_VALUES: &str = "charts/taskpipeline/charts/nats/values.yaml";

/// Reads the image from the values; answers its full name.
fn nats_image(values: &str) -> Option<String> {
    let (_, image) = values.split_once("image:\n")?;
    let value = |key| {
        let mut lines = image.lines().take_while(|line| line.starts_with(' '));
        lines.find_map(|line| line.trim().strip_prefix(key)).map(str::trim)
    };
    let (repository, tag) = (value("repository:")?, value("tag:")?);
    // As a container engine completes the name.
    let host = if repository.contains('/') { "" } else { "docker.io/library/" };
    Some(format!("{host}{repository}:{tag}"))
}

/// Programs of this machine as an image, with the shared libraries that they need; the first is what it runs.
fn pack_programs(image: &Image, programs: &[(&str, PathBuf)]) -> Result<()> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (name, program) in programs {
        for library in libraries(program)? {
            files.insert(library.to_string_lossy().into_owned(), library);
        }
        files.insert(format!("/{name}"), program.clone());
    }
    let roots = bases::CERTIFICATES.iter().map(Path::new).find(|file| file.exists());
    let roots = roots.context("there are no CA certificates here: install ca-certificates")?;
    files.insert(bases::CERTIFICATES[0].to_owned(), roots.to_path_buf());
    let files: Vec<_> = files.iter().map(|(to, from)| (from.clone(), to.as_str())).collect();
    let entrypoint = format!("/{}", programs.first().context("an image without a program")?.0);
    let packed = Packed { name: &image.name, entrypoint: &[&entrypoint], user: "65532:65532", files: &files };
    packed.write(&image.archive)
}

/// The shared libraries that a program needs, its loader too; none where it is linked statically.
///
/// # Errors
/// Where one is not there.
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
                .with_context(|| format!("{} needs what is not there", program.display()))
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
