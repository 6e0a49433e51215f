//! Reads the whole body of a request, without parsing it.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::TryStreamExt;

use crate::answer::ApiError;

/// The largest body of a request, in bytes: Cloudflare's limit for a bulk write.
pub(crate) const MAX_BODY_BYTES: usize = 100 * 1024 * 1024;

/// Reads the whole body into one buffer, whose capacity is the announced length.
pub(crate) async fn whole(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let announced: usize = announced.unwrap_or_default();
    if announced > MAX_BODY_BYTES {
        return Err(ApiError::TooLarge("the body"));
    }
    let mut bytes = Vec::with_capacity(announced);
    let mut parts = body.into_data_stream();
    let unreadable = |_| ApiError::BadRequest("the body cannot be read".to_owned());
    while let Some(part) = parts.try_next().await.map_err(unreadable)? {
        if bytes.len() + part.len() > MAX_BODY_BYTES {
            return Err(ApiError::TooLarge("the body"));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.into())
}
