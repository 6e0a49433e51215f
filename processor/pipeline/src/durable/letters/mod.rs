//! The commands about dead letters: list, show, replay and drop. They need NATS and no replica, and
//! do not use KV.
//!
//! [`store`] reads letters, [`entry`] joins their parts, and [`table`] and [`print`] show them.
//! [`decide`] decides whether a letter may be replayed, and [`replay`] replays it.

mod command;
mod decide;
mod entry;
mod print;
mod replay;
mod store;
mod table;
mod text;

use std::sync::Arc;

use async_nats::jetstream::Context;

use self::entry::{Entry, task_in};
use self::replay::Replay;
use self::store::Store;
use crate::connection::connect_options;
use crate::durable::bucket::Bucket;
use crate::durable::dead_letters::DeadLetters;
use crate::durable::ledger::Ledger;
use crate::durable::ledger::cache::Cache;
use crate::durable::names::Names;
use crate::settings::Stored;
use crate::telemetry::metrics::Metrics;

pub use self::command::{LettersError, NotFound, Selection, Tally, Which};
pub use self::store::StoreError;
pub use self::text::line;

/// Access to the dead letters of one pipeline.
pub struct Desk {
    url: String,
    jetstream: Context,
    names: Arc<Names>,
    store: Store,
    ledger: Ledger,
}

impl Desk {
    /// Connects once. Does not wait for a server that is unreachable.
    pub async fn open(pipeline: &Stored) -> Result<Self, LettersError> {
        let connection = &pipeline.connection;
        let url = connection.to_string();
        let failed = |reason: String| LettersError::Nats { url: url.clone(), reason };
        let client = connect_options(connection)
            .connect(connection.servers.as_slice())
            .await
            .map_err(|error| failed(error.to_string()))?;
        let jetstream = crate::durable::jetstream::context(&client);
        let names = Arc::new(Names::new(&pipeline.events, &pipeline.durable));
        let store = Store::open(jetstream.clone(), &names)
            .await
            .map_err(|reason| LettersError::Store { url: url.clone(), reason })?;
        let metrics = Arc::new(Metrics::new()?);
        let bucket = Bucket::new(jetstream.clone(), &names.ledger_stream, metrics.forged_answers.clone());
        let letters = DeadLetters::new(jetstream.clone(), Arc::clone(&names), Arc::clone(&metrics));
        let ledger = Ledger::new(bucket, Arc::clone(&names), letters, metrics, Cache::new());
        Ok(Self { url, jetstream, names, store, ledger })
    }

    /// The newest letters, or all, as a table for people. `width`: the columns of the terminal.
    pub async fn list(&self, limit: Option<usize>, width: Option<usize>) -> Result<String, LettersError> {
        let (entries, all) = self.newest(limit).await?;
        let (stream, subject) = (&self.names.dead_letter_stream, &self.names.dead_letter_subject);
        Ok(match (all, entries.len()) {
            (0, _) if !self.store.exists() => format!(
                "no dead letters: stream {stream} not found. The first replica creates it; check STREAM_NAME\n"
            ),
            (0, _) => format!("no dead letters in {stream} on {subject}\n"),
            (all, shown) => {
                let letters = if all == 1 { "dead letter" } else { "dead letters" };
                let newest = if shown < all { format!("the newest {shown} of ") } else { String::new() };
                format!("{}{newest}{all} {letters} in {stream}\n", table::table(&entries, width))
            }
        })
    }

    /// The newest letters, or all, as JSON for programs.
    pub async fn list_json(&self, limit: Option<usize>) -> Result<String, LettersError> {
        Ok(table::json(&self.newest(limit).await?.0)?)
    }

    /// Everything about one letter, as text.
    pub async fn show(&self, which: &Which) -> Result<String, LettersError> {
        let entries = self.scan().await?;
        Ok(print::print(&self.opened(find(&entries, which)?).await?))
    }

    /// The original bytes of a letter.
    pub async fn payload(&self, which: &Which) -> Result<Vec<u8>, LettersError> {
        let entries = self.scan().await?;
        Ok(self.opened(find(&entries, which)?).await?.payload)
    }

    /// The number of letters in a selection.
    pub async fn count(&self, selection: &Selection) -> Result<usize, LettersError> {
        Ok(select(self.scan().await?, selection).0.len())
    }

    /// Replays letters, and reports the outcome of each.
    pub async fn replay(
        &self,
        selection: &Selection,
        as_new: bool,
        tell: &mut dyn FnMut(Result<&str, &str>),
    ) -> Result<Tally, LettersError> {
        let (mut entries, unknown) = select(self.scan().await?, selection);
        let mut tally = Tally::default();
        unknown.into_iter().for_each(|what| tally.note(&Err(what.to_string()), tell));
        if entries.is_empty() {
            return Ok(tally);
        }
        // In the order of their events, because each may change the result of earlier ones.
        entries.sort_by_key(|entry| {
            (entry.head.as_ref().and_then(|head| head.origin.version), entry.sequence())
        });
        let mut replay = match Replay::begin(self, as_new, entries.iter().any(Entry::is_event)).await {
            Ok(replay) => replay,
            Err(why) => {
                tally.note(&Err(format!("nothing was replayed: {why}")), tell);
                tally.not_done += entries.len() - 1;
                return Ok(tally);
            }
        };
        for entry in &entries {
            let outcome = replay.one(entry).await;
            tally.note(&outcome.map_err(|why| format!("cannot replay {}: {why}", name(entry))), tell);
        }
        Ok(tally)
    }

