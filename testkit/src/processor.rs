//! A replica of the real processor, as a separate process.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use taskpipeline_simulator::Simulator;
use tokio::process::Command;

use crate::{NatsServer, Process, eventually, exposition, free_port, http, program};

/// The environment of a replica, and the build that it runs.
#[derive(Clone, Debug)]
pub struct ProcessorOptions {
    env: BTreeMap<String, String>,
    program: (&'static str, &'static str),
    /// Further arguments of `taskpipeline run`.
    arguments: Vec<String>,
}

impl ProcessorOptions {
    /// Returns the options of a replica between this server and this simulator, in mode Durable, with text logs.
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

    /// Selects mode `Core`: NATS core, at most once.
    #[must_use]
    pub fn core(self) -> Self {
        self.set("DELIVERY_MODE", "Core")
    }

    /// Makes the replica follow this settings file.
    #[must_use]
    pub fn following(self, file: &Path) -> Self {
        Self { arguments: vec!["--file".to_owned(), file.to_string_lossy().into_owned()], ..self }
    }

    /// Selects the build with crash points, which aborts when it passes this one for the `nth` time.
    #[must_use]
    pub fn crashing_at(self, point: &str, nth: u32) -> Self {
        let crashing = self.set("TASKPIPELINE_CRASH_AT", &format!("{point}:{nth}"));
        Self { program: ("TASKPIPELINE_CRASHABLE_BIN", "taskpipeline-crashable"), ..crashing }
    }

    /// Returns the command line tool with these arguments, in the environment of a replica.
    ///
    /// # Errors
    /// If the program does not exist.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let (variable, name) = self.program;
        let mut command = Command::new(program(variable, &[name])?);
        // Only these variables are set: the developer's environment must have no effect.
        command.args(arguments).env_clear().envs(&self.env);
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        Ok(command)
    }

    /// Selects the build with crash points, which stops, as if by SIGSTOP, when it passes this one for the `nth` time.
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
    /// If it does not become ready; its last lines are in the error.
    pub async fn start(options: &ProcessorOptions) -> anyhow::Result<Self> {
        let processor = Self::spawn(options)?;
        processor.wait_ready(Duration::from_secs(10)).await?;
        Ok(processor)
    }

    /// Starts a replica without waiting.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn spawn(options: &ProcessorOptions) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut command = options.command(&["run"])?;
        command.args(&options.arguments);
        command.env("PORT", port.to_string());
        Ok(Self { process: Process::spawn("taskpipeline run", &mut command)?, port })
    }

    /// The process of the replica.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The port of its endpoints.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the replica still runs.
    ///
    /// # Errors
    /// If the system call fails.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        self.process.is_running()
    }

    /// Kills the replica as a crash would, and waits until its process has ended.
    ///
    /// # Errors
    /// If the process does not end.
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(Duration::from_secs(5)).await
    }

    /// Requests one of its endpoints, and returns the status and the body.
    ///
    /// # Errors
    /// If the replica does not answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let response = http()
            .get(format!("http://127.0.0.1:{}{path}", self.port))
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .with_context(|| format!("no answer from {path}\n{}", self.process.tail()))?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// The sum of a metric over all its labels, or one series if the name has labels; 0 if the metric is missing.
    ///
    /// # Errors
    /// If `/metrics` does not answer.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics").await?;
        Ok(exposition::sum(&text, name))
    }

    /// The number of events that have landed.
    ///
    /// # Errors
    /// If `/metrics` does not answer.
    pub async fn landed(&self) -> anyhow::Result<f64> {
        self.metric("taskpipeline_event_landing_seconds_count").await
    }

    /// The number of events that the replica has received.
    ///
    /// # Errors
    /// If `/metrics` does not answer.
    pub async fn received(&self) -> anyhow::Result<f64> {
        self.metric("taskpipeline_events_received_total").await
    }

    /// Waits until this many events have landed.
    ///
    /// # Errors
    /// If they do not land in time.
    pub async fn wait_landed(&self, events: u32, within: Duration) -> anyhow::Result<()> {
        eventually(within, || async {
            let landed = self.landed().await?;
            ensure!(landed >= f64::from(events), "{landed} of {events} have landed");
            Ok(())
        })
        .await
    }

    /// Waits until `/readyz` returns 200.
    ///
    /// # Errors
    /// If it does not in time; the last lines are in the error.
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
    /// If the replica does not end in time.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(within).await
    }

    /// Waits for the replica to end by itself.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.process.wait(within).await
    }
}
