//! The stylesheet and the icon: the only answers that shared caches may store.

use std::sync::LazyLock;

use axum::http::Uri;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};

use crate::errors::EdgeError;
use crate::headers;

const STYLESHEET: &str = include_str!("../assets/site.css");
const ICON: &str = include_str!("../assets/icon.svg");

/// The path of the stylesheet, with a hash of its content.
pub(crate) static STYLESHEET_URL: LazyLock<String> =
    LazyLock::new(|| format!("/assets/site-{:016x}.css", content_hash(STYLESHEET)));

/// The path of the icon, with a hash of its content.
pub(crate) static ICON_URL: LazyLock<String> =
    LazyLock::new(|| format!("/assets/icon-{:016x}.svg", content_hash(ICON)));

/// FNV-1a: distinguishes versions of a file. Not a cryptographic hash.
const fn content_hash(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Serves the assets whose paths contain a hash.
pub(crate) async fn hashed(uri: Uri) -> Result<Response, EdgeError> {
    match uri.path() {
        path if path == *STYLESHEET_URL => {
            Ok(asset("text/css; charset=utf-8", headers::IMMUTABLE, STYLESHEET))
        }
        path if path == *ICON_URL => Ok(asset("image/svg+xml", headers::IMMUTABLE, ICON)),
        _ => Err(EdgeError::NoSuchPage),
    }
}

/// Serves `/favicon.ico`, which browsers request for answers that do not link an icon, such as JSON.
pub(crate) async fn favicon() -> Response {
    asset("image/svg+xml", headers::PUBLIC_DAY, ICON)
}

fn asset(media_type: &'static str, cache: HeaderValue, body: &'static str) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(media_type)), (CACHE_CONTROL, cache)], body).into_response()
}
