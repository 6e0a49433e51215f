//! `taskpipeline dead-letters`: lists, shows, replays and drops dead letters.
//!
//! This module has the arguments and the output; the work is in the pipeline.

use std::io::{ErrorKind, IsTerminal, Write};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as NotAReason;

use taskpipeline_pipeline::Reason;
use taskpipeline_pipeline::letters::{Desk, LettersError, Selection, Tally, Which, line};
use taskpipeline_pipeline::settings::Stored;

/// The subcommands of `taskpipeline dead-letters`.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List dead letters, the newest last
    List(List),
    /// Show one dead letter with its headers and payload
    Show(Show),
    /// Publish the events of dead letters again, or write their tasks again, and delete the letters
    ///
    /// Refuses an event that would restore an old state, and a payload that is still invalid
    Replay(Replay),
    /// Delete dead letters permanently
    Drop(Drop),
}

/// The options of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Print only the newest N letters
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// The options of `show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The sequence of the letter in the list, or its id
    #[arg(value_name = "SEQ|ID")]
    letter: String,
    /// Print only the payload, byte for byte
    #[arg(long)]
    payload: bool,
}

/// The options of `replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    letters: Letters,
    /// Replay the letters as the newest events, even invalid ones, whatever has changed since
    #[arg(long)]
    as_new: bool,
}

/// The options of `drop`.
#[derive(Debug, Args)]
pub(crate) struct Drop {
    #[command(flatten)]
    letters: Letters,
    /// Confirm the deletion of all letters
    #[arg(long, requires = "all")]
    yes: bool,
}

/// Letters by sequence or id, or all letters.
#[derive(Debug, Args)]
struct Letters {
    /// The sequences of the letters in the list, or their ids
    #[arg(value_name = "SEQ|ID", required_unless_present = "all", conflicts_with = "all")]
    letters: Vec<String>,
    /// Select all letters
    #[arg(long)]
    all: bool,
    /// With --all: select only letters with this reason, such as invalid
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

/// Parses a reason. The error lists the valid reasons.
fn reason(text: &str) -> Result<Reason, NotAReason> {
    Reason::deserialize(text.into_deserializer())
}

/// The command failed, or completed only in part.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct DeadLettersError(#[from] Problem);

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Letters(#[from] LettersError),
    #[error("this deletes {0} dead letters permanently. Pass --yes to confirm")]
    NotConfirmed(usize),
    #[error("{} of {} dead letters {what}", .tally.not_done, .tally.done + .tally.not_done)]
    NotAll { tally: Tally, what: &'static str },
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
}

impl DeadLetters {
    /// Runs the command. Results go to standard output, failures to standard error.
    ///
    /// # Errors
    /// If NATS cannot be used, or a letter was refused or failed.
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
                let tally =
                    desk.replay(&replay.letters.selection(), replay.as_new, &mut print_outcome).await?;
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
                let tally = desk.drop_letters(&selection, &mut print_outcome).await?;
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

/// Prints the outcome of each letter at once: there may be many, and the command may be interrupted.
fn print_outcome(outcome: Result<&str, &str>) {
    // A reader that closes the output does not stop the work.
    let _ = match outcome {
        Ok(done) => writeln!(std::io::stdout(), "{}", line(done)),
        Err(why) => writeln!(std::io::stderr(), "{}", line(why)),
    };
}

fn print(bytes: &[u8]) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `| head` has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// The width of the terminal; `None` if standard output is not a terminal. Then lines are not cut.
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
