//! NATS' volume is restored from a snapshot, as docs/operations.md describes.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{
    Chart, Ended, Namespace, PROCESSORS, Release, condition, copy_volume, create, delete_volume, eventually,
    exec, forward, log_in, present, ready,
};
use taskpipeline_operator::api::TaskPipeline;

const SOON: Duration = Duration::from_secs(60);
const SERVERS: &str = "app.kubernetes.io/component=nats-server";
/// The claim of the only server.
const CLAIM: &str = "data-demo-nats-0";
/// The number of tasks with each fate.
const EACH: u32 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn nats_restored_from_a_snapshot_as_the_docs_say_goes_on_and_what_came_between_is_named_and_mended() {
    let release = Release::install("restore", &Chart::current(), &[]).await.unwrap();
    let (namespace, kv) = (&release.namespace, &release.kv);
    let event = |data: Value| json!({"correlationId": "e2e", "data": data}).to_string();
    let update = |id: &str, title: &str| ("tasks.updated", event(json!({"id": id, "title": title})));
    let mut before = Vec::new();
    for task in 0..EACH {
        for fate in ["kept", "changed", "removed", "again"] {
            before.push(("tasks.created", create(&format!("{fate}-{task}"))));
        }
    }
    publish(namespace, &before).await;
    for fate in ["kept", "changed", "removed", "again"] {
        kv.has_all(fate, EACH, SOON).await.unwrap();
    }

    stop(namespace).await;
    let files = copy_volume(namespace, CLAIM, "snapshot").await.unwrap();
    start(namespace).await;

    // The snapshot does not have these events. The stream will use their sequences a second time.
    let mut between = Vec::new();
    for task in 0..EACH {
        between.push(update(&format!("changed-{task}"), "Between"));
        between.push(update(&format!("again-{task}"), "Between"));
        between.push(("tasks.deleted", event(json!({"id": format!("removed-{task}")}))));
        between.push(("tasks.created", create(&format!("orphan-{task}"))));
    }
    publish(namespace, &between).await;
    kv.has_all("orphan", EACH, SOON).await.unwrap();
    kv.has_all("removed", 0, SOON).await.unwrap();
    titled(&release, &["changed", "again"], "Between").await;

    stop(namespace).await;
    delete_volume(namespace, CLAIM).await.unwrap();
    copy_volume(namespace, "snapshot", CLAIM).await.unwrap();
    start(namespace).await;

    // Producers publish again the events that they still have, and new ones.
    let mut after = Vec::new();
    for task in 0..EACH {
        after.push(update(&format!("again-{task}"), "After"));
        after.push(("tasks.created", create(&format!("new-{task}"))));
    }
    publish(namespace, &after).await;
    kv.has_all("new", EACH, SOON).await.unwrap();
    titled(&release, &["again"], "After").await;

    let verified = resync(namespace, &["--verify", "--json"]).await;
    let report: Value = serde_json::from_str(&verified.out).expect(&verified.err);
    let named = |class: &str| report[class].as_array().map_or(0, Vec::len);
    println!(
        "restored a snapshot of {files} files; of the events after it, KV has {} stale, {} missing, {} unmanaged",
        named("stale"),
        named("missing"),
        named("unmanaged")
    );
    assert!(!verified.well, "{verified:?}");
    let expected =
        json!({"stale": ids("changed"), "missing": ids("removed"), "unmanaged": ids("orphan"), "extra": []});
    for (class, ids) in expected.as_object().unwrap() {
        assert_eq!(&report[class], ids, "{class}");
    }

    let mended = resync(namespace, &["--verify", "--repair", "--delete-unmanaged"]).await;
    kv.has_all("orphan", 0, SOON).await.unwrap();
    for fate in ["kept", "changed", "removed", "again", "new"] {
        kv.has_all(fate, EACH, SOON).await.unwrap();
    }
    titled(&release, &["again"], "After").await;
    for task in 0..EACH {
        let id = format!("changed-{task}");
        assert_eq!(kv.task(&id).await.unwrap()["title"], format!("Task {id}"), "{mended:?}");
    }
    let verified = resync(namespace, &["--verify", "--values"]).await;
    println!("{}{}", mended.out, verified.out);
    assert!(verified.well, "{verified:?}");
}

/// The ids of the tasks with a fate, in the order of a report.
fn ids(fate: &str) -> Vec<String> {
    let mut ids: Vec<_> = (0..EACH).map(|task| format!("{fate}-{task}")).collect();
    ids.sort();
    ids
}

/// Publishes events with the producer's login, until the stream has acknowledged each.
async fn publish(namespace: &Namespace, events: &[(&'static str, String)]) {
    let nats = forward(namespace, "nats-server", 4222).await.unwrap();
    let producer = jetstream::new(log_in(namespace, &nats, "producer").await.unwrap());
    for (subject, event) in events {
        producer.publish(*subject, event.clone().into()).await.unwrap().await.unwrap();
    }
}

/// Waits until all tasks with these fates have this title in KV.
async fn titled(release: &Release, fates: &[&str], title: &str) {
    eventually(SOON, async || {
        for id in fates.iter().flat_map(|fate| ids(fate)) {
            let task = release.kv.task(&id).await?;
            ensure!(task["title"] == title, "{id} is {task}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// Suspends the pipeline, and then stops nats-server.
async fn stop(namespace: &Namespace) {
    suspend(namespace, true).await;
    gone(namespace, PROCESSORS).await;
    servers(namespace, 0).await;
    gone(namespace, SERVERS).await;
}

/// Starts nats-server, and continues the pipeline.
async fn start(namespace: &Namespace) {
    servers(namespace, 1).await;
    suspend(namespace, false).await;
    eventually(SOON, async || {
        ready(namespace, SERVERS, 1).await?;
        ready(namespace, PROCESSORS, 2).await?;
        condition(namespace, "Ready", "True").await
    })
    .await
    .unwrap();
}

async fn suspend(namespace: &Namespace, suspend: bool) {
    let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
    let pipelines = namespace.api::<TaskPipeline>();
    pipelines.patch("tasks", &PatchParams::default(), &patch).await.unwrap();
}

async fn servers(namespace: &Namespace, replicas: u32) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let sets = namespace.api::<StatefulSet>();
    sets.patch_scale("demo-nats", &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until none of these pods exists any more.
async fn gone(namespace: &Namespace, label: &str) {
    eventually(SOON, async || {
        let pods = present(namespace, label).await?;
        let left: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
        ensure!(left.is_empty(), "still running: {}", left.join(", "));
        Ok(())
    })
    .await
    .unwrap();
}

/// Runs `taskpipeline resync` in a replica's pod. It succeeds if KV equals the ledger. KV never returns old values
/// here, so the command does not wait.
async fn resync(namespace: &Namespace, arguments: &[&str]) -> Ended {
    let pod = ready(namespace, PROCESSORS, 2).await.unwrap()[0].name_any();
    let command = [&["/taskpipeline", "resync", "--recheck-after", "2s"], arguments].concat();
    exec(namespace, &pod, &command).await.unwrap()
}
