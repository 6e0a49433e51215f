//! A replica of the real processor, as a process of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use taskpipeline_simulator::Simulator;
use tokio::process::Command;

use crate::{NatsServer, Process, eventually, exposition, free_port, http, program};

/// The environment a replica is started with, and which build of it.
#[derive(Clone, Debug)]
pub struct ProcessorOptions {
    env: BTreeMap<String, String>,
    program: (&'static str, &'static str),
    /// What `taskpipeline run` is told besides.
    arguments: Vec<String>,
}

impl ProcessorOptions {
    /// From this server into this simulator, in the default mode (`Durable`), text logs.
    #[must_use]
    pub fn new(nats: &NatsServer, kv: &Simulator) -> Self {
        let config = kv.config();
        let env = [
            ("NATS_URL", nats.url()),
            ("CF_API_BASE_URL", kv.base_url()),
            ("CF_ACCOUNT_ID", config.account.clone()),
            ("CF_NAMESPACE_ID", config.namespace.clone()),
            ("CF_API_TOKEN", config.token.clone()),
            ("HOST", "127.0.0.1".to_owned()),
            ("LOG_FORMAT", "text".to_owned()),
        ];
        Self {
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            program: ("TASKPIPELINE_BIN", "taskpipeline"),
            arguments: Vec::new(),
        }
    }

    /// Mode `Core`: NATS core, at most once.
    #[must_use]
    pub fn core(self) -> Self {
        self.set("DELIVERY_MODE", "Core")
    }

    /// With the settings of this file, which is followed as it changes.
    #[must_use]
    pub fn following(self, file: &Path) -> Self {
        Self { arguments: vec!["--file".to_owned(), file.to_string_lossy().into_owned()], ..self }
    }

    /// The build with crash points, which aborts when it passes this one for the `nth` time.
    #[must_use]
    pub fn crashing_at(self, point: &str, nth: u32) -> Self {
        let crashing = self.set("TASKPIPELINE_CRASH_AT", &format!("{point}:{nth}"));
        Self { program: ("TASKPIPELINE_CRASHABLE_BIN", "taskpipeline-crashable"), ..crashing }
    }

    /// The command line tool with these arguments, in the environment of a replica.
    ///
    /// # Errors
    /// Where there is no such program.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let (variable, name) = self.program;
        let mut command = Command::new(program(variable, &[name])?);
        // Only what is set here and where to find things: nothing of the developer's own environment.
        command.args(arguments).env_clear().envs(&self.env);
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        Ok(command)
    }

    /// The build with crash points, which stands still, as if by SIGSTOP, when it passes this one for the
    /// `nth` time.
    #[must_use]
    pub fn stopping_at(self, point: &str, nth: u32) -> Self {
        let stopping = self.set("TASKPIPELINE_STOP_AT", &format!("{point}:{nth}"));
        Self { program: ("TASKPIPELINE_CRASHABLE_BIN", "taskpipeline-crashable"), ..stopping }
    }

    /// Sets one more variable.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A running replica.
#[derive(Debug)]
pub struct Processor {
    process: Process,
    port: u16,
}

impl Processor {
    /// Starts a replica and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not get ready; its last lines are in the error.
    pub async fn start(options: &ProcessorOptions) -> anyhow::Result<Self> {
        let processor = Self::spawn(options)?;
        processor.wait_ready(Duration::from_secs(10)).await?;
        Ok(processor)
    }

    /// Starts a replica without waiting.
    ///
    /// # Errors
    /// Where it cannot be run.
    pub fn spawn(options: &ProcessorOptions) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = options.command(&["run"])?;
        command.args(&options.arguments);
        command.env("PORT", port.to_string());
        Ok(Self { process: Process::spawn("taskpipeline run", &mut command)?, port })
    }

    /// The process itself.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Where its endpoints are, on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Where the system cannot say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        self.process.is_running()
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// Where it does not die.
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(Duration::from_secs(5)).await
    }

    /// One of its endpoints: the status and the body.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let response = http()
            .get(format!("http://127.0.0.1:{}{path}", self.port))
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .with_context(|| format!("no answer from {path}\n{}", self.process.tail()))?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// The sum of a metric over all its labels, or one of them where the name has its labels; 0 if it is not there.
    ///
    /// # Errors
    /// Where `/metrics` does not answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics").await?;
        Ok(exposition::sum(&text, name))
    }

    /// How many events have landed.
    ///
    /// # Errors
    /// Where `/metrics` does not answer.
    pub async fn landed(&self) -> anyhow::Result<f64> {
        self.metric("taskpipeline_event_landing_seconds_count").await
    }

    /// How many events it has received.
    ///
    /// # Errors
    /// Where `/metrics` does not answer.
    pub async fn received(&self) -> anyhow::Result<f64> {
        self.metric("taskpipeline_events_received_total").await
    }

    /// Waits until so many events have landed.
    ///
    /// # Errors
    /// Where they do not in time.
    pub async fn wait_landed(&self, events: u32, within: Duration) -> anyhow::Result<()> {
        eventually(within, || async {
            let landed = self.landed().await?;
            ensure!(landed >= f64::from(events), "{landed} of {events} have landed");
            Ok(())
        })
        .await
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// Where it does not in time; its last lines are in the error.
    pub async fn wait_ready(&self, within: Duration) -> anyhow::Result<()> {
        eventually(within, || async {
            let (status, body) = self.get("/readyz").await?;
            ensure!(status == 200, "/readyz answers {status}: {body}\n{}", self.process.tail());
            Ok(())
        })
        .await
    }

    /// Sends SIGTERM and waits for the drain.
    ///
    /// # Errors
    /// Where it does not end in time.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(within).await
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// Where it does not end in time.
    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.process.wait(within).await
    }
}
