//! Any bytes decode to an event or to a clear error, and an encoded event decodes to itself.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use taskpipeline_contract::{
    CorrelationId, DecodeError, Description, Event, EventData, EventKind, MAX_METADATA_BYTES, NewTask,
    Status, Task, TaskId, TaskKey, TaskMetadata, TaskPatch, Timestamp, Title,
};

fn text(most: usize) -> impl Strategy<Value = String> {
    let awkward = proptest::sample::select(vec!['"', '\\', '/', '%', '<', '😀', '\u{202e}']);
    vec(prop_oneof![any::<char>(), awkward], 1..=most)
        .prop_map(|chars| chars.into_iter().filter(|c| !c.is_control()).collect())
}

prop_compose! {
    fn task_id()(text in text(60).prop_filter_map("an id", |text| TaskId::new(text).ok())) -> TaskId { text }
}
prop_compose! {
    fn title()(text in text(200).prop_filter_map("a title", |text| Title::new(text).ok())) -> Title { text }
}
prop_compose! {
    fn description()(chars in vec(any::<char>(), 0..=2000)) -> Description {
        Description::new(chars.into_iter().collect::<String>()).unwrap()
    }
}

fn status() -> impl Strategy<Value = Status> {
    proptest::sample::select(Status::ALL.to_vec())
}

