//! `millstream doctor`: what this machine offers, and how to mend what is missing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use millstream::buf::{Arena, ArenaConfig, HugePages, SIZES_BYTES, Thresholds};
use millstream::disk::{QueueKind, open_queue};

use crate::error::AppError;
use crate::output::say;

/// Least limit of open files and of locked memory that a server is happy with.
const OPEN_FILES_WANTED: u64 = 4096;
const LOCKED_BYTES_WANTED: u64 = 64 << 20;
/// Pages of 2 MiB that the default profile takes.
const HUGE_PAGES_WANTED: u64 = 64;

/// One line of the report.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    found: String,
    /// What to do about it, if anything.
    mend: Option<String>,
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), mend: None }
}

fn warn(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), mend: Some(mend.into()) }
}

/// Prints the report. Warnings are no failure: most of them have a slower way around.
pub fn run() -> Result<(), AppError> {
    let findings = [
        user(),
        kernel(),
        cores(),
        processor(&read("/proc/cpuinfo")),
        huge_pages(),
        copying(),
        dpdk(),
        drivers(),
        tun(),
        cards(),
        disk_queue(),
        open_files(&read("/proc/self/limits")),
        locked_memory(&read("/proc/self/limits")),
    ];
    for finding in &findings {
        say(line(finding));
    }
    let warnings = findings.iter().filter(|finding| finding.mend.is_some()).count();
    match warnings {
        0 => say("nothing is missing"),
        n => say(format_args!(
            "{n} of {} could be better; everything works without, but slower or with fewer drivers",
            findings.len()
        )),
    }
    Ok(())
}

fn line(finding: &Finding) -> String {
    let Finding { what, found, mend } = finding;
    match mend {
        None => format!("ok    {what:<16}{found}"),
        Some(mend) => format!("warn  {what:<16}{found}; {mend}"),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn user() -> Finding {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    match root {
        true => ok("user", "root"),
        false => {
            warn("user", "not root", "tap, af_packet, af_xdp and cards need root; memif does not")
        }
    }
}

fn kernel() -> Finding {
    ok("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()))
}

fn cores() -> Finding {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => warn(
            "cores",
            "1",
            "a polling shard leaves little for others; give the machine a second one",
        ),
        n => ok("cores", n.to_string()),
    }
}

fn processor(cpuinfo: &str) -> Finding {
    let field = |name: &str| {
        cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "))
    };
    let model = field("model name").map_or("unknown", |(_, value)| value.trim());
    let flags: Vec<&str> =
        field("flags").map_or("", |(_, value)| value).split_ascii_whitespace().collect();
    let has = |flag: &str| flags.contains(&flag);
    if !has("sse4_2") {
        return warn("processor", model, "DPDK needs SSE4.2; use a newer one");
    }
    let vectors = ["avx2", "avx512f"].into_iter().filter(|flag| has(flag)).collect::<Vec<_>>();
    let found = format!(
        "{model}, {}",
        if vectors.is_empty() { "sse4_2".into() } else { vectors.join(" ") }
    );
    if has("constant_tsc") && has("nonstop_tsc") {
        ok("processor", format!("{found}, steady TSC"))
    } else {
        warn(
            "processor",
            format!("{found}, unsteady TSC"),
            "time is read by a slower clock; on a virtual machine pass the host's TSC through",
        )
    }
}

fn huge_pages() -> Finding {
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let count = |name: &str| read(&format!("{folder}/{name}")).trim().parse::<u64>().unwrap_or(0);
    let (all, free) = (count("nr_hugepages"), count("free_hugepages"));
    let found = format!("{free} of {all} pages of 2 MiB are free");
    if free >= HUGE_PAGES_WANTED {
        ok("huge pages", found)
    } else {
        warn(
            "huge pages",
            found,
            format!("reserve some with `sysctl vm.nr_hugepages={}`", HUGE_PAGES_WANTED * 2),
        )
    }
}

/// Where copying stops to pay on this machine: what emulated copy and emulated share go by.
fn copying() -> Finding {
    let small = ArenaConfig { frames: 16, blocks: 16, huge_pages: HugePages::Try };
    match Arena::new(&small) {
        Ok(arena) => ok("copying", thresholds(&Thresholds::measure(&arena))),
        Err(error) => warn("copying", "not measured", error.to_string()),
    }
}

fn thresholds(measured: &Thresholds) -> String {
    let Thresholds { copy_below_bytes, copy_ns, refer_ns } = measured;
    let at = |bytes| SIZES_BYTES.iter().position(|size| *size == bytes).unwrap_or(0);
    format!(
        "pays below {copy_below_bytes} bytes; 2 KiB: {:.0} ns copied, {:.0} ns by reference",
        copy_ns[at(2048)],
        refer_ns[at(2048)]
    )
}

/// The library that this process runs with.
fn dpdk_library() -> Option<PathBuf> {
    let maps = read("/proc/self/maps");
    let path = maps.lines().find_map(|line| {
        line.split_ascii_whitespace().nth(5).filter(|path| path.contains("librte_eal.so"))
    })?;
    Some(PathBuf::from(path))
}

fn dpdk() -> Finding {
    match dpdk_library() {
        Some(path) => {
            let file = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let abi = file.strip_prefix("librte_eal.so.").unwrap_or("unknown");
            let release =
                release_of(abi).map_or_else(String::new, |release| format!("DPDK {release}, "));
            ok("DPDK", format!("{release}ABI {abi}, {}", path.display()))
        }
        None => ok("DPDK", "linked into the program"),
    }
}

/// ABI 23 came with release 22.11, and so on every year.
fn release_of(abi: &str) -> Option<String> {
    let year: u32 = abi.split('.').next()?.parse().ok()?;
    Some(format!("{}.11", year.checked_sub(1)?))
}

fn drivers() -> Finding {
    let names = ["tap", "af_packet", "af_xdp", "memif", "ring", "null", "pcap"];
    let Some(folder) = dpdk_library().and_then(|path| plugin_folder(&path)) else {
        return ok("drivers", "linked into the program");
    };
    let has = |name: &&str| folder.join(format!("librte_net_{name}.so")).exists();
    let (there, missing): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| has(name));
    let found = there.join(", ");
    match missing.is_empty() {
        true => ok("drivers", found),
        false => warn(
            "drivers",
            found,
            format!(
                "{} missing: install it with `apt-get install libdpdk-dev`",
                missing.join(", ")
            ),
        ),
    }
}

fn plugin_folder(library: &Path) -> Option<PathBuf> {
    let folder = library.parent()?.join("dpdk");
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pmds-"))
    })
}

