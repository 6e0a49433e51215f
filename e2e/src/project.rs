//! docker-compose.yml, which runs under a project name of the tests.

use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::Edge;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The name differs from that of a user who tries the file on this machine; the ports are the same.
const NAME: &str = "taskpipeline-test";

/// A Compose project. Its containers and data are removed when it is dropped.
#[derive(Debug)]
pub struct Project {
    compose: Vec<String>,
    engine: Vec<String>,
}

impl Project {
    /// Begins with no running service, and no data.
    ///
    /// # Errors
    /// If `cargo xtask compose-test` did not set the engine, or the engine does not answer.
    pub async fn new() -> anyhow::Result<Self> {
        let told = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set; run `cargo xtask compose-test`"))
        };
        let mut compose = vec![told("TASKPIPELINE_COMPOSE")?];
        if compose[0].ends_with("/docker") {
            compose.push("compose".to_owned());
        }
        let file = format!("{ROOT}/docker-compose.yml");
        compose.extend(
            ["--project-name", NAME, "--project-directory", ROOT, "--file", &file].map(str::to_owned),
        );
        let more = told("TASKPIPELINE_COMPOSE_MORE")?;
        if !more.is_empty() {
            compose.extend(["--file".to_owned(), more]);
        }
        let engine = told("TASKPIPELINE_ENGINE")?.lines().map(str::to_owned).collect();
        let project = Self { compose, engine };
        project.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "2"]).await?;
        Ok(project)
    }

    /// Runs `docker compose` with these arguments, and returns its output.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub async fn compose(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&self.compose, arguments).await
    }

    /// Runs the engine's own program, such as `docker`.
    ///
    /// # Errors
    /// If it fails; the error has its output.
    pub async fn engine(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&self.engine, arguments).await
    }

    /// The services that run here.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn services(&self) -> anyhow::Result<Vec<String>> {
        let all = self.compose(&["config", "--services"]).await?;
        let mut all: Vec<String> = all.lines().map(str::to_owned).collect();
        all.sort();
        Ok(all)
    }

    /// The engine's data about a service's container.
    ///
    /// # Errors
    /// If the service has no container.
    pub async fn inspect(&self, service: &str) -> anyhow::Result<Value> {
        let id = self.compose(&["ps", "--all", "--quiet", service]).await?;
        ensure!(!id.trim().is_empty(), "{service} has no container");
        let told: Value = serde_json::from_str(&self.engine(&["inspect", id.trim()]).await?)?;
        Ok(told[0].clone())
    }

    /// The pages, at the address in docker-compose.yml.
    #[must_use]
    pub fn edge(&self) -> Edge {
        Edge::at("http://127.0.0.1:8787".to_owned())
    }
}

impl Project {
    /// Prints the logs of the containers, which are removed with them.
    fn print_logs(&self) {
        let mut logs = std::process::Command::new(&self.compose[0]);
        logs.args(&self.compose[1..]).args(["logs", "--no-color", "--timestamps", "--tail", "200"]);
        match logs.stdin(Stdio::null()).output() {
            Ok(done) => println!("{}", String::from_utf8_lossy(&done.stdout)),
            Err(error) => println!("cannot read the logs: {error}"),
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let mut down = std::process::Command::new(&self.compose[0]);
        down.args(&self.compose[1..]).args(["down", "--volumes", "--remove-orphans", "--timeout", "2"]);
        let _ = down.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

async fn run(program: &[String], arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let done = command.output().await.with_context(|| format!("cannot run {}", program[0]))?;
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{} failed ({}):\n{out}{err}", arguments.join(" "), done.status);
    Ok(out.into_owned())
}
