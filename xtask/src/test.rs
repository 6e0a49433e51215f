//! `cargo xtask test`: runs every check, one step after another, each with its time, and prints the total in the last line.
//!
//! A test has passed if cargo's test runner reports it as passed. A skipped test is a failure here.

use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;

use crate::e2e::FEATURE;
use crate::programs::{self, Asked};
use crate::report::{Report, Tally};
use crate::soak::{CRASHABLE, crashable_processor};
use crate::tools::{Everything, Workshop, everything};
use crate::{compose, deny, generate, prose, run, wasm};

/// The options of `test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only this step and the steps that it needs (`test`: wasm and build); repeatable
    #[arg(long, value_enum, value_name = "STEP")]
    only: Vec<Step>,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    Fmt,
    Clippy,
    Doc,
    Deny,
    Prose,
    Wasm,
    Build,
    Generate,
    Test,
}

impl Step {
    /// The steps that must come before this one.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Generate => &[Self::Build],
            Self::Test => &[Self::Wasm, Self::Build],
            _ => &[],
        }
    }
}

impl Options {
    fn wants(&self, step: Step) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| *only == step || only.needs().contains(&step))
    }
}

/// Runs the steps.
///
/// # Errors
/// If the steps cannot run at all. A step that fails is in the table and in the exit status.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let mut report = Report::begin();
    let needs_tools = options.wants(Step::Wasm) || options.wants(Step::Test);
    thread::scope(|scope| {
        // The tools come over the network while cargo compiles for the checks.
        let tools = needs_tools.then(|| scope.spawn(|| everything(shop)));
        check(shop, options, &mut report);
        let Some(tools) = tools else { return };
        let tools = || tools.join().map_err(|_| anyhow!("the thread that gets the tools panicked"))?;
        if let Some(tools) = report.step(shop, "tools", tools) {
            build_and_test(shop, options, &tools, &mut report);
        }
    });
    if !needs_tools && options.wants(Step::Build) && report.step(shop, "build", || build(shop)).is_some() {
        compare(shop, options, &mut report);
    }
    Ok(report.finish(options.wants(Step::Test)))
}

/// Runs the checks. A check that fails does not keep the others from running.
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
        let features = format!("{FEATURE},{}", compose::FEATURE);
        let every =
            ["clippy", "--workspace", "--all-targets", "--release", "--quiet", "--features", &features];
        let mut clippy = cargo(&every);
        report.step(shop, "clippy", || run::output(clippy.args(["--", "-D", "warnings"])));
    }
    if options.wants(Step::Doc) {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--release", "--quiet"]);
        report.step(shop, "doc", || run::output(doc.env("RUSTDOCFLAGS", "-Dwarnings")));
    }
    if options.wants(Step::Deny) {
        report.step(shop, "deny", || deny::check(shop));
    }
    if options.wants(Step::Prose) {
        report.step(shop, "prose", || prose::check(shop));
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
    compare(shop, options, report);
    if options.wants(Step::Test) {
        report.tests(shop, "test", |tally| test(shop, tools, tally));
    }
}

/// Builds the programs. The processor with crash points comes first: the ordinary one replaces it.
fn build(shop: &Workshop) -> Result<String> {
    crashable_processor(&shop.workspace)?;
    run::output(&mut shop.workspace.build(&["taskpipeline", "taskpipeline-simulator"]))
}

/// Checks that the generated files equal what the tools would generate.
fn compare(shop: &Workshop, options: &Options, report: &mut Report) {
    if options.wants(Step::Generate) {
        report.step(shop, "generate", || generate::check(shop));
    }
}

/// Runs all tests except those that need a cluster, which `cargo xtask e2e` runs.
fn test(shop: &Workshop, tools: &Everything, tally: &mut Tally) -> Result<()> {
    let mut build = shop.workspace.cargo();
    build.args(["test", "--workspace", "--release"]);
    let programs = programs::built(&mut build)?;
    programs::run(shop, &programs, |command| equip(shop, tools, command), tally)?;
    let mut examples = shop.workspace.cargo();
    examples.args(["test", "--workspace", "--release", "--doc", "--no-fail-fast"]);
    programs::streamed(&mut examples, Asked::All, tally)
}

/// Passes the paths of the tools and programs to the tests.
///
/// # Errors
/// If the folder for the tests' output cannot be created.
pub(crate) fn equip(shop: &Workshop, tools: &Everything, command: &mut Command) -> Result<()> {
    let output = shop.workspace.root.join("test-output");
    std::fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let xtask = std::env::current_exe().context("cannot get the path of this program")?;
    command
        .env("TASKPIPELINE_NATS_SERVER", &tools.nats_server)
        .env("TASKPIPELINE_BIN", shop.workspace.binary("taskpipeline"))
        .env("TASKPIPELINE_CRASHABLE_BIN", shop.workspace.binary(CRASHABLE))
        .env("TASKPIPELINE_XTASK", xtask)
        .env("TASKPIPELINE_CHROMIUM", &tools.chromium)
        .env("TASKPIPELINE_AXE_CORE", tools.axe_core())
        .env("TASKPIPELINE_COMPOSE", &tools.compose)
        .env("TASKPIPELINE_TEST_OUTPUT", output);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_steps_need_others() {
        let only = Options { only: vec![Step::Test] };
        assert!(only.wants(Step::Wasm) && only.wants(Step::Build) && !only.wants(Step::Doc));
        assert!(Options { only: Vec::new() }.wants(Step::Doc));
        assert!(!Options { only: vec![Step::Fmt] }.wants(Step::Test));
        let only = Options { only: vec![Step::Generate] };
        assert!(only.wants(Step::Build) && !only.wants(Step::Wasm) && !only.wants(Step::Test));
    }
}
