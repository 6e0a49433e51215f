//! The dead letters as an operator would find them: whole again where they came in parts, once where they
//! came twice. Reading them is its own; what they should be is `check`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::capture::read;
use crate::eventually;

/// How long a read may take in all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    /// Its own id; the same letter may be there more than once.
    pub(crate) id: String,
    /// Why it is one.
    pub(crate) reason: String,
    /// What the event was published on.
    pub(crate) subject: String,
    /// The event's place: which incarnation of the stream, and the sequence in it.
    pub(crate) place: Option<(u64, u64)>,
    /// The event's bytes.
    pub(crate) payload: Vec<u8>,
    /// Its envelope, or the first of them.
    pub(crate) envelope: Value,
}

/// Reads all there are. A stream that is missing holds none: it may be made with the first letter.
///
/// # Errors
/// Where the server does not answer, or a letter is not whole.
pub(crate) async fn letters(jetstream: &jetstream::Context, stream: &str) -> anyhow::Result<Vec<Letter>> {
    use jetstream::ErrorCode;
    use jetstream::context::GetStreamErrorKind;
    if let Err(error) = jetstream.get_stream(stream).await
        && let GetStreamErrorKind::JetStream(error) = error.kind()
        && error.error_code() == ErrorCode::STREAM_NOT_FOUND
    {
        return Ok(Vec::new());
    }
    // A reader that was created a moment ago may have no leader yet.
    let held = eventually(PATIENCE, || read(jetstream, stream, 1)).await?;
    assemble(held.iter().map(|message| message.payload.as_ref()))
}

/// Puts envelopes together to letters, in the order of their ids.
///
/// # Errors
/// Where one cannot be read, or a part is missing.
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
            payload.extend(STANDARD.decode(text).with_context(|| format!("letter {id}: no base64"))?);
        }
    }
    let count = parts.len() as u64;
    let envelope = parts.into_values().next().context("a letter has a part")?;
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
