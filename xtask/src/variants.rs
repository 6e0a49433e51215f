//! `cargo xtask variants`: checks that the fault suite catches processors that are broken on purpose.
//!
//! Each variant is one patch. The checker of the histories must catch it; with `--simulated`, the checker of the simulation.
//!
//! The variants are built from a copy of the clone, into a separate folder. Otherwise cargo would take builds of the
//! copy for builds of the clone.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;
use crate::workspace::cargo;

/// The folder of the patches.
const PATCHES: &str = "processor/tests/variants";

/// The first line of a patch that only a simulation meets often enough.
const SIMULATION: &str = "simulation";

/// The test with the histories of the simulation, and those with the histories that are written by hand.
const HISTORIES: &str = "durable::simulation::after_all_faults";
const SCENES: &str = "durable::simulation::scenes";

/// The options of `variants`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Play only this variant: the name of its patch without `.patch`
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Play simulated histories, thousands a second, instead of real processes
    #[arg(long)]
    simulated: bool,
    /// Play at most this many histories against each variant [default: 16, simulated: 400000]
    #[arg(long, value_name = "COUNT")]
    histories: Option<u64>,
    /// Begin with this seed; the others follow it
    #[arg(long, value_name = "SEED", default_value_t = 2_002)]
    seed: u64,
}

impl Options {
    fn histories(&self) -> u64 {
        self.histories.unwrap_or(if self.simulated { 400_000 } else { 16 })
    }
}

