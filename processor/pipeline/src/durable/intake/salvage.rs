//! Moves messages whose headers no client can read to the dead letters. Decides nothing about
//! events.
//!
//! The server stores any bytes as headers. When it hands out such a message, the client treats its
//! connection as broken, or the message as the end of a pull. NATS delivers the other messages of
//! that pull again only after `ack_wait`. It delivers the unreadable message again as well,
//! indefinitely.
//!
//! So this module reads unacknowledged messages in another way, by JetStream's answers in JSON. The
//! unreadable ones become dead letters, and the others are taken in at once.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::message::Acker;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::durable::bucket::raw::{self, Raw, RawError};
use crate::durable::intake::ingest::{HandedOut, Ingest, IngestError};
use crate::durable::intake::stuck::{Floor, windows};
use crate::durable::stream::session::Session;
use crate::telemetry::health::Health;

/// The interval between two checks for stuck messages: usually, and after messages were recently
/// set aside.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));

/// How long the second interval holds.
const LATELY: Duration = Duration::from_secs(60);

/// After this time the server has noticed that a connection is gone, and hands out nothing more to
/// it.
const NOTICED: Duration = Duration::from_millis(500);

/// The most messages that are read at a time.
const AT_A_TIME: usize = 64;

/// The least time between two log lines about messages that are set aside.
const REPORT: Duration = Duration::from_secs(30);

/// Why deliveries could not be examined. The next check tries again.
#[derive(Debug, thiserror::Error)]
enum SalvageError {
    #[error(transparent)]
    Raw(#[from] RawError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
}

/// Moves messages whose headers no client can read to the dead letters.
pub(crate) struct Salvage {
    ingest: Ingest,
    session: Arc<Session>,
    health: Arc<Health>,
    /// The connection for pulls.
    pulls: Client,
    /// Whether the connection for pulls is up; each change sends a new value.
    link: watch::Receiver<bool>,
    /// The sequences above the ack floor that were taken in. `set_aside`: those that were set
    /// aside.
    taken_in: BTreeSet<u64>,
    set_aside: BTreeSet<u64>,
    /// The number of messages set aside since the last log line. `reported_at`: the time of that line.
    unreported: usize,
    reported_at: Option<Instant>,
}

impl Salvage {
    pub(crate) fn new(
        ingest: Ingest,
        session: Arc<Session>,
        health: Arc<Health>,
        pulls: Client,
        link: watch::Receiver<bool>,
    ) -> Self {
        let (taken_in, set_aside) = Default::default();
        Self { ingest, session, health, pulls, link, taken_in, set_aside, unreported: 0, reported_at: None }
    }

    /// Runs until `finish` is true. `at_once`: a pull has just ended as it would after an
    /// unreadable message.
    pub(crate) async fn run(mut self, mut finish: watch::Receiver<bool>, at_once: bool) {
        self.link.mark_unchanged();
        let mut server = self.pulls.server_info().server_id;
        let mut floor = Floor::default();
        let (mut found_at, mut look_again): (Option<Instant>, Option<Instant>) = (None, None);
        let mut cut = at_once;
        while !*finish.borrow() {
            let lately = found_at.is_some_and(|at| at.elapsed() < LATELY);
            if !cut {
                let look = Instant::now() + if lately { LOOKS.1 } else { LOOKS.0 };
                tokio::select! {
                    _ = finish.changed() => continue,
                    changed = self.link.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if !*self.link.borrow_and_update() {
                            continue;
                        }
                        // If the same server takes the connection back at once, neither the server
                        // nor the network was away.
                        let taken_back_by = self.pulls.server_info().server_id;
                        cut = taken_back_by == server;
                        server = taken_back_by;
                    }
                    () = tokio::time::sleep_until(look_again.map_or(look, |at| at.min(look))) => {}
                }
            }
            // While NATS does not answer, it hands out nothing either.
            let Ok(info) = self.session.consumer.get_info().await else { continue };
            let above = info.ack_floor.stream_sequence;
            let stuck = info.num_ack_pending > 0 && floor.is_stuck(above);
            let again = look_again.take_if(|at| *at <= Instant::now()).is_some();
            if !(cut || again || stuck && (lately || self.is_unreadable(above + 1).await)) {
                continue;
            }
            if std::mem::take(&mut cut) {
                look_again = Some(Instant::now() + NOTICED);
            }
            self.taken_in = self.taken_in.split_off(&above);
            self.set_aside = self.set_aside.split_off(&above);
            match self.look_through(&info, &finish).await {
                Ok(true) => found_at = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => debug!(%error, "cannot examine the deliveries now; retrying later"),
            }
        }
    }

