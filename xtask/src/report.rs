//! What was run, how long each step took, and the one honest line at the end.
//!
//! What counts as passed is what Rust's own test runner says; a skipped test is a failure here.

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
    /// Takes a line of output; any but a result is nothing.
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

/// What has been run so far, and how it ended.
pub(crate) struct Report {
    started: Instant,
    rows: Vec<(&'static str, bool, Duration)>,
    /// The step that ran the tests.
    tests: Option<&'static str>,
    tally: Tally,
}

impl Report {
    /// Nothing was run yet.
    pub(crate) fn begin() -> Self {
        Self { started: Instant::now(), rows: Vec::new(), tests: None, tally: Tally::default() }
    }

    /// Runs tests, which are counted.
    pub(crate) fn tests(
        &mut self,
        shop: &Workshop,
        name: &'static str,
        work: impl FnOnce(&mut Tally) -> Result<()>,
    ) {
        let started = Instant::now();
        let mut tally = Tally::default();
        let outcome = shop.progress.step_aloud(name, || work(&mut tally));
        self.row(name, started, outcome);
        (self.tests, self.tally) = (Some(name), tally);
    }

    /// Runs a step; what it gives when it ends well.
    pub(crate) fn step<T>(
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
    pub(crate) fn finish(mut self, tested: bool) -> ExitCode {
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
        let tests = self.rows.iter().find(|(name, ..)| Some(*name) == self.tests).map(|(_, well, _)| *well);
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
        let tests = rows.iter().map(|(name, ..)| *name).find(|name| *name == "test");
        let mut report = Report { rows, tests, tally, ..Report::begin() };
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
}
