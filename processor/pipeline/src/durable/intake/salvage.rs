//! Sets aside messages whose headers no client can read. The server stores any bytes as headers; when it hands such a
//! message out, the client takes its connection for broken, or the message for the end of a pull. What else was handed out
//! with it comes again only after `ack_wait`, and so does the message itself, indefinitely. So what is handed out and not
//! acknowledged is read in another way, by JetStream's answers in JSON: the unreadable become dead letters, and the others
//! are taken in at once. Decides nothing about events.

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

/// How often it is looked whether anything is stuck; and how often when messages were set aside lately.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));

/// How long the second of these lasts.
const LATELY: Duration = Duration::from_secs(60);

/// After so long the server has noticed that a connection is gone, and hands nothing more out to it.
const NOTICED: Duration = Duration::from_millis(500);

/// How many messages are read at a time.
const AT_A_TIME: usize = 64;

/// The least time between two log lines about messages that are set aside.
const SAY: Duration = Duration::from_secs(30);

/// Why nothing could be looked through; it is tried again.
#[derive(Debug, thiserror::Error)]
enum SalvageError {
    #[error(transparent)]
    Raw(#[from] RawError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
}

/// Sets aside messages whose headers no client can read.
pub(crate) struct Salvage {
    ingest: Ingest,
    session: Arc<Session>,
    health: Arc<Health>,
    /// The connection by which events are pulled.
    pulls: Client,
    /// Whether it is up, told anew whenever it comes to be or ends.
    link: watch::Receiver<bool>,
    /// What was taken in already, and what was set aside, as far as it is above the ack floor.
    taken_in: BTreeSet<u64>,
    set_aside: BTreeSet<u64>,
    /// How many were set aside since the log has said so, and when it did.
    unsaid: usize,
    said: Option<Instant>,
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
        Self { ingest, session, health, pulls, link, taken_in, set_aside, unsaid: 0, said: None }
    }

    /// Runs until `finish` turns true. `at_once`: a pull has just ended as it would by an unreadable message.
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
                        // A server that takes a connection back at once was not away, and nor was the network.
                        let taken_back_by = self.pulls.server_info().server_id;
                        cut = taken_back_by == server;
                        server = taken_back_by;
                    }
                    () = tokio::time::sleep_until(look_again.map_or(look, |at| at.min(look))) => {}
                }
            }
            // While NATS does not answer, it hands nothing out either.
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

    /// Looks through what is handed out, until something unreadable was among it. Answers whether there was.
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

    /// Answers how many were set aside.
    async fn look_through_window(
        &mut self,
        window: RangeInclusive<u64>,
        info: &Info,
        finish: &watch::Receiver<bool>,
    ) -> Result<usize, SalvageError> {
        // An ack may get lost, when the consumer's leader changes for one.
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
                // What is not there any more cannot be handed out again.
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
            // While the dead letters take nothing, the unreadable wait, and the others are taken in.
            refused |= !all_stored;
            if let Some(first) = first.filter(|_| all_stored) {
                self.say(unreadable.len(), &first);
                self.set_aside.append(&mut unreadable);
            }
        }
        Ok(found)
    }

    /// For an ack as the pull would have brought it.
    fn acker(&self, sequence: u64, info: &Info) -> Acker {
        // The server knows by the stream's sequence which delivery is meant, and ignores the ack where there is none.
        let subject = format!(
            "$JS.ACK.{}.{}.1.{sequence}.{}.0.0",
            self.ingest.names.stream, info.name, info.delivered.consumer_sequence
        );
        Acker::new(self.session.jetstream.clone(), Some(subject.into()))
    }

    fn handed_out(&self, raw: Raw, info: &Info) -> HandedOut {
        HandedOut { headers: raw.headers(), acker: self.acker(raw.sequence, info), raw }
    }

    fn say(&mut self, count: usize, first: &str) {
        self.unsaid += count;
        self.ingest.metrics.events_unreadable.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        self.health.set_unreadable(first);
        if self.said.is_some_and(|at| at.elapsed() < SAY) {
            return;
        }
        self.said = Some(Instant::now());
        let count = std::mem::take(&mut self.unsaid);
        let stream = &self.ingest.names.stream;
        warn!(count, %stream, first = %first, "moved messages with unreadable headers to the dead letters. Each such message cuts the connection for pulls: have their producer correct the headers");
    }
}
