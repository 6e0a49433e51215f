//! Two KV namespaces on one ledger: at the same time, and one after the other.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use taskpipeline_simulator::{Config, Fault, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, store};

const TASKS: usize = 300;
const SOON: Duration = Duration::from_secs(30);

async fn fast_kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv)
        .set("RUST_LOG", "warn")
        .set("REQUEST_BUDGET", "1000000/5m")
        .set("MIN_WRITE_INTERVAL", "50ms")
        .set("RETRY_DELAYS", "100ms,200ms")
        .set("SETTLE_AFTER", "2s")
        .set("REQUEST_TIMEOUT", "500ms")
}

async fn create(nats: &NatsServer) {
    let client = nats.client().await.unwrap();
    store(&client, (0..TASKS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
}

async fn delete(nats: &NatsServer) {
    let deleted = |n| json!({"correlationId": "c", "data": {"id": format!("task-{n}")}});
    let client = nats.client().await.unwrap();
    store(&client, (0..TASKS).map(|n| ("deleted", deleted(n)))).await.unwrap();
}

async fn has(kv: &Simulator, tasks: usize) {
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(there == tasks, "{there} tasks in KV, not {tasks}");
        Ok(())
    })
    .await
    .unwrap();
}

/// The number of task records in the ledger.
async fn records(nats: &NatsServer) -> anyhow::Result<usize> {
    use futures_util::TryStreamExt;

    let jetstream = async_nats::jetstream::new(nats.client().await?);
    let ledger = jetstream.get_stream("KV_TASKS--tasks-processor").await?;
    let subjects = ledger.info_with_subjects("$KV.TASKS--tasks-processor.task.>").await?;
    Ok(subjects.try_collect::<Vec<_>>().await?.len())
}

