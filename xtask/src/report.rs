//! Reports the steps, how long each took, and the total in the last line.
//!
//! A test has passed if Rust's test runner reports it as passed. A skipped test is a failure here.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::{complain, say, seconds};
use crate::tools::Workshop;

/// The sum of `test result:` lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Counts a line of output. Only result lines count.
    pub(crate) fn count(&mut self, line: &str) {
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

    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A step and its outcome.
struct Row {
    name: &'static str,
    well: bool,
    time: Duration,
    /// The tests that the step ran; `None` if the step runs none.
    tests: Option<Tally>,
}

/// The steps so far and their outcomes.
pub(crate) struct Report {
    started: Instant,
    rows: Vec<Row>,
}

impl Report {
    /// Begins a report without steps.
    pub(crate) fn begin() -> Self {
        Self { started: Instant::now(), rows: Vec::new() }
    }

    /// Runs a step with tests, and counts them.
    pub(crate) fn tests(
        &mut self,
        shop: &Workshop,
        name: &'static str,
        work: impl FnOnce(&mut Tally) -> Result<()>,
    ) {
        let started = Instant::now();
        let mut tally = Tally::default();
        let outcome = shop.progress.step_aloud(name, || work(&mut tally));
        self.row(name, started, outcome, Some(tally));
    }

    /// Runs a step, and returns its value if it succeeds.
    pub(crate) fn step<T>(
        &mut self,
        shop: &Workshop,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        let started = Instant::now();
        let outcome = shop.progress.step(name, work);
        self.row(name, started, outcome, None)
    }

    fn row<T>(
        &mut self,
        name: &'static str,
        started: Instant,
        outcome: Result<T>,
        tests: Option<Tally>,
    ) -> Option<T> {
        self.rows.push(Row { name, well: outcome.is_ok(), time: started.elapsed(), tests });
        outcome.inspect_err(complain).ok()
    }

    /// Prints the table and, in the last line, the counts.
    pub(crate) fn finish(self, tested: bool) -> ExitCode {
        say("");
        for Row { name, well, time, .. } in &self.rows {
            say(format_args!("{name:<22}{:<8}{:>9}", if *well { "ok" } else { "FAILED" }, seconds(*time)));
        }
        say(format_args!("{:<30}{:>9}", "total", seconds(self.started.elapsed())));
        let Tally { passed, failed, skipped } = self.total(tested);
        say(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
        let well = self.rows.iter().all(|row| row.well);
        if well && failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Sums the tests of all steps.
    ///
    /// A failed step counts as one failure, unless it ran tests and one of them failed. If tests were selected and
    /// none ran, that is one failure, too.
    fn total(&self, tested: bool) -> Tally {
        let mut total = Tally::default();
        self.rows.iter().filter_map(|row| row.tests.as_ref()).for_each(|tally| total.add(tally));
        let told_already = |row: &&Row| row.tests.as_ref().is_some_and(|tally| tally.failed > 0);
        let broken = self.rows.iter().filter(|row| !row.well);
        let untold = broken.clone().filter(|row| !told_already(row)).count();
        let lost = tested && broken.count() == 0 && self.rows.iter().all(|row| row.tests.is_none());
        total.failed += u64::try_from(untold + usize::from(lost)).unwrap_or(u64::MAX);
        total
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
        let row = |(name, well): &(&'static str, bool)| {
            let tests = ["test", "more tests"].contains(name).then_some(tally);
            Row { name, well: *well, time: Duration::ZERO, tests }
        };
        Report { rows: rows.iter().map(row).collect(), ..Report::begin() }.total(tested)
    }

    #[test]
    fn the_tests_of_all_steps_count() {
        let good = Tally { passed: 9, failed: 0, skipped: 0 };
        assert_eq!(settled(&[("test", true), ("fmt", true), ("more tests", true)], good, true).passed, 18);
        let bad = Tally { passed: 8, failed: 1, skipped: 0 };
        let both = settled(&[("test", false), ("more tests", false)], bad, true);
        assert_eq!(both, Tally { passed: 16, failed: 2, skipped: 0 });
    }

    #[test]
    fn a_failed_step_counts_once() {
        let good = Tally { passed: 9, failed: 0, skipped: 0 };
        assert_eq!(settled(&[("fmt", true), ("test", true)], good, true).failed, 0);
        assert_eq!(settled(&[("fmt", false), ("test", true)], good, true).failed, 1);
        let bad = Tally { passed: 9, failed: 2, skipped: 0 };
        assert_eq!(settled(&[("fmt", false), ("test", false)], bad, true).failed, 3);
        // The test did not compile, nothing ran, or a test was skipped.
        assert_eq!(settled(&[("test", false)], good, true).failed, 1);
        assert_eq!(settled(&[("test", false)], Tally::default(), true).failed, 1);
        assert_eq!(settled(&[("tools", false)], Tally::default(), true).failed, 1);
    }
}
