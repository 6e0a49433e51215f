//! A task is blamed for a refusal of KV only if other tasks in the same request were accepted.
//!
//! A wrong token, address or account never costs a task.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use async_nats::Client;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Fault, KeyMatch, Latency, Operation, Rule, Scope, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, publish, publish_creates, stored_task,
};

const SOON: Duration = Duration::from_secs(30);

/// A pipeline in mode Durable.
struct Scene {
    kv: Simulator,
    options: ProcessorOptions,
    replica: Processor,
    client: Client,
    _nats: NatsServer,
}

impl Scene {
    async fn start() -> Self {
        let nats = NatsServer::start().await.unwrap();
        let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
        let options = ProcessorOptions::new(&nats, &kv);
        let replica = Processor::start(&options).await.unwrap();
        let client = nats.client().await.unwrap();
        Self { kv, options, replica, client, _nats: nats }
    }

    /// Kills the replica and starts another in its place.
    async fn replace_replica(&mut self) {
        self.replica.kill().await.unwrap();
        self.replica = Processor::start(&self.options).await.unwrap();
    }

    async fn publish(&self, kind: &str, event: &Value) {
        publish(&self.client, kind, event).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// The state and the message of KV in `/health`.
    async fn kv_health(&self) -> anyhow::Result<(String, String)> {
        let (_, health) = self.replica.get("/health").await?;
        let kv = serde_json::from_str::<Value>(&health)?["services"]["kv"].clone();
        let text = |field: &str| kv[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("message")))
    }

