//! Readings of the kernel about the machine, processes and sockets, from `/proc` and system calls.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Failure;

/// `CLOCK_MONOTONIC` in nanoseconds: the same clock in every process of the machine.
pub(crate) fn now_ns() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// Raises the soft limit of descriptors to the hard limit, for this process and its children.
///
/// # Errors
/// When the limit stays below `wanted`.
pub(crate) fn raise_descriptors(wanted: u64) -> Result<u64, Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| Failure::io("the descriptor limit", e))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| Failure::io("the descriptor limit", e))?;
    if hard < wanted {
        return Err(Failure::Missing(format!(
            "{wanted} file descriptors are needed, the hard limit is {hard}: raise it (ulimit -Hn)"
        )));
    }
    Ok(hard)
}

/// Binds the calling thread, and its future children, to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| Failure::io(&format!("binding to CPU {cpu}"), e))
}

/// The number of CPUs that this process may run on.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load average of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(f64::NAN)
}

/// CPU model, count, memory and kernel.
pub(crate) fn describe() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    json!({
        "cpu": model,
        // Not [`cpus`]: this process may be bound to one CPU by now.
        "cpus": cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        "memory_gib": field_kb(&memory, "MemTotal:").map_or(0, |kb| kb >> 20),
        "kernel": kernel.trim(),
    })
}

/// The `name: N kB` line of a file under `/proc`.
fn field_kb(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The memory of processes, in bytes; the kernel's memory for them is not included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident set size (RSS).
    pub(crate) rss: u64,
    /// Proportional set size (PSS): shared pages are divided by the number of processes that share them.
    pub(crate) pss: u64,
    /// Resident and not backed by a file: heap and stacks.
    pub(crate) anonymous: u64,
}

impl Memory {
    /// The sum over these processes. A process that ended meanwhile, such as a worker of a replaced configuration,
    /// counts as nothing.
    ///
    /// # Errors
    /// When all of these processes ended.
    pub(crate) fn of(pids: &[u32]) -> Result<Self, Failure> {
        let mut sum = Self::default();
        for pid in pids {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e)
                    if e.kind() == std::io::ErrorKind::NotFound
                        || e.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) =>
                {
                    continue;
                }
                Err(e) => return Err(Failure::io(&path, e)),
            };
            let one =
                Self::parse(&text).ok_or_else(|| Failure::Unexpected(format!("{path} reads {text}")))?;
            sum.rss += one.rss;
            sum.pss += one.pss;
            sum.anonymous += one.anonymous;
        }
        if sum.rss == 0 {
            return Err(Failure::Unexpected(format!("none of {pids:?} runs any more")));
        }
        Ok(sum)
    }

    fn parse(rollup: &str) -> Option<Self> {
        Some(Self {
            rss: field_kb(rollup, "Rss:")? << 10,
            pss: field_kb(rollup, "Pss:")? << 10,
            anonymous: field_kb(rollup, "Anonymous:")? << 10,
        })
    }

    pub(crate) fn json(self) -> Value {
        json!({"rss": self.rss, "pss": self.pss, "anonymous": self.anonymous})
    }
}

/// The kernel's memory for sockets and much else, of the whole machine, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KernelMemory {
    /// Buffers of TCP sockets.
    pub(crate) tcp: u64,
    /// Slab: socket structures, files, and other kernel objects.
    pub(crate) slab: u64,
}

impl KernelMemory {
    pub(crate) fn now() -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| Failure::io(path, e));
        let (sockstat, meminfo) = (read("/proc/net/sockstat")?, read("/proc/meminfo")?);
        Self::parse(&sockstat, &meminfo)
            .ok_or_else(|| Failure::Unexpected(format!("/proc/net/sockstat reads {sockstat}")))
    }

    fn parse(sockstat: &str, meminfo: &str) -> Option<Self> {
        let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
        let mut words = tcp.split_whitespace();
        words.find(|word| *word == "mem")?;
        let pages: u64 = words.next()?.parse().ok()?;
        Some(Self {
            tcp: pages * 4096,
            slab: field_kb(meminfo, "Slab:")? << 10,
        })
    }

    pub(crate) fn json(self) -> Value {
        json!({"tcp": self.tcp, "slab": self.slab})
    }
}

/// The CPU time so far, user and system, of all threads that still live.
pub(crate) fn cpu_time(pids: &[u32]) -> Duration {
    let mut total = 0;
    for pid in pids {
        let tasks = Path::new("/proc").join(pid.to_string()).join("task");
        for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += text
                .split(' ')
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Duration::from_nanos(total)
}

/// The time that all CPUs together have been busy since the boot of the machine, to a hundredth of a second.
pub(crate) fn busy_time() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy(&text)
}

/// Of the first line of `/proc/stat`: all but idle and waiting for disks.
fn busy(stat: &str) -> Duration {
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0));
    let busy = fields
        .take(8)
        .enumerate()
        .filter(|(nth, _)| !matches!(nth, 3 | 4));
    Duration::from_millis(10 * busy.map(|(_, ticks): (usize, u64)| ticks).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_process_is_read_from_its_rollup() {
        let text = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:    9000 kB\nPss:    8000 kB\n\
                    Pss_Dirty:  7000 kB\nAnonymous:     6000 kB\n";
        let memory = Memory::parse(text).expect("all fields");
        assert_eq!(
            (memory.rss, memory.pss, memory.anonymous),
            (9000 << 10, 8000 << 10, 6000 << 10)
        );
        assert_eq!(Memory::parse("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_machine_is_busy_with_all_but_idling_and_waiting() {
        let stat = "cpu  10 20 30 1000 500 1 2 3 0 0\ncpu0 5 5 5 5 5 5 5 5 0 0\n";
        assert_eq!(busy(stat), Duration::from_millis(660));
    }

    #[test]
    fn kernel_memory_is_in_pages_and_kilobytes() {
        let sockstat = "sockets: used 139\nTCP: inuse 4 orphan 0 tw 2 alloc 6 mem 3\nUDP: inuse 0 mem 9\n";
        let read = KernelMemory::parse(sockstat, "MemTotal: 5 kB\nSlab:   77 kB\n").expect("all fields");
        assert_eq!(
            read,
            KernelMemory {
                tcp: 3 * 4096,
                slab: 77 << 10
            }
        );
        assert_eq!(KernelMemory::parse("UDP: mem 9\n", "Slab: 1 kB\n"), None);
    }

    #[test]
    fn a_process_knows_its_own_memory_and_time() {
        let me = std::process::id();
        assert!(Memory::of(&[me, u32::MAX]).expect("readable").rss > 100_000);
        assert!(Memory::of(&[u32::MAX]).is_err());
        assert!(KernelMemory::now().expect("readable").slab > 0);
        let before = now_ns();
        assert!(now_ns() >= before);
    }
}
