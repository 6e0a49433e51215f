//! Tells the operator what the visitor is not told: the cause of a 5xx, with the correlation id that the
//! visitor saw.

use crate::correlation::Correlation;
use crate::errors::EdgeError;

/// To the Worker's log, as one line of JSON that Workers Logs can index.
#[cfg(target_arch = "wasm32")]
pub(crate) fn failure(error: &EdgeError, correlation: &Correlation) {
    let line = serde_json::json!({
        "level": "error",
        "code": error.code(),
        "correlationId": correlation.as_str(),
        "cause": error.to_string(),
    });
    worker::console_error!("{}", line);
}

/// To whatever subscriber the embedding program has.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn failure(error: &EdgeError, correlation: &Correlation) {
    let (code, correlation_id) = (error.code(), correlation.as_str());
    tracing::error!(code, correlation_id, cause = %error, "request failed");
}