    /// Waits until `/health` shows this state of KV.
    async fn wait_kv_health(&self, status: &str, part: &str) {
        eventually(SOON, async || {
            let (now, message) = self.kv_health().await?;
            ensure!(
                now == status && message.contains(part),
                "{now}: {message}\n{}",
                self.replica.process().tail()
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    async fn wait_keys(&self, wanted: usize) {
        eventually(SOON, async || {
            let there = self.kv.keys().len();
            ensure!(
                there == wanted,
                "{there} of {wanted} tasks are in KV\n{}",
                self.replica.process().tail()
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    /// The tasks of the stored dead letters.
    async fn letters(&self) -> BTreeSet<String> {
        let output =
            self.options.command(&["dead-letters", "list", "--json"]).unwrap().output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let letters: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        letters.iter().map(|letter| letter["task"].as_str().unwrap_or_default().to_owned()).collect()
    }

    async fn wait_letters(&self, wanted: &BTreeSet<String>) {
        eventually(SOON, async || {
            let letters = self.letters().await;
            ensure!(letters == *wanted, "{letters:?}\n{}", self.replica.process().tail());
            Ok(())
        })
        .await
        .unwrap();
    }

    fn befell(&self, fault: &str) -> u64 {
        let times = self.kv.seen().fault(fault);
        assert!(times > 0, "{fault} did not happen");
        times
    }
}

/// Publishes 50 creates while KV refuses everything; the replica that met the fault dies, and the next one finds KV repaired.
async fn fifty_creates_survive(fault: Fault, setting: &str) {
    let mut scene = Scene::start().await;
    let name = fault.name();
    scene.kv.inject(Rule::new(fault));
    publish_creates(&scene.client, 50).await.unwrap();
    let update = json!({"correlationId": "u", "data": {"id": "task-7", "status": "completed"}});
    scene.publish("updated", &update).await;
    eventually(SOON, async || {
        let stored = scene.replica.metric("taskpipeline_events_stored_total").await?;
        ensure!(stored == 51.0, "{stored} of 51 events are in the ledger");
        Ok(())
    })
    .await
    .unwrap();
    // The time is enough to halve 50 keys down to single ones.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (befell, letters) = (scene.befell(name), scene.letters().await.len());
    let retries = scene.replica.metric("taskpipeline_kv_key_retries_total").await.unwrap();
    println!("{name} befell {befell} requests: {letters} dead letters, {retries} attempts used");
    assert_eq!((letters, retries), (0, 0.0));
    assert!(befell <= 3, "{befell} requests");
    scene.wait_kv_health("misconfigured", setting).await;

    scene.kv.remove_faults(name);
    // A task that the control record counts as settled is not checked again.
    scene.replace_replica().await;
    scene.wait_keys(50).await;
    eventually(SOON, async || {
        let task = stored_task(&scene.kv, "task-7").unwrap();
        ensure!(task["status"] == "completed", "{task}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_creates_while_the_token_is_malformed_all_land_when_it_is_repaired() {
    fifty_creates_survive(Fault::MalformedToken, "CF_API_TOKEN").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_creates_while_a_proxy_answers_400_all_land_when_it_is_repaired() {
    fifty_creates_survive(Fault::Page { status: 400 }, "in front of Cloudflare").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_a_task_that_only_kv_knows_waits_while_look_ups_are_refused_and_is_applied_then() {
    let scene = Scene::start().await;
    let task = json!({"id": "old", "title": "Old", "description": "kept", "status": "pending",
        "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z"});
    scene.kv.seed("tasks:old", task.to_string());
    scene.kv.inject(Rule::new(Fault::status(400)).on(Scope::Reads));
    let update = json!({"correlationId": "u", "data": {"id": "old", "title": "New"}});
    scene.publish("updated", &update).await;
    // Look-ups repeat after the delays, also after more than the five refusals that end a write.
    eventually(SOON, async || {
        let refused = scene.kv.seen().fault("status");
        ensure!(refused >= 2, "{refused} look-ups were refused\n{}", scene.replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    let unknown = scene.replica.metric("taskpipeline_updates_of_unknown_tasks_total").await.unwrap();
    let (refused, letters) = (scene.befell("status"), scene.letters().await.len());
    println!("{refused} look-ups refused: {letters} dead letters, {unknown} taken for not there");
    assert_eq!((letters, unknown), (0, 0.0));
    // Creates of other tasks do not wait for it.
    publish_creates(&scene.client, 1).await.unwrap();
    scene.wait_keys(2).await;
    scene.kv.remove_faults("status");
    eventually(SOON, async || {
        let task = stored_task(&scene.kv, "old").unwrap();
        ensure!(task["title"] == "New" && task["description"] == "kept", "{task}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_1000_creates_ten_are_poison_and_only_those_become_dead_letters() {
    let mut scene = Scene::start().await;
    scene.options = scene.options.set("REQUEST_BUDGET", "100000/5m");
    let poisonous: BTreeSet<String> = (0..10).map(|n| format!("task-{}", n * 97 + 5)).collect();
    scene.kv.inject(Rule::poison("POISON", 400));
    assert!(scene.replica.terminate(SOON).await.unwrap().success());
    for n in 0..1_000 {
        let id = format!("task-{n}");
        let mut event = created(&id);
        if poisonous.contains(&id) {
            event["data"]["title"] = json!("POISON");
        }
        publish(&scene.client, "created", &event).await.unwrap();
    }
    scene.client.flush().await.unwrap();
    scene.replica = Processor::start(&scene.options).await.unwrap();
    scene.wait_letters(&poisonous).await;
    scene.wait_keys(990).await;
    let requests = scene.kv.requests().len();
    println!("poison befell {} of {requests} requests, 990 landed, 10 dead letters", scene.befell("poison"));
    assert_eq!(scene.replica.metric("taskpipeline_dead_letters_total").await.unwrap(), 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_task_is_refused_none_is_blamed_and_the_budget_is_spared() {
    let scene = Scene::start().await;
    let refusal = Fault::Status { status: 400, code: Some(10_026), message: Some("bad value".to_owned()) };
    scene.kv.inject(Rule::new(refusal).on(Scope::Writes).named("all"));
    publish_creates(&scene.client, 300).await.unwrap();
    scene.wait_kv_health("misconfigured", "every task that was tried").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (befell, letters) = (scene.befell("all"), scene.letters().await.len());
    println!("{befell} requests refused: {letters} dead letters");
    assert_eq!(letters, 0);
    assert!(befell < 60, "{befell} requests");
    scene.kv.remove_faults("all");
    scene.wait_keys(300).await;
    scene.wait_kv_health("reachable", "").await;
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_task_that_is_refused_waits_for_company_which_shows_whose_fault_it_is() {
    let scene = Scene::start().await;
    publish_creates(&scene.client, 1).await.unwrap();
    scene.wait_keys(1).await;
    scene.kv.inject(Rule::poison("POISON", 400));
    let mut event = created("bad");
    event["data"]["title"] = json!("POISON");
    scene.publish("created", &event).await;
    scene.wait_kv_health("reachable", "KV refuses tasks:bad").await;
    eventually(SOON, async || {
        ensure!(scene.kv.seen().fault("poison") >= 2, "not tried again");
        Ok(())
    })
    .await
    .unwrap();
    let alone = scene.befell("poison");
    assert!(scene.letters().await.is_empty());
    scene.publish("created", &created("good")).await;
    scene.wait_letters(&["bad".to_owned()].into()).await;
    scene.wait_keys(2).await;
    println!("refused {alone} times alone, {} times in total; then one dead letter", scene.befell("poison"));
    scene.wait_kv_health("reachable", "").await;
    let (_, message) = scene.kv_health().await.unwrap();
    assert_eq!(message, "", "no task is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_repaired_before_its_old_value_is_found_at_fault_is_written_and_no_dead_letter() {
    let scene = Scene::start().await;
    scene.kv.inject(Rule::poison("POISON", 400));
    let first = KeyMatch::Is("tasks:first".to_owned());
    scene.kv.inject(Rule::new(Fault::Slow { extra: Duration::from_secs(1) }).keys(first).named("gathers"));
    // Controls are deletes: the last one is in flight for long enough.
    let control = Rule::new(Fault::Slow { extra: Duration::from_secs(2) }).on(Operation::BulkDelete);
    scene.kv.inject(control.named("slow control"));
    scene.publish("created", &created("first")).await;
    eventually(SOON, async || {
        ensure!(!scene.kv.requests().is_empty(), "no request yet");
        Ok(())
    })
    .await
    .unwrap();
    let mut event = created("bad");
    event["data"]["title"] = json!("POISON");
    scene.publish("created", &event).await;
    publish_creates(&scene.client, 3).await.unwrap();
    let alone = || {
        let requests = scene.kv.requests();
        requests.iter().filter(|it| it.keys == ["tasks:bad"] && it.answered == Some(400)).count()
    };
    eventually(SOON, async || {
        ensure!(alone() == 2, "refused alone {} times", alone());
        Ok(())
    })
    .await
    .unwrap();
    let controls = scene.befell("slow control");
    let repair = json!({"correlationId": "repair", "data": {"id": "bad", "title": "Repaired"}});
    scene.publish("updated", &repair).await;
    eventually(SOON, async || {
        let task = stored_task(&scene.kv, "bad");
        ensure!(task.as_ref().is_some_and(|task| task["title"] == "Repaired"), "{task:?}");
        Ok(())
    })
    .await
    .unwrap();
    let letters = scene.replica.metric("taskpipeline_dead_letters_total").await.unwrap();
    println!(
        "refused alone {} times, repaired after {controls} slow control and during the next; {} in total; {letters} dead letters",
        alone(),
        scene.befell("slow control")
    );
    assert_eq!((alone(), scene.befell("slow control")), (2, 2));
    assert_eq!(letters, 0.0);
    scene.wait_keys(5).await;
    // The writer reports every task as settled.
    eventually(SOON, async || {
        let unsettled = scene.replica.metric("taskpipeline_projector_unsettled_tasks").await?;
        ensure!(unsettled == 0.0, "{unsettled} tasks are not settled");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_blamed_can_be_replayed_when_kv_takes_it() {
    let scene = Scene::start().await;
    scene.kv.inject(Rule::poison("POISON", 400));
    let mut bad = BTreeSet::new();
    for n in 0..3 {
        let mut event = created(&format!("bad-{n}"));
        event["data"]["title"] = json!("POISON");
        bad.insert(format!("bad-{n}"));
        scene.publish("created", &event).await;
    }
    let mut good = 0;
    while scene.letters().await.len() < bad.len() && good < 50 {
        scene.publish("created", &created(&format!("good-{good}"))).await;
        good += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.wait_letters(&bad).await;
    scene.wait_keys(good).await;
    scene.kv.remove_faults("poison");
    let replay = ["dead-letters", "replay", "--all", "--reason", "refused-by-kv"];
    let output = scene.options.command(&replay).unwrap().output().await.unwrap();
    println!("refused {} times; {}", scene.befell("poison"), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{output:?}");
    scene.wait_keys(good + 3).await;
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_pairs_shrinks_the_requests_that_follow() {
    let scene = Scene::start().await;
    let refusal = Fault::Status { status: 400, code: Some(10_012), message: Some("too many".to_owned()) };
    let many = KeyMatch::StartsWith("tasks:task-".to_owned());
    scene.kv.inject(Rule::new(refusal).on(Scope::Writes).keys(many).named("too many").times(1));
    let first = KeyMatch::Is("tasks:first".to_owned());
    scene.kv.inject(Rule::new(Fault::Slow { extra: Duration::from_secs(3) }).keys(first));
    // A thousand tasks gather behind the first.
    scene.publish("created", &created("first")).await;
    eventually(SOON, async || {
        ensure!(scene.kv.requests().len() == 1, "no request yet");
        Ok(())
    })
    .await
    .unwrap();
    publish_creates(&scene.client, 999).await.unwrap();
    scene.wait_keys(1_000).await;
    let sizes: Vec<_> = scene.kv.requests().iter().map(|request| request.key_count).collect();
    let size = scene.replica.metric("taskpipeline_kv_batch_keys").await.unwrap();
    println!("refused {} time; keys in each request {sizes:?}, now {size} at most", scene.befell("too many"));
    assert!(size < 1_000.0, "{size}");
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_in_a_good_answer_are_not_a_failure() {
    let scene = Scene::start().await;
    scene.kv.inject(Rule::new(Fault::Nulls));
    publish_creates(&scene.client, 10).await.unwrap();
    scene.publish("deleted", &json!({"correlationId": "d", "data": {"id": "task-0"}})).await;
    scene.wait_keys(9).await;
    scene.replica.wait_landed(10, SOON).await.unwrap();
    let retries = scene.replica.metric("taskpipeline_kv_key_retries_total").await.unwrap();
    let seen = scene.kv.seen();
    println!("nulls in {} answers: {retries} retries, {} keys put", scene.befell("nulls"), seen.keys_put);
    assert_eq!(retries, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_no_clock_can_count_is_capped_and_said() {
    let mut scene = Scene::start().await;
    let retry_after = Duration::from_secs(9_999_999_999_999_999_999);
    scene.kv.inject(Rule::new(Fault::Throttled { retry_after }).times(1));
    publish_creates(&scene.client, 1).await.unwrap();
    eventually(SOON, async || {
        ensure!(scene.kv.seen().fault("throttled") == 1, "no request");
        Ok(())
    })
    .await
    .unwrap();
    scene.wait_kv_health("failing", "900 s").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let said =
        scene.replica.process().lines().iter().filter(|line| line.contains("waiting_seconds=900")).count();
    let running = scene.replica.is_running().unwrap();
    println!("throttled {} time, running: {running}, said {said} times", scene.befell("throttled"));
    assert!(running && said >= 1, "{}", scene.replica.process().tail());
    // Another replica does not know of the refusal, and does the work.
    scene.replace_replica().await;
    scene.wait_keys(1).await;
}
