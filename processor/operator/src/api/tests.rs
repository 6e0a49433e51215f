//! Tests of the type with YAML as users write it. kube's own checker evaluates the CEL rules here, and a real API server in
//! `cargo xtask e2e`.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use taskpipeline_pipeline::settings::{PipelineSettings, Tuning};

fn pipeline(yaml: &str) -> TaskPipeline {
    serde_saphyr::from_str(yaml).unwrap()
}

fn minimal() -> TaskPipeline {
    pipeline(include_str!("../../../tests/pipelines/minimal.yaml"))
}

/// The minimal pipeline with another value in one field.
fn with(path: &str, value: &Value) -> Result<TaskPipeline, serde_json::Error> {
    edited(&minimal(), path, value)
}

fn edited(pipeline: &TaskPipeline, path: &str, value: &Value) -> Result<TaskPipeline, serde_json::Error> {
    let mut whole = serde_json::to_value(pipeline).unwrap();
    let mut field = &mut whole["spec"];
    for name in path.split('.') {
        field = &mut field[name];
    }
    *field = value.clone();
    serde_json::from_value(whole)
}

#[test]
fn a_minimal_pipeline_has_the_defaults_that_the_processor_has() {
    let minimal = minimal();
    assert!(minimal.validate_cel().is_ok());
    let (tuning, default) = (PipelineSettings::try_from(&minimal.spec).unwrap().tuning, Tuning::default());
    assert_eq!(tuning, default);
    assert_eq!(minimal.spec.replicas, None);
    assert_eq!((minimal.spec.delivery.mode, minimal.spec.suspend), (Mode::Durable, false));
}

#[test]
fn everything_that_can_be_said_is_read() {
    let full = pipeline(include_str!("../../../tests/pipelines/full.yaml"));
    assert!(full.validate_cel().is_ok());
    let tuning = PipelineSettings::try_from(&full.spec).unwrap().tuning;
    assert_eq!(tuning.retry.delays, [Duration::from_millis(500), Duration::from_secs(2)]);
    assert_eq!(tuning.request_budget.period, Duration::from_secs(60));
    assert_eq!(tuning.min_write_interval, Duration::from_secs(10));
    assert_eq!((tuning.max_keys.get(), tuning.retry.max_attempts.get()), (500, 3));
    assert_eq!(full.spec.processor.priority_class_name.as_deref(), Some("shop.high"));
    assert_eq!(full.spec.delivery.stream.unwrap().max_age.to_string(), "24h");
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    let refused = [
        ("nats.url", json!("http://nats:4222"), "the schemes are nats, tls, ws and wss"),
        ("nats.url", json!("nats://user:password@nats:4222"), "must not contain a user or a password"),
        ("nats.url", json!("nats://nats:4222/path"), "must name a host"),
        ("nats.url", json!("nats://one:4222,two:4222"), "separated by commas"),
        ("nats.subjectPrefix", json!("tasks.>"), "subjectPrefix must be"),
        ("nats.queueGroup", json!("a.b"), "queueGroup must consist of"),
        ("retry.delays", json!([]), "at least one delay"),
        ("retry.maxAttempts", json!(0), "at least 1"),
        ("kv.requestBudget.requests", json!(0), "a pipeline without requests never writes"),
        ("nats.url", json!("wss://nats,ws://nats:8080"), "must not fall back"),
        ("nats.url", json!("wss://nats,nats://nats:4222"), "must not fall back"),
        ("kv.requestBudget.period", json!("500ms"), "1s to 87600h"),
        ("kv.requestTimeout", json!("10001ms"), "at most a third of kv.settleAfter"),
        ("kv.settleAfter", json!("29s"), "at most a third of kv.settleAfter"),
        ("kv.settleAfter", json!("2h"), "1s to 1h"),
        ("kv.requestTimeout", json!("0s"), "more than 0s"),
        ("kv.batch.maxKeys", json!(10_001), "1 to 10000"),
        ("replicas", json!(-1), "replicas must be"),
        ("delivery.stream", json!({"name": "A B"}), "stream.name must consist of"),
        ("delivery.stream", json!({"replicas": 2}), "1, 3 or 5"),
        ("delivery.stream", json!({"maxAge": "10s"}), "1m to 87600h"),
        ("delivery.stream", json!({"maxEventBytes": 1000}), "1024 to 67108864"),
        ("delivery", json!({"mode": "Core", "stream": {"name": "TASKS"}}), "no meaning in mode Core"),
        ("delivery", json!({"mode": "Core", "room": {"events": "1Gi"}}), "delivery.room has no meaning"),
        ("processor.env", json!({"LD_PRELOAD": "x"}), "env may set"),
        ("processor.priorityClassName", json!("High"), "priorityClassName must be"),
        ("processor.priorityClassName", json!("high-"), "priorityClassName must be"),
        ("processor.priorityClassName", json!("shop..high"), "priorityClassName must be"),
        ("processor.priorityClassName", json!("shop.-high"), "priorityClassName must be"),
    ];
    for (path, value, why) in refused {
        let pipeline = with(path, &value).unwrap();
        let errors = pipeline.validate_cel().expect_err(&format!("{path}: {value} passes")).to_string();
        assert!(errors.contains(why), "{path}: {value}: {errors}");
    }
}

