//! `taskpipeline resync`: restores a lost namespace, reports and repairs differences, and stays within the request budget.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, LoggedRequest, Operation, RateLimit, Rule, Scope, Simulator};
use taskpipeline_testkit::{
    NatsServer, Process, Processor, ProcessorOptions, created, eventually, http, publish, publish_creates,
    store, stored_task,
};

const SOON: Duration = Duration::from_secs(20);

async fn simulator() -> Simulator {
    Simulator::start(Config::default()).await.unwrap()
}

/// A replica's settings, with times that fit a test.
fn options(nats: &NatsServer, kv: &Simulator) -> ProcessorOptions {
    ProcessorOptions::new(nats, kv)
        .set("SETTLE_AFTER", "3s")
        .set("MIN_WRITE_INTERVAL", "50ms")
        .set("RUST_LOG", "warn")
}

/// Creates a ledger of this many tasks, `task-0` and so on, all of them in KV, and returns the replica.
async fn replica_with(
    options: &ProcessorOptions,
    nats: &NatsServer,
    kv: &Simulator,
    tasks: u32,
) -> Processor {
    let replica = Processor::start(options).await.unwrap();
    publish_creates(&nats.client().await.unwrap(), tasks).await.unwrap();
    all_are_there(kv, tasks).await;
    replica
}

async fn all_are_there(kv: &Simulator, tasks: u32) {
    eventually(SOON, async || {
        let count = kv.keys().len();
        ensure!(count == tasks as usize, "{count} of {tasks} tasks are in KV");
        Ok(())
    })
    .await
    .unwrap();
}

async fn resync(options: &ProcessorOptions, arguments: &[&str]) -> Output {
    let arguments = [&["resync"], arguments].concat();
    let output = options.command(&arguments).unwrap().kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(90), output).await.unwrap().unwrap();
    println!("{arguments:?}: {}\n{}{}", output.status, text(&output.stderr), text(&output.stdout));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends the simulator a request as any other client of the namespace would.
