//! Runs all measurements and reports them.
//!
//! Each measurement is written to a file as soon as it is finished, so that an interrupted run can continue.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tokio::time::Instant;

use crate::machine::{self, Machine};
use crate::measurement::Measurement;
use crate::plan::{Plan, expected};
use crate::report;
use crate::scenarios;
use crate::stats::median;

const MEASUREMENTS: &str = "measurements.jsonl";
const MACHINE: &str = "machine.json";

/// The options of a whole run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Take a short look at everything, about five minutes
    #[arg(long)]
    quick: bool,
    /// Continue the last run of this kind: make only the missing measurements
    #[arg(long)]
    resume: bool,
    /// Only list the measurements, with the expected time of each
    #[arg(long)]
    list: bool,
}

/// The options of a report.
#[derive(clap::Args)]
pub(crate) struct ReportOptions {
    /// Report the run in this folder [default: the last full run]
    run: Option<PathBuf>,
}

/// Makes a run and reports it.
pub(crate) async fn all(options: &Options) -> anyhow::Result<()> {
    let plan = if options.quick { Plan::Quick } else { Plan::Full };
    let jobs = plan.jobs();
    if options.list {
        for job in &jobs {
            println!("{:>5} s  {job}", expected(job).as_secs());
        }
        return Ok(());
    }
    let folder = folder(plan, options.resume)?;
    let done = read(&folder)?;
    let left: Vec<_> = jobs.iter().filter(|job| !done.iter().any(|it| it.job == **job)).collect();
    let whole: u64 = left.iter().map(|job| expected(job).as_secs()).sum();
    println!("{} measurements in {}, about {} minutes", left.len(), folder.display(), whole.div_ceil(60));
    let mut failed = Vec::new();
    for (index, job) in left.iter().enumerate() {
        let rest: u64 = left[index..].iter().map(|job| expected(job).as_secs()).sum();
        println!("[{}/{}, {} min left] {job}", index + 1, left.len(), rest.div_ceil(60));
        let (load_before, began) = (machine::load(), Instant::now());
        match scenarios::measure(job).await {
            Ok(findings) => {
                let seconds = began.elapsed().as_secs_f64();
                let measurement = Measurement { job: (*job).clone(), findings, seconds, load_before };
                append(&folder, &measurement)?;
            }
            // The other measurements are still useful; --resume makes this one again.
            Err(error) => {
                println!("  FAILED: {error:#}");
                failed.push(job.to_string());
            }
        }
    }
    write_report(&folder)?;
    if !failed.is_empty() {
        bail!("{} measurements failed; `--resume` tries them again:\n{}", failed.len(), failed.join("\n"));
    }
    if plan == Plan::Full {
        publish(&folder)?;
    }
    Ok(())
}

/// Writes a run's report again, and publishes it if the run is a full one.
pub(crate) fn report(options: &ReportOptions) -> anyhow::Result<()> {
    let folder = match &options.run {
        Some(folder) => folder.clone(),
        None => last(Plan::Full)?.context("no full run exists yet")?,
    };
    write_report(&folder)?;
    let done = read(&folder)?;
    if Plan::Full.jobs().iter().all(|job| done.iter().any(|it| it.job == *job)) {
        publish(&folder)?;
    }
    Ok(())
}

fn runs() -> PathBuf {
    std::env::var_os("TASKPIPELINE_BENCH_RUNS").map_or_else(|| PathBuf::from("target/bench"), PathBuf::from)
}

/// The folder of the last run of this kind. The names begin with their times.
fn last(plan: Plan) -> anyhow::Result<Option<PathBuf>> {
    let runs = runs();
    if !runs.is_dir() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&runs).with_context(|| format!("cannot read {}", runs.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(plan.name()) {
            found.push(path);
        }
    }
    Ok(found.into_iter().max())
}

fn folder(plan: Plan, resume: bool) -> anyhow::Result<PathBuf> {
    if resume {
        return last(plan)?.with_context(|| format!("no {} run exists that could be continued", plan.name()));
    }
    let folder = runs().join(format!("{}-{}", machine::now(false), plan.name()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    write(&folder.join(MACHINE), &serde_json::to_string_pretty(&Machine::here())?)?;
    Ok(folder)
}

fn read(folder: &Path) -> anyhow::Result<Vec<Measurement>> {
    let file = folder.join(MEASUREMENTS);
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    // The last line may be cut off: its measurement is made again.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn append(folder: &Path, measurement: &Measurement) -> anyhow::Result<()> {
    let file = folder.join(MEASUREMENTS);
    let mut open = fs::OpenOptions::new().create(true).append(true).open(&file)?;
    let line = serde_json::to_string(measurement)? + "\n";
    open.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn write_report(folder: &Path) -> anyhow::Result<()> {
    let measurements = read(folder)?;
    ensure!(!measurements.is_empty(), "{} has no measurements", folder.display());
    let machine: Machine = serde_json::from_str(&fs::read_to_string(folder.join(MACHINE))?)?;
    let rows = report::summary(&measurements);
    let loads: Vec<_> = measurements.iter().filter_map(|measurement| measurement.load_before).collect();
    let plots = report::plots(&rows);
    println!("\n{}", report::tables(&rows));
    let results = json!({"machine": machine, "results": rows, "measurements": measurements});
    write(&folder.join("results.json"), &serde_json::to_string_pretty(&results)?)?;
    fs::create_dir_all(folder.join("benchmarks"))?;
    for plot in &plots {
        write(&folder.join("benchmarks").join(plot.file), &plot.svg)?;
    }
    let document = report::document(&machine, &rows, &plots, median(&loads));
    write(&folder.join("benchmarks.md"), &document)?;
    println!("results.json, benchmarks.md and plots are in {}", folder.display());
    Ok(())
}

/// Copies a run's document and plots into the docs.
fn publish(folder: &Path) -> anyhow::Result<()> {
    let Some(docs) = std::env::var_os("TASKPIPELINE_DOCS").map(PathBuf::from) else { return Ok(()) };
    let to = docs.join("benchmarks");
    fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    fs::copy(folder.join("benchmarks.md"), docs.join("benchmarks.md"))?;
    for plot in fs::read_dir(folder.join("benchmarks"))? {
        let plot = plot?;
        fs::copy(plot.path(), to.join(plot.file_name()))?;
    }
    println!("published in {}", docs.display());
    Ok(())
}
