//! Reading the body of a request, whole and once. It may not look at what is in it.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::TryStreamExt;

use crate::answer::ApiError;

/// The most that a request may bring, the same as a bulk write's at Cloudflare.
pub(crate) const MAX_BODY_BYTES: usize = 100 * 1024 * 1024;

/// All of it, in one piece of memory that is made as large as the client announces it to be.
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
