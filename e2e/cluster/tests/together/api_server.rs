//! The behavior of a real API server for the type: CEL rules, defaults, `/scale`, status and ownership.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use taskpipeline_e2e_cluster::{Namespace, crd_is_installed, minimal};
use taskpipeline_operator::api::TaskPipeline;

async fn namespace() -> Namespace {
    let namespace = Namespace::new("api").await.unwrap();
    crd_is_installed(&namespace.client).await.unwrap();
    namespace
}

/// Returns the API for pipelines with any content.
fn untyped(namespace: &Namespace) -> Api<DynamicObject> {
    let resource = ApiResource::erase::<TaskPipeline>(&());
    Api::namespaced_with(namespace.client.clone(), &namespace.name, &resource)
}

fn with(path: &str, value: &Value) -> Value {
    let mut whole = minimal(&json!({}));
    let mut field = &mut whole["spec"];
    for name in path.split('.') {
        field = &mut field[name];
    }
    *field = value.clone();
    whole
}

async fn create(namespace: &Namespace, mut pipeline: Value) -> Result<Value, String> {
    pipeline["apiVersion"] = "taskpipeline.dev/v1alpha1".into();
    pipeline["kind"] = "TaskPipeline".into();
    let object: DynamicObject = serde_json::from_value(pipeline).unwrap();
    let made =
        untyped(namespace).create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await;
    made.map(|made| serde_json::to_value(made).unwrap()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_reason() {
    let namespace = namespace().await;
    let refused = [
        ("nats.url", json!("http://nats:4222"), "the schemes are nats, tls, ws and wss"),
        ("nats.url", json!("nats://user:password@nats:4222"), "must not contain a user or a password"),
        ("retry", json!({"delays": []}), "at least one delay"),
        ("retry", json!({"maxAttempts": 0}), "at least 1"),
        ("retry", json!({"delays": ["soon"]}), "should match"),
        ("kv.requestBudget", json!({"requests": 0}), "a pipeline without requests never writes"),
        ("kv.requestTimeout", json!("0s"), "more than 0s"),
        ("kv.requestTimeout", json!("10"), "should match"),
        ("kv.requestTimeout", json!("11s"), "at most a third of kv.settleAfter"),
        ("nats.url", json!("wss://nats,ws://nats:8080"), "must not fall back"),
        ("retry", json!({"delays": ["99999999h"]}), "delays"),
        ("kv.batch", json!({"maxKeys": 10_001}), "1 to 10000"),
        ("delivery", json!({"mode": "Core", "stream": {"name": "TASKS"}}), "no meaning in mode Core"),
        ("delivery", json!({"mode": "Sometimes"}), "Unsupported value"),
        ("processor.env", json!({"LD_PRELOAD": "x"}), "env may set"),
        ("processor.priorityClassName", json!("High"), "priorityClassName must be"),
        ("processor.priorityClassName", json!("a".repeat(254)), "253"),
    ];
    let mut tried = 0;
    for (path, value, why) in refused {
        let error =
            create(&namespace, with(path, &value)).await.expect_err(&format!("{path}: {value} passes"));
        assert!(error.contains(why), "{path}: {value}: {error}");
        tried += 1;
    }
    println!("{tried} pipelines refused, each with its reason");
}

#[tokio::test]
async fn defaults_are_filled_in_and_say_what_the_processor_does() {
    let namespace = namespace().await;
    let made = create(&namespace, minimal(&json!({}))).await.unwrap();
    assert_eq!(made["spec"]["retry"], json!({"maxAttempts": 5, "delays": ["1s", "3s", "10s", "20s", "30s"]}));
    assert_eq!(made["spec"]["kv"]["requestBudget"], json!({"requests": 1100, "period": "5m"}));
    assert_eq!(made["spec"]["delivery"], json!({"mode": "Durable"}));
    assert_eq!(made["spec"]["replicas"], Value::Null);
}

#[tokio::test]
async fn what_a_live_pipeline_is_bound_to_cannot_be_changed_also_not_by_removing_and_adding_it() {
    let namespace = namespace().await;
    let more = json!({"delivery": {"stream": {"name": "TASKS", "maxAge": "24h"}}});
    namespace.apply::<TaskPipeline>(minimal(&more)).await.unwrap();
    let pipelines = namespace.api::<TaskPipeline>();
    let patch = async |patch: Value| {
        let done = pipelines.patch("tasks", &PatchParams::default(), &Patch::Merge(&patch)).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    for refused in [
        json!({"delivery": {"mode": "Core", "stream": null}}),
        json!({"delivery": {"stream": {"name": "OTHER"}}}),
        json!({"delivery": {"stream": null}}),
        json!({"delivery": null}),
        json!({"nats": {"queueGroup": "others"}}),
    ] {
        let error = patch(json!({"spec": refused})).await.expect_err(&format!("{refused} passes"));
        assert!(error.contains("cannot be changed, because"), "{refused}: {error}");
    }
    patch(json!({"spec": {"retry": {"maxAttempts": 7}}})).await.unwrap();
}

#[tokio::test]
async fn scale_reads_and_writes_the_replicas_and_names_the_pods() {
    let namespace = namespace().await;
    namespace.apply::<TaskPipeline>(minimal(&json!({"replicas": 2}))).await.unwrap();
    let pipelines = namespace.api::<TaskPipeline>();
    let status = json!({"status": {"replicas": 2, "selector": "taskpipeline.dev/pipeline=tasks"}});
    pipelines.patch_status("tasks", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    let scale = json!({"spec": {"replicas": 6}});
    let scaled =
        pipelines.patch_scale("tasks", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
    let status = scaled.status.unwrap();
    assert_eq!((status.replicas, status.selector.as_deref()), (2, Some("taskpipeline.dev/pipeline=tasks")));
    assert_eq!(pipelines.get("tasks").await.unwrap().spec.replicas, Some(6));
    println!("scaled to 6; pods by {}", status.selector.unwrap());
}

/// The operator's applies rely on this; see `operator/apply.rs`.
#[tokio::test]
async fn an_apply_with_the_uid_of_another_object_is_refused_whether_one_is_there_or_none() {
    let namespace = namespace().await;
    let apply = async |uid: Option<&str>, key: &str| {
        let mut manifest = json!({"metadata": {"name": "settings"}, "data": {"key": key}});
        if let Some(uid) = uid {
            manifest["metadata"]["uid"] = uid.into();
        }
        namespace.apply::<ConfigMap>(manifest).await.map_err(|error| format!("{error:#}"))
    };
    let (another, none) = ("7c1b0000-0000-4000-8000-000000000000", namespace.api::<ConfigMap>());
    let absent = apply(Some(another), "theirs").await.unwrap_err();
    assert!(none.get_opt("settings").await.unwrap().is_none(), "the object was created: {absent}");
    let made = apply(None, "ours").await.unwrap();
    let exchanged = apply(Some(another), "theirs").await.unwrap_err();
    let own = apply(made.metadata.uid.as_deref(), "own").await.unwrap();
    assert_eq!(own.data.unwrap()["key"], "own");
    let fields = format!("{:?}", own.metadata.managed_fields);
    assert!(!fields.contains("f:uid"), "the uid became a field of a manager: {fields}");
    println!("absent: {absent}\nexchanged: {exchanged}");
}

#[tokio::test]
async fn conditions_of_two_field_managers_stand_side_by_side() {
    let namespace = namespace().await;
    namespace.apply::<TaskPipeline>(minimal(&json!({}))).await.unwrap();
    let pipelines = namespace.api::<TaskPipeline>();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    for (manager, kind) in [("taskpipeline-operator", "Ready"), ("taskpipeline-processor", "CaughtUp")] {
        let status = json!({
            "apiVersion": "taskpipeline.dev/v1alpha1", "kind": "TaskPipeline", "metadata": {"name": "tasks"},
            "status": {"conditions": [condition(kind)]},
        });
        pipelines
            .patch_status("tasks", &PatchParams::apply(manager).force(), &Patch::Apply(&status))
            .await
            .unwrap();
    }
    let kinds: Vec<_> = pipelines
        .get("tasks")
        .await
        .unwrap()
        .status
        .unwrap()
        .conditions
        .into_iter()
        .map(|it| it.type_)
        .collect();
    assert_eq!(kinds, ["Ready", "CaughtUp"]);
}
