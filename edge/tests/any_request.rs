//! No request makes the edge fail, not even a random one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, Uri};
use proptest::prelude::*;
use support::{edge, send, task};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static EDGE: LazyLock<Router> = LazyLock::new(|| edge(&[task("a"), task("a/b")]));

fn outcome(uri: Uri, correlation: &[u8]) -> StatusCode {
    let mut request = Request::builder().uri(uri);
    if let Ok(value) = axum::http::HeaderValue::from_bytes(correlation) {
        request = request.header("x-correlation-id", value);
    }
    RUNTIME.block_on(send(&EDGE, request.body(Body::empty()).unwrap())).status
}

/// Characters with a meaning in a URL, and letters from the routes and parameters.
const SPECIAL: &[u8] = b"%2fF0/?&=+#.\"'<tasklimcurso;:";

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..most),
        prop::collection::vec(prop::sample::select(SPECIAL.to_vec()), 0..most),
    ]
}

fn place() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "/",
        "/tasks/",
        "/api/tasks/",
        "/api/tasks?",
        "/?",
        "/?limit=",
        "/?status=",
        "/api/tasks?cursor=",
        "/assets/",
        "/health?",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        // PROPTEST_CASES can raise the number.
        cases: ProptestConfig::default().cases.max(2000),
        ..ProptestConfig::default()
    })]

    #[test]
    fn raw_bytes_in_path_and_query_are_answered(place in place(), rest in bytes(40), id in bytes(20)) {
        let uri = [place.as_bytes(), &rest].concat();
        // A router never gets an invalid URI.
        if let Ok(uri) = Uri::try_from(uri) {
            let status = outcome(uri.clone(), &id);
            prop_assert!([200, 400, 404].contains(&status.as_u16()), "{uri} gave {status}");
        }
    }

    #[test]
    fn encoded_bytes_in_path_and_query_are_answered(place in place(), rest in bytes(40)) {
        let encoded: String = rest.iter().map(|byte| format!("%{byte:02X}")).collect();
        let uri: Uri = format!("{place}{encoded}").parse().unwrap();
        let status = outcome(uri.clone(), b"id");
        prop_assert!([200, 400, 404].contains(&status.as_u16()), "{uri} gave {status}");
    }
}
