//! The environment abstraction layer: DPDK's start, once a process.

use std::ffi::{CString, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use millstream_buf::HugePages;

use crate::device::pci_address;
use crate::lcore::{LcoreGuard, TooManyThreads};
use crate::log;

/// How DPDK is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EalConfig {
    /// Memory for mbufs and queues in MiB. Without huge pages it cannot grow.
    pub memory_mb: u32,
    /// Whether that memory is made of huge pages.
    pub huge_pages: HugePages,
    /// PCI addresses of the devices that DPDK may touch (`0000:01:00.0` or `01:00.0`). None: it does
    /// not even look at the PCI bus.
    pub allow: Vec<String>,
    /// CPUs of the thread that starts DPDK; empty: those that it may run on already.
    pub cpus: Vec<usize>,
    /// Leave the calling thread pinned to `cpus`, as EAL does. Else its affinity is restored.
    pub pin: bool,
    /// More arguments for EAL, as on the command line of a DPDK program.
    pub extra: Vec<String>,
}

impl Default for EalConfig {
    /// 64 MiB, of huge pages if there are enough, no PCI device, no pinning.
    fn default() -> Self {
        Self {
            memory_mb: 64,
            huge_pages: HugePages::Try,
            allow: Vec::new(),
            cpus: Vec::new(),
            pin: false,
            extra: Vec::new(),
        }
    }
}

/// Why DPDK did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EalError {
    /// DPDK runs once a process.
    #[error(
        "DPDK already runs in this process with other settings: ask for the same ones, or use another process"
    )]
    AlreadyRunning,
    /// Huge pages were required and there are too few.
    #[error(
        "not enough free huge pages for {needed_mb} MiB ({free_mb} MiB are free): reserve them with `sysctl vm.nr_hugepages={}` or set `dpdk.huge_pages = \"try\"`", needed_mb.div_ceil(2)
    )]
    NoHugePages {
        /// MiB asked for.
        needed_mb: u32,
        /// MiB free.
        free_mb: u32,
    },
    /// An argument that cannot be passed to C.
    #[error("the DPDK argument {argument:?} has a zero byte in it: remove it")]
    BadArgument {
        /// The argument.
        argument: String,
    },
    /// A device that is none of the PCI bus.
    #[error("{device:?} is no PCI address: write it as 0000:01:00.0")]
    BadDevice {
        /// The device.
        device: String,
    },
    /// A CPU that is not there, or not for this thread.
    #[error(
        "the thread that starts DPDK may not run on CPU {cpu}: choose one of those that `taskset -cp $$` shows, with `shard.cpu`"
    )]
    NoSuchCpu {
        /// The CPU.
        cpu: usize,
    },
    /// EAL's own complaint.
    #[error(
        "DPDK did not start ({reason}): check `dpdk.memory_mb`, `link.pci` and `dpdk.extra`, set `dpdk.huge_pages = \"never\"` if huge pages cannot be had after all; the whole log is at level debug"
    )]
    Refused {
        /// What DPDK logged last.
        reason: String,
    },
}

/// DPDK, running. There is one a process, and it stays until the process ends.
#[derive(Debug)]
pub struct Eal {
    config: EalConfig,
    huge_pages: bool,
    iova_va: bool,
}

static RUNNING: Mutex<Option<&'static Eal>> = Mutex::new(None);

impl Eal {
    /// Starts DPDK, or returns it if it runs with the same settings already.
    ///
    /// # Errors
    /// [`EalError`]; after [`EalError::Refused`] DPDK cannot be started in this process any more.
    pub fn init(config: &EalConfig) -> Result<&'static Self, EalError> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        match *running {
            Some(eal) if eal.config == *config => Ok(eal),
            Some(_) => Err(EalError::AlreadyRunning),
            None => {
                let eal: &'static Self = Box::leak(Box::new(start(config)?));
                *running = Some(eal);
                Ok(eal)
            }
        }
    }

    /// Gives the calling thread an lcore number for as long as the guard lives. Queues do that
    /// themselves when they are bound.
    ///
    /// # Errors
    /// [`TooManyThreads`] if no number is left.
    pub fn register_thread(&self) -> Result<LcoreGuard, TooManyThreads> {
        LcoreGuard::new()
    }

    /// Whether its memory is made of huge pages.
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Whether devices use virtual addresses, which foreign memory needs.
    pub(crate) fn iova_va(&self) -> bool {
        self.iova_va
    }

    pub(crate) fn config(&self) -> &EalConfig {
        &self.config
    }

    /// DPDK's control calls (open, close) are made one at a time.
    pub(crate) fn control() -> MutexGuard<'static, ()> {
        static CONTROL: Mutex<()> = Mutex::new(());
        CONTROL.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start(config: &EalConfig) -> Result<Eal, EalError> {
    let free_mb = free_huge_mb();
    let huge_pages = match config.huge_pages {
        HugePages::Never => false,
        HugePages::Try => free_mb >= config.memory_mb,
        HugePages::Require if free_mb >= config.memory_mb => true,
        HugePages::Require => {
            return Err(EalError::NoHugePages { needed_mb: config.memory_mb, free_mb });
        }
    };
    let affinity = Affinity::of_this_thread();
    let own = affinity.cpus();
    let cpus = if config.cpus.is_empty() { own.clone() } else { config.cpus.clone() };
    // EAL would print its usage on standard output.
    if let Some(&cpu) = cpus.iter().find(|cpu| !own.contains(cpu)) {
        return Err(EalError::NoSuchCpu { cpu });
    }
    let mut allow = Vec::new();
    for device in &config.allow {
        let bad = || EalError::BadDevice { device: device.clone() };
        allow.push(pci_address(device).ok_or_else(bad)?);
    }
    let mut argv = Vec::new();
    for argument in arguments(config, huge_pages, &cpus, &allow) {
        let text =
            CString::new(argument.clone()).map_err(|_| EalError::BadArgument { argument })?;
        // EAL keeps pointers into its arguments, so they live as long as the process.
        argv.push(text.into_raw());
    }
    let argc = argv.len() as i32;
    argv.push(std::ptr::null_mut::<c_char>());
    log::route();
    log::clear();
    // SAFETY: `argv` has `argc` C strings that are never freed, and a null behind them; `RUNNING`
    // is locked, so this is the only call.
    let rc = unsafe { dpdk_sys::rte_eal_init(argc, argv.leak().as_mut_ptr()) };
    if !config.pin {
        affinity.restore();
    }
    if rc < 0 {
        // SAFETY: reads DPDK's errno.
        let errno = unsafe { dpdk_sys::shim_errno() };
        return Err(EalError::Refused { reason: log::reason(errno) });
    }
    // SAFETY: EAL is up.
    let iova = unsafe { dpdk_sys::rte_eal_iova_mode() };
    Ok(Eal {
        config: config.clone(),
        huge_pages,
        iova_va: iova == dpdk_sys::rte_iova_mode::RTE_IOVA_VA,
    })
}