async fn call(kv: &Simulator, method: reqwest::Method, path: &str, body: &Value) {
    let Config { account, namespace, token, .. } = kv.config();
    let url = format!("{}/accounts/{account}/storage/kv/namespaces/{namespace}/{path}", kv.base_url());
    let request = http().request(method, url).bearer_auth(token).body(body.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

async fn delete(kv: &Simulator, keys: &[impl AsRef<str>]) {
    let keys: Vec<_> = keys.iter().map(AsRef::as_ref).collect();
    call(kv, reqwest::Method::POST, "bulk/delete", &json!(keys)).await;
}

async fn put(kv: &Simulator, key: &str, value: &Value, metadata: &Value) {
    let pair = json!([{"key": key, "value": value.to_string(), "metadata": metadata}]);
    call(kv, reqwest::Method::PUT, "bulk", &pair).await;
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names<'a>(report: &'a Value, class: &str) -> BTreeSet<&'a str> {
    report[class].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_namespace_is_whole_again_with_a_live_replica() {
    const TASKS: u32 = 500;
    let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
    let options = options(&nats, &kv);
    let mut replica = replica_with(&options, &nats, &kv, TASKS).await;
    delete(&kv, &kv.keys()).await;
    assert!(kv.keys().is_empty());

    let done = resync(&options, &[]).await;
    assert!(done.status.success());
    assert!(text(&done.stderr).contains("a live replica writes to KV"));
    assert_eq!(kv.keys().len(), TASKS as usize);
    assert_eq!(stored_task(&kv, "task-7").unwrap()["title"], "Task task-7");
    assert!(replica.is_running().unwrap());
    let verified = resync(&options, &["--verify", "--values"]).await;
    assert_eq!(verified.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_namespace_is_whole_again_without_any_replica() {
    const TASKS: u32 = 500;
    let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
    let options = options(&nats, &kv);
    let mut replica = replica_with(&options, &nats, &kv, TASKS).await;
    // Wait until everything is settled, so that nothing is in doubt.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(replica.terminate(SOON).await.unwrap().success());
    delete(&kv, &kv.keys()).await;

    let before = kv.seen().keys_put;
    let done = resync(&options, &[]).await;
    assert!(done.status.success());
    assert!(text(&done.stderr).contains("no replica is alive"));
    assert_eq!(kv.keys().len(), TASKS as usize);
    assert_eq!(kv.seen().keys_put - before, u64::from(TASKS), "each is written once: nothing was in doubt");
    // The resync is complete: another one does not continue it, but writes everything again.
    let again = resync(&options, &[]).await;
    assert!(again.status.success() && !text(&again.stderr).contains("continuing the resync"));
    assert_eq!(kv.seen().keys_put - before, 2 * u64::from(TASKS));

    // A namespace that was never written.
    let other =
        Simulator::start(Config { namespace: "other".to_owned(), ..Config::default() }).await.unwrap();
    let options = self::options(&nats, &other);
    let lacking = resync(&options, &["--verify", "--json", "--recheck-after", "0s"]).await;
    assert_eq!(lacking.status.code(), Some(2));
    assert_eq!(
        names(&report(&lacking), "missing").len(),
        TASKS as usize,
        "no replica is about to write them"
    );
    assert!(resync(&options, &[]).await.status.success());
    assert_eq!(other.keys(), kv.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_half_way_it_goes_on_where_it_stopped() {
    const TASKS: u32 = 3_000;
    let (nats, first) = (NatsServer::start().await.unwrap(), simulator().await);
    let mut replica = replica_with(&options(&nats, &first), &nats, &first, TASKS).await;
    assert!(replica.terminate(SOON).await.unwrap().success());

    let kv = Simulator::start(Config { namespace: "new".to_owned(), ..Config::default() }).await.unwrap();
    let options = options(&nats, &kv).set("BATCH_MAX_KEYS", "50").set("REQUEST_BUDGET", "100/10s");
    let mut command = options.command(&["resync"]).unwrap();
    let mut interrupted = Process::spawn("resync", &mut command).unwrap();
    eventually(SOON, async || {
        ensure!(kv.keys().len() > TASKS as usize / 3, "not half way");
        Ok(())
    })
    .await
    .unwrap();
    interrupted.signal(Signal::SIGINT).unwrap();
    let status = interrupted.wait(SOON).await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", interrupted.tail());
    assert!(interrupted.lines().iter().any(|line| line.contains("continues from there")));
    let half = kv.seen().keys_put;
    assert!(half < u64::from(TASKS), "interrupted after all was written: the test proves nothing");

    let done = resync(&options, &[]).await;
    assert!(done.status.success());
    assert!(text(&done.stderr).contains("continuing the resync started"));
    assert_eq!(kv.keys(), first.keys());
    let written = kv.seen().keys_put;
    println!("{half} keys were written before the signal, {written} for {TASKS} tasks in total");
    assert!(written < u64::from(TASKS) + 500, "{written} keys were written");
}

/// Five hundred tasks in the ledger, and KV with every kind of difference from them.
struct Planted {
    _nats: NatsServer,
    kv: Simulator,
    options: ProcessorOptions,
    replica: Processor,
}

impl Planted {
    const TASKS: u32 = 500;

    async fn new() -> Self {
        let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
        let options = options(&nats, &kv);
        let replica = replica_with(&options, &nats, &kv, Self::TASKS).await;
        let client = nats.client().await.unwrap();
        let old = kv.get("tasks:task-2").unwrap();
        for id in ["task-0", "task-1"] {
            publish(&client, "deleted", &json!({"correlationId": "d", "data": {"id": id}})).await.unwrap();
        }
        let update = json!({"correlationId": "u", "data": {"id": "task-2", "title": "Newer"}});
        publish(&client, "updated", &update).await.unwrap();
        eventually(SOON, async || {
            ensure!(kv.keys().len() == Self::TASKS as usize - 2, "not deleted yet");
            ensure!(stored_task(&kv, "task-2").unwrap()["title"] == "Newer", "not updated yet");
            Ok(())
        })
        .await
        .unwrap();
        // Wait until the projector has recorded that everything is settled.
        tokio::time::sleep(Duration::from_secs(3)).await;

        let (value, metadata) = (serde_json::from_slice(&old.value).unwrap(), old.metadata.unwrap());
        delete(&kv, &["tasks:task-10", "tasks:task-11"]).await;
        put(&kv, "tasks:task-2", &value, &metadata).await;
        // The list does not show this difference.
        let hidden = kv.get("tasks:task-20").unwrap();
        let mut other: Value = serde_json::from_slice(&hidden.value).unwrap();
        other["description"] = json!("not the ledger's");
        put(&kv, "tasks:task-20", &other, &hidden.metadata.unwrap()).await;
        put(&kv, "tasks:task-1", &value, &metadata).await;
        for stranger in ["tasks:known only to KV", "tasks:élan/1"] {
            put(&kv, stranger, &value, &metadata).await;
        }
        Self { _nats: nats, kv, options, replica }
    }

    async fn resync(&self, arguments: &[&str]) -> Output {
        resync(&self.options, &[arguments, &["--recheck-after", "100ms"]].concat()).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_exactly_what_differs() {
    let planted = Planted::new().await;
    let writes = || {
        let seen = planted.kv.seen();
        (seen.keys_put, seen.keys_deleted)
    };
    let before = writes();
    let found = planted.resync(&["--verify", "--json"]).await;
    assert_eq!(found.status.code(), Some(2));
    let found = report(&found);
    assert_eq!(names(&found, "missing"), ["task-10", "task-11"].into());
    assert_eq!(names(&found, "stale"), ["task-2"].into());
    assert_eq!(names(&found, "extra"), ["task-1"].into());
    assert_eq!(names(&found, "unmanaged"), ["known only to KV", "élan/1"].into());
    assert_eq!((&found["notTasks"], &found["pending"]), (&json!([]), &json!(0)));
    assert_eq!(found["ledgerTasks"], json!(Planted::TASKS - 2));

    planted.kv.seed("tasks:", "an empty id");
    let found = report(&planted.resync(&["--verify", "--json", "--values"]).await);
    assert_eq!(names(&found, "stale"), ["task-2", "task-20"].into(), "values show more");
    assert_eq!(names(&found, "notTasks"), ["tasks:"].into());
    let text = text(&planted.resync(&["--verify"]).await.stdout);
    assert!(text.contains("missing: 2\n  \"tasks:task-10\"\n"), "{text}");
    assert_eq!(writes(), before, "it writes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_does_not_take_for_a_difference_what_is_just_changing() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
    let options = options(&nats, &kv);
    let _replica = replica_with(&options, &nats, &kv, 100).await;
    let client = nats.client().await.unwrap();
    let changing = tokio::spawn(async move {
        for n in 0_u32.. {
            let (id, title) = (format!("task-{}", n % 100), format!("Title {n}"));
            let event = json!({"correlationId": "u", "data": {"id": id, "title": title}});
            publish(&client, "updated", &event).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    for _ in 0..3 {
        let verified = resync(&options, &["--verify", "--json", "--recheck-after", "500ms"]).await;
        assert_eq!(verified.status.code(), Some(0));
    }
    changing.abort();
    let looked_again = kv.requests().iter().filter(|request| request.operation == Operation::BulkGet).count();
    assert!(looked_again > 0, "nothing differed at the first look: the test proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tries_again_what_fails_and_believes_no_single_answer() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
    let options = options(&nats, &kv).set("RETRY_DELAYS", "100ms");
    let _replica = replica_with(&options, &nats, &kv, 300).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reads = |fault| Rule::new(fault).on(Scope::Reads);
    kv.set_faults([
        reads(Fault::Throttled { retry_after: Duration::from_secs(2) }).times(1),
        reads(Fault::status(503)).times(2),
        // KV answers as if nothing had ever been written.
        reads(Fault::Stale { age: Duration::from_secs(3_600) }).times(1),
    ]);
    let verified = resync(&options, &["--verify", "--json", "--recheck-after", "100ms"]).await;
    assert_eq!(verified.status.code(), Some(0));
    assert!(kv.faults().is_empty(), "{:?}", kv.faults());
    let requests = kv.requests();
    let refused = requests.iter().position(|request| request.answered == Some(429)).unwrap();
    let waited = requests[refused + 1].at - requests[refused].at;
    assert!(waited >= Duration::from_secs(2), "{waited:?} after a 429 that asked for 2 s");

    kv.set_faults([Rule::new(Fault::RevokedToken)]);
    let refused = resync(&options, &["--verify"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains("CF_API_TOKEN"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_mends_all_but_the_unmanaged_which_go_when_told_to() {
    let mut planted = Planted::new().await;
    let repaired = planted.resync(&["--repair", "--values", "--json"]).await;
    assert_eq!(repaired.status.code(), Some(2), "what only KV knows is left");
    let found = report(&repaired);
    assert_eq!(found["repaired"], json!(5));
    for class in ["missing", "stale", "extra"] {
        assert!(names(&found, class).is_empty(), "{found}");
    }
    assert_eq!(names(&found, "unmanaged"), ["known only to KV", "élan/1"].into());
    let kv = &planted.kv;
    assert_eq!(stored_task(kv, "task-2").unwrap()["title"], "Newer");
    assert_eq!(stored_task(kv, "task-20").unwrap()["description"], "");
    assert!(stored_task(kv, "task-10").is_some() && kv.get("tasks:task-1").is_none());

    // The comparison also works without a replica.
    assert!(planted.replica.terminate(SOON).await.unwrap().success());
    let gone = planted.resync(&["--delete-unmanaged"]).await;
    assert_eq!(gone.status.code(), Some(0));
    let kv = &planted.kv;
    assert!(kv.get("tasks:known only to KV").is_none() && kv.get("tasks:élan/1").is_none());
    assert_eq!(kv.keys().len(), Planted::TASKS as usize - 2);
    assert_eq!(planted.resync(&["--verify", "--values"]).await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_within_the_request_budget() {
    const TASKS: u32 = 4_000;
    const BUDGET: RateLimit =
        RateLimit { requests: 60, period: Duration::from_secs(10), ..RateLimit::CLOUDFLARE };
    let (nats, first) = (NatsServer::start().await.unwrap(), simulator().await);
    let mut replica = replica_with(&options(&nats, &first), &nats, &first, TASKS).await;
    assert!(replica.terminate(SOON).await.unwrap().success());

    let config = Config { namespace: "new".to_owned(), rate_limit: Some(BUDGET), ..Config::default() };
    let kv = Simulator::start(config).await.unwrap();
    let options = options(&nats, &kv).set("BATCH_MAX_KEYS", "40").set("REQUEST_BUDGET", "60/10s");
    // One process reads, writes, and reads again.
    let repaired = resync(&options, &["--repair", "--recheck-after", "100ms"]).await;
    assert_eq!(repaired.status.code(), Some(0));
    assert_eq!(kv.keys(), first.keys());
    let seen = kv.seen();
    println!("{seen:?}");
    assert!(seen.total_requests() > 100, "more than one window's worth");
    assert_eq!(seen.throttled, 0);
    assert!(seen.most_in_sliding_window <= BUDGET.requests, "{} in a window", seen.most_in_sliding_window);
    assert!(kv.requests().iter().any(|request| request.operation == Operation::List));
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_busy_pipeline_it_keeps_within_the_one_budget_of_both() {
    const TASKS: u32 = 1_000;
    const BUDGET: RateLimit =
        RateLimit { requests: 60, period: Duration::from_secs(10), ..RateLimit::CLOUDFLARE };
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config { rate_limit: Some(BUDGET), ..Config::default() }).await.unwrap();
    let options = options(&nats, &kv).set("BATCH_MAX_KEYS", "40").set("REQUEST_BUDGET", "60/10s");
    let _replica = replica_with(&options, &nats, &kv, TASKS).await;
    // The pipeline has work for as long as the comparison takes.
    let events = (0..5 * TASKS / 2).map(|n| ("created", created(&format!("more-{n}"))));
    store(&nats.client().await.unwrap(), events).await.unwrap();
    let before = kv.requests().len();
    let verified = resync(&options, &["--verify", "--values", "--recheck-after", "100ms"]).await;
    println!("{}", text(&verified.stderr));
    let during = kv.requests().split_off(before);
    let is_read = |one: &&LoggedRequest| matches!(one.operation, Operation::List | Operation::BulkGet);
    let reads = during.iter().filter(is_read).count();
    let seen = kv.seen();
    println!("{reads} reads and {} writes meanwhile; {seen:?}", during.len() - reads);
    assert!(reads >= 12, "{reads}");
    assert!(during.len() - reads >= 30, "the pipeline was not busy");
    assert_eq!(seen.throttled, 0);
    assert!(seen.most_in_sliding_window <= BUDGET.requests, "{} in a window", seen.most_in_sliding_window);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_ledger_it_says_what_to_look_at_and_makes_none() {
    let (nats, kv) = (NatsServer::start().await.unwrap(), simulator().await);
    let refused = resync(&options(&nats, &kv), &[]).await;
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains("KV_TASKS--tasks-processor") && error.contains("STREAM_NAME"), "{error}");
    let refused = resync(&options(&nats, &kv).core(), &[]).await;
    assert!(text(&refused.stderr).contains("DELIVERY_MODE=Durable"));
    assert_eq!(kv.seen().total_requests(), 0);
}
