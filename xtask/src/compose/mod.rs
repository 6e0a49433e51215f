//! `cargo xtask compose-test`: starts docker-compose.yml for real.
//!
//! Docker runs it, if Docker answers and can pull the images of other projects. Otherwise Debian's podman runs it,
//! with such images assembled here; an image that cannot be assembled is left out.

mod podman;
mod stand_ins;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::programs::{self, Asked};
use crate::report::Report;
use crate::run;
use crate::tools::Workshop;
use podman::Podman;

/// The feature that compiles the tests.
pub(crate) const FEATURE: &str = "taskpipeline-e2e/engine";

/// The options of `compose-test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose names contain this text
    filter: Option<String>,
}

/// The program that runs the containers.
enum Engine {
    Docker(PathBuf),
    Podman(Podman),
}

/// Runs the tests.
///
/// # Errors
/// If no engine exists and none can be installed.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let mut report = Report::begin();
    steps(shop, options.filter.as_deref(), &mut report);
    Ok(report.finish(true))
}

/// Runs the tests as steps of another command.
pub(crate) fn steps(shop: &Workshop, filter: Option<&str>, report: &mut Report) {
    if let Some(engine) = report.step(shop, "engine", || Engine::find(shop))
        && let Some(more) = report.step(shop, "images for compose", || engine.images(shop))
    {
        report.tests(shop, "compose", |tally| {
            let asked = if filter.is_some() { Asked::Some } else { Asked::All };
            programs::streamed(&mut tests(shop, &engine, more.as_ref(), filter)?, asked, tally)?;
            ensure!(tally.passed > 0, "no test ran");
            Ok(())
        });
    }
}

impl Engine {
    fn find(shop: &Workshop) -> Result<Self> {
        match run::on_path("docker").filter(|docker| run::output(Command::new(docker).arg("info")).is_ok()) {
            Some(docker) => Ok(Self::Docker(docker)),
            None => Ok(Self::Podman(Podman::start(shop)?)),
        }
    }

    /// Builds the images, if the engine does not do it by itself. Returns the override of docker-compose.yml that names them.
    fn images(&self, shop: &Workshop) -> Result<Option<PathBuf>> {
        let Self::Podman(podman) = self else { return Ok(None) };
        let text = stand_ins::make(shop, podman)?;
        let file = shop.workspace.target.join("compose.yml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        shop.progress
            .line("         Grafana is left out: no registry can be reached, and no image is built here");
        Ok(Some(file))
    }

    /// The engine's own program, which lists containers.
    fn program(&self) -> Vec<String> {
        match self {
            Self::Docker(docker) => vec![docker.to_string_lossy().into_owned()],
            Self::Podman(podman) => podman.program(),
        }
    }
}

fn tests(shop: &Workshop, engine: &Engine, more: Option<&PathBuf>, filter: Option<&str>) -> Result<Command> {
    let mut command = shop.workspace.cargo();
    command.args(["test", "--release", "--package", "taskpipeline-e2e", "--features", FEATURE]);
    command.args(["--test", "compose_up"]).args(filter);
    // The ports are those of docker-compose.yml, so only one test fits at a time.
    command.args(["--", "--show-output", "--test-threads", "1"]);
    command.env("TASKPIPELINE_COMPOSE", shop.compose()?);
    command.env("TASKPIPELINE_ENGINE", engine.program().join("\n"));
    if let Engine::Podman(podman) = engine {
        command.env("DOCKER_HOST", podman.address());
    }
    command.env("TASKPIPELINE_COMPOSE_MORE", more.map(|file| file.as_os_str()).unwrap_or_default());
    Ok(command)
}
