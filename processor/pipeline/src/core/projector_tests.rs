//! Tests of the projector on paused time: what it sends to a scripted KV, and when.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use taskpipeline_contract::EventKind;
use tokio::task::JoinHandle;

use super::*;
use crate::fold::Version;
use taskpipeline_kv::{PutBody, RequestBudget};

const LATENCY: Duration = Duration::from_millis(100);

/// A request as KV received it.
#[derive(Clone, Debug)]
struct Call {
    at: Instant,
    keys: Vec<String>,
    values: Vec<String>,
}

/// The answer of KV to request n (from 0): the keys that it does not write, or a failure.
type Script = Box<dyn FnMut(usize, &Call) -> Result<HashSet<String>, Failure> + Send>;

#[derive(Clone)]
struct Scripted(Arc<Mutex<(Vec<Call>, Script)>>);

impl Scripted {
    fn new(script: impl FnMut(usize, &Call) -> Result<HashSet<String>, Failure> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new((Vec::new(), Box::new(script)))))
    }

    fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().0.clone()
    }

    async fn answer(&self, keys: Vec<String>, values: Vec<String>) -> Result<HashSet<String>, Failure> {
        let answer = {
            let mut guard = self.0.lock().unwrap();
            let (calls, script) = &mut *guard;
            let call = Call { at: Instant::now(), keys, values };
            let answer = script(calls.len(), &call);
            calls.push(call);
            answer
        };
        tokio::time::sleep(LATENCY).await;
        answer
    }
}

