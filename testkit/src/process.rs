//! A child process: its output is kept line by line, signals reach it, and it does not outlive its handle.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

type Lines = Arc<Mutex<Vec<String>>>;

/// A running child, in a process group of its own.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts it, with nothing on its standard input.
    ///
    /// # Errors
    /// Where the program cannot be run.
    pub fn spawn(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {name}: {command:?}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("the child has no pid")?;
        let lines = Lines::default();
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(tokio::spawn(collect(stdout, Arc::clone(&lines))));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(tokio::spawn(collect(stderr, Arc::clone(&lines))));
        }
        Ok(Self { name: name.to_owned(), child, pid: Pid::from_raw(pid), lines, readers })
    }

    /// Everything it has printed so far, standard output and error together.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to it alone.
    ///
    /// # Errors
    /// Where it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits for its end, and for the last line of its output.
    ///
    /// # Errors
    /// Where it does not end in time; its last lines are in the error.
    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let status = tokio::time::timeout(within, self.child.wait())
            .await
            .map_err(|_| anyhow!("{} did not end within {within:?}\n{}", self.name, self.tail()))??;
        for reader in self.readers.drain(..) {
            // A grandchild may hold the pipe open; what it prints does not matter any more.
            let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
        }
        Ok(status)
    }

    /// The memory it occupies, in MB, as `ps` tells it.
    ///
    /// # Errors
    /// Where `ps` does not know it.
    pub fn resident_megabytes(&self) -> anyhow::Result<f64> {
        let output = std::process::Command::new("ps")
            .args(["-o", "rss=", "-p", &self.pid.to_string()])
            .output()
            .context("cannot run ps")?;
        let kilobytes = String::from_utf8_lossy(&output.stdout).trim().parse::<f64>();
        Ok(kilobytes.with_context(|| format!("ps does not know {}", self.name))? / 1_024.0)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Where the system cannot say.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether it stands still, by SIGSTOP.
    ///
    /// # Errors
    /// Where the system cannot say.
    pub async fn is_stopped(&self) -> anyhow::Result<bool> {
        // Linux says it in a file (`pid (name) state ...`); elsewhere `ps` is always there.
        if let Ok(stat) = tokio::fs::read_to_string(format!("/proc/{}/stat", self.pid)).await {
            return Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')));
        }
        let mut ps = Command::new("ps");
        let told = ps.args(["-o", "state=", "-p", &self.pid.to_string()]).output().await?;
        Ok(told.stdout.trim_ascii_start().starts_with(b"T"))
    }

    /// Its last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(30);
        format!("--- the last lines of {}:\n{}", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group: workerd is wrangler's child, not ours. It may be gone already.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

async fn collect(from: impl AsyncRead + Unpin, lines: Lines) {
    let mut from = BufReader::new(from).lines();
    while let Ok(Some(line)) = from.next_line().await {
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
