//! `cargo xtask up`: the whole product on one machine, as a new user starts it.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::bail;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Process, eventually, free_port, program};

/// A running `cargo xtask up`, on free ports and with its own data folder.
#[derive(Debug)]
pub struct Up {
    process: Process,
    nats: u16,
    edge: u16,
    processor: u16,
    data: TempDir,
}

impl Up {
    /// Starts it and waits until everything is up.
    ///
    /// # Errors
    /// If it does not come up; its last lines are in the error.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts it with more arguments.
    ///
    /// # Errors
    /// If it does not come up; its last lines are in the error.
    pub async fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        let (nats, edge, processor) = (free_port()?, free_port()?, free_port()?);
        let data = TempDir::new()?;
        let mut command = Command::new(program("TASKPIPELINE_XTASK", &["xtask"])?);
        command.arg("up");
        for (flag, port) in [("--nats-port", nats), ("--edge-port", edge), ("--processor-port", processor)] {
            command.args([flag, &port.to_string()]);
        }
        command.arg("--data").arg(data.path()).args(arguments);
        let mut up = Self { process: Process::spawn("xtask up", &mut command)?, nats, edge, processor, data };
        up.ready().await?;
        Ok(up)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        // The time is enough for a first build of the Worker.
        let process = std::cell::RefCell::new(&mut self.process);
        eventually(Duration::from_secs(600), || async {
            let mut process = process.borrow_mut();
            if process.lines().iter().any(|line| line.contains("ready in")) {
                return Ok(());
            }
            if !process.is_running()? {
                // More waiting would not help.
                return Ok(());
            }
            bail!("not ready yet\n{}", process.tail());
        })
        .await?;
        if !self.process.is_running()? {
            bail!("xtask up ended early\n{}", self.process.tail());
        }
        Ok(())
    }

    /// The process and its output.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The data folder; its subfolder `kv` belongs to the local KV.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The URL of NATS.
    #[must_use]
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats)
    }

    /// The URL of the pages.
    #[must_use]
    pub fn edge_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.edge)
    }

    /// The ports of NATS, the edge and the processor.
    #[must_use]
    pub fn ports(&self) -> [u16; 3] {
        [self.nats, self.edge, self.processor]
    }

    /// Presses Ctrl-C and waits until everything has stopped.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn interrupt(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(60)).await
    }
}
