//! `taskpipeline dead-letters`: lists, shows, replays and drops what could not go on. Here are its arguments and what
//! it prints; what it does is the pipeline's.

use std::io::{ErrorKind, IsTerminal, Write};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as NotAReason;

use taskpipeline_pipeline::Reason;
use taskpipeline_pipeline::letters::{Desk, LettersError, Selection, Tally, Which, line};
use taskpipeline_pipeline::settings::Stored;

/// What to do with the dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// Lists them, the newest last
    List(List),
    /// Shows everything about one of them
    Show(Show),
    /// Publishes their events again, or has their tasks written again, and removes them
    ///
    /// Refuses an event that would put an old state over a newer one, and bytes that are still no event.
    Replay(Replay),
    /// Deletes them for good
    Drop(Drop),
}

/// How to list them.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// Only the newest N
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Which one to show.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Its sequence in the list, or its id
    #[arg(value_name = "SEQ|ID")]
    letter: String,
    /// Only the event's original bytes, as they are
    #[arg(long)]
    payload: bool,
}

/// Which ones to replay, and how.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    letters: Letters,
    /// Have them count as the newest events, whatever has changed since; and send even what is no event
    #[arg(long)]
    as_new: bool,
}

/// Which ones to drop.
#[derive(Debug, Args)]
pub(crate) struct Drop {
    #[command(flatten)]
    letters: Letters,
    /// Really all of them
    #[arg(long, requires = "all")]
    yes: bool,
}

/// Letters by name, or all.
#[derive(Debug, Args)]
struct Letters {
    /// Their sequences in the list, or their ids
    #[arg(value_name = "SEQ|ID", required_unless_present = "all", conflicts_with = "all")]
    letters: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// With --all: only those with this reason
    #[arg(long, requires = "all", conflicts_with = "letters", value_parser = reason)]
    reason: Option<Reason>,
}

impl Letters {
    fn selection(&self) -> Selection {
        if self.all {
            Selection::All(self.reason)
        } else {
            Selection::These(self.letters.iter().map(|text| Which::from(text.as_str())).collect())
        }
    }
}

/// The error names the reasons there are.
fn reason(text: &str) -> Result<Reason, NotAReason> {
    Reason::deserialize(text.into_deserializer())
}

/// Why the command did not do all that it was to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct DeadLettersError(#[from] Problem);

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Letters(#[from] LettersError),
    #[error("{0} dead letters would be deleted for good; say --yes if they are to be")]
    NotConfirmed(usize),
    #[error("{} of {} dead letters {what}", .tally.not_done, .tally.done + .tally.not_done)]
    NotAll { tally: Tally, what: &'static str },
    #[error("the output cannot be written")]
    Output(#[from] std::io::Error),
}

impl DeadLetters {
    /// Does it, and prints what was done on standard output, what was not on standard error.
    ///
    /// # Errors
    /// Where NATS cannot be used, or anything was refused or failed.
    pub(crate) async fn run(&self, pipeline: &Stored) -> Result<(), DeadLettersError> {
        Ok(self.carry_out(&Desk::open(pipeline).await.map_err(Problem::from)?).await?)
    }

    async fn carry_out(&self, desk: &Desk) -> Result<(), Problem> {
        match self {
            Self::List(List { json: true, limit }) => print(desk.list_json(*limit).await?.as_bytes()),
            Self::List(List { json: false, limit }) => print(desk.list(*limit, width()).await?.as_bytes()),
            Self::Show(Show { letter, payload: true }) => {
                print(&desk.payload(&Which::from(letter.as_str())).await?)
            }
            Self::Show(Show { letter, payload: false }) => {
                print(desk.show(&Which::from(letter.as_str())).await?.as_bytes())
            }
            Self::Replay(replay) => {
                let tally = desk.replay(&replay.letters.selection(), replay.as_new, &mut tell).await?;
                summary(tally, "were not replayed", "there are no such dead letters")
            }
            Self::Drop(drop) => {
                let selection = drop.letters.selection();
                if drop.letters.all && !drop.yes {
                    match desk.count(&selection).await? {
                        0 => {}
                        count => return Err(Problem::NotConfirmed(count)),
                    }
                }
                let tally = desk.drop_letters(&selection, &mut tell).await?;
                summary(tally, "were not dropped", "there are no such dead letters")
            }
        }
    }
}

fn summary(tally: Tally, not_done: &'static str, nothing: &str) -> Result<(), Problem> {
    match tally {
        Tally { not_done: 0, done: 0 } => print(format!("{nothing}\n").as_bytes()),
        Tally { not_done: 0, .. } => Ok(()),
        tally => Err(Problem::NotAll { tally, what: not_done }),
    }
}

/// What becomes of each letter is said when it has happened: there may be many, and it may be interrupted.
fn tell(outcome: Result<&str, &str>) {
    // Whoever has stopped reading does not want to stop the work.
    let _ = match outcome {
        Ok(done) => writeln!(std::io::stdout(), "{}", line(done)),
        Err(why) => writeln!(std::io::stderr(), "{}", line(why)),
    };
}

fn print(bytes: &[u8]) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The terminal's, if standard output is one: what goes elsewhere is not cut.
fn width() -> Option<usize> {
    let out = std::io::stdout();
    out.is_terminal().then(|| terminal_size::terminal_size_of(out)).flatten().map(|(width, _)| width.0.into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: DeadLetters,
    }

    fn parsed(arguments: &str) -> Result<DeadLetters, String> {
        let cli = Cli::try_parse_from(std::iter::once("x").chain(arguments.split(' ')));
        cli.map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn letters_are_named_or_all() {
        for good in [
            "list",
            "list --json --limit 5",
            "show 7",
            "show tasks-processor-1-5 --payload",
            "replay 7 tasks-processor-1-5 --as-new",
            "replay --all --reason invalid",
            "drop 7",
            "drop --all --yes",
        ] {
            assert!(parsed(good).is_ok(), "{good}");
        }
        for bad in ["show", "show 7 8", "replay", "replay 7 --all", "replay 7 --reason invalid", "drop"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_reason_is_answered_with_the_right_ones() {
        let error = parsed("drop --all --reason invali").unwrap_err();
        assert!(error.contains("`invalid`") && error.contains("`refused-by-kv`"), "{error}");
    }
}
