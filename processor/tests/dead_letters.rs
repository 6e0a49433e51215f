//! `taskpipeline dead-letters`: a user finds the dead letters, understands them, and replays or drops them.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::process::Output;
use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{Client, HeaderMap, jetstream};
use futures_util::StreamExt;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Rule, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, program, publish, stored_task,
};

const SOON: Duration = Duration::from_secs(20);

/// Lets the stream accept events as large as NATS does.
fn large(options: ProcessorOptions) -> ProcessorOptions {
    options.set("STREAM_MAX_EVENT_BYTES", "1048576")
}

/// A pipeline and its operator.
struct Scene {
    nats: NatsServer,
    kv: Simulator,
    replica: Processor,
    client: Client,
}

impl Scene {
    async fn start() -> Self {
        let nats = NatsServer::start().await.unwrap();
        let kv = Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
        let replica = Processor::start(&large(ProcessorOptions::new(&nats, &kv))).await.unwrap();
        let client = nats.client().await.unwrap();
        Self { nats, kv, replica, client }
    }

    async fn stop_replica(&mut self) {
        assert!(self.replica.terminate(SOON).await.unwrap().success());
    }

    async fn start_replica(&mut self) {
        let options = large(ProcessorOptions::new(&self.nats, &self.kv));
        self.replica = Processor::start(&options).await.unwrap();
    }

    /// Runs the command with only `NATS_URL` in its environment.
    async fn run(&self, arguments: &str) -> Output {
        let mut command =
            tokio::process::Command::new(program("TASKPIPELINE_BIN", &["taskpipeline"]).unwrap());
        command.arg("dead-letters").args(arguments.split(' '));
        command.env_clear().env("NATS_URL", self.nats.url()).output().await.unwrap()
    }

    /// Runs the command, which must succeed, and returns its output.
    async fn done(&self, arguments: &str) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which must fail, and returns its errors.
    async fn refused(&self, arguments: &str) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn letters(&self) -> Vec<Value> {
        serde_json::from_str(&self.done("list --json").await).unwrap()
    }

    /// Waits until this many letters exist.
    async fn wait_letters(&self, count: usize) -> Vec<Value> {
        eventually(SOON, async || {
            let letters = self.letters().await;
            ensure!(letters.len() == count, "{letters:?}\n{}", self.replica.process().tail());
            Ok(letters)
        })
        .await
        .unwrap()
    }

    /// Waits until a task has this title in KV.
    async fn wait_title(&self, id: &str, title: &str) {
        eventually(SOON, async || {
            let task = stored_task(&self.kv, id);
            let there = task.as_ref().is_some_and(|task| task["title"] == title);
            ensure!(there, "{task:?}\n{}", self.replica.process().tail());
            Ok(())
        })
        .await
        .unwrap();
    }

    async fn publish(&self, kind: &str, event: &Value) {
        publish(&self.client, kind, event).await.unwrap();
        self.client.flush().await.unwrap();
    }

    /// Delivers these events as often as if ten replicas had died of them, while no replica runs.
    async fn wear_out(&self, events: &[(&str, Value)]) {
        let stream = jetstream::new(self.client.clone()).get_stream("TASKS").await.unwrap();
        for (kind, event) in events {
            self.publish(kind, event).await;
        }
        let consumer: PullConsumer = stream.get_consumer("tasks-processor-1").await.unwrap();
        for _ in 0..10 {
            let batch = consumer.batch().max_messages(events.len()).expires(SOON).messages().await.unwrap();
            let messages: Vec<_> = batch.collect().await;
            assert_eq!(messages.len(), events.len());
            for message in messages {
                message.unwrap().ack_with(AckKind::Nak(None)).await.unwrap();
            }
        }
        // Each record states that an event was about to be processed, and none that it had been.
        let begun = json!({"begun": 7}).to_string();
        for n in 0..events.len() {
            let sequence = stream.cached_info().state.last_sequence + u64::try_from(n).unwrap() + 1;
            let subject = format!("$KV.TASKS--tasks-processor.suspect.1-{sequence}");
            let jetstream = jetstream::new(self.client.clone());
            jetstream.publish(subject, begun.clone().into()).await.unwrap().await.unwrap();
        }
        self.client.flush().await.unwrap();
    }

