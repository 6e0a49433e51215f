//! `.ci/run` itself: what its exit code and its last line say, whatever its steps end with. The steps are made up here, for
//! the true ones do not fail on demand.

#![allow(clippy::unwrap_used)] // a test may

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SCRIPT: &str = include_str!("../../.ci/run");

/// What the steps print and end with.
#[derive(Clone, Copy)]
struct Steps {
    /// Of `cargo metadata --locked`.
    lock: u8,
    /// The last line of `cargo xtask test`, and its exit code.
    test: (&'static str, u8),
    /// The same of `cargo xtask e2e --host`.
    e2e: (&'static str, u8),
    /// For how many seconds `cargo xtask e2e --host --prepare` runs.
    prepare: u8,
}

const WELL: Steps = Steps {
    lock: 0,
    test: ("3 passed, 0 failed, 0 skipped", 0),
    e2e: ("2 passed, 0 failed, 0 skipped", 0),
    prepare: 0,
};

/// The exit code of the run, and its last line.
fn run(steps: Steps) -> (Option<i32>, String) {
    let Steps { lock, test, e2e, prepare } = steps;
    let folder = TempDir::new().unwrap();
    let clone = folder.path().join("clone");
    let programs = folder.path().join("programs");
    std::fs::create_dir_all(clone.join(".ci")).unwrap();
    std::fs::create_dir(&programs).unwrap();
    program(&clone.join(".ci/run"), SCRIPT);
    program(&programs.join("rustc"), "#!/bin/sh\necho rustc 1\n");
    let cargo = format!(
        "#!/bin/sh\ncase \"$*\" in\n\
         metadata*) exit {lock};;\n\
         'xtask test') echo a line before; echo '{}'; exit {};;\n\
         'xtask e2e --host') echo '{}'; exit {};;\n\
         'xtask e2e --host --prepare') exec sleep {prepare};;\n\
         *) echo \"nobody expected $*\" >&2; exit 99;;\nesac\n",
        test.0, test.1, e2e.0, e2e.1
    );
    program(&programs.join("cargo"), &cargo);
    for arguments in [&["init", "--quiet"][..], &["add", "."], &["commit", "--quiet", "-m", "a commit"]] {
        let git = Command::new("git")
            .args(["-c", "user.name=somebody", "-c", "user.email=somebody@example.com"])
            .args(arguments)
            .current_dir(&clone)
            .status();
        assert!(git.unwrap().success(), "{arguments:?}");
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let ended = Command::new(clone.join(".ci/run"))
        .env("PATH", path)
        .env("TASKPIPELINE_CACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    (ended.status.code(), said.lines().last().unwrap_or_default().to_owned())
}

fn program(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_run_in_which_all_passed_ends_well_whether_or_not_the_preparations_are_over() {
    assert_eq!(run(WELL), (Some(0), "5 passed, 0 failed, 0 skipped".into()));
    let began = Instant::now();
    assert_eq!(run(Steps { prepare: 100, ..WELL }), (Some(0), "5 passed, 0 failed, 0 skipped".into()));
    assert!(began.elapsed() < Duration::from_secs(50), "it has waited for what nobody needs any more");
}

#[test]
fn a_run_in_which_anything_went_wrong_fails_and_its_last_line_says_so() {
    let killed = ("and then", 137);
    for (steps, last) in [
        (Steps { test: ("2 passed, 1 failed, 0 skipped", 1), ..WELL }, "4 passed, 1 failed, 0 skipped"),
        (Steps { e2e: ("1 passed, 1 failed, 0 skipped", 1), ..WELL }, "4 passed, 1 failed, 0 skipped"),
        (Steps { test: ("2 passed, 0 failed, 1 skipped", 0), ..WELL }, "4 passed, 0 failed, 1 skipped"),
        (Steps { test: killed, ..WELL }, "2 passed, 1 failed, 0 skipped"),
        (Steps { test: killed, e2e: killed, ..WELL }, "0 passed, 1 failed, 0 skipped"),
        // A check that is no test: nothing failed that is counted, and yet it failed.
        (Steps { test: ("3 passed, 0 failed, 0 skipped", 1), ..WELL }, "5 passed, 1 failed, 0 skipped"),
        (Steps { lock: 101, ..WELL }, "0 passed, 1 failed, 0 skipped"),
    ] {
        assert_eq!(run(steps), (Some(1), last.into()));
    }
}
