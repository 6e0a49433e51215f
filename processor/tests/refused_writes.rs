//! The ledger refuses writes or contains invalid records, while the events are valid: they wait.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::Config as StreamConfig;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    NatsServer, Processor, ProcessorOptions, created, eventually, letter_payload, publish, store, stored_task,
};
use tokio::time::Instant;

const LEDGER: &str = "KV_TASKS--tasks-processor";
const TASK: &str = "$KV.TASKS--tasks-processor.task.";
const SOON: Duration = Duration::from_secs(30);

struct Scene {
    nats: NatsServer,
    kv: Simulator,
    client: async_nats::Client,
    jetstream: jetstream::Context,
    replica: Processor,
}

impl Scene {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let nats = NatsServer::start().await.unwrap();
        let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
        let kv = Simulator::start(config).await.unwrap();
        let options = settings
            .iter()
            .fold(ProcessorOptions::new(&nats, &kv), |options, (name, value)| options.set(name, value))
            .set("RUST_LOG", "warn")
            .set("REQUEST_BUDGET", "1000000/5m");
        let replica = Processor::start(&options).await.unwrap();
        let client = nats.client().await.unwrap();
        let jetstream = jetstream::new(client.clone());
        Self { nats, kv, client, jetstream, replica }
    }

    /// Changes the ledger's stream.
    async fn change(&self, change: impl FnOnce(&mut StreamConfig)) {
        let mut config = self.jetstream.get_stream(LEDGER).await.unwrap().cached_info().config.clone();
        change(&mut config);
        self.jetstream.update_stream(config).await.unwrap();
    }

    async fn messages(&self) -> i64 {
        let ledger = self.jetstream.get_stream(LEDGER).await.unwrap();
        i64::try_from(ledger.cached_info().state.messages).unwrap()
    }

    async fn has(&self, tasks: usize) -> anyhow::Result<()> {
        eventually(SOON, async || {
            let there = self.kv.keys().len();
            ensure!(there == tasks, "{there} of {tasks} tasks are in KV\n{}", self.replica.process().tail());
            Ok(())
        })
        .await
    }

    async fn metric(&self, name: &str) -> f64 {
        self.replica.metric(&format!("taskpipeline_{name}")).await.unwrap()
    }

    /// The number of events that NATS has delivered and that have no ack.
    async fn unacknowledged(&self) -> usize {
        let consumer: PullConsumer =
            self.jetstream.get_consumer_from_stream("tasks-processor-1", "TASKS").await.unwrap();
        consumer.cached_info().num_ack_pending
    }

    async fn letters(&self) -> Vec<Value> {
        let stream = self.jetstream.get_stream("TASKS-DEAD-LETTERS").await.unwrap();
        let mut letters = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            letters.push(serde_json::from_slice(&message.payload).unwrap());
        }
        letters
    }
}

