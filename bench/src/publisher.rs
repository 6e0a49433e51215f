//! A producer as a separate process, so that its CPU time does not count for the system.
//!
//! Each line of its standard input is the place of the load up to which it may publish. It publishes as fast as it
//! may. On its standard output it reports its progress.
//!
//! It publishes plainly into a stream, as the quick start does, and requests an ack at the end of each chunk. The
//! server takes in the messages of one connection in their order. So the sequence in that ack shows whether any was
//! lost. If one was, the process ends with an error.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use crate::events::{Mix, encode};

/// The number of events between two acks.
const CHUNK: u64 = 500;

/// The number of acks that may be outstanding. These chunks have fewer than 10,000 events: nats-server drops events
/// if more wait in front of a stream.
const MOST_ACKS: usize = 8;

/// The options of the process.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Connect to nats-server at this URL
    #[arg(long)]
    url: String,
    /// Publish events to {prefix}.created and so on
    #[arg(long, default_value = "tasks")]
    prefix: String,
    /// Rotate the creates over this many ids
    #[arg(long)]
    ids: u64,
    /// Delete a task created this many events before with every tenth event; 0: never
    #[arg(long, default_value_t = 0)]
    delete_lag: u64,
    /// Update one of this many existing tasks with every third event; 0: never
    #[arg(long, default_value_t = 0)]
    existing: u64,
    /// Leave out this many tasks beyond those in the creates
    #[arg(long, default_value_t = 0)]
    skip: u64,
    /// Expect acks of a stream
    #[arg(long)]
    acked: bool,
}

impl Options {
    pub(crate) fn new(url: &str, mix: Mix, acked: bool) -> Self {
        Self {
            url: url.to_owned(),
            prefix: "tasks".to_owned(),
            ids: mix.ids,
            delete_lag: mix.delete_lag,
            existing: mix.existing,
            skip: mix.skip,
            acked,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "publish".to_owned(),
            format!("--url={}", self.url),
            format!("--prefix={}", self.prefix),
            format!("--ids={}", self.ids),
            format!("--delete-lag={}", self.delete_lag),
            format!("--existing={}", self.existing),
            format!("--skip={}", self.skip),
        ];
        if self.acked {
            arguments.push("--acked".to_owned());
        }
        arguments
    }
}

/// Runs the process: it publishes until its standard input has ended and all allowed events are published.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let client = async_nats::connect(&options.url).await.context("the publisher cannot connect")?;
    let mix = Mix {
        ids: options.ids,
        delete_lag: options.delete_lag,
        existing: options.existing,
        skip: options.skip,
    };
    let subject = |kind: &str| async_nats::Subject::from(format!("{}.{kind}", options.prefix));
    let subjects = ["created", "updated", "deleted"].map(|kind| (kind, subject(kind)));
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(inbox.clone()).await?;
    let (mut sent, mut first_sequence, mut waiting) = (0_u64, None, VecDeque::new());
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    let mut allowed = allowed();
    loop {
        let most = *allowed.borrow_and_update();
        if sent >= most {
            // No further place will be allowed.
            if allowed.changed().await.is_err() {
                break;
            }
            continue;
        }
        let end = most.min(sent + CHUNK);
        for place in sent..end {
            let (kind, task) = mix.at(place);
            let event = encode(&mut buffer, kind, place, task);
            let subject = subjects.iter().find(|(name, _)| *name == kind.name()).map(|(_, subject)| subject);
            let subject = subject.context("the kind has no subject")?.clone();
            if options.acked && place + 1 == end {
                client.publish_with_reply(subject, inbox.clone(), event).await?;
            } else {
                client.publish(subject, event).await?;
            }
        }
        sent = end;
        if options.acked {
            waiting.push_back(end);
        } else {
            client.flush().await?;
            println!("{sent}");
        }
        while waiting.len() >= MOST_ACKS || (*allowed.borrow() <= sent && !waiting.is_empty()) {
            let ack = acks.next().await.context("the connection ended")?;
            let events = waiting.pop_front().context("received more acks than expected")?;
            check(&ack.payload, events, &mut first_sequence)?;
            println!("{events}");
        }
    }
    client.flush().await?;
    Ok(())
}

/// The place up to which the standard input allows to publish.
fn allowed() -> watch::Receiver<u64> {
    let (tell, allowed) = watch::channel(0);
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(most) = line.trim().parse() {
                tell.send_replace(most);
            }
        }
    });
    allowed
}

/// Checks that the stream has all events up to this ack.
fn check(ack: &[u8], events: u64, before_first: &mut Option<u64>) -> anyhow::Result<()> {
    let ack: Value = serde_json::from_slice(ack).context("an ack cannot be read")?;
    let Some(sequence) = ack["seq"].as_u64() else { bail!("the stream refuses events: {ack}") };
    let before = *before_first.get_or_insert(sequence.saturating_sub(events));
    ensure!(
        sequence - before == events,
        "only {} of {events} events are in the stream: the server dropped some",
        sequence - before
    );
    Ok(())
}

/// A handle on the process.
#[derive(Debug)]
pub(crate) struct Publisher {
    child: Child,
    stdin: Option<ChildStdin>,
    published: Arc<AtomicU64>,
}

impl Publisher {
    /// Starts the process, which publishes nothing until it is allowed to.
    pub(crate) fn start(options: &Options) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot get the path of this program")?;
        let mut child = Command::new(program)
            .args(options.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the publisher")?;
        let published = Arc::new(AtomicU64::new(0));
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let told = Arc::clone(&published);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(count) = line.parse() {
                    told.store(count, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { child, stdin, published })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.child.id().context("the publisher has ended")?)?)
    }

    /// Allows the process to publish up to this place of the load.
    pub(crate) async fn allow(&mut self, events: u64) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("the publisher was told to end")?;
        stdin.write_all(format!("{events}\n").as_bytes()).await.context("the publisher has failed: see above")
    }

    /// The number of published events, which are also acknowledged if a stream exists.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Lets the process publish the remaining allowed events, and waits for its end.
    pub(crate) async fn finish(&mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait().await.context("cannot wait for the publisher")?;
        ensure!(status.success(), "the publisher has failed: see above");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_tells_whether_any_event_was_lost() {
        let mut first = None;
        assert!(check(br#"{"stream":"TASKS","seq":510}"#, 500, &mut first).is_ok());
        assert!(check(br#"{"stream":"TASKS","seq":1010}"#, 1_000, &mut first).is_ok());
        assert!(check(br#"{"stream":"TASKS","seq":1509}"#, 1_500, &mut first).is_err());
        assert!(check(br#"{"error":{"code":503}}"#, 500, &mut None).is_err());
    }
}
