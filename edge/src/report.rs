//! Logs the cause of a 5xx, which the visitor does not see, with the correlation id that the visitor sees.

use crate::correlation::Correlation;
use crate::errors::EdgeError;

/// Logs to Workers Logs, as one line of JSON that Workers Logs indexes.
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

/// Logs to the `tracing` subscriber of the program.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn failure(error: &EdgeError, correlation: &Correlation) {
    let (code, correlation_id) = (error.code(), correlation.as_str());
    tracing::error!(code, correlation_id, cause = %error, "request failed");
}
