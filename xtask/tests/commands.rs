//! Every command in README.md, CONTRIBUTING.md and docs/ is run by a test, or is listed here as one that no test can run.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::{Path, PathBuf};

/// How a command of the docs is checked.
#[derive(Clone, Copy, Debug)]
enum Check {
    /// This file runs it, or calls the same with other names; the file contains this text.
    Test(&'static str, &'static str),
    /// No test runs it, and why.
    NotHere(&'static str),
}

use Check::{NotHere, Test};

const QUICK_START: &str = "e2e/tests/quick_start.rs";
const COMPOSE: &str = "e2e/tests/compose_up.rs";
const HELM: &str = "e2e/cluster/tests/together/helm.rs";
const PIPELINE: &str = "e2e/cluster/tests/together/pipeline.rs";
const LETTERS: &str = "processor/tests/dead_letters.rs";
const RESYNC: &str = "processor/tests/resync.rs";
const CI: &str = ".ci/run";
const ACCOUNT: &str = "it needs a Cloudflare account";

/// What each command begins with, in the order in which they are tried.
const COMMANDS: &[(&str, Check)] = &[
    ("cargo xtask up", Test("testkit/src/up.rs", "\"up\"")),
    ("cargo xtask test", Test(CI, "cargo xtask test")),
    ("cargo xtask e2e", Test(CI, "cargo xtask e2e")),
    ("cargo xtask compose-test", Test("xtask/src/e2e.rs", "compose")),
    ("cargo xtask soak", Test("processor/tests/histories.rs", "TASKPIPELINE_HISTORIES")),
    ("cargo xtask variants", Test("xtask/src/variants.rs", "every_variant_still_applies")),
    ("cargo xtask generate", Test("xtask/src/test.rs", "generate::check")),
    ("cargo xtask deny", Test("xtask/src/test.rs", "deny::check")),
    ("cargo xtask prose", Test("xtask/src/test.rs", "prose::check")),
    (
        "cargo xtask image",
        Test("e2e/cluster/tests/together/image.rs", "the_dockerfiles_images_run_as_nobody"),
    ),
    ("cargo xtask bench", NotHere("a benchmark is not a test; it takes up to two hours")),
    ("cargo xtask sim", Test("simulator/tests/faults.rs", "control_url")),
    ("cargo xtask tools", Test("xtask/src/test.rs", "everything(shop)")),
    (
        "cargo xtask cluster",
        NotHere("it keeps a cluster for trying things by hand; e2e starts and stops the same cluster"),
    ),
    ("eval \"$(cargo xtask cluster env)\"", NotHere("as `cargo xtask cluster`")),
    ("test=\"cargo test", Test("processor/pipeline/src/durable/simulation/mod.rs", "after_all_faults")),
    (
        "SIMULATION_HISTORIES=20000 cargo tarpaulin",
        NotHere("it needs cargo-tarpaulin and builds for ten minutes"),
    ),
    ("SIMULATION_", Test("processor/pipeline/src/durable/simulation/mod.rs", "SIMULATION_HISTORIES")),
    ("PROPTEST_CASES=", Test("contract/tests/properties.rs", "fn any_")),
    ("docker compose", Test(COMPOSE, "include_str!(\"../../README.md\")")),
    ("target/release/taskpipeline publish", Test(QUICK_START, "publish")),
    ("nats pub", Test("processor/tests/core.rs", "test-001")),
    ("cd edge", NotHere(ACCOUNT)),
    ("npm ci", NotHere(ACCOUNT)),
    ("npx wrangler", NotHere(ACCOUNT)),
    ("helm install demo", Test(HELM, "helm_install_of_the_demo")),
    ("helm install tasks", Test(HELM, "helm_install_of_the_demo")),
    ("helm -n tasks test", Test(HELM, "the pipeline works")),
    ("helm -n tasks upgrade", Test(HELM, "outlives_helm_upgrade")),
    ("helm -n tasks uninstall", Test(HELM, "uninstall_leaves_nothing")),
    ("kubectl -n tasks create secret", Test(PIPELINE, "a_pipeline_and_its_secret_get_ready")),
    ("kubectl -n tasks patch secret", Test(PIPELINE, "a_rotated_token_rolls_the_pods")),
    ("kubectl -n tasks delete secret", Test(HELM, "nats_logins_rotated_as_the_docs_say")),
    ("kubectl -n tasks rollout restart", Test(HELM, "nats_logins_rotated_as_the_docs_say")),
    (
        "kubectl -n shop rollout restart",
        Test("e2e/cluster/tests/upgrade.rs", "producers_get_accounts_of_their_own"),
    ),
    ("kubectl -n tasks rollout status", Test(PIPELINE, "a_rotated_token_rolls_the_pods")),
    ("kubectl scale", Test(HELM, "scaled_to_5_and_back_under_load")),
    ("kubectl patch tp", Test(HELM, "a_patch_is_live")),
    ("kubectl -n tasks patch tp", Test(PIPELINE, "a_patch_of_the_delays_reaches_an_attempt")),
    ("kubectl -n tasks get", Test("e2e/cluster/src/pipeline.rs", "conditions")),
    ("kubectl --namespace demo get", Test(HELM, "helm_install_of_the_demo")),
    (
        "kubectl -n tasks exec deploy/tasks-processor -- /taskpipeline dead-letters",
        Test(LETTERS, "letters_are_dropped"),
    ),
    (
        "kubectl -n tasks exec deploy/tasks-processor -- /taskpipeline resync",
        Test("e2e/cluster/tests/together/restore.rs", "resync"),
    ),
    ("taskpipeline dead-letters list", Test(LETTERS, "\"list\"")),
    ("taskpipeline dead-letters show", Test(LETTERS, "an_invalid_event_is_shown")),
    ("taskpipeline dead-letters replay", Test(LETTERS, "letters_of_one_task_are_replayed")),
    ("taskpipeline dead-letters drop", Test(LETTERS, "letters_are_dropped_by_name")),
    ("taskpipeline resync", Test(RESYNC, "--repair")),
    ("curl", Test("simulator/tests/faults.rs", "control_url")),
];

/// The commands in the blocks of shell of a document, a command in each line.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(|block| {
        let joined = block.replace("\\\n", " ");
        joined
            .lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned())
            .collect::<Vec<_>>()
    });
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn every_command_of_the_docs_is_run_by_a_test_or_listed_as_one_that_cannot_be() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files: Vec<PathBuf> = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    files.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let is_prose = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "md");
    let (mut count, mut unknown, mut used) = (0, Vec::new(), vec![0; COMMANDS.len()]);
    for file in files.iter().filter(|file| is_prose(file)) {
        for command in commands(&std::fs::read_to_string(file).unwrap()) {
            count += 1;
            match COMMANDS.iter().position(|(begins, _)| command.starts_with(begins)) {
                Some(place) => used[place] += 1,
                None => unknown.push(format!("{}: {command}", file.display())),
            }
        }
    }
    let not_here = COMMANDS.iter().zip(&used).filter(|((_, check), _)| matches!(check, NotHere(_)));
    let not_here: usize = not_here.map(|(_, used)| used).sum();
    println!("{count} commands in the docs, {} run by tests, {not_here} that no test runs", count - not_here);
    assert!(count > 80, "the commands were not found");
    assert!(unknown.is_empty(), "no test is named for:\n{}", unknown.join("\n"));
    for ((begins, check), used) in COMMANDS.iter().zip(used) {
        match check {
            // Those that no document has any more.
            Test(..) | NotHere(_) if used == 0 => {
                panic!("no document has {begins:?}")
            }
            Test(file, text) => {
                let source = std::fs::read_to_string(root.join(file))
                    .unwrap_or_else(|error| panic!("{file}: {error}"));
                assert!(source.contains(text), "{begins:?}: {file} has no {text:?}");
            }
            NotHere(why) => assert!(!why.is_empty()),
        }
    }
}