/// EAL's command line. Nothing of it touches the machine's own devices unless one is named.
fn arguments(
    config: &EalConfig,
    huge_pages: bool,
    cpus: &[usize],
    allow: &[String],
) -> Vec<String> {
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    let mut arguments: Vec<String> = vec![
        "millstream".into(),
        "--no-telemetry".into(),
        "--no-shconf".into(),
        format!("--lcores=0@({})", cpus.join(",")),
        "-m".into(),
        config.memory_mb.to_string(),
    ];
    if huge_pages {
        arguments.push("--in-memory".into());
    } else {
        arguments.push("--no-huge".into());
    }
    if allow.is_empty() {
        arguments.push("--no-pci".into());
        if huge_pages {
            // Root without VFIO would get physical addresses, which foreign memory has not.
            arguments.push("--iova-mode=va".into());
        }
    }
    for device in allow {
        arguments.extend(["-a".into(), device.clone()]);
    }
    arguments.extend(config.extra.iter().cloned());
    arguments
}

/// Free huge pages of all sizes, in MiB.
fn free_huge_mb() -> u32 {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    let mb: u64 = sizes
        .flatten()
        .filter_map(|size| {
            let name = size.file_name().into_string().ok()?;
            let kb: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let free = std::fs::read_to_string(size.path().join("free_hugepages")).ok()?;
            Some(kb.saturating_mul(free.trim().parse().ok()?) / 1024)
        })
        .sum();
    u32::try_from(mb).unwrap_or(u32::MAX)
}

/// Where a thread may run.
struct Affinity(libc::cpu_set_t);

impl Affinity {
    fn of_this_thread() -> Self {
        // SAFETY: a cpu_set_t is plain bits; the kernel writes at most its size.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
            Self(set)
        }
    }

    fn cpus(&self) -> Vec<usize> {
        // SAFETY: indices below CPU_SETSIZE.
        let cpus: Vec<_> = (0..libc::CPU_SETSIZE as usize)
            .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
            .collect();
        if cpus.is_empty() { vec![0] } else { cpus }
    }

    fn restore(&self) {
        // SAFETY: a set that the kernel gave us.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }
}

/// Marks real-time signals as taken, those that nobody uses.
///
/// net_tap takes the first one at its default and has the kernel queue it for each packet that
/// arrives: reception then costs a signal a packet and runs at a quarter of the speed or less. If it
/// finds none it simply polls.
pub(crate) fn ignore_real_time_signals() {
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: reads a signal's action and, if it is the default one (which would end the
        // process), changes it to "ignore"; nobody's handler is replaced.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_DFL
            {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_touched_unless_it_is_named() {
        let config = EalConfig::default();
        let args = arguments(&config, false, &[0, 3], &[]);
        assert!(args.contains(&"--no-pci".into()) && args.contains(&"--no-huge".into()));
        assert!(args.contains(&"--lcores=0@(0,3)".into()));
        let args = arguments(&config, true, &[0], &["0000:01:00.0".into()]);
        assert!(!args.contains(&"--no-pci".into()));
        assert!(args.windows(2).any(|pair| pair == ["-a", "0000:01:00.0"]));
        assert!(args.contains(&"--in-memory".into()));
    }

    #[test]
    fn what_is_no_card_or_no_cpu_is_refused() {
        let config = EalConfig { allow: vec!["net_null0".into()], ..EalConfig::default() };
        let error = start(&config).unwrap_err();
        assert_eq!(error, EalError::BadDevice { device: "net_null0".into() });
        let config = EalConfig { cpus: vec![1 << 20], ..EalConfig::default() };
        assert_eq!(start(&config).unwrap_err(), EalError::NoSuchCpu { cpu: 1 << 20 });
    }

    #[test]
    fn too_few_huge_pages_is_a_sentence() {
        let config = EalConfig {
            memory_mb: u32::MAX,
            huge_pages: HugePages::Require,
            ..EalConfig::default()
        };
        let error = start(&config).unwrap_err().to_string();
        assert!(error.contains("sysctl vm.nr_hugepages=2147483648"), "{error}");
    }
}