#[test]
fn a_time_out_may_be_a_third_of_the_settle_time_and_in_mode_core_longer() {
    let longer = with("kv.settleAfter", &json!("90s")).unwrap();
    let longer = edited(&longer, "kv.requestTimeout", &json!("30s")).unwrap();
    assert!(longer.validate_cel().is_ok(), "{:?}", longer.validate_cel());
    assert_eq!(
        PipelineSettings::try_from(&longer.spec).unwrap().tuning.request_timeout,
        Duration::from_secs(30)
    );
    let core = pipeline(include_str!("../../../tests/pipelines/core.yaml"));
    let core = edited(&core, "kv.requestTimeout", &json!("1m")).unwrap();
    assert!(core.validate_cel().is_ok() && PipelineSettings::try_from(&core.spec).is_ok());
    for url in ["nats://a,tls://b:4222", "wss://a,wss://b", "ws://a:8080"] {
        assert!(with("nats.url", &json!(url)).unwrap().validate_cel().is_ok(), "{url}");
    }
}

#[test]
fn durations_that_do_not_parse_are_refused() {
    for (path, value) in [
        ("retry.delays", json!(["1s", "soon"])),
        ("kv.requestTimeout", json!("10")),
        ("kv.requestBudget.period", json!("-5m")),
        ("kv.minWriteInterval", json!("")),
        ("retry.delays", json!(["1s", "87601h"])),
        ("kv.requestBudget.period", json!("99999999999h")),
    ] {
        let error = with(path, &value).unwrap_err().to_string();
        assert!(error.contains("must be a duration such as"), "{path}: {error}");
    }
}

#[test]
fn what_a_live_pipeline_is_bound_to_cannot_be_changed() {
    let core = pipeline(include_str!("../../../tests/pipelines/core.yaml"));
    let old = with("delivery.stream", &json!({"name": "TASKS", "maxAge": "24h"})).unwrap();
    let refused = [
        ("delivery.mode", json!("Core"), "delivery.mode cannot be changed"),
        ("delivery.stream.name", json!("OTHER"), "delivery.stream cannot be changed"),
        ("delivery.stream.maxAge", json!("48h"), "delivery.stream cannot be changed"),
        ("delivery.stream", Value::Null, "delivery.stream cannot be changed"),
        ("delivery", json!({}), "delivery.stream cannot be changed"),
        ("nats.subjectPrefix", json!("others"), "subjectPrefix and nats.queueGroup cannot be changed"),
        ("nats.queueGroup", json!("others"), "subjectPrefix and nats.queueGroup cannot be changed"),
    ];
    for (path, value, why) in refused {
        let new = edited(&old, path, &value).unwrap();
        let errors = new.validate_cel_update(&old).expect_err(&format!("{path}: {value} passes")).to_string();
        assert!(errors.contains(why), "{path}: {value}: {errors}");
    }
    assert!(minimal().validate_cel_update(&old).is_err(), "the stream's object removed");
    assert!(old.validate_cel_update(&minimal()).is_err(), "and added again");
    assert!(minimal().validate_cel_update(&core).is_err(), "another mode");
    let allowed = [
        ("nats.url", json!("nats://elsewhere:4222")),
        ("replicas", json!(5)),
        ("retry.delays", json!(["1s"])),
        ("suspend", json!(true)),
    ];
    for (path, value) in allowed {
        let new = edited(&old, path, &value).unwrap();
        assert!(new.validate_cel_update(&old).is_ok(), "{path}: {value}");
    }
}

#[test]
fn what_a_file_says_is_checked_without_an_api_server_too() {
    let mut spec = minimal().spec;
    (spec.retry.max_attempts, spec.kv.batch.max_keys) = (0, 20_000);
    spec.kv.request_timeout = Span::from(Duration::from_secs(11));
    spec.retry.delays.clear();
    let error = PipelineSettings::try_from(&spec).unwrap_err().to_string();
    for field in
        ["spec.retry.maxAttempts", "spec.kv.batch.maxKeys", "spec.retry.delays", "spec.kv.requestTimeout"]
    {
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn every_field_of_the_crd_is_documented() {
    fn undocumented(path: &str, schema: &Value, found: &mut Vec<String>) {
        let fields = schema["properties"].as_object().into_iter().flatten();
        for (name, field) in fields {
            let path = format!("{path}.{name}");
            // Kubernetes documents its own types.
            if path == ".spec.processor.affinity" || path == ".spec.processor.tolerations" {
                continue;
            }
            if field["description"].as_str().is_none_or(str::is_empty) {
                found.push(path.clone());
            }
            undocumented(&path, field, found);
        }
    }
    use kube::CustomResourceExt;
    let crd = serde_json::to_value(TaskPipeline::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = Vec::new();
    undocumented("", &json!({"properties": {"spec": schema["properties"]["spec"]}}), &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_crd_in_manifests_and_in_the_chart_is_the_one_that_is_generated() {
    let generated = crate::crd::yaml().unwrap();
    for (file, kept) in [
        ("manifests/crd/taskpipelines.yaml", include_str!("../../../../manifests/crd/taskpipelines.yaml")),
        (
            "charts/taskpipeline/crds/taskpipelines.yaml",
            include_str!("../../../../charts/taskpipeline/crds/taskpipelines.yaml"),
        ),
    ] {
        assert!(kept == generated, "{file} is stale: `cargo xtask generate`");
    }
}
