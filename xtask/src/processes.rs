//! Runs programs in the background: each in its own process group, with its output read line by line. All of them are
//! stopped at the end.
//!
//! wrangler starts workerd, and a signal to wrangler alone may leave workerd behind; hence the group. It is a group
//! for each program, because the terminal's Ctrl-C must not reach all of them at once: they stop in order.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt;
use crate::progress::say;

/// The time in which a program may end by itself. The processor settles its requests in flight.
const GRACE: Duration = Duration::from_secs(12);
/// The time for the rest of a group after its first process has ended.
const GRACE_OF_THE_REST: Duration = Duration::from_secs(3);
/// The number of a program's last lines that an error shows.
const TAIL: usize = 40;

/// A shell script that reads one group a line. If its input ends before the script is killed, it ends all groups.
const GUARD: &str = "all=; while read -r group; do all=\"$all -$group\"; done; \
    kill -s TERM -- $all; sleep 5; kill -s KILL -- $all";

struct Process {
    name: &'static str,
    child: Child,
    group: Pid,
    tail: VecDeque<String>,
}

struct Line {
    from: &'static str,
    text: String,
}

/// The running programs, in the order of their start. When this is dropped, it stops them.
pub(crate) struct Processes {
    running: Vec<Process>,
    lines: Receiver<Line>,
    sender: Sender<Line>,
    held_back: Vec<Line>,
    coloured: bool,
    /// Outlives this program if that is killed before it can stop anything.
    guard: Option<Child>,
}

impl Processes {
    /// No program runs yet.
    pub(crate) fn new() -> Self {
        let (sender, lines) = channel();
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { running: Vec::new(), lines, sender, held_back: Vec::new(), coloured, guard: None }
    }

