//! Starts, stops and kills the replicas of a history, and keeps their output for the case that the history fails.
//!
//! Other modules decide when.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::timeline::Timeline;
use crate::{Processor, ProcessorOptions};

/// The time limit for a replica to end after SIGTERM: its `SHUTDOWN_GRACE` and some more.
const DRAIN: Duration = Duration::from_secs(12);

/// A running replica.
#[derive(Debug)]
struct Replica {
    name: String,
    processor: Processor,
}

/// All replicas of a pipeline.
#[derive(Debug)]
pub(crate) struct Fleet {
    name: &'static str,
    options: ProcessorOptions,
    replicas: Vec<Replica>,
    started: u32,
    timeline: Arc<Timeline>,
    /// The output of replicas that have ended.
    gone: Vec<(String, Vec<String>)>,
}

impl Fleet {
    /// Begins without replicas.
    pub(crate) fn new(name: &'static str, options: ProcessorOptions, timeline: Arc<Timeline>) -> Self {
        Self { name, options, replicas: Vec::new(), started: 0, timeline, gone: Vec::new() }
    }

    /// Starts all further replicas with these options.
    pub(crate) fn serve(&mut self, options: ProcessorOptions) {
        self.options = options;
    }

    /// Reads a metric of each replica, the sum over its labels.
    ///
    /// # Errors
    /// If a replica does not answer.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        let all = self.replicas.iter().map(|replica| replica.processor.metric(name));
        join_all(all).await.into_iter().collect()
    }

    /// The number of running replicas.
    pub(crate) fn count(&self) -> usize {
        self.replicas.len()
    }

    /// The number of replicas that were ever started.
    pub(crate) fn started(&self) -> u32 {
        self.started
    }

    /// Starts a replica, and returns its index.
    ///
    /// # Errors
    /// If it cannot be run.
    pub(crate) fn start(&mut self) -> anyhow::Result<usize> {
        self.start_with(&self.options.clone(), "")
    }

    fn start_with(&mut self, options: &ProcessorOptions, remark: &str) -> anyhow::Result<usize> {
        self.started += 1;
        let name = format!("{}-{}", self.name, self.started);
        let processor = Processor::spawn(options)?;
        self.timeline.note(format_args!("{name} started, pid {}{remark}", processor.process().pid()));
        self.replicas.push(Replica { name, processor });
        Ok(self.replicas.len() - 1)
    }

    /// Starts replicas until this many run.
    ///
    /// # Errors
    /// If a replica cannot be run.
    pub(crate) fn fill_up(&mut self, count: usize) -> anyhow::Result<()> {
        while self.replicas.len() < count {
            self.start()?;
        }
        Ok(())
    }

    /// Waits until all replicas are ready.
    ///
    /// # Errors
    /// If a replica does not become ready.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        for replica in &self.replicas {
            replica.processor.wait_ready(Duration::from_secs(20)).await?;
        }
        Ok(())
    }

    /// Checks that no replica has ended by itself.
    ///
    /// # Errors
    /// If a replica has ended; its last lines are in the error.
    pub(crate) fn all_run(&mut self) -> anyhow::Result<()> {
        for replica in &mut self.replicas {
            let runs = replica.processor.is_running()?;
            ensure!(runs, "{} has ended by itself\n{}", replica.name, replica.processor.process().tail());
        }
        Ok(())
    }

    /// The index of the active projector by its own metrics; the first if several are active.
    pub(crate) async fn active(&self) -> Option<usize> {
        self.all_active().await.first().copied()
    }

    /// The indexes of all replicas that report to be the active projector. A stopped replica reports nothing.
    pub(crate) async fn all_active(&self) -> Vec<usize> {
        let says = |replica| {
            let asked = Replica::is_active(replica);
            async move { timeout(Duration::from_millis(400), asked).await.unwrap_or(false) }
        };
        let all = join_all(self.replicas.iter().map(says)).await;
        all.into_iter().enumerate().filter_map(|(index, active)| active.then_some(index)).collect()
    }

    /// Waits for a short time until a projector is active.
    pub(crate) async fn wait_active(&self, within: Duration) -> Option<usize> {
        let deadline = Instant::now() + within;
        loop {
            let active = self.active().await;
            if active.is_some() || Instant::now() >= deadline {
                return active;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The name of a replica in the timeline and in the logs.
    pub(crate) fn name(&self, index: usize) -> &str {
        self.replicas.get(index).map_or("an unknown replica", |replica| &replica.name)
    }

    /// Stops a replica by SIGSTOP, or continues it.
    ///
    /// # Errors
    /// If the replica has ended.
    pub(crate) fn pause(&self, index: usize, paused: bool) -> anyhow::Result<()> {
        let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.timeline.note(format_args!("{signal} to {}", self.name(index)));
        match self.replicas.get(index) {
            Some(replica) => replica.processor.process().signal(signal),
            None => bail!("replica {index} does not exist"),
        }
    }

    /// Kills a replica with kill -9.
    ///
    /// # Errors
    /// If the replica had ended before: then it was not killed.
    pub(crate) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let mut replica = self.replicas.remove(index);
        self.timeline.note(format_args!("SIGKILL to {}", replica.name));
        let ended = replica.processor.kill().await;
        let tail = replica.processor.process().tail();
        self.keep(&replica);
        let status = ended?;
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        ensure!(killed, "{} had ended by itself: {status}\n{tail}", replica.name);
        Ok(())
    }

    /// Sends SIGTERM to these replicas at the same time, and waits for their ends.
    ///
    /// # Errors
    /// If a replica does not end in time.
    pub(crate) async fn drain(&mut self, mut which: Vec<usize>) -> anyhow::Result<()> {
        which.sort_unstable();
        let mut leaving: Vec<_> = which.into_iter().rev().map(|index| self.replicas.remove(index)).collect();
        for replica in &leaving {
            self.timeline.note(format_args!("SIGTERM to {}", replica.name));
        }
        let ended = join_all(leaving.iter_mut().map(|replica| replica.processor.terminate(DRAIN))).await;
        for (replica, status) in leaving.iter().zip(&ended) {
            let status = status.as_ref().map_or_else(ToString::to_string, ToString::to_string);
            self.timeline.note(format_args!("{} ended: {status}", replica.name));
            self.keep(replica);
        }
        ended.into_iter().try_for_each(|status| status.map(drop))
    }

    /// Runs the build with crash points until it aborts at this one, and returns whether it did.
    ///
    /// If `alone`, all other replicas are told to end, so that no other can pass the point.
    ///
    /// # Errors
    /// If it cannot be run, or ends in another way.
    pub(crate) async fn crash(
        &mut self,
        point: &str,
        nth: u32,
        alone: bool,
        within: Duration,
    ) -> anyhow::Result<bool> {
        let options = self.options.clone().crashing_at(point, nth);
        let index = self.start_with(&options, &format!(", to crash at {point}:{nth}"))?;
        if alone {
            self.drain((0..index).collect()).await?;
        }
        let index = self.replicas.len() - 1;
        let deadline = Instant::now() + within;
        while self.replicas[index].processor.is_running()? && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        if self.replicas[index].processor.is_running()? {
            self.timeline.note(format_args!("{point}:{nth} was not passed"));
            self.kill(index).await?;
            return Ok(false);
        }
        let mut replica = self.replicas.remove(index);
        let status = replica.processor.wait(Duration::from_secs(1)).await?;
        self.timeline.note(format_args!("{} crashed at {point}:{nth}: {status}", replica.name));
        self.keep(&replica);
        let aborted = status.signal() == Some(Signal::SIGABRT as i32);
        ensure!(aborted, "{} ended: {status}\n{}", replica.name, replica.processor.process().tail());
        Ok(true)
    }

    /// Runs only the build with crash points until it stops at this one, and returns its index; `None` if it has not
    /// stopped after `within`.
    ///
    /// # Errors
    /// If it cannot be run, or the other replicas do not end.
    pub(crate) async fn stop_at(
        &mut self,
        point: &str,
        nth: u32,
        within: Duration,
    ) -> anyhow::Result<Option<usize>> {
        let options = self.options.clone().stopping_at(point, nth);
        let index = self.start_with(&options, &format!(", to stop at {point}:{nth}"))?;
        self.drain((0..index).collect()).await?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.replicas[0].processor.process().is_stopped().await? {
                self.timeline.note(format_args!("{} stopped at {point}:{nth}", self.name(0)));
                return Ok(Some(0));
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.timeline.note(format_args!("{point}:{nth} was not passed"));
        self.kill(0).await?;
        Ok(None)
    }

    fn keep(&mut self, replica: &Replica) {
        self.gone.push((replica.name.clone(), replica.processor.process().lines()));
    }

    /// The output of all replicas, those that have ended first.
    pub(crate) fn logs(&self) -> Vec<(String, Vec<String>)> {
        let running = self.replicas.iter().map(|it| (it.name.clone(), it.processor.process().lines()));
        self.gone.iter().cloned().chain(running).collect()
    }
}

impl Replica {
    async fn is_active(&self) -> bool {
        let active = self.processor.metric("taskpipeline_projector_active").await;
        active.is_ok_and(|active| active > 0.0)
    }
}