/// The number of records with a time to live.
async fn expiring(nats: &NatsServer) -> anyhow::Result<usize> {
    use futures_util::TryStreamExt;

    let jetstream = async_nats::jetstream::new(nats.client().await?);
    let ledger = jetstream.get_stream("KV_TASKS--tasks-processor").await?;
    let subjects = ledger.info_with_subjects("$KV.TASKS--tasks-processor.task.>").await?;
    let mut expiring = 0;
    for (subject, _) in subjects.try_collect::<Vec<_>>().await? {
        let message = ledger.get_last_raw_message_by_subject(&subject).await?;
        expiring += usize::from(message.headers.get("Nats-TTL").is_some());
    }
    Ok(expiring)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_one_namespaces_projector_let_expire_are_deleted_from_the_other_that_was_away_too() {
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let _first = Processor::start(&options(&nats, &one)).await.unwrap();
    let _second = Processor::start(&options(&nats, &two)).await.unwrap();
    create(&nats).await;
    has(&one, TASKS).await;
    has(&two, TASKS).await;
    two.inject(Rule::new(Fault::status(503)).on(Scope::Writes).named("away"));
    delete(&nats).await;
    has(&one, 0).await;
    eventually(SOON, async || {
        let expiring = expiring(&nats).await?;
        ensure!(expiring == TASKS, "{expiring} of {TASKS} records have a time to live");
        Ok(())
    })
    .await
    .unwrap();
    let refused = two.seen().fault("away");
    two.remove_faults("away");
    // Neither projector writes records again that both have settled.
    let waited = eventually(SOON, async || {
        let there = two.keys().len();
        ensure!(there == 0, "{there} deleted tasks are still in the second KV");
        Ok(())
    });
    let waited = waited.await;
    let left = (one.keys().len(), two.keys().len());
    let revision = newest(&nats).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let writes = newest(&nats).await - revision;
    println!(
        "{TASKS} tasks deleted while the second KV refused {refused} requests: {} and {} are left; {writes} writes \
         to the ledger in the 4 s after",
        left.0, left.1
    );
    assert!(refused > 0, "the second KV was not down");
    waited.unwrap();
    // Two holders renew their control records once a second.
    assert!(writes <= 14, "the two projectors write the same records in turn");
}

/// The ledger's newest revision.
async fn newest(nats: &NatsServer) -> u64 {
    let jetstream = async_nats::jetstream::new(nats.client().await.unwrap());
    let ledger = jetstream.get_stream("KV_TASKS--tasks-processor").await.unwrap();
    ledger.cached_info().state.last_sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_were_deleted_while_another_namespace_was_in_use_are_gone_when_the_first_is_again() {
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let mut replica = Processor::start(&options(&nats, &one)).await.unwrap();
    create(&nats).await;
    has(&one, TASKS).await;
    replica.terminate(SOON).await.unwrap();
    // Two rounds, so that both namespaces reach their second term.
    for round in 0..2 {
        replica = Processor::start(&options(&nats, &two)).await.unwrap();
        has(&two, TASKS).await;
        if round == 0 {
            replica.terminate(SOON).await.unwrap();
        }
    }
    delete(&nats).await;
    has(&two, 0).await;
    eventually(SOON, async || {
        let expiring = expiring(&nats).await?;
        ensure!(expiring == TASKS, "{expiring} of {TASKS} records have a time to live");
        Ok(())
    })
    .await
    .unwrap();
    replica.terminate(SOON).await.unwrap();
    let before = one.keys().len();
    replica = Processor::start(&options(&nats, &one)).await.unwrap();
    let waited = eventually(SOON, async || {
        let there = one.keys().len();
        ensure!(there == 0, "{there} of {before} deleted tasks are still in the first KV");
        Ok(())
    });
    let waited = waited.await;
    println!(
        "{before} tasks in the first KV, all deleted while the second was in use: {} left",
        one.keys().len()
    );
    assert_eq!(before, TASKS, "nothing was left to be deleted");
    waited.unwrap();
    replica.terminate(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_settled_in_the_second_namespace_outlives_what_the_first_one_may_rely_on() {
    // Events live for 4 s, and tombstones for 5 s, or for 10 s if another namespace may need them.
    let short = |kv: &Simulator, nats: &NatsServer| options(nats, kv).set("STREAM_MAX_AGE", "4s");
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let mut replica = Processor::start(&short(&one, &nats)).await.unwrap();
    create(&nats).await;
    has(&one, TASKS).await;
    replica.terminate(SOON).await.unwrap();
    let left = std::time::Instant::now();
    replica = Processor::start(&short(&two, &nats)).await.unwrap();
    has(&two, TASKS).await;
    delete(&nats).await;
    has(&two, 0).await;
    let deleted = std::time::Instant::now();
    replica.terminate(SOON).await.unwrap();
    // It is back in time to keep its position, but reaches the deletes only when they would have expired.
    one.inject(Rule::new(Fault::status(503)).named("away"));
    let away = left.elapsed();
    let mut stopped = Processor::spawn(&short(&one, &nats).stopping_at("took-over", 1)).unwrap();
    eventually(SOON, async || {
        ensure!(stopped.process().is_stopped().await?, "not there yet");
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(5_600).saturating_sub(deleted.elapsed())).await;
    let age = deleted.elapsed();
    let there = records(&nats).await.unwrap();
    stopped.process().signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    one.remove_faults("away");
    let waited = eventually(SOON, async || {
        let there = one.keys().len();
        ensure!(there == 0, "{there} deleted tasks are still in the first KV");
        Ok(())
    });
    let waited = waited.await;
    let noticed =
        stopped.process().lines().iter().filter(|line| line.contains("writing all tasks again")).count();
    println!(
        "{TASKS} tasks deleted {age:.1?} ago in the second namespace, {there} records left; the first one, back after \
         {away:.1?}, still has {} (noticed that it may have missed some: {noticed} times)",
        one.keys().len()
    );
    assert!(age > Duration::from_secs(5), "they would not have been forgotten");
    waited.unwrap();
    stopped.terminate(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_was_out_of_use_for_longer_than_deletes_are_remembered_says_so() {
    let short = |kv: &Simulator, nats: &NatsServer| options(nats, kv).set("STREAM_MAX_AGE", "3s");
    let nats = NatsServer::start().await.unwrap();
    let (one, two) = (fast_kv().await, fast_kv().await);
    let mut replica = Processor::start(&short(&one, &nats)).await.unwrap();
    create(&nats).await;
    has(&one, TASKS).await;
    replica.terminate(SOON).await.unwrap();
    replica = Processor::start(&short(&two, &nats)).await.unwrap();
    has(&two, TASKS).await;
    delete(&nats).await;
    has(&two, 0).await;
    eventually(SOON, async || {
        let there = records(&nats).await?;
        ensure!(there == 0, "{there} deletes are still remembered");
        Ok(())
    })
    .await
    .unwrap();
    replica.terminate(SOON).await.unwrap();
    replica = Processor::start(&short(&one, &nats)).await.unwrap();
    eventually(SOON, async || {
        let said = replica.process().lines().iter().any(|line| line.contains("resync --verify"));
        ensure!(said, "the log has no warning");
        Ok(())
    })
    .await
    .unwrap();
    println!("{} deleted tasks are left in the first KV, and the log says what to do", one.keys().len());
    replica.terminate(SOON).await.unwrap();
}
