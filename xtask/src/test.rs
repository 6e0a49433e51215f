//! `cargo xtask test`: every check, one step after another, each with its time, and one honest line at the
//! end.
//!
//! What counts as passed is what cargo's own test runner says; a skipped test is a failure here.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use crate::progress::{complain, say, seconds};
use crate::soak::{CRASHABLE, crashable_processor};
use crate::tools::{Everything, Workshop, everything};
use crate::{run, wasm};

/// What `test` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these steps, each time the option is given one (`test` also does what it needs: wasm and build)
    #[arg(long, value_enum, value_name = "STEP")]
    only: Vec<Step>,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    Fmt,
    Clippy,
    Doc,
    Wasm,
    Build,
    Test,
}

impl Options {
    fn wants(&self, step: Step) -> bool {
        let needed = self.only.contains(&Step::Test) && matches!(step, Step::Wasm | Step::Build);
        self.only.is_empty() || needed || self.only.contains(&step)
    }
}

/// Runs the steps.
///
/// # Errors
/// When the steps cannot be run at all; a step that fails is in the table and in the exit status.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let mut report = Report { started: Instant::now(), rows: Vec::new(), tally: Tally::default() };
    let needs_tools = options.wants(Step::Wasm) || options.wants(Step::Test);
    thread::scope(|scope| {
        // The tools come over the network while cargo compiles for the checks.
        let tools = needs_tools.then(|| scope.spawn(|| everything(shop)));
        check(shop, options, &mut report);
        let Some(tools) = tools else { return };
        let tools = || tools.join().map_err(|_| anyhow!("getting the tools fell over"))?;
        if let Some(tools) = report.step(shop, "tools", tools) {
            build_and_test(shop, options, &tools, &mut report);
        }
    });
    if !needs_tools && options.wants(Step::Build) {
        report.step(shop, "build", || build(shop));
    }
    Ok(report.finish(options.wants(Step::Test)))
}

/// What fails here does not keep the rest from being tried.
fn check(shop: &Workshop, options: &Options, report: &mut Report) {
    let cargo = |arguments: &[&str]| {
        let mut command = shop.workspace.cargo();
        command.args(arguments);
        command
    };
    if options.wants(Step::Fmt) {
        report.step(shop, "fmt", || run::output(&mut cargo(&["fmt", "--all", "--check"])));
    }
    if options.wants(Step::Clippy) {
        let every =
            ["clippy", "--workspace", "--all-targets", "--release", "--quiet", "--", "-D", "warnings"];
        report.step(shop, "clippy", || run::output(&mut cargo(&every)));
    }
    if options.wants(Step::Doc) {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--release", "--quiet"]);
        report.step(shop, "doc", || run::output(doc.env("RUSTDOCFLAGS", "-Dwarnings")));
    }
}

fn build_and_test(shop: &Workshop, options: &Options, tools: &Everything, report: &mut Report) {
    if options.wants(Step::Wasm) {
        if report.step(shop, "wasm", || wasm::build(shop)).is_none() {
            return;
        }
        // The entry point is compiled for wasm only, so the step above has not seen it. Debian's rustc has
        // no clippy.
        if options.wants(Step::Clippy) && tools.ordinary_rust() {
            let mut clippy = shop.workspace.cargo();
            clippy.args(["clippy", "--package", "taskpipeline-edge", "--lib", "--release", "--quiet"]);
            clippy.args(["--target", "wasm32-unknown-unknown", "--", "-D", "warnings"]);
            report.step(shop, "clippy of the Worker", || run::output(&mut clippy));
        }
    }
    if options.wants(Step::Build) && report.step(shop, "build", || build(shop)).is_none() {
        return;
    }
    if options.wants(Step::Test) {
        let started = Instant::now();
        let mut tally = Tally::default();
        let outcome = shop.progress.step_aloud("test", || test(shop, tools, &mut tally));
        report.row("test", started, outcome);
        report.tally = tally;
    }
}

/// The one that the fault suite lets die at its crash points comes first: the other takes its place.
fn build(shop: &Workshop) -> Result<String> {
    crashable_processor(&shop.workspace)?;
    run::output(&mut shop.workspace.build(&["taskpipeline", "taskpipeline-simulator"]))
}

fn test(shop: &Workshop, tools: &Everything, tally: &mut Tally) -> Result<()> {
    let mut command = shop.workspace.cargo();
    // The counters that tests print are evidence: shown when they pass, too.
    command.args(["test", "--workspace", "--release", "--no-fail-fast", "--", "--show-output"]);
    equip(shop, tools, &mut command)?;
    streamed(&mut command, tally)
}

/// Tells the tests where the tools and programs are.
///
/// # Errors
/// When the folder for what they leave behind cannot be made.
pub(crate) fn equip(shop: &Workshop, tools: &Everything, command: &mut Command) -> Result<()> {
    let output = shop.workspace.root.join("test-output");
    std::fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let xtask = std::env::current_exe().context("cannot tell where this program lies")?;
    command
        .env("TASKPIPELINE_NATS_SERVER", &tools.nats_server)
        .env("TASKPIPELINE_BIN", shop.workspace.binary("taskpipeline"))
        .env("TASKPIPELINE_CRASHABLE_BIN", shop.workspace.binary(CRASHABLE))
        .env("TASKPIPELINE_XTASK", xtask)
        .env("TASKPIPELINE_CHROMIUM", &tools.chromium)
        .env("TASKPIPELINE_AXE_CORE", tools.axe_core())
        .env("TASKPIPELINE_TEST_OUTPUT", output);
    Ok(())
}

