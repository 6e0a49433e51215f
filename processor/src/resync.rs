//! `taskpipeline resync`: writes the whole ledger to a KV namespace, or compares the two and repairs the differences.
//!
//! This module has the arguments and the output; the work is in the pipeline.

use std::time::Duration;

use clap::Args;

use taskpipeline_pipeline::resync::{self, Wanted};
use taskpipeline_pipeline::settings::Settings;

pub(crate) use taskpipeline_pipeline::resync::ResyncError;

/// The options of `taskpipeline resync`.
#[derive(Debug, Args)]
pub(crate) struct Resync {
    /// Compare KV with the ledger, and write nothing
    #[arg(long)]
    verify: bool,
    /// Compare, and write every task again that differs; keep keys that only KV has
    #[arg(long)]
    repair: bool,
    /// Compare, and delete the tasks that only KV has
    #[arg(long)]
    delete_unmanaged: bool,
    /// Compare values as well as the metadata of lists; costs one request for every 100 tasks
    #[arg(long)]
    values: bool,
    /// Print the whole report as JSON
    #[arg(long)]
    json: bool,
    /// Start from the beginning, instead of where an earlier resync was interrupted
    #[arg(long, conflicts_with_all = ["verify", "repair", "delete_unmanaged", "values", "json"])]
    restart: bool,
    /// The time after which keys that differ are read again, because answers of KV may be a minute old, such as 90s
    #[arg(long, default_value = "65s", value_parser = taskpipeline_pipeline::settings::parse_duration, value_name = "TIME")]
    recheck_after: Duration,
}

/// The result of a resync.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The text for standard output.
    pub(crate) text: String,
    /// Whether KV and the ledger are equal, as far as they were compared.
    pub(crate) equal: bool,
}

impl Resync {
    /// Runs until the resync is done or `shutdown` resolves.
    ///
    /// # Errors
    /// If the resync does not finish; it can be run again.
    pub(crate) async fn run(
        &self,
        settings: Settings,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Outcome, ResyncError> {
        let wanted = Wanted {
            // Each of these options implies a comparison.
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
