//! A child process. Its handle keeps its output line by line, sends it signals, and kills it when dropped.

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

/// A running child in its own process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a process with an empty standard input.
    ///
    /// # Errors
    /// If the program cannot be run.
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

    /// All lines so far, of standard output and error together.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the process, and not to its group.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits for the end of the process, and for the last line of its output.
    ///
    /// # Errors
    /// If the process does not end in time; its last lines are in the error.
    pub async fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let status = tokio::time::timeout(within, self.child.wait())
            .await
            .map_err(|_| anyhow!("{} did not end within {within:?}\n{}", self.name, self.tail()))??;
        for reader in self.readers.drain(..) {
            // A grandchild may keep the pipe open; its output does not matter any more.
            let _ = tokio::time::timeout(Duration::from_secs(1), reader).await;
        }
        Ok(status)
    }

    /// The resident memory in MB, as `ps` reports it.
    ///
    /// # Errors
    /// If `ps` does not know the process.
    pub fn resident_megabytes(&self) -> anyhow::Result<f64> {
        let output = std::process::Command::new("ps")
            .args(["-o", "rss=", "-p", &self.pid.to_string()])
            .output()
            .context("cannot run ps")?;
        let kilobytes = String::from_utf8_lossy(&output.stdout).trim().parse::<f64>();
        Ok(kilobytes.with_context(|| format!("ps does not know {}", self.name))? / 1_024.0)
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// If the system call fails.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether the process is stopped by SIGSTOP.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub async fn is_stopped(&self) -> anyhow::Result<bool> {
        // Linux has the state in a file (`pid (name) state ...`); other systems have `ps`.
        if let Ok(stat) = tokio::fs::read_to_string(format!("/proc/{}/stat", self.pid)).await {
            return Ok(stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')));
        }
        let mut ps = Command::new("ps");
        let told = ps.args(["-o", "state=", "-p", &self.pid.to_string()]).output().await?;
        Ok(told.stdout.trim_ascii_start().starts_with(b"T"))
    }

    /// The last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(30);
        format!("--- the last lines of {}:\n{}", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The signal goes to the group: workerd is wrangler's child, not ours. The group may have ended already.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

async fn collect(from: impl AsyncRead + Unpin, lines: Lines) {
    let mut from = BufReader::new(from).lines();
    while let Ok(Some(line)) = from.next_line().await {
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