    async fn is_unreadable(&self, sequence: u64) -> bool {
        let found = raw::next(&self.session.jetstream, &self.ingest.names.stream, sequence).await;
        matches!(found, Ok(Some(message)) if message.headers().is_err())
    }

    /// Examines the messages that are handed out, until one is unreadable. Returns whether one was.
    async fn look_through(
        &mut self,
        info: &Info,
        finish: &watch::Receiver<bool>,
    ) -> Result<bool, SalvageError> {
        for window in windows(info.ack_floor.stream_sequence, info.delivered.stream_sequence) {
            if self.look_through_window(window, info, finish).await? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns how many messages were set aside.
    async fn look_through_window(
        &mut self,
        window: RangeInclusive<u64>,
        info: &Info,
        finish: &watch::Receiver<bool>,
    ) -> Result<usize, SalvageError> {
        // An ack may get lost when the leader of the consumer changes.
        for sequence in self.set_aside.range(window.clone()) {
            let _ = self.acker(*sequence, info).ack().await;
        }
        let is_new = |sequence: &u64| !self.taken_in.contains(sequence) && !self.set_aside.contains(sequence);
        let new: Vec<u64> = window.filter(is_new).collect();
        let (jetstream, stream) = (self.session.jetstream.clone(), self.ingest.names.stream.clone());
        let reads = futures_util::stream::iter(new).map(|sequence| raw::at(&jetstream, &stream, sequence));
        let mut chunks = std::pin::pin!(reads.buffered(AT_A_TIME).ready_chunks(AT_A_TIME));
        let (mut found, mut refused) = (0, false);
        while let Some(chunk) = chunks.next().await {
            if *finish.borrow() {
                break;
            }
            let mut messages = Vec::with_capacity(chunk.len());
            for message in chunk {
                // A message that is gone cannot be handed out again.
                messages.extend(message?.map(|message| self.handed_out(message, info)));
            }
            if refused {
                messages.retain(|message| message.headers.is_ok());
            }
            let sequences = |readable: bool| -> BTreeSet<u64> {
                let some = messages.iter().filter(|message| message.headers.is_ok() == readable);
                some.map(|message| message.raw.sequence).collect()
            };
            let (mut readable, mut unreadable) = (sequences(true), sequences(false));
            let first = messages.iter().find_map(|HandedOut { raw, headers, .. }| {
                let why = headers.as_ref().err()?;
                Some(format!("message {} on {}: {why}", raw.sequence, raw.subject))
            });
            let all_stored = self.ingest.take_in_handed_out(messages).await?;
            self.taken_in.append(&mut readable);
            found += unreadable.len();
            // While the stream of dead letters refuses messages, the unreadable ones wait, and the
            // others are taken in.
            refused |= !all_stored;
            if let Some(first) = first.filter(|_| all_stored) {
                self.report(unreadable.len(), &first);
                self.set_aside.append(&mut unreadable);
            }
        }
        Ok(found)
    }

    /// The acker of a message, as the pull would have delivered it.
    fn acker(&self, sequence: u64, info: &Info) -> Acker {
        // The server finds the delivery by the sequence in the stream. It ignores the ack of an
        // unknown delivery.
        let subject = format!(
            "$JS.ACK.{}.{}.1.{sequence}.{}.0.0",
            self.ingest.names.stream, info.name, info.delivered.consumer_sequence
        );
        Acker::new(self.session.jetstream.clone(), Some(subject.into()))
    }

    fn handed_out(&self, raw: Raw, info: &Info) -> HandedOut {
        HandedOut { headers: raw.headers(), acker: self.acker(raw.sequence, info), raw }
    }

    fn report(&mut self, count: usize, first: &str) {
        self.unreported += count;
        self.ingest.metrics.events_unreadable.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        self.health.set_unreadable(first);
        if self.reported_at.is_some_and(|at| at.elapsed() < REPORT) {
            return;
        }
        self.reported_at = Some(Instant::now());
        let count = std::mem::take(&mut self.unreported);
        let stream = &self.ingest.names.stream;
        warn!(count, %stream, first = %first, "moved messages with unreadable headers to the dead letters. Each such \
                                               message cuts the connection for pulls: have their producer correct the headers");
    }
}
