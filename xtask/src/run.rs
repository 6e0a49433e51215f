//! Runs a program to its end, and keeps its output in case it fails.
//!
//! For programs that keep running, see `processes`.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Runs the command and returns its stdout. If it fails, the error has all of its output.
///
/// # Errors
/// If the command cannot be started, fails, or a signal requests a stop.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
    let status = wait(&mut child, &shown)?;
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    if !status.success() {
        bail!(
            "{shown} failed ({status})\n{}{}",
            err.trim_end(),
            if out.is_empty() { out } else { format!("\n{}", out.trim_end()) }
        );
    }
    Ok(out)
}

/// Waits for the child, and ends it if a signal requests a stop.
///
/// # Errors
/// If waiting fails, or a signal requests a stop.
pub(crate) fn wait(child: &mut Child, shown: &str) -> Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {shown}"))? {
            return Ok(status);
        }
        if interrupt::asked() {
            // A terminal has sent its Ctrl-C to the child as well; a plain `kill` has not.
            let _ = child.kill();
            let _ = child.wait();
            bail!("stopped while {shown} was running");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Formats the command as a user would type it, with its folder.
pub(crate) fn describe(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(name).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    let place = command.get_current_dir().map(|dir| format!(" in {}", dir.display())).unwrap_or_default();
    format!("`{}`{place}", words.join(" "))
}

/// Finds a program on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| runs(file))
}

fn runs(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns PATH with these folders in front.
///
/// # Errors
/// If a folder's name contains the separator.
pub(crate) fn path_with(folders: &[&Path]) -> Result<OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let all = folders.iter().map(|dir| dir.to_path_buf()).chain(std::env::split_paths(&rest));
    std::env::join_paths(all).context("PATH cannot contain a folder with `:` in its name")
}