    /// KV refuses a task. The task is blamed because KV accepts others in the same request.
    async fn wait_blamed(&self, letters: usize) -> Vec<Value> {
        let mut company = 0;
        eventually(SOON, async || {
            company += 1;
            self.publish("created", &created(&format!("company-{company}"))).await;
            let there = self.letters().await;
            ensure!(there.len() == letters, "{there:?}\n{}", self.replica.process().tail());
            Ok(there)
        })
        .await
        .unwrap()
    }

    async fn messages(&self) -> u64 {
        let stream = jetstream::new(self.client.clone()).get_stream("TASKS-DEAD-LETTERS").await.unwrap();
        stream.cached_info().state.messages
    }
}

fn titled(id: &str, title: &str) -> Value {
    let mut event = created(id);
    event["data"]["title"] = json!(title);
    event
}

fn sequence(letter: &Value) -> u64 {
    letter["sequence"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_event_is_shown_with_all_that_is_known_and_its_headers_block_nothing() {
    let scene = Scene::start().await;
    assert_eq!(scene.done("list").await, "no dead letters in TASKS-DEAD-LETTERS on dead-letters.tasks\n");
    scene.publish("created", &created("good")).await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "its-own-id");
    headers.insert("Nats-Expected-Stream", "TASKS");
    headers.insert("Nats-Expected-Last-Sequence", "1");
    headers.insert("X-Trace", "abc");
    let bytes =
        "{\"correlationId\": \"c\", \"data\":\n {\"id\": \"bad\", \"title\": \"\", \"status\": \"done\"}}";
    let jetstream = jetstream::new(scene.client.clone());
    let sent = jetstream.publish_with_headers("tasks.created", headers, bytes.into()).await.unwrap();
    assert_eq!(sent.await.unwrap().sequence, 2);

    let letter = scene.wait_letters(1).await.remove(0);
    assert_eq!((&letter["id"], &letter["task"]), (&json!("tasks-processor-1-2"), &json!("bad")));
    let list = scene.done("list").await;
    let lines: Vec<_> = list.lines().collect();
    assert!(lines[1].contains("invalid  tasks.created  bad   invalid event: data.title: must be"), "{list}");
    assert_eq!(lines[2..], ["1 dead letter in TASKS-DEAD-LETTERS"]);

    let by_id = scene.done("show tasks-processor-1-2").await;
    assert_eq!(by_id, scene.done(&format!("show {}", sequence(&letter))).await);
    for part in [
        "reason       invalid\n",
        "subject      tasks.created\n",
        "version      1-2 ",
        "deliveries   1\n",
        "\n    data.title: must be 1 to 200 characters, got 0\n",
        "\n    data.description: ",
        "\n    data.status: must be one of",
        "\n    Nats-Msg-Id: its-own-id\n",
        "\n    X-Trace: abc\n",
        &format!("payload ({} bytes, text)\n    {}\n", bytes.len(), bytes.replace('\n', "\n    ")),
    ] {
        assert!(by_id.contains(part), "{part}\n{by_id}");
    }
    assert_eq!(scene.done("show tasks-processor-1-2 --payload").await, bytes);

    let refusal = scene.refused("replay tasks-processor-1-2").await;
    for part in ["tasks-processor-1-2", "is still not a valid event", "data.title", "--as-new", "1 of 1"] {
        assert!(refusal.contains(part), "{part}\n{refusal}");
    }
    assert_eq!(scene.letters().await, [letter], "a refused letter stays");

    // The event's message id would make the stream drop it, and its expected sequence would make the stream refuse it.
    let done = scene.done("replay --all --as-new").await;
    assert!(done.contains("published again on tasks.created as message 3"), "{done}");
    eventually(SOON, async || {
        let letters = scene.letters().await;
        ensure!(letters.len() == 1 && letters[0]["id"] == "tasks-processor-1-3", "{letters:?}");
        Ok(())
    })
    .await
    .unwrap();
    let again = scene.done("show tasks-processor-1-3").await;
    assert!(again.contains("X-Trace: abc") && !again.contains("its-own-id"), "{again}");
    assert_eq!(scene.done("show tasks-processor-1-3 --payload").await, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_kv_refuses_is_written_when_it_is_mended_and_replayed() {
    let scene = Scene::start().await;
    scene.kv.inject(Rule::poison("poison-marker", 400));
    scene.publish("created", &titled("a", "poison-marker")).await;
    let status = json!({"correlationId": "c-2", "data": {"id": "a", "status": "completed"}});
    scene.publish("updated", &status).await;
    eventually(SOON, async || {
        let stored = scene.replica.metric("taskpipeline_events_stored_total").await?;
        ensure!(stored >= 2.0, "{stored} of 2 events are in the ledger");
        Ok(())
    })
    .await
    .unwrap();
    let letters = scene.wait_blamed(1).await;
    let newest = letters.last().unwrap();
    assert_eq!((&newest["reason"], &newest["task"]), (&json!("refused-by-kv"), &json!("a")));
    let shown = scene.done(&format!("show {}", sequence(newest))).await;
    for part in ["task id      a\n", "\"title\": \"poison-marker\"", "built from)\n    1-1\n    1-2\n"] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(!shown.contains("payload"), "{shown}");

    // The cause is not fixed yet, so the letter comes back.
    scene.done("replay --all --reason refused-by-kv").await;
    let back = scene.wait_blamed(1).await;
    assert_ne!(back[0]["id"], newest["id"]);
    assert_eq!(stored_task(&scene.kv, "a"), None);

    scene.kv.remove_faults("poison");
    let done = scene.done(&format!("replay {}", back[0]["id"].as_str().unwrap())).await;
    assert!(done.contains("the task a is written to KV again"), "{done}");
    scene.wait_title("a", "poison-marker").await;
    assert_eq!(stored_task(&scene.kv, "a").unwrap()["status"], "completed");
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_refused_where_the_task_is_or_may_be_newer_unless_it_is_to_count_as_new() {
    let mut scene = Scene::start().await;
    scene.stop_replica().await;
    scene.wear_out(&[("created", titled("a", "old"))]).await;
    scene.start_replica().await;
    let letter = scene.wait_letters(1).await.remove(0);
    assert_eq!((&letter["reason"], &letter["task"]), (&json!("max-deliveries-exceeded"), &json!("a")));
    assert!(scene.done("show tasks-processor-1-1").await.contains("deliveries   11\n"));

    scene.stop_replica().await;
    scene.publish("created", &titled("a", "new")).await;
    let refusal = scene.refused("replay tasks-processor-1-1").await;
    assert!(refusal.contains("events wait in the stream (1)") && refusal.contains("--as-new"), "{refusal}");

    scene.start_replica().await;
    scene.wait_title("a", "new").await;
    let refusal = scene.refused("replay tasks-processor-1-1 77").await;
    for part in ["the task a has a newer event (version 1-2, the letter has 1-1)", "--as-new"] {
        assert!(refusal.contains(part), "{part}\n{refusal}");
    }
    assert!(refusal.contains("dead letter 77 not found") && refusal.contains("2 of 2"), "{refusal}");
    assert_eq!(scene.letters().await, [letter], "a refused letter stays");

    scene.done("replay tasks-processor-1-1 --as-new").await;
    scene.wait_title("a", "old").await;
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_one_task_are_replayed_in_the_order_of_their_events() {
    let mut scene = Scene::start().await;
    scene.stop_replica().await;
    let update = json!({"correlationId": "c-2", "data": {"id": "a", "title": "last"}});
    scene.wear_out(&[("created", titled("a", "first")), ("updated", update)]).await;
    scene.start_replica().await;
    let letters = scene.wait_letters(2).await;
    assert_eq!(stored_task(&scene.kv, "a"), None);
    // The ids are in reverse order, in one command.
    let ids: Vec<_> = letters.iter().rev().map(|letter| letter["id"].as_str().unwrap()).collect();
    let done = scene.done(&format!("replay {}", ids.join(" "))).await;
    assert_eq!(done.lines().count(), 2, "{done}");
    scene.wait_title("a", "last").await;
    assert!(scene.letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_as_large_as_nats_takes_comes_whole_from_its_parts_and_goes_out_whole() {
    let scene = Scene::start().await;
    let most = scene.client.server_info().max_payload;
    let bytes: Vec<u8> = (0..most).map(|n| u8::try_from(n % 251).unwrap()).collect();
    scene.client.publish("tasks.created", bytes.clone().into()).await.unwrap();
    scene.client.flush().await.unwrap();
    let letter = eventually(SOON, async || {
        let mut letters = scene.letters().await;
        ensure!(letters.len() == 1 && letters[0]["missingParts"] == json!([]), "{letters:?}");
        Ok(letters.remove(0))
    })
    .await
    .unwrap();
    let parts = letter["parts"].as_u64().unwrap();
    assert!(parts > 1 && scene.messages().await == parts, "{letter}");
    assert_eq!(scene.run("show tasks-processor-1-1 --payload").await.stdout, bytes);
    let shown = scene.done("show tasks-processor-1-1").await;
    assert!(shown.contains("not UTF-8, as hex)\n    00000000  00 01 02"), "{}", &shown[..1_000]);

    // No room is left for even one header.
    scene.done("replay tasks-processor-1-1 --as-new").await;
    eventually(SOON, async || {
        let letters = scene.letters().await;
        ensure!(letters.len() == 1 && letters[0]["id"] == "tasks-processor-1-2", "{letters:?}");
        ensure!(letters[0]["missingParts"] == json!([]), "{letters:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(scene.run("show tasks-processor-1-2 --payload").await.stdout, bytes);

    // A letter with a missing part cannot be replayed.
    let stream = jetstream::new(scene.client.clone()).get_stream("TASKS-DEAD-LETTERS").await.unwrap();
    let first = stream.cached_info().state.first_sequence;
    stream.delete_message(first).await.unwrap();
    let refusal = scene.refused("replay --all --as-new").await;
    assert!(refusal.contains(&format!("1 of its {parts} parts are missing (1)")), "{refusal}");
    scene.done("drop tasks-processor-1-2").await;
    assert_eq!(scene.messages().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_dropped_by_name_by_reason_or_all_but_not_all_by_mistake() {
    let scene = Scene::start().await;
    scene.kv.inject(Rule::poison("poison-marker", 400));
    for n in 0..4 {
        scene
            .publish("deleted", &json!({"correlationId": "c", "data": {"id": format!("bad\u{7}{n}")}}))
            .await;
    }
    scene.publish("created", &titled("a", "poison-marker")).await;
    let letters = scene.wait_blamed(5).await;
    let list = scene.done("list --limit 2").await;
    assert!(list.contains("the newest 2 of 5 dead letters"), "{list}");

    assert_eq!(scene.done(&format!("drop {}", sequence(&letters[0]))).await.lines().count(), 1);
    assert_eq!(scene.letters().await.len(), 4);
    let refusal = scene.refused("drop --all").await;
    assert!(refusal.contains("deletes 4 dead letters permanently") && refusal.contains("--yes"), "{refusal}");
    assert_eq!(scene.letters().await.len(), 4);
    assert_eq!(scene.done("drop --all --reason refused-by-kv --yes").await.lines().count(), 1);
    assert_eq!(scene.letters().await.len(), 3);
    assert_eq!(scene.done("drop --all --yes").await.lines().count(), 3);
    assert_eq!(scene.messages().await, 0);
    assert_eq!(scene.done("drop --all --yes").await, "there are no such dead letters\n");
    assert!(scene.refused("drop 1").await.contains("dead letter 1 not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_pipeline_or_no_nats_the_command_says_what_to_look_at() {
    let nats = NatsServer::start().await.unwrap();
    let run = async |url: &str, password: &str| {
        let mut command =
            tokio::process::Command::new(program("TASKPIPELINE_BIN", &["taskpipeline"]).unwrap());
        command.args(["dead-letters", "list"]).env_clear().env("NATS_URL", url).env("STREAM_NAME", "OTHER");
        command.env("NATS_USER", "me").env("NATS_PASSWORD", password).output().await.unwrap()
    };
    let none = run(&nats.url(), "hidden-1").await;
    let said = String::from_utf8(none.stdout).unwrap();
    assert!(none.status.success() && said.contains("stream OTHER-DEAD-LETTERS not found"), "{said}");

    let port = taskpipeline_testkit::free_port().unwrap();
    let away = run(&format!("nats://127.0.0.1:{port}"), "hidden-2").await;
    let error = String::from_utf8(away.stderr).unwrap();
    assert_eq!(away.status.code(), Some(1));
    assert!(error.contains(&format!("NATS at 127.0.0.1:{port}")) && error.contains("NATS_URL"), "{error}");
    assert!(!error.contains("hidden"), "{error}");
}
