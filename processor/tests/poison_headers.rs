//! A producer that sends headers that no NATS client can read can only fill the dead letters.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use taskpipeline_simulator::{Config, Latency, Simulator};
use taskpipeline_testkit::{
    BundledNats, Processor, ProcessorOptions, RawClient, UNREADABLE_HEADERS, created, eventually,
};

const SOON: Duration = Duration::from_secs(60);
const LETTERS: &str = "TASKS-DEAD-LETTERS";

/// The time limit for a valid event while others are unreadable.
const MOST: Duration = Duration::from_secs(10);

/// Header blocks with a status, which the client would take for the server's answer to its pull. This server removes
/// the status before it stores them.
const SPEAKING: [&[u8]; 7] = [
    b"NATS/1.0 ok\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 999 Nonsense\r\n\r\n",
];

/// Unusual headers that the client accepts.
const READABLE: [&[u8]; 5] = [
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nA: b\r\n  c\r\nA: \xc3\xa9\r\n\r\n",
    b"NATS/1.0 200 OK\r\n\r\n",
    b"NATS/1.0\nA: b\n\n",
];

async fn kv() -> Simulator {
    let config = Config { rate_limit: None, latency: Latency::NONE, ..Config::default() };
    Simulator::start(config).await.unwrap()
}

/// Waits until this key is in KV.
async fn lands(kv: &Simulator, replica: &Processor, key: &str) {
    eventually(MOST, async || {
        ensure!(kv.get(key).is_some(), "{key} is not in KV: {}", replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
}

fn options(nats: &BundledNats, node: usize, kv: &Simulator) -> ProcessorOptions {
    nats.serves(ProcessorOptions::new(&nats.nodes()[node], kv)).set("REQUEST_BUDGET", "1000000/5m")
}

async fn poison(producer: &RawClient, block: &[u8], id: &str) {
    producer.publish_with("tasks.created", "", block, created(id).to_string().as_bytes()).await.unwrap();
}

async fn good(producer: &RawClient, id: &str) {
    producer.publish("tasks.created", "", created(id).to_string().as_bytes()).await.unwrap();
}

async fn letters(nats: &BundledNats) -> Vec<Value> {
    let jetstream = jetstream::new(nats.client("processor").await.unwrap());
    let stream = jetstream.get_stream(LETTERS).await.unwrap();
    let state = stream.cached_info().state.clone();
    let mut letters = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        letters.push(serde_json::from_slice(&message.payload).unwrap());
    }
    letters
}

async fn count_letters(nats: &BundledNats) -> u64 {
    let jetstream = jetstream::new(nats.client("processor").await.unwrap());
    jetstream.get_stream(LETTERS).await.unwrap().cached_info().state.messages
}

async fn ack_floor(nats: &BundledNats) -> (u64, usize, u64) {
    let jetstream = jetstream::new(nats.client("processor").await.unwrap());
    let stream = jetstream.get_stream("TASKS").await.unwrap();
    let info = stream.consumer_info("tasks-processor-1").await.unwrap();
    (info.ack_floor.stream_sequence, info.num_ack_pending, info.num_pending)
}

async fn all_is_acknowledged(nats: &BundledNats, replica: &Processor) {
    eventually(SOON, async || {
        let (floor, unacknowledged, waiting) = ack_floor(nats).await;
        ensure!(
            unacknowledged == 0 && waiting == 0,
            "{unacknowledged} unacknowledged above {floor}, {waiting} wait\n{}",
            replica.process().tail()
        );
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_header_block_that_the_client_cannot_take_becomes_a_dead_letter_and_holds_up_nothing() {
    let (nats, kv) = (BundledNats::start().await.unwrap(), kv().await);
    let replica = Processor::start(&options(&nats, 0, &kv)).await.unwrap();
    let producer = nats.raw("producer").await.unwrap();
    let mut slowest = Duration::ZERO;
    for (n, block) in UNREADABLE_HEADERS.iter().chain(&SPEAKING).chain(&READABLE).enumerate() {
        poison(&producer, block, &format!("odd-{n}")).await;
        let begun = Instant::now();
        good(&producer, &format!("good-{n}")).await;
        eventually(MOST, async || {
            ensure!(
                kv.get(&format!("tasks:good-{n}")).is_some(),
                "after {}\n{}",
                String::from_utf8_lossy(block),
                replica.process().tail()
            );
            Ok(())
        })
        .await
        .unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    all_is_acknowledged(&nats, &replica).await;
    let (bad, all) = (UNREADABLE_HEADERS, UNREADABLE_HEADERS.len() + SPEAKING.len() + READABLE.len());
    for n in 0..all {
        assert_eq!(kv.get(&format!("tasks:odd-{n}")).is_some(), n >= bad.len(), "odd-{n}");
    }
    let mut letters = letters(&nats).await;
    letters.sort_by_key(|letter| letter["version"]["sequence"].as_u64());
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for (n, (letter, block)) in letters.iter().zip(&bad).enumerate() {
        assert_eq!(letter["reason"], "unreadable-headers", "{letter}");
        let stored = BASE64.decode(letter["headerBlock"].as_str().unwrap()).unwrap();
        // The server has added the producer's identity before the last line.
        assert!(stored.starts_with(&block[..block.len() - 2]), "{:?}", String::from_utf8_lossy(&stored));
        let payload: Value =
            serde_json::from_slice(&BASE64.decode(letter["payload"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!(payload, created(&format!("odd-{n}")));
    }
    let (status, health) = replica.get("/health").await.unwrap();
    let health: Value = serde_json::from_str(&health).unwrap();
    let unreadable = replica.metric("taskpipeline_events_unreadable_total").await.unwrap();
    println!(
        "{} blocks, {} of them unreadable: as many dead letters with their bytes; a good event after each landed within \
         {} ms; health {status}: {}",
        all,
        letters.len(),
        slowest.as_millis(),
        health["services"]["producers"]
    );
    assert!(unreadable >= f64::from(u32::try_from(bad.len()).unwrap()), "{unreadable}");
    assert_eq!(
        (status, health["services"]["producers"]["status"].as_str()),
        (200, Some("unreadable headers"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_five_thousand_poison_messages_at_once_do_not_stop_ingest() {
    const POISON: usize = 25_000;
    let (nats, kv) = (BundledNats::start().await.unwrap(), kv().await);
    let replica = Processor::start(&options(&nats, 0, &kv)).await.unwrap();
    let producer = nats.raw("producer").await.unwrap();
    for n in 0..POISON {
        poison(&producer, UNREADABLE_HEADERS[n % UNREADABLE_HEADERS.len()], &format!("poison-{n}")).await;
        if n % 100 == 0 {
            good(&producer, &format!("good-{n}")).await;
        }
    }
    producer.round_trip().await.unwrap();
    let sent = Instant::now();
    good(&producer, "last").await;
    eventually(SOON, async || {
        let there = kv.keys().len();
        ensure!(there == POISON / 100 + 1, "{there} of {}\n{}", POISON / 100 + 1, replica.process().tail());
        Ok(())
    })
    .await
    .unwrap();
    let landed = sent.elapsed();
    all_is_acknowledged(&nats, &replica).await;
    let letters = count_letters(&nats).await;
    let (status, _) = replica.get("/health").await.unwrap();
    println!(
        "{POISON} poison messages at once: {letters} dead letters; the last of {} good events landed after {} ms, all is \
         acknowledged after {} ms; health {status}",
        POISON / 100 + 1,
        landed.as_millis(),
        sent.elapsed().as_millis()
    );
    assert_eq!(letters, u64::try_from(POISON).unwrap());
    assert!(landed < MOST, "{landed:?}");
}

/// Publishes a thousand unreadable messages a minute among valid events.
async fn a_thousand_a_minute(nats: BundledNats, replicas: usize, seconds: u64) {
    let kv = kv().await;
    let mut processors = Vec::new();
    for n in 0..replicas {
        processors.push(Processor::start(&options(&nats, n % nats.nodes().len(), &kv)).await.unwrap());
    }
    let producer = nats.raw("producer").await.unwrap();
    let begun = Instant::now();
    let (mut sent, mut landed): (HashMap<String, Instant>, HashMap<String, Duration>) = Default::default();
    let (mut poisoned, mut tick) = (0_u64, tokio::time::interval(Duration::from_millis(60)));
    while begun.elapsed() < Duration::from_secs(seconds) || landed.len() < sent.len() {
        tick.tick().await;
        if begun.elapsed() < Duration::from_secs(seconds) {
            // 1,000 unreadable messages a minute, and three valid ones beside each.
            let block = UNREADABLE_HEADERS[usize::try_from(poisoned).unwrap() % UNREADABLE_HEADERS.len()];
            for n in 0..4 {
                if n == poisoned % 4 {
                    poison(&producer, block, &format!("poison-{poisoned}")).await;
                } else {
                    let id = format!("good-{poisoned}-{n}");
                    good(&producer, &id).await;
                    sent.insert(id, Instant::now());
                }
            }
            poisoned += 1;
        }
        for key in kv.keys() {
            let id = key.strip_prefix("tasks:").unwrap();
            if let Some(at) = sent.get(id) {
                landed.entry(id.to_owned()).or_insert_with(|| at.elapsed());
            }
        }
        let overdue = sent.iter().filter(|(id, at)| !landed.contains_key(*id) && at.elapsed() > SOON).count();
        let tails: Vec<_> = processors.iter().map(|it| it.process().tail()).collect();
        assert_eq!(overdue, 0, "of {} good events: {}", sent.len(), tails.join("\n---\n"));
    }
    all_is_acknowledged(&nats, &processors[0]).await;
    let mut times: Vec<_> = landed.values().copied().collect();
    times.sort();
    let letters = count_letters(&nats).await;
    let mut told = Vec::new();
    for replica in &processors {
        let health: Value = serde_json::from_str(&replica.get("/health").await.unwrap().1).unwrap();
        told.push(format!("{}: {}", health["status"], health["services"]["producers"]["status"]));
    }
    println!(
        "{poisoned} poison messages in {seconds} s among {} good events, {replicas} replicas, {} servers: all good ones in KV, \
         half of them within {} ms, the slowest within {} ms; {letters} dead letters; health {}",
        times.len(),
        nats.nodes().len(),
        times[times.len() / 2].as_millis(),
        times[times.len() - 1].as_millis(),
        told.join(", ")
    );
    assert_eq!(letters, poisoned);
    assert!(times[times.len() - 1] < MOST);
    assert!(told.iter().any(|told| told.contains("unreadable headers")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_poison_messages_a_minute_do_not_hold_up_good_events() {
    a_thousand_a_minute(BundledNats::start().await.unwrap(), 1, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_poison_messages_a_minute_do_not_hold_up_three_replicas_on_three_servers() {
    a_thousand_a_minute(BundledNats::start_three().await.unwrap(), 3, 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_large_headers_and_a_large_payload_is_stored_and_holds_up_nothing() {
    let (nats, kv) = (BundledNats::start().await.unwrap(), kv().await);
    let options = options(&nats, 0, &kv).set("STREAM_MAX_EVENT_BYTES", "1048576");
    let replica = Processor::start(&options).await.unwrap();
    let producer = nats.raw("producer").await.unwrap();
    let quotes = "\"".repeat(60 * 1024);
    let block = format!("NATS/1.0\r\nX-Quotes: {quotes}\r\n\r\n");
    let payload = vec![b'x'; 800 * 1024];
    producer.publish_with("tasks.created", "", block.as_bytes(), &payload).await.unwrap();
    let begun = Instant::now();
    good(&producer, "good").await;
    lands(&kv, &replica, "tasks:good").await;
    let landed = begun.elapsed();
    all_is_acknowledged(&nats, &replica).await;
    let parts = letters(&nats).await;
    let bytes = parts.iter().map(|part| BASE64.decode(part["payload"].as_str().unwrap()).unwrap());
    let whole: Vec<u8> = bytes.flatten().collect();
    let header_bytes = usize::try_from(parts[0]["headerBytes"].as_u64().unwrap_or(0)).unwrap();
    let heads: Value = match header_bytes {
        0 => parts[0].clone(),
        bytes => serde_json::from_slice(&whole[..bytes]).unwrap(),
    };
    println!(
        "a header of {} quotes and {} bytes: a dead letter in {} parts; the next event landed after {} ms",
        quotes.len(),
        payload.len(),
        parts.len(),
        landed.as_millis()
    );
    assert_eq!(heads["headers"]["X-Quotes"][0].as_str().unwrap(), quotes);
    assert_eq!(whole[header_bytes..], payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_after_an_unreadable_message_takes_in_what_comes_next() {
    let (nats, kv) = (BundledNats::start().await.unwrap(), kv().await);
    let mut replica = Processor::start(&options(&nats, 0, &kv)).await.unwrap();
    let producer = nats.raw("producer").await.unwrap();
    good(&producer, "before").await;
    poison(&producer, UNREADABLE_HEADERS[0], "last").await;
    producer.round_trip().await.unwrap();
    all_is_acknowledged(&nats, &replica).await;
    let letters = count_letters(&nats).await;
    assert!(replica.terminate(SOON).await.unwrap().success());
    let replica = Processor::spawn(&options(&nats, 0, &kv)).unwrap();
    good(&producer, "after").await;
    lands(&kv, &replica, "tasks:after").await;
    println!(
        "{letters} dead letter; the next event is in KV though the last one before the start was unreadable"
    );
    assert_eq!(letters, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_messages_wait_while_the_dead_letters_take_nothing_and_none_is_lost() {
    const POISON: u64 = 5;
    let (nats, kv) = (BundledNats::start().await.unwrap(), kv().await);
    let replica = Processor::start(&options(&nats, 0, &kv)).await.unwrap();
    let jetstream = jetstream::new(nats.client("processor").await.unwrap());
    let room = jetstream.get_stream(LETTERS).await.unwrap().cached_info().config.clone();
    let limited = jetstream::stream::Config { max_message_size: 1, ..room.clone() };
    jetstream.update_stream(limited).await.unwrap();
    let producer = nats.raw("producer").await.unwrap();
    for n in 0..POISON {
        poison(&producer, UNREADABLE_HEADERS[0], &format!("poison-{n}")).await;
    }
    // The time is enough for several checks.
    tokio::time::sleep(Duration::from_secs(4)).await;
    good(&producer, "good").await;
    lands(&kv, &replica, "tasks:good").await;
    let (_, waiting, _) = ack_floor(&nats).await;
    let stored = count_letters(&nats).await;
    jetstream.update_stream(room).await.unwrap();
    all_is_acknowledged(&nats, &replica).await;
    let letters = count_letters(&nats).await;
    println!(
        "{waiting} unacknowledged and {stored} dead letters while these take nothing; then {letters} of {POISON}"
    );
    assert_eq!((waiting, stored, letters), (usize::try_from(POISON).unwrap(), 0, POISON));
}
