//! Settings that change at run time by a file, with a real process and a real nats-server.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::{Path, PathBuf};
use std::time::Duration;

use taskpipeline_simulator::{Config, Fault, Latency, Rule, Scope, Simulator};
use taskpipeline_testkit::{NatsServer, Processor, ProcessorOptions, created, eventually, publish};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(15);

/// A pipeline with changeable settings.
struct Bench {
    nats: NatsServer,
    kv: Simulator,
    file: PathBuf,
    replica: Processor,
    _folder: tempfile::TempDir,
}

fn write(file: &Path, url: &str, kv: &str, retry: &str) {
    let text = format!(
        "apiVersion: taskpipeline.dev/v1alpha1\nkind: TaskPipeline\nmetadata: {{name: tasks}}\nspec:\n  \
         nats: {{url: \"{url}\"}}\n  kv: {{secretRef: {{name: unused}}{kv}}}\n  retry: {retry}\n"
    );
    // Replaces the file atomically, as editors and kubelets do.
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

impl Bench {
    async fn start(kv: &str, retry: &str) -> Self {
        let nats = NatsServer::start().await.unwrap();
        let simulator =
            Simulator::start(Config { latency: Latency::NONE, ..Config::default() }).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pipeline.yaml");
        write(&file, &nats.url(), kv, retry);
        let options = ProcessorOptions::new(&nats, &simulator).following(&file);
        let replica = Processor::start(&options).await.unwrap();
        Self { nats, kv: simulator, file, replica, _folder: folder }
    }

    fn change(&self, kv: &str, retry: &str) {
        write(&self.file, &self.nats.url(), kv, retry);
    }

    /// A setting in the metrics.
    async fn setting(&self, name: &str) -> anyhow::Result<f64> {
        self.replica.metric(&format!("taskpipeline_setting{{name=\"{name}\"}}")).await
    }

    async fn set_to(&self, name: &str, value: f64) -> Duration {
        let began = Instant::now();
        eventually(SOON, || async {
            let is = self.setting(name).await?;
            anyhow::ensure!((is - value).abs() < f64::EPSILON, "{name} is {is}");
            Ok(())
        })
        .await
        .unwrap();
        began.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_waits_for_a_minute_comes_within_3_s_of_an_edit_of_the_delays() {
    let bench = Bench::start("", "{delays: [60s]}").await;
    bench.kv.inject(Rule::new(Fault::status(500)).on(Scope::Writes).named("down"));
    let client = bench.nats.client().await.unwrap();
    publish(&client, "created", &created("task-1")).await.unwrap();
    eventually(SOON, || async {
        anyhow::ensure!(bench.kv.seen().fault("down") > 0, "no attempt yet");
        Ok(())
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = bench.kv.requests().len();
    assert_eq!(before, 1, "the second attempt waits for a minute");
    let pid = bench.replica.process().pid();

    let edited = Instant::now();
    bench.change("", "{delays: [1s]}");
    eventually(SOON, || async {
        anyhow::ensure!(bench.kv.requests().len() > before, "no second attempt yet");
        Ok(())
    })
    .await
    .unwrap();
    let took = bench.kv.requests()[before].at - edited;
    let log = bench.replica.process().tail();
    println!("the attempt that waited for 60 s came {took:?} after the edit, in the same process ({pid})");
    assert!(took <= Duration::from_secs(3), "{took:?}");
    assert!(log.contains("retry.delays is 1s from now on; it was 1m"), "{log}");
    bench.kv.remove_faults("down");
    bench.replica.wait_landed(1, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_above_a_third_of_the_settle_time_is_refused_and_the_last_good_one_stays() {
    let bench = Bench::start("", "{}").await;
    bench.set_to("kv.requestTimeout", 10.0).await;
    let refusals = async || bench.replica.metric("taskpipeline_settings_refused_total").await;
    // The second timeout would fit a pipeline that starts with it; this process has started with 30 s.
    for (n, kv) in [(1.0, ", requestTimeout: 11s"), (2.0, ", requestTimeout: 20s, settleAfter: 60s")] {
        bench.change(kv, "{}");
        eventually(SOON, async || {
            let refused = refusals().await?;
            anyhow::ensure!(refused >= n, "{refused} refused\n{}", bench.replica.process().tail());
            Ok(())
        })
        .await
        .unwrap();
        let timeout = bench.setting("kv.requestTimeout").await.unwrap();
        println!("{kv}: refused, and it is {timeout} s");
        assert!((timeout - 10.0).abs() < f64::EPSILON);
    }
    bench.change(", requestTimeout: 5s", "{}");
    bench.set_to("kv.requestTimeout", 5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_time_out_and_batch_take_effect_within_2_s_and_show_in_a_metric() {
    let bench = Bench::start("", "{}").await;
    bench.set_to("kv.batch.maxKeys", 10_000.0).await;
    bench.change(
        ", requestTimeout: 3s, batch: {maxKeys: 2}, requestBudget: {requests: 500, period: 1m}",
        "{maxAttempts: 7}",
    );
    let took = bench.set_to("kv.batch.maxKeys", 2.0).await;
    for (name, value) in [
        ("kv.requestTimeout", 3.0),
        ("kv.requestBudget.requests", 500.0),
        ("kv.requestBudget.period", 60.0),
        ("retry.maxAttempts", 7.0),
    ] {
        bench.set_to(name, value).await;
    }
    println!("the new settings were in effect {took:?} after the edit");
    assert!(took <= Duration::from_secs(2), "{took:?}");

    let client = bench.nats.client().await.unwrap();
    for n in 0..6 {
        publish(&client, "created", &created(&format!("task-{n}"))).await.unwrap();
    }
    bench.replica.wait_landed(6, SOON).await.unwrap();
    let requests = bench.kv.requests();
    let most = requests.iter().map(|request| request.keys.len()).max().unwrap();
    println!("6 tasks in {} requests of at most {most} keys", requests.len());
    assert!(most <= 2 && requests.len() >= 3, "{most} keys in {} requests", requests.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_that_is_shortened_holds_for_the_next_request() {
    let bench = Bench::start(", requestTimeout: 60s, settleAfter: 180s", "{delays: [1s]}").await;
    bench.change(", requestTimeout: 1s", "{delays: [1s]}");
    bench.set_to("kv.requestTimeout", 1.0).await;
    bench.kv.inject(Rule::new(Fault::Hang).on(Scope::Writes).times(1).named("stalled"));
    let client = bench.nats.client().await.unwrap();
    let published = Instant::now();
    publish(&client, "created", &created("task-1")).await.unwrap();
    bench.replica.wait_landed(1, SOON).await.unwrap();
    assert_eq!(bench.kv.seen().fault("stalled"), 1, "no request was stalled: the test proves nothing");
    println!("landed {:?} after the first request was left without an answer", published.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_cannot_work_leaves_the_last_good_settings_in_effect() {
    let bench = Bench::start("", "{delays: [2s]}").await;
    bench.change("", "{delays: [], maxAttempts: 9}");
    eventually(SOON, || async {
        let refused = bench.replica.metric("taskpipeline_settings_refused_total").await?;
        anyhow::ensure!(refused > 0.0, "not refused yet");
        Ok(())
    })
    .await
    .unwrap();
    assert!((bench.setting("retry.delays[0]").await.unwrap() - 2.0).abs() < f64::EPSILON);
    assert!((bench.setting("retry.maxAttempts").await.unwrap() - 5.0).abs() < f64::EPSILON);
    let log = bench.replica.process().tail();
    assert!(log.contains("the last ones stay in effect") && log.contains("at least one delay"), "{log}");
    bench.change("", "{delays: [3s]}");
    bench.set_to("retry.delays[0]", 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_work_is_refused_at_the_start_with_every_reason() {
    let nats = NatsServer::start().await.unwrap();
    let kv = Simulator::start(Config::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pipeline.yaml");
    write(&file, "http://nats:4222", "", "{delays: []}");
    let command = ProcessorOptions::new(&nats, &kv).command(&["run", "--file", file.to_str().unwrap()]);
    let ended = tokio::time::timeout(SOON, command.unwrap().output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    println!("{text}");
    assert!(!ended.status.success());
    assert!(
        text.contains("pipeline.yaml") && text.contains("at least one delay") && text.contains("schemes"),
        "{text}"
    );
}