    /// Deletes letters permanently, and reports the outcome of each.
    pub async fn drop_letters(
        &self,
        selection: &Selection,
        tell: &mut dyn FnMut(Result<&str, &str>),
    ) -> Result<Tally, LettersError> {
        let (entries, unknown) = select(self.scan().await?, selection);
        let mut tally = Tally::default();
        unknown.into_iter().for_each(|what| tally.note(&Err(what.to_string()), tell));
        for entry in &entries {
            let outcome = self.store.delete(entry).await;
            let outcome = outcome
                .map(|()| format!("{} was dropped", name(entry)))
                .map_err(|why| format!("{} was not dropped: {why}", name(entry)));
            tally.note(&outcome, tell);
        }
        Ok(tally)
    }

    /// The newest `limit` letters, and the number of all letters.
    async fn newest(&self, limit: Option<usize>) -> Result<(Vec<Entry>, usize), LettersError> {
        let mut entries = self.scan().await?;
        let all = entries.len();
        entries.drain(..all - limit.unwrap_or(all).min(all));
        for entry in &mut entries {
            // The id of the task may be in any part.
            if entry.expected() > 1 && entry.task.is_none() && entry.missing().is_empty() {
                entry.task = task_in(&self.opened(entry).await?.payload);
            }
        }
        Ok((entries, all))
    }

    async fn scan(&self) -> Result<Vec<Entry>, LettersError> {
        self.store.scan().await.map_err(|reason| self.store_error(reason))
    }

    async fn opened(&self, entry: &Entry) -> Result<store::Opened, LettersError> {
        self.store.open_letter(entry).await.map_err(|reason| self.store_error(reason))
    }

    fn store_error(&self, reason: StoreError) -> LettersError {
        LettersError::Store { url: self.url.clone(), reason }
    }
}

fn find<'a>(entries: &'a [Entry], which: &Which) -> Result<&'a Entry, NotFound> {
    let is_it = |entry: &&Entry| match which {
        Which::Sequence(sequence) => entry.sequences().contains(sequence),
        Which::Id(id) => entry.id() == Some(id.as_str()),
    };
    let found: Vec<_> = entries.iter().filter(is_it).collect();
    let shown = match which {
        Which::Sequence(sequence) => sequence.to_string(),
        Which::Id(id) => line(id),
    };
    match found.as_slice() {
        [] => Err(NotFound::None(shown)),
        [entry] => Ok(entry),
        many => Err(NotFound::Many { name: shown, sequences: many.iter().map(|it| it.sequence()).collect() }),
    }
}

/// The selected letters, each once, and the names without exactly one letter.
fn select(entries: Vec<Entry>, selection: &Selection) -> (Vec<Entry>, Vec<NotFound>) {
    match selection {
        Selection::All(None) => (entries, Vec::new()),
        Selection::All(Some(reason)) => {
            let has_it = |entry: &Entry| entry.head.as_ref().is_some_and(|head| head.reason == *reason);
            (entries.into_iter().filter(has_it).collect(), Vec::new())
        }
        Selection::These(names) => {
            let (mut wanted, mut unknown) = (Vec::new(), Vec::new());
            for which in names {
                match find(&entries, which) {
                    Ok(entry) => wanted.push(entry.sequence()),
                    Err(what) => unknown.push(what),
                }
            }
            (entries.into_iter().filter(|entry| wanted.contains(&entry.sequence())).collect(), unknown)
        }
    }
}

/// The name of a letter in messages.
fn name(entry: &Entry) -> String {
    match entry.id() {
        Some(id) => format!("letter {} ({})", entry.sequence(), line(id)),
        None => format!("message {}", entry.sequence()),
    }
}

fn join(sequences: &[u64]) -> String {
    sequences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use crate::reason::Reason;
    use serde_json::json;
    use taskpipeline_contract::Timestamp;

    use super::entry::Index;
    use super::entry::tests::message;
    use super::*;

    fn entries() -> Vec<Entry> {
        let mut later = message("g-1-5", 1, 1, b"");
        later["receivedAt"] = json!("2026-11-23T08:00:00.000Z");
        later["reason"] = json!("max-deliveries-exceeded");
        let messages =
            [message("g-1-5", 1, 1, b""), message("g-1-6", 1, 2, b""), message("g-1-6", 2, 2, b""), later];
        let mut index = Index::default();
        for (sequence, message) in (1..).zip(messages) {
            index.add(sequence, Timestamp::UNIX_EPOCH, message.to_string().as_bytes());
        }
        index.into_entries()
    }

    fn selected(selection: &Selection) -> (Vec<u64>, Vec<NotFound>) {
        let (entries, unknown) = select(entries(), selection);
        (entries.iter().map(Entry::sequence).collect(), unknown)
    }

    #[test]
    fn a_letter_is_named_by_its_id_or_by_any_of_its_messages_and_taken_once() {
        let these = ["3", "g-1-6", "2"].map(Which::from).to_vec();
        assert_eq!(selected(&Selection::These(these)), (vec![2], Vec::new()));
    }

    #[test]
    fn what_is_not_there_or_not_clear_is_said_and_the_rest_is_taken() {
        let these = ["9", "1", "g-1-5", "x\u{7}"].map(Which::from).to_vec();
        let (found, unknown) = selected(&Selection::These(these));
        assert_eq!(found, [1]);
        let unclear = NotFound::Many { name: "g-1-5".to_owned(), sequences: vec![1, 4] };
        let none = |name: &str| NotFound::None(name.to_owned());
        assert_eq!(unknown, [none("9"), unclear, none(r"x\u{7}")]);
    }

    #[test]
    fn all_are_all_or_those_with_a_reason() {
        assert_eq!(selected(&Selection::All(None)).0, [1, 2, 4]);
        assert_eq!(selected(&Selection::All(Some(Reason::MaxDeliveriesExceeded))).0, [4]);
    }
}
