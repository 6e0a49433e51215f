//! The tests that can run side by side, in one program, so that waiting tests do not delay others.

mod api_server;
mod helm;
mod image;
mod monitoring;
mod operator;
mod pipeline;
mod restore;
mod rights;
mod tenants;
mod tls;
mod values;