fn event_data() -> impl Strategy<Value = EventData> {
    prop_oneof![
        (task_id(), title(), description(), status()).prop_map(|(id, title, description, status)| {
            EventData::Created(NewTask { id, title, description, status })
        }),
        (task_id(), option::of(title()), option::of(description()), option::of(status())).prop_map(
            |(id, title, description, status)| {
                EventData::Updated(TaskPatch { id, title, description, status })
            }
        ),
        task_id().prop_map(EventData::Deleted),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    ("[ -~]{1,128}", event_data()).prop_map(|(correlation_id, data)| Event {
        correlation_id: CorrelationId::new(correlation_id).unwrap(),
        data,
    })
}

fn kind() -> impl Strategy<Value = EventKind> {
    proptest::sample::select(EventKind::ALL.to_vec())
}

/// JSON of any shape. Some keys are the contract's field names, so that the JSON resembles an event.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let key = prop_oneof!["correlationId", "data", "id", "title", "description", "status", ".{0,5}"];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Asserts that an error has a text, names only fields of the contract, and is safe to print.
fn assert_clear(error: &DecodeError) -> Result<(), TestCaseError> {
    let message = error.to_string();
    prop_assert!(!message.is_empty() && message.len() < 1500, "{message}");
    prop_assert!(!message.chars().any(char::is_control), "{message:?}");
    for fault in error.faults() {
        prop_assert!(
            fault.field == "event"
                || fault.field == "correlationId"
                || fault.field == "data"
                || fault.field.starts_with("data."),
            "{fault}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_decode_to_an_event_or_a_clear_error(kind in kind(), bytes in vec(any::<u8>(), 0..400)) {
        if let Err(error) = Event::decode(kind, &bytes) {
            assert_clear(&error)?;
        }
    }

    #[test]
    fn any_json_decodes_to_an_event_or_a_clear_error(kind in kind(), value in any_json()) {
        if let Err(error) = Event::decode(kind, value.to_string().as_bytes()) {
            assert_clear(&error)?;
        }
    }

    #[test]
    fn an_event_cut_or_changed_anywhere_never_panics(
        event in event(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        let mut bytes = event.encode().unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        match Event::decode(event.kind(), &bytes) {
            Ok(_) => prop_assert!(!cut, "a cut event must not decode"),
            Err(error) => assert_clear(&error)?,
        }
    }

    #[test]
    fn an_encoded_event_decodes_to_itself(event in event()) {
        let bytes = event.encode().unwrap();
        prop_assert_eq!(Event::decode(event.kind(), &bytes).unwrap(), event);
    }

    #[test]
    fn unknown_fields_are_ignored(event in event(), extra in any_json()) {
        let mut value: Value = serde_json::from_slice(&event.encode().unwrap()).unwrap();
        value["unknown"] = extra.clone();
        value["data"]["unknown"] = extra;
        prop_assert_eq!(Event::decode(event.kind(), value.to_string().as_bytes()).unwrap(), event);
    }

    #[test]
    fn a_task_and_its_key_and_metadata_round_trip(
        id in task_id(), title in title(), description in description(), status in status(),
        created in -62_167_219_200_000_i64..253_402_300_799_999, updated in 0_i64..4_000_000_000_000
    ) {
        let task = Task {
            id, title, description, status,
            created_at: Timestamp::from_unix_millis(created).unwrap(),
            updated_at: Timestamp::from_unix_millis(updated).unwrap(),
        };
        let json = serde_json::to_vec(&task).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<Task>(&json).unwrap(), &task);

        let key = TaskKey::new(task.id.clone());
        prop_assert!(key.to_string().len() <= 512);
        prop_assert_eq!(TaskKey::parse(&key.to_string()), Some(key));

        let metadata = TaskMetadata::from(&task);
        let json = serde_json::to_vec(&metadata).unwrap();
        prop_assert!(json.len() <= MAX_METADATA_BYTES, "{} bytes", json.len());
        prop_assert_eq!(serde_json::from_slice::<TaskMetadata>(&json).unwrap(), metadata);
    }
}

fn faults(kind: EventKind, event: &Value) -> Vec<String> {
    match Event::decode(kind, event.to_string().as_bytes()) {
        Ok(event) => panic!("decoded to {event:?}"),
        Err(error) => error.faults().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_longest_title_of_the_widest_characters_fits_the_metadata() {
    let at = Timestamp::parse("2026-11-22T08:00:00.000Z").unwrap();
    let metadata = TaskMetadata {
        title: Title::new("😀".repeat(200)).unwrap(),
        status: Status::InProgress,
        created_at: at,
        updated_at: at,
    };
    assert!(serde_json::to_vec(&metadata).unwrap().len() <= MAX_METADATA_BYTES);
}

#[test]
fn the_events_of_the_quick_start_decode() {
    let created = json!({"correlationId": "test-001", "data": {"id": "task-1", "title": "My First Task",
        "description": "This is a test task", "status": "pending"}});
    let updated = json!({"correlationId": "test-002", "data": {"id": "task-1", "status": "completed",
        "title": "My First Task (Done!)"}});
    let deleted = json!({"correlationId": "test-003", "data": {"id": "task-1"}});
    for (kind, value) in EventKind::ALL.into_iter().zip([created, updated, deleted]) {
        let event = Event::decode(kind, value.to_string().as_bytes()).unwrap();
        assert_eq!(event.task_id().as_str(), "task-1");
        assert_eq!(serde_json::to_value(&event).unwrap(), value);
    }
}

#[test]
fn every_invalid_field_is_listed() {
    let event = json!({"correlationId": "ünïcode", "data": {"id": "", "title": "", "status": "done"}});
    assert_eq!(
        faults(EventKind::Created, &event),
        [
            "correlationId: must be printable ASCII, got U+00FC",
            "data.id: must be 1 to 256 bytes, got 0",
            "data.title: must be 1 to 200 characters, got 0",
            "data.description: is missing",
            "data.status: must be one of pending, in_progress, completed, cancelled, got \"done\"",
        ]
    );
}

#[test]
fn wrong_types_are_named() {
    let event = json!({"correlationId": 7, "data": {"id": null, "title": ["x"], "description": {}}});
    assert_eq!(
        faults(EventKind::Updated, &event),
        [
            "correlationId: must be a string, got a number",
            "data.id: must be a string, got null",
            "data.title: must be a string, got an array",
            "data.description: must be a string, got an object",
        ]
    );
    assert_eq!(faults(EventKind::Deleted, &json!({})), ["correlationId: is missing", "data: is missing"]);
    assert_eq!(faults(EventKind::Deleted, &json!([])), ["event: must be an object, got an array"]);
    assert_eq!(
        faults(EventKind::Deleted, &json!({"correlationId": "c", "data": []})),
        ["data: must be an object, got an array"]
    );
}

#[test]
fn bytes_that_are_not_json_are_malformed() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_unknown = format!(r#"{{"correlationId":"c","data":{{"id":"a","x":{deep}}}}}"#);
    assert!(Event::decode(EventKind::Deleted, deep_unknown.as_bytes()).is_ok(), "unknown fields are ignored");
    let twice = br#"{"correlationId":"c","data":{"id":"a","id":"b"}}"#;
    let bad: [&[u8]; 6] = [b"", b"not json", b"{", b"{} {}", &[0xff, 0xfe], twice];
    for bytes in bad {
        let error = Event::decode(EventKind::Deleted, bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed(_)), "{error}");
    }
}

#[test]
fn ids_that_do_not_fit_a_url_or_a_key_are_refused() {
    for id in ["", ".", "..", "a\u{0}", "a\nb", "\u{7f}", &"x".repeat(257)] {
        assert!(TaskId::new(id).is_err(), "{id:?}");
    }
    for id in ["/", "a/b", "%2e", "...", "\"'<>&", "😀", "\u{202e}", " ", &"x".repeat(256)] {
        assert!(TaskId::new(id).is_ok(), "{id:?}");
    }
    assert_eq!(TaskKey::parse("tasks:"), None);
    assert_eq!(TaskKey::parse("other:1"), None);
}
