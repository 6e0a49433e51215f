//! `taskpipeline resync`: writes the whole ledger to a KV namespace, or compares the two and mends what differs.
//! Arguments in, a report out; the work is done in the pipeline.

use std::time::Duration;

use clap::Args;

use taskpipeline_pipeline::resync::{self, Wanted};
use taskpipeline_pipeline::settings::Settings;

pub(crate) use taskpipeline_pipeline::resync::ResyncError;

/// What to do, and how.
#[derive(Debug, Args)]
pub(crate) struct Resync {
    /// Compares KV with the ledger and writes nothing
    #[arg(long)]
    verify: bool,
    /// Compares, and has everything written again that differs, but for keys that only KV knows
    #[arg(long)]
    repair: bool,
    /// Compares, and deletes the tasks that only KV knows
    #[arg(long)]
    delete_unmanaged: bool,
    /// Compares values too, and not only what lists show of them: a request for every 100 tasks
    #[arg(long)]
    values: bool,
    /// Prints the whole report as JSON
    #[arg(long)]
    json: bool,
    /// Begins anew instead of going on where an earlier resync was interrupted
    #[arg(long, conflicts_with_all = ["verify", "repair", "delete_unmanaged", "values", "json"])]
    restart: bool,
    /// After how long keys that differ are looked at again: KV's answers may be a minute old
    #[arg(long, default_value = "65s", value_parser = taskpipeline_pipeline::settings::parse_duration, value_name = "TIME")]
    recheck_after: Duration,
}

/// What to print, and whether KV is as it should be.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For standard output.
    pub(crate) text: String,
    /// Nothing differs, as far as was looked.
    pub(crate) equal: bool,
}

impl Resync {
    /// Does it, until it is done or `shutdown` resolves.
    ///
    /// # Errors
    /// Where it does not come to its end; it may be run again.
    pub(crate) async fn run(
        &self,
        settings: Settings,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Outcome, ResyncError> {
        let wanted = Wanted {
            // What is compared is asked for with any of them.
            verify: self.verify || self.values || self.json,
            values: self.values,
            repair: self.repair,
            delete_unmanaged: self.delete_unmanaged,
            restart: self.restart,
            recheck_after: self.recheck_after,
        };
        tokio::pin!(shutdown);
        Ok(match resync::run(settings, &wanted, shutdown).await? {
            None => {
                let text = "all of the ledger is written to KV\n".to_owned();
                Outcome { text, equal: true }
            }
            Some(report) => {
                let text = if self.json { format!("{:#}\n", report.to_json()) } else { report.to_text() };
                Outcome { text, equal: report.is_equal() }
            }
        })
    }
}
