//! The headers every answer carries: what browsers may do with it, and who may store it.
//!
//! Nothing here depends on the request.

use axum::http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};

/// Pages and data: an answer carries its request's correlation id and is stale at any moment, so no
/// shared cache may keep it and a browser asks again. `no-store` would be more than is needed: it turns
/// off the back/forward cache, and there is nothing secret in a task list.
pub(crate) const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Assets whose URL names their content.
pub(crate) const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// Assets at a fixed URL.
pub(crate) const PUBLIC_DAY: HeaderValue = HeaderValue::from_static("public, max-age=86400");

/// Health and errors, and whatever said nothing: without this header Cloudflare may keep a 404 for minutes.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

// Only what every Chromium knows: a name it does not (`web-share`, on Linux) is a warning on each page.
const PERMISSIONS_POLICY: &str = "accelerometer=(), autoplay=(), camera=(), display-capture=(), \
    encrypted-media=(), fullscreen=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), \
    midi=(), payment=(), picture-in-picture=(), publickey-credentials-get=(), screen-wake-lock=(), usb=(), \
    xr-spatial-tracking=()";

/// The eleven of hono's `secureHeaders`, with its values, and the two it leaves out.
const SECURE: [(&str, &str); 13] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("origin-agent-cluster", "?1"),
    ("permissions-policy", PERMISSIONS_POLICY),
    ("referrer-policy", "no-referrer"),
    ("strict-transport-security", "max-age=15552000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-dns-prefetch-control", "off"),
    ("x-download-options", "noopen"),
    ("x-frame-options", "SAMEORIGIN"),
    ("x-permitted-cross-domain-policies", "none"),
    ("x-xss-protection", "0"),
];

/// Puts the secure headers on, and `no-store` where the answer does not say who may store it.
pub(crate) fn complete(headers: &mut HeaderMap) {
    for (name, value) in SECURE {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
}

/// Whether a shared cache may store this answer and give it to others.
pub(crate) fn is_shared(headers: &HeaderMap) -> bool {
    headers.get(CACHE_CONTROL).is_some_and(|value| value.as_bytes().starts_with(b"public"))
}