/// Breaks, builds and plays one variant after another.
///
/// # Errors
/// If a part cannot be obtained, built or started. A variant that escapes is in the exit status.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let root = &shop.workspace.root;
    let nats_server = if options.simulated { None } else { Some(shop.nats_server()?) };
    let patches = patches(root)?;
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let mut escaped = Vec::new();
    let mut caught = 0;
    for patch in patches.iter().filter(|patch| wanted(&name(patch))) {
        let name = name(patch);
        if !options.simulated && first_line(patch)? == SIMULATION {
            say(format_args!("{name}: left out; it requires --simulated"));
            continue;
        }
        let copy = shop.workspace.target.join("variants/source");
        let target = shop.workspace.target.join("variants/target");
        let built = shop.progress.step("build a broken variant", || {
            copy_of(root, &copy)?;
            apply(&copy, patch)?;
            if options.simulated { build_simulation(&copy, &target) } else { build(&copy, &target) }
        })?;
        let caught_by = match &nats_server {
            Some(nats_server) => first_differences(&mut real(shop, &built, nats_server, patch, options)?)?,
            None => match first_differences(&mut scenes(&copy, &target))? {
                Some(scene) => Some(scene),
                None => first_differences(&mut simulated(&copy, &target, options))?,
            },
        };
        match caught_by {
            Some(differences) => {
                caught += 1;
                say(format_args!("{name}: caught ({differences})"));
            }
            None => {
                say(format_args!("{name}: NOT caught in {} histories", options.histories()));
                escaped.push(name);
            }
        }
    }
    ensure!(caught + escaped.len() > 0, "{PATCHES} has no such variant");
    say(format_args!("{caught} variants caught, {} not", escaped.len()));
    Ok(if escaped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the command that plays histories with real processes of this binary.
fn real(
    shop: &Workshop,
    built: &Path,
    nats_server: &Path,
    patch: &Path,
    options: &Options,
) -> Result<Command> {
    let mut histories = shop.workspace.cargo();
    histories
        .args(["test", "--release", "--workspace", "--test", "histories", "--", "--nocapture"])
        .env("TASKPIPELINE_NATS_SERVER", nats_server)
        // If no crash point is set, this processor acts like the ordinary one.
        .env("TASKPIPELINE_BIN", built)
        .env("TASKPIPELINE_CRASHABLE_BIN", built)
        .env("TASKPIPELINE_TEST_OUTPUT", shop.workspace.target.join("variants/output"))
        .env("TASKPIPELINE_SEED", options.seed.to_string())
        .env("TASKPIPELINE_HISTORIES", options.histories().to_string())
        .env_remove("TASKPIPELINE_SERVERS");
    if let Some(servers) = servers(patch)? {
        histories.env("TASKPIPELINE_SERVERS", servers);
    }
    Ok(histories)
}

/// Builds the command that plays the simulation's scenes, which take no time.
fn scenes(copy: &Path, target: &Path) -> Command {
    let mut scenes = simulation(copy, target);
    scenes.args(["--", SCENES]);
    scenes
}

/// Builds the command that plays histories in the simulation of this source.
fn simulated(copy: &Path, target: &Path, options: &Options) -> Command {
    let mut histories = simulation(copy, target);
    histories
        .args(["--quiet", "--", HISTORIES, "--nocapture"])
        .env("SIMULATION_SEED", options.seed.to_string())
        .env("SIMULATION_HISTORIES", options.histories().to_string());
    histories
}

fn build_simulation(copy: &Path, target: &Path) -> Result<PathBuf> {
    run::output(simulation(copy, target).arg("--no-run"))?;
    Ok(target.to_owned())
}

fn simulation(copy: &Path, target: &Path) -> Command {
    let mut test = cargo();
    test.args(["test", "--release", "--package", "taskpipeline-pipeline", "--lib"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target)
        .env("RUSTFLAGS", "--cap-lints=allow");
    test
}

fn patches(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join(PATCHES);
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut patches: Vec<_> = entries.map_while(Result::ok).map(|entry| entry.path()).collect();
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    Ok(patches)
}

fn name(patch: &Path) -> String {
    patch.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The number of nats-servers that a variant needs, if the patch's first line has one, such as `nats-servers: 3`.
fn servers(patch: &Path) -> Result<Option<String>> {
    Ok(first_line(patch)?.strip_prefix("nats-servers: ").map(str::to_owned))
}

fn first_line(patch: &Path) -> Result<String> {
    let text = std::fs::read_to_string(patch).with_context(|| format!("cannot read {}", patch.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Copies the files that git knows, in their current state.
fn copy_of(root: &Path, copy: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(root);
    let files = run::output(&mut list)?;
    for file in files.split('\0').map(str::trim).filter(|file| !file.is_empty()) {
        let (from, to) = (root.join(file), copy.join(file));
        // A file that is deleted, and not committed yet.
        let Ok(bytes) = std::fs::read(&from) else { continue };
        // An unchanged file keeps its time, so that cargo builds only what has changed.
        if std::fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        std::fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

fn apply(copy: &Path, patch: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.arg("apply").arg(patch).current_dir(copy);
    // The copy is inside the clone, but is not part of it.
    if let Some(above) = copy.parent() {
        git.env("GIT_CEILING_DIRECTORIES", above);
    }
    run::output(&mut git).with_context(|| format!("{} no longer applies", patch.display()))?;
    Ok(())
}

fn build(copy: &Path, target: &Path) -> Result<PathBuf> {
    let mut build = cargo();
    build
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "taskpipeline-processor",
            "--bin",
            "taskpipeline",
        ])
        .args(["--features", "taskpipeline-processor/crash-points"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target)
        // A variant may leave something unused.
        .env("RUSTFLAGS", "--cap-lints=allow");
    run::output(&mut build)?;
    Ok(target.join("release/taskpipeline"))
}

/// Returns the first line in which the checker reports a catch: differences, or a state that does not settle. `None`
/// if the histories pass. Any other failure is an error, not a catch.
fn first_differences(command: &mut Command) -> Result<Option<String>> {
    let shown = run::describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let out = child.stdout.take().context("the histories have no output")?;
    let (mut found, mut last) = (None, String::new());
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        if found.is_none() && is_catch(&line) {
            found = Some(line.trim().to_owned());
        }
        last = line;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
    if found.is_none() && !status.success() {
        bail!("the histories failed without a difference: {last}");
    }
    Ok(found)
}

fn is_catch(line: &str) -> bool {
    let differs = line.contains(" differences, ") && !line.contains(" 0 differences");
    // A stream that lost its tail unnoticed leaves such a line.
    differs
        || line.starts_with("the pipeline does not come to rest")
        || line.contains("no consumer of incarnation ")
        || line.starts_with("history ") && line.contains(" fails, found after ")
        || line.starts_with(&format!("test {SCENES}::")) && line.ends_with("FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_or_work_that_never_ends_is_a_catch_and_a_harness_that_fails_is_none() {
        let differs = "3 differences, 3 of them still there 6 s later:";
        let ends_never = "the pipeline does not come to rest: not within 90s: not settled: ...";
        assert!(is_catch(&format!(" {differs}")) && is_catch(ends_never));
        assert!(is_catch("history 2007 fails, found after 0.1 s"));
        assert!(!is_catch("while: edit of retry.delays: no answer from /metrics"));
    }

    #[test]
    fn every_variant_still_applies() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let patches = patches(root).unwrap();
        assert_eq!(patches.len(), 16, "{patches:?}");
        let on_three = |patch: &&PathBuf| servers(patch).unwrap().as_deref() == Some("3");
        assert_eq!(
            patches.iter().filter(on_three).map(|patch| name(patch)).collect::<Vec<_>>(),
            ["conflict-code-unknown"]
        );
        for patch in patches {
            let checked =
                Command::new("git").arg("apply").arg("--check").arg(&patch).current_dir(root).output();
            let checked = checked.unwrap();
            let told = String::from_utf8_lossy(&checked.stderr).into_owned();
            assert!(checked.status.success(), "{}: {told}", patch.display());
        }
    }
}
