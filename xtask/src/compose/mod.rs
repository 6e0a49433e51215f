//! `cargo xtask compose-test`: docker-compose.yml, started for real. By Docker where one answers and can get the images of
//! others; else by Debian's podman, with images of others that are assembled here, and without those that cannot be.

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

/// Without it the tests are not there.
pub(crate) const FEATURE: &str = "taskpipeline-e2e/engine";

/// What `compose-test` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// What runs the containers.
enum Engine {
    Docker(PathBuf),
    Podman(Podman),
}

/// Runs the tests.
///
/// # Errors
/// Where there is no engine and none can be had.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let mut report = Report::begin();
    steps(shop, options.filter.as_deref(), &mut report);
    Ok(report.finish(true))
}

/// The same as a part of something else.
pub(crate) fn steps(shop: &Workshop, filter: Option<&str>, report: &mut Report) {
    if let Some(engine) = report.step(shop, "engine", || Engine::find(shop))
        && let Some(more) = report.step(shop, "images for compose", || engine.images(shop))
    {
        report.tests(shop, "compose", |tally| {
            let asked = if filter.is_some() { Asked::Some } else { Asked::All };
            programs::streamed(&mut tests(shop, &engine, more.as_ref(), filter)?, asked, tally)?;
            ensure!(tally.passed > 0, "not a single test ran");
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

    /// Makes the images, where the engine does not do it by itself; and what has to be said of them beside docker-compose.yml.
    fn images(&self, shop: &Workshop) -> Result<Option<PathBuf>> {
        let Self::Podman(podman) = self else { return Ok(None) };
        let text = stand_ins::make(shop, podman)?;
        let file = shop.workspace.target.join("compose.yml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        shop.progress.line("         Grafana is left out: no registry has its image for this machine, and it is not built here");
        Ok(Some(file))
    }

    /// The engine's own program, to look at containers by.
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
    // The ports are those of docker-compose.yml: there is room for one.
    command.args(["--", "--show-output", "--test-threads", "1"]);
    command.env("TASKPIPELINE_COMPOSE", shop.compose()?);
    command.env("TASKPIPELINE_ENGINE", engine.program().join("\n"));
    if let Engine::Podman(podman) = engine {
        command.env("DOCKER_HOST", podman.address());
    }
    command.env("TASKPIPELINE_COMPOSE_MORE", more.map(|file| file.as_os_str()).unwrap_or_default());
    Ok(command)
}
