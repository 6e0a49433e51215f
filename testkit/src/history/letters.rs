//! Reads dead letters as an operator would: it joins the parts of a letter, and removes duplicates.
//!
//! `check` knows what they should be.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::capture::read;
use crate::eventually;

/// The time limit for a read.
const PATIENCE: Duration = Duration::from_secs(30);

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    /// The letter's id. The stream may contain the same letter more than once.
    pub(crate) id: String,
    /// The reason of the letter.
    pub(crate) reason: String,
    /// The subject of the event.
    pub(crate) subject: String,
    /// The event's place: the incarnation of the stream, and the sequence in it.
    pub(crate) place: Option<(u64, u64)>,
    /// The event's bytes.
    pub(crate) payload: Vec<u8>,
    /// The envelope, or the first of several.
    pub(crate) envelope: Value,
}

/// Reads all letters. A missing stream has none: it may be created with the first letter.
///
/// # Errors
/// If the server does not answer, or a letter is incomplete.
pub(crate) async fn letters(jetstream: &jetstream::Context, stream: &str) -> anyhow::Result<Vec<Letter>> {
    use jetstream::ErrorCode;
    use jetstream::context::GetStreamErrorKind;
    if let Err(error) = jetstream.get_stream(stream).await
        && let GetStreamErrorKind::JetStream(error) = error.kind()
        && error.error_code() == ErrorCode::STREAM_NOT_FOUND
    {
        return Ok(Vec::new());
    }
    // A new reader may have no leader yet.
    let held = eventually(PATIENCE, || read(jetstream, stream, 1)).await?;
    assemble(held.iter().map(|message| message.payload.as_ref()))
}

/// Joins envelopes into letters, in the order of their ids.
///
/// # Errors
/// If an envelope cannot be read, or a part is missing.
pub(crate) fn assemble<'a>(envelopes: impl Iterator<Item = &'a [u8]>) -> anyhow::Result<Vec<Letter>> {
    let mut parts: BTreeMap<String, BTreeMap<u64, Value>> = BTreeMap::new();
    for bytes in envelopes {
        let envelope: Value = serde_json::from_slice(bytes).context("a dead letter is not JSON")?;
        let id = envelope["id"].as_str().with_context(|| format!("a letter without an id: {envelope}"))?;
        let part = envelope["part"].as_u64().unwrap_or(1);
        parts.entry(id.to_owned()).or_default().insert(part, envelope);
    }
    parts.into_iter().map(|(id, parts)| letter(id, parts)).collect()
}

fn letter(id: String, parts: BTreeMap<u64, Value>) -> anyhow::Result<Letter> {
    let mut payload = Vec::new();
    for part in parts.values() {
        if let Some(text) = part["payload"].as_str() {
            payload.extend(STANDARD.decode(text).with_context(|| format!("letter {id} is not base64"))?);
        }
    }
    let count = parts.len() as u64;
    let envelope = parts.into_values().next().context("the letter has no part")?;
    let promised = envelope["parts"].as_u64().unwrap_or(1);
    anyhow::ensure!(count == promised, "letter {id} has {count} of its {promised} parts");
    let version = &envelope["version"];
    let text = |field: &str| envelope[field].as_str().unwrap_or_default().to_owned();
    Ok(Letter {
        reason: text("reason"),
        subject: text("subject"),
        place: version["incarnation"].as_u64().zip(version["sequence"].as_u64()),
        id,
        payload,
        envelope,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn envelope(id: &str, part: u64, parts: u64, payload: &str) -> Vec<u8> {
        let payload = STANDARD.encode(payload);
        json!({"id": id, "part": part, "parts": parts, "reason": "invalid", "subject": "tasks.created",
            "version": {"incarnation": 1, "sequence": 7}, "payload": payload})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn parts_make_one_letter_and_so_do_repeats() {
        let all = [
            envelope("1-7", 2, 2, "bytes"),
            envelope("1-7", 1, 2, "the "),
            envelope("1-7", 2, 2, "bytes"),
            envelope("1-9", 1, 1, ""),
        ];
        let letters = assemble(all.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(letters.len(), 2);
        assert_eq!((letters[0].payload.as_slice(), letters[0].place), (&b"the bytes"[..], Some((1, 7))));
        assert!(letters[1].payload.is_empty());
    }

    #[test]
    fn a_missing_part_is_an_error() {
        let all = [envelope("1-7", 2, 2, "bytes")];
        assert!(assemble(all.iter().map(Vec::as_slice)).is_err());
    }
}