    /// Starts a program.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(crate) fn start(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        if let Err(error) = self.watch_over(child.id()) {
            let _ = child.kill();
            return Err(error);
        }
        self.listen(name, child.stdout.take());
        self.listen(name, child.stderr.take());
        let id = i32::try_from(child.id()).context("the id of the process is out of range")?;
        self.running.push(Process { name, child, group: Pid::from_raw(id), tail: VecDeque::new() });
        Ok(())
    }

    fn watch_over(&mut self, group: u32) -> Result<()> {
        if self.guard.is_none() {
            let mut guard = Command::new("sh");
            guard.args(["-c", GUARD]).process_group(0);
            guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            self.guard = Some(guard.spawn().context("cannot start sh")?);
        }
        let input = self.guard.as_mut().and_then(|guard| guard.stdin.as_mut());
        input
            .map_or(Ok(()), |input| writeln!(input, "{group}"))
            .context("the guard of the processes has ended")
    }

    fn listen(&self, from: &'static str, pipe: Option<impl Read + Send + 'static>) {
        let sender = self.sender.clone();
        let Some(pipe) = pipe else { return };
        thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if sender.send(Line { from, text }).is_err() {
                    return;
                }
            }
        });
    }

    /// Waits until `ready` returns true.
    ///
    /// # Errors
    /// If it takes too long, a program ends, or a signal requests a stop.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        ready: impl Fn() -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            while let Ok(line) = self.lines.try_recv() {
                self.remember(&line);
                // The lines of a starting NATS would hide the URLs. If NATS fails, the error shows its last lines.
                if line.from != "nats-server" {
                    self.held_back.push(line);
                }
            }
            self.all_alive()?;
            if interrupt::asked() {
                bail!("stopped while waiting until {what}");
            }
            if started.elapsed() > patience {
                let last = self.running.last().map(Process::last_lines).unwrap_or_default();
                bail!("timed out after {} s, waiting until {what}{last}", patience.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Prints the lines of the programs until a signal requests a stop.
    ///
    /// # Errors
    /// If a program ends.
    pub(crate) fn stream(&mut self) -> Result<()> {
        for line in std::mem::take(&mut self.held_back) {
            self.print(&line);
        }
        while !interrupt::asked() {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    self.remember(&line);
                    self.print(&line);
                }
                Err(RecvTimeoutError::Timeout) => self.all_alive()?,
                Err(RecvTimeoutError::Disconnected) => bail!("the output of the programs ended"),
            }
        }
        Ok(())
    }

    /// Stops all programs, the last one first.
    pub(crate) fn stop(&mut self) {
        let asked_before = interrupt::count();
        while let Some(mut process) = self.running.pop() {
            process.stop(|| interrupt::count() > asked_before);
            while let Ok(line) = self.lines.try_recv() {
                self.print(&line);
            }
        }
        // If the guard is killed before its input ends, it stops nothing.
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }

    fn all_alive(&mut self) -> Result<()> {
        for index in 0..self.running.len() {
            let Some(status) = self.running[index].ended()? else { continue };
            // The last lines may still be in the pipe.
            while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
                self.remember(&line);
            }
            let dead = &self.running[index];
            return Err(anyhow!("{} ended by itself ({status}){}", dead.name, dead.last_lines()));
        }
        Ok(())
    }

    fn remember(&mut self, line: &Line) {
        if let Some(process) = self.running.iter_mut().find(|process| process.name == line.from) {
            if process.tail.len() == TAIL {
                process.tail.pop_front();
            }
            process.tail.push_back(line.text.clone());
        }
    }

    fn print(&self, line: &Line) {
        let Line { from, text } = line;
        if self.coloured {
            let colour = match *from {
                "nats-server" => 36,
                "processor" => 32,
                _ => 35,
            };
            say(format_args!("\u{1b}[{colour}m{from:>11}\u{1b}[0m {text}"));
        } else {
            say(format_args!("{from:>11} {text}"));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Process {
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    fn last_lines(&self) -> String {
        if self.tail.is_empty() {
            return format!("; {} printed nothing", self.name);
        }
        let lines: Vec<_> = self.tail.iter().map(String::as_str).collect();
        format!("; the last lines of {}:\n{}", self.name, lines.join("\n"))
    }

    fn stop(&mut self, impatient: impl Fn() -> bool) {
        let _ = killpg(self.group, Signal::SIGTERM);
        let mut deadline = Instant::now() + GRACE;
        let mut first_is_gone = false;
        // The group exists as long as one of its processes, such as wrangler's workerd.
        while Instant::now() < deadline && !impatient() {
            if !first_is_gone && !matches!(self.child.try_wait(), Ok(None)) {
                first_is_gone = true;
                deadline = deadline.min(Instant::now() + GRACE_OF_THE_REST);
            }
            if first_is_gone && killpg(self.group, None) == Err(Errno::ESRCH) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_dies_is_named_with_its_last_lines() {
        let mut processes = Processes::new();
        processes.start("nats-server", &mut shell("exec sleep 60")).unwrap();
        processes.start("processor", &mut shell("echo one; echo no such key >&2; exit 3")).unwrap();
        let error =
            processes.wait_until("it is up", Duration::from_secs(20), || false).unwrap_err().to_string();
        assert!(error.contains("processor ended by itself (exit status: 3)"), "{error}");
        assert!(error.contains("no such key"), "{error}");
    }

    #[test]
    fn the_guard_ends_what_is_left() {
        let mut processes = Processes::new();
        processes.start("wrangler", &mut shell("exec sleep 62")).unwrap();
        drop(processes.guard.as_mut().unwrap().stdin.take());
        let error =
            processes.wait_until("it is up", Duration::from_secs(20), || false).unwrap_err().to_string();
        assert!(error.contains("ended by itself (signal: 15"), "{error}");
    }

    #[test]
    fn stopping_leaves_no_child_of_a_child_behind() {
        let mut processes = Processes::new();
        processes.start("wrangler", &mut shell("sleep 61 & trap 'exit 0' TERM; wait")).unwrap();
        let group = processes.running[0].group;
        thread::sleep(Duration::from_millis(200));
        processes.stop();
        // A killed orphan stays visible until init has reaped it.
        let gone = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            killpg(group, None) == Err(Errno::ESRCH)
        });
        assert!(gone, "the group {group} is still there");
    }
}