fn names(keys: &[TaskKey]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

impl BulkApi for Scripted {
    async fn bulk_put(&self, body: PutBody) -> Result<HashSet<String>, Failure> {
        let pairs = body.to_json();
        let all = |field: &str| {
            let pairs = pairs.as_array().unwrap().iter();
            pairs.map(|pair| pair[field].as_str().unwrap().to_owned()).collect()
        };
        self.answer(all("key"), all("value")).await
    }

    async fn bulk_delete(&self, keys: &[TaskKey]) -> Result<HashSet<String>, Failure> {
        self.answer(names(keys), Vec::new()).await
    }

    /// This KV has no task.
    async fn bulk_get(&self, keys: &[TaskKey]) -> Result<HashMap<String, Option<String>>, Failure> {
        self.answer(names(keys), Vec::new()).await.map(|_| HashMap::new())
    }
}

/// A running projector.
struct Bench {
    kv: Scripted,
    events: mpsc::Sender<Accepted>,
    letters: mpsc::Receiver<Letter>,
    metrics: Arc<Metrics>,
    running: JoinHandle<()>,
    version: Version,
    started: Instant,
}

impl Bench {
    fn start(kv: Scripted) -> Self {
        let (letters, read_letters) = DeadLetters::kept(100_000);
        let (events, to_project) = mpsc::channel(20_000);
        let (_, deadline) = watch::channel(None);
        let metrics = Arc::new(Metrics::new().unwrap());
        let projector = Projector::new(
            kv.clone(),
            watch::channel(Tuning::default()).1,
            letters,
            Arc::clone(&metrics),
            Arc::new(Health::default()),
        );
        let running = tokio::spawn(projector.run(to_project, deadline));
        let (version, started) = (Version::ZERO, Instant::now());
        Self { kv, events, letters: read_letters, metrics, running, version, started }
    }

    async fn event(&mut self, kind: EventKind, id: &str, rest: &str) {
        let payload = format!(r#"{{"correlationId": "{id}", "data": {{"id": "{id}"{rest}}}}}"#);
        self.version = self.version.next();
        let accepted = Accepted::of(kind, self.version, payload);
        assert!(self.events.send(accepted).await.is_ok());
    }

    async fn create(&mut self, id: &str) {
        self.event(EventKind::Created, id, r#", "title": "t", "description": "", "status": "pending""#).await;
    }

    async fn create_many(&mut self, count: usize) {
        for n in 0..count {
            self.create(&format!("task-{n}")).await;
        }
    }

    /// Ends the events, waits until everything is settled, and returns the requests and the dead
    /// letters.
    async fn finish(self) -> (Vec<Call>, Vec<Letter>) {
        let Self { kv, events, mut letters, running, .. } = self;
        drop(events);
        running.await.unwrap();
        let mut dead = Vec::new();
        while let Ok(letter) = letters.try_recv() {
            dead.push(letter);
        }
        (kv.calls(), dead)
    }
}

fn transient() -> Failure {
    Failure::Transient("KV answered 500".to_owned())
}

fn none() -> HashSet<String> {
    HashSet::new()
}

/// The times between the requests.
fn gaps(calls: &[Call]) -> Vec<Duration> {
    calls.windows(2).map(|pair| pair[1].at - pair[0].at - LATENCY).collect()
}

fn assert_delay(gap: Duration, seconds: u64) {
    let least = Duration::from_secs(seconds);
    let most = least.mul_f64(1.1) + Duration::from_millis(2);
    assert!((least..=most).contains(&gap), "{gap:?} is not {seconds} s and up to a tenth");
}

#[tokio::test(start_paused = true)]
async fn after_500_500_200_there_were_three_attempts_with_the_tables_delays() {
    let mut bench = Bench::start(Scripted::new(|n, _| if n < 2 { Err(transient()) } else { Ok(none()) }));
    bench.create("a").await;
    let (calls, dead) = bench.finish().await;
    let gaps = gaps(&calls);
    println!("attempts: {}, delays: {gaps:?}", calls.len());
    assert_eq!((calls.len(), dead.len()), (3, 0));
    assert_delay(gaps[0], 1);
    assert_delay(gaps[1], 3);
}

#[tokio::test(start_paused = true)]
async fn retries_exhausted_make_a_dead_letter_and_the_next_event_starts_afresh() {
    let mut bench = Bench::start(Scripted::new(|n, _| if n < 5 { Err(transient()) } else { Ok(none()) }));
    bench.create("a").await;
    let letter = bench.letters.recv().await.unwrap();
    assert_eq!((letter.reason(), letter.attempts()), (Reason::RetriesExhausted, 5));
    bench.create("a").await;
    let (calls, dead) = bench.finish().await;
    let gaps = gaps(&calls);
    println!("attempts: {}, delays: {gaps:?}", calls.len());
    assert_eq!((calls.len(), dead.len()), (6, 0));
    for (gap, seconds) in gaps.iter().zip([1, 3, 10, 20]) {
        assert_delay(*gap, seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_429_with_retry_after_7_nothing_is_sent_for_7_seconds() {
    let seven = Duration::from_secs(7);
    let throttled = move |n, _: &Call| if n == 0 { Err(Failure::Throttled(seven)) } else { Ok(none()) };
    let mut bench = Bench::start(Scripted::new(throttled));
    bench.create("first").await;
    for n in 0..60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.create(&format!("later-{n}")).await;
    }
    let (calls, dead) = bench.finish().await;
    println!("requests: {}, silence: {:?}", calls.len(), gaps(&calls)[0]);
    assert!(gaps(&calls)[0] >= seven && gaps(&calls)[0] < seven + LATENCY, "{:?}", gaps(&calls));
    assert!(calls[1].keys.len() >= 60, "what came meanwhile goes together: {}", calls[1].keys.len());
    assert!(dead.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_costs_two_requests_a_minute_and_no_attempts_and_recovers_unaided() {
    let mended = Duration::from_secs(600);
    let start = Instant::now();
    let revoked = move |_: usize, call: &Call| {
        if call.at - start < mended {
            Err(Failure::Config("the token is refused".to_owned()))
        } else {
            Ok(none())
        }
    };
    let mut bench = Bench::start(Scripted::new(revoked));
    for n in 0..700 {
        bench.create(&format!("task-{n}")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let kv = bench.kv.clone();
    let (calls, dead) = bench.finish().await;
    let refused: Vec<_> = calls.iter().filter(|call| call.at - start < mended).collect();
    for first in &refused {
        let in_minute =
            refused.iter().filter(|call| call.at >= first.at && call.at < first.at + Duration::from_secs(60));
        assert!(in_minute.count() <= 2, "more than two requests in a minute");
    }
    let landed: HashSet<_> =
        calls.iter().filter(|call| call.at - start >= mended).flat_map(|call| &call.keys).collect();
    println!("{} requests in ten minutes, {} landed afterwards", refused.len(), landed.len());
    assert!((15..=20).contains(&refused.len()), "it is tried again all the time: {}", refused.len());
    assert_eq!((landed.len(), dead.len()), (700, 0));
    let first_landed = kv.calls().iter().find(|call| call.at - start >= mended).unwrap().at;
    assert!(first_landed - start < mended + Duration::from_secs(31), "it is noticed within half a minute");
}

#[tokio::test(start_paused = true)]
async fn of_100_keys_7_fail_and_only_those_are_sent_again() {
    let failing = |key: &&String| key.ends_with("-3") || key.ends_with("-77");
    let script = move |_: usize, call: &Call| {
        let bulk = call.keys.len() > 50;
        Ok(call
            .keys
            .iter()
            .filter(|key| bulk && (failing(key) || key.ends_with('5')))
            .take(7)
            .cloned()
            .collect())
    };
    let mut bench = Bench::start(Scripted::new(script));
    // The first event is sent alone, and a hundred gather behind it.
    bench.create("first").await;
    tokio::time::sleep(LATENCY / 2).await;
    bench.create_many(100).await;
    let (calls, dead) = bench.finish().await;
    let sizes: Vec<_> = calls.iter().map(|call| call.keys.len()).collect();
    println!("keys in each request: {sizes:?}");
    assert_eq!(sizes, [1, 100, 7]);
    assert!(calls[2].keys.iter().all(|key| failing(&key) || key.ends_with('5')));
    assert_delay(gaps(&calls)[1], 1);
    assert!(dead.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_10000_values_one_is_refused_and_9999_land() {
    let refuses = |call: &Call| call.keys.iter().any(|key| key == "tasks:task-6789");
    let landed = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&landed);
    let script = move |_: usize, call: &Call| {
        if refuses(call) {
            return Err(Failure::Refused("KV answered 400".to_owned()));
        }
        // Without the controls, which show the cause.
        let of_tasks = call.keys.iter().filter(|key| key.starts_with("tasks:task-"));
        seen.lock().unwrap().extend(of_tasks.cloned());
        Ok(none())
    };
    let mut bench = Bench::start(Scripted::new(script));
    bench.create_many(10_000).await;
    let (calls, dead) = bench.finish().await;
    let landed = landed.lock().unwrap().len();
    println!("{landed} landed, {} dead letters, {} requests", dead.len(), calls.len());
    assert_eq!((landed, dead.len()), (9_999, 1));
    assert_eq!(dead[0].reason(), Reason::RefusedByKv);
    assert!(calls.len() < 50, "halving takes {} requests", calls.len());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_is_never_taken_for_not_there() {
    let mut bench = Bench::start(Scripted::new(|_, _| Err(transient())));
    bench.event(EventKind::Updated, "a", r#", "title": "new""#).await;
    let metrics = Arc::clone(&bench.metrics);
    let (calls, dead) = bench.finish().await;
    assert_eq!((calls.len(), dead.len()), (5, 1));
    assert_eq!(dead[0].reason(), Reason::RetriesExhausted);
    assert_eq!(metrics.updates_unknown.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_overtakes_failing_reads_has_all_its_attempts() {
    // Two reads fail. The create's write fails four more times, and its fifth attempt succeeds.
    let mut bench = Bench::start(Scripted::new(|n, _| if n < 6 { Err(transient()) } else { Ok(none()) }));
    bench.event(EventKind::Updated, "a", r#", "title": "early""#).await;
    while bench.kv.calls().len() < 2 {
        tokio::time::sleep(LATENCY).await;
    }
    tokio::time::sleep(LATENCY * 2).await;
    bench.create("a").await;
    let (calls, dead) = bench.finish().await;
    assert_eq!((calls.len(), dead.len()), (7, 0), "two reads and five writes");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_while_its_task_is_given_up_is_not_forgotten() {
    // All reads fail. The second update arrives during the last attempt of the first.
    let mut bench = Bench::start(Scripted::new(|n, _| if n < 5 { Err(transient()) } else { Ok(none()) }));
    bench.event(EventKind::Updated, "a", r#", "title": "first""#).await;
    while bench.kv.calls().len() < 5 {
        tokio::time::sleep(LATENCY / 4).await;
    }
    bench.event(EventKind::Updated, "a", r#", "title": "second""#).await;
    let metrics = Arc::clone(&bench.metrics);
    let (calls, dead) = bench.finish().await;
    assert_eq!((calls.len(), dead.len()), (6, 1), "the second update asks KV for itself");
    assert_eq!(metrics.updates_unknown.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hot_task_is_written_once_a_second_with_its_newest_value() {
    let mut bench = Bench::start(Scripted::new(|_, _| Ok(none())));
    bench.create("hot").await;
    for n in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.event(EventKind::Updated, "hot", &format!(r#", "title": "title {n}""#)).await;
    }
    let (calls, _) = bench.finish().await;
    println!("101 events in 10 s became {} writes", calls.len());
    assert!((9..=12).contains(&calls.len()), "{}", calls.len());
    assert!(gaps(&calls).iter().all(|gap| *gap >= Duration::from_secs(1)));
    assert!(calls.last().unwrap().values[0].contains("title 99"));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_load_stays_within_the_budget() {
    let mut bench = Bench::start(Scripted::new(|_, _| Ok(none())));
    for n in 0..36_000 {
        bench.create(&format!("task-{n}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let started = bench.started;
    let (calls, _) = bench.finish().await;
    let budget = RequestBudget::default();
    let most = (0..calls.len())
        .map(|n| calls[n..].iter().take_while(|call| call.at < calls[n].at + budget.period).count())
        .max()
        .unwrap();
    let minutes = (calls.last().unwrap().at - started).as_secs() / 60;
    println!("{} requests in {minutes} minutes, at most {most} in five", calls.len());
    assert!(most <= NonZeroU32::get(budget.requests) as usize, "{most}");
    assert!(most > 900, "the load must come near the limit to prove anything: {most}");
}
