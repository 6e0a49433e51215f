//! Upgrades from the previous release to this one, as administrators do them. These tests need the cluster's only CRD
//! for themselves.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::time::Duration;

use anyhow::ensure;
use async_nats::jetstream;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams, Patch, PatchParams};
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{
    Chart, Helm, Image, Namespace, OperatorPods, PROCESSORS, Release, condition, crd_is_removed, eventually,
    forward, log_in, present, ready,
};
use taskpipeline_operator::api::TaskPipeline;
use tokio::sync::Mutex;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(90);
const EARLIER: &str = "0.1.0";

const VERSION: &str = "taskpipeline.dev/version";
const CRD_NAME: &str = "taskpipelines.taskpipeline.dev";

/// Allows one test at a time.
static CRD: Mutex<()> = Mutex::const_new(());

/// The version of the CRD in the cluster, and the API server's schema of `spec.processor`.
async fn crd(namespace: &Namespace) -> (String, Value) {
    let crds: Api<CustomResourceDefinition> = Api::all(namespace.client.clone());
    let crd = crds.get(CRD_NAME).await.unwrap();
    let version = crd.annotations()[VERSION].clone();
    let crd = serde_json::to_value(crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    (version, schema["spec"]["properties"]["processor"]["properties"].clone())
}

/// Lists the pods with this label, if all run this image and none is terminating.
async fn all_run(namespace: &Namespace, label: &str, image: Image) -> anyhow::Result<Vec<Pod>> {
    let image = image.name()?;
    let pods = present(namespace, label).await?;
    ensure!(!pods.is_empty(), "no pod has the label {label}");
    for pod in &pods {
        let runs = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        ensure!(runs.as_deref() == Some(&image), "{} still runs {runs:?}", pod.name_any());
    }
    Ok(pods)
}

async fn nats(namespace: &Namespace) -> Option<String> {
    namespace.api::<Pod>().get("demo-nats-0").await.unwrap().uid()
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_upgrade_from_an_earlier_chart_crd_and_image_under_load_loses_nothing() {
    let _alone = CRD.lock().await;
    crd_is_removed().await.unwrap();
    let release = Release::install("upgrade", &Chart::earlier().unwrap(), &[]).await.unwrap();
    let namespace = &release.namespace;
    let producer = release.producer(100).await.unwrap();
    producer.reaches(200).await.unwrap();
    let (version, before) = crd(namespace).await;
    assert_eq!(version, EARLIER);
    assert!(before["resources"].is_object() && before["priorityClassName"].is_null(), "{before}");
    all_run(namespace, PROCESSORS, Image::Earlier).await.unwrap();
    let nats_before = nats(namespace).await;

    let (began, stored_before) = (Instant::now(), producer.stored().await.unwrap());
    // The former CRD does not have this field.
    let values = ["pipeline.spec.processor.priorityClassName=system-cluster-critical"];
    release.helm.upgrade(&Chart::current(), &values).await.unwrap();
    let upgraded = began.elapsed();
    let pods = eventually(SOON, async || {
        all_run(namespace, OperatorPods::LABEL, Image::Processor).await?;
        condition(namespace, "Ready", "True").await?;
        condition(namespace, "Progressing", "False").await?;
        all_run(namespace, PROCESSORS, Image::Processor).await
    })
    .await
    .unwrap();
    let (rolled, stored_meanwhile) = (began.elapsed(), producer.stored().await.unwrap() - stored_before);
    for pod in &pods {
        let class = pod.spec.as_ref().and_then(|spec| spec.priority_class_name.as_deref());
        assert_eq!(class, Some("system-cluster-critical"), "{}", pod.name_any());
    }
    let (version, after) = crd(namespace).await;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(after["priorityClassName"].is_object(), "{after}");
    producer.reaches(producer.stored().await.unwrap() + 200).await.unwrap();
    let stored = release.all_land(&producer).await.unwrap();
    println!(
        "from {EARLIER} to {version}: helm upgrade took {upgraded:.1?}, all pods were new after {rolled:.1?}; \
         {stored_meanwhile} events stored meanwhile, {stored} in all, all in KV; nats-server's pod is {}",
        if nats(namespace).await == nats_before { "the same" } else { "another" }
    );
    assert!(stored_meanwhile > 0 && rolled > upgraded / 2, "nothing was stored while it was upgraded");

    producers_get_accounts_of_their_own(&release, &values).await;

    // The annotation imitates a newer release.
    let newer = json!({"metadata": {"annotations": {VERSION: "99.0.0"}}});
    let crds: Api<CustomResourceDefinition> = Api::all(namespace.client.clone());
    crds.patch(CRD_NAME, &PatchParams::default(), &Patch::Merge(&newer)).await.unwrap();
    let began = Instant::now();
    let refused = release.helm.upgrade(&Chart::current(), &[]).await.expect_err("a downgrade");
    let log = hooks_log(namespace).await;
    println!("a downgrade is refused after {:.1?}: {log}", began.elapsed());
    assert!(
        log.contains("has version 99.0.0") && log.contains("a downgrade could break pipelines"),
        "{log} {refused}"
    );
    assert_eq!(crd(namespace).await.0, "99.0.0");
}

/// NATS stores streams by account: the upgrade keeps the single account, and changes to several accounts only on request.
async fn producers_get_accounts_of_their_own(release: &Release, values: &[&str]) {
    let namespace = &release.namespace;
    let accounts = async || {
        let config = namespace.api::<ConfigMap>().get("demo-nats").await?.data.unwrap_or_default();
        anyhow::Ok(config["nats.conf"].matches("jetstream: enabled").count())
    };
    assert_eq!(accounts().await.unwrap(), 0, "the streams are in the default account");
    let before = nats(namespace).await;
    let isolated: Vec<_> = values.iter().copied().chain(["nats.auth.isolateProducers=true"]).collect();
    release.helm.upgrade(&Chart::current(), &isolated).await.unwrap();
    assert_eq!(accounts().await.unwrap(), 1);
    eventually(SOON, async || {
        ensure!(nats(namespace).await != before, "nats-server still has the old configuration");
        ready(namespace, "app.kubernetes.io/component=nats-server", 1).await?;
        condition(namespace, "NatsConnected", "True").await
    })
    .await
    .unwrap();
    // The next upgrade needs no such request.
    release.helm.upgrade(&Chart::current(), values).await.unwrap();
    assert_eq!(accounts().await.unwrap(), 1);
    let server = forward(namespace, "nats-server", 4222).await.unwrap();
    let producer = jetstream::new(log_in(namespace, &server, "producer").await.unwrap());
    let update =
        json!({"correlationId": "isolated", "data": {"id": "load-0", "title": "Isolated"}}).to_string();
    eventually(SOON, async || {
        // Until the first replica has created the stream again, no stream acknowledges the event.
        let sent = producer.publish("tasks.updated", update.clone().into()).await?;
        sent.await.map(drop).map_err(Into::into)
    })
    .await
    .unwrap();
    eventually(SOON, async || {
        let task = release.kv.task("load-0").await?;
        ensure!(task["title"] == "Isolated", "{task}");
        Ok(())
    })
    .await
    .unwrap();
    println!("the producer has an account of its own, and its update of an earlier task is in KV");
}

/// The log of the hook that updates the CRD. A failed hook stays.
async fn hooks_log(namespace: &Namespace) -> String {
    let params = ListParams::default().labels("app.kubernetes.io/component=crd-upgrade");
    let pods = namespace.api::<Pod>().list(&params).await.unwrap();
    let name = pods.items.first().unwrap().name_any();
    namespace.api::<Pod>().logs(&name, &LogParams::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_chart_installs_over_an_old_crd_left_behind_and_an_old_one_not_over_a_new_crd() {
    let _alone = CRD.lock().await;
    crd_is_removed().await.unwrap();
    let release = Release::install("left", &Chart::earlier().unwrap(), &[]).await.unwrap();
    let namespace = &release.namespace;
    release.helm.uninstall().await.unwrap();
    let (version, _) = crd(namespace).await;
    assert_eq!(version, EARLIER, "the chart did not leave the CRD");
    eventually(SOON, async || {
        let left = namespace.api::<TaskPipeline>().list(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} pipelines still exist");
        Ok(())
    })
    .await
    .unwrap();

    let values = ["kv.secretName=kv", "pipeline.spec.processor.priorityClassName=system-cluster-critical"];
    release.helm.install(&Chart::current(), &values).await.unwrap();
    eventually(SOON, async || condition(namespace, "Ready", "True").await).await.unwrap();
    let (version, _) = crd(namespace).await;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let tested = release.helm.test().await.unwrap();
    assert!(tested.contains("the pipeline works"), "{tested}");

    let other = Namespace::new("older").await.unwrap();
    let older = Helm::new(&other, "older").unwrap();
    let refused = older.install(&Chart::earlier().unwrap(), &["kv.secretName=kv"]).await;
    let refused = refused.expect_err("an older chart").to_string();
    println!("{version} over a CRD of {EARLIER} works; {EARLIER} over {version}: {refused}");
    assert!(refused.contains("newer-taskpipeline"), "{refused}");
    let (still, _) = crd(namespace).await;
    assert_eq!(still, version);
}
