//! Reads the usage of a process from the system: `/proc` on Linux, `ps` elsewhere.

use anyhow::Context;

/// The usage of a process since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU time of all its threads, user and system together, in seconds.
    pub(crate) cpu: f64,
    /// The current resident memory, in MB (2^20 bytes).
    pub(crate) resident: f64,
    /// The highest resident memory so far, in MB; 0 if the system does not record it.
    pub(crate) peak: f64,
}

/// Linux reports CPU time to programs in hundredths of a second, on every architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

const KB_PER_MB: f64 = 1_024.0;

/// Returns the usage of this process.
///
/// # Errors
/// If the system does not know the process (any more).
pub(crate) fn of(pid: i32) -> anyhow::Result<Usage> {
    if cfg!(target_os = "linux") {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}"))
                .with_context(|| format!("process {pid} is gone"))
        };
        return from_proc(&read("stat")?, &read("status")?).context("the format of /proc is unknown");
    }
    let told = std::process::Command::new("ps")
        .args(["-o", "time=,rss=", "-p", &pid.to_string()])
        .output()
        .context("cannot run ps")?;
    from_ps(&String::from_utf8_lossy(&told.stdout)).with_context(|| format!("ps does not know {pid}"))
}

/// Parses `pid (name) state ppid ...`, in which the name may contain anything, and `Name:  value kB`.
fn from_proc(stat: &str, status: &str) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    // The state is field 3; utime and stime are 14 and 15.
    let mut times = rest.split_ascii_whitespace().skip(11).map(str::parse::<f64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    let megabytes = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_ascii_whitespace().next()?.parse::<f64>().ok()? / KB_PER_MB)
    };
    // An ended process that was not waited for has no memory lines.
    Some(Usage {
        cpu: (user + system) / TICKS_PER_SECOND,
        resident: megabytes("VmRSS").unwrap_or_default(),
        peak: megabytes("VmHWM").unwrap_or_default(),
    })
}

/// Parses `[[days-]hours:]minutes:seconds kilobytes`.
fn from_ps(text: &str) -> Option<Usage> {
    let mut words = text.split_ascii_whitespace();
    let (time, kilobytes) = (words.next()?, words.next()?.parse::<f64>().ok()?);
    let (days, clock) = time.split_once('-').unwrap_or(("0", time));
    let seconds = clock.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    let cpu = days.parse::<f64>().ok()? * 86_400.0 + seconds;
    Some(Usage { cpu, resident: kilobytes / KB_PER_MB, peak: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        let stat = "12 (a (b) c) S 1 12 12 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 100 0 0";
        let status = "Name:\tx\nVmHWM:\t  20480 kB\nVmRSS:\t  10240 kB\n";
        assert_eq!(from_proc(stat, status), Some(Usage { cpu: 2.0, resident: 10.0, peak: 20.0 }));
        assert_eq!(from_proc("nonsense", status), None);
    }

    #[test]
    fn reads_ps() {
        let usage = |text| from_ps(text).map(|usage| (usage.cpu, usage.resident));
        assert_eq!(usage(" 1:02.50 2048\n"), Some((62.5, 2.0)));
        assert_eq!(usage("1-00:00:01 1024"), Some((86_401.0, 1.0)));
        assert_eq!(usage(""), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(of(pid).unwrap().resident > 0.0);
    }
}
