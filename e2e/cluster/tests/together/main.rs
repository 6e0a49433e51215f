//! The tests that do not mind each other: one program, so that what waits does not keep others from running.

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
