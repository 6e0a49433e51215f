//! Tests of the whole product; all of them are in `tests/`.