fn tun() -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => ok("tap", "/dev/net/tun can be opened"),
        Err(error) => warn(
            "tap",
            format!("/dev/net/tun: {error}"),
            "load it with `modprobe tun`, or run as root",
        ),
    }
}

fn cards() -> Finding {
    let bound = fs::read_dir("/sys/bus/pci/drivers/vfio-pci").into_iter().flatten().flatten();
    let cards: Vec<_> = bound
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(':'))
        .collect();
    if cards.is_empty() {
        warn(
            "cards",
            "none is bound to vfio-pci",
            "for a card of one's own: `dpdk-devbind.py --bind=vfio-pci ADDRESS`",
        )
    } else {
        ok("cards", cards.join(", "))
    }
}

fn disk_queue() -> Finding {
    let small = ArenaConfig { frames: 0, blocks: 16, huge_pages: HugePages::Never };
    let opened = Arena::new(&small).map_err(|error| error.to_string()).and_then(|arena| {
        open_queue(QueueKind::Uring, &arena, 8).map_err(|error| error.to_string())
    });
    match opened {
        Ok(queue) => ok("disk", queue.name()),
        Err(error) => warn("disk", "worker threads with pread", error),
    }
}

/// The soft limit in a line of /proc/self/limits.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with(name))?;
    match line.get(name.len()..)?.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".into() } else { limit.to_string() }
}

fn open_files(limits: &str) -> Finding {
    let found = limit(limits, "Max open files").unwrap_or(0);
    if found >= OPEN_FILES_WANTED {
        ok("open files", shown(found))
    } else {
        warn(
            "open files",
            shown(found),
            format!(
                "raise it with `ulimit -n {OPEN_FILES_WANTED}`, or keep http.cache_entries well below"
            ),
        )
    }
}

fn locked_memory(limits: &str) -> Finding {
    let found = limit(limits, "Max locked memory").unwrap_or(0);
    if found >= LOCKED_BYTES_WANTED {
        ok("locked memory", shown(found))
    } else {
        warn(
            "locked memory",
            format!("{} bytes", shown(found)),
            "raise it with `ulimit -l unlimited`, so that buffers can be registered with io_uring and cards",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_to_mend() {
        assert_eq!(line(&ok("cores", "2")), "ok    cores           2");
        assert_eq!(line(&warn("disk", "a", "do b")), "warn  disk            a; do b");
    }

    #[test]
    fn limits_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n\
                      Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert!(open_files(limits).mend.is_some());
        assert_eq!(locked_memory(limits), ok("locked memory", "unlimited"));
        assert!(locked_memory("").mend.is_some());
    }

    #[test]
    fn processors_are_told_apart() {
        let good = "model name\t: X\nflags\t\t: fpu sse4_2 avx2 constant_tsc nonstop_tsc\n";
        assert_eq!(processor(good), ok("processor", "X, avx2, steady TSC"));
        assert!(processor("model name\t: X\nflags\t\t: fpu sse4_2\n").found.contains("unsteady"));
        assert!(processor("").mend.is_some());
    }

    #[test]
    fn thresholds_are_told_in_one_line() {
        let mut measured = Thresholds {
            copy_below_bytes: 160,
            copy_ns: [1.0; SIZES_BYTES.len()],
            refer_ns: [20.4; SIZES_BYTES.len()],
        };
        measured.copy_ns[12] = 70.0;
        let said = thresholds(&measured);
        assert_eq!(said, "pays below 160 bytes; 2 KiB: 70 ns copied, 20 ns by reference");
        assert!(copying().mend.is_none());
    }

    #[test]
    fn releases_follow_the_abi() {
        assert_eq!(release_of("23.0").as_deref(), Some("22.11"));
        assert_eq!(release_of("25").as_deref(), Some("24.11"));
        assert_eq!(release_of("x"), None);
    }
}
