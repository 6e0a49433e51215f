//! Draws histories, plays them on several threads, and shrinks the first that fails. One number determines a history.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::replica::Common;
use super::settings::Setting;
use super::steps::Drawn;
use super::world::World;
use crate::durable::names::Names;
use crate::telemetry::health::Health;
use crate::telemetry::metrics::Metrics;

/// The longest history, in steps.
const LONGEST: usize = 70;

/// The time limit for shrinking a history.
const SHRINK: Duration = Duration::from_secs(20);

/// A history.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) seed: u64,
    pub(super) setting: Setting,
    pub(super) steps: Vec<Drawn>,
}

/// The result of a history.
pub(super) struct Played {
    pub(super) wrong: Option<String>,
    pub(super) seen: BTreeMap<&'static str, u64>,
    pub(super) trace: Vec<String>,
}

impl History {
    pub(super) fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let setting = Setting::draw(&mut dice);
        // Short histories find as much as long ones, and many are better than few.
        let count = 5 + dice.below(LONGEST).min(dice.below(LONGEST));
        let steps = (0..count).map(|_| Drawn::draw(&setting, &mut dice)).collect();
        Self { seed, setting, steps }
    }

    /// Plays the history. If `trace`, it records the steps.
    pub(super) fn play(&self, trace: bool) -> Played {
        let common = common();
        let mut world = World::new(&self.setting, self.seed, &common.0, &common.1);
        world.trace = trace.then(Vec::new);
        world.truth.faults = true;
        let played = catch_unwind(AssertUnwindSafe(|| {
            for step in &self.steps {
                world.take(step);
                if world.wrong.is_some() {
                    return;
                }
            }
            world.recover();
            world.check_end();
            if self.setting.clustered && !self.setting.poison && world.wrong.is_none() {
                world.live_quietly();
            }
            if self.setting.long && world.wrong.is_none() {
                world.outlive_the_memory();
            }
        }));
        let panicked = played.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned())).unwrap_or_default()
        });
        let seen = std::mem::take(&mut world.seen);
        let (wrong, trace) = (panicked.or(world.wrong.take()), world.trace.take().unwrap_or_default());
        Played { wrong, seen, trace }
    }

    /// Returns the shortest history found that still fails.
    pub(super) fn shrink(mut self) -> Self {
        let until = Instant::now() + SHRINK;
        let fails = |history: &Self| history.play(false).wrong.is_some();
        let mut part = self.steps.len().div_ceil(2);
        while part > 0 && Instant::now() < until {
            let (mut at, mut shrunk) = (0, false);
            while at < self.steps.len() && Instant::now() < until {
                let mut shorter = self.clone();
                shorter.steps.drain(at..(at + part).min(self.steps.len()));
                if fails(&shorter) {
                    (self, shrunk) = (shorter, true);
                } else {
                    at += part;
                }
            }
            if !shrunk || part > 1 {
                part /= 2;
            }
        }
        let mut at = 0;
        while at < self.steps.len() && Instant::now() < until {
            let smaller = self.steps[at].smaller().into_iter().find_map(|step| {
                let mut smaller = self.clone();
                smaller.steps[at] = step;
                fails(&smaller).then_some(smaller)
            });
            match smaller {
                Some(smaller) => self = smaller,
                None => at += 1,
            }
        }
        self
    }
}

/// Plays a world in which a test takes the steps.
pub(super) fn played(setting: &Setting, scene: impl FnOnce(&mut World)) {
    let (common, names) = common();
    scene(&mut World::new(setting, 1, &common, &names));
}

/// The parts that all histories of a thread share.
fn common() -> (Common, Arc<Names>) {
    thread_local! {
        static COMMON: (Common, Arc<Names>) = (
            Common { metrics: Arc::new(Metrics::new().unwrap()), health: Arc::new(Health::default()) },
            Arc::new(Names::of("TASKS", "tasks-processor", "tasks")),
        );
    }
    COMMON.with(Clone::clone)
}

/// The selection of histories, from the environment.
pub(super) struct Options {
    pub(super) seed: u64,
    pub(super) histories: u64,
    pub(super) threads: u64,
}

impl Options {
    pub(super) fn from_env(histories: u64) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("invalid {name} {text:?}: expected a number")))
        };
        Self {
            seed: number("SIMULATION_SEED").unwrap_or(1),
            histories: number("SIMULATION_HISTORIES").unwrap_or(histories),
            threads: number("SIMULATION_THREADS").unwrap_or(2),
        }
    }

    /// Plays all histories until one fails, then shrinks and shows that one.
    pub(super) fn play(&self) {
        let began = Instant::now();
        let next = AtomicU64::new(0);
        let failed: Mutex<Option<u64>> = Mutex::new(None);
        let seen: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
        // The report below covers a history that panics.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    let mut own: BTreeMap<&'static str, u64> = BTreeMap::new();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= self.histories
                            || failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
                        {
                            break;
                        }
                        let seed = self.seed.wrapping_add(n);
                        let played = History::draw(seed).play(false);
                        played.seen.iter().for_each(|(what, n)| *own.entry(what).or_default() += n);
                        if played.wrong.is_some() {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(seed);
                        }
                    }
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    own.iter().for_each(|(what, n)| *seen.entry(what).or_default() += n);
                });
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let shown = failed.map(|seed| (seed, seconds, show(seed)));
        std::panic::set_hook(hook);
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shown {
            Some((seed, seconds, text)) => {
                // `cargo xtask variants` looks for this line on standard output.
                println!("history {seed} fails, found after {seconds:.1} s");
                panic!("{text}\nagain: SIMULATION_SEED={seed} SIMULATION_HISTORIES=1")
            }
            None => println!(
                "{} histories in {seconds:.1} s ({:.0}/s); {seen:?}",
                self.histories,
                self.histories as f64 / seconds
            ),
        }
    }
}

/// Formats a failing history, as short as possible, with its trace.
fn show(seed: u64) -> String {
    let history = History::draw(seed).shrink();
    let played = history.play(true);
    let steps: Vec<_> = history.steps.iter().map(|drawn| format!("  {:?}", drawn.step)).collect();
    format!(
        "{:?}\n{} steps:\n{}\ntrace:\n{}\n{}",
        history.setting,
        steps.len(),
        steps.join("\n"),
        played.trace.join("\n"),
        played.wrong.unwrap_or_else(|| {
            "the history no longer fails: it depends on something besides the seed".to_owned()
        })
    )
}