fn titled(id: &str, title: &str) -> Value {
    let mut event = created(id);
    event["data"]["title"] = json!(title);
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_while_the_ledgers_bucket_is_full_and_land_when_it_is_enlarged() {
    const EVENTS: u32 = 60;
    const FULL: Duration = Duration::from_secs(25);
    let scene = Scene::start(&[("ACK_WAIT", "1s")]).await;
    store(&scene.client, [("created", created("known"))].into_iter()).await.unwrap();
    scene.has(1).await.unwrap();
    // The limit is the current content and ten more.
    let limit = scene.messages().await + 10;
    scene.change(|config| config.max_messages = limit).await;
    let began = Instant::now();
    let events = (0..EVENTS).map(|n| ("created", created(&format!("task-{n}"))));
    store(&scene.client, events).await.unwrap();
    eventually(SOON, async || {
        let waiting = scene.unacknowledged().await;
        ensure!(waiting >= 45, "{waiting} events wait");
        Ok(())
    })
    .await
    .unwrap();
    // Meanwhile a known task is changed, for which the ledger has room.
    publish(&scene.client, "created", &titled("known", "changed")).await.unwrap();
    let changed = eventually(Duration::from_secs(5), async || {
        let task = stored_task(&scene.kv, "known");
        ensure!(task.as_ref().is_some_and(|task| task["title"] == "changed"), "{task:?}");
        Ok(())
    });
    let changed = changed.await;
    tokio::time::sleep(FULL.saturating_sub(began.elapsed())).await;
    let (waiting, landed) = (scene.unacknowledged().await, scene.kv.keys().len());
    scene.change(|config| config.max_messages = -1).await;
    let all = scene.has(usize::try_from(EVENTS).unwrap() + 1).await;
    let (letters, redelivered) = (scene.letters().await, scene.metric("events_redelivered_total").await);
    println!(
        "{EVENTS} events to a ledger with room for a few; after {FULL:?} {waiting} waited and {landed} tasks were in KV; \
         enlarged, {} are; {} dead letters, {redelivered} redeliveries",
        scene.kv.keys().len(),
        letters.len()
    );
    assert!(waiting >= 45, "the ledger was not full");
    assert_eq!(letters.len(), 0, "{}", letters[0]);
    all.unwrap();
    changed.unwrap();
    assert!(redelivered <= f64::from(EVENTS), "{redelivered} redeliveries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_record_the_ledger_does_not_take_holds_up_no_other_and_lands_when_it_does() {
    const OTHERS: u32 = 500;
    const LARGE: u32 = 2_500;
    let scene = Scene::start(&[("ACK_WAIT", "1s")]).await;
    scene.change(|config| config.max_message_size = 1_500).await;
    let mut large = created("large");
    large["data"]["description"] = json!("d".repeat(1_900));
    // These are more events than a replica keeps.
    store(&scene.client, (0..LARGE).map(|_| ("created", large.clone()))).await.unwrap();
    eventually(SOON, async || {
        let waiting = scene.unacknowledged().await;
        ensure!(waiting >= 2_000, "{waiting} events wait");
        Ok(())
    })
    .await
    .unwrap();
    let began = Instant::now();
    store(&scene.client, (0..OTHERS).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    let others = scene.has(usize::try_from(OTHERS).unwrap()).await;
    let took = began.elapsed();
    let (waiting, held) = (scene.unacknowledged().await, scene.metric("events_held").await);
    scene.change(|config| config.max_message_size = -1).await;
    let all = scene.has(usize::try_from(OTHERS).unwrap() + 1).await;
    let acknowledged = eventually(Duration::from_secs(60), async || {
        let waiting = scene.unacknowledged().await;
        ensure!(waiting == 0, "{waiting} events still wait");
        Ok(())
    });
    let acknowledged = acknowledged.await;
    let letters = scene.letters().await;
    println!(
        "{LARGE} events of a task too large for the ledger: {held} held by the replica, {waiting} not acknowledged; \
         {OTHERS} others were in KV after {took:.1?}; {} dead letters",
        letters.len()
    );
    others.unwrap();
    assert!(held > 0.0 && waiting >= 2_000, "nothing was refused");
    assert!(took < Duration::from_secs(10), "{took:?}");
    all.unwrap();
    acknowledged.unwrap();
    assert_eq!(letters.len(), 0, "{}", letters[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nats_kv_del_leaves_is_no_record_and_an_unreadable_one_is_set_aside_and_replaced() {
    let scene = Scene::start(&[("ACK_WAIT", "1s")]).await;
    for id in ["deleted", "spoilt", "fine"] {
        store(&scene.client, [("created", created(id))].into_iter()).await.unwrap();
    }
    scene.has(3).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    let mark = scene.jetstream.publish_with_headers(format!("{TASK}deleted"), headers, "".into());
    mark.await.unwrap().await.unwrap();
    let spoilt = "{\"task\": spoilt";
    scene.jetstream.publish(format!("{TASK}spoilt"), spoilt.into()).await.unwrap().await.unwrap();
    // A new session has an empty memory.
    let update = |id: &str| json!({"correlationId": "c", "data": {"id": id, "title": "after"}});
    let events = ["deleted", "spoilt", "fine"].map(|id| ("updated", update(id)));
    store(&scene.client, events.into_iter()).await.unwrap();
    let landed = eventually(SOON, async || {
        for id in ["deleted", "spoilt", "fine"] {
            let task = stored_task(&scene.kv, id);
            ensure!(task.as_ref().is_some_and(|task| task["title"] == "after"), "{id}: {task:?}");
        }
        Ok(())
    });
    let landed = landed.await;
    let letters = scene.letters().await;
    println!(
        "one record deleted and one spoilt behind the replica's back: {landed:?}; dead letters: {:?}",
        letters.iter().map(|letter| letter["reason"].as_str()).collect::<Vec<_>>()
    );
    landed.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["taskId"]),
        (&json!("unreadable-in-ledger"), &json!("spoilt"))
    );
    assert_eq!(letter_payload(&letters[0]).unwrap(), spoilt.as_bytes());
    // KV knew the earlier state.
    assert_eq!(stored_task(&scene.kv, "spoilt").unwrap()["status"], created("spoilt")["data"]["status"]);
    drop(scene.nats);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_what_is_known_of_the_stream_was_deleted_or_spoilt_new_events_still_win() {
    let scene = Scene::start(&[("ACK_WAIT", "1s")]).await;
    let Scene { nats, kv, client, jetstream, mut replica } = scene;
    let options = ProcessorOptions::new(&nats, &kv).set("RUST_LOG", "warn");
    let title = |title: &str| {
        let titled = titled("task", title);
        let (client, kv) = (client.clone(), &kv);
        async move {
            store(&client, [("created", titled.clone())].into_iter()).await.unwrap();
            eventually(SOON, async || {
                let task = stored_task(kv, "task");
                ensure!(
                    task.as_ref().is_some_and(|task| task["title"] == titled["data"]["title"]),
                    "{task:?}"
                );
                Ok(())
            })
            .await
            .unwrap();
        }
    };
    title("first").await;
    let source = "$KV.TASKS--tasks-processor.source";
    let mut consumers = Vec::new();
    for (bytes, next) in [("", "second"), ("{spoilt", "third")] {
        replica.terminate(SOON).await.unwrap();
        jetstream.publish(source, bytes.into()).await.unwrap().await.unwrap();
        replica = Processor::start(&options).await.unwrap();
        title(next).await;
        use futures_util::TryStreamExt;
        let stream = jetstream.get_stream("TASKS").await.unwrap();
        consumers.push(stream.consumer_names().try_collect::<Vec<String>>().await.unwrap());
    }
    println!(
        "the records of the stream were deleted, then spoilt: consumers {consumers:?}; the newest title is in KV"
    );
    assert_eq!(consumers, [["tasks-processor-2"], ["tasks-processor-3"]]);
    replica.terminate(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_ten_processes_died_with_is_a_dead_letter_and_one_that_was_given_back_is_not() {
    let scene = Scene::start(&[("ACK_WAIT", "1s")]).await;
    let Scene { nats, kv, client, jetstream, mut replica } = scene;
    replica.terminate(SOON).await.unwrap();
    let options = ProcessorOptions::new(&nats, &kv).set("ACK_WAIT", "1s").set("RUST_LOG", "warn");
    // Another client returns the event 20 times, and no process dies.
    let consumer: PullConsumer =
        jetstream.get_consumer_from_stream("tasks-processor-1", "TASKS").await.unwrap();
    store(&client, [("created", created("deadly"))].into_iter()).await.unwrap();
    for _ in 0..20 {
        use futures_util::StreamExt;

        let mut batch = consumer.batch().max_messages(1).expires(SOON).messages().await.unwrap();
        let message = batch.next().await.unwrap().unwrap();
        message.ack_with(jetstream::AckKind::Nak(None)).await.unwrap();
    }
    let mut crashes = 0;
    for _ in 0..7 {
        let mut dying = Processor::spawn(&options.clone().crashing_at("examining", 1)).unwrap();
        let ended = dying.wait(SOON).await.unwrap();
        assert!(!ended.success());
        crashes += 1;
        assert!(kv.keys().is_empty());
    }
    let _replica = Processor::start(&options).await.unwrap();
    store(&client, [("created", created("harmless"))].into_iter()).await.unwrap();
    let stream = jetstream.get_stream("TASKS-DEAD-LETTERS").await.unwrap();
    let letter: Value = eventually(SOON, async || {
        let message = stream.get_raw_message(1).await?;
        Ok(serde_json::from_slice(&message.payload)?)
    })
    .await
    .unwrap();
    eventually(SOON, async || {
        ensure!(kv.keys() == ["tasks:harmless"], "{:?}", kv.keys());
        Ok(())
    })
    .await
    .unwrap();
    println!(
        "returned 20 times, then in flight at {crashes} crashes: {} ({})",
        letter["reason"], letter["detail"]
    );
    assert_eq!(letter["reason"], "max-deliveries-exceeded");

    // The event was only returned.
    store(&client, [("created", created("given-back"))].into_iter()).await.unwrap();
    eventually(SOON, async || {
        ensure!(kv.keys().len() == 2, "{:?}", kv.keys());
        Ok(())
    })
    .await
    .unwrap();
}
