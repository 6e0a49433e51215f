//! Runs test programs, which cargo builds, side by side. Most of them wait most of the time, and cargo itself would
//! run one after the other.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::progress::{complain, say, seconds};
use crate::report::Tally;
use crate::run;
use crate::tools::Workshop;

/// The number of programs that run at a time. Each runs as many tests at a time as there are cores, and the tests
/// have deadlines.
const AT_A_TIME: usize = 2;

/// A program that contains tests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    name: String,
    file: PathBuf,
    /// The folder in which cargo would run the program.
    package: PathBuf,
}

impl Program {
    /// The program that a message of cargo names.
    fn in_message(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        let file = message["executable"].as_str().filter(|_| is_test)?;
        let package = Path::new(message["manifest_path"].as_str()?).parent()?;
        let (folder, target) = (package.file_name()?.to_string_lossy(), message["target"]["name"].as_str()?);
        Some(Self { name: format!("{folder}: {target}"), file: file.into(), package: package.into() })
    }
}

/// Builds the programs that `cargo test` with these arguments would run.
///
/// # Errors
/// If something does not compile.
pub(crate) fn built(test: &mut Command) -> Result<Vec<Program>> {
    test.args(["--no-run", "--message-format=json-render-diagnostics"]);
    let mut programs = Vec::new();
    each_line(test, |line| programs.extend(Program::in_message(line)))?;
    ensure!(!programs.is_empty(), "{} built no tests", run::describe(test));
    Ok(programs)
}

/// Runs all programs, some at a time, prints the output of each when it has ended, and counts the tests.
///
/// # Errors
/// If a program cannot be run, or a test fails or is skipped.
pub(crate) fn run(
    shop: &Workshop,
    programs: &[Program],
    equip: impl Fn(&mut Command) -> Result<()> + Sync,
    tally: &mut Tally,
) -> Result<()> {
    let counted = Mutex::new(Tally::default());
    let failures = Mutex::new(Vec::new());
    side_by_side(programs, |program| {
        let mut own = Tally::default();
        if let Err(error) = one(shop, program, &equip, &mut own) {
            complain(&error);
            locked(&failures).push(program.name.clone());
        }
        locked(&counted).add(&own);
    });
    tally.add(&locked(&counted));
    let failures = locked(&failures);
    ensure!(tally.passed + tally.failed > 0, "no test ran");
    ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    Ok(())
}

/// Does the work for each item, in their order, [`AT_A_TIME`] of them at a time.
fn side_by_side<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let waiting = Mutex::new(all.iter().collect::<VecDeque<_>>());
    // A separate function: in the condition of a `while let`, the lock would be held until the work is done.
    let next = || locked(&waiting).pop_front();
    let lane = || {
        while let Some(one) = next() {
            work(one);
        }
    };
    thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(lane))));
}

fn one(
    shop: &Workshop,
    program: &Program,
    equip: impl Fn(&mut Command) -> Result<()>,
    tally: &mut Tally,
) -> Result<()> {
    let mut command = Command::new(&program.file);
    // The counters that tests print are evidence, so passing tests show them, too.
    command.arg("--show-output").current_dir(&program.package);
    equip(&mut command)?;
    shop.progress.line(&format!("         {} began", program.name));
    let began = Instant::now();
    let mut lines = vec![format!("     Running {} ({})", program.name, run::describe(&command))];
    let outcome = each_line(&mut command, |line| {
        tally.count(line);
        lines.push(line.to_owned());
    });
    lines.push(format!("     {} took {}", program.name, seconds(began.elapsed())));
    say(lines.join("\n"));
    judged(outcome, tally, Asked::All, &program.name)
}

/// The tests that the command line selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All tests: a test that does not run is a failure.
    All,
    /// The tests whose names contain a given text.
    Some,
}

/// Runs the tests of a command, prints their output as it comes, and counts.
///
/// # Errors
/// If a test fails, or a selected test is skipped.
pub(crate) fn streamed(command: &mut Command, asked: Asked, tally: &mut Tally) -> Result<()> {
    let mut own = Tally::default();
    let outcome = each_line(command, |line| {
        own.count(line);
        say(line);
    });
    tally.add(&own);
    judged(outcome, &own, asked, &run::describe(command))
}

fn judged(outcome: Result<()>, tally: &Tally, asked: Asked, name: &str) -> Result<()> {
    if tally.failed > 0 {
        bail!("{} of {name} failed", of_tests(tally.failed));
    }
    outcome.with_context(|| format!("{name} failed, but none of its tests did; see above"))?;
    if tally.skipped > 0 && asked == Asked::All {
        bail!("{} of {name} skipped; a skipped test counts as a failure", of_tests(tally.skipped));
    }
    Ok(())
}

fn each_line(command: &mut Command, mut each: impl FnMut(&str) + Send) -> Result<()> {
    let shown = run::describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // The group includes every process that the program starts, so that all of them can be stopped.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let out = child.stdout.take().context("a program without output")?;
    let status = thread::scope(|scope| {
        let reading = scope.spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                each(&String::from_utf8_lossy(&line));
            }
        });
        let group = child.id();
        let status = run::wait(&mut child, &shown);
        if status.is_err() {
            stop(group);
        }
        reading.join().map(|()| status).map_err(|_| anyhow!("the reader of the output of {shown} panicked"))
    })??;
    ensure!(status.success(), "{shown} failed ({status})");
    Ok(())
}

/// Stops a process group. First, the programs of a test get a moment to clean up.
fn stop(group: u32) {
    let Ok(group) = i32::try_from(group) else { return };
    let _ = killpg(Pid::from_raw(group), Signal::SIGINT);
    thread::sleep(Duration::from_secs(1));
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
}

fn of_tests(count: u64) -> String {
    if count == 1 { "1 test".into() } else { format!("{count} tests") }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages_and_nothing_else_is() {
        let message = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/edge/Cargo.toml","target":{{"name":"pages"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found = Program::in_message(&message(true, r#""/t/pages-1""#));
        let wanted =
            Program { name: "edge: pages".into(), file: "/t/pages-1".into(), package: "/w/edge".into() };
        assert_eq!(found, Some(wanted));
        assert_eq!(Program::in_message(&message(false, r#""/t/pages""#)), None);
        assert_eq!(Program::in_message(&message(true, "null")), None);
        assert_eq!(Program::in_message("   Compiling edge"), None);
    }

    #[test]
    fn two_at_a_time_are_done_and_each_of_them_once() {
        let (here, done) = (Mutex::new(0_u32), Mutex::new(Vec::new()));
        let two = || {
            *locked(&here) += 1;
            let until = Instant::now() + Duration::from_secs(10);
            while *locked(&here) < 2 && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(*locked(&here) >= 2, "no second item ran beside this one");
        };
        side_by_side(&[0, 1, 2, 3], |one| {
            locked(&done).push(*one);
            two();
        });
        let mut done = locked(&done).clone();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
    }

    #[test]
    fn a_program_that_dies_without_a_word_of_its_tests_has_failed() {
        let mut tally = Tally::default();
        let died = streamed(
            Command::new("sh").args(["-c", "echo running 1 test; kill -9 $$"]),
            Asked::All,
            &mut tally,
        );
        assert!(died.is_err() && tally == Tally::default(), "{died:?}");
        // Not by a program that prints this: this test's own output would be counted.
        let skipped = Tally { passed: 1, failed: 0, skipped: 1 };
        assert!(judged(Ok(()), &skipped, Asked::Some, "a").is_ok());
        assert!(judged(Ok(()), &skipped, Asked::All, "a").is_err());
    }
}
