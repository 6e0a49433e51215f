//! The security and cache headers of every answer. They do not depend on the request.

use axum::http::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};

/// For pages and data: no shared cache stores the answer, and browsers revalidate it.
///
/// The answer contains the correlation id of its request, and can be stale at any time. `no-store` would also
/// turn off the back/forward cache, and a task list contains no secrets.
pub(crate) const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// For assets whose URL contains a hash of their content.
pub(crate) const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// For assets at a fixed URL.
pub(crate) const PUBLIC_DAY: HeaderValue = HeaderValue::from_static("public, max-age=86400");

/// For health, errors and answers without a cache header. Without it, Cloudflare may cache a 404 for minutes.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

// Only names that every Chromium knows: an unknown name (`web-share`, on Linux) is a warning on each page.
const PERMISSIONS_POLICY: &str = "accelerometer=(), autoplay=(), camera=(), display-capture=(), \
    encrypted-media=(), fullscreen=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), \
    midi=(), payment=(), picture-in-picture=(), publickey-credentials-get=(), screen-wake-lock=(), usb=(), \
    xr-spatial-tracking=()";

/// The eleven headers that hono's `secureHeaders` sets, with its values, and two that it does not set.
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

/// Adds the secure headers, and `no-store` if the answer has no cache header.
pub(crate) fn complete(headers: &mut HeaderMap) {
    for (name, value) in SECURE {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
}

/// Whether shared caches may store this answer.
pub(crate) fn is_shared(headers: &HeaderMap) -> bool {
    headers.get(CACHE_CONTROL).is_some_and(|value| value.as_bytes().starts_with(b"public"))
}
