//! A hostile producer with the permission to publish events can do nothing else to the pipeline.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::forgery::{reply_subjects, subscriptions};
use taskpipeline_testkit::{
    BundledNats, NatsServer, Processor, ProcessorOptions, RawClient, created, eventually, store, stored_task,
};

const SOON: Duration = Duration::from_secs(30);
const LEDGER: &str = "KV_TASKS--tasks-processor";
const LETTERS: &str = "TASKS-DEAD-LETTERS";
const RECORDS: &str = "$KV.TASKS--tasks-processor";

/// How often each reply subject is forged.
const ROUNDS: usize = 20;

async fn kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

async fn has(kv: &Simulator, replica: &Processor, wanted: usize) {
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(there == wanted, "{there} of {wanted} tasks are in KV\n{}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
}

/// Reads the stream's record of this subject from its leader.
async fn record(jetstream: &jetstream::Context, stream: &str, subject: &str) -> anyhow::Result<(u64, Bytes)> {
    let query = json!({"last_by_subj": subject});
    let answer: Value = jetstream.request(format!("STREAM.MSG.GET.{stream}"), &query).await?;
    let message = &answer["message"];
    let sequence = message["seq"].as_u64().with_context(|| format!("no {subject}: {answer}"))?;
    Ok((sequence, message["data"].as_str().unwrap_or_default().to_owned().into()))
}

async fn messages(jetstream: &jetstream::Context, stream: &str) -> u64 {
    jetstream.get_stream(stream).await.unwrap().cached_info().state.messages
}

/// A producer sends valid events whose reply subjects send the acks to places where they could do harm.
async fn forged_replies_reach_nothing(nats: BundledNats) {
    let kv = kv().await;
    let options =
        nats.serves(ProcessorOptions::new(&nats.nodes()[0], &kv)).set("REQUEST_BUDGET", "1000000/5m");
    let mut replica = Processor::start(&options).await.unwrap();
    let producer = nats.client("producer").await.unwrap();
    let stored = store(&producer, [("created", created("good"))].into_iter()).await.unwrap();
    assert_eq!(stored, 1, "a JetStream publish is acknowledged");
    has(&kv, &replica, 1).await;

    let processor = jetstream::new(nats.client("processor").await.unwrap());
    let source = record(&processor, LEDGER, &format!("{RECORDS}.source")).await.unwrap();
    let mut seen = Vec::new();
    for node in nats.nodes() {
        seen.extend(subscriptions(node).await.unwrap());
    }
    assert!(seen.iter().any(|inbox| inbox.starts_with("_INBOX_PROCESSOR.")), "{seen:?}");
    let targets = reply_subjects(&seen);
    let attacker = nats.raw("producer").await.unwrap();
    let mut forged = 0;
    for _ in 0..ROUNDS {
        for target in &targets {
            let event = created(&format!("task-{forged}")).to_string();
            attacker.publish("tasks.created", target, event.as_bytes()).await.unwrap();
            forged += 1;
        }
    }
    attacker.round_trip().await.unwrap();
    has(&kv, &replica, 1 + forged).await;
    let complaints: Vec<_> = attacker.lines().into_iter().filter(|line| line.starts_with("-ERR")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");

    assert_eq!(record(&processor, LEDGER, &format!("{RECORDS}.source")).await.unwrap(), source);
    let (events, letters) = (messages(&processor, "TASKS").await, messages(&processor, LETTERS).await);
    let answers = replica.metric("taskpipeline_nats_forged_answers_total").await.unwrap();
    // The next session reads all records again.
    replica.kill().await.unwrap();
    let replica = Processor::start(&options).await.unwrap();
    store(&producer, [("created", created("after"))].into_iter()).await.unwrap();
    has(&kv, &replica, forged + 2).await;
    println!(
        "{forged} events with forged reply subjects ({} of them) by {} servers: all {} tasks in KV, {events} events stored, \
         {letters} dead letters, {answers} forged answers reached the replica",
        targets.len(),
        nats.nodes().len(),
        forged + 2
    );
    assert_eq!((events, letters, answers), (u64::try_from(forged).unwrap() + 1, 0, 0.0));
    for missing in ["task.nobody", "high-water.somebody", "control.0000000000000000"] {
        let found = record(&processor, LEDGER, &format!("{RECORDS}.{missing}")).await;
        assert!(found.is_err(), "{missing} was written: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_reply_subjects_reach_nothing_with_the_charts_server() {
    forged_replies_reach_nothing(BundledNats::start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_reply_subjects_reach_nothing_with_the_charts_three_servers() {
    forged_replies_reach_nothing(BundledNats::start_three().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_reply_subjects_reach_nothing_with_the_example_for_an_external_nats() {
    let values = include_str!("../../manifests/examples/values-official-nats.yaml");
    let values: Value = serde_saphyr::from_str(values).unwrap();
    // The official chart writes its values into NATS' configuration in this way.
    let merged = serde_json::to_string(&values["config"]["merge"]).unwrap();
    let merged = merged.replace("\"<< $", "$").replace(" >>\"", "");
    let config = merged.strip_prefix('{').and_then(|merged| merged.strip_suffix('}')).unwrap();
    forged_replies_reach_nothing(BundledNats::start_as(config).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_reply_subjects_reach_nothing_in_mode_core() {
    let nats = BundledNats::start().await.unwrap();
    let kv = kv().await;
    let options = nats.serves(ProcessorOptions::new(&nats.nodes()[0], &kv)).core();
    let replica = Processor::start(&options.set("REQUEST_BUDGET", "1000000/5m")).await.unwrap();
    let seen = subscriptions(&nats.nodes()[0]).await.unwrap();
    assert!(seen.iter().any(|subject| subject == "tasks.*"), "{seen:?}");
    let targets = reply_subjects(&seen);
    let attacker = nats.raw("producer").await.unwrap();
    for (n, target) in targets.iter().enumerate() {
        let event = created(&format!("task-{n}")).to_string();
        attacker.publish("tasks.created", target, event.as_bytes()).await.unwrap();
    }
    attacker.round_trip().await.unwrap();
    has(&kv, &replica, targets.len()).await;
    let invalid = replica.metric("taskpipeline_events_invalid_total").await.unwrap();
    println!("{} events with forged reply subjects: all in KV, {invalid} invalid", targets.len());
    assert_eq!(invalid, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_may_publish_events_and_nothing_else() {
    let nats = BundledNats::start().await.unwrap();
    let kv = kv().await;
    let options = nats.serves(ProcessorOptions::new(&nats.nodes()[0], &kv));
    let replica = Processor::start(&options).await.unwrap();
    let attacker = nats.raw("producer").await.unwrap();
    let refused =
        |client: &RawClient| client.lines().iter().filter(|line| line.contains("Violation")).count();
    let (mut publishes, mut subscriptions) = (0, 0);
    for subject in [
        "tasks",
        "tasks.other",
        "tasks.created.x",
        "other",
        "dead-letters.tasks",
        "$JS.API.INFO",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.PURGE.TASKS",
        "$JS.ACK.TASKS.tasks-processor-1.1.1.1.1.0",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.x",
        "_INBOX_PROCESSOR.x",
        "_R_.x",
        "$KV.TASKS--tasks-processor.source",
    ] {
        attacker.publish(subject, "", b"{}").await.unwrap();
        publishes += 1;
    }
    for (n, subject) in [
        ">",
        "*",
        "tasks.>",
        "tasks.created",
        "$KV.>",
        "_INBOX_PROCESSOR.>",
        "$JS.>",
        "$SYS.>",
        "dead-letters.>",
        "_R_.>",
    ]
    .into_iter()
    .enumerate()
    {
        attacker.send(format!("SUB {subject} {n}\r\n").as_bytes()).await.unwrap();
        subscriptions += 1;
    }
    // In the queue group, this subscription would take events away from the replicas.
    attacker.send(b"SUB tasks.* tasks-processor 99\r\n").await.unwrap();
    subscriptions += 1;
    attacker.round_trip().await.unwrap();
    eventually(SOON, async || {
        let count = refused(&attacker);
        ensure!(count == publishes + subscriptions, "{count} refusals: {:?}", attacker.lines());
        Ok(())
    })
    .await
    .unwrap();

    // Headers that would change, delay or delete other messages.
    let mut headers = 0;
    attacker.send(b"SUB _INBOX.headers 100\r\n").await.unwrap();
    for header in [
        "Nats-Rollup: all",
        "Nats-Rollup: sub",
        "Nats-TTL: 1s",
        "Nats-TTL: never",
        "Nats-Incr: 1",
        "Nats-Schedule: @at 2099-01-01T00:00:00Z\r\nNats-Schedule-Target: tasks.deleted",
        "Nats-Batch-Id: b\r\nNats-Batch-Sequence: 1",
        "Nats-Expected-Stream: OTHER",
    ] {
        let header = format!("NATS/1.0\r\n{header}\r\n\r\n");
        let event = created("headers").to_string();
        attacker
            .publish_with("tasks.created", "_INBOX.headers", header.as_bytes(), event.as_bytes())
            .await
            .unwrap();
        headers += 1;
    }
    eventually(SOON, async || {
        let errors = attacker.lines().iter().filter(|line| line.contains("err_code")).count();
        ensure!(errors == headers, "{errors} of {headers} refused: {:?}", attacker.lines());
        Ok(())
    })
    .await
    .unwrap();
    attacker.publish("tasks.created", "", created("plain").to_string().as_bytes()).await.unwrap();
    has(&kv, &replica, 1).await;
    assert!(stored_task(&kv, "plain").is_some());
    println!(
        "{publishes} publishes, {subscriptions} subscriptions and {headers} headers refused; a plain event landed"
    );
}

/// A producer without a separate account sees the inboxes of two replicas at the monitoring port. It forges answers
/// to their writes, while both write the same tasks, so that many real answers are conflicts.
#[tokio::test(flavor = "multi_thread")]
async fn forged_answers_to_writes_are_not_believed_where_producers_have_no_account_of_their_own() {
    const EVENTS: u32 = 6_000;
    const TASKS: u32 = 3;
    let nats = NatsServer::start().await.unwrap();
    let kv = kv().await;
    let options =
        ProcessorOptions::new(&nats, &kv).set("REQUEST_BUDGET", "1000000/5m").set("RUST_LOG", "warn");
    let replicas = [Processor::start(&options).await.unwrap(), Processor::start(&options).await.unwrap()];
    let client = nats.client().await.unwrap();
    let creates = (0..TASKS).map(|n| ("created", created(&format!("hot-{n}"))));
    store(&client, creates).await.unwrap();
    has(&kv, &replicas[0], usize::try_from(TASKS).unwrap()).await;

    let attack = tokio::spawn({
        let attacker = RawClient::connect(nats.port(), None).await.unwrap();
        let seen = subscriptions(&nats).await.unwrap();
        let seen: Vec<_> = seen.into_iter().filter(|inbox| inbox.ends_with('*')).collect();
        assert!(seen.len() >= 4, "{seen:?}");
        async move {
            let (mut forged, mut number) = (0_u64, 0_u64);
            loop {
                for inbox in &seen {
                    let subject = inbox
                        .replace(".*.*", &format!(".{number}.{number:016x}"))
                        .replace('*', &number.to_string());
                    let event = created(&format!("bait-{}", forged % 5)).to_string();
                    if attacker.publish("tasks.created", &subject, event.as_bytes()).await.is_err() {
                        return forged;
                    }
                    forged += 1;
                }
                number = (number + 1) % 2_000;
                if number % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    });
    let updates = (0..EVENTS).map(|n| {
        let data = json!({"id": format!("hot-{}", n % TASKS), "title": format!("Title {n}")});
        ("updated", json!({"correlationId": "hot", "data": data}))
    });
    store(&client, updates).await.unwrap();
    attack.abort();
    let wrong = async || {
        for n in 0..TASKS {
            let task = stored_task(&kv, &format!("hot-{n}")).context("no task")?;
            let last = (0..EVENTS).rev().find(|event| event % TASKS == n).unwrap();
            ensure!(task["title"] == format!("Title {last}"), "{task}, not Title {last}");
        }
        Ok(())
    };
    let ended = eventually(SOON, wrong).await;
    let sum = async |name: &str| {
        let mut sum = 0.0;
        for replica in &replicas {
            sum += replica.metric(name).await.unwrap();
        }
        sum
    };
    let (forged, conflicts) = (
        sum("taskpipeline_nats_forged_answers_total").await,
        sum("taskpipeline_ledger_conflicts_total").await,
    );
    let letters = sum("taskpipeline_dead_letters_total").await;
    println!(
        "{EVENTS} updates of {TASKS} tasks, {conflicts} conflicts, {forged} forged answers ignored, \
         {letters} dead letters: {ended:?}"
    );
    assert!(forged > 100.0, "{forged} forged answers reached the replicas");
    assert!(conflicts > 10.0, "{conflicts}");
    ended.unwrap();
    assert_eq!(letters, 0.0);
}

/// Lets the acks of events overwrite each of these records.
async fn write_over(attacker: &RawClient, records: &[String]) {
    let event = json!({"correlationId": "bait", "data": {"id": "bait"}}).to_string();
    for record in records {
        attacker.publish("tasks.deleted", record, event.as_bytes()).await.unwrap();
    }
    attacker.round_trip().await.unwrap();
}

/// An ack overwrites each record of the ledger's bucket.
#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_written_over_by_acks_are_replaced_and_the_pipeline_goes_on() {
    let nats = NatsServer::start().await.unwrap();
    let kv = kv().await;
    kv.seed(
        "tasks:only-kv",
        json!({
            "id": "only-kv", "title": "Old", "description": "", "status": "pending",
            "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": "2026-01-01T00:00:00.000Z"
        })
        .to_string(),
    );
    let options = ProcessorOptions::new(&nats, &kv).set("REQUEST_BUDGET", "1000000/5m");
    let mut replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    store(&client, (0..10).map(|n| ("created", created(&format!("task-{n}"))))).await.unwrap();
    has(&kv, &replica, 11).await;

    let jetstream = jetstream::new(client.clone());
    let ledger = jetstream.get_stream(LEDGER).await.unwrap();
    let names = ledger.info_with_subjects(">").await.unwrap();
    let mut records: Vec<_> = names.map_ok(|(subject, _)| subject).try_collect().await.unwrap();
    // A task that only KV knows: it is looked up, and the result must replace the unreadable record.
    records.push(format!("{RECORDS}.task.only-kv"));
    let attacker = RawClient::connect(nats.port(), None).await.unwrap();
    write_over(&attacker, &records).await;
    let kinds = ["source", "high-water", "control", "task"]
        .map(|kind| records.iter().filter(|record| record.contains(&format!("processor.{kind}"))).count());
    let over = async || {
        let (_, source) = record(&jetstream, LEDGER, &format!("{RECORDS}.task.only-kv")).await?;
        ensure!(!source.is_empty(), "not written over yet");
        Ok(())
    };
    eventually(SOON, over).await.unwrap();

    // The first round is in the running session, the second in the next one.
    for (round, title) in ["First", "Second"].into_iter().enumerate() {
        if round == 1 {
            write_over(&attacker, &records).await;
            replica.kill().await.unwrap();
            replica = Processor::start(&options).await.unwrap();
        }
        let names = (0..10).map(|n| format!("task-{n}")).chain(["only-kv".to_owned()]);
        let updates = names.map(|id| {
            let data = json!({"id": id, "title": title});
            ("updated", json!({"correlationId": "after", "data": data}))
        });
        store(&client, updates).await.unwrap();
        eventually(SOON, async || {
            for id in (0..10).map(|n| format!("task-{n}")).chain(["only-kv".to_owned()]) {
                let task = stored_task(&kv, &id).with_context(|| format!("no {id}"))?;
                ensure!(task["title"] == title, "{task}\n{}", replica.process().tail());
            }
            Ok(())
        })
        .await
        .unwrap();
    }
    let set_aside = messages(&jetstream, LETTERS).await;
    println!(
        "{kinds:?} records of the source, the high water, control and tasks overwritten twice; \
         {set_aside} set aside as dead letters"
    );
    assert!(kinds.iter().all(|count| *count > 0), "{records:?}");
    assert!(set_aside >= 11, "{set_aside}");
    let (status, health) = replica.get("/health").await.unwrap();
    assert_eq!(status, 200, "{health}");
}

/// Streams of an earlier version allow purges, and are closed to them like new ones.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_and_the_dead_letters_deny_purges_and_those_of_an_earlier_version_do_so_from_now_on() {
    let nats = NatsServer::start().await.unwrap();
    let kv = kv().await;
    let options = ProcessorOptions::new(&nats, &kv);
    let mut replica = Processor::start(&options).await.unwrap();
    let client = nats.client().await.unwrap();
    let jetstream = jetstream::new(client.clone());
    store(&client, [("created", created("kept"))].into_iter()).await.unwrap();
    has(&kv, &replica, 1).await;
    let denied = async |stream: &str| {
        let stream = jetstream.get_stream(stream).await.unwrap();
        let config = &stream.cached_info().config;
        let rollup =
            client.publish_with_headers("$KV.TASKS--tasks-processor.task.kept", rollup(), Bytes::new());
        rollup.await.unwrap();
        (config.deny_purge, config.allow_rollup, stream.purge().await.is_err())
    };
    for stream in [LEDGER, LETTERS] {
        assert_eq!(denied(stream).await, (true, false, true), "{stream}");
    }
    // The streams are created again, because NATS cannot take back a denial.
    replica.kill().await.unwrap();
    for stream in [LEDGER, LETTERS] {
        let mut config = jetstream.get_stream(stream).await.unwrap().cached_info().config.clone();
        jetstream.delete_stream(stream).await.unwrap();
        (config.deny_purge, config.allow_rollup) = (false, stream == LEDGER);
        jetstream.create_stream(config).await.unwrap();
    }
    let replica = Processor::start(&options).await.unwrap();
    store(&client, [("created", created("next"))].into_iter()).await.unwrap();
    has(&kv, &replica, 2).await;
    for stream in [LEDGER, LETTERS] {
        assert_eq!(denied(stream).await, (true, false, true), "{stream}");
    }
    println!("2 streams that are new and 2 of an earlier version deny purges and rollups");
}

fn rollup() -> async_nats::HeaderMap {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    headers
}

/// Each producer has an account, so that only it receives the acks of its publishes. Message ids belong to the
/// stream, and so to all producers (docs/security.md).
#[tokio::test(flavor = "multi_thread")]
async fn two_producers_do_not_hear_each_others_acks_and_share_message_ids() {
    let nats = BundledNats::start_with_two_producers().await.unwrap();
    let kv = kv().await;
    let replica = Processor::start(&nats.serves(ProcessorOptions::new(&nats.nodes()[0], &kv))).await.unwrap();
    let listener = nats.raw("other").await.unwrap();
    listener.send(b"SUB _INBOX.> 1\r\n").await.unwrap();
    listener.round_trip().await.unwrap();
    let (producer, other) = (nats.client("producer").await.unwrap(), nats.client("other").await.unwrap());
    let creates = |prefix: &'static str| (0..50).map(move |n| ("created", created(&format!("{prefix}-{n}"))));
    assert_eq!(store(&producer, creates("first")).await.unwrap(), 50, "each is acknowledged to its producer");
    let heard = async || {
        listener.round_trip().await.unwrap();
        let is_message = |line: &&String| line.starts_with("MSG") || line.starts_with("HMSG");
        listener.lines().iter().filter(is_message).count()
    };
    let of_the_other = heard().await;
    assert_eq!(store(&other, creates("second")).await.unwrap(), 50);
    let own = heard().await;
    has(&kv, &replica, 100).await;

    let publish = async |client: &async_nats::Client, id: &str| {
        let message = jetstream::message::PublishMessage::build().payload(created(id).to_string().into());
        let message = message.message_id("the same");
        let sent = jetstream::new(client.clone()).send_publish("tasks.created", message).await.unwrap();
        sent.await.unwrap().duplicate
    };
    let duplicates = (publish(&producer, "third").await, publish(&other, "fourth").await);
    println!(
        "50 acks of the one, {of_the_other} heard by the other, which heard {own} of its own; the second use of a message id is \
         a duplicate: {duplicates:?}"
    );
    assert_eq!((of_the_other, own, duplicates), (0, 50, (false, true)));
}