/// Runs the tests, shows what they print as they print it, and counts.
fn streamed(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let shown = run::describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let out = child.stdout.take().context("the tests have no output")?;
    let (status, counted) = thread::scope(|scope| {
        let counting = scope.spawn(move || {
            let mut counted = Tally::default();
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                counted.count(&line);
                say(line);
            }
            counted
        });
        let status = run::wait(&mut child, &shown);
        counting
            .join()
            .map(|counted| (status, counted))
            .map_err(|_| anyhow!("reading the tests' output fell over"))
    })?;
    tally.add(&counted);
    let status = status?;
    if counted.failed > 0 {
        bail!("{} failed", of_tests(counted.failed));
    }
    if !status.success() {
        bail!("{shown} failed ({status}), though no test says that it did: see above");
    }
    if counted.passed == 0 {
        bail!("not a single test ran");
    }
    if counted.skipped > 0 {
        bail!("{} skipped; here a test that does not run is a failure", of_tests(counted.skipped));
    }
    Ok(())
}

fn of_tests(count: u64) -> String {
    if count == 1 { "1 test".into() } else { format!("{count} tests") }
}

/// The sum of cargo's `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    /// Takes a line of output; any but a result is nothing.
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        // `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" | "filtered out" => self.skipped += number,
                _ => {}
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

struct Report {
    started: Instant,
    rows: Vec<(&'static str, bool, Duration)>,
    tally: Tally,
}

impl Report {
    /// Runs a step; what it gives when it ends well.
    fn step<T>(
        &mut self,
        shop: &Workshop,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let started = Instant::now();
        let outcome = shop.progress.step(name, work);
        self.row(name, started, outcome)
    }

    fn row<T>(&mut self, name: &'static str, started: Instant, outcome: Result<T>) -> Option<T> {
        self.rows.push((name, outcome.is_ok(), started.elapsed()));
        outcome.inspect_err(complain).ok()
    }

    /// Prints the table and, last of all, the counts.
    fn finish(mut self, tested: bool) -> ExitCode {
        say("");
        for (name, well, time) in &self.rows {
            say(format_args!("{name:<22}{:<8}{:>9}", if *well { "ok" } else { "FAILED" }, seconds(*time)));
        }
        say(format_args!("{:<30}{:>9}", "in all", seconds(self.started.elapsed())));
        let broken = self.rows.iter().filter(|(_, well, _)| !well).count();
        self.settle(broken, tested);
        let Tally { passed, failed, skipped } = self.tally;
        say(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
        if broken == 0 && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// A step that fails counts as a failure, the tests' own only when no test of them does; and so do tests
    /// that were asked for and did not get their turn.
    fn settle(&mut self, broken: usize, tested: bool) {
        let tests = self.rows.iter().find(|(name, ..)| *name == "test").map(|(_, well, _)| *well);
        let told_already = tests == Some(false) && self.tally.failed > 0;
        let lost = tested && tests.is_none() && broken == 0;
        let more = broken - usize::from(told_already) + usize::from(lost);
        self.tally.failed += u64::try_from(more).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.count(line));
        tally
    }

    #[test]
    fn sums_the_results_of_all_test_programs() {
        let tally = counted(&[
            "running 3 tests",
            "test one ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 1.20s",
            "",
        ]);
        assert_eq!(tally, Tally { passed: 5, failed: 1, skipped: 5 });
    }

    #[test]
    fn other_lines_count_nothing() {
        let lines =
            ["  test result: ok. 1 passed; 0 failed", "test result", "3 passed; 0 failed", "test result: "];
        assert_eq!(counted(&lines), Tally::default());
    }

    fn settled(rows: &[(&'static str, bool)], tally: Tally, tested: bool) -> Tally {
        let rows: Vec<_> = rows.iter().map(|(name, well)| (*name, *well, Duration::ZERO)).collect();
        let broken = rows.iter().filter(|(_, well, _)| !well).count();
        let mut report = Report { started: Instant::now(), rows, tally };
        report.settle(broken, tested);
        report.tally
    }

    #[test]
    fn a_failed_step_counts_once() {
        let good = Tally { passed: 9, failed: 0, skipped: 0 };
        assert_eq!(settled(&[("fmt", true), ("test", true)], good, true).failed, 0);
        assert_eq!(settled(&[("fmt", false), ("test", true)], good, true).failed, 1);
        let bad = Tally { passed: 9, failed: 2, skipped: 0 };
        assert_eq!(settled(&[("fmt", false), ("test", false)], bad, true).failed, 3);
        // It did not compile, nothing ran, or a test was skipped.
        assert_eq!(settled(&[("test", false)], good, true).failed, 1);
        assert_eq!(settled(&[("test", false)], Tally::default(), true).failed, 1);
        assert_eq!(settled(&[("tools", false)], Tally::default(), true).failed, 1);
    }

    #[test]
    fn some_steps_need_others() {
        let only = Options { only: vec![Step::Test] };
        assert!(only.wants(Step::Wasm) && only.wants(Step::Build) && !only.wants(Step::Doc));
        assert!(Options { only: Vec::new() }.wants(Step::Doc));
        assert!(!Options { only: vec![Step::Fmt] }.wants(Step::Test));
    }
}
